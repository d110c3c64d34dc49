//! What links to the replicas cost: throughput and processor time with them and without, in one run.
//!
//! `cargo build --release && cargo run --release -p texto-lab --example price -- target/release/texto`

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use texto_lab::client::{Answer, Client};
use texto_lab::cluster::ClusterOptions;
use texto_lab::stage::Stage;
use tokio::task::JoinSet;

const PAIRS: usize = 50;
/// Sends of each client that are under way at a time.
const WINDOW: usize = 8;
const RUN: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> Result<()> {
    let binary = std::env::args().nth(1).context("usage: price PATH-OF-TEXTO")?;
    println!("{PAIRS} pairs on 2 gateways, {WINDOW} sends under way each, {ROUNDS} rounds of {RUN:?}");
    let mut totals = [(0.0, 0.0); 2];
    for round in 0..ROUNDS {
        for (total, standby) in totals.iter_mut().zip(["true", "false"]) {
            let (rate, micros) = measure(Path::new(&binary), standby).await?;
            println!(
                "round {round}: standby {standby}: {rate:.0} messages/s, {micros:.1} µs of gateway time a message"
            );
            total.0 += rate;
            total.1 += micros;
        }
    }
    let [(rate_on, cpu_on), (rate_off, cpu_off)] = totals;
    println!(
        "with standby links: {:.2} of the throughput, {:.2} of the processor time a message",
        rate_on / rate_off,
        cpu_on / cpu_off
    );
    Ok(())
}

/// Messages a second, and microseconds of both gateways' processor time for each.
async fn measure(binary: &Path, standby: &str) -> Result<(f64, f64)> {
    let flag = format!("--standby-subscriptions={standby}");
    let stage = Stage::start(binary, &ClusterOptions::default(), 2, &[&flag]).await?;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..PAIRS {
        let mut sender = Client::connect(stage.gateways[0].address).await?;
        let mut receiver = Client::connect(stage.gateways[1].address).await?;
        let to = receiver.id;
        let (stopped, counted) = (stop.clone(), count.clone());
        tasks.spawn(async move {
            let mut waiting = std::collections::VecDeque::new();
            while !stopped.load(Ordering::Relaxed) {
                while waiting.len() < WINDOW {
                    waiting.push_back(sender.post(to, "a text of ordinary length, as people write it").await?);
                }
                if let Some(request) = waiting.pop_front() {
                    ensure!(sender.answer(request).await? == Answer::Ack, "not acknowledged");
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        tasks.spawn(async move {
            // Until it is aborted.
            while receiver.receive().await.is_ok() {}
            Ok(())
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let cpu = || -> Result<f64> { stage.gateways.iter().map(|gateway| gateway.cpu_seconds()).sum() };
    let (began, cpu_began, count_began) = (Instant::now(), cpu()?, count.load(Ordering::Relaxed));
    tokio::time::sleep(RUN).await;
    let (took, spent) = (began.elapsed().as_secs_f64(), cpu()? - cpu_began);
    let messages = (count.load(Ordering::Relaxed) - count_began) as f64;
    stop.store(true, Ordering::Relaxed);
    tasks.shutdown().await;
    let alarms = stage.gateways[0].metric("texto_messages_resent_total").await.unwrap_or_default();
    let losses = stage.gateways[0].log().iter().filter(|line| line.contains("lost")).count();
    if alarms > 0.0 || losses > 0 {
        println!("  under full load: {alarms} messages sent again, {losses} links lost");
    }
    Ok((messages / took, spent * 1e6 / messages))
}
