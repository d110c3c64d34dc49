//! Owns who is connected here: client id to outbox. Nothing in it awaits.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use uuid::Uuid;

use crate::census::Census;
use crate::outbox::{CloseOrder, Outbox};
use crate::transport::envelope::{Channel, Number, Tag};

const SHARDS: usize = 64;

/// The sessions of this node.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    /// What everybody is told who is here, or comes.
    order: Mutex<Option<CloseOrder>>,
    /// Nobody is here any more, since that order.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Shard {
    clients: HashMap<Uuid, Arc<Outbox>>,
    /// Sessions whose home is elsewhere, and whose standby is this node.
    copies: HashMap<Uuid, Arc<Outbox>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            order: Mutex::default(),
            emptied: Notify::new(),
        }
    }
}

impl Registry {
    fn shard(&self, client: Uuid) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(client) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `outbox` reachable until the registration is dropped.
    pub fn register(self: &Arc<Self>, outbox: Arc<Outbox>) -> Registration {
        let client = outbox.client();
        self.shard(client).clients.insert(client, outbox.clone());
        // Whoever gives the order later finds it there.
        if let Some(order) = self.order() {
            outbox.close(order);
        }
        Registration { registry: self.clone(), outbox }
    }

    /// Makes the outbox of a session that can be resumed reachable until it is [removed](Self::remove). One that was
    /// there before has to yield: its client has begun anew.
    pub fn keep(&self, outbox: Arc<Outbox>) {
        let before = self.shard(outbox.client()).clients.insert(outbox.client(), outbox.clone());
        if let Some(before) = before {
            before.close(CloseOrder::Moved);
        }
        if let Some(order) = self.order() {
            outbox.close(order);
        }
    }

    /// The same, over again: exactly this one is not reachable any more.
    pub fn remove(&self, outbox: &Arc<Outbox>) {
        let client = outbox.client();
        let mut shard = self.shard(client);
        if shard.clients.get(&client).is_some_and(|held| Arc::ptr_eq(held, outbox)) {
            shard.clients.remove(&client);
        }
        if shard.clients.len() * 4 < shard.clients.capacity() {
            shard.clients.shrink_to_fit();
        }
        let may_be_last = shard.clients.is_empty();
        drop(shard);
        if may_be_last && self.order().is_some() && self.is_idle() {
            self.emptied.notify_one();
        }
    }

    /// This node is the standby of a session.
    pub fn keep_copy(&self, outbox: Arc<Outbox>) {
        self.shard(outbox.client()).copies.insert(outbox.client(), outbox);
    }

    /// What this node has as a session's standby.
    pub fn copy(&self, client: Uuid) -> Option<Arc<Outbox>> {
        self.shard(client).copies.get(&client).cloned()
    }

    /// The same, not any more.
    pub fn remove_copy(&self, client: Uuid) -> Option<Arc<Outbox>> {
        let mut shard = self.shard(client);
        let copy = shard.copies.remove(&client);
        if shard.copies.len() * 4 < shard.copies.capacity() {
            shard.copies.shrink_to_fit();
        }
        copy
    }

