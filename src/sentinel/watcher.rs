//! Owns the conversations with the Sentinels: one task each, all feeding one [`Machine`].
//!
//! Events are hints only. On each, and on a period, every Sentinel is asked for the truth; a frozen
//! one delays nobody, since nobody waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, Value,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::machine::{Event, Machine, Replica, Topology, View};
use crate::backoff::Backoff;
use crate::broker::SentinelStatus;
use crate::config::Address;
use crate::metrics::Metrics;
use crate::repeats::Repeats;
use crate::secret::Credentials;
use crate::tasks::Tasks;

/// The events that say that something is going on or over.
const EVENTS: [&str; 13] = [
    "+switch-master",
    "+sdown",
    "-sdown",
    "+odown",
    "-odown",
    "+slave",
    "+sentinel",
    "+reboot",
    "+tilt",
    "-tilt",
    "+try-failover",
    "+promoted-slave",
    "+config-update-from",
];
/// How often a Sentinel is asked in quiet times, and for how long how often in others.
const PERIOD: Duration = Duration::from_secs(1);
const ALERT_PERIOD: Duration = Duration::from_millis(200);
const ALERT: Duration = Duration::from_secs(5);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// Watches all Sentinels of one master. A cheap handle.
#[derive(Clone, Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    master_name: String,
    credentials: Credentials,
    limit: Duration,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    machine: Mutex<Machine>,
    topology: watch::Sender<Topology>,
    /// Counts hints; each Sentinel's task asks anew when it grows.
    hints: watch::Sender<u64>,
    alarm: Notify,
    alert_until: Mutex<Instant>,
    failover_logged: Mutex<Option<Instant>>,
    sentinels: Mutex<BTreeMap<Address, Known>>,
}

#[derive(Debug)]
struct Known {
    cancel: CancellationToken,
    reachable: bool,
    reason: Option<String>,
    repeats: Repeats,
    /// Whether the log has said that it can't be used, and so shall say that it answers.
    said_lost: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No state is left half-changed by the code that holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a Sentinel can't be used, in words for an operator.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("it does not know a master named {0:?}: check --master-name (TEXTO_MASTER_NAME)")]
    UnknownMaster(String),
    #[error("it refused the credentials ({0}): check TEXTO_SENTINEL_USERNAME and TEXTO_SENTINEL_PASSWORD or its _FILE")]
    Refused(String),
    #[error("this is a Redis, not a Sentinel: give a Sentinel's address, or this one to --redis (TEXTO_REDIS)")]
    Redis,
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("its answer makes no sense: {0}")]
    Nonsense(&'static str),
    #[error("the connection was lost")]
    Closed,
    #[error("{0}")]
    Other(String),
}

impl Watcher {
    /// Starts to watch `master_name`. Each step on the network takes `limit` at most. Its tasks run
    /// until those of the gateway end.
    pub fn start(
        sentinels: &[Address],
        master_name: &str,
        credentials: &Credentials,
        limit: Duration,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Self {
        let shared = Arc::new(Shared {
            master_name: master_name.to_owned(),
            credentials: credentials.clone(),
            limit,
            metrics,
            tasks: tasks.clone(),
            machine: Mutex::new(Machine::new(sentinels)),
            topology: watch::channel(Topology::default()).0,
            hints: watch::channel(0).0,
            alarm: Notify::new(),
            alert_until: Mutex::new(Instant::now()),
            failover_logged: Mutex::default(),
            sentinels: Mutex::default(),
        });
        for address in sentinels {
            shared.clone().watch(address.clone());
        }
        Self { shared }
    }

    /// The topology, as it changes.
    pub fn topology(&self) -> watch::Receiver<Topology> {
        self.shared.topology.subscribe()
    }

    /// Asks every Sentinel now: something looks wrong from here.
    pub fn ask_now(&self) {
        self.shared.alert();
    }

    /// Waits until a Sentinel says that something is going on. Cancel safe.
    pub async fn alarmed(&self) {
        self.shared.alarm.notified().await;
    }

    /// Each Sentinel's state, and a problem if there is one.
    pub fn status(&self) -> (Vec<SentinelStatus>, Option<String>) {
        let known = lock(&self.shared.sentinels);
        let status = known.iter().map(|(address, known)| SentinelStatus {
            address: address.to_string(),
            reachable: known.reachable,
            reason: known.reason.clone(),
        });
        let problem =
            known.iter().find_map(|(address, known)| Some(format!("Sentinel {address}: {}", known.reason.as_ref()?)));
        (status.collect(), problem)
    }
}

impl Shared {
    fn alert(&self) {
        *lock(&self.alert_until) = Instant::now() + ALERT;
        self.hints.send_modify(|count| *count += 1);
    }

