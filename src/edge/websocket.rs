//! Owns the WebSocket itself: the upgrade of an HTTP request, and a socket that stays small.
//!
//! An idle socket costs what its task and two empty buffers cost, whatever went through it before:
//! the buffers of the underlying library grow with the largest message and never shrink, so the
//! socket is put together anew, with fresh ones, whenever [`Socket::compact`] finds it at rest.
//!
//! That library knows no compression. Where it is agreed, texts are compressed before the library makes frames of them,
//! and compressed frames are rewritten into plain ones before it reads them, so that it goes on judging all of them.

mod extensions;
mod frames;
mod inflating;
mod zlib;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use http::{HeaderMap, Response, StatusCode, Version, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
pub use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

pub use self::extensions::Deflate;
use self::frames::Frames;
use self::inflating::{Inflating, Violation};
use crate::edge::keep_alive::Watched;
use crate::operate::metrics::CompressionMetrics;

/// What a read buffer starts with, and what is read at a time.
const READ_BUFFER: usize = 1024;
/// Bytes that are gathered before they are written.
const WRITE_BUFFER: usize = 4096;
/// Whatever is longer leaves a buffer behind that is worth giving back.
const SMALL: usize = 256;
/// Frames of one message that are read as they come.
const FRAGMENTS: u32 = 1000;
/// What is read of more, is read after a pause of this: a buffer at a time.
const FRAGMENTS_PAUSE: Duration = Duration::from_millis(5);
/// How long a peer may take to go after it was told to.
const FAREWELL: Duration = Duration::from_secs(2);

/// The subprotocol that a client may name.
pub const SUBPROTOCOL: &str = "texto.v1";
/// Characters of what a client said that it is told again.
const SHOWN: usize = 100;
/// The lines that make nginx send both headers on.
const PASS_ON: &str = "`proxy_set_header Upgrade $http_upgrade;` and `proxy_set_header Connection upgrade;`";

/// Why a request is no WebSocket handshake (RFC 6455, section 4.2.1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// It asks for no upgrade.
    #[error("this address speaks WebSocket: connect with a WebSocket client")]
    NotAnUpgrade,
    /// It came by an HTTP that knows no upgrade, as nginx speaks it to its upstreams unless it is told otherwise.
    #[error("WebSocket needs HTTP/1.1, and this request came by {0:?}: in nginx, add `proxy_http_version 1.1;`")]
    OldHttp(Version),
    /// It has one of the two headers that ask for an upgrade.
    #[error("the header `Connection: upgrade` is missing: a proxy must send it on; in nginx, {PASS_ON}")]
    NoConnection,
    /// It has the other one.
    #[error("the header `Upgrade: websocket` is missing: a proxy must send it on; in nginx, {PASS_ON}")]
    NoUpgrade,
    /// It says nothing of the version.
    #[error("the header Sec-WebSocket-Version is missing: it must be 13")]
    NoVersion,
    /// It asks for another version.
    #[error("the WebSocket version {0} is not known here: it must be 13")]
    Version(String),
    /// It has no key.
    #[error("the header Sec-WebSocket-Key is missing: it must be 16 random bytes in base64")]
    NoKey,
    /// The key is malformed.
    #[error("the header Sec-WebSocket-Key is malformed: it must be 16 random bytes in base64")]
    Key,
    /// It offers subprotocols, and none that is spoken here: a client fails without a reason if none is selected.
    #[error("no subprotocol that is offered is known here ({0}): offer {SUBPROTOCOL}, or none")]
    Subprotocol(String),
    /// Its list of extensions is not what RFC 6455, section 9.1, says.
    #[error("the header Sec-WebSocket-Extensions is malformed: it must be a list such as `permessage-deflate`")]
    Extensions,
}

impl HandshakeError {
    /// The status that says so.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotAnUpgrade | Self::OldHttp(_) | Self::NoConnection | Self::NoUpgrade => {
                StatusCode::UPGRADE_REQUIRED
            }
            Self::NoVersion | Self::Version(_) => StatusCode::UPGRADE_REQUIRED,
            Self::NoKey | Self::Key | Self::Subprotocol(_) | Self::Extensions => StatusCode::BAD_REQUEST,
        }
    }
}

