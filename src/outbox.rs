//! Owns what waits to be written to one session: messages, answers, and the order to close.
//!
//! Filled from any task without waiting, emptied by the session's own. Bounded on all sides:
//! messages by number and bytes, answers by the number of unanswered sends.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::config::Limits;

/// How long a message waits for its predecessor: that was handed to this node already, and lies in the
/// socket of another link.
const PATIENCE: Duration = Duration::from_millis(250);

/// A message for a session's client.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message's id, the same on every copy.
    pub id: Uuid,
    /// Who sent it.
    pub sender: Uuid,
    /// What they sent.
    pub text: Box<str>,
}

/// What became of a `send`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A node that holds the receiver has it.
    Handed,
    /// Nobody is connected as the receiver.
    NotConnected,
    /// Not handed over before the deadline.
    Unreachable,
}

/// The answer to a `send`.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's id.
    pub request: Uuid,
    /// What became of it.
    pub outcome: Outcome,
    /// From the request to the decision.
    pub took: Duration,
}

/// Why the gateway ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseOrder {
    /// The node drains: 1012.
    Drain,
    /// The node stops now: 1001.
    Stop,
    /// The outbox overflowed: 1013.
    SlowReader,
}

/// Whether a message found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It will be written.
    Taken,
    /// The session is closing, or is closed now because there was no room.
    Refused,
}

/// The outbox of one session.
#[derive(Debug)]
pub struct Outbox {
    client: Uuid,
    max_messages: usize,
    max_bytes: usize,
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    deliveries: VecDeque<Delivery>,
    /// Messages whose predecessor has not come yet, in the order of arrival.
    waiting: Vec<Waiting>,
    bytes: usize,
    answers: VecDeque<Answer>,
    close: Option<CloseOrder>,
    subscribed: bool,
}

#[derive(Debug)]
struct Waiting {
    delivery: Delivery,
    after: Uuid,
    until: Instant,
}

impl Inner {
    /// The one that is to wait no longer next: not one whose predecessor waits here as well.
    fn first_waiting(&self) -> Option<usize> {
        let waits = |id: Uuid| self.waiting.iter().any(|waiting| waiting.delivery.id == id);
        let heads = self.waiting.iter().enumerate().filter(|(_, waiting)| !waits(waiting.after));
        // Should they name one another in a circle, which nobody sends, the first to come is as good as any.
        let heads = heads.min_by_key(|(_, waiting)| waiting.until).map(|(at, _)| at);
        heads.or((!self.waiting.is_empty()).then_some(0))
    }

    /// Moves `delivery` to the end of the queue, and after it whatever waited for it, in the order of arrival.
    fn deliver(&mut self, delivery: Delivery) {
        let mut next = VecDeque::from([delivery]);
        while let Some(delivery) = next.pop_front() {
            next.extend(self.waiting.extract_if(.., |w| w.after == delivery.id).map(|waiting| waiting.delivery));
            self.deliveries.push_back(delivery);
        }
    }
}

/// What a session takes out at a time.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Answers first: they are what the client waits for.
    pub answers: Vec<Answer>,
    /// Messages, in the order of arrival.
    pub deliveries: Vec<Delivery>,
    /// The order to close, once everything before it is written.
    pub close: Option<CloseOrder>,
    /// Whether a broker has confirmed the client's subscription.
    pub subscribed: bool,
}

