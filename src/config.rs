//! Owns the validated configuration; every error is found at once, before anything is bound.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::address_map::AddressMap;
use crate::cli::{Given, ServeArgs};
use crate::client_address::TrustedProxies;
use crate::keep_alive::Patience;
use crate::secret::{Credentials, Password};
use crate::session_keys::Keys;
use crate::token::HARD_END;
use crate::variables::{LOG, Variables};

/// Descriptors that are not for clients: listeners, links to Redis and Sentinels, health requests.
const DESCRIPTOR_RESERVE: usize = 256;

/// Bytes of a node's name at the most.
const MOST_NODE_ID: usize = 128;

/// Bytes that wait for all readers together, unless it is said otherwise or one may have more.
const OUTBOX_TOTAL_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of a text at the most. Redis cuts off a subscriber for whom more than 32 MB wait, unless it is told otherwise, and
/// with it everybody on its node: some texts must find room.
const MOST_TEXT_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a frame at the most: such a text, all of it escaped.
const MOST_FRAME_BYTES: usize = 64 * 1024 * 1024;
/// Sessions that one address may resume at once, at the least, unless it is said otherwise.
const FEWEST_RESUMES: usize = 1000;
/// Sessions of a node at the most.
const MOST_CONNECTIONS: usize = 1_000_000;

/// Everything that a gateway needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address for WebSockets, web client, health, and metrics if `admin_listen` is absent.
    pub listen: SocketAddr,
    /// Address for metrics and health alone.
    pub admin_listen: Option<SocketAddr>,
    /// Proxies that are believed about the address of their client.
    pub trusted_proxies: TrustedProxies,
    /// This node's name.
    pub node_id: String,
    /// Who carries the messages.
    pub broker: BrokerConfig,
    /// Bounds on sessions.
    pub limits: Limits,
    /// What resume tokens are signed with.
    pub session_keys: Keys,
    /// Behaviour on SIGTERM.
    pub drain: DrainConfig,
    /// How long Redis may be away before the node is unready.
    pub ready_grace: Duration,
    /// Without Redis and Sentinels for this long, clients are asked to go elsewhere.
    pub isolated_after: Duration,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What of it is written, as `tracing_subscriber::EnvFilter` understands it.
    pub log_filter: String,
}

/// Who carries the messages.
#[allow(clippy::large_enum_variant)] // There is one in a program.
#[derive(Clone, Debug)]
pub enum BrokerConfig {
    /// This process alone.
    Embedded,
    /// Redis.
    Redis(RedisConfig),
}

/// How Redis is found and used.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Where it is.
    pub topology: TopologyConfig,
    /// For Redis itself; Sentinels have their own.
    pub credentials: Credentials,
    /// Whether replicas get links too.
    pub standby_subscriptions: bool,
    /// A peer that is silent this long is given up.
    pub heartbeat_timeout: Duration,
    /// Every message is decided within this time.
    pub send_timeout: Duration,
}

/// Where Redis is.
#[derive(Clone, Debug)]
pub enum TopologyConfig {
    /// One server.
    Fixed(Address),
    /// Whatever the Sentinels say.
    Sentinel {
        /// The first ones; others are discovered.
        sentinels: Vec<Address>,
        /// The master's name.
        master_name: String,
        /// For the Sentinels themselves.
        credentials: Credentials,
        /// What the addresses mean here that they announce.
        address_map: Arc<AddressMap>,
    },
}

