//! Owns what a node makes of a gap: it stood still, or was cut off, and missed what others said. Until somebody vouches for
//! them, it doubts the sessions that it has, and the copies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::claims::Claim;
use super::letters::Letter;
use super::moves::TakenOver;
use super::{AT_ONCE, Homes};
use crate::outbox::Outbox;
use crate::outbox::budget::Budget;
use crate::outbox::log::is_past;
use crate::registry::Registry;
use crate::transport::Duty;
use crate::transport::Transport;
use crate::transport::envelope::{Channel, Holding, Number, Tag};
use crate::transport::inbox::Inbox;
use crate::transport::peers::INTRODUCTION;
use crate::transport::sender::Actions;

/// A node that stood still for longer has missed what others said; its copies may be old.
const STOOD_STILL: Duration = Duration::from_millis(700);
/// A node that stood still for longer, and has lost its connections without knowing it yet, may have been taken for dead: it
/// becomes nobody's home until a server has answered it again. It looks more often than that, and others look twice.
const DOZED: Duration = Duration::from_millis(120);
/// A doze that follows another is waited for as well if it ends so soon after that. One that lasts as long is a gap anyway.
const IN_A_ROW: Duration = Duration::from_secs(1);
/// If it stood still for longer, and lost a link by that, its home may have done without it. A busy machine's pauses are shorter.
const MISSED: Duration = Duration::from_millis(300);
/// So long after that, it takes over nothing by itself.
const REST: Duration = Duration::from_secs(3);
/// Nodes that stood still at one moment, and know it not from [how long](STOOD_STILL) that was, have their links again within
/// this: one of them becomes the standby, or says that it has more.
pub(super) const CONTRADICTED: Duration = Duration::from_secs(1);
/// A home that did not answer for so long is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Nobody has answered what was asked about a copy for so long: the session is over, and this node has not heard of it.
const UNANSWERED: Duration = Duration::from_secs(10);

/// How it is found out whether a session has got another home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Nobody was asked yet.
    New,
    /// Everybody was asked, and there has been another gap since: what they said may be lost.
    Again {
        /// The same as when they were asked.
        elsewhere: u64,
    },
    /// Its standby was asked to confirm something of this term. With a standby that is gone before, nobody vouches for the
    /// session any more: what it acknowledged as the home may have died with it, and the client is told so.
    Asked(u64),
    /// It had no standby, so anybody may have begun it anew; or one that has left, and given what it had taken over to
    /// somebody: everybody was asked. It [waits](Outbox::wait) for those who could say so.
    AskedAll {
        /// When.
        at: Instant,
        /// The generation that it may have got with a node that is gone: whoever has it from there says so. Else 0.
        elsewhere: u64,
    },
    /// It was taken over when several nodes had vanished, and nobody else is left: until then those may be back, and say that
    /// they have more of it.
    Alone(Instant),
}

impl Doubt {
    /// The generation that it may have got elsewhere, or 0, if it is for everybody to say.
    fn elsewhere(self) -> Option<u64> {
        match self {
            Self::AskedAll { elsewhere, .. } | Self::Again { elsewhere } => Some(elsewhere),
            Self::New | Self::Asked(_) | Self::Alone(_) => None,
        }
    }
}

/// What the home of a copy was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Question {
    /// An answer has it, so one from before the gap is none.
    nonce: u64,
    /// When it was asked for the first time, and last.
    asked: Option<(Instant, Instant)>,
}

/// This node stood still for a moment, or for several in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doze {
    /// The end of the first one.
    since: Instant,
    /// The end of the last one.
    until: Instant,
    /// The longest.
    lasted: Duration,
}

/// Whether this node may have missed something since it looked last.
#[derive(Debug)]
pub(in crate::transport) struct Attention {
    deaf: Arc<AtomicBool>,
    begun: Instant,
    /// When it looked last, in nanoseconds since it began.
    looked: AtomicU64,
}

impl Attention {
    /// `deaf` says that no link had every channel subscribed.
    pub(in crate::transport) fn new(now: Instant, deaf: Arc<AtomicBool>) -> Self {
        Self { deaf, begun: now, looked: AtomicU64::new(0) }
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX)
    }

    fn looks(&self, now: Instant) {
        self.looked.store(self.nanos(now), Ordering::Relaxed);
    }

    /// For how long it has not looked.
    fn pause(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.nanos(now).saturating_sub(self.looked.load(Ordering::Relaxed)))
    }

    fn is_good(&self, now: Instant) -> bool {
        !self.deaf.load(Ordering::Relaxed) && self.pause(now) <= DOZED
    }
}