    fn watch(self: Arc<Self>, address: Address) {
        let cancel = self.tasks.end().child_token();
        let known = Known {
            cancel: cancel.clone(),
            reachable: false,
            reason: None,
            repeats: Repeats::default(),
            said_lost: true,
        };
        lock(&self.sentinels).insert(address.clone(), known);
        self.tasks.clone().spawn_vital("watcher", &cancel.clone(), async move {
            cancel.run_until_cancelled(self.converse(&address)).await;
            let label = address.to_string();
            drop(self.metrics.sentinel_up.remove_label_values(&[label.as_str()]));
        });
    }

    /// Asks one Sentinel again and again; returns never.
    async fn converse(self: &Arc<Self>, address: &Address) {
        let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MOST);
        loop {
            tokio::time::sleep(backoff.next_delay()).await;
            let reason = match self.converse_inner(address, &mut backoff).await {
                Ok(never) => match never {},
                Err(reason) => reason,
            };
            self.note(address, Some(&reason));
            self.apply(Event::Lost(address.clone()));
        }
    }

    async fn converse_inner(
        self: &Arc<Self>,
        address: &Address,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, AskError> {
        let lost = Arc::new(Notify::new());
        let mut connection = self.connect(address, lost.clone()).await?;
        let mut hints = self.hints.subscribe();
        self.within(connection.subscribe(EVENTS.as_slice())).await?;
        loop {
            let view = self.ask(&mut connection).await?;
            backoff.reset();
            self.note(address, None);
            self.apply(Event::Answered(address.clone(), view));
            let alert = Instant::now() < *lock(&self.alert_until);
            tokio::select! {
                () = tokio::time::sleep(if alert { ALERT_PERIOD } else { PERIOD }) => {}
                _ = hints.changed() => {}
                () = lost.notified() => return Err(AskError::Closed),
            }
        }
    }

    async fn connect(
        self: &Arc<Self>,
        address: &Address,
        lost: Arc<Notify>,
    ) -> Result<MultiplexedConnection, AskError> {
        let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(username) = &self.credentials.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.credentials.password {
            settings = settings.set_password(password.current().expose());
        }
        let info: ConnectionInfo = ConnectionAddr::Tcp(address.host.clone(), address.port)
            .into_connection_info()
            .map_err(|error| AskError::Other(error.to_string()))?
            .set_redis_settings(settings);
        let client = redis::Client::open(info).map_err(|error| AskError::Other(error.to_string()))?;
        let shared = Arc::downgrade(self);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.limit))
            .set_response_timeout(Some(self.limit))
            .set_push_sender(move |push: PushInfo| {
                match push.kind {
                    PushKind::Disconnection => lost.notify_one(),
                    PushKind::Message => {
                        if let Some(shared) = shared.upgrade() {
                            shared.hint(&push.data);
                        }
                    }
                    _ => {}
                }
                Ok::<(), std::convert::Infallible>(())
            });
        self.within(client.get_multiplexed_async_connection_with_config(&config)).await
    }

    async fn within<T>(&self, step: impl Future<Output = Result<T, RedisError>>) -> Result<T, AskError> {
        match tokio::time::timeout(self.limit, step).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.is_timeout() => Err(AskError::Silent(self.limit)),
            Ok(Err(error)) => {
                let text = self.credentials.censor(&error.to_string());
                let refused = ["NOAUTH", "WRONGPASS", "NOPERM", "AuthenticationFailed", "authentication failed"];
                let refused =
                    refused.iter().any(|word| text.contains(word)) || text.contains("without any password configured");
                Err(if refused { AskError::Refused(text) } else { AskError::Other(text) })
            }
            Err(_) => Err(AskError::Silent(self.limit)),
        }
    }

    /// A Sentinel published an event: `[channel, payload]`.
    fn hint(&self, data: &[Value]) {
        let text = |at: usize| match data.get(at) {
            Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Some(Value::SimpleString(text)) => text.clone(),
            _ => String::new(),
        };
        let (event, details) = (text(0), text(1));
        let Some(about) = About::parse(&event, &details, &self.master_name) else { return };
        if matches!(event.as_str(), "+odown" | "+try-failover") {
            let mut logged = lock(&self.failover_logged);
            let now = Instant::now();
            if logged.is_none_or(|at| now.saturating_duration_since(at) > ALERT) {
                *logged = Some(now);
                info!(master = %self.master_name, %event, "failover begun");
            }
        }
        match about {
            About::Master => {
                self.alarm.notify_one();
                self.alert();
            }
            // Worth a question, but it moves nobody.
            About::Others => self.hints.send_modify(|count| *count += 1),
        }
    }

    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<View, AskError> {
        let name = &self.master_name;
        let sentinel = |what: &str| {
            let mut command = redis::cmd("SENTINEL");
            command.arg(what);
            command
        };
        let mut master = self.ask_master(connection).await?;
        // While it leads a failover, a Sentinel has the new epoch in MASTER, but the old address; here it has the
        // promoted one. An ACL may forbid the question.
        let mut address = sentinel("GET-MASTER-ADDR-BY-NAME");
        let promoted = self.within(address.arg(name).query_async::<(String, u16)>(connection)).await.ok();
        let promoted = promoted.map(|(host, port)| Address { host, port });
        if promoted.is_some() && promoted != row_address(&master) {
            master = self.ask_master(connection).await?; // For the epoch that goes with it.
        }
        type Rows = Vec<HashMap<String, String>>;
        let replicas: Rows = self.within(sentinel("REPLICAS").arg(name).query_async(connection)).await?;
        let sentinels: Rows = self.within(sentinel("SENTINELS").arg(name).query_async(connection)).await?;
        // Not every version, and not every ACL, has it; without it a Sentinel may be known twice.
        let id = self.within(sentinel("MYID").query_async::<String>(connection)).await.ok();
        let epoch = master.get("config-epoch").and_then(|text| text.parse().ok());
        Ok(View {
            id,
            master: promoted.or_else(|| row_address(&master)).ok_or(AskError::Nonsense("no address of the master"))?,
            epoch: epoch.ok_or(AskError::Nonsense("no config-epoch"))?,
            master_down: row_down(&master),
            replicas: replicas
                .iter()
                .filter_map(|row| Some(Replica { address: row_address(row)?, down: row_down(row) }))
                .collect(),
            sentinels: sentinels
                .iter()
                .filter_map(|row| Some((row.get("runid").filter(|id| !id.is_empty())?.clone(), row_address(row)?)))
                .collect(),
        })
    }

    async fn ask_master(&self, connection: &mut MultiplexedConnection) -> Result<HashMap<String, String>, AskError> {
        let mut command = redis::cmd("SENTINEL");
        command.arg("MASTER").arg(&self.master_name);
        match self.within(command.query_async(connection)).await {
            Err(AskError::Other(text)) if text.contains("No such master") => {
                Err(AskError::UnknownMaster(self.master_name.clone()))
            }
            Err(AskError::Other(text)) if text.to_lowercase().contains("unknown command") => Err(AskError::Redis),
            other => other,
        }
    }

    /// Notes that a Sentinel answers, or why not; one line in the log for each change.
    fn note(&self, address: &Address, problem: Option<&AskError>) {
        let mut sentinels = lock(&self.sentinels);
        let Some(known) = sentinels.get_mut(address) else { return };
        let reason = problem.map(ToString::to_string);
        if known.reachable == problem.is_none() && known.reason == reason {
            return;
        }
        match &reason {
            Some(reason) => {
                let again = known.repeats.note(Instant::now(), reason);
                known.said_lost |= again.is_some();
                if let Some(again) = again {
                    warn!(%address, %reason, "Sentinel can't be used, trying again{again}");
                }
            }
            None if std::mem::take(&mut known.said_lost) => info!(%address, "Sentinel answers"),
            None => {}
        }
        known.reachable = problem.is_none();
        known.reason = reason;
        let label = address.to_string();
        self.metrics.sentinel_up.with_label_values(&[label.as_str()]).set(i64::from(known.reachable));
    }

    fn apply(self: &Arc<Self>, event: Event) {
        let mut machine = lock(&self.machine);
        let actions = machine.apply(Instant::now(), event);
        if let Some(epoch) = actions.begun_anew {
            warn!(epoch, "the Sentinels know only an older epoch than before: they were set up anew, and are followed");
        }
        if actions.changed {
            let topology = machine.topology().clone();
            self.metrics.epoch.set(i64::try_from(topology.epoch).unwrap_or(i64::MAX));
            self.topology.send_replace(topology);
        }
        drop(machine);
        for address in actions.watch {
            info!(%address, "Sentinel discovered");
            self.clone().watch(address);
        }
        for address in actions.forget {
            if let Some(known) = lock(&self.sentinels).remove(&address) {
                known.cancel.cancel();
            }
        }
    }
}

