//! Owns what a session has beside if it can be resumed: connections that come and go, and what its client has.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use uuid::Uuid;

use super::budget::Budget;
use super::copy::Copy;
use super::log::{self, Log, Position};
use super::requests::Requests;
use super::shelf::Shelf;
use super::{Attachment, CloseOrder, Inner, Outbox};
use crate::config::Limits;

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

/// What a session has beside if it can be resumed.
#[derive(Debug)]
pub(super) struct Resumable {
    pub(super) log: Log,
    /// A copy has none, and most clients ask for little.
    pub(super) requests: Option<Box<Requests>>,
    /// Told when a newer connection comes than the one that there is.
    pub(super) displaced: Option<Arc<Notify>>,
    /// It may be elsewhere.
    pub(super) waits: bool,
    /// The newest connection began with an older token than the one before it had been given, which may be its client's still.
    pub(super) is_overruled: bool,
    /// When it began, if its client may have been shown more than is known of here.
    pub(super) anew: Option<Instant>,
    /// The client that is connected does not know of it: for that client the session ends with the connection.
    pub(super) is_plain: bool,
}

impl Resumable {
    fn new(log: Log) -> Box<Self> {
        Box::new(Self {
            log,
            requests: None,
            displaced: None,
            waits: false,
            is_overruled: false,
            anew: None,
            is_plain: false,
        })
    }
}

impl Outbox {
    /// An empty outbox for a session of `client` that can be resumed, and has been `generation` times.
    pub fn resumable(client: Uuid, generation: u64, limits: &Limits, budget: &Arc<Budget>) -> Self {
        let mut outbox = Self::new(client, limits, budget);
        let inner = outbox.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.resumable = Some(Resumable::new(Log::new(generation)));
        outbox
    }

    /// The same for one that had such a session before, which nobody vouches for: it had come to `generation`.
    pub fn anew(now: Instant, client: Uuid, generation: u64, limits: &Limits, budget: &Arc<Budget>) -> Self {
        let mut outbox = Self::resumable(client, log::anew(generation), limits, budget);
        let inner = outbox.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(resumable) = &mut inner.resumable {
            resumable.anew = Some(now);
        }
        outbox
    }

    /// What this node had of a session as its standby: it is the home now, in this generation, and the client has no
    /// connection yet.
    pub fn promoted(now: Instant, client: Uuid, generation: u64, copy: Copy, limits: &Limits) -> Self {
        let Copy { had, last, proven, deliveries, share, inbox, recent, .. } = copy;
        let mut log = Log::new(generation);
        (log.had, log.written, log.last, log.detached_since) = (had, had, last, Some(now));
        log.proven = proven;
        let mut resumable = Resumable::new(log);
        // Which numbers are wanted no more the node may have been told that was its home then, and this one not.
        resumable.anew = log::has_begun_anew(generation).then_some(now);
        let resumable = Some(resumable);
        let shelf = Shelf::filled(deliveries, share);
        Self::with(client, Inner { inbox, recent, resumable, ..Inner::new(shelf) }, limits)
    }

    /// Since when it is one whose client may have been shown more than is known of here.
    pub fn begun_anew(&self) -> Option<Instant> {
        self.lock().resumable.as_ref().and_then(|resumable| resumable.anew)
    }

    /// Whether another node may have the session: then nothing is decided of what comes for it, and its senders ask again.
    pub fn wait(&self, waits: bool) {
        if let Some(resumable) = &mut self.lock().resumable {
            resumable.waits = waits;
        }
    }

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

