//! Several nodes, a master and replicas that lag, clients that come and go, and everything that can go wrong between
//! them: one system in one thread, its time and its chance made from a seed.
//!
//! The judge sees what clients are shown and what senders are told. `TEXTO_SEEDS=1000000 cargo test --release -p texto
//! --lib simulation` runs a million, `TEXTO_SEEDS=500000..1000000` their second half, on another processor; a seed that
//! breaks a promise is printed, and `TEXTO_SEED=n` runs it alone; with `TEXTO_STORY=m` it tells all that happened to the
//! receiver of its message `m`.

mod story;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use self::story::Story;
use super::envelope::{Channel, Decision, Frame, Number, body, decode, head};
use super::homes::{MoveReason, Resumption};
use super::peers::HELLO_EVERY;
use super::sender::{Actions, Answer, Command, Times};
use super::{Duty, Gathered, Transport};
use crate::config::Limits;
use crate::outbox::log::Position;
use crate::outbox::{Attachment, CloseOrder, Outbox, Outcome};
use crate::registry::{Registration, Registry};

const SERVERS: usize = 3;
const NODES: usize = 3;
const MS: u64 = 1000;
const SECOND: u64 = 1000 * MS;
const TIMES: Times = Times {
    send: Duration::from_secs(2),
    hedge: Duration::from_millis(100),
    settle: Duration::from_millis(500),
    max_bytes: 1 << 20,
};

/// Faults of the program, planted to see whether they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// A count of subscribers is taken for a receipt.
    AckOnCount,
    /// Messages don't name what must come before them.
    ForgottenPredecessor,
    /// What has come before is taken for new.
    CopyShown,
    /// No node says that it has a session, so nobody yields.
    NobodyYields,
    /// A session's messages are shown before its standby has them.
    ShownBeforeCopied,
}

#[derive(Debug)]
enum Event {
    /// Commands reach a server.
    Arrive {
        node: usize,
        server: usize,
        link: u64,
        commands: Vec<Op>,
    },
    /// Answers reach a node.
    Answers {
        node: usize,
        server: usize,
        link: u64,
        answers: Vec<Answer>,
        numbers: Vec<Option<Number>>,
    },
    /// A message reaches a subscriber.
    Push {
        node: usize,
        server: usize,
        link: u64,
        channel: Channel,
        payload: Bytes,
    },
    /// Subscriptions are confirmed: the last ones of a replay, if `all`.
    Confirmed {
        node: usize,
        server: usize,
        link: u64,
        all: bool,
    },
    /// What the master was told reaches a replica.
    Replicated {
        server: usize,
        life: u64,
        channel: Channel,
        payload: Bytes,
    },
    Connect {
        node: usize,
        server: usize,
    },
    Lost {
        node: usize,
        server: usize,
        link: u64,
    },
    /// A node hears who is master.
    Told {
        node: usize,
        master: usize,
    },
    Tick {
        node: usize,
        life: u64,
    },
    Read {
        client: usize,
    },
    /// A person connects again.
    Resume {
        client: usize,
    },
    /// A node that leaves looks whether it may.
    Leave {
        node: usize,
        life: u64,
        until: u64,
    },
    Submit,
    Fault,
    Elect,
    Start {
        node: usize,
    },
    Revive {
        server: usize,
    },
}

/// What is to happen, and when: what was put in first is first, of two at one time.
#[derive(Debug, Default)]
struct Agenda {
    order: u64,
    times: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
}

impl Agenda {
    fn put(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.put_back(at, self.order, event);
    }

    /// The same for what has come, and must wait: it stays before what came later.
    fn put_back(&mut self, at: u64, order: u64, event: Event) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.times.push(Reverse((at, order, place)));
    }

    fn next(&mut self, end: u64) -> Option<(u64, u64, Event)> {
        self.times.peek().filter(|Reverse((at, ..))| *at <= end)?;
        let Reverse((at, order, place)) = self.times.pop()?;
        self.free.push(place);
        self.events[place].take().map(|event| (at, order, event))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Do(Command, u64),
    Subscribe(Vec<Channel>, bool),
    Unsubscribe(Channel),
}

#[derive(Debug, Default)]
struct Server {
    alive: bool,
    life: u64,
    hung_until: u64,
    hung_at: u64,
    lag: u64,
    replicated_until: u64,
    subscribers: HashMap<Channel, BTreeSet<(usize, u64)>>,
    /// Links that it has closed, or that a node's death has.
    closed: BTreeSet<u64>,
}

#[derive(Debug)]
struct Node {
    life: u64,
    alive: bool,
    paused_until: u64,
    tag: u64,
    transport: Transport<Asked>,
    registry: Arc<Registry>,
    links: [u64; SERVERS],
    synced_since: [Option<u64>; SERVERS],
    next_hello: u64,
    next_look: u64,
    next_follow: u64,
    leaving: bool,
}

#[derive(Debug)]
struct Client {
    id: Uuid,
    node: usize,
    outbox: Arc<Outbox>,
    registration: Option<Registration>,
    since: u64,
    slow: bool,
    /// Numbers of submissions, as shown.
    shown: Vec<usize>,
    /// How many had been shown when nobody vouched for its session last.
    anew_at: usize,
    /// It left, or its node died: what was acknowledged may have gone with it.
    gone: bool,
    person: Option<Person>,
}

/// A client whose session can be resumed.
#[derive(Debug)]
struct Person {
    attachment: Attachment,
    /// Counts its connections, from 1.
    connection: u32,
    /// It has a connection, to `Client::node`.
    connected: bool,
    /// It waits for the answer to a registration there.
    claiming: bool,
    /// Of its newest token.
    generation: u64,
    /// The highest number that it has.
    had: Position,
    /// What it has sent and heard no answer to, in order.
    unanswered: Vec<usize>,
}

/// A submission, and the connection of its sender that waits for the answer.
type Asked = (usize, u32);

