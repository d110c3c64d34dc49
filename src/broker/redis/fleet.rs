//! Owns the decision which servers have links, in which slots, and who yields where there are too few.
//!
//! Decides without sockets and without a clock: the caller starts what [`Fleet::apply`] asks for, and what the
//! fleet drops ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::connection::ConnectionError;
use crate::address_map::AddressMap;
use crate::backoff::Backoff;
use crate::broker::LinkState;
use crate::config::Address;
use crate::sentinel::Topology;
use crate::transport::sender::{LinkId, MAX_LINKS};

/// A server that left the topology keeps its link this long: other nodes may still publish there.
const LINGER: Duration = Duration::from_secs(15);
/// The same for one whose link does not work: in a failover the Sentinels' lists come one after the other, and the old master
/// is in none of them for a moment.
const LINGER_BROKEN: Duration = Duration::from_secs(3);
/// Servers that are remembered as having answered.
const MOST_ANSWERED: usize = 4 * MAX_LINKS;
/// Pauses between attempts to reach a server: the longest while it ought to answer, and while it is held for dead.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MOST: Duration = Duration::from_millis(200);
/// The same for one that answers, but refuses: it will still do so in a moment.
const PAUSE_MOST_REFUSED: Duration = Duration::from_secs(5);
const PAUSE_MOST_DEAD: Duration = Duration::from_secs(30);

/// The links of a node. `L` is a running link, which ends when it is dropped.
#[derive(Debug)]
pub struct Fleet<L> {
    standby: bool,
    /// What the addresses mean here that Sentinel announces; nothing where there is no Sentinel.
    address_map: Option<Arc<AddressMap>>,
    members: BTreeMap<Address, Member<L>>,
    slots: Arc<Slots>,
}

#[derive(Debug)]
struct Member<L> {
    link: L,
    rank: Rank,
    /// Whether the server ought to answer.
    expected: bool,
    /// Tells the link how eagerly to try.
    eager: watch::Sender<bool>,
    unwanted_since: Option<Instant>,
}

/// Who goes first: where there are more servers than slots, the last yield to those before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The master, also one that is held for dead: nobody else can take its place but by another topology.
    Master,
    /// Held for alive by the Sentinels.
    Alive,
    /// Held for dead, or gone from the topology, but its link works.
    Works,
    /// Held for dead, and its link does not work either.
    Dead,
}

impl Rank {
    /// Whether the server is tried again soon. The master is, also while it is held for dead: when all Redis is
    /// gone, it is what everybody waits for, and it is one server.
    fn is_eager(self) -> bool {
        self <= Self::Alive
    }
}

/// What [`Fleet::apply`] did beside starting links.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links given up because their servers left the topology.
    pub left: Vec<Address>,
    /// Links to dead servers given up for want of slots.
    pub yielded: Vec<Address>,
    /// Servers that have no link for want of slots.
    pub without: usize,
}

impl<L> Fleet<L> {
    /// No links yet. With `standby`, replicas have some too. `address_map` is for what Sentinel announces, if one does.
    pub fn new(standby: bool, address_map: Option<Arc<AddressMap>>) -> Self {
        Self { standby, address_map, members: BTreeMap::new(), slots: Arc::default() }
    }

