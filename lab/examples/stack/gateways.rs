//! Owns what is done to gateways: upgrades, deaths, hangs and cuts, and what clients of both kinds see of them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use texto_lab::process::until;
use texto_lab::traffic::{Manners, Plan, Traffic};
use tokio::net::TcpStream;

use crate::crowd::{Crowd, Knocker, Tally, handshake};
use crate::docker::{Project, build, docker, log};
use crate::{DEADLINE, LIMIT, flows};

/// Clients of each kind.
const PEOPLE: usize = 45;
/// Where the gateways have their session keys.
const KEYS: &str = "/var/lib/texto/session-keys";

/// Starts persons, whose sessions outlive their connections, and lets them write to one another by way of nginx.
async fn persons(project: &Project) -> Result<Traffic> {
    // nginx needs a second to pass over a gateway that is gone.
    let manners = Manners { dial: Duration::from_secs(5), ..Manners::default() };
    let plan = Plan { rate: Some(150.0), ..Plan::persons(PEOPLE, manners, DEADLINE) };
    let traffic = Traffic::start(&[project.front], plan).await?;
    traffic.copied(LIMIT).await?;
    flows(&traffic).await?;
    Ok(traffic)
}

/// Waits until they are all back and safe, and ends them: nobody missed anything, and no message took longer than `limit`.
async fn judge(persons: Traffic, since: Duration, limit: Duration) -> Result<String> {
    persons.attached(LIMIT).await?;
    persons.copied(LIMIT).await?;
    flows(&persons).await?;
    let now = persons.now();
    let report = persons.finish(since, now).await?;
    ensure!(report.broken().is_empty() && report.failed() == 0 && report.told == 0 && report.resumed > 0, "{report:?}");
    ensure!(report.longest_wait_ms < ms(limit), "a message was on its way for {:.0} ms", report.longest_wait_ms);
    Ok(format!(
        "persons came back {} times with their ids; {} messages, all acknowledged and shown, once and in order, the longest \
         {:.0} ms on its way",
        report.resumed, report.sent, report.longest_wait_ms
    ))
}

/// All gateways are replaced by those of another image, as docs/upgrading.md has it, and the session key is changed meanwhile:
/// everybody is told, and is elsewhere at once.
pub(crate) async fn upgrade(project: &mut Project) -> Result<String> {
    let image = docker(&["inspect", "-f", "{{.Config.Image}}", &project.gateways[0]])?;
    let old_image = docker(&["image", "inspect", "-f", "{{.Id}}", &image])?;
    let new_image = build(&image, &format!("FROM {image}\nLABEL texto.upgrade=yes\n"))?;
    let upgraded = roll(project, &new_image).await;
    docker(&["tag", &old_image, &image])?;
    project.gateways = project.containers("gateway")?;
    upgraded
}

async fn roll(project: &mut Project, new_image: &str) -> Result<String> {
    let crowd = Crowd::start(project.front, PEOPLE).await?;
    let persons = persons(project).await?;
    let since = persons.now();
    let knocker = Knocker::start(project.front);
    let mut slowest = Duration::ZERO;
    let mut of_all = Tally::default();
    let old = project.gateways.clone();
    let more = format!("gateway={}", old.len() + 1);
    for (step, gateway) in old.iter().enumerate() {
        project.compose(&["up", "-d", "--no-deps", "--no-recreate", "--scale", &more, "gateway"])?;
        let (there, persons_told) = (project.sessions(gateway).await?, told(&persons));
        let began = Instant::now();
        docker(&["stop", "-t", "45", gateway])?;
        slowest = slowest.max(began.elapsed());
        let code = docker(&["inspect", "-f", "{{.State.ExitCode}}", gateway])?;
        ensure!(code == "0", "{gateway} ended with exit code {code}");
        docker(&["rm", gateway])?;
        let tally = crowd.take();
        let all_told = tally.closes.get(&1012).copied().unwrap_or(0);
        ensure!(all_told == tally.closes.values().sum::<u64>(), "{tally:?}");
        // One of them may be the handshake of the moment.
        ensure!(all_told + told(&persons) - persons_told + 1 >= there, "{there} were on {gateway}: {tally:?}");
        flawless(&tally)?;
        of_all.add(tally);
        // The new key is known to all before it signs.
        let change = match step {
            0 => "add",
            1 => "sign",
            _ => continue,
        };
        docker(&["exec", &old[step + 1], "texto", "session-key", change, KEYS])?;
    }
    let (knocks, longest) = knocker.all_well()?;
    project.gateways = project.containers("gateway")?;
    for gateway in &project.gateways {
        let image = docker(&["inspect", "-f", "{{.Image}}", gateway])?;
        ensure!(image == new_image, "{gateway} has the image {image}");
    }
    let last = project.gateways.last().cloned().unwrap_or_default();
    let [before_last, ..] = project.gateways.as_slice() else { anyhow::bail!("no gateways") };
    ensure!(log(before_last)?.contains("session keys were read again"), "{before_last} has not read the new keys");
    project.wait_well(LIMIT).await?;
    project.wait_listed(old.len(), LIMIT).await?;
    let share = fair_share(project, &last, Instant::now()).await?;
    Ok(format!(
        "each stopped within {:.0} s with code 0; others were told 1012 {} times and back within {:.0} ms, {} sends, all \
         acknowledged, {} crossed the farewell; {}; {knocks} handshakes, none failed, the longest {:.0} ms; the last new one \
         has {share}",
        slowest.as_secs_f64(),
        of_all.back,
        ms(of_all.longest_away),
        of_all.acked,
        of_all.crossed,
        judge(persons, since, Duration::from_secs(1)).await?,
        ms(longest),
    ))
}

/// How many persons were told to go elsewhere.
fn told(persons: &Traffic) -> u64 {
    persons.closes().iter().filter(|close| close.code == 1012).count() as u64
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Every send was acknowledged, and nobody was refused.
pub(crate) fn flawless(tally: &Tally) -> Result<()> {
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

/// A gateway dies without a word.
pub(crate) async fn kill(project: &Project) -> Result<String> {
    let gateway = &project.gateways[2];
    let crowd = Crowd::start(project.front, PEOPLE).await?;
    let persons = persons(project).await?;
    let knocker = Knocker::start(project.front);
    let since = persons.now();
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
    let seen = judge(persons, since, Duration::from_secs(3)).await?;
    let share = restart(project, gateway).await?;
    flawless(&crowd.take())?;
    Ok(format!(
        "{lost} other sessions lost, all back within {:.0} ms; {seen}; {knocks} handshakes meanwhile, none failed, the longest \
         {:.0} ms; {share}",
        ms(tally.longest_away),
        ms(longest),
    ))
}

/// A gateway hangs.
pub(crate) async fn pause(project: &Project) -> Result<String> {
    let gateway = &project.gateways[0];
    let nginx_notices = async {
        let began = Instant::now();
        docker(&["pause", gateway])?;
        project.wait_listed(2, LIMIT).await?;
        Ok::<_, anyhow::Error>(began.elapsed())
    };
    let noticed = nginx_notices.await;
    let outcome = async {
        // The list is written a moment before nginx goes by it; who comes meanwhile may wait for the one that hangs.
        until("nginx goes by its list", LIMIT, async || {
            for _ in 0..20 {
                let open = texto_lab::client::open(project.front, "/v1/texto");
                tokio::time::timeout(Duration::from_secs(1), open).await.ok()?.ok()?;
            }
            Some(())
        })
        .await?;
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

/// A gateway loses Redis; the others do not.
pub(crate) async fn cut(project: &Project) -> Result<String> {
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
