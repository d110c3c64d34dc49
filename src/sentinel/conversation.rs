//! Owns the conversation with one Sentinel: what it is asked, and what its answers say.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError};
use tokio_util::task::AbortOnDropHandle;

use super::machine::{Peer, Replica, View};
use super::signs::EVENTS;
use crate::address_map::AddressMap;
use crate::config::Address;
use crate::config::secret::Credentials;
use crate::tls::connector::{ConnectError, Connector};
use crate::tls::reasons::TlsReason;

/// The lists are asked for this often, also when nothing seems to have changed.
const LISTS_PERIOD: Duration = Duration::from_secs(10);
/// What of the answer to SENTINEL MASTER shows that something else has changed as well.
const TELLING: [&str; 6] = ["ip", "port", "flags", "config-epoch", "num-slaves", "num-other-sentinels"];

/// What a Sentinel says of one server, by name.
pub(crate) type Row = HashMap<String, String>;

/// Why a Sentinel can't be used, in words for an operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("it does not know a master named {0:?}: check --master-name (TEXTO_MASTER_NAME)")]
    UnknownMaster(String),
    #[error("it refused the credentials ({0}): check TEXTO_SENTINEL_USERNAME and TEXTO_SENTINEL_PASSWORD or its _FILE")]
    Refused(String),
    #[error("it refuses a command to this user ({0})")]
    Right(String),
    #[error("this is a Redis, not a Sentinel: give a Sentinel's address, or this one to --redis (TEXTO_REDIS)")]
    Redis,
    #[error("the peer does not speak the protocol of Redis")]
    Protocol,
    #[error("{0}")]
    Tls(TlsReason),
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
    pub(crate) fn is_out_of_reach(&self) -> bool {
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
    /// How connections to the Sentinels are made, with TLS or without.
    pub connector: Connector,
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
pub(crate) struct Conversation<'a> {
    settings: &'a Settings,
    connection: MultiplexedConnection,
    /// Reads and writes for it.
    _driver: AbortOnDropHandle<()>,
    id: Option<String>,
    last: Option<(Vec<Option<String>>, View)>,
    lists_at: Instant,
}

impl<'a> Conversation<'a> {
    /// Connects and subscribes to its events, which `pushes` is given.
    pub(crate) async fn begin(
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
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(settings.limit)).set_push_sender(pushes);
        let stream = settings.connector.connect(address, settings.limit).await.map_err(|error| match error {
            ConnectError::Io(error) => AskError::Io(error.to_string()),
            ConnectError::Tls(reason) => AskError::Tls(reason),
        })?;
        let told = stream.told();
        let greeted = settings.within(MultiplexedConnection::new_with_config(&login, stream, config)).await;
        let (connection, driver) = match greeted {
            Ok(greeted) => greeted,
            Err(error @ (AskError::Io(_) | AskError::Protocol | AskError::Other(_))) => {
                let reason = match told.reason() {
                    None => settings.connector.doubt(address, settings.limit).await,
                    told => told,
                };
                return Err(reason.map_or(error, AskError::Tls));
            }
            Err(error) => return Err(error),
        };
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let (id, last, lists_at) = (None, None, Instant::now());
        let mut conversation = Self { settings, connection, _driver: driver, id, last, lists_at };
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
        let mut view = settings.view(self.id.clone(), promoted, &master)?;
        match &self.last {
            Some((_, last)) if look < Look::Lists => {
                view.replicas.clone_from(&last.replicas);
                view.sentinels.clone_from(&last.sentinels);
            }
            _ => {
                self.lists_at = Instant::now();
                let replicas: Vec<Row> = self.query(&["REPLICAS", name]).await?;
                let sentinels: Vec<Row> = self.query(&["SENTINELS", name]).await?;
                view.replicas = replicas.iter().filter_map(|row| settings.replica(row)).collect();
                view.sentinels = sentinels.iter().filter_map(|row| settings.sentinel(row)).collect();
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

    /// All that it says of the deployment, as it says it.
    pub(crate) async fn survey(&mut self) -> Result<Survey, AskError> {
        let name = &self.settings.master_name;
        Ok(Survey {
            id: self.id.clone(),
            master: self.master().await?,
            promoted: self.query(&["GET-MASTER-ADDR-BY-NAME", name]).await.ok(),
            replicas: self.query(&["REPLICAS", name]).await?,
            sentinels: self.query(&["SENTINELS", name]).await?,
            quorum: self.query(&["CKQUORUM", name]).await,
            info: self.settings.within(redis::cmd("INFO").query_async(&mut self.connection)).await,
        })
    }

    async fn query<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> Result<T, AskError> {
        let mut command = redis::cmd("SENTINEL");
        command.arg(words);
        self.settings.within(command.query_async(&mut self.connection)).await
    }
}

/// What one Sentinel says to somebody who looks once; the last two questions may be forbidden to this user.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) id: Option<String>,
    pub(crate) master: Row,
    pub(crate) promoted: Option<(String, u16)>,
    pub(crate) replicas: Vec<Row>,
    pub(crate) sentinels: Vec<Row>,
    pub(crate) quorum: Result<String, AskError>,
    pub(crate) info: Result<String, AskError>,
}

impl Settings {
    /// Where the server of a row is reached.
    pub(crate) fn address(&self, row: &Row) -> Option<Address> {
        let host = row.get("ip").filter(|host| !host.is_empty())?;
        let port = row.get("port")?.parse().ok().filter(|port| *port != 0)?;
        Some(self.address_map.reachable(Address { host: host.clone(), port }))
    }