    /// Lets the links follow `topology`: the one place that decides who has one.
    ///
    /// The master, and with `standby` its replicas, also those that Sentinel holds for dead. `state` tells where a
    /// link stands, `start` starts one; dropping it ends it, and its slot is free once the last who knows it is done.
    pub fn apply(
        &mut self,
        now: Instant,
        topology: &Topology,
        state: impl Fn(&L) -> LinkState,
        mut start: impl FnMut(Slot) -> L,
    ) -> Changes {
        let mut changes = Changes::default();
        let mut wanted = self.wanted(topology);
        self.members.retain(|address, member| {
            let works = state(&member.link) != LinkState::Connecting;
            let rank = wanted.remove(address);
            member.expected = rank.is_some() && topology.expects(address);
            member.unwanted_since = rank.is_none().then(|| member.unwanted_since.unwrap_or(now));
            let most = if works { LINGER } else { LINGER_BROKEN };
            let lingers = member.unwanted_since.is_none_or(|since| now.saturating_duration_since(since) < most);
            member.rank = match rank {
                Some(Rank::Dead) | None if works => Rank::Works,
                Some(rank) => rank,
                None => Rank::Dead,
            };
            let eager = member.rank.is_eager();
            member.eager.send_if_modified(|before| std::mem::replace(before, eager) != eager);
            let keep = rank.is_some() || lingers;
            if !keep {
                changes.left.push(address.clone());
            }
            keep
        });
        let mut missing: Vec<(Rank, Address)> = wanted.into_iter().map(|(address, rank)| (rank, address)).collect();
        missing.sort();
        // Slots whose links are told to end, for whom they are.
        let mut ending = self.slots.taken().len().saturating_sub(self.members.len());
        for (rank, address) in missing {
            if self.slots.is_taken_for(&address) {
                ending = ending.saturating_sub(1);
                continue; // Its old link ends first.
            }
            let (eager, eager_now) = watch::channel(rank.is_eager());
            // Nobody takes a slot that became free for somebody before them.
            let mut slot = if changes.without == 0 { self.take(&address, &eager_now) } else { None };
            if slot.is_none() && ending == 0 {
                if let Some(last) = self.last_behind(rank) {
                    self.members.remove(&last);
                    changes.yielded.push(last);
                    slot = if changes.without == 0 { self.take(&address, &eager_now) } else { None };
                }
            } else if slot.is_none() {
                ending -= 1;
            }
            let Some(slot) = slot else {
                changes.without += 1;
                continue;
            };
            let expected = topology.expects(&address);
            let member = Member { link: start(slot), rank, expected, eager, unwanted_since: None };
            self.members.insert(address, member);
        }
        changes
    }

    fn wanted(&self, topology: &Topology) -> BTreeMap<Address, Rank> {
        let replicas = topology.replicas.iter().filter(|_| self.standby);
        let replicas = replicas.map(|replica| (&replica.address, if replica.down { Rank::Dead } else { Rank::Alive }));
        let mut wanted = BTreeMap::new();
        for (address, rank) in replicas.chain(topology.master.iter().map(|master| (master, Rank::Master))) {
            let known = wanted.entry(address.clone()).or_insert(rank);
            *known = rank.min(*known);
        }
        wanted
    }

    fn take(&self, address: &Address, eager: &watch::Receiver<bool>) -> Option<Slot> {
        Some(Slot {
            id: self.slots.take(address)?,
            address: address.clone(),
            eager: eager.clone(),
            address_map: self.address_map.clone(),
            slots: self.slots.clone(),
        })
    }

    /// Who yields to somebody of `rank`.
    fn last_behind(&self, rank: Rank) -> Option<Address> {
        let (address, last) = self.members.iter().max_by_key(|(_, member)| member.rank)?;
        (last.rank > rank).then(|| address.clone())
    }

    /// The link to the server at `address`.
    pub fn get(&self, address: &Address) -> Option<&L> {
        self.members.get(address).map(|member| &member.link)
    }

    /// All links, each with whether its server ought to answer.
    pub fn links(&self) -> impl Iterator<Item = (&L, bool)> {
        self.members.values().map(|member| (&member.link, member.expected))
    }

    /// The slots, for whoever waits until one is free.
    pub fn slots(&self) -> Arc<Slots> {
        self.slots.clone()
    }
}

/// Which of the [`MAX_LINKS`] numbers are taken, and for whom.
#[derive(Debug, Default)]
pub struct Slots {
    taken: Mutex<BTreeMap<LinkId, Address>>,
    freed: Notify,
    /// Servers that have answered from here, by whichever link: one that was promoted or demoted has another.
    answered: Mutex<BTreeSet<Address>>,
}

impl Slots {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<LinkId, Address>> {
        // Each change is one call.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self) -> MutexGuard<'_, BTreeSet<Address>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_taken_for(&self, address: &Address) -> bool {
        self.taken().values().any(|other| other == address)
    }

    fn take(&self, address: &Address) -> Option<LinkId> {
        let mut taken = self.taken();
        let id = (0..MAX_LINKS).find(|id| !taken.contains_key(id))?;
        taken.insert(id, address.clone());
        Some(id)
    }

