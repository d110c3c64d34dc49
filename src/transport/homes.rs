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
use self::claims::{Claim, KNOCK, Knock};
use self::lacking::Lacking;
use self::letters::Letter;
use self::moves::Move;
pub use self::moves::MoveReason;
pub(super) use self::standbys::Debts;
use self::standbys::REFUSED;
use super::envelope::{self, Channel, Decision, Number, Tag};
use super::inbox::{Due, Inbox, Room};
use super::sender::Actions;
use super::{Duty, Gathered, Transport};
use crate::budget::Budget;
use crate::config::Limits;
use crate::outbox::log::Origin;
use crate::outbox::{Outbox, Outcome};

/// How often the nodes are looked at, and what waits for one.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A node that stood still for longer has missed what others said; its copies may be old.
const STOOD_STILL: Duration = Duration::from_millis(700);
/// So long after that, it takes over nothing by itself.
const REST: Duration = Duration::from_secs(3);
/// A session that has moved is known here for so long: its new home is subscribed everywhere by then.
const LINGER: Duration = Duration::from_secs(1);
/// A node that did not confirm what it was given is not chosen for so long.
const DISTRUST: Duration = Duration::from_secs(10);
/// A standby that has confirmed nothing for so long, and owes it, hangs: it notices itself that it
/// [stood still](STOOD_STILL).
const HANGS: Duration = Duration::from_secs(1);
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
    /// The homes of the sessions that are copied here.
    copies: HashMap<Uuid, Copy>,
    copies_by_home: BTreeMap<Tag, BTreeSet<Uuid>>,
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
    distrusted: HashMap<Tag, Instant>,
    /// Sessions whose standby of this term refused them.
    refused: VecDeque<(Instant, Uuid, u64)>,
    /// How often in a row.
    refusals: HashMap<Uuid, u32>,
    leaving: bool,
    ticked: Instant,
    rests_until: Instant,
    /// It has rested since it stood still, and knows what became of its sessions meanwhile.
    is_sure: bool,
    /// Copies of which it is not known whether their homes still want them.
    unsure: BTreeSet<Uuid>,
}

#[derive(Clone, Copy, Debug)]
struct Copy {
    home: Tag,
    term: u64,
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
            copies: HashMap::new(),
            copies_by_home: BTreeMap::new(),
            by_standby: BTreeMap::new(),
            alone: BTreeSet::new(),
            lacking: Lacking::default(),
            moves: HashMap::new(),
            moved: VecDeque::new(),
            claims: BTreeMap::new(),
            knocks: HashMap::new(),
            distrusted: HashMap::new(),
            refused: VecDeque::new(),
            refusals: HashMap::new(),
            leaving: false,
            ticked: now,
            rests_until: now,
            is_sure: true,
            unsure: BTreeSet::new(),
        }
    }

    /// Forgets the lanes of which their node wants nothing any more.
    pub(super) fn prune(&mut self, floor: impl Fn(Tag) -> Option<Number>) {
        self.desk.prune(&floor, &mut Nothing);
        self.bell.prune(&floor, &mut Nothing);
    }

    fn new_term(&mut self) -> u64 {
        self.terms += 1;
        self.terms
    }

    fn is_rested(&self, now: Instant) -> bool {
        now >= self.rests_until
    }

    /// What came while this node stood still, or was cut off, is lost: others may have what it has.
    fn grow_unsure(&mut self, now: Instant) {
        self.rests_until = now + REST;
        if std::mem::replace(&mut self.is_sure, false) {
            self.unsure = self.copies.keys().copied().collect();
        }
    }
}

/// Room for nothing: what waits is forgotten.
struct Nothing;

impl<T> Room<T> for Nothing {
    fn may_wait(&mut self, _: &T) -> bool {
        false
    }
    fn waits_no_more(&mut self, _: &T) {}
    fn admit(&mut self, _: Number, _: T) -> bool {
        false
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
        let mut homes = self.homes();
        homes.lacking.begin(now, client);
        self.ensure_standby(now, &mut homes, &outbox, actions);
        if outbox.generation() > 0 {
            // Somebody else may have it still, or have begun it anew as well.
            self.announce(&outbox, None, actions);
        }
    }

    /// A session that can be resumed is over.
    pub fn ended(&self, now: Instant, outbox: &Outbox, actions: &mut Actions<Duty<R>>) {
        let client = outbox.client();
        let mut homes = self.homes();
        homes.alone.remove(&client);
        homes.lacking.forget(client);
        if let Some((tag, term)) = outbox.standby() {
            forget(&mut homes.by_standby, tag, client);
            self.dismiss(now, client, tag, term, actions);
        }
    }

