//! Sessions that can be resumed, frame by frame, on one node: what the protocol says of them.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use futures_util::SinkExt;
use serde_json::{Value, json};
use texto_lab::client::{self, Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::resumer::{Resumer, closed, next, write};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use uuid::Uuid;

async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), arguments, &[]).await.unwrap()
}

#[tokio::test]
async fn what_came_while_the_client_was_away_is_shown_in_order_and_once() {
    let gateway = gateway(&[]).await;
    let mut sender = Client::connect(gateway.address).await.unwrap();
    let mut person = Resumer::begin(gateway.address).await.unwrap();
    assert!(!person.resumed);
    let id = person.id;
    for text in ["a", "b", "c"] {
        assert_eq!(sender.send(id, text).await.unwrap(), Answer::Ack);
    }
    assert_eq!(person.receive().await.unwrap(), (1, "a".to_owned()));
    person.had(1).await.unwrap();
    let (_, token) = person.breaks();
    assert_eq!(sender.send(id, "d").await.unwrap(), Answer::Ack, "somebody who is away for a moment is not nobody");

    // It had read b as well, and had no time to say so.
    let mut person = Resumer::resume(gateway.address, &token, 2).await.unwrap();
    assert!(person.resumed);
    assert_eq!(person.id, id);
    assert_eq!(sender.send(id, "e").await.unwrap(), Answer::Ack);
    for expected in [(3, "c"), (4, "d"), (5, "e")] {
        assert_eq!(person.receive().await.unwrap(), (expected.0, expected.1.to_owned()));
    }
}

#[tokio::test]
async fn a_client_that_asks_for_nothing_sees_nothing_of_it() {
    let gateway = gateway(&[]).await;
    let mut socket = client::open(gateway.address, "/v1/texto?register=1").await.unwrap();
    let early = client::send_frame(Uuid::nil(), Uuid::new_v4(), Uuid::nil(), "too early");
    socket.send(Message::text(early)).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap()["data"]["code"], "ECID");
    socket.send(Message::text("garbage")).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap()["data"]["code"], "ESYNTAX");
    write(&mut socket, "registration", Value::Null).await.unwrap();
    let answer = next(&mut socket).await.unwrap();
    assert_eq!(answer["data"], json!({ "client_id": answer["client_id"] }));
    let id = Uuid::try_parse(answer["client_id"].as_str().unwrap()).unwrap();
    let mut sender = Client::connect(gateway.address).await.unwrap();
    assert_eq!(sender.send(id, "x").await.unwrap(), Answer::Ack);
    let frame = next(&mut socket).await.unwrap();
    assert_eq!(frame["data"], json!({ "sender_id": sender.id, "text": "x" }), "no seq");
    drop(socket);
    gone(&mut sender, id).await;
}

/// Waits until there is nobody as `id`.
async fn gone(sender: &mut Client, id: Uuid) {
    let absent = Answer::Error("ENOTCONN".to_owned());
    let end = std::time::Instant::now() + client::PATIENCE;
    while sender.send(id, "are you there?").await.unwrap() != absent {
        assert!(std::time::Instant::now() < end, "it never went");
    }
}

#[tokio::test]
async fn who_does_not_register_in_time_is_told_4002() {
    let gateway = gateway(&["--header-timeout", "300ms"]).await;
    let mut socket = client::open(gateway.address, "/v1/texto?register=1").await.unwrap();
    socket.send(Message::text("garbage")).await.unwrap();
    assert_eq!(closed(&mut socket).await.unwrap(), 4002);
}

#[tokio::test]
async fn the_newest_connection_wins_and_the_older_is_told_4001() {
    let gateway = gateway(&[]).await;
    let mut old = Resumer::begin(gateway.address).await.unwrap();
    let mut sender = Client::connect(gateway.address).await.unwrap();
    assert_eq!(sender.send(old.id, "a").await.unwrap(), Answer::Ack);
    assert_eq!(old.receive().await.unwrap(), (1, "a".to_owned()));
    let mut new = Resumer::resume(gateway.address, &old.token, 0).await.unwrap();
    assert!(new.resumed);
    assert_eq!(new.id, old.id);
    assert_eq!(new.receive().await.unwrap(), (1, "a".to_owned()), "it has not said that it has it");
    assert_eq!(closed(&mut old.socket).await.unwrap(), 4001);
    assert_eq!(sender.send(new.id, "b").await.unwrap(), Answer::Ack);
    assert_eq!(new.receive().await.unwrap(), (2, "b".to_owned()));
}

