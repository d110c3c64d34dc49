//! Owns single persons that a scenario leads by the hand, beside the traffic.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::SinkExt;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::Fault;
use crate::checker::Turn;
use crate::client::{self, Answer, Client, Incoming, PATIENCE, Socket};
use crate::process::until;
use crate::traffic::{Resumable, Seen};

/// How often two connections meet, on one gateway and on two.
const DUELS: usize = 20;
/// When one connection is all that is left, it is looked at for so long.
const SETTLED: Duration = Duration::from_millis(300);
/// How long two connections may both be open.
const DECIDED: Duration = Duration::from_secs(3);
/// What two persons who acknowledge nothing may cost a gateway: their outboxes, and what a gateway takes anyway.
const MUTE_BYTES: u64 = 64 * 1024 * 1024;
/// How long a client may take to acknowledge what was written, and a little more.
const MUTE_FOR: Duration = Duration::from_secs(40);

/// A person, led by the hand.
struct Guest {
    session: Resumable,
    socket: Socket,
    /// What it was told when it came.
    turn: Option<Turn>,
}

impl Guest {
    async fn begin(address: SocketAddr, mut session: Resumable) -> Result<Self> {
        let mut socket = client::open(address, "/v1/texto?register=1").await?;
        socket.send(Message::text(session.begin())).await?;
        loop {
            match timeout(PATIENCE, client::next(&mut socket)).await.context("no answer to the registration")? {
                Incoming::Closed(code) => bail!("closed with {code} instead of an answer"),
                Incoming::Frame(frame) => {
                    if let Seen::Greeted(turn) = session.take(&frame) {
                        return Ok(Self { session, socket, turn });
                    }
                }
            }
        }
    }

    /// The same, and says that it has its token: whoever has an older one comes too late from then on.
    async fn settle(address: SocketAddr, session: Resumable) -> Result<Self> {
        let mut guest = Self::begin(address, session).await?;
        let ack = guest.session.ack();
        // Another one may have it already; then the next read says so.
        let _ = guest.socket.send(Message::text(ack)).await;
        Ok(guest)
    }

    /// Reads for `time`: what is shown, and the close code should there be one.
    async fn read(&mut self, time: Duration) -> (Vec<String>, Option<u16>) {
        let mut shown = Vec::new();
        let end = tokio::time::Instant::now() + time;
        while let Ok(incoming) = tokio::time::timeout_at(end, client::next(&mut self.socket)).await {
            match incoming {
                Incoming::Closed(code) => return (shown, Some(code)),
                Incoming::Frame(frame) => {
                    if let Seen::Shown(text) = self.session.take(&frame) {
                        shown.push(text);
                    }
                }
            }
        }
        (shown, None)
    }
}

/// Two connections with one token begin at once: exactly one of them keeps the session, and has what is sent from then on.
pub(super) async fn duels(fault: &mut Fault<'_>) -> Result<()> {
    let addresses = fault.stage.addresses();
    let mut sender = Client::connect(*addresses.last().context("no gateway")?).await?;
    for duel in 0..DUELS * 2 {
        let here = addresses[duel / 2 % addresses.len()];
        let there = if duel % 2 == 0 { here } else { addresses[(duel / 2 + 1) % addresses.len()] };
        let first = Guest::begin(here, Resumable::default()).await?;
        let session = first.session.clone();
        // Whether the connection before them is there yet must not matter.
        let first = (duel % 4 < 2).then_some(first);
        let both = tokio::join!(Guest::settle(here, session.clone()), Guest::settle(there, session.clone()));
        drop(first);
        let mut standing: Vec<Guest> = [both.0, both.1].into_iter().flatten().collect();
        // Whose token came too late is somebody else.
        standing.retain(|guest| guest.session.id() == session.id());
        let what = format!("duel {duel} on {} gateways", if here == there { "one" } else { "two" });
        let codes = decide(&mut standing, there).await?;
        let [winner] = &mut standing[..] else {
            let stay = standing.len();
            let id = session.id().context("no id")?;
            let answer = sender.send(id, &what).await?;
            let mut seen = Vec::new();
            for guest in &mut standing {
                seen.push(guest.read(Duration::from_millis(200)).await);
            }
            fault.broken.push(format!(
                "{what}: {stay} connections stay after {DECIDED:?}, others were closed with {codes:?}; \
                 what is sent then is answered {answer:?}, and they see {seen:?}"
            ));
            continue;
        };
        if winner.session.id() != session.id() {
            fault.broken.push(format!("{what}: another id"));
        }
        if let Some(code) = codes.iter().find(|code| ![4001, 1012].contains(*code)) {
            fault.broken.push(format!("{what}: the other was closed with {code}"));
        }
        let text = format!("duel {duel}");
        let id = winner.session.id().context("no id")?;
        let answer = sender.send(id, &text).await?;
        let (shown, code) = winner.read(Duration::from_millis(100)).await;
        if (&answer, &shown, code) != (&Answer::Ack, &vec![text], None) {
            fault.broken.push(format!("{what}: a message was answered {answer:?}, shown {shown:?}, closed {code:?}"));
        }
    }
    Ok(())
}

