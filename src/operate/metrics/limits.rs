//! Owns the metrics of what one client was refused for being too much, by the limit that it reached.

use prometheus::IntCounter;

use super::Register;

/// What was refused, or slowed down.
#[derive(Debug)]
pub struct LimitMetrics {
    /// Handshakes that came too fast from one address.
    pub connection_rate: IntCounter,
    /// Handshakes from an address with as many WebSockets as it may have.
    pub connections_per_address: IntCounter,
    /// Connections closed because they owed a request, and their peer, or everybody, had too many such.
    pub silent_connections: IntCounter,
    /// Connections and requests that came much faster than one address may have a turn.
    pub turns: IntCounter,
    /// Sends that came too fast in one session.
    pub send_rate: IntCounter,
    /// Sends of a session with too many that wait for their answer.
    pub unanswered: IntCounter,
    /// Pauses in which a session was not listened to, for it had said too much that leads nowhere.
    pub chatter: IntCounter,
}

impl LimitMetrics {
    pub(super) fn new(r: &Register<'_>) -> Result<Self, prometheus::Error> {
        let limited = r.counters(
            "texto_limited_total",
            "What one client was refused, or made to wait for, by the limit that it reached.",
            &["limit"],
        )?;
        let counter = |limit: &str| limited.with_label_values(&[limit]);
        Ok(Self {
            connection_rate: counter("connection_rate"),
            connections_per_address: counter("connections_per_address"),
            silent_connections: counter("silent_connections"),
            turns: counter("turns"),
            send_rate: counter("send_rate"),
            unanswered: counter("unanswered"),
            chatter: counter("chatter"),
        })
    }
}
