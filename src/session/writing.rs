//! Owns what a session writes to its client: what waits in its outbox, replies, and how long that may take.

use std::time::Instant;

use tokio::time::timeout;
use uuid::Uuid;

use super::protocol::{self, ErrorCode, Reply};
use super::{Context, End, Session, until_displaced};
use crate::edge::websocket::{Message as Frame, WriteError};
use crate::outbox::{Answer, Batch, CloseOrder, Delivery, Outcome};

/// Messages that are written at a time, before the client is listened to again.
const WRITES_A_WAKE: usize = 16;

impl Session {
    /// Writes what waits, until nothing does or the session is ordered to end.
    pub(super) async fn write_outbox(&mut self) -> Option<End> {
        let Batch { answers, deliveries, first, close, .. } = self.outbox.take(self.attachment, WRITES_A_WAKE);
        self.unanswered = self.unanswered.saturating_sub(answers.len());
        match close {
            Some(CloseOrder::Drain) => {
                self.draining.get_or_insert_with(Instant::now);
            }
            Some(order) => return Some(End::ordered(order)),
            None => {}
        }
        for _ in answers.iter().filter(|answer| answer.outcome == Outcome::NotConnected) {
            self.chatters();
        }
        let wrote = !answers.is_empty() || !deliveries.is_empty();
        // A client that does not know of numbers is told none, and has what it was written.
        let (first, had) = match first {
            Some(first) if self.ticket.is_none() => (None, (first + deliveries.len() as u64).checked_sub(1)),
            first => (first, None),
        };
        if wrote {
            let client = self.client;
            let context = self.context.clone();
            let answers = answers.iter().map(|answer| encode_answer(&context, client, answer));
            let deliveries = deliveries
                .iter()
                .zip(0..)
                .map(|(delivery, at)| encode_delivery(client, delivery, first.map(|first| first + at)));
            if self.write(answers.chain(deliveries)).await.is_err() {
                return Some(self.write_failed());
            }
            self.outbox.written();
            if let Some(position) = had {
                self.outbox.had(Instant::now(), self.attachment, position);
            }
        }
        if wrote && self.draining.is_some() {
            self.outbox.nudge(); // More may have come meanwhile; with nothing left, this is the end.
        }
        // What came since the outbox was looked at is written first: its sender has been told that it is here.
        if close.is_some() && !wrote && self.unanswered == 0 {
            if let Some(end) = Box::pin(self.read_the_rest()).await {
                return Some(end);
            }
            return (self.unanswered == 0 && self.outbox.seal_settled()).then_some(End::Drained);
        }
        None
    }

    pub(super) async fn write_reply(&mut self, id: Uuid, reply: &Reply<'_>) -> Result<(), WriteError> {
        let frame = Frame::text(protocol::encode(self.client, id, reply));
        self.write(std::iter::once(frame)).await
    }

    pub(super) async fn flush(&mut self) -> Result<(), WriteError> {
        self.write(std::iter::empty()).await
    }

    /// Writes frames within the write deadline, and gives up at once when the session must end.
    pub(super) async fn write(&mut self, frames: impl Iterator<Item = Frame>) -> Result<(), WriteError> {
        let socket = self.socket.as_mut().ok_or(WriteError)?;
        let (outbox, attachment) = (&self.outbox, self.attachment);
        let write = async {
            for frame in frames {
                socket.feed(frame).await?;
            }
            socket.flush().await
        };
        let mut woken = false;
        let must_end = async {
            while !outbox.must_end(attachment) {
                outbox.changed().await;
                woken = true;
            }
        };
        let written = tokio::select! {
            biased;
            result = timeout(self.context.limits.write_timeout, write) => match result {
                Ok(result) => result,
                Err(_) => {
                    self.is_stuck = true;
                    Err(WriteError)
                }
            },
            () = must_end => Err(WriteError),
            () = until_displaced(self.displaced.as_deref()) => Err(WriteError),
        };
        if woken {
            outbox.nudge(); // The wake-ups that were used up here were about what is to be written next.
        }
        written
    }

    /// What a failed write means: a client that takes nothing, an order to end, or a broken connection.
    pub(super) fn write_failed(&self) -> End {
        if self.is_stuck {
            // Its network may be gone, and who can resume comes back over another.
            return if self.ticket.is_some() { End::Stuck } else { End::SlowReader };
        }
        match self.outbox.take(self.attachment, 0).close {
            Some(CloseOrder::Drain) | None => End::Broken,
            Some(order) => End::ordered(order),
        }
    }
}

fn encode_answer(context: &Context, client: Uuid, answer: &Answer) -> Frame {
    let metrics = &context.metrics;
    metrics.send_duration.observe(answer.took.as_secs_f64());
    let reply = match answer.outcome {
        Outcome::Handed => Reply::Ack,
        Outcome::NotConnected => {
            Reply::Error { code: ErrorCode::ENotConn, description: "nobody is connected as the receiver" }
        }
        Outcome::Busy => Reply::Error {
            code: ErrorCode::EBusy,
            description: "the receiver reads more slowly than it is written to: try again later",
        },
        Outcome::Unreachable => Reply::Error {
            code: ErrorCode::EBroker,
            description: "the message could not be handed over in time: it may be sent again",
        },
    };
    match reply {
        Reply::Error { code, .. } => {
            metrics.messages_failed.inc();
            metrics.error(code);
        }
        _ => metrics.messages_acked.inc(),
    }
    Frame::text(protocol::encode(client, answer.request, &reply))
}

fn encode_delivery(client: Uuid, delivery: &Delivery, seq: Option<u64>) -> Frame {
    let reply = Reply::Receive { sender: delivery.sender, text: &delivery.text, seq };
    Frame::text(protocol::encode(client, delivery.id, &reply))
}
