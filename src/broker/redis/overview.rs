//! Owns what people see of the deployment from here: how it is now, and who of the other gateways comes and goes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::{info, warn};

use super::role::Role;
use super::{Shared, lock};
use crate::broker::LinkState;
use crate::broker::deployment::{Deployment, Movement, ServerView, milliseconds};
use crate::config::Address;
use crate::operate::chronicle::Happening;
use crate::operate::repeats::Repeats;
use crate::transport::envelope::Tag;
use crate::transport::peers::roll::{Life, Member};

/// The other gateways, when they were looked at last.
#[derive(Debug, Default)]
pub(super) struct Roll {
    known: Mutex<BTreeMap<Tag, (String, Life)>>,
    /// What the log has said of them.
    said: Mutex<Repeats>,
}

/// What is new about another gateway.
#[derive(Debug)]
struct Change {
    tag: Tag,
    name: String,
    /// What it was, unless it is new.
    was: Option<Life>,
    /// What it is, unless it is heard of no more.
    life: Option<Life>,
}

impl Change {
    /// For people who look.
    fn happening(&self) -> Option<Happening> {
        let name = self.name.clone();
        match self.life {
            Some(Life::Alive) => Some(Happening::GatewayCame { name }),
            Some(Life::Leaving) => Some(Happening::GatewayLeaves { name }),
            Some(Life::Silent) => Some(Happening::GatewaySilent { name }),
            Some(Life::Gone) => Some(Happening::GatewayGone { name }),
            None if self.was != Some(Life::Gone) => Some(Happening::GatewayGone { name }),
            None | Some(Life::Unknown) => None,
        }
    }

    /// For the log: whether that is a warning, and the words. Whoever is met anew is said there already.
    fn words(&self, has_left: bool) -> Option<(bool, &'static str)> {
        match (self.was, self.life) {
            (None, Some(Life::Alive)) | (_, Some(Life::Unknown)) => None,
            (_, Some(Life::Alive)) => Some((false, "another node is there again")),
            (_, Some(Life::Leaving)) => Some((false, "another node is about to leave")),
            (_, Some(Life::Silent)) => Some((true, "another node is silent: it is subscribed, and says nothing")),
            (_, Some(Life::Gone)) => {
                Some((true, "another node is gone: it is subscribed nowhere, and has not said goodbye"))
            }
            (_, None) if has_left => Some((false, "another node has left")),
            (Some(Life::Gone), None) => None,
            (_, None) => Some((false, "another node is heard of no more")),
        }
    }
}

impl Roll {
    /// What is new about the others.
    fn changes(&self, members: Vec<Member>) -> Vec<Change> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever hears nobody knows nothing of them.
        if members.iter().any(|member| member.life == Life::Unknown) {
            return Vec::new();
        }
        let mut before = std::mem::take(&mut *known);
        let mut changes = Vec::new();
        for Member { tag, name, life, .. } in members {
            let was = before.remove(&tag).map(|(_, life)| life);
            if was != Some(life) {
                changes.push(Change { tag, name: name.clone(), was, life: Some(life) });
            }
            known.insert(tag, (name, life));
        }
        let left = before.into_iter();
        changes.extend(left.map(|(tag, (name, life))| Change { tag, name, was: Some(life), life: None }));
        changes
    }

    /// Says it in the log: once for each run of a gateway, and ever more seldom for one that comes and goes.
    fn say(&self, now: Instant, change: &Change, has_left: bool) {
        let Some((is_warning, words)) = change.words(has_left) else { return };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(again) = said.note(now, &format!("{:x} {words}", change.tag)) else { return };
        match is_warning {
            true => warn!(node = change.name, "{words}{again}"),
            false => info!(node = change.name, "{words}{again}"),
        }
    }
}

impl Shared {
    /// Takes note of gateways that came or went.
    pub(super) fn note_gateways(&self, now: Instant) {
        for change in self.roll.changes(self.transport.roll(now)) {
            self.roll.say(now, &change, self.transport.has_left(change.tag));
            if let Some(happening) = change.happening() {
                self.chronicle.note(&happening);
            }
        }
    }

