//! Owns how fast messages are, between looks at the counters.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::operate::metrics::{Durations, Tally};

/// Looks that are remembered: latencies are those of so many looks together, for a second may have few messages.
const LOOKS: usize = 10;
/// Nobody wants to know the mean of a time in which nobody looked.
const OLDEST: Duration = Duration::from_secs(30);

/// How fast messages are.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Traffic {
    /// The seconds since the last look, which the rates are for; nothing at the first.
    over_seconds: Option<f64>,
    acked_per_second: Option<f64>,
    failed_per_second: Option<f64>,
    delivered_per_second: Option<f64>,
    /// Sends without a decision, and what is sent again.
    pending: i64,
    /// The seconds that the latencies are of.
    latency_over_seconds: Option<f64>,
    /// From a PUBLISH to the word of the receiver's node.
    receipt_ms: Option<Latency>,
    /// From a `send` frame to its answer.
    send_ms: Option<Latency>,
}

/// Milliseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

impl Latency {
    fn of(durations: &Durations) -> Option<Self> {
        let ms = |part| Some(durations.quantile(part)? * 1e3);
        Some(Self { p50: ms(0.5)?, p99: ms(0.99)? })
    }
}

/// The counters as they were.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    looks: VecDeque<(Instant, Tally)>,
}

impl Ledger {
    /// What the counters, as they are at `now`, say together with the earlier ones.
    pub(super) fn enter(&mut self, now: Instant, tally: Tally, pending: i64) -> Traffic {
        while self.looks.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > OLDEST) {
            self.looks.pop_front();
        }
        let mut traffic = Traffic { pending, ..Traffic::default() };
        if let Some((at, before)) = self.looks.back() {
            let over = now.saturating_duration_since(*at).as_secs_f64();
            #[allow(clippy::cast_precision_loss)] // Not before 2^53 messages.
            let rate = |now: u64, before: u64| (over > 0.0).then(|| now.saturating_sub(before) as f64 / over);
            traffic.over_seconds = Some(over);
            traffic.acked_per_second = rate(tally.acked, before.acked);
            traffic.failed_per_second = rate(tally.failed, before.failed);
            traffic.delivered_per_second = rate(tally.delivered, before.delivered);
        }
        if let Some((at, before)) = self.looks.front() {
            traffic.latency_over_seconds = Some(now.saturating_duration_since(*at).as_secs_f64());
            traffic.receipt_ms = Latency::of(&tally.receipts.since(&before.receipts));
            traffic.send_ms = Latency::of(&tally.sends.since(&before.sends));
        }
        if self.looks.len() >= LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back((now, tally));
        traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::metrics::Metrics;

    #[test]
    fn rates_are_those_since_the_last_look_and_latencies_those_of_some() {
        let metrics = Metrics::new("test").unwrap();
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(ledger.enter(start, metrics.tally(), 3), Traffic { pending: 3, ..Traffic::default() });
        metrics.messages_acked.inc_by(100);
        metrics.send_duration.observe(0.003);
        let traffic = ledger.enter(start + 2 * second, metrics.tally(), 0);
        assert_eq!((traffic.over_seconds, traffic.acked_per_second), (Some(2.0), Some(50.0)));
        assert_eq!(traffic.send_ms.map(|latency| latency.p50), Some(3.75));
        assert_eq!(traffic.receipt_ms, None);
        let traffic = ledger.enter(start + 3 * second, metrics.tally(), 0);
        assert_eq!((traffic.acked_per_second, traffic.latency_over_seconds), (Some(0.0), Some(3.0)));
        assert!(traffic.send_ms.is_some(), "it was lately");
        for at in 4..20 {
            assert!(ledger.looks.len() <= LOOKS);
            ledger.enter(start + at * second, metrics.tally(), 0);
        }
        assert_eq!(ledger.enter(start + 20 * second, metrics.tally(), 0).send_ms, None, "it was long ago");
        let traffic = ledger.enter(start + 20 * second + 2 * OLDEST, metrics.tally(), 0);
        assert_eq!(traffic, Traffic::default(), "as if nobody had looked before");
    }
}