#[tokio::test]
async fn an_old_token_is_refused_once_the_client_has_used_a_newer_one() {
    let gateway = gateway(&[]).await;
    let person = Resumer::begin(gateway.address).await.unwrap();
    let (id, stolen) = person.breaks();
    // The answer may have been lost: as long as the client has said nothing, the older one is good too.
    let lost = Resumer::resume(gateway.address, &stolen, 0).await.unwrap();
    assert_eq!(lost.id, id);
    let mut person = Resumer::resume(gateway.address, &stolen, 0).await.unwrap();
    assert!(person.resumed);
    person.settle().await.unwrap();
    let thief = Resumer::resume(gateway.address, &stolen, 0).await.unwrap();
    assert!(!thief.resumed);
    assert_ne!(thief.id, id);
    person.settle().await.unwrap();
}

/// Ends the session in order, and waits until it is gone.
async fn end(mut person: Resumer, sender: &mut Client) -> (Uuid, String) {
    let frame = CloseFrame { code: 1000.into(), reason: "".into() };
    person.socket.close(Some(frame)).await.unwrap();
    assert_eq!(closed(&mut person.socket).await.unwrap(), 1000);
    let (id, token) = person.breaks();
    gone(sender, id).await;
    (id, token)
}

/// The client knows positions of the session before, and takes nothing that is not higher.
#[tokio::test]
async fn who_has_not_heard_that_its_session_began_anew_is_told_so_again() {
    let gateway = gateway(&[]).await;
    let mut sender = Client::connect(gateway.address).await.unwrap();
    let mut person = Resumer::begin(gateway.address).await.unwrap();
    for text in ["a", "b", "c"] {
        assert_eq!(sender.send(person.id, text).await.unwrap(), Answer::Ack);
        person.receive().await.unwrap();
    }
    let (id, token) = end(person, &mut sender).await;
    let lost = Resumer::resume(gateway.address, &token, 3).await.unwrap();
    assert_eq!((lost.id, lost.resumed), (id, false));
    lost.breaks();
    for text in ["d", "e"] {
        assert_eq!(sender.send(id, text).await.unwrap(), Answer::Ack);
    }
    let mut person = Resumer::resume(gateway.address, &token, 3).await.unwrap();
    assert_eq!((person.id, person.resumed), (id, false));
    assert_eq!(person.receive().await.unwrap(), (1, "d".to_owned()));
    assert_eq!(person.receive().await.unwrap(), (2, "e".to_owned()));
    // With its new token it goes on, unless it says that it has what there never was.
    let (_, token) = person.breaks();
    let person = Resumer::resume(gateway.address, &token, 2).await.unwrap();
    assert!(person.resumed);
    let (_, token) = person.breaks();
    assert!(!Resumer::resume(gateway.address, &token, 1_000_000_000).await.unwrap().resumed);
}

#[tokio::test]
async fn who_comes_twice_at_one_moment_gets_one_session() {
    let gateway = gateway(&[]).await;
    let mut sender = Client::connect(gateway.address).await.unwrap();
    let person = Resumer::begin(gateway.address).await.unwrap();
    let (id, token) = end(person, &mut sender).await;
    let come = || Resumer::resume(gateway.address, &token, 0);
    let (one, other) = tokio::join!(come(), come());
    for person in [one, other].into_iter().flatten() {
        assert_eq!((person.id, person.resumed), (id, false));
    }
    let mut person = come().await.unwrap();
    assert_eq!(sender.send(id, "to one").await.unwrap(), Answer::Ack);
    assert_eq!(person.receive().await.unwrap(), (1, "to one".to_owned()));
}

#[tokio::test]
async fn a_connection_that_an_older_token_displaces_may_come_back() {
    let gateway = gateway(&[]).await;
    let (id, token) = Resumer::begin(gateway.address).await.unwrap().breaks();
    // Two have the same, and neither says anything: whoever has the newest of all has the last word.
    let mut one = Resumer::resume(gateway.address, &token, 0).await.unwrap();
    let mut other = Resumer::resume(gateway.address, &token, 0).await.unwrap();
    assert_eq!(closed(&mut one.socket).await.unwrap(), 1012);
    let mut one = Resumer::resume(gateway.address, &one.token, 0).await.unwrap();
    assert_eq!((one.id, one.resumed), (id, true));
    assert_eq!(closed(&mut other.socket).await.unwrap(), 1012);
    one.settle().await.unwrap();
    let other = Resumer::resume(gateway.address, &other.token, 0).await.unwrap();
    assert_ne!(other.id, id, "who has said something first has the session");
}

