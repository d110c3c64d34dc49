//! Owns the accept loop: who gets a place, and HTTP on what was accepted.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus::IntCounter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warp::filters::BoxedFilter;
use warp::reply::Response as WarpResponse;

use crate::edge::client_address::{Neighbourhood, Peer, TrustedProxies};
use crate::edge::http::SocketPermit;
use crate::edge::keep_alive::{Ending, Patience, Waiting, Watched};
use crate::edge::request::{self, Flaw};
use crate::edge::turns::{Crowded, Turns};
use crate::operate::metrics::TlsHandshakes;
use crate::operate::repeats::Repeats;
use crate::operate::tasks::Tasks;
use crate::tls::stream::Stream;
use crate::tls::terminator::Terminator;

/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// How long a client may take none of its bytes, at the TCP level; sessions have a deadline of their own.
const UNREAD: Duration = Duration::from_secs(30);
/// How long a connection may take to end at the end of the program.
const GENTLE_END: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted, or as many as the system allows (net.core.somaxconn): when a node dies, all
/// its clients come at once, and whoever finds no room tries again after a second (tcp(7), tcp_syn_retries).
const BACKLOG: i32 = 65_535;
/// What an operator is told of an address whose connections have no turn for long.
const CROWDED: &str = "connections are reset, for so many come from this address; if it is that of a proxy or a balancer, name \
                       it in --trusted-proxies";
/// Pause after a failed accept, such as for want of descriptors, and while no place is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Sets what accepted connections inherit.
///
/// # Errors
/// When the system refuses an option.
pub fn set_options(listener: &TcpListener, write_timeout: Duration) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(listener);
    // A socket that listens already takes the new length (listen(2)).
    socket.listen(BACKLOG)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    // A client that reads nothing of an HTTP answer holds its place no longer.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(write_timeout.max(UNREAD)))?;
    socket.set_tcp_keepalive(&keepalive)
}

/// Accepts connections and serves HTTP on them.
#[derive(Debug)]
pub struct Acceptor {
    /// What is served.
    pub routes: BoxedFilter<(WarpResponse,)>,
    /// One permit a connection.
    pub sockets: Arc<Semaphore>,
    /// How long a connection may say nothing.
    pub patience: Patience,
    /// Speaks TLS with those that connect, if they are to.
    pub terminator: Option<Terminator>,
    /// Counts what came of it.
    pub handshakes: TlsHandshakes,
    /// Who waits for what.
    pub waiting: Waiting,
    /// Peers that speak for many: no bound for one peer is theirs.
    pub trusted_proxies: Arc<TrustedProxies>,
    /// When each address may have its next connection or request.
    pub turns: Arc<Turns>,
    /// Counts those that are refused.
    pub crowded: IntCounter,
    /// Connections are served here.
    pub tasks: Tasks,
}

