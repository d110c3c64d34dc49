//! Owns the fault scenarios: each breaks something under traffic and holds the gateway to its word.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::checker::Report;
use crate::cluster::ClusterOptions;
use crate::gateway;
use crate::output;
use crate::scenarios::{ALL, Company, Fault, PERSONS, Scenario};
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
    /// Pairs of clients that write to each other; and persons that can resume, where it is about those
    #[arg(long, default_value_t = 200, value_name = "COUNT")]
    pub pairs: usize,
    /// Messages a second, of all together; more than can be answered is as much as can be. Persons send half as many
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
    /// The longest silence without a fault, in milliseconds: the machine's own noise. Of persons, the longest time that a
    /// message was on its way.
    pub noise_ms: f64,
    /// The same from the fault on, beyond the noise, in milliseconds.
    pub silence_ms: f64,
    /// What is allowed, in milliseconds.
    pub limit_ms: f64,
    /// How long the whole took, in seconds.
    pub took_s: f64,
    /// What else was measured.
    pub notes: Vec<String>,
    /// All the figures.
    pub report: Report,
}

/// Runs what `args` ask for and prints it. `true` when every promise was kept.
///
/// # Errors
/// When a scenario is unknown, or the servers can't be started.
pub async fn run(args: &ChaosArgs) -> Result<bool> {
    let all = || ALL.iter().chain(PERSONS);
    if args.list {
        for scenario in all() {
            output::line(format_args!("{:<34} {}", scenario.name, scenario.about))?;
        }
        return Ok(true);
    }
    for name in &args.scenarios {
        if !all().any(|scenario| scenario.name == name) {
            bail!("there is no scenario {name:?}: `texto chaos --list` names them");
        }
    }
    let binary = match &args.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()?,
    };
    let chosen = |scenario: &&Scenario| args.scenarios.is_empty() || args.scenarios.iter().any(|n| n == scenario.name);
    let mut verdicts = Vec::new();
    for scenario in all().filter(chosen) {
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
        print_tables(&verdicts)?;
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
    let folder = tempfile::TempDir::with_prefix("texto-keys-")?;
    let keys;
    if scenario.persons.is_some() {
        keys = gateway::session_key_file(binary, folder.path()).await?;
        flags.extend(["--session-key-file", keys.to_str().context("a strange path")?]);
    }
    let network = scenario.network.then_some(args.gateways);
    let mut stage = Stage::start_with(binary, &options, args.gateways, &flags, network).await?;
    let traffic = Traffic::start(&stage.addresses(), plan(scenario, args)).await?;
    let (quiet_from, quiet_to) = baseline(&traffic).await;
    let mut fault = Fault::new(&mut stage, &traffic);
    (scenario.run)(&mut fault).await?;
    let Fault { from, outage, broken, notes, .. } = fault;
    tokio::time::sleep(AFTER).await;
    let to = traffic.now();
    let noise = {
        let checker = traffic.checker();
        let noise = if scenario.persons.is_some() {
            checker.longest_wait(quiet_from, quiet_to)
        } else {
            checker.silence(quiet_from, quiet_to)
        };
        noise.as_secs_f64() * 1000.0
    };
    let report = traffic.finish(from, to).await?;
    let mut verdict = Verdict {
        scenario: scenario.name,
        kept: false,
        broken,
        noise_ms: noise,
        silence_ms: 0.0,
        limit_ms: (scenario.limit + outage).as_secs_f64() * 1000.0,
        took_s: began.elapsed().as_secs_f64(),
        notes,
        report,
    };
    verdict.judge(scenario);
    Ok(verdict)
}

fn plan(scenario: &Scenario, args: &ChaosArgs) -> Plan {
    let persons = args.pairs;
    let plan = match (scenario.persons, scenario.company) {
        (None, _) => Load { pairs: args.pairs, rate: args.rate, deadline: DEADLINE }.into(),
        (Some(manners), Company::Spread) => Plan::persons(persons, manners, DEADLINE),
        (Some(manners), Company::Together) => Plan::persons_together(persons, args.gateways, manners, DEADLINE),
        (Some(manners), Company::Crowd) => {
            let mut plan = Plan::persons(persons * 50, manners, DEADLINE);
            plan.roles.iter_mut().for_each(|role| role.gateway = 0);
            plan
        }
    };
    let rate = match (scenario.persons, scenario.company) {
        (None, _) => args.rate,
        (Some(_), Company::Crowd) => args.rate / 10.0,
        (Some(_), _) => args.rate / 2.0,
    };
    Plan { rate: Some(rate), moves: scenario.moves, bytes: scenario.bytes, ..plan }
}