    /// Whether the standby has been it for long enough to know what became of the session.
    pub fn has_witness(&self) -> bool {
        self.lock().log().is_some_and(|log| log.standby.is_some_and(|standby| standby.opened || standby.known))
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

    /// Whether a token of `generation` is of no use any more: a client that has shown a newer one, or has said something over
    /// a newer connection, has a newer one.
    pub fn refuses(&self, generation: u64) -> bool {
        self.lock().log().is_none_or(|log| generation < log.proven)
    }

    /// Whether a client with a token of `generation`, who has everything up to `seq`, misses nothing here: not if the session
    /// has begun anew since, nor if somebody else with its credentials has had what it has not, nor if another node was its home
    /// for a while, and may have shown it something else by these numbers.
    pub fn continues(&self, generation: u64, seq: Position) -> bool {
        let inner = self.lock();
        let Some(log) = inner.log() else { return false };
        let is_same = !log::is_numbered_anew(log.generation, generation)
            && (seq == log.had || !log::is_forked(log.generation, generation));
        is_same && (log.had..=log.last).contains(&seq)
    }

    /// Whether nothing is taken any more: it is over, or [moves](Self::is_moving).
    pub fn is_sealed(&self) -> bool {
        self.lock().sealed
    }

    /// Whether its client, who is connected, does not know that it can be.
    pub fn is_plain(&self) -> bool {
        self.lock().resumable.as_ref().is_some_and(|resumable| resumable.is_plain)
    }

    /// A new connection, whose client has a token of `generation` and everything up to `seq`, and may not know of that
    /// (`is_plain`); an older one is told to end, and so will this one be. What was answered and not heard is
    /// asked for again. `None` when the session is on its way to another node, or over.
    pub fn attach(
        &self,
        now: Instant,
        generation: u64,
        seq: Position,
        is_plain: bool,
    ) -> Option<(Attachment, Arc<Notify>)> {
        let mut inner = self.lock();
        if inner.sealed {
            return None;
        }
        let Inner { shelf, resumable, answers, close, behind_since, .. } = &mut *inner;
        let resumable = resumable.as_deref_mut()?;
        resumable.is_plain = is_plain;
        let Resumable { log, requests, displaced, is_overruled, .. } = resumable;
        *is_overruled = generation < log.generation;
        log.show(generation);
        shelf.forget(log.attach(now, seq));
        *behind_since = (!shelf.deliveries.is_empty()).then_some(now);
        requests.iter_mut().for_each(|requests| requests.disconnected());
        answers.clear();
        if matches!(close, Some(CloseOrder::TakenOver | CloseOrder::Moved)) {
            *close = None;
        }
        let attachment = log.attachment;
        let newest = Arc::new(Notify::new());
        if let Some(older) = displaced.replace(newest.clone()) {
            older.notify_one(); // It may be about to wait.
        }
        drop(inner);
        self.wake.notify_one();
        Some((attachment, newest))
    }

    /// The connection is gone. Returns whether it was the newest: the session is without one then.
    pub fn detach(&self, now: Instant, attachment: Attachment) -> bool {
        let mut inner = self.lock();
        let Some(Resumable { log, requests, .. }) = inner.resumable.as_deref_mut() else { return false };
        if log.attachment != attachment || log.moving {
            return false;
        }
        log.detached_since = Some(now);
        log.unacknowledged_since = None;
        requests.iter_mut().for_each(|requests| requests.disconnected());
        inner.behind_since = None;
        inner.answers.clear();
        true
    }

    /// Whether it has waited here for its client since `since`. One that has moved waits elsewhere, and may be here again by
    /// another.
    pub fn has_waited(&self, since: Instant) -> bool {
        self.lock().has_waited(since)
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
            if gone > 0 {
                inner.behind_since = (!inner.shelf.deliveries.is_empty()).then_some(now);
            }
        }
    }

    /// How a connection ends that a newer one has displaced: for good, unless its client may have the newer token. If so, it
    /// comes back with that one, which then nobody else has.
    pub fn displacement(&self) -> CloseOrder {
        let is_overruled = self.lock().resumable.as_ref().is_some_and(|resumable| resumable.is_overruled);
        if is_overruled { CloseOrder::Moved } else { CloseOrder::TakenOver }
    }

    /// The client of this connection has said something, and not before it was greeted: it has the newest token.
    pub fn prove(&self, attachment: Attachment) {
        let mut inner = self.lock();
        if !inner.is_displaced(attachment)
            && let Some(log) = inner.log_mut()
        {
            log.show(log.generation);
        }
    }

    /// Somebody has a token of `generation`, so older ones are of no use any more.
    pub fn show(&self, generation: u64) {
        if let Some(log) = self.lock().log_mut() {
            log.show(generation);
        }
    }

    /// The generation of the newest token that is known to have reached the client.
    pub fn proven(&self) -> u64 {
        self.lock().log().map_or(0, |log| log.proven)
    }
}
