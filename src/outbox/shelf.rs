//! Owns the messages of an outbox, and how many it may have.

use std::collections::VecDeque;

use uuid::Uuid;

use super::Delivery;
use super::log::Log;
use super::recent::Recent;
use crate::outbox::budget::Share;
use crate::transport::envelope::{Number, Tag};
use crate::transport::inbox::Room;

/// No sender has more than this part of an outbox, however fast it writes.
const SHARE: usize = 4;

/// Bytes that a message takes, its text and what stands around it.
pub(super) fn cost(message: &Delivery) -> usize {
    message.text.len() + size_of::<Delivery>()
}

/// The messages of an outbox, and those that wait for their predecessors.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) deliveries: VecDeque<Delivery>,
    pub(super) bytes: usize,
    pub(super) waiting: usize,
    pub(super) waiting_bytes: usize,
    /// Of what the node has for all outboxes.
    pub(super) share: Share,
}

/// A shelf with its bounds, and what else has to know of a message that comes in from the node `tag`.
pub(super) struct Bounded<'a> {
    pub(super) shelf: &'a mut Shelf,
    pub(super) log: Option<&'a mut Log>,
    pub(super) recent: &'a mut Option<Box<Recent>>,
    pub(super) tag: Tag,
    pub(super) max_messages: usize,
    pub(super) max_bytes: usize,
}

impl Shelf {
    pub(super) fn new(share: Share) -> Self {
        Self { deliveries: VecDeque::new(), bytes: 0, waiting: 0, waiting_bytes: 0, share }
    }

    /// One with messages that another node has taken, and their share.
    pub(super) fn filled(deliveries: VecDeque<Delivery>, share: Share) -> Self {
        let bytes = deliveries.iter().map(|delivery| delivery.text.len()).sum();
        Self { deliveries, bytes, ..Self::new(share) }
    }

    /// Forgets the oldest `count` messages.
    pub(super) fn forget(&mut self, count: usize) {
        let gone: Vec<_> = self.deliveries.drain(..count).collect();
        self.bytes -= gone.iter().map(|delivery| delivery.text.len()).sum::<usize>();
        self.share.shrink(gone.iter().map(cost).sum());
    }

    /// Forgets all of them. Returns how many there were.
    pub(super) fn clear(&mut self) -> usize {
        self.share.shrink(self.share.bytes());
        (self.bytes, self.waiting, self.waiting_bytes) = (0, 0, 0);
        std::mem::take(&mut self.deliveries).len()
    }
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

    fn admit(&mut self, number: Number, message: Delivery) -> bool {
        if message.may_come_again()
            && let Some(position) = self.recent.as_deref().and_then(|recent| recent.position(message.id))
        {
            // Its sender asked twice, by two nodes. It has what it asked for.
            if let Some(log) = &mut self.log {
                log.had_already(position, self.tag, message.sender, number);
            }
            return true;
        }
        let bytes = message.text.len();
        let fits = self.shelf.deliveries.len() < self.max_messages
            && self.shelf.bytes + bytes <= self.max_bytes
            && !self.has_its_share(message.sender, bytes)
            && self.shelf.share.grow(cost(&message));
        if fits {
            let position = match &mut self.log {
                Some(log) => log.admitted(self.shelf.deliveries.len(), self.tag, message.sender, number),
                None => 0,
            };
            if message.may_come_again() {
                self.recent.get_or_insert_default().note(message.id, position);
            }
            self.shelf.bytes += bytes;
            self.shelf.deliveries.push_back(message);
        }
        fits
    }
}
