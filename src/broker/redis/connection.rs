//! Owns one connection to a Redis server: opening it, writing commands, reading replies in place.
//!
//! The `redis` crate speaks with the Sentinels; the links have these few lines of their own, since
//! every message arrives once per link: a copy must be recognised in the read buffer, before
//! anything of it is parsed or allocated, and commands must go out in the order they are given.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::config::Address;
use crate::config::secret::{Credentials, Password};
use crate::tls::connector::{ConnectError, Connector, ServerStream};
use crate::tls::reasons::TlsReason;

/// A reply longer than this is not Redis speaking: no message comes near it.
const MAX_REPLY: usize = 64 * 1024 * 1024;
/// Bytes a second that a server takes at the least: a batch of 256 KiB gets two seconds more than a heartbeat.
const SLOWEST: f64 = 128.0 * 1024.0;
/// What the read buffer shrinks back to after a burst.
const USUAL_BUFFER: usize = 64 * 1024;

/// Why a connection could not be used, in words for an operator.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Nothing was answered in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// TLS is spoken by one side alone, or the two can't agree.
    #[error("{0}")]
    Tls(#[from] TlsReason),
    /// The server did not accept the credentials.
    #[error(
        "the server refused the credentials ({0}): check TEXTO_REDIS_USERNAME and TEXTO_REDIS_PASSWORD or its _FILE"
    )]
    Refused(String),
    /// The server does not know a command.
    #[error("the server does not know the command {0}: it must be Redis 6.2 or newer, and {0} not renamed")]
    Unknown(&'static str),
    /// The server answered with an error.
    #[error("the server answered: {0}")]
    Server(String),
    /// The user may not do what Texto needs.
    #[error("the server refuses {command} to this user ({text}): give the right with `{mend}`")]
    Right {
        /// The command.
        command: &'static str,
        /// What the server said.
        text: String,
        /// The command that mends it.
        mend: String,
    },
    /// Two connections to one address.
    #[error(
        "two connections to this address reached different servers: give each Redis an address of its own, or use \
         --sentinels (TEXTO_SENTINELS)"
    )]
    DifferentServers,
    /// It is a Sentinel.
    #[error("this is a Sentinel, not a Redis: give its address to --sentinels (TEXTO_SENTINELS)")]
    Sentinel,
    /// The bytes are not Redis' protocol.
    #[error("the peer does not speak the protocol of Redis")]
    Protocol,
}

impl ConnectionError {
    /// Whether the server lives, but will refuse again.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Silent(_) | Self::Io(_) | Self::Closed => false,
            Self::Tls(reason) => !matches!(reason, TlsReason::Silent(_) | TlsReason::BrokenOff(_)),
            Self::Server(text) => !is_for_later(text.as_bytes()),
            Self::Refused(_) | Self::Unknown(_) | Self::Right { .. } | Self::DifferentServers => true,
            Self::Sentinel | Self::Protocol => true,
        }
    }

    /// Gives an error reply its meaning.
    pub(super) fn from_reply(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text).into_owned();
        match text.split(' ').next() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Self::Refused(text),
            _ if text.contains("without any password configured") => Self::Refused(text),
            _ => Self::Server(text),
        }
    }
}

/// Whether an error reply means "not now": a script runs, the server loads, or its master is away.
pub(super) fn is_for_later(text: &[u8]) -> bool {
    matches!(text.split(|byte| *byte == b' ').next(), Some(b"BUSY" | b"LOADING" | b"MASTERDOWN"))
}

/// Whether an error reply says that the server does not know the command, as one that was renamed.
pub(super) fn is_unknown(text: &[u8]) -> bool {
    text.starts_with(b"ERR unknown command")
}

