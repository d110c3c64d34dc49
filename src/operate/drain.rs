//! Owns the end of a gateway: how its sessions are told, at which pace, and when it is over.
//!
//! ```text
//! Serving ──SIGTERM──▶ Draining ──delay──▶ Closing ──window──▶ Stopped
//!    └──────────────────── SIGINT, or a second signal ────────────▲
//! ```

use std::convert::Infallible;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

use crate::broker::Broker;
use crate::config::DrainConfig;
use crate::operate::health::{Health, Lifecycle};
use crate::outbox::CloseOrder;
use crate::registry::Registry;

/// What a session gets to finish after it was told, beside the time that its answers may take.
const LAST: Duration = Duration::from_secs(1);
/// Sessions that are due within this are told at once, rather than by a timer for each.
const TOGETHER: Duration = Duration::from_millis(20);

/// The signals that end a gateway.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Drain: nobody is to lose anything.
    pub drain: CancellationToken,
    /// Stop: now.
    pub stop: CancellationToken,
}

impl Shutdown {
    /// Waits for the first of both orders. Cancel safe.
    pub async fn begun(&self) {
        tokio::select! {
            () = self.drain.cancelled() => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Turns SIGTERM into an order to drain, SIGINT and a second one into one to stop, while the future is polled.
    ///
    /// # Errors
    /// When signals can't be had.
    pub fn on_signals(&self) -> std::io::Result<impl Future<Output = Infallible> + use<>> {
        let Self { drain, stop } = self.clone();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(async move {
            tokio::select! {
                _ = interrupt.recv() => stop.cancel(),
                _ = terminate.recv() => drain.cancel(),
            }
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            stop.cancel();
            std::future::pending().await
        })
    }
}

/// Waits for a signal, then sees the sessions off. Returns when all are gone, or told to be, within
/// the delay, the window, the time that `answers` may take, and a second; it never waits for Redis.
pub async fn run(
    config: DrainConfig,
    answers: Duration,
    shutdown: &Shutdown,
    health: &Health,
    registry: &Registry,
    broker: &dyn Broker,
) {
    tokio::select! {
        () = shutdown.stop.cancelled() => {}
        () = shutdown.drain.cancelled() => {
            tokio::select! {
                () = shutdown.stop.cancelled() => {}
                () = drain(config, answers, health, registry, broker) => {}
            }
        }
    }
    stop(health, registry);
}

/// Tells all sessions to end now.
pub fn stop(health: &Health, registry: &Registry) {
    health.advance(Lifecycle::Stopped);
    registry.close_all(CloseOrder::Stop);
}

async fn drain(config: DrainConfig, answers: Duration, health: &Health, registry: &Registry, broker: &dyn Broker) {
    health.advance(Lifecycle::Draining);
    broker.leave();
    info!(sessions = registry.len(), delay = ?config.delay, window = ?config.window, "draining: not ready any more");
    sleep(config.delay).await;

    health.advance(Lifecycle::Closing);
    info!(sessions = registry.len(), "draining: closing sessions");
    spread(config.window, registry, |client| leave(client, registry, broker)).await;
    see_off(registry, broker, answers + LAST).await;
}

/// Has a session go on elsewhere, with all that it has; or end, where that can't be.
fn leave(client: Uuid, registry: &Registry, broker: &dyn Broker) {
    // Whoever does not know that the session can go on gets all answers first.
    let is_plain = registry.get(client).is_some_and(|outbox| outbox.is_plain() && outbox.detached_since().is_none());
    if is_plain || !broker.move_away(client) {
        registry.close(client, CloseOrder::Drain);
    }
}

/// Gives all sessions `limit` to finish: those that came in at the last moment, or still do, as well.
async fn see_off(registry: &Registry, broker: &dyn Broker, limit: Duration) {
    registry.order_newcomers(CloseOrder::Drain);
    registry.clients().into_iter().for_each(|client| leave(client, registry, broker));
    let gone = async {
        while !registry.is_idle() || broker.unfinished() > 0 {
            if timeout(TOGETHER, registry.emptied()).await.is_err() {
                // Whoever came in meanwhile, or could not move a moment ago.
                registry.resumable().into_iter().for_each(|client| leave(client, registry, broker));
            }
        }
    };
    let _ = timeout(limit, gone).await;
}

/// Asks everybody who is here to go to another node, spread over `window`. Sessions that can be resumed stay: nobody
/// else can be given them.
pub async fn ask_to_leave(window: Duration, registry: &Registry) {
    let leave = |client| {
        if let Some(outbox) = registry.get(client) {
            let stays = outbox.is_resumable() && !outbox.is_plain();
            outbox.close(if stays { CloseOrder::Moved } else { CloseOrder::Drain });
        }
    };
    spread(window, registry, leave).await;
}

/// Has everybody who is here leave, spread over `window`.
async fn spread(window: Duration, registry: &Registry, leave: impl Fn(Uuid)) {
    let mut clients = registry.clients();
    fastrand::shuffle(&mut clients);
    // One in each slice of the window, at a random place in it: the other nodes get an even stream.
    let began = Instant::now();
    let slice = window / u32::try_from(clients.len().max(1)).unwrap_or(u32::MAX);
    for (client, at) in clients.into_iter().zip(0_u32..) {
        let due = slice.saturating_mul(at) + slice.mul_f64(fastrand::f64());
        if due > began.elapsed() + TOGETHER {
            sleep_until(began + due).await;
        }
        leave(client);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::broker::embedded::Embedded;
    use crate::operate::metrics::Metrics;
    use crate::outbox::tests::outbox;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn the_last_are_told_once_and_waited_for_no_longer_than_they_take() {
        let registry = Arc::new(Registry::default());
        let slow = outbox(9, 99);
        let registration = registry.register(slow.clone());
        let broker = Embedded::new(registry.clone(), Arc::new(Metrics::new("test").unwrap()));
        let began = Instant::now();
        let take_time = async {
            slow.changed().await;
            let again = timeout(5 * TOGETHER, slow.changed()).await;
            assert!(again.is_err(), "it was woken again without anything to do");
            drop(registration);
        };
        tokio::join!(see_off(&registry, &broker, LIMIT), take_time);
        assert!(began.elapsed() < LIMIT);
    }
}
