//! What one client, or one address, may do: who does more is told so, and nobody else notices.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::SinkExt;
use serde_json::{Value, json};
use texto_lab::client::{Answer, Client, Incoming};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::nginx::Nginx;
use texto_lab::process::until;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(15);
const HANDSHAKE: &str = "GET /v1/texto HTTP/1.1\r\nHost: texto\r\n";

async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), arguments, &[]).await.unwrap()
}

async fn connect_from(source: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

/// Shakes hands from another address of this machine, with these header lines as well.
async fn knock(source: &str, address: SocketAddr, headers: &str) -> (http::Response, TcpStream) {
    let mut stream = connect_from(source, address).await;
    let answer = http::ask(&mut stream, &format!("{HANDSHAKE}{}{headers}\r\n", http::UPGRADE)).await.unwrap();
    (answer, stream)
}

fn limited(limit: &str) -> String {
    format!("texto_limited_total{{limit=\"{limit}\"}}")
}

/// The frame that answers `request`, whatever else comes before it.
async fn answer(client: &mut Client, request: Uuid) -> Value {
    loop {
        let Incoming::Frame(frame) = client.frame().await.unwrap() else { panic!("closed") };
        if frame["id"] == request.to_string() {
            return frame;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_too_fast_gets_eagain_and_when_to_try_again() {
    let gateway = gateway(&["--send-rate", "10", "--send-burst", "5", "--max-text-bytes", "20"]).await;
    let mut client = Client::connect(gateway.address).await.unwrap();
    let mut other = Client::connect(gateway.address).await.unwrap();
    let began = Instant::now();
    let (mut acked, mut refused) = (0, Vec::new());
    for _ in 0..20 {
        let request = client.post(client.id, "x").await.unwrap();
        let frame = answer(&mut client, request).await;
        match frame["kind"].as_str() {
            Some("ack") => acked += 1,
            _ => refused.push(frame["data"].clone()),
        }
    }
    let earned = began.elapsed().as_millis() / 100;
    assert!(acked >= 5 && acked <= 5 + earned, "{acked} within {:?}", began.elapsed());
    let first = refused.first().expect("nothing was refused");
    assert_eq!(first["code"], "EAGAIN");
    let words = first["description"].as_str().unwrap();
    let wait: u64 = words.rsplit(' ').nth(1).unwrap().parse().unwrap_or_else(|_| panic!("{words}"));
    assert!((1..=101).contains(&wait), "{words}");
    // The size is looked at first, and costs nothing of the rate.
    let request = client.post(client.id, &"x".repeat(21)).await.unwrap();
    assert_eq!(answer(&mut client, request).await["data"]["code"], "EMSGSIZE");
    assert_eq!(other.send(other.id, "mine is another").await.unwrap(), Answer::Ack);
    until("it may send again", LIMIT, async || {
        (client.send(client.id, "!").await.unwrap() == Answer::Ack).then_some(())
    })
    .await
    .unwrap();
    assert!(gateway.metric(&limited("send_rate")).await.unwrap() >= refused.len() as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_shakes_hands_as_often_as_the_operator_says() {
    let flags = ["--connection-rate", "1", "--connection-burst", "3", "--trusted-proxies", "127.0.0.9"];
    let gateway = gateway(&flags).await;
    let began = Instant::now();
    let mut kept = Vec::new();
    for _ in 0..3 {
        let (answer, stream) = knock("127.0.0.1", gateway.address, "").await;
        assert_eq!(answer.status, 101);
        kept.push(stream);
    }
    // Also one that is no proper handshake is one.
    let (refused, mut stream) = knock("127.0.0.1", gateway.address, "Upgrade: h2c\r\n").await;
    if began.elapsed() < Duration::from_secs(1) {
        assert_eq!((refused.status, refused.header("Retry-After")), (429, Some("1")), "{}", refused.body);
        assert!(refused.body.contains("try again in 1 s"), "{}", refused.body);
        end(&mut stream).await;
    }
    assert_eq!(knock("127.0.0.2", gateway.address, "").await.0.status, 101, "somebody else");
    // A proxy speaks for many, each of whom has a limit: two addresses of one /64 are one, two of two are two.
    for (client, status) in [
        ("2001:db8::1", 101),
        ("2001:db8::2", 101),
        ("2001:db8::3", 101),
        ("2001:db8::4", 429),
        ("2001:db8:0:1::1", 101),
        ("203.0.113.7", 101),
        ("::ffff:203.0.113.7", 101),
        ("203.0.113.7", 101),
        ("::ffff:203.0.113.7", 429),
    ] {
        let headers = format!("X-Forwarded-For: {client}\r\n");
        let began = Instant::now();
        let (answer, _) = knock("127.0.0.9", gateway.address, &headers).await;
        assert_eq!(answer.status, status, "{client} within {:?}", began.elapsed());
    }
    until("it may come again", LIMIT, async || {
        (knock("127.0.0.1", gateway.address, "").await.0.status == 101).then_some(())
    })
    .await
    .unwrap();
    assert!(gateway.metric(&limited("connection_rate")).await.unwrap() >= 2.0);
    assert!(gateway.metric("texto_handshakes_total{result=\"limited\"}").await.unwrap() >= 2.0);
    gateway.wait_for_log("--connection-rate", LIMIT).await.unwrap();
}

/// `Retry-After` is the truth: who waits for as long gets in, and who comes a second earlier does not.
#[tokio::test(flavor = "multi_thread")]
async fn retry_after_tells_the_true_time() {
    let gateway = gateway(&["--connection-rate", "1", "--connection-burst", "1"]).await;
    assert_eq!(knock("127.0.0.1", gateway.address, "").await.0.status, 101);
    let (refused, _) = knock("127.0.0.1", gateway.address, "").await;
    assert_eq!(refused.status, 429);
    let seconds = refused.header("Retry-After").unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert_eq!(knock("127.0.0.1", gateway.address, "").await.0.status, 101, "after {seconds} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_so_many_websockets_and_gets_them_back() {
    let gateway = gateway(&["--max-connections-per-address", "2"]).await;
    let mut first = Client::connect(gateway.address).await.unwrap();
    let second = Client::connect(gateway.address).await.unwrap();
    let (refused, _) = knock("127.0.0.1", gateway.address, "").await;
    assert_eq!((refused.status, refused.header("Retry-After")), (429, Some("5")), "{}", refused.body);
    assert!(refused.body.contains("open from this address"), "{}", refused.body);
    assert_eq!(knock("127.0.0.2", gateway.address, "").await.0.status, 101, "somebody else");
    assert_eq!(http::get(gateway.address, "/readyz", "").await.unwrap().status, 200, "only WebSockets count");
    drop(second);
    until("there is room again", LIMIT, async || Client::connect(gateway.address).await.ok()).await.unwrap();
    assert_eq!(first.send(first.id, "still here").await.unwrap(), Answer::Ack);
    assert!(gateway.metric(&limited("connections_per_address")).await.unwrap() >= 1.0);
    gateway.wait_for_log("--max-connections-per-address", LIMIT).await.unwrap();
}

/// Waits until nothing more comes.
async fn end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("it stays open").unwrap();
}

/// It had all of them, for ten seconds each: nobody else came in.
#[tokio::test(flavor = "multi_thread")]
async fn one_client_that_says_nothing_does_not_take_all_the_places() {
    let gateway = gateway(&["--max-connections", "4", "--header-timeout", "1h"]).await;
    let mut early = Client::connect(gateway.address).await.unwrap();
    let mut silent = Vec::new();
    for number in 0..400 {
        let mut stream = connect_from("127.0.0.2", gateway.address).await;
        // Some say nothing, some half of something, some begin their second request.
        match number % 3 {
            0 => {}
            1 => stream.write_all(HANDSHAKE.as_bytes()).await.unwrap(),
            _ => {
                let live = http::ask(&mut stream, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
                assert_eq!(live.status, 200);
                stream.write_all(b"GET /").await.unwrap();
            }
        }
        silent.push(stream);
    }
    let began = Instant::now();
    let late = Client::connect(gateway.address).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "a handshake took {:?}", began.elapsed());
    assert_eq!(early.send(late.id, "still here").await.unwrap(), Answer::Ack);
    end(&mut silent[0]).await;
    end(&mut silent[100]).await;
    let newest = silent.last_mut().unwrap();
    newest.write_all(b"livez HTTP/1.1\r\nHost: x\r\n\r\n").await.ok();
    assert!(gateway.metric(&limited("silent_connections")).await.unwrap() >= 300.0);
}

/// Many addresses may have all the places; whoever comes then gets the place of the one that has been silent longest.
#[tokio::test(flavor = "multi_thread")]
async fn many_silent_clients_yield_to_those_who_speak() {
    let gateway = gateway(&["--max-connections", "4", "--header-timeout", "1h"]).await;
    let mut silent = Vec::new();
    for number in 0..132 {
        silent.push(connect_from(&format!("127.0.1.{}", number + 1), gateway.address).await);
    }
    // A second later the first of them have been silent for long enough.
    let late = tokio::time::timeout(LIMIT, Client::connect(gateway.address)).await;
    late.expect("nobody yields").unwrap();
    end(&mut silent[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_only_what_leads_nowhere_waits_and_is_still_served() {
    let gateway = gateway(&[]).await;
    let client = Client::connect(gateway.address).await.unwrap();
    let mut other = Client::connect(gateway.address).await.unwrap();
    let id = client.id;
    const FRAMES: u64 = 2000;
    let began = Instant::now();
    let (mut writer, mut reader) = futures_util::StreamExt::split(client.into_socket());
    let writing = tokio::spawn(async move {
        for number in 0..FRAMES {
            let frame = match number % 4 {
                0 => Message::text("nonsense"),
                1 => Message::binary(vec![1]),
                2 => Message::Ping(bytes::Bytes::new()),
                _ => Message::text(json!({ "id": Uuid::new_v4(), "kind": "registration", "data": null }).to_string()),
            };
            writer.send(frame).await.unwrap();
        }
        let send = texto_lab::client::send_frame(id, Uuid::nil(), id, "and now something else");
        writer.send(Message::text(send)).await.unwrap();
    });
    let mut answers = 0;
    loop {
        let frame = tokio::time::timeout(LIMIT, futures_util::StreamExt::next(&mut reader)).await;
        let frame = frame.expect("nothing came").unwrap().unwrap();
        match frame {
            Message::Text(text) if text.contains("and now something else") => break,
            Message::Text(_) => answers += 1,
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
    writing.await.unwrap();
    // Each was answered, and the ack may come before the message.
    assert!(answers >= FRAMES * 3 / 4, "{answers}");
    // A thousand at once, then four hundred in a second at the most.
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(gateway.metric(&limited("chatter")).await.unwrap() > 100.0);
    assert_eq!(other.send(other.id, "nobody else waits").await.unwrap(), Answer::Ack);
}

/// `FRAMES` frames of nothing, after the first of a message that goes on, and before its last, which holds `end`.
fn in_very_many_frames(first: &[u8], end: &[u8]) -> Vec<u8> {
    let mut bytes = first.to_vec();
    bytes.extend([0x00, 0x80, 0, 0, 0, 0].repeat(FRAMES));
    bytes.extend([0x80, 0x80 | 126]);
    bytes.extend(u16::try_from(end.len()).unwrap().to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(end);
    bytes
}

const FRAMES: usize = 20_000;

/// Writes `bytes`, and reads until `answer` is there.
async fn answered(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8], answer: &str) {
    let began = Instant::now();
    stream.write_all(bytes).await.unwrap();
    let mut read = String::new();
    while !read.contains(answer) {
        let mut part = [0; 4096];
        let count = tokio::time::timeout(LIMIT, stream.read(&mut part)).await.expect("nothing came").unwrap();
        assert!(count > 0, "it was closed: {read}");
        read.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    // A thousand frames at once, then a buffer of 1 KiB each 5 ms.
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
}

/// Bytes of nothing, of which each frame costs as much as a message does.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_very_many_frames_is_read_slowly_and_is_a_message_all_the_same() {
    let gateway = gateway(&["--compression", "true"]).await;
    let client = Client::connect(gateway.address).await.unwrap();
    let text = texto_lab::client::send_frame(client.id, Uuid::nil(), client.id, "in very many frames");
    let plain = in_very_many_frames(&[0x01, 0x80, 0, 0, 0, 0], text.as_bytes());
    answered(client.into_socket().into_inner(), &plain, "\"ack\"").await;
    // And one that is compressed, of which nothing goes on before it is complete. "x" by DEFLATE, its last four bytes
    // left out (RFC 7692, section 7.2.3).
    let (answer, stream) =
        knock("127.0.0.1", gateway.address, "Sec-WebSocket-Extensions: permessage-deflate\r\n").await;
    assert!(answer.header("Sec-WebSocket-Extensions").is_some_and(|agreed| agreed.contains("permessage-deflate")));
    let compressed = in_very_many_frames(&[0x41, 0x80 | 3, 0, 0, 0, 0, 0xaa, 0x00, 0x00], b"");
    answered(stream, &compressed, "ESYNTAX").await;
}

/// nginx' own limits are on its address alone, the gateway's on that of its client.
#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_each_client_has_a_limit_of_its_own() {
    let flags = ["--trusted-proxies", "127.0.0.1", "--max-connections-per-address", "2"];
    let gateway = gateway(&flags).await;
    let nginx = Nginx::start(&[gateway.address]).await.unwrap();
    let mut kept = Vec::new();
    for (source, status) in
        [("127.0.0.5", 101), ("127.0.0.5", 101), ("127.0.0.5", 429), ("127.0.0.6", 101), ("127.0.0.5", 429)]
    {
        // What a client says of its address itself is nothing to nginx.
        let (answer, stream) = knock(source, nginx.address, "X-Forwarded-For: 6.6.6.6\r\n").await;
        assert_eq!(answer.status, status, "{source}: {}", answer.body);
        kept.push(stream);
    }
}
