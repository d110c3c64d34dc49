//! Owns plain HTTP requests, as few as health checks need.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The header lines that ask for a WebSocket, with the key of RFC 6455's example.
pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The head, as it came.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// `GET path`, with further header lines (each ended by CRLF).
///
/// # Errors
/// When there is no answer within five seconds.
pub async fn get(address: SocketAddr, path: &str, headers: &str) -> Result<Response> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        parse(&answer)?.context("no HTTP answer")
    };
    tokio::time::timeout(LIMIT, exchange).await?
}

/// Writes `request`, a head as it is, and reads one answer with a `Content-Length`; the connection stays open. What
/// comes behind a 101 may be lost.
///
/// # Errors
/// When there is no answer within five seconds.
pub async fn ask(stream: &mut TcpStream, request: &str) -> Result<Response> {
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            ensure!(stream.read_buf(&mut answer).await? > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            let Some(response) = parse(&answer)? else { continue };
            let length = response.header("Content-Length").and_then(|length| length.parse().ok()).unwrap_or(0);
            if response.body.len() >= length {
                return Ok(response);
            }
        }
    };
    tokio::time::timeout(LIMIT, exchange).await?
}

fn parse(answer: &[u8]) -> Result<Option<Response>> {
    let answer = String::from_utf8_lossy(answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Ok(None) };
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    Ok(Some(Response { status, head: head.to_owned(), body: body.to_owned() }))
}
