//! Owns where sessions that can be resumed are kept: their homes, their standbys, and how they move.
//!
//! ```text
//!                     records: open, message, had …                 promote
//!   home (a session) ───────────────────────────────▶ standby (a copy) ───▶ home, of a higher generation
//!        ▲    │                                            │  ▲
//!        │    └── its client claims it elsewhere, or ──────┘  └── its home is gone, or hangs while the
//!        │        this node drains: copy, then promote            client claims it: it promotes itself
//!        └─────── claim, on the client's own channel
//! ```
//! Whatever happens, it is the same step: somebody who has a complete copy becomes the home. A lost connection, another
//! network, a drain and a death differ in who takes it. The higher generation wins everywhere.

mod claims;
mod doubts;
mod lacking;
mod letters;
mod moves;
mod standbys;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

pub(super) use self::claims::Call;
pub use self::claims::Resumption;
use self::claims::{CLAIM_AGAIN, Claim, KNOCK, Knock};
pub(super) use self::doubts::Attention;
use self::doubts::{Doubt, Doze, Question};
use self::lacking::Lacking;
use self::letters::Letter;
pub use self::moves::MoveReason;
use self::moves::{Move, TakenOver};
pub(super) use self::standbys::Debts;
use self::standbys::REFUSED;
use super::envelope::{self, Channel, Decision, Number, Tag};
use super::inbox::{Due, Inbox, Nothing};
use super::sender::Actions;
use super::{Duty, Gathered, Transport};
use crate::config::Limits;
use crate::outbox::budget::Budget;
use crate::outbox::log::Origin;
use crate::outbox::{Outbox, Outcome};

/// How often the nodes are looked at, and what waits for one.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// By then the servers have answered a look, unless they are slow: so much earlier than at the next one it is known who
/// is gone.
pub const LOOK_ANSWERED: Duration = Duration::from_millis(20);
/// A session that has moved is known here for so long: its new home is subscribed everywhere by then.
const LINGER: Duration = Duration::from_secs(1);
/// A node that did not confirm what it was given is not chosen for so long.
const DISTRUST: Duration = Duration::from_secs(10);
/// A standby that has confirmed nothing for so long, and owes it, hangs: it notices itself that it
/// stood still.
const HANGS: Duration = Duration::from_secs(1);
/// A node that was gone for longer knows that itself.
const COMES_BACK: Duration = Duration::from_secs(60);
/// Sessions that get a standby at a time, when many have none.
const AT_ONCE: usize = 500;

#[derive(Debug)]
pub(super) struct Homes {
    limits: Limits,
    budget: Arc<Budget>,
    /// What came on this node's own channel.
    desk: Inbox<Letter>,
    /// What came on the channels of claims.
    bell: Inbox<()>,
    terms: u64,
    /// The sessions that are copied elsewhere.
    by_standby: BTreeMap<Tag, BTreeSet<Uuid>>,
    /// The sessions that have no standby.
    alone: BTreeSet<Uuid>,
    /// Those, and the ones whose standby has not everything yet.
    lacking: Lacking,
    moves: HashMap<Uuid, Move>,
    moved: VecDeque<(Instant, Arc<Outbox>)>,
    claims: BTreeMap<Uuid, Claim>,
    knocks: HashMap<Uuid, Knock>,
    /// Sessions of nodes that were gone, which this node has taken over.
    taken_over: BTreeMap<Tag, TakenOver>,
    distrusted: HashMap<Tag, Instant>,
    /// Sessions whose standby of this term refused them.
    refused: VecDeque<(Instant, Uuid, u64)>,
    /// How often in a row.
    refusals: HashMap<Uuid, u32>,
    leaving: bool,
    /// It was, when it was looked at last.
    is_cut_off: bool,
    rests_until: Instant,
    /// The lowest number of a claim that it can have made since.
    claims_from: Number,
    /// It stood still for a moment, and has not seen since how things are.
    doze: Option<Doze>,
    /// It has rested since it stood still, and knows what became of its sessions meanwhile.
    is_sure: bool,
    /// Copies of which it is not known whether their homes still want them: those are asked.
    unsure: BTreeMap<Uuid, Question>,
    /// Sessions of this node that may have got another home while it stood still.
    doubted: BTreeMap<Uuid, Doubt>,
}

