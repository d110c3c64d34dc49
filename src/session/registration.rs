//! Owns how a connection begins whose client says first what it wants: a new session, one that can be resumed, or one
//! that is resumed now.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use super::place::Place;
use super::{Context, End};
use crate::broker::Resumption;
use crate::outbox::{Attachment, Outbox};
use crate::protocol::{self, ErrorCode, Reply, Request, Resumable, Resume, Wish};
use crate::resume_limits::Limit;
use crate::token::Claims;
use crate::websocket::{Incoming, Message as Frame, Socket};

/// A session at the beginning of a connection.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) outbox: Arc<Outbox>,
    pub(super) attachment: Attachment,
    pub(super) place: Place,
    pub(super) ticket: Option<Box<Ticket>>,
    /// Cancelled when a newer connection has the session, where that can be.
    pub(super) displaced: Option<CancellationToken>,
    /// The request that is answered by the greeting; without one there is none.
    pub(super) answer: Option<Uuid>,
}

/// What a client needs to resume its session.
#[derive(Debug)]
pub(super) struct Ticket {
    /// When the session's first token was issued, in seconds of Unix time, if it was before.
    first_issue: Option<u64>,
    /// Whether this connection began with all that was acknowledged.
    resumed: bool,
}

impl Begun {
    /// A session that ends with its connection.
    pub(super) fn new(context: &Arc<Context>, answer: Option<Uuid>) -> Self {
        let outbox = Arc::new(Outbox::new(Uuid::new_v4(), &context.limits, &context.budget));
        let place = Place::of_connection(context, outbox.clone());
        Self { outbox, attachment: 0, place, ticket: None, displaced: None, answer }
    }

    /// A session that can be resumed; `None` when it has just gone elsewhere, or ended.
    fn resumable(
        context: &Arc<Context>,
        outbox: Arc<Outbox>,
        seq: u64,
        first_issue: Option<u64>,
        resumed: bool,
        request: Uuid,
    ) -> Option<Self> {
        let (attachment, displaced) = outbox.attach(Instant::now(), seq)?;
        let place = Place::of_resumable(context, outbox.clone(), attachment);
        let ticket = Some(Box::new(Ticket { first_issue, resumed }));
        Some(Self { outbox, attachment, place, ticket, displaced: Some(displaced), answer: Some(request) })
    }

    /// The same, new to this node and to all others.
    fn fresh(context: &Arc<Context>, outbox: Outbox, first_issue: Option<u64>, request: Uuid) -> Option<Self> {
        let outbox = Arc::new(outbox);
        context.registry.keep(outbox.clone());
        context.broker.joined(outbox.client());
        Self::resumable(context, outbox, 0, first_issue, false, request)
    }

    /// The same, its client being new as well.
    fn stranger(context: &Arc<Context>, request: Uuid) -> Option<Self> {
        let outbox = Outbox::resumable(Uuid::new_v4(), 0, &context.limits, &context.budget);
        Self::fresh(context, outbox, None, request)
    }
}

