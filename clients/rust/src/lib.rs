#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! Events go from the socket and the application to one machine, and what that decides goes back to both. Only `frames`
//! knows JSON, only `socket` and `tls` know bytes; `session` decides without sockets and without a clock. Everything that
//! can wait is bounded, and every wait has a deadline. One task for each client, which ends with it.

mod address;
mod client;
mod driver;
mod error;
mod frames;
mod session;
mod socket;
mod state;
mod tls;

pub use client::{Builder, Client, Messages};
pub use error::{ConfigError, ConnectError, SendError};
pub use session::Message;
pub use state::{Cause, Ending, State, States};
/// The ids of clients and messages.
pub use uuid::Uuid;
