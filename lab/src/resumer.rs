//! Owns one client whose session can be resumed, frame by frame: it does what it is told, and nothing by itself.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::client::{self, Incoming, PATIENCE, Socket};
use crate::process::until;

/// A connection that began with a registration.
#[derive(Debug)]
pub struct Resumer {
    /// The connection.
    pub socket: Socket,
    /// The id that the server knows it by.
    pub id: Uuid,
    /// By which the session is resumed.
    pub token: String,
    /// Whether nothing is missing, by the server's word.
    pub resumed: bool,
    /// Whether another node has what this one has, by its word.
    pub standby: bool,
}

/// The next frame.
///
/// # Errors
/// When none comes, or the server closes.
pub async fn next(socket: &mut Socket) -> Result<Value> {
    match tokio::time::timeout(PATIENCE, client::next(socket)).await.context("nothing came")? {
        Incoming::Frame(frame) => Ok(frame),
        Incoming::Closed(code) => bail!("closed with {code}"),
    }
}

/// Waits for the server's close code; 1006 if there is none.
///
/// # Errors
/// When it does not close.
pub async fn closed(socket: &mut Socket) -> Result<u16> {
    let close = async {
        loop {
            if let Incoming::Closed(code) = client::next(socket).await {
                return code;
            }
        }
    };
    tokio::time::timeout(PATIENCE, close).await.context("it was not closed")
}

/// Writes a frame of this kind, and returns its id.
///
/// # Errors
/// When the connection is broken.
pub async fn write(socket: &mut Socket, kind: &str, data: Value) -> Result<Uuid> {
    let id = Uuid::new_v4();
    let frame = json!({ "id": id, "kind": kind, "data": data });
    socket.send(Message::text(frame.to_string())).await?;
    Ok(id)
}

/// Connects, and asks for a session by what `data` says. Returns the answer as well: a frame, or a close code.
///
/// # Errors
/// When neither comes.
pub async fn ask(address: SocketAddr, data: Value) -> Result<(Socket, Incoming)> {
    let mut socket = client::open(address, "/v1/texto?register=1").await?;
    let answer = register(&mut socket, data).await?;
    Ok((socket, answer))
}

async fn register(socket: &mut Socket, data: Value) -> Result<Incoming> {
    let request = write(socket, "registration", data).await?.to_string();
    let answer = tokio::time::timeout(PATIENCE, client::next(socket)).await.context("nothing came")?;
    if let Incoming::Frame(frame) = &answer {
        ensure!(frame["kind"] == "connection" && frame["id"] == request.as_str(), "{frame}");
    }
    Ok(answer)
}

impl Resumer {
    /// Begins a session.
    ///
    /// # Errors
    /// When there is none.
    pub async fn begin(address: SocketAddr) -> Result<Self> {
        Self::register(address, json!({ "resumable": true })).await
    }

    /// Begins one that has a standby, as soon as there can be one.
    ///
    /// # Errors
    /// When there is none.
    pub async fn begin_with_standby(address: SocketAddr) -> Result<Self> {
        let begun = async || Self::begin(address).await.ok().filter(|begun| begun.standby);
        until("there is a standby", PATIENCE, begun).await
    }

    /// Resumes the session of `token`, of which everything up to `seq` is there.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn resume(address: SocketAddr, token: &str, seq: u64) -> Result<Self> {
        Self::register(address, json!({ "resume": token, "seq": seq })).await
    }

    async fn register(address: SocketAddr, data: Value) -> Result<Self> {
        let (socket, answer) = ask(address, data).await?;
        let Incoming::Frame(answer) = answer else { bail!("{answer:?}") };
        let data = &answer["data"];
        Ok(Self {
            socket,
            id: Uuid::try_parse(data["client_id"].as_str().with_context(|| answer.to_string())?)?,
            token: data["resume"]["token"].as_str().with_context(|| answer.to_string())?.to_owned(),
            resumed: data["resumed"] == true,
            standby: data["resume"]["standby"] == true,
        })
    }

    /// The next message: its number and text.
    ///
    /// # Errors
    /// When something else comes, or nothing.
    pub async fn receive(&mut self) -> Result<(u64, String)> {
        let frame = next(&mut self.socket).await?;
        ensure!(frame["kind"] == "receive", "{frame}");
        let (seq, text) = (frame["data"]["seq"].as_u64(), frame["data"]["text"].as_str());
        Ok((seq.with_context(|| frame.to_string())?, text.with_context(|| frame.to_string())?.to_owned()))
    }

    /// Says that everything up to `seq` is here.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn had(&mut self, seq: u64) -> Result<()> {
        write(&mut self.socket, "ack", json!({ "seq": seq })).await.map(drop)
    }

    /// Sends a text, and does not wait for the answer.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn post(&mut self, request: Uuid, receiver: Uuid, text: &str) -> Result<()> {
        let frame = client::send_frame(self.id, request, receiver, text);
        Ok(self.socket.send(Message::text(frame)).await?)
    }

    /// Waits until the server has read all that was written to it: older tokens are of no use then.
    ///
    /// # Errors
    /// When it does not answer, or says that something is missing since the connection began.
    pub async fn settle(&mut self) -> Result<()> {
        let Incoming::Frame(answer) = register(&mut self.socket, Value::Null).await? else { bail!("closed") };
        ensure!(answer["data"]["resumed"] == true, "{answer}");
        self.token = answer["data"]["resume"]["token"].as_str().with_context(|| answer.to_string())?.to_owned();
        Ok(())
    }

    /// The connection breaks: the server is told nothing.
    pub fn breaks(self) -> (Uuid, String) {
        (self.id, self.token)
    }
}
