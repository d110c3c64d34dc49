//! Owns what this node has sent and has no receipt for: which link carries it, when it is sent again, and what
//! is answered. Pure: no sockets, no clock of its own.
//!
//! A message's life:
//!
//! ```text
//!            published            receipt: taken ─────────────────────────────▶ Handed
//!  Queued ─────────────▶ Under way ── receipt: full ──────────────────────────▶ Busy
//!    │                    │  ▲  │ └── the deadline ───────────────────────────▶ Unreachable
//!    │                    │  └──┘ no receipt for long: again, on every link
//!    │                    └── nobody counted: sought ── subscribed nowhere ──▶ NotConnected
//!    └── not published in four fifths of the deadline ────────────────────────▶ Unreachable
//! ```
//! The log is one, in the order of numbers, and each link that carries has a cursor in it: in calm only the
//! master's does, in motion every link. A link that begins to carry begins at the oldest unsettled message, so a
//! lost link needs no list of what it took with it.

mod actions;
mod batch;
mod link;
mod look;
mod overdue;
mod receipts;
mod search;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

pub use self::actions::{Actions, Answer, Command, Figures};
use self::link::{Link, Sent, What};
use self::look::Look;
use self::overdue::TOKENS;
use self::search::Search;
use super::envelope::{self, Channel, Decision, Number, OVERHEAD};
use super::peers::Peers;
use crate::outbox::Outcome;

/// A link's place; small, so that sets of them are bits.
pub type LinkId = usize;
/// Most links at a time.
pub const MAX_LINKS: usize = 64;
type Links = u64;
/// A lane: where it leads, and whose it is.
type Key = (Channel, Uuid);

/// Messages of one lane that are sent again at a time.
const AGAIN_AT_ONCE: usize = 8;
/// The pauses of what is sought or sent again grow to this.
const PAUSE_MOST: Duration = Duration::from_millis(500);
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// Lanes that may be empty, and numbers that an empty one has room for.
const EMPTY_LANES: usize = 1024;
const EMPTY_LANE_MOST: usize = 64;
/// Words between nodes that wait for a link: what is dropped is asked for again.
const CONTROL_MOST: usize = 1024;

fn bit(link: LinkId) -> Links {
    1 << link
}

/// Those in `set`, the lowest first.
fn links(mut set: Links) -> impl Iterator<Item = LinkId> {
    std::iter::from_fn(move || {
        let link = set.trailing_zeros() as LinkId;
        set &= set.checked_sub(1)?;
        Some(link)
    })
}

/// The master's link if it is in `set`, else the first there.
fn master_or_first(master: Option<LinkId>, set: Links) -> Option<LinkId> {
    master.filter(|master| set & bit(*master) != 0).or_else(|| links(set).next())
}

/// The times that the sender goes by.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Every message is decided within this.
    pub send: Duration,
    /// A message without a receipt, or a server without an answer, for so long is helped out.
    pub hedge: Duration,
    /// So long after the last sign of trouble with the master it is calm.
    pub settle: Duration,
    /// Bytes that may wait for a decision, what a message costs beside its text included.
    pub max_bytes: usize,
}

#[derive(Debug)]
struct Pending<R> {
    to: Channel,
    sender: Uuid,
    body: Bytes,
    reply: R,
    until: Instant,
    /// When it was published first.
    published: Option<Instant>,
    attempt: u8,
    /// It has waited for its receipt long enough, but others of its lane come first.
    overdue: bool,
    /// The replica by which it goes alone.
    by: Option<LinkId>,
}

impl<R> Pending<R> {
    /// Answers, and gives back its part of `bytes`.
    fn end(self, outcome: Outcome, bytes: &mut usize, actions: &mut Actions<R>) {
        *bytes -= self.body.len() + OVERHEAD;
        actions.decided.push((self.reply, outcome));
    }
}

/// The sender of one node; `R` is the duty to answer.
#[derive(Debug)]
pub struct Sender<R> {
    times: Times,
    peers: Arc<Peers>,
    random: fastrand::Rng,
    next: Number,
    bytes: usize,
    log: BTreeMap<Number, Pending<R>>,
    /// What is unsettled in each lane, in order.
    lanes: HashMap<Key, VecDeque<Number>>,
    searches: BTreeMap<Channel, Search>,
    rounds: u64,
    links: Vec<Link>,
    up: Links,
    carriers: Links,
    master: Option<LinkId>,
    disturbed: Instant,
    /// When a link was lost last, whichever.
    lost_at: Option<Instant>,
    /// Messages below are published, or were given up.
    unexpired: Number,
    /// What was published once, by when its receipt should be there; what was sent again.
    hedges: VecDeque<(Instant, Number)>,
    hedges_again: BinaryHeap<Reverse<(Instant, Number)>>,
    retries: BinaryHeap<Reverse<(Instant, Channel)>>,
    /// Mean time to a receipt, and its mean deviation (as RFC 6298 has it for TCP).
    trip: Duration,
    deviation: Duration,
    /// How long a receipt may take before it is asked for again.
    trip_allowed: Duration,
    tokens: f64,
    tokens_at: Instant,
    look: Look,
    /// When the last look began that a server has answered.
    looked: Option<Instant>,
    deaf: Arc<AtomicBool>,
    ever_heard: bool,
}