/// Checks a handshake and makes the answer to it. If that agrees to compression, which `compression` permits, a [`Deflate`]
/// is among its extensions.
///
/// # Errors
/// When it is none.
pub fn handshake(version: Version, headers: &HeaderMap, compression: bool) -> Result<Response<()>, HandshakeError> {
    let has = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if version < Version::HTTP_11 {
        return Err(HandshakeError::OldHttp(version));
    }
    match (has(header::CONNECTION, "upgrade"), has(header::UPGRADE, "websocket")) {
        (true, true) => {}
        (true, false) => return Err(HandshakeError::NoUpgrade),
        (false, true) => return Err(HandshakeError::NoConnection),
        (false, false) => return Err(HandshakeError::NotAnUpgrade),
    }
    match headers.get(header::SEC_WEBSOCKET_VERSION) {
        Some(version) if version == "13" => {}
        Some(version) => return Err(HandshakeError::Version(shown(&String::from_utf8_lossy(version.as_bytes())))),
        None => return Err(HandshakeError::NoVersion),
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or(HandshakeError::NoKey)?.as_bytes();
    let digits = key.strip_suffix(b"==").filter(|digits| digits.len() == 22).ok_or(HandshakeError::Key)?;
    if !digits.iter().all(|digit| digit.is_ascii_alphanumeric() || b"+/".contains(digit)) {
        return Err(HandshakeError::Key);
    }
    let subprotocol = subprotocol(headers)?;
    let deflate = extensions::select(headers).map_err(|_| HandshakeError::Extensions)?.filter(|_| compression);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    if let Some(name) = subprotocol {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(name));
    }
    if let Some(deflate) = deflate {
        answer.insert(header::SEC_WEBSOCKET_EXTENSIONS, deflate.answer());
    }
    answer.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    let accept = derive_accept_key(key);
    let accept = header::HeaderValue::from_str(&accept).map_err(|_| HandshakeError::Key)?;
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(deflate) = deflate {
        response.extensions_mut().insert(deflate);
    }
    Ok(response)
}

/// Selects from what the client offers: tokens in which case counts, comma-separated, in one header or several.
fn subprotocol(headers: &HeaderMap) -> Result<Option<&'static str>, HandshakeError> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let values: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    let offers = values.iter().flat_map(|value| value.split(',')).map(str::trim).filter(|offer| !offer.is_empty());
    let offers: Vec<_> = offers.collect();
    if offers.is_empty() {
        Ok(None)
    } else if offers.contains(&SUBPROTOCOL) {
        Ok(Some(SUBPROTOCOL))
    } else {
        Err(HandshakeError::Subprotocol(shown(&offers.join(", "))))
    }
}

/// As much of what a client said as it is told again.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Bounds of one socket.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The longest message that is read, in bytes.
    pub max_read: usize,
    /// The longest message that is written, in bytes.
    pub max_write: usize,
}

impl Bounds {
    fn config(self) -> WebSocketConfig {
        WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_write_buffer_size(WRITE_BUFFER + self.max_write + 64)
            .max_message_size(Some(self.max_read))
            .max_frame_size(Some(self.max_read))
    }
}

/// What came out of waiting for a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A text.
    Text(Utf8Bytes),
    /// A binary message.
    Binary(bytes::Bytes),
    /// A ping, answered already: the peer lives.
    Ping,
    /// A pong, with what was in the ping that it answers, if it answers one.
    Pong(bytes::Bytes),
    /// The peer closed, properly, with this code if it gave one; [`Socket::answer_close`] is due.
    Closed(Option<u16>),
    /// The connection broke.
    Broken,
    /// The peer broke RFC 6455 or a bound; the code is what it has to be told.
    Violation(u16, &'static str),
}

/// Writing failed: the connection is of no more use.
#[derive(Debug, thiserror::Error)]
#[error("the peer can't be written to")]
pub struct WriteError;

/// An upgraded connection.
#[derive(Debug)]
pub struct Socket {
    /// Boxed, for each future through which a socket passes keeps room for it.
    stream: Box<WebSocketStream<Tracked>>,
    /// Bytes queued since the last flush.
    queued: usize,
    /// Something that was not small went through.
    grown: bool,
    /// Compression, if it was agreed.
    deflate: Option<Deflate>,
    /// What was looked at before its time. Boxed, for there is hardly ever something.
    ahead: Option<Box<Incoming>>,
}

/// Compression as a socket has it.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// What was agreed.
    pub deflate: Deflate,
    /// Counts what it saves.
    pub metrics: Arc<CompressionMetrics>,
}

impl Agreed {
    /// Without anybody who looks at the metrics.
    pub fn uncounted(deflate: Deflate) -> Self {
        Self { deflate, metrics: Arc::default() }
    }
}

impl Socket {
    /// Takes the connection over from HTTP, once the 101 is sent, with the compression that it agreed to.
    ///
    /// # Errors
    /// When it broke before. Bytes that came right after the handshake are not lost.
    pub async fn upgrade(
        on_upgrade: OnUpgrade,
        bounds: Bounds,
        compression: Option<Agreed>,
    ) -> Result<Self, hyper::Error> {
        let upgraded: Upgraded = on_upgrade.await?;
        // HTTP's read buffer is given up with the rest of it: it would cost each session 5 KB. What is in it is copied.
        let (stream, early): (Box<dyn Io>, _) = match upgraded.downcast::<TokioIo<Watched>>() {
            Ok(parts) => (Box::new(parts.io.into_inner().into_inner()), parts.read_buf.to_vec()),
            Err(other) => (Box::new(TokioIo::new(other)), Vec::new()),
        };
        Ok(Self::new(stream, early, bounds, compression).await)
    }

