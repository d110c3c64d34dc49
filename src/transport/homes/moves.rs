//! Owns the step by which another node becomes the home of a session, and who yields to whom.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::claims::Resumption;
use super::doubts::{CONTRADICTED, Doubt};
use super::standbys::REFUSED;
use super::{AT_ONCE, COMES_BACK, Homes};
use crate::outbox::copy::Copy;
use crate::outbox::log::{Position, moved};
use crate::outbox::{CloseOrder, Outbox, Outcome};
use crate::transport::envelope::{self, Channel, Holding, Number, Tag};
use crate::transport::record::Record;
use crate::transport::sender::Actions;
use crate::transport::{Duty, Transport};

/// Why a session has another home than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// Its client came to another node.
    Claimed,
    /// Its home leaves.
    Drained,
    /// Its home was gone.
    HomeGone,
    /// Its home did not answer.
    HomeHung,
    /// Another node turned out to have it in a newer generation.
    GivenUp,
}

impl MoveReason {
    /// Every reason, in the order of the variants.
    pub const ALL: [Self; 5] = [Self::Claimed, Self::Drained, Self::HomeGone, Self::HomeHung, Self::GivenUp];

    /// The reason as metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Drained => "drained",
            Self::HomeGone => "home_gone",
            Self::HomeHung => "home_hung",
            Self::GivenUp => "given_up",
        }
    }
}

/// Where a session is to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    pub(super) tag: Tag,
    /// Its generation there is higher than this.
    pub(super) at_least: u64,
    /// Why.
    pub(super) reason: MoveReason,
    /// The number of the claim, if it is because of one; else 0.
    pub(super) answers: Number,
    /// How the connection ends that it has.
    pub(super) order: CloseOrder,
}

/// A session on its way to another node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) to: Tag,
    pub(super) term: u64,
    pub(super) generation: u64,
    pub(super) reason: MoveReason,
    pub(super) answers: Number,
    /// The standby that it had, if that is not where it goes.
    pub(super) old: Option<(Tag, u64)>,
}

/// The sessions that this node has taken over from another, which may not know.
#[derive(Debug)]
pub(super) struct TakenOver {
    /// When it did so last.
    at: Instant,
    /// The sessions' generations since.
    generations: HashMap<Uuid, u64>,
    /// Those that the other has not been told of.
    untold: Vec<Uuid>,
}

impl TakenOver {
    fn new(now: Instant) -> Self {
        Self { at: now, generations: HashMap::new(), untold: Vec::new() }
    }

    /// The generation that a session has got here since, if it was taken over.
    pub(super) fn generation(&self, client: Uuid) -> Option<u64> {
        self.generations.get(&client).copied()
    }
}

/// What makes a standby that has everything the home of this generation, for it has made the claim `answers`, if that is not 0.
fn promote(outbox: &Outbox, generation: u64, answers: Number) -> (Record, Uuid, Position) {
    (Record::Promote { generation, proven: outbox.proven(), answers }, Uuid::nil(), 0)
}

impl<R> Transport<R> {
    /// This node's copy is the session from now on.
    pub(super) fn become_home(
        &self,
        now: Instant,
        homes: &mut Homes,
        client: Uuid,
        generation: u64,
        actions: &mut Actions<Duty<R>>,
    ) {
        let promote = |copy| Outbox::promoted(now, client, generation, copy, &homes.limits);
        let Some(outbox) = self.registry.promote(client, promote) else { return };
        actions.changed.push(Channel::Client(client));
        self.ensure_standby(now, homes, &outbox, actions);
        if homes.claims.remove(&client).is_some() {
            actions.claims.push((client, Resumption::Here(outbox.clone())));
        }
        // Also if somebody waits for it: whoever that was may be gone.
        actions.detached.push(outbox);
    }

    /// Whether this node's copy is complete, and the newest as far as is known.
    pub(super) fn may_take_over(&self, now: Instant, homes: &Homes, client: Uuid) -> bool {
        let of = |copy: &mut Copy| (copy.generation, copy.is_complete());
        let Some((generation, is_complete)) = self.registry.with_copy(client, of) else { return false };
        let is_newest = self.session(client).is_none_or(|session| session.generation() < generation);
        is_newest && is_complete && homes.is_rested(now) && !homes.unsure.contains_key(&client)
    }

