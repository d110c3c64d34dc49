//! Owns the clients that are not hostile: how long they wait for their answers, and newcomers for their greeting.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use texto_lab::client::Client;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// Clients that write, each to one of its own on the other gateway.
const PAIRS: usize = 40;
/// How often each of them does.
const PACE: Duration = Duration::from_millis(80);
/// How often somebody new comes to the first gateway.
const NEWCOMERS: Duration = Duration::from_millis(50);

/// Times in milliseconds.
#[derive(Default)]
pub(crate) struct Waits {
    answers: Vec<f64>,
    connections: Vec<f64>,
}

impl Waits {
    pub(crate) fn add(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.connections.extend(other.connections);
    }

    pub(crate) fn answers(&self, part: f64) -> f64 {
        quantile(&self.answers, part)
    }

    pub(crate) fn connections(&self, part: f64) -> f64 {
        quantile(&self.connections, part)
    }
}

fn quantile(times: &[f64], part: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// All of them; they end when it is dropped.
pub(crate) struct Others {
    waits: Arc<Mutex<Waits>>,
    _tasks: JoinSet<Result<()>>,
}

impl Others {
    pub(crate) async fn start(gateways: &[SocketAddr]) -> Result<Self> {
        let waits: Arc<Mutex<Waits>> = Arc::default();
        let mut tasks = JoinSet::new();
        for pair in 0..PAIRS {
            let mut writer = Client::connect(gateways[pair % 2]).await?;
            let mut reader = Client::connect(gateways[(pair + 1) % 2]).await?;
            let (to, waits) = (reader.id, waits.clone());
            tasks.spawn(async move {
                loop {
                    reader.frame().await?;
                }
            });
            tasks.spawn(async move {
                tokio::time::sleep(PACE * pair as u32 / PAIRS as u32).await;
                let mut pace = interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    pace.tick().await;
                    let began = Instant::now();
                    writer.send(to, "a text of ordinary length, as people write it").await?;
                    lock(&waits).answers.push(began.elapsed().as_secs_f64() * 1e3);
                }
            });
        }
        let (address, newcomers) = (gateways[0], waits.clone());
        tasks.spawn(async move {
            let mut pace = interval(NEWCOMERS);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pace.tick().await;
                let began = Instant::now();
                // Whoever is refused has waited in vain for as long as it lasts, which is longer than any answer.
                let came = Client::connect(address).await.is_ok();
                let waited = if came { began.elapsed().as_secs_f64() * 1e3 } else { f64::INFINITY };
                lock(&newcomers).connections.push(waited);
            }
        });
        Ok(Self { waits, _tasks: tasks })
    }

    /// What was seen since this was last asked.
    pub(crate) fn take(&self) -> Waits {
        std::mem::take(&mut *lock(&self.waits))
    }
}

fn lock(waits: &Mutex<Waits>) -> std::sync::MutexGuard<'_, Waits> {
    waits.lock().unwrap_or_else(PoisonError::into_inner)
}
