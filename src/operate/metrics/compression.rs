//! Owns the metrics of compression: how much it saves, both ways.

use prometheus::{IntCounter, IntCounterVec};

use super::Register;

/// Messages that went compressed. By default nothing is counted.
#[derive(Debug, Default)]
pub struct CompressionMetrics {
    /// To clients.
    pub sent: Compressed,
    /// From clients.
    pub received: Compressed,
}

/// Messages of one direction.
#[derive(Debug, Default)]
pub struct Compressed(Option<Counters>);

#[derive(Debug)]
struct Counters {
    messages: IntCounter,
    plain: IntCounter,
    compressed: IntCounter,
}

impl CompressionMetrics {
    pub(super) fn new(r: &Register<'_>) -> Result<Self, prometheus::Error> {
        let messages = r.counters(
            "texto_compressed_messages_total",
            "Messages that were compressed on their way, by direction: sent, received.",
            &["direction"],
        )?;
        let bytes = r.counters(
            "texto_compressed_messages_bytes_total",
            "Bytes of those messages, by direction and form: plain, compressed.",
            &["direction", "form"],
        )?;
        Ok(Self {
            sent: Compressed::new(&messages, &bytes, "sent"),
            received: Compressed::new(&messages, &bytes, "received"),
        })
    }
}

impl Compressed {
    fn new(messages: &IntCounterVec, bytes: &IntCounterVec, direction: &str) -> Self {
        Self(Some(Counters {
            messages: messages.with_label_values(&[direction]),
            plain: bytes.with_label_values(&[direction, "plain"]),
            compressed: bytes.with_label_values(&[direction, "compressed"]),
        }))
    }

    /// Counts a message: how long it is, and how long it was on the wire.
    pub fn count(&self, plain: usize, compressed: usize) {
        let Some(counters) = &self.0 else { return };
        counters.messages.inc();
        counters.plain.inc_by(plain as u64);
        counters.compressed.inc_by(compressed as u64);
    }
}
