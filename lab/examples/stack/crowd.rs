//! Owns people: clients that chat with themselves, and connect again whenever they are disconnected.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::SinkExt;
use texto_lab::checker::CROSSING;
use texto_lab::client::{self, Answer, Client, Incoming};
use texto_lab::http;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

const PACE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(100);

/// What people met since it was last asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Sessions that ended, by close code.
    pub closes: BTreeMap<u16, u64>,
    /// Those who were greeted again after that.
    pub back: u64,
    /// Attempts to connect that failed.
    pub refused: u64,
    /// The longest time from a close to the next greeting.
    pub longest_away: Duration,
    /// Sends that were acknowledged.
    pub acked: u64,
    /// Sends that were answered with an error, by code.
    pub errors: BTreeMap<String, u64>,
    /// Sends without an answer when their session ended, but for those that crossed its end.
    pub unanswered: u64,
    /// Sends that crossed the end of their session.
    pub crossed: u64,
    /// The longest time to an answer.
    pub longest_answer: Duration,
}

impl Tally {
    /// Takes in what was met afterwards.
    pub(crate) fn add(&mut self, later: Self) {
        later.closes.into_iter().for_each(|(code, count)| *self.closes.entry(code).or_default() += count);
        later.errors.into_iter().for_each(|(code, count)| *self.errors.entry(code).or_default() += count);
        self.back += later.back;
        self.refused += later.refused;
        self.longest_away = self.longest_away.max(later.longest_away);
        self.acked += later.acked;
        self.unanswered += later.unanswered;
        self.crossed += later.crossed;
        self.longest_answer = self.longest_answer.max(later.longest_answer);
    }
}

/// Clients under way.
#[derive(Debug)]
pub(crate) struct Crowd {
    tally: Arc<Mutex<Tally>>,
    people: JoinSet<()>,
}

impl Crowd {
    /// Connects `count` clients, one after the other.
    pub(crate) async fn start(front: SocketAddr, count: usize) -> Result<Self> {
        let tally = Arc::<Mutex<Tally>>::default();
        let mut people = JoinSet::new();
        for index in 0..count {
            let client = Client::connect(front).await.with_context(|| format!("client {index}"))?;
            people.spawn(live(front, client, tally.clone()));
        }
        Ok(Self { tally, people })
    }

    /// What they met since the last call.
    pub(crate) fn take(&self) -> Tally {
        std::mem::take(&mut lock(&self.tally))
    }

    /// What they met so far.
    pub(crate) fn look(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.people.len()
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn live(front: SocketAddr, mut client: Client, tally: Arc<Mutex<Tally>>) {
    loop {
        let code = chat(client, &tally).await;
        let since = Instant::now();
        *lock(&tally).closes.entry(code).or_default() += 1;
        client = loop {
            match Client::connect(front).await {
                Ok(client) => break client,
                Err(_) => lock(&tally).refused += 1,
            }
            tokio::time::sleep(PAUSE).await;
        };
        let mut tally = lock(&tally);
        tally.back += 1;
        tally.longest_away = tally.longest_away.max(since.elapsed());
    }
}

/// One session: sends to itself until it is closed. Returns the code.
async fn chat(client: Client, tally: &Mutex<Tally>) -> u16 {
    let id = client.id;
    let mut socket = client.into_socket();
    let mut waiting = HashMap::new();
    let mut pace = tokio::time::interval_at(tokio::time::Instant::now() + PACE.mul_f64(fastrand::f64()), PACE);
    loop {
        tokio::select! {
            incoming = client::next(&mut socket) => match incoming {
                Incoming::Frame(frame) => {
                    let Some((request, answer)) = client::answer_of(&frame) else { continue };
                    let Some(sent) = waiting.remove(request) else { continue };
                    let mut tally = lock(tally);
                    tally.longest_answer = tally.longest_answer.max(Instant::elapsed(&sent));
                    match answer {
                        Answer::Ack => tally.acked += 1,
                        Answer::Error(code) => *tally.errors.entry(code).or_default() += 1,
                    }
                }
                Incoming::Closed(code) => {
                    let crossed = waiting.values().filter(|sent| sent.elapsed() < CROSSING).count();
                    let mut tally = lock(tally);
                    tally.crossed += crossed as u64;
                    tally.unanswered += (waiting.len() - crossed) as u64;
                    return code;
                }
            },
            _ = pace.tick() => {
                let request = Uuid::new_v4();
                waiting.insert(request.to_string(), Instant::now());
                // A broken connection shows itself on reading.
                drop(socket.send(Message::text(client::send_frame(id, request, id, "a word"))).await);
            }
        }
    }
}

/// Knocks at the door ten times a second, and notes what it hears.
#[derive(Debug)]
pub(crate) struct Knocker {
    heard: Arc<Mutex<Vec<Result<Handshake, String>>>>,
    _task: JoinSet<()>,
}

impl Knocker {
    /// Begins.
    pub(crate) fn start(front: SocketAddr) -> Self {
        let heard = Arc::<Mutex<Vec<_>>>::default();
        let mut task = JoinSet::new();
        let notes = heard.clone();
        task.spawn(async move {
            loop {
                let result = handshake(front, "").await.map(|(done, _)| done).map_err(|error| format!("{error:#}"));
                notes.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { heard, _task: task }
    }

    /// What was heard since the last call.
    pub(crate) fn take(&self) -> Vec<Result<Handshake, String>> {
        std::mem::take(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How much was heard.
    pub(crate) fn count(&self) -> usize {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ensures that every handshake since the last call became a session. Returns their number and the longest time.
    pub(crate) fn all_well(&self) -> Result<(usize, Duration)> {
        let heard = self.take();
        let mut longest = Duration::ZERO;
        for result in &heard {
            let done = result.as_ref().map_err(|error| anyhow::anyhow!("a handshake failed: {error}"))?;
            anyhow::ensure!(done.status == 101, "a handshake was answered {}", done.status);
            longest = longest.max(done.took);
        }
        Ok((heard.len(), longest))
    }
}

/// What a handshake was answered with.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    /// The status code; 101 is a WebSocket.
    pub status: u16,
    /// The head of the answer.
    pub head: String,
    /// How long it took.
    pub took: Duration,
}

/// One handshake, with further header lines (each ended by CRLF).
///
/// The connection comes with it: the session lives as long.
pub(crate) async fn handshake(front: SocketAddr, headers: &str) -> Result<(Handshake, TcpStream)> {
    let began = Instant::now();
    let exchange = async {
        let mut stream = TcpStream::connect(front).await?;
        let request = format!("GET /v1/texto HTTP/1.1\r\nHost: {front}\r\n{}{headers}\r\n", http::UPGRADE);
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.windows(4).any(|four| four == b"\r\n\r\n") {
            let byte = stream.read_u8().await.context("the connection was closed before an answer")?;
            head.push(byte);
        }
        anyhow::Ok((String::from_utf8_lossy(&head).into_owned(), stream))
    };
    let (head, stream) =
        tokio::time::timeout(Duration::from_secs(10), exchange).await.context("no answer in 10 s")??;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP answer")?;
    Ok((Handshake { status, head, took: began.elapsed() }, stream))
}
