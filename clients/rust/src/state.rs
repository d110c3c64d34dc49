//! Owns what a client tells of its connection.

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

/// How a client is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// A connection is being made.
    Connecting,
    /// There is one.
    #[non_exhaustive]
    Connected {
        /// The id under which others reach this client. Another one than before: the server no longer knew the session;
        /// tell others.
        id: Uuid,
        /// The session of the last connection goes on, and nothing that was acknowledged to others is missing.
        resumed: bool,
        /// How often so far, since the client was started, messages for it may have been missed. It only grows, so that
        /// whoever looks seldom misses no such moment.
        missed: u64,
    },
    /// There is none, until the next attempt. What is sent meanwhile waits.
    #[non_exhaustive]
    Away {
        /// How long it is until then.
        retry_in: Duration,
        /// What happened.
        why: Cause,
    },
    /// The session is over, and nobody connects again.
    Closed(Ending),
}

/// Why there is no connection at present.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The server closed it with this code; 1006 when it broke without one.
    Closed(u16),
    /// The server refused the handshake with this status of HTTP.
    Refused(u16),
    /// The server can't be reached, or does not speak as it should.
    Unreachable(String),
    /// Nobody whom this client trusts vouches for the server's certificate
    /// ([`Builder::authorities`](crate::Builder::authorities)).
    Untrusted(String),
    /// Nothing came from the server for too long.
    Silent,
    /// The function that gives credentials failed.
    Credentials(String),
    /// More messages came than may wait for the application. They come again, once it has taken half of what it has.
    Overflow,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(1001) => f.write_str("the server stops"),
            Self::Closed(1006) => f.write_str("the connection broke"),
            Self::Closed(1012) => f.write_str("the server is being restarted"),
            Self::Closed(1013) => f.write_str("the server is overloaded, or this client was too slow"),
            Self::Closed(code) => write!(f, "the server closed the connection (code {code})"),
            Self::Refused(429) => f.write_str("the server refused: too many connections from here (HTTP 429)"),
            Self::Refused(503) => f.write_str("the server takes nobody at present (HTTP 503)"),
            Self::Refused(status) => {
                write!(f, "the server refused the WebSocket (HTTP {status}): is the address right?")
            }
            Self::Unreachable(why) | Self::Untrusted(why) => f.write_str(why),
            Self::Silent => f.write_str("the server no longer answers"),
            Self::Credentials(why) => write!(f, "no credentials: {why}"),
            Self::Overflow => f.write_str("messages came faster than they were taken"),
        }
    }
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// The application closed it.
    Closed,
    /// The session goes on over a newer connection, of somebody with the same credentials (4001).
    Elsewhere,
    /// Credentials are missing, refused or expired (4003): what the server said.
    Credentials(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the client was closed"),
            Self::Elsewhere => f.write_str("the session goes on over a newer connection"),
            Self::Credentials(why) if why.is_empty() => {
                f.write_str("the server wants credentials, and does not take those that it was shown")
            }
            Self::Credentials(why) => write!(f, "the server does not let this client in: {why}"),
        }
    }
}

/// What a client is, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) id: Option<Uuid>,
    pub(crate) last_cause: Option<Cause>,
}

/// The states of a client, as they change. Whoever looks seldom sees the newest, and not each.
#[derive(Clone, Debug)]
pub struct States {
    pub(crate) status: watch::Receiver<Status>,
}

impl States {
    /// The state now.
    pub fn current(&self) -> State {
        self.status.borrow().state.clone()
    }

    /// The next state that was not seen here; at first, the one that is. `None` after the last, [`State::Closed`].
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<State> {
        self.status.changed().await.ok()?;
        Some(self.status.borrow_and_update().state.clone())
    }
}
