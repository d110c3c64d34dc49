//! What a change of the gateway costs: two programs, or one with and without links to replicas, or persons beside clients
//! of version 1, in turn, in one run.
//!
//! `cargo build --release && cargo run --release -p texto-lab --example price -- target/release/texto`
//! `cargo run --release -p texto-lab --example price -- OLD/texto NEW/texto`
//! `cargo run --release -p texto-lab --example price -- --persons target/release/texto`

mod floor;
mod talker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use texto_lab::cluster::ClusterOptions;
use texto_lab::gateway::Gateway;
use texto_lab::stage::Stage;
use tokio::task::JoinSet;

use crate::talker::Talker;

/// How much traffic.
#[derive(Clone, Copy)]
struct Load {
    pairs: usize,
    /// Sends of each pair that are under way at a time.
    window: usize,
    /// Between two sends of a pair; as fast as they are answered without it.
    pace: Option<Duration>,
}

const fn load(pairs: usize, window: usize) -> Load {
    Load { pairs, window, pace: None }
}

const LOADS: [Load; 3] = [load(50, 16), load(50, 1), load(1, 1)];
/// A thousand messages a second.
const STEADY: Load = Load { pairs: 100, window: 64, pace: Some(Duration::from_millis(100)) };
const WARM_UP: Duration = Duration::from_secs(2);
const RUN: Duration = Duration::from_secs(5);
/// What an idle session has no use for is given back within this.
const REST: Duration = Duration::from_secs(12);

/// What a change of the gateway costs.
#[derive(Parser)]
struct Arguments {
    /// Compare persons, whose sessions can be resumed, with clients of version 1
    #[arg(long)]
    persons: bool,
    /// How often each load is measured; 0 leaves memory alone
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Idle sessions whose memory is measured
    #[arg(long, default_value_t = 5_000)]
    sessions: usize,
    /// One program, or an old and a new one
    #[arg(required = true)]
    programs: Vec<PathBuf>,
}

/// One of the two that are compared.
struct Contender {
    name: String,
    binary: PathBuf,
    flag: &'static str,
    is_person: bool,
}

#[derive(Clone, Copy)]
struct Figures {
    /// Messages a second.
    rate: f64,
    /// Microseconds of all gateways' processor time for each.
    gateways: f64,
    /// The same of all Redis servers'.
    redis: f64,
    /// Half of the answers came within this, in microseconds.
    median: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { persons, rounds, sessions, programs } = Arguments::parse();
    let contender = |name: &str, binary: &PathBuf, flag, is_person| Contender {
        name: name.to_owned(),
        binary: binary.clone(),
        flag,
        is_person,
    };
    let (with, without) = ("--standby-subscriptions=true", "--standby-subscriptions=false");
    let contenders = match programs.as_slice() {
        [one] if persons => [contender("version 1", one, with, false), contender("persons", one, with, true)],
        [one] => [contender("without", one, without, false), contender("with standby links", one, with, false)],
        [old, new] => [old, new].map(|path| contender(&path.display().to_string(), path, with, persons)),
        _ => bail!("one program, or two"),
    };
    // A person's standby is a node of its own, where there are three.
    let gateways = if persons { 3 } else { 2 };
    let [old, new] = &contenders;
    println!("{gateways} gateways, {rounds} rounds of {RUN:?}, medians; ratios are of {} to {}", new.name, old.name);
    if rounds > 0 {
        let stage = Stage::start(&new.binary, &ClusterOptions::default(), 1, &[]).await?;
        let redis = stage.cluster.servers[0].address();
        let [count, word] = tokio::task::spawn_blocking(move || floor::floor(&redis)).await??;
        println!(
            "bare sockets: Redis' count within {count:.0} µs, a subscriber's word within {word:.0} µs: {:+.0} µs",
            word - count
        );
    }
    for load in LOADS.into_iter().chain(persons.then_some(STEADY)).filter(|_| rounds > 0) {
        let mut runs = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for (run, contender) in runs.iter_mut().zip(&contenders) {
                let figures = measure(contender, gateways, load).await?;
                println!(
                    "  {}, round {round}, {}: {:.0} messages/s, {:.1} µs of gateways' time a message, {:.1} µs of Redis', half \
                     of the answers within {:.0} µs",
                    load.name(),
                    contender.name,
                    figures.rate,
                    figures.gateways,
                    figures.redis,
                    figures.median
                );
                run.push(figures);
            }
        }
        let [old, new] = runs.map(|run| Figures::middle(&run));
        println!("{}: {}", load.name(), new.beside(&old));
    }
    let mut bytes = [Vec::new(), Vec::new()];
    for _ in 0..2 {
        for (bytes, contender) in bytes.iter_mut().zip(&contenders) {
            bytes.push(memory(contender, sessions).await?);
        }
    }
    let [old, new] = bytes.map(|bytes| [0, 1].map(|at| middle(bytes.iter().map(|bytes| bytes[at]).collect())));
    let [ratio, more] = [new[0] / old[0], new[0] - old[0]];
    println!(
        "memory of an idle session, {sessions} of them: {ratio:.3}, {more:+.0} bytes ({:.0} -> {:.0}); on the other gateway {:.0} \
         -> {:.0}",
        old[0], new[0], old[1], new[1]
    );
    Ok(())
}

