//! Owns what a session makes of the frames of its client, and how much it reads before others have their turn.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use uuid::Uuid;

use super::protocol::{self, ErrorCode, Reply, Request};
use super::{End, Session, credentials};
use crate::broker::Message;
use crate::edge::websocket::{Incoming, Message as Frame, WriteError};
use crate::outbox::{self, ReplyTo};

/// So long, at most, what is unread at the end is read.
const REST_WITHIN: Duration = Duration::from_millis(250);
/// What a binary frame is told.
pub(super) const BINARY: &str = "a frame must be text: binary ones are not part of this protocol";
/// Frames that are read at a time, before anything is written.
const READS_A_WAKE: usize = 16;

impl Session {
    /// Handles a frame, and those that are already there behind it, up to a bound.
    pub(super) async fn read(&mut self, first: Incoming) -> Option<End> {
        let mut incoming = first;
        for read in 1.. {
            self.heard = Instant::now();
            self.pinged = None;
            self.count_arrived();
            match incoming {
                Incoming::Text(text) => {
                    if self.serve(&text).await.is_err() {
                        return Some(self.write_failed());
                    }
                }
                Incoming::Binary(_) => {
                    if self.refuse(None, ErrorCode::ESyntax, BINARY).await.is_err() {
                        return Some(self.write_failed());
                    }
                }
                Incoming::Pong(payload) if self.ticket.is_some() && payload == self.token_mark() => {
                    self.has_token = true
                }
                Incoming::Ping | Incoming::Pong(_) => self.chatters(),
                Incoming::Closed(code) => return Some(End::Closed(code)),
                Incoming::Broken => return Some(End::Broken),
                Incoming::Violation(code, reason) => return Some(End::Violation(code, reason)),
            }
            if self.pause().is_some() {
                break;
            }
            if read == READS_A_WAKE {
                // There may be more, and others wait for their turn.
                tokio::task::yield_now().await;
                break;
            }
            match self.socket.as_mut().and_then(|socket| socket.next().now_or_never()) {
                Some(next) => incoming = next,
                None => break,
            }
        }
        // Replies and pongs that are queued go out now.
        self.flush().await.err().map(|_| self.write_failed())
    }

    async fn serve(&mut self, text: &str) -> Result<(), WriteError> {
        if self.has_token {
            self.outbox.prove(self.attachment);
        }
        match protocol::decode(text, self.client, self.context.limits.max_text_bytes) {
            Ok(Request::Notice) => Ok(()),
            Ok(Request::Had(seq)) => {
                self.outbox.had(Instant::now(), self.attachment, seq);
                Ok(())
            }
            Ok(Request::Registration { id, wish }) => {
                self.chatters();
                match wish.token.as_deref().zip(self.pass.as_deref()) {
                    None => self.introduce(id).await,
                    Some((token, pass)) => match Box::pin(credentials::prolonged(&self.context, pass, token)).await {
                        Ok(newer) => {
                            self.pass = Some(Box::new(newer));
                            self.introduce(id).await
                        }
                        Err(refusal) => self.refuse(Some(id), ErrorCode::EAuth, &refusal.to_string()).await,
                    },
                }
            }
            Ok(Request::Send { id, .. }) if self.leaves_late() => {
                let reason = "this node is about to close this connection: send it again by another";
                self.refuse(Some(id), ErrorCode::EBroker, reason).await
            }
            Ok(Request::Send { id, .. }) if self.unanswered >= self.context.limits.max_unanswered => {
                let most = self.context.limits.max_unanswered;
                let reason = format!("{most} sends wait for their answer, which is the limit: wait for some");
                self.context.metrics.limited.unanswered.inc();
                self.refuse(Some(id), ErrorCode::EAgain, &reason).await
            }
            Ok(Request::Send { id, receiver, text }) => match self.admits_send() {
                Err(wait) => {
                    let reason = format!("this session sends too fast: try again in {} ms", wait.as_millis() + 1);
                    self.context.metrics.limited.send_rate.inc();
                    self.refuse(Some(id), ErrorCode::EAgain, &reason).await
                }
                Ok(()) => self.send(id, receiver, text).await,
            },
            Err(rejection) => self.refuse(rejection.id, rejection.code, &rejection.description).await,
        }
    }