/// A reply, still in the read buffer.
#[derive(Debug, PartialEq)]
pub enum Reply<'a> {
    /// A status such as `OK` or `PONG`.
    Status(&'a [u8]),
    /// An error.
    Error(&'a [u8]),
    /// A number.
    Number(i64),
    /// A string; `None` is null.
    Bytes(Option<&'a [u8]>),
    /// An array, set, or map (its keys and values in turn).
    Array(Vec<Reply<'a>>),
    /// Something that was not asked for, such as a confirmation.
    Push(Vec<Reply<'a>>),
    /// A message on a channel.
    Message {
        /// The channel.
        channel: &'a [u8],
        /// What was published.
        payload: &'a [u8],
    },
}

impl<'a> Reply<'a> {
    /// The text of a string or status.
    pub fn text(&self) -> Option<&'a [u8]> {
        match self {
            Self::Status(text) | Self::Bytes(Some(text)) => Some(text),
            _ => None,
        }
    }
}

/// A reply at the start of `input` and its length; `None` when it is not complete yet.
pub fn parse(input: &[u8]) -> Result<Option<(Reply<'_>, usize)>, ConnectionError> {
    let mut cursor = Cursor { input, at: 0 };
    match cursor.reply(0) {
        Ok(reply) => Ok(Some((reply, cursor.at))),
        Err(Stop::Incomplete) if input.len() <= MAX_REPLY => Ok(None),
        Err(_) => Err(ConnectionError::Protocol),
    }
}

enum Stop {
    Incomplete,
    Invalid,
}

struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let rest = &self.input[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(Stop::Incomplete)?;
        let line = rest[..end].strip_suffix(b"\r").ok_or(Stop::Invalid)?;
        self.at += end + 1;
        Ok(line)
    }

    fn number(line: &[u8]) -> Result<i64, Stop> {
        std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).ok_or(Stop::Invalid)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let end = self.at.checked_add(length).filter(|end| *end <= MAX_REPLY).ok_or(Stop::Invalid)?;
        let bytes = self.input.get(self.at..end).ok_or(Stop::Incomplete)?;
        match self.input.get(end..end + 2) {
            None => Err(Stop::Incomplete),
            Some(b"\r\n") => {
                self.at = end + 2;
                Ok(bytes)
            }
            Some(_) => Err(Stop::Invalid),
        }
    }

    /// The next element where it must be a string: no allocation, no recursion.
    fn string(&mut self) -> Result<&'a [u8], Stop> {
        let line = self.line()?;
        match line.split_first() {
            Some((b'$', length)) => self.bytes(usize::try_from(Self::number(length)?).map_err(|_| Stop::Invalid)?),
            _ => Err(Stop::Invalid),
        }
    }

    fn elements(&mut self, line: &[u8], each: usize, depth: u8) -> Result<Vec<Reply<'a>>, Stop> {
        let count = usize::try_from(Self::number(line)?).map_err(|_| Stop::Invalid)?;
        let count = count.checked_mul(each).filter(|count| *count <= MAX_REPLY).ok_or(Stop::Invalid)?;
        let mut elements = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            elements.push(self.reply(depth + 1)?);
        }
        Ok(elements)
    }

    fn reply(&mut self, depth: u8) -> Result<Reply<'a>, Stop> {
        if depth > 8 {
            return Err(Stop::Invalid);
        }
        const MESSAGE: &[u8] = b">3\r\n$7\r\nmessage\r\n";
        if depth == 0 && self.input.starts_with(MESSAGE) {
            self.at = MESSAGE.len();
            let channel = self.string()?;
            return Ok(Reply::Message { channel, payload: self.string()? });
        }
        let line = self.line()?;
        let (kind, rest) = line.split_first().ok_or(Stop::Invalid)?;
        Ok(match kind {
            b'+' => Reply::Status(rest),
            b'-' => Reply::Error(rest),
            b':' => Reply::Number(Self::number(rest)?),
            b'_' => Reply::Bytes(None),
            b'#' | b',' | b'(' => Reply::Status(rest),
            b'$' | b'=' => match Self::number(rest)? {
                -1 => Reply::Bytes(None),
                length => Reply::Bytes(Some(self.bytes(usize::try_from(length).map_err(|_| Stop::Invalid)?)?)),
            },
            b'!' => {
                let length = usize::try_from(Self::number(rest)?).map_err(|_| Stop::Invalid)?;
                Reply::Error(self.bytes(length)?)
            }
            b'*' if rest == b"-1" => Reply::Bytes(None),
            b'*' | b'~' => Reply::Array(self.elements(rest, 1, depth)?),
            b'%' => Reply::Array(self.elements(rest, 2, depth)?),
            b'>' => Reply::Push(self.elements(rest, 1, depth)?),
            _ => return Err(Stop::Invalid),
        })
    }
}

