//! Owns what waits to be written to one session: messages, answers, and the order to close.
//!
//! Filled from any task without waiting, emptied by the session's own. Bounded on all sides:
//! messages by number and bytes, answers by the number of unanswered sends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::budget::{Budget, Share};
use crate::config::Limits;
use crate::transport::envelope::{Number, Place, Tag};
use crate::transport::inbox::{Arrival, Due, Inbox, Room};

/// No sender has more than this part of an outbox, however fast it writes.
const SHARE: usize = 4;

/// Bytes that a message takes, its text and what stands around it.
fn cost(message: &Delivery) -> usize {
    message.text.len() + size_of::<Delivery>()
}

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
    /// The receiver's outbox is full.
    Busy,
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
    /// Its oldest message was not taken in time: 1013.
    SlowReader,
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

#[derive(Debug)]
struct Inner {
    shelf: Shelf,
    /// What has been decided about messages; most sessions get none for most of the time.
    inbox: Option<Box<Inbox<Delivery>>>,
    answers: VecDeque<Answer>,
    close: Option<CloseOrder>,
    /// Nothing is taken any more: what is in here is all that will be written.
    sealed: bool,
    subscribed: bool,
    /// Bytes that the session has taken out and is writing.
    in_hand: usize,
    /// Since when the session has taken nothing though there is something.
    behind_since: Option<Instant>,
}

/// The messages of an outbox, and those that wait for their predecessors.
#[derive(Debug)]
struct Shelf {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
    waiting: usize,
    waiting_bytes: usize,
    /// Of what the node has for all outboxes.
    share: Share,
}

/// A shelf with its bounds.
struct Bounded<'a> {
    shelf: &'a mut Shelf,
    max_messages: usize,
    max_bytes: usize,
}

impl Bounded<'_> {
    /// Whether one sender has so much in here that the rest is for others.
    fn has_its_share(&self, sender: Uuid, bytes: usize) -> bool {
        let (most, most_bytes) = (self.max_messages.div_ceil(SHARE), self.max_bytes.div_ceil(SHARE));
        if self.shelf.deliveries.len() < most && self.shelf.bytes + bytes <= most_bytes {
            return false;
        }
        let mine = self.shelf.deliveries.iter().filter(|delivery| delivery.sender == sender);
        let (count, sum) = mine.fold((0, 0), |(count, sum), delivery| (count + 1, sum + delivery.text.len()));
        // One message always fits, however long the operator lets them be.
        count >= most || count > 0 && sum + bytes > most_bytes
    }
}