/// What an event is about, where it concerns the master that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// The master itself, or who it is.
    Master,
    /// Its replicas, other Sentinels, or the Sentinel that says so.
    Others,
}

impl About {
    /// Reads `<type> <name> <ip> <port> [@ <master> <ip> <port>]`, or for `+switch-master` the master's name and two
    /// addresses (Redis documentation, "Sentinel API: Pub/Sub messages").
    fn parse(event: &str, details: &str, master: &str) -> Option<Self> {
        let words: Vec<&str> = details.split(' ').collect();
        match (event, words.as_slice()) {
            ("+tilt" | "-tilt", _) => Some(Self::Others),
            ("+switch-master", [name, ..]) => (*name == master).then_some(Self::Master),
            (_, ["master", name, ..]) => (*name == master).then_some(Self::Master),
            (_, [_, _, _, _, "@", name, ..]) if *name == master => match event {
                "+promoted-slave" | "+config-update-from" => Some(Self::Master),
                _ => Some(Self::Others),
            },
            _ => None,
        }
    }
}

fn row_address(row: &HashMap<String, String>) -> Option<Address> {
    let host = row.get("ip").filter(|host| !host.is_empty())?;
    let port = row.get("port")?.parse().ok().filter(|port| *port != 0)?;
    Some(Address { host: host.clone(), port })
}

