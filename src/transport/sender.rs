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

mod link;
mod look;
mod receipts;
mod search;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use self::link::{Link, Question, Sent, What};
use self::look::Look;
use self::search::Search;
use super::envelope::{self, Channel, Decision, Number, OVERHEAD, Place, Tag};
use super::homes::{MoveReason, Resumption};
use super::peers::Peers;
use crate::outbox::{Outbox, Outcome};

/// A link's place; small, so that sets of them are bits.
pub type LinkId = usize;
/// Most links at a time.
pub const MAX_LINKS: usize = 64;
type Links = u64;
/// A lane: where it leads, and whose it is.
type Key = (Channel, Uuid);

/// Commands in one batch, and about how many bytes.
const BATCH_COMMANDS: usize = 512;
const BATCH_BYTES: usize = 256 * 1024;
/// Commands and bytes that one link may have unanswered.
const WINDOW_COMMANDS: usize = 8192;
const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// So long, and up to so many, commands gather while others are under way: a batch costs each side a turn, however
/// short it is (as RFC 896 has it for TCP).
const GATHER: Duration = Duration::from_millis(1);
const GATHER_MOST: u64 = 64;
/// Receivers that one question is about.
const ASKED_AT_ONCE: usize = 128;
/// Messages of one lane that are sent again at a time.
const AGAIN_AT_ONCE: usize = 8;
/// The pauses of what is sought or sent again grow to this.
const PAUSE_MOST: Duration = Duration::from_millis(500);
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// What is sent again costs a token; each new message brings a tenth of one, and so does each of this.
const TOKEN_EVERY: Duration = Duration::from_millis(5);
const TOKENS: f64 = 500.0;
/// Lanes that may be empty, and numbers that an empty one has room for.
const EMPTY_LANES: usize = 1024;
const EMPTY_LANE_MOST: usize = 64;
/// Words between nodes that wait for a link: what is dropped is asked for again.
const CONTROL_MOST: usize = 1024;
/// Receipts in one PUBLISH.
const RECEIPTS_AT_ONCE: usize = 4096;

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

/// A command for a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// PUBLISH of a message.
    Message(Channel, Place, Bytes),
    /// PUBLISH of something between nodes.
    Control(Channel, Bytes),
    /// PUBSUB NUMSUB.
    Count(Vec<Channel>),
}

/// What a server answered to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The number of subscribers that it gave a message to.
    Receivers(u64),
    /// The numbers of subscribers of the channels asked about, in order.
    Counts(Vec<u64>),
    /// An error: it lives, but did not do it.
    Error,
}

/// What an event adds to the figures that an operator looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Messages that were sent again.
    pub resent: u64,
    /// How long the receipts of clients' messages took.
    pub trips: Vec<Duration>,
    /// Why sessions got another home.
    pub moves: Vec<MoveReason>,
    /// How long sessions had one copy alone that have two again.
    pub restored: Vec<Duration>,
}

/// What follows from an event.
#[derive(Debug)]
pub struct Actions<R> {
    /// Answers that are due.
    pub decided: Vec<(R, Outcome)>,
    /// What is to be counted.
    pub figures: Figures,
    /// Channels that may be wanted now, or not any more.
    pub changed: Vec<Channel>,
    /// Sessions that have come here, and whose clients have not.
    pub detached: Vec<Arc<Outbox>>,
    /// What became of claims.
    pub claims: Vec<(Uuid, Resumption)>,
    wake: Links,
}

impl<R> Default for Actions<R> {
    fn default() -> Self {
        Self {
            decided: Vec::new(),
            figures: Figures::default(),
            changed: Vec::new(),
            detached: Vec::new(),
            claims: Vec::new(),
            wake: 0,
        }
    }
}

