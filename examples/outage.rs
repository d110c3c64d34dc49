//! How long the transport's lock is held at a time while every Redis is away and people go on writing.
//!
//! `cargo run --release --example outage`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use texto::outbox::Outcome;
use texto::transport::envelope::Channel;
use texto::transport::peers::Peers;
use texto::transport::sender::{Actions, Sender, Times};
use uuid::Uuid;

const SENDS: u32 = 8_000;
const SECONDS: u32 = 20;

fn main() {
    for (what, receivers) in [("one receiver", 1), ("as many receivers as sends", u128::MAX)] {
        let start = Instant::now();
        let times = Times {
            send: Duration::from_secs(5),
            hedge: Duration::from_millis(100),
            settle: Duration::from_secs(2),
            max_bytes: 256 * 1024 * 1024,
        };
        let mut sender = Sender::new(start, times, Arc::new(Peers::new(start, 1)), fastrand::Rng::with_seed(1));
        let mut longest = Duration::ZERO;
        let mut decided = 0;
        let mut timed = |sender: &mut Sender<()>, change: &mut dyn FnMut(&mut Sender<()>, &mut Actions<()>)| {
            let mut actions = Actions::default();
            let began = Instant::now();
            change(sender, &mut actions);
            longest = longest.max(began.elapsed());
            decided += actions.decided.iter().filter(|(_, outcome)| *outcome == Outcome::Unreachable).count();
        };
        for number in 0..SENDS * SECONDS {
            let now = start + Duration::from_secs(1) * number / SENDS;
            let receiver = Uuid::from_u128(u128::from(number) % receivers);
            // Many people write to one: each has a lane of its own, with few messages in it.
            let from = Uuid::from_u128(u128::from(number % 1_000) | 1 << 100);
            timed(&mut sender, &mut |sender, actions| {
                sender.submit(now, from, Channel::Client(receiver), Bytes::from_static(&[b'x'; 100]), (), actions);
            });
            if number % 40 == 0 {
                timed(&mut sender, &mut |sender, actions| _ = sender.tick(now, actions));
            }
            if number % SENDS == SENDS / 2 {
                // A server that comes for a moment, and goes again.
                timed(&mut sender, &mut |sender, actions| sender.link_up(now, 0, actions));
                timed(&mut sender, &mut |sender, _| _ = sender.next_batch(now, 0));
                timed(&mut sender, &mut |sender, actions| sender.link_lost(now, 0, actions));
            }
        }
        println!(
            "{SENDS} sends a second for {SECONDS} s to {what}: {decided} answered EBROKER, {} wait, longest call {longest:?}",
            sender.pending()
        );
    }
}
