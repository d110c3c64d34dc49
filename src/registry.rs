//! Owns who is connected here: client id to outbox. Nothing in it awaits.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use uuid::Uuid;

use crate::outbox::{CloseOrder, Delivery, Outbox};
use crate::transport::envelope::{Place, Tag};
use crate::transport::inbox::{Arrival, Due};
use crate::transport::peers::Peers;

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

    /// Has the session of `receiver` decide about a message (see [`Inbox`](crate::transport::inbox::Inbox)); `None`
    /// when there is no such session here. `make` is called only for a message that is kept, so that a copy costs
    /// neither parsing nor memory.
    pub fn deliver(
        &self,
        receiver: Uuid,
        lane: (Tag, Uuid),
        place: Place,
        is_wanted: impl FnOnce() -> bool,
        make: impl FnOnce() -> Delivery,
        due: &mut Vec<Due>,
    ) -> Option<Arrival> {
        let outbox = self.get(receiver)?;
        outbox.arrive(lane, place, is_wanted, make, due)
    }

    /// Has every session forget the lanes of which nothing is wanted any more.
    pub fn prune(&self, peers: &Peers) {
        for outbox in self.outboxes() {
            outbox.prune(|tag| peers.floor(tag));
        }
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

    /// How many are connected here.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).clients.len()).sum()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn order(&self) -> Option<CloseOrder> {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders everybody to close: who is here, and who comes later.
    pub fn close_all(&self, order: CloseOrder) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        for client in self.clients() {
            self.close(client, order);
        }
    }

    /// For one who waits: resolves when the last session has left, after [`Self::close_all`]. Cancel safe.
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
        let client = self.outbox.client();
        let mut shard = self.registry.shard(client);
        if shard.clients.get(&client).is_some_and(|held| Arc::ptr_eq(held, &self.outbox)) {
            shard.clients.remove(&client);
        }
        if shard.clients.len() * 4 < shard.clients.capacity() {
            shard.clients.shrink_to_fit();
        }
        let may_be_last = shard.clients.is_empty();
        drop(shard);
        if may_be_last && self.registry.order().is_some() && self.registry.is_empty() {
            self.registry.emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::outbox::tests::{delivery, outbox, place};

    fn deliver(registry: &Registry, to: Uuid, number: u64) -> Option<Arrival> {
        registry.deliver(to, (1, Uuid::nil()), place(number), || true, || delivery("x"), &mut Vec::new())
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
            assert_eq!(outbox.take(9).close, Some(CloseOrder::Drain));
        }
        drop(first);
        assert!(!emptied(), "one is still here");
        drop(second);
        assert!(emptied());
        registry.close_all(CloseOrder::Stop);
        let _last = registry.register(late.clone());
        assert_eq!(late.take(9).close, Some(CloseOrder::Stop));
    }

    #[test]
    fn a_copy_is_not_even_made() {
        let registry = Arc::new(Registry::default());
        let outbox = outbox(9, 99);
        let _registration = registry.register(outbox.clone());
        assert_eq!(deliver(&registry, outbox.client(), 1), Some(Arrival::Decided));
        let make = || unreachable!("a copy was made");
        let copy = registry.deliver(outbox.client(), (1, Uuid::nil()), place(1), || true, make, &mut Vec::new());
        assert_eq!(copy, Some(Arrival::Copy));
    }
}
