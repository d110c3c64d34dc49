//! Owns what waits to be written to one session: messages, answers, and the order to close.
//!
//! Filled from any task without waiting, emptied by the session's own. Bounded on all sides:
//! messages by number and bytes, answers by the number of unanswered sends. The outbox of a session that can be resumed
//! outlives its connections, keeps what the client has not acknowledged, and numbers it ([`log`]).

pub mod log;
mod recent;
mod requests;
mod shelf;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::log::{Log, Origin, Position};
use self::recent::Recent;
use self::requests::Requests;
use self::shelf::{Bounded, Shelf, cost};
use crate::budget::{Budget, Share};
use crate::config::Limits;
use crate::transport::envelope::{Decision, Number, Place, Tag};
use crate::transport::inbox::{Arrival, Due, Inbox};
use crate::transport::record::{Opening, Record, Taken};

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

/// What is to be done about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is new: it is to be published.
    New,
    /// It is under way already, and will be answered.
    UnderWay,
    /// It was acknowledged before.
    Acknowledged,
}

/// How a session is that can be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether there is a connection.
    pub is_attached: bool,
    /// Whether another node has what this one has.
    pub has_standby: bool,
    /// Messages that are kept: the client has not said that it has them.
    pub messages: usize,
    /// What they take of the budget.
    pub bytes: usize,
}

/// The outbox of one session.
#[derive(Debug)]
pub struct Outbox {
    client: Uuid,
    max_messages: usize,
    max_bytes: usize,
    inner: Mutex<Inner>,
    wake: Notify,
    anew: Option<Instant>,
}

#[derive(Debug)]
struct Inner {
    shelf: Shelf,
    /// What has been decided about messages; most sessions get none for most of the time.
    inbox: Option<Box<Inbox<Delivery>>>,
    recent: Option<Box<Recent>>,
    resumable: Option<Box<Resumable>>,
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

/// What a session has beside if it can be resumed.
#[derive(Debug)]
struct Resumable {
    log: Log,
    requests: Requests,
    /// Cancelled when a newer connection comes.
    displaced: CancellationToken,
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
    fn log(&self) -> Option<&Log> {
        self.resumable.as_ref().map(|resumable| &resumable.log)
    }

    fn log_mut(&mut self) -> Option<&mut Log> {
        self.resumable.as_mut().map(|resumable| &mut resumable.log)
    }

    fn is_displaced(&self, attachment: Attachment) -> bool {
        self.log().is_some_and(|log| log.attachment != attachment)
    }

    /// Messages that may be written and are not.
    fn writable(&self) -> usize {
        match self.log() {
            None => self.shelf.deliveries.len(),
            Some(_) if self.sealed => 0, // It moves: they are written elsewhere.
            Some(log) => log.writable().saturating_sub(log.written) as usize,
        }
    }
}

impl Outbox {
    /// An empty outbox for `client`, whose session ends with its connection.
    pub fn new(client: Uuid, limits: &Limits, budget: &Arc<Budget>) -> Self {
        let inner = Inner {
            shelf: Shelf::new(Share::new(budget.clone())),
            inbox: None,
            recent: None,
            resumable: None,
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
            anew: None,
        }
    }

    /// The same for a session that can be resumed, and has been `generation` times.
    pub fn resumable(client: Uuid, generation: u64, limits: &Limits, budget: &Arc<Budget>) -> Self {
        let mut outbox = Self::new(client, limits, budget);
        let inner = outbox.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.resumable = Some(Box::new(Resumable {
            log: Log::new(generation),
            requests: Requests::default(),
            displaced: CancellationToken::new(),
        }));
        outbox
    }

    /// The same for one that had such a session before, which nobody vouches for: it had come to `generation`.
    pub fn anew(now: Instant, client: Uuid, generation: u64, limits: &Limits, budget: &Arc<Budget>) -> Self {
        Self { anew: Some(now), ..Self::resumable(client, log::anew(generation), limits, budget) }
    }

    /// Since when it is one whose client may have been shown more than is known of here.
    pub fn begun_anew(&self) -> Option<Instant> {
        self.anew
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
            resumable.requests.forget(now, window);
        }
        let (mut room, inbox) = self.bounded(&mut inner, 0);
        if let Some(lanes) = inbox {
            lanes.prune(floor, &mut room);
            if lanes.is_empty() {
                *inbox = None;
            }
        }
        inner.log().is_some_and(Log::owes_had)
    }

