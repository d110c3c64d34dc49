//! Owns what waits to be written to one session: messages, answers, and the order to close.
//!
//! Filled from any task without waiting, emptied by the session's own. Bounded on all sides:
//! messages by number and bytes, answers by the number of unanswered sends. The outbox of a session that can be resumed
//! outlives its connections, keeps what the client has not acknowledged, and numbers it ([`log`]).

mod answers;
pub mod budget;
pub mod copy;
pub mod log;
mod recent;
mod requests;
mod resumable;
mod shelf;
mod standby;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;

pub use self::answers::{Answer, Begun, Outcome, ReplyTo};
use self::log::{Log, Position};
use self::recent::Recent;
pub use self::resumable::Condition;
use self::resumable::Resumable;
use self::shelf::{Bounded, Shelf, cost};
use crate::config::Limits;
use crate::outbox::budget::{Budget, Share};
use crate::transport::envelope::{Decision, Number, Place, Tag};
use crate::transport::inbox::{Arrival, Due, Inbox};
use crate::transport::peers;

/// A message for a session's client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message's id, the same on every copy.
    pub id: Uuid,
    /// Who sent it.
    pub sender: Uuid,
    /// What they sent.
    pub text: Arc<str>,
}

impl Delivery {
    /// Whether its sender may ask for the same again by another node: it can resume its session there.
    pub fn may_come_again(&self) -> bool {
        self.id.get_version_num() == crate::broker::REPEATABLE
    }
}

/// Why the gateway ends a session, or its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseOrder {
    /// The node drains: 1012.
    Drain,
    /// The node stops now: 1001.
    Stop,
    /// Its oldest message was not taken in time: 1013.
    SlowReader,
    /// The session goes on over a newer connection: 4001.
    TakenOver,
    /// The session goes on elsewhere, and its client is to look for it: 1012.
    Moved,
}

impl CloseOrder {
    /// Whether nothing more is to be written.
    fn is_immediate(self) -> bool {
        self != Self::Drain
    }
}

/// Tells the connections of one session apart, the newest being the highest. A session that can't be resumed has one.
pub type Attachment = u32;

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
    recent: Option<Box<Recent>>,
    resumable: Option<Box<Resumable>>,
    answers: Vec<Answer>,
    close: Option<CloseOrder>,
    /// Nothing is taken any more: what is in here is all that will be written.
    sealed: bool,
    subscribed: bool,
    /// Bytes that the session has taken out and is writing.
    in_hand: usize,
    /// Since when the session has taken nothing though there is something: its socket, or the client where that says so.
    behind_since: Option<Instant>,
}

/// What a session takes out at a time.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Answers first: they are what the client waits for.
    pub answers: Vec<Answer>,
    /// Messages, in the order of arrival.
    pub deliveries: Vec<Delivery>,
    /// The number of the first of them, in a session that can be resumed; the others follow it.
    pub first: Option<Position>,
    /// The order to close, once everything before it is written.
    pub close: Option<CloseOrder>,
}

impl Inner {
    fn new(shelf: Shelf) -> Self {
        Self {
            shelf,
            inbox: None,
            recent: None,
            resumable: None,
            answers: Vec::new(),
            close: None,
            sealed: false,
            subscribed: false,
            in_hand: 0,
            behind_since: None,
        }
    }

    fn discard(&mut self) -> usize {
        self.sealed = true;
        self.inbox = None;
        if let Some(log) = self.log_mut() {
            log.clear();
        }
        self.shelf.clear()
    }

    fn log(&self) -> Option<&Log> {
        self.resumable.as_ref().map(|resumable| &resumable.log)
    }

    fn log_mut(&mut self) -> Option<&mut Log> {
        self.resumable.as_mut().map(|resumable| &mut resumable.log)
    }

    fn has_waited(&self, since: Instant) -> bool {
        self.log().is_some_and(|log| log.detached_since == Some(since) && !log.moving)
    }

    fn is_displaced(&self, attachment: Attachment) -> bool {
        self.log().is_some_and(|log| log.attachment != attachment)
    }

    /// Messages that may be written and are not.
    fn writable(&self) -> usize {
        match self.log() {
            None => self.shelf.deliveries.len(),
            Some(log) if log.moving => 0, // They are written elsewhere.
            Some(log) => log.writable().saturating_sub(log.written) as usize,
        }
    }

