//! Owns steady traffic: pairs of clients on several gateways, each writing to the other at a pace.

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
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::checker::{Checker, Event, Report};
use crate::client::{self, Client, Incoming};
use crate::process::until;

/// How much traffic.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Pairs of clients; the two of a pair are on different gateways where there are several.
    pub pairs: usize,
    /// Messages a second, of all together.
    pub rate: f64,
    /// Every send must be answered within this.
    pub deadline: Duration,
}

/// Traffic under way.
#[derive(Debug)]
pub struct Traffic {
    start: Instant,
    checker: Arc<Mutex<Checker>>,
    /// `true` as long as clients send.
    sending: watch::Sender<bool>,
    clients: JoinSet<()>,
    /// Clients that have noticed the end of the sending, or are gone.
    stopped: Arc<AtomicUsize>,
    deadline: Duration,
}

impl Traffic {
    /// Connects all clients to `gateways` in turn, and begins.
    ///
    /// # Errors
    /// When a client can't connect.
    pub async fn start(gateways: &[SocketAddr], load: Load) -> Result<Self> {
        let mut clients = Vec::new();
        for index in 0..load.pairs * 2 {
            // Partners stand next to each other; with every pair the gateways move on by one.
            let gateway = gateways[(index + index / (2 * gateways.len())) % gateways.len()];
            clients.push(Client::connect(gateway).await.with_context(|| format!("client {index}"))?);
        }
        let checker = Arc::new(Mutex::new(Checker::new(load.deadline)));
        let sending = watch::channel(true).0;
        let start = Instant::now();
        #[allow(clippy::cast_precision_loss)] // Thousands of clients at most.
        let period = Duration::from_secs_f64(clients.len() as f64 / load.rate);
        let ids: Vec<Uuid> = clients.iter().map(|client| client.id).collect();
        let mut tasks = JoinSet::new();
        let stopped = Arc::new(AtomicUsize::new(0));
        for (index, client) in clients.into_iter().enumerate() {
            let party = Party {
                pair: u32::try_from(index)?,
                partner: ids[index ^ 1],
                start,
                period,
                offset: period.mul_f64(fastrand::f64()),
                checker: checker.clone(),
                stopped: stopped.clone(),
            };
            tasks.spawn(party.run(client, sending.subscribe()));
        }
        Ok(Self { start, checker, sending, clients: tasks, stopped, deadline: load.deadline })
    }

    /// Time since the start: what the checker's times count from.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// What is known so far.
    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the sending, waits until everything is answered (or should have been), and judges; silence
    /// is looked for between `from` and `to`.
    ///
    /// # Errors
    /// Never for what the gateways did: that is in the report.
    pub async fn finish(mut self, from: Duration, to: Duration) -> Result<Report> {
        self.sending.send_replace(false);
        let patience = self.deadline + Duration::from_secs(1);
        let quiet = until("all is answered", patience, async || {
            let stopped = self.stopped.load(Ordering::SeqCst) == self.clients.len();
            (stopped && self.checker().outstanding() == 0).then_some(())
        });
        drop(quiet.await); // Whatever is not answered is counted below.
        // An acknowledged message is on its way at most for as long as this.
        let arrived = until("all acknowledged has arrived", Duration::from_secs(2), async || {
            let now = self.now();
            (self.checker().report(now, from, to).acked_lost == 0).then_some(())
        });
        drop(arrived.await);
        let now = self.now();
        self.clients.shutdown().await;
        Ok(self.checker().report(now, from, to))
    }
}

/// One client: sends to its partner, receives from it.
struct Party {
    pair: u32,
    partner: Uuid,
    start: Instant,
    period: Duration,
    offset: Duration,
    checker: Arc<Mutex<Checker>>,
    stopped: Arc<AtomicUsize>,
}

impl Party {
    fn note(&self, pair: u32, number: usize, event: &Event) {
        let at = self.start.elapsed();
        self.checker.lock().unwrap_or_else(PoisonError::into_inner).feed(at, pair, number, event);
    }

    async fn run(self, client: Client, sending: watch::Receiver<bool>) {
        if !self.run_inner(client, sending).await {
            self.stopped.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns whether the end of the sending was noticed before the end of the session.
    async fn run_inner(&self, client: Client, mut sending: watch::Receiver<bool>) -> bool {
        let id = client.id;
        let mut socket = client.into_socket();
        let mut next = tokio::time::interval_at((self.start + self.offset).into(), self.period);
        let mut requests: HashMap<String, usize> = HashMap::new();
        let mut number = 0;
        let mut noticed = false;
        loop {
            let sends = *sending.borrow_and_update();
            if !sends && !noticed {
                noticed = true;
                self.stopped.fetch_add(1, Ordering::SeqCst);
            }
            tokio::select! {
                incoming = client::next(&mut socket) => match incoming {
                    Incoming::Frame(frame) => self.take(&frame, &mut requests),
                    Incoming::Closed(_) => {
                        self.note(self.pair, number, &Event::Dropped);
                        return noticed;
                    }
                },
                _ = next.tick(), if sends => {
                    let request = Uuid::new_v4();
                    let text = format!("{} {number}", self.pair);
                    requests.insert(request.to_string(), number);
                    self.note(self.pair, number, &Event::Sent);
                    let frame = client::send_frame(id, request, self.partner, &text);
                    if socket.send(Message::text(frame)).await.is_err() {
                        self.note(self.pair, number, &Event::Dropped);
                        return noticed;
                    }
                    number += 1;
                }
                changed = sending.changed() => if changed.is_err() { return noticed },
            }
        }
    }

    fn take(&self, frame: &Value, requests: &mut HashMap<String, usize>) {
        if let Some((request, answer)) = client::answer_of(frame) {
            if let Some(number) = requests.get(request) {
                self.note(self.pair, *number, &Event::Answered(answer));
            }
        } else if frame["kind"] == "receive" {
            let text = frame["data"]["text"].as_str().unwrap_or_default();
            let parsed =
                text.split_once(' ').and_then(|(pair, number)| Some((pair.parse().ok()?, number.parse().ok()?)));
            if let Some((pair, number)) = parsed {
                self.note(pair, number, &Event::Received);
            }
        }
    }
}