/// A `host:port` that is resolved anew on each connection, so that a moved host is found again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// A name or an IP address, IPv6 without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.trim().rsplit_once(':').ok_or("expected host:port")?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or("the port must be 1 to 65535")?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or("an IPv6 address is written [::1]:6379")?,
            None if host.contains(':') => return Err("an IPv6 address is written [::1]:6379"),
            None => host,
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@') {
            return Err("expected host:port, without scheme, user or spaces");
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// Bounds on sessions and connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// WebSockets at a time.
    pub max_connections: usize,
    /// Bytes of UTF-8 in a text.
    pub max_text_bytes: usize,
    /// Bytes in a WebSocket message.
    pub max_frame_bytes: usize,
    /// Unanswered sends of a session.
    pub max_unanswered: usize,
    /// Messages waiting for a reader.
    pub outbox_messages: usize,
    /// Bytes of text waiting for a reader.
    pub outbox_bytes: usize,
    /// Bytes waiting for all readers together.
    pub outbox_total_bytes: usize,
    /// Every send is answered within this time.
    pub send_timeout: Duration,
    /// Silence after which a client is pinged.
    pub ping_interval: Duration,
    /// Time for a client to take its bytes.
    pub write_timeout: Duration,
    /// How long a session that can be resumed outlives its socket.
    pub resume_window: Duration,
    /// How long a resume token is good for.
    pub token_lifetime: Duration,
    /// How many sessions one client address may resume at once; 0: as many as it likes.
    pub resumes_per_address: usize,
    /// Time for the head of an HTTP request to arrive, and how long a connection may be idle between requests.
    pub http: Patience,
}

#[cfg(test)]
impl Limits {
    /// Bounds for tests of outboxes.
    pub(crate) fn small(outbox_messages: usize, outbox_bytes: usize) -> Self {
        let second = Duration::from_secs(1);
        Self {
            max_connections: 1,
            max_text_bytes: 1,
            max_frame_bytes: 1,
            max_unanswered: 1,
            outbox_messages,
            outbox_bytes,
            outbox_total_bytes: usize::MAX,
            send_timeout: second,
            ping_interval: second,
            write_timeout: second,
            resume_window: second,
            token_lifetime: second,
            resumes_per_address: 0,
            http: Patience { header: second, keep_alive: second },
        }
    }
}

/// Behaviour on SIGTERM.
#[derive(Clone, Copy, Debug)]
pub struct DrainConfig {
    /// Not ready, but serving.
    pub delay: Duration,
    /// Sessions are closed over this time.
    pub window: Duration,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// All that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} error{}:\n{}", .0.len(), if .0.len() == 1 { "" } else { "s" }, list(.0))]
pub struct ConfigErrors(Vec<String>);

fn list(errors: &[String]) -> String {
    let lines: Vec<_> = errors.iter().map(|error| format!("  - {error}")).collect();
    lines.join("\n")
}

impl Config {
    /// Checks `args` and `variables`, and reads the secrets.
    ///
    /// # Errors
    /// Every problem found, each naming its flag and variable. Values of secrets are never part of it.
    pub fn new(args: &ServeArgs, variables: &Variables) -> Result<Self, ConfigErrors> {
        let mut check = Check { errors: variables.mistakes(), variables };
        let config = check.config(args);
        match config {
            Some(config) if check.errors.is_empty() => Ok(config),
            _ => Err(ConfigErrors(check.errors)),
        }
    }
}

struct Check<'a> {
    errors: Vec<String>,
    variables: &'a Variables,
}

