//! Owns the patience with HTTP connections: how long each may say nothing, and which one yields its place, or loses it.

use std::collections::BTreeMap;
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::edge::client_address::Neighbourhood;
use crate::edge::heads::Heads;
use crate::edge::owing::Owing;
use crate::tls::stream::Stream;

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

/// A connection that owes a request must have owed it for so long before it has to make room for somebody else's.
const OWED: Duration = Duration::from_secs(1);

/// The connections of a listener that wait for their next request, or owe one. A cheap handle.
#[derive(Clone, Debug)]
pub struct Waiting {
    inner: Arc<WaitingInner>,
}

#[derive(Debug)]
struct WaitingInner {
    numbers: AtomicU64,
    /// The one that waits longest comes first.
    longest_first: Mutex<BTreeMap<(Instant, u64), Weak<Presence>>>,
    owing: Mutex<Owing<Weak<Presence>>>,
    expelled: IntCounter,
}

impl Waiting {
    /// One peer may have `most` connections that owe a request; those that are closed for that are counted.
    pub fn new(most: usize, expelled: IntCounter) -> Self {
        let owing = Mutex::new(Owing::new(most));
        let (numbers, longest_first) = (AtomicU64::new(0), Mutex::default());
        Self { inner: Arc::new(WaitingInner { numbers, longest_first, owing, expelled }) }
    }

    /// A new connection from `peer`, which owes its first request; a proxy that speaks for many is nobody's.
    pub fn connection(&self, peer: Option<Neighbourhood>) -> Arc<Presence> {
        let since = Instant::now();
        let presence = Arc::new(Presence {
            number: self.inner.numbers.fetch_add(1, Ordering::Relaxed),
            peer,
            phase: Mutex::new(Phase::Request(since)),
            heads: Mutex::default(),
            changed: Notify::new(),
            waiting: self.clone(),
        });
        self.owes(since, &presence);
        presence
    }

    fn owes(&self, since: Instant, presence: &Arc<Presence>) {
        let goes = self.owing().add((since, presence.number), presence.peer, Arc::downgrade(presence));
        self.expel(goes);
    }

    /// Closes the connection that has owed a request longest, if that is long enough. Returns whether there is one.
    pub fn expel_longest(&self) -> bool {
        let goes = self.owing().longest(Instant::now(), OWED);
        self.expel(goes)
    }

    fn expel(&self, presence: Option<Weak<Presence>>) -> bool {
        let Some(presence) = presence.and_then(|presence| presence.upgrade()) else { return false };
        let mut phase = presence.lock();
        // Unless it has said something meanwhile.
        if !matches!(*phase, Phase::Request(_)) {
            return false;
        }
        *phase = Phase::Expelled;
        self.inner.expelled.inc();
        presence.changed.notify_one();
        true
    }

    fn owing(&self) -> MutexGuard<'_, Owing<Weak<Presence>>> {
        // Nothing can panic while it holds the lock.
        self.inner.owing.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// It owed a request, and another connection has its place.
    Expelled,
}

/// What is known of one connection.
#[derive(Debug)]
pub struct Presence {
    number: u64,
    peer: Option<Neighbourhood>,
    phase: Mutex<Phase>,
    heads: Mutex<Heads>,
    changed: Notify,
    waiting: Waiting,
}

impl Presence {
    /// The head of a request is complete. Returns whether all of its lines end as they must.
    pub fn asked(self: &Arc<Self>) -> bool {
        self.enter(|_| Phase::Served);
        self.heads().next_is_sound()
    }

    /// The answer to it is made.
    pub fn answered(self: &Arc<Self>) {
        let now = Instant::now();
        self.enter(|_| Phase::Between(now));
        self.waiting.lock().insert((now, self.number), Arc::downgrade(self));
    }

