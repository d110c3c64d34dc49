//! Owns what has happened to the deployment lately, for people who look: failovers first, a bounded list.
//!
//! Whoever writes a line of the log about it writes it here too; a message is never worth one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// What is kept of failovers and outages, and of everything else: what flaps does not drive out what matters.
const MOST_GRAVE: usize = 24;
const MOST_OTHERS: usize = 24;
/// Characters of an event's text. What servers say of themselves is in it.
const MOST_TEXT: usize = 240;
/// A failover is not over sooner: its first sign comes before anything else is to be seen of it.
const SOONEST_END: Duration = Duration::from_millis(2500);

/// Something that an operator wants to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The Sentinels replace the master, or are about to; by which sign.
    FailoverBegun {
        /// The master that is replaced, if one is known.
        master: Option<String>,
        /// The event by which a Sentinel said so.
        sign: String,
    },
    /// There is another master.
    MasterChanged {
        /// The old one.
        from: String,
        /// The new one.
        to: String,
        /// Its configuration epoch.
        epoch: u64,
    },
    /// There is a master, and messages go to it alone again.
    FailoverEnded {
        /// The master now.
        master: String,
        /// Since the first sign.
        took: Duration,
    },
    /// No Redis can be used.
    RedisLost,
    /// One can be used again.
    RedisBack {
        /// How long none could.
        away: Duration,
    },
    /// The link to a Redis is lost.
    LinkLost {
        /// The server.
        address: String,
        /// Why.
        reason: String,
    },
    /// It is back, with every subscription.
    LinkSynced {
        /// The server.
        address: String,
    },
    /// A Sentinel can't be asked.
    SentinelLost {
        /// Which.
        address: String,
        /// Why.
        reason: String,
    },
    /// A Sentinel answers.
    SentinelBack {
        /// Which.
        address: String,
    },
    /// Another gateway is there.
    GatewayCame {
        /// Its name.
        name: String,
    },
    /// Another gateway says that it will leave.
    GatewayLeaves {
        /// Its name.
        name: String,
    },
    /// Another gateway has left, or is heard of no more.
    GatewayGone {
        /// Its name.
        name: String,
    },
    /// Another gateway is subscribed, but says nothing.
    GatewaySilent {
        /// Its name.
        name: String,
    },
}

impl Happening {
    /// Its kind, for scripts.
    fn kind(&self) -> &'static str {
        match self {
            Self::FailoverBegun { .. } => "failover_begun",
            Self::MasterChanged { .. } => "master_changed",
            Self::FailoverEnded { .. } => "failover_ended",
            Self::RedisLost => "redis_lost",
            Self::RedisBack { .. } => "redis_back",
            Self::LinkLost { .. } => "link_lost",
            Self::LinkSynced { .. } => "link_synced",
            Self::SentinelLost { .. } => "sentinel_lost",
            Self::SentinelBack { .. } => "sentinel_back",
            Self::GatewayCame { .. } => "gateway_came",
            Self::GatewayLeaves { .. } => "gateway_leaves",
            Self::GatewayGone { .. } => "gateway_gone",
            Self::GatewaySilent { .. } => "gateway_silent",
        }
    }

    fn is_grave(&self) -> bool {
        matches!(
            self,
            Self::FailoverBegun { .. }
                | Self::MasterChanged { .. }
                | Self::FailoverEnded { .. }
                | Self::RedisLost
                | Self::RedisBack { .. }
        )
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailoverBegun { master: Some(master), sign } => {
                write!(f, "Failover begun: the Sentinels replace the master {master} ({sign})")
            }
            Self::FailoverBegun { master: None, sign } => write!(f, "Failover begun ({sign})"),
            Self::MasterChanged { from, to, epoch } => write!(f, "New master {to}, epoch {epoch}; it was {from}"),
            Self::FailoverEnded { master, took } => {
                let took = took.as_secs_f64();
                write!(f, "Failover over after {took:.1} s: messages go to the master {master} alone again")
            }
            Self::RedisLost => write!(f, "No Redis can be used: messages wait until their deadline"),
            Self::RedisBack { away } => write!(f, "Redis can be used again, after {:.1} s", away.as_secs_f64()),
            Self::LinkLost { address, reason } => write!(f, "Link to Redis {address} lost: {reason}"),
            Self::LinkSynced { address } => write!(f, "Link to Redis {address} synced"),
            Self::SentinelLost { address, reason } => write!(f, "Sentinel {address} can't be asked: {reason}"),
            Self::SentinelBack { address } => write!(f, "Sentinel {address} answers"),
            Self::GatewayCame { name } => write!(f, "Gateway {name} is there"),
            Self::GatewayLeaves { name } => write!(f, "Gateway {name} drains"),
            Self::GatewayGone { name } => write!(f, "Gateway {name} is gone"),
            Self::GatewaySilent { name } => write!(f, "Gateway {name} is connected, but says nothing"),
        }
    }
}

