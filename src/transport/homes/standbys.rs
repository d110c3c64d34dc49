//! Owns which node is the standby of a session, and what it is given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::doubts::Doubt;
use super::{Homes, forget};
use crate::outbox::Outbox;
use crate::outbox::log::{Origin, Position};
use crate::transport::envelope::{self, Channel, Tag};
use crate::transport::record::{self, Record};
use crate::transport::sender::{Actions, Sender};
use crate::transport::{Duty, Gathered, Transport};

/// A standby that refused a session is asked again, or another one, after this.
pub(super) const REFUSED: Duration = Duration::from_millis(200);
/// So often, before another is asked.
const REFUSALS: u32 = 3;

/// What other nodes owe this one: records that they have not confirmed.
#[derive(Debug, Default)]
pub(in crate::transport) struct Debts(Mutex<HashMap<Tag, Debt>>);

#[derive(Clone, Copy, Debug)]
pub(super) struct Debt {
    records: usize,
    /// When something was paid last, or the debt began.
    since: Instant,
}

impl Debts {
    fn lock(&self) -> MutexGuard<'_, HashMap<Tag, Debt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, now: Instant, tag: Tag, records: usize) {
        if records > 0 {
            let mut debts = self.lock();
            debts.entry(tag).or_insert(Debt { records: 0, since: now }).records += records;
        }
    }

    pub(super) fn shrink(&self, now: Instant, tag: Tag, is_paid: bool) {
        let mut debts = self.lock();
        if let Some(debt) = debts.get_mut(&tag) {
            debt.records = debt.records.saturating_sub(1);
            if is_paid {
                debt.since = now;
            }
            if debt.records == 0 {
                debts.remove(&tag);
            }
        }
    }

    /// Those that have paid nothing for as long.
    pub(super) fn overdue(&self, now: Instant, after: Duration) -> Vec<Tag> {
        let debts = self.lock();
        let is_overdue = |debt: &Debt| now.saturating_duration_since(debt.since) >= after;
        debts.iter().filter(|(_, debt)| is_overdue(debt)).map(|(tag, _)| *tag).collect()
    }
}

