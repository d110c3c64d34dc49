//! What an operator sees of sessions that can be resumed, and of their moves: on real gateways, over one Redis.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::{Gateway, session_key_file};
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use texto_lab::resumer::Resumer;
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_texto");
const LIMIT: Duration = Duration::from_secs(20);

struct Stack {
    gateways: Vec<Gateway>,
    arguments: Vec<String>,
    _redis: RedisServer,
    _folder: TempDir,
}

impl Stack {
    async fn start(count: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
        let keys = session_key_file(Path::new(BINARY), folder.path()).await.unwrap();
        let arguments = ["--redis", &redis.address(), "--session-key-file", keys.to_str().unwrap()];
        let arguments = [&arguments[..], &["--drain-delay", "100ms", "--drain-window", "2s"]].concat();
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let mut stack = Self { gateways: Vec::new(), arguments, _redis: redis, _folder: folder };
        for _ in 0..count {
            stack.add().await;
        }
        stack
    }

    async fn add(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let gateway = Gateway::start(Path::new(BINARY), &arguments, &[]).await.unwrap();
        gateway.wait_synced(1, LIMIT).await.unwrap();
        self.gateways.push(gateway);
        for gateway in &self.gateways {
            shows(gateway, "texto_other_nodes", self.gateways.len() as f64 - 1.0).await;
        }
    }
}

async fn shows(gateway: &Gateway, name: &str, value: f64) {
    shows_all(gateway, &[(name, value)]).await;
}

/// Waits until `gateway` shows all of these.
async fn shows_all(gateway: &Gateway, expected: &[(&str, f64)]) {
    for (name, value) in expected {
        let mut last = None;
        let what = format!("{name} is {value}");
        let seen = until(&what, LIMIT, async || {
            last = gateway.metric(name).await;
            (last == Some(*value)).then_some(())
        });
        if let Err(error) = seen.await {
            panic!("{error:#}: it is {last:?}");
        }
    }
}

async fn send(sender: &mut Client, to: Uuid, count: usize) {
    for _ in 0..count {
        assert_eq!(sender.send(to, "x").await.unwrap(), Answer::Ack);
    }
}

