//! Owns the knowledge of which Redis is master: asked of every Sentinel, decided in [`machine`].

mod conversation;
pub mod machine;
mod signs;
mod watcher;

use serde::Serialize;

pub use conversation::Settings;
pub(crate) use conversation::{AskError, Conversation, Row, Survey, is_down};
pub use machine::{Replica, Topology};
pub use watcher::Watcher;

/// A Sentinel, seen from this node.
#[derive(Clone, Debug, Serialize)]
pub struct SentinelStatus {
    /// Its address.
    pub address: String,
    /// Whether it answers.
    pub reachable: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// What fuzzers call.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    pub(crate) use super::conversation::views;

    /// What a Sentinel publishes: the event, a line's end, and the rest.
    pub(crate) fn event(bytes: &[u8]) {
        if let Some((event, payload)) = std::str::from_utf8(bytes).unwrap_or_default().split_once('\n') {
            let _ = super::signs::read(event, payload, "mymaster");
        }
    }
}
