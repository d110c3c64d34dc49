//! Owns the decision which link carries which message, when it is sent again, and what is answered.
//!
//! A pure state machine: no sockets, no clock of its own. In calm times a message goes to the master
//! alone, and many for one receiver are under way together. While anything is *in motion* (a link
//! lost or new, a server silent, a topology changed, a Sentinel alarmed) a message goes to every
//! link, and only the first of each receiver's lane is under way, so that nothing can be overtaken.
//!
//! What holds for every order of events, and is tested so:
//! - every message is decided exactly once, by its deadline at the latest;
//! - `Handed` is said only after a server has counted a receiver for this very message;
//! - no server is given a lane's messages in another order than they came in;
//! - `NotConnected` is said only when every usable link has said so and nothing is in motion.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::outbox::Outcome;

/// A link's place in the publisher, below [`MAX_LINKS`].
pub type LinkId = usize;

/// Links that a publisher can have.
pub const MAX_LINKS: usize = 64;

/// A set of links, one bit each.
type Links = u64;

/// Messages in one batch, and about how many bytes.
const BATCH_MESSAGES: usize = 512;
const BATCH_BYTES: usize = 256 * 1024;

/// A message handed over this long ago has arrived: nothing has to wait for it.
const ARRIVED: Duration = Duration::from_secs(1);

/// A server writes its answers and the copies for subscribers and replicas in one turn, but one after
/// the other. When it dies in between, what it answered last may have reached nobody. So this much of
/// what a link answered, counted back from its last answer, is sent again on the others when it is lost.
const TAIL: Duration = Duration::from_millis(100);
/// A link that was heard of this lately was alive after its last answer's turn: nothing of it is missing.
const TAIL_USE: Duration = Duration::from_secs(3);

/// Waiting time before nobody's receiver is looked for again.
const RETRY_FIRST: Duration = Duration::from_millis(4);
const RETRY_MOST: Duration = Duration::from_millis(32);

/// The times that a publisher goes by.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// A message is decided within this; it is given to servers only in the first four fifths of it,
    /// so that a receiver's node can tell a late copy from a message that is still wanted.
    pub send: Duration,
    /// A server that has not answered for this long is helped out by the others.
    pub hedge: Duration,
    /// After a disturbance, once all links are as they should be, this long counts as motion.
    pub settle: Duration,
    /// The same, while they are not: a server may be away for good.
    pub unsettled: Duration,
    /// Bytes that may wait; more are refused at once.
    pub max_bytes: usize,
}

/// What has to be done after an event.
#[derive(Debug)]
pub struct Actions<R> {
    /// Answers to give.
    pub decided: Vec<(R, Outcome)>,
    /// Links that have something to send, one bit each.
    pub wake: Links,
    /// Messages that were sent again.
    pub resent: u64,
}

impl<R> Default for Actions<R> {
    fn default() -> Self {
        Self { decided: Vec::new(), wake: 0, resent: 0 }
    }
}

impl<R> Actions<R> {
    /// The links to wake.
    pub fn links(&self) -> impl Iterator<Item = LinkId> + use<R> {
        let wake = self.wake;
        (0..MAX_LINKS).filter(move |link| wake & (1 << link) != 0)
    }
}

type Ticket = u64;

/// A message for a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Who is to get it.
    pub receiver: Uuid,
    /// The message that was handed over to the same receiver last, if that was lately.
    pub after: Uuid,
    /// The message itself.
    pub payload: Bytes,
}

#[derive(Debug)]
struct Pending<R> {
    /// None: it was answered already, and is sent again to be sure.
    reply: Option<R>,
    id: Uuid,
    /// Its predecessor, if that was settled when it was sent first.
    after: Option<Uuid>,
    receiver: Uuid,
    payload: Bytes,
    /// It is not given to servers any more from here on.
    until: Instant,
    /// Links on which it waits or is under way.
    out: Links,
    /// Links that counted no receiver since it was (re)tried.
    zero: Links,
    /// It has been given to a link before.
    sent: bool,
    /// Not before this.
    retry: Option<Instant>,
    retries: u32,
}

#[derive(Debug, Default)]
struct Lane {
    tickets: VecDeque<Ticket>,
    /// The first one is in trouble; the others wait behind it.
    held: bool,
}

#[derive(Debug, Default)]
struct Link {
    up: bool,
    synced: bool,
    suspect: bool,
    ready: VecDeque<Ticket>,
    flight: Vec<Ticket>,
    flight_since: Option<Instant>,
    /// What it handed over lately, oldest first.
    tail: VecDeque<Tail>,
}

