//! What it costs a Redis that many gateways come back at once: how long the others wait for it while all replay.
//!
//! `cargo run --release --example replay -- [GATEWAYS] [CHANNELS-EACH] [AT-ONCE] [CHANNELS-BEFORE]`
//!
//! Each asks for as many channels at a time as a link does, or always for AT-ONCE, if that is not 0.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use texto::broker::redis::pace::Pace;
use texto_lab::redis_server::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

/// How often Redis is asked for a sign of life.
const PACE: Duration = Duration::from_millis(5);
/// What a gateway waits for one, unless it is told otherwise.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Lines in one confirmation.
const LINES: usize = 6;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let mut next = |usual| arguments.next().unwrap_or(Ok(usual));
    let (gateways, each) = (next(100)?, next(10_000)?);
    let (at_once, before) = (next(0)?, next(1_000_000)?);
    let folder = tempfile::TempDir::new()?;
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await?;
    let address = redis.address();
    let _others = replay(&address, before, 1000).await?;
    let pace = if at_once > 0 { format!("{at_once} at a time") } else { "as links do".to_owned() };
    println!("{before} channels are there; {gateways} gateways replay {each} each, {pace}");

    let over = Arc::new(AtomicBool::new(false));
    let (pings, done) = (address.clone(), over.clone());
    let calm = ping(&pings, &AtomicBool::new(false), 200).await?;
    report("before", calm);
    let pinging = tokio::spawn(async move { ping(&pings, &done, usize::MAX).await });
    let began = Instant::now();
    let mut replays = JoinSet::new();
    for _ in 0..gateways {
        let address = address.clone();
        replays.spawn(async move { replay(&address, each, at_once).await });
    }
    let mut connections = Vec::new();
    while let Some(connection) = replays.join_next().await {
        connections.push(connection??);
    }
    let took = began.elapsed();
    over.store(true, Ordering::Relaxed);
    report("meanwhile", pinging.await??);
    println!("all are back after {took:.1?}");
    Ok(())
}

/// Subscribes at the pace of a link, or always to `at_once` channels at a time, if that is not 0.
async fn replay(address: &str, channels: usize, at_once: usize) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut asked, mut confirmed, mut lines) = (0, 0, 0);
    let mut pace = Pace::new(TIMEOUT);
    let mut under_way: VecDeque<(usize, Instant)> = VecDeque::new();
    let mut buffer = vec![0; 64 * 1024];
    while confirmed < channels {
        let unconfirmed = asked - confirmed;
        let room = match at_once {
            0 => pace.room(unconfirmed),
            same if 2 * unconfirmed <= same => same - unconfirmed,
            _ => 0,
        };
        let count = room.min(channels - asked);
        if count > 0 {
            let mut command = format!("*{}\r\n$9\r\nSUBSCRIBE\r\n", count + 1);
            for _ in 0..count {
                command.push_str(&format!("$42\r\ntexto:{}\r\n", Uuid::new_v4()));
            }
            asked += count;
            under_way.push_back((asked, Instant::now()));
            stream.write_all(command.as_bytes()).await?;
            continue;
        }
        let count = stream.read(&mut buffer).await?;
        anyhow::ensure!(count > 0, "Redis closed the connection");
        lines += buffer[..count].iter().filter(|byte| **byte == b'\n').count();
        confirmed = lines / LINES;
        while under_way.front().is_some_and(|(until, _)| *until <= confirmed) {
            let Some((_, sent)) = under_way.pop_front() else { break };
            pace.confirmed(sent.elapsed());
        }
    }
    Ok(stream)
}

/// Signs of life until `over`, or so many: how long each took.
async fn ping(address: &str, over: &AtomicBool, most: usize) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut took = Vec::new();
    while took.len() < most && !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        stream.write_all(b"PING\r\n").await?;
        stream.read_exact(&mut [0; 7]).await.context("no answer")?;
        took.push(began.elapsed());
        tokio::time::sleep(PACE).await;
    }
    Ok(took)
}

fn report(when: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    println!("{when}: half within {:.1?}, 99 % within {:.1?}, the longest {:.1?}", at(0.5), at(0.99), at(1.0));
}
