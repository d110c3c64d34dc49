//! Owns how messages get from node to node, surely: numbers, receipts, what is sent again, who is alive.
//!
//! A small reliable transport over Redis' pub/sub, as TCP is one over IP. Nothing that Redis says is believed but
//! that nobody is subscribed; an `ack` is the word of the node that has the message. Pure: everything takes the
//! time as an argument, and whole systems of it run in `simulation`.
//!
//! ```text
//!  submit ─▶ sender ─ head + body ─▶ (Redis) ─▶ arrived ─▶ registry, outbox, inbox: decided once, in order
//!   reply ◀─ sender ◀─── receipts ── (Redis) ◀─ gathered for the length of one read, by sending node
//! ```

pub mod envelope;
pub mod homes;
pub mod inbox;
pub mod peers;
pub mod record;
pub mod sender;
#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use self::envelope::{Channel, Decision, Foreign, Frame, Hello, KeyList, Number, Tag};
use self::homes::{Attention, Call, Debts, Homes};
use self::inbox::{Arrival, Due};
use self::peers::roll::Member;
use self::peers::{Peers, Standing};
use self::record::Record;
use self::sender::{Actions, LinkId, Sender, Times};
use crate::config::Limits;
use crate::outbox::budget::Budget;
use crate::outbox::log::Position;
use crate::outbox::{Delivery, Outbox};
use crate::registry::Registry;
use crate::resume::token::Fingerprint;

/// One node's end of the transport; `R` is the duty to answer a client.
#[derive(Debug)]
pub struct Transport<R> {
    name: String,
    peers: Arc<Peers>,
    registry: Arc<Registry>,
    times: Times,
    /// How long a client may be away, and ask again for what it asked for before.
    window: Duration,
    /// Locked before `sender`, which is locked before any outbox.
    attention: Attention,
    homes: Mutex<Homes>,
    sender: Mutex<Sender<Duty<R>>>,
    debts: Debts,
}

/// Who waits for what becomes of a message.
#[derive(Debug)]
pub enum Duty<R> {
    /// A client, for the answer to its `send`.
    Send(R),
    /// A session: its standby `tag`, of this term, is to have everything up to `position`.
    Record {
        /// Whose session.
        client: Uuid,
        /// The standby.
        tag: Tag,
        /// Its term.
        term: u64,
        /// Up to where it has everything then.
        position: Position,
    },
    /// A session that moves: its new home.
    Promote {
        /// Whose session.
        client: Uuid,
        /// The term of the node that becomes its home.
        term: u64,
    },
    /// A client that wants to resume its session.
    Claim {
        /// Who.
        client: Uuid,
        /// Of the token that it has shown: an older one may be under way from a connection that it had before.
        generation: u64,
    },
    /// Nobody.
    End,
}

/// Receipts that are due, gathered by the node that wants them.
#[derive(Debug, Default)]
pub struct Gathered {
    first: BTreeMap<Tag, Vec<(Number, Decision)>>,
    again: BTreeMap<Tag, Vec<(Number, Decision)>>,
    due: Vec<Due>,
    /// Sessions that took something which their standbys are to have.
    sessions: BTreeMap<Uuid, Arc<Outbox>>,
}

/// What became of something that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// A message for a client.
    Message(Arrival),
    /// A message for somebody who is not here.
    Absent,
    /// A message that its node wants no more.
    Past,
    /// A message of a node that is not known to live.
    Stranger,
    /// Something between nodes.
    Control,
    /// A node is known from now on.
    Met(Tag, Hello),
    /// Nothing of ours.
    Foreign(Foreign),
}

impl<R> Transport<R> {
    /// The transport of the node `tag`, called `name` in others' logs.
    pub fn new(
        now: Instant,
        (tag, name): (Tag, &str),
        times: Times,
        limits: &Limits,
        budget: Arc<Budget>,
        registry: Arc<Registry>,
        random: fastrand::Rng,
    ) -> Self {
        let peers = Arc::new(Peers::new(now, tag));
        let sender = Sender::new(now, times, peers.clone(), random);
        let attention = Attention::new(now, sender.deafness());
        let sender = Mutex::new(sender);
        let homes = Mutex::new(Homes::new(now, limits, budget));
        Self {
            name: name.to_owned(),
            peers,
            registry,
            times,
            window: limits.resume_window,
            attention,
            homes,
            sender,
            debts: Debts::default(),
        }
    }

