//! What clients see while Redis and Sentinels die, hang, move and lie: real servers, real faults.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use texto_lab::client::{Answer, Client};
use texto_lab::cluster::{Cluster, ClusterOptions};
use texto_lab::gateway::Gateway;
use texto_lab::process::until;
use texto_lab::proxy::Proxy;
use texto_lab::stage::Stage;
use texto_lab::traffic::{Load, Traffic};
use tokio::task::JoinSet;
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

/// How Redis and the Sentinels are spoken to, by everybody.
#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Plain,
    Tls,
}

impl Wire {
    fn options(self) -> ClusterOptions {
        ClusterOptions { tls: self == Wire::Tls, ..ClusterOptions::default() }
    }
}

/// Each of them on either wire.
macro_rules! on_either_wire {
    ($($name:ident,)*) => {
        mod plain {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Wire::Plain).await })*
        }
        mod tls {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Wire::Tls).await })*
        }
    };
}

on_either_wire! {
    who_is_greeted_while_there_is_no_master_is_never_absent,
    who_is_greeted_by_a_node_that_has_just_begun_is_never_absent,
    a_planned_failover_is_not_noticed,
    a_killed_master_is_not_noticed,
    a_frozen_master_that_returns_is_not_believed,
    a_frozen_first_sentinel_delays_nobody,
    sentinels_restarted_in_turn_are_used_again,
    a_demoted_master_that_keeps_its_clients_is_noticed_by_its_role,
    all_redis_gone_for_longer_than_the_deadline_costs_errors_but_no_lie,
}

async fn stage(wire: Wire) -> Stage {
    Stage::start(binary(), &wire.options(), 2, &[]).await.unwrap()
}

async fn traffic(stage: &Stage) -> Traffic {
    let load = Load { pairs: 10, rate: 200.0, deadline: DEADLINE + Duration::from_millis(250) };
    let traffic = stage.traffic(load).await.unwrap();
    flows(&traffic).await;
    traffic
}

/// Waits until every one of the next messages is acknowledged and received: both ways, all pairs.
async fn flows(traffic: &Traffic) {
    let (_, acked, _, received) = traffic.checker().totals();
    until("messages flow", LIMIT, async || {
        let (_, acked_now, _, received_now) = traffic.checker().totals();
        (acked_now >= acked + 100 && received_now >= received + 100).then_some(())
    })
    .await
    .unwrap();
}

/// Messages flow again; nothing was lost, doubled, reordered, unanswered or refused on the way.
async fn judge(traffic: Traffic) {
    flows(&traffic).await;
    let end = traffic.now();
    let report = traffic.finish(Duration::ZERO, end).await.unwrap();
    assert!(report.broken().is_empty() && report.failed() == 0, "{report:#?}");
}

async fn master_of(stage: &Stage, gateway: usize) -> String {
    let health = stage.gateways[gateway].health().await.unwrap();
    health["checks"]["redis:master"][0]["observedValue"]["address"].as_str().unwrap_or_default().to_owned()
}

/// Waits until both gateways publish on `server` alone again.
async fn followed(stage: &Stage, server: usize) {
    let address = stage.cluster.servers[server].address();
    until("the gateways follow the new master", LIMIT, async || {
        let both = [master_of(stage, 0).await, master_of(stage, 1).await];
        both.iter().all(|master| *master == address).then_some(())
    })
    .await
    .unwrap();
}

/// While there is no master, a newcomer is greeted when one server has its subscription; the others follow.
async fn who_is_greeted_while_there_is_no_master_is_never_absent(wire: Wire) {
    let mut stage = stage(wire).await;
    let addresses = stage.addresses();
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let (addresses, over) = (addresses.clone(), over.clone());
        let mut writer = Client::connect(addresses[0]).await.unwrap();
        tasks.spawn(async move {
            let mut greeted = 0;
            while !over.load(Ordering::Relaxed) {
                let mut newcomer = Client::connect(addresses[1]).await.unwrap();
                let answer = writer.send(newcomer.id, "welcome").await.unwrap();
                assert_eq!(answer, Answer::Ack, "to number {greeted}");
                assert_eq!(newcomer.receive().await.unwrap().1, "welcome");
                greeted += 1;
            }
            greeted
        });
    }
    stage.cluster.servers[0].kill();
    let master = stage.cluster.wait_for_new_master(0, LIMIT).await.unwrap();
    followed(&stage, master).await;
    over.store(true, Ordering::Relaxed);
    let greeted: Vec<usize> = tasks.join_all().await;
    assert!(greeted.iter().all(|greeted| *greeted > 0), "{greeted:?}");
}

/// Nobody knows a node that has just begun; whom it greets they can reach all the same.
async fn who_is_greeted_by_a_node_that_has_just_begun_is_never_absent(wire: Wire) {
    let cluster = Cluster::start(&wire.options()).await.unwrap();
    let flags = cluster.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut maps = Vec::new();
    let mut proxies = Vec::new();
    for server in &cluster.servers {
        let proxy = Proxy::start(&server.address()).await.unwrap();
        proxy.delay(Duration::from_millis(50));
        maps.push(format!("{}={}", server.address(), proxy.address));
        proxies.push(proxy);
    }
    // One is far from the replicas, and so hears late of the other, which is far from the master.
    let map = maps[1..].join(",");
    let one = [&flags[..], &["--address-map", &map]].concat();
    let one = Gateway::start(binary(), &one, &[]).await.unwrap();
    one.wait_synced(3, LIMIT).await.unwrap();
    let mut writer = Client::connect(one.address).await.unwrap();
    let absent = Answer::Error("ENOTCONN".to_owned());
    until("it is calm, and asks the master alone", LIMIT, async || {
        let began = Instant::now();
        assert_eq!(writer.send(Uuid::new_v4(), "?").await.unwrap(), absent);
        (began.elapsed() < Duration::from_millis(50)).then_some(())
    })
    .await
    .unwrap();
    let other = [&flags[..], &["--address-map", &maps[0]]].concat();
    let other = Gateway::start(binary(), &other, &[]).await.unwrap();
    let newcomer = until("it takes clients", LIMIT, async || Client::connect(other.address).await.ok());
    let mut newcomer = newcomer.await.unwrap();
    assert_eq!(writer.send(newcomer.id, "welcome").await.unwrap(), Answer::Ack);
    assert_eq!(newcomer.receive().await.unwrap().1, "welcome");
}

