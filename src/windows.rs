//! Owns the sessions that have no connection: until when each is kept, and how many there may be.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::broker::Broker;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::registry::Registry;
use crate::repeats::Repeats;

/// How exactly a window ends.
const LOOK: Duration = Duration::from_millis(100);

/// A session that can be resumed is over. Returns how many messages it had that nobody will get.
pub fn end(outbox: &Arc<Outbox>, registry: &Registry, broker: &dyn Broker) -> usize {
    let left = outbox.discard();
    registry.remove(outbox);
    broker.ended(outbox);
    left
}

/// Whether `outbox` has waited here since then. One that has moved waits elsewhere, and may be here again by another.
fn waits(outbox: &Outbox, since: Instant) -> bool {
    outbox.detached_since() == Some(since) && !outbox.is_moving()
}

/// The sessions of a node that wait for their clients.
#[derive(Debug)]
pub struct Windows {
    window: Duration,
    most: usize,
    metrics: Arc<Metrics>,
    /// The one that ends first comes first, for all windows are as long.
    waiting: Mutex<VecDeque<(Instant, Arc<Outbox>)>>,
}

impl Windows {
    /// Sessions are kept for `window`, up to `most` of them.
    pub fn new(window: Duration, most: usize, metrics: Arc<Metrics>) -> Self {
        Self { window, most, metrics, waiting: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<Outbox>)>> {
        // No state is left half-changed by the code that holds this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `outbox` is without a connection now.
    pub fn begin(&self, outbox: &Arc<Outbox>) {
        if let Some(since) = outbox.detached_since() {
            self.lock().push_back((since, outbox.clone()));
        }
    }

    /// Ends sessions whose clients don't come back, for ever.
    pub async fn run(self: Arc<Self>, registry: Arc<Registry>, broker: Arc<dyn Broker>) {
        let mut said = Repeats::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Instant::now();
            for outbox in self.over(now) {
                let left = end(&outbox, &registry, &*broker);
                self.metrics.sessions.abandoned_by_window.inc_by(left as u64);
            }
            let crowded = self.crowded_out();
            for outbox in &crowded {
                end(outbox, &registry, &*broker);
            }
            if !crowded.is_empty()
                && let Some(again) = said.note(now, "")
            {
                let (ended, most) = (crowded.len(), self.most);
                warn!(ended, most, "too many sessions wait for their clients: the oldest without messages go{again}");
            }
        }
    }

    /// Those whose window is over.
    fn over(&self, now: Instant) -> Vec<Arc<Outbox>> {
        let mut waiting = self.lock();
        let mut over = Vec::new();
        while let Some((since, _)) = waiting.front().filter(|(at, _)| now.saturating_duration_since(*at) >= self.window)
        {
            let since = *since;
            // It may have had a connection meanwhile, and lost it again: then there is another entry.
            let outbox = waiting.pop_front().map(|(_, outbox)| outbox);
            over.extend(outbox.filter(|outbox| waits(outbox, since)));
        }
        let room = waiting.len() * 2;
        waiting.shrink_to(room);
        over
    }

    /// Those that must go because there are too many: the oldest for whom nothing was acknowledged.
    fn crowded_out(&self) -> Vec<Arc<Outbox>> {
        let mut waiting = self.lock();
        waiting.retain(|(since, outbox)| waits(outbox, *since));
        let mut excess = waiting.len().saturating_sub(self.most);
        let mut out = Vec::new();
        if excess > 0 {
            waiting.retain(|(_, outbox)| {
                let goes = excess > 0 && outbox.kept() == 0;
                if goes {
                    excess -= 1;
                    out.push(outbox.clone());
                }
                !goes
            });
        }
        self.metrics.sessions.detached.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
        out
    }
}
