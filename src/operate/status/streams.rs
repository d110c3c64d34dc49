//! Owns who is shown the status as it changes: a bounded number of streams, and one snapshot a second for all of them.
//!
//! Without anybody who looks nothing is made, and no task runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Sources;
use super::traffic::Ledger;
use crate::operate::drain::Shutdown;
use crate::operate::tasks::Tasks;

/// How long a snapshot is good enough for everybody.
pub const PERIOD: Duration = Duration::from_secs(1);
/// Streams at a time: each is a person who looks.
pub const MOST_STREAMS: usize = 16;
/// How long a stream may take nothing of what it is given.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// The status now and from now on. A cheap handle.
#[derive(Clone, Debug)]
pub struct Streams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sources: Sources,
    /// This run of the node.
    run: u64,
    latest: Mutex<Latest>,
    seats: Arc<Semaphore>,
    write_limit: Duration,
    shutdown: Shutdown,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Latest {
    ledger: Ledger,
    made: Option<Arc<Made>>,
}

/// A snapshot that was made.
#[derive(Debug)]
pub struct Made {
    at: Instant,
    json: Box<str>,
}

impl Made {
    /// As JSON, in one line.
    pub fn json(&self) -> &str {
        &self.json
    }
}

/// Why there is no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoStream {
    /// Every place is taken.
    #[error("{MOST_STREAMS} others look already: try again later, or ask /status.json")]
    Full,
    /// The node is about to leave.
    #[error("this node is told to stop: ask /status.json as long as it is there")]
    Ending,
}

impl Streams {
    /// Nobody looks yet. Streams end with `shutdown`'s first signal, and with `tasks`.
    pub fn new(sources: Sources, shutdown: Shutdown, tasks: Tasks) -> Self {
        Self::with_write_limit(sources, shutdown, tasks, WRITE_LIMIT)
    }

    fn with_write_limit(sources: Sources, shutdown: Shutdown, tasks: Tasks, write_limit: Duration) -> Self {
        let seats = Arc::new(Semaphore::new(MOST_STREAMS));
        Self {
            inner: Arc::new(Inner {
                sources,
                run: fastrand::u64(..),
                latest: Mutex::default(),
                seats,
                write_limit,
                shutdown,
                tasks,
            }),
        }
    }

    /// The status, no older than [`PERIOD`].
    pub fn latest(&self) -> Arc<Made> {
        // A panic leaves a snapshot that is too old, and nothing else.
        let mut latest = self.inner.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(made) = latest.made.as_ref().filter(|made| now.saturating_duration_since(made.at) < PERIOD) {
            return made.clone();
        }
        let snapshot = self.inner.sources.look(now, self.inner.run, &mut latest.ledger);
        // No key of it is anything but a string, and it writes to memory.
        let json = serde_json::to_string(&snapshot).unwrap_or_default().into();
        let made = Arc::new(Made { at: now, json });
        latest.made = Some(made.clone());
        made
    }

