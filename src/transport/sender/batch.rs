//! Owns what a link is given at a time, and what its server's answers mean.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::link::{Link, Question, Sent, What};
use super::{Actions, Answer, Command, Key, LinkId, Pending, Sender, bit};
use crate::transport::envelope::{self, Channel, Number, OVERHEAD, Place, Tag};

/// Commands in one batch, and about how many bytes.
pub(super) const BATCH_COMMANDS: usize = 512;
pub(super) const BATCH_BYTES: usize = 256 * 1024;
/// Commands and bytes that one link may have unanswered.
pub(super) const WINDOW_COMMANDS: usize = 8192;
pub(super) const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// So long, and up to so many, commands gather while others are under way: a batch costs each side a turn, however
/// short it is (as RFC 896 has it for TCP).
pub(super) const GATHER: Duration = Duration::from_millis(1);
const GATHER_MOST: u64 = 64;
/// Receivers that one question is about.
const ASKED_AT_ONCE: usize = 128;
/// Receipts in one PUBLISH.
const RECEIPTS_AT_ONCE: usize = 4096;

impl<R> Sender<R> {
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
}

fn publish<R>(lanes: &HashMap<Key, VecDeque<Number>>, number: Number, pending: &Pending<R>) -> Command {
    let lane = lanes.get(&(pending.to, pending.sender));
    let before = lane.and_then(|lane| lane.binary_search(&number).ok()?.checked_sub(1).map(|at| lane[at]));
    let floor = lane.and_then(|lane| lane.front().copied()).unwrap_or(number);
    let place = Place { number, previous: before.unwrap_or(0), floor, attempt: pending.attempt };
    Command::Message(pending.to, place, pending.body.clone())
}
