//! Owns the transport's clock: when it is moved, when this node says hello, and when its homes are looked after.

use std::time::{Duration, Instant};

use super::Shared;
use crate::transport::homes::{LOOK_ANSWERED, LOOK_EVERY};
use crate::transport::peers::HELLO_EVERY;
use crate::transport::sender::Actions;

/// The pace of the transport's clock while something waits.
const TICK: Duration = Duration::from_millis(5);

impl Shared {
    /// Moves the transport's clock while something waits.
    pub(super) async fn run_clock(&self) {
        let mut beat = Instant::now();
        let (mut look, mut answered) = (beat, None::<Instant>);
        loop {
            let due = self.with_sender(|sender, now, actions| sender.tick(now, actions));
            let now = Instant::now();
            if now >= beat {
                beat = now + HELLO_EVERY;
                let mut actions = Actions::default();
                self.transport.beat(now, &mut actions);
                let (edition, own) = self.keys.own();
                let others = self.transport.compare_keys(edition, &own, &mut actions);
                self.metrics.sessions.show_strange_keys(self.keys.compare(now, &others));
                self.act(actions);
                let (others, longest) = self.transport.safety(now);
                self.metrics.sessions.show_safety(others, longest);
                self.note_gateways(now);
            }
            if now >= look {
                (look, answered) = (now + LOOK_EVERY, Some(now + LOOK_ANSWERED));
                let mut actions = Actions::default();
                self.transport.look_after_homes(now, &mut actions);
                self.act(actions);
            }
            if answered.take_if(|at| now >= *at).is_some() {
                let mut actions = Actions::default();
                self.transport.follow_look(now, &mut actions);
                self.act(actions);
            }
            let next = due.map_or(beat, |due| due.clamp(now + TICK, now + 10 * TICK)).min(look);
            let next = answered.map_or(next, |answered| answered.min(next));
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.ticker.notified(), if due.is_none() => {}
            }
        }
    }
}
