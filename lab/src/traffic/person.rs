//! Owns a person in traffic: a client whose session outlives its connections, and how it behaves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::SinkExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, sleep, sleep_until, timeout};
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::Message;

use super::resumable::{ACK_AFTER, Resumable, Seen};
use super::{Close, Note, Return, Writer, lock};
use crate::checker::{Event, Turn};
use crate::client::{self, Incoming, PATIENCE, Socket};

/// A node that drains spreads its clients itself: they come back over this time.
const TOLD_PAUSE: Duration = Duration::from_millis(250);
/// Between two rounds through all gateways, none of which took it.
const ROUND: Duration = Duration::from_millis(100);

/// How persons behave.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Between the loss of a connection and the next: from, to.
    pub pause: (Duration, Duration),
    /// Silence after which a sign of life is asked for, and how long that may take.
    pub quiet: (Duration, Duration),
    /// How long a gateway may take to accept a connection, before the next one is tried.
    pub dial: Duration,
    /// Whether they use the Rust client, as applications do, which has manners of its own; orders are not for them.
    pub uses_library: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            pause: (Duration::from_millis(50), Duration::from_millis(50)),
            quiet: (Duration::from_secs(10), Duration::from_secs(5)),
            dial: Duration::from_secs(1),
            uses_library: false,
        }
    }
}

/// What a person is told to do.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Its network resets the connection; it is back after so long, at any gateway.
    Reset(Duration),
    /// It asks whether another node has what its own has.
    Ask,
    /// It writes so many messages at once, loses its connection before an answer, and is back at another gateway at once.
    Burst(usize),
}

/// How a connection ended.
enum Lost {
    /// With this code; 1006 without one.
    Closed(u16),
    /// Nothing came any more.
    Silent,
    /// By order.
    Ordered(Order),
}

/// A client whose session outlives its connections.
pub(super) struct Person {
    writer: Writer,
    session: Resumable,
    manners: Manners,
    gateway: usize,
    orders: mpsc::Receiver<Order>,
}

impl Person {
    pub(super) fn new(writer: Writer, gateway: usize, manners: Manners, orders: mpsc::Receiver<Order>) -> Self {
        Self { writer, session: Resumable::default(), manners, gateway, orders }
    }

    fn turn(&self, turn: Turn) {
        lock(&self.writer.scene.checker).feed_person(self.writer.now(), self.writer.index, turn);
    }

    /// The first connection.
    pub(super) async fn connect(&mut self) -> Result<Socket> {
        self.begin(self.address()).await
    }

    /// To any other gateway, as a load balancer would choose.
    fn go_elsewhere(&mut self) {
        let others = self.writer.scene.gateways.len().saturating_sub(1).max(1);
        self.gateway += 1 + fastrand::usize(..others);
    }

    fn address(&self) -> SocketAddr {
        let gateways = &self.writer.scene.gateways;
        gateways[self.gateway % gateways.len()]
    }

    pub(super) async fn run(mut self, mut socket: Socket, pace: Option<Interval>, mut sending: watch::Receiver<bool>) {
        self.writer.pace = pace;
        loop {
            let Some(lost) = self.talk(&mut socket, &mut sending).await else { return };
            let noticed = Instant::now();
            for (pair, number) in self.session.unanswered() {
                self.writer.note(pair, number, &Event::Suspended);
            }
            let (least, most) = match lost {
                Lost::Ordered(Order::Reset(pause)) => (pause, pause),
                Lost::Ordered(_) => (Duration::ZERO, Duration::ZERO),
                Lost::Closed(1001 | 1012) => (Duration::ZERO, TOLD_PAUSE),
                _ => self.manners.pause,
            };
            match lost {
                Lost::Closed(code) => {
                    let at = self.writer.now();
                    lock(&self.writer.scene.closes).push(Close { client: self.writer.index, code, at });
                    match code {
                        1001 | 1012 => self.writer.note(0, 0, &Event::Moved),
                        1006 => {}
                        _ => self.writer.note(0, 0, &Event::Dropped(code)),
                    }
                    if code == 4001 {
                        // Somebody else is this person now.
                        self.writer.finish();
                        return;
                    }
                    self.go_elsewhere();
                }
                Lost::Silent => self.go_elsewhere(),
                Lost::Ordered(order) => {
                    if let (Order::Reset(_), MaybeTlsStream::Plain(stream)) = (order, socket.get_ref()) {
                        // The other side sees a reset. Where that can't be had, it sees an end.
                        drop(stream.set_zero_linger());
                    }
                    self.gateway += fastrand::usize(..self.writer.scene.gateways.len());
                }
            }
            drop(socket);
            sleep(least + most.saturating_sub(least).mul_f64(fastrand::f64())).await;
            let paused = noticed.elapsed();
            self.turn(Turn::Paused(paused));
            // What was said to somebody who was not there.
            while self.orders.try_recv().is_ok() {}
            socket = self.dial().await;
            let back = Return { client: self.writer.index, at: self.writer.now(), took: noticed.elapsed() - paused };
            lock(&self.writer.scene.returns).push(back);
        }
    }

