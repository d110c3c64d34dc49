//! Sessions that outlive their node: three gateways, one Redis, and what a client is shown when nodes leave and die.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::SinkExt;
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use texto_lab::client::{self, Answer, Client, Incoming};
use texto_lab::gateway::Gateway;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use texto_lab::resumer::{self, Resumer, closed, next, write};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(10);

struct Stack {
    gateways: Vec<Gateway>,
    arguments: Vec<String>,
    redis: RedisServer,
    _folder: TempDir,
}

impl Stack {
    async fn start(count: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
        let keys = folder.path().join("keys");
        std::fs::write(&keys, texto::resume::keys::new_line().unwrap()).unwrap();
        let arguments = ["--redis", &redis.address(), "--session-key-file", keys.to_str().unwrap()];
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let mut stack = Self { gateways: Vec::new(), arguments, redis, _folder: folder };
        for _ in 0..count {
            stack.add(&[]).await;
        }
        stack
    }

    async fn add(&mut self, more: &[&str]) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let gateway = Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), &arguments, &[]).await.unwrap();
        gateway.wait_synced(1, LIMIT).await.unwrap();
        self.gateways.push(gateway);
    }
}

async fn send(sender: &mut Client, to: Uuid, text: &str) {
    assert_eq!(sender.send(to, text).await.unwrap(), Answer::Ack, "{text}");
}

#[tokio::test]
async fn a_session_is_claimed_from_the_node_that_has_it() {
    let stack = Stack::start(3).await;
    let [first, second, third] = [0, 1, 2].map(|at| stack.gateways[at].address);
    let mut person = Resumer::begin_with_standby(first).await.unwrap();
    let mut sender = Client::connect(third).await.unwrap();
    for text in ["a", "b", "c"] {
        send(&mut sender, person.id, text).await;
    }
    assert_eq!(person.receive().await.unwrap(), (1, "a".to_owned()));
    for (round, address) in [second, third, first, second].into_iter().enumerate() {
        let mut again = Resumer::resume(address, &person.token, 1).await.unwrap();
        assert_eq!((again.id, again.resumed), (person.id, true), "round {round}");
        assert_eq!(closed(&mut person.socket).await.unwrap(), 4001);
        send(&mut sender, again.id, &format!("{round}")).await;
        for (seq, text) in [(2, "b"), (3, "c")] {
            assert_eq!(again.receive().await.unwrap(), (seq, text.to_owned()), "round {round}");
        }
        for before in 0..=round {
            assert_eq!(again.receive().await.unwrap(), (4 + before as u64, format!("{before}")), "round {round}");
        }
        person = again;
    }
}

#[tokio::test]
async fn a_session_outlives_its_node() {
    let mut stack = Stack::start(3).await;
    let mut person = Resumer::begin_with_standby(stack.gateways[0].address).await.unwrap();
    let mut sender = Client::connect(stack.gateways[1].address).await.unwrap();
    send(&mut sender, person.id, "a").await;
    send(&mut sender, person.id, "b").await;
    assert_eq!(person.receive().await.unwrap(), (1, "a".to_owned()));
    stack.gateways[0].kill();
    // It goes on being reached, though it is nowhere.
    send(&mut sender, person.id, "c").await;
    let mut again = Resumer::resume(stack.gateways[2].address, &person.token, 1).await.unwrap();
    assert_eq!((again.id, again.resumed), (person.id, true));
    send(&mut sender, person.id, "d").await;
    for (seq, text) in [(2, "b"), (3, "c"), (4, "d")] {
        assert_eq!(again.receive().await.unwrap(), (seq, text.to_owned()));
    }
}

