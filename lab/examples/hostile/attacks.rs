//! Owns what a hostile client does, as fast as it can.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use texto_lab::client::{self, Client};
use texto_lab::http;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Frames that are made before, and written again and again.
const FRAMES: usize = 4096;
/// Connections that a client opens at a time.
const AT_ONCE: usize = 16;
/// Connections that it holds half open.
const HELD: usize = 4000;
/// What begins a frame of text that is the last of its message, or not; one that goes on; a ping.
const TEXT: u8 = 0x81;
const BEGINNING: u8 = 0x01;
const MORE: u8 = 0x00;
const PING: u8 = 0x89;

/// What one does.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Whether Redis has a failover meanwhile.
    pub(crate) moves: bool,
}

const fn attack(name: &'static str, what: &'static str, moves: bool) -> Attack {
    Attack { name, what, moves }
}

impl Attack {
    pub(crate) const ALL: [Self; 9] = [
        attack("sends", "sends without waiting for answers", false),
        attack("nobody", "sends to ids that nobody has", false),
        attack("malformed", "sends malformed frames", false),
        attack("fragments", "sends empty fragments of a message that never ends", false),
        attack("pings", "pings", false),
        attack("handshakes", "shakes hands improperly (16 connections)", false),
        attack("half-open", "holds 4,000 connections with half a request, always the newest", false),
        attack("leaves", "connects and leaves (16 at a time)", false),
        attack("moving", "sends to ids that nobody has, during `SENTINEL FAILOVER`", true),
    ];

    pub(crate) fn named(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|attack| attack.name == name).context("no such attack")
    }

    /// Does it until the process is killed.
    pub(crate) async fn run(&self, address: SocketAddr) -> Result<()> {
        match self.name {
            "sends" => {
                let receiver = Client::connect(address).await?;
                let to = receiver.id;
                let (reader, _writer) = tokio::io::split(receiver.into_socket().into_inner());
                tokio::spawn(swallow(reader));
                flood(address, |id, _| frame(TEXT, &client::send_frame(id, Uuid::new_v4(), to, "x"))).await
            }
            "nobody" | "moving" => {
                flood(address, |id, _| frame(TEXT, &client::send_frame(id, Uuid::new_v4(), Uuid::new_v4(), "x"))).await
            }
            "malformed" => flood(address, |_, _| frame(TEXT, "nonsense")).await,
            "pings" => flood(address, |_, _| frame(PING, "")).await,
            "fragments" => {
                let mut stream = Client::connect(address).await?.into_socket().into_inner();
                stream.write_all(&frame(BEGINNING, "x")).await?;
                pour(stream, &frame(MORE, "").repeat(FRAMES)).await
            }
            "handshakes" => many(address, improper).await,
            "half-open" => hold(address).await,
            _ => many(address, leave).await,
        }
    }
}

/// A frame, masked with zeros.
fn frame(first: u8, payload: &str) -> Vec<u8> {
    let length = payload.len() as u16;
    let mut bytes = vec![first];
    if length < 126 {
        bytes.push(0x80 | length as u8);
    } else {
        bytes.push(0x80 | 126);
        bytes.extend(length.to_be_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend(payload.as_bytes());
    bytes
}

/// Writes frames, and reads whatever comes.
async fn flood(address: SocketAddr, make: impl Fn(Uuid, usize) -> Vec<u8>) -> Result<()> {
    let client = Client::connect(address).await?;
    let id = client.id;
    let frames: Vec<u8> = (0..FRAMES).flat_map(|number| make(id, number)).collect();
    pour(client.into_socket().into_inner(), &frames).await
}

async fn pour(stream: impl AsyncRead + AsyncWrite + Send + 'static, bytes: &[u8]) -> Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    tokio::spawn(swallow(reader));
    loop {
        writer.write_all(bytes).await?;
    }
}

async fn swallow(mut reader: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; 65536];
    while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

/// Many at a time, again and again; what is refused is tried again.
async fn many<F: Future<Output = Result<()>> + Send + 'static>(
    address: SocketAddr,
    once: impl Fn(SocketAddr) -> F + Copy + Send + 'static,
) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        tasks.spawn(async move {
            loop {
                if once(address).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    tasks.join_next().await;
    Ok(())
}

/// From an address of its own, so that a limit for that is nobody else's.
async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0)))?;
    Ok(socket.connect(address).await?)
}

/// Handshakes without a key on one connection, as long as it lasts.
async fn improper(address: SocketAddr) -> Result<()> {
    let mut stream = connect(address).await?;
    loop {
        let lines = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        http::ask(&mut stream, &format!("GET /v1/texto HTTP/1.1\r\nHost: texto\r\n{lines}\r\n")).await?;
    }
}

/// A proper one, and away at once.
async fn leave(address: SocketAddr) -> Result<()> {
    let mut stream = connect(address).await?;
    let request = format!("GET /v1/texto HTTP/1.1\r\nHost: texto\r\n{}\r\n", http::UPGRADE);
    http::ask(&mut stream, &request).await?;
    Ok(())
}

/// Half a request on each of many connections; the oldest is given up for a new one.
async fn hold(address: SocketAddr) -> Result<()> {
    let mut held = std::collections::VecDeque::new();
    loop {
        match connect(address).await {
            Ok(mut stream) => {
                let _ = stream.write_all(b"GET /v1/texto HTTP/1.1\r\nHost: te").await;
                held.push_back(stream);
            }
            // Out of descriptors, or refused.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
        if held.len() > HELD {
            held.pop_front();
        }
    }
}
