//! Owns the paths: the WebSocket, health, metrics and the web client, as warp routes. The status page has a file of its own.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{HeaderMap, Response, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response as WarpResponse;

use crate::access::verifier::{Pass, Refusal};
use crate::edge::client_address::{Peer, TrustedProxies};
use crate::edge::limits::{AddressLimits, Excess};
use crate::edge::status;
use crate::edge::websocket::{self, Agreed, Bounds, HandshakeError, Socket};
use crate::operate::health::Health;
use crate::operate::repeats::Repeats;
use crate::operate::status::streams::Streams;
use crate::resume::limits::Limit;
use crate::session::{self, Context, End, Opening};

/// Seconds after which a refused client may try again.
const RETRY_AFTER: &str = "1";
/// How long the client may take between the 101 and its first byte being possible.
const UPGRADE_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// A descriptor's place, held by a connection as long as it is open, whatever it speaks.
pub type SocketPermit = Arc<OwnedSemaphorePermit>;

/// A file that is served: path, media type, content.
pub(super) type File = (&'static str, &'static str, &'static [u8]);

/// The files of the web client.
const FILES: &[File] = &[
    ("/", "text/html; charset=utf-8", include_bytes!("../../web/index.html")),
    ("/texto.js", "text/javascript; charset=utf-8", include_bytes!("../../clients/js/texto.js")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("../../web/app.js")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("../../web/style.css")),
    ("/icon.svg", "image/svg+xml", include_bytes!("../../web/icon.svg")),
];

/// What the page's files say beside it: nobody's frame, no window of others, no use by others, no devices. What is true of
/// TLS alone (`Strict-Transport-Security`) says whoever speaks it: over plain HTTP browsers must ignore it (RFC 6797,
/// section 8.1), and a gateway can't know whether the proxy before it will speak TLS for as long as it promises.
const PAGE: [(&str, &str); 5] = [
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("referrer-policy", "no-referrer"),
];

/// Nothing from elsewhere, nothing in line, nobody's frame.
const CONTENT_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; \
                              frame-ancestors 'none'; form-action 'none'";

/// What the routes work with.
#[derive(Clone, Debug)]
pub struct App {
    /// For sessions.
    pub context: Arc<Context>,
    /// Who may come in.
    pub health: Arc<Health>,
    /// One permit a session.
    pub seats: Arc<Semaphore>,
    /// Sessions run here; a drain waits for them.
    pub sessions: TaskTracker,
    /// Who is believed about clients' addresses.
    pub trusted_proxies: Arc<TrustedProxies>,
    /// What each client address has.
    pub addresses: Arc<AddressLimits>,
    /// What was said of clients that take too little, or ask for too much.
    pub complaints: Arc<Mutex<Repeats>>,
    /// The status, and who looks at it.
    pub status: Streams,
}

/// Everything for clients; what is inside too, unless that has an address of its own.
pub fn public(app: App, with_inside: bool) -> BoxedFilter<(WarpResponse,)> {
    let health = health(app.clone(), with_inside);
    let routes = websocket(app.clone()).or(health).unify().or(files(FILES, CONTENT_POLICY)).unify();
    if with_inside { routes.or(inside(app)).unify().boxed() } else { routes.boxed() }
}

/// Metrics, status and health.
pub fn admin(app: App) -> BoxedFilter<(WarpResponse,)> {
    health(app.clone(), true).or(inside(app)).unify().boxed()
}

/// What is not for everybody.
fn inside(app: App) -> BoxedFilter<(WarpResponse,)> {
    status::routes(app.status.clone()).or(metrics(app)).unify().boxed()
}

pub(super) fn get_or_head() -> impl Filter<Extract = (), Error = warp::Rejection> + Clone {
    warp::get().or(warp::head()).unify()
}

fn query() -> impl Filter<Extract = (String,), Error = std::convert::Infallible> + Clone {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

fn websocket(app: App) -> BoxedFilter<(WarpResponse,)> {
    warp::path!("v1" / "texto")
        .and(warp::get())
        .and(warp::header::headers_cloned())
        .and(query())
        .and(warp::ext::optional::<Version>())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<SocketPermit>())
        .and(warp::ext::optional::<Peer>())
        .then(
            move |headers: HeaderMap, query: String, version: Option<Version>, upgrade, permit, peer: Option<Peer>| {
                let app = app.clone();
                async move {
                    let address = peer.map(|peer| app.trusted_proxies.client(peer, &headers));
                    if let Err(refusal) = app.addresses.admits_handshake(address) {
                        return limited(&app, address, refusal);
                    }
                    let handshake =
                        websocket::handshake(version.unwrap_or_default(), &headers, app.context.limits.compression);
                    let pass = match handshake.is_ok() {
                        true => admit(&app.context, &headers).await,
                        false => Ok(None),
                    };
                    match pass {
                        Ok(pass) => open(&app, handshake, &query, address, pass, upgrade, permit),
                        Err(response) => response,
                    }
                }
            },
        )
        .boxed()
}

/// Whether whoever sent these headers may come in, and with which credentials if there are some already.
async fn admit(context: &Context, headers: &HeaderMap) -> Result<Option<Pass>, WarpResponse> {
    let metrics = &context.metrics;
    if let Err(flaw) = context.access.admit_page(headers) {
        metrics.handshakes_forbidden.inc();
        metrics.access.refused(flaw.label());
        return Err(plain(StatusCode::FORBIDDEN, &format!("{flaw}\n")));
    }
    context.access.admit_bearer(headers).await.map_err(|refusal| {
        metrics.handshakes_unauthorized.inc();
        metrics.access.refused(refusal.label());
        if refusal == Refusal::Unavailable {
            return unavailable(&format!("{refusal}\n"));
        }
        let mut response = plain(StatusCode::UNAUTHORIZED, &format!("{refusal}\n"));
        // RFC 6750, section 3. No refusal has a quotation mark in it but the one that needs none here.
        let challenge =
            format!("Bearer error=\"invalid_token\", error_description=\"{}\"", refusal.to_string().replace('"', "'"));
        if let Ok(challenge) = header::HeaderValue::from_str(&challenge) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    })
}

/// Begins a session, or says why not.
fn open(
    app: &App,
    handshake: Result<Response<()>, HandshakeError>,
    query: &str,
    address: Option<IpAddr>,
    pass: Option<Pass>,
    upgrade: Option<OnUpgrade>,
    permit: Option<SocketPermit>,
) -> WarpResponse {
    let metrics = &app.context.metrics;
    let handshake = handshake.and_then(|response| Ok((response, upgrade.ok_or(HandshakeError::NotAnUpgrade)?)));
    let (response, upgrade) = match handshake {
        Ok(both) => both,
        Err(error) => {
            metrics.handshakes_bad.inc();
            let mut response = plain(error.status(), &format!("{error}\n"));
            let headers = response.headers_mut();
            headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
            return response;
        }
    };
    if !app.health.takes_sessions() {
        metrics.handshakes_not_ready.inc();
        return unavailable("this node takes no sessions now: try again, another one may\n");
    }
    let Ok(seat) = app.seats.clone().try_acquire_owned() else {
        metrics.handshakes_full.inc();
        return unavailable(
            "every place on this node is taken: try again, another one may have some
",
        );
    };
    let place = match app.addresses.place(address) {
        Ok(place) => place,
        Err(refusal) => return limited(app, address, refusal),
    };
    metrics.handshakes_accepted.inc();
    let limits = &app.context.limits;
    let bounds = Bounds {
        max_read: limits.max_frame_bytes,
        // A byte of text takes six at most in JSON, as \u0000.
        max_write: limits.max_text_bytes.saturating_mul(6) + 1024,
    };
    let deflate = response.extensions().get().copied();
    let compression = deflate.map(|deflate| Agreed { deflate, metrics: metrics.compression.clone() });
    let opening = opening(query, address);
    let context = app.context.clone();
    let complaints = app.complaints.clone();
    // The tracker has the task before the 101 is sent, so that a drain can't miss the session.
    let address = address.map(tracing::field::display);
    app.sessions.spawn(async move {
        let _held = (seat, place, permit);
        match Box::pin(tokio::time::timeout(UPGRADE_LIMIT, Socket::upgrade(upgrade, bounds, compression))).await {
            Ok(Ok(socket)) => {
                debug!(address, "session begins");
                let end = session::run(socket, context, opening, pass).await;
                let Some(what) = complaint(end) else {
                    return debug!(address, ?end, "session ended");
                };
                let again = complaints.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now(), what);
                if let Some(again) = again {
                    info!(address, "{what}{again}");
                }
            }
            Ok(Err(error)) => debug!(address, %error, "the connection broke during the upgrade"),
            Err(_) => debug!(address, "the upgrade took too long"),
        }
    });
    response.map(|()| WarpResponse::default().into_body())
}

