//! Owns the paths: the WebSocket, health, metrics and the web client, as warp routes.

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

use crate::client_address::{Peer, TrustedProxies};
use crate::health::Health;
use crate::repeats::Repeats;
use crate::resume_limits::Limit;
use crate::session::{self, Context, End, Opening};
use crate::websocket::{self, Bounds, HandshakeError, Socket};

/// Seconds after which a refused client may try again.
const RETRY_AFTER: &str = "1";
/// How long the client may take between the 101 and its first byte being possible.
const UPGRADE_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// A descriptor's place, held by a connection as long as it is open, whatever it speaks.
pub type SocketPermit = Arc<OwnedSemaphorePermit>;

/// The files of the web client: path, media type, content.
const FILES: [(&str, &str, &[u8]); 5] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../web/index.html")),
    ("/texto.js", "text/javascript; charset=utf-8", include_bytes!("../web/texto.js")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("../web/app.js")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("../web/style.css")),
    ("/icon.svg", "image/svg+xml", include_bytes!("../web/icon.svg")),
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
    /// What was said of clients that take too little, or ask for too much.
    pub complaints: Arc<Mutex<Repeats>>,
}

/// Everything for clients; metrics too unless they have an address of their own.
pub fn public(app: App, with_metrics: bool) -> BoxedFilter<(WarpResponse,)> {
    let routes = websocket(app.clone()).or(health(app.clone())).unify().or(files()).unify();
    if with_metrics { routes.or(metrics(app)).unify().boxed() } else { routes.boxed() }
}

/// Metrics and health.
pub fn admin(app: App) -> BoxedFilter<(WarpResponse,)> {
    health(app.clone()).or(metrics(app)).unify().boxed()
}

fn get_or_head() -> impl Filter<Extract = (), Error = warp::Rejection> + Clone {
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
        .map(move |headers: HeaderMap, query: String, version: Option<Version>, upgrade, permit, peer: Option<Peer>| {
            let address = peer.map(|peer| app.trusted_proxies.client(peer, &headers));
            let handshake = websocket::handshake(version.unwrap_or_default(), &headers);
            open(&app, handshake, &query, address, upgrade, permit)
        })
        .boxed()
}

/// Begins a session, or says why not.
fn open(
    app: &App,
    handshake: Result<Response<()>, HandshakeError>,
    query: &str,
    address: Option<IpAddr>,
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
    metrics.handshakes_accepted.inc();
    let limits = &app.context.limits;
    let bounds = Bounds {
        max_read: limits.max_frame_bytes,
        // A byte of text takes six at most in JSON, as \u0000.
        max_write: limits.max_text_bytes.saturating_mul(6) + 1024,
    };
    let opening = opening(query, address);
    let context = app.context.clone();
    let complaints = app.complaints.clone();
    // The tracker has the task before the 101 is sent, so that a drain can't miss the session.
    let address = address.map(tracing::field::display);
    app.sessions.spawn(async move {
        let _held = (seat, permit);
        match Box::pin(tokio::time::timeout(UPGRADE_LIMIT, Socket::upgrade(upgrade, bounds))).await {
            Ok(Ok(socket)) => {
                debug!(address, "session begins");
                let end = session::run(socket, context, opening).await;
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

/// What an operator is told of it.
fn complaint(end: End) -> Option<&'static str> {
    match end {
        End::SlowReader => Some("a session was closed: its client did not read what it was sent"),
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

fn health(app: App) -> BoxedFilter<(WarpResponse,)> {
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
        let mut response = if verbose { plain(status, &report.text()) } else { json(status, report.json()) };
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

fn files() -> BoxedFilter<(WarpResponse,)> {
    get_or_head()
        .and(warp::path::full())
        .and_then(|path: warp::path::FullPath| {
            let found = FILES.iter().find(|(name, ..)| *name == path.as_str());
            std::future::ready(found.ok_or_else(warp::reject::not_found))
        })
        .map(|(_, kind, content): &'static (&'static str, &'static str, &'static [u8])| {
            let mut response = WarpResponse::new(bytes::Bytes::from_static(content).into());
            let headers = response.headers_mut();
            let mut set = |name, value| drop(headers.insert(name, header::HeaderValue::from_static(value)));
            set(header::CONTENT_TYPE, kind);
            set(header::CACHE_CONTROL, "no-cache");
            set(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY);
            set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
            set(header::REFERRER_POLICY, "no-referrer");
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

fn unavailable(text: &str) -> WarpResponse {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER));
    response
}

fn answer(status: StatusCode, kind: &'static str, text: String) -> WarpResponse {
    let mut response = WarpResponse::new(text.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}