impl Check<'_> {
    fn config(&mut self, args: &ServeArgs) -> Option<Config> {
        let listen = self.parse("listen", &args.listen, "an address such as 0.0.0.0:8398");
        let admin_listen = args
            .admin_listen
            .as_deref()
            .filter(|text| !text.is_empty())
            .map(|text| self.parse("admin-listen", text, "an address such as 127.0.0.1:9398"));
        let trusted_proxies = TrustedProxies::parse(&args.trusted_proxies).unwrap_or_else(|parts| {
            for part in parts {
                self.invalid("trusted-proxies", &part, "addresses or networks such as 10.0.0.0/8, comma-separated");
            }
            TrustedProxies::default()
        });
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(20));
        let send_timeout = self.duration_within("send-timeout", &args.send_timeout, least..=most);
        let (least, most) = (Duration::from_millis(20), Duration::from_secs(5));
        let heartbeat_timeout = self.duration_within("heartbeat-timeout", &args.heartbeat_timeout, least..=most);
        let broker = self.broker(args, send_timeout, heartbeat_timeout);
        let limits = self.limits(args, send_timeout);
        let session_keys = self.session_keys(args);
        let delay = self.duration("drain-delay", &args.drain_delay, Duration::ZERO);
        let window = self.duration("drain-window", &args.drain_window, Duration::ZERO);
        let ready_grace = self.duration("ready-grace", &args.ready_grace, Duration::ZERO);
        let isolated_after = self.duration("isolated-after", &args.isolated_after, Duration::from_secs(1));
        let log_format = match args.log_format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                self.invalid("log-format", other, "text or json");
                LogFormat::Text
            }
        };
        let log_filter = self.variables.get(LOG).unwrap_or_else(|| "info".to_owned());
        if let Err(error) = EnvFilter::try_new(&log_filter) {
            self.errors.push(format!("{LOG}: {log_filter:?} is not valid: {error}; `info` or `texto=debug` would be"));
        }
        let node_id = args.node_id.clone().filter(|id| !id.is_empty()).unwrap_or_else(|| default_node_id(&host_name()));
        // Redis takes it for the name of a connection, and nothing else there.
        if node_id.len() > MOST_NODE_ID || !node_id.bytes().all(|byte| byte.is_ascii_graphic()) {
            let expected = format!("at most {MOST_NODE_ID} letters, digits and signs of ASCII, without spaces");
            self.invalid("node-id", &node_id, &expected);
        }
        if self.errors.is_empty() {
            Some(Config {
                listen: listen?,
                admin_listen: admin_listen.flatten(),
                trusted_proxies,
                node_id,
                broker: broker?,
                limits: limits?,
                session_keys: session_keys?,
                drain: DrainConfig { delay: delay?, window: window? },
                ready_grace: ready_grace?,
                isolated_after: isolated_after?,
                log_format,
                log_filter,
            })
        } else {
            None
        }
    }

    fn limits(&mut self, args: &ServeArgs, send_timeout: Option<Duration>) -> Option<Limits> {
        let ms = Duration::from_millis(1);
        let descriptors = descriptors();
        let most = descriptors.min(MOST_CONNECTIONS);
        let max_connections = match &args.max_connections {
            Some(text) if !text.is_empty() => {
                let count = self.count("max-connections", text);
                if count.is_some_and(|count| count > most) {
                    let expected = format!(
                        "at most {most} here, by the limit of open files (ulimit -n, or LimitNOFILE= in systemd)"
                    );
                    self.invalid("max-connections", text, &expected);
                }
                count
            }
            _ => Some(descriptors.saturating_sub(DESCRIPTOR_RESERVE).max(descriptors / 2).clamp(1, MOST_CONNECTIONS)),
        };
        let outbox_bytes = self.count("outbox-bytes", &args.outbox_bytes).unwrap_or(usize::MAX);
        let outbox_total_bytes = match &args.outbox_total_bytes {
            Some(text) if !text.is_empty() => {
                let count = self.count("outbox-total-bytes", text);
                if count.is_some_and(|count| count < outbox_bytes) {
                    self.invalid("outbox-total-bytes", text, "at least --outbox-bytes");
                }
                count
            }
            _ => None,
        };
        let resumes_per_address = match args.resumes_per_address.as_deref() {
            Some(text) if !text.is_empty() => {
                self.parse("resumes-per-address", text, "a whole number, or 0 for no limit")
            }
            // All of them may come at once, by one proxy, when another node has died.
            _ => max_connections.map(|count| count.max(FEWEST_RESUMES)),
        };
        let limits = Limits {
            max_connections: max_connections.unwrap_or(1),
            max_text_bytes: self.count_to("max-text-bytes", &args.max_text_bytes, MOST_TEXT_BYTES).unwrap_or(1),
            max_frame_bytes: self
                .count_to("max-frame-bytes", &args.max_frame_bytes, MOST_FRAME_BYTES)
                .unwrap_or(MOST_FRAME_BYTES),
            max_unanswered: self.count("max-unanswered", &args.max_unanswered).unwrap_or(1),
            outbox_messages: self.count("outbox-messages", &args.outbox_messages).unwrap_or(1),
            outbox_bytes,
            outbox_total_bytes: outbox_total_bytes.unwrap_or(OUTBOX_TOTAL_BYTES.max(outbox_bytes)),
            send_timeout: send_timeout.unwrap_or(ms),
            ping_interval: self.duration("ping-interval", &args.ping_interval, ms).unwrap_or(ms),
            write_timeout: self.duration("write-timeout", &args.write_timeout, ms).unwrap_or(ms),
            resume_window: self
                .duration_within("resume-window", &args.resume_window, ms..=Duration::from_secs(3600))
                .unwrap_or(ms),
            token_lifetime: self
                .duration_within("token-lifetime", &args.token_lifetime, Duration::from_secs(1)..=HARD_END)
                .unwrap_or(HARD_END),
            resumes_per_address: resumes_per_address.unwrap_or(0),
            http: Patience {
                header: self.duration("header-timeout", &args.header_timeout, ms).unwrap_or(ms),
                keep_alive: self.duration("keep-alive-timeout", &args.keep_alive_timeout, ms).unwrap_or(ms),
            },
        };
        if limits.max_frame_bytes < limits.max_text_bytes.saturating_add(512) {
            self.invalid(
                "max-frame-bytes",
                &args.max_frame_bytes,
                "at least 512 more than --max-text-bytes, for the JSON around the text",
            );
        }
        if limits.token_lifetime < limits.resume_window {
            let expected = format!("at least as long as {}", option("resume-window"));
            self.invalid("token-lifetime", &args.token_lifetime, &expected);
        }
        if limits.outbox_bytes < limits.max_text_bytes {
            self.invalid("outbox-bytes", &args.outbox_bytes, "at least --max-text-bytes");
        }
        self.errors.is_empty().then_some(limits)
    }

    /// Those of the file, or one of this process alone.
    fn session_keys(&mut self, args: &ServeArgs) -> Option<Keys> {
        let file = args.session_key_file.as_deref().filter(|path| !path.is_empty());
        let keys = file.map_or_else(Keys::own, |path| Keys::from_file(Path::new(path)));
        keys.map_err(|error| self.errors.push(format!("{}: {error}", option("session-key-file")))).ok()
    }

    fn broker(
        &mut self,
        args: &ServeArgs,
        send_timeout: Option<Duration>,
        heartbeat_timeout: Option<Duration>,
    ) -> Option<BrokerConfig> {
        let standby_subscriptions = match args.standby_subscriptions.as_str() {
            "true" | "1" | "yes" | "on" => true,
            "false" | "0" | "no" | "off" => false,
            other => {
                self.invalid("standby-subscriptions", other, "true or false");
                true
            }
        };
        let credentials = self.credentials("redis", &args.redis_username, &args.redis_password_file);
        let sentinel_credentials = self.credentials("sentinel", &args.sentinel_username, &args.sentinel_password_file);
        let address_map = AddressMap::parse(&args.address_map).unwrap_or_else(|errors| {
            for (part, expected) in errors {
                self.invalid("address-map", &part, &expected);
            }
            AddressMap::default()
        });
        let given = |value: &Option<String>| value.clone().filter(|text| !text.trim().is_empty());
        let redis = given(&args.redis).map(|redis| self.address("redis", &redis));
        let sentinels = given(&args.sentinels).map(|list| self.sentinels(&list, &args.master_name));
        if sentinels.is_none() {
            self.useless(&args.given, redis.is_some());
        }
        let topology = match (redis, sentinels) {
            (None, None) => return Some(BrokerConfig::Embedded),
            (Some(_), Some(_)) => {
                self.errors.push(
                    "--redis (TEXTO_REDIS) and --sentinels (TEXTO_SENTINELS) exclude each other: give the \
                     Sentinels to follow failovers, or the one Redis to use without them"
                        .to_owned(),
                );
                return None;
            }
            (Some(redis), None) => TopologyConfig::Fixed(redis?),
            (None, Some(sentinels)) => TopologyConfig::Sentinel {
                sentinels,
                master_name: args.master_name.clone(),
                credentials: sentinel_credentials?,
                address_map: Arc::new(address_map),
            },
        };
        if heartbeat_timeout > send_timeout {
            let expected = format!(
                "at most as long as {}: a hang would be noticed too late for any message",
                option("send-timeout")
            );
            self.invalid("heartbeat-timeout", &args.heartbeat_timeout, &expected);
        }
        Some(BrokerConfig::Redis(RedisConfig {
            topology,
            credentials: credentials?,
            standby_subscriptions,
            heartbeat_timeout: heartbeat_timeout?,
            send_timeout: send_timeout?,
        }))
    }

    /// Options for Redis without a Redis, or for Sentinels without Sentinels: somebody wanted them, and would
    /// not notice that they are not there.
    fn useless(&mut self, given: &[Given], has_redis: bool) {
        let flags = given.iter().filter(|given| given.is_for_redis).map(|given| given.flag.as_str());
        let flags = flags.filter(|flag| !["redis", "sentinels"].contains(flag)).map(|flag| (flag, option(flag)));
        let passwords = [("redis-password", "TEXTO_REDIS_PASSWORD"), ("sentinel-password", "TEXTO_SENTINEL_PASSWORD")];
        let passwords = passwords.into_iter().filter(|(_, variable)| self.variables.get(variable).is_some());
        let useless = flags.chain(passwords.map(|(flag, variable)| (flag, variable.to_owned()))).filter(|(flag, _)| {
            !has_redis || flag.starts_with("sentinel-") || ["master-name", "address-map"].contains(flag)
        });
        let names: Vec<_> = useless.map(|(_, name)| name).collect();
        if names.is_empty() {
            return;
        }
        let (these, sentinels, redis) = (names.join(", "), option("sentinels"), option("redis"));
        self.errors.push(if has_redis {
            format!("{these}: of use with Sentinels only, and none are given: add {sentinels}, or take this away")
        } else {
            format!(
                "{these}: of use with Redis only, and none is given: add {sentinels} or {redis}, or take this away \
                 for a node that works alone"
            )
        });
    }

    fn sentinels(&mut self, list: &str, master_name: &str) -> Vec<Address> {
        let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
        let sentinels: BTreeSet<_> = parts.clone().filter_map(|part| self.address("sentinels", part)).collect();
        if parts.count() == 0 {
            self.invalid("sentinels", list, "at least one host:port");
        }
        if master_name.is_empty() || master_name.contains(char::is_whitespace) {
            self.invalid("master-name", master_name, "the name in `sentinel monitor`");
        }
        sentinels.into_iter().collect()
    }

    /// Reads the password of `peer` ("redis" or "sentinel") from its variable or its file.
    fn credentials(&mut self, peer: &str, username: &Option<String>, file: &Option<String>) -> Option<Credentials> {
        let username = username.clone().filter(|name| !name.is_empty());
        let name = format!("TEXTO_{}_PASSWORD", peer.to_uppercase());
        let direct = self.variables.get(&name);
        let password = match (direct, file.as_deref().filter(|path| !path.is_empty())) {
            (Some(_), Some(_)) => {
                self.errors.push(format!("{name} and {name}_FILE exclude each other: set one of them"));
                return None;
            }
            (Some(value), None) => Some(Password::fixed(value)),
            (None, Some(path)) => match Password::from_file(Path::new(path)) {
                Ok(password) => Some(password),
                Err(error) => {
                    let problem = match error.kind() {
                        std::io::ErrorKind::InvalidData => format!("the file {path:?} is empty, or no text"),
                        _ => format!("can't read the file {path:?}: {error}"),
                    };
                    self.errors.push(format!("--{peer}-password-file ({name}_FILE): {problem}"));
                    return None;
                }
            },
            (None, None) => None,
        };
        if username.is_some() && password.is_none() {
            self.errors.push(format!(
                "--{peer}-username (TEXTO_{}_USERNAME) is given without a password: set {name} or {name}_FILE",
                peer.to_uppercase()
            ));
        }
        Some(Credentials { username, password })
    }

    fn address(&mut self, flag: &str, text: &str) -> Option<Address> {
        match text.parse() {
            Ok(address) => Some(address),
            Err(reason) => {
                self.invalid(flag, text, reason);
                None
            }
        }
    }

    fn count(&mut self, flag: &str, text: &str) -> Option<usize> {
        let count = self.parse(flag, text, "a whole number from 1")?;
        if count == 0 {
            self.invalid(flag, text, "a whole number from 1");
            return None;
        }
        Some(count)
    }

    fn count_to(&mut self, flag: &str, text: &str, most: usize) -> Option<usize> {
        let count = self.count(flag, text)?;
        if count > most {
            self.invalid(flag, text, &format!("at most {most}"));
            return None;
        }
        Some(count)
    }

    fn duration(&mut self, flag: &str, text: &str, least: Duration) -> Option<Duration> {
        self.duration_within(flag, text, least..=Duration::from_secs(24 * 3600))
    }

    fn duration_within(&mut self, flag: &str, text: &str, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        match humantime::parse_duration(text) {
            Ok(duration) if bounds.contains(&duration) => Some(duration),
            Ok(_) => {
                let (least, most) = (bounds.start(), humantime::format_duration(*bounds.end()));
                self.invalid(flag, text, &format!("a duration from {least:?} to {most}"));
                None
            }
            Err(_) => {
                self.invalid(flag, text, "a duration with a unit, such as 500ms, 5s or 2m");
                None
            }
        }
    }

    fn parse<T: FromStr>(&mut self, flag: &str, text: &str, expected: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(_) => {
                self.invalid(flag, text, expected);
                None
            }
        }
    }

    fn invalid(&mut self, flag: &str, value: &str, expected: &str) {
        self.errors.push(format!("{}: {value:?} is not valid: {expected}", option(flag)));
    }
}