#[derive(Debug)]
struct Submission {
    sender: usize,
    to: Uuid,
    receiver: Option<usize>,
    node: usize,
    life: u64,
    at: u64,
    outcome: Option<Outcome>,
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    planted: Planted,
    base: Instant,
    now: u64,
    agenda: Agenda,
    /// When the last thing on a link arrives, down and up: nothing overtakes on one.
    pipes: Vec<[u64; 2]>,
    servers: Vec<Server>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    submissions: Vec<Submission>,
    master: usize,
    calm: bool,
    copies: HashMap<(usize, Bytes), u64>,
    failure: Option<String>,
    faults: Faults,
    /// How often a person was told that messages may be missing.
    lost: usize,
    /// How often one was told that none is.
    resumed: usize,
    /// Why sessions moved.
    moves: Vec<MoveReason>,
    /// How long sessions had one copy alone.
    restored: Vec<Duration>,
    story: Option<Story>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faults {
    /// Anything, at any time.
    All,
    /// Nodes die, leave and hang, and connections break, one at a time.
    OneNode,
}

impl World {
    fn new(seed: u64, planted: Planted, faults: Faults) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let base = Instant::now();
        let nodes = (0..NODES).map(|_| Self::node(base, 0, random.u64(1..), &mut random)).collect();
        let mut world = Self {
            seed,
            random,
            planted,
            base,
            now: 0,
            agenda: Agenda::default(),
            pipes: vec![[0; 2]],
            servers: (0..SERVERS).map(|_| Server { alive: true, ..Server::default() }).collect(),
            nodes,
            clients: Vec::new(),
            submissions: Vec::new(),
            master: 0,
            calm: false,
            copies: HashMap::new(),
            failure: None,
            faults,
            lost: 0,
            resumed: 0,
            moves: Vec::new(),
            restored: Vec::new(),
            story: None,
        };
        for node in 0..NODES {
            world.begin(node);
        }
        for _ in 0..2 * NODES {
            world.join();
            world.join_person();
        }
        world
    }

    fn node(now: Instant, life: u64, tag: u64, random: &mut fastrand::Rng) -> Node {
        let registry = Arc::new(Registry::default());
        let transport = Transport::new(
            now,
            (tag, "node"),
            TIMES,
            &limits(),
            crate::outbox::tests::unbounded(),
            registry.clone(),
            random.fork(),
        );
        Node {
            life,
            alive: true,
            paused_until: 0,
            tag,
            transport,
            registry,
            links: [0; SERVERS],
            synced_since: [None; SERVERS],
            next_hello: 0,
            next_look: 0,
            next_follow: u64::MAX,
            leaving: false,
        }
    }

