//! Owns what a node makes of what others say of their sessions: the copies that it keeps for them.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::doubts::Gap;
use crate::outbox::Outbox;
use crate::outbox::budget::Budget;
use crate::outbox::copy::Copy;
use crate::outbox::log::{Origin, has_moved_to};
use crate::transport::envelope::{self, Channel, Holding, Number, Tag};
use crate::transport::inbox::Room;
use crate::transport::peers::Standing;
use crate::transport::record::{self, Opening, Record};
use crate::transport::sender::Actions;
use crate::transport::{Duty, Gathered, Transport};

/// What waits for its predecessors on a node's own channel.
const MOST_WAITING: usize = 65_536;

/// What a home or a standby says to another, as it waits to be looked at.
#[derive(Debug)]
pub(super) struct Letter {
    client: Uuid,
    id: Uuid,
    term: u64,
    record: Record,
}

/// What follows from a letter.
enum Effect {
    /// Two nodes have this message: its sender is to know.
    Confirmed(Origin),
    Changed(Channel),
    /// This node has the session, and the other does not know.
    Held(Uuid),
    /// A third node has it, and this one is its standby.
    HeldBy(Tag, Holding),
    /// The other has taken it over, with less than this node has a copy of.
    Less(Holding),
    /// Another node has it now.
    Yield(Uuid),
    Promoted(Uuid, u64),
}

/// The state that a letter is held against.
pub(super) struct Post<'a, R> {
    transport: &'a Transport<R>,
    budget: &'a Arc<Budget>,
    leaving: bool,
    is_awake: bool,
    gap: Gap<'a>,
    tag: Tag,
    effects: Vec<Effect>,
    waiting: usize,
}

impl<R> Room<Letter> for Post<'_, R> {
    fn may_wait(&mut self, _: &Letter) -> bool {
        self.waiting += 1;
        self.waiting <= MOST_WAITING
    }

    fn waits_no_more(&mut self, _: &Letter) {}

    fn admit(&mut self, _: Number, letter: Letter) -> bool {
        let Letter { client, id, term, record } = letter;
        match record {
            Record::Open(opening) => self.open(client, term, opening),
            Record::Message(taken) => {
                let origin = taken.origin;
                let kept = self.with_copy(client, term, |copy| copy.take(id, taken));
                match kept {
                    // Its home may have yielded while this node was not there: it says so itself when it is asked again.
                    Some(true) if self.gap.is_unsure(client) => {}
                    Some(true) => self.effects.push(Effect::Confirmed(origin)),
                    Some(false) => self.drop_copy(client), // It has a hole: it is of no use.
                    None => self.refuse(client),
                }
                kept == Some(true)
            }
            Record::Had { had, generation, proven } => {
                let known = self.with_copy(client, term, |copy| copy.learn(had, generation, proven)).is_some();
                if !known {
                    self.refuse(client);
                }
                known
            }
            Record::Promote { generation, proven, answers } => {
                let is_of_now = !self.gap.is_unsure(client) || self.gap.is_answer(answers);
                let is_sure = self.is_awake && is_of_now && !self.gap.is_past(client, generation);
                let known = is_sure && self.with_copy(client, term, |copy| copy.learn(0, 0, proven)).is_some();
                // Also one that it gives to another already: its answer to the first letter may have been lost. Or it has taken the
                // session over before.
                let has_been = |outbox: Arc<Outbox>| has_moved_to(outbox.generation(), generation);
                let has_been = self.transport.session(client).is_some_and(has_been);
                if known {
                    self.effects.push(Effect::Promoted(client, generation));
                }
                known || has_been
            }
            Record::End => {
                // Or one of an older term, for this node took no newer one.
                let is_meant = |copy: &mut Copy| copy.home == self.tag && copy.term <= term;
                if self.transport.registry.with_copy(client, is_meant) == Some(true) {
                    self.drop_copy(client);
                }
                true
            }
            Record::Claim(_) => false,
        }
    }
}

