//! The status of a deployment, as scripts and the page get it: real Redis, real Sentinels, plain HTTP.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use texto_lab::client::{Answer, Client};
use texto_lab::cluster::ClusterOptions;
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::{free_port, until};
use texto_lab::stage::Stage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);
/// As many streams as there are.
const STREAMS: usize = 16;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

async fn status(gateway: &Gateway) -> Value {
    let response = http::get(gateway.address, "/status.json", "").await.unwrap();
    assert_eq!((response.status, response.header("Content-Type")), (200, Some("application/json")));
    serde_json::from_str(&response.body).unwrap()
}

/// Waits until the status is as `is_so` wants it, and returns it.
async fn until_status(gateway: &Gateway, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let found = until(what, LIMIT, async || {
        last = status(gateway).await;
        is_so(&last).then(|| last.clone())
    });
    match found.await {
        Ok(status) => status,
        Err(error) => panic!("{error:#}: {last:#}"),
    }
}

fn server<'a>(status: &'a Value, address: &str) -> &'a Value {
    let servers = status["servers"].as_array().unwrap();
    servers.iter().find(|server| server["address"] == address).unwrap()
}

/// The events' kinds, the oldest first.
fn kinds(status: &Value) -> Vec<&str> {
    let events = status["events"].as_array().unwrap();
    events.iter().rev().map(|event| event["kind"].as_str().unwrap()).collect()
}

/// What is read of a stream of events.
struct Events {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Events {
    async fn open(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /status/events HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, read: Vec::new() }
    }

