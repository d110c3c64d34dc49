//! Owns the question whether a receiver is subscribed anywhere: the only thing for which a server's word is taken.
//!
//! A round asks servers, in one command each, how many are subscribed to the receiver's channel and to each node's
//! own. Where a node's own channel is subscribed, so are all of its sessions'; where every node is, and the receiver
//! is not, nobody has it. With a node missing everywhere, it is asked again, with growing pauses; and so it is as long as
//! no server has said anything, or those that do had put things off a moment ago: subscriptions may be late there.
//! A newcomer may be subscribed on one server alone, on its way to the others, while it is already known: unless the
//! master answers in calm, a server that can't be heard, or that lacks a node, makes the others' word good only for
//! messages that have waited for a while.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use super::link::Question;
use super::{Actions, LinkId, Links, PAUSE_FIRST, PAUSE_MOST, Sender, bit, links, master_or_first};
use crate::outbox::Outcome;
use crate::transport::envelope::{Channel, Number, Tag};

/// So long after a message came, a newcomer is on every server that it was on its way to when it was greeted.
pub(super) const UNHEARD: Duration = Duration::from_secs(1);
/// As long as all messages for a receiver are younger than this, it is asked about at shorter pauses: whoever lost its
/// node is back in a moment, and every pause is one that it waits.
const LATELY: Duration = Duration::from_secs(1);
pub(super) const PAUSE_YOUNG: Duration = Duration::from_millis(40);
/// With so many more that are sought, it is that much longer.
const MANY: u32 = 256;
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
    /// Servers that have every node, and not the receiver.
    complete: Links,
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

impl Search {
    /// Whether `number` is sent once more when its receiver is found. Once that is so, lanes go on by themselves: a search
    /// sends a part of a long queue again, and what is taken brings the next.
    pub(super) fn is_about(&self, number: Number) -> bool {
        self.found == 0 && (self.asked.contains(&number) || self.next.contains(&number))
    }
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
        let (up, silent) = (on & self.up, self.silent());
        let Some(search) = self.searches.get_mut(&receiver) else { return };
        search.under_way |= up;
        for link in links(up) {
            self.links[link].questions.push((receiver, search.round));
            actions.wake |= bit(link);
        }
        // A server that hangs may say nothing for long, and nobody waits for it.
        if search.under_way & !silent == 0 {
            self.later(now, receiver);
        }
    }

    fn later(&mut self, now: Instant, receiver: Channel) {
        let is_young = self.is_young(now, receiver);
        self.later_for(now, receiver, is_young);
    }

    /// Whether all messages that the search is about came a moment ago.
    fn is_young(&self, now: Instant, receiver: Channel) -> bool {
        let Some(search) = self.searches.get(&receiver) else { return false };
        let oldest = |numbers: &BTreeSet<Number>| numbers.iter().find_map(|number| Some(self.log.get(number)?.until));
        let until = [&search.asked, &search.next].into_iter().filter_map(oldest).min();
        until.is_some_and(|until| until > now + self.patience() - LATELY)
    }

    fn later_for(&mut self, now: Instant, receiver: Channel, is_young: bool) {
        // With many that are sought, servers are asked no more often for it.
        let young = PAUSE_YOUNG.saturating_mul(1 + self.searches.len() as u32 / MANY);
        let most = if is_young { young.min(PAUSE_MOST) } else { PAUSE_MOST };
        let Some(search) = self.searches.get_mut(&receiver) else { return };
        let pause = match search.found != 0 && !(search.asked.is_empty() && search.next.is_empty()) {
            true => PAUSE_FIRST, // It is there, and more of its queue is to go out.
            false => PAUSE_FIRST.saturating_mul(1 << search.rounds.min(7)).min(most),
        };
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
                if self.peers.are_all_in(present) {
                    search.complete |= bit(link);
                }
            }
            if search.last_count > 0 {
                self.links[link].strangers = search.last_count;
            }
        }
        self.round_goes_on(now, receiver, actions);
    }

    pub(super) fn round_goes_on(&mut self, now: Instant, receiver: Channel, actions: &mut Actions<R>) {
        let in_motion = self.in_motion(now);
        let silent = self.silent();
        let Some(search) = self.searches.get_mut(&receiver) else { return };
        if search.retry.is_some() {
            return; // It ended before this answer came.
        }
        if search.found != 0 {
            // It is there, and was not when the messages were published: they are, once more. That is no hedge, so it
            // costs no token; who is counted nowhere again waits for the next round.
            // It may be found at a node that hands it on to another just now: then they are asked about again.
            let found = search.found & self.up;
            let is_young = self.is_young(now, receiver);
            let Some(search) = self.searches.get_mut(&receiver) else { return };
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
            self.later_for(now, receiver, is_young);
            return;
        }
        let rest = self.up & !search.done & !search.under_way;
        let every_server_asked = rest & !silent == 0 && search.under_way & !silent == 0;
        // In motion a newcomer may be subscribed on some servers, and not yet on others.
        let suffices = search.is_counted && (every_server_asked || !in_motion);
        if suffices && self.peers.speak_for_all(now, &search.covered, every_server_asked) {
            let (asked, rest) = self.decided_by(now, receiver, in_motion);
            // Nothing overtakes what is refused; of what came later it is not sure that nobody is there.
            let behind = if rest.is_empty() { Outcome::NotConnected } else { Outcome::Unreachable };
            let Some(search) = self.searches.get_mut(&receiver) else { return };
            let waits = !rest.is_empty();
            search.next.extend(rest);
            let again = !search.next.is_empty();
            let mut keys = BTreeSet::new();
            for number in asked {
                if let Some(pending) = self.log.get(&number) {
                    keys.insert((pending.to, pending.sender));
                    self.settle_from(number, (Outcome::NotConnected, behind), false, actions);
                }
            }
            for key in keys {
                self.first_is_new(now, key, actions);
            }
            let link = master_or_first(self.master, self.up);
            match link.filter(|_| !waits) {
                _ if !again => drop(self.searches.remove(&receiver)),
                Some(link) => {
                    if let Some(search) = self.searches.get_mut(&receiver) {
                        (search.under_way, search.rounds) = (0, 0);
                    }
                    self.begin_round(now, receiver, bit(link), actions);
                }
                None => self.later(now, receiver),
            }
        } else if rest != 0 {
            self.ask(now, receiver, rest, actions);
        } else if search.under_way & !silent == 0 {
            self.later(now, receiver);
        }
    }

    /// Of the messages that a round is about: those for which it is decided that nobody is there, and those for which it
    /// is not, for their receiver may have had a server alone that can't be heard.
    fn decided_by(&mut self, now: Instant, receiver: Channel, in_motion: bool) -> (BTreeSet<Number>, BTreeSet<Number>) {
        let unheard = UNHEARD.min(self.times.send / 5);
        let came_before = now + self.patience() - unheard;
        let Some(search) = self.searches.get_mut(&receiver) else { return Default::default() };
        let by_master = !in_motion && self.master.is_some_and(|master| search.complete & bit(master) != 0);
        let by_all = self.up & !search.complete == 0
            && self.lost_at.is_none_or(|at| now.saturating_duration_since(at) >= unheard);
        // A node is no newcomer: whether it is there, is said by more than one answer.
        let is_sure = by_master || by_all || matches!(receiver, Channel::Node(_));
        let log = &self.log;
        let has_waited = |number: &Number| log.get(number).is_none_or(|pending| pending.until <= came_before);
        std::mem::take(&mut search.asked).into_iter().partition(|number| is_sure || has_waited(number))
    }
}
