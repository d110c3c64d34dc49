//! Owns the conversation with one Sentinel: what it is asked, and what its answers say.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::io::AsyncDNSResolver;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError, RedisFuture,
};

use super::machine::{Peer, Replica, View};
use super::signs::EVENTS;
use crate::address_map::AddressMap;
use crate::config::Address;
use crate::resolver;
use crate::secret::Credentials;

/// The lists are asked for this often, also when nothing seems to have changed.
const LISTS_PERIOD: Duration = Duration::from_secs(10);
/// What of the answer to SENTINEL MASTER shows that something else has changed as well.
const TELLING: [&str; 6] = ["ip", "port", "flags", "config-epoch", "num-slaves", "num-other-sentinels"];

type Row = HashMap<String, String>;

/// Why a Sentinel can't be used, in words for an operator.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("it does not know a master named {0:?}: check --master-name (TEXTO_MASTER_NAME)")]
    UnknownMaster(String),
    #[error("it refused the credentials ({0}): check TEXTO_SENTINEL_USERNAME and TEXTO_SENTINEL_PASSWORD or its _FILE")]
    Refused(String),
    #[error("this is a Redis, not a Sentinel: give a Sentinel's address, or this one to --redis (TEXTO_REDIS)")]
    Redis,
    #[error("the peer does not speak the protocol of Redis")]
    Protocol,
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("its answer makes no sense: {0}")]
    Nonsense(&'static str),
    #[error("the connection was lost")]
    Closed,
    #[error("{0}")]
    Io(String),
    #[error("{0}")]
    Other(String),
}

impl AskError {
    /// Whether it may not be there at all.
    pub(super) fn is_out_of_reach(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Io(_))
    }
}

/// What is the same in all conversations.
#[derive(Debug)]
pub struct Settings {
    /// The master's name.
    pub master_name: String,
    /// For the Sentinels.
    pub credentials: Credentials,
    /// What the addresses mean here that they announce.
    pub address_map: Arc<AddressMap>,
    /// Each step on the network takes this at most.
    pub limit: Duration,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Look {
    /// Whether something has changed: one question.
    Glance,
    /// The master as well, in the place where a promoted one is seen first.
    Master,
    /// Everything.
    Lists,
}

/// A conversation with a Sentinel that has answered.
pub(super) struct Conversation<'a> {
    settings: &'a Settings,
    connection: MultiplexedConnection,
    id: Option<String>,
    last: Option<(Vec<Option<String>>, View)>,
    lists_at: Instant,
}

