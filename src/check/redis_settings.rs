//! Owns the judgement of what a Redis says of itself: role, lag, and the settings that matter to pub/sub. **Pure.**

use std::net::IpAddr;

use super::findings::Findings;
use super::redis::Server;
use crate::broker::redis::role::Role;
use crate::config::{Address, RedisConfig};

/// Bytes that a replica may be behind, and seconds that its master may have said nothing: it speaks every 10 s.
const LAG: i64 = 1024 * 1024;
const QUIET: i64 = 15;
/// Redis' own bound on what waits for a subscriber.
const BUFFER: u64 = 32 * 1024 * 1024;
/// Connections of a gateway to each server.
const PER_GATEWAY: u64 = 2;
/// Gateways that should find room beside those that are there.
const MORE_GATEWAYS: u64 = 4;

/// What is judged of one server with a view to the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) config: &'a RedisConfig,
    pub(super) max_text_bytes: usize,
    /// How much the master has replicated.
    pub(super) master_offset: Option<i64>,
    /// The master does not answer: that is said of it, and no replica can help it.
    pub(super) is_master_away: bool,
}

pub(super) fn judge(server: &Server, context: Context<'_>, out: &mut Findings) {
    role(server, context, out);
    settings(server, context, out);
    room(server, out);
    openness(&server.address, context.config, &server.place, out);
}

fn role(server: &Server, context: Context<'_>, out: &mut Findings) {
    let place = &server.place;
    let listed_master = server.listed.as_ref().map(|listed| listed.is_master);
    match (&server.role, listed_master) {
        (None, _) => {}
        (Some(Role::Master), Some(false)) => out.wrong(
            "redis.role",
            place,
            "it calls itself master, and the Sentinels list it as a replica",
            "it takes messages that nobody else hears, and errors don't tell: an old master that came back, or was cut off",
            "check again in 15 s: Sentinel demotes it. If it stays: `REPLICAOF <master> <port>` there",
        ),
        (Some(Role::Replica { master, .. }), Some(true)) => out.wrong(
            "redis.role",
            place,
            format!("the Sentinels call it master, and it follows {master}"),
            "gateways publish nothing on a master that is none: sends wait, and are answered with EBROKER",
            "check again in 10 s, for a failover may be under way. If it stays: `REPLICAOF NO ONE` there, or `SENTINEL RESET`",
        ),
        (Some(Role::Replica { master, .. }), None) => out.wrong(
            "redis.role",
            place,
            format!("it is a replica of {master}"),
            "with --redis alone the one server must be a master",
            "--redis (TEXTO_REDIS): the master's address; or --sentinels (TEXTO_SENTINELS), which find it",
        ),
        (Some(Role::Replica { master, connected: false }), _) if context.is_master_away => out.unseen(
            "redis.replication",
            place,
            format!("it has no connection to its master {master}, for the master does not answer"),
            "check again when there is a master",
        ),
        (Some(Role::Replica { master, connected: false }), _) => {
            let since = server.info.as_ref().and_then(|info| info.number("master_link_down_since_seconds"));
            let since = since.filter(|since| *since >= 0).map(|since| format!(" since {since} s")).unwrap_or_default();
            out.wrong(
                "redis.replication",
                place,
                format!("it has no connection to its master {master}{since}"),
                "what is published on the master is not heard here, and it can't take the master's place",
                "see its log: `masterauth`, `masteruser`, TLS, or the way to the master's address",
            );
        }
        (Some(Role::Replica { .. }), _) => lag(server, context, out),
        (Some(Role::Master), _) => out.well("redis.role", place, "it is the master"),
    }
}

fn lag(server: &Server, context: Context<'_>, out: &mut Findings) {
    let number = |name| server.info.as_ref().and_then(|info| info.number(name));
    let behind = context.master_offset.zip(number("slave_repl_offset")).map(|(master, own)| (master - own).max(0));
    let quiet = number("master_last_io_seconds_ago").unwrap_or_default();
    if behind.is_some_and(|bytes| bytes > LAG) || quiet > QUIET {
        let bytes = behind.unwrap_or_default();
        return out.doubtful(
            "redis.lag",
            &server.place,
            format!("it is {bytes} bytes behind its master, of which it has heard {quiet} s ago"),
            "receipts and messages that go by the master are late here",
            "see the network between the two, and its processor time",
        );
    }
    let behind = behind.map(|bytes| format!(", {bytes} bytes behind")).unwrap_or_default();
    out.well("redis.role", &server.place, format!("it is a replica with a connection to its master{behind}"));
}

fn settings(server: &Server, context: Context<'_>, out: &mut Findings) {
    let place = &server.place;
    let option = |name: &str| server.options.get(name).map(String::as_str);
    if let Some(limit) = option("client-output-buffer-limit") {
        buffer(place, limit, context.max_text_bytes, out);
    }
    if let Some(seconds) = option("tcp-keepalive").and_then(|text| text.parse::<u64>().ok()) {
        let found = format!("`tcp-keepalive` is {seconds}");
        if seconds == 0 || seconds > 300 {
            out.doubtful(
                "redis.keepalive",
                place,
                found,
                "a gateway's host that is gone without a word stays subscribed: its clients are counted as connected",
                "`tcp-keepalive 60` in redis.conf, and CONFIG SET the same",
            );
        } else {
            out.well("redis.keepalive", place, found);
        }
    }
    match option("replica-serve-stale-data") {
        Some("no") => out.doubtful(
            "redis.stale",
            place,
            "`replica-serve-stale-data` is no",
            "as long as the master is away, a replica answers PING and most commands with MASTERDOWN: health checks restart \
             the very servers that bridge the failover",
            "`replica-serve-stale-data yes` in redis.conf, and CONFIG SET the same",
        ),
        Some(other) => out.well("redis.stale", place, format!("`replica-serve-stale-data` is {other}")),
        None => {}
    }
    if let Some(least) = option("min-replicas-to-write").and_then(|text| text.parse::<i64>().ok()) {
        let replicas = server.info.as_ref().and_then(|info| info.number("connected_slaves"));
        if server.is_master() && replicas.is_some_and(|replicas| least > replicas) {
            out.doubtful(
                "redis.min-replicas",
                place,
                format!("`min-replicas-to-write` is {least}, and {} replicas are connected", replicas.unwrap_or_default()),
                "writes of others are refused (NOREPLICAS); Texto's PUBLISH is not: it keeps no old master from taking messages",
                "`min-replicas-to-write 0`, or as many replicas",
            );
        } else {
            out.well("redis.min-replicas", place, format!("`min-replicas-to-write` is {least}"));
        }
    }
}