impl<R> Actions<R> {
    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        let Self { decided, figures, changed, detached, claims, wake } = self;
        decided.is_empty()
            && *figures == Figures::default()
            && changed.is_empty()
            && detached.is_empty()
            && claims.is_empty()
            && *wake == 0
    }

    /// The links that have something to send.
    pub fn links(&self) -> impl Iterator<Item = LinkId> + use<R> {
        links(self.wake)
    }
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

    /// Until when `link` gathers what comes, if it does: [`next_batch`](Self::next_batch) is to be called again then.
    pub fn gathers_until(&self, now: Instant, link: LinkId) -> Option<Instant> {
        let slot = &self.links[link];
        let until = slot.sent_at.filter(|_| !slot.flight.is_empty())? + GATHER;
        let messages = if self.carriers & bit(link) != 0 { self.next.saturating_sub(slot.cursor) } else { 0 };
        let others = slot.control.len() + slot.again.len() + slot.questions.len();
        (until > now && messages.saturating_add(others as u64) < GATHER_MOST).then_some(until)
    }

    /// What `link` should send now; nothing while its window is full, or little gathers. Called again after that was
    /// sent.
    pub fn next_batch(&mut self, now: Instant, link: LinkId) -> Vec<Command> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let slot = &self.links[link];
        if !slot.is_up() || slot.flight.len() >= WINDOW_COMMANDS || slot.flight_bytes >= WINDOW_BYTES {
            return batch;
        }
        if self.gathers_until(now, link).is_some() {
            return batch;
        }
        let slot = &mut self.links[link];
        let mut sent = |slot: &mut Link, what, size: usize| {
            bytes += size;
            slot.flight_bytes += size;
            slot.flight.push_back(Sent { what, bytes: size });
            bytes >= BATCH_BYTES
        };
        while batch.len() < BATCH_COMMANDS {
            let Some((channel, bytes)) = slot.control.pop_front() else { break };
            let size = bytes.len() + OVERHEAD;
            batch.push(Command::Control(channel, bytes));
            if sent(slot, What::Control, size) {
                break;
            }
        }
        if slot.receipts_in_flight == 0 {
            let me = self.peers.me();
            for (tag, mut receipts) in std::mem::take(&mut slot.receipts) {
                if receipts.len() > RECEIPTS_AT_ONCE {
                    slot.receipts.insert(tag, receipts.split_off(RECEIPTS_AT_ONCE));
                }
                let bytes = envelope::receipts(me, &receipts);
                let size = bytes.len() + OVERHEAD;
                batch.push(Command::Control(Channel::Node(tag), bytes));
                slot.receipts_in_flight += 1;
                let elsewhere = self.carriers & bit(link) != 0;
                sent(slot, What::Receipts(tag, if elsewhere { Vec::new() } else { receipts }), size);
            }
        }
        let full = |batch: &Vec<Command>, slot: &Link| {
            batch.len() >= BATCH_COMMANDS || slot.flight_bytes >= WINDOW_BYTES || slot.flight.len() >= WINDOW_COMMANDS
        };
        let due = now + self.trip_allowed;
        while !full(&batch, slot) {
            let Some(number) = slot.again.pop_front() else { break };
            let Some(pending) = self.log.get_mut(&number).filter(|pending| now < pending.until) else { continue };
            if pending.published.is_none() {
                pending.published = Some(now);
                self.hedges.push_back((due, number));
            }
            let size = pending.body.len() + OVERHEAD;
            batch.push(publish(&self.lanes, number, pending));
            if sent(slot, What::Message(number), size) {
                break;
            }
        }
        let mut looked = 0;
        if self.carriers & bit(link) != 0 {
            for (&number, pending) in self.log.range_mut(slot.cursor..) {
                looked += 1;
                if full(&batch, slot) || looked > 4 * BATCH_COMMANDS {
                    break;
                }
                slot.cursor = number + 1;
                if now >= pending.until || pending.by.is_some_and(|by| by != link) {
                    continue;
                }
                if pending.published.is_none() {
                    pending.published = Some(now);
                    self.hedges.push_back((due, number));
                } else if number < slot.catches_up_to {
                    // Its receipt may be lost with another link: this asks for it again.
                    pending.attempt = pending.attempt.saturating_add(1);
                }
                let size = pending.body.len() + OVERHEAD;
                batch.push(publish(&self.lanes, number, pending));
                if sent(slot, What::Message(number), size) {
                    break;
                }
            }
        }
        if (slot.look || !slot.questions.is_empty()) && !full(&batch, slot) {
            slot.look = false;
            let count = slot.questions.len().min(ASKED_AT_ONCE);
            let questions: Vec<Question> = slot.questions.drain(..count).collect();
            let nodes = self.peers.tags();
            let channels = questions.iter().map(|(channel, _)| *channel);
            batch.push(Command::Count(channels.chain(nodes.iter().map(|tag| Channel::Node(*tag))).collect()));
            let size = (questions.len() + nodes.len()) * 64;
            sent(slot, What::Count { questions, nodes }, size);
        }
        if !batch.is_empty() {
            slot.busy_since.get_or_insert(now);
            slot.sent_at = Some(now);
        }
        batch
    }

    /// `link` has answered the oldest of what it owed, in order.
    pub fn answered(&mut self, now: Instant, link: LinkId, answers: Vec<Answer>, actions: &mut Actions<R>) {
        let slot = &mut self.links[link];
        if let Some(since) = slot.busy_since.filter(|_| !answers.is_empty()) {
            slot.trip = now.saturating_duration_since(since).max(slot.trip * 7 / 8);
        }
        slot.busy_since = (slot.flight.len() > answers.len()).then_some(now);
        if std::mem::take(&mut slot.suspect) {
            self.route(now, actions);
        }
        for answer in answers {
            let slot = &mut self.links[link];
            let Some(sent) = slot.flight.pop_front() else { break };
            slot.flight_bytes -= sent.bytes;
            match (sent.what, answer) {
                (What::Message(number), Answer::Receivers(count)) => {
                    if count == 0 || count == slot.strangers {
                        self.seek(now, link, number, count, actions);
                    }
                }
                (What::Message(number), _) => self.ask_elsewhere(link, number, actions),
                (What::Count { questions, nodes }, Answer::Counts(counts))
                    if counts.len() == questions.len() + nodes.len() =>
                {
                    let (counts, present) = counts.split_at(questions.len());
                    let present: HashSet<Tag> =
                        nodes.iter().zip(present).filter(|(_, count)| **count > 0).map(|(tag, _)| *tag).collect();
                    self.peers.present(&present);
                    self.look.answered(link, &present);
                    slot.has_had.extend(&present);
                    for (question, count) in questions.into_iter().zip(counts) {
                        self.counted(now, link, question, *count, &present, actions);
                    }
                }
                (What::Count { questions, .. }, _) => self.unasked(now, link, questions, actions),
                (What::Receipts(tag, receipts), answer) => {
                    slot.receipts_in_flight -= 1;
                    if !matches!(answer, Answer::Receivers(count) if count > slot.strangers) {
                        self.tell_by_carriers(now, link, tag, &receipts, actions);
                    }
                }
                (What::Control, _) => {}
            }
        }
        if self.links[link].owes()
            || self.carriers & bit(link) != 0 && self.log.range(self.links[link].cursor..).next().is_some()
        {
            actions.wake |= bit(link);
        }
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

    fn learn(&mut self, trip: Duration) {
        if self.trip.is_zero() {
            (self.trip, self.deviation) = (trip, trip / 2);
        } else {
            self.deviation = (self.deviation * 3 + self.trip.abs_diff(trip)) / 4;
            self.trip = (self.trip * 7 + trip) / 8;
        }
        let most = (self.times.send / 5).max(self.times.hedge);
        self.trip_allowed = (self.trip + self.deviation * 4).clamp(self.times.hedge, most);
    }

    fn spend(&mut self, now: Instant, tokens: f64) -> bool {
        let passed = now.saturating_duration_since(self.tokens_at).as_secs_f64() / TOKEN_EVERY.as_secs_f64();
        self.tokens_at = now;
        self.tokens = (self.tokens + passed).min(TOKENS);
        let enough = self.tokens >= tokens;
        if enough {
            self.tokens -= tokens;
        }
        enough
    }

    /// Asks for a receipt, on every link; but not of a receiver that is being sought, for the search sends again once it is
    /// found: what was lost with a node would use up the budget of all others.
    fn send_again(&mut self, now: Instant, number: Number, actions: &mut Actions<R>) {
        let pause = self.trip_allowed;
        let Some(to) = self.log.get(&number).filter(|pending| now < pending.until).map(|pending| pending.to) else {
            return;
        };
        let is_sought = self.searches.get(&to).is_some_and(|search| search.is_about(number));
        let affordable = !is_sought && self.spend(now, f64::from(self.up.count_ones()));
        let Some(pending) = self.log.get_mut(&number) else { return };
        pending.overdue = false;
        if affordable {
            pending.attempt = pending.attempt.saturating_add(1);
            actions.figures.resent += 1;
            for link in links(self.up) {
                self.links[link].again.push_back(number);
                actions.wake |= bit(link);
            }
        }
        let pause = pause.saturating_mul(1 << u32::from(pending.attempt).min(4)).min(PAUSE_MOST.max(pause));
        let pause = pause.mul_f64(0.75 + 0.25 * self.random.f64());
        let sought = pending.attempt > 1;
        self.hedges_again.push(Reverse((now + pause, number)));
        if sought && let Some(link) = self.master.filter(|link| self.up & bit(*link) != 0) {
            // Counted, but nobody says that it has it: perhaps those who were counted listen to everything.
            self.seek(now, link, number, self.links[link].strangers, actions);
        }
    }

    /// Time has passed. Returns when to call again at the latest, if anything waits.
    pub fn tick(&mut self, now: Instant, actions: &mut Actions<R>) -> Option<Instant> {
        // The log is in the order of deadlines, too.
        while let Some((&number, pending)) = self.log.range(self.unexpired..).next().filter(|(_, p)| p.until <= now) {
            self.unexpired = number + 1;
            if pending.published.is_none() {
                self.give_up(now, number, actions);
            }
        }
        let grace = self.times.send - self.patience();
        while let Some((&number, _)) = self.log.first_key_value().filter(|(_, p)| p.until + grace <= now) {
            self.give_up(now, number, actions);
        }
        for link in links(self.up) {
            if self.suspicious_at(&self.links[link]).is_some_and(|at| now >= at) {
                self.links[link].suspect = true;
                let stuck = std::mem::take(&mut self.links[link].questions);
                self.unasked(now, link, stuck, actions);
                let untold = if self.carriers & bit(link) == 0 { self.links[link].untold() } else { Vec::new() };
                for (tag, receipts) in untold {
                    self.tell_by_carriers(now, link, tag, &receipts, actions);
                }
                self.give_to_carriers(link, actions);
                let asked: Vec<Channel> =
                    self.searches.iter().filter(|(_, s)| s.under_way & bit(link) != 0).map(|(r, _)| *r).collect();
                for channel in asked {
                    self.round_goes_on(now, channel, actions);
                }
            }
        }
        self.route(now, actions);
        while let Some(number) = due(&mut self.hedges, &self.log, now) {
            self.overdue(now, number, actions);
        }
        while let Some(Reverse((_, number))) = self.hedges_again.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.hedges_again.pop();
            self.overdue(now, number, actions);
        }
        while let Some(Reverse((at, receiver))) = self.retries.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.retries.pop();
            if self.searches.get(&receiver).is_some_and(|search| search.retry == Some(at)) {
                self.begin_round(now, receiver, self.up, actions);
            }
        }
        let ends = [
            self.log.first_key_value().map(|(_, pending)| pending.until + grace),
            self.log.range(self.unexpired..).next().map(|(_, pending)| pending.until),
        ];
        let waits = [
            self.hedges.front().map(|(at, _)| *at),
            self.hedges_again.peek().map(|Reverse((at, _))| *at),
            self.retries.peek().map(|Reverse((at, _))| *at),
        ];
        let suspicion = links(self.up).filter_map(|link| self.suspicious_at(&self.links[link])).min();
        let calm = self.in_motion(now).then(|| self.disturbed + self.times.settle).filter(|at| *at > now);
        ends.into_iter().chain(waits).chain([suspicion, calm]).flatten().min()
    }

    /// No receipt has come in time; a lane's first goes out again, others when they are the first.
    fn overdue(&mut self, now: Instant, number: Number, actions: &mut Actions<R>) {
        let Some(pending) = self.log.get_mut(&number) else { return };
        pending.overdue = true;
        let key = (pending.to, pending.sender);
        if self.lanes.get(&key).and_then(VecDeque::front) == Some(&number) {
            self.send_again(now, number, actions);
        }
    }

    /// When a server that owes something has been silent for longer than it takes of late.
    fn suspicious_at(&self, link: &Link) -> Option<Instant> {
        let since = link.busy_since.filter(|_| link.owes() && !link.suspect)?;
        Some(since + self.times.hedge.max((link.trip * 3).min(self.times.send / 4)))
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

    /// The deadline has passed; its successors need not wait for it any more, and their node is told so.
    fn give_up(&mut self, now: Instant, number: Number, actions: &mut Actions<R>) {
        let Some(pending) = self.log.get(&number) else { return };
        let key = (pending.to, pending.sender);
        if envelope::may_come_again(&pending.body) {
            // Its sender may have gone to another node, and ask for all of them again, in order: nothing overtakes it.
            let behind: Vec<Number> =
                self.lanes.get(&key).into_iter().flatten().copied().filter(|n| *n >= number).collect();
            for number in behind {
                self.settle(number, Outcome::Unreachable, actions);
            }
            return;
        }
        self.settle(number, Outcome::Unreachable, actions);
        let first = self.lanes.get(&key).and_then(|lane| lane.front().copied());
        let is_published = |number: &Number| self.log.get(number).is_some_and(|pending| pending.published.is_some());
        if let Some(first) = first.filter(is_published) {
            self.send_again(now, first, actions);
        }
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

fn publish<R>(lanes: &HashMap<Key, VecDeque<Number>>, number: Number, pending: &Pending<R>) -> Command {
    let lane = lanes.get(&(pending.to, pending.sender));
    let before = lane.and_then(|lane| lane.binary_search(&number).ok()?.checked_sub(1).map(|at| lane[at]));
    let floor = lane.and_then(|lane| lane.front().copied()).unwrap_or(number);
    let place = Place { number, previous: before.unwrap_or(0), floor, attempt: pending.attempt };
    Command::Message(pending.to, place, pending.body.clone())
}

/// Takes from `queue` what is not decided yet and whose time has come.
fn due<R>(queue: &mut VecDeque<(Instant, Number)>, log: &BTreeMap<Number, Pending<R>>, now: Instant) -> Option<Number> {
    while let Some(&(at, number)) = queue.front() {
        let waits = log.contains_key(&number);
        if waits && at > now {
            break;
        }
        queue.pop_front();
        if waits {
            return Some(number);
        }
    }
    None
}
