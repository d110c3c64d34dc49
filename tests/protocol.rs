//! The wire protocol over real sockets, and the contract that every broker keeps.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use texto_lab::client::{self, Answer, Client, Incoming};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(10);

async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), arguments, &[]).await.unwrap()
}

async fn frame(client: &mut Client) -> Value {
    match client.frame().await.unwrap() {
        Incoming::Frame(frame) => frame,
        Incoming::Closed(code) => panic!("closed with {code}"),
    }
}

/// Sends a frame and gives the code and id of the error that it is answered with.
async fn error(client: &mut Client, text: &str) -> (String, String) {
    client.write(text).await.unwrap();
    let answer = frame(client).await;
    assert_eq!(answer["kind"], "error", "{text} was answered with {answer}");
    assert!(answer["data"]["description"].as_str().unwrap().len() > 5);
    assert_eq!(answer["client_id"], client.id.to_string());
    (answer["data"]["code"].as_str().unwrap().to_owned(), answer["id"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn every_error_code_and_the_session_goes_on() {
    let gateway = gateway(&["--max-text-bytes", "10"]).await;
    let mut client = Client::connect(gateway.address).await.unwrap();
    let own = client.id;
    let id = Uuid::new_v4();
    let send = |client_id: Value, receiver: Value, text: &str| {
        json!({ "client_id": client_id, "id": id, "kind": "send", "data": { "receiver_id": receiver, "text": text } })
            .to_string()
    };
    let cases = [
        ("garbage".to_owned(), "ESYNTAX", false),
        ("[1]".to_owned(), "ESYNTAX", false),
        (json!({ "kind": "send" }).to_string(), "ESYNTAX", false),
        (json!({ "id": id, "kind": 7 }).to_string(), "ESYNTAX", true),
        (json!({ "id": id, "kind": "receive" }).to_string(), "EKIND", true),
        (send(Value::Null, json!(id), "far too long a text"), "ECID", true),
        (send(json!(id), json!("x"), ""), "ECID", true),
        (send(json!(own), json!("x"), "far too long a text"), "EINVAL", true),
        (send(json!(own), json!(id), "far too long a text"), "EMSGSIZE", true),
        (send(json!(own), json!(id), "short"), "ENOTCONN", true),
    ];
    for (text, code, own_id) in cases {
        let (given, answered) = error(&mut client, &text).await;
        assert_eq!(given, code, "{text}");
        assert_eq!(answered == id.to_string(), own_id, "{text}");
    }
    client.socket().send(Message::binary(vec![1, 2, 3])).await.unwrap();
    let answer = frame(&mut client).await;
    assert_eq!((&answer["kind"], &answer["data"]["code"]), (&json!("error"), &json!("ESYNTAX")));
    assert_eq!(client.send(own, "to myself").await.unwrap(), Answer::Ack);
    assert_eq!(client.receive().await.unwrap(), (own, "to myself".to_owned()));
}

#[tokio::test]
async fn registration_greeting_and_silence() {
    let gateway = gateway(&[]).await;
    let mut socket = client::open(gateway.address, "/v1/texto?nogreet=1").await.unwrap();
    let id = Uuid::new_v4();
    for kind in ["ack", "error"] {
        let notice = json!({ "client_id": null, "id": Uuid::new_v4(), "kind": kind, "data": { "any": "thing" } });
        socket.send(Message::text(notice.to_string())).await.unwrap();
    }
    let registration = json!({ "client_id": "anything", "id": id, "kind": "registration", "data": null, "new": 1 });
    socket.send(Message::text(registration.to_string())).await.unwrap();
    // Neither a greeting nor an answer to a notice comes before it.
    let Incoming::Frame(first) = client::next(&mut socket).await else { panic!("closed") };
    assert_eq!((&first["kind"], &first["id"]), (&json!("connection"), &json!(id)));
    assert_eq!(first["client_id"], first["data"]["client_id"]);

    let mut socket = client::open(gateway.address, "/v1/texto?nogreet=").await.unwrap();
    let Incoming::Frame(first) = client::next(&mut socket).await else { panic!("closed") };
    assert_eq!(first["kind"], "connection", "an empty value does not suppress the greeting");
}

/// Asks for an upgrade with these header lines alone.
async fn handshake(gateway: &Gateway, headers: &str) -> http::Response {
    handshake_by(gateway, "HTTP/1.1", headers).await
}

async fn handshake_by(gateway: &Gateway, version: &str, headers: &str) -> http::Response {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!("GET /v1/texto {version}\r\nHost: texto\r\n{headers}\r\n");
    http::ask(&mut stream, &request).await.unwrap()
}

#[tokio::test]
async fn each_flaw_of_a_handshake_has_a_sentence_of_its_own() {
    let gateway = gateway(&[]).await;
    let without = |name: &str| {
        let lines = http::UPGRADE.split_inclusive("\r\n").filter(|line| !line.starts_with(name));
        lines.collect::<String>()
    };
    let instead = |name: &str, line: &str| format!("{}{line}\r\n", without(name));
    let cases = [
        (String::new(), 426, "connect with a WebSocket client"),
        (without("Connection"), 426, "the header `Connection: upgrade` is missing"),
        (instead("Connection", "Connection: close"), 426, "the header `Connection: upgrade` is missing"),
        (without("Upgrade"), 426, "the header `Upgrade: websocket` is missing"),
        (instead("Upgrade", "Upgrade: h2c"), 426, "the header `Upgrade: websocket` is missing"),
        (without("Sec-WebSocket-Version"), 426, "Sec-WebSocket-Version is missing"),
        (instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"), 426, "version 8 is not known here"),
        (without("Sec-WebSocket-Key"), 400, "Sec-WebSocket-Key is missing"),
        (instead("Sec-WebSocket-Key", "Sec-WebSocket-Key: c2hvcnQ="), 400, "Sec-WebSocket-Key is malformed"),
        (instead("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBs*SBub25jZQ=="), 400, "is malformed"),
    ];
    for (headers, status, words) in cases {
        let answer = handshake(&gateway, &headers).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
        assert!(answer.body.contains(words), "{headers:?}: {}", answer.body);
        assert_eq!((answer.header("Sec-WebSocket-Version"), answer.header("Upgrade")), (Some("13"), Some("websocket")));
    }
    // What nginx does unless it is told otherwise, with and without the headers.
    for headers in ["Connection: close\r\n", http::UPGRADE] {
        let answer = handshake_by(&gateway, "HTTP/1.0", headers).await;
        assert_eq!(answer.status, 426, "{}", answer.body);
        assert!(answer.body.contains("HTTP/1.1") && answer.body.contains("proxy_http_version 1.1;"), "{}", answer.body);
    }
}

#[tokio::test]
async fn each_flaw_of_a_frame_has_a_sentence_of_its_own() {
    let gateway = gateway(&[]).await;
    let mut client = Client::connect(gateway.address).await.unwrap();
    let (own, id) = (client.id, Uuid::new_v4());
    let send = |data: &str| format!(r#"{{"client_id":"{own}","id":"{id}","kind":"send","data":{data}}}"#);
    let cases = [
        (String::new(), "ESYNTAX", "the frame is empty: it must be one JSON object"),
        ("[]".to_owned(), "ESYNTAX", "the frame begins with '[': it must be one JSON object"),
        (r#"{"kind":"send"}"#.to_owned(), "ESYNTAX", r#""id" is missing"#),
        (r#"{"id":7,"kind":"send"}"#.to_owned(), "ESYNTAX", r#""id" is 7: it must be a UUID"#),
        (r#"{"id":"7","kind":"send"}"#.to_owned(), "ESYNTAX", r#""id" is "7": it must be a UUID, such as"#),
        (format!(r#"{{"id":"{id}","id":"{id}","kind":"send"}}"#), "ESYNTAX", "duplicate field `id`"),
        (format!(r#"{{"id":"{id}"}}"#), "ESYNTAX", r#""kind" is missing"#),
        (format!(r#"{{"id":"{id}","kind":["send"]}}"#), "ESYNTAX", r#""kind" is an array: it must be "send""#),
        (format!(r#"{{"id":"{id}","kind":"receive"}}"#), "EKIND", r#""kind" is "receive": it must be "send""#),
        (format!(r#"{{"id":"{id}","kind":"registration","data":[]}}"#), "EINVAL", r#""data" is an array"#),
        (
            format!(r#"{{"id":"{id}","kind":"registration","data":{{"seq":-1}}}}"#),
            "EINVAL",
            r#""seq" is -1: it must be the "seq" of a "receive", or 0"#,
        ),
        (
            format!(r#"{{"client_id":7,"id":"{id}","kind":"send"}}"#),
            "ECID",
            r#""client_id" is 7: it must be the id of this session"#,
        ),
        (format!(r#"{{"id":"{id}","kind":"send"}}"#), "ECID", r#""client_id" is missing"#),
        (
            format!(r#"{{"client_id":"{id}","id":"{id}","kind":"send"}}"#),
            "ECID",
            r#"": it must be the id of this session, as "#,
        ),
        (send("null"), "EINVAL", r#""data" is missing"#),
        (send("true"), "EINVAL", r#""data" is true: it must be an object"#),
        (send("{}"), "EINVAL", r#""receiver_id" is missing"#),
        (send(r#"{"receiver_id":{},"text":""}"#), "EINVAL", r#""receiver_id" is an object: it must be a UUID"#),
        (send(r#"{"receiver_id":"you","text":""}"#), "EINVAL", r#""receiver_id" is "you": it must be a UUID, such as"#),
        (send(&format!(r#"{{"receiver_id":"{}","text":""}}"#, "ü".repeat(99))), "EINVAL", "\"üüü"),
        (send(&format!(r#"{{"receiver_id":"{own}"}}"#)), "EINVAL", r#""text" is missing"#),
        (send(&format!(r#"{{"receiver_id":"{own}","text":["a"]}}"#)), "EINVAL", r#""text" is an array: it must be a"#),
        (send(&format!(r#"{{"receiver_id":"{own}","text":"a\ud83d"}}"#)), "ESYNTAX", r"unpaired surrogate (\ud83d)"),
        (send(&format!(r#"{{"receiver_id":"{own}","text":"\uDE00"}}"#)), "ESYNTAX", r"half of an emoji"),
        (send(&format!(r#"{{"receiver_id":"{own}","text":"\\ud83d\ud83d\u0041"}}"#)), "ESYNTAX", r#""text" holds"#),
    ];
    for (text, code, words) in cases {
        client.write(&text).await.unwrap();
        let answer = frame(&mut client).await;
        assert_eq!(answer["data"]["code"], code, "{text}: {answer}");
        let description = answer["data"]["description"].as_str().unwrap();
        assert!(description.contains(words) && description.chars().count() < 200, "{text}: {description}");
        assert_eq!(
            answer["id"] == id.to_string(),
            text.matches(&id.to_string()).count() > 0 && !words.contains("duplicate")
        );
    }
    // Both halves are a whole.
    client.write(&send(&format!(r#"{{"receiver_id":"{own}","text":"\ud83d\ude00"}}"#))).await.unwrap();
    assert_eq!(client.receive().await.unwrap().1, "\u{1F600}");
}

#[tokio::test]
async fn a_subprotocol_is_selected_or_the_reason_given() {
    let gateway = gateway(&[]).await;
    for (offers, selected) in [
        ("", None),
        ("Sec-WebSocket-Protocol: \r\n", None),
        ("Sec-WebSocket-Protocol: texto.v1\r\n", Some("texto.v1")),
        ("Sec-WebSocket-Protocol: chat,texto.v1 , v2\r\n", Some("texto.v1")),
        ("Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: texto.v1\r\n", Some("texto.v1")),
    ] {
        let answer = handshake(&gateway, &format!("{}{offers}", http::UPGRADE)).await;
        assert_eq!((answer.status, answer.header("Sec-WebSocket-Protocol")), (101, selected), "{offers:?}");
    }
    for (offers, named) in [("chat", "chat"), ("Texto.v1", "Texto.v1"), ("a,b\r\nSec-WebSocket-Protocol: c", "a, b, c")]
    {
        let headers = format!("{}Sec-WebSocket-Protocol: {offers}\r\n", http::UPGRADE);
        let answer = handshake(&gateway, &headers).await;
        assert_eq!(answer.status, 400, "{offers:?}");
        let sentence = format!("no subprotocol that is offered is known here ({named}): offer texto.v1, or none\n");
        assert_eq!(answer.body, sentence);
    }
    // As browsers do it, which fail unless the answer fits the offer.
    let mut request = format!("ws://{}/v1/texto", gateway.address).into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "chat, texto.v1".parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert!(matches!(client::next(&mut socket).await, Incoming::Frame(_)));
}

#[tokio::test]
async fn ids_in_capitals_are_the_same_ids() {
    let gateway = gateway(&[]).await;
    let mut client = Client::connect(gateway.address).await.unwrap();
    let own = client.id.to_string().to_uppercase();
    let id = Uuid::new_v4();
    let send = json!({ "client_id": own, "id": id.to_string().to_uppercase(), "kind": "send",
        "data": { "receiver_id": own, "text": "x" } });
    client.write(&send.to_string()).await.unwrap();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let frame = frame(&mut client).await;
        if frame["kind"] == "ack" {
            assert_eq!(frame["id"], id.to_string());
        } else {
            assert_eq!(frame["data"]["sender_id"], client.id.to_string());
        }
        kinds.push(frame["kind"].as_str().unwrap().to_owned());
    }
    kinds.sort();
    assert_eq!(kinds, ["ack", "receive"]);
}

#[tokio::test]
async fn a_frame_over_the_limit_closes_with_1009() {
    let gateway = gateway(&["--max-frame-bytes", "20000"]).await;
    let mut client = Client::connect(gateway.address).await.unwrap();
    client.write(&"x".repeat(20_001)).await.unwrap();
    assert_eq!(client.closed(LIMIT).await.unwrap(), 1009);
    let mut fragments = Client::connect(gateway.address).await.unwrap();
    use tokio_tungstenite::tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };
    for (at, kind) in [(0, Data::Text), (1, Data::Continue), (2, Data::Continue)] {
        let frame = Frame::message("x".repeat(9_000), OpCode::Data(kind), at == 2);
        fragments.socket().send(Message::Frame(frame)).await.unwrap();
    }
    assert_eq!(fragments.closed(LIMIT).await.unwrap(), 1009, "fragments count together");
}

#[tokio::test]
async fn the_longest_text_passes_in_its_longest_form() {
    let gateway = gateway(&[]).await;
    let mut client = Client::connect(gateway.address).await.unwrap();
    // Each byte takes six in JSON, both ways.
    let text = "\u{1}".repeat(16_384);
    assert_eq!(client.send(client.id, &text).await.unwrap(), Answer::Ack);
    assert_eq!(client.receive().await.unwrap().1, text);
}

/// What every broker promises, on whichever nodes the clients are.
async fn contract(first: &Gateway, second: &Gateway) {
    let mut a = Client::connect(first.address).await.unwrap();
    let mut b = Client::connect(second.address).await.unwrap();
    // In order, once each, answered each; many under way at a time.
    let mut requests = Vec::new();
    for number in 0..60 {
        requests.push(a.post(b.id, &format!("message {number} \u{1F600}\u{0}\"")).await.unwrap());
    }
    for request in requests {
        assert_eq!(a.answer(request).await.unwrap(), Answer::Ack);
    }
    for number in 0..60 {
        assert_eq!(b.receive().await.unwrap(), (a.id, format!("message {number} \u{1F600}\u{0}\"")));
    }
    // An id is known as soon as its owner is greeted.
    for _ in 0..20 {
        let mut late = Client::connect(second.address).await.unwrap();
        assert_eq!(a.send(late.id, "welcome").await.unwrap(), Answer::Ack);
        assert_eq!(late.receive().await.unwrap().1, "welcome");
    }
    // Nobody is connected as a stranger, nor as one who has left.
    assert_eq!(a.send(Uuid::new_v4(), "?").await.unwrap(), Answer::Error("ENOTCONN".to_owned()));
    let gone = b.id;
    drop(b);
    until("the one who left is gone", LIMIT, async || {
        (a.send(gone, "?").await.unwrap() == Answer::Error("ENOTCONN".to_owned())).then_some(())
    })
    .await
    .unwrap();
    // Nothing is kept for later.
    let mut fresh = Client::connect(second.address).await.unwrap();
    assert_eq!(a.send(fresh.id, "first").await.unwrap(), Answer::Ack);
    assert_eq!(fresh.receive().await.unwrap().1, "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_broker_keeps_the_contract() {
    let gateway = gateway(&[]).await;
    contract(&gateway, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_the_contract() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let address = redis.address();
    let (first, second) = (gateway(&["--redis", &address]).await, gateway(&["--redis", &address]).await);
    first.wait_ready(LIMIT).await.unwrap();
    second.wait_ready(LIMIT).await.unwrap();
    contract(&first, &second).await;
}

/// Writes `request`, and gives all that comes back until the connection is closed.
async fn until_closed(gateway: &Gateway, request: &str) -> String {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let end = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    // What is broken off has been said all the same.
    let _ = end.unwrap_or_else(|_| panic!("{request:?}: it stays open after {}", String::from_utf8_lossy(&answer)));
    String::from_utf8_lossy(&answer).into_owned()
}

/// What a proxy may understand otherwise than the gateway: RFC 9112, sections 2.2, 3.2, 5 and 6, and RFC 6455, 4.2.1.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_two_meanings_is_refused_and_its_connection_closed() {
    // Longer than a test may take: whoever is closed was not closed for saying nothing.
    let gateway = gateway(&["--header-timeout", "1h", "--keep-alive-timeout", "1h"]).await;
    let upgrade = http::UPGRADE;
    let smuggled = "GET /livez HTTP/1.1\r\nHost: texto\r\n\r\n";
    for (what, request) in [
        ("no Host", format!("GET /v1/texto HTTP/1.1\r\n{upgrade}\r\n")),
        ("two Hosts", format!("GET /v1/texto HTTP/1.1\r\nHost: texto\r\nHost: texto\r\n{upgrade}\r\n")),
        ("a Host with a space", format!("GET /v1/texto HTTP/1.1\r\nHost: a b\r\n{upgrade}\r\n")),
        ("a Host with a user", format!("GET /v1/texto HTTP/1.1\r\nHost: a@texto\r\n{upgrade}\r\n")),
        ("another host in the target", format!("GET http://other/v1/texto HTTP/1.1\r\nHost: texto\r\n{upgrade}\r\n")),
        ("two versions", format!("GET /v1/texto HTTP/1.1\r\nHost: texto\r\n{upgrade}Sec-WebSocket-Version: 8\r\n\r\n")),
        (
            "the same version twice",
            format!("GET /v1/texto HTTP/1.1\r\nHost: a\r\n{upgrade}Sec-WebSocket-Version: 13\r\n\r\n"),
        ),
        (
            "two keys",
            format!(
                "GET /v1/texto HTTP/1.1\r\nHost: a\r\n{upgrade}Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n"
            ),
        ),
        (
            "a handshake with a body",
            format!("GET /v1/texto HTTP/1.1\r\nHost: a\r\n{upgrade}Content-Length: 45\r\n\r\n{smuggled}"),
        ),
        (
            "a handshake with chunks",
            format!(
                "GET /v1/texto HTTP/1.1\r\nHost: a\r\n{upgrade}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "two framings",
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "two framings, the other way round",
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "an unknown coding",
            format!("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        (
            "two lengths",
            format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 45\r\n\r\n{smuggled}"),
        ),
        ("a list of lengths", format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n{smuggled}")),
        ("a signed length", format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n{smuggled}")),
        ("a length that is none", format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x0\r\n\r\n{smuggled}")),
        ("a folded line", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n".to_owned()),
        ("a folded Host", "GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n".to_owned()),
        ("a space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned()),
        ("a tab before the colon", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 5\r\n\r\n".to_owned()),
        ("a space before the first header", "GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_owned()),
        ("a line without a colon", "GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n".to_owned()),
        ("a name that is none", "GET / HTTP/1.1\r\nHost: a\r\nX(A): b\r\n\r\n".to_owned()),
        ("an empty name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n".to_owned()),
        ("lines that end with LF", "GET / HTTP/1.1\nHost: a\n\n".to_owned()),
        ("one line that ends with LF", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\nContent-Length: 5\r\n\r\n".to_owned()),
        ("a head that ends with LF", "GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned()),
        ("a lone CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rX-C: d\r\n\r\n".to_owned()),
        ("a zero in a value", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n".to_owned()),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("no version", "GET /\r\nHost: a\r\n\r\n".to_owned()),
        ("a version that is none", "GET / HTTP/1.9\r\nHost: a\r\n\r\n".to_owned()),
    ] {
        let answer = until_closed(&gateway, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert_eq!(answer.matches("\ndate: ").count(), 1, "{what}: what followed was served: {answer}");
    }
    // What looks like it and is well.
    for (what, request) in [
        ("the same host in the target", "GET http://texto/livez HTTP/1.1\r\nHost: texto\r\n\r\n".to_owned()),
        ("no body, said aloud", "GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".to_owned()),
        ("an empty line before it", "\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("an old client without Host", "GET /livez HTTP/1.0\r\n\r\n".to_owned()),
    ] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let answer = http::ask(&mut stream, &request).await.unwrap();
        assert_eq!(answer.status, 200, "{what}: {}", answer.head);
    }
    let last = smuggled.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let answers = until_closed(&gateway, &format!("{smuggled}{smuggled}{last}")).await;
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 3, "three requests at once are three: {answers}");
}

/// The rules of those who scan pages (Mozilla's Observatory, OWASP's secure headers).
#[tokio::test(flavor = "multi_thread")]
async fn answers_say_what_browsers_must_not_do_with_them() {
    let gateway = gateway(&[]).await;
    for path in ["/", "/texto.js", "/style.css", "/livez", "/readyz", "/metrics", "/nothing", "/v1/texto"] {
        let answer = http::get(gateway.address, path, "").await.unwrap();
        assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"), "{path}: {}", answer.head);
        assert_eq!(answer.header("Strict-Transport-Security"), None, "only over TLS");
        assert_eq!(answer.header("Server"), None, "nobody needs to know");
    }
    let page = http::get(gateway.address, "/", "").await.unwrap();
    for (name, value) in [
        ("X-Frame-Options", "DENY"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
        ("Referrer-Policy", "no-referrer"),
    ] {
        assert_eq!(page.header(name), Some(value), "{}", page.head);
    }
    let policy = page.header("Content-Security-Policy").unwrap();
    for part in ["default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
}
