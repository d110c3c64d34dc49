//! What an `ack` rests on: the word of the node that holds the receiver, and nothing that Redis counts.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use texto_lab::checker::Report;
use texto_lab::client::{Answer, Client, Incoming};
use texto_lab::cluster::{Cluster, ClusterOptions};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::until;
use texto_lab::proxy::Proxy;
use texto_lab::redis_server::RedisServer;
use texto_lab::stage::Stage;
use texto_lab::traffic::{Plan, Traffic};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);
/// The gateways' send deadline, and what a loaded machine adds.
const DEADLINE: Duration = Duration::from_secs(7);
/// Nothing that is still on its way stays away for longer.
const REST: Duration = Duration::from_secs(1);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

/// One Redis with its default limits, and two gateways on it.
struct Two {
    senders: Gateway,
    receivers: Gateway,
    redis: RedisServer,
    _folder: TempDir,
}

impl Two {
    async fn start(arguments: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
        let address = redis.address();
        let arguments = [&["--redis", &address], arguments].concat();
        let senders = Gateway::start(binary(), &arguments, &[]).await.unwrap();
        let receivers = Gateway::start(binary(), &arguments, &[]).await.unwrap();
        senders.wait_ready(LIMIT).await.unwrap();
        receivers.wait_ready(LIMIT).await.unwrap();
        Self { senders, receivers, redis, _folder: folder }
    }

    async fn traffic(&self, plan: Plan) -> Traffic {
        Traffic::start(&[self.senders.address, self.receivers.address], plan).await.unwrap()
    }

    /// Every receiver of a node that was away can be written to again.
    async fn reach(&self, receivers: &mut [Client]) {
        let mut sender = Client::connect(self.senders.address).await.unwrap();
        for receiver in receivers {
            let answer = sender.send(receiver.id, "still there?").await.unwrap();
            assert_eq!(answer, Answer::Ack);
            assert_eq!(receiver.receive().await.unwrap().1, "still there?");
        }
    }
}

/// Waits until all is sent, answered and arrived, and judges.
async fn judge(traffic: Traffic) -> Report {
    traffic.answered(LIMIT).await.unwrap();
    traffic.quiet(REST, LIMIT).await.unwrap();
    let lost: Vec<_> = traffic.checker().lost().take(5).collect();
    let end = traffic.now();
    let report = traffic.finish(Duration::ZERO, end).await.unwrap();
    assert_eq!(report.broken(), Vec::<String>::new(), "the first that are lost: {lost:?}; {report:#?}");
    report
}

/// What can't be taken in time is refused, with a code that says so: nobody left.
fn nobody_called_absent(report: &Report) {
    let others = report.errors.keys().filter(|code| !matches!(code.as_str(), "EBROKER" | "EBUSY")).count();
    assert_eq!(others, 0, "{:?}", report.errors);
}

/// Less than a heartbeat's deadline: longer, and its links would be given up for another reason.
const LONGEST: Duration = Duration::from_millis(700);

