//! Owns `texto check`: what is looked at of a deployment before its users do, in which order, and for how long.
//!
//! Each subject has a file; whoever asks a server waits for it within `--heartbeat-timeout`, as a gateway does, and asks
//! all servers at once. What is said of it stands in [`findings`].

pub mod at_start;
pub mod findings;

mod exposed;
mod failover;
mod host;
mod info;
mod nginx;
mod pubsub;
mod redis;
mod redis_settings;
mod sentinels;
mod talk;

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use self::findings::Findings;
use self::sentinels::Listed;
use crate::config::cli::CheckArgs;
use crate::config::variables::Variables;
use crate::config::{BrokerConfig, Config, RedisConfig, TopologyConfig};
use crate::sentinel::Settings;

/// However many steps are slow, nobody waits longer for each part.
const MOST: Duration = Duration::from_secs(30);

/// Looks at everything that the configuration of `serve` names.
pub async fn run(args: &CheckArgs, variables: &Variables) -> Findings {
    let mut out = Findings::default();
    let mut serve = args.serve.clone();
    let keys_to_come = host::is_to_be_made(&serve.session_key_create, serve.session_key_file.as_deref());
    if keys_to_come {
        // That is the gateway's to do, and whether it can is seen then.
        let file = serve.session_key_file.take().unwrap_or_default();
        "false".clone_into(&mut serve.session_key_create);
        let to_do = "start a gateway, or make it by `texto session-key`";
        out.unseen(
            "config.session-key-file",
            "the configuration",
            format!("{file:?} is made at the first start"),
            to_do,
        );
    }
    let config = match Config::new(&serve, variables) {
        Ok(config) => config,
        Err(errors) => {
            for error in errors.each() {
                let why = "`texto serve` does not start with it";
                out.wrong("config.invalid", "the configuration", error, why, "the flag or variable that is named");
            }
            return out;
        }
    };
    host::look(&config, keys_to_come, &mut out);
    exposed::look(&config, &mut out);
    let redis = async {
        match &config.broker {
            BrokerConfig::Embedded => Findings::default(),
            BrokerConfig::Redis(redis) => within("the servers", look_at_servers(redis, &config)).await,
        }
    };
    let front = async {
        let Some(address) = &args.nginx else { return Findings::default() };
        within(address, async {
            let mut out = Findings::default();
            nginx::look(address, &config, &mut out).await;
            out
        })
        .await
    };
    let (redis, front) = tokio::join!(redis, front);
    out.append(redis);
    out.append(front);
    out
}

async fn within(place: &str, look: impl Future<Output = Findings>) -> Findings {
    timeout(MOST, look).await.unwrap_or_else(|_| {
        let mut out = Findings::default();
        let found = format!("the check was not done within {MOST:?}");
        let why = "each answer came, but late: a gateway waits for each of them as well";
        out.wrong("check.time", place, found, why, "see the network, and what keeps the servers busy");
        out
    })
}

async fn look_at_servers(redis: &RedisConfig, config: &Config) -> Findings {
    let mut out = Findings::default();
    let (servers, map) = match &redis.topology {
        TopologyConfig::Fixed(address) => (vec![(address.clone(), None)], None),
        TopologyConfig::Sentinel { sentinels, address_map, .. } => {
            let Some(settings) = sentinel_settings(redis) else { return out };
            let listed = sentinels::look(&settings, sentinels, config.ready_grace, &mut out).await;
            let servers = listed.into_iter().map(|(address, listed)| (address, Some(listed))).collect();
            (servers, Some(address_map))
        }
    };
    let master = servers.iter().find(|(_, listed): &&(_, Option<Listed>)| listed.as_ref().is_some_and(|l| l.is_master));
    let master = master.map(|(address, _)| address.clone());
    let looks = servers.into_iter().map(|(address, listed)| {
        let map = map.map(AsRef::as_ref);
        redis::look(address, listed, redis, map)
    });
    let mut answering = Vec::new();
    for (server, findings) in join_all(looks).await {
        out.append(findings);
        answering.extend(server);
    }
    let master_offset = answering.iter().find(|server| server.is_master()).and_then(|master| {
        let info = master.info.as_ref()?;
        info.number("master_repl_offset")
    });
    let is_master_away = master.is_some_and(|master| answering.iter().all(|server| server.address != master));
    let max_text_bytes = config.limits.max_text_bytes;
    for server in &answering {
        let context = redis_settings::Context { config: redis, max_text_bytes, master_offset, is_master_away };
        redis_settings::judge(server, context, &mut out);
    }
    pubsub::look(&mut answering, redis.heartbeat_timeout, &mut out).await;
    out
}

/// How Sentinels are asked, where there are some.
fn sentinel_settings(redis: &RedisConfig) -> Option<Settings> {
    let TopologyConfig::Sentinel { master_name, credentials, connector, address_map, .. } = &redis.topology else {
        return None;
    };
    Some(Settings {
        master_name: master_name.clone(),
        credentials: credentials.clone(),
        connector: connector.clone(),
        address_map: address_map.clone(),
        limit: redis.heartbeat_timeout,
    })
}