    /// Takes note of the end of a failover, if one goes on.
    pub(super) fn note_calm(&self, now: Instant) {
        if !self.chronicle.is_failing_over() {
            return;
        }
        let (master, master_down) = {
            let topology = self.topology.borrow();
            (topology.master.as_ref().map(Address::to_string), topology.master_down)
        };
        let is_calm = !master_down && !self.transport.sender().in_motion(now);
        if let Some(master) = master.filter(|_| is_calm)
            && let Some(took) = self.chronicle.is_calm(now, &master)
        {
            let took_ms = milliseconds(took);
            info!(%master, took_ms, "failover over: messages go to the master alone again");
        }
    }

    /// The deployment now. Nobody is asked: it is what the links have heard anyway.
    pub(super) fn deployment(&self, now: Instant) -> Deployment {
        let topology = self.topology.borrow().clone();
        let links: Vec<_> =
            lock(&self.fleet).links().map(|(running, expected)| (running.link.clone(), expected)).collect();
        let (in_motion, carries): (bool, Vec<bool>) = {
            let sender = self.transport.sender();
            (sender.in_motion(now), links.iter().map(|(link, _)| sender.carries(link.id())).collect())
        };
        let said: Vec<_> = links.iter().map(|(link, _)| link.said()).collect();
        let is_master = |address: &Address| topology.master.as_ref() == Some(address);
        let master = links
            .iter()
            .zip(&said)
            .find(|((link, _), (role, _))| is_master(link.address()) && *role == Some(Role::Master));
        let master = master.map(|(_, (_, progress))| *progress);
        let servers: Vec<ServerView> = links
            .iter()
            .zip(said)
            .zip(carries)
            .map(|(((link, expected), (role, progress)), carries)| {
                let status = link.status(*expected);
                let follows = match role {
                    Some(Role::Replica { connected, .. }) => Some(connected),
                    Some(Role::Master) | None => None,
                };
                ServerView {
                    is_master: is_master(link.address()),
                    address: status.address,
                    role: status.role,
                    link: status.state,
                    expected: status.expected,
                    carries,
                    follows,
                    behind_bytes: follows.and(master).and_then(|master| progress.behind(&master)),
                    answers_in_ms: progress.trip().map(milliseconds),
                    reason: status.reason,
                }
            })
            .collect();
        let sentinels = self.watcher.as_ref().map(|watcher| watcher.status().0).unwrap_or_default();
        let answering = sentinels.iter().filter(|sentinel| sentinel.reachable).count();
        let lacks_majority = !sentinels.is_empty() && answering * 2 <= sentinels.len();
        let movement = match () {
            () if servers.iter().all(|server| server.link == LinkState::Connecting) => Movement::Outage,
            () if lacks_majority && (topology.master_down || master.is_none()) => Movement::Masterless,
            () if topology.master_down || self.chronicle.is_failing_over() => Movement::Failover,
            () if in_motion => Movement::Motion,
            () => Movement::Calm,
        };
        Deployment { movement, gateways: self.transport.roll(now), servers, events: self.chronicle.latest() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn gateways_come_and_go_once_each() {
        let roll = Roll::default();
        let member = |tag, name: &str, life| Member { tag, name: name.to_owned(), life, silence: Duration::ZERO };
        let changes = |members: &[Member]| -> Vec<String> {
            let changes = roll.changes(members.to_vec());
            changes.iter().filter_map(Change::happening).map(|happening| happening.to_string()).collect()
        };
        let (one, two) = (member(1, "one", Life::Alive), member(2, "two", Life::Alive));
        assert_eq!(changes(&[one.clone(), two.clone()]), ["Gateway one is there", "Gateway two is there"]);
        assert_eq!(changes(&[one.clone(), two.clone()]), [""; 0]);
        let unknown = [member(1, "one", Life::Unknown), member(2, "two", Life::Unknown)];
        assert_eq!(changes(&unknown), [""; 0], "this node is cut off, and they may live");
        assert_eq!(changes(&[member(1, "one", Life::Leaving), two]), ["Gateway one drains"]);
        assert_eq!(changes(&[member(2, "two", Life::Gone)]), ["Gateway two is gone", "Gateway one is gone"]);
        assert_eq!(changes(&[]), [""; 0], "it was gone before");
    }
}
