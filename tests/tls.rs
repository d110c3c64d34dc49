//! TLS to Redis and to the Sentinels: what is said when it fails, and certificates that are renewed. Real servers.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use texto_lab::certificates::{Authority, TlsFiles, Validity};
use texto_lab::client::{Answer, Client};
use texto_lab::cluster::ClusterOptions;
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::{free_port, until};
use texto_lab::redis_server::RedisServer;
use texto_lab::stage::Stage;
use texto_lab::traffic::Load;

const HOST: &str = "127.0.0.1";
const LIMIT: Duration = Duration::from_secs(30);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

/// What is spoken to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Peer {
    Redis,
    Sentinel,
}

const PEERS: [Peer; 2] = [Peer::Redis, Peer::Sentinel];

impl Peer {
    fn name(self) -> &'static str {
        if self == Peer::Redis { "redis" } else { "sentinel" }
    }

    async fn start(self, folder: &Path, tls: Option<&TlsFiles>, options: &[(&str, &str)]) -> RedisServer {
        if self == Peer::Redis {
            let options: Vec<String> =
                options.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]).collect();
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            return RedisServer::start_secured(HOST, folder, &options, None, tls).await.unwrap();
        }
        // Its master need not be there for what is looked at here.
        let options = options.iter().map(|(name, value)| format!("{name} {value}\n"));
        let config = format!("{}sentinel monitor mymaster {HOST} 1 1\n", options.collect::<String>());
        RedisServer::start_secured_sentinel(HOST, free_port().unwrap(), folder, &config, None, tls).await.unwrap()
    }

    /// `--redis …`, and what else is wanted, each a flag of this kind of server.
    fn flags(self, server: &RedisServer, flags: &[(&str, &dyn AsRef<Path>)]) -> Vec<String> {
        let address = if self == Peer::Redis { "--redis" } else { "--sentinels" };
        let own = flags.iter().map(|(flag, value)| format!("--{}-{flag}={}", self.name(), value.as_ref().display()));
        [format!("{address}={}", server.address())].into_iter().chain(own).collect()
    }

    fn option(self, flag: &str) -> String {
        let flag = format!("{}-{flag}", self.name());
        format!("--{flag} (TEXTO_{})", flag.to_uppercase().replace('-', "_"))
    }
}

async fn gateway(flags: &[String]) -> Gateway {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Gateway::start(binary(), &flags, &[]).await.unwrap()
}

/// The log says it, and so does whoever is asked for it.
async fn says(gateway: &Gateway, reason: &str) {
    let line = gateway.wait_for_log(&serde_json::to_string(reason).unwrap().replace('"', ""), LIMIT).await.unwrap();
    assert!(line.contains("WARN"), "{line}");
    until(&format!("/readyz?verbose says {reason:?}"), LIMIT, async || {
        http::get(gateway.address, "/readyz?verbose", "").await.ok()?.body.contains(reason).then_some(())
    })
    .await
    .unwrap();
}

struct Bench {
    folder: TempDir,
    authority: Authority,
}

