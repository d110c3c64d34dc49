//! Owns the link to one Redis server: two connections, their heartbeats, ROLE, and the replay.
//!
//! One connection publishes, the other is subscribed. Either one lost ends both, and the link starts
//! again, at once the first time and with a growing pause after that.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::connection::{self, ConnectionError, Reader, Reply, Role, Writer, pack, pack_publish};
use super::fleet::Slot;
use super::publisher::{LinkId, Outgoing};
use super::{Shared, envelope};
use crate::backoff::Backoff;
use crate::broker::{LinkState, LinkStatus};
use crate::config::Address;
use crate::outbox::Delivery;
use crate::registry::Delivered;

/// Channels in one SUBSCRIBE, and unconfirmed at a time.
const REPLAY_BATCH: usize = 1000;
/// After connecting, late copies may come for this long: from a server's backlog, or from what waited in
/// the sockets of one that hung.
const BACKLOG_SUSPICION: Duration = Duration::from_secs(10);

/// One server's link: the part of it that others may look at.
#[derive(Debug)]
pub struct Link {
    /// Its number and its server.
    slot: Slot,
    state: Mutex<State>,
    /// Clients whose wish to be subscribed may have changed; the registry knows what they wish.
    dirty: Mutex<HashSet<Uuid>>,
    dirty_wake: Notify,
}

#[derive(Debug)]
struct State {
    stage: LinkState,
    role: Option<Role>,
    reason: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // No state is left half-changed by the code that holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// A link that is not connected yet.
    pub fn new(slot: Slot) -> Self {
        let state = State { stage: LinkState::Connecting, role: None, reason: None };
        Self { slot, state: Mutex::new(state), dirty: Mutex::default(), dirty_wake: Notify::new() }
    }

    /// Its place in the publisher.
    pub fn id(&self) -> LinkId {
        self.slot.id
    }

    /// The server.
    pub fn address(&self) -> &Address {
        &self.slot.address
    }

    /// `client` came or went.
    pub fn changed(&self, client: Uuid) {
        if lock(&self.state).stage != LinkState::Connecting {
            lock(&self.dirty).insert(client);
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
            address: self.slot.address.to_string(),
            state: state.stage,
            role: state.role.as_ref().map(|role| match role {
                Role::Master => "master",
                Role::Replica { .. } => "replica",
            }),
            expected,
            reason: state.reason.clone(),
        }
    }

    /// Keeps the link up until `cancel`.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>, cancel: CancellationToken) {
        let mut backoff = self.slot.backoff();
        while !cancel.is_cancelled() {
            if cancel.run_until_cancelled(self.slot.pause(&mut backoff)).await.is_none() {
                break;
            }
            let attempt = Attempt { link: &self, shared: &shared };
            let ended = cancel.run_until_cancelled(attempt.run(&mut backoff)).await;
            let was = self.note_loss(&shared, ended.as_ref());
            shared.link_lost(&self, was.is_some_and(|was| was != LinkState::Connecting));
            let address = self.slot.address.to_string();
            match ended {
                Some(reason) => {
                    shared.metrics.link_failures.with_label_values(&[&address]).inc();
                    if let Some(was) = was {
                        let reason = self.slot.explain(&reason);
                        warn!(%address, ?was, %reason, "link to Redis lost, connecting again");
                    }
                }
                None => break,
            }
        }
        shared.metrics.forget_server(&self.slot.address);
    }

    /// Resets the state; returns what it was if that is worth a line in the log: once for each loss,
    /// and once for each new reason.
    fn note_loss(&self, shared: &Shared, reason: Option<&ConnectionError>) -> Option<LinkState> {
        let mut state = lock(&self.state);
        let reason = reason.map(|reason| self.slot.explain(reason));
        let news = state.stage != LinkState::Connecting || state.reason != reason;
        let was = state.stage;
        *state = State { stage: LinkState::Connecting, role: None, reason };
        drop(state);
        self.show(shared, LinkState::Connecting);
        news.then_some(was)
    }

    fn show(&self, shared: &Shared, stage: LinkState) {
        let gauge = shared.metrics.link_state.with_label_values(&[self.slot.address.to_string().as_str()]);
        gauge.set(match stage {
            LinkState::Connecting => 0,
            LinkState::Replaying => 1,
            LinkState::Synced => 2,
        });
    }

    fn set_stage(&self, shared: &Shared, stage: LinkState) {
        let mut state = lock(&self.state);
        state.stage = stage;
        state.reason = None;
        drop(state);
        self.show(shared, stage);
    }

    /// Takes up what the server says of itself; `true` if that is new.
    fn set_role(&self, role: Role) -> bool {
        let mut state = lock(&self.state);
        let new = state.role.as_ref() != Some(&role);
        if new && state.role.is_some() {
            info!(address = %self.slot.address, ?role, "the role of a Redis changed");
        }
        state.role = Some(role);
        new
    }

    fn take_dirty(&self, most: usize) -> Vec<Uuid> {
        let mut dirty = lock(&self.dirty);
        if dirty.len() <= most {
            return dirty.drain().collect();
        }
        let some: Vec<_> = dirty.iter().take(most).copied().collect();
        for client in &some {
            dirty.remove(client);
        }
        some
    }
}

