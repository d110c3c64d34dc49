//! Owns TLS: towards Redis and the Sentinels, and for clients. Nothing else knows rustls.
//!
//! Certificates, keys and authorities are files ([`files`]) that are read again when they change: what is connected stays
//! so, whoever connects from then on meets the new ones.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};

pub mod connector;
mod expiry;
pub mod files;
pub mod reasons;
pub mod stream;
pub mod terminator;
pub mod unverified;

/// Certificates, by who is shown them, and when each expires.
pub type Expiries = Vec<(&'static str, Option<SystemTime>)>;

/// Who does the arithmetic.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
