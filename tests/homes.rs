//! Sessions that outlive their node: three gateways, one Redis, and what a client is shown when nodes leave and die.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::SinkExt;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use texto_lab::client::{self, Answer, Client, Incoming, Socket};
use texto_lab::gateway::Gateway;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(10);

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
        let keys = folder.path().join("keys");
        std::fs::write(&keys, texto::session_keys::new_line().unwrap()).unwrap();
        let arguments = ["--redis", &redis.address(), "--session-key-file", keys.to_str().unwrap()];
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let mut stack = Self { gateways: Vec::new(), arguments, _redis: redis, _folder: folder };
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

struct Person {
    socket: Socket,
    id: Uuid,
    token: String,
    resumed: bool,
    standby: bool,
}

async fn next(socket: &mut Socket) -> Value {
    match tokio::time::timeout(client::PATIENCE, client::next(socket)).await.expect("nothing came") {
        Incoming::Frame(frame) => frame,
        Incoming::Closed(code) => panic!("closed with {code}"),
    }
}

async fn closed(socket: &mut Socket) -> u16 {
    let close = async {
        loop {
            if let Incoming::Closed(code) = client::next(socket).await {
                return code;
            }
        }
    };
    tokio::time::timeout(client::PATIENCE, close).await.expect("it was not closed")
}

impl Person {
    async fn begin(address: SocketAddr, data: Value) -> Self {
        let mut socket = client::open(address, "/v1/texto?register=1").await.unwrap();
        let request = json!({ "id": Uuid::new_v4(), "kind": "registration", "data": data });
        socket.send(Message::text(request.to_string())).await.unwrap();
        let answer = next(&mut socket).await;
        assert_eq!(answer["kind"], "connection", "{answer}");
        let data = &answer["data"];
        Self {
            socket,
            id: Uuid::try_parse(data["client_id"].as_str().unwrap()).unwrap(),
            token: data["resume"]["token"].as_str().unwrap().to_owned(),
            resumed: data["resumed"] == true,
            standby: data["resume"]["standby"] == true,
        }
    }

    /// With a standby, as soon as there can be one.
    async fn new(address: SocketAddr) -> Self {
        let begun = Instant::now();
        loop {
            let person = Self::begin(address, json!({ "resumable": true })).await;
            if person.standby {
                return person;
            }
            assert!(begun.elapsed() < LIMIT, "there is no standby");
        }
    }

    async fn resume(address: SocketAddr, token: &str, seq: u64) -> Self {
        Self::begin(address, json!({ "resume": token, "seq": seq })).await
    }

    async fn receive(&mut self) -> (u64, String) {
        let frame = next(&mut self.socket).await;
        assert_eq!(frame["kind"], "receive", "{frame}");
        (frame["data"]["seq"].as_u64().expect("a seq"), frame["data"]["text"].as_str().unwrap().to_owned())
    }
}

async fn send(sender: &mut Client, to: Uuid, text: &str) {
    assert_eq!(sender.send(to, text).await.unwrap(), Answer::Ack, "{text}");
}

#[tokio::test]
async fn a_session_is_claimed_from_the_node_that_has_it() {
    let stack = Stack::start(3).await;
    let [first, second, third] = [0, 1, 2].map(|at| stack.gateways[at].address);
    let mut person = Person::new(first).await;
    let mut sender = Client::connect(third).await.unwrap();
    for text in ["a", "b", "c"] {
        send(&mut sender, person.id, text).await;
    }
    assert_eq!(person.receive().await, (1, "a".to_owned()));
    for (round, address) in [second, third, first, second].into_iter().enumerate() {
        let mut again = Person::resume(address, &person.token, 1).await;
        assert_eq!((again.id, again.resumed), (person.id, true), "round {round}");
        assert_eq!(closed(&mut person.socket).await, 4001);
        send(&mut sender, again.id, &format!("{round}")).await;
        for (seq, text) in [(2, "b"), (3, "c")] {
            assert_eq!(again.receive().await, (seq, text.to_owned()), "round {round}");
        }
        for before in 0..=round {
            assert_eq!(again.receive().await, (4 + before as u64, format!("{before}")), "round {round}");
        }
        person = again;
    }
}

#[tokio::test]
async fn a_session_outlives_its_node() {
    let mut stack = Stack::start(3).await;
    let mut person = Person::new(stack.gateways[0].address).await;
    let mut sender = Client::connect(stack.gateways[1].address).await.unwrap();
    send(&mut sender, person.id, "a").await;
    send(&mut sender, person.id, "b").await;
    assert_eq!(person.receive().await, (1, "a".to_owned()));
    stack.gateways[0].kill();
    // It goes on being reached, though it is nowhere.
    send(&mut sender, person.id, "c").await;
    let mut again = Person::resume(stack.gateways[2].address, &person.token, 1).await;
    assert_eq!((again.id, again.resumed), (person.id, true));
    send(&mut sender, person.id, "d").await;
    for (seq, text) in [(2, "b"), (3, "c"), (4, "d")] {
        assert_eq!(again.receive().await, (seq, text.to_owned()));
    }
}