impl Verdict {
    fn judge(&mut self, scenario: &Scenario) {
        let report = &self.report;
        let mut broken = std::mem::take(&mut self.broken);
        if scenario.late {
            broken.extend(Report { unanswered: 0, ..report.clone() }.broken());
        } else {
            broken.extend(report.broken());
        }
        let (what, longest) = match scenario.persons {
            None => ("of silence", report.longest_silence_ms),
            Some(_) => ("that a message was on its way", report.longest_wait_ms),
        };
        self.silence_ms = (longest - self.noise_ms).max(0.0);
        if self.silence_ms > self.limit_ms {
            broken.push(format!("{:.0} ms {what}, {:.0} allowed", self.silence_ms, self.limit_ms));
            if scenario.persons.is_some() {
                broken.extend(report.longest_waits.iter().cloned());
            }
        }
        if scenario.moves && report.moved == 0 {
            broken.push("nobody was asked to go elsewhere".to_owned());
        }
        match (scenario.told, report.told) {
            (true, 0) => broken.push("nobody was told that messages may be missing".to_owned()),
            (false, 1..) => broken.push(format!("{} persons were told that messages may be missing", report.told)),
            _ => {}
        }
        if !scenario.told && report.given_up > 0 {
            broken.push(format!("{} messages that could not be sent again", report.given_up));
        }
        let wrong = report.errors.iter().filter(|(code, _)| !scenario.errors.contains(&code.as_str()));
        broken.extend(wrong.map(|(code, count)| format!("{count} answered with {code}")));
        self.kept = broken.is_empty();
        self.broken = broken;
    }
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
        "  {} sent, {} acknowledged, {} errors, {} lost, {} twice, {} out of order, {} unanswered, {} dropped, {} moved, \
         {} resumed, {} told that something may be missing (and shown {} again), {} with another id; \
         {silence_ms:.0} ms beyond {noise_ms:.0} ms of noise ({limit_ms:.0} allowed)",
        report.sent,
        report.acked,
        report.failed(),
        report.acked_lost,
        report.received_twice,
        report.out_of_order,
        report.unanswered,
        report.dropped_sessions,
        report.moved,
        report.resumed,
        report.told,
        report.told_again,
        report.id_changed,
    ))?;
    for note in &verdict.notes {
        output::line(format_args!("  {note}"))?;
    }
    for broken in &verdict.broken {
        output::line(format_args!("  BROKEN: {broken}"))?;
    }
    for example in &report.examples {
        output::line(format_args!("    {example}"))?;
    }
    Ok(())
}

fn print_tables(verdicts: &[Verdict]) -> Result<()> {
    let is_of_persons = |verdict: &&Verdict| PERSONS.iter().any(|scenario| scenario.name == verdict.scenario);
    let (persons, clients): (Vec<_>, Vec<_>) = verdicts.iter().partition(is_of_persons);
    let outcome = |verdict: &Verdict| if verdict.kept { "kept" } else { "BROKEN" };
    if !clients.is_empty() {
        output::line(
            "\n| scenario | sent | errors | acked, lost | twice | out of order | unanswered | slowest answer, ms | silence, ms | allowed | |",
        )?;
        output::line("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")?;
    }
    for verdict in clients {
        let Verdict { scenario, silence_ms, limit_ms, report, .. } = verdict;
        output::line(format_args!(
            "| {scenario} | {} | {} | {} | {} | {} | {} | {:.0} | {silence_ms:.0} | {limit_ms:.0} | {} |",
            report.sent,
            report.failed(),
            report.acked_lost,
            report.received_twice,
            report.out_of_order,
            report.unanswered,
            report.longest_answer_ms,
            outcome(verdict),
        ))?;
    }
    if !persons.is_empty() {
        output::line(
            "\n| persons that can resume | sent | resumed | errors | acked, never shown | twice | out of order | id changed | longest wait, ms | allowed | |",
        )?;
        output::line("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")?;
    }
    for verdict in persons {
        let Verdict { scenario, silence_ms, limit_ms, report, .. } = verdict;
        let limit = if *limit_ms < 1_000_000.0 { format!("{limit_ms:.0}") } else { "–".to_owned() };
        output::line(format_args!(
            "| {scenario} | {} | {} | {} | {} | {} | {} | {} | {silence_ms:.0} | {limit} | {} |",
            report.sent,
            report.resumed,
            report.failed(),
            report.acked_lost,
            report.received_twice,
            report.out_of_order,
            report.id_changed,
            outcome(verdict),
        ))?;
    }
    Ok(())
}