    fn answer(&self, answer: Answer) {
        let mut inner = self.lock();
        let is_wanted = match &mut inner.resumable {
            Some(resumable) => resumable.requests.answered(answer.request, answer.outcome),
            None => true,
        };
        if is_wanted {
            inner.answers.push_back(answer);
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// The client asks for something, perhaps for the second time.
    pub fn begin(&self, request: Uuid) -> Begun {
        match &mut self.lock().resumable {
            Some(resumable) => resumable.requests.begin(request),
            None => Begun::New,
        }
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
            return Batch { close: Some(CloseOrder::TakenOver), ..Batch::default() };
        }
        let count = inner.writable().min(most);
        let (deliveries, first) = inner.take_deliveries(count);
        let answers = inner.answers.drain(..).collect();
        let rest = inner.writable() > 0;
        if count > 0 {
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
        if inner.writable() == 0 {
            inner.behind_since = None;
        }
    }

    /// Takes nothing more from now on. Returns whether all that was taken has been written as well.
    pub fn seal(&self) -> bool {
        let mut inner = self.lock();
        let unwritten = inner.writable();
        inner.sealed = true;
        unwritten == 0
    }

    /// Takes nothing more, and throws away what is left. Returns the number of messages that nobody will write.
    pub fn discard(&self) -> usize {
        let mut inner = self.lock();
        inner.sealed = true;
        inner.inbox = None;
        if let Some(log) = inner.log_mut() {
            log.clear();
        }
        inner.shelf.clear()
    }

    /// Since when the session has taken nothing, and how many bytes there are, if there are any.
    pub fn backlog(&self) -> Option<(Instant, usize)> {
        let inner = self.lock();
        let since = match inner.log() {
            None => inner.behind_since,
            // What waits for somebody who is away was acknowledged: it goes last of all.
            Some(log) if log.detached_since.is_some() => None,
            Some(log) => log.unacknowledged_since,
        };
        Some((since?, inner.shelf.share.bytes()))
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

/// What concerns sessions that can be resumed alone.
impl Outbox {
    /// Whether it can be.
    pub fn is_resumable(&self) -> bool {
        self.lock().resumable.is_some()
    }

    /// How often it has moved or got a new socket.
    pub fn generation(&self) -> u64 {
        self.lock().log().map_or(0, |log| log.generation)
    }

    /// Whether another node has what this one has.
    pub fn has_standby(&self) -> bool {
        self.lock().log().is_some_and(|log| log.standby.is_some_and(|standby| standby.opened))
    }

    /// How many messages are kept for the client.
    pub fn kept(&self) -> usize {
        self.lock().shelf.deliveries.len()
    }

    /// How it is, if it can be resumed, and is here for good: one that moves counts elsewhere.
    pub fn condition(&self) -> Option<Condition> {
        let inner = self.lock();
        let log = inner.log().filter(|log| !log.moving)?;
        Some(Condition {
            is_attached: log.detached_since.is_none(),
            has_standby: log.standby.is_some_and(|standby| standby.opened),
            messages: inner.shelf.deliveries.len(),
            bytes: inner.shelf.share.bytes(),
        })
    }

    /// Whether a token of `generation` still opens it: a client that has said something over a newer connection has a
    /// newer one. `false` as well when it is about to end.
    pub fn opens_to(&self, generation: u64) -> bool {
        let inner = self.lock();
        !inner.sealed && inner.log().is_some_and(|log| generation >= log.proven)
    }

    /// A new connection, whose client has everything up to `seq`; an older one is told to end, and so will this one be
    /// by the token. What was answered and not heard is asked for again. `None` when the session is on its way to another
    /// node, or over.
    pub fn attach(&self, now: Instant, seq: Position) -> Option<(Attachment, CancellationToken)> {
        let mut inner = self.lock();
        if inner.sealed {
            return None;
        }
        let Inner { shelf, resumable, answers, close, .. } = &mut *inner;
        let Resumable { log, requests, displaced } = resumable.as_deref_mut()?;
        shelf.forget(log.attach(now, seq));
        requests.disconnected();
        answers.clear();
        if matches!(close, Some(CloseOrder::TakenOver | CloseOrder::Moved)) {
            *close = None;
        }
        let attachment = log.attachment;
        std::mem::take(displaced).cancel();
        let token = displaced.clone();
        drop(inner);
        self.wake.notify_one();
        Some((attachment, token))
    }

    /// The connection is gone. Returns whether it was the newest: the session is without one then.
    pub fn detach(&self, now: Instant, attachment: Attachment) -> bool {
        let mut inner = self.lock();
        inner.behind_since = None;
        let Some(Resumable { log, requests, .. }) = inner.resumable.as_deref_mut() else { return false };
        if log.attachment != attachment || log.moving {
            return false;
        }
        log.detached_since = Some(now);
        log.unacknowledged_since = None;
        requests.disconnected();
        inner.answers.clear();
        true
    }

    /// Since when there is no connection, if there is none.
    pub fn detached_since(&self) -> Option<Instant> {
        self.lock().log().and_then(|log| log.detached_since)
    }

    /// Since when the client has not acknowledged what was written to it.
    pub fn unacknowledged_since(&self) -> Option<Instant> {
        self.lock().log().and_then(|log| log.unacknowledged_since)
    }

    /// The client of this connection has everything up to `position`.
    pub fn had(&self, now: Instant, attachment: Attachment, position: Position) {
        let mut inner = self.lock();
        if inner.is_displaced(attachment) {
            return;
        }
        if let Some(log) = inner.log_mut() {
            let gone = log.had(now, position);
            inner.shelf.forget(gone);
        }
    }

    /// The client of this connection has said something: it has the newest token.
    pub fn prove(&self, attachment: Attachment) {
        let mut inner = self.lock();
        if !inner.is_displaced(attachment)
            && let Some(log) = inner.log_mut()
        {
            log.proven = log.generation;
        }
    }
}

/// What passes between a session's home and its standby.
impl Outbox {
    /// From now on `tag` is the standby, of this term. Returns what it has to be given, in order, each with the position
    /// that is confirmed once it has it.
    pub fn open_standby(&self, tag: Tag, term: u64) -> Vec<(Record, Uuid, Position)> {
        let mut inner = self.lock();
        let lanes = inner.inbox.as_ref().map(|inbox| inbox.taken().collect()).unwrap_or_default();
        let recent = inner.recent.as_ref().map(|recent| recent.all().collect()).unwrap_or_default();
        let Some(log) = inner.log_mut() else { return Vec::new() };
        log.set_standby(Some(tag), term);
        let (generation, had, last) = (log.generation, log.had, log.last);
        log.told = Some(had);
        let mut records = vec![(Record::Open(Opening { generation, had, last, lanes, recent }), Uuid::nil(), had)];
        records.extend(inner.next_records());
        records
    }

    /// There is no standby any more: this node's word is enough. Returns who waits for it.
    pub fn stand_alone(&self) -> Vec<Origin> {
        let mut inner = self.lock();
        let told = inner.log_mut().map(|log| log.set_standby(None, 0)).unwrap_or_default();
        drop(inner);
        self.wake.notify_one();
        told
    }

    /// The standby and its term, if there is one.
    pub fn standby(&self) -> Option<(Tag, u64)> {
        self.lock().log()?.standby.map(|standby| (standby.tag, standby.term))
    }

    /// What the standby has to be given now, as [`open_standby`](Self::open_standby) returns it.
    pub fn next_records(&self) -> Vec<(Record, Uuid, Position)> {
        self.lock().next_records()
    }

    /// The standby is to be told once more what the client has.
    pub fn tell_again(&self) {
        if let Some(log) = self.lock().log_mut() {
            log.told = None;
        }
    }

    /// What the standby does not know yet of what the client has, if there is anything.
    pub fn had_record(&self) -> Option<(u64, Record, Position)> {
        let mut inner = self.lock();
        let log = inner.log_mut()?;
        let standby = log.standby?;
        if !log.owes_had() {
            return None;
        }
        log.told = Some(log.had);
        Some((standby.term, Record::Had(log.had, log.generation), log.had))
    }

    /// The standby of `term` has everything up to `position`. Returns whom to tell.
    pub fn confirm(&self, term: u64, position: Position) -> Vec<Origin> {
        let mut inner = self.lock();
        let Some(log) = inner.log_mut() else { return Vec::new() };
        let told = log.confirm(term, position);
        drop(inner);
        self.wake.notify_one();
        told
    }

    /// Nothing is taken or written from now on: another node becomes its home. `false` if that is so already.
    pub fn freeze(&self) -> bool {
        let mut inner = self.lock();
        let Some(log) = inner.log_mut() else { return false };
        let first = !std::mem::replace(&mut log.moving, true);
        inner.sealed = true;
        first
    }

    /// That came to nothing: this node goes on, in this generation at least.
    pub fn thaw(&self, now: Instant, generation: u64) {
        let mut inner = self.lock();
        let Some(log) = inner.log_mut() else { return };
        log.generation = log.generation.max(generation);
        log.moving = false;
        log.detached_since = Some(now);
        inner.sealed = false;
    }

    /// Whether another node is becoming its home.
    pub fn is_moving(&self) -> bool {
        self.lock().log().is_some_and(|log| log.moving)
    }

    /// A standby's beginning, by what the home says.
    pub fn copy(client: Uuid, opening: Opening, limits: &Limits, budget: &Arc<Budget>) -> Self {
        let outbox = Self::resumable(client, opening.generation, limits, budget);
        let mut inner = outbox.lock();
        if let Some(log) = inner.log_mut() {
            (log.had, log.written, log.last) = (opening.had, opening.had, opening.had);
            log.complete_at = opening.last;
        }
        if !opening.lanes.is_empty() {
            let inbox = inner.inbox.get_or_insert_default();
            opening.lanes.into_iter().for_each(|(tag, sender, number)| inbox.learn(tag, sender, number));
        }
        if !opening.recent.is_empty() {
            inner.recent.get_or_insert_default().learn(opening.recent);
        }
        inner.sealed = true; // Nobody but the home adds to it.
        drop(inner);
        outbox
    }

    /// Whether it has all that had been taken when it began: else it is of no use without the home.
    pub fn is_complete(&self) -> bool {
        self.lock().log().is_some_and(|log| log.last >= log.complete_at)
    }

    /// The home has taken a message. `false` when that can't be kept: one before it is missing, or there is no room.
    pub fn copy_taken(&self, id: Uuid, taken: Taken) -> bool {
        let mut inner = self.lock();
        let Taken { position, had, origin, sender, text } = taken;
        let delivery = Delivery { id, sender, text: text.into() };
        let Inner { shelf, inbox, recent, resumable, .. } = &mut *inner;
        let Some(Resumable { log, .. }) = resumable.as_deref_mut() else { return false };
        if position != log.last + 1 || !shelf.put(&delivery) {
            return false;
        }
        log.last = position;
        if origin.tag != 0 {
            inbox.get_or_insert_default().learn(origin.tag, sender, origin.number);
        }
        if delivery.may_come_again() {
            recent.get_or_insert_default().note(id, position);
        }
        shelf.deliveries.push_back(delivery);
        shelf.forget(log.copy_had(had));
        true
    }

    /// The client has everything up to `had`, and the session's generation is this.
    pub fn copy_had(&self, had: Position, generation: u64) {
        let mut inner = self.lock();
        let Some(log) = inner.log_mut() else { return };
        log.generation = log.generation.max(generation);
        let gone = log.copy_had(had);
        inner.shelf.forget(gone);
    }

    /// This node is the home now, in this generation, and the client has no connection yet.
    pub fn promote(&self, now: Instant, generation: u64) {
        let mut inner = self.lock();
        inner.sealed = false;
        if let Some(log) = inner.log_mut() {
            log.generation = generation;
            log.detached_since = Some(now);
        }
    }
}

impl Inner {
    fn next_records(&mut self) -> Vec<(Record, Uuid, Position)> {
        let Some(Resumable { log, .. }) = self.resumable.as_deref_mut() else { return Vec::new() };
        let Some((_, positions)) = log.next_records() else { return Vec::new() };
        let had = log.had;
        let record = |position: Position| {
            let delivery = &self.shelf.deliveries[(position - had - 1) as usize];
            let nobody = Origin { tag: 0, sender: delivery.sender, number: 0 };
            let origin = log.origin(position).unwrap_or(nobody);
            let (sender, text) = (delivery.sender, (&*delivery.text).into());
            (Record::Message(Taken { position, had, origin, sender, text }), delivery.id, position)
        };
        positions.map(record).collect()
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
            assert!(!outbox.must_end(0));
            assert_eq!(outbox.take(0, 1).deliveries.len(), 1);
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
        assert_eq!(outbox.take(0, 1).close, None);
        assert!(!outbox.seal());
        assert!(outbox.arrive((1, Uuid::nil()), place(3), || true, || delivery("c"), &mut Vec::new()).is_none());
        assert_eq!(outbox.take(0, 1).close, Some(CloseOrder::Drain));
        assert!(outbox.seal());
        outbox.close(CloseOrder::Stop);
        assert_eq!(outbox.take(0, 1).close, Some(CloseOrder::Stop));
    }

    #[test]
    fn a_copy_is_not_even_made() {
        let outbox = outbox(9, 99);
        push(&outbox, 1, 1, "a");
        let make = || unreachable!("a copy was made");
        let copy = outbox.arrive((1, Uuid::from_u128(1)), place(1), || true, make, &mut Vec::new());
        assert_eq!(copy, Some((Arrival::Copy, false)));
    }

    #[test]
    fn a_reply_is_given_exactly_once_even_when_forgotten() {
        let outbox = outbox(1, 1);
        ReplyTo::new(outbox.clone(), Uuid::nil()).answer(Outcome::Handed);
        drop(ReplyTo::new(outbox.clone(), Uuid::nil()));
        let outcomes: Vec<_> = outbox.take(0, 0).answers.iter().map(|answer| answer.outcome).collect();
        assert_eq!(outcomes, [Outcome::Handed, Outcome::Unreachable]);
    }
}
