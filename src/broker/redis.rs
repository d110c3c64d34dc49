//! Owns the broker over Redis: topology in, links kept, messages out through the publisher.

pub mod connection;
pub mod envelope;
pub mod fleet;
pub mod link;
pub mod publisher;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::DropGuard;
use tracing::{info, warn};
use uuid::Uuid;

use self::envelope::{Ages, Envelope};
use self::fleet::Fleet;
use self::link::Link;
use self::publisher::{Actions, LinkId, MAX_LINKS, Outgoing, Publisher, Times};
use super::{Broker, BrokerStatus, LinkState, Message};
use crate::config::{Address, RedisConfig, TopologyConfig};
use crate::metrics::Metrics;
use crate::outbox::ReplyTo;
use crate::registry::{DEDUPE_WINDOW, Registry};
use crate::sentinel::{self, Topology, Watcher};
use crate::tasks::Tasks;

/// A server that does not answer for this long is helped out by the others.
const HEDGE: Duration = Duration::from_millis(100);
/// Quiet for this long, with everything in its place, is calm.
const SETTLE: Duration = Duration::from_secs(2);
/// Quiet for this long, with something missing, is calm as well: it may never come back.
const UNSETTLED: Duration = Duration::from_secs(15);
/// How far back a lost link's answers are doubted, at least.
const TAIL: Duration = Duration::from_secs(3);
/// Bytes of messages that may wait for a decision.
const MAX_PENDING_BYTES: usize = 256 * 1024 * 1024;
/// The pace of the publisher's clock while something waits.
const TICK: Duration = Duration::from_millis(5);

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
    metrics: Arc<Metrics>,
    publisher: Mutex<Publisher<ReplyTo>>,
    wakes: [Notify; MAX_LINKS],
    ticker: Notify,
    ages: Mutex<Ages>,
    start: Instant,
    /// Tells this run of this node from all others in envelopes.
    tag: u64,
    fleet: Mutex<Fleet<RunningLink>>,
    topology: watch::Receiver<Topology>,
    watcher: Option<Watcher>,
    usable: Mutex<Usable>,
    tasks: Tasks,
    /// Servers without a link, when that was last said.
    without: Mutex<usize>,
}

/// A link and its task, which ends with this.
#[derive(Debug)]
struct RunningLink {
    link: Arc<Link>,
    _end: DropGuard,
}

