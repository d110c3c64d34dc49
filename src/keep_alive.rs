//! Owns the patience with HTTP connections: how long each may say nothing, and which one yields its place.

use std::collections::BTreeMap;
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// How long a connection is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the first byte on a new connection, and for a request's head from its first byte on.
    pub header: Duration,
    /// For the next request on a connection that had one.
    pub keep_alive: Duration,
}

/// How a connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is between requests: what is being written may still go out.
    Gentle,
    /// It owes a request.
    Abrupt,
}

/// The connections of a listener that wait for their next request. A cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    inner: Arc<WaitingInner>,
}

#[derive(Debug, Default)]
struct WaitingInner {
    numbers: AtomicU64,
    /// The one that waits longest comes first.
    longest_first: Mutex<BTreeMap<(Instant, u64), Weak<Presence>>>,
}

impl Waiting {
    /// A new connection, which owes its first request.
    pub fn connection(&self) -> Arc<Presence> {
        Arc::new(Presence {
            number: self.inner.numbers.fetch_add(1, Ordering::Relaxed),
            phase: Mutex::new(Phase::Request(Instant::now())),
            changed: Notify::new(),
            waiting: self.clone(),
        })
    }

    /// Tells the connection that waits longest for its next request to go. Returns whether there is one.
    pub fn yield_longest(&self) -> bool {
        loop {
            let Some((_, presence)) = self.lock().pop_first() else { return false };
            let Some(presence) = presence.upgrade() else { continue };
            let mut phase = presence.lock();
            // Unless its next request has begun meanwhile.
            if matches!(*phase, Phase::Between(_)) {
                *phase = Phase::Yielding;
                presence.changed.notify_one();
                return true;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), Weak<Presence>>> {
        // Each change of the map is one call.
        self.inner.longest_first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Owes a request ──byte──▶ owes the rest of it ──head──▶ is served ──answer──▶ between requests ──byte──▶ …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A request is due, and has been since then.
    Request(Instant),
    /// A request is being served.
    Served,
    /// Nothing is due. Nothing was read or written since then.
    Between(Instant),
    /// It was told to go.
    Yielding,
}

/// What is known of one connection.
#[derive(Debug)]
pub struct Presence {
    number: u64,
    phase: Mutex<Phase>,
    changed: Notify,
    waiting: Waiting,
}

impl Presence {
    /// The head of a request is complete.
    pub fn asked(&self) {
        self.enter(|_| Phase::Served);
    }

    /// The answer to it is made.
    pub fn answered(self: &Arc<Self>) {
        let now = Instant::now();
        self.enter(|_| Phase::Between(now));
        self.waiting.lock().insert((now, self.number), Arc::downgrade(self));
    }

    /// Bytes came. The beginning of a request that comes while another one is served is not told apart from it; such a
    /// connection counts as one between requests.
    fn heard(&self) {
        self.enter(|phase| match phase {
            Phase::Between(_) => Phase::Request(Instant::now()),
            other => other,
        });
    }

    fn wrote(self: &Arc<Self>) {
        if matches!(*self.lock(), Phase::Between(_)) {
            self.answered();
        }
    }

    /// Waits until there is no more patience with it. Cancel safe.
    pub async fn exhausted(&self, patience: Patience) -> Ending {
        loop {
            let phase = *self.lock();
            let (end, ending) = match phase {
                Phase::Request(since) => (since + patience.header, Ending::Abrupt),
                Phase::Between(since) => (since + patience.keep_alive, Ending::Gentle),
                Phase::Yielding => return Ending::Gentle,
                Phase::Served => {
                    self.changed.notified().await;
                    continue;
                }
            };
            if end <= Instant::now() {
                return ending;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(end.into()) => {}
            }
        }
    }

    /// Goes on to another phase, and leaves those that wait if it was among them.
    fn enter(&self, next: impl FnOnce(Phase) -> Phase) {
        let mut phase = self.lock();
        let before = *phase;
        *phase = next(before);
        if *phase == before {
            return;
        }
        drop(phase);
        if let Phase::Between(since) = before {
            self.waiting.lock().remove(&(since, self.number));
        }
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // Each change of the phase is one assignment.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if let Phase::Between(since) = *self.lock() {
            self.waiting.lock().remove(&(since, self.number));
        }
    }
}

/// A stream that tells its connection's presence of bytes that come and go.
#[derive(Debug)]
pub struct Watched {
    stream: TcpStream,
    presence: Arc<Presence>,
}

impl Watched {
    /// Watches `stream`.
    pub fn new(stream: TcpStream, presence: Arc<Presence>) -> Self {
        Self { stream, presence }
    }

    /// The stream itself, when it is HTTP no more.
    pub fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn wrote(&self, count: usize) -> Poll<Result<usize>> {
        self.presence.wrote();
        Poll::Ready(Ok(count))
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.presence.heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.wrote(count)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.wrote(count)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(waiting: &Waiting) -> Arc<Presence> {
        let presence = waiting.connection();
        presence.asked();
        presence.answered();
        presence
    }

    #[test]
    fn whoever_waits_longest_yields_and_nobody_else() {
        let waiting = Waiting::default();
        let (new, asked) = (waiting.connection(), waiting.connection());
        asked.asked();
        let [first, second, busy, wrote, gone] = [(); 5].map(|()| kept(&waiting));
        busy.heard();
        wrote.wrote();
        drop(gone);
        for expected in [&first, &second, &wrote] {
            assert!(waiting.yield_longest());
            assert_eq!(*expected.lock(), Phase::Yielding);
        }
        assert!(!waiting.yield_longest());
        for left in [&new, &asked, &busy] {
            assert_ne!(*left.lock(), Phase::Yielding);
        }
        assert!(waiting.lock().is_empty(), "nobody is kept who is gone");
    }

    #[tokio::test]
    async fn each_phase_has_its_patience() {
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(3600));
        let waiting = Waiting::default();
        let hasty = Patience { header: short, keep_alive: long };
        assert_eq!(waiting.connection().exhausted(hasty).await, Ending::Abrupt);
        let begun = kept(&waiting);
        begun.heard();
        assert_eq!(begun.exhausted(hasty).await, Ending::Abrupt);
        let lazy = Patience { header: long, keep_alive: short };
        assert_eq!(kept(&waiting).exhausted(lazy).await, Ending::Gentle);
        let patient = Patience { header: long, keep_alive: long };
        let one = kept(&waiting);
        let (ending, _) =
            tokio::join!(one.exhausted(patient), async { waiting.yield_longest() && waiting.yield_longest() });
        assert_eq!(ending, Ending::Gentle);
    }
}
