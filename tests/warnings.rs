//! What a gateway warns of at its start, and what it is silent about; and what `texto check` says of a host that is too small.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::cluster::{Cluster, ClusterOptions};
use texto_lab::gateway::Gateway;
use texto_lab::redis_server::RedisServer;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(30);
const BINARY: &str = env!("CARGO_BIN_EXE_texto");
/// It says when it has looked at everything.
const DEBUG: (&str, &str) = ("TEXTO_LOG", "texto=debug");
/// A host of its own, as far as these two are concerned, on which the rest is run. Needs root.
const SMALL_HOST: &str = "ip link set lo up; echo 128 >/proc/sys/net/core/somaxconn; \
                          echo 60000 60999 >/proc/sys/net/ipv4/ip_local_port_range; exec prlimit --nofile=1024:1024 -- \"$@\"";

fn small_host() -> Vec<String> {
    ["unshare", "--net", "sh", "-c", SMALL_HOST, "sh"].map(str::to_owned).to_vec()
}

/// The findings that a gateway warned of, once it has looked.
async fn warnings(gateway: &Gateway) -> Vec<(String, String)> {
    gateway.wait_for_log("looked for what `texto check` would say", LIMIT).await.unwrap();
    let lines = gateway.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let warnings = lines.filter(|line| line["level"] == "WARN" && line["fields"]["finding"].is_string());
    warnings.map(|line| (line["fields"]["finding"].as_str().unwrap().to_owned(), line.to_string())).collect()
}

fn names(warnings: &[(String, String)]) -> Vec<&str> {
    warnings.iter().map(|(name, _)| &**name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_too_small_is_named_by_check_and_by_a_gateway() {
    let words = small_host();
    let output = Command::new(&words[0]).args(&words[1..]).args([BINARY, "check", "--json"]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    let flaws = json["findings"].as_array().unwrap().iter().filter(|finding| finding["verdict"] == "doubtful");
    let flaws: Vec<_> = flaws.map(|finding| finding["name"].as_str().unwrap()).collect();
    assert_eq!(flaws, ["host.descriptors", "host.somaxconn", "host.ports"], "{text}");

    let gateway = Gateway::start_within(&words, "127.0.0.1:0", Path::new(BINARY), &[], &[DEBUG]).await.unwrap();
    let warned = warnings(&gateway).await;
    assert_eq!(names(&warned), ["host.descriptors", "host.somaxconn"], "{warned:?}");
    assert!(warned[0].1.contains("LimitNOFILE=") && warned[1].1.contains("sysctl -w"), "{warned:?}");
}

/// One Sentinel alone, which was told of its master by a loopback address, and a Redis that bears with no subscriber.
#[tokio::test(flavor = "multi_thread")]
async fn the_worst_of_a_deployment_is_said_once_and_nobody_waits_for_it() {
    let folder = TempDir::new().unwrap();
    let options = ["--client-output-buffer-limit", "pubsub", "9000", "9000", "60"].map(str::to_owned);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let master = RedisServer::start("127.0.0.1", folder.path(), &options, None).await.unwrap();
    let config = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", master.port);
    let port = texto_lab::process::free_port().unwrap();
    let _sentinel = RedisServer::start_sentinel("127.0.0.1", port, folder.path(), &config, None).await.unwrap();
    // Written so, it is an address of another host to whoever does not look twice.
    let sentinels = format!("127.1:{port}");
    let gateway = Gateway::start(Path::new(BINARY), &["--sentinels", &sentinels], &[DEBUG]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut client = Client::connect(gateway.address).await.unwrap();
    assert_eq!(client.send(client.id, "meanwhile").await.unwrap(), Answer::Ack);
    let before = gateway.log().iter().filter(|line| line.contains("\"finding\"")).count();
    assert_eq!(before, 0, "it serves before it has looked");

    let warned = warnings(&gateway).await;
    let mut seen = names(&warned);
    seen.sort_unstable();
    assert_eq!(seen, ["redis.buffer", "sentinel.count", "sentinel.loopback", "sentinel.replicas"], "{warned:?}");
    for (name, text) in [
        ("redis.buffer", "pubsub 9000 9000 60"),
        ("sentinel.count", "run three, on three hosts"),
        ("sentinel.loopback", "replica-announce-ip"),
        ("sentinel.replicas", "none lives"),
    ] {
        assert!(warned.iter().any(|(found, line)| found == name && line.contains(text)), "{name}: {warned:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_deployment_that_is_well_nothing_is_said() {
    let cluster = Cluster::start(&ClusterOptions::default()).await.unwrap();
    let flags = cluster.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let gateway = Gateway::start(Path::new(BINARY), &flags, &[DEBUG]).await.unwrap();
    let warned = warnings(&gateway).await;
    assert_eq!(names(&warned), Vec::<&str>::new(), "{warned:?}");
}
