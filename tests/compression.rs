//! Compression by permessage-deflate, as clients meet it: a browser that offers it by itself, and one that knows each byte.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "browser/page.rs"]
mod page;

use std::path::Path;
use std::time::Duration;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use page::{Chromium, Page};
use serde_json::{Value, json};
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::http::{UPGRADE, ask, get};
use texto_lab::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
const LIMIT: Duration = Duration::from_secs(10);

async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), arguments, &[]).await.unwrap()
}

fn compressed(text: &str) -> Vec<u8> {
    let mut compressed = Vec::with_capacity(text.len() + 100);
    Compress::new(Compression::default(), false)
        .compress_vec(text.as_bytes(), &mut compressed, FlushCompress::Sync)
        .unwrap();
    compressed.truncate(compressed.len() - 4);
    compressed
}

/// A client that compresses all that it sends, and notes what came compressed.
struct Raw {
    stream: TcpStream,
}

impl Raw {
    async fn connect(gateway: &Gateway) -> Self {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!("GET /v1/texto?nogreet=1 HTTP/1.1\r\nHost: a\r\n{UPGRADE}{OFFER}\r\n");
        let response = ask(&mut stream, &request).await.unwrap();
        assert_eq!((response.status, response.header("Sec-WebSocket-Extensions")), (101, Some(AGREED)));
        Self { stream }
    }

    async fn write(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first, 0x80 | 126];
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([0; 4]); // A mask that changes nothing.
        frame.extend(payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn say(&mut self, text: &str) {
        self.write(0xc1, &compressed(text)).await;
    }

    /// A frame: its first byte, its length on the wire, and what it says.
    async fn frame(&mut self) -> (u8, usize, Vec<u8>) {
        let read = async {
            let first = self.stream.read_u8().await.unwrap();
            let length = match self.stream.read_u8().await.unwrap() {
                126 => usize::from(self.stream.read_u16().await.unwrap()),
                127 => self.stream.read_u64().await.unwrap() as usize,
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.unwrap();
            (first, length, payload)
        };
        let (first, length, mut payload) = tokio::time::timeout(LIMIT, read).await.unwrap();
        if first & 0x40 != 0 {
            payload.extend([0, 0, 0xff, 0xff]);
            let mut said = Vec::with_capacity(1 << 20);
            Decompress::new(false).decompress_vec(&payload, &mut said, FlushDecompress::None).unwrap();
            payload = said;
        }
        (first, length, payload)
    }

    async fn json(&mut self) -> (u8, usize, Value) {
        let (first, length, payload) = self.frame().await;
        (first, length, serde_json::from_slice(&payload).unwrap())
    }
}

#[tokio::test]
async fn long_messages_are_compressed_both_ways_for_those_who_offer_it_and_for_nobody_else() {
    let gateway = gateway(&["--compression", "true"]).await;
    let mut raw = Raw::connect(&gateway).await;
    let registration = r#"{"id":"00000000-0000-4000-8000-000000000001","kind":"registration","data":null}"#;
    raw.say(registration).await;
    let (first, _, greeting) = raw.json().await;
    assert_eq!(first, 0x81, "a short message is not worth it");
    let id = greeting["data"]["client_id"].as_str().unwrap().to_owned();

    // To one that offers nothing, and back.
    let mut plain = Client::connect(gateway.address).await.unwrap();
    let text = "I'll be there in ten minutes, traffic is awful. ".repeat(100);
    let frame = json!({"client_id": id, "id": id, "kind": "send", "data": {"receiver_id": plain.id, "text": text}});
    raw.say(&frame.to_string()).await;
    assert_eq!(plain.receive().await.unwrap().1, text);
    assert_eq!(raw.json().await.2["kind"], "ack");
    assert_eq!(plain.send(id.parse().unwrap(), &text).await.unwrap(), Answer::Ack);
    let (first, length, payload) = raw.frame().await;
    let received: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!((first, &received["data"]["text"]), (0xc1, &json!(text)));
    assert!(length * 10 < text.len(), "{length} bytes");
    let counted = async |name: &str| gateway.metric(name).await.unwrap() as usize;
    let bytes = "texto_compressed_messages_bytes_total";
    assert_eq!(counted(&format!("{bytes}{{direction=\"sent\",form=\"plain\"}}")).await, payload.len());
    assert_eq!(counted(&format!("{bytes}{{direction=\"sent\",form=\"compressed\"}}")).await, length);
    let said = registration.len() + frame.to_string().len();
    assert_eq!(counted(&format!("{bytes}{{direction=\"received\",form=\"plain\"}}")).await, said);
    assert_eq!(counted("texto_compressed_messages_total{direction=\"received\"}").await, 2);

    // What can't be made shorter is written as it is.
    let random: String = std::iter::repeat_with(|| char::from(fastrand::u8(0x21..0x7f))).take(600).collect();
    let random = random.replace(['"', '\\'], "x");
    plain.send(id.parse().unwrap(), &random).await.unwrap();
    let (_, length, received) = raw.json().await;
    assert_eq!(received["data"]["text"], json!(random));
    assert!(length < 900, "{length} bytes");
}

#[tokio::test]
async fn a_message_that_inflates_to_more_than_the_limit_closes_the_socket_with_1009() {
    let gateway = gateway(&["--compression", "true"]).await;
    let before = gateway.resident_bytes().unwrap();
    let bomb = compressed(&"0".repeat(10_000_000));
    assert!(bomb.len() < 60_000, "{}", bomb.len());
    let mut bombs = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::connect(&gateway).await;
        raw.write(0xc1, &bomb).await;
        bombs.push(raw);
    }
    for raw in &mut bombs {
        let (first, _, payload) = raw.frame().await;
        assert_eq!((first, &payload[..2]), (0x88, &1009_u16.to_be_bytes()[..]));
    }
    let grown = gateway.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 20_000_000, "{grown} bytes for 20 bombs of 10 MB");
    // And what is no message at all.
    let mut raw = Raw::connect(&gateway).await;
    raw.write(0xc1, b"this was never compressed").await;
    assert_eq!(raw.frame().await.2[..2], 1007_u16.to_be_bytes());
}

