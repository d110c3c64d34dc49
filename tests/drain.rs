//! The end of a gateway: under load, without Redis, and at once.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use texto_lab::traffic::{Plan, Traffic};

const LIMIT: Duration = Duration::from_secs(15);

async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), arguments, &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_drains_under_load_and_owes_nobody_an_answer() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let address = redis.address();
    let window = ["--redis", &address, "--drain-delay", "300ms", "--drain-window", "1s"];
    let (mut draining, other) = (gateway(&window).await, gateway(&window).await);
    draining.wait_ready(LIMIT).await.unwrap();
    other.wait_ready(LIMIT).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut client = Client::connect(draining.address).await.unwrap();
        let mut partner = Client::connect(other.address).await.unwrap();
        tasks.spawn(async move {
            // As fast as it goes, until the node says farewell; every answer until then is an ack.
            loop {
                let Ok(request) = client.post(partner.id, "under load").await else { break };
                match client.answer(request).await {
                    Ok(answer) => {
                        assert_eq!(answer, Answer::Ack);
                        assert_eq!(partner.receive().await.unwrap().1, "under load");
                    }
                    Err(error) => {
                        assert!(error.to_string().contains("1012"), "{error}");
                        break;
                    }
                }
            }
            let stays = tokio::time::timeout(Duration::from_millis(10), partner.closed(LIMIT)).await;
            assert!(stays.is_err(), "a session on the other node was closed");
        });
    }
    draining.signal(Signal::SIGTERM);
    let began = Instant::now();
    until("it is not ready", LIMIT, async || {
        let answer = http::get(draining.address, "/readyz", "").await.ok()?;
        (answer.status == 503).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(http::get(draining.address, "/livez", "").await.unwrap().status, 200);
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    assert_eq!(draining.wait_exit(LIMIT).await.unwrap().code(), Some(0));
    let took = began.elapsed();
    assert!(took > Duration::from_millis(300) && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(other.metric("texto_connections").await, Some(0.0));
}

/// What was acknowledged for a receiver arrives before its session is closed, however much is under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_receivers_node_drains_under_full_load_and_loses_nothing_acknowledged() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let address = redis.address();
    let window = ["--redis", &address, "--drain-delay", "200ms", "--drain-window", "1s"];
    let senders = gateway(&window).await;
    for round in 0..4 {
        let mut draining = gateway(&window).await;
        senders.wait_ready(LIMIT).await.unwrap();
        draining.wait_ready(LIMIT).await.unwrap();
        let plan = Plan { window: 16, ..Plan::one_way(40, 300, Duration::from_secs(7)) };
        let traffic = Traffic::start(&[senders.address, draining.address], plan).await.unwrap();
        let flows = async || (traffic.checker().totals().3 > 1_000).then_some(());
        until("messages flow", LIMIT, flows).await.unwrap();
        draining.signal(Signal::SIGTERM);
        assert_eq!(draining.wait_exit(LIMIT).await.unwrap().code(), Some(0));
        traffic.stop();
        traffic.answered(LIMIT).await.unwrap();
        let told = async || (traffic.closes().len() == 300).then_some(());
        until("everybody has seen the farewell", LIMIT, told).await.unwrap();
        let (closes, end) = (traffic.closes(), traffic.now());
        assert!(closes.iter().all(|close| close.code == 1012), "{closes:?}");
        let report = traffic.finish(Duration::ZERO, end).await.unwrap();
        // Everybody on that node was told to leave; nothing else may have gone wrong.
        assert_eq!(report.broken(), ["300 sessions dropped"], "round {round}: {report:#?}");
        let others = report.errors.keys().filter(|code| !matches!(code.as_str(), "ENOTCONN" | "EBUSY")).count();
        assert_eq!(others, 0, "round {round}: {:?}", report.errors);
    }
}

/// A session that waits for its last answer reads nothing for a moment; what came meanwhile is answered all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_farewell_and_not_read_is_answered() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let address = redis.address();
    let at_once = ["--redis", &address, "--drain-delay", "0s", "--drain-window", "0s"];
    let (mut draining, other) = (gateway(&at_once).await, gateway(&at_once).await);
    draining.wait_ready(LIMIT).await.unwrap();
    other.wait_ready(LIMIT).await.unwrap();
    let mut client = Client::connect(draining.address).await.unwrap();
    let partner = Client::connect(other.address).await.unwrap();
    assert_eq!(client.send(partner.id, "they know one another").await.unwrap(), Answer::Ack);
    other.signal(Signal::SIGSTOP);
    let last = client.post(partner.id, "an answer that takes a while").await.unwrap();
    let sent = async || (draining.metric("texto_messages_pending").await? >= 1.0).then_some(());
    until("it is under way", LIMIT, sent).await.unwrap();
    draining.signal(Signal::SIGTERM);
    draining.wait_for_log("closing sessions", LIMIT).await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(client.post(partner.id, "before the farewell").await.unwrap());
    }
    other.signal(Signal::SIGCONT);
    assert_eq!(client.answer(last).await.unwrap(), Answer::Ack);
    for (number, request) in unread.into_iter().enumerate() {
        let answer = client.answer(request).await.unwrap_or_else(|error| panic!("{number}: {error}"));
        // Refused, if this machine took so long.
        assert!([Answer::Ack, Answer::Error("EBROKER".to_owned())].contains(&answer), "{number}: {answer:?}");
    }
    assert_eq!(client.closed(LIMIT).await.unwrap(), 1012);
    assert_eq!(draining.wait_exit(LIMIT).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_drains_in_time_while_redis_hangs() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    for (send_timeout, window) in [(5, "500ms"), (5, "0s"), (8, "0s")] {
        drain_while_it_hangs(&redis, Duration::from_secs(send_timeout), window).await;
    }
}

