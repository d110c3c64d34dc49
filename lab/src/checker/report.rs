//! Owns the figures of a run.

use std::collections::BTreeMap;

use serde::Serialize;

/// The figures of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Messages sent.
    pub sent: u64,
    /// Messages answered with `ack`.
    pub acked: u64,
    /// Messages answered with `error`, by code.
    pub errors: BTreeMap<String, u64>,
    /// Acknowledged, but never received, and the receiver was not told so.
    pub acked_lost: u64,
    /// Acknowledged and never received, but the receiver was told that messages may be missing.
    pub told_missing: u64,
    /// Received again, but the receiver was told, since it came first, that messages may be missing: what was known of those that
    /// had come went with them.
    pub told_again: u64,
    /// Received more than once.
    pub received_twice: u64,
    /// Acknowledged, and received after a later acknowledged one of the same sender to the same receiver.
    pub out_of_order: u64,
    /// Not answered within the deadline.
    pub unanswered: u64,
    /// Answered more than once.
    pub answered_twice: u64,
    /// Sessions that the gateway ended, but for those in `moved`.
    pub dropped_sessions: u64,
    /// The same, by close code.
    pub closes: BTreeMap<u16, u64>,
    /// Sessions that were asked to go elsewhere (1012) where that is part of the play.
    pub moved: u64,
    /// Persons that came back and missed nothing, each time.
    pub resumed: u64,
    /// Persons that came back and were told that messages may be missing.
    pub told: u64,
    /// Persons that came back as somebody else.
    pub id_changed: u64,
    /// Messages whose answer nobody can give any more, since the session is another one.
    pub given_up: u64,
    /// The longest time that an acknowledged message was on its way, in milliseconds, but for the time in which its sender
    /// or its receiver did nothing by its own wish.
    pub longest_wait_ms: f64,
    /// The longest of all that were on their way, one a pair, in words.
    pub longest_waits: Vec<String>,
    /// The longest time in which nobody received anything, in milliseconds.
    pub longest_silence_ms: f64,
    /// The longest time from a send to its answer, in milliseconds.
    pub longest_answer_ms: f64,
    /// Half of the answers came within this, in milliseconds.
    pub median_answer_ms: f64,
    /// The first few messages that came out of order or twice, in words.
    pub examples: Vec<String>,
}

impl Report {
    /// The promises that were broken, whatever happens to Redis.
    pub fn broken(&self) -> Vec<String> {
        let counts = [
            ("acknowledged but never received", self.acked_lost),
            ("received twice", self.received_twice),
            ("received out of order", self.out_of_order),
            ("not answered within the deadline", self.unanswered),
            ("answered twice", self.answered_twice),
            ("sessions dropped", self.dropped_sessions),
            ("persons with another id", self.id_changed),
        ];
        counts.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect()
    }

    /// Messages answered with an error, of whatever code.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}
