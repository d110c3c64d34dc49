//! Owns a client that does nothing but talk, as fast as it goes: of version 1, or a person whose session can be resumed.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::SinkExt;
use texto_lab::client::{self, Answer, Client, Incoming, PATIENCE, Socket};
use texto_lab::traffic::{Resumable, Seen};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

const TEXT: &str = "a text of ordinary length, as people write it";
/// At the latest after this a person says what has come.
const ACK_EVERY: Duration = Duration::from_secs(1);

/// A connected client.
pub(crate) struct Talker {
    /// Who it is.
    pub id: Uuid,
    socket: Socket,
    session: Option<Resumable>,
}

impl Talker {
    /// Connects; a person waits until its session has a standby.
    pub(crate) async fn connect(address: SocketAddr, is_person: bool) -> Result<Self> {
        if !is_person {
            let client = Client::connect(address).await?;
            return Ok(Self { id: client.id, socket: client.into_socket(), session: None });
        }
        let mut session = Resumable::default();
        let mut socket = client::open(address, "/v1/texto?register=1").await?;
        socket.send(Message::text(session.begin())).await?;
        let greeted = async {
            loop {
                match client::next(&mut socket).await {
                    Incoming::Frame(frame) => drop(session.take(&frame)),
                    Incoming::Closed(code) => bail!("closed with {code} instead of a greeting"),
                }
                match session.id() {
                    Some(id) if session.has_standby() => return Ok(id),
                    _ => socket.send(Message::text(session.question())).await?,
                }
            }
        };
        let id = timeout(PATIENCE, greeted).await.context("no session with a standby")??;
        Ok(Self { id, socket, session: Some(session) })
    }

    async fn frame(&mut self) -> Result<serde_json::Value> {
        match client::next(&mut self.socket).await {
            Incoming::Frame(frame) => Ok(frame),
            Incoming::Closed(code) => bail!("closed with {code}"),
        }
    }

    /// Writes to `to` until it is stopped, with `window` sends unanswered, or at a pace. Returns the times to the answers,
    /// in microseconds.
    pub(crate) async fn write(
        mut self,
        to: Uuid,
        window: usize,
        pace: Option<Duration>,
        stop: Arc<AtomicBool>,
        count: Arc<AtomicU64>,
    ) -> Result<Vec<f64>> {
        let (mut waiting, mut times) = (VecDeque::new(), Vec::new());
        let mut pace = pace.map(steady);
        loop {
            let is_stopped = stop.load(Ordering::Relaxed);
            if is_stopped && waiting.is_empty() {
                return Ok(times);
            }
            let may_send = !is_stopped && waiting.len() < window;
            let tick = async {
                if let Some(pace) = &mut pace {
                    pace.tick().await;
                }
            };
            tokio::select! {
                biased;
                () = tick, if may_send => {
                    let request = Uuid::new_v4();
                    let frame = client::send_frame(self.id, request, to, TEXT);
                    waiting.push_back((Instant::now(), request.to_string()));
                    self.socket.send(Message::text(frame)).await?;
                }
                frame = self.frame() => {
                    let frame = frame?;
                    let Some((request, answer)) = client::answer_of(&frame) else { continue };
                    ensure!(answer == Answer::Ack, "answered with {answer:?}");
                    let at = waiting.iter().position(|(_, waits)| waits == request);
                    if let Some((sent, _)) = at.and_then(|at| waiting.remove(at)) {
                        times.push(Instant::elapsed(&sent).as_secs_f64() * 1e6);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Reads until its connection ends, and acknowledges as a person does.
    pub(crate) async fn read(mut self) -> Result<()> {
        let mut pace = steady(ACK_EVERY);
        loop {
            let frame = tokio::select! {
                frame = self.frame() => Some(frame?),
                _ = pace.tick() => None,
            };
            let Some(session) = &mut self.session else { continue };
            let is_due = match frame {
                Some(frame) => {
                    let seen = session.take(&frame);
                    ensure!(!matches!(seen, Seen::Greeted(_)), "greeted twice");
                    session.must_ack()
                }
                None => session.owes_ack(),
            };
            if is_due {
                self.socket.send(Message::text(session.ack())).await?;
            }
        }
    }
}

fn steady(period: Duration) -> Interval {
    let mut pace = interval(period);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}