impl Outbox {
    /// An empty outbox for `client`.
    pub fn new(client: Uuid, limits: &Limits) -> Self {
        Self {
            client,
            max_messages: limits.outbox_messages,
            max_bytes: limits.outbox_bytes,
            inner: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Whose outbox it is.
    pub fn client(&self) -> Uuid {
        self.client
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing below can panic while it holds the lock; if it did, the queues would still be whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message; without room for it the session is told to close. It waits for `after` if that is
    /// `missing`, or waits itself.
    pub fn push(&self, now: Instant, delivery: Delivery, after: Uuid, missing: bool) -> Pushed {
        let mut inner = self.lock();
        // Until it is drained, a session takes what comes: its sender has been told so.
        if inner.close.is_some_and(|order| order != CloseOrder::Drain) {
            return Pushed::Refused;
        }
        let bytes = inner.bytes.saturating_add(delivery.text.len());
        let fits = inner.deliveries.len() + inner.waiting.len() < self.max_messages && bytes <= self.max_bytes;
        if !fits {
            inner.close = Some(CloseOrder::SlowReader);
        } else {
            inner.bytes = bytes;
            if missing || inner.waiting.iter().any(|waiting| waiting.delivery.id == after) {
                inner.waiting.push(Waiting { delivery, after, until: now + PATIENCE });
            } else {
                inner.deliver(delivery);
            }
        }
        drop(inner);
        self.wake.notify_one();
        if fits { Pushed::Taken } else { Pushed::Refused }
    }

    /// When the first message that waits for its predecessor is to wait no longer.
    pub fn waits_until(&self) -> Option<Instant> {
        let inner = self.lock();
        inner.first_waiting().map(|at| inner.waiting[at].until)
    }

    fn answer(&self, answer: Answer) {
        self.lock().answers.push_back(answer);
        self.wake.notify_one();
    }

    /// Orders the session to close; the first order stands, but for `Stop`, which is sooner than any.
    pub fn close(&self, order: CloseOrder) {
        let mut inner = self.lock();
        if inner.close.is_none() || order == CloseOrder::Stop {
            inner.close = Some(order);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// A broker has confirmed the subscription of this client.
    pub fn confirm_subscription(&self) {
        self.lock().subscribed = true;
        self.wake.notify_one();
    }

    /// Takes answers, up to `most` messages, and, when nothing else is left, the order to close.
    pub fn take(&self, most: usize) -> Batch {
        self.take_at(Instant::now(), most)
    }

    /// The same, at a given time: it decides what has waited long enough for its predecessor.
    pub fn take_at(&self, now: Instant, most: usize) -> Batch {
        let mut inner = self.lock();
        while let Some(at) = inner.first_waiting().filter(|at| inner.waiting[*at].until <= now) {
            let waiting = inner.waiting.remove(at);
            inner.deliver(waiting.delivery);
        }
        let count = inner.deliveries.len().min(most);
        let deliveries: Vec<_> = inner.deliveries.drain(..count).collect();
        inner.bytes -= deliveries.iter().map(|delivery| delivery.text.len()).sum::<usize>();
        let answers = inner.answers.drain(..).collect();
        let rest = !inner.deliveries.is_empty();
        let immediate = matches!(inner.close, Some(CloseOrder::SlowReader | CloseOrder::Stop));
        let close = inner.close.filter(|_| immediate || !rest && inner.waiting.is_empty());
        let subscribed = inner.subscribed;
        drop(inner);
        if rest {
            self.wake.notify_one();
        }
        Batch { answers, deliveries, close, subscribed }
    }

    /// The number of messages that nobody will write.
    pub fn discard(&self) -> usize {
        let mut inner = self.lock();
        inner.close.get_or_insert(CloseOrder::Stop);
        inner.bytes = 0;
        std::mem::take(&mut inner.deliveries).len() + std::mem::take(&mut inner.waiting).len()
    }

    /// Whether a slow reader or a hard stop demands an end, whatever is being written.
    pub fn must_end(&self) -> bool {
        matches!(self.lock().close, Some(CloseOrder::SlowReader | CloseOrder::Stop))
    }

    /// Gives back the memory of a past burst.
    pub fn shrink(&self) {
        let mut inner = self.lock();
        inner.deliveries.shrink_to_fit();
        inner.waiting.shrink_to_fit();
        inner.answers.shrink_to_fit();
    }

    /// Wakes the session once more: there may be something to write.
    pub fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Waits until something was put in. Cancel safe: a wake-up that was not consumed stays.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

/// The duty to answer one `send`, exactly once. Dropped unused, it answers that the broker failed:
/// a message that gets lost in this program is never silent.
#[derive(Debug)]
pub struct ReplyTo {
    outbox: Option<std::sync::Arc<Outbox>>,
    request: Uuid,
    since: Instant,
}

impl ReplyTo {
    /// The answer to `request` goes to `outbox`.
    pub fn new(outbox: std::sync::Arc<Outbox>, request: Uuid) -> Self {
        Self { outbox: Some(outbox), request, since: Instant::now() }
    }

    /// Answers.
    pub fn answer(mut self, outcome: Outcome) {
        self.put(outcome);
    }

    fn put(&mut self, outcome: Outcome) {
        if let Some(outbox) = self.outbox.take() {
            outbox.answer(Answer { request: self.request, outcome, took: self.since.elapsed() });
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.put(Outcome::Unreachable);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    pub(crate) fn outbox(messages: usize, bytes: usize) -> Arc<Outbox> {
        Arc::new(Outbox::new(Uuid::new_v4(), &Limits::small(messages, bytes)))
    }

    pub(crate) fn delivery(text: &str) -> Delivery {
        Delivery { id: Uuid::new_v4(), sender: Uuid::nil(), text: text.into() }
    }

    fn push(outbox: &Outbox, text: &str) -> Pushed {
        outbox.push(Instant::now(), delivery(text), Uuid::nil(), false)
    }

    #[test]
    fn too_many_messages_or_bytes_close_a_slow_reader() {
        for outbox in [outbox(2, 1000), outbox(1000, 6)] {
            assert_eq!(push(&outbox, "abc"), Pushed::Taken);
            assert_eq!(push(&outbox, "abc"), Pushed::Taken);
            assert!(!outbox.must_end());
            assert_eq!(push(&outbox, "a"), Pushed::Refused);
            assert!(outbox.must_end());
            assert_eq!(outbox.take(9).close, Some(CloseOrder::SlowReader));
            assert_eq!(push(&outbox, "a"), Pushed::Refused);
        }
    }

    #[test]
    fn room_taken_out_can_be_filled_again() {
        let outbox = outbox(2, 4);
        for _ in 0..10 {
            assert_eq!(push(&outbox, "ab"), Pushed::Taken);
            assert_eq!(push(&outbox, "cd"), Pushed::Taken);
            assert_eq!(outbox.take(1).deliveries.len(), 1);
            assert_eq!(outbox.take(1).deliveries.len(), 1);
        }
    }

    #[test]
    fn a_drain_lets_waiting_messages_out_first() {
        let outbox = outbox(9, 99);
        push(&outbox, "a");
        push(&outbox, "b");
        outbox.close(CloseOrder::Drain);
        assert_eq!(outbox.take(1).close, None);
        assert_eq!(outbox.take(1).close, Some(CloseOrder::Drain));
        outbox.close(CloseOrder::Stop);
        assert_eq!(outbox.take(1).close, Some(CloseOrder::Stop));
    }

    #[test]
    fn a_reply_is_given_exactly_once_even_when_forgotten() {
        let outbox = outbox(1, 1);
        ReplyTo::new(outbox.clone(), Uuid::nil()).answer(Outcome::Handed);
        drop(ReplyTo::new(outbox.clone(), Uuid::nil()));
        let outcomes: Vec<_> = outbox.take(0).answers.iter().map(|answer| answer.outcome).collect();
        assert_eq!(outcomes, [Outcome::Handed, Outcome::Unreachable]);
    }
}
