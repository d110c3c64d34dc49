//! Owns the wiring of a gateway and its accept loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};
use warp::filters::BoxedFilter;
use warp::reply::Response as WarpResponse;

use crate::broker::Broker;
use crate::broker::embedded::Embedded;
use crate::broker::redis::{RedisBroker, Sessions};
use crate::budget::Budget;
use crate::client_address::Peer;
use crate::config::{BrokerConfig, Config, TopologyConfig};
use crate::drain::{self, Shutdown};
use crate::health::Health;
use crate::http::{self as routes, App, SocketPermit};
use crate::isolation;
use crate::keep_alive::{Ending, Patience, Waiting, Watched};
use crate::logging::Log;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::repeats::Repeats;
use crate::resume_limits::ResumeLimits;
use crate::session::Context;
use crate::tasks::{TaskEnded, Tasks};
use crate::windows::Windows;

/// Connections beyond the sessions: health checks, metrics, handshakes, the web client.
const OTHER_SOCKETS: usize = 128;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// How long the last sessions and tasks may take once they are told to end.
const LAST: Duration = Duration::from_secs(2);
/// How long a client may take none of its bytes, at the TCP level; sessions have a deadline of their own.
const UNREAD: Duration = Duration::from_secs(30);
/// How long a connection may take to end at the end of the program.
const GENTLE_END: Duration = Duration::from_secs(1);
/// Pause after a failed accept, such as for want of descriptors, and while no place is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// EX_SOFTWARE: a fault of the program's own.
pub const EXIT_SOFTWARE: u8 = 70;

/// Why a gateway could not run, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A socket option was refused.
    #[error("the listening socket can't be set up: {0}")]
    Listener(#[from] std::io::Error),
    /// Metrics collide.
    #[error("the metrics can't be set up: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The gateway ran, but can do so no longer.
    #[error(transparent)]
    Task(#[from] TaskEnded),
}

impl ServerError {
    /// What the program ends with, as in sysexits.h where that has a code for it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listener(_) | Self::Metrics(_) => 1,
            Self::Task(_) => EXIT_SOFTWARE,
        }
    }
}

/// Runs a gateway on `listener`, and its metrics on `admin` if that is given, until `shutdown` has
/// been signalled and every session is gone or told to go. What it runs can be seen in `tasks`.
///
/// # Errors
/// When it can't start, or a task that it needs has ended; sessions are told to go elsewhere then. What
/// happens to Redis is no error: the gateway starts and lives without it.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: Shutdown,
    tasks: Tasks,
    log: &Log,
) -> Result<(), ServerError> {
    let metrics = Arc::new(Metrics::new(&config.node_id)?);
    metrics.add(log.lines_dropped())?;
    let registry = Arc::new(Registry::default());
    let limits = config.limits;
    let budget = Budget::new(limits.outbox_total_bytes, metrics.outbox_bytes.clone());
    let windows = Arc::new(Windows::new(limits.resume_window, limits.max_connections, metrics.clone()));
    let sessions = Sessions {
        registry: registry.clone(),
        windows: windows.clone(),
        budget: budget.clone(),
        limits,
        keys: config.session_keys.clone(),
    };
    let broker = start_broker(&config, sessions, &metrics, &tasks);

    config.session_keys.announce(matches!(config.broker, BrokerConfig::Embedded));
    if config.session_keys.are_shared() {
        tasks.spawn_lasting("session keys", config.session_keys.clone().run());
    }

    metrics.connections_max.set(i64::try_from(limits.max_connections).unwrap_or(i64::MAX));
    metrics.outbox_bytes_max.set(i64::try_from(limits.outbox_total_bytes).unwrap_or(i64::MAX));
    let seats = Arc::new(Semaphore::new(limits.max_connections));
    let health = Arc::new(Health::new(
        &config.node_id,
        config.ready_grace,
        config.isolated_after,
        broker.clone(),
        seats.clone(),
        limits.max_connections,
        metrics.clone(),
    ));
    let heartbeat = health.clone();
    tasks.spawn_lasting("heartbeat", async move { heartbeat.run_heartbeat().await });

    if !matches!(config.broker, BrokerConfig::Embedded) {
        let (broker, registry) = (broker.clone(), registry.clone());
        tasks.spawn_lasting("isolation", isolation::run(config.isolated_after, config.drain.window, broker, registry));
    }

    tasks.spawn_lasting("budget", budget.clone().run(registry.clone()));
    tasks.spawn_lasting("windows", windows.clone().run(registry.clone(), broker.clone()));
    let context = Arc::new(Context {
        registry: registry.clone(),
        broker: broker.clone(),
        metrics,
        limits,
        budget,
        keys: config.session_keys.clone(),
        windows,
        resume_limits: ResumeLimits::new(limits.resumes_per_address),
    });
    let sessions = TaskTracker::new();
    let trusted_proxies = Arc::new(config.trusted_proxies.clone());
    let app = App {
        context,
        health: health.clone(),
        seats,
        sessions: sessions.clone(),
        trusted_proxies,
        complaints: Arc::default(),
    };
    announce(&config, &listener, admin.as_ref())?;
    let sockets = Arc::new(Semaphore::new(limits.max_connections.saturating_add(OTHER_SOCKETS)));
    let acceptor = |routes, sockets| Acceptor { routes, sockets, patience: limits.http, tasks: tasks.clone() };
    set_options(&listener, limits.write_timeout)?;
    let public = acceptor(routes::public(app.clone(), admin.is_none()), sockets);
    tasks.spawn_lasting("acceptor", public.run(listener));
    if let Some(admin) = admin {
        let sockets = Arc::new(Semaphore::new(OTHER_SOCKETS));
        tasks.spawn_lasting("admin acceptor", acceptor(routes::admin(app), sockets).run(admin));
    }

    let result = until_over(&config, shutdown, &tasks, &health, &registry, &broker).await;
    sessions.close();
    let told = tokio::time::timeout(LAST, sessions.wait()).await.is_ok();
    broker.goodbye().await;
    let done = tasks.finish(LAST).await;
    info!(clean = result.is_ok() && told && done, "stopped");
    Ok(result?)
}

