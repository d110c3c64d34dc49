//! Owns the fault scenarios: each breaks something under traffic and holds the gateway to its word.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::checker::Report;
use crate::cluster::ClusterOptions;
use crate::output;
use crate::scenarios::{ALL, Fault, Scenario};
use crate::stage::Stage;
use crate::traffic::{Load, Plan, Traffic};

/// `texto chaos`: start real Redis servers, Sentinels and gateways here, break them, judge.
#[derive(Clone, Debug, Args)]
pub struct ChaosArgs {
    /// Scenarios to run; all when none is named
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// Only list the scenarios
    #[arg(long)]
    pub list: bool,
    /// Print one JSON object a scenario, for machines
    #[arg(long)]
    pub json: bool,
    /// Pairs of clients that write to each other
    #[arg(long, default_value_t = 200, value_name = "COUNT")]
    pub pairs: usize,
    /// Messages a second, of all together; more than can be answered is as much as can be
    #[arg(long, default_value_t = 2000.0, value_name = "COUNT")]
    pub rate: f64,
    /// Gateways
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    pub gateways: usize,
    /// How often each scenario is run, every time on servers of its own
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub repeat: usize,
    /// Run the gateways with --standby-subscriptions=false, to compare
    #[arg(long)]
    pub no_standby: bool,
    /// The gateway to judge; this program when absent
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
}

/// Each send is answered within the gateway's deadline; this much more is the client's own time.
const DEADLINE: Duration = Duration::from_millis(5_250);
/// Traffic before anything is measured: links settle, the machine warms up.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long the noise of the machine is measured.
const BASELINE: Duration = Duration::from_secs(6);
/// Traffic after the fault.
const AFTER: Duration = Duration::from_secs(2);

/// Sentinel's `failover-timeout` where a replica follows a proxy: until then it is not put right.
const PROXY_SUFFERED: Duration = Duration::from_secs(600);

/// What came of one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Its name.
    pub scenario: &'static str,
    /// Whether every promise was kept.
    pub kept: bool,
    /// Those that were not.
    pub broken: Vec<String>,
    /// The longest silence without a fault, in milliseconds: the machine's own noise.
    pub noise_ms: f64,
    /// The longest silence from the fault on, beyond the noise, in milliseconds.
    pub silence_ms: f64,
    /// What is allowed, in milliseconds.
    pub limit_ms: f64,
    /// How long the whole took, in seconds.
    pub took_s: f64,
    /// All the figures.
    pub report: Report,
}

/// Runs what `args` ask for and prints it. `true` when every promise was kept.
///
/// # Errors
/// When a scenario is unknown, or the servers can't be started.
pub async fn run(args: &ChaosArgs) -> Result<bool> {
    if args.list {
        for scenario in ALL {
            output::line(format_args!("{:<34} {}", scenario.name, scenario.about))?;
        }
        return Ok(true);
    }
    for name in &args.scenarios {
        if !ALL.iter().any(|scenario| scenario.name == name) {
            bail!("there is no scenario {name:?}: `texto chaos --list` names them");
        }
    }
    let binary = match &args.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()?,
    };
    let chosen = |scenario: &&Scenario| args.scenarios.is_empty() || args.scenarios.iter().any(|n| n == scenario.name);
    let mut verdicts = Vec::new();
    for scenario in ALL.iter().filter(chosen) {
        if !args.json {
            output::line(format_args!("{}: {}", scenario.name, scenario.about))?;
        }
        if let Some(reason) = scenario.unavailable() {
            if args.json {
                output::line(serde_json::json!({ "scenario": scenario.name, "skipped": reason }))?;
            } else {
                output::line(format_args!("  skipped: {reason}"))?;
            }
            continue;
        }
        for _ in 0..args.repeat {
            let verdict = judge(scenario, &binary, args).await?;
            if args.json {
                output::line(serde_json::to_string(&verdict)?)?;
            } else {
                print_line(&verdict)?;
            }
            verdicts.push(verdict);
        }
    }
    if !args.json {
        print_table(&verdicts)?;
    }
    Ok(verdicts.iter().all(|verdict| verdict.kept))
}

