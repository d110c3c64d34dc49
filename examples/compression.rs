//! What compression costs and saves: a client sends itself texts as people write them, over a gateway of its own.
//!
//! `cargo build --release && cargo run --release --example compression -- target/release/texto`

use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, FlushCompress};
use serde_json::json;
use texto_lab::gateway::Gateway;
use texto_lab::http::{UPGRADE, ask};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

/// Messages that are under way at a time.
const BATCH: usize = 16;
const ID: &str = "00000000-0000-4000-8000-000000000001";
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
/// What the texts are made of.
const WORDS: &str = "I you we they the a an this that is are was were be have has had do does did will would can could \
    should not and or but if then because so when where who what how why yes no maybe thanks please sorry hello hey ok \
    meeting tomorrow today tonight later soon morning evening minutes hour train office lunch coffee dinner weekend \
    build server deploy test release branch review ticket customer invoice number address phone picture link file \
    sounds good great nice perfect fine really actually probably about around before after again still already";

#[tokio::main]
async fn main() -> Result<()> {
    let program = std::env::args().nth(1).context("which program? target/release/texto")?;
    println!("text bytes | client compresses | gateway may | up | down | gateway's CPU, us a message");
    for bytes in [100, 600, 1000, 10_000] {
        for (agreed, compresses) in [(false, false), (true, false), (true, true)] {
            let gateway = Gateway::start(Path::new(&program), &["--compression", "true"], &[]).await?;
            let mut client = Client::connect(&gateway, agreed).await?;
            let messages = if bytes < 5000 { 40_000 } else { 10_000 };
            client.exchange(bytes, compresses, 2000).await?;
            let before = gateway.cpu_seconds()?;
            let (up, down) = client.exchange(bytes, compresses, messages).await?;
            let cpu = (gateway.cpu_seconds()? - before) * 1e6 / messages as f64;
            println!("{bytes} | {compresses} | {agreed} | {} | {} | {cpu:.1}", up / messages, down / messages);
        }
    }
    Ok(())
}

/// A text of about so many bytes.
fn text(random: &mut fastrand::Rng, bytes: usize) -> String {
    let words: Vec<_> = WORDS.split_whitespace().collect();
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(random.choice(&words).unwrap_or(&"word"));
        text.push(if random.u8(..10) == 0 { '.' } else { ' ' });
    }
    text.truncate(bytes);
    text
}

struct Client {
    stream: BufStream<TcpStream>,
    id: String,
}

impl Client {
    async fn connect(gateway: &Gateway, agreed: bool) -> Result<Self> {
        let mut stream = TcpStream::connect(gateway.address).await?;
        stream.set_nodelay(true)?;
        let offer = if agreed { OFFER } else { "" };
        let request = format!("GET /v1/texto?nogreet=1 HTTP/1.1\r\nHost: a\r\n{UPGRADE}{offer}\r\n");
        ensure!(ask(&mut stream, &request).await?.status == 101);
        let mut client = Self { stream: BufStream::new(stream), id: String::new() };
        client.write(json!({"id": ID, "kind": "registration", "data": null}).to_string().as_bytes(), false).await?;
        client.stream.flush().await?;
        let greeting: serde_json::Value = serde_json::from_slice(&client.read().await?.1)?;
        client.id = greeting["data"]["client_id"].as_str().context("no id")?.to_owned();
        Ok(client)
    }

    /// Returns the bytes that went up, and those that came down.
    async fn exchange(&mut self, bytes: usize, compresses: bool, messages: usize) -> Result<(usize, usize)> {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut up, mut down) = (0, 0);
        for _ in 0..messages / BATCH {
            for _ in 0..BATCH {
                let text = text(&mut random, bytes);
                let data = json!({"receiver_id": self.id, "text": text});
                let frame = json!({"client_id": self.id, "id": uuid::Uuid::new_v4(), "kind": "send", "data": data});
                up += self.write(frame.to_string().as_bytes(), compresses).await?;
            }
            self.stream.flush().await?;
            // An `ack` and a `receive` for each.
            for _ in 0..2 * BATCH {
                down += self.read().await?.0;
            }
        }
        Ok((up, down))
    }

    async fn write(&mut self, message: &[u8], compresses: bool) -> Result<usize> {
        let mut compressed = Vec::with_capacity(message.len() + 64);
        let (first, payload) = if compresses {
            Compress::new(Compression::fast(), false).compress_vec(message, &mut compressed, FlushCompress::Sync)?;
            (0xc1, &compressed[..compressed.len() - 4])
        } else {
            (0x81, message)
        };
        let mut frame = vec![first];
        if payload.len() < 126 {
            frame.push(0x80 | payload.len() as u8);
        } else {
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
        frame.extend([0; 4]); // A mask that changes nothing.
        frame.extend(payload);
        self.stream.write_all(&frame).await?;
        Ok(frame.len())
    }

    async fn read(&mut self) -> Result<(usize, Vec<u8>)> {
        self.stream.read_u8().await?;
        let (length, header) = match self.stream.read_u8().await? {
            126 => (usize::from(self.stream.read_u16().await?), 4),
            127 => (usize::try_from(self.stream.read_u64().await?)?, 10),
            length => (usize::from(length), 2),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        Ok((header + length, payload))
    }
}
