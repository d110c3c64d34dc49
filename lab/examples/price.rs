//! What a change of the gateway costs: two programs, or one with and without links to replicas, in turn, in one run.
//!
//! `cargo build --release && cargo run --release -p texto-lab --example price -- target/release/texto`
//! `cargo run --release -p texto-lab --example price -- OLD/texto NEW/texto`

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use texto_lab::client::{Answer, Client};
use texto_lab::cluster::ClusterOptions;
use texto_lab::gateway::Gateway;
use texto_lab::stage::Stage;
use tokio::task::JoinSet;

/// Pairs of clients, and sends of each that are under way at a time.
const LOADS: [(usize, usize); 3] = [(50, 16), (50, 1), (1, 1)];
const WARM_UP: Duration = Duration::from_secs(2);
const RUN: Duration = Duration::from_secs(5);
const ROUNDS: usize = 5;
/// Idle sessions whose memory is measured.
const SESSIONS: usize = 5_000;
/// What an idle session has no use for is given back within this.
const REST: Duration = Duration::from_secs(8);
const TEXT: &str = "a text of ordinary length, as people write it";

/// One of the two that are compared.
struct Contender {
    name: String,
    binary: PathBuf,
    flag: &'static str,
}

#[tokio::main]
async fn main() -> Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let contender =
        |name: &str, binary: &PathBuf, flag| Contender { name: name.to_owned(), binary: binary.clone(), flag };
    let contenders = match paths.as_slice() {
        [one] => [
            contender("without", one, "--standby-subscriptions=false"),
            contender("with standby links", one, "--standby-subscriptions=true"),
        ],
        [old, new] => {
            [old, new].map(|path| contender(&path.display().to_string(), path, "--standby-subscriptions=true"))
        }
        _ => bail!("usage: price PATH-OF-TEXTO [PATH-OF-ANOTHER]"),
    };
    println!(
        "2 gateways, {ROUNDS} rounds of {RUN:?}, medians; ratios are of {} to {}",
        contenders[1].name, contenders[0].name
    );
    for (pairs, window) in LOADS {
        let mut runs = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            for (run, contender) in runs.iter_mut().zip(&contenders) {
                let figures = measure(contender, pairs, window).await?;
                let [rate, micros, median] = figures;
                println!(
                    "  {pairs} × {window}, round {round}, {}: {rate:.0} messages/s, {micros:.1} µs of gateways' time a \
                     message, half of the answers within {median:.0} µs",
                    contender.name
                );
                run.push(figures);
            }
        }
        let [old, new] = runs.map(|run| [0, 1, 2].map(|at| middle(run.iter().map(|figures| figures[at]).collect())));
        println!(
            "{pairs} pairs × {window} unanswered: {:.3} of the throughput ({:.0} -> {:.0}/s), {:.3} of the processor time a \
             message ({:.1} -> {:.1} µs), answers {:+.0} µs ({:.0} -> {:.0})",
            new[0] / old[0],
            old[0],
            new[0],
            new[1] / old[1],
            old[1],
            new[1],
            new[2] - old[2],
            old[2],
            new[2]
        );
    }
    let mut bytes = [Vec::new(), Vec::new()];
    for _ in 0..2 {
        for (bytes, contender) in bytes.iter_mut().zip(&contenders) {
            bytes.push(memory(contender).await?);
        }
    }
    let [old, new] = bytes.map(middle);
    println!("memory of an idle session: {:.3} ({old:.0} -> {new:.0} bytes)", new / old);
    Ok(())
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Messages a second, microseconds of both gateways' processor time for each, median time to an answer in µs.
async fn measure(contender: &Contender, pairs: usize, window: usize) -> Result<[f64; 3]> {
    let stage = Stage::start(&contender.binary, &ClusterOptions::default(), 2, &[contender.flag]).await?;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (mut senders, mut receivers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..pairs {
        let mut sender = Client::connect(stage.gateways[0].address).await?;
        let mut receiver = Client::connect(stage.gateways[1].address).await?;
        let to = receiver.id;
        let (stopped, counted) = (stop.clone(), count.clone());
        senders.spawn(async move {
            let (mut waiting, mut times) = (VecDeque::new(), Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                while waiting.len() < window {
                    waiting.push_back((Instant::now(), sender.post(to, TEXT).await?));
                }
                if let Some((sent, request)) = waiting.pop_front() {
                    let answer = sender.answer(request).await?;
                    ensure!(answer == Answer::Ack, "answered with {answer:?}");
                    times.push(sent.elapsed().as_secs_f64() * 1e6);
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(times)
        });
        // Until it is aborted.
        receivers.spawn(async move { while receiver.receive().await.is_ok() {} });
    }
    tokio::time::sleep(WARM_UP).await;
    let cpu = || -> Result<f64> { stage.gateways.iter().map(Gateway::cpu_seconds).sum() };
    let (began, cpu_began, count_began) = (Instant::now(), cpu()?, count.load(Ordering::Relaxed));
    tokio::time::sleep(RUN).await;
    let (took, spent) = (began.elapsed().as_secs_f64(), cpu()? - cpu_began);
    let messages = (count.load(Ordering::Relaxed) - count_began) as f64;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    while let Some(sender) = senders.join_next().await {
        times.extend(sender??);
    }
    receivers.shutdown().await;
    let again = stage.gateways[0].metric("texto_messages_resent_total").await.unwrap_or_default();
    let losses = stage.gateways[0].log().iter().filter(|line| line.contains("lost")).count();
    if again > 0.0 || losses > 0 {
        println!("  under full load: {again} messages sent again, {losses} links lost");
    }
    Ok([messages / took, spent * 1e6 / messages, middle(times)])
}

/// Bytes of resident memory for a session that does nothing, on a gateway with links.
async fn memory(contender: &Contender) -> Result<f64> {
    let stage = Stage::start(&contender.binary, &ClusterOptions::default(), 1, &[contender.flag]).await?;
    let gateway = &stage.gateways[0];
    let empty = gateway.resident_bytes()?;
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        clients.push(Client::connect(gateway.address).await?);
    }
    tokio::time::sleep(REST).await;
    Ok(gateway.resident_bytes()?.saturating_sub(empty) as f64 / SESSIONS as f64)
}