fn moves(reason: &str) -> String {
    format!("texto_session_moves_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn a_session_is_counted_where_it_is_with_what_it_holds() {
    let stack = Stack::start(2).await;
    let [home, other] = [0, 1].map(|at| &stack.gateways[at]);
    let mut person = Resumer::begin(home.address).await.unwrap();
    let mut sender = Client::connect(other.address).await.unwrap();
    send(&mut sender, person.id, 3).await;
    let held = |why: &str| format!("texto_held_messages{{why=\"{why}\"}}");
    let (unacknowledged, away, copy) = (held("unacknowledged"), held("away"), held("copy"));
    let with_socket = [
        ("texto_sessions_attached", 1.0),
        ("texto_sessions_detached", 0.0),
        ("texto_sessions_with_standby", 1.0),
        ("texto_sessions_without_standby", 0.0),
        ("texto_longest_without_standby_seconds", 0.0),
        ("texto_session_copies", 0.0),
        (&unacknowledged, 3.0),
        (&away, 0.0),
        (&copy, 0.0),
    ];
    shows_all(home, &with_socket).await;
    shows_all(other, &[("texto_sessions_attached", 0.0), ("texto_session_copies", 1.0), (&copy, 3.0)]).await;
    for (gateway, why) in [(home, "unacknowledged"), (other, "copy")] {
        let bytes = gateway.metric(&format!("texto_held_bytes{{why=\"{why}\"}}")).await.unwrap();
        assert!(bytes > 3.0 && bytes < 3000.0, "{bytes}");
    }
    // The word of two nodes, for each.
    assert_eq!(other.metric("texto_receipt_duration_seconds_count").await, Some(3.0));
    assert_eq!(home.metric("texto_receipt_duration_seconds_count").await, Some(0.0), "copies are nobody's messages");

    person.receive().await.unwrap();
    person.had(1).await.unwrap();
    shows(home, &unacknowledged, 2.0).await;
    let token = person.token.clone();
    drop(person);
    let without = [("texto_sessions_attached", 0.0), ("texto_sessions_detached", 1.0), (&away, 2.0)];
    shows_all(home, &[&without[..], &[(&unacknowledged, 0.0)]].concat()).await;

    let again = Resumer::resume(other.address, &token, 1).await.unwrap();
    assert!(again.resumed);
    shows_all(other, &[("texto_sessions_attached", 1.0), ("texto_session_copies", 0.0), (&copy, 0.0)]).await;
    shows_all(other, &[("texto_standby_restored_seconds_count", 1.0), ("texto_resume_duration_seconds_count", 1.0)])
        .await;
    shows_all(other, &[("texto_sessions_resumed_total{outcome=\"resumed\"}", 1.0)]).await;
    shows_all(home, &[(&moves("claimed"), 1.0), ("texto_session_copies", 1.0), ("texto_sessions_detached", 0.0)]).await;
}

#[tokio::test]
async fn each_move_is_counted_by_its_reason() {
    let mut stack = Stack::start(2).await;
    let mut person = Resumer::begin(stack.gateways[0].address).await.unwrap();
    shows(&stack.gateways[0], "texto_sessions_with_standby", 1.0).await;

    stack.gateways[0].signal(Signal::SIGTERM);
    shows(&stack.gateways[0], &moves("drained"), 1.0).await;
    stack.gateways[0].wait_exit(LIMIT).await.unwrap();
    stack.gateways.remove(0);
    person = Resumer::resume(stack.gateways[0].address, &person.token, 0).await.unwrap();
    shows(&stack.gateways[0], "texto_other_nodes", 0.0).await;
    // It is alone, and says for how long.
    shows(&stack.gateways[0], "texto_sessions_without_standby", 1.0).await;
    let alone =
        async || stack.gateways[0].metric("texto_longest_without_standby_seconds").await.filter(|time| *time > 1.0);
    until("time passes", LIMIT, alone).await.unwrap();

    stack.add().await;
    shows(&stack.gateways[0], "texto_sessions_with_standby", 1.0).await;
    shows(&stack.gateways[0], "texto_longest_without_standby_seconds", 0.0).await;
    assert_eq!(stack.gateways[0].metric("texto_standby_restored_seconds_count").await, Some(1.0), "it had one before");
    assert!(stack.gateways[0].metric("texto_standby_restored_seconds_sum").await.unwrap() > 1.0);

    stack.gateways[0].kill();
    stack.gateways.remove(0);
    person = Resumer::resume(stack.gateways[0].address, &person.token, 0).await.unwrap();
    assert!(person.resumed);
    // A node whose links are young can't tell one that is gone from one that hangs.
    let counted = async || {
        let mut sum = 0.0;
        for reason in ["home_gone", "home_hung"] {
            sum += stack.gateways[0].metric(&moves(reason)).await?;
        }
        (sum == 1.0).then_some(())
    };
    until("it has taken the session over", LIMIT, counted).await.unwrap();

    stack.add().await;
    shows(&stack.gateways[0], "texto_sessions_with_standby", 1.0).await;
    stack.gateways[0].signal(Signal::SIGSTOP);
    person = Resumer::resume(stack.gateways[1].address, &person.token, 0).await.unwrap();
    assert!(person.resumed);
    shows(&stack.gateways[1], &moves("home_hung"), 1.0).await;
    stack.gateways[0].signal(Signal::SIGCONT);
    // It hears of the claim first, or of the new home.
    let counted = async || {
        let mut sum = 0.0;
        for reason in ["claimed", "given_up"] {
            sum += stack.gateways[0].metric(&moves(reason)).await?;
        }
        (sum == 1.0).then_some(())
    };
    until("it has given the session up", LIMIT, counted).await.unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_and_nobody_gets_is_counted() {
    let gateway = Gateway::start(Path::new(BINARY), &["--resume-window", "300ms"], &[]).await.unwrap();
    let mut sender = Client::connect(gateway.address).await.unwrap();
    let abandoned = |with: &str| format!("texto_messages_abandoned_total{{with=\"{with}\"}}");
    let person = Resumer::begin(gateway.address).await.unwrap();
    let (id, token) = (person.id, person.token.clone());
    drop(person);
    send(&mut sender, id, 2).await;
    shows(&gateway, &abandoned("window"), 2.0).await;
    assert!(!Resumer::resume(gateway.address, &token, 0).await.unwrap().resumed);
    shows(&gateway, "texto_sessions_resumed_total{outcome=\"lost\"}", 1.0).await;

    // Whoever has no session that goes on misses what it did not read.
    assert_eq!(gateway.metric(&abandoned("connection")).await, Some(0.0));
    let lazy = Client::connect(gateway.address).await.unwrap();
    let text = "x".repeat(16_000);
    while sender.send(lazy.id, &text).await.unwrap() == Answer::Ack {}
    drop(lazy);
    let lost = async || gateway.metric(&abandoned("connection")).await.filter(|count| *count > 0.0);
    until("what was not written is counted", LIMIT, lost).await.unwrap();
}
