//! Owns what is counted of all sessions that can be resumed, whenever somebody looks.

use crate::outbox::Condition;

/// How many sessions there are, and what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// With a connection.
    pub attached: usize,
    /// Another node has what this one has.
    pub with_standby: usize,
    /// This node's word is all there is.
    pub without_standby: usize,
    /// Sessions of other nodes, whose standby this one is.
    pub copies: usize,
    /// Messages for clients that are away.
    pub away: Kept,
    /// Messages that clients have not acknowledged which are here.
    pub unacknowledged: Kept,
    /// Messages in copies.
    pub copied: Kept,
}

/// Messages that are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many.
    pub messages: usize,
    /// What they take of the budget.
    pub bytes: usize,
}

impl Kept {
    fn add(&mut self, condition: Condition) {
        self.messages += condition.messages;
        self.bytes += condition.bytes;
    }
}

impl Census {
    /// One more session, whose home this node is.
    pub fn add(&mut self, condition: Condition) {
        if condition.is_attached {
            self.attached += 1;
            self.unacknowledged.add(condition);
        } else {
            self.away.add(condition);
        }
        if condition.has_standby {
            self.with_standby += 1;
        } else {
            self.without_standby += 1;
        }
    }

    /// One more copy of another node's session, with so many messages of so many bytes.
    pub fn add_copy(&mut self, (messages, bytes): (usize, usize)) {
        self.copies += 1;
        self.copied.messages += messages;
        self.copied.bytes += bytes;
    }
}