#[derive(Debug)]
struct Usable {
    since_not: Option<Instant>,
    ever: bool,
    last_switch: Option<Instant>,
    master: Option<Address>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No state is left half-changed by the code that holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RedisBroker {
    /// Starts to look for Redis. Its tasks run until those of the gateway end.
    pub fn start(
        config: &RedisConfig,
        node_id: &str,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Self {
        let now = Instant::now();
        let (topology, watcher, address_map) = match &config.topology {
            TopologyConfig::Fixed(address) => {
                let fixed = Topology { master: Some(address.clone()), ..Topology::default() };
                (watch::channel(fixed).1, None, None)
            }
            TopologyConfig::Sentinel { sentinels, master_name, credentials, address_map } => {
                let settings = sentinel::Settings {
                    master_name: master_name.clone(),
                    credentials: credentials.clone(),
                    address_map: address_map.clone(),
                    limit: config.heartbeat_timeout,
                };
                let watcher = Watcher::start(sentinels, settings, metrics.clone(), tasks);
                (watcher.topology(), Some(watcher), Some(address_map.clone()))
            }
        };
        // What is sent again must come while receivers' nodes remember the first copy; before that, it may have
        // been answered a while ago, and be held by a server that hangs, and in sockets.
        let tail = TAIL.max(config.heartbeat_timeout * 3 / 2);
        let spent = tail + config.heartbeat_timeout + config.send_timeout;
        let times = Times {
            tail,
            send: config.send_timeout,
            hedge: HEDGE,
            settle: SETTLE,
            unsettled: UNSETTLED,
            keep: DEDUPE_WINDOW.saturating_sub(spent),
            max_bytes: MAX_PENDING_BYTES,
        };
        let shared = Arc::new(Shared {
            config: config.clone(),
            client_name: format!("texto:{node_id}"),
            registry,
            metrics,
            publisher: Mutex::new(Publisher::new(now, times)),
            wakes: std::array::from_fn(|_| Notify::new()),
            ticker: Notify::new(),
            ages: Mutex::new(Ages::new(now)),
            start: now,
            tag: fastrand::u64(..),
            fleet: Mutex::new(Fleet::new(config.standby_subscriptions, address_map)),
            topology,
            watcher,
            usable: Mutex::new(Usable { since_not: Some(now), ever: false, last_switch: None, master: None }),
            tasks: tasks.clone(),
            without: Mutex::default(),
        });
        let (clock, keeper) = (shared.clone(), shared.clone());
        tasks.spawn_vital("clock", tasks.end(), async move {
            clock.tasks.end().run_until_cancelled(clock.run_clock()).await;
        });
        tasks.spawn_vital("keeper", tasks.end(), async move {
            keeper.tasks.end().run_until_cancelled(keeper.run_keeper()).await;
        });
        Self { shared }
    }
}

impl Shared {
    /// Changes the publisher, then answers and wakes outside its lock: the links that have something to
    /// send, and the clock when something waits where nothing did (new, or sent again).
    fn with_publisher<T>(
        &self,
        change: impl FnOnce(&mut Publisher<ReplyTo>, Instant, &mut Actions<ReplyTo>) -> T,
    ) -> T {
        let mut actions = Actions::default();
        let mut publisher = lock(&self.publisher);
        let was_idle = publisher.pending() == 0;
        let result = change(&mut publisher, Instant::now(), &mut actions);
        let pending = publisher.pending();
        drop(publisher);
        if was_idle && pending > 0 {
            self.ticker.notify_one();
        }
        self.metrics.messages_pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        self.metrics.messages_resent.inc_by(actions.resent);
        for link in actions.links() {
            self.wakes[link].notify_one();
        }
        for (reply, outcome) in actions.decided {
            reply.answer(outcome);
        }
        result
    }

    fn next_batch(&self, link: LinkId) -> Vec<Outgoing> {
        lock(&self.publisher).next_batch(Instant::now(), link)
    }

    fn answered(&self, link: LinkId, receivers: &[u64]) {
        self.with_publisher(|publisher, now, actions| publisher.answered(now, link, receivers, actions));
    }

    fn link_up(&self, link: &Link) {
        self.roles_changed();
        self.with_publisher(|publisher, now, actions| publisher.link_up(now, link.id(), actions));
    }

    fn link_synced(&self, link: &Link, channels: usize, took: Duration) {
        let address = link.address().to_string();
        info!(%address, channels, took_ms = took.as_secs_f64() * 1000.0, "link to Redis synced: channels replayed");
        self.metrics.replay_duration.observe(took.as_secs_f64());
        #[allow(clippy::cast_precision_loss)] // Not before 2^53 channels.
        self.metrics.replay_channels.with_label_values(&[&address]).set(channels as f64);
        self.with_publisher(|publisher, now, actions| publisher.link_synced(now, link.id(), actions));
        self.note_usable();
    }

    fn link_lost(&self, link: &Link, was_up: bool) {
        self.with_publisher(|publisher, now, actions| publisher.link_lost(now, link.id(), actions));
        self.roles_changed();
        self.note_usable();
        if let Some(watcher) = self.watcher.as_ref().filter(|_| was_up) {
            watcher.ask_now();
        }
    }

    /// Tells the session that it can be reached, once that is true for whoever publishes as we would.
    fn confirmed(&self, link: &Link, channel: &[u8]) {
        let Some(outbox) = envelope::client(channel).and_then(|client| self.registry.get(client)) else {
            return;
        };
        let master = self.master_link();
        if master.is_none_or(|master| master.id() == link.id()) {
            outbox.confirm_subscription();
        }
    }

    /// The link to the node that is master for Sentinel and calls itself so.
    fn master_link(&self) -> Option<Arc<Link>> {
        let master = self.topology.borrow().master.clone()?;
        let fleet = lock(&self.fleet);
        fleet.get(&master).map(|running| running.link.clone()).filter(|link| link.is_master())
    }

    /// Tells the publisher who is master and who ought to be there.
    fn roles_changed(&self) {
        let master = self.master_link().map(|link| link.id());
        self.metrics.master_linked.set(i64::from(master.is_some()));
        let expected: Vec<_> = lock(&self.fleet).expected().collect();
        self.with_publisher(|publisher, now, _| publisher.set_topology(now, master, expected.into_iter()));
    }

    fn note_usable(&self) {
        let usable = lock(&self.fleet).links().any(|(running, _)| running.link.stage() == LinkState::Synced);
        let mut state = lock(&self.usable);
        if usable {
            state.since_not = None;
            state.ever = true;
        } else if state.since_not.is_none() {
            state.since_not = Some(Instant::now());
            warn!("no usable link to any Redis: messages wait until their deadline");
        }
    }

    /// `at` on the clock of this node's envelopes.
    fn stamp_ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn age(&self, now: Instant, envelope: &Envelope<'_>) -> Duration {
        lock(&self.ages).age(now, envelope.node, envelope.stamp_ms)
    }

    fn learn_age(&self, now: Instant, envelope: &Envelope<'_>) {
        self.age(now, envelope);
    }

    /// Moves the publisher's clock while something waits.
    async fn run_clock(&self) {
        loop {
            let due = self.with_publisher(|publisher, now, actions| publisher.tick(now, actions));
            match due {
                None => self.ticker.notified().await,
                Some(due) => {
                    let now = Instant::now();
                    let next = due.clamp(now + TICK, now + 10 * TICK);
                    tokio::time::sleep_until(next.into()).await;
                }
            }
        }
    }

    /// Lets the links follow the topology.
    async fn run_keeper(self: &Arc<Self>) {
        let mut topology = self.topology.clone();
        let slots = lock(&self.fleet).slots();
        let mut period = tokio::time::interval(Duration::from_secs(1));
        loop {
            let now_topology = topology.borrow_and_update().clone();
            self.note_switch(&now_topology);
            self.converge(&now_topology);
            self.roles_changed();
            tokio::select! {
                changed = topology.changed() => if changed.is_err() {
                    // A fixed topology never changes; links still have to linger and end.
                    period.tick().await;
                },
                _ = period.tick() => {}
                () = slots.freed() => {} // Somebody may have waited for it.
                () = self.alarmed() => {
                    self.with_publisher(|publisher, now, _| publisher.disturb(now));
                }
            }
        }
    }

    async fn alarmed(&self) {
        match &self.watcher {
            Some(watcher) => watcher.alarmed().await,
            None => std::future::pending().await,
        }
    }

    fn note_switch(&self, topology: &Topology) {
        let mut state = lock(&self.usable);
        if topology.master == state.master {
            return;
        }
        let from = std::mem::replace(&mut state.master, topology.master.clone());
        let Some(to) = &topology.master else { return };
        self.metrics.master_info.reset();
        self.metrics.master_info.with_label_values(&[&to.to_string()]).set(1);
        match from {
            None => info!(master = %to, epoch = topology.epoch, "master found"),
            Some(from) => {
                state.last_switch = Some(Instant::now());
                self.metrics.failovers.inc();
                info!(master = %to, was = %from, epoch = topology.epoch, "switched to a new master");
            }
        }
    }

    fn converge(self: &Arc<Self>, topology: &Topology) {
        let changes = lock(&self.fleet).apply(
            Instant::now(),
            topology,
            |running| running.link.stage(),
            |slot| {
                let link = Arc::new(Link::new(slot));
                let end = self.tasks.end().child_token();
                self.tasks.spawn_vital("link", &end, link.clone().run(self.clone(), end.clone()));
                RunningLink { link, _end: end.drop_guard() }
            },
        );
        for address in changes.left {
            info!(%address, "link to Redis given up: the server left the topology");
        }
        for address in changes.yielded {
            info!(%address, "link to a dead Redis given up: a living one needs its place");
        }
        let mut without = lock(&self.without);
        if changes.without > *without {
            warn!(servers = changes.without, most = MAX_LINKS, "more Redis servers than links: the dead have none");
        }
        *without = changes.without;
    }

    /// Whoever is connected, wants or no longer wants their messages.
    fn changed(&self, client: Uuid) {
        let links: Vec<_> = lock(&self.fleet).links().map(|(running, _)| running.link.clone()).collect();
        for link in links {
            link.changed(client);
        }
    }
}

impl Broker for RedisBroker {
    fn publish(&self, message: Message, reply: ReplyTo) {
        let shared = &self.shared;
        let payload = envelope::encode(&message, shared.tag);
        shared.with_publisher(|publisher, now, actions| {
            publisher.submit(now, message.receiver, message.id, payload, reply, actions);
        });
    }

    fn joined(&self, client: Uuid) {
        self.shared.changed(client);
    }

    fn left(&self, client: Uuid) {
        self.shared.changed(client);
    }

    fn status(&self) -> BrokerStatus {
        let shared = &self.shared;
        let topology = shared.topology.borrow().clone();
        let links: Vec<_> =
            lock(&shared.fleet).links().map(|(running, expected)| running.link.status(expected)).collect();
        let (sentinels, problem) = match &shared.watcher {
            Some(watcher) => watcher.status(),
            None => (Vec::new(), None),
        };
        let state = lock(&shared.usable);
        let link_problem =
            links.iter().find_map(|link| Some(format!("Redis {}: {}", link.address, link.reason.as_ref()?)));
        let usable = state.since_not.is_none();
        let reason = if topology.master.is_none() { problem.or(link_problem) } else { link_problem.or(problem) };
        BrokerStatus {
            kind: if shared.watcher.is_some() { "sentinel" } else { "redis" },
            usable,
            unusable_since: state.since_not,
            ever_usable: state.ever,
            reason: reason.or_else(|| (!usable).then(|| "no Redis has been found yet".to_owned())),
            master: topology.master.as_ref().map(Address::to_string),
            epoch: topology.epoch,
            last_switch_seconds_ago: state.last_switch.map(|at| at.elapsed().as_secs_f64()),
            sentinels,
            links,
        }
    }
}
