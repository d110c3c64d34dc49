//! Texto: a gateway that carries messages between WebSocket clients over Redis, and keeps its word
//! while servers die.
//!
//! Data flows one way: socket → [`session`] → [`protocol`] → [`broker`] → [`transport`] → Redis → [`transport`] →
//! [`registry`] → [`outbox`] → [`session`] → socket.
//!
//! Invariants, absences too:
//! - Only [`protocol`] knows the JSON of a frame. Only [`broker::redis`] and [`sentinel`] know Redis.
//! - Nothing in [`registry`] and [`outbox`] awaits; nothing there can be filled without bound.
//! - Every `send` is answered once: the duty is a value ([`outbox::ReplyTo`]) that answers when dropped.
//! - [`transport`] and [`sentinel::machine`] decide without sockets and without a clock.
//! - Nothing is global, but for the log and the look-ups of names ([`resolver`]): two gateways live in one process.
//! - Every wait on the network has a deadline, and every task belongs to [`tasks`], which a drain waits for.
//! - Nobody but the thread of [`logging`] waits for standard error.

pub mod address_map;
pub mod cli;
pub mod config;
pub mod secret;
pub mod variables;

pub mod budget;
pub mod census;
pub mod client_address;
pub mod http;
pub mod keep_alive;
pub mod limiter;
pub mod outbox;
pub mod protocol;
pub mod registry;
pub mod resume_limits;
pub mod server;
pub mod session;
pub mod session_keys;
pub mod tasks;
pub mod token;
pub mod websocket;
pub mod windows;

pub mod backoff;
pub mod broker;
pub mod resolver;
pub mod sentinel;
pub mod transport;

pub mod drain;
pub mod health;
pub mod healthcheck;
pub mod isolation;
pub mod logging;
pub mod metrics;
pub mod repeats;
