//! Owns the property of a session: whatever breaks when, it keeps its promises to a server that keeps its own.

use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{A, Bench, SECOND};
use super::{Action, Event};
use crate::error::SendError;
use crate::frames::Text;

/// A server that keeps its word, as far as it is about numbers.
#[derive(Default)]
struct Server {
    had: u64,
    last: u64,
    /// The requests that it has seen, and what the newest of them said.
    seen: HashSet<String>,
    newest: Option<u32>,
    unanswered: Vec<String>,
}

impl Server {
    /// A frame came. Returns whether it was one that nobody should write.
    fn take(&mut self, bench: &mut Bench, frame: &Value, taken: u64) -> Result<(), String> {
        let data = &frame["data"];
        let seq = data["seq"].as_u64();
        match frame["kind"].as_str() {
            Some("registration") if data.is_null() => bench.greet(A, true),
            Some("registration") => {
                let seq = seq.unwrap_or(0);
                if seq > taken || seq < self.had {
                    return Err(format!("it says that it has {seq}, and has taken {taken}"));
                }
                self.had = seq;
                self.unanswered.clear();
                bench.greet(A, !data["resume"].is_null());
                (seq + 1..=self.last).for_each(|seq| bench.come(seq));
            }
            Some("ack") if seq > Some(taken) => return Err(format!("{seq:?} is acknowledged, {taken} are taken")),
            Some("ack") => self.had = self.had.max(seq.unwrap_or(0)),
            _ => {
                let (id, number) =
                    (frame["id"].as_str().unwrap().to_owned(), data["text"].as_str().unwrap().parse().ok());
                if self.unanswered.contains(&id) {
                    return Err(format!("{number:?} is written twice over one connection"));
                }
                if self.seen.insert(id.clone()) && std::mem::replace(&mut self.newest, number) >= number {
                    return Err(format!("{number:?} was overtaken"));
                }
                self.unanswered.push(id);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever breaks when: each message is shown once and in order, none that is not taken is acknowledged, and each
    /// send is written in order, and told once.
    #[test]
    fn nothing_is_lost_shown_twice_or_overtaken(steps in proptest::collection::vec((0..9u8, 1..40u32), 1..80)) {
        let mut bench = Bench::new(1, false);
        let mut server = Server::default();
        let (mut shown, mut taken, mut sent, mut told) = (0u64, 0u64, 0u32, HashSet::new());
        let mut is_open = false;
        for (step, count) in steps {
            match step {
                0 if is_open => {
                    bench.handle(Event::Closed(1006));
                    is_open = false;
                }
                1..=2 if is_open => for _ in 0..count {
                    server.last += 1;
                    bench.come(server.last);
                },
                3 => {
                    let count = u64::from(count).min(shown - taken);
                    bench.handle(Event::Taken(usize::try_from(count).unwrap()));
                    taken += count;
                }
                4 => for _ in 0..count {
                    bench.send(sent * 2, &sent.to_string());
                    sent += 1;
                },
                5 if is_open => for id in std::mem::take(&mut server.unanswered) {
                    bench.frame(&json!({ "kind": "ack", "id": id, "data": null }));
                },
                6 => bench.pass(SECOND * count / 20),
                7 if !is_open => server.last += u64::from(count), // Somebody is away, and is written to.
                _ => {}
            }
            while !bench.actions.is_empty() {
                for action in bench.actions() {
                    match action {
                        Action::Dial(_) => {
                            bench.open(None);
                            is_open = true;
                        }
                        Action::Drop => is_open = false,
                        Action::Write(Text(text)) => {
                            let broken = server.take(&mut bench, &serde_json::from_str(&text).unwrap(), taken);
                            prop_assert_eq!(broken, Ok(()));
                        }
                        Action::Show(message) => {
                            shown += 1;
                            prop_assert_eq!(message.text, shown.to_string());
                        }
                        Action::Answer(waiter, Ok(()) | Err(SendError::Timeout(_) | SendError::Lost)) => {
                            prop_assert!(told.insert(waiter), "{} was told twice", waiter);
                        }
                        Action::Answer(waiter, error) => prop_assert!(false, "{waiter}: {error:?}"),
                        Action::Renew | Action::Close => prop_assert!(false, "nobody asked for that"),
                        Action::Become(_) => {}
                    }
                }
            }
        }
        prop_assert!(shown - taken <= 2048);
        let is_shown = shown == server.last || server.last - taken > 1024;
        prop_assert!(!is_open || is_shown, "{} of {} are shown", shown, server.last);
    }
}