    /// The next event's data; nothing when the stream is over.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let text = String::from_utf8_lossy(&self.read).into_owned();
            if let Some((data, _)) = text.split_once("data:").and_then(|(_, rest)| rest.split_once("\n\n")) {
                self.read.drain(..text.find(data).unwrap() + data.len());
                return Some(serde_json::from_str(data).unwrap());
            }
            let read = tokio::time::timeout(LIMIT, self.stream.read_buf(&mut self.read)).await.unwrap();
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_is_told_as_it_happens_and_so_is_an_outage() {
    let mut stage = Stage::start(binary(), &ClusterOptions::default(), 2, &[]).await.unwrap();
    let [one, two] = &stage.gateways[..] else { panic!("two gateways") };
    let old = stage.cluster.servers[0].address();

    let is_whole = |status: &Value| {
        let replicas = status["servers"].as_array().unwrap().iter().filter(|server| server["role"] == "replica");
        let keeps_up = |server: &&Value| server["follows"] == true && server["behind_bytes"] == 0;
        status["broker"]["movement"] == "calm"
            && replicas.filter(keeps_up).count() == 2
            && status["gateways"].as_array().unwrap().len() == 1
    };
    let calm = until_status(one, "it is calm", is_whole).await;
    assert_eq!(calm["format"], "texto-status/1");
    assert_eq!((&calm["broker"]["kind"], &calm["broker"]["master"]), (&"sentinel".into(), &old.clone().into()));
    let carriers = calm["servers"].as_array().unwrap().iter().filter(|server| server["carries"] == true);
    assert_eq!(carriers.map(|server| &server["address"]).collect::<Vec<_>>(), [&old], "the master alone");
    for entry in calm["servers"].as_array().unwrap() {
        assert_eq!((&entry["link"], &entry["expected"]), (&"synced".into(), &true.into()));
        assert!(entry["answers_in_ms"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(calm["sentinels"].as_array().unwrap().iter().filter(|known| known["reachable"] == true).count(), 3);
    let other = status(two).await;
    assert_eq!(calm["gateways"][0]["name"], other["node"]["name"]);
    assert_eq!(calm["gateways"][0]["life"], "alive");
    assert_ne!(calm["node"]["run"], other["node"]["run"]);

    // Messages, and how long they take: the rate is the one since the last look.
    let (mut from, to) = (Client::connect(one.address).await.unwrap(), Client::connect(two.address).await.unwrap());
    until_status(one, "messages are counted", |status| status["traffic"]["acked_per_second"].is_number()).await;
    for _ in 0..50 {
        assert_eq!(from.send(to.id, "hello").await.unwrap(), Answer::Ack);
    }
    let busy = until_status(one, "messages are seen", |status| {
        status["traffic"]["acked_per_second"].as_f64().is_some_and(|rate| rate > 0.0)
    });
    let busy = busy.await;
    assert!(busy["traffic"]["receipt_ms"]["p50"].as_f64().unwrap() > 0.0, "{busy:#}");
    assert_eq!((&busy["totals"]["acked"], &busy["sessions"]["open"]), (&50.into(), &1.into()));

    let mut events = Events::open(one.address).await;
    events.next().await.unwrap();
    stage.cluster.servers[0].kill();
    let mut seen = Vec::new();
    let begun = Instant::now();
    let over = loop {
        assert!(begun.elapsed() < LIMIT, "it does not end: {seen:?}");
        let status = events.next().await.unwrap();
        let movement = status["broker"]["movement"].as_str().unwrap().to_owned();
        if seen.last() != Some(&movement) {
            seen.push(movement);
        }
        if kinds(&status).contains(&"failover_ended") {
            break status;
        }
    };
    assert!(seen.contains(&"failover".to_owned()) && seen.last().unwrap() == "calm", "{seen:?}");
    let new = stage.cluster.wait_for_new_master(0, LIMIT).await.unwrap();
    let new = stage.cluster.servers[new].address();
    assert_eq!(over["broker"]["master"], new);
    assert_eq!((&server(&over, &new)["is_master"], &server(&over, &new)["carries"]), (&true.into(), &true.into()));
    let dead = server(&over, &old);
    assert_eq!((&dead["link"], &dead["carries"]), (&"connecting".into(), &false.into()));
    assert!(dead["reason"].as_str().unwrap().contains("refused"), "{dead:#}");
    let told = kinds(&over);
    let order = ["failover_begun", "master_changed", "failover_ended"];
    let at: Vec<_> = order.map(|kind| told.iter().position(|known| *known == kind)).to_vec();
    assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{told:?}");
    assert_eq!(over["totals"]["failovers"], 1);
    let log = one.log().join("\n");
    for part in ["failover over", "\"was\":\"synced\""] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(!log.contains("--address-map") && !log.contains("the server left the topology"), "{log}");

    // Without any Redis it answers as fast as ever.
    for server in &mut stage.cluster.servers[1..] {
        server.kill();
    }
    let one = &stage.gateways[0];
    let down = until_status(one, "the outage is told", |status| status["broker"]["movement"] == "outage").await;
    let began = Instant::now();
    status(one).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(kinds(&down).contains(&"redis_lost"), "{down:#}");
    assert!(!down["node"]["problems"].as_array().unwrap().is_empty());
    until_status(one, "the others are not declared dead", |status| status["gateways"][0]["life"] == "unknown").await;
    for server in &mut stage.cluster.servers[1..] {
        server.restart().await.unwrap();
    }
    until_status(one, "it is back", |status| kinds(status).contains(&"redis_back")).await;

    // Another gateway dies, and this one says so.
    stage.gateways[1].kill();
    let one = &stage.gateways[0];
    let gone = |status: &Value| kinds(status).iter().any(|kind| matches!(*kind, "gateway_gone" | "gateway_silent"));
    until_status(one, "the dead gateway is told", gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_nobody_can_bring_about_is_not_called_one() {
    let mut stage = Stage::start(binary(), &ClusterOptions::default(), 1, &[]).await.unwrap();
    until_status(&stage.gateways[0], "it is calm", |status| status["broker"]["movement"] == "calm").await;
    for sentinel in &mut stage.cluster.sentinels[1..] {
        sentinel.kill();
    }
    stage.cluster.servers[0].kill();
    let dead = stage.cluster.sentinels[1].address().to_string();
    let is_told = |status: &Value| {
        let problems = status["node"]["problems"].as_array().unwrap();
        status["broker"]["movement"] == "masterless"
            && problems
                .iter()
                .map(|problem| problem.as_str().unwrap())
                .any(|problem| problem.starts_with("Sentinel ") && problem.contains(&dead))
    };
    until_status(&stage.gateways[0], "it is told", is_told).await;
    // As long as one would take.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(is_told(&status(&stage.gateways[0]).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lags_says_by_how_much() {
    // The Sentinels let a replica be that follows another address.
    let failover_timeout = Duration::from_secs(600);
    let options = ClusterOptions { proxied_replica: true, failover_timeout, ..ClusterOptions::default() };
    let stage = Stage::start(binary(), &options, 1, &[]).await.unwrap();
    let (gateway, proxy) = (&stage.gateways[0], stage.cluster.replication.as_ref().unwrap());
    let address = stage.cluster.servers.last().unwrap().address();
    let behind = |status: &Value| server(status, &address)["behind_bytes"].as_u64();
    // Before that, messages go to every server, and those that the replicas settled first never to the master.
    let is_calm = |status: &Value| status["broker"]["movement"] == "calm";
    until_status(gateway, "it is calm and keeps up", |status| is_calm(status) && behind(status) == Some(0)).await;
    proxy.hold();
    let (mut from, to) =
        (Client::connect(gateway.address).await.unwrap(), Client::connect(gateway.address).await.unwrap());
    let text = "x".repeat(1000);
    for _ in 0..50 {
        assert_eq!(from.send(to.id, &text).await.unwrap(), Answer::Ack);
    }
    let lagging = until_status(gateway, "it lags", |status| behind(status) > Some(50_000)).await;
    assert_eq!(server(&lagging, &stage.cluster.servers[1].address())["behind_bytes"], 0, "the other one does not");
    proxy.release();
    until_status(gateway, "it has caught up", |status| behind(status) == Some(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_bounded_and_a_drain_waits_for_none() {
    let drain = ["--drain-delay", "4s", "--drain-window", "100ms"];
    let mut gateway = Gateway::start(binary(), &drain, &[]).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut events = Events::open(gateway.address).await;
        assert_eq!(events.next().await.unwrap()["broker"]["kind"], "embedded");
        streams.push(events);
    }
    let one_more = http::get(gateway.address, "/status/events", "").await.unwrap();
    assert_eq!((one_more.status, one_more.header("Retry-After")), (503, Some("1")));
    assert!(one_more.body.contains("/status.json"), "{}", one_more.body);
    status(&gateway).await;
    streams.pop();
    let again = until("a place is free", LIMIT, async || {
        let mut events = Events::open(gateway.address).await;
        events.next().await?;
        Some(events)
    });
    streams.push(again.await.unwrap());
    let (first, second) = (streams[0].next().await.unwrap(), streams[0].next().await.unwrap());
    let at = |status: &Value| status["at_ms"].as_u64().unwrap();
    assert!(at(&second) >= at(&first) + 990, "one each second at the most: {} and {}", at(&first), at(&second));

    let began = Instant::now();
    gateway.signal(Signal::SIGTERM);
    for events in &mut streams {
        while events.next().await.is_some() {}
    }
    assert!(began.elapsed() < Duration::from_secs(3), "they ended after {:?}", began.elapsed());
    until_status(&gateway, "who asks is told", |status| status["node"]["lifecycle"] == "draining").await;
    let late = http::get(gateway.address, "/status/events", "").await.unwrap();
    assert_eq!((late.status, late.header("Retry-After")), (503, Some("1")));
    gateway.wait_exit(Duration::from_secs(10)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "the drain took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_where_the_metrics_are_and_nowhere_else() {
    let admin: SocketAddr = format!("127.0.0.1:{}", free_port().unwrap()).parse().unwrap();
    let apart = Gateway::start(binary(), &["--admin-listen", &admin.to_string()], &[]).await.unwrap();
    let together = Gateway::start(binary(), &[], &[]).await.unwrap();
    let files = ["/status", "/status/app.js", "/status/picture.js", "/status/words.js", "/status/style.css"];
    for path in files.into_iter().chain(["/status/icon.svg", "/status.json", "/status/events"]) {
        assert_eq!(http::get(apart.address, path, "").await.unwrap().status, 404, "{path}");
    }
    // Which servers there are is not for everybody either.
    for path in ["/readyz", "/readyz?verbose", "/healthz"] {
        let ready = http::get(apart.address, path, "").await.unwrap();
        assert_eq!((ready.status, ready.body.as_str()), (200, r#"{"status":"pass"}"#), "{path}");
        assert!(http::get(admin, path, "").await.unwrap().body.contains("connections"), "{path}");
    }
    for address in [admin, together.address] {
        for path in files {
            let page = http::get(address, path, "").await.unwrap();
            assert_eq!(page.status, 200, "{path}");
            assert!(
                page.header("Content-Security-Policy").unwrap().starts_with("default-src 'none'; script-src 'self'")
            );
            for (name, value) in [("X-Frame-Options", "DENY"), ("X-Content-Type-Options", "nosniff")] {
                assert_eq!(page.header(name), Some(value), "{path}");
            }
        }
        let status = http::get(address, "/status.json", "").await.unwrap();
        assert_eq!((status.status, status.header("Cache-Control")), (200, Some("no-store")));
        assert_eq!(status.header("Access-Control-Allow-Origin"), None, "no other page reads it");
        let mut events = Events::open(address).await;
        events.next().await.unwrap();
        assert!(http::get(address, "/status/other.js", "").await.unwrap().status == 404);
    }
}