/// A flag with its variable.
fn option(flag: &str) -> String {
    format!("--{flag} (TEXTO_{})", flag.to_uppercase().replace('-', "_"))
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}

/// A name for a node on `host`, made fit for Redis.
fn default_node_id(host: &str) -> String {
    let fit = host.trim().chars().map(|c| if c.is_ascii_graphic() { c } else { '-' });
    let host: String = fit.take(MOST_NODE_ID - 5).collect();
    let host = if host.is_empty() { "texto" } else { &host };
    format!("{host}-{:04x}", fastrand::u16(..))
}

/// Raises the soft limit of open files to the hard one, and tells it.
fn descriptors() -> usize {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn config(args: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let cli = Cli::read(std::iter::once(&"texto").chain(args)).unwrap();
        let variables = Variables::from_iter(variables.iter().copied());
        let serve = if let Some(Command::Serve(serve)) = &cli.command { serve } else { &cli.serve };
        Config::new(serve, &variables).map_err(|errors| errors.to_string())
    }

    #[test]
    fn the_embedded_broker_is_the_default() {
        let config = config(&[], &[]).unwrap();
        assert!(matches!(config.broker, BrokerConfig::Embedded));
        assert_eq!(config.listen, "0.0.0.0:8398".parse().unwrap());
        assert_eq!(config.limits.max_text_bytes, 16384);
    }

    #[test]
    fn every_error_is_reported_at_once_with_flag_and_variable() {
        let errors = config(
            &[
                "--listen",
                "nonsense",
                "--send-timeout",
                "5",
                "--redis",
                "a:1",
                "--sentinels",
                "b:2",
                "--max-text-bytes",
                "0",
                "--standby-subscriptions",
                "perhaps",
                "--trusted-proxies",
                "10.0.0.0/8,here,there",
                "--redis-password-file",
                "/nowhere/secret",
                "--address-map",
                "a:1=b:1,nowhere,a:1=c:1",
                "--max-connections",
                "99999999999999999999",
                "--heartbeat-timeout",
                "1h",
            ],
            &[],
        )
        .unwrap_err();
        for part in [
            "12 errors",
            "--listen (TEXTO_LISTEN)",
            "TEXTO_SEND_TIMEOUT",
            "exclude each other",
            "TEXTO_MAX_TEXT_BYTES",
            "TEXTO_STANDBY_SUBSCRIPTIONS",
            "\"here\"",
            "\"there\"",
            "/nowhere/secret",
            "TEXTO_ADDRESS_MAP): \"nowhere\"",
            "a:1 is given twice",
            "TEXTO_MAX_CONNECTIONS",
            "TEXTO_HEARTBEAT_TIMEOUT",
        ] {
            assert!(errors.contains(part), "{part} is not in: {errors}");
        }
    }

    #[test]
    fn what_could_never_work_is_refused() {
        assert!(config(&["--sentinels", " , "], &[]).unwrap_err().contains("TEXTO_SENTINELS"));
        let map = config(&["--redis", "a:1", "--address-map", "a:1=b:1"], &[]).unwrap_err();
        assert!(map.contains("with Sentinels only"), "{map}");
        let more = (descriptors() + 1).to_string();
        let errors = config(&["--max-connections", &more], &[]).unwrap_err();
        assert!(errors.contains("ulimit -n"), "{errors}");
        for (flag, most) in [("--max-text-bytes", MOST_TEXT_BYTES), ("--max-frame-bytes", MOST_FRAME_BYTES)] {
            let [most, more] = [most, most + 1].map(|bytes| bytes.to_string());
            assert!(config(&[flag, &more], &[]).unwrap_err().contains(&format!("at most {most}")));
            assert!(!config(&[flag, &most], &[]).err().unwrap_or_default().contains("at most"));
        }
    }

    #[test]
    fn options_for_a_redis_that_is_not_given_are_refused() {
        // What a gateway was once started with, and it was ready.
        let variables = [("TEXTO_SENTINEL", "s:26379"), ("TEXTO_REDIS_PASSWORD", "hunter2")];
        let errors = config(&["--master-name", "mymaster"], &variables).unwrap_err();
        for part in ["2 errors", "did you mean TEXTO_SENTINELS?", "--master-name (TEXTO_MASTER_NAME), TEXTO_REDIS_PASS"]
        {
            assert!(errors.contains(part), "{part} is not in: {errors}");
        }
        // Each flag under that heading alone, except for the two that name servers.
        let command = <Cli as clap::CommandFactory>::command();
        let flags = command.get_arguments().filter(|flag| flag.get_help_heading() == Some("Redis"));
        let flags: Vec<_> = flags.filter_map(|flag| flag.get_long()).collect();
        assert!(flags.len() >= 9, "{flags:?}");
        for flag in flags.into_iter().filter(|flag| !["redis", "sentinels"].contains(flag)) {
            let name = option(flag);
            for words in [vec![format!("--{flag}=1")], vec!["serve".to_owned(), format!("--{flag}=1")]] {
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                let errors = config(&words, &[]).unwrap_err();
                let line = errors.lines().find(|line| line.contains("of use with Redis only"));
                assert!(line.is_some_and(|line| line.contains(&name)), "{errors}");
            }
        }
        config(&["--master-name", "", "--redis-username="], &[("TEXTO_REDIS_PASSWORD", "")]).unwrap();
        let errors = config(&["--redis", "r:6379"], &[("TEXTO_SENTINEL_PASSWORD", "hunter2")]).unwrap_err();
        assert!(errors.contains("TEXTO_SENTINEL_PASSWORD: of use with Sentinels only"), "{errors}");
    }

    #[test]
    fn a_node_has_a_name_that_redis_takes() {
        for bad in ["köln-1", "two words", "tab\there", &"x".repeat(129)] {
            assert!(config(&["--node-id", bad], &[]).unwrap_err().contains("--node-id (TEXTO_NODE_ID)"), "{bad}");
        }
        assert_eq!(config(&["--node-id", "node-{1}/a"], &[]).unwrap().node_id, "node-{1}/a");
        for host in ["köln-1\n", "two words", "", " \n", &"ü".repeat(200)] {
            let name = default_node_id(host);
            config(&[&format!("--node-id={name}")], &[]).unwrap();
        }
        assert!(default_node_id("köln-1\n").starts_with("k-ln-1-"));
    }

    #[test]
    fn durations_that_contradict_one_another_are_refused() {
        let durations = ["--send-timeout", "2s", "--heartbeat-timeout", "3s"];
        let errors = config(&[&["--redis", "r:1"], &durations[..]].concat(), &[]).unwrap_err();
        assert!(errors.contains("--heartbeat-timeout (TEXTO_HEARTBEAT_TIMEOUT)"), "{errors}");
        config(&["--redis", "r:1", "--send-timeout", "20s", "--heartbeat-timeout", "5s"], &[]).unwrap();
    }

    #[test]
    fn a_filter_of_the_log_that_makes_no_sense_is_named() {
        let errors = config(&[], &[("TEXTO_LOG", "texto=loud")]).unwrap_err();
        assert!(errors.contains("TEXTO_LOG: \"texto=loud\""), "{errors}");
        assert_eq!(config(&[], &[("TEXTO_LOG", "")]).unwrap().log_filter, "info");
    }

    #[test]
    fn secrets_come_from_variable_or_file_and_are_not_shown() {
        let shown = format!("{:?}", config(&["--redis", "r:6379"], &[("TEXTO_REDIS_PASSWORD", "hunter2")]).unwrap());
        assert!(shown.contains("Secret(…)") && !shown.contains("hunter2"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter3\n").unwrap();
        let path = file.path().to_str().unwrap();
        let read = config(&["--redis", "r:6379", "--redis-password-file", path], &[]).unwrap();
        let BrokerConfig::Redis(redis) = read.broker else { panic!("not Redis") };
        assert_eq!(redis.credentials.password.unwrap().current().expose(), "hunter3");
        std::fs::write(file.path(), "\r\n").unwrap();
        let empty = config(&["--redis", "r:6379", "--redis-password-file", path], &[]).unwrap_err();
        assert!(empty.contains("is empty"), "{empty}");
        let both = config(&["--redis-password-file", path], &[("TEXTO_REDIS_PASSWORD", "hunter2")]).unwrap_err();
        assert!(both.contains("TEXTO_REDIS_PASSWORD_FILE") && !both.contains("hunter"));
    }

    #[test]
    fn session_keys_come_from_a_file_and_its_flaws_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let errors = config(&["--session-key-file", path, "--token-lifetime", "31days"], &[]).unwrap_err();
        for part in ["2 errors", "--session-key-file (TEXTO_SESSION_KEY_FILE): the file", "holds no key", "30days"] {
            assert!(errors.contains(part), "{part} is not in: {errors}");
        }
        std::fs::write(file.path(), crate::session_keys::new_line().unwrap()).unwrap();
        assert!(config(&["--session-key-file", path], &[]).unwrap().session_keys.are_shared());
        let alone = config(&["--session-key-file", ""], &[]).unwrap();
        assert!(!alone.session_keys.are_shared());
        assert_eq!(alone.limits.resume_window, Duration::from_secs(30));
        // A node's clients may all come back by one proxy.
        let per_address = |arguments: &[&str]| config(arguments, &[]).map(|config| config.limits.resumes_per_address);
        assert_eq!(per_address(&[]), Ok(alone.limits.max_connections.max(1000)));
        assert_eq!(per_address(&["--max-connections", "3"]), Ok(1000));
        assert_eq!(per_address(&["--max-connections", "300", "--resumes-per-address", "7"]), Ok(7));
        assert_eq!(per_address(&["--resumes-per-address", "0"]), Ok(0), "no limit");
        let errors = config(&["--resume-window", "10m", "--token-lifetime", "5m"], &[]).unwrap_err();
        assert!(errors.contains("at least as long as --resume-window (TEXTO_RESUME_WINDOW)"), "{errors}");
    }

    #[test]
    fn addresses() {
        assert_eq!("[::1]:6379".parse::<Address>().unwrap().to_string(), "[::1]:6379");
        assert_eq!(" redis-0:6379".parse::<Address>().unwrap().host, "redis-0");
        for bad in ["redis", "redis:0", "redis:99999", "redis://h:1", "::1:6379", ":1", "u@h:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
