//! What clients see while parts of the compose stack die, hang, are cut off and come back.
//!
//! `tests/compose` builds and starts the stack, and runs this on it: `stack PROJECT`. It prints a table;
//! exit code 1 when something did not hold.

mod crowd;
mod docker;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use texto_lab::client::{Answer, Client};
use texto_lab::http;
use texto_lab::process::until;
use texto_lab::traffic::{Load, Traffic};
use tokio::net::TcpStream;

use crate::crowd::{Crowd, Handshake, Knocker, Tally, handshake};
use crate::docker::{Project, docker, log};

const LIMIT: Duration = Duration::from_secs(40);
/// The send deadline of the stack, and some time for the way.
const DEADLINE: Duration = Duration::from_millis(5_500);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let name = std::env::args().nth(1).context("usage: stack PROJECT")?;
    let project = Project::find(&name)?;
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
    scenario!("docker stop of a gateway; it starts again", stop_gateway(&project));
    scenario!("docker kill of a gateway; it starts again", kill_gateway(&project));
    scenario!("docker pause of the master", pause_master(&project));
    scenario!("docker pause of a gateway", pause_gateway(&project));
    scenario!("docker network disconnect of a gateway from Redis", cut_gateway(&project));
    scenario!("all Redis down for 40 s", outage(&project));
    println!("\n| what was done | outcome | took | what clients saw |\n|---|---|---|---|\n{}", rows.join("\n"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ready for the next fault.
async fn whole(project: &Project) -> Result<()> {
    project.wait_well(LIMIT).await?;
    project.wait_sentinels(LIMIT).await
}

/// 1. Sessions land everywhere; everybody reaches everybody.
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

/// 1, too: what strangers may not see, and what they may not pretend.
async fn outside(project: &Project) -> Result<String> {
    for path in ["/metrics", "/readyz", "/readyz?verbose", "/livez"] {
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
    Ok(format!("404 for metrics and health; a forged address in none of {known} sessions"))
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

/// 2. The master dies; it returns elsewhere and is a replica.
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

/// 3. A gateway drains: everybody on it is told, and is elsewhere at once.
async fn stop_gateway(project: &Project) -> Result<String> {
    let gateway = &project.gateways[1];
    let crowd = Crowd::start(project.front, 45).await?;
    let knocker = Knocker::start(project.front);
    let there = project.sessions(gateway).await?;
    let began = Instant::now();
    docker(&["stop", "-t", "45", gateway])?;
    let stopped = began.elapsed();
    let code = docker(&["inspect", "-f", "{{.State.ExitCode}}", gateway])?;
    ensure!(code == "0", "it ended with exit code {code}");
    let (knocks, longest) = knocker.all_well()?;
    let tally = crowd.take();
    let told = tally.closes.get(&1012).copied().unwrap_or(0);
    ensure!(told == tally.closes.values().sum::<u64>() && told + 1 >= there, "{there} were there: {tally:?}");
    flawless(&tally)?;
    let share = restart(project, gateway).await?;
    Ok(format!(
        "{told} sessions told 1012 and back within {:.0} ms, stopped in {:.0} s with code 0; {knocks} handshakes meanwhile, \
         none failed, the longest {:.0} ms; {} sends, all acknowledged, {} crossed the farewell; {share}",
        ms(tally.longest_away),
        stopped.as_secs_f64(),
        ms(longest),
        tally.acked,
        tally.crossed,
    ))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Every send was acknowledged, and nobody was refused.
fn flawless(tally: &Tally) -> Result<()> {
    let fine = tally.errors.is_empty() && tally.unanswered == 0 && tally.refused == 0;
    ensure!(fine && tally.acked > 0 && tally.longest_answer < DEADLINE, "{tally:?}");
    Ok(())
}

/// Starts a gateway again, and looks how many of thirty new sessions it gets.
async fn restart(project: &Project, gateway: &str) -> Result<String> {
    docker(&["start", gateway])?;
    let began = Instant::now();
    project.wait_well(LIMIT).await?;
    project.wait_listed(project.gateways.len(), LIMIT).await?;
    Ok(format!("started again: {}", fair_share(project, gateway, began).await?))
}

/// Ensures that a gateway gets its fair share of new sessions soon: six or more of thirty.
async fn fair_share(project: &Project, gateway: &str, since: Instant) -> Result<String> {
    // For a moment nginx' old workers and its new ones accept side by side.
    const SOON: Duration = Duration::from_secs(5);
    let end = Instant::now() + SOON;
    let mut open = Vec::new();
    loop {
        let share = share(project, gateway, &mut open).await?;
        if share >= 6 {
            return Ok(format!("{share} of 30 new sessions after {:.1} s", since.elapsed().as_secs_f64()));
        }
        ensure!(Instant::now() < end, "it gets {share} of 30 new sessions, {SOON:?} after it was listed");
    }
}

/// How many of thirty new sessions a gateway gets; all must begin, and soon. They go on in `open`: sessions
/// that end meanwhile would be counted off.
async fn share(project: &Project, gateway: &str, open: &mut Vec<TcpStream>) -> Result<u64> {
    let before = project.sessions(gateway).await.unwrap_or(0);
    for _ in 0..30 {
        let (done, stream) = handshake(project.front, "").await?;
        ensure!(done.status == 101, "a handshake was answered {}", done.status);
        ensure!(done.took < Duration::from_secs(3), "a handshake took {:?}", done.took);
        open.push(stream);
    }
    Ok(project.sessions(gateway).await.unwrap_or(0).saturating_sub(before))
}

/// 4. A gateway dies without a word.
async fn kill_gateway(project: &Project) -> Result<String> {
    let gateway = &project.gateways[2];
    let crowd = Crowd::start(project.front, 45).await?;
    let knocker = Knocker::start(project.front);
    docker(&["kill", gateway])?;
    project.wait_listed(2, LIMIT).await?;
    until("everybody is back", LIMIT, async || {
        let now = crowd.look();
        (now.back > 0 && now.back == now.closes.values().sum::<u64>()).then_some(())
    })
    .await?;
    until("twenty handshakes", LIMIT, async || (knocker.count() >= 20).then_some(())).await?;
    let (knocks, longest) = knocker.all_well()?;
    let tally = crowd.take();
    let lost: u64 = tally.closes.values().sum();
    ensure!(lost >= 5 && tally.refused == 0 && tally.errors.is_empty(), "{tally:?}");
    let share = restart(project, gateway).await?;
    flawless(&crowd.take())?;
    Ok(format!(
        "{lost} sessions lost, all back within {:.0} ms; {knocks} handshakes meanwhile, none failed, the longest {:.0} ms; {share}",
        ms(tally.longest_away),
        ms(longest),
    ))
}

/// 4. The master hangs.
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

/// 4. A gateway hangs.
async fn pause_gateway(project: &Project) -> Result<String> {
    let gateway = &project.gateways[0];
    let nginx_notices = async {
        let began = Instant::now();
        docker(&["pause", gateway])?;
        project.wait_listed(2, LIMIT).await?;
        Ok::<_, anyhow::Error>(began.elapsed())
    };
    let noticed = nginx_notices.await;
    let outcome = async {
        let knocker = Knocker::start(project.front);
        // Long enough for Prometheus to notice: it asks every five seconds, and waits for four.
        until("a hundred handshakes", LIMIT, async || (knocker.count() >= 100).then_some(())).await?;
        knocker.all_well()
    };
    let outcome = outcome.await;
    docker(&["unpause", gateway])?;
    let (knocks, longest) = outcome?;
    ensure!(longest < Duration::from_secs(1), "a handshake took {longest:?}");
    let began = Instant::now();
    project.wait_listed(3, LIMIT).await?;
    Ok(format!(
        "nginx avoids it after {:.1} s; then {knocks} handshakes, none failed, the longest {:.0} ms; woken: {}",
        noticed?.as_secs_f64(),
        ms(longest),
        fair_share(project, gateway, began).await?
    ))
}

/// 4. A gateway loses Redis; the others do not.
async fn cut_gateway(project: &Project) -> Result<String> {
    let gateway = &project.gateways[1];
    let back = project.network("back");
    let began = Instant::now();
    docker(&["network", "disconnect", &back, gateway])?;
    let outcome = async {
        until("it is not ready", LIMIT, async || (project.health(gateway).await.ok()?.0 == 503).then_some(())).await?;
        let unready = began.elapsed();
        let share = share(project, gateway, &mut Vec::new()).await?;
        ensure!(share == 0, "it gets {share} of 30 new sessions");
        Ok(unready)
    };
    let outcome: Result<Duration> = outcome.await;
    docker(&["network", "connect", "--alias", "gateway", &back, gateway])?;
    let unready = outcome?;
    let began = Instant::now();
    project.wait_well(LIMIT).await?;
    let well = began.elapsed();
    Ok(format!(
        "unready after {:.1} s, then 0 of 30 new sessions; connected again: well after {:.1} s, {}",
        unready.as_secs_f64(),
        well.as_secs_f64(),
        fair_share(project, gateway, began).await?
    ))
}

/// 5. No Redis at all.
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
    until("sends are acknowledged again", LIMIT, async || (crowd.look().acked > 100).then_some(())).await?;
    flawless(&crowd.take())?;
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
