use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::*;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const A: Uuid = Uuid::from_u128(1);
const B: Uuid = Uuid::from_u128(2);

impl Waiter for u32 {
    /// Who has an odd number does not wait for an answer.
    fn is_waiting(&self) -> bool {
        self.is_multiple_of(2)
    }
}

/// A session with a clock, and what it did since that was looked at last.
pub(super) struct Bench {
    pub(super) session: Session<u32>,
    now: Instant,
    pub(super) actions: Vec<Action<u32>>,
}

impl Bench {
    pub(super) fn new(urls: usize, has_credentials: bool) -> Self {
        let random = fastrand::Rng::with_seed(7);
        let session = Session::new(Settings::default(), urls, has_credentials, random);
        let mut bench = Self { session, now: Instant::now(), actions: Vec::new() };
        bench.session.dial(bench.now, &mut bench.actions);
        bench
    }

    /// One that is connected.
    fn connected() -> Self {
        let mut bench = Self::new(1, false);
        bench.open(None);
        bench.greet(A, false);
        bench.actions();
        bench
    }

    pub(super) fn handle(&mut self, event: Event<u32>) {
        self.session.handle(self.now, event, &mut self.actions);
    }

    pub(super) fn open(&mut self, credentials: Option<&str>) {
        self.handle(Event::Opened(credentials.map(|token| Secret(token.to_owned()))));
    }

    pub(super) fn greet(&mut self, id: Uuid, resumed: bool) {
        let resume = json!({ "token": "t", "window_ms": 30_000, "expires_ms": 86_400_000, "standby": true });
        let greeting = json!({ "client_id": id, "resumed": resumed, "resume": resume });
        let before = self.actions.len();
        self.frame(&json!({ "kind": "connection", "data": greeting }));
        // The first one is answered, before anything else is said.
        let is_written = |action: &Action<u32>| matches!(action, Action::Write(_));
        if let Some(at) = self.actions.iter().skip(before).position(is_written) {
            let Action::Write(Text(text)) = self.actions.remove(before + at) else { unreachable!() };
            let frame: Value = serde_json::from_str(&text).unwrap();
            assert!(frame["kind"] == "ack" && frame["data"]["seq"].is_u64(), "{frame}");
        }
    }

    pub(super) fn frame(&mut self, frame: &Value) {
        self.handle(Event::Came(frame.to_string()));
    }

    pub(super) fn come(&mut self, seq: u64) {
        let data = json!({ "sender_id": B, "text": seq.to_string(), "seq": seq });
        self.frame(&json!({ "kind": "receive", "id": Uuid::new_v4(), "data": data }));
    }

    pub(super) fn send(&mut self, waiter: u32, text: &str) {
        let too_late = self.now + self.session.settings.send_patience;
        self.handle(Event::Send { too_late, receiver: B, text: text.to_owned(), waiter });
    }

    /// Lets time pass, with a look at each moment that the session wants.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.session.deadline().filter(|next| *next <= end) {
            self.now = next.max(self.now);
            self.handle(Event::Tick);
        }
        self.now = end;
    }

    pub(super) fn actions(&mut self) -> Vec<Action<u32>> {
        std::mem::take(&mut self.actions)
    }

    /// The frames that were written.
    fn written(&mut self) -> Vec<Value> {
        let frame = |action| match action {
            Action::Write(Text(text)) => Some(serde_json::from_str(&text).unwrap()),
            _ => None,
        };
        self.actions().into_iter().filter_map(frame).collect()
    }

    fn pauses(&mut self) -> Vec<Duration> {
        let pause = |action| match action {
            Action::Become(State::Away { retry_in, .. }) => Some(retry_in),
            _ => None,
        };
        self.actions().into_iter().filter_map(pause).collect()
    }

    fn answers(&mut self) -> Vec<(u32, Result<(), SendError>)> {
        let answer = |action| match action {
            Action::Answer(waiter, answer) => Some((waiter, answer)),
            _ => None,
        };
        self.actions().into_iter().filter_map(answer).collect()
    }

    fn refuse(&mut self, retry_after: Option<u64>) {
        self.handle(Event::Failed { why: Cause::Refused(503), retry_after: retry_after.map(Duration::from_secs) });
    }
}

