//! Tasks that panic or end by themselves: a node stops, or goes on whole, but never half.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use texto::broker::embedded::Embedded;
use texto::broker::{Broker, BrokerStatus, Message, Resumption};
use texto::config::Config;
use texto::config::cli::Cli;
use texto::config::variables::Variables;
use texto::edge::client_address::TrustedProxies;
use texto::edge::http::{self as routes, App};
use texto::operate::drain::Shutdown;
use texto::operate::health::Health;
use texto::operate::logging::Log;
use texto::operate::metrics::Metrics;
use texto::operate::service_manager::ServiceManager;
use texto::operate::status::Sources;
use texto::operate::status::streams::Streams;
use texto::operate::tasks::{TaskEnded, Tasks};
use texto::outbox::ReplyTo;
use texto::outbox::budget::Budget;
use texto::registry::Registry;
use texto::resume::keys::Keys;
use texto::resume::windows::Windows;
use texto::server::{self, ServerError};
use texto::session::Context;
use texto_lab::client::{Answer, Client};
use texto_lab::cluster::{Cluster, ClusterOptions};
use texto_lab::http;
use texto_lab::process::until;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);

/// A gateway in this process, whose tasks the test can end.
struct Gateway {
    address: SocketAddr,
    admin: SocketAddr,
    tasks: Tasks,
    shutdown: Shutdown,
    run: JoinHandle<Result<(), ServerError>>,
}

fn config(arguments: &[&str]) -> Config {
    let cli = Cli::read(["texto"].iter().chain(arguments)).unwrap();
    Config::new(&cli.serve, &Variables::default()).unwrap()
}

impl Gateway {
    async fn start(cluster: &Cluster) -> Self {
        let keys = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(keys.path(), texto::resume::keys::new_line().unwrap()).unwrap();
        let keys = keys.path().to_str().unwrap();
        let flags = cluster.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--session-key-file", keys]).collect();
        let config = config(&flags);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, admin_address) = (listener.local_addr().unwrap(), admin.local_addr().unwrap());
        let (tasks, shutdown) = (Tasks::default(), Shutdown::default());
        let (own, signals) = (tasks.clone(), shutdown.clone());
        let run = tokio::spawn(async move {
            let log = Log::to_stderr().unwrap();
            server::run(config, listener, Some(admin), signals, own, &log, ServiceManager::default()).await
        });
        let gateway = Self { address, admin: admin_address, tasks, shutdown, run };
        gateway.is_whole(cluster).await;
        gateway
    }

    /// Waits until all links are synced.
    async fn is_whole(&self, cluster: &Cluster) {
        until("every server has a link", LIMIT, async || {
            let body = http::get(self.admin, "/readyz", "").await.ok()?.body;
            (body.matches(r#""state":"synced""#).count() == cluster.servers.len()).then_some(())
        })
        .await
        .unwrap();
    }
}

/// It is there only where credentials are demanded, and so the clients above would not come in.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_keys_of_credentials_nobody_follows_any_more_ends() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s".repeat(32)).unwrap();
    let config = config(&["--auth-key-file", secret.path().to_str().unwrap()]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tasks = Tasks::default();
    let own = tasks.clone();
    let run = tokio::spawn(async move {
        server::run(
            config,
            listener,
            None,
            Shutdown::default(),
            own,
            &Log::to_stderr().unwrap(),
            ServiceManager::default(),
        )
        .await
    });
    let there = async || tasks.names().contains(&"auth keys").then_some(());
    until("the task is there", LIMIT, there).await.unwrap();
    tasks.abort("auth keys");
    let ended = tokio::time::timeout(LIMIT, run).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(ended, ServerError::Task(TaskEnded::Returned("auth keys"))), "{ended}");
}

