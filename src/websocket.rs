//! Owns the WebSocket itself: the upgrade of an HTTP request, and a socket that stays small.
//!
//! An idle socket costs what its task and two empty buffers cost, whatever went through it before:
//! the buffers of the underlying library grow with the largest message and never shrink, so the
//! socket is put together anew, with fresh ones, whenever [`Socket::compact`] finds it at rest.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use http::{HeaderMap, Response, StatusCode, Version, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
pub use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::keep_alive::Watched;

/// What a read buffer starts with, and what is read at a time.
const READ_BUFFER: usize = 1024;
/// Bytes that are gathered before they are written.
const WRITE_BUFFER: usize = 4096;
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
}

impl HandshakeError {
    /// The status that says so.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotAnUpgrade | Self::OldHttp(_) | Self::NoConnection | Self::NoUpgrade => {
                StatusCode::UPGRADE_REQUIRED
            }
            Self::NoVersion | Self::Version(_) => StatusCode::UPGRADE_REQUIRED,
            Self::NoKey | Self::Key | Self::Subprotocol(_) => StatusCode::BAD_REQUEST,
        }
    }
}

/// Checks a handshake and makes the answer to it.
///
/// # Errors
/// When it is none.
pub fn handshake(version: Version, headers: &HeaderMap) -> Result<Response<()>, HandshakeError> {
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
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    if let Some(name) = subprotocol {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(name));
    }
    answer.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    let accept = derive_accept_key(key);
    let accept = header::HeaderValue::from_str(&accept).map_err(|_| HandshakeError::Key)?;
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
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
    /// A ping (answered already) or a pong: the peer lives.
    Alive,
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
    bounds: Bounds,
    /// Bytes queued since the last flush.
    queued: usize,
    /// Something larger than a fresh buffer went through.
    grown: bool,
}

impl Socket {
    /// Takes the connection over from HTTP, once the 101 is sent.
    ///
    /// # Errors
    /// When it broke before. Bytes that came right after the handshake are not lost.
    pub async fn upgrade(on_upgrade: OnUpgrade, bounds: Bounds) -> Result<Self, hyper::Error> {
        let upgraded: Upgraded = on_upgrade.await?;
        // HTTP's read buffer is given up with the rest of it: it would cost each session 5 KB.
        match upgraded.downcast::<TokioIo<Watched>>() {
            Ok(parts) => {
                let mut stream =
                    Tracked { stream: Box::new(parts.io.into_inner().into_inner()), frames: Frames::default() };
                // A copy: the buffer itself is HTTP's, and large.
                let early = parts.read_buf.to_vec();
                stream.frames.feed(&early);
                let config = Some(bounds.config());
                let stream = WebSocketStream::from_partially_read(stream, early, Role::Server, config).await;
                Ok(Self { stream: Box::new(stream), bounds, queued: 0, grown: false })
            }
            Err(other) => {
                let stream = Tracked { stream: Box::new(TokioIo::new(other)), frames: Frames::default() };
                let stream = WebSocketStream::from_raw_socket(stream, Role::Server, Some(bounds.config())).await;
                Ok(Self { stream: Box::new(stream), bounds, queued: 0, grown: false })
            }
        }
    }

    /// Waits for a message. Cancel safe.
    pub async fn next(&mut self) -> Incoming {
        match self.stream.next().await {
            None | Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => Incoming::Closed(None),
            Some(Ok(Message::Text(text))) => {
                self.grown |= text.len() > READ_BUFFER;
                Incoming::Text(text)
            }
            Some(Ok(Message::Binary(bytes))) => {
                self.grown |= bytes.len() > READ_BUFFER;
                Incoming::Binary(bytes)
            }
            Some(Ok(Message::Close(frame))) => Incoming::Closed(frame.map(|frame| frame.code.into())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Incoming::Alive,
            Some(Err(error)) => violation(&error),
        }
    }

    /// Queues a message; writes when enough are queued. Not cancel safe: the message may be queued.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn feed(&mut self, message: Message) -> Result<(), WriteError> {
        self.queued += message.len();
        self.grown |= self.queued > READ_BUFFER;
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
        self.grown
    }

