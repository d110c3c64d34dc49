//! Owns who is connected here: client id to outbox, and which messages they already have.
//!
//! Nothing in it awaits. A message is recognised as a copy and put into its outbox under one lock,
//! so that copies which race over several links can't overtake one another.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::outbox::{CloseOrder, Delivery, Outbox, Pushed};

const SHARDS: usize = 64;

/// How long a message's id is remembered, at least, unless too many (16,384 in a shard) follow it sooner.
/// Copies that are older are recognised by their age instead (see `broker::redis::envelope`).
pub const DEDUPE_WINDOW: Duration = Duration::from_secs(30);

/// Ids that a shard remembers in each of two generations: 64 × 16,384 × 2 ids of 16 bytes at most.
const REMEMBERED: usize = 16_384;

/// What became of a message that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// It is in the outbox.
    Taken,
    /// It had arrived before.
    Duplicate,
    /// No such client here.
    Absent,
    /// The receiver reads too slowly and is being closed.
    Overflow,
}

/// The sessions of this node.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    clients: HashMap<Uuid, Arc<Outbox>>,
    seen: Seen,
}

/// The ids of recent messages, in two generations, so that forgetting costs nothing.
#[derive(Debug, Default)]
struct Seen {
    young: HashSet<Uuid>,
    old: HashSet<Uuid>,
    since: Option<Instant>,
}

impl Seen {
    fn contains(&self, id: &Uuid) -> bool {
        self.young.contains(id) || self.old.contains(id)
    }

    /// Whether `id` is new; it is remembered from now on.
    fn insert(&mut self, now: Instant, id: Uuid) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) > DEDUPE_WINDOW || self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        !self.old.contains(&id) && self.young.insert(id)
    }
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

    /// Puts a message into the outbox of `receiver`, unless it is a copy; it waits there for `after` (if
    /// not nil), should that not have come yet. `make` is called only for a message that will be kept, so
    /// that a copy costs neither parsing nor memory.
    pub fn deliver(
        &self,
        now: Instant,
        receiver: Uuid,
        id: Uuid,
        after: Uuid,
        make: impl FnOnce() -> Delivery,
    ) -> Delivered {
        let mut shard = self.shard(receiver);
        let Shard { clients, seen } = &mut *shard;
        let Some(outbox) = clients.get(&receiver) else {
            return Delivered::Absent;
        };
        if !seen.insert(now, id) {
            return Delivered::Duplicate;
        }
        let missing = !after.is_nil() && !seen.contains(&after);
        match outbox.push(now, make(), after, missing) {
            Pushed::Taken => Delivered::Taken,
            Pushed::Refused => Delivered::Overflow,
        }
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::{delivery, outbox};
    use proptest::prelude::*;

    fn deliver(registry: &Registry, now: Instant, to: Uuid, id: u128) -> Delivered {
        let id = Uuid::from_u128(id);
        registry.deliver(now, to, id, Uuid::nil(), || Delivery { id, sender: Uuid::nil(), text: "x".into() })
    }

    #[test]
    fn a_registration_ends_with_its_drop_and_only_its_own() {
        let registry = Arc::new(Registry::default());
        let outbox = outbox(9, 99);
        let client = outbox.client();
        let first = registry.register(outbox.clone());
        assert_eq!(deliver(&registry, Instant::now(), client, 1), Delivered::Taken);
        let successor = registry.register(Arc::new(Outbox::new(client, &crate::config::Limits::small(9, 99))));
        drop(first);
        assert_eq!(registry.clients(), [client], "a late old session must not evict its successor");
        drop(successor);
        assert!(registry.is_empty());
        assert_eq!(deliver(&registry, Instant::now(), client, 2), Delivered::Absent);
    }

    #[test]
    fn a_copy_is_not_even_made() {
        let registry = Arc::new(Registry::default());
        let outbox = outbox(9, 99);
        let _registration = registry.register(outbox.clone());
        let now = Instant::now();
        assert_eq!(
            registry.deliver(now, outbox.client(), Uuid::max(), Uuid::nil(), || delivery("a")),
            Delivered::Taken
        );
        let copy = registry.deliver(now, outbox.client(), Uuid::max(), Uuid::nil(), || unreachable!("a copy was made"));
        assert_eq!(copy, Delivered::Duplicate);
        assert_eq!(deliver(&registry, now + DEDUPE_WINDOW, outbox.client(), u128::MAX), Delivered::Duplicate);
    }

    #[test]
    fn a_message_waits_for_its_predecessor_but_not_for_ever() {
        let registry = Arc::new(Registry::default());
        let outbox = outbox(9, 99);
        let _registration = registry.register(outbox.clone());
        let now = Instant::now();
        let put = |id: u128, after: u128| {
            let id = Uuid::from_u128(id);
            let make = || Delivery { id, sender: Uuid::nil(), text: "x".into() };
            registry.deliver(now, outbox.client(), id, Uuid::from_u128(after), make)
        };
        let out = |at| outbox.take_at(at, 9).deliveries.iter().map(|d| d.id.as_u128()).collect::<Vec<_>>();
        assert_eq!(put(3, 2), Delivered::Taken);
        assert_eq!(put(4, 3), Delivered::Taken);
        assert_eq!(put(3, 2), Delivered::Duplicate);
        assert!(out(now).is_empty() && outbox.waits_until().is_some());
        put(2, 1);
        assert!(out(now).is_empty(), "the predecessor waits for its own");
        put(1, 0);
        assert_eq!(out(now), [1, 2, 3, 4]);
        put(9, 10);
        put(11, 10);
        put(10, 0);
        assert_eq!(out(now), [10, 9, 11], "two were under way together, behind the same one");
        put(8, 7);
        put(7, 6);
        assert!(out(now).is_empty());
        let end = outbox.waits_until().unwrap();
        assert_eq!(out(end), [7, 8], "it was not to come");
        assert_eq!(outbox.waits_until(), None);
    }

    proptest! {
        /// Links deliver prefixes of one stream, each in order, interleaved at random, with repeats
        /// after a lost link: the session sees the stream once and in order.
        #[test]
        fn copies_over_racing_links_arrive_once_and_in_order(
            steps in proptest::collection::vec((0..3_usize, 0..4_usize), 1..200),
        ) {
            let registry = Arc::new(Registry::default());
            let outbox = outbox(1000, 1000);
            let _registration = registry.register(outbox.clone());
            let mut next = [0_u128; 3];
            let mut most = 0;
            for (link, back) in steps {
                next[link] = next[link].saturating_sub(if back == 3 { 5 } else { 0 });
                deliver(&registry, Instant::now(), outbox.client(), next[link]);
                next[link] += 1;
                most = most.max(next[link]);
            }
            let ids: Vec<_> = outbox.take(1000).deliveries.iter().map(|d| d.id.as_u128()).collect();
            prop_assert_eq!(ids, (0..most).collect::<Vec<_>>());
        }
    }
}