impl<'a> Conversation<'a> {
    /// Connects and subscribes to its events, which `pushes` is given.
    pub(super) async fn begin(
        settings: &'a Settings,
        address: &Address,
        pushes: impl AsyncPushSender,
    ) -> Result<Self, AskError> {
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(username) = &settings.credentials.username {
            login = login.set_username(username);
        }
        if let Some(password) = &settings.credentials.password {
            login = login.set_password(password.current().expose());
        }
        let info: ConnectionInfo = ConnectionAddr::Tcp(address.host.clone(), address.port)
            .into_connection_info()
            .map_err(|error| AskError::Other(error.to_string()))?
            .set_redis_settings(login);
        let client = redis::Client::open(info).map_err(|error| AskError::Other(error.to_string()))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.limit))
            .set_response_timeout(Some(settings.limit))
            .set_dns_resolver(Names { limit: settings.limit * 3 / 4 })
            .set_push_sender(pushes);
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        let connection = settings.within(connect).await?;
        let mut conversation = Self { settings, connection, id: None, last: None, lists_at: Instant::now() };
        settings.within(conversation.connection.subscribe(EVENTS.as_slice())).await?;
        // Not every version, and not every ACL, has it; without it a Sentinel may be known twice.
        conversation.id = conversation.query(&["MYID"]).await.ok();
        Ok(conversation)
    }

    /// Its view, asked for as closely as `look` wants and what it says makes needful.
    pub(super) async fn ask(&mut self, look: Look) -> Result<View, AskError> {
        let settings = self.settings;
        let mut master = self.master().await?;
        let mut look = look;
        let telling = |row: &Row| TELLING.map(|name| row.get(name).cloned()).to_vec();
        match &self.last {
            Some((last, _)) if *last == telling(&master) && self.lists_at.elapsed() < LISTS_PERIOD => {}
            _ => look = Look::Lists,
        }
        if let Some((_, view)) = self.last.as_ref().filter(|_| look == Look::Glance) {
            return Ok(view.clone());
        }
        // While it leads a failover, a Sentinel has the new epoch in MASTER, but the old address; here it has the
        // promoted one. An ACL may forbid the question.
        let name = &settings.master_name;
        let promoted = self.query::<(String, u16)>(&["GET-MASTER-ADDR-BY-NAME", name]).await.ok();
        let promoted = promoted.map(|(host, port)| settings.address_map.reachable(Address { host, port }));
        if promoted.is_some() && promoted != settings.address(&master) {
            master = self.master().await?; // For the epoch that goes with it.
            look = Look::Lists;
        }
        let epoch = master.get("config-epoch").and_then(|text| text.parse().ok());
        let mut view = View {
            id: self.id.clone(),
            master: promoted
                .or_else(|| settings.address(&master))
                .ok_or(AskError::Nonsense("no address of the master"))?,
            epoch: epoch.ok_or(AskError::Nonsense("no config-epoch"))?,
            master_down: is_down(&master),
            replicas: Vec::new(),
            sentinels: Vec::new(),
        };
        match &self.last {
            Some((_, last)) if look < Look::Lists => {
                view.replicas.clone_from(&last.replicas);
                view.sentinels.clone_from(&last.sentinels);
            }
            _ => {
                self.lists_at = Instant::now();
                let replicas: Vec<Row> = self.query(&["REPLICAS", name]).await?;
                let sentinels: Vec<Row> = self.query(&["SENTINELS", name]).await?;
                let replica = |row: &Row| Some(Replica { address: settings.address(row)?, down: is_down(row) });
                view.replicas = replicas.iter().filter_map(replica).collect();
                let sentinel = |row: &Row| {
                    let id = row.get("runid").filter(|id| !id.is_empty())?;
                    Some(Peer { id: id.clone(), address: settings.address(row)?, down: is_down(row) })
                };
                view.sentinels = sentinels.iter().filter_map(sentinel).collect();
            }
        }
        self.last = Some((telling(&master), view.clone()));
        Ok(view)
    }

    async fn master(&mut self) -> Result<Row, AskError> {
        let name = &self.settings.master_name;
        match self.query(&["MASTER", name]).await {
            Err(AskError::Other(text)) if text.contains("No such master") => Err(AskError::UnknownMaster(name.clone())),
            other => other,
        }
    }

    async fn query<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> Result<T, AskError> {
        let mut command = redis::cmd("SENTINEL");
        command.arg(words);
        self.settings.within(command.query_async(&mut self.connection)).await
    }
}

/// Lets the redis crate look names up as the links do.
struct Names {
    limit: Duration,
}

impl AsyncDNSResolver for Names {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let addresses = resolver::resolve(host, port, self.limit).await?;
            Ok(Box::new(addresses.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

impl Settings {
    /// Where the server of a row is reached.
    fn address(&self, row: &Row) -> Option<Address> {
        let host = row.get("ip").filter(|host| !host.is_empty())?;
        let port = row.get("port")?.parse().ok().filter(|port| *port != 0)?;
        Some(self.address_map.reachable(Address { host: host.clone(), port }))
    }

    async fn within<T>(&self, step: impl Future<Output = Result<T, RedisError>>) -> Result<T, AskError> {
        match tokio::time::timeout(self.limit, step).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.is_timeout() => Err(AskError::Silent(self.limit)),
            Ok(Err(error)) => {
                let text = self.credentials.censor(&error.to_string()).replace(['\r', '\n'], " ");
                let refused = ["NOAUTH", "WRONGPASS", "NOPERM", "AuthenticationFailed", "authentication failed"];
                let refused =
                    refused.iter().any(|word| text.contains(word)) || text.contains("without any password configured");
                Err(match error.is_io_error() {
                    _ if refused => AskError::Refused(text),
                    _ if text.to_lowercase().contains("unknown command") => AskError::Redis,
                    _ if error.kind() == ErrorKind::Parse => AskError::Protocol,
                    true => AskError::Io(text),
                    false => AskError::Other(text),
                })
            }
            Err(_) => Err(AskError::Silent(self.limit)),
        }
    }
}

fn is_down(row: &Row) -> bool {
    let flags = row.get("flags").map(String::as_str).unwrap_or_default();
    flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected"))
}