#[tokio::test]
async fn a_session_whose_node_leaves_goes_on_at_another() {
    let mut stack = Stack::start(2).await;
    stack.add(&["--drain-delay", "100ms", "--drain-window", "200ms"]).await;
    let address = stack.gateways[2].address;
    let mut person = Resumer::begin_with_standby(address).await.unwrap();
    let away = Resumer::begin_with_standby(address).await.unwrap();
    let mut sender = Client::connect(stack.gateways[0].address).await.unwrap();
    let (away, token_of_away) = (away.id, away.token);
    for id in [person.id, away] {
        send(&mut sender, id, "a").await;
    }
    stack.gateways[2].signal(Signal::SIGTERM);
    assert_eq!(closed(&mut person.socket).await.unwrap(), 1012);
    stack.gateways[2].wait_exit(LIMIT).await.unwrap();
    for (id, token) in [(person.id, person.token), (away, token_of_away)] {
        send(&mut sender, id, "b").await;
        let mut again = Resumer::resume(stack.gateways[1].address, &token, 0).await.unwrap();
        assert_eq!((again.id, again.resumed), (id, true));
        for (seq, text) in [(1, "a"), (2, "b")] {
            assert_eq!(again.receive().await.unwrap(), (seq, text.to_owned()));
        }
    }
}

#[tokio::test]
async fn a_node_that_hangs_is_passed_over_and_gives_way_when_it_wakes() {
    let stack = Stack::start(3).await;
    let mut person = Resumer::begin_with_standby(stack.gateways[0].address).await.unwrap();
    let mut sender = Client::connect(stack.gateways[1].address).await.unwrap();
    send(&mut sender, person.id, "a").await;
    stack.gateways[0].signal(Signal::SIGSTOP);
    let mut again = Resumer::resume(stack.gateways[2].address, &person.token, 0).await.unwrap();
    assert_eq!((again.id, again.resumed), (person.id, true));
    assert_eq!(again.receive().await.unwrap(), (1, "a".to_owned()));
    send(&mut sender, person.id, "b").await;
    assert_eq!(again.receive().await.unwrap(), (2, "b".to_owned()));
    stack.gateways[0].signal(Signal::SIGCONT);
    let code = closed(&mut person.socket).await.unwrap();
    assert!([1012, 4001].contains(&code), "{code}");
    send(&mut sender, person.id, "c").await;
    assert_eq!(again.receive().await.unwrap(), (3, "c".to_owned()));
}

#[tokio::test]
async fn an_old_token_is_of_no_use_either_once_the_session_has_moved() {
    let mut stack = Stack::start(3).await;
    let first = Resumer::begin_with_standby(stack.gateways[0].address).await.unwrap();
    let (id, stolen) = (first.id, first.token);
    let mut person = Resumer::resume(stack.gateways[0].address, &stolen, 0).await.unwrap();
    person.settle().await.unwrap();
    let person = Resumer::resume(stack.gateways[1].address, &person.token, 0).await.unwrap();
    assert_eq!((person.id, person.resumed), (id, true));
    assert_ne!(Resumer::resume(stack.gateways[2].address, &stolen, 0).await.unwrap().id, id, "it was claimed");
    stack.gateways[1].kill();
    let again = Resumer::resume(stack.gateways[0].address, &person.token, 0).await.unwrap();
    assert_eq!((again.id, again.resumed), (id, true));
    assert_ne!(Resumer::resume(stack.gateways[2].address, &stolen, 0).await.unwrap().id, id, "its home died");
}

#[tokio::test]
async fn a_registration_that_is_read_late_ends_no_live_connection_for_good() {
    let stack = Stack::start(3).await;
    let person = Resumer::begin_with_standby(stack.gateways[0].address).await.unwrap();
    let mut stale = client::open(stack.gateways[1].address, "/v1/texto?register=1").await.unwrap();
    stack.gateways[1].signal(Signal::SIGSTOP);
    let data = json!({ "resume": person.token });
    write(&mut stale, "registration", data).await.unwrap();
    let mut alive = Resumer::resume(stack.gateways[2].address, &person.token, 0).await.unwrap();
    stack.gateways[1].signal(Signal::SIGCONT);
    assert_eq!(closed(&mut alive.socket).await.unwrap(), 1012, "it is told to come again");
    let mut again = Resumer::resume(stack.gateways[2].address, &alive.token, 0).await.unwrap();
    assert_eq!((again.id, again.resumed), (person.id, true));
    let mut sender = Client::connect(stack.gateways[0].address).await.unwrap();
    send(&mut sender, person.id, "a").await;
    assert_eq!(again.receive().await.unwrap(), (1, "a".to_owned()));
    drop(stale); // Its client was slow. One that has gone takes nobody away at all: see tests/access_sessions.rs.
}

