//! Owns which servers have a link: the one place that decides it.
//!
//! The master, and as standby its replicas, also those that Sentinel holds for dead: it is the link that notices first
//! that one is back. But places are few, so the master comes first, the living next, and the dead yield.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::link::Link;
use crate::broker::LinkState;
use crate::config::Address;
use crate::sentinel::Topology;
use crate::transport::sender::{LinkId, MAX_LINKS};

/// A server that left the topology keeps its link this long: other nodes may still publish there.
const LINGER: Duration = Duration::from_secs(15);

/// The links of this node.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    kept: BTreeMap<Address, Kept>,
    /// Links that are told to end: their places are free when their tasks have said that all is over, and not before.
    ending: Vec<Arc<Link>>,
}

#[derive(Debug)]
struct Kept {
    link: Arc<Link>,
    cancel: CancellationToken,
    unwanted_since: Option<Instant>,
    expected: bool,
}

/// The servers to be linked, the most important first.
fn wanted(topology: &Topology, standby: bool) -> Vec<&Address> {
    let (living, dead): (Vec<_>, Vec<_>) = topology.replicas.iter().partition(|replica| !replica.down);
    let replicas = living.into_iter().chain(dead).filter(|_| standby).map(|replica| &replica.address);
    topology.master.iter().chain(replicas).collect()
}

impl Fleet {
    /// Lets the links follow the topology: ends those that are wanted no more, and returns those to be started. A
    /// server that has no link for want of places is returned as well.
    pub(super) fn converge(
        &mut self,
        now: Instant,
        topology: &Topology,
        standby: bool,
        end: &CancellationToken,
    ) -> (Vec<(Arc<Link>, CancellationToken)>, Option<Address>) {
        let wanted = wanted(topology, standby);
        self.ending.retain(|link| !link.is_over());
        for (address, kept) in &mut self.kept {
            kept.unwanted_since =
                if wanted.contains(&address) { None } else { Some(kept.unwanted_since.unwrap_or(now)) };
            let expected = topology.expects(address);
            if expected && !std::mem::replace(&mut kept.expected, expected) {
                kept.link.hurry();
            }
            kept.expected = expected;
        }
        let over: Vec<Address> =
            self.kept.iter().filter(|(_, kept)| kept.is_useless(now)).map(|(a, _)| a.clone()).collect();
        for address in over {
            info!(%address, "link to Redis given up: the server left the topology");
            self.give_up(&address);
        }
        let mut start = Vec::new();
        for address in wanted {
            if self.kept.contains_key(address) {
                continue;
            }
            let Some(id) = self.free_place() else {
                let dead =
                    self.kept.iter().find(|(_, kept)| !kept.expected && kept.link.stage() == LinkState::Connecting);
                let dead = dead.map(|(address, _)| address.clone()).filter(|_| topology.expects(address));
                // Its place is free in a moment, and this is called again.
                return match dead {
                    Some(dead) => {
                        self.give_up(&dead);
                        (start, None)
                    }
                    None => (start, Some(address.clone())),
                };
            };
            let link = Arc::new(Link::new(id, address.clone()));
            let cancel = end.child_token();
            let expected = topology.expects(address);
            let kept = Kept { link: link.clone(), cancel: cancel.clone(), unwanted_since: None, expected };
            self.kept.insert(address.clone(), kept);
            start.push((link, cancel));
        }
        (start, None)
    }

    fn give_up(&mut self, address: &Address) {
        if let Some(kept) = self.kept.remove(address) {
            kept.cancel.cancel();
            self.ending.push(kept.link);
        }
    }

    fn free_place(&self) -> Option<LinkId> {
        let taken = |id: &LinkId| self.links().chain(&self.ending).any(|link| link.id == *id);
        (0..MAX_LINKS).find(|id| !taken(id))
    }

    /// All links that are kept.
    pub(super) fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.kept.values().map(|kept| &kept.link)
    }

    /// The link to the server at `address`.
    pub(super) fn get(&self, address: &Address) -> Option<&Arc<Link>> {
        self.kept.get(address).map(|kept| &kept.link)
    }
}

impl Kept {
    fn is_useless(&self, now: Instant) -> bool {
        let Some(since) = self.unwanted_since else { return false };
        // One that is broken anyway is of no use to anybody.
        self.link.stage() == LinkState::Connecting || now.saturating_duration_since(since) >= LINGER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentinel::Replica;

    fn address(port: u16) -> Address {
        Address { host: "10.0.0.1".to_owned(), port }
    }

    fn topology(master: u16, dead: std::ops::Range<u16>) -> Topology {
        let replicas = dead.map(|port| Replica { address: address(port), down: true }).collect();
        Topology { master: Some(address(master)), replicas, ..Topology::default() }
    }

    #[test]
    fn the_dead_yield_their_places_to_a_new_master_once_their_tasks_are_over() {
        let mut fleet = Fleet::default();
        let end = CancellationToken::new();
        let now = Instant::now();
        let (started, without) = fleet.converge(now, &topology(1, 2..71), true, &end);
        assert_eq!((started.len(), without), (MAX_LINKS, Some(address(65))), "69 dead, and 64 places");
        // Failover to a server that has no link.
        let after = topology(100, 1..71);
        let (none, _) = fleet.converge(now, &after, true, &end);
        assert!(none.is_empty() && fleet.ending.len() == 1, "one is told to end, and its place is not free yet");
        let (none, _) = fleet.converge(now, &after, true, &end);
        assert!(none.is_empty());
        fleet.ending.iter().for_each(|link| link.set_over());
        let (started, _) = fleet.converge(now, &after, true, &end);
        assert_eq!(started[0].0.address, address(100));
    }

    #[test]
    fn without_standby_only_the_master_has_a_link() {
        let mut fleet = Fleet::default();
        let (started, _) = fleet.converge(Instant::now(), &topology(1, 2..9), false, &CancellationToken::new());
        assert_eq!(started.len(), 1);
    }
}