    /// `early` was read from `stream` already.
    async fn new(stream: Box<dyn Io>, mut early: Vec<u8>, bounds: Bounds, compression: Option<Agreed>) -> Self {
        let mut frames = Frames::default();
        let deflate = compression.as_ref().map(|agreed| agreed.deflate);
        let inflating = compression.map(|Agreed { metrics, .. }| {
            Box::new(Inflating::new(bounds.max_read, std::mem::take(&mut early), metrics))
        });
        frames.feed(&early);
        let stream = Tracked { stream: Paced { stream, pause: None }, frames, inflating };
        let stream = WebSocketStream::from_partially_read(stream, early, Role::Server, Some(bounds.config())).await;
        Self { stream: Box::new(stream), queued: 0, grown: false, deflate, ahead: None }
    }

    /// Waits for a message. Cancel safe.
    pub async fn next(&mut self) -> Incoming {
        if let Some(ahead) = self.ahead.take() {
            return *ahead;
        }
        match self.stream.next().await {
            None | Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => Incoming::Closed(None),
            Some(Ok(Message::Text(text))) => {
                self.grown |= text.len() > SMALL;
                Incoming::Text(text)
            }
            Some(Ok(Message::Binary(bytes))) => {
                self.grown |= bytes.len() > SMALL;
                Incoming::Binary(bytes)
            }
            Some(Ok(Message::Close(frame))) => Incoming::Closed(frame.map(|frame| frame.code.into())),
            Some(Ok(Message::Ping(_) | Message::Frame(_))) => Incoming::Ping,
            Some(Ok(Message::Pong(payload))) => Incoming::Pong(payload),
            Some(Err(error)) => violation(&error),
        }
    }

    /// What is just there. It stays for [`next`](Self::next).
    pub fn peek(&mut self) -> Option<&Incoming> {
        if self.ahead.is_none() {
            self.ahead = self.next().now_or_never().map(Box::new);
        }
        self.ahead.as_deref()
    }

    /// Queues a message; writes when enough are queued. Not cancel safe: the message may be queued.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn feed(&mut self, message: Message) -> Result<(), WriteError> {
        self.queued += message.len();
        self.grown |= self.queued > SMALL;
        let message = match self.deflate.zip(self.stream.get_ref().inflating.as_ref()) {
            Some((deflate, inflating)) => compressed(message, deflate, inflating.metrics()),
            None => message,
        };
        self.stream.feed(message).await.map_err(|_| WriteError)
    }

    /// Writes everything queued. Cancel safe.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn flush(&mut self) -> Result<(), WriteError> {
        self.queued = 0;
        self.stream.flush().await.map_err(|_| WriteError)
    }

    /// How much of texts and binaries has come so far, in bytes. Only differences mean something. A message that is not
    /// complete adds to it as much as the limit of a message at the most.
    pub fn arrived(&self) -> u64 {
        self.stream.get_ref().frames.arrived
    }

    /// Whether there is memory to give back.
    pub fn is_grown(&self) -> bool {
        self.grown && self.ahead.is_none()
    }

    /// Gives back the memory of large messages, if nothing is there to be read, and nothing half read or half written.
    pub async fn compact(self) -> Self {
        let mut this = self;
        let is_idle = this.peek().is_none() && this.stream.get_ref().at_rest();
        if !is_idle || this.flush().now_or_never().is_none_or(|done| done.is_err()) {
            return this;
        }
        let (config, deflate) = (*this.stream.get_config(), this.deflate);
        let stream = this.stream.into_inner();
        let stream = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        Self { stream: Box::new(stream), queued: 0, grown: false, deflate, ahead: None }
    }

    /// Writes the answer to the peer's close, which is queued. Takes a few seconds at most.
    pub async fn answer_close(mut self) {
        // Nobody cares if it can't be written any more.
        let _ = tokio::time::timeout(FAREWELL, self.stream.flush()).await;
    }

    /// Says farewell with a close code, lets the peer read it, and closes. Takes a few seconds at most.
    pub async fn close(mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: Utf8Bytes::from_static(reason) };
        let farewell = async {
            let _ = (*self.stream).close(Some(frame)).await;
            let mut stream = self.stream.into_inner();
            let _ = stream.shutdown().await;
            // Closing with unread bytes would reset the connection, and the peer might never read why.
            let mut rest = [0; 512];
            let stream = &mut stream.stream.stream;
            while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

/// The same message as it is written where compression was agreed.
fn compressed(message: Message, deflate: Deflate, metrics: &CompressionMetrics) -> Message {
    let (plain, kind) = match &message {
        Message::Text(text) => (text.as_bytes(), Data::Text),
        Message::Binary(bytes) => (bytes.as_ref(), Data::Binary),
        _ => return message,
    };
    let Some(payload) = zlib::deflated(plain, deflate) else { return message };
    metrics.sent.count(plain.len(), payload.len());
    let header = FrameHeader { rsv1: true, opcode: OpCode::Data(kind), ..FrameHeader::default() };
    Message::Frame(Frame::from_payload(header, payload.into()))
}

fn violation(error: &Error) -> Incoming {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Incoming::Violation(1009, "the frame is over the limit")
        }
        Error::Utf8(_) => Incoming::Violation(1007, "a text was not UTF-8"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Incoming::Broken,
        Error::Protocol(_) | Error::Capacity(_) => Incoming::Violation(1002, "against RFC 6455"),
        Error::Io(error) => match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(Violation { code, reason }) => Incoming::Violation(*code, reason),
            None => Incoming::Broken,
        },
        _ => Incoming::Broken,
    }
}

