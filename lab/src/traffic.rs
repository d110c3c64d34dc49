//! Owns traffic: clients on several gateways that write to one another, at a pace or as fast as it goes.

mod party;
mod person;
mod resumable;
mod user;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use uuid::Uuid;

use party::Party;
use person::Person;
pub use person::{Manners, Order};
pub use resumable::{Again, Mark, Resumable, Seen};
use user::User;

use crate::checker::{self, Checker, Event, Report};
use crate::client::Client;
use crate::process::until;

/// The default of --max-unanswered: more at a time would only be refused.
const WINDOW: usize = 64;
/// How long an acknowledged message may be on its way when all else is over.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// How much steady traffic.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Pairs of clients that write to each other, on different gateways where there are several.
    pub pairs: usize,
    /// Messages a second, of all together.
    pub rate: f64,
    /// Every send must be answered within this.
    pub deadline: Duration,
}

/// One client in a [`Plan`].
#[derive(Clone, Debug)]
pub struct Role {
    /// The gateway where it connects, by its index.
    pub gateway: usize,
    /// The clients to which it writes, in turn, by their indices. Whoever has none only reads.
    pub to: Vec<usize>,
}

/// Who writes to whom, and how much.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The clients.
    pub roles: Vec<Role>,
    /// Messages a second, of all together; as fast as they are answered when absent.
    pub rate: Option<f64>,
    /// Sends of one client that are unanswered at a time.
    pub window: usize,
    /// Length of a text in bytes, at least.
    pub bytes: usize,
    /// Messages of each client that writes; without end when absent.
    pub each: Option<usize>,
    /// Whether to be asked to go elsewhere (1012) is part of the play: then clients do so.
    pub moves: bool,
    /// How persons behave, whose sessions outlive their connections; without it, clients are those of version 1.
    pub manners: Option<Manners>,
    /// Every send must be answered within this.
    pub deadline: Duration,
}

impl From<Load> for Plan {
    fn from(load: Load) -> Self {
        // Partners stand next to each other, on neighbouring gateways; with every pair these move on by one.
        let roles = (0..load.pairs * 2).map(|index| Role { gateway: index / 2 + index % 2, to: vec![index ^ 1] });
        Self { rate: Some(load.rate), ..Self::new(roles.collect(), load.deadline) }
    }
}

impl Plan {
    /// Short texts, as fast as they are answered.
    pub fn new(roles: Vec<Role>, deadline: Duration) -> Self {
        Self { roles, rate: None, window: WINDOW, bytes: 0, each: None, moves: false, manners: None, deadline }
    }

    /// Each of `count` persons writes to three others in turn, one of them on its own gateway where there are three.
    pub fn persons(count: usize, manners: Manners, deadline: Duration) -> Self {
        let role = |index: usize| Role { gateway: index, to: (1..4).map(|step| (index + step) % count).collect() };
        Self { manners: Some(manners), ..Self::new((0..count).map(role).collect(), deadline) }
    }

    /// The same, each of whom writes to two others on its own one of `gateways`.
    pub fn persons_together(count: usize, gateways: usize, manners: Manners, deadline: Duration) -> Self {
        let others = |index: usize| (1..3).map(|step| (index + step * gateways) % count).collect();
        let role = |index: usize| Role { gateway: index, to: others(index) };
        Self { manners: Some(manners), ..Self::new((0..count).map(role).collect(), deadline) }
    }

    /// `senders` on the first gateway write to each of `receivers` on the second, in turn.
    pub fn one_way(senders: usize, receivers: usize, deadline: Duration) -> Self {
        let sender = |index: usize| Role {
            gateway: 0,
            to: (0..receivers).map(|step| senders + (index + step) % receivers).collect(),
        };
        let receiver = |_| Role { gateway: 1, to: Vec::new() };
        Self::new((0..senders).map(sender).chain((0..receivers).map(receiver)).collect(), deadline)
    }
}

/// The end of a session.
#[derive(Clone, Copy, Debug)]
pub struct Close {
    /// The client, by its index in the plan.
    pub client: usize,
    /// The close code; 1006 without one.
    pub code: u16,
    /// When, on the traffic's clock.
    pub at: Duration,
}

/// A person that is back.
#[derive(Clone, Copy, Debug)]
pub struct Return {
    /// Who, by its index in the plan.
    pub client: usize,
    /// When, on the traffic's clock.
    pub at: Duration,
    /// How long it took from the end of the pause that it made by its own wish.
    pub took: Duration,
}

/// Traffic under way.
#[derive(Debug)]
pub struct Traffic {
    scene: Arc<Scene>,
    /// To each person; none to clients of version 1.
    orders: Vec<mpsc::Sender<Order>>,
    /// `true` as long as clients send.
    sending: watch::Sender<bool>,
    clients: JoinSet<()>,
    deadline: Duration,
}

