//! Owns which links there are, as the topology has them, and what their ups and downs mean for others.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use uuid::Uuid;

use super::link::Link;
use super::{RunningLink, Shared, lock};
use crate::broker::LinkState;
use crate::broker::deployment::milliseconds;
use crate::operate::chronicle::Happening;
use crate::sentinel::Topology;
use crate::transport::envelope::Channel;
use crate::transport::sender::{Actions, MAX_LINKS};

impl Shared {
    /// Lets the links follow the topology.
    pub(super) async fn run_keeper(self: &Arc<Self>) {
        let mut topology = self.topology.clone();
        let slots = lock(&self.fleet).slots();
        let mut period = tokio::time::interval(Duration::from_secs(1));
        loop {
            let now_topology = topology.borrow_and_update().clone();
            self.note_switch(&now_topology);
            self.converge(&now_topology);
            self.roles_changed();
            self.note_calm(Instant::now());
            tokio::select! {
                changed = topology.changed() => if changed.is_err() {
                    // A fixed topology never changes; links still have to linger and end.
                    period.tick().await;
                },
                _ = period.tick() => {}
                () = slots.freed() => {} // Somebody may have waited for it.
                () = self.alarmed() => {
                    self.with_sender(|sender, now, actions| sender.disturb(now, actions));
                }
            }
        }
    }

    async fn alarmed(&self) {
        match &self.watcher {
            Some(watcher) => watcher.alarmed().await,
            None => std::future::pending().await,
        }
    }

    fn converge(self: &Arc<Self>, topology: &Topology) {
        let changes = lock(&self.fleet).apply(
            Instant::now(),
            topology,
            |running| running.link.stage(),
            |slot| {
                let link = Arc::new(Link::new(slot));
                let end = self.tasks.end().child_token();
                self.tasks.spawn_vital("link", &end, link.clone().run(self.clone(), end.clone()));
                RunningLink { link, _end: end.drop_guard() }
            },
        );
        for address in changes.left {
            info!(%address, "link to Redis given up: the server left the topology");
        }
        for address in changes.yielded {
            info!(%address, "link to a dead Redis given up: a living one needs its place");
        }
        let mut without = lock(&self.without);
        if changes.without > *without {
            warn!(servers = changes.without, most = MAX_LINKS, "more Redis servers than links: the dead have none");
        }
        *without = changes.without;
    }

    pub(super) fn link_up(&self, link: &Link) {
        self.roles_changed();
        self.with_sender(|sender, now, actions| sender.link_up(now, link.id(), actions));
    }

    pub(super) fn link_synced(&self, link: &Link, channels: usize, took: Duration) {
        let address = link.address().to_string();
        if link.is_news_that_synced() {
            let took_ms = milliseconds(took);
            info!(%address, channels, took_ms, "link to Redis synced: channels replayed");
            self.chronicle.note(&Happening::LinkSynced { address: address.clone() });
        }
        self.metrics.replay_duration.observe(took.as_secs_f64());
        #[allow(clippy::cast_precision_loss)] // Not before 2^53 channels.
        self.metrics.replay_channels.with_label_values(&[&address]).set(channels as f64);
        let mut actions = Actions::default();
        self.transport.link_synced(Instant::now(), link.id(), &mut actions);
        self.act(actions);
        self.note_usable();
    }

    pub(super) fn link_lost(&self, link: &Link, was: LinkState) {
        self.with_sender(|sender, now, actions| sender.link_lost(now, link.id(), actions));
        self.roles_changed();
        self.note_usable();
        // One that was lost before tells the Sentinels' watcher nothing new.
        if let (Some(watcher), true) = (&self.watcher, was != LinkState::Connecting) {
            watcher.ask_now();
        }
    }

    /// Tells the session that it can be reached, once that is true for whoever publishes as we would: by the master, and
    /// without one by anybody. But for a node that has just begun: nobody knows it yet, and so nobody asks further.
    pub(super) fn confirmed(&self, link: &Link, channel: &[u8]) {
        let Some(outbox) = client_of(channel).and_then(|client| self.registry.get(client)) else {
            return;
        };
        let reaches = match self.master_link() {
            Some(master) => master.id() == link.id(),
            None => self.had_master.load(Ordering::Relaxed),
        };
        if reaches {
            outbox.confirm_subscription();
        }
    }

    /// The link to the node that is master for Sentinel and calls itself so.
    pub(super) fn master_link(&self) -> Option<Arc<Link>> {
        let master = self.topology.borrow().master.clone()?;
        let fleet = lock(&self.fleet);
        fleet.get(&master).map(|running| running.link.clone()).filter(|link| link.is_master())
    }

    /// Tells the transport who is master.
    pub(super) fn roles_changed(&self) {
        let master = self.master_link().map(|link| link.id());
        self.metrics.master_linked.set(i64::from(master.is_some()));
        self.had_master.fetch_or(master.is_some(), Ordering::Relaxed);
        self.with_sender(|sender, now, actions| sender.set_master(now, master, actions));
    }
}

/// The client of a channel.
fn client_of(channel: &[u8]) -> Option<Uuid> {
    match Channel::parse(channel)? {
        Channel::Client(client) => Some(client),
        Channel::Claim(_) | Channel::Node(_) | Channel::Nodes => None,
    }
}
