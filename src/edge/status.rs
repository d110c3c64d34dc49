//! Owns the paths of the status page: the page, the status as JSON, and as a stream of server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::stream;
use http::{StatusCode, header};
use warp::filters::BoxedFilter;
use warp::reply::Response as WarpResponse;
use warp::sse::Event;
use warp::{Filter, Reply};

use crate::edge::http::{File, answer, files, get_or_head, unavailable};
use crate::operate::status::streams::{Made, Streams};

/// The page's files, which name one another relatively: it may stand under another path of a proxy's.
const FILES: &[File] = &[
    ("/status", "text/html; charset=utf-8", include_bytes!("../../web/status/index.html")),
    ("/status/app.js", "text/javascript; charset=utf-8", include_bytes!("../../web/status/app.js")),
    ("/status/picture.js", "text/javascript; charset=utf-8", include_bytes!("../../web/status/picture.js")),
    ("/status/words.js", "text/javascript; charset=utf-8", include_bytes!("../../web/status/words.js")),
    ("/status/style.css", "text/css; charset=utf-8", include_bytes!("../../web/status/style.css")),
    ("/status/icon.svg", "image/svg+xml", include_bytes!("../../web/icon.svg")),
];

/// Its own files and this node alone; nobody's frame, no forms, and nothing that makes text into markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; frame-ancestors 'none'; form-action 'none'; require-trusted-types-for 'script'";

/// All of it. For whoever may see the metrics.
pub(super) fn routes(streams: Streams) -> BoxedFilter<(WarpResponse,)> {
    files(FILES, POLICY).or(json(streams.clone())).unify().or(events(streams)).unify().boxed()
}

fn json(streams: Streams) -> BoxedFilter<(WarpResponse,)> {
    warp::path!("status.json")
        .and(get_or_head())
        .map(move || answer(StatusCode::OK, "application/json", format!("{}\n", streams.latest().json())))
        .boxed()
}

fn events(streams: Streams) -> BoxedFilter<(WarpResponse,)> {
    warp::path!("status" / "events")
        .and(warp::get())
        .map(move || match streams.open() {
            Ok(mut made) => {
                let events = stream::poll_fn(move |cx| made.poll_recv(cx).map(|made| made.map(event)));
                let mut response = warp::sse::reply(events).into_response();
                let headers = response.headers_mut();
                headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
                // For an nginx of the operator's own on the way: what waits in a buffer is not live.
                headers.insert("x-accel-buffering", header::HeaderValue::from_static("no"));
                response
            }
            Err(reason) => unavailable(&format!("{reason}\n")),
        })
        .boxed()
}

fn event(made: Arc<Made>) -> Result<Event, Infallible> {
    Ok(Event::default().event("status").data(made.json()))
}
