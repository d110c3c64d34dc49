//! Owns how a connection begins whose client says first what it wants, or who it is: a new session, one that can be
//! resumed, or one that is resumed now.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};
use tracing::debug;
use uuid::Uuid;

use super::chatter::Chatter;
use super::place::Place;
use super::{Context, End, credentials};
use crate::access::verifier::{Pass, Refusal};
use crate::broker::Resumption;
use crate::edge::websocket::{Incoming, Message as Frame, Socket};
use crate::outbox::log::ANY;
use crate::outbox::{Attachment, Outbox};
use crate::resume::limits::Limit;
use crate::resume::token::Claims;
use crate::session::protocol::{self, ErrorCode, Reply, Request, Resumable, Resume, Wish};

/// A session at the beginning of a connection.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) outbox: Arc<Outbox>,
    pub(super) attachment: Attachment,
    pub(super) place: Place,
    pub(super) ticket: Option<Box<Ticket>>,
    /// Cancelled when a newer connection has the session, where that can be.
    pub(super) displaced: Option<Arc<Notify>>,
    /// What the client came in with, where something is demanded.
    pub(super) pass: Option<Box<Pass>>,
    /// The request that is answered by the greeting; without one there is none.
    pub(super) answer: Option<Uuid>,
}

/// What a client needs to resume its session.
#[derive(Debug)]
pub(super) struct Ticket {
    /// When the session's first token was issued, in seconds of Unix time, if it was before.
    first_issue: Option<NonZeroU64>,
    /// Whether this connection began with all that was acknowledged.
    resumed: bool,
}

impl Begun {
    /// A session that ends with its connection.
    pub(super) fn new(context: &Arc<Context>, answer: Option<Uuid>) -> Self {
        let outbox = Arc::new(Outbox::new(Uuid::new_v4(), &context.limits, &context.budget));
        let place = Place::of_connection(context, outbox.clone());
        Self { outbox, attachment: 0, place, ticket: None, displaced: None, pass: None, answer }
    }

    /// A session that can be resumed, by a client that knows it if there is a `ticket`, and has a token of `generation` and
    /// everything up to `seq`; `None` when it has just gone elsewhere, or ended.
    fn attached(
        context: &Arc<Context>,
        outbox: Arc<Outbox>,
        (generation, seq): (u64, u64),
        ticket: Option<Ticket>,
        answer: Option<Uuid>,
    ) -> Option<Self> {
        let (attachment, displaced) = outbox.attach(Instant::now(), generation, seq, ticket.is_none())?;
        let place = Place::of_resumable(context, outbox.clone(), attachment, ticket.is_some());
        let (ticket, displaced) = (ticket.map(Box::new), Some(displaced));
        Some(Self { outbox, attachment, place, ticket, displaced, pass: None, answer })
    }

    /// The same, new to this node and to all others.
    fn fresh(
        context: &Arc<Context>,
        outbox: Outbox,
        generation: u64,
        ticket: Option<Ticket>,
        answer: Option<Uuid>,
    ) -> Option<Self> {
        let outbox = Arc::new(outbox);
        // The same client may come twice at one moment: the other one's session is this one's as well.
        if !context.registry.keep_first(&outbox) {
            return None;
        }
        context.broker.joined(outbox.client());
        Self::attached(context, outbox, (generation, 0), ticket, answer)
    }

    /// The same, its client being new as well.
    fn stranger(context: &Arc<Context>, request: Uuid) -> Option<Self> {
        let outbox = Outbox::resumable(Uuid::new_v4(), 0, &context.limits, &context.budget);
        Self::fresh(context, outbox, 0, Some(Ticket { first_issue: None, resumed: false }), Some(request))
    }
}