async fn a_planned_failover_is_not_noticed(wire: Wire) {
    let stage = stage(wire).await;
    let traffic = traffic(&stage).await;
    stage.cluster.failover().await.unwrap();
    let master = stage.cluster.wait_for_new_master(0, LIMIT).await.unwrap();
    followed(&stage, master).await;
    judge(traffic).await;
}

async fn a_killed_master_is_not_noticed(wire: Wire) {
    let mut stage = stage(wire).await;
    let traffic = traffic(&stage).await;
    stage.cluster.servers[0].kill();
    flows(&traffic).await;
    let master = stage.cluster.wait_for_new_master(0, LIMIT).await.unwrap();
    followed(&stage, master).await;
    let begun = stage.gateways[0].wait_for_log("failover begun", LIMIT).await.unwrap();
    assert!(begun.contains("INFO"));
    stage.gateways[0].wait_for_log("switched to a new master", LIMIT).await.unwrap();
    assert_eq!(stage.gateways[0].metric("texto_failovers_total").await, Some(1.0));
    judge(traffic).await;
}

async fn a_frozen_master_that_returns_is_not_believed(wire: Wire) {
    let stage = stage(wire).await;
    let traffic = traffic(&stage).await;
    stage.cluster.servers[0].freeze();
    flows(&traffic).await;
    let master = stage.cluster.wait_for_new_master(0, LIMIT).await.unwrap();
    followed(&stage, master).await;
    stage.cluster.servers[0].thaw();
    // It calls itself master until Sentinel demotes it; nobody may publish there alone.
    until("the old master answers", LIMIT, async || stage.cluster.servers[0].role().await).await.unwrap();
    flows(&traffic).await;
    followed(&stage, master).await;
    judge(traffic).await;
}

async fn a_frozen_first_sentinel_delays_nobody(wire: Wire) {
    let mut stage = stage(wire).await;
    let traffic = traffic(&stage).await;
    stage.cluster.sentinels[0].freeze();
    until("the gateway notices", LIMIT, async || {
        let health = stage.gateways[0].health().await.ok()?;
        (health["checks"]["sentinels"][0]["observedValue"]["reachable"] == 2).then_some(())
    })
    .await
    .unwrap();
    stage.cluster.servers[0].kill();
    let address = until("another master is seen", LIMIT, async || {
        let address = master_of(&stage, 1).await;
        (address != stage.cluster.servers[0].address()).then_some(address)
    });
    let address = address.await.unwrap();
    assert!(stage.cluster.servers.iter().any(|server| server.address() == address));
    stage.cluster.sentinels[0].thaw();
    judge(traffic).await;
}

async fn sentinels_restarted_in_turn_are_used_again(wire: Wire) {
    let mut stage = stage(wire).await;
    let traffic = traffic(&stage).await;
    for index in 0..3 {
        stage.cluster.sentinels[index].kill();
        let label = format!("texto_sentinel_up{{address=\"{}\"}}", stage.cluster.sentinels[index].address());
        for (state, up) in [("down", 0.0), ("up", 1.0)] {
            if up > 0.0 {
                stage.cluster.sentinels[index].restart().await.unwrap();
            }
            until(&format!("the Sentinel is {state}"), LIMIT, async || {
                (stage.gateways[0].metric(&label).await? == up).then_some(())
            })
            .await
            .unwrap();
        }
    }
    judge(traffic).await;
}

async fn a_demoted_master_that_keeps_its_clients_is_noticed_by_its_role(wire: Wire) {
    let stage = stage(wire).await;
    let traffic = traffic(&stage).await;
    let other = stage.cluster.servers[1].port.to_string();
    // By hand, behind the Sentinels' back: no connection is closed, and PUBLISH goes on being accepted.
    stage.cluster.servers[0].command::<()>(&["REPLICAOF", "127.0.0.1", &other]).await.unwrap();
    until("the gateway sees the role", LIMIT, async || {
        let health = stage.gateways[0].health().await.ok()?;
        (health["checks"]["redis:master"][0]["status"] == "warn").then_some(())
    })
    .await
    .unwrap();
    flows(&traffic).await;
    judge(traffic).await;
}

async fn all_redis_gone_for_longer_than_the_deadline_costs_errors_but_no_lie(wire: Wire) {
    let mut stage = stage(wire).await;
    let traffic = traffic(&stage).await;
    for server in &mut stage.cluster.servers {
        server.kill();
    }
    until("sends fail", LIMIT, async || (traffic.checker().totals().2 > 50).then_some(())).await.unwrap();
    for server in &mut stage.cluster.servers {
        server.restart().await.unwrap();
    }
    let (_, _, failed, _) = traffic.checker().totals();
    flows(&traffic).await;
    let end = traffic.now();
    let report = traffic.finish(Duration::ZERO, end).await.unwrap();
    assert!(report.broken().is_empty(), "{report:#?}");
    assert_eq!(report.errors.keys().collect::<Vec<_>>(), ["EBROKER"]);
    assert!(report.failed() >= failed);
}
