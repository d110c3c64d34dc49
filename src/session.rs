//! Owns one client's connection: one task, both directions, everything bounded.
//!
//! A session ends with its connection, unless it can be resumed: then its outbox waits for the next one.

mod place;
mod registration;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::registration::{Begun, Ticket};
use crate::broker::{Broker, Message};
use crate::budget::Budget;
use crate::config::Limits;
use crate::metrics::{Held, Metrics};
use crate::outbox::{self, Answer, Attachment, Batch, CloseOrder, Delivery, Outbox, Outcome, ReplyTo};
use crate::protocol::{self, ErrorCode, Reply, Request};
use crate::registry::Registry;
use crate::resume_limits::{Limit, ResumeLimits};
use crate::session_keys::Keys;
use crate::websocket::{Incoming, Message as Frame, Socket, WriteError};
use crate::windows::Windows;

/// How long the greeting waits for the subscription: whoever gets to know the id can use it at once.
const SUBSCRIPTION_PATIENCE: Duration = Duration::from_secs(1);
/// How much later than they are due a draining session still waits for answers.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// Answers that are due for longer than this won't come in a moment: requests are read again, and refused at once.
const REFUSE_AFTER: Duration = Duration::from_millis(250);
/// The gateway's own close codes: no answer to a ping; the session goes on elsewhere; no registration.
const SILENT: u16 = 4000;
const TAKEN_OVER: u16 = 4001;
const UNREGISTERED: u16 = 4002;
/// What a binary frame is told.
const BINARY: &str = "a frame must be text: binary ones are not part of this protocol";
/// What is written to a client that can resume has to be acknowledged within this.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes a second at which a message that is not complete yet is a sign of life. A message has a limit, so a client can't
/// live on one for longer than that takes: 8.5 minutes by default.
const UPLOAD_FLOOR: f64 = 256.0;
/// How long a client that seems silent is listened to once more.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// How long a session rests before it gives memory back.
const COMPACT_AFTER: Duration = Duration::from_secs(1);
/// Messages that are written at a time, before the client is listened to again.
const WRITES_A_WAKE: usize = 16;
/// Frames that are read at a time, before anything is written.
const READS_A_WAKE: usize = 16;

/// What all sessions of a node share.
#[derive(Debug)]
pub struct Context {
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Who carries messages.
    pub broker: Arc<dyn Broker>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is allowed.
    pub limits: Limits,
    /// What all outboxes may hold.
    pub budget: Arc<Budget>,
    /// The keys of the tokens by which sessions are resumed.
    pub keys: Keys,
    /// The sessions without a connection.
    pub windows: Arc<Windows>,
    /// How often sessions may be resumed.
    pub resume_limits: ResumeLimits,
}

impl Context {
    /// The metrics as they are now, in the text format of Prometheus.
    ///
    /// # Errors
    /// When a metric can't be encoded.
    pub fn render_metrics(&self) -> Result<String, prometheus::Error> {
        self.metrics.sessions.show(&self.registry.census());
        self.metrics.render()
    }
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A new session, and its client is told so.
    Greeted,
    /// A new session, and its client is told nothing.
    Silent,
    /// The client, who is at this address, says first what it wants.
    Registered(Option<IpAddr>),
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closed, with this code if it gave one.
    Closed(Option<u16>),
    /// The connection broke.
    Broken,
    /// The client broke RFC 6455 or the frame limit: the close code, and the reason.
    Violation(u16, &'static str),
    /// Nothing came back to a ping.
    Silent,
    /// The client took its bytes too slowly.
    SlowReader,
    /// The node drains.
    Drained,
    /// The node stops.
    Stopped,
    /// The session goes on over a newer connection.
    TakenOver,
    /// The session goes on at another node.
    Moved,
    /// The client did not say what it wants.
    Unregistered,
    /// Sessions are resumed too often.
    Limited(Limit),
}

impl End {
    fn label(self) -> &'static str {
        match self {
            Self::Closed(_) => "closed",
            Self::Broken => "broken",
            Self::Violation(..) => "violation",
            Self::Silent => "silent",
            Self::SlowReader => "slow_reader",
            Self::Drained => "drained",
            Self::Stopped => "stopped",
            Self::TakenOver => "taken_over",
            Self::Moved => "moved",
            Self::Unregistered => "unregistered",
            Self::Limited(_) => "limited",
        }
    }