    /// Connects anew, to whichever gateway takes it.
    async fn dial(&mut self) -> Socket {
        loop {
            for _ in 0..self.writer.scene.gateways.len() {
                match self.begin(self.address()).await {
                    Ok(socket) => return socket,
                    Err(_) => self.gateway += 1,
                }
            }
            sleep(ROUND.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    /// Begins a connection, and writes again what was not answered over the last one.
    async fn begin(&mut self, address: SocketAddr) -> Result<Socket> {
        let open = timeout(self.manners.dial, client::open(address, "/v1/texto?register=1"));
        let mut socket = open.await.context("no handshake")??;
        socket.send(Message::text(self.session.begin())).await?;
        let turn = loop {
            match timeout(PATIENCE, client::next(&mut socket)).await.context("no answer to the registration")? {
                Incoming::Closed(code) => bail!("closed with {code} instead of an answer"),
                Incoming::Frame(frame) => match self.session.take(&frame) {
                    Seen::Greeted(turn) => break turn,
                    _ => continue,
                },
            }
        };
        if let Some(turn) = turn {
            self.turn(turn);
        }
        if let Some(id) = self.session.id() {
            lock(&self.writer.scene.ids)[self.writer.index] = id;
        }
        let again = self.session.again(Instant::now());
        for (pair, number) in again.given_up {
            self.writer.note(pair, number, &Event::GivenUp);
        }
        for ((pair, number), frame) in again.frames {
            self.writer.note(pair, number, &Event::SentAgain);
            socket.feed(Message::text(frame)).await?;
        }
        socket.flush().await?;
        Ok(socket)
    }

    /// Talks until the connection's end; none when the traffic itself is over.
    async fn talk(&mut self, socket: &mut Socket, sending: &mut watch::Receiver<bool>) -> Option<Lost> {
        let _attached = Attached::new(&self.writer.scene.attached);
        let (quiet, patience) = self.manners.quiet;
        let mut is_asked = false;
        let mut silent_at = Instant::now() + quiet;
        let mut ack_at = Instant::now();
        loop {
            if self.writer.left == 0 || !*sending.borrow_and_update() {
                self.writer.finish();
            }
            let may_send = self.writer.left > 0 && self.session.unanswered().len() < self.writer.scene.window;
            let mut frames = Vec::new();
            tokio::select! {
                incoming = client::next(socket) => match incoming {
                    Incoming::Closed(code) => return Some(Lost::Closed(code)),
                    Incoming::Frame(frame) => {
                        (is_asked, silent_at) = (false, Instant::now() + quiet);
                        if !self.session.owes_ack() {
                            ack_at = Instant::now() + ACK_AFTER;
                        }
                        let seen = self.session.take(&frame);
                        if frame["kind"] == "connection" {
                            lock(&self.writer.scene.copied)[self.writer.index] = self.session.has_standby();
                        }
                        match seen {
                            Seen::Shown(text) => self.writer.read(&text),
                            Seen::Answered((pair, number), answer) => {
                                self.writer.note(pair, number, &Event::Answered(answer));
                            }
                            Seen::Greeted(_) | Seen::Nothing => {}
                        }
                        if self.session.must_ack() {
                            frames.push(self.session.ack());
                        }
                    }
                },
                () = self.writer.due(), if may_send => frames.push(self.compose()),
                () = sleep_until(ack_at.into()), if self.session.owes_ack() => frames.push(self.session.ack()),
                () = sleep_until(silent_at.into()) => {
                    if std::mem::replace(&mut is_asked, true) {
                        return Some(Lost::Silent);
                    }
                    silent_at = Instant::now() + patience;
                    frames.push(self.session.question());
                },
                Some(order) = self.orders.recv() => match order {
                    Order::Ask => frames.push(self.session.question()),
                    Order::Reset(_) => return Some(Lost::Ordered(order)),
                    Order::Burst(count) => {
                        let burst = count.min(self.writer.left);
                        frames.extend((0..burst).map(|_| self.compose()));
                        drop(self.write(socket, frames).await);
                        return Some(Lost::Ordered(order));
                    }
                },
                changed = sending.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return None,
                },
            }
            if self.write(socket, frames).await.is_err() {
                return Some(Lost::Closed(1006));
            }
        }
    }

    async fn write(&self, socket: &mut Socket, frames: Vec<String>) -> Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        let write = async {
            for frame in frames {
                socket.feed(Message::text(frame)).await?;
            }
            socket.flush().await
        };
        Ok(timeout(PATIENCE, write).await.context("nothing is read")??)
    }

    fn compose(&mut self) -> String {
        let Note { pair, number, receiver, text } = self.writer.next();
        self.session.send(Instant::now(), (pair, number), receiver, &text)
    }
}

/// Counts a person that has a connection.
pub(super) struct Attached(Arc<AtomicUsize>);

impl Attached {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
