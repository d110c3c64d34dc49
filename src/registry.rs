//! Owns who is connected here: client id to outbox. Nothing in it awaits.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::outbox::{CloseOrder, Delivery, Outbox};
use crate::transport::envelope::{Channel, Number, Place, Tag};
use crate::transport::inbox::{Arrival, Due};

const SHARDS: usize = 64;

/// The sessions of this node.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    clients: HashMap<Uuid, Arc<Outbox>>,
    /// Sessions whose home is elsewhere, and whose standby is this node.
    copies: HashMap<Uuid, Arc<Outbox>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
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
        Registration { registry: self.clone(), outbox }
    }

    /// Makes the outbox of a session that can be resumed reachable until it is [removed](Self::remove). One that was
    /// there before has to yield: its client has begun anew.
    pub fn keep(&self, outbox: Arc<Outbox>) {
        let before = self.shard(outbox.client()).clients.insert(outbox.client(), outbox);
        if let Some(before) = before {
            before.close(CloseOrder::Moved);
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

    /// Has the session of `receiver` decide about a message (see [`Inbox`](crate::transport::inbox::Inbox)); `None`
    /// when there is no such session here. Its outbox comes back as well if its standby is to have something now. `make` is called only for a message that is kept, so that a copy costs
    /// neither parsing nor memory.
    pub fn deliver(
        &self,
        receiver: Uuid,
        tag: Tag,
        sender: Uuid,
        place: Place,
        make: impl FnOnce() -> Delivery,
        due: &mut Vec<Due>,
    ) -> Option<(Arrival, Option<Arc<Outbox>>)> {
        let outbox = self.get(receiver)?;
        let (arrival, recorded) = outbox.arrive(tag, sender, place, make, due)?;
        Some((arrival, recorded.then_some(outbox)))
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
        owing
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
    use super::*;
    use crate::outbox::tests::{delivery, outbox, place};

    fn deliver(registry: &Registry, to: Uuid, number: u64) -> Option<Arrival> {
        let delivered = registry.deliver(to, 1, Uuid::nil(), place(number), || delivery("x"), &mut Vec::new());
        delivered.map(|(arrival, _)| arrival)
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
    fn a_copy_is_not_even_made() {
        let registry = Arc::new(Registry::default());
        let outbox = outbox(9, 99);
        let _registration = registry.register(outbox.clone());
        assert_eq!(deliver(&registry, outbox.client(), 1), Some(Arrival::Decided));
        let make = || unreachable!("a copy was made");
        let copy = registry.deliver(outbox.client(), 1, Uuid::nil(), place(1), make, &mut Vec::new());
        assert_eq!(copy.map(|(arrival, _)| arrival), Some(Arrival::Copy));
    }
}
