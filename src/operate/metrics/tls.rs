//! Owns the metrics of TLS: handshakes, by what came of them, and until when certificates are good.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::Register;
use crate::tls::Expiries;
use crate::tls::reasons::{Peer, TlsReason};
use crate::tls::terminator::Refusal;

/// What is counted and shown of TLS.
pub struct TlsMetrics {
    /// With clients.
    pub handshakes: TlsHandshakes,
    server_failures: IntCounterVec,
    expiry: IntGaugeVec,
    certificates: OnceLock<Box<dyn Fn() -> Expiries + Send + Sync>>,
}

impl fmt::Debug for TlsMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMetrics").field("handshakes", &self.handshakes).finish_non_exhaustive()
    }
}

/// Handshakes of clients, by result. A cheap handle; by default nothing is counted.
#[derive(Clone, Debug, Default)]
pub struct TlsHandshakes(HashMap<&'static str, IntCounter>);

impl TlsHandshakes {
    /// What a handshake that succeeded is counted as.
    const DONE: &'static str = "done";

    /// Counts one.
    pub fn count<T>(&self, result: &Result<T, Refusal>) {
        let label = result.as_ref().map_or_else(Refusal::label, |_| Self::DONE);
        if let Some(counter) = self.0.get(label) {
            counter.inc();
        }
    }
}

impl TlsMetrics {
    pub(super) fn new(r: &Register<'_>) -> Result<Self, prometheus::Error> {
        let handshakes =
            r.counters("texto_tls_handshakes_total", "TLS handshakes with clients, by result.", &["result"])?;
        let results = Refusal::LABELS.into_iter().chain([TlsHandshakes::DONE]);
        Ok(Self {
            handshakes: TlsHandshakes(
                results.map(|result| (result, handshakes.with_label_values(&[result]))).collect(),
            ),
            server_failures: r.counters(
                "texto_tls_server_failures_total",
                "Connections to Redis and Sentinels that failed by TLS, by kind of server and reason.",
                &["server", "reason"],
            )?,
            expiry: r.gauges(
                "texto_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, in seconds since 1970, by who is shown it: clients, redis, sentinel.",
                &["shown_to"],
            )?,
            certificates: OnceLock::new(),
        })
    }

    /// Counts a connection to a server that TLS was the end of.
    pub fn server_failed(&self, server: Peer, reason: &TlsReason) {
        self.server_failures.with_label_values(&[server.name(), reason.label()]).inc();
    }

    /// Says which certificates there are: it is asked each time when somebody looks, for they are renewed.
    pub fn watch(&self, certificates: impl Fn() -> Expiries + Send + Sync + 'static) {
        let _ = self.certificates.set(Box::new(certificates)); // A gateway has one configuration.
    }

    pub(super) fn show(&self) {
        let Some(certificates) = self.certificates.get() else { return };
        for (shown_to, expiry) in certificates() {
            let Some(expiry) = expiry.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) else {
                // That of the certificate before would be a lie. There may have been none.
                let _ = self.expiry.remove_label_values(&[shown_to]);
                continue;
            };
            self.expiry.with_label_values(&[shown_to]).set(i64::try_from(expiry.as_secs()).unwrap_or(i64::MAX));
        }
    }
}
