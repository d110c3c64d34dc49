//! Owns what becomes of messages that have waited for too long: they are sent again, and in the end given up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::link::Link;
use super::{Actions, PAUSE_MOST, Pending, Sender, bit, links};
use crate::outbox::Outcome;
use crate::transport::envelope::{self, Channel, Number};

/// What is sent again costs a token; each new message brings a tenth of one, and so does each of this.
const TOKEN_EVERY: Duration = Duration::from_millis(5);
pub(super) const TOKENS: f64 = 500.0;

impl<R> Sender<R> {
    pub(super) fn learn(&mut self, trip: Duration) {
        if self.trip.is_zero() {
            (self.trip, self.deviation) = (trip, trip / 2);
        } else {
            self.deviation = (self.deviation * 3 + self.trip.abs_diff(trip)) / 4;
            self.trip = (self.trip * 7 + trip) / 8;
        }
        let most = (self.times.send / 5).max(self.times.hedge);
        self.trip_allowed = (self.trip + self.deviation * 4).clamp(self.times.hedge, most);
    }

    pub(super) fn spend(&mut self, now: Instant, tokens: f64) -> bool {
        let passed = now.saturating_duration_since(self.tokens_at).as_secs_f64() / TOKEN_EVERY.as_secs_f64();
        self.tokens_at = now;
        self.tokens = (self.tokens + passed).min(TOKENS);
        let enough = self.tokens >= tokens;
        if enough {
            self.tokens -= tokens;
        }
        enough
    }

    /// Asks for a receipt, on every link; but not of a receiver that is being sought, for the search sends again once it is
    /// found: what was lost with a node would use up the budget of all others.
    pub(super) fn send_again(&mut self, now: Instant, number: Number, actions: &mut Actions<R>) {
        let pause = self.trip_allowed;
        let Some(to) = self.log.get(&number).filter(|pending| now < pending.until).map(|pending| pending.to) else {
            return;
        };
        let is_sought = self.searches.get(&to).is_some_and(|search| search.is_about(number));
        let affordable = !is_sought && self.spend(now, f64::from(self.up.count_ones()));
        let Some(pending) = self.log.get_mut(&number) else { return };
        pending.overdue = false;
        if affordable {
            pending.attempt = pending.attempt.saturating_add(1);
            actions.figures.resent += 1;
            for link in links(self.up) {
                self.links[link].again.push_back(number);
                actions.wake |= bit(link);
            }
        }
        let pause = pause.saturating_mul(1 << u32::from(pending.attempt).min(4)).min(PAUSE_MOST.max(pause));
        let pause = pause.mul_f64(0.75 + 0.25 * self.random.f64());
        let sought = pending.attempt > 1;
        self.hedges_again.push(Reverse((now + pause, number)));
        if sought && let Some(link) = self.master.filter(|link| self.up & bit(*link) != 0) {
            // Counted, but nobody says that it has it: perhaps those who were counted listen to everything.
            self.seek(now, link, number, self.links[link].strangers, actions);
        }
    }