    fn seal(&mut self) -> bool {
        let unwritten = self.writable();
        self.sealed = true;
        unwritten == 0
    }

    fn take_deliveries(&mut self, count: usize) -> (Vec<Delivery>, Option<Position>) {
        let Some(Resumable { log, .. }) = self.resumable.as_deref_mut() else {
            let deliveries: Vec<_> = self.shelf.deliveries.drain(..count).collect();
            self.shelf.bytes -= deliveries.iter().map(|delivery| delivery.text.len()).sum::<usize>();
            self.in_hand += deliveries.iter().map(cost).sum::<usize>();
            return (deliveries, None);
        };
        let at = (log.written - log.had) as usize;
        let deliveries = self.shelf.deliveries.range(at..at + count).cloned().collect();
        let first = log.written + 1;
        log.written += count as u64;
        if count > 0 {
            log.unacknowledged_since.get_or_insert_with(Instant::now);
        }
        (deliveries, Some(first))
    }
}

impl Outbox {
    /// An empty outbox for `client`, whose session ends with its connection.
    pub fn new(client: Uuid, limits: &Limits, budget: &Arc<Budget>) -> Self {
        Self::with(client, Inner::new(Shelf::new(Share::new(budget.clone()))), limits)
    }

    fn with(client: Uuid, inner: Inner, limits: &Limits) -> Self {
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

    fn bounded<'a>(&self, inner: &'a mut Inner, tag: Tag) -> (Bounded<'a>, &'a mut Option<Box<Inbox<Delivery>>>) {
        let Inner { shelf, inbox, recent, resumable, .. } = inner;
        let log = resumable.as_mut().map(|resumable| &mut resumable.log);
        let (max_messages, max_bytes) = (self.max_messages, self.max_bytes);
        (Bounded { shelf, log, recent, tag, max_messages, max_bytes }, inbox)
    }

    /// A message of `sender` by the node `tag` has come; what its node is to be told now goes to `due`. `None` when
    /// nothing is taken any more. Returns as well whether the standby has to be given something.
    pub fn arrive(
        &self,
        lane: (Tag, Uuid),
        place: Place,
        is_wanted: impl FnOnce() -> bool,
        make: impl FnOnce() -> Delivery,
        due: &mut Vec<Due>,
    ) -> Option<(Arrival, bool)> {
        let mut inner = self.lock();
        if inner.resumable.as_ref().is_some_and(|resumable| resumable.waits) {
            return Some((Arrival::Waits, false));
        }
        if inner.sealed {
            return None;
        }
        let before = (inner.shelf.deliveries.len(), due.len());
        let (tag, sender) = lane;
        let (mut room, inbox) = self.bounded(&mut inner, tag);
        let arrival = inbox.get_or_insert_default().arrive(lane, place, is_wanted, make, &mut room, due);
        if let Some(log) = inner.log() {
            // The word of two nodes is needed: the standby gives it, or this node once the standby has it.
            let is_told = |due: &Due| due.decision != Decision::Taken || !log.is_unconfirmed(tag, sender, due.number);
            let decided = due.split_off(before.1);
            due.extend(decided.into_iter().filter(is_told));
        }
        let recorded = inner.log().is_some_and(Log::has_records);
        let wake = inner.shelf.deliveries.len() > before.0;
        if wake {
            inner.behind_since.get_or_insert_with(Instant::now);
        }
        drop(inner);
        if wake {
            self.wake.notify_one();
        }
        Some((arrival, recorded))
    }

    /// Takes a message that comes once and in order by itself: whether there was room, or `None` when nothing is taken
    /// any more.
    pub fn admit(&self, delivery: Delivery) -> Option<bool> {
        use crate::transport::inbox::Room;
        let mut inner = self.lock();
        if inner.sealed {
            return None;
        }
        let admitted = self.bounded(&mut inner, 0).0.admit(0, delivery);
        if admitted {
            inner.behind_since.get_or_insert_with(Instant::now);
        }
        drop(inner);
        self.wake.notify_one();
        Some(admitted)
    }