fn ids(frames: &[Value]) -> Vec<String> {
    frames.iter().map(|frame| frame["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pauses_grow_to_the_longest_with_full_jitter_and_begin_anew_once_it_is_greeted() {
    let mut bench = Bench::new(1, false);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        bench.refuse(None);
        pauses.extend(bench.pauses());
        bench.pass(*pauses.last().unwrap());
        assert_eq!(bench.actions()[0], Action::Dial(0));
    }
    for (pause, most) in pauses.iter().zip([1, 2, 4, 8, 15, 15, 15]) {
        assert!(*pause < most * SECOND, "{pauses:?}");
    }
    assert!(pauses.iter().any(|pause| *pause > 4 * SECOND), "{pauses:?}");
    // Accepted and dropped: it is not hammered.
    bench.open(None);
    bench.handle(Event::Closed(1006));
    assert_eq!(bench.session.pause, 15 * SECOND);
    let pause = bench.pauses()[0];
    bench.pass(pause);
    bench.open(None);
    bench.greet(A, false);
    bench.actions();
    bench.handle(Event::Closed(1006));
    assert!(bench.pauses()[0] < SECOND);
}

#[test]
fn full_jitter_is_spread_over_all_of_the_pause() {
    let mut pauses = Vec::new();
    let mut bench = Bench::connected();
    for _ in 0..200 {
        bench.handle(Event::Closed(1012));
        pauses.extend(bench.pauses());
        bench.pass(TOLD_PAUSE);
        bench.open(None);
        bench.greet(A, true);
    }
    let quarter = |part: u32| {
        pauses.iter().filter(|pause| **pause >= TOLD_PAUSE / 4 * part && **pause < TOLD_PAUSE / 4 * (part + 1)).count()
    };
    assert!((0..4).all(|part| quarter(part) > 25), "{pauses:?}");
}

#[test]
fn a_server_that_is_full_is_obeyed_when_there_is_no_other() {
    let mut bench = Bench::new(1, false);
    bench.refuse(Some(7));
    let pause = bench.pauses()[0];
    assert!(pause >= 7 * SECOND && pause < 8 * SECOND, "{pause:?}");
    bench.pass(pause);
    bench.refuse(Some(100_000));
    assert!(bench.pauses()[0] < 63 * SECOND, "nobody waits for a day");

    let mut bench = Bench::new(2, false);
    bench.actions();
    bench.refuse(Some(7));
    assert!(bench.pauses()[0] < SECOND, "the other one first");
    bench.pass(SECOND);
    assert_eq!(bench.actions()[0], Action::Dial(1));
    bench.refuse(Some(7));
    assert!(bench.pauses()[0] >= 7 * SECOND);
}

#[test]
fn an_attempt_without_an_answer_is_given_up_and_the_next_address_has_its_turn() {
    let mut bench = Bench::new(2, false);
    bench.pass(10 * SECOND);
    let actions = bench.actions();
    assert!(actions.contains(&Action::Drop), "{actions:?}");
    bench.pass(SECOND);
    assert_eq!(bench.actions()[0], Action::Dial(1));
    bench.open(None);
    bench.pass(10 * SECOND);
    assert!(bench.actions().contains(&Action::Drop), "registered, and never greeted");
}

#[test]
fn it_asks_for_a_sign_of_life_and_gives_up_a_server_that_gives_none() {
    let mut bench = Bench::connected();
    bench.pass(9 * SECOND);
    bench.handle(Event::Heard);
    bench.pass(9 * SECOND);
    assert!(bench.written().is_empty());
    bench.pass(SECOND);
    let asked = bench.written();
    assert_eq!((asked[0]["kind"].as_str(), &asked[0]["data"]), (Some("registration"), &Value::Null));
    bench.pass(4 * SECOND);
    bench.greet(A, true);
    bench.pass(10 * SECOND);
    assert_eq!(bench.written().len(), 1, "asked again");
    bench.pass(5 * SECOND);
    let actions = bench.actions();
    assert_eq!(actions[0], Action::Drop);
    assert!(matches!(actions[1], Action::Become(State::Away { why: Cause::Silent, .. })), "{actions:?}");
}

#[test]
fn what_was_not_answered_is_written_again_in_order_under_the_same_ids() {
    let mut bench = Bench::connected();
    (0..3).for_each(|number| bench.send(number * 2, "text"));
    let first = ids(&bench.written());
    bench.frame(&json!({ "kind": "ack", "id": first[1], "data": null }));
    assert_eq!(bench.answers(), [(2, Ok(()))]);
    bench.frame(&json!({ "kind": "ack", "id": first[1], "data": null }));
    assert!(bench.answers().is_empty(), "an answer that comes twice is one");
    bench.handle(Event::Closed(1006));
    bench.send(6, "newer");
    bench.pass(SECOND);
    bench.open(None);
    let wish = bench.written().pop().unwrap();
    assert_eq!(wish["data"], json!({ "resume": "t", "seq": 0 }));
    bench.greet(A, true);
    let again = ids(&bench.written());
    assert_eq!((again.len(), &again[..2]), (3, &[first[0].clone(), first[2].clone()][..]));
    bench.frame(&json!({ "kind": "error", "id": again[2], "data": { "code": "EBUSY", "description": "slow" } }));
    assert_eq!(bench.answers(), [(6, Err(SendError::Busy("slow".to_owned())))]);
}

#[test]
fn what_was_written_is_lost_with_its_session_and_what_was_not_goes_to_the_next() {
    let mut bench = Bench::connected();
    bench.send(0, "written");
    bench.handle(Event::Closed(1006));
    bench.send(2, "not written");
    bench.pass(SECOND);
    bench.open(None);
    bench.actions();
    bench.greet(B, false);
    let actions = bench.actions();
    assert!(actions.contains(&Action::Answer(0, Err(SendError::Lost))), "{actions:?}");
    assert!(actions.contains(&Action::Become(State::Connected { id: B, resumed: false, missed: 1 })), "{actions:?}");
    let written = actions.iter().filter(|action| matches!(action, Action::Write(_))).count();
    assert_eq!(written, 1);
}

#[test]
fn the_window_is_waited_for_and_no_longer() {
    let mut bench = Bench::connected();
    bench.send(0, "written");
    bench.pass(SECOND);
    bench.handle(Event::Closed(1006));
    bench.send(2, "waits for a connection");
    bench.actions();
    bench.pass(28 * SECOND);
    assert!(bench.answers().is_empty());
    bench.pass(SECOND);
    assert_eq!(bench.answers(), [(0, Err(SendError::Lost))]);
    bench.pass(SECOND);
    assert_eq!(bench.answers(), [(2, Err(SendError::Timeout(30 * SECOND)))]);
}

#[test]
fn a_server_that_does_not_answer_a_send_is_given_up() {
    let mut bench = Bench::connected();
    bench.send(0, "text");
    bench.actions();
    for _ in 0..19 {
        bench.pass(SECOND);
        bench.handle(Event::Heard);
    }
    assert!(bench.actions().is_empty());
    bench.pass(SECOND);
    assert_eq!(bench.actions()[0], Action::Drop);
}

#[test]
fn no_more_are_open_than_the_server_takes_and_who_does_not_wait_withdraws() {
    let mut bench = Bench::connected();
    (0..200).for_each(|number| bench.send(number, "text"));
    let open = ids(&bench.written());
    assert_eq!(open.len(), 64);
    for id in open {
        bench.frame(&json!({ "kind": "ack", "id": id, "data": null }));
    }
    assert_eq!(
        bench.answers().into_iter().map(|(waiter, _)| waiter).collect::<Vec<_>>(),
        (0..128).step_by(2).collect::<Vec<_>>()
    );
    bench.handle(Event::Closed(1006));
    bench.pass(SECOND);
    bench.open(None);
    bench.actions();
    bench.greet(A, true);
    assert_eq!(bench.written().len(), 100 - 64, "half of them wait for an answer");
}

#[test]
fn who_has_withdrawn_leaves_nothing_behind_and_all_others_are_told() {
    let mut bench = Bench::connected();
    // Every tenth waits.
    (0..10_240).for_each(|number| bench.send(if number % 10 == 0 { 2 * number } else { 1 }, "text"));
    assert_eq!(bench.written().len(), 64);
    bench.handle(Event::Close);
    let answers = bench.answers();
    assert!(answers.len() < 3 * 1024, "{} are kept for 1,024", answers.len());
    assert_eq!(answers.iter().filter(|(waiter, _)| waiter % 2 == 0).count(), 1024);
    assert!(answers.iter().all(|(_, answer)| *answer == Err(SendError::Closed)));
    assert!(bench.session.is_ended() && bench.session.deadline().is_none());
    bench.send(0, "after the end");
    assert_eq!(bench.answers(), [(0, Err(SendError::Closed))]);
}

#[test]
fn a_frame_over_the_limit_fails_alone() {
    let mut bench = Bench::connected();
    for (waiter, text) in [(0, "a"), (2, "much longer"), (4, "b")] {
        bench.send(waiter, text);
    }
    bench.actions();
    bench.handle(Event::Closed(1009));
    let answers = bench.answers();
    assert!(matches!(&answers[..], [(2, Err(SendError::TooLong(_)))]), "{answers:?}");
    bench.pass(SECOND);
    bench.open(None);
    bench.actions();
    bench.greet(A, true);
    assert_eq!(bench.written().len(), 2);
}

#[test]
fn messages_are_shown_once_and_what_is_not_taken_is_asked_for_again() {
    let mut bench = Bench::connected();
    (1..=3).for_each(|seq| bench.come(seq));
    bench.come(2);
    bench.handle(Event::Taken(2));
    let shown = |bench: &mut Bench| -> Vec<String> {
        let text = |action| if let Action::Show(message) = action { Some(message.text) } else { None };
        bench.actions().into_iter().filter_map(text).collect()
    };
    assert_eq!(shown(&mut bench), ["1", "2", "3"]);
    bench.pass(SECOND);
    assert_eq!(bench.written()[0]["data"], json!({ "seq": 2 }));
    bench.handle(Event::Closed(1006));
    bench.pass(SECOND);
    bench.open(None);
    assert_eq!(bench.written().pop().unwrap()["data"], json!({ "resume": "t", "seq": 2 }));
    bench.greet(A, true);
    (3..=4).for_each(|seq| bench.come(seq));
    assert_eq!(shown(&mut bench), ["4"]);
}

#[test]
fn who_takes_nothing_says_so_often_enough_to_be_known_to_live() {
    let mut bench = Bench::connected();
    bench.come(1);
    let mut acks = 0;
    for _ in 0..60 {
        bench.pass(SECOND);
        bench.handle(Event::Heard);
        acks += bench.written().iter().filter(|frame| frame["data"] == json!({ "seq": 0 })).count();
    }
    assert_eq!(acks, 6);
}

#[test]
fn an_overflow_makes_the_connection_anew_and_loses_nothing() {
    let mut bench = Bench::connected();
    (1..=2049).for_each(|seq| bench.come(seq));
    bench.actions();
    bench.send(0, "who is full can send");
    assert_eq!(bench.written().len(), 1);
    bench.handle(Event::Taken(1024));
    let actions = bench.actions();
    assert!(actions.contains(&Action::Drop), "{actions:?}");
    bench.handle(Event::Tick);
    assert_eq!(bench.actions()[0], Action::Dial(0));
    bench.open(None);
    assert_eq!(bench.written().pop().unwrap()["data"], json!({ "resume": "t", "seq": 1024 }));
    bench.greet(A, true);
    (1025..=2049).for_each(|seq| bench.come(seq));
    let shown = bench.actions().iter().filter(|action| matches!(action, Action::Show(_))).count();
    assert_eq!(shown, 1);
}

#[test]
fn who_is_replaced_or_not_let_in_does_not_come_again() {
    let mut bench = Bench::connected();
    bench.send(0, "text");
    bench.actions();
    bench.handle(Event::Closed(4001));
    let actions = bench.actions();
    assert_eq!(actions[1], Action::Answer(0, Err(SendError::Closed)));
    assert_eq!(actions[2], Action::Become(State::Closed(Ending::Elsewhere)));

    for has_credentials in [false, true] {
        let mut bench = Bench::new(1, has_credentials);
        bench.open(Some("hunter2"));
        let flaw = json!({ "code": "EAUTH", "description": "the token has expired" });
        bench.frame(&json!({ "kind": "error", "id": Uuid::new_v4(), "data": flaw }));
        bench.handle(Event::Closed(4003));
        let ending = Ending::Credentials("the token has expired".to_owned());
        assert_eq!(bench.actions().pop(), Some(Action::Become(State::Closed(ending))));
    }
}

#[test]
fn credentials_are_shown_renewed_in_time_and_replaced_when_they_have_expired() {
    let mut bench = Bench::new(1, true);
    bench.open(Some("one"));
    assert_eq!(bench.written().pop().unwrap()["data"], json!({ "resumable": true, "token": "one" }));
    let greeting = |ms: u64| {
        let resume = json!({ "token": "t", "window_ms": 30_000, "expires_ms": 86_400_000 });
        let data = json!({ "client_id": A, "resumed": false, "resume": resume, "credentials": { "expires_ms": ms } });
        json!({ "kind": "connection", "data": data })
    };
    bench.frame(&greeting(10_000));
    bench.actions();
    bench.pass(SECOND * 72 / 10);
    assert_eq!(bench.actions(), [Action::Renew]);
    // None at present: the answer says when to try again.
    bench.handle(Event::Credentials(None));
    assert_eq!(bench.written().pop().unwrap()["data"], Value::Null);
    bench.frame(&greeting(2_000));
    bench.pass(SECOND * 8 / 10);
    assert_eq!(bench.actions(), [Action::Renew]);
    bench.handle(Event::Credentials(Some(Secret("two".to_owned()))));
    assert_eq!(bench.written().pop().unwrap()["data"], json!({ "token": "two" }));
    bench.handle(Event::Closed(4003));
    assert!(matches!(bench.actions()[0], Action::Become(State::Away { why: Cause::Closed(4003), .. })));
}

#[test]
fn the_next_attempt_can_be_wished_for() {
    let mut bench = Bench::new(1, false);
    bench.refuse(Some(60));
    bench.actions();
    bench.handle(Event::RetryNow);
    assert_eq!(bench.actions()[0], Action::Dial(0));
    bench.handle(Event::RetryNow);
    assert!(bench.actions().is_empty());
}
