//! Owns the lanes: what of each receiver's messages may be under way, where, and what comes of it.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Publisher;
use super::state::{Actions, LinkId, Outgoing, Pending, Tail, Ticket, bit};
use crate::outbox::Outcome;

/// A link that was heard of this lately was alive after its last answer's turn: nothing of it is missing.
pub(in crate::broker::redis) const TAIL_USE: Duration = Duration::from_secs(3);

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

    /// Puts what a link answered last in front of its lanes once more: it may have reached nobody.
    pub(super) fn resurrect(&mut self, now: Instant, tail: VecDeque<Tail>) -> BTreeSet<Uuid> {
        let mut receivers = BTreeSet::new();
        // From the latest to the earliest, each before those that are there already.
        for Tail { at, id, message } in tail.into_iter().rev() {
            if now.saturating_duration_since(at) > TAIL_USE {
                break;
            }
            let Outgoing { receiver, after, payload, .. } = message;
            let until = now + self.times.keep;
            let again = Pending::new(now, until, id, receiver, payload, None);
            let ticket = self.enqueue(Pending { after: Some(after), sent: true, ..again });
            self.kept.push_back((until, ticket));
            self.lanes.entry(receiver).or_default().tickets.push_front(ticket);
            receivers.insert(receiver);
        }
        for receiver in &receivers {
            self.hold(*receiver);
        }
        receivers
    }

    /// `link` no longer has these; their lanes go on with the other links.
    pub(super) fn release(&mut self, now: Instant, link: LinkId, tickets: &[Ticket], actions: &mut Actions<R>) {
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
    pub(super) fn hold(&mut self, receiver: Uuid) {
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
    pub(super) fn retry_all(&mut self, now: Instant, actions: &mut Actions<R>) {
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
    pub(super) fn master_link(&self) -> Option<LinkId> {
        self.master.filter(|link| self.up & !self.suspect & bit(*link) != 0)
    }

    /// Gives a lane's messages to links, as far as they may go now.
    pub(super) fn pump(&mut self, now: Instant, receiver: Uuid, actions: &mut Actions<R>) {
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
    pub(super) fn decide(&mut self, now: Instant, ticket: Ticket, outcome: Outcome, actions: &mut Actions<R>) {
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
