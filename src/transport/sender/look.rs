//! Owns the regular look at all servers: which nodes have their subscriptions somewhere?
//!
//! A search asks only when somebody is not found; whoever keeps what others have must know sooner that they are gone.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{Actions, LinkId, Links, Sender, bit, links};
use crate::transport::envelope::Tag;

/// What a link says counts once it has held for so long: after an outage the others may not be back yet.
const RELY_AFTER: Duration = Duration::from_secs(2);

/// A look that is under way.
#[derive(Debug, Default)]
pub(super) struct Look {
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
}

impl<R> Sender<R> {
    /// Ends the look that is under way, if every server has answered that can, and begins another.
    pub fn look(&mut self, now: Instant, actions: &mut Actions<R>) {
        let suspects = links(self.up).filter(|link| self.links[*link].suspect).fold(0, |set, link| set | bit(link));
        if self.look.waiting & self.up & !suspects != 0 {
            return;
        }
        let held = |link: &LinkId| {
            self.links[*link].up_since.is_some_and(|since| now.saturating_duration_since(since) >= RELY_AFTER)
        };
        let look = std::mem::take(&mut self.look);
        if links(look.answered & self.up).any(|link| held(&link)) {
            self.peers.looked(&look.asked, &look.present);
        }
        self.look = Look { asked: self.peers.tags(), waiting: self.up, ..Look::default() };
        for link in links(self.up) {
            self.links[link].look = true;
            actions.wake |= bit(link);
        }
    }
}
