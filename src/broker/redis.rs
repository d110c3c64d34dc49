//! Owns the broker over Redis: topology in, links kept, bytes to and from the transport.

pub mod connection;
pub mod fleet;
mod keys;
pub mod link;
pub mod pace;
mod probe;
mod publishing;
mod subscriptions;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::DropGuard;
use tracing::{info, warn};
use uuid::Uuid;

use self::fleet::Fleet;
use self::keys::Comparison;
use self::link::Link;
use super::{Broker, BrokerStatus, LinkState, Message, Resumption};
use crate::budget::Budget;
use crate::config::{Address, Limits, RedisConfig, TopologyConfig};
use crate::metrics::Metrics;
use crate::outbox::{Outbox, ReplyTo};
use crate::registry::Registry;
use crate::sentinel::{self, Topology, Watcher};
use crate::session_keys::Keys;
use crate::tasks::Tasks;
use crate::transport::envelope::{Channel, Foreign, Hello, Tag, VERSION, body};
use crate::transport::homes::LOOK_EVERY;
use crate::transport::peers::HELLO_EVERY;
use crate::transport::sender::{Actions, Answer, Command, LinkId, MAX_LINKS, Sender, Times};
use crate::transport::{Arrived, Duty, Gathered, Transport};
use crate::windows::Windows;

/// A server that does not answer for this long is helped out by the others.
const HEDGE: Duration = Duration::from_millis(100);
/// So long after the last sign of trouble with the master, messages go to it alone again.
const SETTLE: Duration = Duration::from_secs(2);
/// Bytes of messages that may wait for a decision.
const MAX_PENDING_BYTES: usize = 256 * 1024 * 1024;
/// How long the servers may take to hear that this node leaves.
const GOODBYE: Duration = Duration::from_millis(200);
/// The pace of the transport's clock while something waits.
const TICK: Duration = Duration::from_millis(5);

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

/// What follows from an event of the transport.
type Effects = Actions<Duty<ReplyTo>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No state is left half-changed by the code that holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client of a channel.
fn client_of(channel: &[u8]) -> Option<Uuid> {
    match Channel::parse(channel)? {
        Channel::Client(client) => Some(client),
        Channel::Claim(_) | Channel::Node(_) | Channel::Nodes => None,
    }
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
        });
        let (clock, keeper) = (shared.clone(), shared.clone());
        tasks.spawn_lasting("clock", async move { clock.run_clock().await });
        tasks.spawn_lasting("keeper", async move { keeper.run_keeper().await });
        Self { shared }
    }
}

impl Shared {
    /// Changes the sender, then answers and wakes outside its lock.
    fn with_sender<T>(&self, change: impl FnOnce(&mut Sender<Duty<ReplyTo>>, Instant, &mut Effects) -> T) -> T {
        let mut actions = Actions::default();
        let mut sender = self.transport.sender();
        let was_idle = sender.pending() == 0;
        let result = change(&mut sender, Instant::now(), &mut actions);
        let pending = sender.pending();
        drop(sender);
        if was_idle && pending > 0 {
            self.ticker.notify_one();
        }
        self.metrics.messages_pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        self.act(actions);
        result
    }

    /// Answers, subscribes, and wakes the links that have something to send.
    fn act(&self, mut actions: Effects) {
        loop {
            self.metrics.count(&std::mem::take(&mut actions.figures));
            for link in actions.links() {
                self.wakes[link].notify_one();
            }
            actions.changed.drain(..).for_each(|channel| self.changed(channel));
            for outbox in actions.detached.drain(..) {
                self.windows.begin(&outbox);
            }
            for (client, resumption) in actions.claims.drain(..) {
                let claimants = lock(&self.claimants).remove(&client).unwrap_or_default();
                for claimant in claimants {
                    // Whoever does not wait any more will find it by its token again.
                    let _ = claimant.send(resumption.clone());
                }
            }
            if actions.decided.is_empty() {
                return;
            }
            let mut more = Actions::default();
            for (duty, outcome) in actions.decided {
                if let Some(reply) = self.transport.decided(Instant::now(), duty, outcome, &mut more) {
                    reply.answer(outcome);
                }
            }
            actions = more;
        }
    }

    /// The same with the whole transport, which locks for itself.
    fn with_transport<T>(&self, change: impl FnOnce(&Transport<ReplyTo>, Instant, &mut Effects) -> T) -> T {
        let mut actions = Actions::default();
        let result = change(&self.transport, Instant::now(), &mut actions);
        self.ticker.notify_one();
        self.act(actions);
        result
    }

    /// This run of this node, in envelopes.
    fn tag(&self) -> Tag {
        self.transport.tag()
    }

    /// The channels that a link subscribes last.
    fn own_channels(&self) -> Vec<Vec<u8>> {
        self.transport.own_channels().iter().map(|channel| channel.name().into_bytes()).collect()
    }

    /// What `link` is to send now, or until when it gathers.
    fn next_batch(&self, link: LinkId) -> (Vec<Command>, Option<Instant>) {
        let mut sender = self.transport.sender();
        let now = Instant::now();
        let batch = sender.next_batch(now, link);
        let until = if batch.is_empty() { sender.gathers_until(now, link) } else { None };
        (batch, until)
    }

    fn answered(&self, link: LinkId, answers: Vec<Answer>) {
        self.with_sender(|sender, now, actions| sender.answered(now, link, answers, actions));
    }

    /// Something has come in on a subscription.
    fn receive(&self, channel: &[u8], payload: &[u8], gathered: &mut Gathered) {
        let mut actions = Actions::default();
        let arrived = self.transport.arrived(Instant::now(), channel, payload, gathered, &mut actions);
        self.metrics.deliveries.count(&arrived);
        match arrived {
            Arrived::Met(_, hello) => self.note_met(&hello),
            Arrived::Foreign(foreign) => self.note_foreign(foreign),
            _ => {}
        }
        self.act(actions);
    }

