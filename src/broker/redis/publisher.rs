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

mod lanes;
mod state;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::outbox::Outcome;

pub use state::{Actions, LinkId, MAX_LINKS, Outgoing, Times};
use state::{Duty, Handed, Lane, Link, Links, Pending, Tail, Ticket, bit};

/// Messages in one batch, and about how many bytes.
const BATCH_MESSAGES: usize = 512;
const BATCH_BYTES: usize = 256 * 1024;

/// A message handed over this long ago has arrived: nothing has to wait for it.
const ARRIVED: Duration = Duration::from_secs(1);

/// A server writes its answers and the copies for subscribers and replicas in one turn, but one after
/// the other. When it dies in between, what it answered last may have reached nobody. So this much of
/// what a link answered, counted back from its last answer, is sent again on the others when it is lost.
const TAIL: Duration = Duration::from_millis(100);

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
    /// What each receiver was handed last, if that was lately.
    handed: HashMap<Uuid, Handed>,
    handed_swept: Instant,
    expiries: VecDeque<(Instant, Ticket)>,
    deadlines: VecDeque<(Instant, Ticket)>,
    /// When that which is only sent again is given up.
    kept: VecDeque<(Instant, Ticket)>,
    retries: BTreeSet<(Instant, Ticket)>,
}

/// Takes from `queue` what is not decided yet and whose time has come.
fn due<R>(
    queue: &mut VecDeque<(Instant, Ticket)>,
    pending: &HashMap<Ticket, Pending<R>>,
    now: Instant,
) -> Option<Ticket> {
    while let Some(&(at, ticket)) = queue.front() {
        let waits = pending.contains_key(&ticket);
        if waits && at > now {
            break;
        }
        queue.pop_front();
        if waits {
            return Some(ticket);
        }
    }
    None
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
            kept: VecDeque::new(),
            retries: BTreeSet::new(),
        }
    }

    /// How long a message is given to servers.
    fn patience(&self) -> Duration {
        self.times.send * 4 / 5
    }

    /// Messages that wait for a decision.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether something happened so lately that a receiver counted nowhere may just be moving.
    pub fn in_motion(&self, now: Instant) -> bool {
        let whole = self.expected & !self.synced == 0 && self.master_link().is_some();
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
        let until = now + self.patience();
        let order = self.next;
        let ticket = self.enqueue(Pending::new(now, until, id, receiver, payload, order, Duty::Answer(reply)));
        self.expiries.push_back((until, ticket));
        self.deadlines.push_back((now + self.times.send, ticket));
        self.lanes.entry(receiver).or_default().tickets.push_back(ticket);
        self.pump(now, receiver, actions);
    }

    /// What `link` should send now; nothing while an earlier batch of it is unanswered.
    pub fn next_batch(&mut self, now: Instant, link: LinkId) -> Vec<Outgoing> {
        let mut batch = Vec::new();
        let mut expired = Vec::new();
        let mut bytes = 0;
        let slot = &mut self.links[link];
        if !slot.flight.is_empty() || !slot.up {
            return batch;
        }
        while batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            let Some(ticket) = slot.ready.pop_front() else { break };
            // Decided meanwhile, and not for this link to carry.
            let Some(pending) = self.pending.get_mut(&ticket) else { continue };
            if now >= pending.until {
                expired.push(ticket);
                continue;
            }
            pending.sent = true;
            match pending.duty {
                // Nothing is between the two: what was handed since is later than this one, or its predecessor.
                Duty::Answer(_) => {
                    let lately = |handed: &&Handed| {
                        handed.order < pending.order && now.saturating_duration_since(handed.at) < ARRIVED
                    };
                    let handed = self.handed.get(&pending.receiver).filter(lately);
                    pending.after = Some(handed.map_or(pending.after.unwrap_or_default(), |handed| handed.id));
                }
                Duty::Again(_) => pending.since = now,
                Duty::Copy(_) => {}
            }
            bytes += pending.payload.len();
            batch.push(pending.outgoing());
            slot.flight.push(ticket);
        }
        slot.busy_since = (!batch.is_empty()).then_some(now);
        for ticket in expired {
            if let Some(receiver) = self.withdraw(link, ticket) {
                self.hold(receiver);
                self.expiries.push_front((now, ticket)); // The next tick decides.
            }
        }
        batch
    }

    /// `link` has answered its batch, or the beginning of it: the number of receivers for each message,
    /// in order; or something else, and there are none. What is left unanswered stays under way until
    /// the link is lost.
    pub fn answered(&mut self, now: Instant, link: LinkId, receivers: &[u64], actions: &mut Actions<R>) {
        let slot = &mut self.links[link];
        let mut flight = std::mem::take(&mut slot.flight);
        slot.flight = flight.split_off(receivers.len().min(flight.len()));
        if let Some(since) = slot.busy_since.filter(|_| !flight.is_empty()) {
            slot.trip = now.saturating_duration_since(since).max(slot.trip * 7 / 8);
        }
        slot.busy_since = slot.is_busy().then_some(now);
        if std::mem::take(&mut slot.suspect) {
            self.suspect &= !bit(link);
            self.disturb_by(now, link);
        }
        let mut nobody = Vec::new();
        for (ticket, receivers) in flight.iter().zip(receivers) {
            let Some(pending) = self.pending.get_mut(ticket) else { continue };
            pending.out &= !bit(link);
            if *receivers > 0 {
                self.counted(now, link, *ticket, actions);
            } else if pending.is_copy() {
                self.withdraw(link, *ticket);
            } else {
                pending.zero |= bit(link);
                nobody.push(*ticket);
            }
        }
        for ticket in nobody {
            self.counted_nobody(now, ticket, actions);
        }
        if !receivers.is_empty() {
            let tail = &mut self.links[link].tail;
            while tail.front().is_some_and(|old| now.saturating_duration_since(old.at) > TAIL) {
                tail.pop_front();
            }
        }
        if !self.links[link].ready.is_empty() {
            actions.wake |= bit(link);
        }
    }

    /// A server knows the receiver of a message: it is handed over.
    fn counted(&mut self, now: Instant, link: LinkId, ticket: Ticket, actions: &mut Actions<R>) {
        let Some(pending) = self.pending.get(&ticket) else { return };
        let (id, order, again) = (pending.id, pending.order, pending.again);
        let first = pending.duty.answered().unwrap_or(now);
        self.links[link].tail.push_back(Tail { at: now, first, again, order, id, message: pending.outgoing() });
        if pending.is_copy() {
            self.withdraw(link, ticket);
            return;
        }
        let handed = self.handed.entry(pending.receiver).or_insert(Handed { id, order, at: now });
        if handed.order <= order {
            *handed = Handed { id, order, at: now };
        }
        self.decide(now, ticket, Outcome::Handed, actions);
    }

    /// Time has passed. Returns when to call again at the latest, if anything waits.
    pub fn tick(&mut self, now: Instant, actions: &mut Actions<R>) -> Option<Instant> {
        while let Some(ticket) = due(&mut self.expiries, &self.pending, now) {
            if self.pending.get(&ticket).is_some_and(|pending| pending.out == 0) {
                self.decide(now, ticket, Outcome::Unreachable, actions);
            }
        }
        while let Some(ticket) = due(&mut self.deadlines, &self.pending, now) {
            self.decide(now, ticket, Outcome::Unreachable, actions);
        }
        while let Some(ticket) = due(&mut self.kept, &self.pending, now) {
            self.decide(now, ticket, Outcome::Unreachable, actions);
        }
        for link in 0..MAX_LINKS {
            if self.suspicious_at(&self.links[link]).is_some_and(|at| now >= at) {
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
            self.handed.retain(|_, handed| now.saturating_duration_since(handed.at) < ARRIVED);
        }
        let expiry = self.expiries.front().map(|(at, _)| *at);
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let retry = self.retries.first().map(|(at, _)| *at);
        let hedge = self.links.iter().filter_map(|slot| self.suspicious_at(slot)).min();
        let kept = self.kept.front().map(|(at, _)| *at);
        [expiry, deadline, kept, retry, hedge].into_iter().flatten().min()
    }

    /// When a server that owes something has been silent for so long that the others help it out: longer
    /// than it takes of late, where it is far away.
    fn suspicious_at(&self, slot: &Link) -> Option<Instant> {
        let since = slot.busy_since.filter(|_| slot.is_busy() && !slot.suspect)?;
        Some(since + self.times.hedge.max((slot.trip * 3).min(self.times.send / 4)))
    }

    /// A server is silent: whatever it was given is sent to the others as well. Its answers still count.
    fn suspect_link(&mut self, now: Instant, link: LinkId, actions: &mut Actions<R>) {
        self.links[link].suspect = true;
        self.suspect |= bit(link);
        self.disturb_by(now, link);
        let flight = self.links[link].flight.clone();
        let waiting = std::mem::take(&mut self.links[link].ready);
        let mut receivers: BTreeSet<Uuid> = BTreeSet::new();
        for ticket in waiting {
            receivers.extend(self.withdraw(link, ticket));
        }
        let in_lane = |pending: &&Pending<R>| !pending.is_copy();
        receivers.extend(flight.iter().filter_map(|t| self.pending.get(t)).filter(in_lane).map(|p| p.receiver));
        // What it answered is sent again where another server can take it, and once: should the others be
        // slow as well, they would hand it to one another for ever.
        if self.up & !self.suspect != 0 {
            let (again, fresh): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut self.links[link].tail).into_iter().partition(|tail| tail.again);
            self.links[link].tail = again;
            receivers.extend(self.resurrect(now, fresh));
        }
        for receiver in receivers {
            self.hold(receiver);
            self.pump(now, receiver, actions);
        }
    }

    /// Only the master's silence is a disturbance: in calm nothing depends on the others.
    fn disturb_by(&mut self, now: Instant, link: LinkId) {
        if self.master == Some(link) {
            self.disturb(now);
        }
    }
}

#[cfg(test)]
mod tests;