    fn begin(&mut self, node: usize) {
        let life = self.nodes[node].life;
        for server in 0..SERVERS {
            self.after(0, 20 * MS, Event::Connect { node, server });
        }
        self.after(0, MS, Event::Tick { node, life });
        let master = self.master;
        self.after(0, 50 * MS, Event::Told { node, master });
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    fn at(&mut self, at: u64, event: Event) {
        self.agenda.put(at, event);
    }

    fn after(&mut self, least: u64, most: u64, event: Event) {
        let at = self.now + self.random.u64(least..=most.max(least));
        self.at(at, event);
    }

    /// The same, but behind whatever else is on this pipe.
    fn pipe(&mut self, link: u64, up: bool, event: Event) {
        let slow = if self.random.u8(..20) == 0 { 20 * MS } else { MS };
        let at = (self.now + self.random.u64(50..=slow)).max(self.pipes[link as usize][usize::from(up)]);
        self.pipes[link as usize][usize::from(up)] = at;
        self.at(at, event);
    }

    fn fail(&mut self, text: String) {
        let seed = self.seed;
        let now = self.now / MS;
        self.failure.get_or_insert_with(|| format!("seed {seed}, at {now} ms: {text}"));
    }

    fn join(&mut self) {
        let node = self.random.usize(..NODES);
        if !self.nodes[node].alive || self.now < self.nodes[node].paused_until {
            return;
        }
        let id = Uuid::from_u128(self.random.u128(..));
        let outbox = Arc::new(Outbox::new(id, &limits(), &crate::outbox::tests::unbounded()));
        let registration = Some(self.nodes[node].registry.register(outbox.clone()));
        let slow = self.random.u8(..6) == 0;
        let since = self.now;
        let shown = Vec::new();
        self.clients.push(Client {
            id,
            node,
            outbox,
            registration,
            since,
            slow,
            shown,
            anew_at: 0,
            gone: false,
            person: None,
        });
        self.subscription_changed(node, Channel::Client(id));
        let client = self.clients.len() - 1;
        self.after(0, MS, Event::Read { client });
    }

    fn join_person(&mut self) {
        let node = self.random.usize(..NODES);
        if !self.nodes[node].alive || self.nodes[node].leaving || self.now < self.nodes[node].paused_until {
            return;
        }
        let id = Uuid::from_u128(self.random.u128(..));
        let outbox = Arc::new(Outbox::resumable(id, 0, &limits(), &crate::outbox::tests::unbounded()));
        let slow = self.random.u8(..6) == 0;
        let (since, shown) = (self.now, Vec::new());
        let person = Person {
            attachment: 0,
            connection: 0,
            connected: false,
            claiming: false,
            generation: 0,
            had: 0,
            unanswered: Vec::new(),
        };
        let person = Some(person);
        let registration = None;
        self.clients.push(Client {
            id,
            node,
            outbox: outbox.clone(),
            registration,
            since,
            slow,
            shown,
            anew_at: 0,
            gone: false,
            person,
        });
        let client = self.clients.len() - 1;
        self.begin_session(client, node, outbox);
        self.after(0, MS, Event::Read { client });
    }

    /// A session of which nobody has anything.
    fn begin_session(&mut self, client: usize, node: usize, outbox: Arc<Outbox>) {
        let id = self.clients[client].id;
        self.nodes[node].registry.keep(outbox.clone());
        self.subscription_changed(node, Channel::Client(id));
        self.subscription_changed(node, Channel::Claim(id));
        let mut actions = Actions::default();
        self.nodes[node].transport.opened(self.instant(), id, &mut actions);
        self.act(node, actions);
        self.attach(client, node, outbox, 0);
    }

    fn attach(&mut self, client: usize, node: usize, outbox: Arc<Outbox>, had: Position) {
        let now = self.instant();
        let number = client;
        let client = &mut self.clients[number];
        let Some(person) = &mut client.person else { return };
        let Some((attachment, _)) = outbox.attach(now, person.generation, had, false) else {
            // It has just gone elsewhere.
            person.claiming = false;
            return self.after(MS, 10 * MS, Event::Resume { client: number });
        };
        person.attachment = attachment;
        person.generation = outbox.generation();
        person.connection += 1;
        let connection = person.connection;
        (person.connected, person.claiming, person.had) = (true, false, had);
        (client.node, client.outbox) = (node, outbox);
        let id = client.id;
        self.tell_of(id, || format!("attached to node{node} for the {connection}. time, having {had}"));
        let Some(person) = &self.clients[number].person else { return };
        // What was not answered goes out again before anything newer.
        for number in person.unanswered.clone() {
            let life = self.nodes[node].life;
            let submission = &mut self.submissions[number];
            (submission.node, submission.life, submission.at) = (node, life, self.now);
            self.submit_one(number);
        }
    }

    /// The connection of a person breaks, or its node asks it to come again. `heard`: the node notices.
    fn disconnect(&mut self, client: usize, heard: bool) {
        let now = self.instant();
        let Client { outbox, person: Some(person), .. } = &mut self.clients[client] else { return };
        if !std::mem::take(&mut person.connected) {
            return;
        }
        if heard {
            outbox.detach(now, person.attachment);
        }
        let id = outbox.client();
        self.tell_of(id, || format!("disconnected, heard: {heard}"));
        self.after(MS, 400 * MS, Event::Resume { client });
    }

    fn resume(&mut self, client: usize) {
        let Client { id, person: Some(person), .. } = &self.clients[client] else { return };
        let (id, generation, had) = (*id, person.generation, person.had);
        if person.connected || person.claiming {
            return;
        }
        let now = self.now;
        let takes = |node: &usize| {
            let node = &self.nodes[*node];
            node.alive && !node.leaving && node.paused_until <= now
        };
        let able: Vec<usize> = (0..NODES).filter(takes).collect();
        let Some(node) = self.random.choice(&able).copied() else {
            return self.after(50 * MS, 100 * MS, Event::Resume { client });
        };
        let mut actions = Actions::default();
        let here = self.nodes[node].transport.resume(self.instant(), id, generation, &mut actions);
        self.act(node, actions);
        match here {
            Some(Resumption::Here(outbox)) => {
                self.resumed += 1;
                return self.attach(client, node, outbox, had);
            }
            Some(_) => return self.fail(format!("{client}: its newest token was refused")),
            None => {}
        }
        let client_of_id = &mut self.clients[client];
        client_of_id.node = node;
        if let Some(person) = &mut client_of_id.person {
            person.claiming = true;
        }
        let mut actions = Actions::default();
        self.nodes[node].transport.claim(self.instant(), id, generation, &mut actions);
        self.act(node, actions);
    }

    /// A claim of `node` has come to an end.
    fn claim_ended(&mut self, node: usize, id: Uuid, resumption: Resumption) {
        let wanted = |client: &Client| {
            client.id == id && client.node == node && client.person.as_ref().is_some_and(|p| p.claiming)
        };
        let Some(client) = self.clients.iter().position(wanted) else { return };
        self.tell_of(id, || format!("the claim of node{node} ends: {}", story::named(&resumption)));
        let had = self.clients[client].person.as_ref().map_or(0, |person| person.had);
        match resumption {
            Resumption::Here(outbox) => {
                self.resumed += 1;
                self.attach(client, node, outbox, had);
            }
            Resumption::Refused => self.fail(format!("{client}: its newest token was refused")),
            Resumption::Unsure => {
                if let Some(person) = &mut self.clients[client].person {
                    person.claiming = false;
                }
                self.after(MS, 250 * MS, Event::Resume { client });
            }
            Resumption::Lost => {
                self.lost += 1;
                // What was acknowledged before may be missing.
                self.clients[client].since = self.now;
                self.clients[client].anew_at = self.clients[client].shown.len();
                let generation = self.clients[client].person.as_ref().map_or(0, |person| person.generation);
                let now = self.instant();
                let outbox = Arc::new(Outbox::anew(now, id, generation, &limits(), &crate::outbox::tests::unbounded()));
                self.begin_session(client, node, outbox);
            }
        }
    }

    fn leave(&mut self, client: usize) {
        let (node, id) = (self.clients[client].node, self.clients[client].id);
        self.show(client, usize::MAX);
        if let Some(person) = &self.clients[client].person {
            if !person.connected || !self.nodes[node].alive {
                return;
            }
            let outbox = self.clients[client].outbox.clone();
            outbox.detach(self.instant(), person.attachment);
            if outbox.is_moving() {
                return self.after(MS, 400 * MS, Event::Resume { client });
            }
            self.clients[client].person = None;
            outbox.discard();
            self.nodes[node].registry.remove(&outbox);
            self.subscription_changed(node, Channel::Claim(id));
            let mut actions = Actions::default();
            self.nodes[node].transport.ended(self.instant(), &outbox, &mut actions);
            self.act(node, actions);
        }
        let client = &mut self.clients[client];
        client.gone = true;
        client.outbox.close(CloseOrder::Stop);
        client.outbox.discard();
        client.registration = None;
        self.subscription_changed(node, Channel::Client(id));
    }

    fn subscription_changed(&mut self, node: usize, channel: Channel) {
        let wanted = self.nodes[node].registry.wants(channel);
        for server in 0..SERVERS {
            let link = self.nodes[node].links[server];
            if link != 0 {
                let op = if wanted { Op::Subscribe(vec![channel], false) } else { Op::Unsubscribe(channel) };
                self.pipe(link, true, Event::Arrive { node, server, link, commands: vec![op] });
            }
        }
    }

    fn show(&mut self, client: usize, most: usize) {
        if self.planted == Planted::ShownBeforeCopied
            && let Some((_, term)) = self.clients[client].outbox.standby()
        {
            self.clients[client].outbox.confirm(term, Position::MAX);
        }
        let attachment = match &self.clients[client].person {
            None => 0,
            Some(person) if person.connected => person.attachment,
            Some(_) => return,
        };
        let batch = self.clients[client].outbox.take(attachment, most);
        for (delivery, at) in batch.deliveries.into_iter().zip(0..) {
            if let (Some(first), Some(person)) = (batch.first, &mut self.clients[client].person) {
                if first + at <= person.had {
                    continue;
                }
                if first + at != person.had + 1 {
                    let (had, seq) = (person.had, first + at);
                    self.fail(format!("{client}: {seq} came after {had}"));
                    return;
                }
                person.had = first + at;
            }
            let number = delivery.id.as_u128() as u32 as usize;
            // With what a session had taken, the memory is gone of what may be asked for again, or is on its way still.
            let was_before = self.submissions[number].at < self.clients[client].since;
            let from = if delivery.may_come_again() || was_before { self.clients[client].anew_at } else { 0 };
            if self.clients[client].shown[from..].contains(&number) {
                self.fail(format!("{number} was shown twice"));
            }
            self.clients[client].shown.push(number);
            self.tell_of(self.clients[client].id, || {
                format!("is shown {number}, number {:?}", batch.first.map(|first| first + at))
            });
        }
        if self.clients[client].person.is_some() {
            if batch.close.is_some() {
                self.disconnect(client, true);
            } else if self.random.bool() {
                let now = self.instant();
                let Client { outbox, person: Some(person), .. } = &self.clients[client] else { return };
                outbox.prove(person.attachment);
                outbox.had(now, person.attachment, person.had);
            }
        }
    }

    fn act(&mut self, node: usize, actions: Actions<Duty<Asked>>) {
        let mut all = vec![actions];
        while let Some(mut actions) = all.pop() {
            self.moves.append(&mut actions.figures.moves);
            self.restored.append(&mut actions.figures.restored);
            for channel in actions.changed.drain(..) {
                self.subscription_changed(node, channel);
            }
            for (id, resumption) in actions.claims.drain(..) {
                self.claim_ended(node, id, resumption);
            }
            let wake: Vec<usize> = actions.links().collect();
            let mut more = Actions::default();
            for (duty, outcome) in actions.decided {
                if let Some(number) = self.nodes[node].transport.decided(self.instant(), duty, outcome, &mut more) {
                    self.decided(number, outcome);
                }
                if !more.is_empty() {
                    all.push(std::mem::take(&mut more));
                }
            }
            if !more.is_empty() {
                all.push(more);
            }
            for server in wake {
                self.send(node, server);
            }
        }
    }

    /// Has the link send what it may.
    fn send(&mut self, node: usize, server: usize) {
        let link = self.nodes[node].links[server];
        let batch = self.nodes[node].transport.sender().next_batch(self.instant(), server);
        if batch.is_empty() {
            return;
        }
        let tag = self.nodes[node].tag;
        let commands = batch.into_iter().map(|command| Op::Do(command, tag)).collect();
        self.pipe(link, true, Event::Arrive { node, server, link, commands });
    }

    fn decided(&mut self, (number, connection): Asked, outcome: Outcome) {
        if let Some(person) = &mut self.clients[self.submissions[number].sender].person {
            if person.connection != connection || !person.connected {
                return; // Nobody hears it; the person asks again.
            }
            person.unanswered.retain(|waiting| *waiting != number);
        } else if connection > 0 {
            return; // It has left.
        }
        self.tell_of(self.submissions[number].to, || format!("{number} is decided: {outcome:?}"));
        if self.submissions[number].outcome.replace(outcome).is_some() {
            self.fail(format!("{number} was decided twice"));
        }
        let Submission { receiver, at, node: from, .. } = self.submissions[number];
        let paused = self.nodes[from].paused_until;
        if self.now > at.max(paused) + 2 * SECOND + 100 * MS {
            self.fail(format!("{number} was decided late"));
        }
        let Some(client) = receiver.map(|receiver| &self.clients[receiver]) else { return };
        if client.person.is_some() {
            // Wherever the session is, it is somewhere.
            let there = self.faults == Faults::OneNode && client.since + SECOND <= at;
            if outcome == Outcome::NotConnected && there {
                self.fail(format!("{number}: its receiver can be resumed, and was declared absent"));
            }
            return;
        }
        let to = client.node;
        // Both have been subscribed on one server that answered, for all the time and some before.
        let meet = |server: usize| {
            let since = |node: usize| self.nodes[node].synced_since[server].is_some_and(|since| since + SECOND <= at);
            let well = self.servers[server].alive && self.servers[server].hung_at + 5 * SECOND < at.max(5 * SECOND + 1);
            since(from) && since(to) && well
        };
        let there = !client.gone && client.since + SECOND <= at && (0..SERVERS).any(meet);
        if outcome == Outcome::NotConnected && there && self.nodes[to].paused_until + SECOND < at {
            self.fail(format!("{number}: its receiver is there, and was declared absent"));
        }
    }

    /// The connection ends; both sides notice, the node a little later.
    fn cut(&mut self, node: usize, server: usize) {
        self.tell(|| format!("cut: node{node} and server{server}"));
        let link = self.nodes[node].links[server];
        if link != 0 {
            self.servers[server].closed.insert(link);
            self.servers[server].subscribers.values_mut().for_each(|set| _ = set.remove(&(node, link)));
            self.after(0, 30 * MS, Event::Lost { node, server, link });
        }
    }

    fn publish(&mut self, server: usize, channel: Channel, payload: &Bytes) -> u64 {
        let subscribers: Vec<_> =
            self.servers[server].subscribers.get(&channel).into_iter().flatten().copied().collect();
        self.tell_published(server, channel, payload, subscribers.len());
        for (node, link) in &subscribers {
            let mut payload = payload.clone();
            if self.planted == Planted::CopyShown && matches!(channel, Channel::Client(_)) {
                let times = self.copies.entry((*node, payload.slice(16..24))).or_default();
                *times += 1;
                if *times > 1 {
                    let mut other = payload.to_vec();
                    other[17] = u8::try_from(*times).unwrap_or(u8::MAX);
                    payload = other.into();
                }
            }
            let (node, link) = (*node, *link);
            self.pipe(link, false, Event::Push { node, server, link, channel, payload });
        }
        if server == self.master {
            for replica in (0..SERVERS).filter(|replica| *replica != server) {
                let Server { alive, life, lag, .. } = self.servers[replica];
                if alive {
                    // In order: a replica has one link to its master.
                    let at = (self.now + 10 + lag).max(self.servers[replica].replicated_until);
                    self.servers[replica].replicated_until = at;
                    self.at(at, Event::Replicated { server: replica, life, channel, payload: payload.clone() });
                }
            }
        }
        subscribers.len() as u64
    }

    fn execute(&mut self, node: usize, server: usize, link: u64, commands: Vec<Op>) {
        let mut answers = Vec::new();
        let mut numbers = Vec::new();
        for op in commands {
            match op {
                Op::Subscribe(channels, all) => {
                    for channel in channels {
                        self.servers[server].subscribers.entry(channel).or_default().insert((node, link));
                    }
                    self.pipe(link, false, Event::Confirmed { node, server, link, all });
                }
                Op::Unsubscribe(channel) => {
                    if let Some(set) = self.servers[server].subscribers.get_mut(&channel) {
                        set.remove(&(node, link));
                    }
                }
                Op::Do(Command::Message(channel, mut place, body), tag) => {
                    numbers.push(Some(place.number));
                    if self.planted == Planted::ForgottenPredecessor {
                        place.previous = 0;
                    }
                    let payload = Bytes::from([&head(tag, place)[..], &body].concat());
                    answers.push(Answer::Receivers(self.publish(server, channel, &payload)));
                }
                Op::Do(Command::Control(channel, bytes), _) => {
                    numbers.push(None);
                    if self.planted == Planted::NobodyYields && matches!(decode(&bytes), Ok(Frame::Held(..))) {
                        answers.push(Answer::Receivers(1));
                        continue;
                    }
                    answers.push(Answer::Receivers(self.publish(server, channel, &bytes)));
                }
                Op::Do(Command::Count(channels), _) => {
                    numbers.push(None);
                    let count =
                        |channel| self.servers[server].subscribers.get(channel).map_or(0, |set| set.len() as u64);
                    answers.push(Answer::Counts(channels.iter().map(count).collect()));
                }
            }
        }
        if !answers.is_empty() {
            self.pipe(link, false, Event::Answers { node, server, link, answers, numbers });
        }
    }

    fn handle(&mut self, order: u64, event: Event) {
        let now = self.instant();
        let node = match &event {
            Event::Answers { node, .. } | Event::Push { node, .. } | Event::Confirmed { node, .. } => Some(*node),
            Event::Connect { node, .. }
            | Event::Lost { node, .. }
            | Event::Told { node, .. }
            | Event::Tick { node, .. } => Some(*node),
            Event::Read { client } => Some(self.clients[*client].node),
            _ => None,
        };
        if let Some(node) = node.map(|node| &self.nodes[node]).filter(|node| node.paused_until > self.now) {
            return self.agenda.put_back(node.paused_until, order, event);
        }
        let mut actions = Actions::default();
        match event {
            Event::Arrive { node, server, link, commands } => {
                let Server { alive, hung_until, .. } = self.servers[server];
                if hung_until > self.now {
                    self.agenda.put_back(hung_until, order, Event::Arrive { node, server, link, commands });
                } else if alive
                    && self.nodes[node].links[server] == link
                    && !self.servers[server].closed.contains(&link)
                {
                    self.execute(node, server, link, commands);
                } else if alive && self.random.bool() {
                    // The connection is gone, but what it carried was read before.
                    for op in commands {
                        if let Op::Do(Command::Message(channel, place, body), tag) = op {
                            let payload = Bytes::from([&head(tag, place)[..], &body].concat());
                            self.publish(server, channel, &payload);
                        }
                    }
                }
            }
            Event::Answers { node, server, link, answers, numbers } => {
                if self.nodes[node].links[server] == link {
                    if self.planted == Planted::AckOnCount {
                        let counted = numbers.iter().zip(&answers).filter_map(|(number, answer)| match answer {
                            Answer::Receivers(1..) => Some(((*number)?, Decision::Taken)),
                            _ => None,
                        });
                        let counted: Vec<_> = counted.collect();
                        self.nodes[node].transport.sender().receipts(now, &counted, &mut actions);
                    }
                    self.nodes[node].transport.sender().answered(now, server, answers, &mut actions);
                    self.act(node, actions);
                    self.send(node, server);
                }
            }
            Event::Push { node, server, link, channel, payload } => {
                if self.nodes[node].links[server] == link {
                    self.tell_heard(node, channel, &payload);
                    let transport = &self.nodes[node].transport;
                    let mut gathered = Gathered::default();
                    transport.arrived(now, channel.name().as_bytes(), &payload, &mut gathered, &mut actions);
                    transport.send_receipts(now, &mut gathered, &mut actions);
                    self.act(node, actions);
                }
            }
            Event::Confirmed { node, server, link, all } => {
                if all && self.nodes[node].links[server] == link {
                    self.tell(|| format!("node{node} is synced with server{server}"));
                    self.nodes[node].synced_since[server] = Some(self.now);
                    self.nodes[node].transport.link_synced(now, server, &mut actions);
                    self.act(node, actions);
                }
            }
            Event::Replicated { server, life, channel, payload } => {
                if self.servers[server].alive && self.servers[server].life == life {
                    let until = self.servers[server].hung_until;
                    if until > self.now {
                        self.agenda.put_back(until, order, Event::Replicated { server, life, channel, payload });
                    } else {
                        self.publish(server, channel, &payload);
                    }
                }
            }
            Event::Connect { node, server } => {
                if !self.nodes[node].alive || self.nodes[node].links[server] != 0 {
                    return;
                }
                if !self.servers[server].alive || self.servers[server].hung_until > self.now {
                    return self.after(10 * MS, 200 * MS, Event::Connect { node, server });
                }
                let link = self.pipes.len() as u64;
                self.pipes.push([0; 2]);
                self.nodes[node].links[server] = link;
                self.nodes[node].transport.sender().link_up(now, server, &mut actions);
                self.act(node, actions);
                let mut clients = self.nodes[node].registry.channels();
                clients.sort_unstable(); // The registry's own order is another in each run.
                let own = self.nodes[node].transport.own_channels().to_vec();
                for op in [Op::Subscribe(clients, false), Op::Subscribe(own, true)] {
                    self.pipe(link, true, Event::Arrive { node, server, link, commands: vec![op] });
                }
            }
            Event::Lost { node, server, link } => {
                if self.nodes[node].links[server] == link && link != 0 {
                    self.tell(|| format!("node{node} has lost server{server}"));
                    self.nodes[node].links[server] = 0;
                    self.nodes[node].synced_since[server] = None;
                    self.servers[server].subscribers.values_mut().for_each(|set| _ = set.remove(&(node, link)));
                    self.nodes[node].transport.sender().link_lost(now, server, &mut actions);
                    self.act(node, actions);
                    self.after(0, 100 * MS, Event::Connect { node, server });
                }
            }
            Event::Told { node, master } => {
                let up = self.nodes[node].links[master] != 0;
                self.tell(|| format!("node{node} is told of server{master}"));
                self.nodes[node].transport.sender().set_master(now, Some(master), &mut actions);
                self.act(node, actions);
                if !up {
                    self.after(50 * MS, 100 * MS, Event::Told { node, master: self.master });
                }
            }
            Event::Tick { node, life } => {
                if !self.nodes[node].alive || self.nodes[node].life != life {
                    return;
                }
                self.nodes[node].transport.sender().tick(now, &mut actions);
                if self.now >= self.nodes[node].next_hello {
                    self.nodes[node].next_hello = self.now + u64::try_from(HELLO_EVERY.as_micros()).unwrap();
                    self.nodes[node].transport.beat(now, &mut actions);
                }
                if self.now >= self.nodes[node].next_look {
                    self.nodes[node].next_look = self.now + 100 * MS;
                    self.nodes[node].next_follow = self.now + 20 * MS;
                    self.nodes[node].transport.look_after_homes(now, &mut actions);
                }
                if self.now >= self.nodes[node].next_follow {
                    self.nodes[node].next_follow = u64::MAX;
                    self.nodes[node].transport.follow_look(now, &mut actions);
                }
                self.act(node, actions);
                for server in 0..SERVERS {
                    self.send(node, server); // What has gathered.
                    // A heartbeat's deadline: a server that hangs is given up after a second.
                    let Server { hung_until, hung_at, .. } = self.servers[server];
                    if hung_until > self.now && self.now > hung_at + SECOND && self.nodes[node].links[server] != 0 {
                        self.cut(node, server);
                    }
                }
                self.after(5 * MS, 20 * MS, Event::Tick { node, life });
            }
            Event::Read { client } => {
                if !self.clients[client].gone {
                    self.show(client, 16);
                    let most = if self.clients[client].slow && !self.calm { 600 * MS } else { 12 * MS };
                    self.after(4 * MS, most, Event::Read { client });
                }
            }
            Event::Resume { client } => self.resume(client),
            Event::Leave { node, life, until } => self.try_to_leave(node, life, until),
            Event::Submit => self.submit(),
            Event::Fault => self.fault(),
            Event::Elect => {
                let living: Vec<_> = (0..SERVERS).filter(|server| self.servers[*server].alive).collect();
                if let Some(master) = self.random.choice(&living).copied() {
                    self.master = master;
                    self.tell(|| format!("server{master} is master"));
                    for node in 0..NODES {
                        self.after(0, SECOND, Event::Told { node, master });
                    }
                }
            }
            Event::Start { node } => {
                let (life, tag) = (self.nodes[node].life + 1, self.random.u64(1..));
                self.nodes[node] = Self::node(now, life, tag, &mut self.random);
                self.begin(node);
            }
            Event::Revive { server } => {
                self.servers[server].alive = true;
                self.servers[server].life += 1;
                self.servers[server].replicated_until = 0;
            }
        }
    }

    fn submit(&mut self) {
        let living: Vec<usize> = (0..self.clients.len()).filter(|client| !self.clients[*client].gone).collect();
        let can_send = |client: &&usize| self.clients[**client].person.as_ref().is_none_or(|person| person.connected);
        let senders: Vec<usize> = living.iter().filter(can_send).copied().collect();
        let Some(sender) = self.random.choice(&senders).copied() else { return };
        let node = self.clients[sender].node;
        if self.nodes[node].paused_until > self.now || !self.nodes[node].alive {
            return;
        }
        let absent = self.random.u8(..10) == 0;
        let receiver = if absent { None } else { self.random.choice(&living).copied() };
        let to = receiver.map_or(Uuid::from_u128(self.random.u128(..)), |receiver| self.clients[receiver].id);
        // Often a few at once, so that lanes have something under way together.
        for _ in 0..self.random.usize(1..=6) {
            let number = self.submissions.len();
            let life = self.nodes[node].life;
            self.submissions.push(Submission { sender, to, receiver, node, life, at: self.now, outcome: None });
            if let Some(person) = &mut self.clients[sender].person {
                person.unanswered.push(number);
            }
            self.submit_one(number);
        }
    }

    fn submit_one(&mut self, number: usize) {
        let Submission { sender, to, node, .. } = self.submissions[number];
        let (from, person) = (self.clients[sender].id, &self.clients[sender].person);
        let mut id = Uuid::from_u128(number as u128);
        if person.is_some() {
            id = uuid::Builder::from_custom_bytes(id.into_bytes()).into_uuid();
        }
        let asked = (number, person.as_ref().map_or(0, |person| person.connection));
        self.tell_of(to, || format!("{number} is sent by {sender} on node{node}"));
        let bytes = body(id, from, b"x");
        let mut actions = Actions::default();
        self.nodes[node].transport.sender().submit(
            self.instant(),
            from,
            Channel::Client(to),
            bytes,
            Duty::Send(asked),
            &mut actions,
        );
        self.act(node, actions);
    }

    fn fault(&mut self) {
        let (node, server) = (self.random.usize(..NODES), self.random.usize(..SERVERS));
        let which = match self.faults {
            Faults::All => self.random.u8(..21),
            Faults::OneNode => *self.random.choice(&[5, 13, 13, 16, 18]).unwrap_or(&13),
        };
        match which {
            0..=4 => self.cut(node, server),
            5 | 6 => {
                // Long enough for its subscriptions to be dropped, sometimes.
                let now = self.now;
                let most = if self.faults == Faults::All { 900 * MS } else { 2 * SECOND };
                let pause = self.random.u64(50 * MS..most);
                self.nodes[node].paused_until = self.nodes[node].paused_until.max(now + pause);
                self.tell(|| format!("node{node} stands still for {} ms", pause / MS));
                if pause > 300 * MS {
                    // Some clients notice by silence.
                    for client in 0..self.clients.len() {
                        if self.clients[client].node == node && self.random.bool() {
                            self.disconnect(client, false);
                        }
                    }
                }
                if self.random.bool() {
                    (0..SERVERS).for_each(|server| self.cut(node, server));
                }
            }
            7 | 8 if self.servers[server].alive && self.servers.iter().filter(|server| server.alive).count() > 1 => {
                self.tell(|| format!("server{server} dies"));
                self.servers[server].alive = false;
                (0..NODES).for_each(|node| self.cut(node, server));
                self.servers[server].subscribers.clear();
                self.after(200 * MS, 3 * SECOND, Event::Revive { server });
                if server == self.master {
                    self.after(300 * MS, 1500 * MS, Event::Elect);
                }
            }
            9 => {
                self.servers[server].hung_at = self.now;
                let until = self.now + self.random.u64(50 * MS..1500 * MS);
                self.tell(|| format!("server{server} hangs until {} ms", until / MS));
                self.servers[server].hung_until = self.servers[server].hung_until.max(until);
            }
            10 | 11 => {
                self.servers[server].lag = if self.random.bool() { self.random.u64(0..8 * SECOND) } else { 0 };
                self.tell(|| format!("server{server} lags by {} ms", self.servers[server].lag / MS));
            }
            12 => self.after(0, MS, Event::Elect),
            13 => self.kill(node),
            14 => self.join(),
            15 => self.join_person(),
            16 | 17 => self.drop_persons(),
            18 => self.leave_node(node),
            _ => {
                let living: Vec<usize> = (0..self.clients.len()).filter(|client| !self.clients[*client].gone).collect();
                if living.len() > NODES {
                    let client = self.random.choice(&living).copied().unwrap_or(0);
                    if self.nodes[self.clients[client].node].paused_until <= self.now {
                        self.leave(client);
                    }
                }
            }
        }
    }

    /// The node dies.
    fn kill(&mut self, node: usize) {
        if !self.nodes[node].alive || self.nodes.iter().filter(|node| node.alive).count() == 1 {
            return;
        }
        self.tell(|| format!("node{node} dies"));
        self.nodes[node].alive = false;
        for server in 0..SERVERS {
            let link = std::mem::take(&mut self.nodes[node].links[server]);
            self.servers[server].subscribers.values_mut().for_each(|set| _ = set.remove(&(node, link)));
            self.nodes[node].synced_since[server] = None;
        }
        for client in 0..self.clients.len() {
            if self.clients[client].node != node {
                continue;
            }
            match &mut self.clients[client].person {
                None => {
                    self.clients[client].gone = true;
                    self.clients[client].registration = None;
                }
                Some(person) => {
                    person.connected = false;
                    person.claiming = false;
                    self.after(MS, 400 * MS, Event::Resume { client });
                }
            }
        }
        self.after(100 * MS, 2 * SECOND, Event::Start { node });
    }

    /// Connections of persons break.
    fn drop_persons(&mut self) {
        for client in 0..self.clients.len() {
            if self.random.u8(..3) == 0 {
                let heard = self.random.bool();
                self.disconnect(client, heard);
            }
        }
    }

    /// The node is asked to leave.
    fn leave_node(&mut self, node: usize) {
        let others =
            (0..NODES).filter(|other| *other != node && self.nodes[*other].alive && !self.nodes[*other].leaving);
        if !self.nodes[node].alive || self.nodes[node].leaving || others.count() == 0 {
            return;
        }
        self.nodes[node].leaving = true;
        let mut actions = Actions::default();
        self.nodes[node].transport.leave(&mut actions);
        self.act(node, actions);
        let (life, until) = (self.nodes[node].life, self.now + 4 * SECOND);
        self.after(300 * MS, 500 * MS, Event::Leave { node, life, until });
    }

    fn try_to_leave(&mut self, node: usize, life: u64, until: u64) {
        if !self.nodes[node].alive || self.nodes[node].life != life {
            return;
        }
        for client in 0..self.clients.len() {
            if self.clients[client].node == node && self.clients[client].person.is_none() && !self.clients[client].gone
            {
                self.leave(client);
            }
        }
        let mut clients = self.nodes[node].registry.clients();
        clients.sort_unstable();
        for id in clients {
            let mut actions = Actions::default();
            self.nodes[node].transport.move_away(self.instant(), id, &mut actions);
            self.act(node, actions);
        }
        let (copies, moves) = self.nodes[node].transport.kept();
        let idle = self.nodes[node].registry.is_empty();
        if (copies + moves > 0 || !idle) && self.now < until {
            return self.after(20 * MS, 50 * MS, Event::Leave { node, life, until });
        }
        let mut actions = Actions::default();
        self.nodes[node].transport.bye(&mut actions);
        self.act(node, actions);
        self.kill(node);
    }

    fn run_until(&mut self, end: u64) {
        while self.failure.is_none() {
            let Some((at, order, event)) = self.agenda.next(end) else { break };
            self.now = self.now.max(at);
            self.handle(order, event);
            self.tell_changes();
        }
        self.now = self.now.max(end);
    }

    fn run(mut self) -> Result<usize, String> {
        self.play();
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self.submissions.iter().filter(|s| s.outcome == Some(Outcome::Handed)).count()),
        }
    }

    fn play(&mut self) {
        self.run_until(SECOND);
        for _ in 0..60 {
            self.after(0, 6 * SECOND, Event::Submit);
        }
        match self.faults {
            Faults::All => (0..30).for_each(|_| self.after(0, 6 * SECOND, Event::Fault)),
            // The copies are two again before the next.
            Faults::OneNode => self.after(SECOND, SECOND, Event::Fault),
        }
        self.run_until(7 * SECOND);
        // Everything is mended; what waits is decided, and everybody can be reached.
        self.calm = true;
        for server in 0..SERVERS {
            self.servers[server].lag = 0;
        }
        self.run_until(15 * SECOND);
        let master = self.master;
        if !self.servers[master].alive {
            self.after(0, 0, Event::Elect);
        }
        self.run_until(20 * SECOND);
        for _ in 0..NODES {
            self.join();
        }
        self.run_until(22 * SECOND);
        let before = self.submissions.len();
        for _ in 0..10 {
            self.after(0, 500 * MS, Event::Submit);
        }
        self.run_until(26 * SECOND);
        self.judge(before);
    }

    fn judge(&mut self, well_since: usize) {
        for client in 0..self.clients.len() {
            if !self.clients[client].gone {
                self.show(client, usize::MAX);
            }
            if self.clients[client].person.as_ref().is_some_and(|person| !person.connected) {
                self.fail(format!("person {client} never came back"));
            }
        }
        for node in 0..NODES {
            let (others, longest) = self.nodes[node].transport.safety(self.instant());
            if self.nodes[node].alive && others > 0 && longest > Duration::from_secs(2) {
                self.fail(format!("on node {node} a session has waited for its second copy for {longest:?}"));
            }
        }
        let mut last: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut problems = Vec::new();
        let places: Vec<HashMap<usize, usize>> = self
            .clients
            .iter()
            .map(|client| client.shown.iter().enumerate().map(|(place, number)| (*number, place)).collect())
            .collect();
        for (number, submission) in self.submissions.iter().enumerate() {
            let lives = self.nodes[submission.node].alive && self.nodes[submission.node].life == submission.life;
            let sender = &self.clients[submission.sender];
            let lives = (lives || sender.person.is_some()) && !sender.gone;
            let Some(outcome) = submission.outcome else {
                if lives {
                    problems.push(format!("{number} was never decided"));
                }
                continue;
            };
            let Some(receiver) = submission.receiver else {
                if outcome == Outcome::Handed {
                    problems.push(format!("{number} was acknowledged for nobody"));
                }
                continue;
            };
            let place = places[receiver].get(&number).filter(|place| **place >= self.clients[receiver].anew_at);
            if outcome == Outcome::Handed {
                // A person was told since when messages may be missing.
                let excused = self.clients[receiver].gone
                    || self.clients[receiver].person.is_some() && submission.at < self.clients[receiver].since;
                match place {
                    None if !excused => {
                        problems.push(format!("{number} was acknowledged, and is lost"));
                    }
                    // What was on its way when its receiver was told may come behind what was sent since.
                    Some(place) if !excused => {
                        let key = (submission.sender, receiver);
                        if last.insert(key, *place).is_some_and(|before| before > *place) {
                            problems.push(format!("{number} is out of order"));
                        }
                    }
                    _ => {}
                }
            } else if number >= well_since && !self.clients[receiver].gone && outcome != Outcome::Busy {
                problems.push(format!("{number}: all is well, and yet {outcome:?}"));
            }
        }
        if let Some(problem) = problems.into_iter().next() {
            self.fail(problem);
        }
    }
}

