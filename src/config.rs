//! Owns the validated configuration; every error is found at once, before anything is bound.

pub mod access;
mod address;
mod broker;
pub mod cli;
pub mod flags;
mod limits;
mod rates;
pub mod secret;
pub mod tls;
mod values;
pub mod variables;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

pub use self::address::Address;
pub use self::broker::{BrokerConfig, RedisConfig, TopologyConfig};
pub use self::limits::Limits;
pub(crate) use self::values::option;
use crate::config::access::AccessConfig;
use crate::config::cli::ServeArgs;
use crate::config::variables::{LOG, Variables};
use crate::edge::client_address::TrustedProxies;
use crate::resume::key_file;
use crate::resume::keys::Keys;
use crate::tls::terminator::Terminator;

/// Bytes of a node's name at the most.
const MOST_NODE_ID: usize = 128;

/// Everything that a gateway needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address for WebSockets, web client, health, and for metrics and status if `admin_listen` is absent.
    pub listen: SocketAddr,
    /// Address for metrics, status and health alone.
    pub admin_listen: Option<SocketAddr>,
    /// Speaks TLS with clients; they come without if it is absent.
    pub terminator: Option<Terminator>,
    /// Proxies that are believed about the address of their client.
    pub trusted_proxies: TrustedProxies,
    /// Who may come in.
    pub access: AccessConfig,
    /// This node's name.
    pub node_id: String,
    /// Who carries the messages.
    pub broker: BrokerConfig,
    /// Bounds on sessions.
    pub limits: Limits,
    /// What resume tokens are signed with.
    pub session_keys: Keys,
    /// The files of keys for TLS, by their flags.
    pub tls_keys: Vec<(&'static str, PathBuf)>,
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

impl ConfigErrors {
    /// Each of them.
    pub fn each(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

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

fn tls_keys(args: &ServeArgs) -> Vec<(&'static str, PathBuf)> {
    let given = [
        ("tls-key", args.client_tls.key()),
        ("redis-tls-key", args.redis_tls.written().key()),
        ("sentinel-tls-key", args.sentinel_tls.written().key()),
    ];
    given.into_iter().filter_map(|(flag, path)| Some((flag, path?.into()))).collect()
}

struct Check<'a> {
    errors: Vec<String>,
    variables: &'a Variables,
}

impl Check<'_> {
    fn config(&mut self, args: &ServeArgs) -> Option<Config> {
        let listen = self.parse("listen", &args.listen, "an IP address with a port, and no name, such as 0.0.0.0:8398");
        let admin_listen = args.admin_listen.as_deref().filter(|text| !text.is_empty()).map(|text| {
            self.parse("admin-listen", text, "an IP address with a port, and no name, such as 127.0.0.1:9398")
        });
        let terminator = self.terminator(&args.client_tls);
        let trusted_proxies = TrustedProxies::parse(&args.trusted_proxies).unwrap_or_else(|parts| {
            for part in parts {
                self.invalid("trusted-proxies", &part, "addresses or networks such as 10.0.0.0/8, comma-separated");
            }
            TrustedProxies::default()
        });
        let access = self.access(args);
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
                terminator,
                trusted_proxies,
                access: access?,
                node_id,
                broker: broker?,
                limits: limits?,
                session_keys: session_keys?,
                tls_keys: tls_keys(args),
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

    /// Those of the file, or one of this process alone.
    fn session_keys(&mut self, args: &ServeArgs) -> Option<Keys> {
        let file = args.session_key_file.as_deref().filter(|path| !path.is_empty());
        let created = match (self.truth("session-key-create", &args.session_key_create).unwrap_or_default(), file) {
            (true, Some(path)) => key_file::create(Path::new(path)).map_err(|error| error.to_string()),
            (true, None) => Err(format!("of use with {} only, which is not given", option("session-key-file"))),
            (false, _) => Ok(()),
        };
        if let Err(problem) = created {
            self.errors.push(format!("{}: {problem}", option("session-key-create")));
            return None;
        }
        let keys = file.map_or_else(Keys::own, |path| Keys::from_file(Path::new(path)));
        keys.map_err(|error| self.errors.push(format!("{}: {error}", option("session-key-file")))).ok()
    }
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

#[cfg(test)]
mod tests;
