//! What one hostile client costs the others: a gateway's processor time and memory, and how long others wait for an
//! answer, with it and without it in turn.
//!
//! `cargo build --release && cargo run --release -p texto-lab --example hostile -- target/release/texto [FLAGS…]`
//!
//! `ONLY=pings,sends` runs some of them. The client is a process of its own, at the lowest priority (`NICE=19`): what it
//! needs itself shall not be taken from the gateway. On a machine that does something else beside it gets too little so.

mod attacks;
mod others;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use texto_lab::cluster::ClusterOptions;
use texto_lab::stage::Stage;
use tokio::process::{Child, Command};

use attacks::Attack;
use others::{Others, Waits};

/// Each attack runs so often, and as often nothing does, in turn.
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(5);
/// Before a round counts: what an address may do at once, because a crowd may be behind it, is over then.
const SETTLE: Duration = Duration::from_secs(2);

/// What was seen, with or without the attack.
#[derive(Default)]
struct Seen {
    waits: Waits,
    cpu: f64,
    time: f64,
    memory: u64,
}

impl Seen {
    fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu / self.time
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().context("usage: hostile PATH-OF-TEXTO [FLAGS…]")?;
    let rest: Vec<String> = arguments.collect();
    if binary == "attack" {
        let [name, address] = &rest[..] else { anyhow::bail!("usage: attack NAME ADDRESS") };
        return Attack::named(name)?.run(address.parse()?).await;
    }
    let only = std::env::var("ONLY").unwrap_or_default();
    let flags: Vec<&str> = rest.iter().map(String::as_str).collect();
    println!(
        "| one client that | half of the others' answers, ms | p99, ms | p99 of a new connection, ms | gateway's processor, % | its memory, MB |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    for attack in Attack::ALL.into_iter().filter(|attack| only.is_empty() || only.split(',').any(|n| n == attack.name))
    {
        measure(Path::new(&binary), &flags, attack).await?;
    }
    println!("\nEach without it → with it, {ROUNDS} rounds of {} s each in turn.", ROUND.as_secs());
    Ok(())
}

async fn measure(binary: &Path, flags: &[&str], attack: Attack) -> Result<()> {
    let stage = Stage::start(binary, &ClusterOptions::default(), 2, flags).await?;
    let others = Others::start(&stage.addresses()).await?;
    let (mut calm, mut hostile) = (Seen::default(), Seen::default());
    for _ in 0..ROUNDS {
        round(&stage, &others, &attack, None, &mut calm).await?;
        let child = start(&attack, &stage)?;
        round(&stage, &others, &attack, Some(child), &mut hostile).await?;
    }
    let both = |get: &mut dyn FnMut(&Seen) -> f64, digits: usize| {
        format!("{:.digits$} → {:.digits$}", get(&calm), get(&hostile))
    };
    println!(
        "| {} | {} | {} | {} | {} | {} |",
        attack.what,
        both(&mut |seen| seen.waits.answers(0.5), 2),
        both(&mut |seen| seen.waits.answers(0.99), 2),
        both(&mut |seen| seen.waits.connections(0.99), 1),
        both(&mut Seen::cpu_percent, 0),
        both(&mut |seen| seen.memory as f64 / 1e6, 0),
    );
    Ok(())
}

fn start(attack: &Attack, stage: &Stage) -> Result<Child> {
    let mut command = Command::new("nice");
    let nice = std::env::var("NICE").unwrap_or_else(|_| "19".to_owned());
    command.args(["-n", &nice]).arg(std::env::current_exe()?);
    command.args(["attack", attack.name, &stage.gateways[0].address.to_string()]);
    Ok(command.stdout(Stdio::null()).kill_on_drop(true).spawn()?)
}

/// One round, to the first gateway.
async fn round(stage: &Stage, others: &Others, attack: &Attack, child: Option<Child>, seen: &mut Seen) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let gateway = &stage.gateways[0];
    drop(others.take());
    let (began, cpu) = (Instant::now(), gateway.cpu_seconds()?);
    if attack.moves {
        stage.cluster.failover().await?;
    }
    tokio::time::sleep(ROUND).await;
    seen.waits.add(others.take());
    seen.cpu += gateway.cpu_seconds()? - cpu;
    seen.time += began.elapsed().as_secs_f64();
    seen.memory = seen.memory.max(gateway.resident_bytes()?);
    if let Some(mut child) = child {
        anyhow::ensure!(child.try_wait()?.is_none(), "{} gave up", attack.name);
        child.kill().await?;
    }
    if attack.moves {
        stage.cluster.wait_until_whole(Duration::from_secs(60)).await?;
    }
    Ok(())
}
