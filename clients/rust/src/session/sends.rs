//! Owns messages without an answer, in order: those that are written, those to be written again, and those to come. Pure.
//!
//! ```text
//!   fresh ──written──▶ open ──answered──▶ (told)
//!                       │ ▲
//!       connection lost ▼ │ written again, before anything newer
//!                      again ──window over, or another session──▶ (told: lost)
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::SendError;
use crate::frames::{self, Text};

/// Who waits for an answer.
pub(crate) trait Waiter {
    /// Whether they still do.
    fn is_waiting(&self) -> bool;
}

#[derive(Debug)]
struct Entry<W> {
    id: Uuid,
    receiver: Uuid,
    text: String,
    waiter: W,
    /// When it is too late for it to be written for the first time.
    too_late: Instant,
    /// When it was written first, and last.
    written: Option<(Instant, Instant)>,
}

/// Below that nobody looks.
const LEAST_CROWD: usize = 64;

/// Messages without an answer. All three queues are in the order in which they were sent.
#[derive(Debug)]
pub(crate) struct Sends<W> {
    most_open: usize,
    patience: Duration,
    answer_patience: Duration,
    open: VecDeque<Entry<W>>,
    again: VecDeque<Entry<W>>,
    fresh: VecDeque<Entry<W>>,
    /// At so many fresh ones it is time to look who has withdrawn: at most as many as those that wait.
    crowd: usize,
    /// How long the server knows again what was written before.
    window: Duration,
}

/// Somebody is told.
pub(crate) type Told<W> = (W, Result<(), SendError>);

impl<W: Waiter> Sends<W> {
    pub(crate) fn new(most_open: usize, patience: Duration, answer_patience: Duration) -> Self {
        let (open, again, fresh) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let window = Duration::ZERO;
        Self { most_open, patience, answer_patience, open, again, fresh, crowd: LEAST_CROWD, window }
    }

    /// A message that is to be written, by `too_late` for the first time.
    pub(crate) fn push(&mut self, too_late: Instant, receiver: Uuid, text: String, waiter: W) {
        if self.fresh.len() >= self.crowd {
            self.fresh.retain(|entry| entry.waiter.is_waiting());
            self.crowd = LEAST_CROWD.max(2 * self.fresh.len());
        }
        self.fresh.push_back(Entry { id: Uuid::new_v4(), receiver, text, waiter, too_late, written: None });
    }

    /// Writes what the server takes.
    pub(crate) fn pump(&mut self, now: Instant, client: Uuid, out: &mut Vec<Text>) {
        while self.open.len() < self.most_open {
            let Some(mut entry) = self.again.pop_front().or_else(|| self.fresh.pop_front()) else { return };
            // Whoever does not wait any more has withdrawn it, as far as that is still possible.
            if !entry.waiter.is_waiting() {
                continue;
            }
            out.push(frames::send(client, entry.id, entry.receiver, &entry.text));
            entry.written = Some((entry.written.map_or(now, |(first, _)| first), now));
            self.open.push_back(entry);
        }
    }

    /// The server has answered.
    pub(crate) fn answer(&mut self, id: Uuid, answer: Result<(), SendError>) -> Option<Told<W>> {
        let place = self.open.iter().position(|entry| entry.id == id)?;
        Some((self.open.remove(place)?.waiter, answer))
    }

    /// The connection is gone: what was written will be written again.
    pub(crate) fn put_back(&mut self) {
        // Before what was not even written again.
        while let Some(entry) = self.open.pop_back() {
            self.again.push_front(entry);
        }
    }

    /// A connection has begun, whose server knows what was written before for so long.
    pub(crate) fn begin(&mut self, now: Instant, window: Duration, is_same_session: bool, told: &mut Vec<Told<W>>) {
        self.window = window;
        if !is_same_session {
            told.extend(self.again.drain(..).map(|entry| (entry.waiter, Err(SendError::Lost))));
        }
        self.expire(now, told);
    }

    /// A frame was over the server's limit, and would be so again: that of the longest text, surely.
    pub(crate) fn refuse_longest(&mut self) -> Option<Told<W>> {
        let (place, _) = self.open.iter().enumerate().max_by_key(|(_, entry)| entry.text.len())?;
        let error = SendError::TooLong("the text is too long for the server".to_owned());
        Some((self.open.remove(place)?.waiter, Err(error)))
    }

    /// For what it is too late.
    pub(crate) fn expire(&mut self, now: Instant, told: &mut Vec<Told<W>>) {
        while self.again.front().and_then(|entry| self.lost_at(entry)).is_some_and(|at| now >= at) {
            told.extend(self.again.pop_front().map(|entry| (entry.waiter, Err(SendError::Lost))));
        }
        while self.fresh.front().is_some_and(|entry| now >= entry.too_late) {
            told.extend(self.fresh.pop_front().map(|entry| (entry.waiter, Err(SendError::Timeout(self.patience)))));
        }
    }

    fn lost_at(&self, entry: &Entry<W>) -> Option<Instant> {
        entry.written.map(|(first, _)| first + self.window)
    }

    /// The oldest message whose answer is due by now: the server answers every one.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.answer_due().is_some_and(|due| now >= due)
    }

    fn answer_due(&self) -> Option<Instant> {
        self.open.front().and_then(|entry| entry.written).map(|(_, last)| last + self.answer_patience)
    }

    /// When something here is too late.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let again = self.again.front().and_then(|entry| self.lost_at(entry));
        let fresh = self.fresh.front().map(|entry| entry.too_late);
        [again, fresh, self.answer_due()].into_iter().flatten().min()
    }

    /// All is over.
    pub(crate) fn end(&mut self, told: &mut Vec<Told<W>>) {
        let all = self.open.drain(..).chain(self.again.drain(..)).chain(self.fresh.drain(..));
        told.extend(all.map(|entry| (entry.waiter, Err(SendError::Closed))));
    }
}
