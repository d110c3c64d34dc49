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

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::envelope::{self, Channel, Decision, Holding, Number, Place, Tag};
use super::inbox::{Due, Inbox, Room};
use super::record::{self, Record};
use super::sender::{Actions, Sender};
use super::{Duty, Gathered, Transport};
use crate::budget::Budget;
use crate::config::Limits;
use crate::outbox::log::{Origin, Position, is_past, moved};
use crate::outbox::{CloseOrder, Outbox, Outcome};

/// How often the nodes are looked at, and what waits for one.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A node that stood still for longer has missed what others said; its copies may be old.
const STOOD_STILL: Duration = Duration::from_millis(700);
/// So long after that, it takes over nothing by itself.
const REST: Duration = Duration::from_secs(3);
/// A session that has moved is known here for so long: its new home is subscribed everywhere by then.
const LINGER: Duration = Duration::from_secs(1);
/// A home that is asked whether it lives answers within this, or hangs.
const ANSWER_WITHIN: Duration = Duration::from_millis(50);
/// A claim that was not repeated for so long has been answered by somebody.
const KNOCK: Duration = Duration::from_secs(1);
/// A claim that was heard, and led to nothing for so long, is made again.
const CLAIM_AGAIN: Duration = Duration::from_millis(500);
/// A node that did not confirm what it was given is not chosen for so long.
const DISTRUST: Duration = Duration::from_secs(10);
/// A standby that refused a session is asked again, or another one, after this.
const REFUSED: Duration = Duration::from_millis(200);
/// So often, before another is asked.
const REFUSALS: u32 = 3;
/// A standby that has confirmed nothing for so long, and owes it, hangs: it notices itself that it
/// [stood still](STOOD_STILL).
const HANGS: Duration = Duration::from_secs(1);
/// Sessions that get a standby at a time, when many have none.
const AT_ONCE: usize = 500;
/// What waits for its predecessors on a node's own channel.
const MOST_WAITING: usize = 65_536;

/// What became of a claim.
#[derive(Clone, Debug)]
pub enum Resumption {
    /// The session is here, with all that was acknowledged.
    Here(Arc<Outbox>),
    /// Its client has a newer token.
    Refused,
    /// Nobody has it any more, or nobody could vouch for it in time.
    Lost,
}

/// What a home or a standby says to another, as it waits to be looked at.
#[derive(Debug)]
struct Letter {
    client: Uuid,
    id: Uuid,
    term: u64,
    record: Record,
}

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

/// What other nodes owe this one: records that they have not confirmed.
#[derive(Debug, Default)]
pub(super) struct Debts(Mutex<HashMap<Tag, Debt>>);

#[derive(Clone, Copy, Debug)]
struct Debt {
    records: usize,
    /// When something was paid last, or the debt began.
    since: Instant,
}

