//! Owns the decision what the Sentinels' answers mean. Pure: no sockets, no clock.
//!
//! The answer with the highest configuration epoch wins, and an older epoch never comes back: a
//! Sentinel that was cut off or frozen cannot lead a gateway back to a demoted master.
//! (Redis documentation, "Sentinel: configuration epochs and propagation".)
//!
//! But for one case: when most Sentinels have agreed on an older epoch for a while, and nobody knows the
//! newer one any more, they were set up anew and count from the beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::config::Address;

/// How long most Sentinels must agree on an older epoch before it is believed.
const ANEW: Duration = Duration::from_secs(30);
/// Sentinels to be asked at the most, beside the configured ones. Dead ones stay in the others' lists for ever.
const MOST_DISCOVERED: usize = 32;

/// Which Redis servers there are, as far as the Sentinels know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The master.
    pub master: Option<Address>,
    /// The configuration epoch in which it became master.
    pub epoch: u64,
    /// Whether most Sentinels hold the master for dead.
    pub master_down: bool,
    /// Its replicas, dead ones and former masters too.
    pub replicas: Vec<Replica>,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Its address.
    pub address: Address,
    /// Whether most Sentinels hold it for dead.
    pub down: bool,
}

impl Topology {
    /// Whether the server at `address` ought to answer.
    pub fn expects(&self, address: &Address) -> bool {
        let master = self.master.as_ref() == Some(address) && !self.master_down;
        master || self.replicas.iter().any(|replica| replica.address == *address && !replica.down)
    }
}

/// One Sentinel's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The Sentinel's own run id, if it told.
    pub id: Option<String>,
    /// The master.
    pub master: Address,
    /// Its configuration epoch.
    pub epoch: u64,
    /// Whether it holds the master for dead.
    pub master_down: bool,
    /// The replicas.
    pub replicas: Vec<Replica>,
    /// The other Sentinels.
    pub sentinels: Vec<Peer>,
}

/// A Sentinel as another one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its run id.
    pub id: String,
    /// Its address.
    pub address: Address,
    /// Whether it is held for dead.
    pub down: bool,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A Sentinel answered.
    Answered(Address, View),
    /// A Sentinel can't be asked.
    Lost(Address),
}

/// What follows from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consequences {
    /// The topology is another one now.
    pub changed: bool,
    /// Sentinels to be asked from now on.
    pub watch: Vec<Address>,
    /// Sentinels not to be asked any more.
    pub forget: Vec<Address>,
    /// The Sentinels count epochs anew: this one is believed, though a later one was known.
    pub begun_anew: Option<u64>,
}

/// What is known of all Sentinels, and what follows from it.
#[derive(Debug)]
pub struct Machine {
    topology: Topology,
    sentinels: BTreeMap<Address, KnownSentinel>,
    /// Since when most Sentinels have agreed on an older epoch, and which.
    older: Option<(u64, Instant)>,
}

#[derive(Debug)]
struct KnownSentinel {
    configured: bool,
    id: Option<String>,
    /// Whether whoever named it last holds it for dead.
    down: bool,
    view: Option<View>,
}

impl Machine {
    /// Starts with the Sentinels that the configuration names.
    pub fn new(configured: &[Address]) -> Self {
        let known = |address: &Address| {
            (address.clone(), KnownSentinel { configured: true, id: None, down: false, view: None })
        };
        Self { topology: Topology::default(), sentinels: configured.iter().map(known).collect(), older: None }
    }

    /// The topology as it follows from all answers so far.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Takes in an event that happens at `now`.
    pub fn apply(&mut self, now: Instant, event: Event) -> Consequences {
        let mut follows = Consequences::default();
        match event {
            Event::Answered(sentinel, view) => {
                let Some(known) = self.sentinels.get_mut(&sentinel) else {
                    return follows; // Forgotten a moment ago.
                };
                known.id.clone_from(&view.id);
                known.view = Some(view.clone());
                self.learn_sentinels(&sentinel, &view, &mut follows);
            }
            Event::Lost(sentinel) => {
                let Some(known) = self.sentinels.get_mut(&sentinel) else { return follows };
                known.view = None;
                let named = self.views().any(|view| view.sentinels.iter().any(|peer| peer.address == sentinel));
                if self.sentinels.get(&sentinel).is_some_and(|known| !known.configured) && !named {
                    self.sentinels.remove(&sentinel);
                    follows.forget.push(sentinel);
                }
            }
        }
        if let Some(epoch) = self.counts_anew(now) {
            self.topology.epoch = epoch;
            follows.begun_anew = Some(epoch);
        }
        let topology = self.decide();
        follows.changed = topology != self.topology;
        self.topology = topology;
        follows
    }

