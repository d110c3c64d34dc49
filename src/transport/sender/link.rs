//! Owns what a link is to send, and what its server has yet to answer.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::transport::envelope::{Channel, Decision, Number, Tag};

/// What a link is to do and has not been answered.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Since when it is up, if it is; a link that comes and goes is not relied on.
    pub(super) up_since: Option<Instant>,
    /// It hears all that is for this node.
    pub(super) synced: bool,
    /// Until when it is not given receipts alone: some did not arrive.
    pub(super) doubted_until: Option<Instant>,
    /// Messages from here on have not been given to it, as far as it carries.
    pub(super) cursor: Number,
    /// Messages below had been published when it began to carry.
    pub(super) catches_up_to: Number,
    pub(super) again: VecDeque<Number>,
    pub(super) control: VecDeque<(Channel, Bytes)>,
    /// Receipts that wait for those before them to be answered: so they gather as long as the server takes, and cost
    /// it one PUBLISH for many (as RFC 896 has it for TCP).
    pub(super) receipts: BTreeMap<Tag, Vec<(Number, Decision)>>,
    pub(super) receipts_in_flight: usize,
    pub(super) questions: Vec<Question>,
    /// The nodes that it has had since it is up.
    pub(super) has_had: HashSet<Tag>,
    /// It is to be asked which nodes it has.
    pub(super) look: bool,
    pub(super) flight: VecDeque<Sent>,
    pub(super) flight_bytes: usize,
    pub(super) busy_since: Option<Instant>,
    /// When it was given something last.
    pub(super) sent_at: Option<Instant>,
    pub(super) suspect: bool,
    /// When its server has put something off last: subscriptions too, perhaps.
    pub(super) put_off: Option<Instant>,
    /// How long it takes to answer of late.
    pub(super) trip: Duration,
    /// Counts of subscribers by pattern: they listen to everything and are nobody.
    pub(super) strangers: u64,
}

/// Where a message goes to, and the round of the search for somebody there.
pub(super) type Question = (Channel, u64);

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) what: What,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) enum What {
    Message(Number),
    Control,
    /// With what a replica alone was given.
    Receipts(Tag, Vec<(Number, Decision)>),
    Count {
        questions: Vec<Question>,
        nodes: Vec<Tag>,
    },
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.up_since.is_some()
    }

    /// Takes the receipts of which it is not known that their nodes have them.
    pub(super) fn untold(&mut self) -> Vec<(Tag, Vec<(Number, Decision)>)> {
        let waiting = std::mem::take(&mut self.receipts).into_iter();
        let sent = self.flight.iter_mut().filter_map(|sent| match &mut sent.what {
            What::Receipts(tag, receipts) => Some((*tag, std::mem::take(receipts))),
            _ => None,
        });
        waiting.chain(sent).collect()
    }

    pub(super) fn owes(&self) -> bool {
        !self.flight.is_empty()
            || !self.again.is_empty()
            || !self.control.is_empty()
            || !self.receipts.is_empty()
            || !self.questions.is_empty()
            || self.look
    }
}
