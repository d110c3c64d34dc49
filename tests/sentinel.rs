//! Sentinels that move, lists full of the dead, addresses that mean something else from here, and what it costs to
//! watch: real Sentinels.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use texto::tls::connector::Connector;
use texto::tls::reasons::Peer;
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::network::Network;
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
        Self::start_with(master, replicas, "").await
    }

    async fn start_with(master: u16, replicas: &[u16], more: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let ports: Vec<u16> = (0..3).map(|_| free_port().unwrap()).collect();
        let id = |index: usize| format!("{index}").repeat(40);
        let mut servers = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let mut config = format!(
                "sentinel myid {}\nsentinel monitor mymaster {HOST} {master} 2\n\
                 sentinel down-after-milliseconds mymaster 1200\nsentinel failover-timeout mymaster 3000\n{more}",
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

/// Waits until the gateway publishes on the server at `address`.
async fn follows(gateway: &Gateway, address: &str) {
    let outcome = until("the gateway follows the new master", LIMIT, async || {
        let health = gateway.health().await.ok()?;
        let master = &health["checks"]["redis:master"][0];
        (master["observedValue"]["address"] == address && master["status"] == "pass").then_some(())
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
    // One that moves on takes the series of the address with it that only others had named.
    let left = sentinels.servers[1].address();
    sentinels.move_one(1).await;
    until("the address that was left is forgotten", LIMIT, async || {
        let text = http::get(gateway.address, "/metrics", "").await.ok()?.body;
        let has = |address: &str| text.contains(&format!("texto_sentinel_up{{address=\"{address}\"}}"));
        (has(&sentinels.servers[1].address()) && !has(&left)).then_some(())
    })
    .await
    .unwrap();
    master.kill();
    sentinels.wait_for_master(replica.port).await;
    follows(&gateway, &replica.address()).await;
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
    follows(&gateway, &replica.address()).await;
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

/// Commands that a Sentinel carried out in `window`.
async fn commands(sentinel: &RedisServer, window: Duration) -> f64 {
    let count = async || {
        let info: String = sentinel.command(&["INFO", "stats"]).await.unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:")).unwrap();
        line.trim().parse::<f64>().unwrap()
    };
    let (before, began) = (count().await, Instant::now());
    tokio::time::sleep(window).await;
    (count().await - before) / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_listed_server_does_not_keep_the_sentinels_busy() {
    let folder = TempDir::new().unwrap();
    let (master, replica) = pair(folder.path(), free_port().unwrap()).await;
    // A replica that is dead for good, and one that the Sentinels find alive but the gateway is not let in to.
    let dead = free_port().unwrap();
    let locked = ["--replicaof", HOST, &master.port.to_string(), "--rename-command", "HELLO", "NOBODY"];
    let locked = RedisServer::start(HOST, folder.path(), &locked, None).await.unwrap();
    let sentinels = Sentinels::start(master.port, &[replica.port, dead, locked.port]).await;
    let window = Duration::from_secs(6);
    until("the Sentinels are settled", LIMIT, async || {
        let rows: Vec<std::collections::HashMap<String, String>> =
            sentinels.servers[0].command(&["SENTINEL", "REPLICAS", "mymaster"]).await.ok()?;
        (rows.len() == 3 && rows.iter().filter(|row| row["flags"].contains("s_down")).count() == 1).then_some(())
    })
    .await
    .unwrap();
    let without = commands(&sentinels.servers[0], window).await;
    let gateway = Gateway::start(binary(), &["--sentinels", &sentinels.addresses()], &[]).await.unwrap();
    gateway.wait_synced(2, LIMIT).await.unwrap();
    let mut rate = f64::MAX;
    let calm = until("the Sentinels are left in peace", LIMIT, async || {
        rate = commands(&sentinels.servers[0], window).await - without;
        (rate < 2.0).then_some(())
    });
    let outcome = calm.await;
    println!("{rate:.1} commands a second for a gateway, {without:.1} without");
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_happens_to_the_master_raises_the_alarm() {
    use std::sync::Arc;
    use texto::address_map::AddressMap;
    use texto::config::secret::Credentials;
    use texto::sentinel::{Settings, Watcher};

    let folder = TempDir::new().unwrap();
    let (mut master, mut replica) = pair(folder.path(), free_port().unwrap()).await;
    let options = ["--replicaof", HOST, &master.port.to_string()];
    let other = RedisServer::start(HOST, folder.path(), &options, None).await.unwrap();
    let mut sentinels = Sentinels::start(master.port, &[replica.port, other.port]).await;
    let tasks = texto::operate::tasks::Tasks::default();
    let metrics = Arc::new(texto::operate::metrics::Metrics::new("test").unwrap());
    let addresses: Vec<texto::config::Address> =
        sentinels.servers.iter().map(|sentinel| sentinel.address().parse().unwrap()).collect();
    let settings = Settings {
        master_name: "mymaster".to_owned(),
        credentials: Credentials { username: None, password: None },
        connector: Connector::plain(Peer::Sentinel),
        address_map: Arc::new(AddressMap::default()),
        limit: Duration::from_secs(1),
    };
    let watcher = Watcher::start(&addresses, settings, metrics, Arc::default(), &tasks);
    let mut topology = watcher.topology();
    let known = topology.wait_for(|topology| topology.replicas.len() == 2);
    tokio::time::timeout(LIMIT, known).await.unwrap().unwrap();
    // A replica dies and comes back, so does a Sentinel, and one alone finds the master dead again and again: each
    // is seen, and nobody is alarmed.
    let address: texto::config::Address = replica.address().parse().unwrap();
    let quiet = async {
        replica.kill();
        let down = topology.wait_for(|topology| !topology.expects(&address));
        tokio::time::timeout(LIMIT, down).await.unwrap().unwrap();
        replica.restart().await.unwrap();
        let up = topology.wait_for(|topology| topology.expects(&address));
        tokio::time::timeout(LIMIT, up).await.unwrap().unwrap();
        sentinels.servers[2].kill();
        until("the Sentinel is found dead", LIMIT, async || {
            let rows: Vec<std::collections::HashMap<String, String>> =
                sentinels.servers[0].command(&["SENTINEL", "SENTINELS", "mymaster"]).await.ok()?;
            rows.iter().any(|row| row["flags"].contains("s_down")).then_some(())
        })
        .await
        .unwrap();
        sentinels.servers[2].restart().await.unwrap();
        until("it is asked again", LIMIT, async || {
            watcher.status().0.iter().all(|sentinel| sentinel.reachable).then_some(())
        })
        .await
        .unwrap();
        let down_after = async |sentinel: &RedisServer, milliseconds: &str| {
            let words = ["SENTINEL", "SET", "mymaster", "down-after-milliseconds", milliseconds];
            sentinel.command::<()>(&words).await.unwrap();
        };
        for (sentinel, milliseconds) in sentinels.servers.iter().zip(["300", "30000", "30000"]) {
            down_after(sentinel, milliseconds).await;
        }
        for _ in 0..3 {
            for dead in [true, false] {
                if dead {
                    master.freeze()
                } else {
                    master.thaw()
                }
                until("one Sentinel finds the master dead, and not", LIMIT, async || {
                    let command = ["SENTINEL", "MASTER", "mymaster"];
                    let row: std::collections::HashMap<String, String> =
                        sentinels.servers[0].command(&command).await.ok()?;
                    (row["flags"].contains("s_down") == dead).then_some(())
                })
                .await
                .unwrap();
            }
        }
        for sentinel in &sentinels.servers {
            down_after(sentinel, "1200").await;
        }
    };
    tokio::select! {
        () = watcher.alarmed() => panic!("alarmed by what is not the master"),
        () = quiet => {}
    }
    master.kill();
    tokio::time::timeout(LIMIT, watcher.alarmed()).await.unwrap();
    assert!(tasks.finish(LIMIT).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn name_servers_that_never_answer_cost_a_thread_a_name_and_hold_up_no_end() {
    // A name server that takes questions and says nothing, in a resolv.conf that this gateway alone sees.
    let nobody = format!("127.{}.{}.53", fastrand::u8(2..250), fastrand::u8(1..250));
    let _socket = std::net::UdpSocket::bind((nobody.as_str(), 53)).expect("only root may be a name server");
    let folder = TempDir::new().unwrap();
    let resolv = folder.path().join("resolv.conf");
    let search = "search ns.svc.cluster.test svc.cluster.test cluster.test lan.test";
    std::fs::write(&resolv, format!("nameserver {nobody}\n{search}\noptions ndots:5\n")).unwrap();
    let before = ["unshare", "--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""];
    let before: Vec<String> = before.into_iter().chain([resolv.to_str().unwrap()]).map(str::to_owned).collect();
    let sentinels = "sentinel-0.sentinel:26379,sentinel-1.sentinel:26379,sentinel-2.sentinel:26379";
    let arguments = ["--sentinels", sentinels];
    let mut gateway = Gateway::start_within(&before, "127.0.0.1:0", binary(), &arguments, &[]).await.unwrap();
    gateway.wait_for_log("the name servers have not answered", LIMIT).await.unwrap();
    let usual = gateway.threads().unwrap();
    let end = Instant::now() + Duration::from_secs(12);
    let mut most = usual;
    while Instant::now() < end {
        most = most.max(gateway.threads().unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(gateway.metric("texto_name_lookups").await, Some(3.0));
    println!("{usual} threads at first, {most} at most");
    assert!(most <= usual + 3, "{usual} threads at first, {most} at most");
    let began = Instant::now();
    gateway.signal(nix::sys::signal::Signal::SIGINT);
    let stopped = gateway.wait_exit(Duration::from_secs(10)).await.unwrap();
    assert!(stopped.success(), "{stopped}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Behind NAT: Redis and Sentinels announce addresses that mean something else where the gateway is.
#[tokio::test(flavor = "multi_thread")]
async fn announced_addresses_that_mean_something_else_here_are_named_and_mapped() {
    let network = Network::new(1).expect("only root can make network namespaces, with iproute2 and iptables");
    let (before, home) = (network.place(0).0, network.home());
    let listen = format!("{}:0", network.place(0).1);
    let folder = TempDir::new().unwrap();
    let bind = ["--bind", HOST, &home];
    let mut master = RedisServer::start(HOST, folder.path(), &bind, None).await.unwrap();
    let port = master.port.to_string();
    let options = [bind.as_slice(), &["--replicaof", HOST, &port]].concat();
    let replica = RedisServer::start(HOST, folder.path(), &options, None).await.unwrap();
    let sentinels = Sentinels::start_with(master.port, &[replica.port], &format!("bind {HOST} {home}\n")).await;
    let here = |server: &RedisServer| format!("{home}:{}", server.port);

    let first = here(&sentinels.servers[0]);
    let arguments = ["--sentinels", first.as_str()];
    let gateway = Gateway::start_within(&before, &listen, binary(), &arguments, &[]).await.unwrap();
    let unreachable = format!("announced by Sentinel as {}, not reachable from here", master.address());
    let outcome = until("/readyz says why", LIMIT, async || {
        let health = gateway.health().await.ok()?;
        let output = |check: &str| health["checks"][check][0]["output"].as_str().map(str::to_owned);
        let other = format!("announced by Sentinel as {}, not", sentinels.servers[1].address());
        (output("broker")?.contains(&unreachable) && output("sentinels")?.contains(&other)).then_some(())
    });
    if let Err(error) = outcome.await {
        panic!("{error}: {:#}", gateway.health().await.unwrap_or_default());
    }
    gateway.wait_for_log(&unreachable, LIMIT).await.unwrap();
    drop(gateway);

    let others = [&master, &replica, &sentinels.servers[1], &sentinels.servers[2]];
    let map: Vec<_> = others.iter().map(|server| format!("{}={}", server.address(), here(server))).collect();
    let map = map.join(",");
    let arguments = ["--sentinels", first.as_str(), "--address-map", map.as_str()];
    let gateway = Gateway::start_within(&before, &listen, binary(), &arguments, &[]).await.unwrap();
    gateway.wait_synced(2, LIMIT).await.unwrap();
    until("all Sentinels answer", LIMIT, async || {
        let sentinels = gateway.health().await.ok()?["checks"]["sentinels"][0]["observedValue"].clone();
        (sentinels["reachable"] == 3 && sentinels["known"] == 3).then_some(())
    })
    .await
    .unwrap();
    master.kill();
    sentinels.wait_for_master(replica.port).await;
    follows(&gateway, &here(&replica)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_that_flaps_is_a_few_lines() {
    let folder = TempDir::new().unwrap();
    let (master, replica) = pair(folder.path(), free_port().unwrap()).await;
    let mut sentinels = Sentinels::start(master.port, &[replica.port]).await;
    let gateway = Gateway::start(binary(), &["--sentinels", &sentinels.addresses()], &[]).await.unwrap();
    gateway.wait_synced(2, LIMIT).await.unwrap();
    let address = sentinels.servers[2].address();
    let label = format!("texto_sentinel_up{{address=\"{address}\"}}");
    let is = async |up: f64| {
        until("the gateway sees the Sentinel flap", LIMIT, async || {
            (gateway.metric(&label).await? == up).then_some(())
        })
        .await
        .unwrap();
    };
    is(1.0).await;
    for _ in 0..10 {
        sentinels.servers[2].kill();
        is(0.0).await;
        sentinels.servers[2].restart().await.unwrap();
        is(1.0).await;
    }
    let about_it = gateway.log().into_iter().filter(|line| line.contains(&address)).collect::<Vec<_>>();
    println!("{} lines", about_it.len());
    assert!(about_it.len() <= 8, "{} lines: {about_it:#?}", about_it.len());
}

/// A name that only the hosts file knows, of a host that has gone from one of its two networks.
#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_a_name_is_tried_within_the_deadline() {
    let network = Network::new(1).expect("only root can make network namespaces, with iproute2 and iptables");
    let (place, gateway_host) = network.place(0);
    let home = network.home();
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start(HOST, folder.path(), &["--bind", HOST, &home], None).await.unwrap();
    // The address that nobody has is nearer to the gateway's own, so it comes first.
    let nobody = format!("{}.250", gateway_host.rsplit_once('.').unwrap().0);
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1 localhost\n{nobody} redis.test\n{home} redis.test\n")).unwrap();
    let mount = ["unshare", "--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""];
    let before = place.into_iter().chain(mount.map(str::to_owned)).chain([hosts.to_str().unwrap().to_owned()]);
    let address = format!("redis.test:{}", redis.port);
    let listen = format!("{gateway_host}:0");
    let before: Vec<_> = before.collect();
    let gateway = Gateway::start_within(&before, &listen, binary(), &["--redis", &address], &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
}
