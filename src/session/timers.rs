//! Owns what a session does by the clock: pings, ends by silence, by expiry and by a drain, and memory given back.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{End, Session, credentials};
use crate::edge::websocket::{Message as Frame, Socket};

/// How much later than they are due a draining session still waits for answers.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// Answers that are due for longer than this won't come in a moment: requests are read again, and refused at once.
const REFUSE_AFTER: Duration = Duration::from_millis(250);
/// What is written to a client that can resume has to be acknowledged within this.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes a second at which a message that is not complete yet is a sign of life. A message has a limit, so a client can't
/// live on one for longer than that takes: 8.5 minutes by default.
const UPLOAD_FLOOR: f64 = 256.0;
/// How long a client that seems silent is listened to once more.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// How long a session rests before it gives memory back.
const COMPACT_AFTER: Duration = Duration::from_secs(1);

impl Session {
    pub(super) fn next_timer(&self) -> Instant {
        let grown = self.socket.as_ref().is_some_and(Socket::is_grown);
        let compact = grown.then(|| self.heard + COMPACT_AFTER).filter(|at| *at > Instant::now());
        let ping = self.pinged.unwrap_or(self.heard) + self.context.limits.ping_interval;
        let drain = self.draining.map(|since| {
            let refuse = since + REFUSE_AFTER;
            if refuse > Instant::now() { refuse } else { since + self.answer_patience() }
        });
        let acknowledge = self.ticket.as_ref().and_then(|_| self.outbox.unacknowledged_since());
        let acknowledge = acknowledge.map(|since| since + ACKNOWLEDGE_WITHIN);
        let expiry = self.pass.as_ref().map(|pass| pass.ends);
        [Some(ping), compact, drain, acknowledge, self.pause(), expiry].into_iter().flatten().min().unwrap_or(ping)
    }

    pub(super) async fn on_timer(&mut self) -> Option<End> {
        let now = Instant::now();
        if credentials::are_over(self.pass.as_deref(), now) {
            return Some(End::Expired);
        }
        if self.ticket.is_some()
            && self.outbox.unacknowledged_since().is_some_and(|since| now >= since + ACKNOWLEDGE_WITHIN)
        {
            return Some(End::SlowReader);
        }
        if self.draining.is_some_and(|since| now >= since + self.answer_patience()) {
            if let Some(end) = Box::pin(self.read_the_rest()).await {
                return Some(end);
            }
            loop {
                let is_last = self.outbox.seal();
                if let Some(end) = self.write_outbox().await {
                    return Some(end);
                }
                if is_last {
                    return Some(End::Drained);
                }
            }
        }
        if self.socket.as_ref().is_some_and(Socket::is_grown) && now >= self.heard + COMPACT_AFTER {
            self.socket = Some(Box::pin(self.socket.take()?.compact()).await);
            self.outbox.shrink();
        }
        let interval = self.context.limits.ping_interval;
        if now >= self.pinged.unwrap_or(self.heard) + interval {
            if self.count_arrived() as f64 >= UPLOAD_FLOOR * interval.as_secs_f64() {
                // A pong would have to wait behind the rest of the message.
                self.heard = now;
                self.pinged = None;
                return None;
            }
            if self.pinged.is_some() {
                // What came while this session waited in a write, or this process stood still, has not been read yet.
                let unread = timeout(LAST_LOOK, self.socket.as_mut()?.next()).await;
                return match unread {
                    Ok(incoming) => self.read(incoming).await,
                    Err(_) => Some(End::Silent),
                };
            }
            let ping = Frame::Ping(bytes::Bytes::new());
            if self.write(std::iter::once(ping)).await.is_err() {
                return Some(self.write_failed());
            }
            // Written, not due: the client has its time from here, however long this node or its client stood still.
            self.pinged = Some(Instant::now());
        }
        None
    }

    /// What has arrived since this was last asked.
    pub(super) fn count_arrived(&mut self) -> u64 {
        let arrived = self.socket.as_ref().map_or(self.arrived, Socket::arrived);
        arrived.wrapping_sub(std::mem::replace(&mut self.arrived, arrived))
    }

    /// Whether it drains for so long that requests are refused.
    pub(super) fn leaves_late(&self) -> bool {
        self.draining.is_some_and(|since| since.elapsed() >= REFUSE_AFTER)
    }

    /// How long a draining session waits for its answers.
    fn answer_patience(&self) -> Duration {
        self.context.limits.send_timeout + ANSWER_PATIENCE
    }
}
