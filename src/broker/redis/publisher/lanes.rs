//! Owns the lanes: what of each receiver's messages may be under way, where, and what comes of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Publisher;
use super::state::{Actions, Duty, LinkId, Outgoing, Pending, Tail, Ticket, bit};
use crate::outbox::Outcome;

/// Waiting time before nobody's receiver is looked for again.
const RETRY_FIRST: Duration = Duration::from_millis(4);
const RETRY_MOST: Duration = Duration::from_millis(32);

impl<R> Publisher<R> {
    /// Keeps a message until it is decided; its place in its lane is the caller's to give.
    pub(super) fn enqueue(&mut self, pending: Pending<R>) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.bytes += pending.payload.len();
        self.pending.insert(ticket, pending);
        ticket
    }

    /// Takes what a link answered last into its lanes once more, each in its old place: it may have reached
    /// nobody. Not for ever: receivers' nodes recognise a copy for a while only.
    pub(super) fn resurrect(&mut self, now: Instant, tail: impl IntoIterator<Item = Tail>) -> BTreeSet<Uuid> {
        let mut receivers = BTreeSet::new();
        let lately = |tail: &Tail| {
            now.saturating_duration_since(tail.at) <= self.times.tail && now < tail.first + self.times.keep
        };
        let messages: BTreeMap<Ticket, Tail> = tail.into_iter().filter(lately).map(|tail| (tail.order, tail)).collect();
        // Those that were under way together did not name each other; now they are.
        let mut last = HashMap::new();
        for (order, Tail { first, id, message, .. }) in messages {
            let Outgoing { receiver, after, payload, .. } = message;
            let after = last.insert(receiver, id).unwrap_or(after);
            let lane = self.lanes.entry(receiver).or_default();
            let orders = |ticket: &Ticket| self.pending.get(ticket).map(|pending| pending.order);
            let place = lane.tickets.partition_point(|ticket| orders(ticket) < Some(order));
            if lane.tickets.get(place).and_then(orders) == Some(order) {
                continue; // It is being sent again already.
            }
            let until = first + self.times.keep;
            let again = Pending::new(now, until, id, receiver, payload, order, Duty::Again(first));
            let ticket = self.enqueue(Pending { after: Some(after), sent: true, again: true, ..again });
            self.kept.insert(self.kept.partition_point(|(at, _)| *at <= until), (until, ticket));
            self.lanes.entry(receiver).or_default().tickets.insert(place, ticket);
            receivers.insert(receiver);
        }
        for receiver in &receivers {
            self.take_back(*receiver);
        }
        receivers
    }

    /// `link` no longer has these; their lanes go on with the other links.
    pub(super) fn release(&mut self, now: Instant, link: LinkId, tickets: &[Ticket], actions: &mut Actions<R>) {
        let mut receivers = BTreeSet::new();
        for ticket in tickets {
            receivers.extend(self.withdraw(link, *ticket));
        }
        for receiver in receivers {
            self.hold(receiver);
            self.pump(now, receiver, actions);
        }
    }

    /// `link` does not have this one any more. Returns its receiver if it stands in a lane.
    pub(super) fn withdraw(&mut self, link: LinkId, ticket: Ticket) -> Option<Uuid> {
        let pending = self.pending.get_mut(&ticket)?;
        pending.out &= !bit(link);
        if !pending.is_copy() {
            return Some(pending.receiver);
        }
        if pending.out == 0 {
            self.forget(ticket);
        }
        None
    }

    /// The head of a lane is in trouble: the others are to wait behind it.
    pub(super) fn hold(&mut self, receiver: Uuid) {
        if self.lanes.get(&receiver).is_some_and(|lane| !lane.held) {
            self.take_back(receiver);
        }
    }

    /// Holds a lane; what waits on some link behind its head, unsent, is taken back.
    fn take_back(&mut self, receiver: Uuid) {
        let Some(lane) = self.lanes.get_mut(&receiver) else { return };
        (lane.held, lane.given) = (true, 0);
        let behind = || lane.tickets.iter().skip(1);
        let out = behind().filter_map(|ticket| self.pending.get(ticket)).fold(0, |out, pending| out | pending.out);
        if out == 0 {
            return;
        }
        let behind: HashSet<Ticket> = behind().copied().collect();
        for (link, slot) in self.links.iter_mut().enumerate().filter(|(link, _)| out & bit(*link) != 0) {
            slot.ready.retain(|ticket| {
                if !behind.contains(ticket) {
                    return true;
                }
                if let Some(pending) = self.pending.get_mut(ticket) {
                    pending.out &= !bit(link);
                }
                false
            });
        }
    }

    /// No server that was asked knows the receiver.
    pub(super) fn counted_nobody(&mut self, now: Instant, ticket: Ticket, actions: &mut Actions<R>) {
        let patience = self.patience();
        let Some(pending) = self.pending.get_mut(&ticket) else { return };
        // What is sent again and has found a server no longer waits for one.
        pending.until = pending.until.min(now + patience);
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
        } else if self.in_motion(now) || self.up & self.suspect & !zero != 0 {
            // Something is moving, or a server that is silent just now may know the receiver.
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
    pub(super) fn retry_all(&mut self, now: Instant, actions: &mut Actions<R>) {
        for (_, ticket) in std::mem::take(&mut self.retries) {
            if let Some(pending) = self.pending.get_mut(&ticket) {
                pending.retry = None;
                pending.zero = 0;
            }
        }
        let receivers: Vec<Uuid> = self.lanes.keys().copied().collect();
        for receiver in receivers {
            if let Some(lane) = self.lanes.get_mut(&receiver) {
                lane.given = 0; // What lies on a silent link alone is for the new one.
            }
            self.pump(now, receiver, actions);
        }
    }

    /// The master's link, when it can be trusted with a message alone.
    pub(super) fn master_link(&self) -> Option<LinkId> {
        self.master.filter(|link| self.up & !self.suspect & bit(*link) != 0)
    }

    /// Gives a lane's messages to links, as far as they may go now.
    pub(super) fn pump(&mut self, now: Instant, receiver: Uuid, actions: &mut Actions<R>) {
        while let Some(expired) = self.pump_until_expired(now, receiver, actions) {
            self.settle(now, expired, Outcome::Unreachable, actions);
        }
    }

    /// The same, up to a message whose time is over: that one is returned.
    fn pump_until_expired(&mut self, now: Instant, receiver: Uuid, actions: &mut Actions<R>) -> Option<Ticket> {
        let moving = self.in_motion(now);
        let lane = self.lanes.get_mut(&receiver)?;
        let window = if moving || lane.held { 1 } else { lane.tickets.len() };
        let trusted = self.up & !self.suspect;
        let usable = if trusted != 0 { trusted } else { self.up };
        for ticket in lane.tickets.iter().take(window).skip(lane.given) {
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
                    if !slot.is_busy() {
                        slot.busy_since = Some(now);
                    }
                    slot.ready.push_back(*ticket);
                }
            }
            actions.wake |= targets;
        }
        let is_given = |ticket: &Ticket| self.pending.get(ticket).is_some_and(|pending| pending.out != 0);
        while !lane.held && lane.given < window && lane.tickets.get(lane.given).is_some_and(is_given) {
            lane.given += 1;
        }
        None
    }

    /// Answers a message, and lets its lane go on.
    pub(super) fn decide(&mut self, now: Instant, ticket: Ticket, outcome: Outcome, actions: &mut Actions<R>) {
        if let Some(receiver) = self.settle(now, ticket, outcome, actions) {
            self.pump(now, receiver, actions);
        }
    }

    /// Answers a message and takes it out of its lane. Returns its receiver, if others wait for the same.
    fn settle(&mut self, now: Instant, ticket: Ticket, outcome: Outcome, actions: &mut Actions<R>) -> Option<Uuid> {
        let pending = self.pending.get_mut(&ticket)?;
        let receiver = pending.receiver;
        if let Some(at) = pending.retry.take() {
            self.retries.remove(&(at, ticket));
        }
        let first = pending.duty.answered().unwrap_or(now);
        if let Duty::Answer(reply) = std::mem::replace(&mut pending.duty, Duty::Copy(first)) {
            actions.decided.push((reply, outcome));
        }
        if outcome != Outcome::Handed || pending.out == 0 {
            self.forget(ticket);
        }
        let lane = self.lanes.get_mut(&receiver)?;
        match lane.tickets.iter().position(|other| *other == ticket) {
            Some(0) => {
                lane.tickets.pop_front();
                lane.given = if lane.held { 0 } else { lane.given.saturating_sub(1) };
                // The next one is in trouble as well if nobody was counted for it: no need to give out those behind
                // it, and to take them back.
                let next = lane.tickets.front().and_then(|next| self.pending.get(next));
                lane.held = lane.held && next.is_some_and(|next| next.zero != 0);
            }
            Some(at) => {
                lane.tickets.remove(at);
                lane.given -= usize::from(at < lane.given);
            }
            None => {}
        }
        if lane.tickets.is_empty() {
            self.lanes.remove(&receiver);
            return None;
        }
        Some(receiver)
    }

    pub(super) fn forget(&mut self, ticket: Ticket) {
        if let Some(pending) = self.pending.remove(&ticket) {
            self.bytes -= pending.payload.len();
        }
    }
}
