//! Owns the demonstration: thirty seconds of chat across nodes while Redis dies, drawn in the terminal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::cluster::ClusterOptions;
use crate::output;
use crate::stage::Stage;
use crate::traffic::{Load, Traffic};

/// `texto demo`: watch people chat while the master dies.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How long it takes, in seconds: 20 to 600
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(20..=600))]
    pub seconds: u64,
    /// The gateway to show; this program when absent
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
}

const FRAME: Duration = Duration::from_millis(100);
const WIDTH: usize = 60;
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Starts everything, breaks the master, and shows what clients see. `true` when no promise was broken.
///
/// # Errors
/// When redis-server or redis-sentinel is missing (it says how to get them) or does not start.
pub async fn run(args: &DemoArgs) -> Result<bool> {
    let binary = match &args.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()?,
    };
    output::line("Starting a Redis master, two replicas, three Sentinels and three gateways…")?;
    show(&binary, args).await
}

async fn show(binary: &Path, args: &DemoArgs) -> Result<bool> {
    let mut stage = Stage::start(binary, &ClusterOptions::default(), 3, &[]).await?;
    let load = Load { pairs: 25, rate: 500.0, deadline: Duration::from_millis(5_250) };
    let traffic = stage.traffic(load).await?;
    let mut screen = Screen::new(&stage);
    let end = Duration::from_secs(args.seconds);
    let (kill, back) = (end / 5, end * 3 / 5);
    let mut old = None;
    let mut returned = false;
    let mut tick = tokio::time::interval(FRAME);
    while traffic.now() < end {
        tick.tick().await;
        let now = traffic.now();
        if old.is_none() && now >= kill {
            let master = stage.cluster.master().await.unwrap_or(0);
            stage.cluster.servers[master].kill();
            screen.say(now, &format!("redis {} (the master) was killed", letter(master)))?;
            old = Some(master);
        }
        if let (Some(master), false) = (old, returned)
            && now >= back
        {
            stage.cluster.servers[master].restart().await?;
            screen.say(now, &format!("redis {} is back, and believes that it is the master", letter(master)))?;
            returned = true;
        }
        screen.look(now, &stage).await?;
        screen.draw(now, end, &traffic)?;
    }
    let to = traffic.now();
    let report = traffic.finish(Duration::from_secs(1), to).await?;
    let broken = report.broken();
    output::line(format_args!(
        "\n{} messages sent, {} acknowledged, {} errors; lost: {}, twice: {}, out of order: {}; \
         longest silence {:.0} ms",
        report.sent,
        report.acked,
        report.failed(),
        report.acked_lost,
        report.received_twice,
        report.out_of_order,
        report.longest_silence_ms,
    ))?;
    output::line("Figures for this and other faults: `texto chaos`.")?;
    Ok(broken.is_empty())
}

fn letter(server: usize) -> char {
    char::from(b'A' + u8::try_from(server).unwrap_or(25).min(25))
}

/// What is drawn. On a terminal it is drawn in place; elsewhere it is a line a second.
struct Screen {
    in_place: bool,
    drawn: usize,
    frames: u64,
    received: u64,
    history: Vec<u64>,
    events: Vec<String>,
    roles: Vec<String>,
}

impl Screen {
    fn new(stage: &Stage) -> Self {
        Self {
            in_place: std::io::stdout().is_terminal(),
            drawn: 0,
            frames: 0,
            received: 0,
            history: Vec::new(),
            events: Vec::new(),
            roles: vec![String::new(); stage.cluster.servers.len()],
        }
    }

    fn say(&mut self, now: Duration, text: &str) -> Result<()> {
        let line = format!("{:5.1} s  {text}", now.as_secs_f64());
        if !self.in_place {
            output::line(&line)?;
        }
        self.events.push(line);
        Ok(())
    }

    /// Asks every server who it is; each change is an event.
    async fn look(&mut self, now: Duration, stage: &Stage) -> Result<()> {
        for (index, server) in stage.cluster.servers.iter().enumerate() {
            let role = if server.is_running() { server.role().await } else { Some("dead".to_owned()) };
            let role = match role.as_deref() {
                Some("slave") => "replica",
                Some("master") => "master",
                Some(_) => "dead",
                None => continue,
            };
            let before = std::mem::replace(&mut self.roles[index], role.to_owned());
            match (before.as_str(), role) {
                ("replica", "master") => self.say(now, &format!("redis {} was promoted to master", letter(index)))?,
                ("master", "replica") => self.say(now, &format!("redis {} was demoted to replica", letter(index)))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn draw(&mut self, now: Duration, end: Duration, traffic: &Traffic) -> Result<()> {
        let (sent, acked, failed, received) = traffic.checker().totals();
        let fresh = received - std::mem::replace(&mut self.received, received);
        self.history.push(fresh);
        self.frames += 1;
        let silence = traffic.checker().silence(now.saturating_sub(Duration::from_secs(5)), now);
        if !self.in_place {
            if self.frames.is_multiple_of(10) {
                output::line(format_args!(
                    "{:5.1} s  {sent} sent, {acked} acknowledged, {failed} errors; {} in the last 100 ms",
                    now.as_secs_f64(),
                    fresh
                ))?;
            }
            return Ok(());
        }
        let most = self.history.iter().copied().max().unwrap_or(1).max(1);
        let recent = &self.history[self.history.len().saturating_sub(WIDTH)..];
        let bars: String = recent.iter().map(|count| BARS[usize::try_from(count * 8 / most).unwrap_or(8)]).collect();
        let roles: Vec<_> =
            self.roles.iter().enumerate().map(|(index, role)| format!("{} {role}", letter(index))).collect();
        let mut lines = vec![
            format!("Texto  50 clients on 3 gateways  {:4.1} of {} s", now.as_secs_f64(), end.as_secs()),
            format!("redis  {}", roles.join("   ")),
            format!("messages per 100 ms  {bars:<WIDTH$} {fresh}"),
            format!(
                "sent {sent}  acknowledged {acked}  errors {failed}  longest silence of the last 5 s: {silence:.0?}"
            ),
        ];
        lines.extend(self.events.iter().rev().take(5).rev().cloned());
        let drawn = std::mem::replace(&mut self.drawn, lines.len());
        output::write(|out| {
            if drawn > 0 {
                write!(out, "\x1b[{drawn}A")?;
            }
            lines.iter().try_for_each(|line| writeln!(out, "\x1b[2K{line}"))
        })
    }
}