impl Debts {
    fn lock(&self) -> MutexGuard<'_, HashMap<Tag, Debt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, now: Instant, tag: Tag, records: usize) {
        if records > 0 {
            let mut debts = self.lock();
            debts.entry(tag).or_insert(Debt { records: 0, since: now }).records += records;
        }
    }

    fn shrink(&self, now: Instant, tag: Tag, is_paid: bool) {
        let mut debts = self.lock();
        if let Some(debt) = debts.get_mut(&tag) {
            debt.records = debt.records.saturating_sub(1);
            if is_paid {
                debt.since = now;
            }
            if debt.records == 0 {
                debts.remove(&tag);
            }
        }
    }

    /// Those that have paid nothing for as long.
    fn overdue(&self, now: Instant, after: Duration) -> Vec<Tag> {
        let debts = self.lock();
        let is_overdue = |debt: &Debt| now.saturating_duration_since(debt.since) >= after;
        debts.iter().filter(|(_, debt)| is_overdue(debt)).map(|(tag, _)| *tag).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Copy {
    home: Tag,
    term: u64,
}

/// A session on its way to another node.
#[derive(Clone, Copy, Debug)]
struct Move {
    to: Tag,
    term: u64,
    generation: u64,
    /// The standby that it had, if that is not where it goes.
    old: Option<(Tag, u64)>,
}

/// A claim that this node has heard as the standby.
#[derive(Clone, Copy, Debug)]
struct Knock {
    tag: Tag,
    place: Place,
    generation: u64,
    at: Instant,
    /// When the home was asked whether it lives.
    asked: Option<Instant>,
}

/// A session that is wanted here.
#[derive(Clone, Copy, Debug)]
struct Claim {
    generation: u64,
    until: Instant,
    /// When somebody said that it comes.
    heard: Option<Instant>,
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
    /// Another node has it now.
    Yield(Uuid),
    Promoted(Uuid, u64),
}

/// The state that a letter is held against.
struct Post<'a, R> {
    transport: &'a Transport<R>,
    limits: &'a Limits,
    budget: &'a Arc<Budget>,
    copies: &'a mut HashMap<Uuid, Copy>,
    copies_by_home: &'a mut BTreeMap<Tag, BTreeSet<Uuid>>,
    leaving: bool,
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
        let known = self.copies.get(&client).is_some_and(|copy| copy.home == self.tag && copy.term == term);
        match record {
            Record::Open(opening) => self.open(client, term, opening),
            Record::Message(taken) => {
                let origin = taken.origin;
                let kept = known && self.transport.registry.copy(client).is_some_and(|copy| copy.copy_taken(id, taken));
                if kept {
                    self.effects.push(Effect::Confirmed(origin));
                } else {
                    self.refuse(client, known);
                }
                kept
            }
            Record::Had(had, generation) => {
                match self.transport.registry.copy(client).filter(|_| known) {
                    Some(copy) => copy.copy_had(had, generation),
                    None => self.refuse(client, known),
                }
                known
            }
            Record::Promote(generation) => {
                let home = self.transport.home(client).is_some_and(|outbox| outbox.generation() >= generation);
                if known {
                    self.effects.push(Effect::Promoted(client, generation));
                }
                known || home
            }
            Record::End => {
                if known {
                    self.drop_copy(client);
                }
                true
            }
            Record::Claim(_) => false,
        }
    }
}

impl<R> Post<'_, R> {
    fn open(&mut self, client: Uuid, term: u64, opening: record::Opening) -> bool {
        if let Some(home) = self.transport.session(client) {
            if home.generation() >= opening.generation {
                self.effects.push(Effect::Held(client));
                return false;
            }
            if !home.is_moving() {
                self.effects.push(Effect::Yield(client));
            }
        }
        if self.leaving {
            return false;
        }
        let generation = self.transport.registry.copy(client).map_or(0, |copy| copy.generation());
        if generation > opening.generation {
            self.refuse(client, false);
            return false; // An older home, that has not heard of its successor.
        }
        self.drop_copy(client);
        self.transport.registry.keep_copy(Arc::new(Outbox::copy(client, opening, self.limits, self.budget)));
        self.copies.insert(client, Copy { home: self.tag, term });
        self.copies_by_home.entry(self.tag).or_default().insert(client);
        self.effects.push(Effect::Changed(Channel::Claim(client)));
        true
    }

    fn refuse(&mut self, client: Uuid, known: bool) {
        if known {
            self.drop_copy(client); // It has a hole: it is of no use.
        } else if self.transport.session(client).is_some() {
            self.effects.push(Effect::Held(client));
        } else if let (Some(Copy { home, term }), Some(copy)) =
            (self.copies.get(&client).copied(), self.transport.registry.copy(client))
        {
            let holding = Holding { client, generation: copy.generation(), term };
            self.effects.push(Effect::HeldBy(home, holding));
        }
    }

    fn drop_copy(&mut self, client: Uuid) {
        if let Some(copy) = self.copies.remove(&client) {
            forget(self.copies_by_home, copy.home, client);
            self.transport.registry.remove_copy(client);
            self.effects.push(Effect::Changed(Channel::Claim(client)));
        }
    }
}

fn forget(sets: &mut BTreeMap<Tag, BTreeSet<Uuid>>, tag: Tag, client: Uuid) {
    if let Some(set) = sets.get_mut(&tag) {
        set.remove(&client);
        if set.is_empty() {
            sets.remove(&tag);
        }
    }
}

