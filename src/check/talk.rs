//! Owns one question at a time to a Redis, over the connections that links use.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::broker::redis::connection::{self, ConnectionError, Reader, Reply, Writer, pack};
use crate::broker::redis::probe::refusal;
use crate::broker::redis::role::{self, Role};
use crate::config::secret::Credentials;
use crate::config::{Address, RedisConfig};

/// Lists within lists of an answer; nothing that is asked here has more.
const DEEPEST: u8 = 8;

/// A connection to one Redis.
#[derive(Debug)]
pub(super) struct Talk {
    reader: Reader,
    writer: Writer,
    limit: Duration,
}

/// What a server said.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// An error.
    Error(Vec<u8>),
    /// A status or string; null is none.
    Text(String),
    /// A number.
    Number(i64),
    /// A list, or a confirmation.
    List(Vec<Said>),
}

impl Talk {
    pub(super) async fn open(address: &Address, config: &RedisConfig) -> Result<Self, ConnectionError> {
        let limit = config.heartbeat_timeout;
        let opened = connection::open(address, &config.connector, &config.credentials, "texto-check", limit).await;
        let (reader, writer) = opened?;
        Ok(Self { reader, writer, limit })
    }

    /// Asks, and waits for the answer; messages that come meanwhile are for nobody.
    pub(super) async fn ask(&mut self, words: &[&str]) -> Result<Said, ConnectionError> {
        self.tell(words).await?;
        let limit = self.limit;
        let answer = async {
            loop {
                match self.reader.next().await? {
                    Reply::Message { .. } => {}
                    reply => return Ok(said(&reply, 0)),
                }
            }
        };
        timeout(limit, answer).await.map_err(|_| ConnectionError::Silent(limit))?
    }

    /// What CONFIG GET has of `name`, if the server knows that; or what it said instead.
    pub(super) async fn setting(&mut self, name: &str) -> Result<Result<Option<String>, Said>, ConnectionError> {
        Ok(match self.ask(&["CONFIG", "GET", name]).await? {
            // Names and values in turn.
            Said::List(parts) => Ok(match parts.as_slice() {
                [_, Said::Text(value)] => Some(value.clone()),
                _ => None,
            }),
            other => Err(other),
        })
    }

    /// What it calls itself, and how long the answer took.
    pub(super) async fn role(&mut self, credentials: &Credentials) -> Result<(Role, Duration), ConnectionError> {
        let asked = Instant::now();
        self.tell(&["ROLE"]).await?;
        let limit = self.limit;
        let reply = timeout(limit, self.reader.next()).await.map_err(|_| ConnectionError::Silent(limit))??;
        if let Reply::Error(text) = &reply
            && let Some(refusal) = refusal(text, "ROLE", credentials)
        {
            return Err(refusal);
        }
        Ok((role::role(&reply)?, asked.elapsed()))
    }

    pub(super) async fn tell(&mut self, words: &[&str]) -> Result<(), ConnectionError> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let mut packed = Vec::new();
        pack(&mut packed, &words);
        self.writer.write(&packed).await
    }

    /// Waits for the next message on `channel`. Without a deadline.
    pub(super) async fn message(&mut self, channel: &str) -> Result<Vec<u8>, ConnectionError> {
        loop {
            match self.reader.next().await? {
                Reply::Message { channel: on, payload } if on == channel.as_bytes() => return Ok(payload.to_vec()),
                _ => {}
            }
        }
    }
}

fn said(reply: &Reply<'_>, depth: u8) -> Said {
    let list = |parts: &[Reply<'_>]| match depth < DEEPEST {
        true => Said::List(parts.iter().map(|part| said(part, depth + 1)).collect()),
        false => Said::List(Vec::new()),
    };
    match reply {
        Reply::Error(text) => Said::Error(text.to_vec()),
        Reply::Number(number) => Said::Number(*number),
        Reply::Array(parts) | Reply::Push(parts) => list(parts),
        Reply::Message { payload, .. } => Said::Text(String::from_utf8_lossy(payload).into_owned()),
        other => Said::Text(String::from_utf8_lossy(other.text().unwrap_or_default()).into_owned()),
    }
}