    /// Waits until a slot has become free. Cancel safe.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }
}

/// A link's number and its server. Whatever speaks of the number holds this, so that it can't be given to another
/// link before all that the old one had to say is said: the slot is free when this is dropped.
#[derive(Debug)]
pub struct Slot {
    /// The link's number.
    pub id: LinkId,
    /// The server.
    pub address: Address,
    eager: watch::Receiver<bool>,
    address_map: Option<Arc<AddressMap>>,
    slots: Arc<Slots>,
}

impl Slot {
    /// The waiting times for [`Self::pause`].
    pub fn backoff(&self) -> Backoff {
        Backoff::new(PAUSE_FIRST, PAUSE_MOST)
    }

    /// Waits before the next attempt: briefly while the server ought to answer, ever longer while the Sentinels hold
    /// it for dead. When they find it alive, or make it master, the wait is over at once. Cancel safe.
    pub async fn pause(&self, backoff: &mut Backoff, refused: bool) {
        let mut eager = self.eager.clone();
        let is_eager = *eager.borrow();
        let pause = tokio::time::sleep(next_pause(backoff, is_eager, refused));
        tokio::select! {
            () = pause => {}
            Ok(_) = eager.wait_for(|eager| *eager), if !is_eager => backoff.reset(),
        }
    }

    /// The server has answered from here.
    pub fn note_answer(&self) {
        let mut answered = self.slots.answered();
        if answered.len() >= MOST_ANSWERED {
            answered.clear(); // Where each new server has a new address: those that live answer again.
        }
        answered.insert(self.address.clone());
    }

    /// Why an attempt failed, in words for an operator: a server that is alive for the Sentinels and never answered
    /// may have another address here.
    pub fn explain(&self, reason: &ConnectionError) -> String {
        let text = reason.to_string();
        let nowhere = matches!(reason, ConnectionError::Io(_) | ConnectionError::Silent(_))
            && !self.slots.answered().contains(&self.address)
            && *self.eager.borrow();
        match self.address_map.as_ref().filter(|_| nowhere) {
            Some(map) => map.out_of_reach(&self.address, &text),
            None => text,
        }
    }
}