fn forget(sets: &mut BTreeMap<Tag, BTreeSet<Uuid>>, tag: Tag, client: Uuid) {
    if let Some(set) = sets.get_mut(&tag) {
        set.remove(&client);
        if set.is_empty() {
            sets.remove(&tag);
        }
    }
}

impl Homes {
    pub(super) fn new(now: Instant, limits: &Limits, budget: Arc<Budget>) -> Self {
        Self {
            limits: *limits,
            budget,
            desk: Inbox::default(),
            bell: Inbox::default(),
            terms: 0,
            by_standby: BTreeMap::new(),
            alone: BTreeSet::new(),
            lacking: Lacking::default(),
            moves: HashMap::new(),
            moved: VecDeque::new(),
            claims: BTreeMap::new(),
            knocks: HashMap::new(),
            taken_over: BTreeMap::new(),
            distrusted: HashMap::new(),
            refused: VecDeque::new(),
            refusals: HashMap::new(),
            leaving: false,
            is_cut_off: false,
            rests_until: now,
            claims_from: 1,
            doze: None,
            is_sure: true,
            unsure: BTreeMap::new(),
            doubted: BTreeMap::new(),
        }
    }

    /// Forgets the lanes of which their node wants nothing any more.
    pub(super) fn prune(&mut self, now: Instant, floor: impl Fn(Tag) -> Option<Number>) {
        self.desk.prune(now, Duration::ZERO, &floor, &mut Nothing);
        self.bell.prune(now, Duration::ZERO, &floor, &mut Nothing);
    }

    fn new_term(&mut self) -> u64 {
        self.terms += 1;
        self.terms
    }

    fn is_rested(&self, now: Instant) -> bool {
        now >= self.rests_until
    }

    /// This node does not look after the session any more; `standby` was its standby.
    fn let_go(&mut self, client: Uuid, standby: Option<(Tag, u64)>) {
        self.alone.remove(&client);
        self.lacking.forget(client);
        self.doubted.remove(&client);
        if let Some((tag, _)) = standby {
            forget(&mut self.by_standby, tag, client);
        }
    }
}

impl<R> Transport<R> {
    /// The session of `client` that can be resumed, if this node is its home.
    pub fn home(&self, client: Uuid) -> Option<Arc<Outbox>> {
        self.session(client).filter(|outbox| !outbox.is_moving())
    }

    /// The same, also while another node is becoming its home.
    pub(super) fn session(&self, client: Uuid) -> Option<Arc<Outbox>> {
        self.registry.get(client).filter(|outbox| outbox.is_resumable())
    }

    /// A session that can be resumed has begun here.
    pub fn opened(&self, now: Instant, client: Uuid, actions: &mut Actions<Duty<R>>) {
        let Some(outbox) = self.home(client) else { return };
        // Whoever was its home before is not to be told any more that there is a standby.
        self.drop_copy(client, actions);
        let mut homes = self.homes();
        homes.lacking.begin(now, client);
        self.ensure_standby(now, &mut homes, &outbox, actions);
        if outbox.generation() > 0 {
            // Somebody else may have it still, or have begun it anew as well.
            self.announce(&outbox, None, 0, actions);
        }
    }

    /// A session that can be resumed is over.
    pub fn ended(&self, now: Instant, outbox: &Outbox, actions: &mut Actions<Duty<R>>) {
        let client = outbox.client();
        let mut homes = self.homes();
        let standby = outbox.standby();
        // Its client may have another one here by now, which is looked after.
        if self.session(client).is_none_or(|held| std::ptr::eq(&*held, outbox)) {
            homes.let_go(client, standby);
        }
        if let Some((tag, term)) = standby {
            self.dismiss(now, client, tag, term, actions);
        }
    }

    /// This node's copy is of no use any more.
    fn drop_copy(&self, client: Uuid, actions: &mut Actions<Duty<R>>) {
        if self.registry.remove_copy(client) {
            actions.changed.push(Channel::Claim(client));
        }
    }

    /// This node takes nothing to keep any more, and the others are told so.
    pub fn leave(&self, actions: &mut Actions<Duty<R>>) {
        self.homes().leaving = true;
        self.sender().control(Channel::Nodes, &envelope::leaving(self.peers.me()), true, actions);
    }

    /// What is kept here for others, and what is on its way to them.
    pub fn kept(&self) -> (usize, usize) {
        let moves = self.homes().moves.len();
        (self.registry.copies(), moves)
    }

