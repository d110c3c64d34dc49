//! Owns what is read back from the counters, for the status page: how fast, and how long it takes.

use prometheus::Histogram;
use prometheus::core::Metric;

use super::Metrics;

/// The counters of messages, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Sends answered with `ack`.
    pub acked: u64,
    /// Sends answered with `error`.
    pub failed: u64,
    /// Messages put into outboxes of this node.
    pub delivered: u64,
    /// From a PUBLISH to the word of the receiver's node.
    pub receipts: Durations,
    /// From a `send` frame to its answer.
    pub sends: Durations,
}

/// A histogram's buckets: upper bound in seconds, and how many were no longer.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    buckets: Vec<(f64, u64)>,
    count: u64,
}

impl Durations {
    fn of(histogram: &Histogram) -> Self {
        let metric = histogram.metric();
        let histogram = metric.get_histogram();
        let buckets = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        Self { buckets: buckets.collect(), count: histogram.get_sample_count() }
    }

    /// What came since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |at: usize| before.buckets.get(at).map_or(0, |(_, count)| *count);
        let buckets = self.buckets.iter().enumerate();
        Self {
            buckets: buckets.map(|(at, (bound, count))| (*bound, count.saturating_sub(earlier(at)))).collect(),
            count: self.count.saturating_sub(before.count),
        }
    }

    /// The time in seconds that a `part` of them took no longer than, as Prometheus' `histogram_quantile` has it: even
    /// within a bucket, and the last bound for whatever took longer. Nothing, where there are none.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        #[allow(clippy::cast_precision_loss)] // Not before 2^53 messages.
        let (wanted, count) = (part * self.count as f64, |count: u64| count as f64);
        let (mut from, mut below) = (0.0, 0);
        for (bound, upto) in &self.buckets {
            if count(*upto) >= wanted && *upto > below {
                return Some(from + (bound - from) * (wanted - count(below)) / count(upto - below));
            }
            (from, below) = (*bound, *upto);
        }
        Some(from)
    }
}

impl Metrics {
    /// The counters now.
    pub fn tally(&self) -> Tally {
        Tally {
            acked: self.messages_acked.get(),
            failed: self.messages_failed.get(),
            delivered: self.deliveries.delivered.get(),
            receipts: Durations::of(&self.receipt_duration),
            sends: Durations::of(&self.send_duration),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_came_since() {
        let metrics = Metrics::new("test").unwrap();
        assert_eq!(metrics.tally().sends.quantile(0.5), None);
        metrics.send_duration.observe(9.0);
        let before = metrics.tally().sends;
        assert_eq!(before.quantile(0.5), Some(7.5), "in the middle of the bucket from 5 to 10");
        // Within (0.0005, 0.001] and (0.025, 0.05].
        (0..98).for_each(|_| metrics.send_duration.observe(0.0007));
        (0..2).for_each(|_| metrics.send_duration.observe(0.03));
        let since = metrics.tally().sends.since(&before);
        let quantile = |part| since.quantile(part).unwrap();
        assert!((quantile(0.49) - 0.000_75).abs() < 1e-9, "{}", quantile(0.49));
        assert!((quantile(0.99) - 0.0375).abs() < 1e-9, "{}", quantile(0.99));
        let now = metrics.tally().sends;
        assert_eq!(now.since(&now).quantile(0.5), None, "nothing came");
        metrics.send_duration.observe(99.0);
        assert_eq!(metrics.tally().sends.since(&now).quantile(0.5), Some(10.0), "longer than the last bound");
    }
}