    /// Time has passed. Returns when to call again at the latest, if anything waits.
    pub fn tick(&mut self, now: Instant, actions: &mut Actions<R>) -> Option<Instant> {
        // The log is in the order of deadlines, too.
        while let Some((&number, pending)) = self.log.range(self.unexpired..).next().filter(|(_, p)| p.until <= now) {
            self.unexpired = number + 1;
            if pending.published.is_none() {
                self.give_up(now, number, actions);
            }
        }
        let grace = self.times.send - self.patience();
        while let Some((&number, _)) = self.log.first_key_value().filter(|(_, p)| p.until + grace <= now) {
            self.give_up(now, number, actions);
        }
        for link in links(self.up) {
            if self.suspicious_at(&self.links[link]).is_some_and(|at| now >= at) {
                self.links[link].suspect = true;
                let stuck = std::mem::take(&mut self.links[link].questions);
                self.unasked(now, link, stuck, actions);
                let untold = if self.carriers & bit(link) == 0 { self.links[link].untold() } else { Vec::new() };
                for (tag, receipts) in untold {
                    self.tell_by_carriers(now, link, tag, &receipts, actions);
                }
                self.give_to_carriers(link, actions);
                let asked: Vec<Channel> =
                    self.searches.iter().filter(|(_, s)| s.under_way & bit(link) != 0).map(|(r, _)| *r).collect();
                for channel in asked {
                    self.round_goes_on(now, channel, actions);
                }
            }
        }
        self.route(now, actions);
        while let Some(number) = due(&mut self.hedges, &self.log, now) {
            self.overdue(now, number, actions);
        }
        while let Some(Reverse((_, number))) = self.hedges_again.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.hedges_again.pop();
            self.overdue(now, number, actions);
        }
        while let Some(Reverse((at, receiver))) = self.retries.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.retries.pop();
            if self.searches.get(&receiver).is_some_and(|search| search.retry == Some(at)) {
                self.begin_round(now, receiver, self.up, actions);
            }
        }
        let ends = [
            self.log.first_key_value().map(|(_, pending)| pending.until + grace),
            self.log.range(self.unexpired..).next().map(|(_, pending)| pending.until),
        ];
        let waits = [
            self.hedges.front().map(|(at, _)| *at),
            self.hedges_again.peek().map(|Reverse((at, _))| *at),
            self.retries.peek().map(|Reverse((at, _))| *at),
        ];
        let suspicion = links(self.up).filter_map(|link| self.suspicious_at(&self.links[link])).min();
        let calm = self.in_motion(now).then(|| self.disturbed + self.times.settle).filter(|at| *at > now);
        ends.into_iter().chain(waits).chain([suspicion, calm]).flatten().min()
    }

    /// No receipt has come in time; a lane's first goes out again, others when they are the first.
    pub(super) fn overdue(&mut self, now: Instant, number: Number, actions: &mut Actions<R>) {
        let Some(pending) = self.log.get_mut(&number) else { return };
        pending.overdue = true;
        let key = (pending.to, pending.sender);
        if self.lanes.get(&key).and_then(VecDeque::front) == Some(&number) {
            self.send_again(now, number, actions);
        }
    }

    /// When a server that owes something has been silent for longer than it takes of late.
    pub(super) fn suspicious_at(&self, link: &Link) -> Option<Instant> {
        let since = link.busy_since.filter(|_| link.owes() && !link.suspect)?;
        Some(since + self.times.hedge.max((link.trip * 3).min(self.times.send / 4)))
    }

    /// The deadline has passed; its successors need not wait for it any more, and their node is told so.
    pub(super) fn give_up(&mut self, now: Instant, number: Number, actions: &mut Actions<R>) {
        let Some(pending) = self.log.get(&number) else { return };
        let key = (pending.to, pending.sender);
        if envelope::may_come_again(&pending.body) {
            // Its sender may have gone to another node, and ask for all of them again, in order: nothing overtakes it.
            let behind: Vec<Number> =
                self.lanes.get(&key).into_iter().flatten().copied().filter(|n| *n >= number).collect();
            for number in behind {
                self.settle(number, Outcome::Unreachable, actions);
            }
            return;
        }
        self.settle(number, Outcome::Unreachable, actions);
        let first = self.lanes.get(&key).and_then(|lane| lane.front().copied());
        let is_published = |number: &Number| self.log.get(number).is_some_and(|pending| pending.published.is_some());
        if let Some(first) = first.filter(is_published) {
            self.send_again(now, first, actions);
        }
    }
}

/// Takes from `queue` what is not decided yet and whose time has come.
fn due<R>(queue: &mut VecDeque<(Instant, Number)>, log: &BTreeMap<Number, Pending<R>>, now: Instant) -> Option<Number> {
    while let Some(&(at, number)) = queue.front() {
        let waits = log.contains_key(&number);
        if waits && at > now {
            break;
        }
        queue.pop_front();
        if waits {
            return Some(number);
        }
    }
    None
}
