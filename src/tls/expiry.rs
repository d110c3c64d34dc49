//! Owns when a certificate expires.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{CertificateError, Error, RootCertStore};

use super::provider;
use super::reasons::time;

/// When the certificate itself expires, not those between it and its authority.
///
/// rustls tells nobody what stands in a certificate, but why it is not good: so it is asked at the end of all time.
pub(super) fn expiry(shown: &CertifiedKey) -> Option<SystemTime> {
    let certificate = shown.cert.first()?;
    let mut roots = RootCertStore::empty();
    // There must be an authority, whichever: what is asked for comes before it.
    roots.add(certificate.clone()).ok()?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()?;
    let name = ServerName::try_from("texto.invalid").ok()?;
    let the_end = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    match verifier.verify_server_cert(certificate, &[], &name, &[], the_end) {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => time(not_after),
        _ => None,
    }
}
