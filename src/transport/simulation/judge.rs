//! Owns the judge of a world, who sees what clients are shown and senders are told.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{Asked, Faults, MS, NODES, SECOND, SERVERS, Submission, World};
use crate::outbox::Outcome;

impl World {
    pub(super) fn decided(&mut self, (number, connection): Asked, outcome: Outcome) {
        if let Some(person) = &mut self.clients[self.submissions[number].sender].person {
            if person.connection != connection || !person.connected {
                return; // Nobody hears it; the person asks again.
            }
            person.unanswered.retain(|waiting| *waiting != number);
        } else if connection > 0 {
            return; // It has left.
        }
        self.tell_of(self.submissions[number].to, || format!("{number} is decided: {outcome:?}"));
        if self.submissions[number].outcome.replace(outcome).is_some() {
            self.fail(format!("{number} was decided twice"));
        }
        let Submission { receiver, at, node: from, .. } = self.submissions[number];
        let paused = self.nodes[from].paused_until;
        if self.now > at.max(paused) + 2 * SECOND + 100 * MS {
            self.fail(format!("{number} was decided late"));
        }
        let Some(client) = receiver.map(|receiver| &self.clients[receiver]) else { return };
        if client.person.is_some() {
            // Wherever the session is, it is somewhere.
            let there = self.faults == Faults::OneNode && client.since + SECOND <= at;
            if outcome == Outcome::NotConnected && there {
                self.fail(format!("{number}: its receiver can be resumed, and was declared absent"));
            }
            return;
        }
        let to = client.node;
        // Both have been subscribed on one server that answered, for all the time and some before.
        let meet = |server: usize| {
            let since = |node: usize| self.nodes[node].synced_since[server].is_some_and(|since| since + SECOND <= at);
            let well = self.servers[server].alive && self.servers[server].hung_at + 5 * SECOND < at.max(5 * SECOND + 1);
            since(from) && since(to) && well
        };
        let there = !client.gone && client.since + SECOND <= at && (0..SERVERS).any(meet);
        if outcome == Outcome::NotConnected && there && self.nodes[to].paused_until + SECOND < at {
            self.fail(format!("{number}: its receiver is there, and was declared absent"));
        }
    }

    pub(super) fn judge(&mut self, well_since: usize) {
        for client in 0..self.clients.len() {
            if !self.clients[client].gone {
                self.show(client, usize::MAX);
            }
            if self.clients[client].person.as_ref().is_some_and(|person| !person.connected) {
                self.fail(format!("person {client} never came back"));
            }
        }
        for node in 0..NODES {
            let (others, longest) = self.nodes[node].transport.safety(self.instant());
            if self.nodes[node].alive && others > 0 && longest > Duration::from_secs(2) {
                self.fail(format!("on node {node} a session has waited for its second copy for {longest:?}"));
            }
        }
        let mut last: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut problems = Vec::new();
        let places: Vec<HashMap<usize, usize>> = self
            .clients
            .iter()
            .map(|client| client.shown.iter().enumerate().map(|(place, number)| (*number, place)).collect())
            .collect();
        for (number, submission) in self.submissions.iter().enumerate() {
            let lives = self.nodes[submission.node].alive && self.nodes[submission.node].life == submission.life;
            let sender = &self.clients[submission.sender];
            let lives = (lives || sender.person.is_some()) && !sender.gone;
            let Some(outcome) = submission.outcome else {
                if lives {
                    problems.push(format!("{number} was never decided"));
                }
                continue;
            };
            let Some(receiver) = submission.receiver else {
                if outcome == Outcome::Handed {
                    problems.push(format!("{number} was acknowledged for nobody"));
                }
                continue;
            };
            let place = places[receiver].get(&number).filter(|place| **place >= self.clients[receiver].anew_at);
            if outcome == Outcome::Handed {
                // A person was told since when messages may be missing.
                let excused = self.clients[receiver].gone
                    || self.clients[receiver].person.is_some() && submission.at < self.clients[receiver].since;
                match place {
                    None if !excused => {
                        problems.push(format!("{number} was acknowledged, and is lost"));
                    }
                    // What was on its way when its receiver was told may come behind what was sent since, and so may what is
                    // asked for again.
                    Some(place) if !excused && submission.first >= self.clients[receiver].since => {
                        let key = (submission.sender, receiver);
                        if last.insert(key, *place).is_some_and(|before| before > *place) {
                            problems.push(format!("{number} is out of order"));
                        }
                    }
                    _ => {}
                }
            } else if number >= well_since && !self.clients[receiver].gone && outcome != Outcome::Busy {
                problems.push(format!("{number}: all is well, and yet {outcome:?}"));
            }
        }
        if let Some(problem) = problems.into_iter().next() {
            self.fail(problem);
        }
    }
}
