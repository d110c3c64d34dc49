//! Texto: a gateway that carries messages between WebSocket clients over Redis, and keeps its word
//! while servers die.
//!
//! Data flows one way: socket → [`session`] → [`session::protocol`] → [`broker`] → [`transport`] → Redis → [`transport`] →
//! [`registry`] → [`outbox`] → [`session`] → socket.
//!
//! Invariants, absences too:
//! - Only [`session::protocol`] knows the JSON of a frame. Only [`broker::redis`] and [`sentinel`] know Redis, and
//!   [`check`], which looks at it through them. Only [`tls`] knows TLS.
//! - Nothing in [`registry`] and [`outbox`] awaits; nothing there can be filled without bound.
//! - Every `send` is answered once: the duty is a value ([`outbox::ReplyTo`]) that answers when dropped.
//! - [`transport`] and [`sentinel::machine`] decide without sockets and without a clock.
//! - Nothing is global, but for the log and the look-ups of names ([`resolver`]): two gateways live in one process.
//! - Every wait on the network has a deadline, and every task belongs to [`operate::tasks`], which a drain waits for.
//! - Nobody but the thread of [`operate::logging`] waits for standard error.

pub mod config;
mod files;
pub mod server;

pub mod access;
pub mod edge;
pub mod outbox;
pub mod registry;
pub mod resume;
pub mod session;

pub mod address_map;
pub mod backoff;
pub mod broker;
pub mod resolver;
pub mod sentinel;
pub mod tls;
pub mod transport;

pub mod check;
pub mod operate;

#[cfg(feature = "chat")]
pub mod chat;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