/// The answer to a handshake of somebody who has had enough of them.
fn limited(app: &App, address: Option<IpAddr>, refusal: Excess) -> WarpResponse {
    app.context.metrics.handshakes_limited.inc();
    let limited = &app.context.metrics.limited;
    match refusal {
        Excess::Handshakes(_) => &limited.connection_rate,
        Excess::Sockets => &limited.connections_per_address,
    }
    .inc();
    let what = refusal.complaint();
    let again = app.complaints.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now(), what);
    if let Some(again) = again {
        info!(address = address.map(tracing::field::display), "{what}{again}");
    }
    let mut response = plain(StatusCode::TOO_MANY_REQUESTS, &format!("{refusal}\n"));
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, refusal.retry_after().into());
    // The next try costs a connection.
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// What an operator is told of it.
fn complaint(end: End) -> Option<&'static str> {
    match end {
        End::SlowReader | End::Stuck => Some("a session was closed: its client did not read what it was sent"),
        End::Limited(Limit::Address) => Some(
            "sessions are not resumed, for so many were from this address (--resumes-per-address); if it is a proxy's, name \
             it in --trusted-proxies",
        ),
        End::Limited(Limit::Session) => Some("a session is not resumed, for it was so often"),
        _ => None,
    }
}

/// How a client at `address` wants to begin.
fn opening(query: &str, address: Option<IpAddr>) -> Opening {
    let has = |name: &str| {
        let values = query.split('&').filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        values.into_iter().any(|value| !value.is_empty())
    };
    match (has("register"), has("nogreet")) {
        (true, _) => Opening::Registered(address),
        (false, true) => Opening::Silent,
        (false, false) => Opening::Greeted,
    }
}

