//! Owns the broker over Redis: topology in, links kept, bytes to and from the transport.

mod clock;
pub mod connection;
mod effects;
pub mod fleet;
mod keeper;
mod keys;
pub mod link;
mod overview;
pub mod pace;
pub(crate) mod probe;
mod publishing;
pub mod role;
mod status;
mod subscriptions;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::DropGuard;
use uuid::Uuid;

use self::fleet::Fleet;
use self::keys::Comparison;
use self::link::Link;
use self::overview::Roll;
use self::status::Usable;
use super::deployment::Deployment;
use super::{Broker, BrokerStatus, Message, Resumption};
use crate::config::{Limits, RedisConfig, TopologyConfig};
use crate::operate::chronicle::Chronicle;
use crate::operate::metrics::Metrics;
use crate::operate::tasks::Tasks;
use crate::outbox::budget::Budget;
use crate::outbox::{Outbox, ReplyTo};
use crate::registry::Registry;
use crate::resume::keys::Keys;
use crate::resume::windows::Windows;
use crate::sentinel::{self, Topology, Watcher};
use crate::transport::envelope::{Channel, Foreign, Tag, body};
use crate::transport::sender::{Actions, MAX_LINKS, Times};
use crate::transport::{Duty, Transport};

/// A server that does not answer for this long is helped out by the others.
const HEDGE: Duration = Duration::from_millis(100);
/// So long after the last sign of trouble with the master, messages go to it alone again.
const SETTLE: Duration = Duration::from_secs(2);
/// Bytes of messages that may wait for a decision.
const MAX_PENDING_BYTES: usize = 256 * 1024 * 1024;
/// How long the servers may take to hear that this node leaves.
const GOODBYE: Duration = Duration::from_millis(200);

/// What a broker has to know of a node's sessions.
#[derive(Debug)]
pub struct Sessions {
    /// Those that are here.
    pub registry: Arc<Registry>,
    /// Those without a connection.
    pub windows: Arc<Windows>,
    /// What they may hold.
    pub budget: Arc<Budget>,
    /// What each may.
    pub limits: Limits,
    /// What the tokens are signed with by which they are resumed.
    pub keys: Keys,
}

/// The broker over Redis.
#[derive(Debug)]
pub struct RedisBroker {
    shared: Arc<Shared>,
}

/// What the tasks of a broker share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: RedisConfig,
    /// The name that connections carry in Redis' CLIENT LIST.
    client_name: String,
    registry: Arc<Registry>,
    windows: Arc<Windows>,
    metrics: Arc<Metrics>,
    keys: Comparison,
    transport: Transport<ReplyTo>,
    /// Who waits for a session that is to come here.
    claimants: Mutex<HashMap<Uuid, Vec<oneshot::Sender<Resumption>>>>,
    wakes: [Notify; MAX_LINKS],
    ticker: Notify,
    /// Versions of the wire format that others write and this node can't read, once each in the log.
    strange: Mutex<BTreeSet<Foreign>>,
    fleet: Mutex<Fleet<RunningLink>>,
    topology: watch::Receiver<Topology>,
    watcher: Option<Watcher>,
    usable: Mutex<Usable>,
    /// Whether there ever was a link to the master.
    had_master: AtomicBool,
    tasks: Tasks,
    /// Servers without a link, when that was last said.
    without: Mutex<usize>,
    /// What happened lately, and the other gateways as they were a moment ago: for people.
    chronicle: Arc<Chronicle>,
    roll: Roll,
}

/// A link and its task, which ends with this.
#[derive(Debug)]
struct RunningLink {
    link: Arc<Link>,
    _end: DropGuard,
}