/// What this node may have missed, and what it knows without that of what others say.
pub(super) struct Gap<'a> {
    /// Whether it is not long ago.
    is_recent: bool,
    /// The lowest number of a claim that this node can have made since.
    claims_from: Number,
    unsure: &'a mut BTreeMap<Uuid, Question>,
    claims: &'a BTreeMap<Uuid, Claim>,
    /// What was taken over from the node that says something.
    taken_over: Option<&'a TakenOver>,
}

impl Gap<'_> {
    /// A copy has come. It is what its home has, unless it may have been on its way during the gap: then somebody else
    /// may have become the home. Or the home `is_gone`, and the copy was on its way for longer than that takes to be seen: it
    /// may have gone on without this node since.
    pub(super) fn copied(&mut self, client: Uuid, is_gone: bool) {
        if self.is_recent || is_gone {
            self.unsure.insert(client, Question::default());
        } else {
            self.unsure.remove(&client);
        }
    }

    /// Whether a home has answered the claim of this number since the gap.
    pub(super) fn is_answer(&self, number: Number) -> bool {
        number >= self.claims_from
    }

    /// The generation in which this node has taken the session over from the node that says it has it, in `generation`.
    pub(super) fn successor(&self, client: Uuid, generation: u64) -> Option<u64> {
        self.taken_over?.generation(client).filter(|newer| *newer > generation)
    }

    /// Whether the client is here with a token that a session of `generation` can't have given.
    pub(super) fn is_past(&self, client: Uuid, generation: u64) -> bool {
        self.claims.get(&client).is_some_and(|claim| is_past(generation, claim.generation))
    }

    /// Whether nobody has vouched yet for what this node has of a session.
    pub(super) fn is_unsure(&self, client: Uuid) -> bool {
        self.unsure.contains_key(&client)
    }
}

impl Homes {
    /// It was cut off, or stood still, until now: the next message that it sends has the number `next`.
    fn rest(&mut self, now: Instant, next: Number) {
        (self.rests_until, self.claims_from) = (now + REST, next);
    }

    /// What came meanwhile is lost: others may have what it has.
    fn grow_unsure(&mut self, now: Instant, next: Number, registry: &Registry) {
        self.rest(now, next);
        self.is_sure = false;
        self.unsure = registry.copied().into_iter().map(|client| (client, Question::default())).collect();
        let doubted = std::mem::take(&mut self.doubted);
        for outbox in registry.outboxes().into_iter().filter(|outbox| outbox.is_resumable()) {
            let client = outbox.client();
            let elsewhere = doubted.get(&client).copied().and_then(Doubt::elsewhere);
            self.doubted.insert(client, elsewhere.map_or(Doubt::New, |elsewhere| Doubt::Again { elsewhere }));
            // What came with the first link would be this node's word alone.
            if outbox.standby().is_none() {
                outbox.wait(true);
            }
        }
    }

    /// Whether everybody was asked who has the session.
    pub(super) fn awaits_word(&self, client: Uuid) -> bool {
        self.elsewhere(client).is_some()
    }

    fn elsewhere(&self, client: Uuid) -> Option<u64> {
        self.doubted.get(&client).copied().and_then(Doubt::elsewhere)
    }

    /// What is needed to read what others say of their sessions.
    pub(super) fn at_the_desk(&mut self, now: Instant, of: Tag) -> (&mut Inbox<Letter>, &Arc<Budget>, Gap<'_>) {
        let (is_recent, claims_from) = (!self.is_rested(now), self.claims_from);
        let Self { desk, budget, unsure, claims, taken_over, .. } = self;
        (desk, budget, Gap { is_recent, claims_from, unsure, claims, taken_over: taken_over.get(&of) })
    }

    /// Its home says that it has the session, to this node as the standby of `term`: that answers what it was asked about the
    /// copy. Returns whether the copy is of no use, for the home has got another standby since, or none.
    pub(super) fn vouched(&mut self, term: u64, holding: &Holding) -> bool {
        let is_answer = |question: &&Question| question.nonce == holding.nonce && question.asked.is_some();
        if self.unsure.get(&holding.client).filter(is_answer).is_none() {
            return term < holding.term;
        }
        self.unsure.remove(&holding.client);
        term != holding.term
    }
}

