//! What clients see while parts of the compose stack die, hang, are cut off and come back.
//!
//! `tests/compose` builds and starts the stack, and runs this on it: `stack PROJECT COMPOSE…`, the command of Docker
//! Compose. It prints a table;
//! exit code 1 when something did not hold.

mod crowd;
mod docker;
mod gateways;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use texto_lab::client::{Answer, Client};
use texto_lab::http;
use texto_lab::process::until;
use texto_lab::traffic::{Load, Traffic};

use crate::crowd::{Crowd, Handshake, Knocker, handshake};
use crate::docker::{Project, docker, log};
use crate::gateways::flawless;

const LIMIT: Duration = Duration::from_secs(40);
/// The send deadline of the stack, and some time for the way.
const DEADLINE: Duration = Duration::from_millis(5_500);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut words = std::env::args().skip(1);
    let name = words.next().context("usage: stack PROJECT docker compose")?;
    let mut project = Project::find(&name, words.collect())?;
    whole(&project).await?;
    project.wait_listed(project.gateways.len(), LIMIT).await?;
    let mut rows = Vec::new();
    let mut failed = 0;
    macro_rules! scenario {
        ($what:literal, $run:expr) => {
            let began = Instant::now();
            let outcome = match $run.await {
                Ok(seen) => match whole(&project).await {
                    Ok(()) => Ok(seen),
                    Err(error) => Err(error.context("afterwards")),
                },
                failure => failure,
            };
            let (mark, seen) = match outcome {
                Ok(seen) => ("held", seen),
                Err(error) => {
                    failed += 1;
                    project.mend().await;
                    ("FAILED", format!("{error:#}"))
                }
            };
            let row = format!("| {} | {mark} | {:.0} s | {seen} |", $what, began.elapsed().as_secs_f64());
            println!("{row}");
            rows.push(row);
        };
    }
    scenario!("sessions on all gateways, messages from each to each", spread(&project));
    scenario!("forged headers, metrics and health from outside", outside(&project));
    scenario!("docker kill of the master; it returns at a new address", kill_master(&project));
    scenario!("rolling upgrade of all gateways; the session key is changed", gateways::upgrade(&mut project));
    scenario!("docker kill of a gateway; it starts again", gateways::kill(&project));
    scenario!("docker pause of the master", pause_master(&project));
    scenario!("docker pause of a gateway", gateways::pause(&project));
    scenario!("docker network disconnect of a gateway from Redis", gateways::cut(&project));
    scenario!("all Redis down for 40 s", outage(&project));
    println!("\n| what was done | outcome | took | what clients saw |\n|---|---|---|---|\n{}", rows.join("\n"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ready for the next fault.
async fn whole(project: &Project) -> Result<()> {
    project.wait_well(LIMIT).await?;
    project.wait_sentinels(LIMIT).await
}

/// Sessions land everywhere; everybody reaches everybody.
async fn spread(project: &Project) -> Result<String> {
    let mut clients: Vec<Vec<Client>> = project.gateways.iter().map(|_| Vec::new()).collect();
    for _ in 0..project.gateways.len() * 8 {
        let before = sessions(project).await?;
        let client = Client::connect(project.front).await?;
        let at = until("the new session is on some gateway", LIMIT, async || {
            let after = sessions(project).await.ok()?;
            (0..after.len()).find(|at| after[*at] > before[*at])
        });
        clients[at.await?].push(client);
    }
    let counts: Vec<_> = clients.iter().map(Vec::len).collect();
    ensure!(counts.iter().all(|count| *count >= 4), "sessions are spread {counts:?}");
    for from in 0..clients.len() {
        for to in 0..clients.len() {
            let (sender, receiver) = (clients[from][0].id, clients[to][1].id);
            let text = format!("from {from} to {to}");
            ensure!(clients[from][0].send(receiver, &text).await? == Answer::Ack, "{text}: not acknowledged");
            ensure!(clients[to][1].receive().await? == (sender, text.clone()), "{text}: something else came");
        }
    }
    Ok(format!("{counts:?} sessions; {} messages, each from one gateway to another", clients.len().pow(2)))
}

async fn sessions(project: &Project) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for gateway in &project.gateways {
        counts.push(project.sessions(gateway).await?);
    }
    Ok(counts)
}

/// What strangers may not see, and what they may not pretend.
async fn outside(project: &Project) -> Result<String> {
    for path in ["/metrics", "/status", "/status.json", "/status/events", "/readyz", "/readyz?verbose", "/livez"] {
        let status = http::get(project.front, path, "").await?.status;
        ensure!(status == 404, "{path} was answered {status}");
    }
    let forged = "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n";
    ensure!(handshake(project.front, forged).await?.0.status == 101, "the handshake was refused");
    let nginx = project.container("nginx")?;
    let proxy = project.address(&nginx, "front")?.to_string();
    let mut known = 0;
    for gateway in &project.gateways {
        let log = log(gateway)?;
        known += log.matches("session begins").count();
        ensure!(!log.contains("6.6.6.6"), "{gateway} believes a forged address");
        ensure!(!log.contains(&proxy), "{gateway} takes nginx ({proxy}) for the client");
    }
    ensure!(known > 0, "no gateway logged a session: start the stack with TEXTO_LOG=texto=debug");
    for service in ["redis-1", "redis-2", "redis-3", "sentinel-1", "gateway", "prometheus"] {
        let ports = docker(&["port", &project.container(service)?])?;
        ensure!(ports.lines().all(|line| line.contains("127.0.0.1:")), "{service} is open to the world: {ports}");
    }
    Ok(format!("404 for metrics, status and health; a forged address in none of {known} sessions"))
}

/// Starts steady traffic between pairs; nobody connects again.
async fn traffic(project: &Project) -> Result<Traffic> {
    let load = Load { pairs: 30, rate: 300.0, deadline: DEADLINE };
    let traffic = Traffic::start(&[project.front], load).await?;
    flows(&traffic).await?;
    Ok(traffic)
}

async fn flows(traffic: &Traffic) -> Result<()> {
    let before = traffic.checker().totals().3;
    until("messages flow", LIMIT, async || (traffic.checker().totals().3 > before + 200).then_some(())).await
}

/// Ends it: no promise may be broken, and no send may have failed.
async fn judge(traffic: Traffic, since: Duration) -> Result<String> {
    flows(&traffic).await?;
    let now = traffic.now();
    let report = traffic.finish(since, now).await?;
    ensure!(report.broken().is_empty() && report.failed() == 0, "{report:?}");
    Ok(format!(
        "{} sent, {} acknowledged, 0 lost, 0 errors, 0 sessions dropped, longest silence {:.0} ms",
        report.sent, report.acked, report.longest_silence_ms
    ))
}

/// The master dies; it returns elsewhere and is a replica.
async fn kill_master(project: &Project) -> Result<String> {
    let traffic = traffic(project).await?;
    let since = traffic.now();
    let master = project.master().await?;
    let container = project.container(&master)?;
    let old = project.address(&container, "back")?;
    let began = Instant::now();
    docker(&["kill", &container])?;
    until("another master", LIMIT, async || (project.master().await.ok()? != master).then_some(())).await?;
    let promoted = began.elapsed();
    let seen = judge(traffic, since).await?;
    // Somebody else takes its address meanwhile.
    let back = project.network("back");
    docker(&["network", "disconnect", "-f", &back, &container])?;
    let squatter = format!("{back}-squatter");
    docker(&["run", "-d", "--rm", "--name", &squatter, "--network", &back, "debian:bookworm-slim", "sleep", "300"])?;
    let returned = async {
        docker(&["network", "connect", "--alias", &master, &back, &container])?;
        docker(&["start", &container])?;
        let new = project.address(&container, "back")?;
        ensure!(new != old, "it has its old address {new} again");
        let began = Instant::now();
        let ask = ["exec", &container, "sh", "-c"];
        let role = "REDISCLI_AUTH=$(cat /run/secrets/redis_password) redis-cli --no-auth-warning role";
        until("the old master is a replica", LIMIT, async || {
            let role = docker(&[&ask[..], &[role]].concat()).ok()?;
            let lines: Vec<_> = role.lines().collect();
            (lines.first() == Some(&"slave") && lines.get(3) == Some(&"connected")).then_some(())
        })
        .await?;
        project.wait_well(LIMIT).await?;
        Ok::<_, anyhow::Error>(format!(
            "back at {new} as a replica, linked after {:.1} s",
            began.elapsed().as_secs_f64()
        ))
    };
    let returned = returned.await;
    docker(&["rm", "-f", &squatter])?;
    Ok(format!("{seen}; gateways followed after {:.1} s; {}", promoted.as_secs_f64(), returned?))
}

/// The master hangs.
async fn pause_master(project: &Project) -> Result<String> {
    let traffic = traffic(project).await?;
    let since = traffic.now();
    let master = project.master().await?;
    let container = project.container(&master)?;
    docker(&["pause", &container])?;
    let followed =
        until("another master", LIMIT, async || (project.master().await.ok()? != master).then_some(())).await;
    docker(&["unpause", &container])?;
    followed?;
    // The old master believes that it is one still; nobody else must.
    project.wait_well(LIMIT).await?;
    ensure!(project.master().await? != master, "the old master was believed");
    judge(traffic, since).await
}

/// No Redis at all.
async fn outage(project: &Project) -> Result<String> {
    const OUTAGE: Duration = Duration::from_secs(40);
    // Enough of them that the dashboards tell what a session costs.
    let crowd = Crowd::start(project.front, 330).await?;
    let redis = ["redis-1", "redis-2", "redis-3"].map(|service| project.container(service));
    let redis: Vec<String> = redis.into_iter().collect::<Result<_>>()?;
    let names: Vec<&str> = redis.iter().map(String::as_str).collect();
    let began = Instant::now();
    docker(&[&["kill"], &names[..]].concat())?;
    let refused = until("handshakes get 503", LIMIT, async || {
        let (done, _) = handshake(project.front, "").await.ok()?;
        (done.status == 503).then_some((began.elapsed(), done))
    });
    let refused: Result<(Duration, Handshake)> = refused.await;
    let knocker = Knocker::start(project.front);
    tokio::time::sleep_until((began + OUTAGE).into()).await;
    let heard = knocker.take();
    docker(&[&["start"], &names[..]].concat())?;
    let up = Instant::now();
    let (refused_after, first) = refused?;
    ensure!(first.head.to_ascii_lowercase().contains("retry-after: "), "no Retry-After: {}", first.head);
    for result in &heard {
        let done = result.as_ref().map_err(|error| anyhow::anyhow!("a handshake failed: {error}"))?;
        let retry = done.head.to_ascii_lowercase().contains("retry-after: ");
        ensure!(done.status == 503 && retry && done.took < Duration::from_secs(1), "a handshake got {done:?}");
    }
    until("handshakes become sessions again", LIMIT, async || {
        let (done, _) = handshake(project.front, "").await.ok()?;
        (done.status == 101).then_some(())
    })
    .await?;
    let open = up.elapsed();
    project.wait_well(LIMIT).await?;
    let well = up.elapsed();
    let during = crowd.take();
    let only_broker = during.errors.keys().all(|code| code == "EBROKER");
    ensure!(during.closes.is_empty() && only_broker && !during.errors.is_empty(), "{during:?}");
    ensure!(during.longest_answer < DEADLINE && during.unanswered == 0, "{during:?}");
    // What these sent before that may be past its deadline still.
    until("sends are acknowledged again", LIMIT, async || (crowd.look().acked > 100).then_some(())).await?;
    let new = Crowd::start(project.front, 30).await?;
    until("sends of new sessions are acknowledged", LIMIT, async || (new.look().acked > 100).then_some(())).await?;
    flawless(&new.take())?;
    Ok(format!(
        "handshakes: 503 with Retry-After after {:.0} s, then {} more, at once; {} sessions stayed, {} EBROKER within {:.1} s; \
         back: handshakes after {:.1} s, all well after {:.1} s",
        refused_after.as_secs_f64(),
        heard.len(),
        crowd.len(),
        during.errors.values().sum::<u64>(),
        during.longest_answer.as_secs_f64(),
        open.as_secs_f64(),
        well.as_secs_f64()
    ))
}