    /// What the client is told, as a close code and a reason.
    fn farewell(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Closed(_) | Self::Broken => None,
            Self::Violation(code, reason) => Some((code, reason)),
            Self::Silent => Some((SILENT, "no answer to a ping")),
            Self::SlowReader => Some((1013, "messages were not read fast enough")),
            Self::Drained => Some((1012, "this node is draining: connect again")),
            Self::Stopped => Some((1001, "this node stops")),
            Self::TakenOver => Some((TAKEN_OVER, "this session goes on over a newer connection: do not reconnect")),
            Self::Moved => Some((1012, "this session has moved: connect again")),
            Self::Unregistered => Some((UNREGISTERED, "no registration in time")),
            // A new session would cost as much as the one that is not resumed, and take the client's id away.
            Self::Limited(_) => {
                Some((1013, "sessions are resumed too often: connect again later, with the same token"))
            }
        }
    }

    /// What an order to close means.
    fn ordered(order: CloseOrder) -> Self {
        match order {
            CloseOrder::Drain => Self::Drained,
            CloseOrder::Stop => Self::Stopped,
            CloseOrder::SlowReader => Self::SlowReader,
            CloseOrder::TakenOver => Self::TakenOver,
            CloseOrder::Moved => Self::Moved,
        }
    }
}

/// Serves a client until it or the node ends the connection.
///
/// Steps that are rare are boxed: what they need is not kept for the whole session.
pub async fn run(mut socket: Socket, context: Arc<Context>, opening: Opening) -> End {
    let held = Held::new(&context.metrics.connections);
    let mut closed = Closed { label: "panicked", metrics: context.metrics.clone() };
    let begun = match opening {
        Opening::Greeted => Ok(Begun::new(&context, Some(Uuid::new_v4()))),
        Opening::Silent => Ok(Begun::new(&context, None)),
        Opening::Registered(address) => Box::pin(registration::begin(&mut socket, &context, address)).await,
    };
    let (end, socket) = match begun {
        Ok(begun) => serve(begun, socket, context).await,
        Err(end) => (end, Some(socket)),
    };
    // Nobody reaches the client from here on, and it counts as gone, while it reads the close frame.
    drop(held);
    closed.label = end.label();
    drop(closed);
    match (socket, end.farewell()) {
        (Some(socket), Some((code, reason))) => Box::pin(socket.close(code, reason)).await,
        (Some(socket), None) if matches!(end, End::Closed(_)) => Box::pin(socket.answer_close()).await,
        _ => {}
    }
    end
}

/// Serves a session that has begun. Returns its socket as well, if that is left.
async fn serve(begun: Begun, socket: Socket, context: Arc<Context>) -> (End, Option<Socket>) {
    let Begun { outbox, attachment, place, ticket, displaced, answer } = begun;
    let mut session = Session {
        client: outbox.client(),
        outbox,
        attachment,
        ticket,
        displaced,
        context,
        socket: Some(socket),
        unanswered: 0,
        heard: Instant::now(),
        pinged: None,
        arrived: 0,
        draining: None,
    };
    let end = session.run_inner(answer).await;
    let unwritten = place.leave(end);
    let metrics = &session.context.metrics;
    if end == End::SlowReader {
        metrics.slow_readers.inc();
        metrics.outbox_dropped.inc_by(unwritten as u64);
    } else if session.ticket.is_none() {
        metrics.sessions.abandoned_by_connection.inc_by(unwritten as u64);
    }
    (end, session.socket.take())
}

/// Counts a session that ended, also when that was a panic.
struct Closed {
    label: &'static str,
    metrics: Arc<Metrics>,
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.metrics.sessions_closed.with_label_values(&[self.label]).inc();
    }
}

