//! Owns a gateway of one node whose sessions can be resumed, and which breaks one promise on purpose: what the judge of
//! persons must catch.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

/// Which promise is broken: at each resume, where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// None.
    Honest,
    /// What came while the person was away is gone, and it is told that nothing is missing.
    Forgotten,
    /// The same, but the person is told.
    Told,
    /// What the person has comes again, under new numbers.
    Replayed,
    /// What came while the person was away comes in the wrong order.
    Reversed,
    /// A request that is sent again is taken for a new one.
    Amnesia,
    /// The person gets another id.
    Stranger,
    /// Nothing comes for half a second.
    Slow,
    /// What is sent to a person who is away is refused.
    Refused,
    /// One in ten messages is not answered, whether anybody resumes or not.
    Unanswered,
}

/// A running liar. Ends when dropped.
#[derive(Debug)]
pub struct FakeHome {
    /// Where clients connect.
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Session {
    /// What has not been acknowledged, by its number.
    held: VecDeque<(u64, String, Value)>,
    /// What was acknowledged last.
    last: VecDeque<Value>,
    seq: u64,
    /// The requests that were taken.
    requests: HashSet<String>,
    /// The connection that is served.
    connection: u64,
    is_attached: bool,
    news: Arc<Notify>,
}

type Sessions = Arc<Mutex<HashMap<String, Session>>>;
type Sink = SplitSink<WebSocketStream<TcpStream>, Message>;

fn lock(sessions: &Sessions) -> MutexGuard<'_, HashMap<String, Session>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeHome {
    /// Starts one with `flaw`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(flaw: Flaw) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let sessions = Sessions::default();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut talks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sessions = sessions.clone();
                talks.spawn(async move {
                    let mut own = None;
                    // Whoever hangs up ends the talk.
                    let _ = talk(stream, flaw, &sessions, &mut own).await;
                    if let Some((client, connection)) = own
                        && let Some(session) = lock(&sessions).get_mut(&client)
                    {
                        session.is_attached &= session.connection != connection;
                    }
                });
            }
        });
        Ok(Self { address, _task: task })
    }
}

fn frame(own: &str, id: &str, kind: &str, data: &Value) -> Message {
    Message::text(json!({ "client_id": own, "id": id, "kind": kind, "data": data }).to_string())
}

async fn talk(stream: TcpStream, flaw: Flaw, sessions: &Sessions, own: &mut Option<(String, u64)>) -> Result<()> {
    let (mut sink, mut frames) = tokio_tungstenite::accept_async(stream).await?.split();
    let registration: Value = serde_json::from_str(frames.next().await.context("no registration")??.to_text()?)?;
    let (client, connection, resumed) = attach(flaw, sessions, &registration["data"]);
    *own = Some((client.clone(), connection));
    let resume = json!({ "token": client, "window_ms": 30_000, "expires_ms": 86_400_000, "standby": false });
    let greeting = |resumed: bool| json!({ "client_id": client, "resumed": resumed, "resume": resume });
    let id = registration["id"].as_str().unwrap_or_default();
    sink.send(frame(&client, id, "connection", &greeting(resumed))).await?;
    if resumed && flaw == Flaw::Slow {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let news = lock(sessions).get(&client).context("no session")?.news.clone();
    let mut written = registration["data"]["seq"].as_u64().filter(|_| resumed).unwrap_or(0);
    loop {
        written = write(&mut sink, sessions, &client, connection, written).await?;
        let text = tokio::select! {
            () = news.notified() => continue,
            frame = frames.next() => frame.context("gone")??,
        };
        let Ok(request) = serde_json::from_str::<Value>(text.to_text()?) else { continue };
        let id = request["id"].as_str().unwrap_or_default();
        match request["kind"].as_str() {
            Some("registration") => sink.send(frame(&client, id, "connection", &greeting(true))).await?,
            Some("ack") => acknowledged(sessions, &client, request["data"]["seq"].as_u64().unwrap_or(0)),
            Some("send") => {
                if let Some((kind, data)) = take(flaw, sessions, &client, id, &request["data"]) {
                    sink.send(frame(&client, id, kind, &data)).await?;
                }
            }
            _ => {}
        }
    }
}

/// Finds or makes the session: who it is, which of its connections this is, and what the person is told.
fn attach(flaw: Flaw, sessions: &Sessions, data: &Value) -> (String, u64, bool) {
    let mut sessions = lock(sessions);
    let token = data["resume"].as_str().filter(|token| flaw != Flaw::Stranger && sessions.contains_key(*token));
    let client = token.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
    let session = sessions.entry(client.clone()).or_default();
    session.connection += 1;
    session.is_attached = true;
    if token.is_none() {
        return (client, session.connection, false);
    }
    drop_until(session, data["seq"].as_u64().unwrap_or(0));
    match flaw {
        Flaw::Forgotten => session.held.clear(),
        Flaw::Told => {
            session.held.clear();
            session.seq = 0;
        }
        Flaw::Replayed => {
            for data in session.last.clone() {
                push(session, data);
            }
        }
        Flaw::Reversed => {
            let numbers: Vec<_> = session.held.iter().map(|(seq, ..)| *seq).collect();
            session.held.make_contiguous().reverse();
            for (entry, seq) in session.held.iter_mut().zip(numbers) {
                entry.0 = seq;
            }
        }
        Flaw::Amnesia => session.requests.clear(),
        _ => {}
    }
    (client, session.connection, flaw != Flaw::Told)
}

fn push(session: &mut Session, data: Value) {
    session.seq += 1;
    session.held.push_back((session.seq, Uuid::new_v4().to_string(), data));
    session.news.notify_one();
}

fn drop_until(session: &mut Session, seq: u64) {
    while session.held.front().is_some_and(|(held, ..)| *held <= seq) {
        session.last.extend(session.held.pop_front().map(|(.., data)| data));
        if session.last.len() > 3 {
            session.last.pop_front();
        }
    }
}

fn acknowledged(sessions: &Sessions, client: &str, seq: u64) {
    if let Some(session) = lock(sessions).get_mut(client) {
        drop_until(session, seq);
    }
}

/// Takes a message, once; the answer, if there is one.
fn take(flaw: Flaw, sessions: &Sessions, client: &str, id: &str, data: &Value) -> Option<(&'static str, Value)> {
    let mut sessions = lock(sessions);
    let is_new = sessions.get_mut(client)?.requests.insert(id.to_owned());
    let to = data["receiver_id"].as_str().and_then(|to| sessions.get_mut(to));
    let Some(to) = to.filter(|to| flaw != Flaw::Refused || to.is_attached) else {
        return Some(("error", json!({ "code": "ENOTCONN", "description": "nobody" })));
    };
    if is_new {
        push(to, json!({ "sender_id": client, "text": data["text"] }));
    }
    (flaw != Flaw::Unanswered || to.seq % 10 != 0).then_some(("ack", Value::Null))
}

/// Writes what is held and was not written over this connection.
async fn write(sink: &mut Sink, sessions: &Sessions, client: &str, connection: u64, written: u64) -> Result<u64> {
    let due: Vec<_> = {
        let sessions = lock(sessions);
        let session = sessions.get(client).filter(|session| session.connection == connection).context("taken over")?;
        session.held.iter().filter(|(seq, ..)| *seq > written).cloned().collect()
    };
    let mut last = written;
    for (seq, id, mut data) in due {
        data["seq"] = json!(seq);
        sink.feed(frame(client, &id, "receive", &data)).await?;
        last = seq;
    }
    sink.flush().await?;
    Ok(last)
}