    /// This run of this node.
    pub fn tag(&self) -> Tag {
        self.peers.me()
    }

    /// The other nodes, for people.
    pub fn roll(&self, now: Instant) -> Vec<Member> {
        self.peers.roll(now)
    }

    /// Whether `tag` has left in an orderly way, a while ago at the most.
    pub fn has_left(&self, tag: Tag) -> bool {
        self.peers.has_left(tag)
    }

    /// Its sender, locked.
    pub fn sender(&self) -> MutexGuard<'_, Sender<Duty<R>>> {
        // No state is left half-changed by the code that holds this lock.
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn homes(&self) -> MutexGuard<'_, Homes> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channels that a link subscribes after those of all clients: they mean "all my sessions are here".
    pub fn own_channels(&self) -> [Channel; 2] {
        [Channel::Nodes, Channel::Node(self.peers.me())]
    }

    /// Every subscription is confirmed on `link`: the others are told that this node is there.
    pub fn link_synced(&self, now: Instant, link: LinkId, actions: &mut Actions<Duty<R>>) {
        self.peers.listening(now);
        let mut sender = self.sender();
        sender.link_synced(link);
        let hello = envelope::hello(self.peers.me(), sender.floor(), &self.name);
        sender.control_on(link, Channel::Nodes, hello, actions);
    }

    /// To be called every [`HELLO_EVERY`](peers::HELLO_EVERY): says hello, and forgets what nobody wants any more.
    pub fn beat(&self, now: Instant, actions: &mut Actions<Duty<R>>) {
        let mut sender = self.sender();
        let floor = sender.floor();
        sender.control(Channel::Nodes, &envelope::hello(self.peers.me(), floor, &self.name), true, actions);
        drop(sender);
        self.peers.tick(now, floor);
        let floor = |tag| self.peers.floor(tag);
        self.homes().prune(now, floor);
        // What a client asks for again it may have asked for a whole deadline before its window began.
        for outbox in self.registry.prune(now, self.window + self.times.send, floor) {
            if let (Some((tag, _)), Some((term, record, position))) = (outbox.standby(), outbox.had_record()) {
                let records = vec![(record, Uuid::nil(), position)];
                self.submit_records(&mut self.sender(), now, outbox.client(), (tag, term), records, actions);
            }
        }
    }

    /// Says which keys this node has, to be called with each [`beat`](Self::beat), and returns which the others have. The
    /// `edition` grows when its own change.
    pub fn compare_keys(
        &self,
        edition: u64,
        own: &[Fingerprint],
        actions: &mut Actions<Duty<R>>,
    ) -> Vec<(Tag, KeyList)> {
        let keys = envelope::keys(self.peers.me(), edition, own, &self.name);
        self.sender().control(Channel::Nodes, &keys, true, actions);
        self.peers.keys()
    }

    /// The last word: this node has no sessions any more. One that has some dies without it: nobody else has what they took.
    pub fn bye(&self, actions: &mut Actions<Duty<R>>) {
        if self.registry.outboxes().iter().any(|outbox| outbox.condition().is_some()) {
            return;
        }
        self.sender().control(Channel::Nodes, &envelope::bye(self.peers.me()), true, actions);
    }