struct Session {
    client: Uuid,
    outbox: Arc<Outbox>,
    attachment: Attachment,
    /// How the client resumes it, if it can.
    ticket: Option<Box<Ticket>>,
    displaced: Option<CancellationToken>,
    context: Arc<Context>,
    socket: Option<Socket>,
    unanswered: usize,
    heard: Instant,
    /// When it was pinged, if nothing was heard since.
    pinged: Option<Instant>,
    /// What had arrived at the beginning of the silence that runs now.
    arrived: u64,
    draining: Option<Instant>,
}

enum Event {
    Incoming(Incoming),
    Outbox,
    Timer,
}

impl Session {
    /// `answer` is the request that the greeting answers, if there is to be one.
    async fn run_inner(&mut self, answer: Option<Uuid>) -> End {
        let subscribed = async {
            while !self.outbox.is_ready() {
                self.outbox.changed().await;
            }
        };
        // Without Redis there is no subscription: the client is greeted all the same, and told by errors.
        let _ = timeout(SUBSCRIPTION_PATIENCE, subscribed).await;
        self.outbox.nudge(); // What woke it may be about more than that.
        if let Some(request) = answer
            && self.introduce(request).await.is_err()
        {
            return self.write_failed();
        }
        loop {
            if let Some(end) = self.write_outbox().await {
                return end;
            }
            let timer = self.next_timer();
            let reads = self.draining.is_none_or(|since| since.elapsed() >= REFUSE_AFTER);
            let Some(socket) = self.socket.as_mut() else { return End::Broken };
            let event = tokio::select! {
                () = self.outbox.changed() => Event::Outbox,
                () = until_cancelled(&self.displaced) => return End::TakenOver,
                // A draining session takes no more requests; they stay unread, for the end comes in a moment.
                incoming = socket.next(), if reads => Event::Incoming(incoming),
                () = sleep_until(timer.into()) => Event::Timer,
            };
            let end = match event {
                Event::Outbox => None,
                Event::Incoming(incoming) => self.read(incoming).await,
                Event::Timer => self.on_timer().await,
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn next_timer(&self) -> Instant {
        let grown = self.socket.as_ref().is_some_and(Socket::is_grown);
        let compact = grown.then(|| self.heard + COMPACT_AFTER).filter(|at| *at > Instant::now());
        let ping = self.pinged.unwrap_or(self.heard) + self.context.limits.ping_interval;
        let drain = self.draining.map(|since| {
            let refuse = since + REFUSE_AFTER;
            if refuse > Instant::now() { refuse } else { since + self.answer_patience() }
        });
        let acknowledge = self.ticket.as_ref().and_then(|_| self.outbox.unacknowledged_since());
        let acknowledge = acknowledge.map(|since| since + ACKNOWLEDGE_WITHIN);
        [Some(ping), compact, drain, acknowledge].into_iter().flatten().min().unwrap_or(ping)
    }

    /// How long a draining session waits for its answers.
    fn answer_patience(&self) -> Duration {
        self.context.limits.send_timeout + ANSWER_PATIENCE
    }

    /// Handles a frame, and those that are already there behind it, up to a bound.
    async fn read(&mut self, first: Incoming) -> Option<End> {
        use futures_util::FutureExt;
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
                Incoming::Alive => {}
                Incoming::Closed(code) => return Some(End::Closed(code)),
                Incoming::Broken => return Some(End::Broken),
                Incoming::Violation(code, reason) => return Some(End::Violation(code, reason)),
            }
            if read == READS_A_WAKE {
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
        if self.ticket.is_some() {
            self.outbox.prove(self.attachment);
        }
        match protocol::decode(text, self.client, self.context.limits.max_text_bytes) {
            Ok(Request::Notice) => Ok(()),
            Ok(Request::Had(seq)) => {
                self.outbox.had(Instant::now(), self.attachment, seq);
                Ok(())
            }
            Ok(Request::Registration { id, .. }) => self.introduce(id).await,
            Ok(Request::Send { id, .. }) if self.draining.is_some() => {
                let reason = "this node is about to close this connection: send it again by another";
                self.refuse(Some(id), ErrorCode::EBroker, reason).await
            }
            Ok(Request::Send { id, .. }) if self.unanswered >= self.context.limits.max_unanswered => {
                let most = self.context.limits.max_unanswered;
                let reason = format!("{most} sends wait for their answer, which is the limit: wait for some");
                self.refuse(Some(id), ErrorCode::EAgain, &reason).await
            }
            Ok(Request::Send { id, receiver, text }) => match self.outbox.begin(id) {
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
            },
            Err(rejection) => self.refuse(rejection.id, rejection.code, &rejection.description).await,
        }
    }

    /// Says who this session is.
    async fn introduce(&mut self, request: Uuid) -> Result<(), WriteError> {
        match &mut self.ticket {
            None => self.write_reply(request, &Reply::Connection).await,
            Some(ticket) => {
                let introduction = ticket.introduce(&self.context, &self.outbox);
                self.write_reply(request, &Reply::Resumable(&introduction)).await
            }
        }
    }

    async fn on_timer(&mut self) -> Option<End> {
        let now = Instant::now();
        if self.ticket.is_some()
            && self.outbox.unacknowledged_since().is_some_and(|since| now >= since + ACKNOWLEDGE_WITHIN)
        {
            return Some(End::SlowReader);
        }
        if self.draining.is_some_and(|since| now >= since + self.answer_patience()) {
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
            let (socket, incoming) = Box::pin(self.socket.take()?.compact()).await;
            self.socket = Some(socket);
            self.outbox.shrink();
            if let Some(incoming) = incoming {
                return self.read(incoming).await;
            }
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
    fn count_arrived(&mut self) -> u64 {
        let arrived = self.socket.as_ref().map_or(self.arrived, Socket::arrived);
        arrived.wrapping_sub(std::mem::replace(&mut self.arrived, arrived))
    }

    /// Writes what waits, until nothing does or the session is ordered to end.
    async fn write_outbox(&mut self) -> Option<End> {
        let Batch { answers, deliveries, first, close, .. } = self.outbox.take(self.attachment, WRITES_A_WAKE);
        self.unanswered = self.unanswered.saturating_sub(answers.len());
        match close {
            Some(CloseOrder::Drain) => {
                self.draining.get_or_insert_with(Instant::now);
            }
            Some(order) => return Some(End::ordered(order)),
            None => {}
        }
        let wrote = !answers.is_empty() || !deliveries.is_empty();
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
        }
        if wrote && self.draining.is_some() {
            self.outbox.nudge(); // More may have come meanwhile; with nothing left, this is the end.
        }
        // What came since the outbox was looked at is written first: its sender has been told that it is here.
        (close.is_some() && !wrote && self.unanswered == 0 && self.outbox.seal()).then_some(End::Drained)
    }

    async fn refuse(&mut self, id: Option<Uuid>, code: ErrorCode, description: &str) -> Result<(), WriteError> {
        self.context.metrics.error(code);
        self.write_reply(id.unwrap_or_else(Uuid::new_v4), &Reply::Error { code, description }).await
    }

    async fn write_reply(&mut self, id: Uuid, reply: &Reply<'_>) -> Result<(), WriteError> {
        let frame = Frame::text(protocol::encode(self.client, id, reply));
        self.write(std::iter::once(frame)).await
    }

    async fn flush(&mut self) -> Result<(), WriteError> {
        self.write(std::iter::empty()).await
    }

    /// Writes frames within the write deadline, and gives up at once when the session must end.
    async fn write(&mut self, frames: impl Iterator<Item = Frame>) -> Result<(), WriteError> {
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
                    outbox.close(CloseOrder::SlowReader);
                    Err(WriteError)
                }
            },
            () = must_end => Err(WriteError),
            () = until_cancelled(&self.displaced) => Err(WriteError),
        };
        if woken {
            outbox.nudge(); // The wake-ups that were used up here were about what is to be written next.
        }
        written
    }

    /// What a failed write means: an order to end, or a broken connection.
    fn write_failed(&self) -> End {
        match self.outbox.take(self.attachment, 0).close {
            Some(CloseOrder::Drain) | None => End::Broken,
            Some(order) => End::ordered(order),
        }
    }
}

async fn until_cancelled(token: &Option<CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
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
