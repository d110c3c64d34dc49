//! Sentinels that move, lists full of the dead, addresses that mean something else from here, and what it costs to
//! watch: real Sentinels.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::{free_port, until};
use texto_lab::redis_server::RedisServer;

const LIMIT: Duration = Duration::from_secs(30);
const HOST: &str = "127.0.0.1";

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

/// Three Sentinels that know of one another from the start.
struct Sentinels {
    folder: TempDir,
    servers: Vec<RedisServer>,
}

impl Sentinels {
    async fn start(master: u16, replicas: &[u16]) -> Self {
        let folder = TempDir::new().unwrap();
        let ports: Vec<u16> = (0..3).map(|_| free_port().unwrap()).collect();
        let id = |index: usize| format!("{index}").repeat(40);
        let mut servers = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let mut config = format!(
                "sentinel myid {}\nsentinel monitor mymaster {HOST} {master} 2\n\
                 sentinel down-after-milliseconds mymaster 1200\nsentinel failover-timeout mymaster 3000\n",
                id(index)
            );
            for other in (0..3).filter(|other| *other != index) {
                config += &format!("sentinel known-sentinel mymaster {HOST} {} {}\n", ports[other], id(other));
            }
            for replica in replicas {
                config += &format!("sentinel known-replica mymaster {HOST} {replica}\n");
            }
            servers.push(RedisServer::start_sentinel(HOST, *port, folder.path(), &config, None).await.unwrap());
        }
        Self { folder, servers }
    }

    fn addresses(&self) -> String {
        self.servers.iter().map(RedisServer::address).collect::<Vec<_>>().join(",")
    }

    async fn master(&self) -> Option<u16> {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"];
        self.servers[0].command::<(String, u16)>(&words).await.ok().map(|(_, port)| port)
    }

    async fn wait_for_master(&self, port: u16) {
        until("the Sentinels have another master", LIMIT, async || (self.master().await? == port).then_some(()))
            .await
            .unwrap();
    }

    /// Stops one and starts it with what it knew, its id too, on another port, as a pod with a volume is.
    async fn move_one(&mut self, index: usize) {
        let old = self.servers[index].port;
        self.servers[index].kill();
        let kept = std::fs::read_to_string(self.folder.path().join(format!("sentinel-{old}.conf"))).unwrap();
        let kept: Vec<&str> = kept.lines().filter(|line| !line.starts_with("port ")).collect();
        let port = free_port().unwrap();
        self.servers[index] =
            RedisServer::start_sentinel(HOST, port, self.folder.path(), &kept.join("\n"), None).await.unwrap();
    }
}

/// A master and its replica.
async fn pair(folder: &Path, replica: u16) -> (RedisServer, RedisServer) {
    let master = RedisServer::start(HOST, folder, &[], None).await.unwrap();
    let options = ["--replicaof", HOST, &master.port.to_string()];
    let replica = RedisServer::start_on(HOST, replica, folder, &options, None).await.unwrap();
    until("the replica is connected", LIMIT, async || {
        let role: Vec<redis::Value> = replica.command(&["ROLE"]).await.ok()?;
        (redis::from_redis_value::<String>(role.get(3)?.clone()).ok()? == "connected").then_some(())
    })
    .await
    .unwrap();
    (master, replica)
}

/// Waits until the gateway publishes on `server`.
async fn follows(gateway: &Gateway, server: &RedisServer) {
    let outcome = until("the gateway follows the new master", LIMIT, async || {
        let health = gateway.health().await.ok()?;
        let master = &health["checks"]["redis:master"][0];
        (master["observedValue"]["address"] == server.address() && master["status"] == "pass").then_some(())
    });
    if let Err(error) = outcome.await {
        panic!("{error}: {:#}", gateway.health().await.unwrap_or_default());
    }
    let mut a = Client::connect(gateway.address).await.unwrap();
    let b = Client::connect(gateway.address).await.unwrap();
    assert_eq!(a.send(b.id, "hello").await.unwrap(), Answer::Ack);
}