impl Acceptor {
    /// Accepts until it is dropped.
    pub async fn run(self, listener: TcpListener) {
        let this = Arc::new(self);
        let (mut failures, mut crowds) = (Repeats::default(), Repeats::default());
        loop {
            // Nobody is accepted that there is no descriptor for; they wait in the backlog.
            let Some(permit) = this.place().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(again) = failures.note(Instant::now(), &error.to_string()) {
                        warn!(%error, "a connection could not be accepted{again}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let turn = match this.trusted_proxies.contains(peer.ip()) {
                true => Ok(Duration::ZERO), // Whom it speaks for, its requests say.
                false => this.turns.take(Instant::now(), Neighbourhood::of(peer.ip())),
            };
            match turn {
                Ok(turn) => this.tasks.spawn(this.clone().serve(stream, peer, Arc::new(permit), turn)),
                Err(_) => {
                    this.crowded.inc();
                    if let Some(again) = crowds.note(Instant::now(), CROWDED) {
                        warn!(address = %peer.ip(), "{CROWDED}{again}");
                    }
                    // It leaves nothing behind, not even a connection that waits to be over.
                    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                }
            }
        }
    }

    /// Serves HTTP on `stream`, once it is its `turn`.
    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, permit: SocketPermit, turn: Duration) {
        let end = self.tasks.end();
        if !turn.is_zero() && end.run_until_cancelled(tokio::time::sleep(turn)).await.is_none() {
            return;
        }
        let is_proxy = self.trusted_proxies.contains(peer.ip());
        let presence = self.waiting.connection((!is_proxy).then(|| Neighbourhood::of(peer.ip())));
        let patience = self.patience;
        let stream = match &self.terminator {
            None => Stream::Plain(stream),
            Some(terminator) => match self.welcome(terminator, stream, patience.header, end).await {
                Some(stream) => stream,
                None => return,
            },
        };
        let routes = TowerToHyperService::new(warp::service(self.routes.clone()));
        // The turn of the connection is that of its first request.
        let has_turn = AtomicBool::new(!is_proxy);
        let (this, served) = (&self, &presence);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let turn = match has_turn.swap(false, Ordering::Relaxed) {
                true => Ok(Duration::ZERO),
                false => this.turn_of(peer, request.headers()),
            };
            let flaw = if served.asked() { request::flaw(&request) } else { Some(Flaw::LineEnd) };
            request.extensions_mut().insert(permit.clone());
            request.extensions_mut().insert(Peer(peer));
            let version = request.version();
            request.extensions_mut().insert(version);
            let answer = match flaw {
                None => Ok(routes.call(request)),
                Some(flaw) => {
                    debug!(address = %peer, "a request is refused: {flaw}");
                    Err(flaw)
                }
            };
            async move {
                let mut answer = match (turn, answer) {
                    (Err(crowded), _) => {
                        this.crowded.inc();
                        let mut answer = request::refusal(StatusCode::TOO_MANY_REQUESTS, &crowded);
                        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                        answer
                    }
                    (Ok(wait), answer) => {
                        if !wait.is_zero() {
                            tokio::time::sleep(wait).await;
                        }
                        match answer {
                            Ok(answer) => answer.await?,
                            Err(flaw) => request::refusal(StatusCode::BAD_REQUEST, &flaw),
                        }
                    }
                };
                // An upgraded connection is HTTP no more.
                if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                    request::harden(answer.headers_mut());
                    served.answered();
                }
                Ok::<_, Infallible>(answer)
            }
        });
        // hyper's own header timeout would run between requests as well.
        let connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(Watched::new(stream, presence.clone())), service)
            .with_upgrades();
        tokio::pin!(connection);
        let limit = tokio::select! {
            result = &mut connection => return log_end(result),
            ending = presence.exhausted(patience) => match ending {
                Ending::Gentle => patience.header,
                Ending::Abrupt => return,
            },
            () = end.cancelled() => GENTLE_END,
        };
        connection.as_mut().graceful_shutdown();
        log_end(tokio::time::timeout(limit, connection).await.unwrap_or(Ok(())));
    }

    /// Does the TLS handshake. The time for it is part of that for the first request.
    async fn welcome(
        &self,
        terminator: &Terminator,
        stream: TcpStream,
        limit: Duration,
        end: &CancellationToken,
    ) -> Option<Stream> {
        let welcomed = end.run_until_cancelled(Box::pin(terminator.welcome(stream, limit))).await?;
        self.handshakes.count(&welcomed);
        welcomed.inspect_err(|error| debug!(%error, "a client found no way in by TLS")).ok()
    }

    /// How long a request waits for the turn of whom it is by.
    fn turn_of(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<Duration, Crowded> {
        let client = self.trusted_proxies.client(Peer(peer), headers);
        // A proxy that names nobody may speak for many.
        if self.trusted_proxies.contains(client) {
            return Ok(Duration::ZERO);
        }
        self.turns.take(Instant::now(), Neighbourhood::of(client))
    }

    /// A place for one more connection. While none is left, those that wait for their next request make room, and then
    /// those that have owed one for long.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.sockets.clone().try_acquire_owned() {
            return Some(permit);
        }
        loop {
            if !self.waiting.yield_longest() {
                self.waiting.expel_longest();
            }
            if let Ok(permit) = tokio::time::timeout(ACCEPT_PAUSE, self.sockets.clone().acquire_owned()).await {
                return permit.ok();
            }
        }
    }
}

fn log_end(result: hyper::Result<()>) {
    if let Err(error) = result {
        debug!(%error, "an HTTP connection ended");
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use warp::{Filter, Reply};

    use super::*;
    use crate::edge::turns::Pace;

    const EVERY: Duration = Duration::from_millis(250);

    /// A server whose clients may have three turns at once; what it counts of those that it refuses.
    async fn server() -> (std::net::SocketAddr, IntCounter) {
        let counter = || IntCounter::new("counter", "counts").unwrap();
        let crowded = counter();
        let acceptor = Acceptor {
            routes: warp::any().map(|| "served".into_response()).boxed(),
            sockets: Arc::new(Semaphore::new(100)),
            patience: Patience { header: Duration::from_secs(60), keep_alive: Duration::from_secs(60) },
            terminator: None,
            handshakes: TlsHandshakes::default(),
            waiting: Waiting::new(100, counter()),
            trusted_proxies: Arc::default(),
            turns: Arc::new(Turns::new(Pace { at_once: 3, every: EVERY })),
            crowded: crowded.clone(),
            tasks: Tasks::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(acceptor.run(listener));
        (address, crowded)
    }

    async fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("served") && !answer.ends_with("second\n") {
            let mut part = [0; 1024];
            let count = stream.read(&mut part).await.unwrap();
            assert!(count > 0, "{answer}");
            answer.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        answer
    }

    #[tokio::test]
    async fn requests_beyond_a_crowds_wait_for_their_turn() {
        let (address, crowded) = server().await;
        let began = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..5 {
            assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
        }
        assert!(began.elapsed() >= 2 * EVERY, "{:?}", began.elapsed());
        assert_eq!(crowded.get(), 0);
    }

    #[tokio::test]
    async fn connections_beyond_a_crowds_wait_for_their_turn_and_those_that_would_wait_long_are_reset() {
        let (address, crowded) = server().await;
        let began = Instant::now();
        let mut streams = Vec::new();
        for _ in 0..12 {
            streams.extend(TcpStream::connect(address).await.ok());
        }
        let mut served = 0;
        for stream in &mut streams {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok();
            let mut answer = String::new();
            served += u64::from(stream.read_to_string(&mut answer).await.is_ok_and(|count| count > 0));
        }
        assert_eq!(served + crowded.get(), 12);
        assert!(served >= 7 && crowded.get() > 0, "{served} were served");
        assert!(began.elapsed() >= 4 * EVERY, "{:?}", began.elapsed());
    }
}
