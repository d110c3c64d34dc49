//! Owns the wiring of a gateway.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::access::Access;
use crate::broker::Broker;
use crate::broker::embedded::{self, Embedded};
use crate::broker::redis::{RedisBroker, Sessions};
use crate::check::at_start;
use crate::config::{BrokerConfig, Config, TopologyConfig};
use crate::edge::accept::{self, Acceptor};
use crate::edge::http::{self as routes, App};
use crate::edge::keep_alive::Waiting;
use crate::edge::limits::AddressLimits;
use crate::operate::drain::{self, Shutdown};
use crate::operate::health::Health;
use crate::operate::isolation;
use crate::operate::logging::Log;
use crate::operate::metrics::Metrics;
use crate::operate::service_manager::ServiceManager;
use crate::operate::status::Sources;
use crate::operate::status::streams::Streams;
use crate::operate::tasks::{TaskEnded, Tasks};
use crate::outbox::budget::Budget;
use crate::registry::Registry;
use crate::resume::limits::ResumeLimits;
use crate::resume::windows::Windows;
use crate::session::Context;
use crate::tls::connector::Connector;

/// Connections beyond the sessions: health checks, metrics, handshakes, the web client.
const OTHER_SOCKETS: usize = 128;
/// Of all connections, the part that one peer may have without saying what it wants; and of those that are no sessions'.
const SILENT_PART: usize = 8;
const OTHER_SILENT_PART: usize = 2;
/// How often it is forgotten who is within its limits again.
const TIDY: Duration = Duration::from_secs(10);
/// How long the last sessions and tasks may take once they are told to end.
const LAST: Duration = Duration::from_secs(2);

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

/// Runs a gateway on `listener`, and its metrics and status on `admin` if that is given, until `shutdown` has
/// been signalled and every session is gone or told to go. What it runs can be seen in `tasks`; `manager` is told how it is.
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
    manager: ServiceManager,
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

    let with_certificates = config.clone();
    metrics.tls.watch(move || with_certificates.certificate_expiries());
    if let Some(watch) = config.watch_certificates() {
        tasks.spawn_lasting("certificates", watch);
    }
    if let Some(verifier) = &config.access.verifier {
        verifier.source().announce();
        tasks.spawn_lasting("auth keys", verifier.source().clone().run());
    }

    metrics.connections_max.set(i64::try_from(limits.max_connections).unwrap_or(i64::MAX));
    metrics.outbox_bytes_max.set(i64::try_from(limits.outbox_total_bytes).unwrap_or(i64::MAX));
    let seats = Arc::new(Semaphore::new(limits.max_connections));
    let health = Health::new(
        &config.node_id,
        config.ready_grace,
        config.isolated_after,
        broker.clone(),
        seats.clone(),
        limits.max_connections,
        metrics.clone(),
    );
    let auth_keys = config.access.verifier.as_ref().map(|verifier| verifier.source().clone());
    let health = Arc::new(health.with_auth_keys(auth_keys));
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
        metrics: metrics.clone(),
        limits,
        budget,
        keys: config.session_keys.clone(),
        windows,
        resume_limits: ResumeLimits::new(limits.resumes_per_address),
        access: Access::new(config.access.origins.clone(), config.access.verifier.clone()),
    });
    let addresses = Arc::new(AddressLimits::new(limits.addresses));
    tasks.spawn_lasting("limits", tidy(context.clone(), addresses.clone()));
    let sessions = TaskTracker::new();
    let trusted_proxies = Arc::new(config.trusted_proxies.clone());
    let app = App {
        context,
        health: health.clone(),
        seats,
        sessions: sessions.clone(),
        trusted_proxies: trusted_proxies.clone(),
        addresses,
        complaints: Arc::default(),
        status: Streams::new(
            Sources { broker: broker.clone(), health: health.clone(), metrics: metrics.clone() },
            shutdown.clone(),
            tasks.clone(),
        ),
    };
    announce(&config, &listener, admin.as_ref())?;
    let acceptor = |routes, sockets: usize, terminator| {
        let silent = (sockets / SILENT_PART).max(OTHER_SOCKETS / OTHER_SILENT_PART);
        let waiting = Waiting::new(silent, metrics.limited.silent_connections.clone());
        let (sockets, trusted_proxies) = (Arc::new(Semaphore::new(sockets)), trusted_proxies.clone());
        Acceptor {
            routes,
            sockets,
            patience: limits.http,
            terminator,
            handshakes: metrics.tls.handshakes.clone(),
            waiting,
            trusted_proxies,
            turns: Arc::default(),
            crowded: metrics.limited.turns.clone(),
            tasks: tasks.clone(),
        }
    };
    accept::set_options(&listener, limits.write_timeout)?;
    let sockets = limits.max_connections.saturating_add(OTHER_SOCKETS);
    let public = acceptor(routes::public(app.clone(), admin.is_none()), sockets, config.terminator.clone());
    tasks.spawn_lasting("acceptor", public.run(listener));
    if let Some(admin) = admin {
        tasks.spawn_lasting("admin acceptor", acceptor(routes::admin(app), OTHER_SOCKETS, None).run(admin));
    }

    let (drain, answers) = (config.drain, limits.send_timeout);
    let telling = manager.run(health.clone(), registry.clone(), shutdown.clone(), drain, answers);
    tasks.spawn_lasting("service manager", telling);
    let (end, looked_at, by) = (tasks.end().clone(), config.clone(), broker.clone());
    tasks.spawn(async move {
        end.run_until_cancelled(at_start::warn_of_the_worst(looked_at, &*by)).await;
    });

    let result = until_over(&config, shutdown, &tasks, &health, &registry, &broker).await;
    sessions.close();
    let told = tokio::time::timeout(LAST, sessions.wait()).await.is_ok();
    broker.goodbye().await;
    let done = tasks.finish(LAST).await;
    info!(clean = result.is_ok() && told && done, "stopped");
    Ok(result?)
}

