//! Sessions of people with credentials: until when, for whom, and what a second connection of the same person does.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "access/issuer.rs"]
mod issuer;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use issuer::{Answered, BINARY, Issuer, bearer, closed, gateway, next, open, refused, register, send, token};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use texto_lab::client::{self, Incoming};
use texto_lab::gateway::Gateway;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use texto_lab::resumer::ask;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);

fn of(key: &Path, subject: &str, lifetime: &str) -> String {
    token(key, &["--subject", subject, "--expires-in", lifetime])
}

/// What a person registers with.
fn credentials(key: &Path, id: Uuid) -> Value {
    json!({ "token": of(key, &id.to_string(), "1h"), "resumable": true })
}

async fn person(address: SocketAddr, key: &Path, id: Uuid) -> Answered {
    let person = register(address, credentials(key, id)).await;
    assert_eq!(person.id(), id, "{}", person.frame);
    person
}

/// The next message.
async fn text(answered: &mut Answered) -> String {
    loop {
        let frame = next(&mut answered.socket).await;
        if frame["kind"] == "receive" {
            return frame["data"]["text"].as_str().unwrap().to_owned();
        }
    }
}

#[tokio::test]
async fn after_its_credentials_a_session_is_closed_and_with_newer_ones_it_goes_on() {
    let issuer = Issuer::new();
    let key = issuer.secret("s");
    let gateway = gateway(&["--auth-key-file", key.to_str().unwrap(), "--auth-leeway", "0s"]).await;
    let (anna, berta) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    let began = Instant::now();
    let begin = async |data| register(gateway.address, data).await;
    let mut short = begin(json!({ "token": of(&key, &anna, "3s"), "resumable": true })).await;
    let mut prolonged = begin(json!({ "token": of(&key, "carla", "3s") })).await;
    let mut stolen = begin(json!({ "token": of(&key, "dora", "3s") })).await;

    let answer = prolonged.again(json!({ "token": of(&key, "carla", "1h") })).await;
    assert_eq!(
        (answer["kind"].as_str(), answer["client_id"].as_str()),
        (Some("connection"), Some(&*prolonged.id().to_string()))
    );
    assert!(answer["data"]["credentials"]["expires_ms"].as_u64().unwrap() > 3_000_000, "{answer}");
    for other in [of(&key, &berta, "1h"), of(&key, "carla", "1h"), "nonsense".to_owned()] {
        let answer = stolen.again(json!({ "token": other })).await;
        assert_eq!(answer["data"]["code"], "EAUTH", "{answer}");
        assert_eq!(stolen.again(json!(null)).await["kind"], "connection", "it goes on");
    }
    for session in [&mut short, &mut stolen] {
        assert_eq!(closed(&mut session.socket).await, 4003);
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(gateway.metric("texto_sessions_closed_total{reason=\"expired\"}").await, Some(2.0));
    assert_eq!(prolonged.again(json!(null)).await["kind"], "connection");

    // The resume token stood for the credentials until then; with newer ones it is good for the session again.
    let resume = short.resume_token();
    let (description, code) = refused(gateway.address, json!({ "resume": resume, "seq": 0 })).await;
    assert!(description.contains("expired") && code == 4003, "{description}");
    let thief = register(gateway.address, json!({ "resume": resume, "token": of(&key, &berta, "1h") })).await;
    assert_eq!(thief.id().to_string(), berta, "whoever has credentials is who they say");
    let again = register(gateway.address, json!({ "resume": resume, "token": of(&key, &anna, "1h") })).await;
    assert_eq!((again.id().to_string(), again.frame["data"]["resumed"] == true), (anna, true));
}

#[tokio::test]
async fn a_resume_token_stands_for_credentials_and_knows_its_person_again() {
    let issuer = Issuer::new();
    let (key, session_keys) = (issuer.secret("s"), issuer.folder.path().join("session-keys"));
    std::fs::write(&session_keys, texto::resume::keys::new_line().unwrap()).unwrap();
    let keys = ["--session-key-file", session_keys.to_str().unwrap()];
    let gateway = gateway(&[&keys[..], &["--auth-key-file", key.to_str().unwrap()]].concat()).await;
    let first = register(gateway.address, json!({ "token": of(&key, "anna", "1h"), "resumable": true })).await;
    let (id, resume) = (first.id(), first.resume_token());
    drop(first);
    let mut second = register(gateway.address, json!({ "resume": resume })).await;
    assert_eq!((second.id(), second.frame["data"]["resumed"] == true), (id, true), "{}", second.frame);
    // Who it is, is known also without the credentials that it began with.
    let answer = second.again(json!({ "token": of(&key, "berta", "1h") })).await;
    assert_eq!(answer["data"]["code"], "EAUTH");
    let answer = second.again(json!({ "token": of(&key, "anna", "2h") })).await;
    assert_eq!(answer["kind"], "connection", "{answer}");
    let resume = answer["data"]["resume"]["token"].as_str().unwrap().to_owned();
    let other = register(gateway.address, json!({ "resume": resume, "token": of(&key, "berta", "1h") })).await;
    assert_ne!(other.id(), id, "another person's session is not theirs");
    let same = register(gateway.address, json!({ "resume": resume, "token": of(&key, "anna", "1h") })).await;
    assert_eq!(same.id(), id);

    // A JWT is no resume token, and a resume token no JWT, whatever signs them.
    for data in [json!({ "resume": of(&key, "anna", "1h") }), json!({ "token": resume }), json!({ "resume": "x" })] {
        let (_, code) = refused(gateway.address, data).await;
        assert_eq!(code, 4003);
    }
    // One of a gateway that demanded nothing stands for nothing here; its id is kept with credentials beside it.
    let open = issuer::gateway(&keys).await;
    let anybody = register(open.address, json!({ "resumable": true })).await;
    let old = anybody.resume_token();
    let (description, code) = refused(gateway.address, json!({ "resume": old })).await;
    assert!(description.contains("credentials are required") && code == 4003, "{description}");
    let with = register(gateway.address, json!({ "resume": old, "token": of(&key, "carla", "1h") })).await;
    assert_eq!(with.id(), anybody.id());
    // And the other way round both are good where nothing is demanded.
    for token in [old, resume] {
        let back = register(open.address, json!({ "resume": token })).await;
        assert!([anybody.id(), id].contains(&back.id()), "{}", back.frame);
    }
}

#[tokio::test]
async fn a_second_connection_of_the_same_person_takes_over() {
    let issuer = Issuer::new();
    let key = issuer.secret("s");
    let gateway = gateway(&["--auth-key-file", key.to_str().unwrap()]).await;
    let id = Uuid::new_v4();
    let mut sender = person(gateway.address, &key, Uuid::new_v4()).await;
    let from = sender.id();
    let mut one = person(gateway.address, &key, id).await;
    assert_eq!(one.frame["data"]["resumed"], false);
    assert_eq!(send(&mut sender.socket, from, id, "a").await, "ack");
    let mut two = person(gateway.address, &key, id).await;
    assert_eq!(closed(&mut one.socket).await, 4001);
    assert_eq!(text(&mut two).await, "a", "nobody said that it was there");
    assert_eq!(send(&mut sender.socket, from, id, "b").await, "ack");
    assert_eq!(text(&mut two).await, "b");
    // Clients of both kinds take over from one another.
    let mut three = bearer(gateway.address, &of(&key, &id.to_string(), "1h")).await;
    assert_eq!(closed(&mut two.socket).await, 4001);
    assert_eq!(send(&mut sender.socket, from, id, "c").await, "ack");
    while text(&mut three).await != "c" {}
    let mut four = person(gateway.address, &key, id).await;
    assert_eq!(closed(&mut three.socket).await, 4001);
    assert_eq!(send(&mut sender.socket, from, id, "d").await, "ack");
    assert_eq!(text(&mut four).await, "d", "what a v1 client was written it has");
}

#[tokio::test]
async fn many_connections_of_one_person_at_one_moment_leave_one() {
    let issuer = Issuer::new();
    let key = issuer.secret("s");
    let gateway = gateway(&["--auth-key-file", key.to_str().unwrap()]).await;
    let id = Uuid::new_v4();
    let token = of(&key, &id.to_string(), "1h");
    let all = (0..10).map(|_| register(gateway.address, json!({ "token": token, "resumable": true })));
    let mut all = futures_util::future::join_all(all).await;
    let mut sender = person(gateway.address, &key, Uuid::new_v4()).await;
    let from = sender.id();
    assert_eq!(send(&mut sender.socket, from, id, "to the one").await, "ack");
    let mut open = 0;
    for answered in &mut all {
        loop {
            match tokio::time::timeout(LIMIT, client::next(&mut answered.socket)).await.unwrap() {
                Incoming::Closed(code) => {
                    assert!([4001, 1012].contains(&code), "{code}");
                    break;
                }
                Incoming::Frame(frame) if frame["kind"] == "receive" => {
                    open += 1;
                    break;
                }
                Incoming::Frame(_) => {}
            }
        }
    }
    assert_eq!(open, 1);
}

/// Two gateways on one Redis that know one another.
async fn two(redis: &RedisServer, folder: &TempDir, key: &Path) -> [Gateway; 2] {
    let keys = folder.path().join("session-keys");
    std::fs::write(&keys, texto::resume::keys::new_line().unwrap()).unwrap();
    let start = async |name: &str| {
        let (address, keys): (String, &PathBuf) = (redis.address(), &keys);
        let arguments = [
            ["--redis", &address],
            ["--node-id", name],
            ["--session-key-file", keys.to_str().unwrap()],
            ["--auth-key-file", key.to_str().unwrap()],
            ["--drain-delay", "100ms"],
            ["--drain-window", "100ms"],
        ];
        let gateway = Gateway::start(Path::new(BINARY), &arguments.concat(), &[]).await.unwrap();
        gateway.wait_synced(1, LIMIT).await.unwrap();
        gateway
    };
    let gateways = [start("one").await, start("two").await];
    for gateway in &gateways {
        let met = async || (gateway.metric("texto_other_nodes").await? == 1.0).then_some(());
        until("they know one another", LIMIT, met).await.unwrap();
    }
    gateways
}

#[tokio::test]
async fn a_connection_to_another_node_takes_over_as_well_and_nothing_is_lost() {
    let issuer = Issuer::new();
    let key = issuer.secret("s");
    let redis = RedisServer::start("127.0.0.1", issuer.folder.path(), &[], None).await.unwrap();
    let [one, mut two] = two(&redis, &issuer.folder, &key).await;
    let id = Uuid::new_v4();
    let mut sender = person(one.address, &key, Uuid::new_v4()).await;
    let from = sender.id();
    let mut old = person(one.address, &key, id).await;
    assert_eq!(send(&mut sender.socket, from, id, "a").await, "ack");
    let mut new = person(two.address, &key, id).await;
    assert_eq!(closed(&mut old.socket).await, 4001);
    assert_eq!(text(&mut new).await, "a");
    assert_eq!(send(&mut sender.socket, from, id, "b").await, "ack");
    assert_eq!(text(&mut new).await, "b");
    // To and fro, by both kinds of clients; each time the newest has it.
    for round in 0..3 {
        let mut plain = bearer(one.address, &of(&key, &id.to_string(), "1h")).await;
        assert_eq!(plain.id(), id);
        assert_eq!(closed(&mut new.socket).await, 4001, "round {round}");
        let said = format!("to the plain one {round}");
        assert_eq!(send(&mut sender.socket, from, id, &said).await, "ack");
        while text(&mut plain).await != said {}
        new = person(two.address, &key, id).await;
        assert_eq!(closed(&mut plain.socket).await, 4001, "round {round}");
        let said = format!("back {round}");
        assert_eq!(send(&mut sender.socket, from, id, &said).await, "ack");
        while text(&mut new).await != said {}
    }
    // The node dies, and the person comes to the other one without a resume token.
    two.kill();
    drop(new);
    let mut again = person(one.address, &key, id).await;
    assert_eq!(send(&mut sender.socket, from, id, "after").await, "ack");
    while text(&mut again).await != "after" {}
}

#[tokio::test]
async fn a_node_that_stood_still_takes_nobody_away_for_a_client_that_has_gone() {
    let issuer = Issuer::new();
    let key = issuer.secret("s");
    let redis = RedisServer::start("127.0.0.1", issuer.folder.path(), &[], None).await.unwrap();
    let [one, two] = two(&redis, &issuer.folder, &key).await;
    let id = Uuid::new_v4();
    let token = of(&key, &id.to_string(), "1h");
    let mut sender = person(two.address, &key, Uuid::new_v4()).await;
    let from = sender.id();
    let mut person = person(two.address, &key, id).await;
    let resume = person.resume_token();
    for data in [json!({ "token": token, "resume": resume, "seq": 0 }), json!({ "token": token, "resumable": true })] {
        let mut late = open(one.address, "/v1/texto?register=1", &[]).await.unwrap();
        one.signal(Signal::SIGSTOP);
        issuer::write(&mut late, &json!({ "id": Uuid::new_v4(), "kind": "registration", "data": data })).await;
        late.get_mut().shutdown().await.unwrap();
        one.signal(Signal::SIGCONT);
        while let Some(Ok(message)) = late.next().await {
            assert!(!message.is_text(), "{message}");
        }
        assert_eq!(send(&mut sender.socket, from, id, "still here").await, "ack");
        assert_eq!(text(&mut person).await, "still here");
    }
    // The same with credentials in the handshake alone.
    let mut late = TcpStream::connect(one.address).await.unwrap();
    one.signal(Signal::SIGSTOP);
    let handshake = format!(
        "GET /v1/texto HTTP/1.1\r\nHost: {}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n\r\n",
        one.address
    );
    late.write_all(handshake.as_bytes()).await.unwrap();
    late.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap(); // A close frame.
    late.shutdown().await.unwrap();
    one.signal(Signal::SIGCONT);
    let mut said = Vec::new();
    let _ = late.read_to_end(&mut said).await; // It may be reset.
    assert!(!String::from_utf8_lossy(&said).contains("client_id"));
    assert_eq!(send(&mut sender.socket, from, id, "and still").await, "ack");
    assert_eq!(text(&mut person).await, "and still");
}

#[tokio::test]
async fn two_connections_to_two_nodes_at_one_moment_leave_one() {
    let issuer = Issuer::new();
    let key = issuer.secret("s");
    let redis = RedisServer::start("127.0.0.1", issuer.folder.path(), &[], None).await.unwrap();
    let [one, two] = two(&redis, &issuer.folder, &key).await;
    let mut sender = person(one.address, &key, Uuid::new_v4()).await;
    let from = sender.id();
    for round in 0..5 {
        let id = Uuid::new_v4();
        let data = credentials(&key, id);
        let (a, b) = tokio::join!(ask(one.address, data.clone()), ask(two.address, data));
        // One of the two is closed, whoever was first: once it has the session, or instead.
        let (mut open, mut codes) = (Vec::new(), Vec::new());
        for asked in [a, b] {
            match asked.unwrap() {
                (socket, Incoming::Frame(frame)) => {
                    let answered = Answered { socket, frame };
                    assert_eq!(answered.id(), id, "{}", answered.frame);
                    open.push(answered.socket);
                }
                (_, Incoming::Closed(code)) => codes.push(code),
            }
        }
        let code = match (&mut open[..], &codes[..]) {
            ([a, b], []) => tokio::select! {
                code = closed(a) => code,
                code = closed(b) => code,
            },
            ([_], [code]) => *code,
            _ => panic!("round {round}: both are closed: {codes:?}"),
        };
        assert!([4001, 1012].contains(&code), "round {round}: {code}");
        let told = async || (send(&mut sender.socket, from, id, "hello").await == "ack").then_some(());
        let mut told = told;
        let end = Instant::now() + LIMIT;
        while told().await.is_none() {
            assert!(Instant::now() < end, "round {round}: nobody has it");
        }
    }
}

/// What is acknowledged while its node leaves is written before, though the standby's word is an `ack`.
#[tokio::test(flavor = "multi_thread")]
async fn a_v1_client_with_credentials_misses_nothing_that_was_acknowledged_during_a_drain() {
    let issuer = Issuer::new();
    let key = issuer.secret("s");
    let redis = RedisServer::start("127.0.0.1", issuer.folder.path(), &[], None).await.unwrap();
    let [mut one, two] = two(&redis, &issuer.folder, &key).await;
    let mut plain = bearer(one.address, &of(&key, &Uuid::new_v4().to_string(), "1h")).await;
    let to = plain.id();
    let mut senders = Vec::new();
    for number in 0..8 {
        let mut sender = person(two.address, &key, Uuid::new_v4()).await;
        senders.push(tokio::spawn(async move {
            let from = sender.id();
            let mut acked = Vec::new();
            for count in 0.. {
                let text = format!("{number}/{count}");
                match send(&mut sender.socket, from, to, &text).await.as_str() {
                    "ack" => acked.push(text),
                    "EBUSY" => {}
                    _ => break,
                }
            }
            acked
        }));
    }
    let mut received = std::collections::HashSet::new();
    received.insert(text(&mut plain).await);
    one.signal(Signal::SIGTERM);
    let code = loop {
        match tokio::time::timeout(LIMIT, client::next(&mut plain.socket)).await.unwrap() {
            Incoming::Frame(frame) => {
                received.insert(frame["data"]["text"].as_str().unwrap().to_owned());
            }
            Incoming::Closed(code) => break code,
        }
    };
    assert_eq!(code, 1012);
    for sender in senders {
        let acked = sender.await.unwrap();
        assert!(!acked.is_empty());
        let lost: Vec<_> = acked.iter().filter(|text| !received.contains(*text)).collect();
        assert!(lost.is_empty(), "{lost:?} of {}", acked.len());
    }
    assert!(one.wait_exit(LIMIT).await.unwrap().success());
}

#[tokio::test]
async fn a_v1_client_with_credentials_gets_its_answers_before_a_drain_ends_it() {
    let issuer = Issuer::new();
    let key = issuer.secret("s");
    let redis = RedisServer::start("127.0.0.1", issuer.folder.path(), &[], None).await.unwrap();
    let [mut one, two] = two(&redis, &issuer.folder, &key).await;
    let mut plain = bearer(one.address, &of(&key, &Uuid::new_v4().to_string(), "1h")).await;
    let mut receiver = person(two.address, &key, Uuid::new_v4()).await;
    let (from, to) = (plain.id(), receiver.id());
    assert_eq!(send(&mut plain.socket, from, to, "before").await, "ack");
    one.signal(Signal::SIGTERM);
    assert_eq!(closed(&mut plain.socket).await, 1012);
    assert!(one.wait_exit(LIMIT).await.unwrap().success());
    assert_eq!(text(&mut receiver).await, "before");
    let mut again = bearer(two.address, &of(&key, &from.to_string(), "1h")).await;
    assert_eq!(again.id(), from);
    let own = receiver.id();
    let mut told = async || (send(&mut receiver.socket, own, from, "after").await == "ack").then_some(());
    let end = Instant::now() + LIMIT;
    while told().await.is_none() {
        assert!(Instant::now() < end, "it is not reached");
    }
    assert_eq!(text(&mut again).await, "after");
}
