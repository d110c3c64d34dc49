//! Owns the broker for one node without Redis: the registry is all there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{Broker, BrokerStatus, Message, Resumption};
use crate::operate::metrics::Metrics;
use crate::outbox::{Delivery, Outcome, ReplyTo};
use crate::registry::Registry;

/// How often what nobody will ask for again is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(2);

/// Hands messages straight to the sessions of this process.
#[derive(Debug)]
pub struct Embedded {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
}

impl Embedded {
    /// A broker for the sessions in `registry`.
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self { registry, metrics }
    }
}

/// Has the sessions forget for ever what came, or was asked for, longer ago than `window`: with Redis the transport does.
pub async fn forget(registry: Arc<Registry>, window: Duration) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        registry.prune(Instant::now(), window, |_| None);
    }
}

impl Broker for Embedded {
    fn publish(&self, message: Message, reply: ReplyTo) {
        let Message { id, sender, receiver, text } = message;
        let delivery = Delivery { id, sender, text: text.into() };
        let deliveries = &self.metrics.deliveries;
        let admitted = self.registry.get(receiver).and_then(|outbox| outbox.admit(delivery));
        let (outcome, counter) = match admitted {
            Some(true) => (Outcome::Handed, &deliveries.delivered),
            Some(false) => (Outcome::Busy, &deliveries.full),
            None => (Outcome::NotConnected, &deliveries.absent),
        };
        counter.inc();
        reply.answer(outcome);
    }

    fn joined(&self, client: Uuid) {
        if let Some(outbox) = self.registry.get(client) {
            outbox.confirm_subscription();
        }
    }

    fn left(&self, _client: Uuid) {}

    fn resume(&self, client: Uuid, generation: u64) -> BoxFuture<'_, Resumption> {
        let resumption = match self.registry.get(client).filter(|outbox| outbox.is_resumable()) {
            None => Resumption::Lost,
            Some(outbox) if outbox.refuses(generation) => Resumption::Refused,
            Some(outbox) => Resumption::Here(outbox),
        };
        Box::pin(std::future::ready(resumption))
    }

    fn status(&self) -> BrokerStatus {
        BrokerStatus { kind: "embedded", usable: true, ever_usable: true, ..BrokerStatus::default() }
    }
}
