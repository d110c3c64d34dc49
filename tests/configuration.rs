//! What a program is given by its environment: mistakes end it before it listens, what others set does not.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use texto_lab::gateway::Gateway;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(15);
const BINARY: &str = env!("CARGO_BIN_EXE_texto");

/// What the program says at its end, which must come before it listens.
async fn refusal(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0"]).args(arguments).envs(variables.iter().copied()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("it runs").unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_misspelt_does_not_start_a_gateway_without_redis() {
    let variables =
        [("TEXTO_SENTINEL", "s:26379"), ("TEXTO_REDIS_PASSWORD", "hunter2"), ("TEXTO_MASTER_NAME", "mymaster")];
    let text = refusal(&[], &variables).await;
    assert!(text.contains("TEXTO_SENTINEL is not a variable of Texto: did you mean TEXTO_SENTINELS?"), "{text}");
    assert!(text.contains("TEXTO_REDIS_PASSWORD: of use with Redis only"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

/// As where a file names all of them, and most have no value.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_variable_counts_as_one_that_is_not_set() {
    let table = include_str!("../docs/configuration.md").lines().filter(|line| line.starts_with("| `--"));
    let names = table.flat_map(|line| line.split('`').filter(|word| word.starts_with("TEXTO_")));
    let variables: Vec<_> = names.chain(["TEXTO_LOG", "TEXTO_REDIS_PASSWORD"]).map(|name| (name, "")).collect();
    assert!(variables.len() > 50, "{variables:?}");
    let output = Command::new(BINARY).args(["check", "--json"]).envs(variables.iter().copied()).output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("config.broker") && !said.contains("config.invalid"), "{said}");
    let gateway = Gateway::start(Path::new(BINARY), &[], &[("TEXTO_SEND_TIMEOUT", ""), ("TEXTO_NODE_ID", "")]).await;
    gateway.unwrap().wait_ready(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_nobody_can_listen_is_told_from_one_that_is_taken() {
    let said = async |address: &str| {
        let output = Command::new(BINARY).args(["--listen", address]).output();
        let output = tokio::time::timeout(LIMIT, output).await.expect("it ends").unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = said("203.0.113.1:8398").await;
    assert!(text.contains("this host does not have that address") && !text.contains("in use"), "{text}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = said(&taken.local_addr().unwrap().to_string()).await;
    assert!(text.contains("something listens there already"), "{text}");
    let text = refusal(&["--admin-listen", "localhost:9398"], &[]).await;
    assert!(text.contains("and no name"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_redis_refuses_is_refused_before() {
    assert!(refusal(&["--node-id", "köln-1"], &[]).await.contains("TEXTO_NODE_ID"));
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    // All that is allowed, in two names.
    let signs: Vec<char> = ('!'..='~').collect();
    for name in signs.chunks(64).map(String::from_iter) {
        let arguments = ["--redis", &redis.address(), &format!("--node-id={name}")];
        let gateway = Gateway::start(Path::new(BINARY), &arguments, &[]).await.unwrap();
        gateway.wait_ready(LIMIT).await.unwrap();
        until("Redis knows it", LIMIT, async || {
            redis.command::<String>(&["CLIENT", "LIST"]).await.ok()?.contains(&name).then_some(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_keys_are_made_read_and_read_again_and_never_shown() {
    let new_key = async || {
        let output = Command::new(BINARY).arg("session-key").output().await.unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    };
    let (one, two) = (new_key().await, new_key().await);
    assert_ne!(one, two);
    assert!(one.len() > 40 && one.lines().count() == 1, "a line");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys");
    let path = file.to_str().unwrap();
    std::fs::write(&file, format!("{one}hunter2\n")).unwrap();
    let text = refusal(&[], &[("TEXTO_SESSION_KEY_FILE", path)]).await;
    assert!(
        text.contains("--session-key-file (TEXTO_SESSION_KEY_FILE): the file") && text.contains("line 2"),
        "{text}"
    );

    std::fs::write(&file, &one).unwrap();
    let gateway = Gateway::start(Path::new(BINARY), &[], &[("TEXTO_SESSION_KEY_FILE", path)]).await.unwrap();
    gateway.wait_for_log("every user of this machine may read the session keys", LIMIT).await.unwrap();
    std::fs::write(&file, format!("{one}{two}")).unwrap();
    gateway.wait_for_log("session keys were read again", LIMIT).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    gateway.wait_for_log("the last ones are used", LIMIT).await.unwrap();
    let log = gateway.log().join("\n") + &text;
    assert!(!log.contains(one.trim()) && !log.contains(two.trim()) && !log.contains("hunter2"), "{log}");

    // Alone it needs none; where there may be others, somebody should know.
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let gateway = Gateway::start(Path::new(BINARY), &["--redis", &redis.address()], &[]).await.unwrap();
    gateway.wait_for_log("no --session-key-file", LIMIT).await.unwrap();
    let gateway = Gateway::start(Path::new(BINARY), &[], &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    assert!(!gateway.log().join("\n").contains("session-key-file"));
}

/// Kubernetes sets these in pods beside a Service named `texto`, unless they say `enableServiceLinks: false`.
#[tokio::test(flavor = "multi_thread")]
async fn what_kubernetes_sets_for_a_service_does_not_keep_a_gateway_from_starting() {
    let variables = [
        ("TEXTO_SERVICE_HOST", "10.96.0.7"),
        ("TEXTO_SERVICE_PORT", "8398"),
        ("TEXTO_SERVICE_PORT_HTTP", "8398"),
        ("TEXTO_PORT", "tcp://10.96.0.7:8398"),
        ("TEXTO_PORT_8398_TCP", "tcp://10.96.0.7:8398"),
        ("TEXTO_PORT_8398_TCP_PROTO", "tcp"),
        ("TEXTO_PORT_8398_TCP_PORT", "8398"),
        ("TEXTO_PORT_8398_TCP_ADDR", "10.96.0.7"),
    ];
    let gateway = Gateway::start(Path::new(BINARY), &[], &variables).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    // Whoever only asks does not judge variables.
    let mut command = Command::new(BINARY);
    command.args(["healthcheck", "--listen", &gateway.address.to_string()]).env("TEXTO_SENTINEL", "s:26379");
    assert!(command.status().await.unwrap().success());
}
