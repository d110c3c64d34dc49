//! Owns one client's connection: one task, both directions, everything bounded.
//!
//! A session ends with its connection, unless it can be resumed: then its outbox waits for the next one.

mod chatter;
mod credentials;
mod end;
mod listening;
mod place;
pub mod protocol;
mod registration;
mod timers;
mod writing;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};
use uuid::Uuid;

use self::chatter::Chatter;
pub use self::end::End;
use self::registration::{Begun, Ticket};
use crate::access::Access;
use crate::access::verifier::Pass;
use crate::broker::Broker;
use crate::config::Limits;
use crate::edge::limiter::Pacer;
use crate::edge::websocket::{Incoming, Socket};
use crate::operate::metrics::{Held, Metrics};
use crate::outbox::budget::Budget;
use crate::outbox::{Attachment, Outbox};
use crate::registry::Registry;
use crate::resume::keys::Keys;
use crate::resume::limits::ResumeLimits;
use crate::resume::windows::Windows;

/// How long the greeting waits for the subscription: whoever gets to know the id can use it at once.
const SUBSCRIPTION_PATIENCE: Duration = Duration::from_secs(1);

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
    /// Who may come in.
    pub access: Access,
}

impl Context {
    /// The metrics as they are now, in the text format of Prometheus.
    ///
    /// # Errors
    /// When a metric can't be encoded.
    pub fn render_metrics(&self) -> Result<String, prometheus::Error> {
        self.metrics.sessions.show(&self.registry.census());
        if let Some(verifier) = &self.access.verifier {
            self.metrics.access.show(&verifier.source().status());
        }
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

/// Serves a client until it or the node ends the connection. `pass` is what its handshake had for credentials.
///
/// Steps that are rare are boxed: what they need is not kept for the whole session.
pub async fn run(mut socket: Socket, context: Arc<Context>, opening: Opening, pass: Option<Pass>) -> End {
    let held = Held::new(&context.metrics.connections);
    let mut closed = Closed { label: "panicked", metrics: context.metrics.clone() };
    let greeting = (opening == Opening::Greeted).then(Uuid::new_v4);
    let begun = match opening {
        Opening::Registered(address) => Box::pin(registration::begin(&mut socket, &context, address, pass)).await,
        _ if context.access.demands_credentials() => {
            Box::pin(registration::begin_at_once(&mut socket, &context, pass, greeting)).await
        }
        _ => Ok(Begun::new(&context, greeting)),
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
    let Begun { outbox, attachment, place, ticket, displaced, pass, answer } = begun;
    let pacer = context.limits.send_rate.map(|rate| Box::new(Pacer::new(rate)));
    let mut session = Session {
        client: outbox.client(),
        pacer,
        chatter: Chatter::default(),
        outbox,
        attachment,
        ticket,
        displaced,
        pass,
        context,
        socket: Some(socket),
        unanswered: 0,
        heard: Instant::now(),
        pinged: None,
        arrived: 0,
        draining: None,
        read_once_more: false,
        has_token: false,
        is_stuck: false,
    };
    let end = session.run_inner(answer).await;
    let unwritten = place.leave(end);
    let metrics = &session.context.metrics;
    if matches!(end, End::SlowReader | End::Stuck) {
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
    displaced: Option<Arc<Notify>>,
    /// What the client came in with, where something is demanded.
    pass: Option<Box<Pass>>,
    context: Arc<Context>,
    socket: Option<Socket>,
    unanswered: usize,
    heard: Instant,
    /// When it was pinged, if nothing was heard since.
    pinged: Option<Instant>,
    /// What had arrived at the beginning of the silence that runs now.
    arrived: u64,
    draining: Option<Instant>,
    /// What was unread at the end has been read.
    read_once_more: bool,
    /// What the client says from now on, it says after it was greeted.
    has_token: bool,
    /// The client took nothing for as long as a write may take.
    is_stuck: bool,
    /// How often the client may send, if that is limited.
    pacer: Option<Box<Pacer>>,
    chatter: Chatter,
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
            && self.greet(request).await.is_err()
        {
            return self.write_failed();
        }
        loop {
            if let Some(end) = self.write_outbox().await {
                return end;
            }
            let timer = self.next_timer();
            let reads = (self.draining.is_none() || self.leaves_late()) && self.pause().is_none();
            let Some(socket) = self.socket.as_mut() else { return End::Broken };
            let event = tokio::select! {
                () = self.outbox.changed() => Event::Outbox,
                () = until_displaced(self.displaced.as_deref()) => return End::ordered(self.outbox.displacement()),
                // A draining session leaves requests unread at first: the end comes in a moment, and they are read then.
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
}

/// Cancel safe, like [`Notify::notified`]. Says so once: the session is to end then.
async fn until_displaced(displaced: Option<&Notify>) {
    match displaced {
        Some(displaced) => displaced.notified().await,
        None => std::future::pending().await,
    }
}
