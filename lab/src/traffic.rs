//! Owns traffic: clients on several gateways that write to one another, at a pace or as fast as it goes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::SinkExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, interval_at};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::checker::{Checker, Event, Report};
use crate::client::{self, Client, Incoming};
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
        Self { roles, rate: None, window: WINDOW, bytes: 0, each: None, moves: false, deadline }
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

/// Traffic under way.
#[derive(Debug)]
pub struct Traffic {
    scene: Arc<Scene>,
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
        let mut clients = Vec::new();
        for (index, role) in plan.roles.iter().enumerate() {
            let gateway = gateways[role.gateway % gateways.len()];
            clients.push(Client::connect(gateway).await.with_context(|| format!("client {index}"))?);
        }
        let scene = Arc::new(Scene {
            start: Instant::now(),
            gateways: gateways.to_vec(),
            ids: Mutex::new(clients.iter().map(|client| client.id).collect()),
            checker: Mutex::new(Checker::new(plan.deadline)),
            closes: Mutex::default(),
            finished: AtomicUsize::new(0),
            bytes: plan.bytes,
            window: plan.window,
            moves: plan.moves,
        });
        #[allow(clippy::cast_precision_loss)] // Thousands of clients at most.
        let writers = plan.roles.iter().filter(|role| !role.to.is_empty()).count() as f64;
        let period = plan.rate.map(|rate| Duration::from_secs_f64(writers / rate));
        let sending = watch::channel(true).0;
        let mut tasks = JoinSet::new();
        for (index, (client, role)) in clients.into_iter().zip(plan.roles).enumerate() {
            let party = Party {
                index,
                gateway: role.gateway,
                numbers: vec![0; role.to.len()],
                left: if role.to.is_empty() { 0 } else { plan.each.unwrap_or(usize::MAX) },
                to: role.to,
                turn: 0,
                pace: period.map(|period| interval_at((scene.start + period.mul_f64(fastrand::f64())).into(), period)),
                requests: HashMap::new(),
                unanswered: 0,
                is_finished: false,
                scene: scene.clone(),
            };
            tasks.spawn(party.run(client, sending.subscribe()));
        }
        Ok(Self { scene, sending, clients: tasks, deadline: plan.deadline })
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

/// A message that was sent.
struct Request {
    pair: u32,
    number: usize,
    is_answered: bool,
}

/// One client: sends to those it knows, receives from whoever knows it.
struct Party {
    index: usize,
    gateway: usize,
    to: Vec<usize>,
    /// The next number for each of `to`.
    numbers: Vec<usize>,
    /// How many it still sends.
    left: usize,
    /// Whose turn it is in `to`.
    turn: usize,
    pace: Option<Interval>,
    /// What was sent in this session, by request id.
    requests: HashMap<String, Request>,
    unanswered: usize,
    is_finished: bool,
    scene: Arc<Scene>,
}

impl Party {
    fn note(&self, pair: u32, number: usize, event: &Event) {
        let at = self.scene.start.elapsed();
        lock(&self.scene.checker).feed(at, pair, number, event);
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.is_finished, true) {
            self.scene.finished.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn run(mut self, client: Client, mut sending: watch::Receiver<bool>) {
        let mut next = Some(client);
        while let Some(client) = next.take() {
            let Some(code) = self.session(client, &mut sending).await else { return };
            let (at, moves) = (self.scene.start.elapsed(), code == 1012 && self.scene.moves);
            if moves {
                self.unanswered = 0;
                for request in std::mem::take(&mut self.requests).into_values().filter(|request| !request.is_answered) {
                    self.note(request.pair, request.number, &Event::CutShort);
                }
                self.note(0, 0, &Event::Moved);
            } else {
                self.note(0, 0, &Event::Dropped(code));
            }
            lock(&self.scene.closes).push(Close { client: self.index, code, at });
            if moves {
                next = Some(self.elsewhere().await);
            }
        }
        self.finish();
    }

    /// Connects anew, to whichever gateway takes it.
    async fn elsewhere(&mut self) -> Client {
        loop {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..250))).await;
            self.gateway += 1;
            let gateway = self.scene.gateways[self.gateway % self.scene.gateways.len()];
            if let Ok(client) = Client::connect(gateway).await {
                lock(&self.scene.ids)[self.index] = client.id;
                return client;
            }
        }
    }

    /// Talks until the session's end, and returns its code; none when the traffic itself is over.
    async fn session(&mut self, client: Client, sending: &mut watch::Receiver<bool>) -> Option<u16> {
        let id = client.id;
        let mut socket = client.into_socket();
        loop {
            if self.left == 0 || !*sending.borrow_and_update() {
                self.left = 0;
                self.finish();
            }
            let may_send = self.left > 0 && self.unanswered < self.scene.window;
            let due = async {
                if let Some(pace) = &mut self.pace {
                    pace.tick().await;
                }
            };
            let incoming = tokio::select! {
                incoming = client::next(&mut socket) => Some(incoming),
                () = due, if may_send => None,
                changed = sending.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return None,
                },
            };
            match incoming {
                Some(Incoming::Frame(frame)) => self.take(&frame),
                Some(Incoming::Closed(code)) => return Some(code),
                None => {
                    let frame = self.compose(id);
                    if socket.send(Message::text(frame)).await.is_err() {
                        // Why is in what came before: the close.
                        loop {
                            match client::next(&mut socket).await {
                                Incoming::Frame(frame) => self.take(&frame),
                                Incoming::Closed(code) => return Some(code),
                            }
                        }
                    }
                }
            }
        }
    }

    /// The next message.
    fn compose(&mut self, id: Uuid) -> String {
        let (receiver, turn) = (self.to[self.turn], self.turn);
        self.turn = (self.turn + 1) % self.to.len();
        self.left -= 1;
        let number = self.numbers[turn];
        self.numbers[turn] += 1;
        let request = Uuid::new_v4();
        let (pair, receiver) = {
            let ids = lock(&self.scene.ids);
            // Sender and receiver in one number.
            (u32::try_from(self.index * ids.len() + receiver).unwrap_or(u32::MAX), ids[receiver])
        };
        self.requests.insert(request.to_string(), Request { pair, number, is_answered: false });
        self.unanswered += 1;
        self.note(pair, number, &Event::Sent);
        client::send_frame(id, request, receiver, &format!("{pair} {number} {:.<1$}", "", self.scene.bytes))
    }

    fn take(&mut self, frame: &Value) {
        if let Some((request, answer)) = client::answer_of(frame) {
            let Some(Request { pair, number, is_answered }) = self.requests.get_mut(request) else { return };
            self.unanswered -= usize::from(!std::mem::replace(is_answered, true));
            let (pair, number) = (*pair, *number);
            self.note(pair, number, &Event::Answered(answer));
        } else if frame["kind"] == "receive" {
            let mut words = frame["data"]["text"].as_str().unwrap_or_default().split(' ');
            let mut word = || words.next()?.parse::<usize>().ok();
            if let (Some(pair), Some(number)) = (word().and_then(|pair| u32::try_from(pair).ok()), word()) {
                self.note(pair, number, &Event::Received);
            }
        }
    }
}