impl<R> Sender<R> {
    /// Starts in motion: nothing is known yet.
    pub fn new(now: Instant, times: Times, peers: Arc<Peers>, random: fastrand::Rng) -> Self {
        Self {
            times,
            peers,
            random,
            next: 1,
            bytes: 0,
            log: BTreeMap::new(),
            lanes: HashMap::new(),
            searches: BTreeMap::new(),
            rounds: 0,
            links: (0..MAX_LINKS).map(|_| Link::default()).collect(),
            up: 0,
            carriers: 0,
            master: None,
            disturbed: now,
            lost_at: None,
            unexpired: 1,
            hedges: VecDeque::new(),
            hedges_again: BinaryHeap::new(),
            retries: BinaryHeap::new(),
            trip: Duration::ZERO,
            deviation: Duration::ZERO,
            trip_allowed: times.hedge,
            tokens: TOKENS,
            tokens_at: now,
            look: Look::default(),
            looked: None,
            deaf: Arc::default(),
            ever_heard: false,
        }
    }

    /// Messages that wait for a decision.
    pub fn pending(&self) -> usize {
        self.log.len()
    }

    /// Whether `number` has not been decided.
    pub fn wants(&self, number: Number) -> bool {
        self.log.contains_key(&number)
    }

    /// The lowest number that this node still wants.
    pub fn floor(&self) -> Number {
        self.log.first_key_value().map_or(self.next, |(number, _)| *number)
    }

    /// How long a message is given to servers.
    fn patience(&self) -> Duration {
        self.times.send * 4 / 5
    }

    fn master_link(&self) -> Option<&Link> {
        self.master.map(|link| &self.links[link]).filter(|link| link.is_up())
    }

    /// The servers that hang.
    fn silent(&self) -> Links {
        links(self.up).filter(|link| self.links[*link].suspect).fold(0, |set, link| set | bit(link))
    }

    /// Whether the master may be the wrong server, or not the only one, to give messages to.
    pub fn in_motion(&self, now: Instant) -> bool {
        self.master_link().is_none_or(|link| link.suspect)
            || now.saturating_duration_since(self.disturbed) < self.times.settle
    }

    /// Whether messages go to `link` now.
    pub fn carries(&self, link: LinkId) -> bool {
        self.carriers & bit(link) != 0
    }

    /// Something is going on with the master.
    pub fn disturb(&mut self, now: Instant, actions: &mut Actions<R>) {
        self.disturbed = self.disturbed.max(now);
        self.route(now, actions);
    }

    /// The server behind `link` puts things off, as while it runs a script: subscriptions may be late there.
    pub fn put_off(&mut self, now: Instant, link: LinkId) {
        self.links[link].put_off = Some(now);
    }

    /// The link to the server that is master for Sentinel and by its own word.
    pub fn set_master(&mut self, now: Instant, master: Option<LinkId>, actions: &mut Actions<R>) {
        if self.master != master {
            self.master = master;
            self.disturb(now, actions);
        }
    }

    /// `link` is connected and can publish.
    pub fn link_up(&mut self, now: Instant, link: LinkId, actions: &mut Actions<R>) {
        self.links[link] = Link { up_since: Some(now), ..Link::default() };
        self.up |= bit(link);
        self.carriers &= !bit(link);
        if self.master == Some(link) {
            self.disturbed = self.disturbed.max(now);
        }
        self.route(now, actions);
    }

    /// Every channel is subscribed by `link`.
    pub fn link_synced(&mut self, link: LinkId) {
        self.links[link].synced = self.links[link].is_up();
        self.ever_heard = true;
    }

    /// The number that the next message gets.
    pub fn next_number(&self) -> Number {
        self.next
    }

    /// Whether there was a moment, since this was last asked, at which no link had every channel subscribed any more.
    pub fn was_deaf(&mut self) -> bool {
        let is_deaf = self.is_deaf();
        self.deaf.swap(is_deaf, Ordering::Relaxed) || is_deaf
    }

    /// What [`was_deaf`](Self::was_deaf) would say, to be looked at without this sender.
    pub fn deafness(&self) -> Arc<AtomicBool> {
        self.deaf.clone()
    }

