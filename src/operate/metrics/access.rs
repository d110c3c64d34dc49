//! Owns the metrics of who may come in.

use std::collections::HashMap;

use prometheus::{IntCounter, IntGauge};

use super::Register;
use crate::access::origin::OriginFlaw;
use crate::access::source::KeysStatus;
use crate::access::verifier::Refusal;

/// What is counted of pages and credentials.
#[derive(Debug)]
pub struct AccessMetrics {
    /// By reason.
    refusals: HashMap<&'static str, IntCounter>,
    keys: IntGauge,
    keys_failing: IntGauge,
}

impl AccessMetrics {
    pub(super) fn new(r: &Register<'_>) -> Result<Self, prometheus::Error> {
        let refusals = r.counters(
            "texto_access_refused_total",
            "Pages and credentials that were refused, by reason: at handshakes, at registrations, and later.",
            &["reason"],
        )?;
        let reasons = OriginFlaw::LABELS.into_iter().chain(Refusal::ALL.into_iter().map(Refusal::label));
        Ok(Self {
            refusals: reasons.map(|reason| (reason, refusals.with_label_values(&[reason]))).collect(),
            keys: r.gauge("texto_auth_keys", "Keys by which credentials are verified.")?,
            keys_failing: r.gauge(
                "texto_auth_keys_failing_seconds",
                "How long the keys of credentials have not been readable where they come from; 0 if they are.",
            )?,
        })
    }

    /// Counts a page or credentials that were refused.
    pub fn refused(&self, reason: &str) {
        if let Some(counter) = self.refusals.get(reason) {
            counter.inc();
        }
    }

    /// Shows how the keys are now.
    pub fn show(&self, status: &KeysStatus) {
        self.keys.set(i64::try_from(status.keys).unwrap_or(i64::MAX));
        let failing = status.failing.as_ref().map_or(0, |(since, _)| since.as_secs().max(1));
        self.keys_failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }
}
