//! Owns a client of version 1 in traffic: its session is its connection.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::SinkExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Interval;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::{Close, Note, Writer, lock};
use crate::checker::Event;
use crate::client::{self, Client, Incoming};

/// A message that was sent.
struct Request {
    pair: u32,
    number: usize,
    is_answered: bool,
}

/// One client: sends to those it knows, receives from whoever knows it.
pub(super) struct Party {
    writer: Writer,
    gateway: usize,
    /// What was sent in this session, by request id.
    requests: HashMap<String, Request>,
    unanswered: usize,
}

impl Party {
    pub(super) fn new(writer: Writer, gateway: usize) -> Self {
        Self { writer, gateway, requests: HashMap::new(), unanswered: 0 }
    }

    pub(super) async fn run(mut self, client: Client, pace: Option<Interval>, mut sending: watch::Receiver<bool>) {
        self.writer.pace = pace;
        let mut next = Some(client);
        while let Some(client) = next.take() {
            let Some(code) = self.session(client, &mut sending).await else { return };
            let (at, moves) = (self.writer.now(), code == 1012 && self.writer.scene.moves);
            if moves {
                self.unanswered = 0;
                for request in std::mem::take(&mut self.requests).into_values().filter(|request| !request.is_answered) {
                    self.writer.note(request.pair, request.number, &Event::CutShort);
                }
                self.writer.note(0, 0, &Event::Moved);
            } else {
                self.writer.note(0, 0, &Event::Dropped(code));
            }
            lock(&self.writer.scene.closes).push(Close { client: self.writer.index, code, at });
            if moves {
                next = Some(self.elsewhere().await);
            }
        }
        self.writer.finish();
    }

    /// Connects anew, to whichever gateway takes it.
    async fn elsewhere(&mut self) -> Client {
        loop {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..250))).await;
            self.gateway += 1;
            let gateway = self.writer.scene.gateways[self.gateway % self.writer.scene.gateways.len()];
            if let Ok(client) = Client::connect(gateway).await {
                lock(&self.writer.scene.ids)[self.writer.index] = client.id;
                return client;
            }
        }
    }

    /// Talks until the session's end, and returns its code; none when the traffic itself is over.
    async fn session(&mut self, client: Client, sending: &mut watch::Receiver<bool>) -> Option<u16> {
        let id = client.id;
        let mut socket = client.into_socket();
        loop {
            if self.writer.left == 0 || !*sending.borrow_and_update() {
                self.writer.finish();
            }
            let may_send = self.writer.left > 0 && self.unanswered < self.writer.scene.window;
            let incoming = tokio::select! {
                // What has come is read before more is sent: a client that lets it wait would send for long what crosses
                // the farewell.
                biased;
                changed = sending.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return None,
                },
                incoming = client::next(&mut socket) => Some(incoming),
                () = self.writer.due(), if may_send => None,
            };
            match incoming {
                Some(Incoming::Frame(frame)) => self.take(&frame),
                Some(Incoming::Closed(code)) => return Some(code),
                None => {
                    let frame = self.compose(id);
                    if socket.send(Message::text(frame)).await.is_err() {
                        // Why is in what came before: the close.
                        loop {
                            match client::next(&mut socket).await {
                                Incoming::Frame(frame) => self.take(&frame),
                                Incoming::Closed(code) => return Some(code),
                            }
                        }
                    }
                }
            }
        }
    }

    /// The next message.
    fn compose(&mut self, id: Uuid) -> String {
        let Note { pair, number, receiver, text } = self.writer.next();
        let request = Uuid::new_v4();
        self.requests.insert(request.to_string(), Request { pair, number, is_answered: false });
        self.unanswered += 1;
        client::send_frame(id, request, receiver, &text)
    }

    fn take(&mut self, frame: &Value) {
        if let Some((request, answer)) = client::answer_of(frame) {
            let Some(Request { pair, number, is_answered }) = self.requests.get_mut(request) else { return };
            self.unanswered -= usize::from(!std::mem::replace(is_answered, true));
            let (pair, number) = (*pair, *number);
            self.writer.note(pair, number, &Event::Answered(answer));
        } else if frame["kind"] == "receive" {
            self.writer.read(frame["data"]["text"].as_str().unwrap_or_default());
        }
    }
}