#[tokio::test]
async fn a_session_whose_node_leaves_goes_on_at_another() {
    let mut stack = Stack::start(2).await;
    stack.add(&["--drain-delay", "100ms", "--drain-window", "200ms"]).await;
    let address = stack.gateways[2].address;
    let mut person = Person::new(address).await;
    let away = Person::new(address).await;
    let mut sender = Client::connect(stack.gateways[0].address).await.unwrap();
    let (away, token_of_away) = (away.id, away.token);
    for id in [person.id, away] {
        send(&mut sender, id, "a").await;
    }
    stack.gateways[2].signal(Signal::SIGTERM);
    assert_eq!(closed(&mut person.socket).await, 1012);
    stack.gateways[2].wait_exit(LIMIT).await.unwrap();
    for (id, token) in [(person.id, person.token), (away, token_of_away)] {
        send(&mut sender, id, "b").await;
        let mut again = Person::resume(stack.gateways[1].address, &token, 0).await;
        assert_eq!((again.id, again.resumed), (id, true));
        for (seq, text) in [(1, "a"), (2, "b")] {
            assert_eq!(again.receive().await, (seq, text.to_owned()));
        }
    }
}

#[tokio::test]
async fn a_node_that_hangs_is_passed_over_and_gives_way_when_it_wakes() {
    let stack = Stack::start(3).await;
    let mut person = Person::new(stack.gateways[0].address).await;
    let mut sender = Client::connect(stack.gateways[1].address).await.unwrap();
    send(&mut sender, person.id, "a").await;
    stack.gateways[0].signal(Signal::SIGSTOP);
    let mut again = Person::resume(stack.gateways[2].address, &person.token, 0).await;
    assert_eq!((again.id, again.resumed), (person.id, true));
    assert_eq!(again.receive().await, (1, "a".to_owned()));
    send(&mut sender, person.id, "b").await;
    assert_eq!(again.receive().await, (2, "b".to_owned()));
    stack.gateways[0].signal(Signal::SIGCONT);
    let code = closed(&mut person.socket).await;
    assert!([1012, 4001].contains(&code), "{code}");
    send(&mut sender, person.id, "c").await;
    assert_eq!(again.receive().await, (3, "c".to_owned()));
}

#[tokio::test]
async fn nobody_is_absent_at_once_after_the_session_ended_properly() {
    let stack = Stack::start(3).await;
    let person = Person::new(stack.gateways[0].address).await;
    let mut sender = Client::connect(stack.gateways[1].address).await.unwrap();
    send(&mut sender, person.id, "a").await;
    let mut socket = person.socket;
    let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() };
    socket.close(Some(frame)).await.unwrap();
    assert_eq!(closed(&mut socket).await, 1000);
    until("it is gone", LIMIT, async || (sender.send(person.id, "x").await.unwrap() != Answer::Ack).then_some(()))
        .await
        .unwrap();
    let began = Instant::now();
    assert_eq!(sender.send(person.id, "x").await.unwrap(), Answer::Error("ENOTCONN".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(1));
    let again = Person::resume(stack.gateways[2].address, &person.token, 0).await;
    assert_eq!((again.id, again.resumed), (person.id, false), "the same, and told that messages may be missing");
}

#[tokio::test]
async fn a_session_that_is_called_and_not_met_ends_with_its_window() {
    let mut stack = Stack::start(0).await;
    for _ in 0..2 {
        stack.add(&["--resume-window", "1s"]).await;
    }
    let person = Person::new(stack.gateways[0].address).await;
    let mut sender = Client::connect(stack.gateways[0].address).await.unwrap();
    // The client is gone before the session has come.
    let mut socket = client::open(stack.gateways[1].address, "/v1/texto?register=1").await.unwrap();
    let data = json!({ "resume": person.token });
    let request = json!({ "id": Uuid::new_v4(), "kind": "registration", "data": data });
    socket.send(Message::text(request.to_string())).await.unwrap();
    drop(socket);
    let mut first = person.socket;
    assert_eq!(closed(&mut first).await, 4001);
    until("it is over", LIMIT, async || {
        (sender.send(person.id, "x").await.unwrap() == Answer::Error("ENOTCONN".to_owned())).then_some(())
    })
    .await
    .unwrap();
}
