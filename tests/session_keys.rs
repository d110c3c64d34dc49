//! Gateways tell one another which keys they have, and warn of those whose clients would be strangers here.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use texto_lab::gateway::Gateway;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use texto_lab::resumer::Resumer;

const LIMIT: Duration = Duration::from_secs(20);
const STRANGE: &str = "texto_nodes_with_strange_keys";
const WARNING: &str = "a key that this one does not know: clients that come from there will be strangers here";

struct Node {
    gateway: Gateway,
    file: PathBuf,
}

impl Node {
    async fn start(name: &str, redis: &RedisServer, folder: &TempDir, keys: &[&str]) -> Self {
        let file = folder.path().join(name);
        std::fs::write(&file, keys.join("\n")).unwrap();
        let address = redis.address();
        let arguments = ["--redis", &address, "--node-id", name, "--session-key-file", file.to_str().unwrap()];
        let gateway = Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), &arguments, &[]).await.unwrap();
        gateway.wait_synced(1, LIMIT).await.unwrap();
        Self { gateway, file }
    }

    fn write(&self, keys: &[&str]) {
        std::fs::write(&self.file, keys.join("\n")).unwrap();
    }

    async fn sees(&self, count: f64) {
        let seen = async || (self.gateway.metric(STRANGE).await? == count).then_some(());
        until("the keys are compared", LIMIT, seen).await.unwrap();
    }

    fn warnings(&self) -> Vec<String> {
        self.gateway.log().into_iter().filter(|line| line.contains(WARNING)).collect()
    }
}

#[tokio::test]
async fn a_node_that_signs_with_an_unknown_key_is_warned_of_until_its_key_is_known() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let [old, new, third] = [(); 3].map(|()| texto::resume::keys::new_line().unwrap());
    let one = Node::start("one", &redis, &folder, &[&old]).await;
    let two = Node::start("two", &redis, &folder, &[&old]).await;
    for node in [&one, &two] {
        let met = async || (node.gateway.metric("texto_other_nodes").await? == 1.0).then_some(());
        until("they know one another", LIMIT, met).await.unwrap();
    }

    // First on one node, unknown on the other: the mistake.
    two.write(&[&new, &old]);
    one.sees(1.0).await;
    let warning = one.gateway.wait_for_log(WARNING, LIMIT).await.unwrap();
    assert!(warning.contains("\"node\":\"two\"") && warning.contains("--session-key-file"), "{warning}");
    assert!(!warning.contains(&new[..8]), "{warning}");
    let person = Resumer::begin(two.gateway.address).await.unwrap();
    let stranger = Resumer::resume(one.gateway.address, &person.token, 0).await.unwrap();
    assert_ne!(stranger.id, person.id);

    one.write(&[&old, &new]);
    one.sees(0.0).await;
    one.gateway.wait_for_log("are known here now", LIMIT).await.unwrap();
    let friend = Resumer::resume(one.gateway.address, &person.token, 0).await.unwrap();
    assert_eq!((friend.id, friend.resumed), (person.id, true));

    // In the right order nobody is warned of.
    one.write(&[&new, &old]);
    two.write(&[&new]);
    one.gateway.wait_for_log(&format!("\"new\":\"{}", fingerprint(&new)), LIMIT).await.unwrap();
    let three = Node::start("three", &redis, &folder, &[&new]).await;
    let met = async || (three.gateway.metric("texto_other_nodes").await? == 2.0).then_some(());
    until("it knows both", LIMIT, met).await.unwrap();
    for node in [&one, &two, &three] {
        node.sees(0.0).await;
    }
    // They had heard of one another by then: they hear of this as well.
    one.write(&[&third, &new, &old]);
    for node in [&two, &three] {
        node.sees(1.0).await;
    }
    assert_eq!([&one, &two, &three].map(|node| node.warnings().len()), [1, 1, 1]);
}

fn fingerprint(line: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), line).unwrap();
    texto::resume::keys::Keys::from_file(file.path()).unwrap().fingerprints()[0].to_string()
}
