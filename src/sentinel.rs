//! Owns the knowledge of which Redis is master: asked of every Sentinel, decided in [`machine`].

pub mod machine;
mod watcher;

pub use machine::{Replica, Topology};
pub use watcher::Watcher;
