//! Owns who is connected here, client id to outbox, and whose copies are. Nothing in it awaits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use uuid::Uuid;

use crate::operate::census::Census;
use crate::outbox::copy::Copy;
use crate::outbox::{CloseOrder, Outbox};
use crate::transport::envelope::{Channel, Number, Tag};

const SHARDS: usize = 64;

/// The sessions of this node.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    /// How many copies there are, by home. Locked while their shard is.
    copies_by_home: Mutex<BTreeMap<Tag, usize>>,
    /// What everybody is told who is here, or comes.
    order: Mutex<Option<CloseOrder>>,
    /// Nobody is here any more, since that order.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Shard {
    clients: HashMap<Uuid, Arc<Outbox>>,
    /// Sessions whose home is elsewhere, and whose standby is this node.
    copies: HashMap<Uuid, Box<Copy>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            copies_by_home: Mutex::default(),
            order: Mutex::default(),
            emptied: Notify::new(),
        }
    }
}

/// One copy less of this home's.
fn discount(by_home: &mut BTreeMap<Tag, usize>, home: Tag) {
    if let Some(copies) = by_home.get_mut(&home) {
        *copies -= 1;
        if *copies == 0 {
            by_home.remove(&home);
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
    /// there before has to yield.
    #[cfg(test)]
    pub fn keep(&self, outbox: Arc<Outbox>) {
        let before = self.shard(outbox.client()).clients.insert(outbox.client(), outbox.clone());
        self.succeed(before, &outbox);
    }

    fn succeed(&self, before: Option<Arc<Outbox>>, outbox: &Outbox) {
        if let Some(before) = before {
            before.close(CloseOrder::Moved);
        }
        if let Some(order) = self.order() {
            outbox.close(order);
        }
    }

    /// Makes the outbox of a session that can be resumed reachable until it is [removed](Self::remove), unless there is one
    /// already that its client could have: it may come twice at the same moment, and whoever has its credentials may be it. Any
    /// other that was there has to yield. Returns whether it is reachable now.
    pub fn keep_first(&self, outbox: &Arc<Outbox>) -> bool {
        let client = outbox.client();
        let mut shard = self.shard(client);
        let before = shard.clients.get(&client).cloned();
        if before.as_ref().is_some_and(|before| before.is_resumable() && !before.is_sealed()) {
            return false;
        }
        shard.clients.insert(client, outbox.clone());
        drop(shard);
        self.succeed(before, outbox);
        true
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

    /// This node is the standby of a session, and has this of it.
    pub fn keep_copy(&self, client: Uuid, copy: Box<Copy>) {
        let mut shard = self.shard(client);
        let mut by_home = self.by_home();
        *by_home.entry(copy.home).or_default() += 1;
        if let Some(before) = shard.copies.insert(client, copy) {
            discount(&mut by_home, before.home);
        }
    }

    /// What `f` makes of what this node has as a session's standby. It must not use this registry.
    pub fn with_copy<T>(&self, client: Uuid, f: impl FnOnce(&mut Copy) -> T) -> Option<T> {
        self.shard(client).copies.get_mut(&client).map(|copy| f(copy))
    }

    /// This node is not its standby any more. Returns whether it was.
    pub fn remove_copy(&self, client: Uuid) -> bool {
        let mut shard = self.shard(client);
        self.take_copy(&mut shard, client).is_some()
    }

    /// The same, for it is the home: what `make` makes of the copy is [kept](Self::keep_first) in its place, so that the channel
    /// of claims is wanted all the time. `make` must not use this registry.
    pub fn promote(&self, client: Uuid, make: impl FnOnce(Copy) -> Outbox) -> Option<Arc<Outbox>> {
        let mut shard = self.shard(client);
        let outbox = Arc::new(make(*self.take_copy(&mut shard, client)?));
        let before = shard.clients.insert(client, outbox.clone());
        drop(shard);
        self.succeed(before, &outbox);
        Some(outbox)
    }

    fn take_copy(&self, shard: &mut Shard, client: Uuid) -> Option<Box<Copy>> {
        let copy = shard.copies.remove(&client)?;
        discount(&mut self.by_home(), copy.home);
        if shard.copies.len() * 4 < shard.copies.capacity() {
            shard.copies.shrink_to_fit();
        }
        Some(copy)
    }

    fn by_home(&self) -> MutexGuard<'_, BTreeMap<Tag, usize>> {
        self.copies_by_home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many copies are here.
    pub fn copies(&self) -> usize {
        self.by_home().values().sum()
    }

    /// Everyone of whom there is one.
    pub fn copied(&self) -> BTreeSet<Uuid> {
        let mut copied = BTreeSet::new();
        for shard in &self.shards {
            copied.extend(shard.lock().unwrap_or_else(PoisonError::into_inner).copies.keys());
        }
        copied
    }

    /// The copies whose home is such: the first `most` of them, by home and client. Looks at all copies if there are any.
    pub fn copies_of(&self, is_such: impl Fn(Tag) -> bool, most: usize) -> Vec<(Tag, Uuid)> {
        let mut homes: Vec<Tag> = self.by_home().keys().copied().collect();
        homes.retain(|home| is_such(*home));
        let mut copies = Vec::new();
        for shard in self.shards.iter().filter(|_| !homes.is_empty()) {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let such = shard.copies.iter().filter(|(_, copy)| homes.contains(&copy.home));
            copies.extend(such.map(|(client, copy)| (copy.home, *client)));
        }
        if copies.len() > most {
            copies.select_nth_unstable(most);
            copies.truncate(most);
        }
        copies.sort_unstable();
        copies
    }

    /// Has every session forget the lanes of which nothing is wanted any more, and what came longer ago than `window`.
    /// Returns those that have something to tell their standbys.
    pub fn prune(&self, now: Instant, window: Duration, floor: impl Fn(Tag) -> Option<Number>) -> Vec<Arc<Outbox>> {
        let mut owing = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.copies.values_mut().for_each(|copy| copy.prune(now, window, &floor));
            let clients: Vec<_> = shard.clients.values().cloned().collect();
            drop(shard);
            for outbox in clients {
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
            shard.copies.values().for_each(|copy| census.add_copy(copy.kept()));
            let clients: Vec<_> = shard.clients.values().cloned().collect();
            drop(shard);
            clients.iter().filter_map(|outbox| outbox.condition()).for_each(|condition| census.add(condition));
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;

    use super::*;
    use crate::outbox::copy::tests::copy;
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

    #[test]
    fn copies_are_counted_by_home_whatever_becomes_of_them() {
        let registry = Registry::default();
        let [one, two, three] = [1, 2, 3].map(Uuid::from_u128);
        registry.keep_copy(one, copy(8));
        registry.keep_copy(two, copy(7));
        registry.keep_copy(three, copy(8));
        assert_eq!((registry.copies(), registry.census().copies), (3, 3));
        assert_eq!(registry.copied(), BTreeSet::from([one, two, three]));
        assert_eq!(registry.copies_of(|_| true, 9), [(7, two), (8, one), (8, three)]);
        assert_eq!(registry.copies_of(|_| true, 2), [(7, two), (8, one)], "the first");
        assert_eq!(registry.copies_of(|home| home == 8, 9), [(8, one), (8, three)]);
        registry.keep_copy(one, copy(7));
        assert_eq!(registry.copies_of(|home| home == 8, 9), [(8, three)], "another home has it now");
        let outbox = registry.promote(three, promoted(three)).unwrap();
        assert!(registry.promote(three, promoted(three)).is_none());
        assert!(registry.copies_of(|home| home == 8, 9).is_empty() && !registry.by_home().contains_key(&8));
        assert!(Arc::ptr_eq(&registry.get(three).unwrap(), &outbox));
        assert!(registry.remove_copy(one) && !registry.remove_copy(one));
        assert!(registry.wants(Channel::Claim(two)) && !registry.wants(Channel::Claim(one)));
        assert!(registry.remove_copy(two));
        assert_eq!((registry.copies(), registry.by_home().len()), (0, 0));
    }

    /// A link that connects meanwhile subscribes what it finds, and nobody tells it of this channel: it was wanted before.
    #[test]
    fn the_channel_of_claims_is_wanted_while_a_copy_becomes_the_session() {
        let registry = Registry::default();
        let clients: Vec<_> = (0..20_000).map(Uuid::from_u128).collect();
        clients.iter().for_each(|client| registry.keep_copy(*client, copy(7)));
        let (at, mut missed) = (AtomicUsize::new(0), 0);
        std::thread::scope(|scope| {
            let promoting = scope.spawn(|| {
                for (number, client) in clients.iter().enumerate() {
                    at.store(number, Ordering::Relaxed);
                    assert!(registry.promote(*client, promoted(*client)).is_some());
                }
            });
            while !promoting.is_finished() {
                let client = clients[at.load(Ordering::Relaxed)];
                missed += usize::from(!registry.wants(Channel::Claim(client)));
            }
        });
        assert_eq!((missed, registry.copies()), (0, 0));
    }

    fn promoted(client: Uuid) -> impl FnOnce(Copy) -> Outbox {
        move |copy| Outbox::promoted(Instant::now(), client, 1, copy, &crate::config::Limits::small(9, 99))
    }
}