#[tokio::test]
async fn what_was_written_before_the_greeting_proves_nothing() {
    let gateway = gateway(&[]).await;
    let mut receiver = Client::connect(gateway.address).await.unwrap();
    let (id, token) = Resumer::begin(gateway.address).await.unwrap().breaks();
    let mut socket = client::open(gateway.address, "/v1/texto?register=1").await.unwrap();
    write(&mut socket, "registration", json!({ "resume": token })).await.unwrap();
    socket.send(Message::text(client::send_frame(id, Uuid::new_v4(), receiver.id, "a"))).await.unwrap();
    assert_eq!(receiver.receive().await.unwrap(), (id, "a".to_owned()));
    drop(socket); // The newer token has not come.
    let again = Resumer::resume(gateway.address, &token, 0).await.unwrap();
    assert_eq!((again.id, again.resumed), (id, true));
}

#[tokio::test]
async fn bad_tokens_make_a_new_session_never_an_error() {
    let gateway = gateway(&[]).await;
    let other = self::gateway(&[]).await;
    let victim = Resumer::begin(gateway.address).await.unwrap();
    let foreign = Resumer::begin(other.address).await.unwrap();
    let (cut, mut forged) = (&victim.token[..20], victim.token.clone());
    let last = if forged.pop() == Some('A') { 'B' } else { 'A' };
    forged.push(last);
    for token in ["", "x", cut, &forged, &foreign.token, &"A".repeat(10_000)] {
        let person = Resumer::resume(gateway.address, token, 7).await.unwrap();
        assert!(!person.resumed, "{token}");
        assert!(person.id != victim.id && person.id != foreign.id, "{token}");
        assert!(!person.token.is_empty());
    }
}

#[tokio::test]
async fn the_session_ends_by_1000_and_not_by_1001() {
    let gateway = gateway(&[]).await;
    let mut sender = Client::connect(gateway.address).await.unwrap();
    for (code, goes_on) in [(1001, true), (1000, false)] {
        let mut person = Resumer::begin(gateway.address).await.unwrap();
        let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame { code: code.into(), reason: "".into() };
        person.socket.close(Some(frame)).await.unwrap();
        assert_eq!(closed(&mut person.socket).await.unwrap(), code);
        if goes_on {
            assert_eq!(sender.send(person.id, "x").await.unwrap(), Answer::Ack, "{code}");
        } else {
            gone(&mut sender, person.id).await;
        }
        let again = Resumer::resume(gateway.address, &person.token, 0).await.unwrap();
        assert_eq!((again.id, again.resumed), (person.id, goes_on), "the token is good for the id all the same");
    }
}

#[tokio::test]
async fn the_window_ends() {
    let gateway = gateway(&["--resume-window", "500ms"]).await;
    let mut sender = Client::connect(gateway.address).await.unwrap();
    let (id, token) = Resumer::begin(gateway.address).await.unwrap().breaks();
    assert_eq!(sender.send(id, "x").await.unwrap(), Answer::Ack);
    gone(&mut sender, id).await;
    let mut person = Resumer::resume(gateway.address, &token, 3).await.unwrap();
    assert_eq!((person.id, person.resumed), (id, false), "the same, but messages may be missing");
    assert_eq!(sender.send(id, "y").await.unwrap(), Answer::Ack);
    assert_eq!(person.receive().await.unwrap(), (1, "y".to_owned()), "the numbering starts anew");
}

