//! Owns what `texto serve` warns of at its start: the worst of what `texto check` finds, where a gateway can see it. It is
//! said once, a line each, and nobody waits for it.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::findings::{Findings, Verdict, printable};
use super::talk::Talk;
use super::{exposed, host, redis_settings, sentinels};
use crate::broker::Broker;
use crate::config::{Address, BrokerConfig, Config, RedisConfig, TopologyConfig};

/// What would be noticed only when it is too late, and is told by no link and no watcher. What comes and goes, such as a
/// Sentinel that does not answer, is theirs to tell.
const WORST: [&str; 14] = [
    "access.origins",
    "access.proxies",
    "config.open-files",
    "host.descriptors",
    "host.somaxconn",
    "redis.buffer",
    "sentinel.count",
    "sentinel.even",
    "sentinel.loopback",
    "sentinel.majority",
    "sentinel.quorum",
    "sentinel.replicas",
    "sentinel.tilt",
    "tls.expiry",
];
/// Everything may be started at once: for so long Redis is waited for, ...
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(250);
/// ... and then for the Sentinels to have found one another, who say hello every two seconds.
const SETTLE: Duration = Duration::from_secs(5);

/// Looks, and warns. Ends within two minutes, whatever servers do.
pub async fn warn_of_the_worst(config: Config, broker: &dyn Broker) {
    let mut found = Findings::default();
    host::look(&config, false, &mut found);
    exposed::look(&config, &mut found);
    let mut count = say(&found);
    if let BrokerConfig::Redis(redis) = &config.broker {
        let usable = async {
            while !broker.status().ever_usable {
                sleep(LOOK).await;
            }
        };
        // Who has no Redis says so; there may be Sentinels all the same.
        let _ = timeout(PATIENCE, usable).await;
        sleep(SETTLE).await;
        match timeout(super::MOST, look_at_servers(redis, &config)).await {
            Ok(found) => count += say(&found),
            Err(_) => debug!("the servers answer too slowly to be looked at"),
        }
    }
    debug!(count, "looked for what `texto check` would say");
}

fn say(found: &Findings) -> usize {
    let worst = found.iter().filter(|finding| WORST.contains(&finding.name));
    let flaws = worst.filter(|finding| matches!(finding.verdict, Verdict::Doubtful | Verdict::Wrong));
    let said = flaws.map(|finding| {
        let text = |part: &Option<String>| printable(part.as_deref().unwrap_or_default());
        let (place, what) = (printable(&finding.place), printable(&finding.found));
        let (why, change) = (text(&finding.why), text(&finding.change));
        warn!(finding = finding.name, %place, %change, "{what}: {why} (`texto check` says more)");
    });
    said.count()
}

async fn look_at_servers(redis: &RedisConfig, config: &Config) -> Findings {
    let mut out = Findings::default();
    let servers = match &redis.topology {
        TopologyConfig::Fixed(address) => vec![address.clone()],
        TopologyConfig::Sentinel { sentinels, .. } => {
            let Some(settings) = super::sentinel_settings(redis) else { return out };
            let listed = sentinels::look(&settings, sentinels, config.ready_grace, &mut out).await;
            listed.into_iter().filter(|(_, listed)| !listed.is_down).map(|(address, _)| address).collect()
        }
    };
    let buffers = join_all(servers.iter().map(|address| buffer_limit(address, redis))).await;
    for (address, limit) in servers.iter().zip(buffers) {
        if let Some(limit) = limit {
            redis_settings::buffer(&format!("Redis {address}"), &limit, config.limits.max_text_bytes, &mut out);
        }
    }
    out
}

/// As far as it is to be had, which takes a right that Texto needs for nothing else.
async fn buffer_limit(address: &Address, redis: &RedisConfig) -> Option<String> {
    let mut talk = Talk::open(address, redis).await.ok()?;
    talk.setting("client-output-buffer-limit").await.ok()?.ok()?
}