/// Every kind of task, ended from outside as a fault of the program would end it.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ends_by_itself_ends_the_gateway_or_is_started_again() {
    // With TLS, whose certificates are watched.
    let cluster = Cluster::start(&ClusterOptions { tls: true, ..ClusterOptions::default() }).await.unwrap();
    let vital = [
        "acceptor",
        "admin acceptor",
        "budget",
        "certificates",
        "clock",
        "drain",
        "heartbeat",
        "isolation",
        "keeper",
        "limits",
        "link",
        "service manager",
        "session keys",
        "watcher",
        "windows",
    ];
    for name in vital {
        let gateway = Gateway::start(&cluster).await;
        let names: BTreeSet<_> = gateway.tasks.names().into_iter().collect();
        assert_eq!(names, vital.into_iter().chain(["subscriptions"]).collect(), "a kind of task is not in this test");
        let mut client = Client::connect(gateway.address).await.unwrap();
        gateway.tasks.abort(name);
        let told = client.closed(LIMIT).await.unwrap_or_else(|error| panic!("it lives on without {name}: {error}"));
        assert_eq!(told, 1001, "its clients are told");
        drop(client);
        let ended = tokio::time::timeout(LIMIT, gateway.run).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(ended, ServerError::Task(TaskEnded::Returned(ended)) if ended == name), "{ended}");
        assert_eq!(ended.exit_code(), 70);
    }

    let gateway = Gateway::start(&cluster).await;
    let mut client = Client::connect(gateway.address).await.unwrap();
    gateway.tasks.abort("subscriptions");
    until("every link was lost once", LIMIT, async || {
        let text = http::get(gateway.admin, "/metrics", "").await.ok()?.body;
        let lost = text.lines().filter(|line| line.starts_with("texto_link_failures_total{") && line.ends_with(" 1"));
        (lost.count() == cluster.servers.len()).then_some(())
    })
    .await
    .unwrap();
    gateway.is_whole(&cluster).await;
    assert_eq!(client.send(client.id, "to myself").await.unwrap(), Answer::Ack);
    gateway.shutdown.stop.cancel();
    gateway.run.await.unwrap().unwrap();
    assert!(gateway.tasks.names().is_empty());
}

/// Panics when a message says so.
#[derive(Debug)]
struct Fragile(Embedded);

impl Broker for Fragile {
    fn resume(&self, _client: Uuid, _generation: u64) -> BoxFuture<'_, Resumption> {
        Box::pin(std::future::ready(Resumption::Lost))
    }

    fn publish(&self, message: Message, reply: ReplyTo) {
        assert!(message.text != "panic", "on purpose");
        self.0.publish(message, reply);
    }

    fn joined(&self, client: Uuid) {
        self.0.joined(client);
    }

    fn left(&self, client: Uuid) {
        self.0.left(client);
    }

    fn status(&self) -> BrokerStatus {
        self.0.status()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_panics_takes_nothing_with_it() {
    let limits = config(&[]).limits;
    let metrics = Arc::new(Metrics::new("test").unwrap());
    let registry = Arc::new(Registry::default());
    let broker = Arc::new(Fragile(Embedded::new(registry.clone(), metrics.clone())));
    let seats = Arc::new(tokio::sync::Semaphore::new(10));
    let health = Arc::new(Health::new("test", LIMIT, LIMIT, broker.clone(), seats.clone(), 10, metrics.clone()));
    let budget = Budget::new(limits.outbox_total_bytes, metrics.outbox_bytes.clone());
    let keys = Keys::own().unwrap();
    let windows = Arc::new(Windows::new(limits.resume_window, 1, metrics.clone()));
    let context = Arc::new(Context {
        registry: registry.clone(),
        broker: broker.clone(),
        metrics: metrics.clone(),
        limits,
        budget,
        keys,
        windows,
        resume_limits: texto::resume::limits::ResumeLimits::new(0),
        access: texto::access::Access::default(),
    });
    let trusted_proxies = Arc::new(TrustedProxies::default());
    let complaints = Arc::default();
    let (seats_of_app, addresses) = (seats.clone(), Arc::default());
    let sessions = TaskTracker::new();
    let sources = Sources { broker, health: health.clone(), metrics: metrics.clone() };
    let status = Streams::new(sources, Shutdown::default(), Tasks::default());
    let app = App { context, health, seats: seats_of_app, sessions, trusted_proxies, addresses, complaints, status };
    let service = TowerToHyperService::new(warp::service(routes::public(app, true)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::default();
    let connections = tasks.clone();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
            connections.spawn(async { drop(connection.with_upgrades().await) });
        }
    });

    // An alert takes the increase, which a series has only when it was there before.
    assert!(metrics.render().unwrap().contains("texto_sessions_closed_total{reason=\"panicked\"} 0"));
    let mut bad = Client::connect(address).await.unwrap();
    let mut a = Client::connect(address).await.unwrap();
    let mut b = Client::connect(address).await.unwrap();
    assert_eq!((registry.len(), metrics.connections.get()), (3, 3));
    assert!(bad.send(a.id, "panic").await.unwrap_err().to_string().contains("1006"));
    until("it is gone", LIMIT, async || (seats.available_permits() == 8).then_some(())).await.unwrap();
    assert_eq!((registry.len(), metrics.connections.get()), (2, 2));
    assert!(metrics.render().unwrap().contains("texto_sessions_closed_total{reason=\"panicked\"} 1"));
    assert_eq!(a.send(bad.id, "still there?").await.unwrap(), Answer::Error("ENOTCONN".to_owned()));
    assert_eq!(a.send(b.id, "and you?").await.unwrap(), Answer::Ack);
    assert_eq!(b.receive().await.unwrap().1, "and you?");
}
