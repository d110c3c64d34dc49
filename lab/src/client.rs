//! Owns one client of the public protocol, version 1.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use uuid::Uuid;

/// The WebSocket under a client.
pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a `send` was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The receiver's node has it.
    Ack,
    /// It was refused, with a code.
    Error(String),
}

/// What arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A frame.
    Frame(Value),
    /// The server closed, with this code (1006: without one).
    Closed(u16),
}

/// How long anything may take before a client complains.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The usual one is filled with zeros, 128 KiB of them for each connection, which costs more than all else a client does.
const READ_BUFFER: usize = 4096;

/// A connected client.
#[derive(Debug)]
pub struct Client {
    /// The id that the server gave it.
    pub id: Uuid,
    socket: Socket,
    waiting: VecDeque<Value>,
}

impl Client {
    /// Connects and waits for the greeting.
    ///
    /// # Errors
    /// When the server refuses or does not greet in time.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let mut socket = open(address, "/v1/texto").await?;
        let greeting = match tokio::time::timeout(PATIENCE, next(&mut socket)).await? {
            Incoming::Frame(frame) => frame,
            Incoming::Closed(code) => bail!("closed with {code} instead of a greeting"),
        };
        let id = greeting["data"]["client_id"].as_str().context("no client_id in the greeting")?;
        Ok(Self { id: Uuid::try_parse(id)?, socket, waiting: VecDeque::new() })
    }

    /// Sends a text and waits for its answer; what is received meanwhile waits for [`Self::receive`].
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn send(&mut self, receiver: Uuid, text: &str) -> Result<Answer> {
        let request = self.post(receiver, text).await?;
        self.answer(request).await
    }

    /// Sends a text and does not wait. Returns the request's id.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn post(&mut self, receiver: Uuid, text: &str) -> Result<Uuid> {
        let request = Uuid::new_v4();
        self.write(&send_frame(self.id, request, receiver, text)).await?;
        Ok(request)
    }

    /// Waits for the answer to `request`.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn answer(&mut self, request: Uuid) -> Result<Answer> {
        let request = request.to_string();
        let waiting = |frame: &Value| answer_of(frame).is_some_and(|(id, _)| id == request);
        if let Some(frame) = self.waiting.iter().position(waiting).and_then(|at| self.waiting.remove(at)) {
            return answer_of(&frame).map(|(_, answer)| answer).context("it was an answer");
        }
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let incoming = tokio::time::timeout_at(end, next(&mut self.socket)).await;
            let frame = match incoming.context("a send was not answered")? {
                Incoming::Frame(frame) => frame,
                Incoming::Closed(code) => bail!("closed with {code} instead of an answer"),
            };
            match answer_of(&frame) {
                Some((id, answer)) if id == request => return Ok(answer),
                _ => self.waiting.push_back(frame),
            }
        }
    }

    /// Waits for the next `receive`: who sent it and what.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn receive(&mut self) -> Result<(Uuid, String)> {
        loop {
            match self.frame().await? {
                Incoming::Frame(frame) if frame["kind"] == "receive" => {
                    let sender = Uuid::try_parse(frame["data"]["sender_id"].as_str().context("no sender")?)?;
                    return Ok((sender, frame["data"]["text"].as_str().context("no text")?.to_owned()));
                }
                Incoming::Frame(_) => {}
                Incoming::Closed(code) => bail!("closed with {code} instead of a message"),
            }
        }
    }

    /// The next frame, or the close.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn frame(&mut self) -> Result<Incoming> {
        if let Some(frame) = self.waiting.pop_front() {
            return Ok(Incoming::Frame(frame));
        }
        tokio::time::timeout(PATIENCE, next(&mut self.socket)).await.context("nothing came")
    }

    /// Waits for the close and gives its code; frames before it are passed over.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub async fn closed(&mut self, limit: Duration) -> Result<u16> {
        let close = async {
            loop {
                if let Incoming::Closed(code) = next(&mut self.socket).await {
                    return code;
                }
            }
        };
        tokio::time::timeout(limit, close).await.context("the session was not closed")
    }

    /// Writes a text frame as it is.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn write(&mut self, text: &str) -> Result<()> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// The WebSocket, for whatever a polite client does not do.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Gives up the politeness altogether.
    pub fn into_socket(self) -> Socket {
        self.socket
    }
}

/// Opens a WebSocket.
///
/// # Errors
/// When it is refused, or takes too long.
pub async fn open(address: SocketAddr, path: &str) -> Result<Socket> {
    // As browsers do it: a frame does not wait until the one before it has arrived.
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
    let connect = tokio_tungstenite::connect_async_with_config(format!("ws://{address}{path}"), Some(config), true);
    let (socket, _) = tokio::time::timeout(PATIENCE, connect).await??;
    Ok(socket)
}

/// Waits for a frame of the protocol, or the end. Cancel safe.
pub async fn next(socket: &mut Socket) -> Incoming {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(frame) => return Incoming::Frame(frame),
                Err(_) => return Incoming::Closed(1002),
            },
            Some(Ok(Message::Close(frame))) => return Incoming::Closed(frame.map_or(1005, |frame| frame.code.into())),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Incoming::Closed(1006),
        }
    }
}

/// A `send` frame.
pub fn send_frame(client: Uuid, request: Uuid, receiver: Uuid, text: &str) -> String {
    json!({ "client_id": client, "id": request, "kind": "send", "data": { "receiver_id": receiver, "text": text } })
        .to_string()
}

/// The request's id and the answer, if the frame is one.
pub fn answer_of(frame: &Value) -> Option<(&str, Answer)> {
    let answer = match frame["kind"].as_str()? {
        "ack" => Answer::Ack,
        "error" => Answer::Error(frame["data"]["code"].as_str()?.to_owned()),
        _ => return None,
    };
    Some((frame["id"].as_str()?, answer))
}