    /// All that a read has brought was handed on: its receipts go out.
    fn after_read(&self, gathered: &mut Gathered) {
        let mut actions = Actions::default();
        self.transport.send_receipts(Instant::now(), gathered, &mut actions);
        self.act(actions);
    }

    fn note_met(&self, Hello { writes, reads, name, .. }: &Hello) {
        info!(node = name, writes, reads, "another node is there");
        if *reads < VERSION || *writes > VERSION {
            warn!(node = name, writes, reads, own = VERSION, "it speaks another version: messages between us are lost");
        }
    }

    fn note_foreign(&self, foreign: Foreign) {
        if let (Foreign::Version(_) | Foreign::Kind(_), true) = (foreign, lock(&self.strange).insert(foreign)) {
            warn!(
                ?foreign,
                own = VERSION,
                "another version of Texto uses this Redis: stop its nodes, or upgrade this one"
            );
        }
    }

    fn link_up(&self, link: &Link) {
        self.roles_changed();
        self.with_sender(|sender, now, actions| sender.link_up(now, link.id(), actions));
    }

    fn link_synced(&self, link: &Link, channels: usize, took: Duration) {
        let address = link.address().to_string();
        if link.is_news_that_synced() {
            let took_ms = took.as_secs_f64() * 1000.0;
            info!(%address, channels, took_ms, "link to Redis synced: channels replayed");
        }
        self.metrics.replay_duration.observe(took.as_secs_f64());
        #[allow(clippy::cast_precision_loss)] // Not before 2^53 channels.
        self.metrics.replay_channels.with_label_values(&[&address]).set(channels as f64);
        let mut actions = Actions::default();
        self.transport.link_synced(Instant::now(), link.id(), &mut actions);
        self.act(actions);
        self.note_usable();
    }

    fn link_lost(&self, link: &Link, was: LinkState) {
        self.with_sender(|sender, now, actions| sender.link_lost(now, link.id(), actions));
        self.roles_changed();
        self.note_usable();
        // One that was lost before tells the Sentinels' watcher nothing new.
        if let (Some(watcher), true) = (&self.watcher, was != LinkState::Connecting) {
            watcher.ask_now();
        }
    }

    /// Tells the session that it can be reached, once that is true for whoever publishes as we would: by the master, and
    /// without one by anybody. But for a node that has just begun: nobody knows it yet, and so nobody asks further.
    fn confirmed(&self, link: &Link, channel: &[u8]) {
        let Some(outbox) = client_of(channel).and_then(|client| self.registry.get(client)) else {
            return;
        };
        let reaches = match self.master_link() {
            Some(master) => master.id() == link.id(),
            None => self.had_master.load(Ordering::Relaxed),
        };
        if reaches {
            outbox.confirm_subscription();
        }
    }

    /// The link to the node that is master for Sentinel and calls itself so.
    fn master_link(&self) -> Option<Arc<Link>> {
        let master = self.topology.borrow().master.clone()?;
        let fleet = lock(&self.fleet);
        fleet.get(&master).map(|running| running.link.clone()).filter(|link| link.is_master())
    }

    /// Tells the transport who is master.
    fn roles_changed(&self) {
        let master = self.master_link().map(|link| link.id());
        self.metrics.master_linked.set(i64::from(master.is_some()));
        self.had_master.fetch_or(master.is_some(), Ordering::Relaxed);
        self.with_sender(|sender, now, actions| sender.set_master(now, master, actions));
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

    /// Moves the transport's clock while something waits.
    async fn run_clock(&self) {
        let mut beat = Instant::now();
        let mut look = beat;
        loop {
            let due = self.with_sender(|sender, now, actions| sender.tick(now, actions));
            let now = Instant::now();
            if now >= beat {
                beat = now + HELLO_EVERY;
                let mut actions = Actions::default();
                self.transport.beat(now, &mut actions);
                let (edition, own) = self.keys.own();
                let others = self.transport.compare_keys(edition, &own, &mut actions);
                self.metrics.sessions.show_strange_keys(self.keys.compare(now, &others));
                self.act(actions);
                let (others, longest) = self.transport.safety(now);
                self.metrics.sessions.show_safety(others, longest);
            }
            if now >= look {
                look = now + LOOK_EVERY;
                let mut actions = Actions::default();
                self.transport.look_after_homes(now, &mut actions);
                self.act(actions);
            }
            let next = due.map_or(beat, |due| due.clamp(now + TICK, now + 10 * TICK)).min(look);
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.ticker.notified(), if due.is_none() => {}
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
                    self.with_sender(|sender, now, actions| sender.disturb(now, actions));
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

    /// Somebody here wants a channel, or wants it no longer.
    fn changed(&self, channel: Channel) {
        let links: Vec<_> = lock(&self.fleet).links().map(|(running, _)| running.link.clone()).collect();
        for link in links {
            link.changed(channel);
        }
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
        let here = shared.with_transport(|transport, now, actions| transport.resume(now, client, generation, actions));
        if let Some(resumption) = here {
            return Box::pin(std::future::ready(resumption));
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
        Box::pin(async { resumption.await.unwrap_or(Resumption::Lost) })
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
        // The master's first: it is what everybody waits for.
        let master = topology.master.as_ref().map(Address::to_string);
        let (first, others): (Vec<_>, Vec<_>) = links.iter().partition(|link| Some(&link.address) == master.as_ref());
        let link_problem = first
            .into_iter()
            .chain(others)
            .find_map(|link| Some(format!("Redis {}: {}", link.address, link.reason.as_ref()?)));
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