    /// This node's copy is of no use any more.
    fn drop_copy(&self, homes: &mut Homes, client: Uuid, actions: &mut Actions<Duty<R>>) {
        if let Some(copy) = homes.copies.remove(&client) {
            forget(&mut homes.copies_by_home, copy.home, client);
            self.registry.remove_copy(client);
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
        let homes = self.homes();
        (homes.copies.len(), homes.moves.len())
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
        match duty {
            Duty::Send(reply) => return Some(reply),
            Duty::Record { client, tag, term, position } => {
                self.debts.shrink(now, tag, outcome == Outcome::Handed);
                let outbox = self.registry.get(client)?;
                let mut homes = self.homes();
                if outcome == Outcome::Handed {
                    homes.refusals.remove(&client);
                    actions.figures.restored.extend(homes.lacking.confirm(now, client, term, position));
                    drop(homes);
                    let told = outbox.confirm(term, position);
                    self.tell(now, told, actions);
                } else if outbox.standby() == Some((tag, term)) && !outbox.is_moving() {
                    homes.lacking.lose(now, client);
                    if outcome != Outcome::Busy {
                        homes.distrusted.insert(tag, now + DISTRUST);
                    }
                    if outcome == Outcome::Busy || !homes.is_rested(now) {
                        homes.refused.push_back((now + REFUSED, client, term));
                    } else {
                        self.replace_standby(now, &mut homes, &outbox, actions);
                    }
                }
            }
            Duty::Promote { client, term } => self.promoted(now, client, term, outcome, actions),
            Duty::End => {}
            Duty::Claim { client } => {
                let mut homes = self.homes();
                let claim = homes.claims.get_mut(&client)?;
                let resumption = match outcome {
                    Outcome::Handed => {
                        claim.heard = Some(now);
                        return None;
                    }
                    Outcome::Busy => Resumption::Refused,
                    Outcome::NotConnected | Outcome::Unreachable => Resumption::Lost,
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
        let is_cut_off = self.sender().was_deaf() || !self.peers.hears_itself(now);
        if is_cut_off || now.saturating_duration_since(homes.ticked) > STOOD_STILL {
            homes.grow_unsure(now);
        }
        homes.ticked = now;
        if homes.is_rested(now) && !std::mem::replace(&mut homes.is_sure, true) {
            // Standbys are told something, and say whether they still are.
            self.registry.outboxes().iter().for_each(|outbox| outbox.tell_again());
        }
        let some: Vec<Uuid> = homes.unsure.iter().copied().take(AT_ONCE).collect();
        for client in some {
            homes.unsure.remove(&client);
            self.question(client, Channel::Claim(client), actions);
        }
        self.sender().look(now, actions);
        self.follow_nodes(now, &mut homes, actions);
        while homes.refused.front().is_some_and(|(at, ..)| now >= *at) {
            let Some((_, client, term)) = homes.refused.pop_front() else { break };
            self.try_standby_again(now, &mut homes, client, term, actions);
        }
        let keepers = self.peers.keepers().len();
        if keepers > 0 && !homes.alone.is_empty() {
            let alone: Vec<Uuid> = homes.alone.iter().copied().take(AT_ONCE).collect();
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

    /// Standbys that are gone are replaced; the sessions of homes that are gone are taken over.
    fn follow_nodes(&self, now: Instant, homes: &mut Homes, actions: &mut Actions<Duty<R>>) {
        if !homes.is_rested(now) {
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
                if let Some(outbox) = self.home(client) {
                    self.replace_standby(now, homes, &outbox, actions);
                }
            }
        }
        if !homes.unsure.is_empty() {
            return;
        }
        let gone: Vec<Tag> = homes.copies_by_home.keys().copied().filter(|tag| self.peers.is_gone(*tag)).collect();
        let mut gathered = Gathered::default();
        let copies = gone.iter().filter_map(|tag| homes.copies_by_home.get(tag)).flatten();
        let orphans: Vec<Uuid> = copies.copied().take(AT_ONCE).collect();
        for client in orphans {
            if !self.may_take_over(now, homes, client) {
                self.drop_copy(homes, client, actions);
                continue;
            }
            let knock = homes.knocks.get(&client).copied();
            let hangs = homes.copies.get(&client).is_some_and(|copy| self.peers.hangs(copy.home));
            let reason = if hangs { MoveReason::HomeHung } else { MoveReason::HomeGone };
            self.take_over(now, homes, client, reason, actions);
            // Whoever has asked for it need not ask again.
            if let (Some(Knock { call, .. }), Some(outbox)) = (knock, self.home(client)) {
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