    /// Forgets the lanes of which their node wants nothing any more (`floor` is that node's), and messages that came
    /// longer ago than `window`. Returns whether the standby is to be told what the client has.
    pub fn prune(&self, now: Instant, window: Duration, floor: impl Fn(Tag) -> Option<Number>) -> bool {
        let mut inner = self.lock();
        if inner.recent.as_mut().is_some_and(|recent| recent.forget(now, window)) {
            inner.recent = None;
        }
        if let Some(resumable) = &mut inner.resumable {
            let requests = &mut resumable.requests;
            if requests.as_mut().is_some_and(|requests| requests.forget(now, window)) {
                *requests = None;
            }
        }
        // The session may go to a node that has not heard yet what is wanted no more.
        let rest = if inner.resumable.is_some() { peers::FORGET } else { Duration::ZERO };
        let (mut room, inbox) = self.bounded(&mut inner, 0);
        if let Some(lanes) = inbox {
            lanes.prune(now, rest, floor, &mut room);
            if lanes.is_empty() {
                *inbox = None;
            }
        }
        inner.log().is_some_and(Log::owes_had)
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

    /// Whether a client may be told of it: messages for it reach this node, and it has its standby if it is to have one.
    pub fn is_ready(&self) -> bool {
        let inner = self.lock();
        let standby = inner.log().and_then(|log| log.standby);
        inner.subscribed && standby.is_none_or(|standby| standby.opened)
    }

    /// Takes answers, up to `most` messages, and, when nothing else is left, the order to close.
    pub fn take(&self, attachment: Attachment, most: usize) -> Batch {
        let mut inner = self.lock();
        if inner.is_displaced(attachment) {
            drop(inner);
            self.wake.notify_one(); // The wake-up was another connection's.
            return Batch { close: Some(self.displacement()), ..Batch::default() };
        }
        let count = inner.writable().min(most);
        let (deliveries, first) = inner.take_deliveries(count);
        let answers = inner.answers.drain(..).collect();
        let rest = inner.writable() > 0;
        if count > 0 && inner.resumable.is_none() {
            inner.behind_since = Some(Instant::now());
        }
        let close = inner.close.filter(|close| close.is_immediate() || !rest);
        drop(inner);
        if rest {
            self.wake.notify_one();
        }
        Batch { answers, deliveries, first, close }
    }

    /// What was taken out is written.
    pub fn written(&self) {
        let mut inner = self.lock();
        let written = std::mem::take(&mut inner.in_hand);
        inner.shelf.share.shrink(written);
        if inner.resumable.is_none() && inner.writable() == 0 {
            inner.behind_since = None;
        }
    }

    /// Takes nothing more from now on. Returns whether all that was taken has been written as well.
    pub fn seal(&self) -> bool {
        self.lock().seal()
    }

    /// The same, unless something waits for the standby's word: its sender may have been told by the standby that it is here,
    /// and it is written once this node has heard that too.
    pub fn seal_settled(&self) -> bool {
        let mut inner = self.lock();
        inner.log().is_none_or(|log| log.writable() == log.last) && inner.seal()
    }

    /// Takes nothing more, and throws away what is left. Returns the number of messages that nobody will write.
    pub fn discard(&self) -> usize {
        self.lock().discard()
    }

    /// The same, if it [has waited](Self::has_waited) since `since`; else `None`.
    pub fn discard_waiting(&self, since: Instant) -> Option<usize> {
        let mut inner = self.lock();
        inner.has_waited(since).then(|| inner.discard())
    }

    /// Since when the session has taken nothing, and how many bytes there are, if there are any.
    pub fn backlog(&self) -> Option<(Instant, usize)> {
        let inner = self.lock();
        // What waits for somebody who is away was acknowledged: it goes last of all.
        let is_away = inner.log().is_some_and(|log| log.detached_since.is_some());
        let since = inner.behind_since.filter(|_| !is_away)?;
        Some((since, inner.shelf.share.bytes()))
    }

    /// Whether an order that lets nothing more be written demands an end, whatever is being written.
    pub fn must_end(&self, attachment: Attachment) -> bool {
        let inner = self.lock();
        inner.close.is_some_and(CloseOrder::is_immediate) || inner.is_displaced(attachment)
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

#[cfg(test)]
pub(crate) mod tests;