fn limits() -> Limits {
    Limits { resume_window: Duration::from_secs(30), ..Limits::small(16, 4096) }
}

/// Worlds that run with the tests: about a minute of them. More are `TEXTO_SEEDS`.
const USUAL: u64 = 1000;
/// The same, of those with one fault at a time; everything must have happened in them.
const SINGLE: u64 = 300;

/// Which worlds there are; `usual`, unless somebody wants more.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let wish = |name: &str| std::env::var(name).ok();
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{text} is no number of a seed"));
    match (wish("TEXTO_SEED"), wish("TEXTO_SEEDS")) {
        (Some(seed), _) => number(&seed)..number(&seed) + 1,
        (None, Some(seeds)) => match seeds.split_once("..") {
            Some((first, end)) => number(first)..number(end),
            None => 0..number(&seeds),
        },
        (None, None) => 0..usual,
    }
}

#[test]
fn every_promise_is_kept_whatever_happens() {
    let (mut handed, mut failures) = (0, Vec::new());
    story::tell_wanted(|| World::new(seeds(USUAL).start, Planted::Nothing, Faults::All));
    for seed in seeds(USUAL) {
        match World::new(seed, Planted::Nothing, Faults::All).run() {
            Ok(count) => handed += count,
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(handed > 0);
    println!("{} seeds, {handed} messages acknowledged", seeds(USUAL).count());
}

#[test]
fn a_session_outlives_each_single_fault_of_a_node() {
    let (mut resumed, mut moves, mut restored) = (0, Vec::new(), Vec::new());
    for seed in seeds(SINGLE) {
        let mut world = World::new(seed, Planted::Nothing, Faults::OneNode);
        world.play();
        if let Some(failure) = world.failure {
            panic!("{failure}");
        }
        assert_eq!(world.lost, 0, "seed {seed}: a person was told that messages may be missing");
        resumed += world.resumed;
        moves.append(&mut world.moves);
        restored.append(&mut world.restored);
    }
    assert!(resumed > 0);
    if seeds(SINGLE).count() < SINGLE as usize {
        return; // Not everything happens in each world.
    }
    for reason in MoveReason::ALL {
        assert!(moves.contains(&reason), "no session was ever {reason:?}");
    }
    restored.sort_unstable();
    let [half, most, all] = [50, 99, 100].map(|part| restored[(restored.len() - 1) * part / 100]);
    println!("two copies again: half of {} within {half:?}, 99 % within {most:?}, all within {all:?}", restored.len());
    // Until others notice that a node is gone, though it looks connected.
    assert!(all < Duration::from_secs(8), "{all:?}");
}

#[test]
fn planted_faults_are_found() {
    for planted in [
        Planted::AckOnCount,
        Planted::ForgottenPredecessor,
        Planted::CopyShown,
        Planted::NobodyYields,
        Planted::ShownBeforeCopied,
    ] {
        let found = (0..1000)
            .find_map(|seed| World::new(seed, planted, Faults::All).run().err().map(|failure| (seed, failure)));
        let (_, failure) = found.unwrap_or_else(|| panic!("{planted:?} is not found within a thousand seeds"));
        println!("{planted:?}: {failure}");
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in 0..20 {
        assert_eq!(
            World::new(seed, Planted::Nothing, Faults::All).run(),
            World::new(seed, Planted::Nothing, Faults::All).run()
        );
    }
}

/// A node that was the only one stands still, meanwhile others come, and persons come to them; then it goes on.
#[test]
fn the_only_node_that_stood_still_acknowledges_nothing_for_whom_others_have_begun_anew() {
    let mut anew = 0;
    for seed in seeds(60) {
        let mut world = World::new(seed, Planted::Nothing, Faults::All);
        world.run_until(3 * SECOND);
        world.kill(1);
        world.kill(2);
        world.run_until(3300 * MS);
        let wakes = world.now + 900 * MS;
        world.nodes[0].paused_until = wakes;
        (0..SERVERS).for_each(|server| world.cut(0, server));
        (0..world.clients.len()).for_each(|client| world.disconnect(client, false));
        for _ in 0..60 {
            let at = wakes + world.random.u64(0..600 * MS);
            world.at(at, Event::Submit);
        }
        // Whoever has begun a session anew may stand still as well.
        world.run_until(wakes - 50 * MS);
        for node in 1..NODES {
            if world.random.bool() {
                world.nodes[node].paused_until = wakes + world.random.u64(0..500 * MS);
            }
        }
        world.run_until(10 * SECOND);
        let before = world.submissions.len();
        world.run_until(20 * SECOND);
        world.judge(before);
        assert_eq!(world.failure, None);
        anew += world.lost;
    }
    assert!(anew > 0, "nobody has begun a session anew");
}

/// A node stands still, and loses all of its links when it goes on; who wrote to it meanwhile is answered soon after.
#[test]
fn what_was_written_to_a_node_that_stood_still_is_not_left_to_its_deadline() {
    for seed in seeds(500).step_by(5) {
        let mut world = World::new(seed, Planted::Nothing, Faults::All);
        world.run_until(4 * SECOND);
        for _ in 0..3 * NODES {
            world.join();
        }
        world.run_until(6 * SECOND);
        for _ in 0..250 {
            world.after(0, 3 * SECOND, Event::Submit);
        }
        world.run_until(7 * SECOND);
        let node = world.random.usize(..NODES);
        let resumes = world.now + world.random.u64(50 * MS..900 * MS);
        world.nodes[node].paused_until = resumes;
        for server in 0..SERVERS {
            let link = world.nodes[node].links[server];
            let lost = resumes + world.random.u64(0..5 * MS);
            world.at(lost, Event::Lost { node, server, link });
        }
        world.run_until(13 * SECOND);
        let late = world.submissions.iter().enumerate().filter(|(_, submission)| {
            let Submission { receiver, outcome, .. } = submission;
            receiver.is_some() && *outcome == Some(Outcome::Unreachable)
        });
        let late: Vec<_> = late.map(|(number, submission)| (number, submission.node, submission.at / MS)).collect();
        assert!(late.is_empty(), "seed {seed}: {node} stood still until {} ms: {late:?}", resumes / MS);
    }
}
