//! What must disturb nobody: replicas and Sentinels that refuse, hang, crash, load or have lost their master.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use texto_lab::client::{Answer, Client};
use texto_lab::cluster::{Cluster, ClusterOptions};
use texto_lab::gateway::Gateway;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use texto_lab::stage::Stage;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);

async fn stage(options: &ClusterOptions) -> Stage {
    Stage::start(Path::new(env!("CARGO_BIN_EXE_texto")), options, 2, &[]).await.unwrap()
}

/// How often the gateway's connections to `server` were lost or could not be made.
async fn failures(gateway: &Gateway, server: &RedisServer) -> f64 {
    let name = format!("texto_link_failures_total{{address=\"{}\"}}", server.address());
    gateway.metric(&name).await.unwrap_or_default()
}

/// How often `server` was asked to PUBLISH.
async fn publishes(server: &RedisServer) -> u64 {
    let info: String = server.command(&["INFO", "commandstats"]).await.unwrap();
    let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_publish:calls=")?.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

/// The code with which `server` refuses PING.
async fn refusal(server: &RedisServer) -> Option<String> {
    let error = server.command::<String>(&["PING"]).await.err()?;
    Some(error.downcast_ref::<redis::RedisError>()?.code()?.to_owned())
}

fn quantile(mut times: Vec<Duration>, part: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part) as usize]
}