    /// This node's copy is the session from now on, for its home is gone.
    pub(super) fn take_over(
        &self,
        now: Instant,
        homes: &mut Homes,
        client: Uuid,
        reason: MoveReason,
        actions: &mut Actions<Duty<R>>,
    ) {
        let of = |copy: &mut Copy| (copy.home, copy.taken_over());
        let Some((home, generation)) = self.registry.with_copy(client, of) else { return };
        self.become_home(now, homes, client, generation, actions);
        if let Some(outbox) = self.home(client) {
            actions.figures.moves.push(reason);
            self.announce(&outbox, None, 0, actions);
            let taken_over = homes.taken_over.entry(home).or_insert_with(|| TakenOver::new(now));
            taken_over.at = now;
            taken_over.generations.insert(client, outbox.generation());
            taken_over.untold.push(client);
            // Its home, and whoever has become its standby, or its home, since this node has heard of it last, may stand still
            // together. What this node acknowledged by its word alone would be lost when they go on.
            if outbox.standby().is_none() && self.peers.vanished(now) > 1 {
                outbox.wait(true);
                homes.doubted.insert(client, Doubt::Alone(now + CONTRADICTED));
            }
        }
    }

    /// A node that is here again, though it was gone, may not know that it was: Redis may have dropped its connections before
    /// it noticed. It is told of the sessions that it has no more.
    pub(super) fn tell_returned(&self, now: Instant, homes: &mut Homes, actions: &mut Actions<Duty<R>>) {
        homes.taken_over.retain(|tag, TakenOver { at, untold, .. }| {
            if !self.peers.is_gone(*tag) {
                for client in untold.drain(..untold.len().min(AT_ONCE)) {
                    if let Some(outbox) = self.home(client) {
                        self.announce(&outbox, Some(*tag), 0, actions);
                    }
                }
            }
            now.saturating_duration_since(*at) < COMES_BACK
        });
    }

    /// Has another node become the session's home.
    pub(super) fn start_move(
        &self,
        now: Instant,
        homes: &mut Homes,
        outbox: &Arc<Outbox>,
        Goal { tag: to, at_least, reason, answers, order }: Goal,
        actions: &mut Actions<Duty<R>>,
    ) {
        if !outbox.freeze() {
            return;
        }
        outbox.close(order);
        outbox.wait(false); // Should it stay here after all, it is not doubted any more.
        let client = outbox.client();
        let old = outbox.standby();
        homes.let_go(client, old);
        let generation = moved(outbox.generation().max(at_least));
        let mut sender = self.sender();
        let (term, mut records) = match old {
            Some((tag, term)) if tag == to => (term, outbox.next_records()),
            _ => {
                let term = homes.new_term();
                (term, outbox.open_standby(to, term))
            }
        };
        records.push(promote(outbox, generation, answers));
        self.submit_records(&mut sender, now, client, (to, term), records, actions);
        let old = old.filter(|(tag, _)| *tag != to);
        homes.moves.insert(client, Move { to, term, generation, reason, answers, old });
    }

    /// Moves the session of `client` to its standby, for this node leaves. `false` if there is nobody to have it.
    pub fn move_away(&self, now: Instant, client: Uuid, actions: &mut Actions<Duty<R>>) -> bool {
        let Some(outbox) = self.home(client) else { return false };
        let mut homes = self.homes();
        let Some((to, _)) = outbox.standby() else { return false };
        if homes.doubted.contains_key(&client) {
            return true; // Somebody may have it already: that is known in a moment.
        }
        let (reason, order) = (MoveReason::Drained, CloseOrder::Moved);
        let to = Goal { tag: to, at_least: 0, reason, answers: 0, order };
        self.start_move(now, &mut homes, &outbox, to, actions);
        true
    }

    pub(super) fn promoted(
        &self,
        now: Instant,
        client: Uuid,
        term: u64,
        outcome: Outcome,
        actions: &mut Actions<Duty<R>>,
    ) {
        let mut homes = self.homes();
        let Some(step) = homes.moves.get(&client).copied().filter(|step| step.term == term) else { return };
        let Some(outbox) = self.registry.get(client).filter(|outbox| outbox.is_moving()) else { return };
        match outcome {
            Outcome::Handed => {
                homes.moves.remove(&client);
                actions.figures.moves.push(step.reason);
                if let Some((tag, term)) = step.old {
                    self.dismiss(now, client, tag, term, actions);
                }
                outbox.discard();
                homes.moved.push_back((now, outbox));
            }
            // It may have it by now; nobody else is to, as long as it lives.
            Outcome::Unreachable if !self.peers.is_gone(step.to) => {
                let term = homes.new_term();
                let mut sender = self.sender();
                let mut records = outbox.open_standby(step.to, term);
                records.push(promote(&outbox, step.generation, step.answers));
                self.submit_records(&mut sender, now, client, (step.to, term), records, actions);
                homes.moves.insert(client, Move { term, ..step });
            }
            // Meanwhile it was told of a newer home, and has a copy.
            _ if self.registry.with_copy(client, |copy| copy.generation > outbox.generation()) == Some(true) => {
                self.give_up(now, &mut homes, client, actions);
            }
            _ => {
                homes.moves.remove(&client);
                homes.lacking.lose(now, client);
                outbox.thaw(now);
                if outcome == Outcome::Busy {
                    // It has not had it from here. If it has it otherwise, it says so.
                    self.stay(now, &mut homes, &outbox, &step, actions);
                    self.announce(&outbox, None, 0, actions);
                } else {
                    // It may have had it, and so may its standby, which says so then.
                    homes.by_standby.entry(step.to).or_default().insert(client);
                    if let Some((tag, term)) = step.old {
                        self.dismiss(now, client, tag, term, actions);
                    }
                    if self.may_have_been_alone(&homes, now) {
                        return self.give_up(now, &mut homes, client, actions);
                    }
                    self.ask_all(now, &mut homes, &outbox, step.generation, actions);
                }
                actions.detached.push(outbox);
            }
        }
    }

