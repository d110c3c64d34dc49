//! Owns what all outboxes of a node may hold together, and who goes first when they hold too much.
//!
//! A session alone is bounded by its own outbox; thousands of slow readers together are bounded here. Near the bound the
//! slowest are closed, at it the senders of what is new get `EBUSY`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::Notify;
use tracing::warn;

use crate::operate::repeats::Repeats;
use crate::outbox::CloseOrder;
use crate::registry::Registry;

/// Who has taken something within this is not slow: a flood alone throws nobody out.
const SLOW: Duration = Duration::from_secs(1);
/// Those that were told to go give their bytes back meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// The bytes of all outboxes.
#[derive(Debug)]
pub struct Budget {
    most: usize,
    used: AtomicUsize,
    gauge: IntGauge,
    near: Notify,
}

impl Budget {
    /// A budget of `most` bytes; `gauge` shows how many are used.
    pub fn new(most: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicUsize::new(0), gauge, near: Notify::new() })
    }

    fn show(&self, used: usize) {
        self.gauge.set(i64::try_from(used).unwrap_or(i64::MAX));
    }

    /// Closes the slowest sessions of `registry` whenever the bound is near, for ever.
    pub async fn run(self: Arc<Self>, registry: Arc<Registry>) {
        let mut said = Repeats::default();
        loop {
            self.near.notified().await;
            let closed = self.make_room(Instant::now(), &registry);
            if closed > 0
                && let Some(again) = said.note(Instant::now(), "")
            {
                let most = self.most;
                warn!(closed, most, "the outboxes hold nearly all they may together: the slowest readers go{again}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tells the slowest to go, so that a quarter is free. Returns how many.
    fn make_room(&self, now: Instant, registry: &Registry) -> usize {
        let mut excess = self.used.load(Ordering::Relaxed).saturating_sub(self.most / 4 * 3);
        let mut slow: Vec<_> = registry
            .outboxes()
            .into_iter()
            .filter_map(|outbox| {
                let (since, bytes) = outbox.backlog()?;
                (now.saturating_duration_since(since) >= SLOW).then_some((since, bytes, outbox))
            })
            .collect();
        slow.sort_unstable_by_key(|(since, ..)| *since);
        let mut closed = 0;
        for (_, bytes, outbox) in slow {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(bytes);
            outbox.close(CloseOrder::SlowReader);
            closed += 1;
        }
        closed
    }
}

/// What one outbox has of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// Nothing of `budget` yet.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Bytes that it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `bytes` more, or `false`: the node has no more.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let budget = &self.budget;
        let before = budget.used.fetch_add(bytes, Ordering::Relaxed);
        let used = before.saturating_add(bytes);
        if used > budget.most / 8 * 7 {
            budget.near.notify_one();
        }
        if used > budget.most {
            budget.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        budget.show(used);
        true
    }

    /// Gives `bytes` back.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        if bytes > 0 {
            self.bytes -= bytes;
            let before = self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
            self.budget.show(before - bytes);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_given_back_however_it_ends() {
        let gauge = IntGauge::new("bytes", "for a test").unwrap();
        let budget = Budget::new(100, gauge.clone());
        let mut one = Share::new(budget.clone());
        let mut other = Share::new(budget);
        assert!(one.grow(60));
        assert!(!other.grow(50), "the node has 40 left");
        assert!(other.grow(40));
        assert_eq!(gauge.get(), 100);
        one.shrink(10);
        assert_eq!((gauge.get(), one.bytes()), (90, 50));
        drop(one);
        assert_eq!(gauge.get(), 40);
        drop(other);
        assert_eq!(gauge.get(), 0);
    }
}
