//! Owns whether Redis is of use now, and what is said of that: in the log, to probes, and of a new master.

use std::time::Instant;

use tracing::{info, warn};

use super::{Shared, lock};
use crate::broker::{BrokerStatus, LinkState};
use crate::config::Address;
use crate::operate::chronicle::Happening;
use crate::sentinel::Topology;

/// Since when Redis is of no use, or that it is; and who is master.
#[derive(Debug)]
pub(super) struct Usable {
    pub(super) since_not: Option<Instant>,
    pub(super) ever: bool,
    pub(super) last_switch: Option<Instant>,
    pub(super) master: Option<Address>,
}

impl Shared {
    pub(super) fn note_usable(&self) {
        let usable = lock(&self.fleet).links().any(|(running, _)| running.link.stage() == LinkState::Synced);
        let mut state = lock(&self.usable);
        if usable {
            if let Some(away) = state.since_not.take().filter(|_| state.ever).map(|since| since.elapsed()) {
                self.chronicle.note(&Happening::RedisBack { away });
            }
            state.ever = true;
        } else if state.since_not.is_none() && !self.tasks.end().is_cancelled() {
            // At the end all links go, and nobody waits for them.
            state.since_not = Some(Instant::now());
            warn!("no usable link to any Redis: messages wait until their deadline");
            self.chronicle.note(&Happening::RedisLost);
        }
    }

    pub(super) fn note_switch(&self, topology: &Topology) {
        let mut state = lock(&self.usable);
        if topology.master == state.master {
            return;
        }
        let from = std::mem::replace(&mut state.master, topology.master.clone());
        let Some(to) = &topology.master else { return };
        self.metrics.master_info.reset();
        self.metrics.master_info.with_label_values(&[&to.to_string()]).set(1);
        match from {
            None => info!(master = %to, epoch = topology.epoch, "master found"),
            Some(from) => {
                state.last_switch = Some(Instant::now());
                self.metrics.failovers.inc();
                info!(master = %to, was = %from, epoch = topology.epoch, "switched to a new master");
                let (from, to) = (from.to_string(), to.to_string());
                self.chronicle.note(&Happening::MasterChanged { from, to, epoch: topology.epoch });
            }
        }
    }

    /// What operators and probes are told.
    pub(super) fn status(&self) -> BrokerStatus {
        let topology = self.topology.borrow().clone();
        let links: Vec<_> =
            lock(&self.fleet).links().map(|(running, expected)| running.link.status(expected)).collect();
        let (sentinels, problem) = match &self.watcher {
            Some(watcher) => watcher.status(),
            None => (Vec::new(), None),
        };
        let state = lock(&self.usable);
        // The master's first: it is what everybody waits for.
        let master = topology.master.as_ref().map(Address::to_string);
        let (first, others): (Vec<_>, Vec<_>) = links.iter().partition(|link| Some(&link.address) == master.as_ref());
        let link_problem = first
            .into_iter()
            .chain(others)
            .find_map(|link| Some(format!("Redis {}: {}", link.address, link.reason.as_ref()?)));
        let usable = state.since_not.is_none();
        let reason = if topology.master.is_none() { problem.or(link_problem) } else { link_problem.or(problem) };
        BrokerStatus {
            kind: if self.watcher.is_some() { "sentinel" } else { "redis" },
            usable,
            unusable_since: state.since_not,
            ever_usable: state.ever,
            reason: reason.or_else(|| (!usable).then(|| "no Redis has been found yet".to_owned())),
            master: topology.master.as_ref().map(Address::to_string),
            epoch: topology.epoch,
            last_switch_seconds_ago: state.last_switch.map(|at| at.elapsed().as_secs_f64()),
            sentinels,
            links,
        }
    }
}