impl<R> Post<'_, R> {
    fn open(&mut self, client: Uuid, term: u64, opening: Opening) -> bool {
        if let Some(home) = self.transport.session(client) {
            if home.generation() >= opening.generation {
                self.effects.push(Effect::Held(client));
                return false;
            }
            if !home.is_moving() {
                self.effects.push(Effect::Yield(client));
            }
        }
        // It has not heard that this node took over from it, and gave the session to another since.
        if let Some(generation) = self.gap.successor(client, opening.generation) {
            let me = self.transport.peers.me();
            self.effects.push(Effect::HeldBy(me, Holding { client, generation, term: 0, nonce: 0 }));
            return false;
        }
        if self.leaving {
            return false;
        }
        let registry = &self.transport.registry;
        let Opening { generation, .. } = opening;
        if registry.with_copy(client, |copy| copy.generation > generation) == Some(true) {
            self.refuse(client);
            return false; // An older home, that has not heard of its successor.
        }
        let has_more = |copy: &mut Copy| copy.has_more_than(self.tag, generation);
        if registry.with_copy(client, has_more) == Some(true) && !self.gap.is_unsure(client) {
            self.effects.push(Effect::Less(Holding { client, generation, term, nonce: 0 }));
            return false;
        }
        registry.keep_copy(client, Box::new(Copy::new(self.tag, term, opening, self.budget)));
        self.gap.copied(client, self.transport.peers.is_gone(self.tag));
        self.effects.push(Effect::Changed(Channel::Claim(client)));
        true
    }

    /// What `f` makes of the copy, if this letter is by its home, and to this standby of it.
    fn with_copy<T>(&self, client: Uuid, term: u64, f: impl FnOnce(&mut Copy) -> T) -> Option<T> {
        let of_ours = |copy: &mut Copy| (copy.home == self.tag && copy.term == term).then(|| f(copy));
        self.transport.registry.with_copy(client, of_ours).flatten()
    }

    /// The other is told who has the session, as far as this node knows.
    fn refuse(&mut self, client: Uuid) {
        if self.transport.session(client).is_some() {
            self.effects.push(Effect::Held(client));
        } else if let Some((home, term, generation)) =
            self.transport.registry.with_copy(client, |copy| (copy.home, copy.term, copy.generation))
        {
            self.effects.push(Effect::HeldBy(home, Holding { client, generation, term, nonce: 0 }));
        }
    }

    fn drop_copy(&mut self, client: Uuid) {
        if self.transport.registry.remove_copy(client) {
            self.effects.push(Effect::Changed(Channel::Claim(client)));
        }
    }
}

impl<R> Transport<R> {
    /// A letter from the node `tag` has come on this node's own channel.
    pub(in crate::transport) fn letter(
        &self,
        now: Instant,
        envelope: &envelope::Envelope<'_>,
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) -> bool {
        let (tag, client) = (envelope.tag, envelope.sender);
        let Some((term, record)) = record::decode(envelope.text) else { return false };
        let mut homes = self.homes();
        let (leaving, is_awake) = (homes.leaving, self.is_awake(now, &mut homes));
        let (desk, budget, gap) = homes.at_the_desk(now, tag);
        let mut post = Post { transport: self, budget, leaving, is_awake, gap, tag, effects: Vec::new(), waiting: 0 };
        let make = || Letter { client, id: envelope.id, term, record };
        let mut due = Vec::new();
        let is_wanted = || self.peers.standing(tag, envelope.place.number) == Standing::Wanted;
        desk.arrive((tag, client), envelope.place, is_wanted, make, &mut post, &mut due);
        let effects = post.effects;
        gathered.due(tag, due);
        for effect in effects {
            match effect {
                Effect::Confirmed(origin) => gathered.taken(origin),
                Effect::Changed(channel) => actions.changed.push(channel),
                Effect::Held(client) => {
                    if let Some(outbox) = self.session(client) {
                        self.announce(&outbox, Some(tag), 0, actions);
                    }
                }
                Effect::HeldBy(home, holding) => {
                    self.sender().control(Channel::Node(tag), &envelope::held(home, &holding), true, actions);
                }
                Effect::Less(holding) => self.heard_of(now, &mut homes, tag, &holding, actions),
                Effect::Yield(client) => self.give_up(now, &mut homes, client, actions),
                Effect::Promoted(client, generation) => self.become_home(now, &mut homes, client, generation, actions),
            }
        }
        true
    }
}
