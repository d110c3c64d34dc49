//! Several nodes, a master and replicas that lag, clients that come and go, and everything that can go wrong between
//! them: one system in one thread, its time and its chance made from a seed.
//!
//! The judge sees what clients are shown and what senders are told. `TEXTO_SEEDS=1000000 cargo test --release -p texto
//! --lib simulation` runs a million, `TEXTO_SEEDS=500000..1000000` their second half, on another processor; a seed that
//! breaks a promise is printed, and `TEXTO_SEED=n` runs it alone; with `TEXTO_STORY=m` it tells all that happened to the
//! receiver of its message `m`, with `TEXTO_STORY=cn` to its client `n`.

mod agenda;
mod clients;
mod faults;
mod judge;
mod servers;
mod story;
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use self::agenda::{Agenda, Event};
use self::story::Story;
use super::envelope::{Channel, Decision, head};
use super::homes::MoveReason;
use super::peers::HELLO_EVERY;
use super::sender::{Actions, Answer, Command, Times};
use super::{Duty, Gathered, Transport};
use crate::config::Limits;
use crate::outbox::log::Position;
use crate::outbox::{Attachment, Outbox, Outcome};
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
    /// It was told that messages may be missing: the next one has any number.
    misses: bool,
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
    /// When it was sent first.
    first: u64,
    /// When it was sent last.
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
            Event::Told { node, .. } if !self.nodes[node].alive => {}
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
                    let before = self.clients[client].shown.len();
                    self.show(client, 16);
                    let Client { slow, shown, .. } = &self.clients[client];
                    // Who has just had something may have more in a moment.
                    let pause = if shown.len() > before { 12 * MS } else { 80 * MS };
                    let most = if *slow && !self.calm { 600 * MS } else { pause };
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
            self.run_until(20 * SECOND);
        }
        for _ in 0..NODES {
            self.join();
        }
        self.run_until(self.now + 2 * SECOND);
        let before = self.submissions.len();
        for _ in 0..10 {
            self.after(0, 500 * MS, Event::Submit);
        }
        self.run_until(self.now + 3 * SECOND);
        self.judge(before);
    }
}

fn limits() -> Limits {
    Limits { resume_window: Duration::from_secs(30), ..Limits::small(16, 4096) }
}
