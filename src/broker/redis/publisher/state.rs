//! Owns the words that the publisher is written in: links, messages, lanes, and what they remember.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::outbox::Outcome;

/// A link's place in the publisher, below [`MAX_LINKS`].
pub type LinkId = usize;

/// Links that a publisher can have.
pub const MAX_LINKS: usize = 64;

/// A set of links, one bit each.
pub(super) type Links = u64;

/// The times that a publisher goes by.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// A message is decided within this; it is given to servers only in the first four fifths of it,
    /// so that a receiver's node can tell a late copy from a message that is still wanted.
    pub send: Duration,
    /// A server that has not answered for this long is helped out by the others.
    pub hedge: Duration,
    /// After a disturbance, once all links are as they should be, this long counts as motion.
    pub settle: Duration,
    /// The same, while they are not: a server may be away for good.
    pub unsettled: Duration,
    /// What a link answered within this before it was lost is sent again: longer than a silent one takes to be
    /// found out. (After that it has been heard of again, and nothing is missing of what it did before.)
    pub tail: Duration,
    /// What was answered and is sent again waits this long for a server that takes it.
    pub keep: Duration,
    /// Bytes that may wait; more are refused at once.
    pub max_bytes: usize,
}

/// What has to be done after an event.
#[derive(Debug)]
pub struct Actions<R> {
    /// Answers to give.
    pub decided: Vec<(R, Outcome)>,
    /// Links that have something to send, one bit each.
    pub wake: Links,
    /// Messages that were sent again.
    pub resent: u64,
}

impl<R> Default for Actions<R> {
    fn default() -> Self {
        Self { decided: Vec::new(), wake: 0, resent: 0 }
    }
}

impl<R> Actions<R> {
    /// The links to wake.
    pub fn links(&self) -> impl Iterator<Item = LinkId> + use<R> {
        let wake = self.wake;
        (0..MAX_LINKS).filter(move |link| wake & (1 << link) != 0)
    }
}

pub(super) type Ticket = u64;

/// A message for a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Who is to get it.
    pub receiver: Uuid,
    /// The message that was handed over to the same receiver last, if that was lately.
    pub after: Uuid,
    /// Since when it is wanted: where it was answered already, since it is sent again.
    pub since: Instant,
    /// The message itself.
    pub payload: Bytes,
}

/// Why a message is here still.
#[derive(Debug)]
pub(super) enum Duty<R> {
    /// Its sender waits for the answer.
    Answer(R),
    /// It was answered, first at this time, by a server that may have died with the copies: to be sure, it
    /// goes the whole way once more.
    Again(Instant),
    /// It was answered, first at this time; links that were given it before carry it as well, since the count
    /// of receivers that decided may have been of connections that are dead.
    Copy(Instant),
}

impl<R> Duty<R> {
    /// When it was answered first.
    pub(super) fn answered(&self) -> Option<Instant> {
        match self {
            Self::Answer(_) => None,
            Self::Again(first) | Self::Copy(first) => Some(*first),
        }
    }
}

#[derive(Debug)]
pub(super) struct Pending<R> {
    pub(super) duty: Duty<R>,
    pub(super) id: Uuid,
    /// Its place among all messages of this node, the same when it is sent again.
    pub(super) order: Ticket,
    /// Its predecessor, if that was settled when it was sent last.
    pub(super) after: Option<Uuid>,
    pub(super) receiver: Uuid,
    pub(super) payload: Bytes,
    /// Since when it is wanted.
    pub(super) since: Instant,
    /// It is not given to servers any more from here on.
    pub(super) until: Instant,
    /// Links on which it waits or is under way.
    pub(super) out: Links,
    /// Links that counted no receiver since it was (re)tried.
    pub(super) zero: Links,
    /// It has been given to a link before.
    pub(super) sent: bool,
    /// It was answered before it was given to links this time.
    pub(super) again: bool,
    /// Not before this.
    pub(super) retry: Option<Instant>,
    pub(super) retries: u32,
}

impl<R> Pending<R> {
    /// A message that nobody was given yet.
    pub(super) fn new(
        since: Instant,
        until: Instant,
        id: Uuid,
        receiver: Uuid,
        payload: Bytes,
        order: Ticket,
        duty: Duty<R>,
    ) -> Self {
        Self {
            duty,
            id,
            order,
            after: None,
            receiver,
            payload,
            since,
            until,
            out: 0,
            zero: 0,
            sent: false,
            again: false,
            retry: None,
            retries: 0,
        }
    }

    /// What a server is given.
    pub(super) fn outgoing(&self) -> Outgoing {
        let after = self.after.unwrap_or_default();
        Outgoing { receiver: self.receiver, after, since: self.since, payload: self.payload.clone() }
    }

    pub(super) fn is_copy(&self) -> bool {
        matches!(self.duty, Duty::Copy(_))
    }
}

/// The messages for one receiver, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) tickets: VecDeque<Ticket>,
    /// The first one is in trouble; the others wait behind it.
    pub(super) held: bool,
    /// So many from the first on have been given to links, unless it is held.
    pub(super) given: usize,
}

#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) up: bool,
    pub(super) synced: bool,
    pub(super) suspect: bool,
    pub(super) ready: VecDeque<Ticket>,
    pub(super) flight: Vec<Ticket>,
    /// Since when the server owes an answer, or leaves waiting what is ready for it.
    pub(super) busy_since: Option<Instant>,
    /// How long it takes to answer: the longest time of late.
    pub(super) trip: Duration,
    /// What it handed over lately, oldest first.
    pub(super) tail: VecDeque<Tail>,
}

impl Link {
    pub(super) fn is_busy(&self) -> bool {
        !self.flight.is_empty() || !self.ready.is_empty()
    }
}

/// A message that was answered, in case that its server dies now.
#[derive(Debug)]
pub(super) struct Tail {
    /// When this link answered it.
    pub(super) at: Instant,
    /// When it was answered first, by whichever link.
    pub(super) first: Instant,
    /// It was sent again already when this link answered.
    pub(super) again: bool,
    pub(super) order: Ticket,
    pub(super) id: Uuid,
    pub(super) message: Outgoing,
}

/// What a receiver was handed last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handed {
    pub(super) id: Uuid,
    pub(super) order: Ticket,
    pub(super) at: Instant,
}

/// The set of `link` alone.
pub(super) fn bit(link: LinkId) -> Links {
    1 << link
}
