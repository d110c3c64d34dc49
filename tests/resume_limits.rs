//! Who resumes too often is told to come again later, keeps its id, and disturbs nobody else.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use texto_lab::client::{Incoming, PATIENCE};
use texto_lab::gateway::Gateway;
use texto_lab::process::until;
use texto_lab::resumer::{self, Resumer};
use tokio::net::TcpSocket;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), arguments, &[]).await.unwrap()
}

/// Asks to resume: the id that the client has then, or the code that it was closed with.
async fn resume(address: SocketAddr, token: &str) -> Result<Uuid, u16> {
    match resumer::ask(address, json!({ "resume": token, "seq": 0 })).await.unwrap() {
        (_, Incoming::Closed(code)) => Err(code),
        (_, Incoming::Frame(frame)) => {
            assert_eq!(frame["kind"], "connection", "{frame}");
            Ok(Uuid::try_parse(frame["data"]["client_id"].as_str().unwrap()).unwrap())
        }
    }
}

/// The same from another address of this machine.
async fn resume_from(source: &str, address: SocketAddr, token: &str) -> bool {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let url = format!("ws://{address}/v1/texto?register=1");
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let request = json!({ "id": Uuid::new_v4(), "kind": "registration", "data": { "resume": token } });
    socket.send(Message::text(request.to_string())).await.unwrap();
    let mut answers = socket.filter(|answer| std::future::ready(!matches!(answer, Ok(Message::Ping(_)))));
    let answer = tokio::time::timeout(PATIENCE, answers.next()).await.expect("no answer").unwrap().unwrap();
    matches!(answer, Message::Text(_))
}

fn outcome(outcome: &str) -> String {
    format!("texto_sessions_resumed_total{{outcome=\"{outcome}\"}}")
}

#[tokio::test]
async fn a_session_that_is_resumed_in_a_loop_waits_and_keeps_its_id() {
    let gateway = gateway(&[]).await;
    let person = Resumer::begin(gateway.address).await.unwrap();
    let other = Resumer::begin(gateway.address).await.unwrap();
    let (began, mut refused) = (Instant::now(), 0);
    for _ in 0..40 {
        match resume(gateway.address, &person.token).await {
            Ok(id) => assert_eq!(id, person.id),
            Err(code) => {
                assert_eq!(code, 1013);
                refused += 1;
            }
        }
    }
    let earned = began.elapsed().as_millis() / 500 + 1;
    assert!(refused + 20 + earned >= 40, "{refused} were refused within {:?}", began.elapsed());
    assert!(refused > 0, "within {:?}", began.elapsed());
    assert_eq!(resume(gateway.address, &other.token).await, Ok(other.id), "it has done nothing");
    let again = async || resume(gateway.address, &person.token).await.ok();
    assert_eq!(until("it may come again", PATIENCE, again).await.unwrap(), person.id);
    assert!(gateway.metric(&outcome("session_limit")).await.unwrap() >= refused as f64);
    assert_eq!(gateway.metric(&outcome("address_limit")).await, Some(0.0));
    gateway.wait_for_log("a session is not resumed, for it was so often", PATIENCE).await.unwrap();
}

#[tokio::test]
async fn an_address_may_resume_as_often_as_the_operator_says() {
    let gateway = gateway(&["--resumes-per-address", "10"]).await;
    let mut tokens = vec!["nonsense".to_owned()];
    for _ in 0..30 {
        tokens.push(Resumer::begin(gateway.address).await.unwrap().token);
    }
    let began = Instant::now();
    let mut codes = Vec::new();
    for token in &tokens {
        codes.extend(resume(gateway.address, token).await.err());
    }
    let (refused, earned) = (codes.len() as u64, began.elapsed().as_secs() + 1);
    assert!(refused + 10 + earned >= 31, "{refused} were refused within {:?}", began.elapsed());
    assert!(refused > 0 && codes.iter().all(|code| *code == 1013), "{codes:?}");
    let refusal = async || (!resume_from("127.0.0.1", gateway.address, "nonsense").await).then_some(());
    until("a bad token counts as well", PATIENCE, refusal).await.unwrap();
    assert!(resume_from("127.0.0.2", gateway.address, &tokens[1]).await, "somebody else");
    assert!(Resumer::begin(gateway.address).await.is_ok(), "nothing is resumed by that");
    let again = async || resume(gateway.address, &tokens[2]).await.ok();
    until("it may come again", PATIENCE, again).await.unwrap();
    assert!(gateway.metric(&outcome("address_limit")).await.unwrap() >= refused as f64);
    gateway.wait_for_log("--resumes-per-address", PATIENCE).await.unwrap();
}
