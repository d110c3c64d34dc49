//! Owns the regular look at all servers: which nodes have their subscriptions somewhere?
//!
//! A search asks only when somebody is not found; whoever keeps what others have must know sooner that they are gone.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::link::Link;
use super::{Actions, LinkId, Links, Sender, bit, links};
use crate::transport::envelope::Tag;

/// A node that has not been seen since a link is up may come yet, for so long: after an outage the others are not back at
/// once.
const RELY_AFTER: Duration = Duration::from_secs(2);

/// A look that is under way.
#[derive(Debug, Default)]
pub(super) struct Look {
    began: Option<Instant>,
    asked: Vec<Tag>,
    waiting: Links,
    answered: Links,
    present: HashSet<Tag>,
}

impl Look {
    pub(super) fn answered(&mut self, link: LinkId, present: &HashSet<Tag>) {
        if self.waiting & bit(link) != 0 {
            self.waiting &= !bit(link);
            self.answered |= bit(link);
            self.present.extend(present);
        }
    }

    /// What `link` was asked is not answered any more; it may be another connection by the next moment.
    pub(super) fn lost(&mut self, link: LinkId) {
        self.waiting &= !bit(link);
    }
}

impl<R> Sender<R> {
    /// Ends the look that is under way, if every server has answered that can. Returns whether it has ended.
    pub fn look_ends(&mut self, now: Instant) -> bool {
        if self.look.waiting & self.up & !self.silent() != 0 {
            return false;
        }
        let held = |link: &LinkId| {
            self.links[*link].up_since.is_some_and(|since| now.saturating_duration_since(since) >= RELY_AFTER)
        };
        let Look { began, mut asked, answered, present, .. } = std::mem::take(&mut self.look);
        let answered = answered & self.up;
        if answered != 0 {
            self.looked = began;
        }
        let has_held = links(answered).any(|link| held(&link));
        let has_been_seen = |link: &Link, tag: Tag| {
            link.has_had.contains(&tag)
                || link.up_since.is_some_and(|up| self.peers.met(tag).is_some_and(|met| met >= up))
        };
        asked.retain(|tag| has_held || links(answered).any(|link| has_been_seen(&self.links[link], *tag)));
        self.peers.looked(&asked, &present);
        true
    }

    /// Begins another look, unless one is under way.
    pub fn look(&mut self, now: Instant, actions: &mut Actions<R>) {
        if !self.look_ends(now) {
            return;
        }
        let tags = self.peers.tags();
        for link in links(self.up) {
            self.links[link].has_had.retain(|tag| tags.binary_search(tag).is_ok());
            self.links[link].look = true;
            actions.wake |= bit(link);
        }
        self.look = Look { began: Some(now), asked: tags, waiting: self.up, ..Look::default() };
    }

    /// Whether some server has answered a look that began `since` then, or later.
    pub fn has_looked(&self, since: Instant) -> bool {
        self.looked.is_some_and(|at| at >= since)
    }

    /// Whether a link was lost since then.
    pub fn has_lost(&self, since: Instant) -> bool {
        self.lost_at.is_some_and(|at| at >= since)
    }
}
