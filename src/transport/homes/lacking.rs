//! Owns which sessions of this node no other node has, and since when. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::outbox::log::Position;

/// So many have room when they are few.
const SMALL: usize = 1024;

/// The sessions that have one copy alone.
#[derive(Debug, Default)]
pub(super) struct Lacking(HashMap<Uuid, Lack>);

#[derive(Clone, Copy, Debug)]
struct Lack {
    since: Instant,
    /// It had two copies before, here or elsewhere.
    again: bool,
    /// It has two once the standby of this term has everything up to here.
    wanted: Option<(u64, Position)>,
}

impl Lacking {
    /// A new session begins.
    pub(super) fn begin(&mut self, now: Instant, client: Uuid) {
        self.0.entry(client).or_insert(Lack { since: now, again: false, wanted: None });
    }

    /// The session lost its standby, or has come here from somewhere else.
    pub(super) fn lose(&mut self, now: Instant, client: Uuid) {
        self.entry(now, client);
    }

    fn entry(&mut self, now: Instant, client: Uuid) -> &mut Lack {
        self.0.entry(client).or_insert(Lack { since: now, again: true, wanted: None })
    }

    /// The standby of `term` is being given everything up to `last`.
    pub(super) fn give(&mut self, now: Instant, client: Uuid, term: u64, last: Position) {
        self.entry(now, client).wanted = Some((term, last));
    }

    /// The standby of `term` has everything up to `position`. If copies are two again by that, returns how long they
    /// were not.
    pub(super) fn confirm(&mut self, now: Instant, client: Uuid, term: u64, position: Position) -> Option<Duration> {
        let Lack { since, again, wanted } = *self.0.get(&client)?;
        if wanted.is_none_or(|(wanted, last)| wanted != term || position < last) {
            return None;
        }
        self.forget(client);
        again.then(|| now.saturating_duration_since(since))
    }

    /// The session is over, or goes on elsewhere.
    pub(super) fn forget(&mut self, client: Uuid) {
        self.0.remove(&client);
        if self.0.len() * 4 + SMALL < self.0.capacity() {
            self.0.shrink_to(SMALL);
        }
    }

    /// Forgets all but those of `here`: whoever went in a way that nobody told of waits for nothing.
    pub(super) fn retain(&mut self, here: impl Fn(Uuid) -> bool) {
        self.0.retain(|client, _| here(*client));
    }

    /// How long the one has waited that waits the longest.
    pub(super) fn longest(&self, now: Instant) -> Duration {
        let first = self.0.values().map(|lack| lack.since).min();
        first.map(|since| now.saturating_duration_since(since)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Uuid = Uuid::from_u128(1);

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn the_time_runs_from_the_loss_until_the_newest_standby_has_everything() {
        let (mut lacking, start) = (Lacking::default(), Instant::now());
        lacking.lose(start, ALICE);
        lacking.give(at(start, 10), ALICE, 1, 5);
        assert_eq!(lacking.confirm(at(start, 20), ALICE, 1, 4), None, "a part of it");
        lacking.give(at(start, 30), ALICE, 2, 7);
        assert_eq!(lacking.confirm(at(start, 40), ALICE, 1, 9), None, "the one before");
        assert_eq!(lacking.longest(at(start, 50)), Duration::from_millis(50));
        assert_eq!(lacking.confirm(at(start, 60), ALICE, 2, 7), Some(Duration::from_millis(60)));
        assert_eq!(lacking.confirm(at(start, 70), ALICE, 2, 8), None, "it is over");
        assert_eq!(lacking.longest(at(start, 70)), Duration::ZERO);
    }

    #[test]
    fn a_new_session_had_never_two_copies_but_waits_for_them() {
        let (mut lacking, start) = (Lacking::default(), Instant::now());
        lacking.begin(start, ALICE);
        lacking.give(start, ALICE, 1, 0);
        assert_eq!(lacking.longest(at(start, 5)), Duration::from_millis(5));
        assert_eq!(lacking.confirm(at(start, 5), ALICE, 1, 0), None);
        assert_eq!(lacking.longest(at(start, 9)), Duration::ZERO);
        lacking.begin(start, ALICE);
        lacking.forget(ALICE);
        assert_eq!(lacking.longest(at(start, 9)), Duration::ZERO);
    }
}