impl Load {
    fn name(self) -> String {
        match self.pace {
            None => format!("{} pairs × {} unanswered", self.pairs, self.window),
            Some(pace) => format!("{} pairs, each {:.0} messages a second", self.pairs, 1.0 / pace.as_secs_f64()),
        }
    }
}

impl Figures {
    fn middle(run: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| middle(run.iter().map(figure).collect());
        Self { rate: of(|f| f.rate), gateways: of(|f| f.gateways), redis: of(|f| f.redis), median: of(|f| f.median) }
    }

    fn beside(&self, old: &Self) -> String {
        format!(
            "{:.3} of the throughput ({:.0} -> {:.0}/s), {:.3} of the gateways' processor time a message ({:.1} -> {:.1} µs), \
             {:.3} of Redis' ({:.1} -> {:.1} µs), answers {:+.0} µs ({:.0} -> {:.0})",
            self.rate / old.rate,
            old.rate,
            self.rate,
            self.gateways / old.gateways,
            old.gateways,
            self.gateways,
            self.redis / old.redis,
            old.redis,
            self.redis,
            self.median - old.median,
            old.median,
            self.median
        )
    }
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Processor time so far: the gateways', Redis'.
async fn spent(stage: &Stage) -> Result<[f64; 2]> {
    let mut redis = 0.0;
    for server in &stage.cluster.servers {
        let answer: String = server.command(&["INFO", "cpu"]).await?;
        for name in ["used_cpu_user:", "used_cpu_sys:"] {
            let seconds = answer.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            redis += seconds.context("Redis does not say what it has used")?;
        }
    }
    let gateways: Result<f64> = stage.gateways.iter().map(Gateway::cpu_seconds).sum();
    Ok([gateways?, redis])
}

async fn measure(contender: &Contender, gateways: usize, load: Load) -> Result<Figures> {
    let stage = Stage::start(&contender.binary, &ClusterOptions::default(), gateways, &[contender.flag]).await?;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (mut senders, mut receivers) = (JoinSet::new(), JoinSet::new());
    for pair in 0..load.pairs {
        let at = pair % (gateways - 1);
        let sender = Talker::connect(stage.gateways[at].address, contender.is_person).await?;
        let receiver = Talker::connect(stage.gateways[at + 1].address, contender.is_person).await?;
        senders.spawn(sender.write(receiver.id, load.window, load.pace, stop.clone(), count.clone()));
        // Until it is aborted.
        receivers.spawn(receiver.read());
    }
    tokio::time::sleep(WARM_UP).await;
    let (began, spent_before, count_before) = (Instant::now(), spent(&stage).await?, count.load(Ordering::Relaxed));
    tokio::time::sleep(RUN).await;
    let (took, messages) = (began.elapsed().as_secs_f64(), (count.load(Ordering::Relaxed) - count_before) as f64);
    let [gateways, redis] = spent(&stage).await?;
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
    let each = |after: f64, before: f64| (after - before) * 1e6 / messages;
    Ok(Figures {
        rate: messages / took,
        gateways: each(gateways, spent_before[0]),
        redis: each(redis, spent_before[1]),
        median: middle(times),
    })
}

/// Bytes of resident memory for a session that does nothing, on its own gateway of two, and on the other.
async fn memory(contender: &Contender, sessions: usize) -> Result<[f64; 2]> {
    let stage = Stage::start(&contender.binary, &ClusterOptions::default(), 2, &[contender.flag]).await?;
    let resident = || -> Result<Vec<u64>> { stage.gateways.iter().map(Gateway::resident_bytes).collect() };
    let empty = resident()?;
    let mut clients = Vec::new();
    for _ in 0..sessions {
        clients.push(Talker::connect(stage.gateways[0].address, contender.is_person).await?);
    }
    tokio::time::sleep(REST).await;
    let full = resident()?;
    Ok([0, 1].map(|at| full[at].saturating_sub(empty[at]) as f64 / sessions as f64))
}