    /// What the answer to SENTINEL MASTER comes to, without the lists.
    fn view(&self, id: Option<String>, promoted: Option<Address>, master: &Row) -> Result<View, AskError> {
        let epoch = master.get("config-epoch").and_then(|text| text.parse().ok());
        Ok(View {
            id,
            master: promoted.or_else(|| self.address(master)).ok_or(AskError::Nonsense("no address of the master"))?,
            epoch: epoch.ok_or(AskError::Nonsense("no config-epoch"))?,
            master_down: is_down(master),
            replicas: Vec::new(),
            sentinels: Vec::new(),
        })
    }

    fn replica(&self, row: &Row) -> Option<Replica> {
        Some(Replica { address: self.address(row)?, down: is_down(row) })
    }

    fn sentinel(&self, row: &Row) -> Option<Peer> {
        let id = row.get("runid").filter(|id| !id.is_empty())?;
        Some(Peer { id: id.clone(), address: self.address(row)?, down: is_down(row) })
    }

    async fn within<T>(&self, step: impl Future<Output = Result<T, RedisError>>) -> Result<T, AskError> {
        match tokio::time::timeout(self.limit, step).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.is_timeout() => Err(AskError::Silent(self.limit)),
            Ok(Err(error)) => {
                let text = self.credentials.censor(&error.to_string()).replace(['\r', '\n'], " ");
                let refused = ["NOAUTH", "WRONGPASS", "AuthenticationFailed", "authentication failed"];
                let refused =
                    refused.iter().any(|word| text.contains(word)) || text.contains("without any password configured");
                Err(match error.is_io_error() {
                    _ if error.code() == Some("NOPERM") || text.contains("NOPERM") => AskError::Right(text),
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

pub(crate) fn is_down(row: &Row) -> bool {
    let flags = row.get("flags").map(String::as_str).unwrap_or_default();
    flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected"))
}

/// For fuzzers: the views that come of `bytes`, a reply after the other, as a Sentinel sends them: the master, its
/// replicas, the other Sentinels, and the same again.
#[cfg(any(test, fuzzing))]
pub(crate) fn views(bytes: &[u8]) -> Vec<View> {
    let address_map = AddressMap::parse("announced:1=reachable:2").unwrap_or_default();
    let settings = Settings {
        master_name: "mymaster".to_owned(),
        credentials: Credentials { username: None, password: None },
        address_map: Arc::new(address_map),
        limit: Duration::from_secs(1),
        connector: Connector::plain(crate::tls::reasons::Peer::Sentinel),
    };
    // Up to one that can't be read.
    let (mut parser, mut bytes) = (redis::Parser::new(), bytes);
    let mut rows = || parser.parse_value(&mut bytes).ok();
    let mut views = Vec::new();
    while let Some(master) = rows() {
        let master = redis::from_redis_value::<Row>(master).unwrap_or_default();
        let (replicas, sentinels) = (rows(), rows());
        let list = |value: Option<redis::Value>| {
            value.and_then(|value| redis::from_redis_value::<Vec<Row>>(value).ok()).unwrap_or_default()
        };
        let Ok(mut view) = settings.view(master.get("runid").cloned(), None, &master) else { continue };
        view.replicas = list(replicas).iter().filter_map(|row| settings.replica(row)).collect();
        view.sentinels = list(sentinels).iter().filter_map(|row| settings.sentinel(row)).collect();
        views.push(view);
    }
    views
}