    /// Gives back the memory of large messages, if nothing is half read or half written. A message
    /// that is just there is returned instead.
    pub async fn compact(self) -> (Self, Option<Incoming>) {
        let mut this = self;
        if let Some(incoming) = this.next().now_or_never() {
            return (this, Some(incoming));
        }
        if !this.stream.get_ref().frames.at_rest() || this.flush().now_or_never().is_none_or(|done| done.is_err()) {
            return (this, None);
        }
        let bounds = this.bounds;
        let stream = this.stream.into_inner();
        let stream = WebSocketStream::from_raw_socket(stream, Role::Server, Some(bounds.config())).await;
        (Self { stream: Box::new(stream), bounds, queued: 0, grown: false }, None)
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
            while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

fn violation(error: &Error) -> Incoming {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Incoming::Violation(1009, "the frame is over the limit")
        }
        Error::Utf8(_) => Incoming::Violation(1007, "a text was not UTF-8"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Incoming::Broken,
        Error::Protocol(_) | Error::Capacity(_) => Incoming::Violation(1002, "against RFC 6455"),
        _ => Incoming::Broken,
    }
}

/// What a socket runs on.
trait Io: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> Io for T {}

/// A stream that knows whether its reader stands between two messages.
#[derive(Debug)]
struct Tracked {
    stream: Box<dyn Io>,
    frames: Frames,
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.frames.feed(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Follows the frames in a stream of bytes (RFC 6455, section 5.2), as far as their ends go.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 10],
    have: u8,
    mask: u8,
    payload: u64,
    control: bool,
    fragmented: bool,
    /// Payload of texts and binaries that has come so far; it wraps.
    arrived: u64,
}

impl Frames {
    /// Between two messages: no frame begun, and no message either.
    fn at_rest(&self) -> bool {
        self.have == 0 && self.mask == 0 && self.payload == 0 && !self.fragmented
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.mask > 0 {
                self.mask -= 1;
                bytes = &bytes[1..];
                continue;
            }
            if self.payload > 0 {
                let skip = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= skip as u64;
                if !self.control {
                    self.arrived = self.arrived.wrapping_add(skip as u64);
                }
                bytes = &bytes[skip..];
                continue;
            }
            let Some((first, rest)) = bytes.split_first() else { return };
            if let Some(place) = self.header.get_mut(usize::from(self.have)) {
                *place = *first;
            }
            self.have += 1;
            bytes = rest;
            let length_bytes = match self.header[1] & 0x7f {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            if self.have < 2 || self.have < 2 + length_bytes {
                continue;
            }
            let extended = self.header[2..2 + usize::from(length_bytes)].iter();
            let length = match length_bytes {
                0 => u64::from(self.header[1] & 0x7f),
                _ => extended.fold(0, |length, byte| length << 8 | u64::from(*byte)),
            };
            self.mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
            self.control = self.header[0] & 0x0f >= 8;
            if !self.control {
                self.fragmented = self.header[0] & 0x80 == 0;
            }
            self.payload = length;
            self.have = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(first: u8, payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match payload {
            0..126 => bytes.push(mask | payload as u8),
            126..65536 => {
                bytes.push(mask | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(std::iter::repeat_n(0x5a, payload + if masked { 4 } else { 0 }));
        bytes
    }

    proptest! {
        #[test]
        fn rest_is_found_exactly_between_messages(
            sizes in proptest::collection::vec((prop_oneof![0..130_usize, 65530..65540_usize], any::<bool>()), 1..6),
            step in 1..5000_usize,
        ) {
            let (mut frames, mut payload) = (Frames::default(), 0);
            for (size, masked) in sizes {
                // A message in two fragments with a ping between them.
                let parts = [frame(0x01, size, masked), frame(0x89, 3, masked), frame(0x80, size, masked)];
                for (at, part) in parts.iter().enumerate() {
                    for chunk in part.chunks(step) {
                        prop_assert!(at == 0 || !frames.at_rest());
                        frames.feed(chunk);
                    }
                }
                prop_assert!(frames.at_rest());
                payload += 2 * size as u64;
                prop_assert_eq!(frames.arrived, payload);
            }
        }
    }

    #[test]
    fn handshakes() {
        let mut headers = HeaderMap::new();
        let handshake = |headers: &HeaderMap| handshake(Version::HTTP_11, headers);
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
}