/// The sum of a metric over its labels.
async fn sum(gateway: &Gateway, name: &str) -> f64 {
    let text = http::get(gateway.address, "/metrics", "").await.unwrap().body;
    let lines = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_that_come_back_elsewhere_under_their_ids_are_asked_there() {
    let folder = TempDir::new().unwrap();
    let (mut master, replica) = pair(folder.path(), free_port().unwrap()).await;
    let mut sentinels = Sentinels::start(master.port, &[replica.port]).await;
    let gateway = Gateway::start(binary(), &["--sentinels", &sentinels.addresses()], &[]).await.unwrap();
    gateway.wait_synced(2, LIMIT).await.unwrap();
    for index in 0..3 {
        sentinels.move_one(index).await;
        let address = sentinels.servers[index].address();
        let label = format!("texto_sentinel_up{{address=\"{address}\"}}");
        let outcome = until("the gateway asks the Sentinel at its new address", LIMIT, async || {
            (gateway.metric(&label).await? == 1.0).then_some(())
        });
        outcome.await.unwrap_or_else(|error| panic!("Sentinel {index}: {error}"));
    }
    master.kill();
    sentinels.wait_for_master(replica.port).await;
    follows(&gateway, &replica).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_nine_dead_replicas_keep_nobody_from_the_new_master_and_are_tried_seldom() {
    let folder = TempDir::new().unwrap();
    let mut ports: Vec<u16> = (0..70).map(|_| free_port().unwrap()).collect();
    ports.sort_unstable();
    // The living one is the last of the list.
    let (mut master, replica) = pair(folder.path(), ports[69]).await;
    let sentinels = Sentinels::start(master.port, &ports).await;
    until("the Sentinels find the others dead", LIMIT, async || {
        let rows: Vec<std::collections::HashMap<String, String>> =
            sentinels.servers[0].command(&["SENTINEL", "REPLICAS", "mymaster"]).await.ok()?;
        let dead = rows.iter().filter(|row| row.get("flags").is_some_and(|flags| flags.contains("s_down")));
        (dead.count() == 69).then_some(())
    })
    .await
    .unwrap();
    let gateway = Gateway::start(binary(), &["--sentinels", &sentinels.addresses()], &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    master.kill();
    sentinels.wait_for_master(replica.port).await;
    follows(&gateway, &replica).await;
    let mut last = (Instant::now(), sum(&gateway, "texto_link_failures_total").await);
    let mut rate = f64::MAX;
    let seldom = until("the dead are tried seldom", LIMIT, async || {
        if last.0.elapsed() > Duration::from_secs(2) {
            let failures = sum(&gateway, "texto_link_failures_total").await;
            rate = (failures - last.1) / last.0.elapsed().as_secs_f64();
            last = (Instant::now(), failures);
        }
        (rate < 20.0).then_some(())
    });
    seldom.await.unwrap();
    println!("{rate:.1} attempts a second");
    // A server that is alive again is linked soon all the same.
    let options = ["--replicaof", HOST, &replica.port.to_string()];
    let back = RedisServer::start_on(HOST, ports[3], folder.path(), &options, None).await.unwrap();
    let began = Instant::now();
    let label = format!("texto_link_state{{address=\"{}\"}}", back.address());
    until("one that is back is linked", LIMIT, async || (gateway.metric(&label).await? == 2.0).then_some(()))
        .await
        .unwrap();
    println!("linked {:?} after it was back", began.elapsed());
    // Whoever left the list leaves the metrics.
    for sentinel in &sentinels.servers {
        sentinel.command::<i64>(&["SENTINEL", "RESET", "mymaster"]).await.unwrap();
    }
    until("the dead are gone from the metrics", LIMIT, async || {
        let text = http::get(gateway.address, "/metrics", "").await.ok()?.body;
        (!text.contains(&format!("{HOST}:{}\"", ports[5]))).then_some(())
    })
    .await
    .unwrap();
}