/// Runs one scenario on servers of its own.
///
/// # Errors
/// When the servers can't be started or do not do what the scenario waits for.
pub async fn judge(scenario: &Scenario, binary: &Path, args: &ChaosArgs) -> Result<Verdict> {
    let began = std::time::Instant::now();
    let mut options = ClusterOptions {
        replicas: scenario.replicas,
        proxied_replica: scenario.proxied_replica,
        redis_options: scenario.redis.iter().map(|&option| option.to_owned()).collect(),
        ..ClusterOptions::default()
    };
    if scenario.proxied_replica {
        options.failover_timeout = PROXY_SUFFERED;
    }
    let mut flags = scenario.flags.to_vec();
    if args.no_standby {
        flags.push("--standby-subscriptions=false");
    }
    let network = scenario.network.then_some(args.gateways);
    let mut stage = Stage::start_with(binary, &options, args.gateways, &flags, network).await?;
    let load = Load { pairs: args.pairs, rate: args.rate, deadline: DEADLINE };
    let traffic =
        Traffic::start(&stage.addresses(), Plan { moves: scenario.moves, bytes: scenario.bytes, ..load.into() })
            .await?;
    let (quiet_from, quiet_to) = baseline(&traffic).await;
    let mut fault = Fault::new(&mut stage, &traffic);
    (scenario.run)(&mut fault).await?;
    let (from, outage) = (fault.from, fault.outage);
    tokio::time::sleep(AFTER).await;
    let to = traffic.now();
    let noise = traffic.checker().silence(quiet_from, quiet_to);
    let report = traffic.finish(from, to).await?;
    let noise_ms = noise.as_secs_f64() * 1000.0;
    let silence_ms = (report.longest_silence_ms - noise_ms).max(0.0);
    let limit_ms = (scenario.limit + outage).as_secs_f64() * 1000.0;
    let mut broken = report.broken();
    if silence_ms > limit_ms {
        broken.push(format!("{silence_ms:.0} ms of silence, {limit_ms:.0} allowed"));
    }
    let wrong = report.errors.iter().filter(|(code, _)| !scenario.errors.contains(&code.as_str()));
    if scenario.moves && report.moved == 0 {
        broken.push("nobody was asked to go elsewhere".to_owned());
    }
    broken.extend(wrong.map(|(code, count)| format!("{count} answered with {code}")));
    Ok(Verdict {
        scenario: scenario.name,
        kept: broken.is_empty(),
        broken,
        noise_ms,
        silence_ms,
        limit_ms,
        took_s: began.elapsed().as_secs_f64(),
        report,
    })
}

async fn baseline(traffic: &Traffic) -> (Duration, Duration) {
    tokio::time::sleep(WARM_UP).await;
    let from = traffic.now();
    tokio::time::sleep(BASELINE).await;
    (from, traffic.now())
}

fn print_line(verdict: &Verdict) -> Result<()> {
    let Verdict { report, noise_ms, silence_ms, limit_ms, .. } = verdict;
    output::line(format_args!(
        "  {} sent, {} acknowledged, {} errors, {} lost, {} twice, {} out of order, {} unanswered, {} dropped, {} moved; \
         silence {silence_ms:.0} ms beyond {noise_ms:.0} ms of noise ({limit_ms:.0} allowed)",
        report.sent,
        report.acked,
        report.failed(),
        report.acked_lost,
        report.received_twice,
        report.out_of_order,
        report.unanswered,
        report.dropped_sessions,
        report.moved,
    ))?;
    for broken in &verdict.broken {
        output::line(format_args!("  BROKEN: {broken}"))?;
    }
    for example in &report.examples {
        output::line(format_args!("    {example}"))?;
    }
    Ok(())
}

fn print_table(verdicts: &[Verdict]) -> Result<()> {
    output::line(
        "\n| scenario | sent | errors | acked, lost | twice | out of order | unanswered | slowest answer, ms | silence, ms | allowed | |",
    )?;
    output::line("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")?;
    for Verdict { scenario, kept, silence_ms, limit_ms, report, .. } in verdicts {
        output::line(format_args!(
            "| {scenario} | {} | {} | {} | {} | {} | {} | {:.0} | {silence_ms:.0} | {limit_ms:.0} | {} |",
            report.sent,
            report.failed(),
            report.acked_lost,
            report.received_twice,
            report.out_of_order,
            report.unanswered,
            report.longest_answer_ms,
            if *kept { "kept" } else { "BROKEN" },
        ))?;
    }
    Ok(())
}