    /// Has every session forget the lanes of which nothing is wanted any more, and what came longer ago than `window`.
    /// Returns those that have something to tell their standbys.
    pub fn prune(&self, now: Instant, window: Duration, floor: impl Fn(Tag) -> Option<Number>) -> Vec<Arc<Outbox>> {
        let mut owing = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let all: Vec<_> = shard.clients.values().chain(shard.copies.values()).cloned().collect();
            drop(shard);
            for outbox in all {
                if outbox.prune(now, window, &floor) {
                    owing.push(outbox);
                }
            }
        }
        owing.sort_unstable_by_key(|outbox| outbox.client());
        owing
    }

    /// How the sessions here that can be resumed are, and the copies of others'.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let (clients, copies): (Vec<_>, Vec<_>) =
                (shard.clients.values().cloned().collect(), shard.copies.values().cloned().collect());
            drop(shard);
            clients.iter().filter_map(|outbox| outbox.condition()).for_each(|condition| census.add(condition));
            copies.iter().filter_map(|outbox| outbox.condition()).for_each(|condition| census.add_copy(condition));
        }
        census
    }

    /// The outboxes of everyone who is connected here.
    pub fn outboxes(&self) -> Vec<Arc<Outbox>> {
        let mut outboxes = Vec::new();
        for shard in &self.shards {
            outboxes.extend(shard.lock().unwrap_or_else(PoisonError::into_inner).clients.values().cloned());
        }
        outboxes
    }

    /// The outbox of `client`, if it is connected here.
    pub fn get(&self, client: Uuid) -> Option<Arc<Outbox>> {
        self.shard(client).clients.get(&client).cloned()
    }

    /// Everyone who is connected here.
    pub fn clients(&self) -> Vec<Uuid> {
        let mut clients = Vec::new();
        for shard in &self.shards {
            clients.extend(shard.lock().unwrap_or_else(PoisonError::into_inner).clients.keys());
        }
        clients
    }

    /// The channels that this node wants to hear for its sessions.
    pub fn channels(&self) -> Vec<Channel> {
        let mut channels = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (client, outbox) in &shard.clients {
                channels.push(Channel::Client(*client));
                if outbox.is_resumable() {
                    channels.push(Channel::Claim(*client));
                }
            }
            channels.extend(shard.copies.keys().map(|client| Channel::Claim(*client)));
        }
        channels
    }

    /// Whether `channel` is one of those.
    pub fn wants(&self, channel: Channel) -> bool {
        match channel {
            Channel::Client(client) => self.shard(client).clients.contains_key(&client),
            Channel::Claim(client) => {
                let shard = self.shard(client);
                shard.copies.contains_key(&client)
                    || shard.clients.get(&client).is_some_and(|outbox| outbox.is_resumable())
            }
            Channel::Node(_) | Channel::Nodes => false,
        }
    }

    /// Everyone here whose session can be resumed.
    pub fn resumable(&self) -> Vec<Uuid> {
        let resumable = |outbox: &Arc<Outbox>| outbox.is_resumable().then(|| outbox.client());
        self.outboxes().iter().filter_map(resumable).collect()
    }

    /// How many are connected here.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).clients.len()).sum()
    }

    /// Whether nobody has a connection here.
    pub fn is_idle(&self) -> bool {
        self.outboxes().iter().all(|outbox| outbox.detached_since().is_some())
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn order(&self) -> Option<CloseOrder> {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders everybody to close who comes from now on.
    pub fn order_newcomers(&self, order: CloseOrder) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
    }

    /// Orders everybody to close: who is here, and who comes later.
    pub fn close_all(&self, order: CloseOrder) {
        self.order_newcomers(order);
        for client in self.clients() {
            self.close(client, order);
        }
    }

    /// For one who waits: resolves when the last connection has ended, after [`Self::order_newcomers`]. Cancel safe.
    pub fn emptied(&self) -> Notified<'_> {
        self.emptied.notified()
    }

    /// Orders one session to close.
    pub fn close(&self, client: Uuid, order: CloseOrder) {
        if let Some(outbox) = self.get(client) {
            outbox.close(order);
        }
    }
}

/// A session's entry; dropping it removes exactly this one.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    outbox: Arc<Outbox>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.remove(&self.outbox);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::outbox::tests::{delivery, outbox, place};
    use crate::transport::inbox::Arrival;

    fn deliver(registry: &Registry, to: Uuid, number: u64) -> Option<Arrival> {
        let outbox = registry.get(to)?;
        let arrived = outbox.arrive((1, Uuid::nil()), place(number), || true, || delivery("x"), &mut Vec::new());
        arrived.map(|(arrival, _)| arrival)
    }

    #[test]
    fn a_registration_ends_with_its_drop_and_only_its_own() {
        let registry = Arc::new(Registry::default());
        let outbox = outbox(9, 99);
        let client = outbox.client();
        let first = registry.register(outbox.clone());
        assert_eq!(deliver(&registry, client, 1), Some(Arrival::Decided));
        let successor = registry.register(Arc::new(Outbox::new(
            client,
            &crate::config::Limits::small(9, 99),
            &crate::outbox::tests::unbounded(),
        )));
        drop(first);
        assert_eq!(registry.clients(), [client], "a late old session must not evict its successor");
        drop(successor);
        assert!(registry.is_empty());
        assert_eq!(deliver(&registry, client, 2), None);
    }

    #[test]
    fn an_order_to_all_reaches_those_who_come_later_and_the_last_one_who_leaves_is_noticed() {
        let registry = Arc::new(Registry::default());
        let (here, late) = (outbox(9, 99), outbox(9, 99));
        let first = registry.register(here.clone());
        drop(registry.register(outbox(9, 99)));
        let emptied = || registry.emptied().now_or_never().is_some();
        assert!(!emptied());
        registry.close_all(CloseOrder::Drain);
        let second = registry.register(late.clone());
        for outbox in [&here, &late] {
            assert_eq!(outbox.take(0, 9).close, Some(CloseOrder::Drain));
        }
        drop(first);
        assert!(!emptied(), "one is still here");
        drop(second);
        assert!(emptied());
        registry.close_all(CloseOrder::Stop);
        let _last = registry.register(late.clone());
        assert_eq!(late.take(0, 9).close, Some(CloseOrder::Stop));
    }
}