    /// Bytes came. The beginning of a request that comes while another one is served is not told apart from it; such a
    /// connection counts as one between requests.
    fn heard(self: &Arc<Self>, bytes: &[u8]) {
        self.heads().feed(bytes);
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
                Phase::Expelled => return Ending::Abrupt,
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

    /// Goes on to another phase, and leaves those that wait or owe if it was among them.
    fn enter(self: &Arc<Self>, next: impl FnOnce(Phase) -> Phase) {
        let mut phase = self.lock();
        let before = *phase;
        *phase = next(before);
        let after = *phase;
        if after == before {
            return;
        }
        drop(phase);
        self.leave(before);
        if let Phase::Request(since) = after {
            self.waiting.owes(since, self);
        }
        self.changed.notify_one();
    }

    fn leave(&self, phase: Phase) {
        match phase {
            Phase::Between(since) => drop(self.waiting.lock().remove(&(since, self.number))),
            Phase::Request(since) => drop(self.waiting.owing().remove((since, self.number))),
            Phase::Served | Phase::Yielding | Phase::Expelled => {}
        }
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        // Nothing can panic while it holds the lock.
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // Each change of the phase is one assignment.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let phase = *self.lock();
        self.leave(phase);
    }
}

/// A stream that tells its connection's presence of bytes that come and go.
#[derive(Debug)]
pub struct Watched {
    stream: Stream,
    presence: Arc<Presence>,
}

impl Watched {
    /// Watches `stream`.
    pub fn new(stream: Stream, presence: Arc<Presence>) -> Self {
        Self { stream, presence }
    }

    /// The stream itself, when it is HTTP no more.
    pub fn into_inner(self) -> Stream {
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
            self.presence.heard(&buf.filled()[before..]);
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

    fn waiting(most: usize) -> Waiting {
        Waiting::new(most, IntCounter::new("expelled", "expelled").unwrap())
    }

    fn kept(waiting: &Waiting) -> Arc<Presence> {
        let presence = waiting.connection(None);
        presence.asked();
        presence.answered();
        presence
    }

    #[test]
    fn whoever_waits_longest_yields_and_nobody_else() {
        let waiting = waiting(9);
        let (new, asked) = (waiting.connection(None), waiting.connection(None));
        asked.asked();
        let [first, second, busy, wrote, gone] = [(); 5].map(|()| kept(&waiting));
        busy.heard(b"G");
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
        let waiting = waiting(9);
        let hasty = Patience { header: short, keep_alive: long };
        assert_eq!(waiting.connection(None).exhausted(hasty).await, Ending::Abrupt);
        let begun = kept(&waiting);
        begun.heard(b"G");
        assert_eq!(begun.exhausted(hasty).await, Ending::Abrupt);
        let lazy = Patience { header: long, keep_alive: short };
        assert_eq!(kept(&waiting).exhausted(lazy).await, Ending::Gentle);
        let patient = Patience { header: long, keep_alive: long };
        let one = kept(&waiting);
        let (ending, _) =
            tokio::join!(one.exhausted(patient), async { waiting.yield_longest() && waiting.yield_longest() });
        assert_eq!(ending, Ending::Gentle);
    }

    #[tokio::test]
    async fn whoever_owes_more_requests_than_its_share_loses_its_oldest_and_nobody_else_does() {
        let long = Duration::from_secs(3600);
        let (waiting, patience) = (waiting(2), Patience { header: long, keep_alive: long });
        let peer = |last: u8| Some(Neighbourhood::of([192, 0, 2, last].into()));
        let other = waiting.connection(peer(9));
        let [silent, begun, third] = [(); 3].map(|()| waiting.connection(peer(1)));
        assert_eq!(silent.exhausted(patience).await, Ending::Abrupt);
        third.asked();
        let fourth = waiting.connection(peer(1));
        // One that begins its next request owes one again.
        third.answered();
        third.heard(b"G");
        assert_eq!(begun.exhausted(patience).await, Ending::Abrupt);
        for left in [&other, &third, &fourth] {
            assert!(matches!(*left.lock(), Phase::Request(_)));
        }
        assert_eq!(waiting.inner.expelled.get(), 2);
        assert!(!waiting.expel_longest(), "nobody has owed one for long");
        drop((other, third, fourth));
        assert!(waiting.owing().longest(Instant::now() + long, OWED).is_none(), "nobody is kept who is gone");
    }
}
