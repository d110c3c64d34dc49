//! Owns the look at this host, as it is for a gateway here: descriptors, the queue of new connections, ports; and at the
//! configuration itself.

use std::path::Path;

use super::findings::Findings;
use crate::config::{BrokerConfig, Config, TopologyConfig, option};

/// Fewer clients than this are worth a word.
const FEW_CONNECTIONS: usize = 2000;
/// What a listener asks for.
const BACKLOG: u64 = 1024;
/// Ports for outgoing connections: a proxy here takes one for each client.
const FEW_PORTS: u64 = 10_000;

const PLACE: &str = "this host";
pub(super) const CONFIGURATION: &str = "the configuration";

/// What the system says.
#[derive(Clone, Copy, Debug, Default)]
struct Host {
    /// Open files, at the most, once the limit is raised as the gateway raises it.
    descriptors: Option<u64>,
    somaxconn: Option<u64>,
    ports: Option<(u64, u64)>,
}

pub(super) fn look(config: &Config, keys_to_come: bool, out: &mut Findings) {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    let ports = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok().and_then(|text| {
        let mut words = text.split_whitespace().map(str::parse);
        Some((words.next()?.ok()?, words.next()?.ok()?))
    });
    let host = Host {
        descriptors: rlimit::Resource::NOFILE.get().ok().map(|(soft, _)| soft),
        somaxconn: number("/proc/sys/net/core/somaxconn"),
        ports,
    };
    host.judge(config.limits.max_connections, config.listen.port(), out);
    configuration(config, keys_to_come, out);
}

impl Host {
    fn judge(self, max_connections: usize, port: u16, out: &mut Findings) {
        if let Some(descriptors) = self.descriptors {
            let found = format!("{descriptors} open files, for {max_connections} WebSockets");
            if (max_connections as u64).saturating_add(64) > descriptors {
                out.doubtful(
                    "host.descriptors",
                    PLACE,
                    found,
                    "when all places are taken, none is left for Redis, health and metrics",
                    "`ulimit -n 65536` (LimitNOFILE= in systemd, `ulimits: nofile` in compose), or fewer --max-connections (TEXTO_MAX_CONNECTIONS)",
                );
            } else if max_connections < FEW_CONNECTIONS
                && descriptors < 2 * FEW_CONNECTIONS as u64
                && max_connections as u64 >= descriptors / 2
            {
                // Fewer than that are wanted so, and not for want of descriptors.
                out.doubtful(
                    "host.descriptors",
                    PLACE,
                    found,
                    "each client takes one: more than that are turned away with 503, also those of a node that has died",
                    "`ulimit -n 65536` (LimitNOFILE= in systemd, `ulimits: nofile` in compose)",
                );
            } else {
                out.well("host.descriptors", PLACE, found);
            }
        }
        if let Some(somaxconn) = self.somaxconn {
            let found = format!("`net.core.somaxconn` is {somaxconn}");
            if somaxconn < BACKLOG {
                out.doubtful(
                    "host.somaxconn",
                    PLACE,
                    found,
                    "when a node dies its clients come at once, and new connections beyond the queue are dropped: they wait seconds",
                    "`sysctl -w net.core.somaxconn=4096`, and the same in /etc/sysctl.d (in compose: `sysctls:`)",
                );
            } else {
                out.well("host.somaxconn", PLACE, found);
            }
        }
        if let Some((first, last)) = self.ports {
            let found = format!("`net.ipv4.ip_local_port_range` is {first} to {last}");
            let count = (last + 1).saturating_sub(first);
            if port != 0 && (first..=last).contains(&u64::from(port)) {
                out.doubtful(
                    "host.ports",
                    PLACE,
                    format!("{found}, and {port}, where it is to listen, lies in it"),
                    "an outgoing connection may have the port when the gateway starts again: it can't listen then",
                    format!(
                        "{}: a port below {first}; or `net.ipv4.ip_local_reserved_ports = {port}`",
                        option("listen")
                    ),
                );
            } else if count < FEW_PORTS {
                out.doubtful(
                    "host.ports",
                    PLACE,
                    found,
                    "an nginx here takes a port for each client that it carries to a gateway",
                    "`net.ipv4.ip_local_port_range = 1024 65535` (but for where something listens)",
                );
            } else {
                out.well("host.ports", PLACE, found);
            }
        }
    }
}

/// What may be configured, but works worse than it could.
fn configuration(config: &Config, keys_to_come: bool, out: &mut Findings) {
    let BrokerConfig::Redis(redis) = &config.broker else {
        return out.well("config.broker", CONFIGURATION, "the embedded broker: one node alone, without Redis");
    };
    if config.session_keys.are_shared() {
        out.well("config.session-keys", CONFIGURATION, "resume tokens are signed with keys of a file");
    } else if !keys_to_come {
        out.doubtful(
            "config.session-keys",
            CONFIGURATION,
            "resume tokens are signed with a key of each process alone",
            "a client that comes to another node, or to this one after a restart, is a stranger there, with a new id",
            format!("{}: one file for all nodes (`texto session-key`)", option("session-key-file")),
        );
    }
    if !redis.standby_subscriptions && matches!(redis.topology, TopologyConfig::Sentinel { .. }) {
        out.doubtful(
            "config.standby",
            CONFIGURATION,
            "gateways have a link to the master alone",
            "a failover is waited for, several seconds, instead of bridged by the replicas",
            format!("{}: true", option("standby-subscriptions")),
        );
    }
}

/// Whether the file of session keys is to be made by the gateway's first start, and is not there yet.
pub(super) fn is_to_be_made(create: &str, file: Option<&str>) -> bool {
    matches!(create, "true" | "1" | "yes" | "on")
        && file.is_some_and(|file| !file.is_empty() && !Path::new(file).exists())
}

#[cfg(test)]
mod tests {
    use super::super::findings::Verdict;
    use super::*;

    #[test]
    fn hosts_that_are_too_small_for_what_is_wanted() {
        let fine = Host { descriptors: Some(65_536), somaxconn: Some(4096), ports: Some((32_768, 60_999)) };
        let judged = |host: Host, connections: usize, port: u16| {
            let mut out = Findings::default();
            host.judge(connections, port, &mut out);
            let flaws = out.iter().filter(|finding| finding.verdict != Verdict::Well);
            flaws.map(|finding| finding.name).collect::<Vec<_>>()
        };
        assert_eq!(judged(fine, 65_000, 8398), Vec::<&str>::new());
        assert_eq!(judged(fine, 65_536, 8398), ["host.descriptors"]);
        assert_eq!(judged(Host { descriptors: Some(1024), ..fine }, 768, 8398), ["host.descriptors"]);
        assert_eq!(judged(Host { descriptors: Some(1024), ..fine }, 1, 8398), Vec::<&str>::new());
        assert_eq!(judged(Host { somaxconn: Some(128), ..fine }, 5000, 8398), ["host.somaxconn"]);
        assert_eq!(judged(fine, 5000, 40_000), ["host.ports"]);
        assert_eq!(judged(Host { ports: Some((60_000, 60_999)), ..fine }, 5000, 8398), ["host.ports"]);
        assert_eq!(judged(Host::default(), 5000, 8398), Vec::<&str>::new(), "what isn't known is not held against it");
    }
}