/// What follows from an event of the transport.
type Effects = Actions<Duty<ReplyTo>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No state is left half-changed by the code that holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RedisBroker {
    /// Starts to look for Redis. Its tasks run until those of the gateway end.
    pub fn start(
        config: &RedisConfig,
        node_id: &str,
        sessions: Sessions,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Self {
        let Sessions { registry, windows, budget, limits, keys } = sessions;
        let now = Instant::now();
        let chronicle = Arc::<Chronicle>::default();
        let (topology, watcher, address_map) = match &config.topology {
            TopologyConfig::Fixed(address) => {
                let fixed = Topology { master: Some(address.clone()), ..Topology::default() };
                (watch::channel(fixed).1, None, None)
            }
            TopologyConfig::Sentinel { sentinels, master_name, credentials, connector, address_map } => {
                let settings = sentinel::Settings {
                    master_name: master_name.clone(),
                    credentials: credentials.clone(),
                    connector: connector.clone(),
                    address_map: address_map.clone(),
                    limit: config.heartbeat_timeout,
                };
                let watcher = Watcher::start(sentinels, settings, metrics.clone(), chronicle.clone(), tasks);
                (watcher.topology(), Some(watcher), Some(address_map.clone()))
            }
        };
        let times = Times { send: config.send_timeout, hedge: HEDGE, settle: SETTLE, max_bytes: MAX_PENDING_BYTES };
        // New for each start, so that nobody takes what an earlier run of this node sent for this one's.
        let tag: Tag = fastrand::u64(1..);
        let transport =
            Transport::new(now, (tag, node_id), times, &limits, budget, registry.clone(), fastrand::Rng::new());
        let shared = Arc::new(Shared {
            config: config.clone(),
            client_name: format!("texto:{node_id}"),
            registry,
            windows,
            metrics,
            keys: Comparison::new(keys),
            transport,
            claimants: Mutex::default(),
            wakes: std::array::from_fn(|_| Notify::new()),
            ticker: Notify::new(),
            strange: Mutex::default(),
            fleet: Mutex::new(Fleet::new(config.standby_subscriptions, address_map)),
            topology,
            watcher,
            usable: Mutex::new(Usable { since_not: Some(now), ever: false, last_switch: None, master: None }),
            had_master: AtomicBool::new(false),
            tasks: tasks.clone(),
            without: Mutex::default(),
            chronicle,
            roll: Roll::default(),
        });
        let (clock, keeper) = (shared.clone(), shared.clone());
        tasks.spawn_lasting("clock", async move { clock.run_clock().await });
        tasks.spawn_lasting("keeper", async move { keeper.run_keeper().await });
        Self { shared }
    }
}

impl Broker for RedisBroker {
    fn publish(&self, message: Message, reply: ReplyTo) {
        let shared = &self.shared;
        let body = body(message.id, message.sender, message.text.as_bytes());
        let to = Channel::Client(message.receiver);
        shared.with_sender(|sender, now, actions| {
            sender.submit(now, message.sender, to, body, Duty::Send(reply), actions);
        });
    }

    fn joined(&self, client: Uuid) {
        self.shared.changed(Channel::Client(client));
        if self.shared.registry.get(client).is_some_and(|outbox| outbox.is_resumable()) {
            self.shared.changed(Channel::Claim(client));
            self.shared.with_transport(|transport, now, actions| transport.opened(now, client, actions));
        }
    }

    fn left(&self, client: Uuid) {
        self.shared.changed(Channel::Client(client));
    }

    fn ended(&self, outbox: &Outbox) {
        self.shared.changed(Channel::Client(outbox.client()));
        self.shared.changed(Channel::Claim(outbox.client()));
        self.shared.with_transport(|transport, now, actions| transport.ended(now, outbox, actions));
    }

    fn move_away(&self, client: Uuid) -> bool {
        self.shared.with_transport(|transport, now, actions| transport.move_away(now, client, actions))
    }

    fn leave(&self) {
        self.shared.with_transport(|transport, _, actions| transport.leave(actions));
    }

    fn unfinished(&self) -> usize {
        let (copies, moves) = self.shared.transport.kept();
        copies + moves
    }

    fn resume(&self, client: Uuid, generation: u64) -> BoxFuture<'_, Resumption> {
        let shared = &self.shared;
        Box::pin(async move {
            loop {
                let here =
                    shared.with_transport(|transport, now, actions| transport.resume(now, client, generation, actions));
                if let Some(resumption) = here {
                    return resumption;
                }
                let (claimant, resumption) = oneshot::channel();
                let is_first = {
                    let mut claimants = lock(&shared.claimants);
                    let waiting = claimants.entry(client).or_default();
                    waiting.push(claimant);
                    waiting.len() == 1
                };
                if is_first {
                    shared.with_transport(|transport, now, actions| transport.claim(now, client, generation, actions));
                }
                // The transport answers within the send deadline.
                match resumption.await.unwrap_or(Resumption::Lost) {
                    // Whoever claimed it first may have had an older token than this one.
                    Resumption::Refused if !is_first => {}
                    resumption => return resumption,
                }
            }
        })
    }

    fn tag(&self) -> Tag {
        self.shared.transport.tag()
    }

    fn goodbye(&self) -> BoxFuture<'_, ()> {
        let mut actions = Actions::default();
        self.shared.transport.bye(&mut actions);
        self.shared.act(actions);
        Box::pin(async {
            let said = async {
                while !self.shared.transport.sender().has_said_all() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let _ = tokio::time::timeout(GOODBYE, said).await;
        })
    }

    fn deployment(&self) -> Deployment {
        self.shared.deployment(Instant::now())
    }

    fn status(&self) -> BrokerStatus {
        self.shared.status()
    }
}