    /// Something has arrived on a subscription.
    pub fn arrived(
        &self,
        now: Instant,
        channel: &[u8],
        payload: &[u8],
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) -> Arrived {
        let frame = match envelope::decode(payload) {
            Ok(frame) => frame,
            Err(foreign) => return Arrived::Foreign(foreign),
        };
        match (Channel::parse(channel), frame) {
            (Some(channel @ (Channel::Client(_) | Channel::Node(_) | Channel::Claim(_))), Frame::Message(envelope)) => {
                match self.peers.standing(envelope.tag, envelope.place.number) {
                    Standing::Wanted => {
                        self.notice_before(now);
                        match channel {
                            Channel::Client(receiver) => self.take(now, receiver, &envelope, gathered, actions),
                            _ => self.take_word(now, channel, &envelope, gathered, actions),
                        }
                    }
                    Standing::Past => Arrived::Past,
                    Standing::Stranger => {
                        self.ask(now, envelope.tag, false, actions);
                        Arrived::Stranger
                    }
                }
            }
            (Some(Channel::Node(_) | Channel::Claim(_)), Frame::Held(tag, holding)) => {
                self.notice_before(now);
                self.held(now, tag, &holding, actions);
                Arrived::Control
            }
            (Some(Channel::Nodes), Frame::Leaving(tag)) => {
                self.peers.leaving(tag);
                Arrived::Control
            }
            (Some(Channel::Node(_)), Frame::Receipts(tag, receipts)) => {
                // Wherever it is subscribed or not: it took a message a moment ago.
                self.peers.present(&HashSet::from([tag]));
                self.sender().receipts(now, &receipts, actions);
                Arrived::Control
            }
            (Some(Channel::Nodes), Frame::Hello(tag, hello)) => {
                if !self.peers.hello(now, tag, &hello) {
                    self.ask(now, tag, false, actions);
                }
                Arrived::Control
            }
            (Some(Channel::Node(_)), Frame::Ask(tag, nonce)) => {
                let mut sender = self.sender();
                let answer = envelope::answer(self.peers.me(), nonce, sender.floor(), &self.name);
                sender.control(Channel::Node(tag), &answer, true, actions);
                drop(sender);
                // Whoever does not know us may be unknown to us.
                self.ask(now, tag, false, actions);
                Arrived::Control
            }
            (Some(Channel::Node(_)), Frame::Answer(tag, nonce, hello)) => {
                if self.peers.answered(now, tag, nonce, &hello) { Arrived::Met(tag, hello) } else { Arrived::Control }
            }
            (Some(Channel::Nodes), Frame::Keys(tag, list)) => {
                self.peers.has_keys(tag, list);
                Arrived::Control
            }
            (Some(Channel::Nodes), Frame::Bye(tag)) => {
                self.peers.left(now, tag);
                Arrived::Control
            }
            _ => Arrived::Foreign(Foreign::Malformed),
        }
    }

    fn ask(&self, now: Instant, tag: Tag, again: bool, actions: &mut Actions<Duty<R>>) {
        if let Some(nonce) = self.peers.question(now, tag, again) {
            self.sender().control(Channel::Node(tag), &envelope::ask(self.peers.me(), nonce), true, actions);
        }
    }

    /// A message of another node's own, not of a client of it.
    fn take_word(
        &self,
        now: Instant,
        channel: Channel,
        envelope: &envelope::Envelope<'_>,
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) -> Arrived {
        let known = match (channel, record::decode(envelope.text)) {
            (Channel::Claim(client), Some((_, Record::Claim(generation)))) => {
                let call = Call { tag: envelope.tag, place: envelope.place, generation };
                self.claimed(now, client, call, gathered, actions);
                true
            }
            (Channel::Node(_), Some(_)) => self.letter(now, envelope, gathered, actions),
            _ => false,
        };
        if known { Arrived::Control } else { Arrived::Foreign(Foreign::Malformed) }
    }

    fn take(
        &self,
        now: Instant,
        receiver: Uuid,
        envelope: &envelope::Envelope<'_>,
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) -> Arrived {
        let outbox = self.registry.get(receiver);
        // A session that nobody vouched for knows nothing of what its client has been shown: what comes may be old.
        if let Some(since) = outbox.as_ref().and_then(|outbox| outbox.begun_anew()) {
            if envelope.tag == self.peers.me() {
                if !self.sender().wants(envelope.place.number) {
                    return Arrived::Past;
                }
            } else if !self.peers.has_told_floor(envelope.tag, since) {
                self.ask(now, envelope.tag, true, actions);
                return Arrived::Stranger;
            }
        }
        let make = || Delivery {
            id: envelope.id,
            sender: envelope.sender,
            text: String::from_utf8_lossy(envelope.text).into(),
        };
        let (lane, place, due) = ((envelope.tag, envelope.sender), envelope.place, &mut gathered.due);
        let is_wanted = || self.peers.standing(envelope.tag, place.number) == Standing::Wanted;
        let arrival = outbox.and_then(|outbox| {
            let (arrival, recorded) = outbox.arrive(lane, place, is_wanted, make, due)?;
            Some((arrival, recorded.then_some(outbox)))
        });
        let Some((arrival, session)) = arrival else {
            let absent = (envelope.place.number, Decision::Absent);
            gathered.first.entry(envelope.tag).or_default().push(absent);
            return Arrived::Absent;
        };
        if let Some(session) = session {
            gathered.sessions.insert(receiver, session);
        }
        for Due { number, decision, again } in gathered.due.drain(..) {
            let side = if again { &mut gathered.again } else { &mut gathered.first };
            side.entry(envelope.tag).or_default().push((number, decision));
        }
        Arrived::Message(arrival)
    }