/// What all clients share.
#[derive(Debug)]
struct Scene {
    start: Instant,
    gateways: Vec<SocketAddr>,
    /// Who is who at present.
    ids: Mutex<Vec<Uuid>>,
    checker: Mutex<Checker>,
    closes: Mutex<Vec<Close>>,
    returns: Mutex<Vec<Return>>,
    /// Which persons said last that another node has what theirs has.
    copied: Mutex<Vec<bool>>,
    /// Persons that have a connection.
    attached: Arc<AtomicUsize>,
    /// Clients that send no more: all is sent, the end was noticed, or they are gone.
    finished: AtomicUsize,
    bytes: usize,
    window: usize,
    moves: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// Connects all clients to `gateways` (counted round), and begins.
    ///
    /// # Errors
    /// When a client can't connect.
    pub async fn start(gateways: &[SocketAddr], plan: impl Into<Plan>) -> Result<Self> {
        let plan = plan.into();
        let scene = Arc::new(Scene {
            start: Instant::now(),
            gateways: gateways.to_vec(),
            ids: Mutex::new(vec![Uuid::nil(); plan.roles.len()]),
            checker: Mutex::new(Checker::new(plan.deadline)),
            closes: Mutex::default(),
            returns: Mutex::default(),
            copied: Mutex::new(vec![false; plan.roles.len()]),
            attached: Arc::default(),
            finished: AtomicUsize::new(0),
            bytes: plan.bytes,
            window: plan.window,
            moves: plan.moves,
        });
        #[allow(clippy::cast_precision_loss)] // Thousands of clients at most.
        let writers = plan.roles.iter().filter(|role| !role.to.is_empty()).count() as f64;
        let period = plan.rate.map(|rate| Duration::from_secs_f64(writers / rate));
        let (mut parties, mut persons, mut users, mut orders) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, role) in plan.roles.iter().enumerate() {
            let writer = Writer::new(index, role, plan.each, scene.clone());
            if let Some(manners) = plan.manners {
                let (order, ordered) = mpsc::channel(1);
                orders.push(order);
                if manners.uses_library {
                    users.push(User::connect(writer, role.gateway).await.with_context(|| format!("user {index}"))?);
                    continue;
                }
                let mut person = Person::new(writer, role.gateway, manners, ordered);
                let socket = person.connect().await.with_context(|| format!("person {index}"))?;
                persons.push((person, socket));
            } else {
                let gateway = gateways[role.gateway % gateways.len()];
                let client = Client::connect(gateway).await.with_context(|| format!("client {index}"))?;
                lock(&scene.ids)[index] = client.id;
                parties.push((Party::new(writer, role.gateway), client));
            }
        }
        // Nobody writes before everybody is there.
        let pace = |kind| period.map(|period| pace(period, kind));
        let sending = watch::channel(true).0;
        let mut clients = JoinSet::new();
        for (party, client) in parties {
            clients.spawn(party.run(client, pace(MissedTickBehavior::Burst), sending.subscribe()));
        }
        for (person, socket) in persons {
            // Whoever was away has nothing to make up for.
            clients.spawn(person.run(socket, pace(MissedTickBehavior::Delay), sending.subscribe()));
        }
        for user in users {
            clients.spawn(user.run(pace(MissedTickBehavior::Delay), sending.subscribe()));
        }
        Ok(Self { scene, orders, sending, clients, deadline: plan.deadline })
    }

    /// Tells a person what to do, if it is there and has nothing else to do.
    pub fn order(&self, person: usize, order: Order) {
        if let Some(orders) = self.orders.get(person) {
            let _ = orders.try_send(order);
        }
    }

    /// How many persons there are.
    pub fn persons(&self) -> usize {
        self.orders.len()
    }

    /// Waits until every person has a connection.
    ///
    /// # Errors
    /// When they have not within `limit`.
    pub async fn attached(&self, limit: Duration) -> Result<()> {
        until("everybody is back", limit, async || {
            (self.scene.attached.load(Ordering::SeqCst) >= self.persons()).then_some(())
        })
        .await
    }

    /// Waits until every person has been told that another node has what its own has.
    ///
    /// # Errors
    /// When not all are within `limit`.
    pub async fn copied(&self, limit: Duration) -> Result<()> {
        lock(&self.scene.copied).fill(false);
        until("every session has two copies", limit, async || {
            let copied = lock(&self.scene.copied).clone();
            let waiting = (0..self.persons()).filter(|person| !copied[*person]);
            (waiting.map(|person| self.order(person, Order::Ask)).count() == 0).then_some(())
        })
        .await
    }

    /// The persons that came back so far.
    pub fn returns(&self) -> Vec<Return> {
        lock(&self.scene.returns).clone()
    }

    /// Time since the start: what the checker's times count from.
    pub fn now(&self) -> Duration {
        self.scene.start.elapsed()
    }

    /// What is known so far.
    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        lock(&self.scene.checker)
    }

    /// The sessions that ended so far.
    pub fn closes(&self) -> Vec<Close> {
        lock(&self.scene.closes).clone()
    }

    /// Ends the sending.
    pub fn stop(&self) {
        self.sending.send_replace(false);
    }

    /// Waits until everything that was to be sent is sent and answered.
    ///
    /// # Errors
    /// When it is not within `limit`: never, where clients send without end and were not stopped.
    pub async fn answered(&self, limit: Duration) -> Result<()> {
        until("all is sent and answered", limit, async || self.is_answered().then_some(())).await
    }

    fn is_answered(&self) -> bool {
        self.scene.finished.load(Ordering::SeqCst) == self.clients.len() && self.checker().outstanding() == 0
    }

    /// Waits until nothing has arrived for `rest`.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn quiet(&self, rest: Duration, limit: Duration) -> Result<()> {
        let since = self.now();
        until("nothing arrives any more", limit, async || {
            let last = self.checker().last_received().unwrap_or_default().max(since);
            (self.now() - last > rest).then_some(())
        })
        .await
    }

    /// Ends the sending, waits until everything is answered (or should have been), and judges; silence
    /// is looked for between `from` and `to`.
    ///
    /// # Errors
    /// Never for what the gateways did: that is in the report.
    pub async fn finish(mut self, from: Duration, to: Duration) -> Result<Report> {
        self.stop();
        // Whatever is not answered is counted below, as is what does not arrive.
        drop(self.answered(self.deadline + Duration::from_secs(1)).await);
        let arrived =
            until("all acknowledged has arrived", ON_ITS_WAY, async || (self.checker().missing() == 0).then_some(()));
        drop(arrived.await);
        let now = self.now();
        self.clients.shutdown().await;
        Ok(self.checker().report(now, from, to))
    }
}