    fn is_deaf(&self) -> bool {
        self.ever_heard && !links(self.up).any(|link| self.links[link].synced)
    }

    /// `link` is gone, and the answers to what it had with it.
    pub fn link_lost(&mut self, now: Instant, link: LinkId, actions: &mut Actions<R>) {
        let mut lost = std::mem::take(&mut self.links[link]);
        self.up &= !bit(link);
        self.carriers &= !bit(link);
        self.look.lost(link);
        self.deaf.fetch_or(self.is_deaf(), Ordering::Relaxed);
        if !lost.is_up() {
            return;
        }
        self.lost_at = Some(now);
        if self.master == Some(link) {
            self.disturbed = self.disturbed.max(now);
        }
        let untold = lost.untold();
        for sent in lost.flight {
            if let What::Count { questions, .. } = sent.what {
                self.unasked(now, link, questions, actions);
            }
        }
        self.unasked(now, link, lost.questions, actions);
        self.route(now, actions);
        self.give_to_carriers(link, actions);
        for (tag, receipts) in untold {
            self.tell(self.carriers, tag, &receipts, actions);
        }
    }

    /// Takes a message of `sender`. `body` goes behind its head each time it is published.
    pub fn submit(&mut self, now: Instant, sender: Uuid, to: Channel, body: Bytes, reply: R, actions: &mut Actions<R>) {
        let cost = body.len() + OVERHEAD;
        if self.bytes.saturating_add(cost) > self.times.max_bytes {
            actions.decided.push((reply, Outcome::Unreachable));
            return;
        }
        self.bytes += cost;
        self.tokens = (self.tokens + 0.1).min(TOKENS);
        let number = self.next;
        self.next += 1;
        let until = now + self.patience();
        // What one node says to another goes as receipts do: once, and not once a link.
        let by = if matches!(to, Channel::Node(_)) { self.replica_for_nodes(now) } else { None };
        self.lanes.entry((to, sender)).or_default().push_back(number);
        let pending = Pending { to, sender, body, reply, until, published: None, attempt: 0, overdue: false, by };
        self.log.insert(number, pending);
        let on = match by {
            Some(link) => {
                self.links[link].again.push_back(number);
                bit(link)
            }
            None => self.carriers,
        };
        for link in links(on).filter(|link| self.gathers_until(now, *link).is_none()) {
            actions.wake |= bit(link);
        }
    }

    /// Has `bytes` published on `channel`: on the links that carry messages, or on every one.
    pub fn control(&mut self, channel: Channel, bytes: &Bytes, everywhere: bool, actions: &mut Actions<R>) {
        let on = if everywhere { self.up } else { self.carriers };
        for link in links(on) {
            self.control_on(link, channel, bytes.clone(), actions);
        }
    }

    /// The same on one link.
    pub fn control_on(&mut self, link: LinkId, channel: Channel, bytes: Bytes, actions: &mut Actions<R>) {
        let slot = &mut self.links[link];
        if slot.is_up() {
            if slot.control.len() >= CONTROL_MOST {
                slot.control.pop_front(); // Receipts are asked for again.
            }
            slot.control.push_back((channel, bytes));
            actions.wake |= bit(link);
        }
    }

    /// Whether every server has answered for all that nodes are to hear, but for those that hang.
    pub fn has_said_all(&self) -> bool {
        let control = |sent: &Sent| matches!(sent.what, What::Control);
        self.links.iter().all(|link| link.suspect || link.control.is_empty() && !link.flight.iter().any(control))
    }

    /// What went by the replica behind `link` alone goes by whoever carries messages.
    fn give_to_carriers(&mut self, link: LinkId, actions: &mut Actions<R>) {
        let Some(other) = master_or_first(self.master, self.carriers & !bit(link)) else { return };
        for (number, pending) in self.log.iter_mut().filter(|(_, pending)| pending.by == Some(link)) {
            pending.by = None;
            self.links[other].again.push_back(*number);
            actions.wake |= bit(other);
        }
    }

    /// A server refused a message: the others may not.
    fn ask_elsewhere(&mut self, link: LinkId, number: Number, actions: &mut Actions<R>) {
        let Some(pending) = self.log.get_mut(&number) else { return };
        let alone = pending.by.take() == Some(link);
        for other in links(self.up & !bit(link) & if alone { Links::MAX } else { !self.carriers }) {
            self.links[other].again.push_back(number);
            actions.wake |= bit(other);
        }
    }