/// Forgets, again and again, who is within its limits.
async fn tidy(context: Arc<Context>, addresses: Arc<AddressLimits>) {
    loop {
        tokio::time::sleep(TIDY).await;
        context.resume_limits.tidy();
        addresses.tidy();
    }
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
        BrokerConfig::Embedded => {
            let window = sessions.limits.resume_window + sessions.limits.send_timeout;
            tasks.spawn_lasting("forgetting", embedded::forget(sessions.registry.clone(), window));
            Arc::new(Embedded::new(sessions.registry, metrics))
        }
        BrokerConfig::Redis(redis) => Arc::new(RedisBroker::start(redis, &config.node_id, sessions, metrics, tasks)),
    }
}

fn announce(config: &Config, listener: &TcpListener, admin: Option<&TcpListener>) -> Result<(), ServerError> {
    let address = listener.local_addr()?;
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let broker = match &config.broker {
        BrokerConfig::Embedded => "embedded (this node alone; give --sentinels or --redis for more)".to_owned(),
        BrokerConfig::Redis(redis) => match &redis.topology {
            TopologyConfig::Fixed(address) => format!("redis at {address}{}", with_tls(&redis.connector)),
            TopologyConfig::Sentinel { sentinels, master_name, connector, .. } => {
                let (tls, theirs) = (with_tls(&redis.connector), with_tls(connector));
                format!("redis master {master_name:?}{tls} by {} sentinels{theirs}", sentinels.len())
            }
        },
    };
    let scheme = if config.terminator.is_some() { "https" } else { "http" };
    let open = format!("{scheme}://{host}:{}/", address.port());
    info!(%address, %open, %broker, node = %config.node_id, max_connections = config.limits.max_connections, "listening");
    if let Some(admin) = admin {
        info!(address = %admin.local_addr()?, "metrics and status listening");
    }
    Ok(())
}

fn with_tls(connector: &Connector) -> &'static str {
    if connector.has_tls() { " (TLS)" } else { "" }
}
