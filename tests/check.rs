//! `texto check` against real deployments: one that is well, and each way in which it can be wrong.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use texto_lab::certificates::{Authority, TlsFiles, Validity};
use texto_lab::cluster::{Cluster, ClusterOptions};
use texto_lab::fake_sentinel::FakeSentinel;
use texto_lab::gateway::{Gateway, session_key_file};
use texto_lab::nginx::{LOCATIONS, Nginx};
use texto_lab::process::{free_port, until};
use texto_lab::redis_server::RedisServer;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(20);
const BINARY: &str = env!("CARGO_BIN_EXE_texto");
/// What the README gives a user of Redis.
const RIGHTS: &str =
    "resetchannels &texto:* -@all +publish +subscribe +unsubscribe +pubsub|numsub +role +hello +auth +client|setname";

/// What a check found.
#[derive(Debug)]
struct Checked {
    code: i32,
    findings: Vec<Value>,
}

impl Checked {
    /// The finding `name` with `verdict`, which says `text` somewhere.
    #[track_caller]
    fn has(&self, verdict: &str, name: &str, text: &str) -> &Self {
        assert!(self.tells(verdict, name, text), "no {verdict} {name} with {text:?} in: {}", self.list(""));
        self
    }

    fn tells(&self, verdict: &str, name: &str, text: &str) -> bool {
        let is_it = |finding: &&Value| finding["verdict"] == verdict && finding["name"] == name;
        self.findings.iter().filter(is_it).any(|finding| finding.to_string().contains(text))
    }

    /// Neither more nor less is said than that something is wrong (2) or doubtful (1), and each such thing has a reason
    /// and a change.
    #[track_caller]
    fn ends(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{}", self.list(""));
        for finding in &self.findings {
            let is_flaw = ["doubtful", "wrong"].contains(&finding["verdict"].as_str().unwrap());
            assert_eq!(is_flaw, finding["why"].is_string(), "{finding}");
            assert!(!is_flaw || !finding["change"].as_str().unwrap().is_empty(), "{finding}");
        }
        self
    }

    #[track_caller]
    fn lacks(&self, name: &str) -> &Self {
        assert_eq!(self.list(name), "");
        self
    }

    fn list(&self, name: &str) -> String {
        let lines = self.findings.iter().filter(|finding| finding["name"].as_str().unwrap().starts_with(name));
        lines.map(|finding| format!("\n  {finding}")).collect()
    }
}

async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = Command::new(BINARY);
    command.arg("check").args(["--listen", "127.0.0.1:0"]).args(arguments).kill_on_drop(true);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TEXTO_")) {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    tokio::time::timeout(LIMIT, command.output()).await.expect("it ends").unwrap()
}

async fn check(arguments: &[&str], variables: &[(&str, &str)]) -> Checked {
    let output = run(&[arguments, &["--json"]].concat(), variables).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
    let checked =
        Checked { code: output.status.code().unwrap(), findings: json["findings"].as_array().unwrap().clone() };
    assert!(!text.contains("hunter2"), "a secret is shown: {text}");
    assert_eq!(json["verdict"], ["well", "doubtful", "wrong"][usize::try_from(checked.code).unwrap()]);
    checked
}

/// A deployment, and how gateways find it.
struct Deployment {
    cluster: Cluster,
    flags: Vec<String>,
    keys: String,
    _folder: TempDir,
}

/// For machines that others keep busy.
const PATIENCE: (&str, &str) = ("TEXTO_HEARTBEAT_TIMEOUT", "3s");
const VARIABLES: [(&str, &str); 2] = [("TEXTO_REDIS_PASSWORD", "hunter2"), ("TEXTO_SENTINEL_PASSWORD", "hunter2s")];

impl Deployment {
    async fn start(options: ClusterOptions) -> Self {
        let cluster = Cluster::start(&options).await.unwrap();
        let folder = TempDir::new().unwrap();
        let keys = session_key_file(Path::new(BINARY), folder.path()).await.unwrap();
        let flags = cluster.flags();
        Self { cluster, flags, keys: keys.display().to_string(), _folder: folder }
    }

    async fn check(&self, more: &[&str]) -> Checked {
        self.check_as(more, &VARIABLES).await
    }