fn row_down(row: &HashMap<String, String>) -> bool {
    let flags = row.get("flags").map(String::as_str).unwrap_or_default();
    flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_our_master_is_heard_and_only_the_master_alarms() {
        let about = |event: &str, details: &str| About::parse(event, details, "mymaster");
        let at = "@ mymaster 10.0.0.1 6379";
        assert_eq!(about("+sdown", "master mymaster 10.0.0.1 6379"), Some(About::Master));
        assert_eq!(about("+switch-master", "mymaster 10.0.0.1 6379 10.0.0.2 6379"), Some(About::Master));
        assert_eq!(about("+promoted-slave", &format!("slave 10.0.0.2:6379 10.0.0.2 6379 {at}")), Some(About::Master));
        assert_eq!(about("+sdown", &format!("slave 10.0.0.2:6379 10.0.0.2 6379 {at}")), Some(About::Others));
        assert_eq!(about("-sdown", &format!("sentinel 4f1e 10.0.0.3 26379 {at}")), Some(About::Others));
        assert_eq!(about("+tilt", "#tilt mode entered"), Some(About::Others));
        assert_eq!(about("+sdown", "master other 10.0.0.1 6379"), None);
        assert_eq!(
            about("+sdown", "slave mymaster 10.0.0.2 6379 @ other 10.0.0.1 6379"),
            None,
            "a replica of that name"
        );
    }
}