impl Bench {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), authority: Authority::new("one").unwrap() }
    }

    fn files(&self, name: &str, names: &[&str], validity: Validity) -> TlsFiles {
        let pair = self.authority.sign(names, validity).unwrap();
        TlsFiles::create(self.folder.path(), name, &self.authority, &pair).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_tls_is_told_from_one_that_is_silent() {
    let newest = [("tls-protocols", "TLSv1.3")];
    for (peer, options) in PEERS.into_iter().flat_map(|peer| [(peer, &[][..]), (peer, &newest)]) {
        let bench = Bench::new();
        let files = bench.files("server", &[HOST], Validity::Now);
        let server = peer.start(bench.folder.path(), Some(&files), options).await;
        let gateway = gateway(&peer.flags(&server, &[])).await;
        says(&gateway, &format!("speaks TLS on this port, and is spoken to without: give {}", peer.option("tls")))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_no_tls_is_told_from_one_that_is_silent() {
    for peer in PEERS {
        let bench = Bench::new();
        let files = bench.files("server", &[HOST], Validity::Now);
        let server = peer.start(bench.folder.path(), None, &[]).await;
        let gateway = gateway(&peer.flags(&server, &[("tls", &"true"), ("tls-ca", &files.authority)])).await;
        says(&gateway, &format!("speaks no TLS on this port: give its TLS port, or take {} away", peer.option("tls")))
            .await;
    }
}

/// It takes connections and says nothing, as a process that hangs does.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_not_taken_for_one_without_tls() {
    for peer in PEERS {
        let bench = Bench::new();
        let files = bench.files("server", &[HOST], Validity::Now);
        let server = peer.start(bench.folder.path(), Some(&files), &[]).await;
        server.freeze();
        let gateway = gateway(&peer.flags(&server, &[("tls", &"true"), ("tls-ca", &files.authority)])).await;
        says(&gateway, "no answer to the TLS handshake within 1s").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_signed_by_somebody_else_is_named() {
    for peer in PEERS {
        let bench = Bench::new();
        let files = bench.files("server", &[HOST], Validity::Now);
        let server = peer.start(bench.folder.path(), Some(&files), &[]).await;
        // Another name; the same name, as an authority has it that was made anew.
        for name in ["two", "one"] {
            let other = Authority::new(name).unwrap();
            let pair = other.sign(&[HOST], Validity::Now).unwrap();
            let other = TlsFiles::create(bench.folder.path(), "other", &other, &pair).unwrap();
            let gateway = gateway(&peer.flags(&server, &[("tls", &"true"), ("tls-ca", &other.authority)])).await;
            says(&gateway, &format!("is signed by nobody in {}", peer.option("tls-ca"))).await;
            // Without a file the system's authorities count, which are those here.
            let flags = peer.flags(&server, &[("tls", &"true")]);
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let system = [("SSL_CERT_FILE", other.authority.to_str().unwrap()), ("SSL_CERT_DIR", "/nowhere")];
            let gateway = Gateway::start(binary(), &flags, &system).await.unwrap();
            let reason = "is signed by no authority that this system knows: give its authority by";
            says(&gateway, &format!("{reason} {}", peer.option("tls-ca"))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_named_and_the_name_can_be_given() {
    for peer in PEERS {
        let bench = Bench::new();
        let files = bench.files("server", &["redis.example", "10.1.2.3"], Validity::Now);
        let server = peer.start(bench.folder.path(), Some(&files), &[("tls-auth-clients", "no")]).await;
        let flags = peer.flags(&server, &[("tls", &"true"), ("tls-ca", &files.authority)]);
        let gateway = gateway(&flags).await;
        let names = "is not for the name 127.0.0.1, but for redis.example, 10.1.2.3: give a name that it is for by";
        says(&gateway, &format!("{names} {}", peer.option("tls-server-name"))).await;
        for name in ["redis.example", "10.1.2.3"] {
            let flag = format!("--{}-tls-server-name={name}", peer.name());
            let gateway = self::gateway(&[&flags[..], &[flag]].concat()).await;
            is_used(peer, &server, &gateway).await;
        }
    }
}

/// The gateway works with the Redis, or has heard the Sentinel.
async fn is_used(peer: Peer, server: &RedisServer, gateway: &Gateway) {
    match peer {
        Peer::Redis => {
            gateway.wait_ready(LIMIT).await.unwrap();
            let mut client = Client::connect(gateway.address).await.unwrap();
            assert_eq!(client.send(client.id, "x").await.unwrap(), Answer::Ack);
        }
        Peer::Sentinel => {
            let up = format!("texto_sentinel_up{{address=\"{}\"}}", server.address());
            until("the Sentinel answers", LIMIT, async || (gateway.metric(&up).await? == 1.0).then_some(()))
                .await
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_out_of_date_is_named_with_the_date() {
    for peer in PEERS {
        for (validity, reason) in [
            (Validity::Past, "the server's certificate has expired on 2001-02-03T00:00:00Z: renew it"),
            (Validity::Future, "the server's certificate is not valid yet, only from 3001-02-03T00:00:00Z"),
        ] {
            let bench = Bench::new();
            let files = bench.files("server", &[HOST], validity);
            let server = peer.start(bench.folder.path(), Some(&files), &[("tls-auth-clients", "no")]).await;
            let gateway = gateway(&peer.flags(&server, &[("tls", &"true"), ("tls-ca", &files.authority)])).await;
            says(&gateway, reason).await;
            let reason = if validity == Validity::Past { "expired" } else { "not_yet_valid" };
            let counted = format!("texto_tls_server_failures_total{{reason=\"{reason}\",server=\"{}\"}}", peer.name());
            assert!(gateway.metric(&counted).await.is_some_and(|count| count >= 1.0), "{counted}");
        }
    }
}

/// With TLS 1.2 the server says it in the handshake, with 1.3 after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_is_missing_or_refused_is_named() {
    for (peer, version) in PEERS.into_iter().flat_map(|peer| [(peer, "TLSv1.2"), (peer, "TLSv1.3")]) {
        let bench = Bench::new();
        let files = bench.files("server", &[HOST], Validity::Now);
        let server = peer.start(bench.folder.path(), Some(&files), &[("tls-protocols", version)]).await;
        let flags = peer.flags(&server, &[("tls", &"true"), ("tls-ca", &files.authority)]);
        let demanded = format!("demands a client certificate: give {}", peer.option("tls-cert"));
        says(&gateway(&flags).await, &demanded).await;
        let shown = |files: &TlsFiles| {
            let own = [("tls-cert", &files.certificate), ("tls-key", &files.key)];
            let own = own.map(|(flag, path)| format!("--{}-{flag}={}", peer.name(), path.display()));
            [&flags[..], &own[..]].concat()
        };
        let strange = Authority::new("two").unwrap();
        let pair = strange.sign(&["gateway.example"], Validity::Now).unwrap();
        let strange = TlsFiles::create(bench.folder.path(), "strange", &strange, &pair).unwrap();
        let refused = format!("refuses the client certificate of {}", peer.option("tls-cert"));
        says(&gateway(&shown(&strange)).await, &refused).await;
        let old = gateway(&shown(&bench.files("old", &["gateway.example"], Validity::Past))).await;
        says(&old, &refused).await;
        let expiry = format!("texto_tls_certificate_expiry_timestamp_seconds{{shown_to=\"{}\"}}", peer.name());
        assert_eq!(old.metric(&expiry).await, Some(981_158_400.0), "that is 2001-02-03");
        let taken = bench.files("good", &["gateway.example"], Validity::Now);
        is_used(peer, &server, &gateway(&shown(&taken)).await).await;
    }
}

/// All certificates are replaced, and the authority as well, so that the old ones are worth nothing.
#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_used_by_whoever_connects_and_nobody_is_disturbed() {
    let options = ClusterOptions { tls: true, ..ClusterOptions::default() };
    let mut stage = Stage::start(binary(), &options, 2, &[]).await.unwrap();
    let traffic = stage.traffic(Load { pairs: 10, rate: 200.0, deadline: Duration::from_millis(5250) }).await.unwrap();
    let folder = TempDir::new().unwrap();
    let tls = stage.cluster.tls.as_ref().unwrap();
    let old = tls.gateways.copy_to(folder.path()).unwrap();
    let mut before = Vec::new();
    for server in &stage.cluster.servers {
        before.push(server.client().await.unwrap());
    }
    let authority = Authority::new("another authority").unwrap();
    for (files, name) in [(&tls.servers, HOST), (&tls.gateways, "gateway.example")] {
        files.replace(&authority, &authority.sign(&[name], Validity::Now).unwrap()).unwrap();
    }
    let path = |path: &Path| path.display().to_string();
    let (ca, cert, key) = (path(&tls.servers.authority), path(&tls.servers.certificate), path(&tls.servers.key));
    for client in &mut before {
        let mut set = redis::cmd("CONFIG");
        set.arg(&["SET", "tls-ca-cert-file", &ca, "tls-cert-file", &cert, "tls-key-file", &key]);
        set.query_async::<()>(client).await.unwrap();
    }
    for gateway in &stage.gateways {
        for whose in ["redis", "sentinel"] {
            gateway.wait_for_log(&format!("{whose}: certificates were read again"), LIMIT).await.unwrap();
        }
        for server in &stage.cluster.servers {
            let failures = format!("texto_link_failures_total{{address=\"{}\"}}", server.address());
            assert!(gateway.metric(&failures).await.is_none(), "a link was disturbed");
        }
    }
    for index in 0..stage.cluster.sentinels.len() {
        stage.cluster.sentinels[index].restart().await.unwrap();
    }
    stage.cluster.wait_until_whole(LIMIT).await.unwrap();
    for gateway in &stage.gateways {
        until("all Sentinels are known again", LIMIT, async || {
            let health = gateway.health().await.ok()?;
            (health["checks"]["sentinels"][0]["observedValue"]["reachable"] == 3).then_some(())
        })
        .await
        .unwrap();
    }
    // What was renewed is used now: by the gateways, the replicas and the Sentinels.
    stage.cluster.servers[0].kill();
    let master = stage.cluster.wait_for_new_master(0, LIMIT).await.unwrap();
    stage.cluster.servers[0].restart().await.unwrap();
    stage.cluster.wait_until_whole(LIMIT).await.unwrap();
    for gateway in &stage.gateways {
        gateway.wait_synced(3, LIMIT).await.unwrap();
    }
    let end = traffic.now();
    let report = traffic.finish(Duration::ZERO, end).await.unwrap();
    assert!(report.broken().is_empty() && report.failed() == 0, "{report:#?}");
    // And what was not is of no use any more.
    let server = stage.cluster.servers[master].address();
    let flags = [vec![format!("--redis={server}")], old.flags("redis")].concat();
    says(&gateway(&flags).await, "is signed by nobody in --redis-tls-ca").await;
}

/// Whoever dies says no farewell, by TLS either, and a reader of the log has no use for a lecture on that.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_has_closed_the_connection() {
    let bench = Bench::new();
    let files = bench.files("server", &[HOST], Validity::Now);
    let mut server = Peer::Redis.start(bench.folder.path(), Some(&files), &[("tls-auth-clients", "no")]).await;
    let flags = Peer::Redis.flags(&server, &[("tls", &"true"), ("tls-ca", &files.authority)]);
    let gateway = gateway(&flags).await;
    is_used(Peer::Redis, &server, &gateway).await;
    server.kill();
    let lost = gateway.wait_for_log("link to Redis lost", LIMIT).await.unwrap();
    // Reset, where it had not read all that it was sent.
    let reasons = ["the server closed the connection", "Connection reset by peer (os error 104)"];
    assert!(reasons.iter().any(|reason| lost.contains(&format!("\"reason\":\"{reason}\""))), "{lost}");
}

/// The files are those of somebody who has made a mistake, and then those of somebody who has seen it.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_can_t_be_used_leave_the_last_ones() {
    let bench = Bench::new();
    let files = bench.files("server", &[HOST], Validity::Now);
    let own = bench.files("gateway", &["gateway.example"], Validity::Now);
    let server = Peer::Redis.start(bench.folder.path(), Some(&files), &[]).await;
    let flags = [Peer::Redis.flags(&server, &[]), own.flags("redis")].concat();
    let gateway = gateway(&flags).await;
    is_used(Peer::Redis, &server, &gateway).await;
    let good = std::fs::read_to_string(&own.key).unwrap();
    texto_lab::certificates::replace(&own.key, "no key at all").unwrap();
    gateway.wait_for_log("redis: certificates can't be read again, the last ones are used", LIMIT).await.unwrap();
    server.command::<()>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await.unwrap();
    gateway.wait_for_log("link to Redis lost", LIMIT).await.unwrap();
    is_used(Peer::Redis, &server, &gateway).await;
    texto_lab::certificates::replace(&own.key, &good).unwrap();
    let renewed = bench.authority.sign(&["gateway.example"], Validity::Now).unwrap();
    own.replace(&bench.authority, &renewed).unwrap();
    gateway.wait_for_log("redis: certificates were read again", LIMIT).await.unwrap();
}
