//! Owns the link to one Redis server: two connections, their heartbeats, ROLE, and the replay.
//!
//! One connection publishes, the other is subscribed. Either one lost ends both, and the link starts
//! again, at once the first time and with a growing pause after that.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shared;
use super::connection::{self, ConnectionError};
use super::fleet::Slot;
use super::probe::probe;
use super::publishing::publishing;
use super::role::{Progress, Role};
use super::subscriptions::subscriptions;
use crate::broker::{LinkState, LinkStatus};
use crate::config::Address;
use crate::operate::chronicle::Happening;
use crate::operate::repeats::Repeats;
use crate::tls::reasons::Peer;
use crate::transport::envelope::Channel;
use crate::transport::sender::LinkId;

/// A link that has held for so long may start anew at once.
const HELD: Duration = Duration::from_secs(5);

/// One server's link: the part of it that others may look at.
#[derive(Debug)]
pub struct Link {
    /// Its number and its server.
    slot: Slot,
    state: Mutex<State>,
    /// Channels that may be wanted, or not any more; the registry knows.
    dirty: Mutex<HashSet<Channel>>,
    pub(super) dirty_wake: Notify,
    repeats: Mutex<Repeats>,
    /// Whether the log has said that it is lost, and so shall say that it is back.
    said_lost: AtomicBool,
}

#[derive(Debug)]
struct State {
    stage: LinkState,
    role: Option<Role>,
    progress: Progress,
    reason: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // No state is left half-changed by the code that holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// A link that is not connected yet.
    pub fn new(slot: Slot) -> Self {
        let state = State { stage: LinkState::Connecting, role: None, progress: Progress::default(), reason: None };
        Self {
            slot,
            state: Mutex::new(state),
            dirty: Mutex::default(),
            dirty_wake: Notify::new(),
            repeats: Mutex::default(),
            said_lost: AtomicBool::new(true),
        }
    }

    /// Its number.
    pub fn id(&self) -> LinkId {
        self.slot.id
    }

    /// The server.
    pub fn address(&self) -> &Address {
        &self.slot.address
    }

    /// Somebody wants `channel`, or wants it no more.
    pub fn changed(&self, channel: Channel) {
        if lock(&self.state).stage != LinkState::Connecting {
            lock(&self.dirty).insert(channel);
            self.dirty_wake.notify_one();
        }
    }

    /// Where the link stands.
    pub fn stage(&self) -> LinkState {
        lock(&self.state).stage
    }

    /// Whether the server calls itself master, and the link can publish to it.
    pub fn is_master(&self) -> bool {
        lock(&self.state).role == Some(Role::Master)
    }

    /// For operators.
    pub fn status(&self, expected: bool) -> LinkStatus {
        let state = lock(&self.state);
        LinkStatus {
            address: self.address().to_string(),
            state: state.stage,
            role: state.role.as_ref().map(|role| match role {
                Role::Master => "master",
                Role::Replica { .. } => "replica",
            }),
            expected,
            reason: state.reason.clone(),
        }
    }

    /// What the server has said of itself last, and how far it is.
    pub(super) fn said(&self) -> (Option<Role>, Progress) {
        let state = lock(&self.state);
        (state.role.clone(), state.progress)
    }

    /// It was asked at `asked`, and is so far now.
    pub(super) fn note_progress(&self, asked: Instant, offset: Option<u64>) {
        lock(&self.state).progress.note(asked, Instant::now(), offset);
    }

