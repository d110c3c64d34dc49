//! Owns the question whether a receiver is subscribed anywhere: the only thing for which a server's word is taken.
//!
//! A round asks servers, in one command each, how many are subscribed to the receiver's channel and to each node's
//! own. Where a node's own channel is subscribed, so are all of its sessions'; where every node is, and the receiver
//! is not, nobody has it. With a node missing everywhere, it is asked again, with growing pauses; and so it is as long as
//! no server has said anything, or those that do had put things off a moment ago: subscriptions may be late there.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use super::link::Question;
use super::{Actions, LinkId, Links, PAUSE_FIRST, PAUSE_MOST, Sender, bit, links, master_or_first};
use crate::outbox::Outcome;
use crate::transport::envelope::{Channel, Number, Tag};

/// Messages that are published once more when their receiver is found.
const FOUND_AT_ONCE: usize = 128;

/// A receiver that was counted nowhere: is it subscribed anywhere?
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Messages that this round decides.
    asked: BTreeSet<Number>,
    /// Messages that came while it was under way.
    next: BTreeSet<Number>,
    pub(super) under_way: Links,
    done: Links,
    covered: HashSet<Tag>,
    /// Some server has counted.
    is_counted: bool,
    /// Links that know the receiver after all.
    found: Links,
    /// Tells this round from all others, so that no answer to an earlier one counts.
    round: u64,
    rounds: u32,
    /// When the next round begins, if none is under way.
    pub(super) retry: Option<Instant>,
    last_count: u64,
}

impl<R> Sender<R> {
    /// Nobody was counted for a message: is its receiver subscribed anywhere?
    pub(super) fn seek(&mut self, now: Instant, link: LinkId, number: Number, count: u64, actions: &mut Actions<R>) {
        let Some(pending) = self.log.get(&number) else { return };
        let receiver = pending.to;
        let search = self.searches.entry(receiver).or_default();
        search.last_count = count;
        if search.asked.contains(&number) || !search.next.insert(number) {
            return;
        }
        if search.under_way == 0 && search.retry.is_none() {
            self.begin_round(now, receiver, bit(link), actions);
        }
    }

    pub(super) fn begin_round(&mut self, now: Instant, receiver: Channel, on: Links, actions: &mut Actions<R>) {
        let Some(search) = self.searches.get_mut(&receiver) else { return };
        let mut asked = std::mem::take(&mut search.asked);
        asked.append(&mut search.next);
        asked.retain(|number| self.log.contains_key(number));
        if asked.is_empty() {
            self.searches.remove(&receiver);
            return;
        }
        let last_count = search.last_count;
        let rounds = search.rounds + 1;
        self.rounds += 1;
        *search = Search { asked, round: self.rounds, rounds, last_count, ..Search::default() };
        self.ask(now, receiver, on, actions);
    }

    /// Asks `on` who is subscribed; with nobody to ask, later.
    fn ask(&mut self, now: Instant, receiver: Channel, on: Links, actions: &mut Actions<R>) {
        let up = on & self.up;
        let Some(search) = self.searches.get_mut(&receiver) else { return };
        search.under_way |= up;
        for link in links(up) {
            self.links[link].questions.push((receiver, search.round));
            actions.wake |= bit(link);
        }
        if search.under_way == 0 {
            self.later(now, receiver);
        }
    }

    fn later(&mut self, now: Instant, receiver: Channel) {
        let Some(search) = self.searches.get_mut(&receiver) else { return };
        let pause = PAUSE_FIRST.saturating_mul(1 << search.rounds.min(7)).min(PAUSE_MOST);
        let at = now + pause.mul_f64(0.5 + 0.5 * self.random.f64());
        search.retry = Some(at);
        self.retries.push(Reverse((at, receiver)));
    }

    /// A link will not answer any more what it was asked.
    pub(super) fn unasked(&mut self, now: Instant, link: LinkId, questions: Vec<Question>, actions: &mut Actions<R>) {
        for (receiver, round) in questions {
            if let Some(search) = self.searches.get_mut(&receiver).filter(|search| search.round == round) {
                search.under_way &= !bit(link);
                search.done |= bit(link);
                self.round_goes_on(now, receiver, actions);
            }
        }
    }

    /// A server has said how many are subscribed for `receiver`, and which nodes have all their subscriptions there.
    pub(super) fn counted(
        &mut self,
        now: Instant,
        link: LinkId,
        (receiver, round): Question,
        count: u64,
        present: &HashSet<Tag>,
        actions: &mut Actions<R>,
    ) {
        let Some(search) = self.searches.get_mut(&receiver).filter(|search| search.round == round) else { return };
        search.under_way &= !bit(link);
        search.done |= bit(link);
        if count > 0 {
            search.found |= bit(link);
        } else {
            let put_off = self.links[link].put_off;
            if put_off.is_none_or(|at| now.saturating_duration_since(at) >= self.times.settle) {
                search.is_counted = true;
                search.covered.extend(present);
            }
            if search.last_count > 0 {
                self.links[link].strangers = search.last_count;
            }
        }
        self.round_goes_on(now, receiver, actions);
    }

    pub(super) fn round_goes_on(&mut self, now: Instant, receiver: Channel, actions: &mut Actions<R>) {
        let in_motion = self.in_motion(now);
        let silent = links(self.up).filter(|link| self.links[*link].suspect).fold(0, |set, link| set | bit(link));
        let Some(search) = self.searches.get_mut(&receiver) else { return };
        if search.retry.is_some() {
            return; // It ended before this answer came.
        }
        if search.found != 0 {
            // It is there, and was not when the messages were published: they are, once more. That is no hedge, so it
            // costs no token; who is counted nowhere again waits for the next round.
            let found = search.found & self.up;
            if let Some(link) = master_or_first(self.master, found) {
                let asked: Vec<Number> = search.asked.iter().copied().take(FOUND_AT_ONCE).collect();
                actions.figures.resent += asked.len() as u64;
                for number in asked {
                    search.asked.remove(&number);
                    if let Some(pending) = self.log.get_mut(&number) {
                        pending.attempt = pending.attempt.saturating_add(1);
                        self.links[link].again.push_back(number);
                    }
                }
                actions.wake |= bit(link);
            }
            self.later(now, receiver);
            return;
        }
        let rest = self.up & !search.done & !search.under_way;
        let every_server_asked = rest & !silent == 0 && search.under_way & !silent == 0;
        // In motion a newcomer may be subscribed on some servers, and not yet on others.
        let suffices = search.is_counted && (every_server_asked || !in_motion);
        if suffices && self.peers.speak_for_all(now, &search.covered, every_server_asked) {
            let asked = std::mem::take(&mut search.asked);
            let again = !search.next.is_empty();
            let mut keys = BTreeSet::new();
            for number in asked {
                if let Some(pending) = self.log.get(&number) {
                    keys.insert((pending.to, pending.sender));
                    self.settle_from(number, Outcome::NotConnected, false, actions);
                }
            }
            for key in keys {
                self.first_is_new(now, key, actions);
            }
            match master_or_first(self.master, self.up).filter(|_| again) {
                Some(link) => {
                    if let Some(search) = self.searches.get_mut(&receiver) {
                        (search.under_way, search.rounds) = (0, 0);
                    }
                    self.begin_round(now, receiver, bit(link), actions);
                }
                None => drop(self.searches.remove(&receiver)),
            }
        } else if rest != 0 {
            self.ask(now, receiver, rest, actions);
        } else if search.under_way & !silent == 0 {
            self.later(now, receiver);
        }
    }
}