    /// Sends the receipts that a read has brought; those that were asked for again go on every link, this node's own
    /// on none.
    pub fn send_receipts(&self, now: Instant, gathered: &mut Gathered, actions: &mut Actions<Duty<R>>) {
        if gathered.first.is_empty() && gathered.again.is_empty() && gathered.sessions.is_empty() {
            return;
        }
        let mut sender = self.sender();
        self.replicate(now, &mut sender, std::mem::take(&mut gathered.sessions).into_values(), actions);
        for (side, everywhere) in [(&mut gathered.first, false), (&mut gathered.again, true)] {
            for (tag, receipts) in std::mem::take(side) {
                if tag == self.peers.me() {
                    sender.receipts(now, &receipts, actions);
                } else {
                    sender.receipt(now, tag, &receipts, everywhere, actions);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::time::Duration;

    use super::envelope::{Holding, Place, body, head};
    use super::record::{Opening, Record};
    use super::sender::{Answer, Command};
    use super::*;
    use crate::outbox::copy::Copy;
    use crate::outbox::log::{moved, taken_over};
    use crate::outbox::tests::outbox;

    const OTHER: Tag = 2;

    fn transport(now: Instant, registry: Arc<Registry>) -> Transport<()> {
        let second = Duration::from_secs(1);
        let times = Times { send: 5 * second, hedge: second, settle: second, max_bytes: usize::MAX };
        let budget = crate::outbox::tests::unbounded();
        Transport::new(now, (1, "one"), times, &Limits::small(9, 99), budget, registry, fastrand::Rng::with_seed(1))
    }

    fn hello(floor: Number) -> Hello {
        Hello { floor, writes: envelope::VERSION, reads: envelope::VERSION, name: String::new() }
    }

    /// One that knows the other node, and what it has.
    fn met(now: Instant) -> (Arc<Registry>, Transport<()>) {
        let registry = Arc::<Registry>::default();
        let transport = transport(now, registry.clone());
        meet(&transport, now, OTHER);
        (registry, transport)
    }

    /// One that hears that node as well, by a link that has every channel subscribed.
    fn synced(now: Instant) -> (Arc<Registry>, Transport<()>) {
        let (registry, transport) = met(now);
        reconnect(&transport, now);
        (registry, transport)
    }

    fn reconnect(transport: &Transport<()>, now: Instant) {
        let mut actions = Actions::default();
        transport.sender().link_up(now, 0, &mut actions);
        transport.link_synced(now, 0, &mut actions);
    }

    /// The node `tag` is known, and wants everything.
    fn meet(transport: &Transport<()>, now: Instant, tag: Tag) {
        let nonce = transport.peers.question(now, tag, false).unwrap();
        transport.peers.answered(now, tag, nonce, &hello(0));
    }

    /// The node `tag` writes its first letter to this one, or another.
    fn letter(
        transport: &Transport<()>,
        now: Instant,
        (tag, number): (Tag, Number),
        client: Uuid,
        record: &Record,
    ) -> Gathered {
        let place = Place { number, previous: number - 1, floor: 1, attempt: 0 };
        let payload = [&head(tag, place)[..], &body(Uuid::nil(), client, &record::encode(1, record))].concat();
        let (channel, mut gathered) = (Channel::Node(transport.peers.me()).name(), Gathered::default());
        transport.arrived(now, channel.as_bytes(), &payload, &mut gathered, &mut Actions::default());
        gathered
    }

    /// Copies that come over several links, while their lane is forgotten because one of them was decided.
    #[test]
    fn a_copy_that_comes_while_its_lane_is_forgotten_is_not_shown() {
        const NUMBERS: u64 = 100_000;
        let now = Instant::now();
        let registry = Arc::<Registry>::default();
        let receiver = outbox(usize::MAX, usize::MAX);
        let _registration = registry.register(receiver.clone());
        let transport = transport(now, registry.clone());
        meet(&transport, now, OTHER);
        let (decided, newest, over) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let barrier = Barrier::new(2);
        let channel = Channel::Client(receiver.client()).name();
        let link = || {
            let (mut gathered, mut actions) = (Gathered::default(), Actions::default());
            for number in 1..=NUMBERS {
                let place = Place { number, previous: 0, floor: number, attempt: 0 };
                let payload = [&head(OTHER, place)[..], &body(Uuid::nil(), Uuid::nil(), b"a word")].concat();
                barrier.wait();
                let arrived = transport.arrived(now, channel.as_bytes(), &payload, &mut gathered, &mut actions);
                if arrived == Arrived::Message(Arrival::Decided) {
                    decided.fetch_add(1, Ordering::SeqCst);
                    newest.fetch_max(number, Ordering::SeqCst);
                }
                gathered = Gathered::default();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut floor = 0;
                while !over.load(Ordering::SeqCst) {
                    let known = newest.load(Ordering::SeqCst);
                    if known > floor {
                        floor = known;
                        transport.peers.hello(now, OTHER, &hello(floor + 1));
                        registry.prune(now, Duration::from_secs(30), |tag| transport.peers.floor(tag));
                        receiver.take(0, usize::MAX);
                    }
                }
            });
            let links = [scope.spawn(link), scope.spawn(link)];
            links.into_iter().for_each(|link| link.join().unwrap());
            over.store(true, Ordering::SeqCst);
        });
        assert_eq!(decided.load(Ordering::SeqCst) as u64, NUMBERS);
    }

    fn session(client: Uuid) -> Arc<Outbox> {
        Arc::new(Outbox::resumable(client, 1, &Limits::small(9, 99), &crate::outbox::tests::unbounded()))
    }

    #[test]
    fn a_session_that_is_over_takes_nothing_of_its_successor_along() {
        let now = Instant::now();
        let (registry, transport) = met(now);
        let client = Uuid::from_u128(7);
        let (before, after) = (session(client), session(client));
        for outbox in [&before, &after] {
            registry.keep(outbox.clone());
            transport.opened(now, client, &mut Actions::default());
        }
        assert_eq!(transport.standbys(), (1, 0));
        transport.ended(now, &before, &mut Actions::default());
        assert_eq!(transport.standbys(), (1, 0), "nobody looks after its standby");
        registry.remove(&after);
        transport.ended(now, &after, &mut Actions::default());
        assert_eq!(transport.standbys(), (0, 0));
    }

    /// Its home has ended it, and this node stood still for longer than it was told so.
    #[test]
    fn a_copy_that_nobody_answers_for_is_dropped() {
        let start = Instant::now();
        let (registry, transport) = synced(start);
        let mut actions = Actions::default();
        transport.look_after_homes(start, &mut actions);
        let client = Uuid::from_u128(7);
        let copy =
            Copy::new(OTHER, 1, Opening { generation: 1, ..Opening::default() }, &crate::outbox::tests::unbounded());
        registry.keep_copy(client, Box::new(copy));
        // Both say hello all the time.
        let look = |after: Duration| {
            for tag in [1, OTHER] {
                transport.peers.hello(start + after, tag, &hello(0));
            }
            transport.look_after_homes(start + after, &mut Actions::default());
            registry.copies()
        };
        let woken = Duration::from_secs(2);
        for tenth in 0..100 {
            assert_eq!(look(woken + tenth * Duration::from_millis(100)), 1, "{tenth}");
        }
        assert_eq!(look(woken + Duration::from_millis(10_500)), 0);
    }

    /// A replica that lags says it late: the home has died since, and this node was gone for it before.
    #[test]
    fn nobody_takes_over_by_a_copy_that_came_when_its_home_was_gone() {
        let start = Instant::now();
        for is_heard in [true, false] {
            let (registry, transport) = synced(start);
            let client = Uuid::from_u128(7);
            let look = |now| {
                transport.peers.hello(now, 1, &hello(0));
                if is_heard {
                    transport.peers.hello(now, OTHER, &hello(0));
                }
                transport.look_after_homes(now, &mut Actions::default());
            };
            let mut now = start;
            while now < start + Duration::from_secs(4) {
                now += Duration::from_millis(100);
                look(now);
            }
            let opening = Record::Open(Opening { generation: 1, ..Opening::default() });
            let gathered = letter(&transport, now, (OTHER, 1), client, &opening);
            assert_eq!(gathered.first.get(&OTHER), Some(&vec![(1, Decision::Taken)]));
            look(now + Duration::from_millis(100));
            assert_eq!((transport.home(client).is_some(), registry.copies()), (false, usize::from(is_heard)));
        }
    }

    /// What was on its way during a gap is no answer to what was asked since.
    #[test]
    fn after_a_gap_a_session_comes_by_the_answer_to_a_claim_that_was_made_since() {
        let now = Instant::now();
        let client = Uuid::from_u128(7);
        for (has_gap, answered, decision) in [
            (false, None, Decision::Taken),
            (true, None, Decision::Full),
            (true, Some(0), Decision::Full),
            (true, Some(1), Decision::Taken),
        ] {
            let (_, transport) = synced(now);
            let mut actions = Actions::default();
            transport.beat(now, &mut actions);
            transport.look_after_homes(now, &mut actions);
            let mut claims = Vec::new();
            for gap in [has_gap, false] {
                claims.push(transport.sender().next_number());
                transport.claim(now, client, 1, &mut actions);
                if gap {
                    transport.sender().link_lost(now, 0, &mut actions);
                    reconnect(&transport, now);
                    transport.look_after_homes(now, &mut actions);
                }
            }
            let answers = answered.map_or(0, |claim: usize| claims[claim]);
            letter(&transport, now, (OTHER, 1), client, &Record::Open(Opening { generation: 1, ..Opening::default() }));
            let promote = Record::Promote { generation: moved(1), proven: 0, answers };
            let gathered = letter(&transport, now, (OTHER, 2), client, &promote);
            assert_eq!(gathered.first.get(&OTHER), Some(&vec![(2, decision)]), "gap: {has_gap}, answers {answered:?}");
            assert_eq!(transport.home(client).is_some(), decision == Decision::Taken);
        }
    }

    /// A node that has no time stands still again and again, each time before it reads what it has asked for. For what follows
    /// after more than a second nobody waits.
    #[test]
    fn what_was_asked_before_a_doze_is_no_sign_of_life_behind_it() {
        const DOZE: Duration = Duration::from_millis(200);
        let start = Instant::now();
        let client = Uuid::from_u128(7);
        for (dozes, decision) in [(0, Decision::Taken), (1, Decision::Full), (2, Decision::Full), (6, Decision::Taken)]
        {
            let (registry, transport) = synced(start);
            let mut actions = Actions::default();
            let ask = |now| {
                transport.peers.hello(now, 1, &hello(0));
                transport.look_after_homes(now, &mut Actions::default());
                let answer = |command: Command| match command {
                    Command::Count(channels) => Answer::Counts(vec![1; channels.len()]),
                    _ => Answer::Receivers(1),
                };
                transport.sender().next_batch(now, 0).into_iter().map(answer).collect()
            };
            // It was subscribed nowhere before.
            let mut answers: Vec<Answer> = [ask(start), ask(start)].concat();
            let copy = Copy::new(OTHER, 1, Opening::default(), &crate::outbox::tests::unbounded());
            registry.keep_copy(client, Box::new(copy));
            let mut now = start;
            for _ in 0..dozes {
                now += DOZE;
                transport.sender().answered(now, 0, std::mem::take(&mut answers), &mut actions);
                transport.follow_look(now, &mut actions);
                answers = ask(now);
            }
            let promote = Record::Promote { generation: moved(0), proven: 0, answers: 0 };
            let gathered = letter(&transport, now, (OTHER, 1), client, &promote);
            assert_eq!(gathered.first.get(&OTHER), Some(&vec![(1, decision)]), "{dozes} dozes");
        }
    }

    /// This node has a copy of a session, as its home's second standby. Another node has taken the session over, with what the home
    /// had given to one of its standbys, and says so, or gives it to this node to keep.
    #[test]
    fn of_the_standbys_of_one_home_the_last_one_becomes_the_home() {
        const THIRD: Tag = 3;
        let now = Instant::now();
        for (standby, is_given) in [(1, true), (1, false), (3, true), (3, false)] {
            let (registry, transport) = met(now);
            meet(&transport, now, THIRD);
            let mut actions = Actions::default();
            transport.look_after_homes(now, &mut actions);
            let client = Uuid::from_u128(7);
            let opening = |generation, standby| Opening { generation, standby, ..Opening::default() };
            let copy = Copy::new(OTHER, 1, opening(1, 2), &crate::outbox::tests::unbounded());
            registry.keep_copy(client, Box::new(copy));
            let generation = taken_over(1, standby);
            if is_given {
                letter(&transport, now, (THIRD, 1), client, &Record::Open(opening(generation, 1)));
            } else {
                transport.held(now, THIRD, &Holding { client, generation, term: 0, nonce: 0 }, &mut actions);
            }
            let has = transport.home(client).map(|outbox| outbox.generation());
            assert_eq!(has, (standby == 1).then_some(taken_over(1, 2)), "standby {standby}, given: {is_given}");
            let keeps_for = registry.with_copy(client, |copy| copy.home);
            assert_eq!(keeps_for, (standby == 3 && is_given).then_some(THIRD), "standby {standby}, given: {is_given}");
        }
    }

    /// The home that it was taken over from goes on, and gives the session to whoever has it already.
    #[test]
    fn a_session_that_was_taken_over_has_come_when_its_home_gives_it_as_well() {
        let now = Instant::now();
        let (registry, transport) = met(now);
        let client = Uuid::from_u128(7);
        let limits = Limits::small(9, 99);
        let copy =
            Copy::new(OTHER, 1, Opening { standby: 2, ..Opening::default() }, &crate::outbox::tests::unbounded());
        registry.keep(Arc::new(Outbox::promoted(now, client, copy.taken_over(), copy, &limits)));
        let promote = Record::Promote { generation: moved(0), proven: 0, answers: 0 };
        let gathered = letter(&transport, now, (OTHER, 1), client, &promote);
        assert_eq!(gathered.first.get(&OTHER), Some(&vec![(1, Decision::Taken)]));
    }

    /// Whoever had no standby may have got another home during the gap.
    #[test]
    fn the_first_message_after_a_gap_is_not_taken_before_the_gap_is_noticed() {
        let start = Instant::now();
        for gap in [Duration::ZERO, Duration::from_secs(1)] {
            let registry = Arc::<Registry>::default();
            let receiver = session(Uuid::from_u128(7));
            registry.keep(receiver.clone());
            let transport = transport(start, registry.clone());
            meet(&transport, start, OTHER);
            let mut actions = Actions::default();
            let arrive = |now, number| {
                let place = Place { number, previous: 0, floor: number, attempt: 0 };
                let payload = [&head(OTHER, place)[..], &body(Uuid::nil(), Uuid::nil(), b"a word")].concat();
                let channel = Channel::Client(receiver.client()).name();
                transport.arrived(now, channel.as_bytes(), &payload, &mut Gathered::default(), &mut Actions::default())
            };
            reconnect(&transport, start);
            transport.beat(start, &mut actions);
            transport.look_after_homes(start, &mut actions);
            assert_eq!(arrive(start, 1), Arrived::Message(Arrival::Decided));
            if gap.is_zero() {
                transport.sender().link_lost(start, 0, &mut actions);
                reconnect(&transport, start);
            }
            assert_eq!(arrive(start + gap, 2), Arrived::Message(Arrival::Waits), "after {gap:?}");
        }
    }
}
