//! Redis and Sentinels that are absent, locked, misnamed, stale or many: what operators meet.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::cluster::{Cluster, ClusterOptions};
use texto_lab::fake_sentinel::FakeSentinel;
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::{free_port, until};
use texto_lab::redis_server::RedisServer;

const LIMIT: Duration = Duration::from_secs(20);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

fn small() -> ClusterOptions {
    ClusterOptions { replicas: 1, sentinels: 3, ..ClusterOptions::default() }
}

/// Two clients on two gateways reach each other, both ways.
async fn talk(first: &Gateway, second: &Gateway) {
    let mut a = Client::connect(first.address).await.unwrap();
    let mut b = Client::connect(second.address).await.unwrap();
    assert_eq!(a.send(b.id, "to b").await.unwrap(), Answer::Ack);
    assert_eq!(b.receive().await.unwrap(), (a.id, "to b".to_owned()));
    assert_eq!(b.send(a.id, "to a").await.unwrap(), Answer::Ack);
    assert_eq!(a.receive().await.unwrap(), (b.id, "to a".to_owned()));
}

/// Waits until `/readyz` fails and some check gives a reason that contains `text`.
async fn fails_because(gateway: &Gateway, text: &str) {
    let what = format!("/readyz names {text:?}");
    let outcome = until(&what, LIMIT, async || {
        let health = gateway.health().await.ok()?;
        (health["status"] == "fail" && health["checks"]["broker"][0]["output"].as_str()?.contains(text)).then_some(())
    });
    if let Err(error) = outcome.await {
        panic!("{error}: {:#}", gateway.health().await.unwrap_or(Value::Null));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_absent_at_start_is_waited_for() {
    let port = free_port().unwrap();
    let folder = TempDir::new().unwrap();
    let address = format!("127.0.0.1:{port}");
    let gateway = Gateway::start(binary(), &["--redis", &address], &[]).await.unwrap();
    fails_because(&gateway, "onnection refused").await;
    let refused = http::get(gateway.address, "/v1/texto", http::UPGRADE);
    let refused = refused.await.unwrap();
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("1")));
    let _redis = RedisServer::start_on("127.0.0.1", port, folder.path(), &[], None).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    talk(&gateway, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_redis_password_is_named_and_tried_again() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], Some("right")).await.unwrap();
    let address = redis.address();
    let secret = [("TEXTO_REDIS_PASSWORD", "wr0ng-secret")];
    let gateway = Gateway::start(binary(), &["--redis", &address], &secret).await.unwrap();
    fails_because(&gateway, "TEXTO_REDIS_PASSWORD").await;
    gateway.wait_for_log("WRONGPASS", LIMIT).await.unwrap();
    redis.command::<()>(&["CONFIG", "SET", "requirepass", "wr0ng-secret"]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    talk(&gateway, &gateway).await;
    assert!(!gateway.log().join("\n").contains("wr0ng-secret"), "a secret is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_sentinel_password_and_a_wrong_master_name_are_named() {
    let options = ClusterOptions { sentinel_password: Some("right".to_owned()), ..small() };
    let cluster = Cluster::start(&options).await.unwrap();
    let sentinels = cluster.sentinel_addresses();
    let wrong = [("TEXTO_SENTINEL_PASSWORD", "wr0ng-secret")];
    let gateway = Gateway::start(binary(), &["--sentinels", &sentinels], &wrong).await.unwrap();
    fails_because(&gateway, "TEXTO_SENTINEL_PASSWORD").await;
    gateway.wait_for_log("refused the credentials", LIMIT).await.unwrap();
    let right = [("TEXTO_SENTINEL_PASSWORD", "right")];
    let arguments = ["--sentinels", &sentinels, "--master-name", "theirmaster"];
    let gateway = Gateway::start(binary(), &arguments, &right).await.unwrap();
    fails_because(&gateway, "does not know a master named \"theirmaster\"").await;
    gateway.wait_for_log("TEXTO_MASTER_NAME", LIMIT).await.unwrap();
    let port = cluster.servers[0].port.to_string();
    for sentinel in &cluster.sentinels {
        sentinel.command::<()>(&["SENTINEL", "MONITOR", "theirmaster", "127.0.0.1", &port, "2"]).await.unwrap();
    }
    gateway.wait_ready(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_files_and_host_names_work() {
    let options = ClusterOptions {
        redis_password: Some("for-redis".to_owned()),
        sentinel_password: Some("for-sentinels".to_owned()),
        ..small()
    };
    let cluster = Cluster::start(&options).await.unwrap();
    let file = cluster.folder().join("secret");
    std::fs::write(&file, "for-redis\n").unwrap();
    let variables =
        [("TEXTO_SENTINEL_PASSWORD", "for-sentinels"), ("TEXTO_REDIS_PASSWORD_FILE", file.to_str().unwrap())];
    // One Sentinel, by name: the others are discovered, and this one is not counted twice.
    let first = format!("localhost:{}", cluster.sentinels[0].port);
    let gateway = Gateway::start(binary(), &["--sentinels", &first], &variables).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    until("three Sentinels are known", LIMIT, async || {
        let sentinels = gateway.health().await.ok()?["checks"]["sentinels"][0]["observedValue"].clone();
        (sentinels["reachable"] == 3 && sentinels["known"] == 3).then_some(())
    })
    .await
    .unwrap();
    talk(&gateway, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_sentinel_is_not_believed() {
    let mut cluster = Cluster::start(&ClusterOptions::default()).await.unwrap();
    cluster.servers[0].kill();
    let master = cluster.wait_for_new_master(0, LIMIT).await.unwrap();
    cluster.servers[0].restart().await.unwrap();
    // It still tells of the first master and of epoch 0, and it is the first to be asked.
    let stale = FakeSentinel::start(cluster.servers[0].port, 0).await.unwrap();
    let sentinels = format!("{},{}", stale.address(), cluster.sentinel_addresses());
    let gateway = Gateway::start(binary(), &["--sentinels", &sentinels], &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    until("all four Sentinels are heard", LIMIT, async || {
        let sentinels = gateway.health().await.ok()?["checks"]["sentinels"][0]["observedValue"].clone();
        (sentinels["reachable"] == 4).then_some(())
    })
    .await
    .unwrap();
    let observed = gateway.health().await.unwrap()["checks"]["redis:master"][0]["observedValue"].clone();
    assert_eq!(observed["address"], cluster.servers[master].address());
    assert!(observed["epoch"].as_u64().unwrap() > 0);
    talk(&gateway, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_subscriptions_are_replayed() {
    let folder = TempDir::new().unwrap();
    let mut redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    // Who is here does not read while the others come, nor answers pings.
    let arguments = ["--redis", &redis.address(), "--ping-interval", "1h"];
    let gateway = Gateway::start(binary(), &arguments, &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..10_000 {
        clients.push(Client::connect(gateway.address).await.unwrap());
    }
    redis.restart().await.unwrap();
    let line = gateway.wait_for_log("\"channels\":10000", LIMIT).await.unwrap();
    let fields: Value = serde_json::from_str(&line).unwrap();
    println!("10,000 channels replayed in {} ms", fields["fields"]["took_ms"]);
    let count = redis.command::<Vec<redis::Value>>(&["PUBSUB", "CHANNELS", "texto:*"]).await.unwrap().len();
    assert_eq!(count, 10_002, "and the two channels of the node itself");
    let (first, rest) = clients.split_first_mut().unwrap();
    for client in rest.iter_mut().step_by(1_000) {
        assert_eq!(first.send(client.id, "still there?").await.unwrap(), Answer::Ack);
        assert_eq!(client.receive().await.unwrap().1, "still there?");
    }
}

/// What a server answered last is sent again when it dies, also when nothing else waits just then:
/// that must not keep anybody's later message from its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_dies_after_its_last_answer_leaves_later_sends_answered() {
    let folder = TempDir::new().unwrap();
    let mut redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let gateway = Gateway::start(binary(), &["--redis", &redis.address(), "--send-timeout", "2s"], &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut a = Client::connect(gateway.address).await.unwrap();
    let mut b = Client::connect(gateway.address).await.unwrap();
    assert_eq!(a.send(b.id, "one").await.unwrap(), Answer::Ack);
    // Two heartbeats later nothing that waits for time is left.
    let beats = format!("texto_heartbeat_seconds_count{{address=\"{}\"}}", redis.address());
    let before = gateway.metric(&beats).await.unwrap();
    until("two heartbeats", LIMIT, async || (gateway.metric(&beats).await? >= before + 2.0).then_some(()))
        .await
        .unwrap();
    redis.kill();
    let pending = async |count| {
        until(&format!("{count} messages wait"), LIMIT, async || {
            (gateway.metric("texto_messages_pending").await == Some(count)).then_some(())
        })
        .await
        .unwrap();
    };
    assert_eq!(a.send(b.id, "two").await.unwrap(), Answer::Error("EBROKER".to_owned()));
    redis.restart().await.unwrap();
    pending(0.0).await;
    assert_eq!(a.send(b.id, "three").await.unwrap(), Answer::Ack);
    assert_eq!(b.receive().await.unwrap().1, "one");
    assert_eq!(b.receive().await.unwrap().1, "three");
}
