//! Owns what passes between a session and what is around it: settings and events in, actions out.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::SendError;
use crate::frames::{Secret, Text};
use crate::state::{Cause, State};

/// What may be set.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Silence after which a sign of life is asked for.
    pub(crate) quiet: Duration,
    /// How long that may take.
    pub(crate) sign_patience: Duration,
    /// Over which time a client comes back that has lost its connection, at first and at most.
    pub(crate) pauses: (Duration, Duration),
    /// How long a handshake and the answer to the registration may take.
    pub(crate) greeting_patience: Duration,
    /// How long a message may wait to be written first.
    pub(crate) send_patience: Duration,
    /// How long its answer may take once it is.
    pub(crate) answer_patience: Duration,
    /// Messages that are written and without an answer: the default of the server's --max-unanswered.
    pub(crate) most_open: usize,
    /// Messages that wait for the application, and bytes of text in them.
    pub(crate) most_messages: usize,
    pub(crate) most_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            quiet: seconds(10),
            sign_patience: seconds(5),
            pauses: (seconds(1), seconds(15)),
            greeting_patience: seconds(10),
            send_patience: seconds(30),
            answer_patience: seconds(20),
            most_open: 64,
            // More than a server keeps for one client, by default.
            most_messages: 2048,
            most_bytes: 16 << 20,
        }
    }
}

/// A message from somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// New for each message.
    pub id: Uuid,
    /// Whom to answer.
    pub sender: Uuid,
    /// What they say.
    pub text: String,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event<W> {
    /// There is a WebSocket, and what is shown on it.
    Opened(Option<Secret>),
    /// There is none.
    Failed {
        why: Cause,
        /// When the server wants this client to come again.
        retry_after: Option<Duration>,
    },
    /// A text frame came.
    Came(String),
    /// Something else came, such as a ping.
    Heard,
    /// The WebSocket was closed with this code.
    Closed(u16),
    /// Fresh credentials, or none at present.
    Credentials(Option<Secret>),
    /// Somebody sends something, which must be written by `too_late`.
    Send { too_late: Instant, receiver: Uuid, text: String, waiter: W },
    /// The application took so many messages.
    Taken(usize),
    /// Nobody reads messages any more.
    Unread,
    /// The application wants the next attempt now.
    RetryNow,
    /// The application wants the end.
    Close,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Action<W> {
    /// Connect to this one of the addresses; fetch credentials meanwhile.
    Dial(usize),
    /// Fetch credentials.
    Renew,
    Write(Text),
    /// Give up the WebSocket, or the attempt to get one, as if the network had broken.
    Drop,
    /// Say that the session is over.
    Close,
    Show(Message),
    Answer(W, Result<(), SendError>),
    Become(State),
}