/// Whose turn it is to keep something of `client`, among `tags`: the highest random weight, as Thaler and Ravishankar
/// have it (1998), so that a node that comes or goes changes little.
fn choose(client: Uuid, tags: impl Iterator<Item = Tag>) -> Option<Tag> {
    let (high, low) = client.as_u64_pair();
    tags.max_by_key(|tag| {
        // The finalizer of SplitMix64, which spreads every bit.
        let mut weight = tag ^ high ^ low.rotate_left(32);
        weight = (weight ^ (weight >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        weight = (weight ^ (weight >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        weight ^ (weight >> 31)
    })
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

/// A claim is decided by whoever hears it, before.
struct Bell(bool);

impl Room<()> for Bell {
    fn may_wait(&mut self, (): &()) -> bool {
        false
    }
    fn waits_no_more(&mut self, (): &()) {}
    fn admit(&mut self, _: Number, (): ()) -> bool {
        self.0
    }
}

impl<R> Transport<R> {
    /// The session of `client` that can be resumed, if this node is its home.
    pub fn home(&self, client: Uuid) -> Option<Arc<Outbox>> {
        self.session(client).filter(|outbox| !outbox.is_moving())
    }

    /// The same, also while another node is becoming its home.
    fn session(&self, client: Uuid) -> Option<Arc<Outbox>> {
        self.registry.get(client).filter(|outbox| outbox.is_resumable())
    }

    /// The session of `client` for one that has a token of `generation`, if this node is its home.
    pub fn resume(
        &self,
        now: Instant,
        client: Uuid,
        generation: u64,
        actions: &mut Actions<Duty<R>>,
    ) -> Option<Resumption> {
        let outbox = self.home(client)?;
        if is_past(outbox.generation(), generation) {
            self.give_up(now, &mut self.homes(), client, actions);
            return None;
        }
        Some(if outbox.opens_to(generation) { Resumption::Here(outbox) } else { Resumption::Refused })
    }

    /// A session that can be resumed has begun here.
    pub fn opened(&self, now: Instant, client: Uuid, actions: &mut Actions<Duty<R>>) {
        let Some(outbox) = self.home(client) else { return };
        let mut homes = self.homes();
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
        if let Some((tag, term)) = outbox.standby() {
            forget(&mut homes.by_standby, tag, client);
            self.dismiss(now, client, tag, term, actions);
        }
    }

    /// Has the session of `client`, for which there is a token of `generation`, come here. What becomes of it is among
    /// the `claims` of some later actions.
    pub fn claim(&self, now: Instant, client: Uuid, generation: u64, actions: &mut Actions<Duty<R>>) {
        let mut homes = self.homes();
        let until = now + self.times.send;
        homes.claims.insert(client, Claim { generation, until, heard: None });
        self.submit_claim(now, client, generation, actions);
    }

    fn submit_claim(&self, now: Instant, client: Uuid, generation: u64, actions: &mut Actions<Duty<R>>) {
        let record = record::encode(0, &Record::Claim(generation));
        let body = envelope::body(Uuid::nil(), client, &record);
        self.sender().submit(now, client, Channel::Claim(client), body, Duty::Claim { client }, actions);
    }

    /// Gives a session a standby, or lets it go on alone if there is nobody.
    fn ensure_standby(&self, now: Instant, homes: &mut Homes, outbox: &Outbox, actions: &mut Actions<Duty<R>>) {
        let client = outbox.client();
        homes.distrusted.retain(|_, until| now < *until);
        let keepers = self.peers.keepers();
        let trusted = keepers.iter().copied().filter(|tag| !homes.distrusted.contains_key(tag));
        // Whoever lives may be another's standby for this very session, so this node's word alone is not enough.
        match choose(client, trusted).or_else(|| choose(client, keepers.iter().copied())) {
            Some(tag) => self.open_standby(now, homes, outbox, tag, actions),
            None => {
                homes.alone.insert(client);
                let waiting = outbox.stand_alone();
                self.tell(now, waiting, actions);
            }
        }
    }

    pub(super) fn submit_records(
        &self,
        sender: &mut Sender<Duty<R>>,
        now: Instant,
        client: Uuid,
        tag: Tag,
        term: u64,
        records: Vec<(Record, Uuid, Position)>,
        actions: &mut Actions<Duty<R>>,
    ) {
        let mut owed = 0;
        for (record, id, position) in records {
            let duty = match record {
                Record::Promote(_) => Duty::Promote { client, term },
                Record::End => Duty::End,
                _ => {
                    owed += 1;
                    Duty::Record { client, tag, term, position }
                }
            };
            let body = envelope::body(id, client, &record::encode(term, &record));
            sender.submit(now, client, Channel::Node(tag), body, duty, actions);
        }
        self.debts.grow(now, tag, owed);
    }

    /// Tells senders that their messages are safe.
    fn tell(&self, now: Instant, origins: Vec<Origin>, actions: &mut Actions<Duty<R>>) {
        if !origins.is_empty() {
            let mut gathered = Gathered::default();
            origins.into_iter().for_each(|origin| gathered.taken(origin));
            self.send_receipts(now, &mut gathered, actions);
        }
    }

    fn dismiss(&self, now: Instant, client: Uuid, tag: Tag, term: u64, actions: &mut Actions<Duty<R>>) {
        let end = vec![(Record::End, Uuid::nil(), 0)];
        self.submit_records(&mut self.sender(), now, client, tag, term, end, actions);
    }

    /// Says that this node has the session: to one node, or to whoever listens.
    fn announce(&self, outbox: &Outbox, to: Option<Tag>, actions: &mut Actions<Duty<R>>) {
        let client = outbox.client();
        let term = outbox.standby().map_or(0, |(_, term)| term);
        let holding = Holding { client, generation: outbox.generation(), term };
        let channel = to.map_or(Channel::Claim(client), Channel::Node);
        self.sender().control(channel, &envelope::held(self.peers.me(), &holding), true, actions);
    }

    /// The sessions that took something have their standbys given it.
    pub(super) fn replicate(
        &self,
        now: Instant,
        sender: &mut Sender<Duty<R>>,
        sessions: impl Iterator<Item = Arc<Outbox>>,
        actions: &mut Actions<Duty<R>>,
    ) {
        for outbox in sessions {
            if let Some((tag, term)) = outbox.standby() {
                let records = outbox.next_records();
                self.submit_records(sender, now, outbox.client(), tag, term, records, actions);
            }
        }
    }

    /// A letter from the node `tag` has come on this node's own channel.
    pub(super) fn letter(
        &self,
        now: Instant,
        envelope: &envelope::Envelope<'_>,
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) -> bool {
        let (tag, client) = (envelope.tag, envelope.sender);
        let Some((term, record)) = record::decode(envelope.text) else { return false };
        let mut homes = self.homes();
        let Homes { limits, budget, desk, copies, copies_by_home, leaving, .. } = &mut *homes;
        let mut post = Post {
            transport: self,
            limits,
            budget,
            copies,
            copies_by_home,
            leaving: *leaving,
            tag,
            effects: Vec::new(),
            waiting: 0,
        };
        let make = || Letter { client, id: envelope.id, term, record };
        let mut due = Vec::new();
        desk.arrive(tag, client, envelope.place, make, &mut post, &mut due);
        let effects = post.effects;
        gathered.due(tag, due);
        for effect in effects {
            match effect {
                Effect::Confirmed(origin) => gathered.taken(origin),
                Effect::Changed(channel) => actions.changed.push(channel),
                Effect::Held(client) => {
                    if let Some(outbox) = self.session(client) {
                        self.announce(&outbox, Some(tag), actions);
                    }
                }
                Effect::HeldBy(home, holding) => {
                    self.sender().control(Channel::Node(tag), &envelope::held(home, &holding), true, actions);
                }
                Effect::Yield(client) => self.give_up(now, &mut homes, client, actions),
                Effect::Promoted(client, generation) => self.become_home(now, &mut homes, client, generation, actions),
            }
        }
        true
    }

    /// This node's copy is the session from now on.
    fn become_home(
        &self,
        now: Instant,
        homes: &mut Homes,
        client: Uuid,
        generation: u64,
        actions: &mut Actions<Duty<R>>,
    ) {
        let Some(copy) = homes.copies.remove(&client) else { return };
        forget(&mut homes.copies_by_home, copy.home, client);
        let Some(outbox) = self.registry.remove_copy(client) else { return };
        outbox.promote(now, generation);
        self.registry.keep(outbox.clone());
        actions.changed.push(Channel::Client(client));
        self.ensure_standby(now, homes, &outbox, actions);
        match homes.claims.remove(&client) {
            Some(_) => actions.claims.push((client, Resumption::Here(outbox))),
            None => actions.detached.push(outbox),
        }
    }

    /// Another node has the session: this one's client is to look for it.
    fn give_up(&self, now: Instant, homes: &mut Homes, client: Uuid, actions: &mut Actions<Duty<R>>) {
        let Some(outbox) = self.session(client) else { return };
        outbox.freeze();
        outbox.close(CloseOrder::Moved);
        homes.alone.remove(&client);
        homes.moves.remove(&client);
        if let Some((tag, term)) = outbox.standby() {
            forget(&mut homes.by_standby, tag, client);
            self.dismiss(now, client, tag, term, actions);
        }
        homes.moved.push_back((now, outbox));
    }

    /// This node's copy is of no use any more.
    fn drop_copy(&self, homes: &mut Homes, client: Uuid, actions: &mut Actions<Duty<R>>) {
        if let Some(copy) = homes.copies.remove(&client) {
            forget(&mut homes.copies_by_home, copy.home, client);
            self.registry.remove_copy(client);
            actions.changed.push(Channel::Claim(client));
        }
    }

    /// A node says that it has a session.
    pub(super) fn held(&self, now: Instant, tag: Tag, holding: &Holding, actions: &mut Actions<Duty<R>>) {
        if tag == self.peers.me() {
            return;
        }
        let client = holding.client;
        let mut homes = self.homes();
        if let Some(outbox) = self.home(client) {
            if (outbox.generation(), self.peers.me()) < (holding.generation, tag) {
                self.give_up(now, &mut homes, client, actions);
            } else {
                self.announce(&outbox, Some(tag), actions);
            }
        } else if let (Some(copy), Some(known)) = (homes.copies.get(&client).copied(), self.registry.copy(client)) {
            if copy.home == tag {
                homes.knocks.remove(&client); // It lives.
            }
            let is_old =
                if copy.home == tag { copy.term < holding.term } else { known.generation() < holding.generation };
            if is_old {
                self.drop_copy(&mut homes, client, actions);
            }
        }
    }

    /// The node `tag` wants the session of `client` for one that has a token of `generation`.
    pub(super) fn claimed(
        &self,
        now: Instant,
        client: Uuid,
        tag: Tag,
        place: Place,
        generation: u64,
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) {
        let mut homes = self.homes();
        let mut home = self.home(client);
        // Its client has been elsewhere since.
        if home.as_ref().is_some_and(|outbox| is_past(outbox.generation(), generation)) {
            return self.give_up(now, &mut homes, client, actions);
        }
        if self.registry.copy(client).is_some_and(|copy| is_past(copy.generation(), generation)) {
            return self.drop_copy(&mut homes, client, actions);
        }
        if home.is_none()
            && let Some(copy) = homes.copies.get(&client).copied()
            && copy.home != tag
        {
            let knock = homes.knocks.entry(client).or_insert(Knock { tag, place, generation, at: now, asked: None });
            (knock.tag, knock.place, knock.generation, knock.at) = (tag, place, generation, now);
            // A home that lives answers the claim at once. One that answers neither that nor this node hangs, and nothing
            // was acknowledged without this node.
            let hangs = knock.asked.is_some_and(|at| now.saturating_duration_since(at) >= ANSWER_WITHIN);
            if place.attempt > 0 && knock.asked.is_none() {
                knock.asked = Some(now);
                self.question(client, Channel::Node(copy.home), actions);
            }
            if (hangs || self.peers.is_gone(copy.home)) && self.may_take_over(now, &homes, client) {
                homes.distrusted.insert(copy.home, now + DISTRUST);
                self.take_over(now, &mut homes, client, actions);
                home = self.home(client);
            }
        }
        if let Some(outbox) = home {
            self.answer_claim(now, &mut homes, &outbox, (tag, place, generation), gathered, actions);
        }
    }

    /// Whether this node's copy is complete, and the newest as far as is known.
    fn may_take_over(&self, now: Instant, homes: &Homes, client: Uuid) -> bool {
        let Some(copy) = self.registry.copy(client) else { return false };
        let is_newest = self.session(client).is_none_or(|session| session.generation() < copy.generation());
        is_newest && copy.is_complete() && homes.is_rested(now) && !homes.unsure.contains(&client)
    }

    /// This node's copy is the session from now on, for its home is gone.
    fn take_over(&self, now: Instant, homes: &mut Homes, client: Uuid, actions: &mut Actions<Duty<R>>) {
        let known = self.registry.copy(client).map_or(0, |copy| copy.generation());
        let knock = homes.knocks.get(&client).map_or(0, |knock| knock.generation);
        self.become_home(now, homes, client, moved(known.max(knock)), actions);
        if let Some(outbox) = self.home(client) {
            self.announce(&outbox, None, actions);
        }
    }

    /// Asks who has a session: whoever has it says so.
    fn question(&self, client: Uuid, channel: Channel, actions: &mut Actions<Duty<R>>) {
        let question = Holding { client, generation: 0, term: 0 };
        self.sender().control(channel, &envelope::held(self.peers.me(), &question), true, actions);
    }

    /// This node is the session's home, and another wants to be.
    fn answer_claim(
        &self,
        now: Instant,
        homes: &mut Homes,
        outbox: &Arc<Outbox>,
        (tag, place, generation): (Tag, Place, u64),
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) {
        let client = outbox.client();
        homes.knocks.remove(&client);
        let mut due = Vec::new();
        let is_good = outbox.opens_to(generation);
        homes.bell.arrive(tag, client, place, || (), &mut Bell(is_good), &mut due);
        let is_new = due.iter().any(|due| !due.again && due.decision == Decision::Taken);
        gathered.due(tag, due);
        if tag == self.peers.me() {
            if is_new && homes.claims.remove(&client).is_some() {
                actions.claims.push((client, Resumption::Here(outbox.clone())));
            }
        } else if is_new {
            self.start_move(now, homes, outbox, tag, generation, CloseOrder::TakenOver, actions);
        }
    }

    /// Has `to` become the session's home. The connection that there is ends by `order`.
    fn start_move(
        &self,
        now: Instant,
        homes: &mut Homes,
        outbox: &Arc<Outbox>,
        to: Tag,
        at_least: u64,
        order: CloseOrder,
        actions: &mut Actions<Duty<R>>,
    ) {
        if !outbox.freeze() {
            return;
        }
        outbox.close(order);
        let client = outbox.client();
        let old = outbox.standby();
        homes.alone.remove(&client);
        if let Some((tag, _)) = old {
            forget(&mut homes.by_standby, tag, client);
        }
        let generation = moved(outbox.generation().max(at_least));
        let mut sender = self.sender();
        let (term, records) = match old {
            Some((tag, term)) if tag == to => (term, outbox.next_records()),
            _ => {
                let term = homes.new_term();
                (term, outbox.open_standby(to, term))
            }
        };
        self.submit_records(&mut sender, now, client, to, term, records, actions);
        let promote = vec![(Record::Promote(generation), Uuid::nil(), 0)];
        self.submit_records(&mut sender, now, client, to, term, promote, actions);
        homes.moves.insert(client, Move { to, term, generation, old: old.filter(|(tag, _)| *tag != to) });
    }

    /// Moves the session of `client` to its standby, for this node leaves. `false` if there is nobody to have it.
    pub fn move_away(&self, now: Instant, client: Uuid, actions: &mut Actions<Duty<R>>) -> bool {
        let Some(outbox) = self.home(client) else { return false };
        let mut homes = self.homes();
        let Some((to, _)) = outbox.standby() else { return false };
        self.start_move(now, &mut homes, &outbox, to, 0, CloseOrder::Moved, actions);
        true
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

    /// What became of a message between nodes.
    pub fn decided(&self, now: Instant, duty: Duty<R>, outcome: Outcome, actions: &mut Actions<Duty<R>>) -> Option<R> {
        match duty {
            Duty::Send(reply) => return Some(reply),
            Duty::Record { client, tag, term, position } => {
                self.debts.shrink(now, tag, outcome == Outcome::Handed);
                let Some(outbox) = self.registry.get(client) else { return None };
                let mut homes = self.homes();
                if outcome == Outcome::Handed {
                    homes.refusals.remove(&client);
                    drop(homes);
                    let told = outbox.confirm(term, position);
                    self.tell(now, told, actions);
                } else if outbox.standby() == Some((tag, term)) && !outbox.is_moving() {
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
                let Some(claim) = homes.claims.get_mut(&client) else { return None };
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

    /// The standby of this term has refused the session. It may know of another home, and that word may have been lost:
    /// it is asked some more times before another is.
    fn try_standby_again(
        &self,
        now: Instant,
        homes: &mut Homes,
        client: Uuid,
        term: u64,
        actions: &mut Actions<Duty<R>>,
    ) {
        let Some(outbox) = self.home(client) else {
            homes.refusals.remove(&client);
            return;
        };
        let Some((tag, _)) = outbox.standby().filter(|(_, now)| *now == term) else { return };
        if !homes.is_rested(now) {
            return homes.refused.push_back((now + REFUSED, client, term));
        }
        let times = homes.refusals.entry(client).or_default();
        *times += 1;
        if *times <= REFUSALS && !self.peers.is_gone(tag) && !self.peers.is_leaving(tag) {
            self.open_standby(now, homes, &outbox, tag, actions);
        } else {
            homes.refusals.remove(&client);
            homes.distrusted.insert(tag, now + REFUSED);
            self.replace_standby(now, homes, &outbox, actions);
        }
    }

    fn open_standby(&self, now: Instant, homes: &mut Homes, outbox: &Outbox, tag: Tag, actions: &mut Actions<Duty<R>>) {
        let client = outbox.client();
        homes.alone.remove(&client);
        homes.by_standby.entry(tag).or_default().insert(client);
        let term = homes.new_term();
        // What is taken meanwhile by another thread comes behind this.
        let mut sender = self.sender();
        let records = outbox.open_standby(tag, term);
        self.submit_records(&mut sender, now, client, tag, term, records, actions);
    }

    fn replace_standby(&self, now: Instant, homes: &mut Homes, outbox: &Outbox, actions: &mut Actions<Duty<R>>) {
        if let Some((tag, term)) = outbox.standby() {
            forget(&mut homes.by_standby, tag, outbox.client());
            self.ensure_standby(now, homes, outbox, actions);
            // It may live all the same.
            if outbox.standby().is_none_or(|(now, _)| now != tag) {
                self.dismiss(now, outbox.client(), tag, term, actions);
            }
        }
    }

    fn promoted(&self, now: Instant, client: Uuid, term: u64, outcome: Outcome, actions: &mut Actions<Duty<R>>) {
        let mut homes = self.homes();
        let Some(step) = homes.moves.get(&client).copied().filter(|step| step.term == term) else { return };
        let Some(outbox) = self.registry.get(client).filter(|outbox| outbox.is_moving()) else { return };
        match outcome {
            Outcome::Handed => {
                homes.moves.remove(&client);
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
                let records = outbox.open_standby(step.to, term);
                self.submit_records(&mut sender, now, client, step.to, term, records, actions);
                let promote = vec![(Record::Promote(step.generation), Uuid::nil(), 0)];
                self.submit_records(&mut sender, now, client, step.to, term, promote, actions);
                homes.moves.insert(client, Move { term, ..step });
            }
            _ => {
                homes.moves.remove(&client);
                // A node that is gone may have had it, and so may its standby: that one's generation is higher then. One that
                // refuses has not had it from here; if it has it otherwise, it says so.
                outbox.thaw(now, if outcome == Outcome::Busy { 0 } else { step.generation });
                if let Some((tag, term)) = step.old {
                    self.dismiss(now, client, tag, term, actions);
                }
                homes.by_standby.entry(step.to).or_default().insert(client);
                homes.refused.push_back((now + REFUSED, client, step.term));
                self.announce(&outbox, None, actions);
                actions.detached.push(outbox);
            }
        }
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
        let has_others = self.peers.keepers().len() > 0;
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
        let orphans: Vec<Uuid> =
            gone.into_iter().flat_map(|tag| homes.copies_by_home.remove(&tag).unwrap_or_default()).collect();
        for client in orphans {
            if !self.may_take_over(now, homes, client) {
                self.drop_copy(homes, client, actions);
                continue;
            }
            let knock = homes.knocks.get(&client).copied();
            self.take_over(now, homes, client, actions);
            // Whoever has asked for it need not ask again.
            if let (Some(Knock { tag, place, generation, .. }), Some(outbox)) = (knock, self.home(client)) {
                self.answer_claim(now, homes, &outbox, (tag, place, generation), &mut gathered, actions);
            }
        }
        self.send_receipts(now, &mut gathered, actions);
        homes.knocks.retain(|_, knock| now.saturating_duration_since(knock.at) < KNOCK);
    }

    fn repeat_claims(&self, now: Instant, homes: &mut Homes, actions: &mut Actions<Duty<R>>) {
        let mut again = Vec::new();
        let mut lost = Vec::new();
        for (client, claim) in &mut homes.claims {
            if now >= claim.until {
                lost.push(*client);
            } else if claim.heard.is_some_and(|at| now.saturating_duration_since(at) >= CLAIM_AGAIN) {
                claim.heard = None;
                again.push((*client, claim.generation));
            }
        }
        for client in lost {
            homes.claims.remove(&client);
            actions.claims.push((client, Resumption::Lost));
        }
        for (client, generation) in again {
            self.submit_claim(now, client, generation, actions);
        }
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