    /// Sessions with and without a standby, whose home is here.
    pub fn standbys(&self) -> (usize, usize) {
        let homes = self.homes();
        (homes.by_standby.values().map(BTreeSet::len).sum(), homes.alone.len())
    }

    /// How many other nodes can keep what is here, and how long the session has waited for its second copy that waits the
    /// longest.
    pub fn safety(&self, now: Instant) -> (usize, Duration) {
        let others = self.peers.keepers().len();
        let mut homes = self.homes();
        if others > 0 {
            homes.lacking.retain(|client| self.home(client).is_some());
        }
        (others, homes.lacking.longest(now))
    }

    /// What became of a message between nodes.
    pub fn decided(&self, now: Instant, duty: Duty<R>, outcome: Outcome, actions: &mut Actions<Duty<R>>) -> Option<R> {
        if !matches!(duty, Duty::Send(_)) {
            self.notice_before(now); // What nobody said in time this node may not have heard.
        }
        match duty {
            Duty::Send(reply) => return Some(reply),
            Duty::Record { client, tag, term, position } => {
                self.debts.shrink(now, tag, outcome == Outcome::Handed);
                let outbox = self.registry.get(client)?;
                let mut homes = self.homes();
                if outcome == Outcome::Handed {
                    homes.refusals.remove(&client);
                    if matches!(homes.doubted.get(&client), Some(Doubt::Asked(asked)) if term >= *asked) {
                        homes.doubted.remove(&client);
                    }
                    actions.figures.restored.extend(homes.lacking.confirm(now, client, term, position));
                    drop(homes);
                    let told = outbox.confirm(term, position);
                    self.tell(now, told, actions);
                } else if outbox.standby() == Some((tag, term)) && !outbox.is_moving() {
                    homes.lacking.lose(now, client);
                    if outcome != Outcome::Busy {
                        homes.distrusted.insert(tag, now + DISTRUST);
                    }
                    let is_doubted = homes.doubted.contains_key(&client);
                    let is_settled = self.is_settled(now, &mut homes);
                    if is_settled && self.is_unvouched(&homes, client, tag) {
                        self.give_up(now, &mut homes, client, actions);
                    } else if outcome == Outcome::Busy || !is_settled || is_doubted {
                        homes.refused.push_back((now + REFUSED, client, term));
                    } else {
                        self.replace_standby(now, &mut homes, &outbox, actions);
                    }
                }
            }
            Duty::Promote { client, term } => self.promoted(now, client, term, outcome, actions),
            Duty::End => {}
            Duty::Claim { client, generation } => {
                let mut homes = self.homes();
                let dozes = !self.is_awake(now, &mut homes);
                let claim = homes.claim_of(client, generation)?;
                let exists = claim.exists;
                let resumption = match outcome {
                    Outcome::Handed => {
                        (claim.again, claim.exists) = (Some(now + CLAIM_AGAIN), true);
                        return None;
                    }
                    Outcome::Busy => Resumption::Refused,
                    _ if dozes => {
                        claim.again = Some(now);
                        return None;
                    }
                    // Nobody is subscribed; whoever has it may have been cut off as long as this node stood still.
                    Outcome::NotConnected => self.unanswered(now, &mut homes, client, false),
                    Outcome::Unreachable => self.unanswered(now, &mut homes, client, exists),
                };
                homes.claims.remove(&client);
                actions.claims.push((client, resumption));
            }
        }
        None
    }

