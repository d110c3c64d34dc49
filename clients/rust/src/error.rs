//! Owns what can go wrong, in words and for programs.

use std::time::Duration;

use crate::state::{Cause, Ending};

/// Why a message was not acknowledged. That is not to say that it was not shown: see [`SendError::may_have_arrived`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Nobody is connected as the receiver.
    #[error("ENOTCONN: {0}")]
    NotConnected(String),
    /// The server could not hand it over in time.
    #[error("EBROKER: {0}")]
    Broker(String),
    /// The receiver reads more slowly than it is written to.
    #[error("EBUSY: {0}")]
    Busy(String),
    /// This client is over its rate, or has more unanswered messages than the server takes.
    #[error("EAGAIN: {0}")]
    TooMany(String),
    /// The text is too long for the server.
    #[error("EMSGSIZE: {0}")]
    TooLong(String),
    /// The server can't read what was sent.
    #[error("EINVAL: {0}")]
    Invalid(String),
    /// Credentials are required, refused or expired.
    #[error("EAUTH: {0}")]
    Credentials(String),
    /// Another code, of a newer server perhaps.
    #[error("{code}: {description}")]
    Other {
        /// What went wrong, for programs.
        code: String,
        /// What went wrong, for people.
        description: String,
    },
    /// The session was lost before there was an answer.
    #[error("the session was lost before an answer; the message may have arrived")]
    Lost,
    /// There was no connection for so long ([`Builder::send_timeout`](crate::Builder::send_timeout)): it was not sent.
    #[error("not sent: there was no connection for {0:?}")]
    Timeout(Duration),
    /// The client was closed, or the server ended the session, before there was an answer.
    #[error("the client is closed")]
    Closed,
}

impl SendError {
    pub(crate) fn from_server(code: String, description: String) -> Self {
        match code.as_str() {
            "ENOTCONN" => Self::NotConnected(description),
            "EBROKER" => Self::Broker(description),
            "EBUSY" => Self::Busy(description),
            "EAGAIN" => Self::TooMany(description),
            "EMSGSIZE" => Self::TooLong(description),
            "EINVAL" => Self::Invalid(description),
            "EAUTH" => Self::Credentials(description),
            _ => Self::Other { code, description },
        }
    }

    /// The code of the protocol; `EDISCONNECTED` and `ETIMEOUT` are this side's, as in the JavaScript client.
    pub fn code(&self) -> &str {
        match self {
            Self::NotConnected(_) => "ENOTCONN",
            Self::Broker(_) => "EBROKER",
            Self::Busy(_) => "EBUSY",
            Self::TooMany(_) => "EAGAIN",
            Self::TooLong(_) => "EMSGSIZE",
            Self::Invalid(_) => "EINVAL",
            Self::Credentials(_) => "EAUTH",
            Self::Other { code, .. } => code,
            Self::Lost | Self::Closed => "EDISCONNECTED",
            Self::Timeout(_) => "ETIMEOUT",
        }
    }

    /// Whether the same message may be acknowledged a while later, if it is sent again. What
    /// [may have arrived](Self::may_have_arrived) may then be shown a second time, with another id.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Broker(_) | Self::Busy(_) | Self::TooMany(_) | Self::Lost | Self::Timeout(_))
    }

    /// Whether the receiver may have been shown the message all the same.
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Broker(_) | Self::Busy(_) | Self::Lost | Self::Closed)
    }
}

/// Why there is no client: something is wrong with what it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No address was given.
    #[error("where to? Give an address such as wss://chat.example.org/v1/texto")]
    NoUrl,
    /// An address is none.
    #[error("{url:?} is no address of a gateway: {why}; one looks like wss://chat.example.org/v1/texto")]
    Url {
        /// The address, without what may be secret in it.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// An address begins with `wss`, and this program was built without TLS.
    #[error("wss:// needs the feature `tls` of the crate texto-client, which this program was built without")]
    NoTls,
    /// The authorities that are to be trusted can't be had.
    #[error("whom to trust for TLS: {0}")]
    Authorities(String),
    /// A limit that lets nothing through.
    #[error("{0} must be more than zero")]
    Zero(&'static str),
    /// There is no Tokio runtime here.
    #[error("a client must be started within a Tokio runtime")]
    NoRuntime,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Something is wrong with what the client was given.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No server took it in time ([`Builder::connect_timeout`](crate::Builder::connect_timeout)).
    #[error("no connection within {after:?}: {}", .why.as_ref().map_or("no answer yet".to_owned(), Cause::to_string))]
    Unreachable {
        /// For how long it was tried.
        after: Duration,
        /// What came of the last attempt that is over.
        why: Option<Cause>,
    },
    /// The server ended the session at once.
    #[error("{0}")]
    Ended(Ending),
}