    /// Keeps the link up until `cancel`.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>, cancel: CancellationToken) {
        let mut backoff = self.slot.backoff();
        let mut refused = false;
        loop {
            if cancel.run_until_cancelled(self.slot.pause(&mut backoff, refused)).await.is_none() {
                break;
            }
            let began = Instant::now();
            let attempt = Attempt { link: &self, shared: &shared };
            let mut subscribing = JoinSet::new();
            let ended = cancel.run_until_cancelled(attempt.run(&mut subscribing)).await;
            // It may be in the middle of a poll on another thread: nothing of this link must happen after its end.
            subscribing.shutdown().await;
            let was = self.note_loss(&shared, ended.as_ref());
            shared.link_lost(&self, was);
            let Some(reason) = ended else { break };
            refused = reason.is_refusal();
            if began.elapsed() >= HELD {
                backoff.reset();
            }
        }
        shared.metrics.forget_server(self.address());
    }

    /// Whether the log is to say that the link is synced: at first, and when it has said that it was lost.
    pub(super) fn is_news_that_synced(&self) -> bool {
        self.said_lost.swap(false, Ordering::Relaxed)
    }

    /// Resets the state, returns what it was, and says so in the log: once, and then ever more seldom for the same reason.
    fn note_loss(&self, shared: &Shared, reason: Option<&ConnectionError>) -> LinkState {
        let mut state = lock(&self.state);
        let was = state.stage;
        *state = State {
            stage: LinkState::Connecting,
            role: None,
            progress: Progress::default(),
            reason: reason.map(|reason| self.slot.explain(reason)),
        };
        drop(state);
        self.show(shared, LinkState::Connecting);
        let Some(failure) = reason else { return was };
        let address = self.address().to_string();
        let reason = self.slot.explain(failure);
        shared.metrics.link_failures.with_label_values(&[&address]).inc();
        if let ConnectionError::Tls(reason) = failure {
            shared.metrics.tls.server_failed(Peer::Redis, reason);
        }
        if let Some(again) = lock(&self.repeats).note(Instant::now(), &reason) {
            warn!(%address, was = was.name(), %reason, "link to Redis lost, connecting again{again}");
            shared.chronicle.note(&Happening::LinkLost { address, reason });
            self.said_lost.store(true, Ordering::Relaxed);
        }
        was
    }

    fn show(&self, shared: &Shared, stage: LinkState) {
        let gauge = shared.metrics.link_state.with_label_values(&[self.address().to_string().as_str()]);
        gauge.set(match stage {
            LinkState::Connecting => 0,
            LinkState::Replaying => 1,
            LinkState::Synced => 2,
        });
    }

    pub(super) fn set_stage(&self, shared: &Shared, stage: LinkState) {
        let mut state = lock(&self.state);
        state.stage = stage;
        state.reason = None;
        drop(state);
        self.show(shared, stage);
    }

    /// Takes up what the server says of itself; `true` if that is new.
    pub(super) fn set_role(&self, role: Role) -> bool {
        let mut state = lock(&self.state);
        let new = state.role.as_ref() != Some(&role);
        if new && state.role.is_some() {
            info!(address = %self.address(), %role, "the role of a Redis changed");
        }
        state.role = Some(role);
        new
    }

    /// The server did not do what is wished of these; nobody is woken for that.
    pub(super) fn still_due(&self, channels: Vec<Channel>) {
        lock(&self.dirty).extend(channels);
    }

    pub(super) fn take_dirty(&self, most: usize) -> Vec<Channel> {
        let mut dirty = lock(&self.dirty);
        if dirty.len() <= most {
            return dirty.drain().collect();
        }
        let some: Vec<_> = dirty.iter().take(most).copied().collect();
        for channel in &some {
            dirty.remove(channel);
        }
        some
    }
}

/// The task of the subscribed half. Whoever ran the attempt waits for its end, also when the attempt is cancelled.
type Subscribing = JoinSet<Result<Infallible, ConnectionError>>;

/// One try at being connected, from the first SYN to the last byte.
struct Attempt<'a> {
    link: &'a Arc<Link>,
    shared: &'a Arc<Shared>,
}