/// Stops a gateway for `least`, and on until `traffic` has sent `count` messages. On a thread of its own: a runtime that is
/// busy with traffic may look at its timers seconds later.
fn pause(gateway: &Gateway, traffic: &Traffic, count: u64, least: Duration) {
    tokio::task::block_in_place(|| {
        gateway.signal(Signal::SIGSTOP);
        let began = Instant::now();
        while began.elapsed() < least || (traffic.checker().totals().0 < count && began.elapsed() < LONGEST) {
            std::thread::sleep(Duration::from_millis(5));
        }
        gateway.signal(Signal::SIGCONT);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receivers_node_that_is_stopped_under_load_signs_nothing() {
    const SENDERS: usize = 56;
    const EACH: usize = 63;
    // Traffic's clock starts before a gateway reads, and 56 MB wait in sockets for as long as both sides need to work them off.
    let deadline = Duration::from_secs(20);
    let two = Two::start(&[]).await;
    let plan = Plan { bytes: 16_000, each: Some(EACH), ..Plan::one_way(SENDERS, 200, deadline) };
    let traffic = two.traffic(plan).await;
    pause(&two.receivers, &traffic, 0, LONGEST);
    let report = judge(traffic).await;
    assert_eq!(report.sent, (SENDERS * EACH) as u64);
    nobody_called_absent(&report);
    let mut after = Vec::new();
    for _ in 0..10 {
        after.push(Client::connect(two.receivers.address).await.unwrap());
    }
    two.reach(&mut after).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_node_pauses_gets_all_that_is_acknowledged_and_stays() {
    const SENDERS: usize = 60;
    const EACH: usize = 50;
    // Its outbox holds less than comes at once.
    let two = Two::start(&["--outbox-messages", "200"]).await;
    let traffic = two.traffic(Plan { each: Some(EACH), ..Plan::one_way(SENDERS, 1, DEADLINE) }).await;
    pause(&two.receivers, &traffic, (SENDERS * EACH) as u64, Duration::from_millis(100));
    let report = judge(traffic).await;
    nobody_called_absent(&report);
    assert!(report.acked > 0, "{report:?}");
}

/// A node that Redis can't be heard from, though nothing was closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_signs_nothing_and_asks_its_clients_to_leave() {
    const CLIENTS: usize = 40;
    let bound = Duration::from_secs(3);
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let proxy = Proxy::start(&redis.address()).await.unwrap();
    let (direct, proxied) = (redis.address(), proxy.address.to_string());
    let senders = Gateway::start(binary(), &["--redis", &direct, "--send-timeout", "1s"], &[]).await.unwrap();
    let arguments = ["--redis", &proxied, "--drain-window", "1s", "--ready-grace", "1h"];
    let cut_off = Gateway::start(binary(), &arguments, &[("TEXTO_ISOLATED_AFTER", "3s")]).await.unwrap();
    senders.wait_ready(LIMIT).await.unwrap();
    cut_off.wait_ready(LIMIT).await.unwrap();
    let mut sender = Client::connect(senders.address).await.unwrap();
    let mut receivers = Vec::new();
    for _ in 0..CLIENTS {
        receivers.push(Client::connect(cut_off.address).await.unwrap());
    }
    for receiver in &mut receivers {
        assert_eq!(sender.send(receiver.id, "here").await.unwrap(), Answer::Ack);
        assert_eq!(receiver.receive().await.unwrap().1, "here");
    }
    let ids: Vec<Uuid> = receivers.iter().map(|receiver| receiver.id).collect();
    proxy.hold();
    let began = Instant::now();
    let mut closes = tokio::task::JoinSet::new();
    for mut receiver in receivers {
        closes.spawn(async move { (receiver.closed(LIMIT).await, began.elapsed()) });
    }
    // As long as it is cut off.
    let mut answers = HashMap::new();
    for id in ids.into_iter().cycle() {
        if began.elapsed() > bound + Duration::from_secs(1) {
            break;
        }
        let answer = sender.send(id, "is anybody there?").await.unwrap();
        *answers.entry(format!("{answer:?}")).or_insert(0) += 1;
        if answer == Answer::Ack {
            break;
        }
    }
    assert_eq!(answers.get("Ack"), None, "acknowledged by nobody: {answers:?}");
    let mut times = Vec::new();
    while let Some(close) = closes.join_next().await {
        let (code, at) = close.unwrap();
        assert_eq!(code.unwrap(), 1012);
        times.push(at);
    }
    times.sort_unstable();
    let (first, last) = (times[0], times[CLIENTS - 1]);
    println!("asked to leave between {first:?} and {last:?}");
    assert!(first + Duration::from_millis(500) > bound, "after {first:?}");
    assert!(last < bound + Duration::from_secs(5), "after {last:?}");
    assert!(last - first > Duration::from_millis(50), "all at once: {first:?} to {last:?}");
    let refused = http::get(cut_off.address, "/v1/texto", http::UPGRADE).await.unwrap();
    assert_eq!(refused.status, 503, "whoever left may come back");
    proxy.release();
    cut_off.wait_ready(LIMIT).await.unwrap();
    let mut receiver = Client::connect(cut_off.address).await.unwrap();
    assert_eq!(sender.send(receiver.id, "back").await.unwrap(), Answer::Ack);
    assert_eq!(receiver.receive().await.unwrap().1, "back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_all_redis_is_borne_four_times_as_long_while_sentinels_answer() {
    let options = ClusterOptions { replicas: 1, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(&options).await.unwrap();
    let arguments = ["--sentinels", &cluster.sentinel_addresses(), "--drain-window", "1s"];
    let gateway = Gateway::start(binary(), &arguments, &[("TEXTO_ISOLATED_AFTER", "1500ms")]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut client = Client::connect(gateway.address).await.unwrap();
    for server in &mut cluster.servers {
        server.kill();
    }
    let began = Instant::now();
    let code = client.closed(LIMIT).await;
    let after = began.elapsed();
    assert!(after > Duration::from_secs(5), "asked to leave after {after:?}, with {code:?}");
    assert_eq!(code.expect("never asked to leave"), 1012);
    assert!(after < Duration::from_secs(12), "{after:?}");
}

/// Reads a frame of `client` whenever `pace` has passed.
async fn read_slowly(mut client: Client, pace: Duration, limit: Duration) -> (u64, Option<u16>) {
    let (end, mut count) = (Instant::now() + limit, 0);
    while Instant::now() < end {
        tokio::time::sleep(pace).await;
        match tokio::time::timeout(Duration::from_secs(1), texto_lab::client::next(client.socket())).await {
            Ok(Incoming::Frame(_)) => count += 1,
            Ok(Incoming::Closed(code)) => return (count, Some(code)),
            Err(_) => {}
        }
    }
    (count, None)
}

/// Floods `receiver` until told to stop, and counts the answers.
async fn flood(mut sender: Client, receiver: Uuid, limit: Duration) -> HashMap<String, u64> {
    let text = "x".repeat(16_000);
    let (end, mut answers, mut requests) = (Instant::now() + limit, HashMap::new(), std::collections::VecDeque::new());
    while Instant::now() < end {
        while requests.len() < 32 {
            requests.push_back(sender.post(receiver, &text).await.unwrap());
        }
        let answer = sender.answer(requests.pop_front().unwrap()).await.unwrap();
        if answer != Answer::Ack {
            // A flood, not a race of refusals.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        *answers.entry(format!("{answer:?}")).or_insert(0) += 1;
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_client_throws_nobody_out_and_leaves_others_their_share() {
    let length = Duration::from_secs(8);
    let two = Two::start(&["--write-timeout", "4s", "--outbox-messages", "200"]).await;
    let receiver = Client::connect(two.receivers.address).await.unwrap();
    let to = receiver.id;
    let flooder = Client::connect(two.senders.address).await.unwrap();
    let mut other = Client::connect(two.senders.address).await.unwrap();
    // It takes what comes, but not as fast as it comes.
    let reader = tokio::spawn(read_slowly(receiver, Duration::from_millis(4), length + Duration::from_secs(1)));
    let flood = tokio::spawn(flood(flooder, to, length));
    let began = Instant::now();
    let (mut tried, mut acked) = (0, 0);
    while began.elapsed() < length {
        let answer = other.send(to, "let me through").await.unwrap();
        assert!(matches!(&answer, Answer::Ack) || answer == Answer::Error("EBUSY".to_owned()), "{answer:?}");
        (tried, acked) = (tried + 1, acked + u64::from(answer == Answer::Ack));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answers = flood.await.unwrap();
    let (received, code) = reader.await.unwrap();
    println!("the flood: {answers:?}; another: {acked} of {tried}; received {received}, closed {code:?}");
    assert_eq!(code, None, "the reader was thrown out: {answers:?}");
    assert!(answers.get("Error(\"EBUSY\")").is_some_and(|count| *count > 10), "{answers:?}");
    assert!(acked * 2 > tried, "another sender got {acked} of {tried} through");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_takes_nothing_for_the_write_timeout_is_closed() {
    let patience = Duration::from_secs(2);
    let two = Two::start(&["--write-timeout", "2s", "--outbox-messages", "100"]).await;
    let mut receiver = Client::connect(two.receivers.address).await.unwrap();
    let mut sender = Client::connect(two.senders.address).await.unwrap();
    let (began, text) = (Instant::now(), "x".repeat(16_000));
    let (mut busy, mut acked) = (None, 0_u64);
    // It does not read: the kernel's buffers fill, then the outbox.
    let closed = until("it is closed", LIMIT, async || {
        match sender.send(receiver.id, &text).await.unwrap() {
            Answer::Ack => acked += 1,
            Answer::Error(code) if code == "EBUSY" => busy = busy.or(Some(began.elapsed())),
            Answer::Error(code) if code == "ENOTCONN" => return Some(began.elapsed()),
            Answer::Error(code) => panic!("{code}"),
        }
        None
    });
    let closed = closed.await.unwrap();
    let busy = busy.expect("its senders were never told EBUSY");
    println!("{acked} acknowledged, the first EBUSY after {busy:?}, gone after {closed:?}");
    // Since when its oldest message waits is known to the gateway alone: not before the buffers were full.
    assert!(closed > patience && closed < busy + patience * 3, "busy after {busy:?}, closed after {closed:?}");
    until("it is counted", LIMIT, async || {
        (two.receivers.metric("texto_slow_readers_closed_total").await? == 1.0).then_some(())
    })
    .await
    .unwrap();
    let code = receiver.closed(LIMIT).await.unwrap();
    assert!(matches!(code, 1013 | 1006), "{code}");
}

/// A replica whose distance from its master can be set; the Sentinels let it be.
fn one_proxied_replica() -> ClusterOptions {
    let failover_timeout = Duration::from_secs(600);
    ClusterOptions { replicas: 1, proxied_replica: true, failover_timeout, ..ClusterOptions::default() }
}

/// A replica's late copies of what its master carried long ago, more than any memory of ids holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lags_shows_nothing_twice() {
    let lag = Duration::from_secs(9);
    let stage = Stage::start(binary(), &one_proxied_replica(), 2, &[]).await.unwrap();
    stage.cluster.replication.as_ref().unwrap().delay(lag);
    let plan = Plan { each: Some(4_000), window: 16, ..Plan::one_way(10, 1, DEADLINE) };
    let quiet = stage.traffic(Plan { rate: Some(5.0), ..Plan::one_way(1, 1, DEADLINE) }).await.unwrap();
    let busy = stage.traffic(plan).await.unwrap();
    busy.answered(Duration::from_secs(90)).await.unwrap();
    let took = busy.now();
    println!("{:?} in {took:?}", busy.checker().totals());
    // The replica tells the last of it that much later.
    tokio::time::sleep(lag + REST).await;
    let report = judge(busy).await;
    assert_eq!(report.acked, report.sent, "{report:#?}");
    let end = quiet.now();
    let report = quiet.finish(Duration::ZERO, end).await.unwrap();
    assert!(report.broken().is_empty() && report.failed() == 0, "{report:#?}");
}

/// Kills the subscriptions of `gateway` on `server` under `traffic`, whenever they are back. Its peers lose nothing.
async fn subscribes_anew(server: &RedisServer, gateway: &Gateway, traffic: &Traffic) {
    let node = gateway.health().await.unwrap()["serviceId"].as_str().unwrap().to_owned();
    let mut pause = tokio::time::interval(Duration::from_millis(30));
    let mut killed = 0;
    while traffic.now() < Duration::from_secs(8) {
        pause.tick().await;
        let list: String = server.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await.unwrap();
        for client in list.lines().filter(|client| client.contains(&node)) {
            let id = client.split(' ').find_map(|word| word.strip_prefix("id=")).unwrap();
            // It may have gone meanwhile.
            killed += server.command::<u64>(&["CLIENT", "KILL", "ID", id]).await.unwrap_or_default();
        }
    }
    traffic.stop();
    // Each comes back later than the one before.
    assert!(killed > 2, "{killed} connections killed: are they named after their node?");
}

/// Room enough, so that nothing is refused for want of it.
const ROOM: [&str; 4] = ["--outbox-bytes", "100000000", "--outbox-messages", "100000"];

/// What its dropped connection held was counted; what comes before it is back is counted by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_receivers_node_that_subscribes_anew_loses_nothing_acknowledged() {
    let two = Two::start(&ROOM).await;
    let traffic = two.traffic(Plan { bytes: 12_000, ..Plan::one_way(2, 2, DEADLINE) }).await;
    subscribes_anew(&two.redis, &two.receivers, &traffic).await;
    let report = judge(traffic).await;
    nobody_called_absent(&report);
    // A link that is killed as soon as it is back comes back ever later: most of the time there is none.
    assert!(report.acked > 100, "{report:?}");
}

/// In the middle of what one sender has under way: the first is counted by nobody there and comes by a replica, which
/// is a little behind; the next comes by the master.
#[tokio::test(flavor = "multi_thread")]
async fn order_holds_when_a_receivers_node_subscribes_anew_in_the_middle() {
    let stage = Stage::start(binary(), &one_proxied_replica(), 2, &ROOM).await.unwrap();
    stage.cluster.replication.as_ref().unwrap().delay(Duration::from_millis(50));
    let traffic = stage.traffic(Plan { bytes: 4_000, ..Plan::one_way(2, 2, DEADLINE) }).await.unwrap();
    subscribes_anew(&stage.cluster.servers[0], &stage.gateways[1], &traffic).await;
    let report = judge(traffic).await;
    nobody_called_absent(&report);
    assert!(report.acked > 1_000, "{report:?}");
}

/// RedisInsight's pub/sub page does it, and so do people: whoever listens to all is not the receiver.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_listens_to_every_channel_is_not_the_receiver() {
    let two = Two::start(&[]).await;
    let mut sender = Client::connect(two.senders.address).await.unwrap();
    let mut receiver = Client::connect(two.receivers.address).await.unwrap();
    let stranger = redis::Client::open(format!("redis://{}", two.redis.address())).unwrap();
    let mut stranger = stranger.get_async_pubsub().await.unwrap();
    stranger.psubscribe("*").await.unwrap();
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let answer = sender.send(Uuid::new_v4(), "?").await.unwrap();
        assert_eq!(answer, Answer::Error("ENOTCONN".to_owned()));
        took.push(began.elapsed());
    }
    // The first comes while the nodes get to know each other, and any while the machine has no time.
    assert!(took.iter().any(|took| *took < Duration::from_millis(500)), "absent only after {took:?}");
    assert_eq!(sender.send(receiver.id, "!").await.unwrap(), Answer::Ack);
    assert_eq!(receiver.receive().await.unwrap().1, "!");
    // One who listens to that very channel: whatever it is called, it is not acknowledged.
    let absent = Uuid::new_v4();
    stranger.subscribe(format!("texto:{absent}")).await.unwrap();
    assert_ne!(sender.send(absent, "?").await.unwrap(), Answer::Ack);
    let heard = tokio::time::timeout(LIMIT, stranger.on_message().next()).await.unwrap();
    assert!(heard.is_some(), "the stranger did not listen at all");
}

/// The next release is rolled out beside this one: it says what it reads, and appends what this one doesn't know.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_the_next_version_is_named_and_disturbs_nobody() {
    let two = Two::start(&[]).await;
    let mut sender = Client::connect(two.senders.address).await.unwrap();
    let mut receiver = Client::connect(two.receivers.address).await.unwrap();
    let frame = |version: u8, kind: u8, rest: &[u8]| {
        let tag = 4_711_u64.to_be_bytes();
        [b"TXT".as_slice(), &[version, kind, 0, 0, 0], &tag, rest].concat()
    };
    let hello = [&1_u64.to_be_bytes()[..], &[2, 3], b"next"].concat();
    let (mut asked, client) = {
        let client = redis::Client::open(format!("redis://{}", two.redis.address())).unwrap();
        (client.get_async_pubsub().await.unwrap(), client)
    };
    asked.subscribe(format!("texto:node:{:016x}", 4_711)).await.unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut publish = async |channel: String, payload: Vec<u8>| {
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(payload).query_async::<u64>(&mut connection).await.unwrap()
    };
    publish("texto:nodes".to_owned(), frame(3, 3, &hello)).await;
    // Both ask whether it lives, in a frame that it reads; it answers, with something behind the name.
    for _ in 0..2 {
        let question = tokio::time::timeout(LIMIT, asked.on_message().next()).await.unwrap().unwrap();
        let question = question.get_payload::<Vec<u8>>().unwrap();
        assert_eq!((question[3], question[4]), (2, 4), "{question:?}");
        let asker = u64::from_be_bytes(question[8..16].try_into().unwrap());
        let answer = [&question[16..24], &hello].concat();
        assert_eq!(publish(format!("texto:node:{asker:016x}"), frame(2, 5, &answer)).await, 1);
    }
    for gateway in [&two.senders, &two.receivers] {
        gateway.wait_for_log("\"node\":\"next\"", LIMIT).await.unwrap();
    }
    // Should it write its own version all the same, that is named, and not guessed at.
    publish(format!("texto:{}", receiver.id), frame(3, 1, &[0; 100])).await;
    publish("texto:nodes".to_owned(), frame(2, 99, &[])).await;
    two.receivers.wait_for_log("another version of Texto", LIMIT).await.unwrap();
    assert_eq!(sender.send(receiver.id, "undisturbed").await.unwrap(), Answer::Ack);
    assert_eq!(receiver.receive().await.unwrap().1, "undisturbed");
    let other = two.receivers.metric("texto_deliveries_total{result=\"other_version\"}").await;
    assert_eq!(other, Some(2.0));
}
