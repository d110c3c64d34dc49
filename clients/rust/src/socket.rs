//! Owns bytes: how a WebSocket is opened, read and written.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::http::header::RETRY_AFTER;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::address::Address;
use crate::frames::Text;
use crate::state::Cause;
use crate::tls::Tls;

/// Frames that wait to be written; a server that takes so few of what it asks for is gone.
const MOST_WAITING: usize = 1024;
/// The longest frame that is read. Those of a server are as long as a text.
const MOST_BYTES: usize = 16 << 20;
/// The usual one is 128 KiB.
const READ_BUFFER: usize = 16 << 10;
const BROKEN: u16 = 1006;
const WITHOUT_CODE: u16 = 1005;

/// A stream, with TLS or without.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A handshake that led to nothing.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) why: Cause,
    pub(crate) retry_after: Option<Duration>,
}

impl From<Cause> for Refusal {
    fn from(why: Cause) -> Self {
        Self { why, retry_after: None }
    }
}

/// What came.
#[derive(Debug)]
pub(crate) enum Incoming {
    Text(String),
    /// Nothing that the client reads.
    Sign,
    Closed(u16),
}

pub(crate) struct Socket {
    stream: WebSocketStream<Box<dyn Io>>,
    waiting: VecDeque<Text>,
    is_flushed: bool,
    /// Nothing can be written any more; why is in what is still to be read, perhaps.
    is_mute: bool,
}

impl Socket {
    /// Opens a WebSocket. How long that may take is the caller's business.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn open(address: &Address, tls: Option<&Tls>) -> Result<Self, Refusal> {
        let unreachable = |why: String| Cause::Unreachable(why);
        let Address { uri, host, port, .. } = address;
        let tcp = TcpStream::connect((host.as_str(), *port)).await;
        let tcp = tcp.map_err(|error| unreachable(format!("{host}:{port} can't be reached: {error}")))?;
        // A message does not wait until the one before it has arrived.
        let _ = tcp.set_nodelay(true);
        let stream: Box<dyn Io> = match tls.filter(|_| address.is_tls) {
            Some(tls) => Box::new(tls.connect(host, &format!("{host}:{port}"), tcp).await?),
            None => Box::new(tcp),
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(MOST_BYTES))
            .max_frame_size(Some(MOST_BYTES));
        let opened = tokio_tungstenite::client_async_with_config(uri.clone(), stream, Some(config)).await;
        let (stream, _) = opened.map_err(|error| match error {
            Error::Http(response) => {
                let value = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                let retry_after = value.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
                let status = response.status().as_u16();
                let said = response.body().as_deref().map(sentence).filter(|said| !said.is_empty());
                let why = match said {
                    // A gateway says what is wrong with a handshake, or that it speaks TLS.
                    Some(said) if status == 400 => unreachable(format!("{host}:{port} says: {said} (HTTP 400)")),
                    _ => Cause::Refused(status),
                };
                Refusal { why, retry_after }
            }
            error => unreachable(format!("{host}:{port} does not speak as a gateway does: {error}")).into(),
        })?;
        Ok(Self { stream, waiting: VecDeque::new(), is_flushed: true, is_mute: false })
    }

    /// A frame that [`Socket::next`] writes.
    pub(crate) fn write(&mut self, text: Text) {
        self.waiting.push_back(text);
    }

    /// Writes what waits, and gives what comes. Cancel safe.
    pub(crate) async fn next(&mut self) -> Incoming {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Incoming> {
        if self.waiting.len() > MOST_WAITING {
            return Poll::Ready(Incoming::Closed(BROKEN));
        }
        if !self.is_mute && self.poll_write(context).is_err() {
            self.is_mute = true;
            self.waiting.clear();
        }
        loop {
            let Poll::Ready(read) = Pin::new(&mut self.stream).poll_next(context) else { return Poll::Pending };
            return Poll::Ready(match read {
                Some(Ok(Message::Text(text))) => Incoming::Text(text.as_str().to_owned()),
                Some(Ok(Message::Close(frame))) => {
                    // The answer to the close: at once, or not at all.
                    let _ = Pin::new(&mut self.stream).poll_flush(context);
                    Incoming::Closed(frame.map_or(WITHOUT_CODE, |frame| frame.code.into()))
                }
                Some(Ok(Message::Frame(_))) => continue,
                Some(Ok(_)) => Incoming::Sign,
                Some(Err(_)) | None => Incoming::Closed(BROKEN),
            });
        }
    }

    /// As much as goes now.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        let mut stream = Pin::new(&mut self.stream);
        while !self.waiting.is_empty() {
            match stream.as_mut().poll_ready(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(()),
            }
            if let Some(Text(text)) = self.waiting.pop_front() {
                stream.as_mut().start_send(Message::text(text))?;
                self.is_flushed = false;
            }
        }
        if !self.is_flushed
            && let Poll::Ready(flushed) = stream.poll_flush(context)
        {
            flushed?;
            self.is_flushed = true;
        }
        Ok(())
    }

    /// Says that the session is over, and waits until the server has read it. Not cancel safe: the WebSocket is used up.
    pub(crate) async fn close(mut self) {
        self.waiting.clear();
        let close = CloseFrame { code: 1000.into(), reason: "".into() };
        if self.stream.close(Some(close)).await.is_ok() {
            while !matches!(self.next().await, Incoming::Closed(_)) {}
        }
    }
}

/// The first line of what a server says, if it is for people.
fn sentence(body: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(body);
    let line = text.lines().next().unwrap_or_default().trim();
    if line.starts_with('<') {
        return String::new();
    }
    line.chars().filter(|letter| !letter.is_control()).take(MOST).collect()
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}