    /// The status now, and then each second, until the receiver is dropped, takes nothing for too long, or the node leaves.
    ///
    /// # Errors
    /// When there are too many streams, or the node leaves already.
    pub fn open(&self) -> Result<mpsc::Receiver<Arc<Made>>, NoStream> {
        if self.is_ending() {
            return Err(NoStream::Ending);
        }
        let seat = self.inner.seats.clone().try_acquire_owned().map_err(|_| NoStream::Full)?;
        let (given, taken) = mpsc::channel(1);
        let streams = self.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = streams.ending() => {}
                () = streams.feed(seat, given) => {}
            }
        });
        Ok(taken)
    }

    fn ends(&self) -> [&CancellationToken; 3] {
        let Inner { shutdown, tasks, .. } = &*self.inner;
        [&shutdown.drain, &shutdown.stop, tasks.end()]
    }

    fn is_ending(&self) -> bool {
        self.ends().iter().any(|end| end.is_cancelled())
    }

    async fn ending(&self) {
        let [drain, stop, end] = self.ends();
        tokio::select! {
            () = drain.cancelled() => {}
            () = stop.cancelled() => {}
            () = end.cancelled() => {}
        }
    }

    async fn feed(&self, _seat: OwnedSemaphorePermit, stream: mpsc::Sender<Arc<Made>>) {
        loop {
            let made = self.latest();
            let next = made.at + PERIOD;
            // Whoever does not read holds the place of somebody who would.
            if !matches!(timeout(self.inner.write_limit, stream.send(made)).await, Ok(Ok(()))) {
                return;
            }
            tokio::select! {
                () = stream.closed() => return,
                () = sleep_until(next.into()) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::embedded::Embedded;
    use crate::operate::health::Health;
    use crate::operate::metrics::Metrics;
    use crate::registry::Registry;

    fn streams() -> Streams {
        streams_that_bear(WRITE_LIMIT)
    }

    fn streams_that_bear(write_limit: Duration) -> Streams {
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let broker = Arc::new(Embedded::new(Arc::<Registry>::default(), metrics.clone()));
        let (seats, grace) = (Arc::new(Semaphore::new(1)), Duration::ZERO);
        let health = Arc::new(Health::new("test", grace, grace, broker.clone(), seats, 1, metrics.clone()));
        let sources = Sources { broker, health, metrics };
        Streams::with_write_limit(sources, Shutdown::default(), Tasks::default(), write_limit)
    }

    fn free(streams: &Streams) -> usize {
        streams.inner.seats.available_permits()
    }

    async fn until_free(streams: &Streams, seats: usize) {
        let free = async {
            while free(streams) < seats {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(5), free).await.unwrap();
    }

    #[tokio::test]
    async fn all_see_one_snapshot_and_no_more_than_there_are_places_for() {
        let streams = streams();
        let mut open: Vec<_> = (0..MOST_STREAMS).map(|_| streams.open().unwrap()).collect();
        assert_eq!(streams.open().unwrap_err(), NoStream::Full);
        let first = open[0].recv().await.unwrap();
        for stream in &mut open[1..] {
            assert!(Arc::ptr_eq(&first, &stream.recv().await.unwrap()));
        }
        assert!(Arc::ptr_eq(&first, &streams.latest()), "who asks once sees the same");
        let (second, third) = (open[0].recv().await.unwrap(), open[1].recv().await.unwrap());
        assert!(second.at >= first.at + PERIOD, "once a second at the most");
        assert!(Arc::ptr_eq(&second, &third));
        drop(open);
        until_free(&streams, MOST_STREAMS).await;
    }

    #[tokio::test]
    async fn who_takes_nothing_loses_the_place() {
        let streams = streams_that_bear(Duration::from_millis(10));
        let (lazy, mut reader) = (streams.open().unwrap(), streams.open().unwrap());
        assert_eq!(free(&streams), MOST_STREAMS - 2);
        for _ in 0..3 {
            reader.recv().await.unwrap();
        }
        until_free(&streams, MOST_STREAMS - 1).await;
        assert!(reader.recv().await.is_some(), "whoever reads keeps it");
        drop(lazy);
    }

    #[tokio::test]
    async fn streams_end_when_the_node_leaves_and_none_begins() {
        let end: [fn(&Streams); 3] = [
            |streams| streams.inner.shutdown.drain.cancel(),
            |streams| streams.inner.shutdown.stop.cancel(),
            |streams| streams.inner.tasks.end().cancel(),
        ];
        for end in end {
            let streams = streams();
            let mut open = streams.open().unwrap();
            open.recv().await.unwrap();
            end(&streams);
            assert!(timeout(PERIOD / 2, open.recv()).await.unwrap().is_none());
            assert_eq!(streams.open().unwrap_err(), NoStream::Ending);
            assert!(streams.latest().json().contains("\"texto-status/1\""), "who asks is answered all the same");
        }
    }
}