    /// The receiver's node said what became of messages.
    pub fn receipts(&mut self, now: Instant, receipts: &[(Number, Decision)], actions: &mut Actions<R>) {
        for (number, decision) in receipts {
            let Some(pending) = self.log.get(number) else { continue };
            let key = (pending.to, pending.sender);
            match decision {
                Decision::Taken => {
                    if let Some(at) = pending.published {
                        let trip = now.saturating_duration_since(at);
                        if let Channel::Client(_) = pending.to {
                            actions.figures.trips.push(trip);
                        }
                        // After a second attempt nobody knows which one the receipt is for (Karn's algorithm).
                        if pending.attempt == 0 {
                            self.learn(trip);
                        }
                    }
                    self.handed(now, key, *number, actions);
                    continue;
                }
                // All that was published behind it is refused as well, so that nothing overtakes it.
                Decision::Full => self.settle_from(*number, (Outcome::Busy, Outcome::Busy), true, actions),
                Decision::Absent => {
                    if let Some(link) = master_or_first(self.master, self.up) {
                        self.seek(now, link, *number, 0, actions);
                    }
                }
            }
            self.first_is_new(now, key, actions);
        }
    }

    /// What is taken was decided in order: so is all before it in its lane.
    fn handed(&mut self, now: Instant, key: Key, number: Number, actions: &mut Actions<R>) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        while let Some(first) = lane.front().copied().filter(|first| *first <= number) {
            lane.pop_front();
            if let Some(pending) = self.log.remove(&first) {
                pending.end(Outcome::Handed, &mut self.bytes, actions);
            }
        }
        match lane.front() {
            Some(first) if self.log.get(first).is_some_and(|pending| pending.overdue) => {
                self.first_is_new(now, key, actions);
            }
            Some(_) => {}
            None => self.lane_is_empty(key),
        }
    }

    /// Most pairs go on writing: a few empty lanes are kept for what comes next.
    fn lane_is_empty(&mut self, key: Key) {
        let is_small = self.lanes.get(&key).is_some_and(|lane| lane.capacity() <= EMPTY_LANE_MOST);
        if !is_small || self.lanes.len() > EMPTY_LANES {
            self.lanes.remove(&key);
        }
    }

    /// The lane has a new first message, which may have been waiting for its receipt for long.
    fn first_is_new(&mut self, now: Instant, key: Key, actions: &mut Actions<R>) {
        let lane = self.lanes.get(&key).into_iter().flatten().copied();
        let overdue = |number: &Number| self.log.get(number).is_some_and(|pending| pending.overdue);
        let again: Vec<Number> = lane.take(AGAIN_AT_ONCE).take_while(overdue).collect();
        for number in again {
            self.send_again(now, number, actions);
        }
    }

    /// Which links carry messages; one that begins to, begins at the oldest that is unsettled.
    fn route(&mut self, now: Instant, actions: &mut Actions<R>) {
        let carriers = match self.master {
            Some(master) if !self.in_motion(now) => bit(master),
            _ => self.up,
        };
        let floor = self.floor();
        for link in links(carriers & !self.carriers) {
            let slot = &mut self.links[link];
            (slot.cursor, slot.catches_up_to) = (floor, self.next);
            actions.wake |= bit(link);
        }
        self.carriers = carriers;
    }

    /// Answers a message that failed, and, by the second outcome, those behind it that must not overtake it: `published` ones, if there is reason
    /// for that. If its sender may have gone to another node meanwhile, where it will ask for all of them again, in order,
    /// that is all of them.
    pub(super) fn settle_from(
        &mut self,
        number: Number,
        (outcome, behind_it): (Outcome, Outcome),
        published: bool,
        actions: &mut Actions<R>,
    ) {
        let Some(pending) = self.log.get(&number) else { return };
        let all = envelope::may_come_again(&pending.body);
        let lane = self.lanes.get(&(pending.to, pending.sender)).into_iter().flatten();
        let behind: Vec<Number> = lane.copied().filter(|n| *n > number).collect();
        self.settle(number, outcome, actions);
        for behind in behind {
            let is_published = self.log.get(&behind).is_some_and(|pending| pending.published.is_some());
            if all || published && is_published {
                self.settle(behind, behind_it, actions);
            }
        }
    }

    /// Answers a message and forgets it.
    fn settle(&mut self, number: Number, outcome: Outcome, actions: &mut Actions<R>) {
        let Some(pending) = self.log.remove(&number) else { return };
        let key = (pending.to, pending.sender);
        pending.end(outcome, &mut self.bytes, actions);
        if let Some(lane) = self.lanes.get_mut(&key) {
            if lane.front() == Some(&number) {
                lane.pop_front();
            } else if let Ok(at) = lane.binary_search(&number) {
                lane.remove(at);
            }
            if lane.is_empty() {
                self.lane_is_empty(key);
            }
        }
    }
}