#[tokio::test]
async fn it_is_off_unless_it_is_asked_for_and_a_malformed_offer_is_refused() {
    let (on, off) = (gateway(&["--compression", "true"]).await, gateway(&[]).await);
    let ask_for = async |gateway: &Gateway, offer: &str| {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!("GET /v1/texto HTTP/1.1\r\nHost: a\r\n{UPGRADE}{offer}\r\n");
        ask(&mut stream, &request).await.unwrap()
    };
    for (gateway, answer) in [(&on, Some(AGREED)), (&off, None)] {
        let response = ask_for(gateway, OFFER).await;
        assert_eq!((response.status, response.header("Sec-WebSocket-Extensions")), (101, answer));
        let response = ask_for(gateway, "Sec-WebSocket-Extensions: permessage-deflate; foo\r\n").await;
        assert_eq!((response.status, response.header("Sec-WebSocket-Extensions")), (101, None), "declined");
        let malformed = format!("{UPGRADE}Sec-WebSocket-Extensions: permessage-deflate; =\r\n");
        let response = get(gateway.address, "/v1/texto", &malformed).await.unwrap();
        assert_eq!(response.status, 400);
        assert!(response.body.contains("Sec-WebSocket-Extensions is malformed"), "{}", response.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_in_a_browser_agree_to_it_by_themselves_and_chat() {
    let chromium = Chromium::start().await;
    let gateway = gateway(&["--compression", "true"]).await;
    // It counts what really goes over the wire.
    let proxy = Proxy::start(&gateway.address.to_string()).await.unwrap();
    let url = format!("http://{}/", proxy.address);
    let (a, b) = (Page::open(&chromium, &url).await, Page::open(&chromium, &url).await);
    let (_, b_id) = (a.id("").await, b.id("").await);
    let opened = "const socket = new WebSocket(location.href.replace('http', 'ws') + 'v1/texto?nogreet=1'); \
                  socket.onopen = () => { window.agreed = socket.extensions; socket.close(); };";
    a.eval(opened).await;
    a.until("a socket of the browser opens", "return window.agreed !== undefined").await;
    assert_eq!(a.eval("return window.agreed").await, json!(AGREED));

    let text = "The quick brown fox jumps over the lazy dog. ".repeat(40).trim_end().to_owned();
    let before = proxy.bytes();
    a.send(&b_id, &text).await;
    a.last(&text, "acked").await;
    b.last(&text, "").await;
    let bytes = proxy.bytes() - before;
    assert!(bytes < text.len() as u64, "{bytes} bytes both ways for {} bytes of text", text.len());
    for hostile in ["short", "\u{e4}\u{df}\u{20ac}"] {
        a.send(&b_id, hostile).await;
        b.last(hostile, "").await;
    }
}
