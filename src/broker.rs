//! Owns the seam between sessions and whoever carries their messages.

pub mod deployment;
pub mod embedded;
pub mod redis;

use std::fmt;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use self::deployment::Deployment;
use crate::outbox::{Outbox, ReplyTo};
use crate::sentinel::SentinelStatus;
pub use crate::transport::homes::Resumption;

/// The version of the UUIDs (RFC 9562) of messages that may be sent again by another node; others have version 4.
pub const REPEATABLE: usize = 8;

/// A message on its way from a session of this node.
#[derive(Debug)]
pub struct Message {
    /// New for each message, the same on every copy of it.
    pub id: Uuid,
    /// The session it comes from.
    pub sender: Uuid,
    /// The client it is for.
    pub receiver: Uuid,
    /// What it says.
    pub text: String,
}

impl Message {
    /// The id of the message that `sender` asks for by `request`: the same on every node, however often it asks.
    ///
    /// Nobody can make somebody else's message look like a copy, for the sender is in it.
    pub fn repeatable_id(sender: Uuid, request: Uuid) -> Uuid {
        let digest = Sha256::new().chain_update(sender).chain_update(request).finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

/// Carries messages between clients, on whichever node they are. None of the calls wait.
pub trait Broker: fmt::Debug + Send + Sync {
    /// Takes a message. `reply` is answered exactly once, within the send deadline, with
    /// [`Outcome::Handed`](crate::outbox::Outcome) only if a node that holds the receiver has it.
    /// Messages from one sender to one receiver arrive in the order of these calls.
    fn publish(&self, message: Message, reply: ReplyTo);

    /// `client` has been registered here: messages for it must reach this node from now on. Its
    /// outbox is told when that is so.
    fn joined(&self, client: Uuid);

    /// The session, which can be resumed, is over.
    fn ended(&self, outbox: &Outbox) {
        self.left(outbox.client());
    }

    /// `client` has left.
    fn left(&self, client: Uuid);

    /// Has the session of `client`, for which there is a token of `generation` (or credentials:
    /// [`ANY`](crate::outbox::log::ANY)), come to this node.
    fn resume(&self, client: Uuid, generation: u64) -> BoxFuture<'_, Resumption>;

    /// This node in tokens; new for each start.
    fn tag(&self) -> u64 {
        0
    }

    /// This node is about to leave: sessions that can be resumed are given to others, `client`'s is when its turn comes.
    /// Returns whether somebody will have it.
    fn move_away(&self, _client: Uuid) -> bool {
        false
    }

    /// This node takes nothing of others to keep any more.
    fn leave(&self) {}

    /// How much of others is kept here, or is on its way to them.
    fn unfinished(&self) -> usize {
        0
    }

    /// All sessions are gone for good: the other nodes are told, so that they don't wait for this one to come back.
    fn goodbye(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// What an operator wants to know.
    fn status(&self) -> BrokerStatus;

    /// What people may see of the whole deployment. It waits for nobody, and costs more than [`status`](Self::status).
    fn deployment(&self) -> Deployment {
        Deployment::default()
    }
}

/// What an operator wants to know of a broker.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BrokerStatus {
    /// "embedded", "redis" or "sentinel".
    pub kind: &'static str,
    /// Whether messages can flow.
    pub usable: bool,
    /// Since when they can't, if they can't.
    #[serde(skip)]
    pub unusable_since: Option<Instant>,
    /// Whether they could, at any time.
    #[serde(skip)]
    pub ever_usable: bool,
    /// What is wrong, in a sentence that says what to do.
    pub reason: Option<String>,
    /// The Redis master in use.
    pub master: Option<String>,
    /// Its configuration epoch.
    pub epoch: u64,
    /// Seconds since the master changed last.
    pub last_switch_seconds_ago: Option<f64>,
    /// The Sentinels known.
    pub sentinels: Vec<SentinelStatus>,
    /// The links to Redis servers.
    pub links: Vec<LinkStatus>,
}

/// A link to a Redis server.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// Its address.
    pub address: String,
    /// Where it stands.
    pub state: LinkState,
    /// "master" or "replica", as the server itself says by ROLE.
    pub role: Option<&'static str>,
    /// Whether the Sentinels hold the server for alive.
    pub expected: bool,
    /// Why it is not connected.
    pub reason: Option<String>,
}

/// Where a link stands.
///
/// ```text
/// Connecting ──connected, ROLE known──▶ Replaying ──every channel confirmed──▶ Synced
///      ▲                                    │                                    │
///      └────────── lost, hung, refused ─────┴────────────────────────────────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Not connected, trying.
    Connecting,
    /// Publishing works; subscriptions are being made.
    Replaying,
    /// Every channel that the registry wants is confirmed.
    Synced,
}

impl LinkState {
    /// How it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Replaying => "replaying",
            Self::Synced => "synced",
        }
    }
}

impl BrokerStatus {
    /// How long messages have not been able to flow at `now`.
    pub fn unusable_for(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.unusable_since?))
    }
}