#[tokio::test]
async fn tokens_of_one_session_at_one_moment_do_not_take_its_id_from_the_newest() {
    let stack = Stack::start(3).await;
    for _ in 0..10 {
        let first = Resumer::begin_with_standby(stack.gateways[0].address).await.unwrap();
        let (id, stolen) = (first.id, first.token);
        let mut person = Resumer::resume(stack.gateways[0].address, &stolen, 0).await.unwrap();
        person.settle().await.unwrap();
        // An older one at the same node.
        let address = stack.gateways[1].address;
        let (thief, person) =
            tokio::try_join!(Resumer::resume(address, &stolen, 0), Resumer::resume(address, &person.token, 0)).unwrap();
        assert_eq!((person.id, person.resumed), (id, true));
        assert_ne!(thief.id, id);
        // The same at two nodes, and twice at one.
        let resume = |at: usize| Resumer::resume(stack.gateways[at].address, &person.token, 0);
        let (one, two, three) = tokio::try_join!(resume(2), resume(0), resume(2)).unwrap();
        for person in [one, two, three] {
            assert_eq!((person.id, person.resumed), (id, true));
        }
    }
}

#[tokio::test]
async fn a_request_that_comes_twice_is_answered_twice_and_shown_once() {
    let stack = Stack::start(2).await;
    let mut receiver = Resumer::begin_with_standby(stack.gateways[0].address).await.unwrap();
    let mut sender = Resumer::begin_with_standby(stack.gateways[1].address).await.unwrap();
    for round in 1..=100 {
        let request = Uuid::new_v4();
        let frame = client::send_frame(sender.id, request, receiver.id, "a");
        for _ in 0..3 {
            sender.socket.feed(Message::text(frame.clone())).await.unwrap();
        }
        sender.socket.flush().await.unwrap();
        for _ in 0..3 {
            let answer = next(&mut sender.socket).await.unwrap();
            let expected = (Some("ack"), Some(&*request.to_string()));
            assert_eq!((answer["kind"].as_str(), answer["id"].as_str()), expected);
        }
        assert_eq!(receiver.receive().await.unwrap().0, round);
        receiver.had(round).await.unwrap();
    }
}

#[tokio::test]
async fn who_comes_back_while_redis_is_away_keeps_everything() {
    for count in [1, 2] {
        let stack = Stack::start(count).await;
        let address = stack.gateways[0].address;
        let mut person = if count == 1 {
            Resumer::begin(address).await.unwrap()
        } else {
            Resumer::begin_with_standby(address).await.unwrap()
        };
        let id = person.id;
        let mut sender = Client::connect(stack.gateways[count - 1].address).await.unwrap();
        send(&mut sender, id, "a").await;
        // So its home has heard that the standby has it.
        assert_eq!(person.receive().await.unwrap(), (1, "a".to_owned()));
        stack.redis.freeze();
        drop(person.socket);
        // Longer than any claim waits.
        until("it is away", LIMIT, async || (sender.send(id, "x").await.unwrap() != Answer::Ack).then_some(()))
            .await
            .unwrap();
        let again = Resumer::resume(address, &person.token, 0);
        let mut again = tokio::time::timeout(Duration::from_secs(2), again).await.expect("its home has it").unwrap();
        assert_eq!((again.id, again.resumed), (id, true));
        assert_eq!(again.receive().await.unwrap(), (1, "a".to_owned()));
        let token = again.token.clone();
        drop(again);
        let elsewhere = stack.gateways[count - 1].address;
        if count > 1 {
            let (_, answer) = resumer::ask(elsewhere, json!({ "resume": token })).await.unwrap();
            assert!(matches!(answer, Incoming::Closed(1012)), "nobody can be asked: {answer:?}");
        }
        stack.redis.thaw();
        let mut again = Resumer::resume(elsewhere, &token, 0).await.unwrap();
        assert_eq!((again.id, again.resumed), (id, true));
        assert_eq!(again.receive().await.unwrap(), (1, "a".to_owned()));
    }
}