    /// Time has passed: to be called every [`LOOK_EVERY`].
    pub fn look_after_homes(&self, now: Instant, actions: &mut Actions<Duty<R>>) {
        let mut homes = self.homes();
        let is_cut_off = self.notice_gap(now, &mut homes);
        if homes.is_rested(now) && !std::mem::replace(&mut homes.is_sure, true) {
            // Standbys are told something, and say whether they still are.
            self.registry.outboxes().iter().for_each(|outbox| outbox.tell_again());
        }
        if !is_cut_off {
            self.ask_about_doubted(now, &mut homes, actions);
            self.ask_about_copies(now, &mut homes, actions);
        }
        self.sender().look(now, actions);
        self.follow_nodes(now, &mut homes, actions);
        while homes.refused.front().is_some_and(|(at, ..)| now >= *at) {
            let Some((_, client, term)) = homes.refused.pop_front() else { break };
            self.try_standby_again(now, &mut homes, client, term, actions);
        }
        let keepers = self.peers.keepers().len();
        if keepers > 0 && !homes.alone.is_empty() {
            let is_sure = |client: &Uuid| !homes.doubted.contains_key(client);
            let alone: Vec<Uuid> = homes.alone.iter().copied().filter(is_sure).take(AT_ONCE).collect();
            for client in alone {
                match self.home(client) {
                    Some(outbox) => self.ensure_standby(now, &mut homes, &outbox, actions),
                    None => drop(homes.alone.remove(&client)),
                }
            }
        }
        while homes.moved.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= LINGER) {
            let Some((_, outbox)) = homes.moved.pop_front() else { break };
            outbox.discard();
            self.registry.remove(&outbox);
            actions.changed.extend([Channel::Client(outbox.client()), Channel::Claim(outbox.client())]);
        }
        self.repeat_claims(now, &mut homes, actions);
    }

    /// The servers have had the time to answer a look: to be called [`LOOK_ANSWERED`] after it.
    pub fn follow_look(&self, now: Instant, actions: &mut Actions<Duty<R>>) {
        let mut homes = self.homes();
        self.notice_gap(now, &mut homes);
        if self.sender().look_ends(now) {
            self.follow_nodes(now, &mut homes, actions);
        }
    }

    /// Standbys that are gone are replaced; the sessions of homes that are gone are taken over.
    fn follow_nodes(&self, now: Instant, homes: &mut Homes, actions: &mut Actions<Duty<R>>) {
        if !self.is_settled(now, homes) {
            return;
        }
        if !self.sender().in_motion(now) {
            for tag in self.debts.overdue(now, HANGS) {
                homes.distrusted.insert(tag, now + DISTRUST);
            }
        }
        let has_others = !self.peers.keepers().is_empty();
        let has_trusted = self.peers.keepers().iter().any(|tag| !homes.distrusted.contains_key(tag));
        let is_lost = |tag: &Tag| {
            self.peers.is_gone(*tag)
                || has_others && self.peers.is_leaving(*tag)
                || has_trusted && homes.distrusted.get(tag).is_some_and(|until| now < *until)
        };
        let lost: Vec<Tag> = homes.by_standby.keys().copied().filter(is_lost).collect();
        for tag in lost {
            let clients = homes.by_standby.remove(&tag).unwrap_or_default();
            for client in clients {
                let Some(outbox) = self.home(client) else { continue };
                if self.is_unvouched(homes, client, tag) {
                    self.give_up(now, homes, client, actions);
                    continue;
                }
                if homes.doubted.contains_key(&client) {
                    // This standby is to say whether it has become the home meanwhile, or all others are.
                    homes.by_standby.entry(tag).or_default().insert(client);
                } else {
                    self.replace_standby(now, homes, &outbox, actions);
                }
            }
        }
        self.tell_returned(now, homes, actions);
        let mut gathered = Gathered::default();
        for (home, client) in self.registry.copies_of(|tag| self.peers.is_gone(tag), AT_ONCE) {
            if !self.may_take_over(now, homes, client) {
                self.drop_copy(client, actions);
                continue;
            }
            let knock = homes.knocks.get(&client).copied();
            let reason = if self.peers.hangs(home) { MoveReason::HomeHung } else { MoveReason::HomeGone };
            self.take_over(now, homes, client, reason, actions);
            // Whoever has asked for it need not ask again.
            if let (Some(Knock { call, .. }), Some(outbox)) = (knock, self.home(client))
                && !homes.doubted.contains_key(&client)
            {
                self.answer_claim(now, homes, &outbox, call, &mut gathered, actions);
            }
        }
        self.send_receipts(now, &mut gathered, actions);
        homes.knocks.retain(|_, knock| now.saturating_duration_since(knock.at) < KNOCK);
    }
}

/// The receipts of one letter.
impl Gathered {
    fn due(&mut self, tag: Tag, due: Vec<Due>) {
        for Due { number, decision, again } in due {
            let side = if again { &mut self.again } else { &mut self.first };
            side.entry(tag).or_default().push((number, decision));
        }
    }

    fn taken(&mut self, origin: Origin) {
        if origin.tag != 0 {
            self.first.entry(origin.tag).or_default().push((origin.number, Decision::Taken));
        }
    }
}