    fn views(&self) -> impl Iterator<Item = &View> {
        self.sentinels.values().filter_map(|known| known.view.as_ref())
    }

    /// A Sentinel is known once, whether by the name in the configuration or by what others call it. Only an entry
    /// that answers stands for its id: one that moved leaves its old address behind.
    fn learn_sentinels(&mut self, from: &Address, view: &View, follows: &mut Consequences) {
        if let Some(id) = &view.id {
            let others =
                self.sentinels.iter().filter(|(address, known)| *address != from && known.id.as_ref() == Some(id));
            let twins: Vec<_> =
                others.map(|(address, known)| (address.clone(), known.configured, known.view.is_some())).collect();
            for (twin, configured, answers) in twins {
                let from_configured = self.sentinels.get(from).is_some_and(|known| known.configured);
                if !configured {
                    self.sentinels.remove(&twin);
                    follows.forget.push(twin);
                } else if answers && !from_configured && self.sentinels.remove(from).is_some() {
                    follows.forget.push(from.clone());
                }
            }
        }
        for Peer { id, address, down } in &view.sentinels {
            if let Some(known) = self.sentinels.get_mut(address) {
                known.down = *down;
                continue;
            }
            if self.sentinels.values().any(|known| known.id.as_ref() == Some(id) && known.view.is_some()) {
                continue;
            }
            if self.sentinels.values().filter(|known| !known.configured).count() >= MOST_DISCOVERED {
                // The dead make room for one that is said to be alive.
                let is_dead = |known: &KnownSentinel| !known.configured && known.down && known.view.is_none();
                let dead = self.sentinels.iter().find(|(_, known)| is_dead(known)).map(|(address, _)| address.clone());
                let Some(dead) = dead.filter(|_| !down) else { continue };
                self.sentinels.remove(&dead);
                follows.forget.push(dead);
            }
            let new = KnownSentinel { configured: false, id: Some(id.clone()), down: *down, view: None };
            self.sentinels.insert(address.clone(), new);
            follows.watch.push(address.clone());
        }
    }

    /// The epoch from which the Sentinels count now, if they forgot the one in use.
    fn counts_anew(&mut self, now: Instant) -> Option<u64> {
        let epochs: BTreeSet<u64> = self.views().map(|view| view.epoch).collect();
        let most = self.views().count() * 2 > self.sentinels.len();
        let agreed = epochs.first().copied().filter(|_| epochs.len() == 1 && most);
        let Some(epoch) = agreed.filter(|epoch| *epoch < self.topology.epoch) else {
            self.older = None;
            return None;
        };
        let since = self.older.filter(|(older, _)| *older == epoch).map_or(now, |(_, since)| since);
        self.older = Some((epoch, since));
        (now.saturating_duration_since(since) >= ANEW).then_some(epoch)
    }