    async fn check_as(&self, more: &[&str], variables: &[(&str, &str)]) -> Checked {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let variables = [variables, &[PATIENCE, ("TEXTO_SESSION_KEY_FILE", &self.keys)]].concat();
        let mut checked = check(&flags, &variables).await;
        for _ in 0..2 {
            if checked.tells("doubtful", "redis.trip", "") || checked.tells("doubtful", "pubsub.message", "") {
                checked = check(&flags, &variables).await; // Others may keep this machine busy.
            }
        }
        checked
    }

    fn server(&self, index: usize) -> &RedisServer {
        &self.cluster.servers[index]
    }
}

fn secured() -> ClusterOptions {
    ClusterOptions {
        redis_password: Some("hunter2".to_owned()),
        sentinel_password: Some("hunter2s".to_owned()),
        failover_timeout: Duration::from_secs(60),
        ..ClusterOptions::default()
    }
}

async fn set(server: &RedisServer, name: &str, value: &str) {
    server.command::<()>(&["CONFIG", "SET", name, value]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_redis_are_judged_one_by_one() {
    let deployment = Deployment::start(secured()).await;
    let began = Instant::now();
    let well = deployment.check(&[]).await;
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    well.ends(0).has("well", "sentinel.agreement", "3 agree").has("well", "sentinel.quorum", "3 of 3");
    well.has("well", "redis.buffer", "33554432").has("well", "redis.rights", "").has("well", "redis.clock", "");
    well.has("well", "pubsub.message", "published on the master").has("well", "host.somaxconn", "");
    well.has("well", "redis.role", "bytes behind").has("well", "sentinel.replicas", "2 replicas");
    assert_eq!(well.list("pubsub.message").lines().count() - 1, 5, "three of their own, two of the master's");

    // Gateways are counted, and not disturbed.
    let flags: Vec<&str> = deployment.flags.iter().map(String::as_str).collect();
    let gateway = Gateway::start(Path::new(BINARY), &flags, &VARIABLES).await.unwrap();
    gateway.wait_synced(3, LIMIT).await.unwrap();
    let log = gateway.log();
    deployment.check(&[]).await.has("well", "pubsub.gateways", "1 on each Redis").ends(0);
    let news = gateway.log().split_off(log.len());
    assert!(!news.iter().any(|line| line.contains("WARN") || line.contains("ERROR")), "{news:?}");
    drop(gateway);
    let alone = [&flags[..], &["--standby-subscriptions=false"]].concat();
    let gateway = Gateway::start(Path::new(BINARY), &alone, &VARIABLES).await.unwrap();
    gateway.wait_synced(1, LIMIT).await.unwrap();
    deployment.check(&[]).await.has("doubtful", "pubsub.gateways", "1 on 127").ends(1);
    drop(gateway);
    until("nobody is subscribed any more", LIMIT, async || (deployment.check(&[]).await.code == 0).then_some(()))
        .await
        .unwrap();

    let (master, replica) = (deployment.server(0), deployment.server(1));
    for (server, name, value, code, verdict, finding, text) in [
        (replica, "replica-serve-stale-data", "no", 1, "doubtful", "redis.stale", "MASTERDOWN"),
        (master, "client-output-buffer-limit", "pubsub 1mb 1mb 60", 1, "doubtful", "redis.buffer", "pubsub 1048576"),
        (master, "client-output-buffer-limit", "pubsub 9000 9000 60", 2, "wrong", "redis.buffer", "pubsub 9000"),
        (master, "client-output-buffer-limit", "pubsub 0 0 0", 1, "doubtful", "redis.buffer", "no limit"),
        (master, "tcp-keepalive", "0", 1, "doubtful", "redis.keepalive", "tcp-keepalive 60"),
        (master, "min-replicas-to-write", "5", 1, "doubtful", "redis.min-replicas", "NOREPLICAS"),
    ] {
        let before: Vec<String> = server.command(&["CONFIG", "GET", name]).await.unwrap();
        set(server, name, value).await;
        deployment.check(&[]).await.has(verdict, finding, text).has(verdict, finding, &server.address()).ends(code);
        set(server, name, &before[1]).await;
    }

    // As many as are there, and room for a few more: who is there already asks and sets it back.
    let mut client = replica.client().await.unwrap();
    for (room, code, verdict) in [(5, 1, "doubtful"), (2, 2, "wrong"), (0, 2, "wrong")] {
        let mut checked = None;
        // Those who have just gone may still be counted.
        for _ in 0..10 {
            let clients: String = redis::cmd("INFO").arg("clients").query_async(&mut client).await.unwrap();
            let clients = clients.lines().find_map(|line| line.strip_prefix("connected_clients:")).unwrap();
            let most = (clients.trim().parse::<usize>().unwrap() + room).to_string();
            redis::cmd("CONFIG").arg(&["SET", "maxclients", &most]).exec_async(&mut client).await.unwrap();
            let found = checked.insert(deployment.check(&[]).await);
            if found.tells(verdict, "redis.maxclients", &replica.address()) {
                break;
            }
        }
        checked.unwrap().has(verdict, "redis.maxclients", &replica.address()).ends(code);
    }
    redis::cmd("CONFIG").arg(&["SET", "maxclients", "10000"]).exec_async(&mut client).await.unwrap();
    deployment.check(&[]).await.ends(0);

    // A replica that lost its master, one that thinks that it is one, one that hangs.
    replica.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await.unwrap();
    let lost = deployment.check(&[]).await;
    lost.has("wrong", "redis.replication", "127.0.0.1:1").has("wrong", "pubsub.message", "not seen here").ends(2);
    replica.command::<()>(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    deployment.check(&[]).await.has("wrong", "redis.role", "the Sentinels list it as a replica").ends(2);
    replica.freeze();
    let began = Instant::now();
    let hangs = deployment.check(&[]).await;
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert!(hangs.list("redis.").contains("no answer within 3s"), "{hangs:?}");
    hangs.ends(2);
    replica.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_credentials_and_addresses_that_are_wrong_are_named_with_their_mend() {
    let options = ClusterOptions { proxied_replica: true, ..secured() };
    let deployment = Deployment::start(options).await;

    // A user with what the README says, and not more: CONFIG and INFO can't be seen, and that is no flaw.
    let user = |rules: &str| {
        let words = format!("ACL SETUSER texto reset on >hunter2 {rules}");
        words.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let grant = async |rules: &str| {
        for server in &deployment.cluster.servers {
            let words = user(rules);
            server.command::<()>(&words.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
        }
    };
    let texto = ["--redis-username", "texto"];
    grant(RIGHTS).await;
    let least = deployment.check(&texto).await;
    least.has("unseen", "redis.config", "+config|get").has("unseen", "redis.info", "+info").ends(0);
    for (rules, text) in [
        (RIGHTS.replace("&texto:*", "&texto:node*"), "ACL SETUSER texto &texto:*"),
        (RIGHTS.replace(" +role", ""), "ACL SETUSER texto +role"),
        (RIGHTS.replace(" +publish", ""), "ACL SETUSER texto +publish"),
        (RIGHTS.replace(" +pubsub|numsub", ""), "ACL SETUSER texto +pubsub|numsub"),
        (RIGHTS.replace(" +unsubscribe", ""), "ACL SETUSER texto +unsubscribe"),
    ] {
        grant(&rules).await;
        deployment.check(&texto).await.has("wrong", "redis.rights", text).ends(2);
    }

    let wrong = [("TEXTO_REDIS_PASSWORD", "hunter2x"), ("TEXTO_SENTINEL_PASSWORD", "hunter2s")];
    deployment.check_as(&[], &wrong).await.has("wrong", "redis.credentials", "TEXTO_REDIS_PASSWORD").ends(2);
    let none = [("TEXTO_SENTINEL_PASSWORD", "hunter2s")];
    deployment.check_as(&[], &none).await.has("wrong", "redis.credentials", "NOAUTH").ends(2);
    let wrong = [("TEXTO_REDIS_PASSWORD", "hunter2"), ("TEXTO_SENTINEL_PASSWORD", "hunter2x")];
    let checked = deployment.check_as(&[], &wrong).await;
    checked.has("wrong", "sentinel.credentials", "TEXTO_SENTINEL_PASSWORD").has("wrong", "sentinel.none", "").ends(2);

    // The same for Sentinels.
    let rights = "allchannels +subscribe +hello +auth +ping +sentinel|master +sentinel|replicas +sentinel|sentinels";
    for (rules, code, verdict, name) in [
        (rights.to_owned(), 0, "unseen", "sentinel.info"),
        (rights.replace("+sentinel|replicas ", ""), 2, "wrong", "sentinel.rights"),
        (rights.replace("+subscribe ", ""), 2, "wrong", "sentinel.rights"),
    ] {
        for sentinel in &deployment.cluster.sentinels {
            let words = format!("ACL SETUSER texto reset on >hunter2s {rules}");
            sentinel.command::<()>(&words.split(' ').collect::<Vec<_>>()).await.unwrap();
        }
        deployment.check(&["--sentinel-username", "texto"]).await.has(verdict, name, "ACL SETUSER texto").ends(code);
    }

    let replica = deployment.server(1).address();
    let map = format!("{replica}=127.0.0.1:1");
    let checked = deployment.check(&["--address-map", &map]).await;
    checked
        .has("wrong", "redis.announced", &format!("announced by Sentinel as {replica}, mapped to 127.0.0.1:1"))
        .ends(2);
    deployment.check(&["--master-name", "another"]).await.has("wrong", "sentinel.master-name", "another").ends(2);
    deployment.check(&["--redis-tls=true"]).await.has("wrong", "redis.tls", "speaks no TLS").ends(2);
    deployment.check(&["--standby-subscriptions=false"]).await.has("doubtful", "config.standby", "").ends(1);
    deployment.check(&["--session-key-file="]).await.has("doubtful", "config.session-keys", "").ends(1);
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("to-come");
    let to_come = ["--session-key-create=true", &format!("--session-key-file={}", keys.display())];
    deployment.check(&to_come).await.has("unseen", "config.session-key-file", "first start").ends(0);
    assert!(!keys.exists(), "a check changes nothing");

    // One server alone, and what is none.
    let only = [PATIENCE, ("TEXTO_REDIS_PASSWORD", "hunter2"), ("TEXTO_SESSION_KEY_FILE", &deployment.keys)];
    let alone = async |address: String| check(&["--redis", &address], &only).await;
    alone(deployment.server(0).address()).await.ends(0).lacks("sentinel");
    alone(replica).await.has("wrong", "redis.role", "it is a replica").ends(2);
    alone("127.0.0.1:1".to_owned()).await.has("wrong", "redis.reachable", "refused").ends(2);

    // The last replica hears its master from afar; then not at all, while there is much to hear.
    let replication = deployment.cluster.replication.as_ref().unwrap();
    replication.delay(Duration::from_millis(300));
    deployment.check(&[]).await.has("doubtful", "pubsub.message", &deployment.server(2).address()).ends(1);
    replication.hold();
    deployment.server(0).command::<()>(&["PUBLISH", "texto-test", &"x".repeat(2 << 20)]).await.unwrap();
    deployment.check(&[]).await.has("doubtful", "redis.lag", &deployment.server(2).address()).ends(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_would_not_work_is_found_before_it_is_needed() {
    let mut deployment = Deployment::start(ClusterOptions { tls: true, ..ClusterOptions::default() }).await;
    let check = async |deployment: &Deployment| deployment.check_as(&[], &[]).await;
    check(&deployment)
        .await
        .has("well", "redis.reachable", "by TLS")
        .has("well", "sentinel.reachable", "by TLS")
        .ends(0);
    for (option, value, code, verdict, name, text) in [
        ("down-after-milliseconds", "200", 1, "doubtful", "sentinel.down-after", "flaps"),
        ("down-after-milliseconds", "30000", 1, "doubtful", "sentinel.down-after", "TEXTO_READY_GRACE"),
        ("down-after-milliseconds", "1200", 0, "well", "sentinel.down-after", ""),
        ("failover-timeout", "180000", 1, "doubtful", "sentinel.failover-timeout", "180000"),
        ("failover-timeout", "1000", 1, "doubtful", "sentinel.failover-timeout", "given up"),
        ("failover-timeout", "3000", 0, "well", "sentinel.failover-timeout", ""),
        ("quorum", "4", 2, "wrong", "sentinel.quorum", "the quorum is 4, and there are 3"),
        ("quorum", "1", 1, "doubtful", "sentinel.quorum", "1 of 3"),
        ("quorum", "3", 1, "doubtful", "sentinel.quorum", "3 of 3"),
        ("quorum", "2", 0, "well", "sentinel.quorum", "a majority 2"),
    ] {
        for sentinel in &deployment.cluster.sentinels {
            sentinel.command::<()>(&["SENTINEL", "SET", "mymaster", option, value]).await.unwrap();
        }
        check(&deployment).await.has(verdict, name, text).ends(code);
    }
    let first = &deployment.cluster.sentinels[0];
    first.command::<()>(&["SENTINEL", "SET", "mymaster", "down-after-milliseconds", "2000"]).await.unwrap();
    first.command::<()>(&["SENTINEL", "SET", "mymaster", "parallel-syncs", "2"]).await.unwrap();
    let differ = check(&deployment).await;
    differ.has("doubtful", "sentinel.down-after", "1200 and 2000").has(
        "doubtful",
        "sentinel.parallel-syncs",
        "1 and 2",
    );
    differ.ends(1);

    // It stood still for longer than the two seconds after which a Sentinel does not trust its clock (TILT).
    deployment.cluster.sentinels[2].freeze();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    deployment.cluster.sentinels[2].thaw();
    let tilted = deployment.cluster.sentinels[2].address();
    until("it is in TILT", LIMIT, async || {
        check(&deployment).await.tells("wrong", "sentinel.tilt", &tilted).then_some(())
    })
    .await
    .unwrap();

    // One Sentinel is missing: a failover works, but it is the last that may be.
    let dead = deployment.cluster.sentinels[2].address();
    deployment.cluster.sentinels[2].kill();
    check(&deployment).await.has("wrong", "sentinel.reachable", &dead).ends(2);
    deployment.cluster.sentinels[1].kill();
    until("the last Sentinel knows that it is alone", LIMIT, async || {
        let found = check(&deployment).await.list("sentinel.majority");
        (found.contains("\"wrong\"") && found.contains("1 of 3 live, and a failover needs 2")).then_some(())
    })
    .await
    .unwrap();
    deployment.cluster.sentinels[0].kill();
    check(&deployment).await.has("wrong", "sentinel.none", "EBROKER").lacks("redis").ends(2);
}

/// Without a majority the master stays dead; the replicas can't help it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_master_is_named_and_its_replicas_are_not_blamed() {
    let mut deployment = Deployment::start(ClusterOptions { tls: false, ..ClusterOptions::default() }).await;
    for sentinel in &mut deployment.cluster.sentinels[1..] {
        sentinel.kill();
    }
    let master = deployment.server(0).address();
    deployment.cluster.servers[0].kill();
    let mut checked = None;
    until("the last Sentinel holds the master for dead", LIMIT, async || {
        checked = Some(deployment.check_as(&[], &[]).await);
        checked.as_ref().filter(|checked| checked.tells("wrong", "sentinel.master-down", "")).map(drop)
    })
    .await
    .unwrap();
    let checked = checked.unwrap();
    checked.has("wrong", "redis.down", &master).has("wrong", "redis.down", "the master is down").ends(2);
    checked.has("unseen", "redis.replication", "the master does not answer");
    assert!(!checked.tells("wrong", "redis.replication", ""), "{}", checked.list("redis"));
}

/// A Sentinel that lists a replica and another Sentinel, neither of which is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sentinel_announces_and_nobody_reaches_is_named() {
    let folder = TempDir::new().unwrap();
    let master = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let config = format!(
        "sentinel monitor mymaster 127.0.0.1 {} 1\nsentinel known-replica mymaster 127.0.0.1 1\n\
         sentinel known-sentinel mymaster 127.0.0.1 2 {}\n",
        master.port,
        "a".repeat(40)
    );
    let port = free_port().unwrap();
    let sentinel = RedisServer::start_sentinel("127.0.0.1", port, folder.path(), &config, None).await.unwrap();
    let checked = check(&["--sentinels", &sentinel.address()], &[PATIENCE]).await;
    checked.has("doubtful", "redis.down", "Redis 127.0.0.1:1").has("wrong", "sentinel.replicas", "none lives");
    checked.has("doubtful", "sentinel.announced", "announced by Sentinel as 127.0.0.1:2, not reachable from here");
    checked.has("wrong", "sentinel.majority", "1 of 2 live").has("doubtful", "sentinel.down-after", "30000").ends(2);
}

/// Two that were parted during a failover, and one more that hears only itself.
#[tokio::test(flavor = "multi_thread")]
async fn sentinels_that_do_not_agree_about_the_master_are_quoted() {
    let masters = [free_port().unwrap(), free_port().unwrap()];
    let old = FakeSentinel::start(masters[0], 4).await.unwrap();
    let new = FakeSentinel::start(masters[1], 5).await.unwrap();
    let both = [old.address(), new.address()].join(",");
    let checked = check(&["--sentinels", &both], &[PATIENCE]).await;
    checked.has(
        "wrong",
        "sentinel.agreement",
        &format!("{} says 127.0.0.1:{} since epoch 4", old.address(), masters[0]),
    );
    checked.has(
        "wrong",
        "sentinel.agreement",
        &format!("{} says 127.0.0.1:{} since epoch 5", new.address(), masters[1]),
    );
    checked.ends(2);
    let same = FakeSentinel::start(masters[1], 5).await.unwrap();
    let both = [new.address(), same.address()].join(",");
    check(&["--sentinels", &both], &[PATIENCE]).await.has("well", "sentinel.agreement", "2 agree").ends(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_front_is_seen_as_clients_see_it() {
    let gateway = Gateway::start(Path::new(BINARY), &["--trusted-proxies", "127.0.0.1"], &[]).await.unwrap();
    let behind = [gateway.address];
    let inside = "location ~ ^/(metrics|status.*|livez|readyz|healthz)$ { return 404; }";
    let well = format!("{inside}{LOCATIONS}");
    let look = async |locations: &str| {
        let nginx = Nginx::start_with(&behind, locations).await.unwrap();
        check(&["--trusted-proxies=127.0.0.1", &format!("--nginx=http://{}", nginx.address)], &[]).await
    };
    let checked = look(&well).await;
    checked.has("well", "nginx.upgrade", "Texto answers").has("well", "nginx.metrics", "404").has(
        "well",
        "nginx.host",
        "",
    );
    checked.has("well", "nginx.status", "404");
    checked.has("well", "nginx.origin", "refused").has("unseen", "nginx.idle", "75 s").has("unseen", "nginx.503", "");
    checked.has("unseen", "nginx.forwarded-for", "$remote_addr").ends(0);

    look(LOCATIONS)
        .await
        .has("wrong", "nginx.metrics", "location /metrics")
        .has("wrong", "nginx.status", "location /status")
        .has("doubtful", "nginx.readyz", "")
        .ends(2);
    let host = well.replace("proxy_set_header Host $http_host;", "");
    look(&host).await.has("wrong", "nginx.host", "proxy_set_header Host $http_host").ends(2);
    let upgrade = well.replace("proxy_set_header Upgrade $http_upgrade;", "");
    look(&upgrade).await.has("wrong", "nginx.upgrade", "proxy_set_header Upgrade $http_upgrade").ends(2);
    let origin = well.replace("proxy_pass", "proxy_set_header Origin \"\"; proxy_pass");
    look(&origin).await.has("wrong", "nginx.origin", "another address may connect").ends(2);
    look(&format!("{inside} location / {{ return 503; }}")).await.has("well", "nginx.503", "").ends(2);

    let nobody = Nginx::start_with(&["127.0.0.1:1".parse().unwrap()], LOCATIONS).await.unwrap();
    let front = format!("http://{}", nobody.address);
    let checked = check(&["--nginx", &front], &[]).await;
    checked.has("wrong", "nginx.503", "502").has("doubtful", "nginx.proxies", "TEXTO_TRUSTED_PROXIES").ends(2);
    checked.has("unseen", "nginx.metrics", "502");

    // A gateway that speaks TLS itself has nothing in front; whose certificate it is is not asked.
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("texto-lab authority").unwrap();
    let signed = authority.sign(&["chat.example.org"], Validity::Now).unwrap();
    let files = TlsFiles::create(folder.path(), "front", &authority, &signed).unwrap();
    let flags = ["--tls-cert", files.certificate.to_str().unwrap(), "--tls-key", files.key.to_str().unwrap()];
    let gateway = Gateway::start(Path::new(BINARY), &flags, &[]).await.unwrap();
    let checked = check(&["--nginx", &format!("https://{}", gateway.address)], &[]).await;
    checked.has("well", "nginx.upgrade", "Texto answers").has("unseen", "nginx.certificate", "openssl").ends(2);
    check(&["--nginx", "http://127.0.0.1:1"], &[]).await.has("wrong", "nginx.reachable", "refused").ends(2);
    check(&["--nginx", "localhost"], &[]).await.has("wrong", "nginx.address", "http://host:port").ends(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn people_read_the_worst_first_and_a_wrong_configuration_is_a_finding() {
    let output = run(&["--send-timeout", "5"], &[("TEXTO_REDIS_PASSWORD", "hunter2")]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.starts_with("WRONG     the configuration: "), "{text}");
    assert!(
        text.contains("TEXTO_SEND_TIMEOUT") && text.contains("TEXTO_REDIS_PASSWORD: of use with Redis only"),
        "{text}"
    );
    assert!(
        text.trim_end().ends_with("2 wrong, 0 doubtful, 0 not seen, 0 well") && !text.contains("hunter2"),
        "{text}"
    );
    let output = run(&[], &[]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("well      the configuration: the embedded broker"), "{text}");
}
