//! Owns the question whether this node is cut off: then its clients are asked to go elsewhere, where they can be
//! reached. An outage of Redis for everybody is another matter, and is borne for longer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::broker::{Broker, BrokerStatus};
use crate::operate::drain;
use crate::registry::Registry;

/// While the Sentinels still answer, it is Redis that is away, not this node: for so many times the bound.
const OUTAGE: u32 = 4;
const LOOK: Duration = Duration::from_millis(250);

/// Whether the node is cut off, by what its broker says of itself.
pub fn is_cut_off(status: &BrokerStatus, now: Instant, after: Duration) -> bool {
    let Some(away) = status.unusable_for(now) else { return false };
    let sentinels = status.sentinels.iter().any(|sentinel| sentinel.reachable);
    away >= if sentinels { after * OUTAGE } else { after }
}

/// Asks all clients to leave, spread over `window`, each time that the node has been cut off for longer than `after`.
pub async fn run(after: Duration, window: Duration, broker: Arc<dyn Broker>, registry: Arc<Registry>) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if !is_cut_off(&broker.status(), Instant::now(), after) {
            continue;
        }
        warn!(sessions = registry.len(), ?window, "cut off from Redis: clients are asked to go to another node");
        tokio::select! {
            () = drain::ask_to_leave(window, &registry) => {}
            () = until_back(&*broker) => {}
        }
        until_back(&*broker).await;
        info!("no longer cut off from Redis");
    }
}

async fn until_back(broker: &dyn Broker) {
    let mut look = interval(LOOK);
    while broker.status().unusable_since.is_some() {
        look.tick().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentinel::SentinelStatus;

    #[test]
    fn who_reaches_a_sentinel_bears_an_outage_longer() {
        let now = Instant::now();
        let after = Duration::from_secs(15);
        let status = |since: u64, reachable: &[bool]| BrokerStatus {
            unusable_since: Some(now - Duration::from_secs(since)),
            sentinels: reachable
                .iter()
                .map(|reachable| SentinelStatus { address: String::new(), reachable: *reachable, reason: None })
                .collect(),
            ..BrokerStatus::default()
        };
        assert!(!is_cut_off(&BrokerStatus::default(), now, after));
        assert!(!is_cut_off(&status(14, &[false]), now, after));
        assert!(is_cut_off(&status(15, &[false]), now, after));
        assert!(is_cut_off(&status(15, &[]), now, after));
        assert!(!is_cut_off(&status(59, &[false, true]), now, after));
        assert!(is_cut_off(&status(60, &[false, true]), now, after));
    }
}
