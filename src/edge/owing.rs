//! Owns which connections owe a request, and how many of them one peer may have.
//!
//! Whoever says nothing, or half of something, holds a place as long as [`Patience`](super::keep_alive::Patience) lasts. One
//! client alone must not hold them all: beyond its share each new one costs it its oldest.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::edge::client_address::Neighbourhood;

/// Since when a connection owes a request, and its number.
pub(super) type Debt = (Instant, u64);

/// The connections, each known by `T`.
#[derive(Debug)]
pub(super) struct Owing<T> {
    /// The one that owes it longest comes first.
    longest_first: BTreeMap<Debt, (Option<Neighbourhood>, T)>,
    by_peer: HashMap<Neighbourhood, BTreeSet<Debt>>,
    most: usize,
}

impl<T> Owing<T> {
    /// One peer may have `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { longest_first: BTreeMap::new(), by_peer: HashMap::new(), most }
    }

    /// One more owes a request; a proxy that speaks for many has no `peer`. Returns the one that has to go for it.
    pub(super) fn add(&mut self, debt: Debt, peer: Option<Neighbourhood>, connection: T) -> Option<T> {
        self.longest_first.insert(debt, (peer, connection));
        let debts = self.by_peer.entry(peer?).or_default();
        debts.insert(debt);
        let oldest = if debts.len() > self.most { debts.first().copied() } else { None };
        self.remove(oldest?)
    }

    /// It owes nothing any more.
    pub(super) fn remove(&mut self, debt: Debt) -> Option<T> {
        let Entry::Occupied(entry) = self.longest_first.entry(debt) else { return None };
        let (peer, connection) = entry.remove();
        if let Some(peer) = peer
            && let Some(debts) = self.by_peer.get_mut(&peer)
        {
            debts.remove(&debt);
            if debts.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
        Some(connection)
    }

    /// The one that has owed it longest, and for `least` at the least.
    pub(super) fn longest(&mut self, now: Instant, least: Duration) -> Option<T> {
        let (debt, _) = self.longest_first.first_key_value()?;
        if now.saturating_duration_since(debt.0) < least { None } else { self.remove(*debt) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_pays_for_more_than_its_share_with_its_own_oldest() {
        let start = Instant::now();
        let at = |ms: u64| (start + Duration::from_millis(ms), ms);
        let peer = |last: u8| Some(Neighbourhood::of([192, 0, 2, last].into()));
        let mut owing = Owing::new(2);
        assert_eq!(owing.add(at(1), peer(9), "other"), None);
        for (number, name, goes) in [(2, "a", None), (3, "b", None), (4, "c", Some("a")), (5, "d", Some("b"))] {
            assert_eq!(owing.add(at(number), peer(1), name), goes);
        }
        assert_eq!(owing.remove(at(4)), Some("c"), "it has said something");
        assert_eq!(owing.add(at(6), peer(1), "e"), None);
        for number in 10..20 {
            assert_eq!(owing.add(at(number), None, "a proxy's"), None, "it speaks for many");
        }
        let second = Duration::from_secs(1);
        assert_eq!(owing.longest(start + second, second), None);
        assert_eq!(owing.longest(start + 2 * second, second), Some("other"));
        assert_eq!(owing.longest(start + 2 * second, second), Some("d"));
        assert_eq!(owing.longest(start + 2 * second, second), Some("e"));
        assert!(owing.by_peer.is_empty(), "nobody is remembered who owes nothing");
    }
}