    /// Whether a request is a new one. It always is of a client that does not know that its session can be resumed.
    fn begin(&self, request: Uuid) -> outbox::Begun {
        if self.ticket.is_some() {
            return self.outbox.begin(request);
        }
        self.outbox.begin_plain(request);
        outbox::Begun::New
    }

    fn admits_send(&self) -> Result<(), Duration> {
        self.pacer.as_ref().map_or(Ok(()), |pacer| pacer.admits())
    }

    async fn send(&mut self, id: Uuid, receiver: Uuid, text: String) -> Result<(), WriteError> {
        match self.begin(id) {
            outbox::Begun::Acknowledged => self.write_reply(id, &Reply::Ack).await,
            outbox::Begun::UnderWay => {
                self.unanswered += 1;
                Ok(())
            }
            outbox::Begun::New => {
                self.unanswered += 1;
                let reply = ReplyTo::new(self.outbox.clone(), id);
                let sender = self.client;
                let message_id =
                    if self.ticket.is_some() { Message::repeatable_id(sender, id) } else { Uuid::new_v4() };
                self.context.broker.publish(Message { id: message_id, sender, receiver, text }, reply);
                Ok(())
            }
        }
    }

    /// Reads what a client had sent before it could know that this is the end: it shall not go without an answer. What is
    /// on its way once this has been done in time, crosses the farewell.
    pub(super) async fn read_the_rest(&mut self) -> Option<End> {
        let is_late = self.leaves_late();
        if !is_late && std::mem::replace(&mut self.read_once_more, true) {
            return None; // Answers would bring new requests, and the end would never come.
        }
        let until = Instant::now() + REST_WITHIN;
        while Instant::now() < until {
            tokio::task::yield_now().await; // Its budget spent, a task would see nothing there.
            let incoming = self.socket.as_mut().and_then(|socket| socket.next().now_or_never())?;
            if let Some(end) = self.read(incoming).await {
                return Some(end);
            }
        }
        None
    }

    /// Until when the client is not listened to, if it is not now. What it sends to a node that leaves is read to the end.
    pub(super) fn pause(&self) -> Option<Instant> {
        self.chatter.until().filter(|until| self.draining.is_none() && *until > Instant::now())
    }

    /// The client said something that leads nowhere.
    pub(super) fn chatters(&mut self) {
        // What it sends to a node that leaves is refused, and that is not its fault.
        if self.draining.is_none() && self.chatter.note(Instant::now()) {
            self.context.metrics.limited.chatter.inc();
        }
    }

    /// Says for the first time who this session is. That may bring a newer token, with a ping before it: what comes behind
    /// the pong was not written before there was that token.
    pub(super) async fn greet(&mut self, request: Uuid) -> Result<(), WriteError> {
        let ping = self.ticket.is_some().then(|| Frame::Ping(self.token_mark()));
        let introduction = self.introduction(request);
        self.write(ping.into_iter().chain([introduction])).await
    }

    /// What tells the ping before the token from others.
    fn token_mark(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.attachment.to_be_bytes())
    }

    /// Who this session is.
    fn introduction(&mut self, request: Uuid) -> Frame {
        let pass = self.pass.as_deref();
        let text = match &mut self.ticket {
            None => protocol::encode(self.client, request, &Reply::Connection(credentials::expiry(pass))),
            Some(ticket) => {
                let introduction = ticket.introduce(&self.context, &self.outbox, pass);
                protocol::encode(self.client, request, &Reply::Resumable(&introduction))
            }
        };
        Frame::text(text)
    }

    async fn introduce(&mut self, request: Uuid) -> Result<(), WriteError> {
        let introduction = self.introduction(request);
        self.write(std::iter::once(introduction)).await
    }

    async fn refuse(&mut self, id: Option<Uuid>, code: ErrorCode, description: &str) -> Result<(), WriteError> {
        self.context.metrics.error(code);
        self.chatters();
        self.write_reply(id.unwrap_or_else(Uuid::new_v4), &Reply::Error { code, description }).await
    }
}