#[tokio::test]
async fn what_is_sent_again_is_delivered_once_and_answered() {
    let gateway = gateway(&[]).await;
    let mut receiver = Resumer::begin(gateway.address).await.unwrap();
    let mut v1 = Client::connect(gateway.address).await.unwrap();
    let mut sender = Resumer::begin(gateway.address).await.unwrap();
    let (first, second, third) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    sender.post(first, receiver.id, "a").await.unwrap();
    sender.post(second, v1.id, "a").await.unwrap();
    assert_eq!(receiver.receive().await.unwrap(), (1, "a".to_owned()));
    assert_eq!(v1.receive().await.unwrap(), (sender.id, "a".to_owned()));
    let (_, token) = sender.breaks();
    let mut sender = Resumer::resume(gateway.address, &token, 0).await.unwrap();
    for (request, receiver) in [(first, receiver.id), (second, v1.id), (third, v1.id)] {
        sender.post(request, receiver, "a").await.unwrap();
        let answer = next(&mut sender.socket).await.unwrap();
        assert_eq!((answer["kind"].as_str(), answer["id"].as_str()), (Some("ack"), Some(&*request.to_string())));
    }
    assert_eq!(v1.receive().await.unwrap(), (sender.id, "a".to_owned()), "the third");
    sender.post(Uuid::new_v4(), receiver.id, "b").await.unwrap();
    assert_eq!(receiver.receive().await.unwrap(), (2, "b".to_owned()), "the first was not shown twice");
}

#[tokio::test]
async fn what_nobody_acknowledges_pushes_back_on_the_senders() {
    let gateway = gateway(&["--outbox-messages", "8"]).await;
    let mut person = Resumer::begin(gateway.address).await.unwrap();
    let mut sender = Client::connect(gateway.address).await.unwrap();
    // No sender has more than a quarter.
    for text in ["a", "b"] {
        assert_eq!(sender.send(person.id, text).await.unwrap(), Answer::Ack);
    }
    assert_eq!(sender.send(person.id, "c").await.unwrap(), Answer::Error("EBUSY".to_owned()));
    assert_eq!(person.receive().await.unwrap(), (1, "a".to_owned()));
    assert_eq!(person.receive().await.unwrap(), (2, "b".to_owned()));
    assert_eq!(sender.send(person.id, "c").await.unwrap(), Answer::Error("EBUSY".to_owned()), "read is not had");
    person.had(2).await.unwrap();
    person.settle().await.unwrap();
    assert_eq!(sender.send(person.id, "c").await.unwrap(), Answer::Ack);
    assert_eq!(person.receive().await.unwrap(), (3, "c".to_owned()));
}

/// Its network may be gone without a word while much is written to it.
#[tokio::test]
async fn who_takes_nothing_for_a_while_loses_the_connection_and_not_the_session() {
    let bounds = ["--write-timeout", "500ms", "--outbox-messages", "10000", "--outbox-bytes", "200000000"];
    let gateway = gateway(&bounds).await;
    let person = Resumer::begin(gateway.address).await.unwrap();
    let mut sender = Client::connect(gateway.address).await.unwrap();
    let text = "x".repeat(16_000);
    let mut sent = 0;
    let stuck = "texto_sessions_closed_total{reason=\"stuck\"}";
    // Megabytes fit into the kernel's buffers.
    while gateway.metric(stuck).await != Some(1.0) {
        assert!(sent < 2_400, "no sender has more than a quarter");
        for _ in 0..20 {
            assert_eq!(sender.send(person.id, &text).await.unwrap(), Answer::Ack);
            sent += 1;
        }
    }
    let mut again = Resumer::resume(gateway.address, &person.token, 0).await.unwrap();
    assert_eq!((again.id, again.resumed), (person.id, true));
    for seq in 1..=sent {
        assert_eq!(again.receive().await.unwrap().0, seq);
    }
}

#[tokio::test]
async fn no_token_is_in_the_log() {
    let binary = Path::new(env!("CARGO_BIN_EXE_texto"));
    let gateway = Gateway::start(binary, &[], &[("TEXTO_LOG", "texto=debug")]).await.unwrap();
    let person = Resumer::begin(gateway.address).await.unwrap();
    let again = Resumer::resume(gateway.address, &person.token, 0).await.unwrap();
    let mut forged = again.token.clone();
    forged.replace_range(60..61, if &forged[60..61] == "A" { "B" } else { "A" });
    Resumer::resume(gateway.address, &forged, 0).await.unwrap();
    gateway.wait_for_log("a resume token is not taken", client::PATIENCE).await.unwrap();
    for line in gateway.log() {
        for token in [&person.token, &again.token, &forged] {
            assert!(!line.contains(&token[..20]), "{line}");
        }
    }
}