impl<R> Transport<R> {
    /// A message has come, or what was said is decided: if that is the first thing that this node sees after a gap, the gap
    /// is noticed before.
    pub(in crate::transport) fn notice_before(&self, now: Instant) {
        if !self.attention.is_good(now) {
            self.notice_gap(now, &mut self.homes());
        }
    }

    /// Whether this node is cut off, or was a moment ago. If so, or if it stood still, it has missed what others said, and
    /// is to know that before it follows what it sees of them.
    pub(super) fn notice_gap(&self, now: Instant, homes: &mut Homes) -> bool {
        let (was_deaf, next) = {
            let mut sender = self.sender();
            (sender.was_deaf(), sender.next_number())
        };
        let is_cut_off = was_deaf || !self.peers.hears_itself(now);
        let pause = self.attention.pause(now);
        if pause > DOZED {
            let doze = homes.doze.get_or_insert(Doze { since: now, until: now, lasted: pause });
            doze.lasted = doze.lasted.max(pause);
            // What a server has answered before is not of now. But with a machine that has no time there is no end of them.
            if now.saturating_duration_since(doze.since) < IN_A_ROW {
                doze.until = now;
            }
        }
        let stood_still = pause > STOOD_STILL;
        // At the beginning of a gap, and once more at its end: what was confirmed on its edge may be old by then.
        if std::mem::replace(&mut homes.is_cut_off, is_cut_off) != is_cut_off || stood_still {
            homes.grow_unsure(now, next, &self.registry);
            if stood_still {
                self.peers.stood_still(now);
            }
        } else if is_cut_off {
            homes.rest(now, next);
        }
        self.attention.looks(now);
        is_cut_off
    }

    /// Whether what this node knows of the others is of now, and not of before it stood still for a moment. If that was long
    /// enough, and it lost a link by it, it has missed something as well.
    pub(super) fn is_awake(&self, now: Instant, homes: &mut Homes) -> bool {
        let Some(Doze { since, until, lasted }) = homes.doze else { return true };
        let sender = self.sender();
        let (has_looked, has_lost, next) = (sender.has_looked(until), sender.has_lost(since), sender.next_number());
        drop(sender);
        if has_looked {
            homes.doze = None;
            if has_lost && lasted > MISSED {
                homes.grow_unsure(now, next, &self.registry);
            }
        }
        has_looked
    }

    /// Whether this node may go by whom it does not hear: it has rested, and is awake. Else a session's standby may have taken
    /// it over meanwhile, and a newer one, or this node alone, would know nothing of that.
    pub(super) fn is_settled(&self, now: Instant, homes: &mut Homes) -> bool {
        self.is_awake(now, homes) && homes.is_rested(now)
    }

    /// Whether nobody is left who could say if the session has got another home: its standby, `tag`, has died.
    pub(super) fn is_unvouched(&self, homes: &Homes, client: Uuid, tag: Tag) -> bool {
        let is_doubted = homes.doubted.contains_key(&client) && !homes.awaits_word(client);
        is_doubted && self.has_died(tag)
    }

    /// Whether `tag` is gone, and has not said goodbye.
    fn has_died(&self, tag: Tag) -> bool {
        self.peers.is_gone(tag) && !self.peers.has_left(tag)
    }

    /// Whoever has the session says so, in time. A node that is gone may have had it in the generation `elsewhere`, or none (0).
    pub(super) fn ask_all(
        &self,
        now: Instant,
        homes: &mut Homes,
        outbox: &Outbox,
        elsewhere: u64,
        actions: &mut Actions<Duty<R>>,
    ) {
        let client = outbox.client();
        outbox.wait(true);
        homes.doubted.insert(client, Doubt::AskedAll { at: now, elsewhere });
        self.question(client, Channel::Claim(client), 0, actions);
    }

