//! Owns what operators see and do: health, metrics, the log, and how a node leaves.

pub mod health;
pub mod healthcheck;
pub(crate) mod inquiry;

pub mod drain;
pub mod isolation;
pub mod service_manager;
pub mod tasks;

pub mod census;
pub mod chronicle;
pub mod logging;
#[cfg(feature = "manual")]
pub mod manual;
pub mod metrics;
pub mod output;
mod readiness;
pub mod repeats;
pub mod status;