    /// The node that was to have a session refuses it: it stays here, with the standby that it had. That one may have heard
    /// nothing of all this, and would take over what another has by now.
    fn stay(&self, now: Instant, homes: &mut Homes, outbox: &Outbox, step: &Move, actions: &mut Actions<Duty<R>>) {
        let client = outbox.client();
        match step.old.filter(|(tag, _)| !self.peers.is_gone(*tag)) {
            Some((tag, _)) => {
                self.dismiss(now, client, step.to, step.term, actions);
                self.open_standby(now, homes, outbox, tag, actions);
            }
            None => {
                homes.by_standby.entry(step.to).or_default().insert(client);
                homes.refused.push_back((now + REFUSED, client, step.term));
            }
        }
    }

    /// Whether a session that was given to a node which has died since may have died with it: there it had nobody to have a
    /// copy, not even this node.
    fn may_have_been_alone(&self, homes: &Homes, now: Instant) -> bool {
        (homes.leaving || !homes.is_rested(now)) && self.peers.keepers().is_empty()
    }

    /// Another node has the session: this one's client is to look for it.
    pub(super) fn give_up(&self, now: Instant, homes: &mut Homes, client: Uuid, actions: &mut Actions<Duty<R>>) {
        let Some(outbox) = self.session(client) else { return };
        outbox.freeze();
        outbox.close(CloseOrder::Moved);
        let standby = outbox.standby();
        homes.let_go(client, standby);
        // The one that it had before it was to move has its copy still.
        let before = homes.moves.remove(&client).and_then(|step| step.old);
        actions.figures.moves.push(MoveReason::GivenUp);
        for (tag, term) in standby.into_iter().chain(before) {
            self.dismiss(now, client, tag, term, actions);
        }
        homes.moved.push_back((now, outbox));
    }

    /// A node says that it has a session.
    pub(in crate::transport) fn held(&self, now: Instant, tag: Tag, holding: &Holding, actions: &mut Actions<Duty<R>>) {
        if tag == self.peers.me() {
            return;
        }
        self.heard_of(now, &mut self.homes(), tag, holding, actions);
    }

    /// The same, or it is clear from something else that it says.
    pub(super) fn heard_of(
        &self,
        now: Instant,
        homes: &mut Homes,
        tag: Tag,
        holding: &Holding,
        actions: &mut Actions<Duty<R>>,
    ) {
        let client = holding.client;
        if let Some(outbox) = self.home(client) {
            if (outbox.generation(), self.peers.me()) < (holding.generation, tag) {
                self.give_up(now, homes, client, actions);
            } else {
                self.announce(&outbox, Some(tag), holding.nonce, actions);
            }
        } else if let Some((home, term, generation, has_more)) = self.registry.with_copy(client, |copy| {
            (copy.home, copy.term, copy.generation, copy.has_more_than(tag, holding.generation))
        }) {
            if home == tag {
                homes.knocks.remove(&client); // It lives.
            }
            let is_old = if home == tag { homes.vouched(term, holding) } else { generation < holding.generation };
            if is_old && has_more && self.is_awake(now, homes) && self.may_take_over(now, homes, client) {
                self.take_over(now, homes, client, MoveReason::HomeHung, actions);
            } else if is_old {
                self.drop_copy(client, actions);
            }
        }
    }

    /// Says that this node has the session: to one node, or to whoever listens. With the `nonce` of a question it is an answer.
    pub(super) fn announce(&self, outbox: &Outbox, to: Option<Tag>, nonce: u64, actions: &mut Actions<Duty<R>>) {
        let client = outbox.client();
        let term = outbox.standby().map_or(0, |(_, term)| term);
        let holding = Holding { client, generation: outbox.generation(), term, nonce };
        let channel = to.map_or(Channel::Claim(client), Channel::Node);
        self.sender().control(channel, &envelope::held(self.peers.me(), &holding), true, actions);
    }

    /// Asks who has a session: whoever has it says so.
    pub(super) fn question(&self, client: Uuid, channel: Channel, nonce: u64, actions: &mut Actions<Duty<R>>) {
        let question = Holding { client, generation: 0, term: 0, nonce };
        self.sender().control(channel, &envelope::held(self.peers.me(), &question), true, actions);
    }
}
