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

#[derive(Debug)]
pub(super) struct Pending<R> {
    /// None: it was answered already, and is sent again to be sure.
    pub(super) reply: Option<R>,
    pub(super) id: Uuid,
    /// Its predecessor, if that was settled when it was sent first.
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
        reply: Option<R>,
    ) -> Self {
        Self {
            reply,
            id,
            after: None,
            receiver,
            payload,
            since,
            until,
            out: 0,
            zero: 0,
            sent: false,
            retry: None,
            retries: 0,
        }
    }

    /// What a server is given.
    pub(super) fn outgoing(&self, after: Uuid) -> Outgoing {
        Outgoing { receiver: self.receiver, after, since: self.since, payload: self.payload.clone() }
    }
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) tickets: VecDeque<Ticket>,
    /// The first one is in trouble; the others wait behind it.
    pub(super) held: bool,
}

#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) up: bool,
    pub(super) synced: bool,
    pub(super) suspect: bool,
    pub(super) ready: VecDeque<Ticket>,
    pub(super) flight: Vec<Ticket>,
    pub(super) flight_since: Option<Instant>,
    /// What it handed over lately, oldest first.
    pub(super) tail: VecDeque<Tail>,
}

/// A message that was answered, in case that its server dies now.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) at: Instant,
    pub(super) id: Uuid,
    pub(super) message: Outgoing,
}

/// The set of `link` alone.
pub(super) fn bit(link: LinkId) -> Links {
    1 << link
}