/// Returns when every session is gone or told to go: by a drain, or because a task is missing.
async fn until_over(
    config: &Config,
    shutdown: Shutdown,
    tasks: &Tasks,
    health: &Arc<Health>,
    registry: &Arc<Registry>,
    broker: &Arc<dyn Broker>,
) -> Result<(), TaskEnded> {
    let drained = CancellationToken::new();
    let drain = {
        let (drained, health) = (drained.clone(), health.clone());
        let (registry, broker) = (registry.clone(), broker.clone());
        let (config, answers) = (config.drain, config.limits.send_timeout);
        async move {
            drain::run(config, answers, &shutdown, &health, &registry, &*broker).await;
            drained.cancel();
        }
    };
    tasks.spawn_vital("drain", &drained, drain);
    tokio::select! {
        () = drained.cancelled() => Ok(()),
        ended = tasks.ended() => {
            error!("stopping: {ended}");
            drain::stop(health, registry);
            Err(ended)
        }
    }
}

fn start_broker(config: &Config, sessions: Sessions, metrics: &Arc<Metrics>, tasks: &Tasks) -> Arc<dyn Broker> {
    let metrics = metrics.clone();
    match &config.broker {
        BrokerConfig::Embedded => Arc::new(Embedded::new(sessions.registry, metrics)),
        BrokerConfig::Redis(redis) => Arc::new(RedisBroker::start(redis, &config.node_id, sessions, metrics, tasks)),
    }
}

fn announce(config: &Config, listener: &TcpListener, admin: Option<&TcpListener>) -> Result<(), ServerError> {
    let address = listener.local_addr()?;
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let broker = match &config.broker {
        BrokerConfig::Embedded => "embedded (this node alone; give --sentinels or --redis for more)".to_owned(),
        BrokerConfig::Redis(redis) => match &redis.topology {
            TopologyConfig::Fixed(address) => format!("redis at {address}"),
            TopologyConfig::Sentinel { sentinels, master_name, .. } => {
                format!("redis master {master_name:?} by {} sentinels", sentinels.len())
            }
        },
    };
    let open = format!("http://{host}:{}/", address.port());
    info!(%address, %open, %broker, node = %config.node_id, max_connections = config.limits.max_connections, "listening");
    if let Some(admin) = admin {
        info!(address = %admin.local_addr()?, "metrics listening");
    }
    Ok(())
}

/// Accepted connections inherit these.
fn set_options(listener: &TcpListener, write_timeout: Duration) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    // A client that reads nothing of an HTTP answer holds its place no longer.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(write_timeout.max(UNREAD)))?;
    socket.set_tcp_keepalive(&keepalive)
}

/// Accepts connections and serves HTTP on them.
struct Acceptor {
    routes: BoxedFilter<(WarpResponse,)>,
    sockets: Arc<Semaphore>,
    patience: Patience,
    tasks: Tasks,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let mut failures = Repeats::default();
        let waiting = Waiting::default();
        loop {
            // Nobody is accepted that there is no descriptor for; they wait in the backlog.
            let Some(permit) = self.place(&waiting).await else { return };
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
            let permit: SocketPermit = Arc::new(permit);
            let routes = TowerToHyperService::new(warp::service(self.routes.clone()));
            let presence = waiting.connection();
            let stream = Watched::new(stream, presence.clone());
            let served = presence.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                served.asked();
                request.extensions_mut().insert(permit.clone());
                request.extensions_mut().insert(Peer(peer));
                let version = request.version();
                request.extensions_mut().insert(version);
                let (answer, served) = (routes.call(request), served.clone());
                async move {
                    let answer = answer.await;
                    // An upgraded connection is HTTP no more.
                    if answer.as_ref().is_ok_and(|answer| answer.status() != StatusCode::SWITCHING_PROTOCOLS) {
                        served.answered();
                    }
                    answer
                }
            });
            // hyper's own header timeout would run between requests as well.
            let connection = http1::Builder::new()
                .header_read_timeout(None)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let end = self.tasks.end().clone();
            let patience = self.patience;
            self.tasks.spawn(async move {
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
            });
        }
    }

    /// A place for one more connection. While none is left, those that wait for their next request make room.
    async fn place(&self, waiting: &Waiting) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.sockets.clone().try_acquire_owned() {
            return Some(permit);
        }
        loop {
            waiting.yield_longest();
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
