//! Owns the command line: flags, their variables and help texts, all values still raw.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

/// The command line of `texto`.
#[derive(Debug, Parser)]
#[command(name = "texto", version, about, args_conflicts_with_subcommands = true)]
#[command(after_help = SECRETS_HELP)]
pub struct Cli {
    /// What to do; `serve` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `serve`, accepted without the word as well.
    #[command(flatten)]
    pub serve: ServeArgs,
}

impl Cli {
    /// Reads a command line and the variables of its flags, and notes what was given.
    ///
    /// # Errors
    /// When it can't be understood, or asks for help.
    pub fn read(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        let mut cli = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        match (&mut cli.command, matches.subcommand()) {
            (Some(Command::Serve(serve)), Some((_, matches))) => serve.given = given(&command, matches),
            _ => cli.serve.given = given(&command, &matches),
        }
        Ok(cli)
    }
}

/// An option of `serve` that has a value because somebody gave it one.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its flag, without the dashes.
    pub flag: String,
    /// Whether it stands under the heading of those that make no sense without Redis.
    pub is_for_redis: bool,
}

fn given(command: &clap::Command, matches: &clap::ArgMatches) -> Vec<Given> {
    let is_given = |id: &str| {
        let source = matches.value_source(id);
        let mut values = matches.get_raw(id).into_iter().flatten();
        matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
            && values.any(|text| !text.is_empty())
    };
    let flags = command.get_arguments().filter(|flag| flag.get_env().is_some() && is_given(flag.get_id().as_str()));
    let note = |flag: &clap::Arg| {
        Some(Given { flag: flag.get_long()?.to_owned(), is_for_redis: flag.get_help_heading() == Some("Redis") })
    };
    flags.filter_map(note).collect()
}

const SECRETS_HELP: &str = "\
Secrets are never taken from the command line, where every user of the machine could read them:
  TEXTO_REDIS_PASSWORD      or TEXTO_REDIS_PASSWORD_FILE     for the Redis servers
  TEXTO_SENTINEL_PASSWORD   or TEXTO_SENTINEL_PASSWORD_FILE  for the Sentinels
  TEXTO_SESSION_KEY_FILE    the keys of resume tokens; `texto session-key` prints a new one

Durations are written like 500ms, 5s, 2m. Sizes are bytes.
Logging: TEXTO_LOG takes a filter such as `info` (default), `texto=debug`.";

const CHAOS_HELP: &str = "\
Needs redis-server and redis-sentinel here (apt-get install redis-server redis-sentinel), and for the
scenarios that cut networks root and iptables. Everything runs on this machine's own addresses and is
gone afterwards. The exit code is 1 when a promise was broken.";

const SESSION_KEY_HELP: &str = "\
All nodes have the same file: `(umask 077; texto session-key > FILE)`. To change the key, add a
new one as the last line on every node (`texto session-key >> FILE`), then make it the first line on
every node, and take the old one away when its tokens have expired (--token-lifetime). Nodes read
the file again when it changes.";

/// What `texto` can be asked to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // Parsed once, at start.
pub enum Command {
    /// Run the gateway (what `texto` alone does)
    #[command(after_help = SECRETS_HELP)]
    Serve(ServeArgs),
    /// Break real Redis servers and Sentinels under traffic, and judge whether the promises hold
    #[command(after_help = CHAOS_HELP)]
    Chaos(texto_lab::chaos::ChaosArgs),
    /// Watch people chat across nodes while the Redis master dies: thirty seconds in the terminal
    Demo(texto_lab::demo::DemoArgs),
    /// Ask a running gateway whether it is ready; exit code 0 if it is, 1 if not
    Healthcheck(HealthcheckArgs),
    /// Print a new key for --session-key-file
    #[command(after_help = SESSION_KEY_HELP)]
    SessionKey,
}

/// The flags of `texto healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Address of the gateway; a wildcard address means this machine
    #[arg(long, env = "TEXTO_LISTEN", default_value = "0.0.0.0:8398", value_name = "ADDR:PORT")]
    pub listen: String,
    /// What to ask: /readyz (may it get traffic?) or /livez (does it live?)
    #[arg(long, default_value = "/readyz", value_name = "PATH")]
    pub path: String,
    /// How long the answer may take
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    pub timeout: String,
}

