//! Owns the target of WebSocket frames: a socket that reads them, with compression and without it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::edge::websocket::{Bounds, Incoming, Message, Socket, fuzzed};

const BOUNDS: Bounds = Bounds { max_read: 3000, max_write: 3000 };

/// The first byte says whether compression was agreed and how many bytes come at a time; the rest are frames. The
/// same frames mean the same in whatever pieces they come.
pub(super) fn frames(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let (compression, step) = (how & 1 == 1, usize::from(how >> 1).max(1));
    let (whole, in_pieces) = (said(bytes, bytes.len().max(1), compression), said(bytes, step, compression));
    assert_eq!(whole, in_pieces, "in pieces of {step}");
}

/// What a session is told of these frames, and what it writes: each text comes back.
fn said(bytes: &[u8], step: usize, compression: bool) -> Vec<Incoming> {
    let pieces = Pieces { bytes: bytes.to_vec(), at: 0, step, wait: false };
    let Some(mut socket) = fuzzed(Box::new(pieces), BOUNDS, compression).now_or_never() else { return Vec::new() };
    let mut said = Vec::new();
    loop {
        let incoming = match socket.next().now_or_never() {
            Some(incoming) => incoming,
            // It waits, as it does after each piece: a moment at which a session may put its socket together anew.
            None => {
                let Some(compacted) = socket.compact().now_or_never() else { return said };
                socket = compacted;
                continue;
            }
        };
        match &incoming {
            Incoming::Text(text) => {
                assert!(text.len() <= BOUNDS.max_read, "{} bytes", text.len());
                let _ = echo(&mut socket, Message::Text(text.clone())).now_or_never();
            }
            Incoming::Binary(bytes) => assert!(bytes.len() <= BOUNDS.max_read, "{} bytes", bytes.len()),
            Incoming::Ping | Incoming::Pong(_) => continue,
            Incoming::Closed(_) | Incoming::Broken | Incoming::Violation(..) => {
                said.push(incoming);
                return said;
            }
        }
        said.push(incoming);
    }
}

async fn echo(socket: &mut Socket, message: Message) {
    if socket.feed(message).await.is_ok() {
        let _ = socket.flush().await;
    }
}

/// Bytes that come in pieces, with a wait before each; what is written is lost.
#[derive(Debug)]
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
    wait: bool,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.wait = !self.wait;
        if self.wait {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let count = rest.len().min(self.step).min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