/// What may wait for a subscriber, as `CONFIG GET client-output-buffer-limit` has it.
pub(super) fn buffer(place: &str, limit: &str, max_text_bytes: usize, out: &mut Findings) {
    let Some((hard, found)) = pubsub_limit(limit) else { return };
    let text = max_text_bytes as u64;
    let why = "a gateway has one subscribed connection for all its clients: when it lags for a moment, Redis cuts it off, \
               and with it everybody on that gateway";
    let change = "`client-output-buffer-limit pubsub 256mb 64mb 60` in redis.conf, and CONFIG SET the same";
    match hard {
        0 => out.doubtful(
            "redis.buffer",
            place,
            format!("{found}: no limit"),
            "a gateway that hangs makes Redis keep everything for it until memory ends",
            change,
        ),
        hard if hard < text.saturating_mul(2) => out.wrong("redis.buffer", place, found, why, change),
        hard if hard < BUFFER => out.doubtful("redis.buffer", place, found, why, change),
        _ => out.well("redis.buffer", place, found),
    }
}

/// The hard limit for subscribers, and the setting as it is written.
fn pubsub_limit(text: &str) -> Option<(u64, String)> {
    let mut words = text.split_whitespace().skip_while(|word| *word != "pubsub").skip(1);
    let (hard, soft, seconds) = (words.next()?, words.next()?, words.next()?);
    Some((hard.parse().ok()?, format!("`client-output-buffer-limit pubsub {hard} {soft} {seconds}`")))
}

fn room(server: &Server, out: &mut Findings) {
    let most = server.options.get("maxclients").and_then(|text| text.parse::<u64>().ok());
    let info = server.info.as_ref().and_then(|info| info.number("connected_clients"));
    let (Some(most), Some(clients)) = (most, info.and_then(|clients| u64::try_from(clients).ok())) else { return };
    let gateways = server.gateways.unwrap_or_default();
    let free = most.saturating_sub(clients);
    let found = format!("`maxclients` is {most}, {clients} are connected, {gateways} gateways among them");
    let why = "a gateway takes two connections, and all of them come back at once after a failover, while their old ones may \
               still be counted; who finds no room has no Redis";
    let change = "`maxclients 10000` in redis.conf, and a limit of open files (ulimit -n) that allows it";
    if free < PER_GATEWAY {
        out.wrong("redis.maxclients", &server.place, found, why, change);
    } else if free < PER_GATEWAY * (gateways + MORE_GATEWAYS) {
        out.doubtful("redis.maxclients", &server.place, found, why, change);
    } else {
        out.well("redis.maxclients", &server.place, found);
    }
}

/// A Redis that anybody may use who reaches it.
fn openness(address: &Address, config: &RedisConfig, place: &str, out: &mut Findings) {
    let is_here = address.host == "localhost"
        || address.host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    if config.credentials.password.is_none() && !is_here {
        out.doubtful(
            "redis.password",
            place,
            "it asks for no password",
            "whoever reaches it can read every message, and send them in anybody's name",
            "`requirepass …` or `ACL SETUSER texto …` there, and TEXTO_REDIS_PASSWORD_FILE here",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings::Verdict;
    use super::*;
    use crate::config::TopologyConfig;
    use crate::config::secret::Credentials;
    use crate::tls::connector::Connector;
    use crate::tls::reasons::Peer;
    use std::time::Duration;

    #[test]
    fn the_limit_of_subscribers_is_read() {
        let text = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        let found = "`client-output-buffer-limit pubsub 33554432 8388608 60`".to_owned();
        assert_eq!(pubsub_limit(text), Some((33_554_432, found)));
        assert_eq!(pubsub_limit("normal 0 0 0"), None);
    }

    #[test]
    fn a_redis_elsewhere_without_a_password_is_doubtful() {
        let second = Duration::from_secs(1);
        let config = RedisConfig {
            topology: TopologyConfig::Fixed("a:1".parse().unwrap()),
            credentials: Credentials::default(),
            connector: Connector::plain(Peer::Redis),
            standby_subscriptions: true,
            heartbeat_timeout: second,
            send_timeout: second,
        };
        let verdicts = |address: &str| {
            let mut out = Findings::default();
            openness(&address.parse().unwrap(), &config, "there", &mut out);
            out.iter().map(|finding| finding.verdict).collect::<Vec<_>>()
        };
        assert_eq!(verdicts("10.0.0.1:6379"), [Verdict::Doubtful]);
        assert_eq!(verdicts("redis-1:6379"), [Verdict::Doubtful]);
        assert_eq!(verdicts("127.0.0.1:6379"), []);
        assert_eq!(verdicts("[::1]:6379"), []);
    }
}