    fn decide(&self) -> Topology {
        let epoch = self.views().map(|view| view.epoch).max().unwrap_or(0).max(self.topology.epoch);
        let current: Vec<&View> = self.views().filter(|view| view.epoch == epoch).collect();
        let Some(first) = current.first() else {
            return self.topology.clone(); // Nobody who can be asked knows better than we do.
        };
        let names = |address: &Address| current.iter().filter(|view| view.master == *address).count();
        // Within an epoch there is one master; should Sentinels differ all the same, most of them win,
        // and the one in use stays where they are even.
        let masters: BTreeSet<&Address> = current.iter().map(|view| &view.master).collect();
        let best = masters.into_iter().max_by_key(|address| names(address)).unwrap_or(&first.master);
        let master = match &self.topology.master {
            Some(held) if self.topology.epoch == epoch && names(held) >= names(best) => held,
            Some(held) if self.topology.epoch == epoch && names(best) * 2 <= current.len() => held,
            _ => best,
        };
        let mut agreeing: Vec<&View> = current.iter().copied().filter(|view| view.master == *master).collect();
        if agreeing.is_empty() {
            agreeing = current;
        }
        let most = |count: usize| count * 2 > agreeing.len();
        let addresses: BTreeSet<&Address> =
            agreeing.iter().flat_map(|view| view.replicas.iter().map(|replica| &replica.address)).collect();
        let replicas = addresses.into_iter().filter(|address| *address != master).map(|address| {
            let down = |view: &&&View| view.replicas.iter().any(|r| r.address == *address && r.down);
            Replica { address: address.clone(), down: most(agreeing.iter().filter(down).count()) }
        });
        Topology {
            master: Some(master.clone()),
            epoch,
            master_down: most(agreeing.iter().filter(|view| view.master_down).count()),
            replicas: replicas.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(port: u16) -> Address {
        Address { host: "10.0.0.1".to_owned(), port }
    }

    fn view(master: u16, epoch: u64) -> View {
        View { id: None, master: address(master), epoch, master_down: false, replicas: vec![], sentinels: vec![] }
    }

    fn peer(id: &str, port: u16) -> Peer {
        Peer { id: id.to_owned(), address: address(port), down: false }
    }

    fn apply(machine: &mut Machine, event: Event) -> Consequences {
        machine.apply(Instant::now(), event)
    }

    fn machine() -> Machine {
        Machine::new(&[address(1), address(2), address(3)])
    }

    fn answered(from: u16, view: View) -> Event {
        Event::Answered(address(from), view)
    }

    #[test]
    fn the_highest_epoch_wins_and_stays() {
        let mut machine = machine();
        assert!(apply(&mut machine, answered(1, view(6379, 4))).changed);
        assert!(apply(&mut machine, answered(2, view(6380, 5))).changed);
        assert!(!apply(&mut machine, answered(1, view(6379, 4))).changed, "a stale Sentinel");
        assert!(!apply(&mut machine, Event::Lost(address(2))).changed, "the one who knew is gone");
        assert!(!apply(&mut machine, answered(3, view(6379, 4))).changed);
        assert_eq!(machine.topology().master, Some(address(6380)));
    }

    #[test]
    fn replicas_are_down_when_most_say_so() {
        let mut machine = machine();
        let with = |down| View { replicas: vec![Replica { address: address(6380), down }], ..view(6379, 1) };
        apply(&mut machine, answered(1, with(true)));
        assert!(!machine.topology().expects(&address(6380)));
        apply(&mut machine, answered(2, with(false)));
        assert!(machine.topology().expects(&address(6380)));
        apply(&mut machine, answered(3, with(true)));
        assert!(!machine.topology().expects(&address(6380)));
        assert!(machine.topology().expects(&address(6379)));
        assert!(!machine.topology().expects(&address(1)));
    }

    #[test]
    fn a_sentinel_is_known_once_by_whatever_name() {
        let mut machine = Machine::new(&[address(1)]);
        let first = View { id: Some("a".to_owned()), sentinels: vec![peer("b", 2), peer("a", 9)], ..view(6379, 1) };
        assert_eq!(apply(&mut machine, answered(1, first)).watch, [address(2)], "it names another and itself");

        // Two names in the configuration and a discovered third one, all for the same Sentinel.
        let mut machine = Machine::new(&[address(1), address(7)]);
        let named = View { sentinels: vec![peer("a", 9)], ..view(6379, 1) };
        assert_eq!(apply(&mut machine, answered(7, named)).watch, [address(9)]);
        let same = |from| answered(from, View { id: Some("a".to_owned()), ..view(6379, 1) });
        assert!(apply(&mut machine, same(9)).forget.is_empty());
        assert_eq!(apply(&mut machine, same(1)).forget, [address(9)], "the name in the configuration stays");
        let named = View { sentinels: vec![peer("b", 2)], ..view(6379, 1) };
        assert_eq!(apply(&mut machine, answered(7, named)).watch, [address(2)]);
        let gone = apply(&mut machine, Event::Lost(address(2)));
        assert!(gone.forget.is_empty(), "others still name it");
    }

    #[test]
    fn sentinels_that_were_set_up_anew_are_believed_in_the_end() {
        let mut machine = machine();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        machine.apply(at(0), answered(1, view(6380, 7)));
        machine.apply(at(1), answered(1, view(6379, 0)));
        machine.apply(at(40), answered(1, view(6379, 0)));
        assert_eq!(machine.topology().epoch, 7, "one of three is not most of them");
        machine.apply(at(50), answered(2, view(6379, 0)));
        assert!(!machine.apply(at(79), answered(2, view(6379, 0))).changed);
        let anew = machine.apply(at(80), answered(2, view(6379, 0)));
        assert_eq!((anew.changed, anew.begun_anew), (true, Some(0)));
        assert_eq!(machine.topology().master, Some(address(6379)));
        machine.apply(at(81), answered(3, view(6380, 7)));
        assert_eq!(machine.topology().master, Some(address(6380)), "one that knows more was only away");
    }

    #[test]
    fn an_entry_that_does_not_answer_does_not_stand_for_its_id() {
        let mut machine = Machine::new(&[address(1), address(2)]);
        let from = |id: &str, others: &[(&str, u16)]| View {
            id: Some(id.to_owned()),
            sentinels: others.iter().map(|(id, port)| peer(id, *port)).collect(),
            ..view(6379, 1)
        };
        apply(&mut machine, answered(1, from("a", &[("b", 2)])));
        apply(&mut machine, answered(2, from("b", &[("a", 1)])));
        // B moves to 12: its id is known, but nobody answers for it any more.
        apply(&mut machine, Event::Lost(address(2)));
        assert_eq!(apply(&mut machine, answered(1, from("a", &[("b", 12)]))).watch, [address(12)]);
        assert!(apply(&mut machine, answered(12, from("b", &[("a", 1)]))).forget.is_empty());
        // Then A, and B once more; then B back to where the configuration has it.
        apply(&mut machine, Event::Lost(address(1)));
        assert_eq!(apply(&mut machine, answered(12, from("b", &[("a", 11)]))).watch, [address(11)]);
        apply(&mut machine, answered(11, from("a", &[("b", 12)])));
        apply(&mut machine, Event::Lost(address(12)));
        assert_eq!(apply(&mut machine, answered(11, from("a", &[("b", 22)]))).watch, [address(22)]);
        assert_eq!(apply(&mut machine, answered(22, from("b", &[("a", 11)]))).forget, [address(12)]);
        assert_eq!(apply(&mut machine, answered(2, from("b", &[("a", 11)]))).forget, [address(22)]);
    }

    #[test]
    fn sentinels_that_died_long_ago_keep_nobody_from_being_asked() {
        let mut machine = Machine::new(&[address(1)]);
        // As where each new pod has a new id: the lists are full of those that are gone.
        let dead = (0..500).map(|n| Peer { down: true, ..peer(&format!("dead {n}"), 1000 + n) });
        let listed: Vec<_> = dead.chain([peer("alive", 2), peer("also alive", 3)]).collect();
        let first = apply(&mut machine, answered(1, View { sentinels: listed.clone(), ..view(6379, 1) }));
        assert_eq!(machine.sentinels.len(), 1 + MOST_DISCOVERED);
        assert!(first.watch.contains(&address(2)) && first.watch.contains(&address(3)));
        assert!(!first.forget.contains(&address(2)), "it has had no time to answer");
        apply(&mut machine, answered(2, View { id: Some("alive".to_owned()), ..view(6379, 1) }));
        let again = apply(&mut machine, answered(1, View { sentinels: listed, ..view(6379, 1) }));
        assert!(!again.forget.contains(&address(2)));
    }

    proptest! {
        /// Whatever comes in whatever order: the epoch never falls, the master changes within an epoch
        /// only against a majority, and nobody is replica of itself.
        #[test]
        fn an_older_epoch_never_comes_back(
            events in proptest::collection::vec((1..4_u16, 0..6_u64, any::<bool>()), 1..80),
        ) {
            let mut machine = machine();
            let mut newest = 0;
            for (from, epoch, lost) in events {
                let before = machine.topology().clone();
                // Within an epoch Sentinels agree on the master, as Redis promises.
                let master = 6379 + epoch as u16;
                apply(&mut machine, if lost { Event::Lost(address(from)) } else { answered(from, view(master, epoch)) });
                if !lost {
                    newest = newest.max(epoch);
                }
                let now = machine.topology();
                prop_assert!(now.epoch >= before.epoch);
                if now.master.is_some() {
                    prop_assert_eq!(now.epoch, newest);
                    prop_assert_eq!(now.master.clone(), Some(address(6379 + newest as u16)));
                }
            }
        }

        /// Even Sentinels that contradict each other within an epoch can't bring an older one back.
        #[test]
        fn contradictions_do_not_break_the_order(
            events in proptest::collection::vec((1..4_u16, 6379..6383_u16, 0..4_u64), 1..80),
        ) {
            let mut machine = machine();
            let mut epoch = 0;
            for (from, master, at) in events {
                apply(&mut machine, answered(from, View { replicas: vec![Replica { address: address(master), down: false }], ..view(master, at) }));
                let now = machine.topology();
                prop_assert!(now.epoch >= epoch);
                prop_assert!(now.replicas.iter().all(|replica| Some(&replica.address) != now.master.as_ref()));
                epoch = now.epoch;
            }
        }
    }
}