impl Attempt<'_> {
    /// Runs until something fails, and says what.
    async fn run(&self, subscribing: &mut Subscribing) -> ConnectionError {
        match self.run_inner(subscribing).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        }
    }

    async fn run_inner(&self, subscribing: &mut Subscribing) -> Result<Infallible, ConnectionError> {
        let (link, shared) = (self.link, self.shared);
        let limit = shared.config.heartbeat_timeout;
        let config = &shared.config;
        let open =
            || connection::open(link.address(), &config.connector, &config.credentials, &shared.client_name, limit);
        let (mut publisher, mut subscriber) = tokio::try_join!(open(), open())?;
        let role = probe(&mut publisher, &mut subscriber, &shared.config.credentials, limit).await?;
        link.slot.note_answer();
        link.set_role(role);
        lock(&link.dirty).clear();
        link.set_stage(shared, LinkState::Replaying);
        shared.link_up(link);

        let task = subscriptions(link.clone(), shared.clone(), subscriber.0, subscriber.1);
        shared.tasks.note("subscriptions", subscribing.spawn(task));
        tokio::select! {
            ended = publishing(link, shared, &mut publisher.0, &mut publisher.1) => ended,
            ended = subscribing.join_next() => match ended {
                Some(Ok(ended)) => ended,
                // The task was aborted or panicked: the link can't go on either way.
                Some(Err(_)) | None => Err(ConnectionError::Closed),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use texto_lab::process::until;
    use texto_lab::redis_server::RedisServer;

    use super::*;

    use crate::broker::redis::fleet::Fleet;
    use crate::broker::redis::{RedisBroker, Sessions};
    use crate::config::Limits;
    use crate::config::{RedisConfig, TopologyConfig};
    use crate::operate::metrics::Metrics;
    use crate::operate::tasks::Tasks;
    use crate::resume::windows::Windows;
    use crate::sentinel::Topology;
    use crate::tls::connector::Connector;
    use crate::tls::reasons::Peer;

    /// Whoever holds the link holds its number.
    #[tokio::test]
    async fn a_link_that_is_cancelled_ends_after_all_of_its_tasks() {
        let folder = tempfile::TempDir::new().unwrap();
        let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
        let address: Address = redis.address().parse().unwrap();
        let config = RedisConfig {
            topology: TopologyConfig::Fixed(address.clone()),
            credentials: Default::default(),
            connector: Connector::plain(Peer::Redis),
            standby_subscriptions: true,
            heartbeat_timeout: Duration::from_secs(1),
            send_timeout: Duration::from_secs(5),
        };
        let tasks = Tasks::default();
        tasks.end().cancel(); // The only link is the one made here.
        let (limits, metrics) = (Limits::small(9, 99), Arc::new(Metrics::new("test").unwrap()));
        let sessions = Sessions {
            registry: Arc::default(),
            windows: Arc::new(Windows::new(limits.resume_window, 1, metrics.clone())),
            budget: crate::outbox::tests::unbounded(),
            limits,
            keys: crate::resume::keys::Keys::own().unwrap(),
        };
        let broker = RedisBroker::start(&config, "test", sessions, metrics, &tasks);
        let mut made = None;
        let topology = Topology { master: Some(address), ..Topology::default() };
        Fleet::new(true, None).apply(
            Instant::now(),
            &topology,
            |()| LinkState::Connecting,
            |slot| made = Some(Arc::new(Link::new(slot))),
        );
        let link = made.unwrap();
        let held = Arc::downgrade(&link);
        let cancel = CancellationToken::new();
        let run = link.run(broker.shared.clone(), cancel.clone());
        tokio::pin!(run);
        let synced = until("it is synced", Duration::from_secs(10), async || {
            (held.upgrade()?.stage() == LinkState::Synced).then_some(())
        });
        tokio::select! {
            () = &mut run => panic!("it ended"),
            synced = synced => synced.unwrap(),
        }
        cancel.cancel();
        tokio::time::timeout(Duration::from_secs(10), run).await.unwrap();
        assert_eq!(held.strong_count(), 0, "a task of it is still there");
    }
}