/// The probes. Why a node is not ready, and which servers it knows, is told `with_reasons` alone.
fn health(app: App, with_reasons: bool) -> BoxedFilter<(WarpResponse,)> {
    let live = app.health.clone();
    let livez = warp::path!("livez").map(move || {
        if live.lives() {
            json(StatusCode::OK, r#"{"status":"pass"}"#.to_owned())
        } else {
            json(StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"fail","output":"the runtime is stuck"}"#.to_owned())
        }
    });
    let ready = app.health;
    let readyz = warp::path!("readyz").or(warp::path!("healthz")).unify().and(query()).map(move |query: String| {
        let report = ready.report();
        let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let verbose = query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="));
        let mut response = match (with_reasons, verbose) {
            (false, _) => json(status, report.verdict()),
            (true, true) => plain(status, &report.text()),
            (true, false) => json(status, report.json()),
        };
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER));
        }
        response
    });
    get_or_head().and(livez.or(readyz).unify()).boxed()
}

fn metrics(app: App) -> BoxedFilter<(WarpResponse,)> {
    let context = app.context.clone();
    warp::path!("metrics")
        .and(get_or_head())
        .map(move || match context.render_metrics() {
            Ok(text) => {
                let mut response = plain(StatusCode::OK, &text);
                let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        })
        .boxed()
}

/// Serves `table`; its pages may do what `policy` says.
pub(super) fn files(table: &'static [File], policy: &'static str) -> BoxedFilter<(WarpResponse,)> {
    get_or_head()
        .and(warp::path::full())
        .and_then(move |path: warp::path::FullPath| {
            let found = table.iter().find(|(name, ..)| *name == path.as_str());
            std::future::ready(found.ok_or_else(warp::reject::not_found))
        })
        .map(move |(_, kind, content): &'static File| {
            let mut response = WarpResponse::new(bytes::Bytes::from_static(content).into());
            let headers = response.headers_mut();
            let mut set = |name, value| drop(headers.insert(name, header::HeaderValue::from_static(value)));
            set(header::CONTENT_TYPE, kind);
            set(header::CACHE_CONTROL, "no-cache");
            set(header::CONTENT_SECURITY_POLICY, policy);
            for (name, value) in PAGE {
                headers.insert(name, header::HeaderValue::from_static(value));
            }
            response
        })
        .boxed()
}

fn plain(status: StatusCode, text: &str) -> WarpResponse {
    answer(status, "text/plain; charset=utf-8", text.to_owned())
}

fn json(status: StatusCode, text: String) -> WarpResponse {
    answer(status, "application/health+json", text)
}

pub(super) fn unavailable(text: &str) -> WarpResponse {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER));
    response
}

pub(super) fn answer(status: StatusCode, kind: &'static str, text: String) -> WarpResponse {
    let mut response = WarpResponse::new(text.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}