/// Something that happened, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Noted {
    /// Counts all that happened since the node began, from 1.
    pub id: u64,
    /// When, in milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// What, for scripts.
    pub kind: &'static str,
    /// What, for people.
    pub text: String,
}

/// What has happened lately.
#[derive(Debug, Default)]
pub struct Chronicle {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    count: u64,
    grave: VecDeque<Noted>,
    others: VecDeque<Noted>,
    /// When the first sign was seen of a failover that is not over.
    failover: Option<Instant>,
}

impl Chronicle {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No state is left half-changed by the code that holds this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what happens now.
    pub fn note(&self, happening: &Happening) {
        let mut inner = self.lock();
        match happening {
            // Each Sentinel says it, and each attempt.
            Happening::FailoverBegun { .. } if inner.failover.is_some() => return,
            // Nobody may have said that it begins.
            Happening::FailoverBegun { .. } | Happening::MasterChanged { .. } => {
                inner.failover.get_or_insert_with(Instant::now);
            }
            _ => {}
        }
        inner.add(happening);
    }

    /// Whether a failover has begun that is not over.
    pub fn is_failing_over(&self) -> bool {
        self.lock().failover.is_some()
    }

    /// All is well with `master` at `now`: a failover that went on is over, after what is returned.
    pub fn is_calm(&self, now: Instant, master: &str) -> Option<Duration> {
        let mut inner = self.lock();
        let took = inner.failover.map(|since| now.saturating_duration_since(since))?;
        if took < SOONEST_END {
            return None;
        }
        inner.failover = None;
        inner.add(&Happening::FailoverEnded { master: master.to_owned(), took });
        Some(took)
    }

    /// What happened lately, the newest first.
    pub fn latest(&self) -> Vec<Noted> {
        let inner = self.lock();
        let mut all: Vec<Noted> = inner.grave.iter().chain(&inner.others).cloned().collect();
        all.sort_by_key(|noted| std::cmp::Reverse(noted.id));
        all
    }
}

impl Inner {
    fn add(&mut self, happening: &Happening) {
        self.count += 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let noted = Noted {
            id: self.count,
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            kind: happening.kind(),
            text: happening.to_string().chars().take(MOST_TEXT).collect(),
        };
        let (list, most) = match happening.is_grave() {
            true => (&mut self.grave, MOST_GRAVE),
            false => (&mut self.others, MOST_OTHERS),
        };
        if list.len() >= most {
            list.pop_front();
        }
        list.push_back(noted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Happening {
        Happening::FailoverBegun { master: Some("a:1".to_owned()), sign: "+odown".to_owned() }
    }

    fn kinds(chronicle: &Chronicle) -> Vec<&'static str> {
        chronicle.latest().iter().map(|noted| noted.kind).collect()
    }

    #[test]
    fn a_failover_begins_once_and_ends_once() {
        let chronicle = Chronicle::default();
        let now = Instant::now();
        assert_eq!(chronicle.is_calm(now, "a:1"), None);
        assert_eq!(kinds(&chronicle), [""; 0], "there was none");
        chronicle.note(&begun());
        chronicle.note(&begun());
        assert_eq!(chronicle.is_calm(now, "a:1"), None);
        assert!(chronicle.is_failing_over(), "its first sign comes before the others");
        chronicle.note(&Happening::MasterChanged { from: "a:1".to_owned(), to: "b:2".to_owned(), epoch: 7 });
        assert!(chronicle.is_calm(now + 2 * SOONEST_END, "b:2").is_some());
        assert_eq!(chronicle.is_calm(now + 3 * SOONEST_END, "b:2"), None);
        assert!(!chronicle.is_failing_over());
        assert_eq!(kinds(&chronicle), ["failover_ended", "master_changed", "failover_begun"]);
    }

    #[test]
    fn what_flaps_drives_no_failover_out_and_nothing_grows() {
        let chronicle = Chronicle::default();
        chronicle.note(&begun());
        for _ in 0..1000 {
            chronicle.note(&Happening::LinkLost { address: "a:1".to_owned(), reason: "x".repeat(10_000) });
        }
        let latest = chronicle.latest();
        assert_eq!(latest.len(), 1 + MOST_OTHERS);
        assert_eq!(latest.last().map(|noted| noted.kind), Some("failover_begun"));
        assert!(latest.iter().all(|noted| noted.text.chars().count() <= MOST_TEXT));
        assert!(latest.is_sorted_by_key(|noted| std::cmp::Reverse(noted.id)), "the newest first");
        for _ in 0..100 {
            chronicle.note(&Happening::RedisLost);
        }
        assert_eq!(chronicle.latest().len(), MOST_GRAVE + MOST_OTHERS);
    }
}
