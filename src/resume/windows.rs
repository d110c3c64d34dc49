//! Owns the sessions that have no connection: until when each is kept, and how many there may be.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::broker::Broker;
use crate::operate::metrics::Metrics;
use crate::operate::repeats::Repeats;
use crate::outbox::Outbox;
use crate::registry::Registry;

/// How exactly a window ends.
const LOOK: Duration = Duration::from_millis(100);

/// A session that can be resumed, and has waited since `since`, is over, unless its client has just come. Returns how many
/// messages it had that nobody will get.
pub fn end(outbox: &Arc<Outbox>, since: Instant, registry: &Registry, broker: &dyn Broker) -> Option<usize> {
    let left = outbox.discard_waiting(since)?;
    registry.remove(outbox);
    broker.ended(outbox);
    Some(left)
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
            for (since, outbox) in self.over(now) {
                let left = end(&outbox, since, &registry, &*broker).unwrap_or(0);
                self.metrics.sessions.abandoned_by_window.inc_by(left as u64);
            }
            let crowded = self.crowded_out();
            for (since, outbox) in &crowded {
                end(outbox, *since, &registry, &*broker);
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
    fn over(&self, now: Instant) -> Vec<(Instant, Arc<Outbox>)> {
        let mut waiting = self.lock();
        let mut over = Vec::new();
        while waiting.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= self.window) {
            // It may have had a connection meanwhile, and lost it again: then there is another entry.
            over.extend(waiting.pop_front().filter(|(since, outbox)| outbox.has_waited(*since)));
        }
        let room = waiting.len() * 2;
        waiting.shrink_to(room);
        over
    }

    /// Those that must go because there are too many: the oldest for whom nothing was acknowledged.
    fn crowded_out(&self) -> Vec<(Instant, Arc<Outbox>)> {
        let mut waiting = self.lock();
        waiting.retain(|(since, outbox)| outbox.has_waited(*since));
        let mut excess = waiting.len().saturating_sub(self.most);
        let mut out = Vec::new();
        if excess > 0 {
            waiting.retain(|(since, outbox)| {
                let goes = excess > 0 && outbox.kept() == 0;
                if goes {
                    excess -= 1;
                    out.push((*since, outbox.clone()));
                }
                !goes
            });
        }
        self.metrics.sessions.detached.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
        out
    }
}
