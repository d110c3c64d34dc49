//! Owns what passes between a session's home and its standby, and the moment when another node becomes its home.

use std::time::Instant;

use uuid::Uuid;

use super::log::{Origin, Position, outlived};
use super::resumable::Resumable;
use super::{Inner, Outbox};
use crate::transport::envelope::Tag;
use crate::transport::record::{Opening, Record, Taken};

impl Outbox {
    /// From now on `tag` is the standby, of this term. Returns what it has to be given, in order, each with the position
    /// that is confirmed once it has it.
    pub fn open_standby(&self, tag: Tag, term: u64) -> Vec<(Record, Uuid, Position)> {
        let mut inner = self.lock();
        let lanes = inner.inbox.as_ref().map(|inbox| inbox.taken().collect()).unwrap_or_default();
        let recent = inner.recent.as_ref().map(|recent| recent.all().collect()).unwrap_or_default();
        let Some(log) = inner.log_mut() else { return Vec::new() };
        log.set_standby(Some(tag), term);
        let (generation, standby, proven) = (log.generation, log.standbys, log.proven);
        let (had, last) = (log.had, log.last);
        log.told = true;
        let mut records =
            vec![(Record::Open(Opening { generation, standby, proven, had, last, lanes, recent }), Uuid::nil(), had)];
        records.extend(inner.next_records());
        records
    }

    /// There is no standby any more: this node's word is enough. Returns who waits for it.
    pub fn stand_alone(&self) -> Vec<Origin> {
        let mut inner = self.lock();
        let told = inner.log_mut().map(|log| log.set_standby(None, 0)).unwrap_or_default();
        drop(inner);
        self.wake.notify_one();
        told
    }

    /// The standby and its term, if there is one.
    pub fn standby(&self) -> Option<(Tag, u64)> {
        self.lock().log()?.standby.map(|standby| (standby.tag, standby.term))
    }

    /// What the standby has to be given now, as [`open_standby`](Self::open_standby) returns it.
    pub fn next_records(&self) -> Vec<(Record, Uuid, Position)> {
        self.lock().next_records()
    }

    /// The standby is to be told once more what the client has.
    pub fn tell_again(&self) {
        if let Some(log) = self.lock().log_mut() {
            log.told = false;
        }
    }

    /// What the standby does not know yet of what the client has, if there is anything.
    pub fn had_record(&self) -> Option<(u64, Record, Position)> {
        let mut inner = self.lock();
        let log = inner.log_mut()?;
        let standby = log.standby?;
        if !log.owes_had() {
            return None;
        }
        log.told = true;
        Some((standby.term, Record::Had { had: log.had, generation: log.generation, proven: log.proven }, log.had))
    }

    /// The standby of `term` has everything up to `position`. Returns whom to tell.
    pub fn confirm(&self, term: u64, position: Position) -> Vec<Origin> {
        let mut inner = self.lock();
        let Some(log) = inner.log_mut() else { return Vec::new() };
        let told = log.confirm(term, position);
        drop(inner);
        self.wake.notify_one();
        told
    }

    /// Nothing is taken or written from now on: another node becomes its home. `false` if that is so already.
    pub fn freeze(&self) -> bool {
        let mut inner = self.lock();
        let Some(log) = inner.log_mut() else { return false };
        let first = !std::mem::replace(&mut log.moving, true);
        inner.sealed = true;
        first
    }

    /// A node may have had the session in `generation`, and is gone like whoever may have it from there: this one goes on.
    pub fn outlive(&self, generation: u64) {
        if let Some(log) = self.lock().log_mut().filter(|log| log.generation < generation) {
            log.generation = outlived(generation);
            log.told = false;
        }
    }

    /// That came to nothing: this node goes on.
    pub fn thaw(&self, now: Instant) {
        let mut inner = self.lock();
        let Some(log) = inner.log_mut() else { return };
        log.told = false;
        log.moving = false;
        log.detached_since = Some(now);
        inner.sealed = false;
    }

    /// Whether another node is becoming its home.
    pub fn is_moving(&self) -> bool {
        self.lock().log().is_some_and(|log| log.moving)
    }
}

impl Inner {
    fn next_records(&mut self) -> Vec<(Record, Uuid, Position)> {
        let Some(Resumable { log, .. }) = self.resumable.as_deref_mut() else { return Vec::new() };
        let Some((_, positions)) = log.next_records() else { return Vec::new() };
        let had = log.had;
        let record = |position: Position| {
            let delivery = &self.shelf.deliveries[(position - had - 1) as usize];
            let nobody = Origin { tag: 0, sender: delivery.sender, number: 0 };
            let origin = log.origin(position).unwrap_or(nobody);
            let (sender, text) = (delivery.sender, (&*delivery.text).into());
            (Record::Message(Taken { position, had, origin, sender, text }), delivery.id, position)
        };
        positions.map(record).collect()
    }
}