/// A message that is to be written.
struct Note {
    pair: u32,
    number: usize,
    receiver: Uuid,
    text: String,
}

/// What one client writes, to those it knows.
struct Writer {
    index: usize,
    to: Vec<usize>,
    /// The next number for each of `to`.
    numbers: Vec<usize>,
    /// How many it still sends.
    left: usize,
    /// Whose turn it is in `to`.
    turn: usize,
    pace: Option<Interval>,
    is_finished: bool,
    scene: Arc<Scene>,
}

fn pace(period: Duration, missed: MissedTickBehavior) -> Interval {
    let mut pace = interval_at((Instant::now() + period.mul_f64(fastrand::f64())).into(), period);
    pace.set_missed_tick_behavior(missed);
    pace
}

impl Writer {
    fn new(index: usize, role: &Role, each: Option<usize>, scene: Arc<Scene>) -> Self {
        let left = if role.to.is_empty() { 0 } else { each.unwrap_or(usize::MAX) };
        let numbers = vec![0; role.to.len()];
        Self { index, to: role.to.clone(), numbers, left, turn: 0, pace: None, is_finished: false, scene }
    }

    fn now(&self) -> Duration {
        self.scene.start.elapsed()
    }

    fn note(&self, pair: u32, number: usize, event: &Event) {
        lock(&self.scene.checker).feed(self.now(), pair, number, event);
    }

    fn finish(&mut self) {
        self.left = 0;
        if !std::mem::replace(&mut self.is_finished, true) {
            self.scene.finished.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// When the next message is due. Cancel safe.
    async fn due(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.tick().await;
        }
    }

    /// The next message, which is sent now.
    fn next(&mut self) -> Note {
        let (receiver, turn) = (self.to[self.turn], self.turn);
        self.turn = (self.turn + 1) % self.to.len();
        self.left -= 1;
        let number = self.numbers[turn];
        self.numbers[turn] += 1;
        let pair = checker::pair(self.index, receiver);
        let receiver = lock(&self.scene.ids)[receiver];
        self.note(pair, number, &Event::Sent);
        Note { pair, number, receiver, text: format!("{pair} {number} {:.<1$}", "", self.scene.bytes) }
    }

    /// A text has arrived.
    fn read(&self, text: &str) {
        let mut words = text.split(' ');
        let mut word = || words.next()?.parse::<usize>().ok();
        if let (Some(pair), Some(number)) = (word().and_then(|pair| u32::try_from(pair).ok()), word()) {
            self.note(pair, number, &Event::Received);
        }
    }
}