fn next_pause(backoff: &mut Backoff, is_eager: bool, refused: bool) -> Duration {
    backoff.set_cap(match (is_eager, refused) {
        (true, false) => PAUSE_MOST,
        (true, true) => PAUSE_MOST_REFUSED,
        (false, _) => PAUSE_MOST_DEAD,
    });
    backoff.next_delay()
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.taken().remove(&self.id);
        self.slots.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::sentinel::Replica;

    /// A link of which a test says where it stands. Its task may hold the slot for longer.
    #[derive(Clone, Debug)]
    struct Link {
        slot: Rc<Slot>,
        state: Rc<Cell<LinkState>>,
    }

    fn address(port: u16) -> Address {
        Address { host: "10.0.0.1".to_owned(), port }
    }

    fn topology(master: u16, alive: &[u16], dead: std::ops::Range<u16>) -> Topology {
        let replica = |port, down| Replica { address: address(port), down };
        let replicas = alive.iter().map(|port| replica(*port, false)).chain(dead.map(|port| replica(port, true)));
        Topology { master: Some(address(master)), replicas: replicas.collect(), ..Topology::default() }
    }

    /// Applies, and gives the ports of the links that were started.
    fn apply(fleet: &mut Fleet<Link>, now: Instant, topology: &Topology) -> (Vec<u16>, Changes) {
        let mut started = Vec::new();
        let changes = fleet.apply(
            now,
            topology,
            |link| link.state.get(),
            |slot| {
                started.push(slot.address.port);
                Link { slot: Rc::new(slot), state: Rc::new(Cell::new(LinkState::Connecting)) }
            },
        );
        (started, changes)
    }

    fn synced(fleet: &Fleet<Link>, port: u16) {
        fleet.get(&address(port)).unwrap().state.set(LinkState::Synced);
    }

    #[test]
    fn the_master_first_the_living_next_and_the_dead_yield_to_them() {
        let (mut fleet, now) = (Fleet::new(true, None), Instant::now());
        let (started, changes) = apply(&mut fleet, now, &topology(1, &[2], 1000..1069));
        assert_eq!(started.len(), MAX_LINKS);
        assert_eq!(started[..2], [1, 2]);
        assert_eq!((changes.without, changes.yielded.len()), (7, 0));
        // A failover to a server that has no link yet, beside a new replica: two of the dead make room.
        let next = topology(3, &[1, 2, 4], 1000..1069);
        let tasks: Vec<_> = fleet.links().map(|(link, _)| link.clone()).collect();
        let (started, changes) = apply(&mut fleet, now, &next);
        assert_eq!((started.len(), changes.yielded.len()), (0, 2), "their slots are not free before they end");
        drop(tasks);
        assert_eq!(apply(&mut fleet, now, &next).0, [3, 4]);
        // One that ends at once makes room at once.
        assert_eq!(apply(&mut fleet, now, &topology(5, &[1, 2, 3, 4], 1000..1069)).0, [5]);
    }

    #[test]
    fn a_slot_is_not_given_away_before_its_last_holder_is_done() {
        let (mut fleet, now) = (Fleet::new(true, None), Instant::now());
        apply(&mut fleet, now, &topology(1, &[2], 0..0));
        let task = fleet.get(&address(2)).unwrap().clone();
        apply(&mut fleet, now, &topology(1, &[], 0..0));
        let now = now + LINGER_BROKEN;
        let (_, changes) = apply(&mut fleet, now, &topology(1, &[], 0..0));
        assert_eq!(changes.left, [address(2)]);
        // The task of the old link still runs: neither its number nor its server is given to another.
        let (started, _) = apply(&mut fleet, now, &topology(1, &[2, 3], 0..0));
        assert_eq!(started, [3]);
        assert_ne!(fleet.get(&address(3)).unwrap().slot.id, task.slot.id);
        let id = task.slot.id;
        drop(task);
        let (started, _) = apply(&mut fleet, now, &topology(1, &[2, 3], 0..0));
        assert_eq!(started, [2]);
        assert_eq!(fleet.get(&address(2)).unwrap().slot.id, id);
    }

    #[test]
    fn full_of_tasks_that_end_no_more_than_needed_are_told_to() {
        let (mut fleet, now) = (Fleet::new(true, None), Instant::now());
        apply(&mut fleet, now, &topology(1, &[], 1000..1069));
        let tasks: Vec<_> = fleet.links().map(|(link, _)| link.clone()).collect();
        let next = topology(2, &[1], 1000..1069);
        assert_eq!(apply(&mut fleet, now, &next).1.yielded.len(), 1);
        assert_eq!(apply(&mut fleet, now, &next).1.yielded.len(), 0, "one slot is on its way already");
        drop(tasks);
        assert_eq!(apply(&mut fleet, now, &next).0, [2]);
    }

    #[test]
    fn a_server_that_left_keeps_a_link_that_works_for_a_while() {
        let (mut fleet, now) = (Fleet::new(true, None), Instant::now());
        apply(&mut fleet, now, &topology(1, &[2, 3], 0..0));
        synced(&fleet, 2);
        let (_, changes) = apply(&mut fleet, now, &topology(1, &[], 0..0));
        assert!(changes.left.is_empty(), "it may be listed again in a moment");
        let now = now + LINGER_BROKEN;
        let (_, changes) = apply(&mut fleet, now, &topology(1, &[], 0..0));
        assert_eq!(changes.left, [address(3)], "it was of no use");
        assert_eq!(fleet.links().filter(|(_, expected)| *expected).count(), 1, "nobody waits for the one that left");
        let now = now - LINGER_BROKEN;
        assert!(apply(&mut fleet, now + LINGER / 2, &topology(1, &[], 0..0)).1.left.is_empty());
        assert_eq!(apply(&mut fleet, now + LINGER, &topology(1, &[], 0..0)).1.left, [address(2)]);
    }

    #[test]
    fn a_dead_server_whose_link_works_yields_after_those_whose_do_not() {
        let (mut fleet, now) = (Fleet::new(true, None), Instant::now());
        let before = topology(1, &[], 1000..1063);
        apply(&mut fleet, now, &before);
        (1000..1062).for_each(|port| synced(&fleet, port));
        apply(&mut fleet, now, &topology(2, &[], 1000..1063));
        let now = now + LINGER_BROKEN;
        let (_, changes) = apply(&mut fleet, now, &topology(2, &[], 1000..1063));
        assert_eq!(changes.left, [address(1)]);
        let (_, changes) = apply(&mut fleet, now, &topology(2, &[3], 1000..1063));
        assert_eq!(changes.yielded, [address(1062)]);
    }

    /// A failover: the old master is no master any more, and a moment later a replica.
    #[test]
    fn a_server_that_answered_once_needs_no_other_address_and_keeps_its_link_through_a_failover() {
        let now = Instant::now();
        let mut fleet = Fleet::new(true, Some(Arc::default()));
        apply(&mut fleet, now, &topology(1, &[2, 3], 0..0));
        let refused = || ConnectionError::Io(std::io::ErrorKind::ConnectionRefused.into());
        let explain = |fleet: &Fleet<Link>, port| fleet.get(&address(port)).unwrap().slot.explain(&refused());
        assert!(explain(&fleet, 1).contains("--address-map"));
        fleet.get(&address(1)).unwrap().slot.note_answer();
        assert!(apply(&mut fleet, now, &topology(2, &[3], 0..0)).1.left.is_empty());
        let (started, _) = apply(&mut fleet, now + LINGER_BROKEN / 2, &topology(2, &[1, 3], 0..0));
        assert!(started.is_empty(), "its link was there");
        assert!(!explain(&fleet, 1).contains("--address-map"));
        // Another link to it, much later.
        apply(&mut fleet, now + LINGER, &topology(2, &[3], 0..0));
        apply(&mut fleet, now + 2 * LINGER, &topology(2, &[3], 0..0));
        assert_eq!(apply(&mut fleet, now + 2 * LINGER, &topology(2, &[1, 3], 0..0)).0, [1]);
        assert!(!explain(&fleet, 1).contains("--address-map"));
        assert!(explain(&fleet, 3).contains("--address-map"));
    }

    #[test]
    fn without_standby_only_the_master_has_a_link() {
        let (mut fleet, now) = (Fleet::new(false, None), Instant::now());
        assert_eq!(apply(&mut fleet, now, &topology(1, &[2, 3], 4..5)).0, [1]);
        synced(&fleet, 1);
        assert_eq!(apply(&mut fleet, now, &topology(2, &[1, 3], 4..5)).0, [2]);
        assert!(fleet.get(&address(1)).is_some(), "it lingers: others may still publish there");
    }

    #[test]
    fn the_dead_are_tried_seldom() {
        let (mut fleet, now) = (Fleet::new(true, None), Instant::now());
        apply(&mut fleet, now, &topology(1, &[2], 3..4));
        let tries = |port| {
            let link = fleet.get(&address(port)).unwrap();
            let (mut backoff, mut tries, mut waited) = (link.slot.backoff(), 0, Duration::ZERO);
            while waited < Duration::from_secs(600) {
                waited += next_pause(&mut backoff, *link.slot.eager.borrow(), false);
                tries += 1;
            }
            tries
        };
        assert!(tries(1) > 3000 && tries(2) > 3000);
        assert!((20..60).contains(&tries(3)), "{}", tries(3));
    }

    #[tokio::test]
    async fn one_that_is_found_alive_is_tried_at_once() {
        let (mut fleet, now) = (Fleet::new(true, None), Instant::now());
        apply(&mut fleet, now, &topology(1, &[], 2..3));
        let dead = fleet.get(&address(2)).unwrap().clone();
        let mut backoff = dead.slot.backoff();
        for _ in 0..30 {
            next_pause(&mut backoff, false, false);
        }
        let pause = tokio::time::timeout(Duration::from_secs(10), dead.slot.pause(&mut backoff, false));
        let alive = async { apply(&mut fleet, now, &topology(1, &[2], 0..0)) };
        let (pause, _) = tokio::join!(pause, alive);
        pause.unwrap();
        assert_eq!(next_pause(&mut backoff, true, false), Duration::ZERO);
    }
}
