//! Owns the words for what a broker sees of the whole deployment: for people, and so with names instead of numbers.

use std::time::Duration;

use serde::Serialize;

use super::LinkState;
use crate::operate::chronicle::Noted;
use crate::transport::peers::roll::Member;

/// A time for people and scripts: milliseconds, to the microsecond.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The deployment, as this node sees it.
#[derive(Clone, Debug, Default)]
pub struct Deployment {
    /// What goes on with Redis.
    pub movement: Movement,
    /// The other gateways.
    pub gateways: Vec<Member>,
    /// The Redis servers.
    pub servers: Vec<ServerView>,
    /// What happened lately, the newest first.
    pub events: Vec<Noted>,
}

/// What goes on with Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Movement {
    /// Nothing: messages go to the master alone.
    #[default]
    Calm,
    /// The master was in doubt a moment ago: messages go to every server.
    Motion,
    /// The Sentinels replace the master: messages go to every server.
    Failover,
    /// There is no master, and fewer Sentinels answer than it takes to make one: messages go by the replicas.
    Masterless,
    /// No server can be used: messages wait until their deadline.
    Outage,
}

/// A Redis server, as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerView {
    /// Its address.
    pub address: String,
    /// Whether it is the master for the Sentinels, or the only server.
    pub is_master: bool,
    /// "master" or "replica", as it says itself.
    pub role: Option<&'static str>,
    /// The link of this node to it.
    pub link: LinkState,
    /// Whether the Sentinels hold it for alive.
    pub expected: bool,
    /// Whether messages go to it now.
    pub carries: bool,
    /// Whether it is connected to its master, if it is a replica.
    pub follows: Option<bool>,
    /// Bytes of the master's stream that it lacks, if it is a replica.
    pub behind_bytes: Option<u64>,
    /// Milliseconds that its last answer to ROLE took.
    pub answers_in_ms: Option<f64>,
    /// Why there is no link.
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_no_more_digits_than_it_is_worth() {
        for (micros, text) in [(337, "0.337"), (92, "0.092"), (1_204_100, "1204.1"), (0, "0")] {
            assert_eq!(milliseconds(Duration::from_nanos(micros * 1000 + 163)).to_string(), text);
        }
    }
}