impl Room<Delivery> for Bounded<'_> {
    fn may_wait(&mut self, message: &Delivery) -> bool {
        let bytes = self.shelf.waiting_bytes + message.text.len();
        let fits =
            self.shelf.waiting < self.max_messages && bytes <= self.max_bytes && self.shelf.share.grow(cost(message));
        if fits {
            self.shelf.waiting += 1;
            self.shelf.waiting_bytes = bytes;
        }
        fits
    }

    fn waits_no_more(&mut self, message: &Delivery) {
        self.shelf.waiting -= 1;
        self.shelf.waiting_bytes -= message.text.len();
        self.shelf.share.shrink(cost(message));
    }

    fn admit(&mut self, message: Delivery) -> bool {
        let bytes = message.text.len();
        let fits = self.shelf.deliveries.len() < self.max_messages
            && self.shelf.bytes + bytes <= self.max_bytes
            && !self.has_its_share(message.sender, bytes)
            && self.shelf.share.grow(cost(&message));
        if fits {
            self.shelf.bytes += bytes;
            self.shelf.deliveries.push_back(message);
        }
        fits
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
    pub fn new(client: Uuid, limits: &Limits, budget: &Arc<Budget>) -> Self {
        let share = Share::new(budget.clone());
        let shelf = Shelf { deliveries: VecDeque::new(), bytes: 0, waiting: 0, waiting_bytes: 0, share };
        let inner = Inner {
            shelf,
            inbox: None,
            answers: VecDeque::new(),
            close: None,
            sealed: false,
            subscribed: false,
            in_hand: 0,
            behind_since: None,
        };
        Self {
            client,
            max_messages: limits.outbox_messages,
            max_bytes: limits.outbox_bytes,
            inner: Mutex::new(inner),
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

    /// A message of `sender` by the node `tag` has come; what is decided now goes to `due`. `None` when nothing is
    /// taken any more.
    pub fn arrive(
        &self,
        lane: (Tag, Uuid),
        place: Place,
        is_wanted: impl FnOnce() -> bool,
        make: impl FnOnce() -> Delivery,
        due: &mut Vec<Due>,
    ) -> Option<Arrival> {
        let mut inner = self.lock();
        if inner.sealed {
            return None;
        }
        let Inner { shelf, inbox, .. } = &mut *inner;
        let before = shelf.deliveries.len();
        let mut room = Bounded { shelf, max_messages: self.max_messages, max_bytes: self.max_bytes };
        let arrival = inbox.get_or_insert_default().arrive(lane, place, is_wanted, make, &mut room, due);
        let wake = inner.shelf.deliveries.len() > before;
        if wake {
            inner.behind_since.get_or_insert_with(Instant::now);
        }
        drop(inner);
        if wake {
            self.wake.notify_one();
        }
        Some(arrival)
    }

    /// Takes a message that comes once and in order by itself: whether there was room, or `None` when nothing is taken
    /// any more.
    pub fn admit(&self, delivery: Delivery) -> Option<bool> {
        let mut inner = self.lock();
        if inner.sealed {
            return None;
        }
        let (max_messages, max_bytes) = (self.max_messages, self.max_bytes);
        let admitted = Bounded { shelf: &mut inner.shelf, max_messages, max_bytes }.admit(delivery);
        if admitted {
            inner.behind_since.get_or_insert_with(Instant::now);
        }
        drop(inner);
        self.wake.notify_one();
        Some(admitted)
    }

    /// Forgets the lanes of which their node wants nothing any more: `floor` is that node's.
    pub fn prune(&self, floor: impl Fn(Tag) -> Option<Number>) {
        let mut inner = self.lock();
        let Inner { shelf, inbox, .. } = &mut *inner;
        let Some(lanes) = inbox else { return };
        lanes.prune(floor, &mut Bounded { shelf, max_messages: self.max_messages, max_bytes: self.max_bytes });
        if lanes.is_empty() {
            *inbox = None;
        }
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
        let mut inner = self.lock();
        let count = inner.shelf.deliveries.len().min(most);
        let deliveries: Vec<_> = inner.shelf.deliveries.drain(..count).collect();
        inner.shelf.bytes -= deliveries.iter().map(|delivery| delivery.text.len()).sum::<usize>();
        let answers = inner.answers.drain(..).collect();
        let rest = !inner.shelf.deliveries.is_empty();
        if count > 0 {
            inner.in_hand += deliveries.iter().map(cost).sum::<usize>();
            inner.behind_since = Some(Instant::now());
        }
        let immediate = matches!(inner.close, Some(CloseOrder::SlowReader | CloseOrder::Stop));
        let close = inner.close.filter(|_| immediate || !rest);
        let subscribed = inner.subscribed;
        drop(inner);
        if rest {
            self.wake.notify_one();
        }
        Batch { answers, deliveries, close, subscribed }
    }

    /// What was taken out is written.
    pub fn written(&self) {
        let mut inner = self.lock();
        let written = std::mem::take(&mut inner.in_hand);
        inner.shelf.share.shrink(written);
        if inner.shelf.deliveries.is_empty() {
            inner.behind_since = None;
        }
    }

    /// Takes nothing more from now on. Returns whether all that was taken has been written as well.
    pub fn seal(&self) -> bool {
        let mut inner = self.lock();
        inner.sealed = true;
        inner.shelf.deliveries.is_empty()
    }

    /// Takes nothing more, and throws away what is left. Returns the number of messages that nobody will write.
    pub fn discard(&self) -> usize {
        let mut inner = self.lock();
        inner.sealed = true;
        inner.inbox = None;
        let shelf = &mut inner.shelf;
        shelf.share.shrink(shelf.share.bytes());
        (shelf.bytes, shelf.waiting, shelf.waiting_bytes) = (0, 0, 0);
        std::mem::take(&mut shelf.deliveries).len()
    }

    /// Since when the session has taken nothing, and how many bytes there are, if there are any.
    pub fn backlog(&self) -> Option<(Instant, usize)> {
        let inner = self.lock();
        Some((inner.behind_since?, inner.shelf.share.bytes()))
    }

    /// Whether a slow reader or a hard stop demands an end, whatever is being written.
    pub fn must_end(&self) -> bool {
        matches!(self.lock().close, Some(CloseOrder::SlowReader | CloseOrder::Stop))
    }

    /// Gives back the memory of a past burst.
    pub fn shrink(&self) {
        let mut inner = self.lock();
        inner.shelf.deliveries.shrink_to_fit();
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

    use crate::transport::envelope::Decision;

    pub(crate) fn unbounded() -> Arc<Budget> {
        Budget::new(usize::MAX, prometheus::IntGauge::new("bytes", "for tests").unwrap())
    }

    pub(crate) fn outbox(messages: usize, bytes: usize) -> Arc<Outbox> {
        Arc::new(Outbox::new(Uuid::new_v4(), &Limits::small(messages, bytes), &unbounded()))
    }

    pub(crate) fn delivery(text: &str) -> Delivery {
        Delivery { id: Uuid::new_v4(), sender: Uuid::nil(), text: text.into() }
    }

    pub(crate) fn place(number: Number) -> Place {
        Place { number, previous: 0, floor: number, attempt: 0 }
    }

    fn push(outbox: &Outbox, sender: u128, number: Number, text: &str) -> Decision {
        let mut due = Vec::new();
        let sender = Uuid::from_u128(sender);
        let make = || Delivery { sender, ..delivery(text) };
        assert!(outbox.arrive((1, sender), place(number), || true, make, &mut due).is_some());
        due[0].decision
    }

    #[test]
    fn a_full_outbox_closes_nobody_and_has_room_again() {
        for outbox in [outbox(2, 1000), outbox(1000, 6)] {
            assert_eq!(push(&outbox, 1, 1, "abc"), Decision::Taken);
            assert_eq!(push(&outbox, 2, 2, "abc"), Decision::Taken);
            assert_eq!(push(&outbox, 3, 3, "a"), Decision::Full);
            assert!(!outbox.must_end());
            assert_eq!(outbox.take(1).deliveries.len(), 1);
            assert_eq!(push(&outbox, 3, 4, "a"), Decision::Taken);
        }
    }

    #[test]
    fn one_sender_leaves_room_for_others() {
        let outbox = outbox(16, 1600);
        for number in 1..=4 {
            assert_eq!(push(&outbox, 1, number, "a"), Decision::Taken);
        }
        assert_eq!(push(&outbox, 1, 5, "a"), Decision::Full);
        for sender in 2..=4 {
            assert_eq!(push(&outbox, sender, 5 + sender as u64, &"a".repeat(400)[..390]), Decision::Taken);
        }
    }

    #[test]
    fn a_drain_lets_waiting_messages_out_first_and_what_comes_after_the_seal_is_not_taken() {
        let outbox = outbox(9, 99);
        push(&outbox, 1, 1, "a");
        push(&outbox, 2, 2, "b");
        outbox.close(CloseOrder::Drain);
        assert_eq!(outbox.take(1).close, None);
        assert!(!outbox.seal());
        assert_eq!(outbox.arrive((1, Uuid::nil()), place(3), || true, || delivery("c"), &mut Vec::new()), None);
        assert_eq!(outbox.take(1).close, Some(CloseOrder::Drain));
        assert!(outbox.seal());
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
