//! Owns the real message: published on each server, and seen on each other one that must see it, with the time it took.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use uuid::Uuid;

use super::findings::Findings;
use super::redis::Server;
use super::talk::Said;
use crate::transport::envelope::Channel;

/// Replication takes microseconds; from here on gateways publish elsewhere as well.
const SLOW: Duration = Duration::from_millis(100);
/// How often something slow is tried.
const ROUNDS: usize = 3;
/// A message that is not there by then is not coming.
const LEAST_LIMIT: Duration = Duration::from_secs(1);

/// Publishes on all servers at once. What a replica is told is heard there alone, what the master is told by all.
pub(super) async fn look(servers: &mut [Server], heartbeat: Duration, out: &mut Findings) {
    gateways(servers, out);
    let channel = Channel::Client(Uuid::new_v4()).name();
    let limit = heartbeat.max(LEAST_LIMIT);
    let masters: Vec<_> = servers.iter().enumerate().filter(|(_, s)| s.is_master()).map(|(index, _)| index).collect();
    let master = masters.first().copied().filter(|_| masters.len() == 1);
    let subscribed = join_all(servers.iter_mut().map(async |server| {
        server.is_usable && matches!(server.subscriber.ask(&["SUBSCRIBE", &channel]).await, Ok(Said::List(_)))
    }));
    let subscribed = subscribed.await;
    let mut best: BTreeMap<(usize, usize), Option<Duration>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for (pair, took) in say_and_hear(servers, &subscribed, master, (&channel, round), limit).await {
            let best = best.entry(pair).or_default();
            *best = [*best, took].into_iter().flatten().min();
        }
        // This host may have been busy for a moment; what did not come at all will not come.
        if best.values().all(|took| took.is_none_or(|took| took <= SLOW)) {
            break;
        }
    }
    for ((from, to), took) in best {
        judge(&servers[from], &servers[to], took, limit, out);
    }
}

/// One round: who published, who should see it, and how long that took, if it came.
async fn say_and_hear(
    servers: &mut [Server],
    subscribed: &[bool],
    master: Option<usize>,
    (channel, round): (&str, usize),
    limit: Duration,
) -> Vec<((usize, usize), Option<Duration>)> {
    let said: Mutex<Vec<Option<Instant>>> = Mutex::new(vec![None; servers.len()]);
    let usable: Vec<bool> = servers.iter().map(|server| server.is_usable).collect();
    let each = join_all(servers.iter_mut().enumerate().map(async |(index, server)| {
        if !subscribed[index] {
            return Vec::new();
        }
        let others = master.filter(|master| *master != index && usable[*master]);
        let mut seen: Vec<_> = std::iter::once(index).chain(others).map(|from| (from, None)).collect();
        let (publisher, subscriber) = (&mut server.publisher, &mut server.subscriber);
        let publish = async {
            said.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(Instant::now());
            let _ = publisher.ask(&["PUBLISH", channel, &format!("{round}:{index}")]).await; // It is seen, or not.
        };
        let hear = async {
            while seen.iter().any(|(_, at)| at.is_none()) {
                let Ok(text) = subscriber.message(channel).await else { return };
                let is_it = |from: &usize| text == format!("{round}:{from}").as_bytes();
                if let Some((_, at)) = seen.iter_mut().find(|(from, _)| is_it(from)) {
                    at.get_or_insert_with(Instant::now);
                }
            }
        };
        let _ = tokio::time::timeout(limit, async { tokio::join!(publish, hear) }).await;
        seen
    }));
    let each = each.await;
    let said = said.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seen = each.into_iter().enumerate().flat_map(|(to, seen)| seen.into_iter().map(move |seen| (to, seen)));
    let took = |at: Option<Instant>, from: usize| Some(at?.saturating_duration_since(said[from]?));
    seen.map(|(to, (from, at))| ((from, to), took(at, from))).collect()
}

fn judge(from: &Server, to: &Server, took: Option<Duration>, limit: Duration, out: &mut Findings) {
    let what = match from.address == to.address {
        true => "a message that was published here".to_owned(),
        false => format!("a message that was published on the master {}", from.address),
    };
    match took {
        None => out.wrong(
            "pubsub.message",
            &to.place,
            format!("{what} was not seen here within {limit:?}"),
            "who listens here hears nothing of it: it is a server that bridges no failover",
            "see its role and its connection to the master, above or by ROLE; the rights; and what stands between",
        ),
        Some(took) if took > SLOW => out.doubtful(
            "pubsub.message",
            &to.place,
            format!("{what} was seen here after {} ms", took.as_millis()),
            "after 100 ms gateways say a message again on every server",
            "see the network between the two, and what keeps them busy (SLOWLOG GET, LATENCY DOCTOR)",
        ),
        Some(took) => {
            out.well("pubsub.message", &to.place, format!("{what} was seen after {:.2} ms", took.as_secs_f64() * 1e3));
        }
    }
}

/// Each gateway is subscribed on each server, unless it was told otherwise.
fn gateways(servers: &[Server], out: &mut Findings) {
    let counts: Vec<_> = servers.iter().filter_map(|server| Some((&server.address, server.gateways?))).collect();
    let (Some(least), Some(most)) = (counts.iter().map(|(_, n)| n).min(), counts.iter().map(|(_, n)| n).max()) else {
        return;
    };
    if least == most {
        out.well("pubsub.gateways", "the gateways", format!("those that are subscribed: {most} on each Redis"));
    } else {
        let each: Vec<_> = counts.iter().map(|(address, count)| format!("{count} on {address}")).collect();
        out.doubtful(
            "pubsub.gateways",
            "the gateways",
            format!("not all of them are subscribed on every Redis: {}", each.join(", ")),
            "a gateway that is not subscribed everywhere is silent in a failover",
            "see `/readyz?verbose` of each gateway; --standby-subscriptions (TEXTO_STANDBY_SUBSCRIPTIONS) true on all",
        );
    }
}
