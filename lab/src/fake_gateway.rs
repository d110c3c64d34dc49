//! Owns a gateway that breaks one promise on purpose: what the checker must catch.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

/// Which promise is broken, once in ten messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// None.
    Honest,
    /// An `ack` for a message that is thrown away.
    FalseAck,
    /// A message is delivered twice.
    Repeat,
    /// A message is delivered after its successor.
    Reorder,
    /// A message is delivered, its `send` never answered.
    NoAnswer,
    /// From the first tenth message on, nothing is delivered or answered.
    Silence,
    /// The session is ended.
    Drop,
}

type Sessions = Arc<Mutex<HashMap<String, mpsc::Sender<String>>>>;

/// A running liar. Ends when dropped.
#[derive(Debug)]
pub struct FakeGateway {
    /// Where clients connect.
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

impl FakeGateway {
    /// Starts one that tells `lie`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(lie: Lie) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let sessions = Sessions::default();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut talks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sessions = sessions.clone();
                talks.spawn(async move {
                    // Whoever hangs up ends the talk.
                    let _ = talk(stream, lie, &sessions).await;
                });
            }
        });
        Ok(Self { address, _task: task })
    }
}

async fn talk(stream: TcpStream, lie: Lie, sessions: &Sessions) -> Result<()> {
    let (mut sink, mut frames) = tokio_tungstenite::accept_async(stream).await?.split();
    let own = Uuid::new_v4().to_string();
    let frame = |id: &str, kind: &str, data: Value| {
        json!({ "client_id": own, "id": id, "kind": kind, "data": data }).to_string()
    };
    let (queue, mut queued) = mpsc::channel::<String>(1000);
    sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(own.clone(), queue.clone());
    sink.send(Message::text(frame(&Uuid::new_v4().to_string(), "connection", json!({ "client_id": own })))).await?;
    let mut held = None;
    let mut count = 0;
    loop {
        let text = tokio::select! {
            Some(text) = queued.recv() => {
                sink.send(Message::text(text)).await?;
                continue;
            }
            frame = frames.next() => match frame {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(_)) => continue,
                _ => return Ok(()),
            },
        };
        let request: Value = serde_json::from_str(&text)?;
        if request["kind"] != "send" {
            continue;
        }
        let (id, receiver) = (request["id"].as_str().unwrap_or_default(), &request["data"]["receiver_id"]);
        let to =
            sessions.lock().unwrap_or_else(PoisonError::into_inner).get(receiver.as_str().unwrap_or_default()).cloned();
        let Some(to) = to else { continue };
        let message =
            frame(&Uuid::new_v4().to_string(), "receive", json!({ "sender_id": own, "text": request["data"]["text"] }));
        count += 1;
        let now = count % 10 == 0;
        let (copies, answered) = match lie {
            Lie::Honest => (1, true),
            Lie::FalseAck => (if now { 0 } else { 1 }, true),
            Lie::Repeat => (if now { 2 } else { 1 }, true),
            Lie::NoAnswer => (1, !now),
            Lie::Silence => (usize::from(count < 10), count < 10),
            Lie::Drop if now => return Ok(()),
            Lie::Drop => (1, true),
            Lie::Reorder if now => {
                held = Some(message.clone());
                (0, true)
            }
            Lie::Reorder => (1, true),
        };
        for _ in 0..copies {
            to.send(message.clone()).await?;
        }
        if let Some(late) = held.take_if(|_| copies > 0) {
            to.send(late).await?;
        }
        if answered {
            sink.send(Message::text(frame(id, "ack", Value::Null))).await?;
        }
    }
}
