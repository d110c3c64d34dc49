//! Owns what the sender asks of links, what they answer, and what follows from it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::{LinkId, Links, links};
use crate::outbox::{Outbox, Outcome};
use crate::transport::envelope::{Channel, Place};
use crate::transport::homes::{MoveReason, Resumption};

/// A command for a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// PUBLISH of a message.
    Message(Channel, Place, Bytes),
    /// PUBLISH of something between nodes.
    Control(Channel, Bytes),
    /// PUBSUB NUMSUB.
    Count(Vec<Channel>),
}

/// What a server answered to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The number of subscribers that it gave a message to.
    Receivers(u64),
    /// The numbers of subscribers of the channels asked about, in order.
    Counts(Vec<u64>),
    /// An error: it lives, but did not do it.
    Error,
}

/// What an event adds to the figures that an operator looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Messages that were sent again.
    pub resent: u64,
    /// How long the receipts of clients' messages took.
    pub trips: Vec<Duration>,
    /// Why sessions got another home.
    pub moves: Vec<MoveReason>,
    /// How long sessions had one copy alone that have two again.
    pub restored: Vec<Duration>,
}

/// What follows from an event.
#[derive(Debug)]
pub struct Actions<R> {
    /// Answers that are due.
    pub decided: Vec<(R, Outcome)>,
    /// What is to be counted.
    pub figures: Figures,
    /// Channels that may be wanted now, or not any more.
    pub changed: Vec<Channel>,
    /// Sessions that have come here, and whose clients have not.
    pub detached: Vec<Arc<Outbox>>,
    /// What became of claims.
    pub claims: Vec<(Uuid, Resumption)>,
    pub(super) wake: Links,
}

impl<R> Default for Actions<R> {
    fn default() -> Self {
        Self {
            decided: Vec::new(),
            figures: Figures::default(),
            changed: Vec::new(),
            detached: Vec::new(),
            claims: Vec::new(),
            wake: 0,
        }
    }
}

impl<R> Actions<R> {
    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        let Self { decided, figures, changed, detached, claims, wake } = self;
        decided.is_empty()
            && *figures == Figures::default()
            && changed.is_empty()
            && detached.is_empty()
            && claims.is_empty()
            && *wake == 0
    }

    /// The links that have something to send.
    pub fn links(&self) -> impl Iterator<Item = LinkId> + use<R> {
        links(self.wake)
    }
}
