//! Owns the flags of `texto serve`, still raw: their variables, defaults and help texts.
//!
//! The first paragraph of a comment is what `-h` says, all of it what `--help`, the man page and docs/configuration.md say.
//! `[default: …]` at the end of the first is for defaults that only the program knows. What most people never need is not
//! in `-h` (`hide_short_help`).

use clap::Args;

use super::cli::Given;
use super::tls::{ClientTls, RedisTls, SentinelTls};

/// What there is one of: addresses, who stands in front, a name.
pub(super) const NODE: &str = "Node";
/// Who may come in.
const ACCESS: &str = "Access";
/// Where Redis and the Sentinels are. These make no sense without them.
pub(super) const REDIS: &str = "Redis";
/// The same, for TLS to them.
pub(super) const REDIS_TLS: &str = "TLS to Redis and Sentinels";
/// What a client may say, and what waits for one.
const MESSAGES: &str = "Messages";
/// How many clients there may be, and how long they may say nothing.
const CONNECTIONS: &str = "Connections";
/// Sessions that can be resumed.
const SESSIONS: &str = "Sessions";
/// How the node begins, goes on and ends.
const OPERATIONS: &str = "Operations";

/// The flags of `texto serve`, as written; `Config` gives them meaning.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Which of these were given by anybody.
    #[arg(skip)]
    pub given: Vec<Given>,
    /// Address for WebSockets, the web client, health, metrics and status
    #[arg(long, env = "TEXTO_LISTEN", default_value = "0.0.0.0:8398", value_name = "ADDR:PORT", help_heading = NODE)]
    pub listen: String,
    /// Address of its own for /metrics, /status and health
    ///
    /// /metrics and /status leave the public address then; there, health is a verdict without reasons. Let nobody but your
    /// monitoring reach it.
    #[arg(long, env = "TEXTO_ADMIN_LISTEN", value_name = "ADDR:PORT", help_heading = NODE)]
    pub admin_listen: Option<String>,
    /// TLS for clients.
    #[command(flatten)]
    pub client_tls: ClientTls,
    /// Proxies whose X-Forwarded-For is believed: addresses or networks
    ///
    /// Comma-separated: `10.0.0.0/8,192.0.2.7`. Behind a proxy that is not named, all clients have one address, and one
    /// limit.
    #[arg(
        long,
        env = "TEXTO_TRUSTED_PROXIES",
        default_value = "",
        value_name = "CIDR,…",
        hide_default_value = true,
        help_heading = NODE
    )]
    pub trusted_proxies: String,
    /// Name of this node [default: host name and a random suffix]
    ///
    /// In logs, health, metrics, and Redis' `CLIENT LIST`. ASCII without spaces.
    #[arg(long, env = "TEXTO_NODE_ID", value_name = "NAME", help_heading = NODE, hide_short_help = true)]
    pub node_id: Option<String>,

    /// Pages that may connect beside the gateway's own, by origin
    ///
    /// Comma-separated: `https://chat.example.org`, `https://*.example.org` (all below it), or `*` for all. Whoever
    /// names no origin is no page, and comes in.
    #[arg(long, env = "TEXTO_ALLOWED_ORIGINS", value_name = "ORIGIN,…", help_heading = ACCESS)]
    pub allowed_origins: Option<String>,
    /// Demand credentials (JWT), verified by the keys of this file
    ///
    /// Public ones in PEM, a JWKS, or a secret. It is read again when it changes.
    #[arg(long, env = "TEXTO_AUTH_KEY_FILE", value_name = "PATH", help_heading = ACCESS)]
    pub auth_key_file: Option<String>,
    /// Demand credentials (JWT), verified by the JWKS at this address
    ///
    /// Not together with --auth-key-file. While it can't be had, the last keys are used.
    #[arg(long, env = "TEXTO_AUTH_JWKS_URL", value_name = "URL", help_heading = ACCESS)]
    pub auth_jwks_url: Option<String>,
    /// How often the JWKS is asked for
    ///
    /// For a key that is not known it is asked at once, but at most every 5s.
    #[arg(
        long,
        env = "TEXTO_AUTH_JWKS_REFRESH",
        default_value = "5m",
        value_name = "DURATION",
        help_heading = ACCESS,
        hide_short_help = true
    )]
    pub auth_jwks_refresh: String,
    /// Algorithms that are taken [default: all that the keys are good for]
    ///
    /// Comma-separated: `ES256,EdDSA`. Each key is used for what it is good for, whatever a token says.
    #[arg(long, env = "TEXTO_AUTH_ALGORITHMS", value_name = "NAME,…", help_heading = ACCESS, hide_short_help = true)]
    pub auth_algorithms: Option<String>,
    /// Whom credentials must be for (`aud`): one of these
    ///
    /// Comma-separated. Without it, they must name nobody.
    #[arg(long, env = "TEXTO_AUTH_AUDIENCE", value_name = "NAME,…", help_heading = ACCESS, hide_short_help = true)]
    pub auth_audience: Option<String>,
    /// Whom credentials must be by (`iss`): one of these [default: anybody]
    ///
    /// Comma-separated.
    #[arg(long, env = "TEXTO_AUTH_ISSUER", value_name = "NAME,…", help_heading = ACCESS, hide_short_help = true)]
    pub auth_issuer: Option<String>,
    /// How much the clocks of issuer and gateway may differ
    ///
    /// 10m at most.
    #[arg(
        long,
        env = "TEXTO_AUTH_LEEWAY",
        default_value = "60s",
        value_name = "DURATION",
        help_heading = ACCESS,
        hide_short_help = true
    )]
    pub auth_leeway: String,

    /// Sentinels: Redis is found and followed through them
    ///
    /// Comma-separated. The others are discovered, but name several: the one alone may be down at the start.
    #[arg(long, env = "TEXTO_SENTINELS", value_name = "HOST:PORT,…", help_heading = REDIS)]
    pub sentinels: Option<String>,
    /// Name under which the Sentinels know the master
    ///
    /// As in `sentinel monitor`.
    #[arg(long, env = "TEXTO_MASTER_NAME", default_value = "mymaster", value_name = "NAME", help_heading = REDIS)]
    pub master_name: String,
    /// Where servers and Sentinels are reached that Sentinel announces otherwise
    ///
    /// Comma-separated, each side `host:port`. For a gateway behind NAT, or outside of the containers of Redis.
    #[arg(
        long,
        env = "TEXTO_ADDRESS_MAP",
        default_value = "",
        value_name = "ANNOUNCED=REACHABLE,…",
        hide_default_value = true,
        help_heading = REDIS,
        hide_short_help = true
    )]
    pub address_map: String,
    /// One Redis, without Sentinel
    ///
    /// Not together with --sentinels. With neither of them the broker is embedded: one node, alone.
    #[arg(long, env = "TEXTO_REDIS", value_name = "HOST:PORT", help_heading = REDIS)]
    pub redis: Option<String>,
    /// Links to the replicas as well as to the master
    ///
    /// A failover is bridged then, and not waited for.
    #[arg(
        long,
        env = "TEXTO_STANDBY_SUBSCRIPTIONS",
        default_value = "true",
        value_name = "BOOL",
        help_heading = REDIS,
        hide_short_help = true
    )]
    pub standby_subscriptions: String,
    /// ACL user name for Redis
    #[arg(long, env = "TEXTO_REDIS_USERNAME", value_name = "NAME", help_heading = REDIS, hide_short_help = true)]
    pub redis_username: Option<String>,
    /// File that holds the password for Redis
    ///
    /// Or the password itself in TEXTO_REDIS_PASSWORD. The file is read again at every connection.
    #[arg(long, env = "TEXTO_REDIS_PASSWORD_FILE", value_name = "PATH", help_heading = REDIS)]
    pub redis_password_file: Option<String>,
    /// ACL user name for the Sentinels
    #[arg(long, env = "TEXTO_SENTINEL_USERNAME", value_name = "NAME", help_heading = REDIS, hide_short_help = true)]
    pub sentinel_username: Option<String>,
    /// File that holds the password for the Sentinels
    ///
    /// Or the password itself in TEXTO_SENTINEL_PASSWORD. The file is read again at every connection.
    #[arg(long, env = "TEXTO_SENTINEL_PASSWORD_FILE", value_name = "PATH", help_heading = REDIS)]
    pub sentinel_password_file: Option<String>,
    /// A Redis or Sentinel that is silent this long is given up
    ///
    /// At most 5s, and --send-timeout.
    #[arg(
        long,
        env = "TEXTO_HEARTBEAT_TIMEOUT",
        default_value = "1s",
        value_name = "DURATION",
        help_heading = REDIS,
        hide_short_help = true
    )]
    pub heartbeat_timeout: String,
    /// TLS to Redis.
    #[command(flatten)]
    pub redis_tls: RedisTls,
    /// TLS to the Sentinels.
    #[command(flatten)]
    pub sentinel_tls: SentinelTls,

    /// Every `send` is answered within this time
    ///
    /// 20s at most.
    #[arg(long, env = "TEXTO_SEND_TIMEOUT", default_value = "5s", value_name = "DURATION", help_heading = MESSAGES)]
    pub send_timeout: String,
    /// Length of a text at most, in bytes of UTF-8
    ///
    /// A longer one gets EMSGSIZE. 8 MiB at most, for Redis cuts off subscribers for whom more than 32 MB wait.
    #[arg(long, env = "TEXTO_MAX_TEXT_BYTES", default_value = "16384", value_name = "BYTES", help_heading = MESSAGES)]
    pub max_text_bytes: String,
    /// Length of a WebSocket message at most
    ///
    /// A longer one closes the socket with 1009. 64 MiB at most.
    #[arg(
        long,
        env = "TEXTO_MAX_FRAME_BYTES",
        default_value = "131072",
        value_name = "BYTES",
        help_heading = MESSAGES,
        hide_short_help = true
    )]
    pub max_frame_bytes: String,
    /// Compress longer messages for clients that offer it
    ///
    /// By permessage-deflate, as browsers do: fewer bytes, more CPU.
    #[arg(
        long,
        env = "TEXTO_COMPRESSION",
        default_value = "false",
        value_name = "BOOL",
        help_heading = MESSAGES,
        hide_short_help = true
    )]
    pub compression: String,
    /// Sends of one session that wait for their answer at a time
    ///
    /// More get EAGAIN.
    #[arg(
        long,
        env = "TEXTO_MAX_UNANSWERED",
        default_value = "64",
        value_name = "COUNT",
        help_heading = MESSAGES,
        hide_short_help = true
    )]
    pub max_unanswered: String,
    /// Sends of one session in each second; 0 is no limit
    ///
    /// More get EAGAIN.
    #[arg(
        long,
        env = "TEXTO_SEND_RATE",
        default_value = "0",
        value_name = "COUNT",
        help_heading = MESSAGES,
        hide_short_help = true
    )]
    pub send_rate: String,
    /// Sends of one session at once [default: twice --send-rate]
    ///
    /// Of use with --send-rate only.
    #[arg(long, env = "TEXTO_SEND_BURST", value_name = "COUNT", help_heading = MESSAGES, hide_short_help = true)]
    pub send_burst: Option<String>,
    /// Messages that wait for a slow reader
    ///
    /// Then its senders get EBUSY, each at a quarter already.
    #[arg(
        long,
        env = "TEXTO_OUTBOX_MESSAGES",
        default_value = "1024",
        value_name = "COUNT",
        help_heading = MESSAGES,
        hide_short_help = true
    )]
    pub outbox_messages: String,
    /// Bytes of text that wait for a slow reader
    ///
    /// Then its senders get EBUSY, each at a quarter already.
    #[arg(
        long,
        env = "TEXTO_OUTBOX_BYTES",
        default_value = "1048576",
        value_name = "BYTES",
        help_heading = MESSAGES,
        hide_short_help = true
    )]
    pub outbox_bytes: String,
    /// Bytes that wait for all readers of this node [default: 268435456, or as much as one outbox may hold]
    ///
    /// Near it the slowest are closed with 1013, at it senders get EBUSY.
    #[arg(
        long,
        env = "TEXTO_OUTBOX_TOTAL_BYTES",
        value_name = "BYTES",
        help_heading = MESSAGES,
        hide_short_help = true
    )]
    pub outbox_total_bytes: Option<String>,

    /// WebSockets at a time [default: the descriptor limit less 256]
    ///
    /// More get 503, and /readyz fails.
    #[arg(long, env = "TEXTO_MAX_CONNECTIONS", value_name = "COUNT", help_heading = CONNECTIONS)]
    pub max_connections: Option<String>,
    /// WebSockets of one client address at a time; 0 is no limit
    ///
    /// More get 429. With IPv6, an address is its /64.
    #[arg(
        long,
        env = "TEXTO_MAX_CONNECTIONS_PER_ADDRESS",
        default_value = "0",
        value_name = "COUNT",
        help_heading = CONNECTIONS,
        hide_short_help = true
    )]
    pub max_connections_per_address: String,
    /// Handshakes from one client address in each second; 0 is no limit
    ///
    /// More get 429. With IPv6, an address is its /64.
    #[arg(
        long,
        env = "TEXTO_CONNECTION_RATE",
        default_value = "0",
        value_name = "COUNT",
        help_heading = CONNECTIONS,
        hide_short_help = true
    )]
    pub connection_rate: String,
    /// Handshakes from one client address at once [default: ten times --connection-rate]
    ///
    /// Of use with --connection-rate only.
    #[arg(
        long,
        env = "TEXTO_CONNECTION_BURST",
        value_name = "COUNT",
        help_heading = CONNECTIONS,
        hide_short_help = true
    )]
    pub connection_burst: Option<String>,
    /// A WebSocket that is silent this long is pinged
    ///
    /// And closed when it stays silent as long again. A message that comes at 256 bytes a second or faster is no
    /// silence.
    #[arg(
        long,
        env = "TEXTO_PING_INTERVAL",
        default_value = "25s",
        value_name = "DURATION",
        help_heading = CONNECTIONS,
        hide_short_help = true
    )]
    pub ping_interval: String,
    /// Time for a client to take what is written at a time
    ///
    /// That is 16 messages and its answers. After it the socket is closed with 1013.
    #[arg(
        long,
        env = "TEXTO_WRITE_TIMEOUT",
        default_value = "10s",
        value_name = "DURATION",
        help_heading = CONNECTIONS,
        hide_short_help = true
    )]
    pub write_timeout: String,
    /// Time for a new connection to send something
    ///
    /// And for the head of an HTTP request, from its first byte on.
    #[arg(
        long,
        env = "TEXTO_HEADER_TIMEOUT",
        default_value = "10s",
        value_name = "DURATION",
        help_heading = CONNECTIONS,
        hide_short_help = true
    )]
    pub header_timeout: String,
    /// Time that an HTTP connection may be idle between requests
    ///
    /// Longer than load balancers keep theirs: who closes first decides who gets a stray 502.
    #[arg(
        long,
        env = "TEXTO_KEEP_ALIVE_TIMEOUT",
        default_value = "75s",
        value_name = "DURATION",
        help_heading = CONNECTIONS,
        hide_short_help = true
    )]
    pub keep_alive_timeout: String,

    /// File of the keys of resume tokens, the same on all nodes [default: a key of this process alone]
    ///
    /// One a line, made by `texto session-key`: the first signs. It is read again when it changes.
    #[arg(long, env = "TEXTO_SESSION_KEY_FILE", value_name = "PATH", help_heading = SESSIONS)]
    pub session_key_file: Option<String>,
    /// Make that file, with a new key, where there is none
    ///
    /// Of several nodes that share it, one makes it.
    #[arg(
        long,
        env = "TEXTO_SESSION_KEY_CREATE",
        default_value = "false",
        value_name = "BOOL",
        help_heading = SESSIONS,
        hide_short_help = true
    )]
    pub session_key_create: String,
    /// A session that can be resumed outlives its socket for so long
    ///
    /// Messages for it are acknowledged and kept meanwhile.
    #[arg(long, env = "TEXTO_RESUME_WINDOW", default_value = "30s", value_name = "DURATION", help_heading = SESSIONS)]
    pub resume_window: String,
    /// A client keeps its id by a resume token for so long
    ///
    /// It gets a newer one each time; 30 days at most, and in all.
    #[arg(
        long,
        env = "TEXTO_TOKEN_LIFETIME",
        default_value = "24h",
        value_name = "DURATION",
        help_heading = SESSIONS,
        hide_short_help = true
    )]
    pub token_lifetime: String,
    /// Sessions that one client address may resume at once [default: --max-connections, but 1000 at the least]
    ///
    /// And a tenth of it in each second; then 1013, and the id is kept. 0 is no limit. Each session may be resumed
    /// twice a second, 20 times at once.
    #[arg(
        long,
        env = "TEXTO_RESUMES_PER_ADDRESS",
        value_name = "COUNT",
        help_heading = SESSIONS,
        hide_short_help = true
    )]
    pub resumes_per_address: Option<String>,

    /// After SIGTERM: how long to serve on while load balancers notice
    #[arg(long, env = "TEXTO_DRAIN_DELAY", default_value = "5s", value_name = "DURATION", help_heading = OPERATIONS)]
    pub drain_delay: String,
    /// After that: time over which the sessions are closed with 1012
    #[arg(long, env = "TEXTO_DRAIN_WINDOW", default_value = "20s", value_name = "DURATION", help_heading = OPERATIONS)]
    pub drain_window: String,
    /// How long Redis may be away before /readyz fails
    ///
    /// Longer than a failover takes.
    #[arg(
        long,
        env = "TEXTO_READY_GRACE",
        default_value = "15s",
        value_name = "DURATION",
        help_heading = OPERATIONS,
        hide_short_help = true
    )]
    pub ready_grace: String,
    /// Without Redis and Sentinels for this long, clients are sent away
    ///
    /// They are asked to go to another node (1012), and no more are taken. Four times as long while a Sentinel answers.
    #[arg(
        long,
        env = "TEXTO_ISOLATED_AFTER",
        default_value = "15s",
        value_name = "DURATION",
        help_heading = OPERATIONS,
        hide_short_help = true
    )]
    pub isolated_after: String,
    /// Form of the log on standard error: text or json
    ///
    /// TEXTO_LOG filters it: `info` (the default), `texto=debug`.
    #[arg(long, env = "TEXTO_LOG_FORMAT", default_value = "text", value_name = "FORMAT", help_heading = OPERATIONS)]
    pub log_format: String,
}
