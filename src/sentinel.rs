//! Owns the knowledge of which Redis is master: asked of every Sentinel, decided in [`machine`].

mod conversation;
pub mod machine;
mod signs;
mod watcher;

use serde::Serialize;

pub use conversation::Settings;
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