/// Waits until all connections but one are closed. Whoever is told to connect again (1012) does so, at `there`, and may be
/// somebody else there. Returns the close codes.
async fn decide(standing: &mut Vec<Guest>, there: SocketAddr) -> Result<Vec<u16>> {
    let began = Instant::now();
    let mut codes = Vec::new();
    loop {
        for place in (0..standing.len()).rev() {
            if let (_, Some(code)) = standing[place].read(Duration::from_millis(5)).await {
                codes.push(code);
                let closed = standing.remove(place);
                if code == 1012 {
                    let id = closed.session.id();
                    let again = Guest::settle(there, closed.session).await?;
                    standing.extend((again.session.id() == id).then_some(again));
                }
            }
        }
        // Both may be told something yet.
        let is_over = standing.len() <= 1 && began.elapsed() > SETTLED;
        if is_over || began.elapsed() > DECIDED {
            return Ok(codes);
        }
    }
}

/// A person that reads and never acknowledges, and one that never reads: their senders are pushed back, memory is
/// bounded, and they are put out.
pub(super) async fn mutes(fault: &mut Fault<'_>) -> Result<()> {
    let address = fault.stage.gateways[0].address;
    let before = fault.stage.gateways[0].resident_bytes()?;
    let mut reader = Guest::begin(address, Resumable::default()).await?;
    let mut sleeper = Guest::begin(address, Resumable::default()).await?;
    let began = Instant::now();
    let text = "x".repeat(8_000);
    for guest in [&reader, &sleeper] {
        let id = guest.session.id().context("no id")?;
        let mut sender = Client::connect(*fault.stage.addresses().last().context("no gateway")?).await?;
        let pushed_back = until("its sender is pushed back", PATIENCE, async || {
            matches!(sender.send(id, &text).await.ok()?, Answer::Error(code) if code == "EBUSY").then_some(())
        });
        if let Err(error) = pushed_back.await {
            fault.broken.push(error.to_string());
        }
    }
    let (shown, code) = reader.read(MUTE_FOR).await;
    fault.notes.push(format!(
        "{} messages shown and not acknowledged, closed after {:.1?}",
        shown.len(),
        began.elapsed()
    ));
    if code != Some(1013) {
        fault.broken.push(format!("who never acknowledges was closed with {code:?} after {:.1?}", began.elapsed()));
    }
    let (_, code) = sleeper.read(MUTE_FOR.saturating_sub(began.elapsed())).await;
    if code.is_none() {
        fault.broken.push("who never reads was not closed".to_owned());
    }
    let grown = fault.stage.gateways[0].resident_bytes()?.saturating_sub(before);
    if grown > MUTE_BYTES {
        fault.broken.push(format!("the gateway grew by {grown} bytes"));
    }
    let again = Guest::begin(address, reader.session.clone()).await?;
    if !matches!(again.turn, Some(Turn::Told)) {
        fault.broken.push(format!("who was put out came back, and was told {:?}", again.turn));
    }
    Ok(())
}
