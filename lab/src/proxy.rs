//! Owns a proxy between two parties that speak TCP: it can be far away, stop forwarding without a word, and count.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes that are read at a time.
const CHUNK: usize = 16 * 1024;
/// Reads that may be under way in one direction: a gigabyte, so that distance is no bound on what flows.
const UNDER_WAY: usize = 65_536;

/// A running proxy. When it is dropped, its connections break.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    road: watch::Sender<Road>,
    cuts: watch::Sender<()>,
    counts: Arc<Counts>,
    _task: JoinSet<()>,
}

/// What bytes meet on the way.
#[derive(Clone, Copy, Debug, Default)]
struct Road {
    /// How long they travel, in each direction.
    delay: Duration,
    /// Whether they stand still: nothing arrives, nothing is closed.
    held: bool,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl Proxy {
    /// Starts one in front of `target` (`host:port`).
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(target: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let road = watch::channel(Road::default()).0;
        let counts = Arc::<Counts>::default();
        let (target, roads, counted) = (target.to_owned(), road.clone(), counts.clone());
        let (cuts, mut cut) = watch::channel(());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok(accepted) => accepted,
                        Err(_) => return,
                    },
                    Ok(()) = cut.changed() => {
                        connections.shutdown().await;
                        continue;
                    }
                };
                counted.connections.fetch_add(1, Ordering::Relaxed);
                let (target, counts) = (target.clone(), counted.clone());
                let road = (roads.subscribe(), roads.subscribe());
                connections.spawn(async move {
                    // Whichever side breaks, breaks the other.
                    let _ = connection(stream, &target, road, &counts).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, road, cuts, counts, _task: task })
    }

    /// From now on bytes travel for `delay`, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.road.send_modify(|road| road.delay = delay);
    }

    /// Nothing arrives any more, also no end of a connection. New connections are taken, and get no answer.
    pub fn hold(&self) {
        self.road.send_modify(|road| road.held = true);
    }

    /// Lets go on what stood still.
    pub fn release(&self) {
        self.road.send_modify(|road| road.held = false);
    }

    /// Breaks all connections that stand; what was on its way is lost. New ones are taken.
    pub fn cut(&self) {
        self.cuts.send_replace(());
    }

    /// Connections taken so far.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Bytes delivered so far, in both directions.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

async fn connection(
    stream: TcpStream,
    target: &str,
    (mut there, mut back): (watch::Receiver<Road>, watch::Receiver<Road>),
    counts: &Counts,
) -> Result<()> {
    passable(&mut there).await?;
    let upstream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (from, to) = (stream.into_split(), upstream.into_split());
    tokio::try_join!(forward(from.0, to.1, &mut there, counts), forward(to.0, from.1, &mut back, counts))?;
    Ok(())
}

async fn passable(road: &mut watch::Receiver<Road>) -> Result<()> {
    road.wait_for(|road| !road.held).await?;
    Ok(())
}

/// One direction: what is read now is written when its time has come. Ends when the reader has said all.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    road: &mut watch::Receiver<Road>,
    counts: &Counts,
) -> Result<()> {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let delays = road.clone();
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = from.read(&mut buffer).await?;
            let due = Instant::now() + delays.borrow().delay;
            // An empty one is the end: it travels as well.
            queue.send((due, buffer[..count].to_vec())).await?;
            if count == 0 {
                return Ok::<_, anyhow::Error>(());
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            passable(road).await?;
            if bytes.is_empty() {
                to.shutdown().await?;
                break;
            }
            to.write_all(&bytes).await?;
            counts.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::try_join!(read, write)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(100);

    /// A proxy in front of a server that sends back what it gets.
    async fn echo() -> (Proxy, TcpStream, JoinSet<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let proxy = Proxy::start(&address).await.unwrap();
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        (proxy, stream, server)
    }

    async fn round(stream: &mut TcpStream) -> Duration {
        let began = Instant::now();
        stream.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
        began.elapsed()
    }

    #[tokio::test]
    async fn bytes_travel_for_the_delay_in_each_direction() {
        let (proxy, mut stream, _server) = echo().await;
        round(&mut stream).await;
        proxy.delay(DELAY);
        let took = round(&mut stream).await;
        assert!(took >= DELAY * 2, "{took:?}");
        assert_eq!((proxy.connections(), proxy.bytes()), (1, 16));
    }

    #[tokio::test]
    async fn what_is_held_arrives_later_and_nothing_is_closed() {
        let (proxy, mut stream, _server) = echo().await;
        round(&mut stream).await;
        proxy.hold();
        let held = tokio::time::timeout(DELAY, round(&mut stream)).await;
        assert!(held.is_err(), "{held:?}");
        proxy.release();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
    }

    #[tokio::test]
    async fn a_cut_breaks_what_stands_and_takes_what_comes() {
        let (proxy, mut stream, mut server) = echo().await;
        round(&mut stream).await;
        proxy.hold();
        stream.write_all(b"lost").await.unwrap();
        proxy.cut();
        assert!(stream.read(&mut [0; 4]).await.is_ok_and(|count| count == 0), "it has ended");
        server.join_next().await.unwrap().unwrap();
        TcpStream::connect(proxy.address).await.unwrap();
    }

    #[tokio::test]
    async fn an_end_is_an_end_for_the_other_side_too() {
        let (_proxy, mut stream, mut server) = echo().await;
        round(&mut stream).await;
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 0);
        server.join_next().await.unwrap().unwrap();
    }
}
