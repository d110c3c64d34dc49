//! Owns the memory of messages that may come again by another node: those of senders that can resume.
//!
//! A copy that its own node sends again is told by its number, and needs no memory of ids. But a sender whose node died
//! asks another node for the same, and that node has numbers of its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

/// So many are remembered at least, however fast they come.
const MOST: usize = 4096;

/// The messages of the last time, by id.
#[derive(Debug)]
pub(super) struct Recent {
    young: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
    turned: Instant,
}

impl Default for Recent {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), turned: Instant::now() }
    }
}

/// Half of an id is enough to tell a few thousand apart.
fn key(id: Uuid) -> u64 {
    id.as_u64_pair().0.rotate_left(32) ^ id.as_u64_pair().1
}

impl Recent {
    /// Where the message stood in its session, if it has come before.
    pub(super) fn position(&self, id: Uuid) -> Option<u64> {
        let key = key(id);
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    pub(super) fn note(&mut self, id: Uuid, position: u64) {
        self.young.insert(key(id), position);
        if self.young.len() >= MOST {
            self.turn(Instant::now());
        }
    }

    fn turn(&mut self, now: Instant) {
        self.old = std::mem::take(&mut self.young);
        self.turned = now;
    }

    /// Forgets what came longer ago than `window`, or twice that. Returns whether nothing is left.
    pub(super) fn forget(&mut self, now: Instant, window: Duration) -> bool {
        if now.saturating_duration_since(self.turned) >= window {
            self.turn(now);
        }
        self.young.is_empty() && self.old.is_empty()
    }

    /// All that is remembered, for another node.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, u64)> {
        self.old.iter().chain(&self.young).map(|(key, position)| (*key, *position))
    }

    /// What another node remembers.
    pub(super) fn learn(&mut self, entries: impl IntoIterator<Item = (u64, u64)>) {
        self.young.extend(entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_within_the_window_is_known() {
        let window = Duration::from_secs(30);
        let mut recent = Recent::default();
        let id = Uuid::from_u128(7);
        recent.note(id, 3);
        let now = Instant::now();
        assert!(!recent.forget(now + window, window));
        assert_eq!(recent.position(id), Some(3), "it came a window ago at the most");
        assert!(recent.forget(now + 2 * window, window));
        assert_eq!(recent.position(id), None);
    }

    #[test]
    fn there_are_bounds() {
        let mut recent = Recent::default();
        for id in 0..10 * MOST as u128 {
            recent.note(Uuid::from_u128(id), 0);
        }
        assert!(recent.all().count() <= 2 * MOST);
        assert!((9 * MOST as u128..10 * MOST as u128).all(|id| recent.position(Uuid::from_u128(id)).is_some()));
    }
}
