//! Owns one HTTP request over a connection of its own, as `texto healthcheck` and `texto check` make it.

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::tls::stream::Stream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InquiryError {
    /// The path, or the host, is none.
    #[error(transparent)]
    Request(#[from] http::Error),
    /// The connection broke, or something else than HTTP came.
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// Asks for `path`, and what `read` makes of the answer. Without a deadline.
///
/// # Errors
/// When nothing came that is an answer.
pub(crate) async fn get<T>(
    stream: Stream,
    host: &str,
    path: &str,
    read: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> Result<T, InquiryError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(header::HOST, host).body(Empty::<Bytes>::new())?;
    let answer = async { Ok(read(sender.send_request(request).await?).await) };
    tokio::pin!(answer);
    let answer: hyper::Result<T> = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The answer may have come with the end, which knows better why there is none.
        ended = connection => answer.await.map_err(|error| ended.err().unwrap_or(error)),
    };
    Ok(answer?)
}