/// What a socket runs on.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> Io for T {}

/// A stream that knows whether its reader stands between two messages.
#[derive(Debug)]
struct Tracked {
    stream: Paced,
    frames: Frames,
    /// There if compression was agreed.
    inflating: Option<Box<Inflating>>,
}

impl Tracked {
    fn at_rest(&self) -> bool {
        self.frames.at_rest() && self.inflating.as_ref().is_none_or(|inflating| inflating.at_rest())
    }
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        if let Some(inflating) = &mut this.inflating {
            return inflating.poll_read(&mut this.stream, &mut this.frames, cx, buf);
        }
        let before = buf.filled().len();
        ready!(this.stream.poll_read(this.frames.fragments, cx, buf))?;
        this.frames.feed(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

/// A stream of which a buffer at a time is read, with pauses, while a message is in very many frames.
#[derive(Debug)]
struct Paced {
    stream: Box<dyn Io>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    /// Reads. `fragments`: how many frames there have been of a message that is not complete.
    fn poll_read(&mut self, fragments: u32, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if fragments > FRAGMENTS {
            self.pause = Some(Box::pin(tokio::time::sleep(FRAGMENTS_PAUSE)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream.stream).poll_shutdown(cx)
    }
}

/// For fuzzers: a socket on `stream`, with compression or without it.
#[cfg(any(test, fuzzing))]
pub(crate) async fn fuzzed(stream: Box<impl Io + 'static>, bounds: Bounds, compression: bool) -> Socket {
    let mut offer = HeaderMap::new();
    offer.insert(header::SEC_WEBSOCKET_EXTENSIONS, header::HeaderValue::from_static("permessage-deflate"));
    let deflate = extensions::select(&offer).ok().flatten().filter(|_| compression);
    Socket::new(stream, Vec::new(), bounds, deflate.map(Agreed::uncounted)).await
}

#[cfg(test)]
mod compression_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes() {
        let mut headers = HeaderMap::new();
        let handshake = |headers: &HeaderMap| handshake(Version::HTTP_11, headers, false);
        assert_eq!(handshake(&headers).unwrap_err(), HandshakeError::NotAnUpgrade);
        headers.insert(header::CONNECTION, "keep-alive, Upgrade".parse().unwrap());
        headers.insert(header::UPGRADE, "WebSocket".parse().unwrap());
        assert_eq!(handshake(&headers).unwrap_err(), HandshakeError::NoVersion);
        headers.insert(header::SEC_WEBSOCKET_VERSION, "13".parse().unwrap());
        assert_eq!(handshake(&headers).unwrap_err(), HandshakeError::NoKey);
        // The example of RFC 6455, section 1.3.
        headers.insert(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        let response = handshake(&headers).unwrap();
        assert_eq!(response.headers()[header::SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn compression_is_agreed_to_only_where_it_is_permitted_and_asked_for() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, "Upgrade".parse().unwrap());
        headers.insert(header::UPGRADE, "websocket".parse().unwrap());
        headers.insert(header::SEC_WEBSOCKET_VERSION, "13".parse().unwrap());
        headers.insert(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        let agreed = |headers: &HeaderMap, compression| {
            let response = handshake(Version::HTTP_11, headers, compression).unwrap();
            let deflate = response.extensions().get::<Deflate>().copied();
            assert_eq!(response.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS), deflate.is_some());
            deflate.is_some()
        };
        assert!(!agreed(&headers, true), "nothing is offered");
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate".parse().unwrap());
        assert!(!agreed(&headers, false), "it is not permitted");
        assert!(agreed(&headers, true));
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate; =".parse().unwrap());
        let error = handshake(Version::HTTP_11, &headers, true).unwrap_err();
        assert_eq!((error.status(), error), (StatusCode::BAD_REQUEST, HandshakeError::Extensions));
    }
}