/// A message that was answered, in case that its server dies now.
#[derive(Debug)]
struct Tail {
    at: Instant,
    id: Uuid,
    message: Outgoing,
}

/// The publisher of one node; `R` is the duty to answer.
#[derive(Debug)]
pub struct Publisher<R> {
    times: Times,
    links: Vec<Link>,
    up: Links,
    suspect: Links,
    synced: Links,
    expected: Links,
    master: Option<LinkId>,
    disturbed: Instant,
    next: Ticket,
    bytes: usize,
    pending: HashMap<Ticket, Pending<R>>,
    lanes: HashMap<Uuid, Lane>,
    /// What each receiver was handed last, and since when that is so.
    handed: HashMap<Uuid, (Uuid, Instant)>,
    handed_swept: Instant,
    expiries: VecDeque<(Instant, Ticket)>,
    deadlines: VecDeque<(Instant, Ticket)>,
    retries: BTreeSet<(Instant, Ticket)>,
}

fn bit(link: LinkId) -> Links {
    1 << link
}

impl<R> Publisher<R> {
    /// Starts in motion: nothing is known yet.
    pub fn new(now: Instant, times: Times) -> Self {
        Self {
            times,
            links: (0..MAX_LINKS).map(|_| Link::default()).collect(),
            up: 0,
            suspect: 0,
            synced: 0,
            expected: 0,
            master: None,
            disturbed: now,
            next: 0,
            bytes: 0,
            pending: HashMap::new(),
            lanes: HashMap::new(),
            handed: HashMap::new(),
            handed_swept: now,
            expiries: VecDeque::new(),
            deadlines: VecDeque::new(),
            retries: BTreeSet::new(),
        }
    }

    /// Messages that wait for a decision.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether something happened so lately that a receiver counted nowhere may just be moving.
    pub fn in_motion(&self, now: Instant) -> bool {
        let whole = self.expected & !self.synced == 0 && self.master_link().is_some() && self.suspect == 0;
        let wait = if whole { self.times.settle } else { self.times.unsettled };
        now.saturating_duration_since(self.disturbed) < wait
    }

    /// Something is going on: a Sentinel said so, or a link saw it.
    pub fn disturb(&mut self, now: Instant) {
        self.disturbed = self.disturbed.max(now);
    }

    /// The node that is master for Sentinel and by its own word, and the nodes that ought to be linked.
    pub fn set_topology(&mut self, now: Instant, master: Option<LinkId>, expected: impl Iterator<Item = LinkId>) {
        let expected = expected.map(bit).fold(0, |set, one| set | one);
        if self.master != master || self.expected != expected {
            self.disturb(now);
        }
        self.master = master;
        self.expected = expected;
    }

    /// `link` is connected and can publish.
    pub fn link_up(&mut self, now: Instant, link: LinkId, actions: &mut Actions<R>) {
        self.links[link] = Link { up: true, ..Link::default() };
        self.up |= bit(link);
        self.suspect &= !bit(link);
        self.synced &= !bit(link);
        self.disturb(now);
        self.retry_all(now, actions);
    }

    /// `link` has every subscription that this node wants.
    pub fn link_synced(&mut self, now: Instant, link: LinkId, actions: &mut Actions<R>) {
        if self.links[link].up {
            self.links[link].synced = true;
            self.synced |= bit(link);
            self.disturb(now);
            self.retry_all(now, actions);
        }
    }

    /// `link` is gone, and the answers to what it had with it.
    pub fn link_lost(&mut self, now: Instant, link: LinkId, actions: &mut Actions<R>) {
        let Link { ready, mut flight, up, tail, .. } = std::mem::take(&mut self.links[link]);
        self.up &= !bit(link);
        self.suspect &= !bit(link);
        self.synced &= !bit(link);
        if up {
            self.disturb(now);
        }
        flight.extend(ready);
        let again = self.resurrect(now, tail);
        self.release(now, link, &flight, actions);
        for receiver in again {
            self.pump(now, receiver, actions);
        }
    }

    /// Takes the message `id`.
    pub fn submit(
        &mut self,
        now: Instant,
        receiver: Uuid,
        id: Uuid,
        payload: Bytes,
        reply: R,
        actions: &mut Actions<R>,
    ) {
        if self.bytes.saturating_add(payload.len()) > self.times.max_bytes {
            actions.decided.push((reply, Outcome::Unreachable));
            return;
        }
        let ticket = self.next;
        self.next += 1;
        self.bytes += payload.len();
        let until = now + self.times.send * 4 / 5;
        self.expiries.push_back((until, ticket));
        self.deadlines.push_back((now + self.times.send, ticket));
        let pending = Pending {
            reply: Some(reply),
            id,
            after: None,
            receiver,
            payload,
            until,
            out: 0,
            zero: 0,
            sent: false,
            retry: None,
            retries: 0,
        };
        self.pending.insert(ticket, pending);
        self.lanes.entry(receiver).or_default().tickets.push_back(ticket);
        self.pump(now, receiver, actions);
    }