/// Whose turn it is to keep something of `client`, among `tags`: the highest random weight, as Thaler and Ravishankar
/// have it (1998), so that a node that comes or goes changes little.
fn choose(client: Uuid, tags: impl Iterator<Item = Tag>) -> Option<Tag> {
    let (high, low) = client.as_u64_pair();
    tags.max_by_key(|tag| {
        // The finalizer of SplitMix64, which spreads every bit.
        let mut weight = tag ^ high ^ low.rotate_left(32);
        weight = (weight ^ (weight >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        weight = (weight ^ (weight >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        weight ^ (weight >> 31)
    })
}

impl<R> Transport<R> {
    /// Gives a session a standby, or lets it go on alone if there is nobody.
    pub(super) fn ensure_standby(
        &self,
        now: Instant,
        homes: &mut Homes,
        outbox: &Outbox,
        actions: &mut Actions<Duty<R>>,
    ) {
        let client = outbox.client();
        homes.distrusted.retain(|_, until| now < *until);
        let keepers = self.peers.keepers();
        let trusted = keepers.iter().copied().filter(|tag| !homes.distrusted.contains_key(tag));
        // Whoever lives may be another's standby for this very session, so this node's word alone is not enough.
        match choose(client, trusted).or_else(|| choose(client, keepers.iter().copied())) {
            Some(tag) => self.open_standby(now, homes, outbox, tag, actions),
            None => {
                homes.alone.insert(client);
                homes.doubted.remove(&client);
                outbox.wait(false);
                homes.lacking.lose(now, client);
                let waiting = outbox.stand_alone();
                self.tell(now, waiting, actions);
            }
        }
    }

    pub(super) fn open_standby(
        &self,
        now: Instant,
        homes: &mut Homes,
        outbox: &Outbox,
        tag: Tag,
        actions: &mut Actions<Duty<R>>,
    ) {
        let client = outbox.client();
        homes.alone.remove(&client);
        homes.by_standby.entry(tag).or_default().insert(client);
        let term = homes.new_term();
        if let Some(doubt @ (Doubt::New | Doubt::Asked(_))) = homes.doubted.get_mut(&client) {
            *doubt = Doubt::Asked(term);
        }
        // What is taken meanwhile by another thread comes behind this.
        let mut sender = self.sender();
        let records = outbox.open_standby(tag, term);
        homes.lacking.give(now, client, term, records.last().map_or(0, |(.., position)| *position));
        self.submit_records(&mut sender, now, client, (tag, term), records, actions);
    }

    pub(super) fn replace_standby(
        &self,
        now: Instant,
        homes: &mut Homes,
        outbox: &Outbox,
        actions: &mut Actions<Duty<R>>,
    ) {
        if let Some((tag, term)) = outbox.standby() {
            forget(&mut homes.by_standby, tag, outbox.client());
            self.ensure_standby(now, homes, outbox, actions);
            // It may live all the same.
            if outbox.standby().is_none_or(|(now, _)| now != tag) {
                self.dismiss(now, outbox.client(), tag, term, actions);
            }
        }
    }

    /// The standby of this term has refused the session. It may know of another home, and that word may have been lost:
    /// it is asked some more times before another is.
    pub(super) fn try_standby_again(
        &self,
        now: Instant,
        homes: &mut Homes,
        client: Uuid,
        term: u64,
        actions: &mut Actions<Duty<R>>,
    ) {
        let Some(outbox) = self.home(client) else {
            homes.refusals.remove(&client);
            return;
        };
        let Some((tag, _)) = outbox.standby().filter(|(_, now)| *now == term) else { return };
        if !self.is_settled(now, homes) || homes.awaits_word(client) {
            return homes.refused.push_back((now + REFUSED, client, term));
        }
        if self.is_unvouched(homes, client, tag) {
            homes.refusals.remove(&client);
            return self.give_up(now, homes, client, actions);
        }
        let is_doubted = homes.doubted.contains_key(&client);
        if is_doubted && self.peers.has_left(tag) {
            return; // Others are asked, and then it gets another.
        }
        let times = homes.refusals.entry(client).or_default();
        *times += 1;
        if *times <= REFUSALS && !self.peers.is_gone(tag) && (is_doubted || !self.peers.is_leaving(tag)) {
            self.open_standby(now, homes, &outbox, tag, actions);
        } else {
            homes.refusals.remove(&client);
            homes.distrusted.insert(tag, now + REFUSED);
            self.replace_standby(now, homes, &outbox, actions);
        }
    }

    pub(super) fn dismiss(&self, now: Instant, client: Uuid, tag: Tag, term: u64, actions: &mut Actions<Duty<R>>) {
        let end = vec![(Record::End, Uuid::nil(), 0)];
        self.submit_records(&mut self.sender(), now, client, (tag, term), end, actions);
    }

    /// Tells senders that their messages are safe.
    pub(super) fn tell(&self, now: Instant, origins: Vec<Origin>, actions: &mut Actions<Duty<R>>) {
        if !origins.is_empty() {
            let mut gathered = Gathered::default();
            origins.into_iter().for_each(|origin| gathered.taken(origin));
            self.send_receipts(now, &mut gathered, actions);
        }
    }

    /// The sessions that took something have their standbys given it.
    pub(in crate::transport) fn replicate(
        &self,
        now: Instant,
        sender: &mut Sender<Duty<R>>,
        sessions: impl Iterator<Item = Arc<Outbox>>,
        actions: &mut Actions<Duty<R>>,
    ) {
        for outbox in sessions {
            if let Some((tag, term)) = outbox.standby() {
                let records = outbox.next_records();
                self.submit_records(sender, now, outbox.client(), (tag, term), records, actions);
            }
        }
    }

    pub(in crate::transport) fn submit_records(
        &self,
        sender: &mut Sender<Duty<R>>,
        now: Instant,
        client: Uuid,
        (tag, term): (Tag, u64),
        records: Vec<(Record, Uuid, Position)>,
        actions: &mut Actions<Duty<R>>,
    ) {
        let mut owed = 0;
        for (record, id, position) in records {
            let duty = match record {
                Record::Promote { .. } => Duty::Promote { client, term },
                Record::End => Duty::End,
                _ => {
                    owed += 1;
                    Duty::Record { client, tag, term, position }
                }
            };
            let body = envelope::body(id, client, &record::encode(term, &record));
            sender.submit(now, client, Channel::Node(tag), body, duty, actions);
        }
        self.debts.grow(now, tag, owed);
    }
}