/// The reading half. Cancel safe: what was read stays in the buffer.
#[derive(Debug)]
pub struct Reader {
    stream: ReadHalf<ServerStream>,
    buffer: BytesMut,
    consumed: usize,
}

impl Reader {
    /// Waits until a whole reply is in the buffer, and lends it until the next call.
    pub async fn next(&mut self) -> Result<Reply<'_>, ConnectionError> {
        self.discard();
        while parse(&self.buffer)?.is_none() {
            self.fill().await?;
        }
        match self.buffered()? {
            Some(reply) => Ok(reply),
            None => Err(ConnectionError::Protocol), // It was whole a moment ago.
        }
    }

    /// A whole reply that has arrived already, if there is one.
    pub fn buffered(&mut self) -> Result<Option<Reply<'_>>, ConnectionError> {
        self.discard();
        let Some((reply, length)) = parse(&self.buffer)? else { return Ok(None) };
        self.consumed = length;
        Ok(Some(reply))
    }

    /// Waits for more bytes.
    pub async fn fill(&mut self) -> Result<(), ConnectionError> {
        self.discard();
        self.buffer.reserve(16 * 1024);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(ConnectionError::Closed),
            _ => Ok(()),
        }
    }

    fn discard(&mut self) {
        self.buffer.advance(std::mem::take(&mut self.consumed));
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * USUAL_BUFFER {
            self.buffer = BytesMut::with_capacity(USUAL_BUFFER);
        }
    }
}

/// The writing half.
#[derive(Debug)]
pub struct Writer {
    stream: WriteHalf<ServerStream>,
    limit: Duration,
}

impl Writer {
    /// Writes packed commands.
    ///
    /// # Errors
    /// When they can't all be written within the connection's deadline. Not cancel safe: a command may
    /// be cut, so the connection must be dropped then.
    pub async fn write(&mut self, commands: &[u8]) -> Result<(), ConnectionError> {
        let limit = self.limit + Duration::from_secs_f64(commands.len() as f64 / SLOWEST);
        let write = async {
            self.stream.write_all(commands).await?;
            self.stream.flush().await // With TLS, the last of it may still be here.
        };
        match timeout(limit, write).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ConnectionError::Silent(limit)),
        }
    }
}

/// Resolves, connects, does the TLS handshake if there is one, authenticates and switches to RESP3, each step within
/// `limit`.
///
/// # Errors
/// What an operator should know; the address is left to the caller.
pub async fn open(
    address: &Address,
    connector: &Connector,
    credentials: &Credentials,
    name: &str,
    limit: Duration,
) -> Result<(Reader, Writer), ConnectionError> {
    let stream = connector.connect(address, limit).await.map_err(|error| match error {
        ConnectError::Io(error) => ConnectionError::Io(error),
        ConnectError::Tls(reason) => ConnectionError::Tls(reason),
    })?;
    let told = stream.told();
    let (read, write) = tokio::io::split(stream);
    let reader = Reader { stream: read, buffer: BytesMut::new(), consumed: 0 };
    let writer = Writer { stream: write, limit };
    let error = match greet(reader, writer, credentials, name, limit).await {
        Err(error @ (ConnectionError::Io(_) | ConnectionError::Closed | ConnectionError::Protocol)) => error,
        result => return result,
    };
    let reason = match told.reason() {
        None => connector.doubt(address, limit).await,
        told => told,
    };
    Err(reason.map_or(error, ConnectionError::Tls))
}