/// One try at being connected, from the first SYN to the last byte.
struct Attempt<'a> {
    link: &'a Arc<Link>,
    shared: &'a Arc<Shared>,
}

impl Attempt<'_> {
    /// Runs until something fails, and says what.
    async fn run(&self, backoff: &mut Backoff) -> ConnectionError {
        match self.run_inner(backoff).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        }
    }

    async fn run_inner(&self, backoff: &mut Backoff) -> Result<std::convert::Infallible, ConnectionError> {
        let (link, shared) = (self.link, self.shared);
        let limit = shared.config.heartbeat_timeout;
        let open = || connection::open(&link.slot.address, &shared.config.credentials, &shared.client_name, limit);
        let ((mut reader, mut writer), (sub_reader, sub_writer)) = tokio::try_join!(open(), open())?;

        let mut ask = Vec::new();
        pack(&mut ask, &[b"ROLE"]);
        writer.write(&ask).await?;
        let role = {
            let reply = timeout(limit, reader.next()).await.map_err(|_| ConnectionError::Silent(limit))??;
            connection::role(&reply)?
        };
        link.set_role(role);
        link.slot.note_answer();
        lock(&link.dirty).clear();
        link.set_stage(shared, LinkState::Replaying);
        shared.link_up(link);

        let synced = Arc::new(Notify::new());
        let mut subscriber = JoinSet::new();
        let task = subscriptions(link.clone(), shared.clone(), synced.clone(), sub_reader, sub_writer);
        shared.tasks.note("subscriptions", subscriber.spawn(task));
        let publish = self.publishing(&mut reader, &mut writer);
        tokio::pin!(publish);
        loop {
            tokio::select! {
                ended = &mut publish => return ended,
                ended = subscriber.join_next() => return match ended {
                    Some(Ok(Err(reason))) => Err(reason),
                    Some(Ok(Ok(never))) => match never {},
                    // The task was aborted or panicked: the link can't go on either way.
                    Some(Err(_)) | None => Err(ConnectionError::Closed),
                },
                () = synced.notified() => backoff.reset(),
            }
        }
    }

    /// Sends batch after batch, one under way at a time, and asks for ROLE in between. The answer to
    /// ROLE is the heartbeat as well.
    async fn publishing(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
    ) -> Result<std::convert::Infallible, ConnectionError> {
        let (link, shared) = (self.link, self.shared);
        let limit = shared.config.heartbeat_timeout;
        let heartbeat = shared.metrics.heartbeat.with_label_values(&[link.slot.address.to_string().as_str()]);
        let wake = &shared.wakes[link.slot.id];
        let mut beat = interval(limit / 4);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = Vec::new();
        let mut receivers = Vec::new();
        loop {
            let batch = shared.next_batch(link.slot.id);
            let ask_role = if batch.is_empty() {
                tokio::select! {
                    () = wake.notified() => continue,
                    _ = beat.tick() => true,
                    // Nothing is due: whatever comes is the end, noticed at once.
                    result = reader.fill() => { result?; return Err(ConnectionError::Protocol) }
                }
            } else {
                // Under load the wait above is never reached; ROLE must be asked all the same.
                std::future::poll_fn(|cx| std::task::Poll::Ready(beat.poll_tick(cx).is_ready())).await
            };
            commands.clear();
            for Outgoing { receiver, after, since, payload } in &batch {
                let prefix = envelope::prefix(*after, shared.stamp_ms(*since));
                pack_publish(&mut commands, &envelope::channel(*receiver), &[&prefix, payload]);
            }
            if ask_role {
                pack(&mut commands, &[b"ROLE"]);
            }
            let began = Instant::now();
            writer.write(&commands).await?;
            receivers.clear();
            let mut result = Ok(());
            while receivers.len() < batch.len() {
                match timeout(limit, reader.next()).await {
                    Err(_) => result = Err(ConnectionError::Silent(limit)),
                    Ok(Err(reason)) => result = Err(reason),
                    Ok(Ok(reply)) => match connection::receivers(&reply) {
                        Ok(count) => receivers.push(count),
                        Err(reason) => result = Err(reason),
                    },
                }
                if result.is_err() {
                    break;
                }
            }
            if !batch.is_empty() {
                shared.metrics.publish_duration.observe(began.elapsed().as_secs_f64());
                shared.answered(link.slot.id, &receivers);
            }
            result?;
            if ask_role {
                let reply = timeout(limit, reader.next()).await.map_err(|_| ConnectionError::Silent(limit))??;
                let role = connection::role(&reply)?;
                heartbeat.observe(began.elapsed().as_secs_f64());
                // It lives: what was kept from it while it was silent may go to it again.
                shared.answered(link.slot.id, &[]);
                if link.set_role(role) {
                    shared.roles_changed();
                }
            }
            if commands.capacity() > 1024 * 1024 {
                commands = Vec::new();
            }
        }
    }
}