    /// What `link` should send now; nothing while an earlier batch of it is unanswered.
    pub fn next_batch(&mut self, now: Instant, link: LinkId) -> Vec<Outgoing> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let slot = &mut self.links[link];
        if !slot.flight.is_empty() || !slot.up {
            return batch;
        }
        while batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            let Some(ticket) = slot.ready.pop_front() else { break };
            // Decided meanwhile, through another link: no need to send it here as well.
            let Some(pending) = self.pending.get_mut(&ticket) else { continue };
            pending.sent = true;
            bytes += pending.payload.len();
            let handed =
                self.handed.get(&pending.receiver).filter(|(_, at)| now.saturating_duration_since(*at) < ARRIVED);
            let after = pending.after.unwrap_or_else(|| handed.map_or(Uuid::nil(), |(id, _)| *id));
            pending.after = Some(after);
            batch.push(Outgoing { receiver: pending.receiver, after, payload: pending.payload.clone() });
            slot.flight.push(ticket);
        }
        slot.flight_since = (!batch.is_empty()).then_some(now);
        batch
    }

    /// `link` has answered its batch, or the beginning of it: the number of receivers for each message,
    /// in order. What is left unanswered stays under way until the link is lost.
    pub fn answered(&mut self, now: Instant, link: LinkId, receivers: &[u64], actions: &mut Actions<R>) {
        let slot = &mut self.links[link];
        let mut flight = std::mem::take(&mut slot.flight);
        slot.flight = flight.split_off(receivers.len().min(flight.len()));
        slot.flight_since = None;
        if std::mem::take(&mut slot.suspect) {
            self.suspect &= !bit(link);
            self.disturb(now);
        }
        let mut nobody = Vec::new();
        for (ticket, receivers) in flight.iter().zip(receivers) {
            let Some(pending) = self.pending.get_mut(ticket) else { continue };
            pending.out &= !bit(link);
            if *receivers > 0 {
                let after = pending.after.unwrap_or_default();
                let message = Outgoing { receiver: pending.receiver, after, payload: pending.payload.clone() };
                self.links[link].tail.push_back(Tail { at: now, id: pending.id, message });
                if pending.reply.is_some() {
                    self.handed.insert(pending.receiver, (pending.id, now));
                }
                self.decide(now, *ticket, Outcome::Handed, actions);
            } else {
                pending.zero |= bit(link);
                nobody.push(*ticket);
            }
        }
        for ticket in nobody {
            self.counted_nobody(now, ticket, actions);
        }
        let tail = &mut self.links[link].tail;
        while tail.front().is_some_and(|old| now.saturating_duration_since(old.at) > TAIL) {
            tail.pop_front();
        }
        if !self.links[link].ready.is_empty() {
            actions.wake |= bit(link);
        }
    }

    /// Time has passed. Returns when to call again at the latest, if anything waits.
    pub fn tick(&mut self, now: Instant, actions: &mut Actions<R>) -> Option<Instant> {
        while let Some(&(until, ticket)) = self.expiries.front() {
            if let Some(pending) = self.pending.get(&ticket) {
                if until > now {
                    break;
                }
                if pending.out == 0 {
                    self.decide(now, ticket, Outcome::Unreachable, actions);
                }
            }
            self.expiries.pop_front();
        }
        while let Some(&(deadline, ticket)) = self.deadlines.front() {
            if self.pending.contains_key(&ticket) {
                if deadline > now {
                    break;
                }
                self.decide(now, ticket, Outcome::Unreachable, actions);
            }
            self.deadlines.pop_front();
        }
        for link in 0..MAX_LINKS {
            let slot = &self.links[link];
            let slow = slot.flight_since.is_some_and(|since| now.saturating_duration_since(since) >= self.times.hedge);
            if slow && !slot.suspect {
                self.suspect_link(now, link, actions);
            }
        }
        while let Some(&(at, ticket)) = self.retries.first() {
            if at > now {
                break;
            }
            self.retries.pop_first();
            if let Some(pending) = self.pending.get_mut(&ticket) {
                pending.retry = None;
                pending.zero = 0;
                let receiver = pending.receiver;
                self.pump(now, receiver, actions);
            }
        }
        if now.saturating_duration_since(self.handed_swept) > ARRIVED {
            self.handed_swept = now;
            self.handed.retain(|_, (_, at)| now.saturating_duration_since(*at) < ARRIVED);
        }
        let expiry = self.expiries.front().map(|(at, _)| *at);
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let retry = self.retries.first().map(|(at, _)| *at);
        let flights = self.links.iter().filter(|slot| !slot.suspect).filter_map(|slot| slot.flight_since);
        let hedge = flights.min().map(|since| since + self.times.hedge);
        [expiry, deadline, retry, hedge].into_iter().flatten().min()
    }

    /// A server is silent: whatever it was given is sent to the others as well. Its answers still count.
    fn suspect_link(&mut self, now: Instant, link: LinkId, actions: &mut Actions<R>) {
        self.links[link].suspect = true;
        self.suspect |= bit(link);
        self.disturb(now);
        let waiting = std::mem::take(&mut self.links[link].ready);
        let flight = self.links[link].flight.clone();
        for ticket in &waiting {
            if let Some(pending) = self.pending.get_mut(ticket) {
                pending.out &= !bit(link);
            }
        }
        let tail = std::mem::take(&mut self.links[link].tail);
        let again = self.resurrect(now, tail);
        let tickets = flight.iter().chain(&waiting);
        let mut receivers: BTreeSet<Uuid> = tickets.filter_map(|t| Some(self.pending.get(t)?.receiver)).collect();
        receivers.extend(again);
        for receiver in receivers {
            self.hold(receiver);
            self.pump(now, receiver, actions);
        }
    }

    /// Puts what a link answered last in front of its lanes once more: it may have reached nobody.
    fn resurrect(&mut self, now: Instant, tail: VecDeque<Tail>) -> BTreeSet<Uuid> {
        let mut receivers = BTreeSet::new();
        // From the latest to the earliest, each before those that are there already.
        for Tail { at, id, message } in tail.into_iter().rev() {
            if now.saturating_duration_since(at) > TAIL_USE {
                break;
            }
            let Outgoing { receiver, after, payload } = message;
            let ticket = self.next;
            self.next += 1;
            self.bytes += payload.len();
            let until = now + self.times.send * 4 / 5;
            self.expiries.push_back((until, ticket));
            self.deadlines.push_back((now + self.times.send, ticket));
            let again = Pending {
                reply: None,
                id,
                after: Some(after),
                receiver,
                payload,
                until,
                out: 0,
                zero: 0,
                sent: true,
                retry: None,
                retries: 0,
            };
            self.pending.insert(ticket, again);
            self.lanes.entry(receiver).or_default().tickets.push_front(ticket);
            receivers.insert(receiver);
        }
        for receiver in &receivers {
            self.hold(*receiver);
        }
        receivers
    }

    /// `link` no longer has these; their lanes go on with the other links.
    fn release(&mut self, now: Instant, link: LinkId, tickets: &[Ticket], actions: &mut Actions<R>) {
        let mut receivers = BTreeSet::new();
        for ticket in tickets {
            if let Some(pending) = self.pending.get_mut(ticket) {
                pending.out &= !bit(link);
                receivers.insert(pending.receiver);
            }
        }
        for receiver in receivers {
            self.hold(receiver);
            self.pump(now, receiver, actions);
        }
    }

    /// The head of a lane is in trouble: what waits behind it on some link, unsent, is taken back.
    fn hold(&mut self, receiver: Uuid) {
        let Some(lane) = self.lanes.get_mut(&receiver) else { return };
        lane.held = true;
        for ticket in lane.tickets.iter().skip(1) {
            let Some(pending) = self.pending.get_mut(ticket) else { continue };
            for (link, slot) in self.links.iter_mut().enumerate() {
                if pending.out & bit(link) != 0 && !slot.flight.contains(ticket) {
                    slot.ready.retain(|waiting| waiting != ticket);
                    pending.out &= !bit(link);
                }
            }
        }
    }

    /// No server that was asked knows the receiver.
    fn counted_nobody(&mut self, now: Instant, ticket: Ticket, actions: &mut Actions<R>) {
        let Some(pending) = self.pending.get(&ticket) else { return };
        let (receiver, zero, until) = (pending.receiver, pending.zero, pending.until);
        if pending.out & !self.suspect != 0 {
            return; // Another server has yet to answer.
        }
        let pending_is_idle = pending.out == 0;
        let head = self.lanes.get(&receiver).and_then(|lane| lane.tickets.front()) == Some(&ticket);
        if !head {
            // Its predecessor is in trouble too; this one is tried again in its turn.
            if let Some(pending) = self.pending.get_mut(&ticket) {
                pending.zero = 0;
            }
            self.hold(receiver);
            return;
        }
        self.hold(receiver);
        if now >= until {
            if pending_is_idle {
                self.decide(now, ticket, Outcome::Unreachable, actions);
            }
        } else if self.up & !self.suspect & !zero != 0 {
            self.pump(now, receiver, actions);
        } else if self.in_motion(now) {
            self.retry_later(now, ticket);
        } else {
            self.decide(now, ticket, Outcome::NotConnected, actions);
        }
    }

    fn retry_later(&mut self, now: Instant, ticket: Ticket) {
        let Some(pending) = self.pending.get_mut(&ticket) else { return };
        let at = now + RETRY_MOST.min(RETRY_FIRST * (1 << pending.retries.min(8)));
        pending.retries += 1;
        pending.retry = Some(at);
        self.retries.insert((at, ticket));
    }

    /// The links have changed for the better: what waits for a second try gets it now.
    fn retry_all(&mut self, now: Instant, actions: &mut Actions<R>) {
        for (_, ticket) in std::mem::take(&mut self.retries) {
            if let Some(pending) = self.pending.get_mut(&ticket) {
                pending.retry = None;
                pending.zero = 0;
            }
        }
        let receivers: Vec<Uuid> = self.lanes.keys().copied().collect();
        for receiver in receivers {
            self.pump(now, receiver, actions);
        }
    }

    /// The master's link, when it can be trusted with a message alone.
    fn master_link(&self) -> Option<LinkId> {
        self.master.filter(|link| self.up & !self.suspect & bit(*link) != 0)
    }

    /// Gives a lane's messages to links, as far as they may go now.
    fn pump(&mut self, now: Instant, receiver: Uuid, actions: &mut Actions<R>) {
        while let Some(expired) = self.pump_until_expired(now, receiver, actions) {
            self.settle(expired, Outcome::Unreachable, actions);
        }
    }

    /// The same, up to a message whose time is over: that one is returned.
    fn pump_until_expired(&mut self, now: Instant, receiver: Uuid, actions: &mut Actions<R>) -> Option<Ticket> {
        let moving = self.in_motion(now);
        let lane = self.lanes.get(&receiver)?;
        let window = if moving || lane.held { 1 } else { lane.tickets.len() };
        let trusted = self.up & !self.suspect;
        let usable = if trusted != 0 { trusted } else { self.up };
        for ticket in lane.tickets.iter().take(window) {
            let Some(pending) = self.pending.get_mut(ticket) else { continue };
            if pending.out & trusted != 0 || pending.retry.is_some() {
                continue; // It is under way, or waits for its time.
            }
            if now >= pending.until {
                if pending.out == 0 {
                    return Some(*ticket);
                }
                continue; // Some server may answer yet.
            }
            let targets = match self.master.filter(|link| trusted & bit(*link) != 0) {
                Some(master) if !moving && pending.zero == 0 && !pending.sent => bit(master),
                _ => usable & !pending.zero & !pending.out,
            };
            if targets == 0 {
                continue;
            }
            if pending.sent {
                actions.resent += 1;
            }
            pending.out |= targets;
            for (link, slot) in self.links.iter_mut().enumerate() {
                if targets & bit(link) != 0 {
                    slot.ready.push_back(*ticket);
                }
            }
            actions.wake |= targets;
        }
        None
    }

    /// Answers a message, and lets its lane go on.
    fn decide(&mut self, now: Instant, ticket: Ticket, outcome: Outcome, actions: &mut Actions<R>) {
        if let Some(receiver) = self.settle(ticket, outcome, actions) {
            self.pump(now, receiver, actions);
        }
    }

    /// Answers a message and forgets it. Returns its receiver, if others wait for the same.
    fn settle(&mut self, ticket: Ticket, outcome: Outcome, actions: &mut Actions<R>) -> Option<Uuid> {
        let pending = self.pending.remove(&ticket)?;
        self.bytes -= pending.payload.len();
        if let Some(at) = pending.retry {
            self.retries.remove(&(at, ticket));
        }
        if let Some(reply) = pending.reply {
            actions.decided.push((reply, outcome));
        }
        let lane = self.lanes.get_mut(&pending.receiver)?;
        match lane.tickets.iter().position(|other| *other == ticket) {
            Some(0) => {
                lane.tickets.pop_front();
                lane.held = false;
            }
            Some(at) => drop(lane.tickets.remove(at)),
            None => {}
        }
        if lane.tickets.is_empty() {
            self.lanes.remove(&pending.receiver);
            return None;
        }
        Some(pending.receiver)
    }
}

#[cfg(test)]
mod tests;