    /// Whoever has become the home meanwhile was the standby, and does not confirm that it is; or, where there was none,
    /// has been told that nobody has the session.
    pub(super) fn ask_about_doubted(&self, now: Instant, homes: &mut Homes, actions: &mut Actions<Duty<R>>) {
        let has_left = |tag: &Tag| self.peers.has_left(*tag);
        let of_those = homes.by_standby.iter().filter(|(tag, _)| has_left(tag)).flat_map(|(_, clients)| clients);
        let unheard = of_those.filter(|client| matches!(homes.doubted.get(client), Some(Doubt::Asked(_)))).copied();
        let new = homes
            .doubted
            .iter()
            .filter(|(_, doubt)| matches!(doubt, Doubt::New | Doubt::Again { .. }))
            .map(|(client, _)| *client);
        let some: Vec<Uuid> = unheard.chain(new).take(AT_ONCE).collect();
        for client in some {
            let Some(outbox) = self.home(client) else {
                homes.doubted.remove(&client);
                continue;
            };
            // One that has confirmed nothing yet knows nothing of what the one before has done.
            let elsewhere = homes.elsewhere(client);
            let asks_all = elsewhere.is_some() || !outbox.has_witness();
            match outbox.standby().filter(|(tag, _)| !asks_all && !has_left(tag)) {
                Some((tag, _)) => self.open_standby(now, homes, &outbox, tag, actions),
                None => self.ask_all(now, homes, &outbox, elsewhere.unwrap_or(0), actions),
            }
        }
        if !self.is_awake(now, homes) {
            return; // What was answered may be there, and not read yet.
        }
        // Others are known as soon as they have said hello. If there is one, it may have stood still as well.
        let is_single = self.peers.keepers().is_empty();
        let patience = if is_single { INTRODUCTION } else { REST };
        let is_over = |at: Instant| now.saturating_duration_since(at) >= patience;
        let over = homes.doubted.iter().filter_map(|(client, doubt)| match doubt {
            Doubt::AskedAll { at, elsewhere } if is_over(*at) => Some((*client, *elsewhere)),
            Doubt::Alone(until) if now >= *until => Some((*client, 0)),
            _ => None,
        });
        // Where there is somebody who could say otherwise, each is given a standby.
        let over: Vec<(Uuid, u64)> = over.take(if is_single { usize::MAX } else { AT_ONCE }).collect();
        for (client, elsewhere) in over {
            homes.doubted.remove(&client);
            let Some(outbox) = self.home(client) else { continue };
            // One that was just made the standby may have taken over, and died with what it took.
            if elsewhere == 0 && outbox.standby().is_some_and(|(tag, _)| self.has_died(tag)) {
                self.give_up(now, homes, client, actions);
                continue;
            }
            outbox.outlive(elsewhere);
            if outbox.standby().is_none() {
                self.ensure_standby(now, homes, &outbox, actions);
            }
            outbox.wait(false);
        }
    }

    /// Only a home can say that its copy is all that it has acknowledged: it may have got another standby meanwhile, or had
    /// none. The copy of one that is gone before it could say so is [dropped](Self::may_take_over).
    pub(super) fn ask_about_copies(&self, now: Instant, homes: &mut Homes, actions: &mut Actions<Duty<R>>) {
        let is_due =
            |question: &Question| question.asked.is_none_or(|(_, at)| now.saturating_duration_since(at) >= ASK_AGAIN);
        let due = homes.unsure.iter().filter(|(_, question)| is_due(question)).map(|(client, _)| *client);
        let due: Vec<Uuid> = due.take(AT_ONCE).collect();
        for client in due {
            if self.registry.with_copy(client, |_| ()).is_none() {
                homes.unsure.remove(&client);
                continue;
            }
            let first = homes.unsure.get(&client).and_then(|question| question.asked).map_or(now, |(first, _)| first);
            if now.saturating_duration_since(first) >= UNANSWERED {
                homes.unsure.remove(&client);
                self.drop_copy(client, actions);
                continue;
            }
            let nonce = homes.new_term() ^ self.peers.me(); // No other node's.
            homes.unsure.insert(client, Question { nonce, asked: Some((first, now)) });
            self.question(client, Channel::Claim(client), nonce, actions);
        }
    }
}

#[cfg(test)]
impl<R> Transport<R> {
    /// What this node doubts of a session, or waits for.
    pub(in crate::transport) fn story(&self, client: Uuid) -> Vec<String> {
        let homes = self.homes();
        let doubt = homes.doubted.get(&client).map(|doubt| match doubt {
            Doubt::AskedAll { elsewhere, .. } => format!("AskedAll, {elsewhere}"),
            doubt => format!("{doubt:?}"),
        });
        let question = homes.unsure.get(&client).map(|question| format!("unsure, asked: {}", question.asked.is_some()));
        let step = homes.moves.get(&client).map(|step| format!("{:?} to {:x}", step.reason, step.to));
        let claim = homes.claims.contains_key(&client).then(|| "claims".to_owned());
        let is_cut_off = homes.is_cut_off.then(|| "cut off".to_owned());
        [doubt, question, step, claim, is_cut_off].into_iter().flatten().collect()
    }
}