/// One sends to the other, one message at a time, for a while: how long each answer took.
async fn talk(sender: &mut Client, receiver: &mut Client, length: Duration) -> Vec<Duration> {
    let (began, mut times) = (Instant::now(), Vec::new());
    while began.elapsed() < length {
        let sent = Instant::now();
        assert_eq!(sender.send(receiver.id, "as fast as without it").await.unwrap(), Answer::Ack);
        times.push(sent.elapsed());
        assert_eq!(receiver.receive().await.unwrap().1, "as fast as without it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times
}

/// Sends `count` messages, `window` unanswered at a time; how many a second.
async fn rate(sender: &mut Client, receiver: &mut Client, window: usize, count: usize) -> f64 {
    let (began, mut requests) = (Instant::now(), VecDeque::new());
    let mut sent = 0;
    while sent < count || !requests.is_empty() {
        while sent < count && requests.len() < window {
            requests.push_back(sender.post(receiver.id, &sent.to_string()).await.unwrap());
            sent += 1;
        }
        assert_eq!(sender.answer(requests.pop_front().unwrap()).await.unwrap(), Answer::Ack);
    }
    let took = began.elapsed().as_secs_f64();
    for number in 0..count {
        assert_eq!(receiver.receive().await.unwrap().1, number.to_string());
    }
    count as f64 / took
}

/// Kills `server` and starts it again, for ever.
async fn crash_loop(server: &mut RedisServer) {
    loop {
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart().await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_refuse_crash_and_hang_and_a_sentinel_that_flaps_disturb_nobody() {
    const COUNT: usize = 2_000;
    let mut stage = stage(&ClusterOptions { replicas: 3, ..ClusterOptions::default() }).await;
    let Stage { cluster, gateways, .. } = &mut stage;
    let Cluster { servers, sentinels, .. } = cluster;
    let [master, refusing, crashing, hanging] = servers.as_mut_slice() else { panic!("four servers") };
    // Sentinel is allowed its own channel, or it would hold the replica for dead.
    let rights = ["ACL", "SETUSER", "default", "resetchannels", "&__sentinel__:*"];
    refusing.command::<()>(&rights).await.unwrap();
    refusing.command::<u64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await.unwrap();
    hanging.freeze();
    let trouble = async { tokio::join!(crash_loop(crashing), crash_loop(&mut sentinels[2])) };
    let calm = async {
        let mut sender = Client::connect(gateways[0].address).await.unwrap();
        let mut receiver = Client::connect(gateways[1].address).await.unwrap();
        // What is new may be said, and thought about, for a while.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let lines = [gateways[0].log().len(), gateways[1].log().len()];
        let watched = Instant::now();

        let mut absent = Vec::new();
        let before = publishes(master).await;
        for _ in 0..50 {
            let sent = Instant::now();
            let answer = sender.send(Uuid::new_v4(), "nobody").await.unwrap();
            assert_eq!(answer, Answer::Error("ENOTCONN".to_owned()), "after {:?}", sent.elapsed());
            absent.push(sent.elapsed());
        }
        let for_absent = publishes(master).await - before;

        let one = rate(&mut sender, &mut receiver, 1, 500).await;
        let before = publishes(master).await;
        let many = rate(&mut sender, &mut receiver, 16, COUNT).await;
        let for_present = publishes(master).await - before;
        tokio::time::sleep(Duration::from_secs(10).saturating_sub(watched.elapsed())).await;
        let lines = [gateways[0].log().len() - lines[0], gateways[1].log().len() - lines[1]];
        let (median, slowest) = (quantile(absent.clone(), 0.5), quantile(absent, 0.9));
        println!(
            "ENOTCONN after {median:?} (nine of ten: {slowest:?}), {for_absent} PUBLISH for 50; {one:.0} messages/s one at a \
             time, {many:.0} 16 at a time; {for_present} PUBLISH for {COUNT}; {lines:?} lines in {:?}",
            watched.elapsed()
        );
        assert!(median < Duration::from_millis(50) && slowest < Duration::from_millis(250), "{median:?}, {slowest:?}");
        assert!(for_absent < 50 * 4, "{for_absent} PUBLISH for 50 who are absent");
        assert!(many > one * 1.5, "stop and wait: {one:.0} a second one at a time, {many:.0} 16 at a time");
        assert!(for_present < COUNT as u64 * 3, "{for_present} PUBLISH on the master for {COUNT} messages");
        for (gateway, lines) in gateways.iter().zip(lines) {
            assert!(
                lines <= 6,
                "{lines} lines in ten seconds: {:#?}",
                gateway.log().split_off(gateway.log().len() - lines)
            );
        }
    };
    tokio::select! {
        _ = trouble => unreachable!("trouble never ends"),
        () = calm => {}
    }
}

/// Nobody knows then whether the receiver is absent or its node is on its way: that is asked at a pace.
#[tokio::test(flavor = "multi_thread")]
async fn one_send_to_nobody_without_a_master_is_not_hundreds_of_publishes() {
    let options = ClusterOptions { sentinels: 1, down_after: Duration::from_secs(60), ..ClusterOptions::default() };
    let mut stage = stage(&options).await;
    let mut sender = Client::connect(stage.gateways[0].address).await.unwrap();
    stage.cluster.servers[0].kill();
    let replicas = &stage.cluster.servers[1..];
    let count = async || publishes(&replicas[0]).await + publishes(&replicas[1]).await;
    let (before, began) = (count().await, Instant::now());
    let answer = sender.send(Uuid::new_v4(), "nobody").await.unwrap();
    let (asked, took) = (count().await - before, began.elapsed());
    println!("{answer:?} after {took:?}, {asked} PUBLISH");
    assert!(answer == Answer::Error("ENOTCONN".to_owned()) || answer == Answer::Error("EBROKER".to_owned()));
    // A few of them are the Sentinel's.
    assert!(asked < 60, "{asked} PUBLISH for one send");
}

/// PING is refused with MASTERDOWN then; what matters is not.
#[tokio::test(flavor = "multi_thread")]
async fn stale_replicas_that_refuse_pings_carry_messages_all_the_same() {
    // Sentinel is slow on purpose: what is seen here is the time until it acts.
    let options = ClusterOptions {
        down_after: Duration::from_secs(60),
        redis_options: ["--replica-serve-stale-data", "no"].map(str::to_owned).into(),
        ..ClusterOptions::default()
    };
    let mut stage = stage(&options).await;
    let mut sender = Client::connect(stage.gateways[0].address).await.unwrap();
    let mut receiver = Client::connect(stage.gateways[1].address).await.unwrap();
    talk(&mut sender, &mut receiver, Duration::from_secs(1)).await;
    stage.cluster.servers[0].kill();
    assert_eq!(refusal(&stage.cluster.servers[1]).await, Some("MASTERDOWN".to_owned()));
    let times = talk(&mut sender, &mut receiver, Duration::from_secs(5)).await;
    let (usual, slowest) = (quantile(times.clone(), 0.5), quantile(times, 1.0));
    println!("half of the answers within {usual:?}, the slowest {slowest:?}");
    for replica in &stage.cluster.servers[1..] {
        let failures = failures(&stage.gateways[0], replica).await;
        assert!(failures <= 2.0, "{failures} link failures in five seconds");
    }
    assert!(usual < Duration::from_millis(30) && slowest < Duration::from_millis(700), "{usual:?}, {slowest:?}");
}

/// So does a replica that loads its data, for minutes where there is much of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_loads_disturbs_nobody() {
    let stage = stage(&ClusterOptions { replicas: 1, ..ClusterOptions::default() }).await;
    let [master, replica] = stage.cluster.servers.as_slice() else { panic!("two servers") };
    let fill = "for i = 1, 1500 do redis.call('SET', 'key:' .. i, string.rep('x', 1000)) end";
    master.command::<()>(&["EVAL", fill, "0"]).await.unwrap();
    // 1,500 keys of 10 ms each; it looks at its clients after every kilobyte.
    for (name, value) in [("key-load-delay", "10000"), ("loading-process-events-interval-bytes", "1024")] {
        replica.command::<()>(&["CONFIG", "SET", name, value]).await.unwrap();
    }
    let mut sender = Client::connect(stage.gateways[0].address).await.unwrap();
    let mut receiver = Client::connect(stage.gateways[1].address).await.unwrap();
    talk(&mut sender, &mut receiver, Duration::from_secs(1)).await;
    let before = failures(&stage.gateways[0], replica).await;
    let port = master.port.to_string();
    replica.command::<()>(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    replica.command::<()>(&["SET", "a history", "of its own"]).await.unwrap();
    replica.command::<()>(&["REPLICAOF", "127.0.0.1", &port]).await.unwrap();
    let is_loading = async || (refusal(replica).await? == "LOADING").then_some(());
    until("the replica loads", LIMIT, is_loading).await.unwrap();
    let times = talk(&mut sender, &mut receiver, Duration::from_secs(5)).await;
    assert!(is_loading().await.is_some(), "it loaded too fast");
    let failures = failures(&stage.gateways[0], replica).await - before;
    let (usual, slowest) = (quantile(times.clone(), 0.5), quantile(times, 0.99));
    println!("{failures} link failures; half of the answers within {usual:?}, nearly all within {slowest:?}");
    assert!(failures <= 2.0, "{failures} link failures in five seconds");
    assert!(usual < Duration::from_millis(30) && slowest < Duration::from_millis(250), "{usual:?}, {slowest:?}");
}