#[tokio::test]
async fn a_node_that_leaves_while_redis_is_away_takes_nobodys_session_along() {
    let mut stack = Stack::start(2).await;
    // It leaves before the others are sure of what they have.
    stack.add(&["--send-timeout", "1s", "--drain-delay", "0s", "--drain-window", "100ms"]).await;
    let mut persons = Vec::new();
    for at in 0..20 {
        persons.push(Resumer::begin_with_standby(stack.gateways[at % 2].address).await.unwrap());
    }
    stack.redis.freeze();
    stack.gateways[2].signal(Signal::SIGTERM);
    for gateway in &stack.gateways[..2] {
        until("it is cut off", LIMIT, async || {
            (gateway.metric("texto_redis_master_linked").await == Some(0.0)).then_some(())
        })
        .await
        .unwrap();
    }
    stack.redis.thaw();
    assert!(stack.gateways[2].wait_exit(LIMIT).await.unwrap().success());
    let mut sender = Client::connect(stack.gateways[0].address).await.unwrap();
    for (person, at) in persons.into_iter().zip(0..) {
        send(&mut sender, person.id, "a").await;
        let mut again = Resumer::resume(stack.gateways[at / 2 % 2].address, &person.token, 0).await.unwrap();
        assert_eq!((again.id, again.resumed), (person.id, true), "the {at}th");
        assert_eq!(again.receive().await.unwrap(), (1, "a".to_owned()));
    }
}

#[tokio::test]
async fn nobody_is_absent_at_once_after_the_session_ended_properly() {
    let stack = Stack::start(3).await;
    let person = Resumer::begin_with_standby(stack.gateways[0].address).await.unwrap();
    let mut sender = Client::connect(stack.gateways[1].address).await.unwrap();
    send(&mut sender, person.id, "a").await;
    let mut socket = person.socket;
    let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() };
    socket.close(Some(frame)).await.unwrap();
    assert_eq!(closed(&mut socket).await.unwrap(), 1000);
    until("it is gone", LIMIT, async || (sender.send(person.id, "x").await.unwrap() != Answer::Ack).then_some(()))
        .await
        .unwrap();
    let began = Instant::now();
    assert_eq!(sender.send(person.id, "x").await.unwrap(), Answer::Error("ENOTCONN".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(3));
    let again = Resumer::resume(stack.gateways[2].address, &person.token, 0).await.unwrap();
    assert_eq!((again.id, again.resumed), (person.id, false), "the same, and told that messages may be missing");
}

#[tokio::test]
async fn a_session_that_is_called_and_not_met_ends_with_its_window() {
    let mut stack = Stack::start(0).await;
    for _ in 0..2 {
        stack.add(&["--resume-window", "1s"]).await;
    }
    let person = Resumer::begin_with_standby(stack.gateways[0].address).await.unwrap();
    let mut sender = Client::connect(stack.gateways[0].address).await.unwrap();
    // The client goes while the session comes.
    let mut socket = client::open(stack.gateways[1].address, "/v1/texto?register=1").await.unwrap();
    let data = json!({ "resume": person.token });
    write(&mut socket, "registration", data).await.unwrap();
    let mut first = person.socket;
    assert_eq!(closed(&mut first).await.unwrap(), 4001);
    drop(socket);
    until("it is over", LIMIT, async || {
        (sender.send(person.id, "x").await.unwrap() == Answer::Error("ENOTCONN".to_owned())).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_log_of_each_gateway_says_who_of_the_others_hangs_dies_and_leaves() {
    let mut stack = Stack::start(3).await;
    let count = |gateway: &Gateway, text: &str| gateway.log().iter().filter(|line| line.contains(text)).count();
    let watcher = stack.gateways.pop().unwrap();
    until("it knows both", LIMIT, async || (count(&watcher, "another node is there") == 2).then_some(()))
        .await
        .unwrap();
    stack.gateways[0].signal(Signal::SIGSTOP);
    watcher.wait_for_log("another node is silent", LIMIT).await.unwrap();
    stack.gateways[0].signal(Signal::SIGCONT);
    watcher.wait_for_log("another node is there again", LIMIT).await.unwrap();
    stack.gateways[0].kill();
    watcher.wait_for_log("another node is gone", LIMIT).await.unwrap();
    stack.gateways[1].signal(Signal::SIGTERM);
    watcher.wait_for_log("another node has left", LIMIT).await.unwrap();
    for text in ["is silent", "is there again", "is gone", "has left"] {
        assert_eq!(count(&watcher, &format!("another node {text}")), 1, "{text}");
    }
}