async fn drain_while_it_hangs(redis: &RedisServer, send_timeout: Duration, window: &str) {
    let (address, timeout) = (redis.address(), format!("{send_timeout:?}"));
    let window = ["--drain-delay", "0s", "--drain-window", window];
    let mut gateway = gateway(&[&["--redis", &address, "--send-timeout", &timeout], &window[..]].concat()).await;
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(Client::connect(gateway.address).await.unwrap());
    }
    redis.freeze();
    let mut requests = Vec::new();
    for client in &mut clients {
        requests.push(client.post(client.id, "nobody will know").await.unwrap());
    }
    // What has not been read when a node leaves is not answered: its connection ends.
    until("all are read", LIMIT, async || {
        (gateway.metric("texto_messages_pending").await? >= requests.len() as f64).then_some(())
    })
    .await
    .unwrap();
    gateway.signal(Signal::SIGTERM);
    let began = Instant::now();
    for (mut client, request) in clients.into_iter().zip(requests) {
        assert_eq!(client.answer(request).await.unwrap(), Answer::Error("EBROKER".to_owned()), "no answer is owed");
        assert_eq!(client.closed(LIMIT).await.unwrap(), 1012);
    }
    assert_eq!(gateway.wait_exit(LIMIT).await.unwrap().code(), Some(0));
    assert!(began.elapsed() < send_timeout + Duration::from_secs(6), "{:?}", began.elapsed());
    redis.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_and_an_interrupt_stop_at_once() {
    for signals in [vec![Signal::SIGTERM, Signal::SIGTERM], vec![Signal::SIGINT]] {
        let mut gateway = gateway(&["--drain-delay", "1h", "--drain-window", "1h"]).await;
        let mut client = Client::connect(gateway.address).await.unwrap();
        for signal in signals {
            gateway.signal(signal);
            if signal == Signal::SIGTERM {
                // Signals of a kind merge while one is pending: the first must have been taken.
                gateway.wait_for_log("draining", LIMIT).await.unwrap();
            }
        }
        assert_eq!(client.closed(LIMIT).await.unwrap(), 1001);
        assert_eq!(gateway.wait_exit(LIMIT).await.unwrap().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_wrong_ends_the_program_before_it_listens() {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_texto"))
        .args(["--redis", "a:1", "--sentinels", "b:2", "--send-timeout", "soon"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("TEXTO_SEND_TIMEOUT") && text.contains("exclude each other"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_says_by_its_exit_code() {
    let gateway = gateway(&["--max-connections", "1"]).await;
    let check = async |path: &str| {
        let address = gateway.address.to_string();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_texto"));
        let status = command.args(["healthcheck", "--listen", &address, "--path", path]).status().await.unwrap();
        status.code()
    };
    assert_eq!(check("/readyz").await, Some(0));
    let _client = Client::connect(gateway.address).await.unwrap();
    assert_eq!(check("/readyz").await, Some(1));
    assert_eq!(check("/livez").await, Some(0));
}

/// Whoever restarts what is not healthy must not restart gateways while Redis is away, or while they drain.
#[tokio::test(flavor = "multi_thread")]
async fn the_images_health_is_liveness() {
    let dockerfile = include_str!("../Dockerfile");
    let line = dockerfile.lines().find(|line| line.starts_with("HEALTHCHECK")).unwrap();
    let words: Vec<String> = serde_json::from_str(line.split_once("CMD ").unwrap().1).unwrap();
    let gateway = gateway(&["--redis", "127.0.0.1:1", "--ready-grace", "10ms", "--drain-delay", "10s"]).await;
    let is_healthy = async || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_texto"));
        let status = command.args(&words[1..]).args(["--listen", &gateway.address.to_string()]).status().await.unwrap();
        status.success()
    };
    until("it takes nobody", LIMIT, async || {
        (http::get(gateway.address, "/readyz", "").await.ok()?.status == 503).then_some(())
    })
    .await
    .unwrap();
    assert!(is_healthy().await, "Redis is away");
    gateway.signal(Signal::SIGTERM);
    gateway.wait_for_log("drain", LIMIT).await.unwrap();
    assert!(is_healthy().await, "it drains");
    gateway.signal(Signal::SIGTERM);
}