/// Authenticates and switches to RESP3.
async fn greet(
    mut reader: Reader,
    mut writer: Writer,
    credentials: &Credentials,
    name: &str,
    limit: Duration,
) -> Result<(Reader, Writer), ConnectionError> {
    let mut hello: Vec<&[u8]> = vec![b"HELLO", b"3"];
    let password = credentials.password.as_ref().map(Password::current);
    if let Some(password) = &password {
        let username = credentials.username.as_deref().unwrap_or("default");
        hello.extend([b"AUTH".as_slice(), username.as_bytes(), password.expose().as_bytes()]);
    }
    hello.extend([b"SETNAME".as_slice(), name.as_bytes()]);
    let mut packed = Vec::new();
    pack(&mut packed, &hello);
    writer.write(&packed).await?;
    match timeout(limit, reader.next()).await.map_err(|_| ConnectionError::Silent(limit))?? {
        Reply::Error(text) if is_unknown(text) => Err(ConnectionError::Unknown("HELLO")),
        Reply::Error(text) => {
            let text = credentials.censor(&String::from_utf8_lossy(text));
            Err(ConnectionError::from_reply(text.as_bytes()))
        }
        // A map of names and values in turn.
        Reply::Array(parts) => {
            let mode = parts.chunks_exact(2).find(|pair| pair[0].text() == Some(b"mode"));
            if mode.is_some_and(|pair| pair[1].text() == Some(b"sentinel")) {
                return Err(ConnectionError::Sentinel);
            }
            Ok((reader, writer))
        }
        _ => Err(ConnectionError::Protocol),
    }
}

/// Appends a command to `packed`, as RESP has it: an array of strings.
pub fn pack(packed: &mut Vec<u8>, arguments: &[&[u8]]) {
    pack_length(packed, b'*', arguments.len());
    for argument in arguments {
        pack_string(packed, &[argument]);
    }
}

/// Appends a PUBLISH whose payload lies in several pieces.
pub fn pack_publish(packed: &mut Vec<u8>, channel: &[u8], payload: &[&[u8]]) {
    pack_length(packed, b'*', 3);
    pack_string(packed, &[b"PUBLISH"]);
    pack_string(packed, &[channel]);
    pack_string(packed, payload);
}

fn pack_string(packed: &mut Vec<u8>, pieces: &[&[u8]]) {
    pack_length(packed, b'$', pieces.iter().map(|piece| piece.len()).sum());
    for piece in pieces {
        packed.extend_from_slice(piece);
    }
    packed.extend_from_slice(b"\r\n");
}

fn pack_length(packed: &mut Vec<u8>, kind: u8, length: usize) {
    packed.push(kind);
    packed.extend_from_slice(length.to_string().as_bytes());
    packed.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn replies_are_read_in_place_and_only_when_whole() {
        let input = b">3\r\n$7\r\nmessage\r\n$7\r\ntexto:x\r\n$3\r\na\r\n\r\n*2\r\n:1\r\n$-1\r\n";
        let (reply, length) = parse(input).unwrap().unwrap();
        assert_eq!(reply, Reply::Message { channel: b"texto:x", payload: b"a\r\n" });
        let (reply, _) = parse(&input[length..]).unwrap().unwrap();
        assert_eq!(reply, Reply::Array(vec![Reply::Number(1), Reply::Bytes(None)]));
        for end in 0..length {
            assert!(parse(&input[..end]).unwrap().is_none(), "{end}");
        }
        let confirmation = b">3\r\n$9\r\nsubscribe\r\n$7\r\ntexto:x\r\n:1\r\n";
        assert!(matches!(parse(confirmation), Ok(Some((Reply::Push(parts), _))) if parts.len() == 3));
        for bad in [b"hello\r\n".as_slice(), b"$x\r\n", b"*-2\r\n", b"$1\r\nabc", b"+a\n"] {
            assert!(matches!(parse(bad), Err(ConnectionError::Protocol)), "{bad:?}");
        }
    }

    #[test]
    fn what_a_server_refuses_and_what_it_puts_off() {
        for later in ["BUSY Redis is busy running a script.", "LOADING Redis is loading", "MASTERDOWN Link with MASTER"]
        {
            assert!(!ConnectionError::from_reply(later.as_bytes()).is_refusal(), "{later}");
        }
        for refusal in ["BUSYKEY Target key name already exists.", "NOAUTH Authentication required.", "ERR what?"] {
            assert!(ConnectionError::from_reply(refusal.as_bytes()).is_refusal(), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'>'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..60)) {
            if let Ok(Some((_, length))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