impl Ticket {
    /// What the client is told, with a new token.
    pub(super) fn introduce(&mut self, context: &Context, outbox: &Outbox) -> Resumable {
        let (now, lifetime) = (SystemTime::now(), context.limits.token_lifetime);
        let (generation, home) = (outbox.generation(), context.broker.tag());
        let claims = Claims::new(outbox.client(), generation, home, self.first_issue, now, lifetime);
        self.first_issue = Some(claims.first_issue);
        let resume = Resume {
            token: context.keys.ring().sign(&claims),
            window_ms: millis(context.limits.resume_window),
            expires_ms: millis(claims.expires_in(now)),
            standby: outbox.has_standby(),
        };
        // Asked later, it is a sign of life: nothing is missing since this connection began.
        Resumable { resumed: std::mem::replace(&mut self.resumed, true), resume }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for the registration, and finds the session that it is about. There is no session before: whatever else comes
/// is refused.
///
/// # Errors
/// How the connection ended before there was one.
pub(super) async fn begin(socket: &mut Socket, context: &Arc<Context>, address: Option<IpAddr>) -> Result<Begun, End> {
    let asked = async {
        loop {
            match socket.next().await {
                Incoming::Text(text) => match protocol::decode(&text, Uuid::nil(), context.limits.max_text_bytes) {
                    Ok(Request::Registration { id, wish }) => return Ok((id, wish)),
                    Ok(Request::Notice | Request::Had(_)) => {}
                    Ok(Request::Send { id, .. }) => refuse(socket, context, Some(id), ErrorCode::ECid, EARLY).await?,
                    Err(rejection) => {
                        refuse(socket, context, rejection.id, rejection.code, &rejection.description).await?;
                    }
                },
                Incoming::Binary(_) => refuse(socket, context, None, ErrorCode::ESyntax, super::BINARY).await?,
                Incoming::Alive => {}
                Incoming::Closed(code) => return Err(End::Closed(code)),
                Incoming::Broken => return Err(End::Broken),
                Incoming::Violation(code, reason) => return Err(End::Violation(code, reason)),
            }
        }
    };
    let (request, wish) = timeout(context.limits.http.header, asked).await.unwrap_or(Err(End::Unregistered))?;
    let began = Instant::now();
    let sessions = &context.metrics.sessions;
    let claims = claims(context, address, &wish).map_err(|limit| {
        sessions.resumes.limited(limit);
        End::Limited(limit)
    })?;
    loop {
        // What is found may go elsewhere a moment later; then it is looked for again.
        if let Some(begun) = find(context, request, &wish, claims).await {
            if claims.is_some() {
                sessions.resume_duration.observe(began.elapsed().as_secs_f64());
            }
            return Ok(begun);
        }
    }
}

const EARLY: &str = "there is no session yet: the first frame must be a \"registration\"";

async fn refuse(
    socket: &mut Socket,
    context: &Context,
    id: Option<Uuid>,
    code: ErrorCode,
    description: &str,
) -> Result<(), End> {
    context.metrics.error(code);
    let frame = protocol::encode(Uuid::nil(), id.unwrap_or_else(Uuid::new_v4), &Reply::Error { code, description });
    let write = async {
        socket.feed(Frame::text(frame)).await?;
        socket.flush().await
    };
    match timeout(context.limits.write_timeout, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Broken),
        Err(_) => Err(End::SlowReader),
    }
}

/// What the client's token says, if it has one that is good.
///
/// # Errors
/// Whose limit does not let it try.
fn claims(context: &Context, address: Option<IpAddr>, wish: &Wish) -> Result<Option<Claims>, Limit> {
    let Some(token) = &wish.resume else { return Ok(None) };
    let now = Instant::now();
    context.resume_limits.admits_address(now, address)?;
    match context.keys.ring().verify(token, SystemTime::now()) {
        Ok(claims) => context.resume_limits.admits_session(now, claims.client).map(|()| Some(claims)),
        Err(flaw) => {
            debug!(%flaw, "a resume token is not taken");
            context.metrics.sessions.resumes.flaw(flaw);
            Ok(None)
        }
    }
}

/// The session that the client wants and has a token for, or else a new one.
async fn find(context: &Arc<Context>, request: Uuid, wish: &Wish, claims: Option<Claims>) -> Option<Begun> {
    if !wish.resumable {
        return Some(Begun::new(context, Some(request)));
    }
    let Some(Claims { client, generation, first_issue, .. }) = claims else {
        return Begun::stranger(context, request);
    };
    let (first_issue, resumes) = (Some(first_issue), &context.metrics.sessions.resumes);
    let (begun, counter) = match context.broker.resume(client, generation).await {
        Resumption::Here(outbox) => {
            (Begun::resumable(context, outbox, wish.seq, first_issue, true, request), &resumes.resumed)
        }
        Resumption::Lost => {
            let outbox = Outbox::anew(Instant::now(), client, generation, &context.limits, &context.budget);
            (Begun::fresh(context, outbox, first_issue, request), &resumes.lost)
        }
        Resumption::Refused => (Begun::stranger(context, request), &resumes.refused),
    };
    begun.inspect(|_| counter.inc())
}