/// Keeps the subscriptions as the registry wants them, hands arriving messages to it, and demands a
/// sign of life within the heartbeat's timeout.
async fn subscriptions(
    link: Arc<Link>,
    shared: Arc<Shared>,
    synced_signal: Arc<Notify>,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<std::convert::Infallible, ConnectionError> {
    let limit = shared.config.heartbeat_timeout;
    let began = Instant::now();
    let mut replay: VecDeque<Uuid> = shared.registry.clients().into();
    let channels = replay.len();
    let mut synced = false;
    let mut unconfirmed = 0_usize;
    let mut heard = Instant::now();
    let mut last_beat = heard;
    let mut pinged = None;
    let mut beat = interval(limit / 4);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut commands = Vec::new();
    loop {
        while let Some(reply) = reader.buffered()? {
            match reply {
                Reply::Message { channel, payload } => receive(&shared, began, channel, payload),
                Reply::Push(parts) => {
                    unconfirmed = unconfirmed.saturating_sub(1);
                    let confirmed = parts.first().and_then(Reply::text) == Some(b"subscribe");
                    if let Some(channel) = parts.get(1).and_then(Reply::text).filter(|_| confirmed) {
                        shared.confirmed(&link, channel);
                    }
                }
                Reply::Error(text) => {
                    return Err(connection::receivers(&Reply::Error(text)).err().unwrap_or(ConnectionError::Protocol));
                }
                _ => {
                    if let Some(sent) = pinged.take() {
                        let trip = Instant::now().saturating_duration_since(sent);
                        let address = link.slot.address.to_string();
                        shared.metrics.heartbeat.with_label_values(&[&address]).observe(trip.as_secs_f64());
                    }
                }
            }
        }
        commands.clear();
        if unconfirmed < REPLAY_BATCH {
            let (join, leave) = if replay.is_empty() {
                link.take_dirty(REPLAY_BATCH).into_iter().partition(|client| shared.registry.get(*client).is_some())
            } else {
                let count = replay.len().min(REPLAY_BATCH);
                (replay.drain(..count).collect::<Vec<_>>(), Vec::new())
            };
            unconfirmed += join.len() + leave.len();
            pack_channels(&mut commands, b"SUBSCRIBE", &join);
            pack_channels(&mut commands, b"UNSUBSCRIBE", &leave);
        }
        if !commands.is_empty() {
            writer.write(&commands).await?;
        } else if !synced && replay.is_empty() && unconfirmed == 0 {
            synced = true;
            link.set_stage(&shared, LinkState::Synced);
            shared.link_synced(&link, channels, began.elapsed());
            synced_signal.notify_one();
        }
        let woke = tokio::select! {
            biased;
            result = reader.fill() => Woke::Read(result),
            () = link.dirty_wake.notified() => Woke::Dirty,
            _ = beat.tick() => Woke::Beat,
        };
        let now = Instant::now();
        match woke {
            Woke::Read(result) => {
                result?;
                heard = now;
                continue;
            }
            Woke::Dirty => continue,
            Woke::Beat => {}
        }
        if now.saturating_duration_since(last_beat) > limit / 2 {
            heard = now; // This process stood still; it has no right to complain.
        }
        last_beat = now;
        if now.saturating_duration_since(heard) >= limit {
            return Err(ConnectionError::Silent(limit));
        }
        if pinged.is_none() {
            commands.clear();
            pack(&mut commands, &[b"PING"]);
            writer.write(&commands).await?;
            pinged = Some(now);
        }
    }
}

enum Woke {
    Read(Result<(), ConnectionError>),
    Dirty,
    Beat,
}

fn pack_channels(commands: &mut Vec<u8>, command: &[u8], clients: &[Uuid]) {
    if clients.is_empty() {
        return;
    }
    let channels: Vec<_> = clients.iter().map(|client| envelope::channel(*client)).collect();
    let mut arguments: Vec<&[u8]> = Vec::with_capacity(clients.len() + 1);
    arguments.push(command);
    arguments.extend(channels.iter().map(|channel| channel.as_slice()));
    pack(commands, &arguments);
}

/// Hands a message to its session, unless it is a copy.
fn receive(shared: &Shared, connected: Instant, channel: &[u8], payload: &[u8]) {
    let now = Instant::now();
    let deliveries = &shared.metrics.deliveries;
    let (Some(receiver), Some(envelope)) = (envelope::client(channel), envelope::decode(payload)) else {
        deliveries.malformed.inc();
        return;
    };
    let backlog = now.saturating_duration_since(connected) < BACKLOG_SUSPICION;
    if backlog && shared.age(now, &envelope) > shared.config.send_timeout {
        // Its sender has its answer by now: an error, or an `ack` for a copy that came in time.
        deliveries.late.inc();
        return;
    }
    let make =
        || Delivery { id: envelope.id, sender: envelope.sender, text: String::from_utf8_lossy(envelope.text).into() };
    let delivered = shared.registry.deliver(now, receiver, envelope.id, envelope.after, make);
    if delivered == Delivered::Taken && !backlog {
        shared.learn_age(now, &envelope);
    }
    deliveries.count(delivered);
}