/// The flags of `texto serve`, as written; `Config` gives them meaning.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Which of these were given by anybody.
    #[arg(skip)]
    pub given: Vec<Given>,
    /// Address for WebSockets, the web client, health and metrics
    #[arg(long, env = "TEXTO_LISTEN", default_value = "0.0.0.0:8398", value_name = "ADDR:PORT")]
    pub listen: String,
    /// Address of its own for /metrics (and health); /metrics then leaves the public one
    #[arg(long, env = "TEXTO_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    pub admin_listen: Option<String>,
    /// Proxies whose X-Forwarded-For is believed, comma-separated addresses or networks
    #[arg(long, env = "TEXTO_TRUSTED_PROXIES", default_value = "", value_name = "CIDR,…", hide_default_value = true)]
    pub trusted_proxies: String,
    /// Name of this node in logs, health and metrics [default: host name and a random suffix]
    #[arg(long, env = "TEXTO_NODE_ID", value_name = "NAME")]
    pub node_id: Option<String>,

    /// Sentinels, comma-separated: Redis is found and followed through them
    #[arg(long, env = "TEXTO_SENTINELS", value_name = "HOST:PORT,…", help_heading = "Redis")]
    pub sentinels: Option<String>,
    /// Name under which the Sentinels know the master
    #[arg(long, env = "TEXTO_MASTER_NAME", default_value = "mymaster", value_name = "NAME", help_heading = "Redis")]
    pub master_name: String,
    /// Where servers and Sentinels are reached that Sentinel announces by addresses of another network
    #[arg(
        long,
        env = "TEXTO_ADDRESS_MAP",
        default_value = "",
        value_name = "ANNOUNCED=REACHABLE,…",
        hide_default_value = true,
        help_heading = "Redis"
    )]
    pub address_map: String,
    /// One Redis without Sentinel; with neither this nor --sentinels: the embedded broker
    #[arg(long, env = "TEXTO_REDIS", value_name = "HOST:PORT", help_heading = "Redis")]
    pub redis: Option<String>,
    /// Links to the replicas as well as to the master: a failover is bridged, not waited for
    #[arg(
        long,
        env = "TEXTO_STANDBY_SUBSCRIPTIONS",
        default_value = "true",
        value_name = "BOOL",
        help_heading = "Redis"
    )]
    pub standby_subscriptions: String,
    /// ACL user name for Redis
    #[arg(long, env = "TEXTO_REDIS_USERNAME", value_name = "NAME", help_heading = "Redis")]
    pub redis_username: Option<String>,
    /// File that holds the password for Redis
    #[arg(long, env = "TEXTO_REDIS_PASSWORD_FILE", value_name = "PATH", help_heading = "Redis")]
    pub redis_password_file: Option<String>,
    /// ACL user name for the Sentinels
    #[arg(long, env = "TEXTO_SENTINEL_USERNAME", value_name = "NAME", help_heading = "Redis")]
    pub sentinel_username: Option<String>,
    /// File that holds the password for the Sentinels
    #[arg(long, env = "TEXTO_SENTINEL_PASSWORD_FILE", value_name = "PATH", help_heading = "Redis")]
    pub sentinel_password_file: Option<String>,
    /// A Redis or Sentinel silent this long is given up; at most 5s, and --send-timeout
    #[arg(
        long,
        env = "TEXTO_HEARTBEAT_TIMEOUT",
        default_value = "1s",
        value_name = "DURATION",
        help_heading = "Redis"
    )]
    pub heartbeat_timeout: String,

    /// Every `send` is answered within this time, 20s at most
    #[arg(long, env = "TEXTO_SEND_TIMEOUT", default_value = "5s", value_name = "DURATION", help_heading = "Limits")]
    pub send_timeout: String,
    /// WebSockets at a time; more get 503 [default: the descriptor limit less a reserve]
    #[arg(long, env = "TEXTO_MAX_CONNECTIONS", value_name = "COUNT", help_heading = "Limits")]
    pub max_connections: Option<String>,
    /// Length of a message's text in bytes of UTF-8
    #[arg(long, env = "TEXTO_MAX_TEXT_BYTES", default_value = "16384", value_name = "BYTES", help_heading = "Limits")]
    pub max_text_bytes: String,
    /// Length of a WebSocket message in bytes; a longer one closes the socket with 1009
    #[arg(
        long,
        env = "TEXTO_MAX_FRAME_BYTES",
        default_value = "131072",
        value_name = "BYTES",
        help_heading = "Limits"
    )]
    pub max_frame_bytes: String,
    /// Sends of one session that wait for their answer at a time; more get EAGAIN
    #[arg(long, env = "TEXTO_MAX_UNANSWERED", default_value = "64", value_name = "COUNT", help_heading = "Limits")]
    pub max_unanswered: String,
    /// Messages that wait for a slow reader; then their senders get EBUSY, each at a quarter already
    #[arg(long, env = "TEXTO_OUTBOX_MESSAGES", default_value = "1024", value_name = "COUNT", help_heading = "Limits")]
    pub outbox_messages: String,
    /// Bytes of text that wait for a slow reader; then their senders get EBUSY, each at a quarter already
    #[arg(long, env = "TEXTO_OUTBOX_BYTES", default_value = "1048576", value_name = "BYTES", help_heading = "Limits")]
    pub outbox_bytes: String,
    /// Bytes that wait for all readers of this node together; near it, the slowest are closed with 1013 [default:
    /// 268435456, or as much as one outbox may hold]
    #[arg(long, env = "TEXTO_OUTBOX_TOTAL_BYTES", value_name = "BYTES", help_heading = "Limits")]
    pub outbox_total_bytes: Option<String>,
    /// A WebSocket silent this long is pinged, and closed when it stays silent as long again; a message that comes at
    /// 256 bytes a second or faster is no silence
    #[arg(long, env = "TEXTO_PING_INTERVAL", default_value = "25s", value_name = "DURATION", help_heading = "Limits")]
    pub ping_interval: String,
    /// A client must take what is written at a time (16 messages and its answers) within this
    #[arg(long, env = "TEXTO_WRITE_TIMEOUT", default_value = "10s", value_name = "DURATION", help_heading = "Limits")]
    pub write_timeout: String,
    /// A new connection must send something, and the head of an HTTP request be complete, within this time
    #[arg(long, env = "TEXTO_HEADER_TIMEOUT", default_value = "10s", value_name = "DURATION", help_heading = "Limits")]
    pub header_timeout: String,
    /// An HTTP connection may be idle this long between two requests: longer than load balancers keep theirs
    #[arg(
        long,
        env = "TEXTO_KEEP_ALIVE_TIMEOUT",
        default_value = "75s",
        value_name = "DURATION",
        help_heading = "Limits"
    )]
    pub keep_alive_timeout: String,

    /// File of the keys that resume tokens are signed with, the same on all nodes: one a line, the first signs
    /// [default: a key of this process alone]
    #[arg(long, env = "TEXTO_SESSION_KEY_FILE", value_name = "PATH", help_heading = "Sessions")]
    pub session_key_file: Option<String>,
    /// A session that can be resumed outlives its socket for so long
    #[arg(
        long,
        env = "TEXTO_RESUME_WINDOW",
        default_value = "30s",
        value_name = "DURATION",
        help_heading = "Sessions"
    )]
    pub resume_window: String,
    /// A client keeps its id by a resume token for so long, and gets a newer one each time; 30 days at most
    #[arg(
        long,
        env = "TEXTO_TOKEN_LIFETIME",
        default_value = "24h",
        value_name = "DURATION",
        help_heading = "Sessions"
    )]
    pub token_lifetime: String,
    /// Sessions that may be resumed from one client address at once, and a tenth of it in each second; 0 is no limit
    /// [default: as --max-connections, but 1000 at the least]
    #[arg(long, env = "TEXTO_RESUMES_PER_ADDRESS", value_name = "COUNT", help_heading = "Sessions")]
    pub resumes_per_address: Option<String>,

    /// After SIGTERM: how long to serve on while load balancers notice
    #[arg(long, env = "TEXTO_DRAIN_DELAY", default_value = "5s", value_name = "DURATION", help_heading = "Operations")]
    pub drain_delay: String,
    /// After that: time over which the sessions are closed with 1012
    #[arg(
        long,
        env = "TEXTO_DRAIN_WINDOW",
        default_value = "20s",
        value_name = "DURATION",
        help_heading = "Operations"
    )]
    pub drain_window: String,
    /// How long Redis may be away before /readyz fails: longer than a failover takes
    #[arg(
        long,
        env = "TEXTO_READY_GRACE",
        default_value = "15s",
        value_name = "DURATION",
        help_heading = "Operations"
    )]
    pub ready_grace: String,
    /// Without Redis and Sentinels for this long, clients are asked to go to another node (1012); four times as long
    /// while a Sentinel answers
    #[arg(
        long,
        env = "TEXTO_ISOLATED_AFTER",
        default_value = "15s",
        value_name = "DURATION",
        help_heading = "Operations"
    )]
    pub isolated_after: String,
    /// Form of the log on standard error: text or json
    #[arg(long, env = "TEXTO_LOG_FORMAT", default_value = "text", value_name = "FORMAT", help_heading = "Operations")]
    pub log_format: String,
}