impl Ticket {
    /// What the client is told, with a new token.
    pub(super) fn introduce(&mut self, context: &Context, outbox: &Outbox, pass: Option<&Pass>) -> Resumable {
        let (now, lifetime) = (SystemTime::now(), context.limits.token_lifetime);
        let (generation, home) = (outbox.generation(), context.broker.tag());
        let claims =
            Claims::new(outbox.client(), generation, home, self.first_issue.map(NonZeroU64::get), now, lifetime)
                .backed(pass.map(Pass::backing));
        self.first_issue = NonZeroU64::new(claims.first_issue);
        let resume = Resume {
            token: context.keys.ring().sign(&claims),
            window_ms: millis(context.limits.resume_window),
            expires_ms: millis(claims.expires_in(now)),
            standby: outbox.has_standby(),
        };
        // Asked later, it is a sign of life: nothing is missing since this connection began.
        let credentials = credentials::expiry(pass);
        Resumable { resumed: std::mem::replace(&mut self.resumed, true), resume, credentials }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for the registration, and finds the session that it is about. There is no session before: whatever else comes
/// is refused. `pass` is what the handshake had for credentials.
///
/// # Errors
/// How the connection ended before there was one.
pub(super) async fn begin(
    socket: &mut Socket,
    context: &Arc<Context>,
    address: Option<IpAddr>,
    pass: Option<Pass>,
) -> Result<Begun, End> {
    let mut chatter = Chatter::default();
    let asked = async {
        loop {
            if let Some(until) = chatter.until() {
                sleep_until(until.into()).await;
            }
            match socket.next().await {
                Incoming::Text(text) => match protocol::decode(&text, Uuid::nil(), context.limits.max_text_bytes) {
                    Ok(Request::Registration { id, wish }) => return Ok((id, wish)),
                    Ok(Request::Notice | Request::Had(_)) => {}
                    Ok(Request::Send { id, .. }) => refuse(socket, context, Some(id), ErrorCode::ECid, EARLY).await?,
                    Err(rejection) => {
                        refuse(socket, context, rejection.id, rejection.code, &rejection.description).await?;
                    }
                },
                Incoming::Binary(_) => {
                    refuse(socket, context, None, ErrorCode::ESyntax, super::listening::BINARY).await?
                }
                Incoming::Ping | Incoming::Pong(_) => {}
                Incoming::Closed(code) => return Err(End::Closed(code)),
                Incoming::Broken => return Err(End::Broken),
                Incoming::Violation(code, reason) => return Err(End::Violation(code, reason)),
            }
            if chatter.note(Instant::now()) {
                context.metrics.limited.chatter.inc();
            }
        }
    };
    let (request, wish) = timeout(context.limits.http.header, asked).await.unwrap_or(Err(End::Unregistered))?;
    let began = Instant::now();
    let sessions = &context.metrics.sessions;
    let claims = claims(context, address, &wish).map_err(|limit| limited(context, limit))?;
    let pass = match credentials::shown(context, pass, &wish, claims.as_ref()).await {
        Ok(pass) => pass,
        Err(refusal) => return Err(turn_away(socket, context, Some(request), refusal).await),
    };
    still_there(socket)?;
    // A token of somebody else's session is of no use to whoever has credentials of their own.
    let own = |claims: &Claims| match (&pass, claims.backing) {
        (Some(Pass { client: Some(client), .. }), _) => *client == claims.client,
        (Some(pass), Some(backing)) => pass.subject == backing.subject,
        _ => true,
    };
    let claims = claims.filter(own);
    let begun = match pass.as_ref().and_then(|pass| pass.client) {
        Some(client) => identified(context, client, Some(request), &wish, claims).await?,
        None => loop {
            // What is found may go elsewhere a moment later; then it is looked for again.
            if let Some(begun) = find(context, request, &wish, claims).await? {
                break begun;
            }
            tokio::time::sleep(AGAIN).await;
        },
    };
    if claims.is_some() {
        sessions.resume_duration.observe(began.elapsed().as_secs_f64());
    }
    Ok(Begun { pass: pass.map(Box::new), ..begun })
}

/// Begins a session, where credentials are demanded, for a client that says nothing first: `pass` is what its handshake
/// had, and `greeting` the id of what it is told, if it is told something.
///
/// # Errors
/// How the connection ended before there was one.
pub(super) async fn begin_at_once(
    socket: &mut Socket,
    context: &Arc<Context>,
    pass: Option<Pass>,
    greeting: Option<Uuid>,
) -> Result<Begun, End> {
    let wish = Wish::default();
    let pass = match credentials::shown(context, pass, &wish, None).await {
        Ok(pass) => pass,
        Err(refusal) => return Err(turn_away(socket, context, None, refusal).await),
    };
    still_there(socket)?;
    let begun = match pass.as_ref().and_then(|pass| pass.client) {
        Some(client) => identified(context, client, greeting, &wish, None).await?,
        None => Begun::new(context, greeting),
    };
    Ok(Begun { pass: pass.map(Box::new), ..begun })
}

/// Whether the client waits for its session still. If this node stood still, it may have one elsewhere by now, which it would
/// lose to this connection.
fn still_there(socket: &mut Socket) -> Result<(), End> {
    match socket.peek() {
        Some(Incoming::Closed(code)) => Err(End::Closed(*code)),
        Some(Incoming::Broken) => Err(End::Broken),
        _ => Ok(()),
    }
}

/// Tells a client why its credentials are not taken. Returns how the connection ends.
async fn turn_away(socket: &mut Socket, context: &Context, request: Option<Uuid>, refusal: Refusal) -> End {
    match refuse(socket, context, request, ErrorCode::EAuth, &refusal.to_string()).await {
        Ok(()) => credentials::end(refusal),
        Err(end) => end,
    }
}

fn limited(context: &Context, limit: Limit) -> End {
    context.metrics.sessions.resumes.limited(limit);
    End::Limited(limit)
}

/// A session that is about to end, or to be somewhere else, is looked for again after this.
const AGAIN: Duration = Duration::from_millis(10);
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
    context.resume_limits.admits_address(address)?;
    match context.keys.ring().verify(token, SystemTime::now()) {
        Ok(claims) => context.resume_limits.admits_session(claims.client).map(|()| Some(claims)),
        Err(flaw) => {
            debug!(%flaw, "a resume token is not taken");
            context.metrics.sessions.resumes.flaw(flaw);
            Ok(None)
        }
    }
}

/// The session that the client wants and has a token for, or else a new one; `None` when it is just going elsewhere.
///
/// # Errors
/// When nobody can be asked for it.
async fn find(
    context: &Arc<Context>,
    request: Uuid,
    wish: &Wish,
    claims: Option<Claims>,
) -> Result<Option<Begun>, End> {
    if !wish.resumable {
        return Ok(Some(Begun::new(context, Some(request))));
    }
    let Some(Claims { client, generation, first_issue, .. }) = claims else {
        return Ok(Begun::stranger(context, request));
    };
    let first_issue = NonZeroU64::new(first_issue);
    let resumes = &context.metrics.sessions.resumes;
    let (begun, counter) = match context.broker.resume(client, generation).await {
        // Whoever has claimed it at the same moment, and was waited for, may have had another token.
        Resumption::Here(outbox) if !outbox.refuses(generation) => {
            let (seq, resumed) = continued(&outbox, generation, wish.seq);
            let ticket = Ticket { first_issue, resumed };
            let counter = if resumed { &resumes.resumed } else { &resumes.lost };
            (Begun::attached(context, outbox, (generation, seq), Some(ticket), Some(request)), counter)
        }
        Resumption::Lost => {
            let outbox = Outbox::anew(Instant::now(), client, generation, &context.limits, &context.budget);
            let ticket = Ticket { first_issue, resumed: false };
            (Begun::fresh(context, outbox, generation, Some(ticket), Some(request)), &resumes.lost)
        }
        Resumption::Here(_) | Resumption::Refused => (Begun::stranger(context, request), &resumes.refused),
        Resumption::Unsure => return Err(unsure(context)),
    };
    Ok(begun.inspect(|_| counter.inc()))
}

/// From where on a client goes on that has a token of `generation` and everything up to `seq`, and whether it misses nothing.
/// The answer that its session had begun anew may not have reached it, for example: then it knows none of its positions.
fn continued(outbox: &Outbox, generation: u64, seq: u64) -> (u64, bool) {
    let continues = outbox.continues(generation, seq);
    (if continues { seq } else { 0 }, continues)
}

fn unsure(context: &Context) -> End {
    context.metrics.sessions.resumes.unsure.inc();
    End::Unsure
}

/// The session of a client whose credentials say which id it has. Others may have the same, here or elsewhere, at the same
/// moment: the newest connection has it. `claims` are those of its resume token, if it has one.
///
/// # Errors
/// When it comes too often, or nobody can be asked for it.
async fn identified(
    context: &Arc<Context>,
    client: Uuid,
    answer: Option<Uuid>,
    wish: &Wish,
    claims: Option<Claims>,
) -> Result<Begun, End> {
    if claims.is_none() {
        // Each time others are asked, as by a resume.
        context.resume_limits.admits_session(client).map_err(|limit| limited(context, limit))?;
    }
    let (first_issue, generation) =
        (claims.and_then(|claims| NonZeroU64::new(claims.first_issue)), claims.map_or(0, |claims| claims.generation));
    let resumes = &context.metrics.sessions.resumes;
    loop {
        let ticket = |resumed| wish.resumable.then_some(Ticket { first_issue, resumed });
        let (begun, counter) = match context.broker.resume(client, ANY).await {
            // Who has not shown that it was here before has missed what it was.
            Resumption::Here(outbox) => {
                let (seq, resumed) =
                    claims.map_or((0, false), |claims| continued(&outbox, claims.generation, wish.seq));
                let counter = if resumed { &resumes.resumed } else { &resumes.lost };
                (Begun::attached(context, outbox, (ANY, seq), ticket(resumed), answer), counter)
            }
            Resumption::Unsure => return Err(unsure(context)),
            Resumption::Refused | Resumption::Lost => {
                let outbox = Outbox::anew(Instant::now(), client, generation, &context.limits, &context.budget);
                (Begun::fresh(context, outbox, ANY, ticket(false), answer), &resumes.lost)
            }
        };
        if let Some(begun) = begun {
            if claims.is_some() {
                counter.inc();
            }
            return Ok(begun);
        }
        tokio::time::sleep(AGAIN).await;
    }
}
