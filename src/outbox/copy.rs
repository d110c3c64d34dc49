//! Owns what a standby has of a session whose home is elsewhere. Pure, and as small as can be: each session has one.
//!
//! Nobody but the home adds to it, nobody reads from it, and nothing is decided here. It becomes an
//! [`Outbox`](super::Outbox), with all that it has, when this node becomes the home.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Delivery;
use super::budget::{Budget, Share};
use super::log::{Position, has_more, taken_over};
use super::recent::Recent;
use super::shelf::cost;
use crate::transport::envelope::{Number, Tag};
use crate::transport::inbox::{Inbox, Nothing};
use crate::transport::peers;
use crate::transport::record::{Opening, Taken};

/// The copy of one session.
#[derive(Debug)]
pub struct Copy {
    /// The session's home.
    pub home: Tag,
    /// Tells this standby from those that the home had before.
    pub term: u64,
    /// The session's generation, as far as its home has told.
    pub generation: u64,
    /// How often that had given it to a standby then, this time included.
    standby: u16,
    /// The newest token that its client is known to have is of this generation.
    pub(super) proven: u64,
    /// The client has everything up to here.
    pub(super) had: Position,
    /// The highest that there is.
    pub(super) last: Position,
    /// It has all that its home had at its beginning once it has come to here.
    complete_at: Position,
    /// What the client has not, in order: the last of them is at `last`.
    pub(super) deliveries: VecDeque<Delivery>,
    pub(super) share: Share,
    /// What has been taken of each lane.
    pub(super) inbox: Option<Box<Inbox<Delivery>>>,
    pub(super) recent: Option<Box<Recent>>,
}

impl Copy {
    /// Its beginning, by what the `home` says to its standby of this term.
    pub fn new(home: Tag, term: u64, opening: Opening, budget: &Arc<Budget>) -> Self {
        let Opening { generation, standby, proven, had, last, lanes, recent } = opening;
        let mut copy = Self {
            home,
            term,
            generation,
            standby,
            proven,
            had,
            last: had,
            complete_at: last,
            deliveries: VecDeque::new(),
            share: Share::new(budget.clone()),
            inbox: None,
            recent: None,
        };
        if !lanes.is_empty() {
            let inbox = copy.inbox.get_or_insert_default();
            lanes.into_iter().for_each(|(tag, sender, number)| inbox.learn(tag, sender, number));
        }
        if !recent.is_empty() {
            copy.recent.get_or_insert_default().learn(recent);
        }
        copy
    }

    /// Whether it has all that had been taken when it began: else it is of no use without the home.
    pub fn is_complete(&self) -> bool {
        self.last >= self.complete_at
    }

    /// The generation in which this node is the session's home, should it take it over.
    pub fn taken_over(&self) -> u64 {
        taken_over(self.generation, self.standby)
    }

    /// Whether the node `tag`, which is the home in `generation`, has taken the session over from the same home as this copy is of,
    /// and was its standby before.
    pub fn has_more_than(&self, tag: Tag, generation: u64) -> bool {
        self.home != tag && self.is_complete() && has_more(self.taken_over(), generation)
    }

    /// The home has taken a message. `false` when that can't be kept: one before it is missing, or there is no room.
    pub fn take(&mut self, id: Uuid, taken: Taken) -> bool {
        let Taken { position, had, origin, sender, text } = taken;
        let delivery = Delivery { id, sender, text: text.into() };
        if self.last.checked_add(1) != Some(position) || !self.share.grow(cost(&delivery)) {
            return false;
        }
        self.last = position;
        if origin.tag != 0 {
            self.inbox.get_or_insert_default().learn(origin.tag, sender, origin.number);
        }
        if delivery.may_come_again() {
            self.recent.get_or_insert_default().note(id, position);
        }
        self.deliveries.push_back(delivery);
        self.forget(had);
        true
    }

    /// The client has everything up to `had`, the session's generation is this, and its client's token of this one.
    pub fn learn(&mut self, had: Position, generation: u64, proven: u64) {
        self.generation = self.generation.max(generation);
        self.proven = self.proven.max(proven);
        self.forget(had);
    }

    /// Forgets what the client has.
    fn forget(&mut self, had: Position) {
        let had = had.min(self.last);
        let gone = had.saturating_sub(self.had) as usize;
        self.had = self.had.max(had);
        self.share.shrink(self.deliveries.drain(..gone).map(|delivery| cost(&delivery)).sum());
    }

    /// Forgets the lanes of which their node wants nothing any more, messages that came longer ago than `window`, and the
    /// room that a burst has taken.
    pub fn prune(&mut self, now: Instant, window: Duration, floor: impl Fn(Tag) -> Option<Number>) {
        if self.recent.as_mut().is_some_and(|recent| recent.forget(now, window)) {
            self.recent = None;
        }
        if let Some(lanes) = &mut self.inbox {
            // It may go to a node that has not heard yet what is wanted no more.
            lanes.prune(now, peers::FORGET, floor, &mut Nothing);
            if lanes.is_empty() {
                self.inbox = None;
            }
        }
        let room = self.deliveries.len() * 2;
        self.deliveries.shrink_to(room);
    }

    /// Messages that are kept, and what they take of the budget.
    pub fn kept(&self) -> (usize, usize) {
        (self.deliveries.len(), self.share.bytes())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::outbox::log::Origin;
    use crate::outbox::tests::{delivery, place, unbounded};
    use crate::outbox::{Outbox, Position};
    use crate::transport::envelope::Decision;
    use crate::transport::inbox::Arrival;

    const HOME: Tag = 7;
    const SENDERS_NODE: Tag = 8;
    const SENDER: Uuid = Uuid::from_u128(9);

    /// A copy of something of which there is nothing yet.
    pub(crate) fn copy(home: Tag) -> Box<Copy> {
        Box::new(Copy::new(home, 1, Opening::default(), &unbounded()))
    }

    /// The id of a message that may come again by another node.
    fn repeatable() -> Uuid {
        uuid::Builder::from_custom_bytes([5; 16]).into_uuid()
    }

    fn taken(position: Position, had: Position) -> Taken {
        let origin = Origin { tag: SENDERS_NODE, sender: SENDER, number: position };
        Taken { position, had, origin, sender: SENDER, text: format!("number {position}").into() }
    }

    /// jemalloc has pieces of 96, 112 and 128 bytes; there is one for each session whose standby this node is.
    #[test]
    fn a_copy_fits_its_piece_of_memory() {
        assert!(size_of::<Copy>() <= 128);
    }

    #[test]
    fn who_was_elsewhere_may_have_had_something_else_by_the_same_number() {
        let opening = Opening { standby: 2, had: 10, last: 12, ..Opening::default() };
        let mut copy = Copy::new(HOME, 1, opening, &unbounded());
        assert!([11, 12].map(|position| copy.take(Uuid::from_u128(11), taken(position, 10))) == [true; 2]);
        let generation = copy.taken_over();
        let outbox = Outbox::promoted(Instant::now(), Uuid::nil(), generation, copy, &Limits::small(99, 9999));
        let by_the_first = taken_over(0, 1) + 1;
        assert!([10, 11, 12].map(|seq| outbox.continues(generation + 1, seq)) == [true; 3]);
        assert!([10, 11, 12].map(|seq| outbox.continues(by_the_first, seq)) == [true, false, false]);
    }

    #[test]
    fn what_is_promoted_has_all_that_the_copy_had() {
        let (repeatable, budget) = (repeatable(), unbounded());
        let opening = Opening {
            generation: 3,
            standby: 1,
            proven: 2,
            had: 10,
            last: 12,
            lanes: vec![(SENDERS_NODE, SENDER, 4)],
            recent: Vec::new(),
        };
        let mut copy = Copy::new(HOME, 1, opening, &budget);
        assert!(copy.take(Uuid::from_u128(11), taken(11, 10)) && !copy.is_complete());
        assert!(copy.take(repeatable, taken(12, 10)) && copy.is_complete());
        copy.learn(11, 4, 3);
        assert_eq!((copy.generation, copy.kept().0), (4, 1));
        let bytes = copy.kept().1;
        let now = Instant::now();
        let outbox = Outbox::promoted(now, Uuid::nil(), 5, copy, &Limits::small(99, 9999));
        assert_eq!((outbox.generation(), outbox.detached_since(), outbox.is_moving()), (5, Some(now), false));
        assert_eq!((outbox.condition().unwrap().messages, outbox.condition().unwrap().bytes), (1, bytes));
        assert!(!outbox.refuses(3) && outbox.refuses(2), "older tokens are of no use here either");
        // What was decided stays decided, and what comes again by another node is not shown again.
        let mut due = Vec::new();
        let mut arrive = |tag, number, id| {
            let make = || crate::outbox::Delivery { id, ..delivery("again") };
            outbox.arrive((tag, SENDER), place(number), || true, make, &mut due)
        };
        assert_eq!(arrive(SENDERS_NODE, 12, Uuid::nil()), Some((Arrival::Copy, false)));
        assert_eq!(arrive(SENDERS_NODE, 4, Uuid::nil()), Some((Arrival::Copy, false)));
        assert_eq!(arrive(HOME, 1, repeatable), Some((Arrival::Decided, false)));
        assert_eq!(outbox.kept(), 1);
        assert_eq!(arrive(HOME, 2, Uuid::from_u128(13)), Some((Arrival::Decided, false)));
        assert!(due.iter().all(|due| due.decision == Decision::Taken));
        let (attachment, _) = outbox.attach(now, 3, 0, false).unwrap();
        let batch = outbox.take(attachment, 9);
        let texts: Vec<_> = batch.deliveries.iter().map(|delivery| &*delivery.text).collect();
        assert_eq!((batch.first, texts), (Some(12), vec!["number 12", "again"]));
    }

    #[test]
    fn a_copy_with_a_hole_or_without_room_is_none() {
        let gauge = prometheus::IntGauge::new("bytes", "for a test").unwrap();
        let budget = Budget::new(cost(&delivery("number 1")), gauge.clone());
        let mut copy = Copy::new(HOME, 1, Opening::default(), &budget);
        assert!(!copy.take(Uuid::nil(), taken(2, 0)), "1 is missing");
        assert!(copy.take(Uuid::nil(), taken(1, 0)));
        assert!(!copy.take(Uuid::nil(), taken(1, 0)), "it has that");
        assert!(!copy.take(Uuid::nil(), taken(2, 0)), "the node has no more room");
        copy.learn(1, 0, 0);
        assert_eq!((gauge.get(), copy.kept()), (0, (0, 0)));
        assert!(copy.take(Uuid::nil(), taken(2, 0)));
        assert!(gauge.get() > 0);
        drop(copy);
        assert_eq!(gauge.get(), 0, "what it had of the budget is given back");
    }

    /// Found by fuzzing: 0 was taken for the number behind it.
    #[test]
    fn nothing_comes_behind_the_highest_number() {
        let gauge = prometheus::IntGauge::new("bytes", "for a test").unwrap();
        let opening = Opening { had: u64::MAX, last: u64::MAX, ..Opening::default() };
        let mut copy = Copy::new(HOME, 1, opening, &Budget::new(999, gauge));
        assert!(!copy.take(Uuid::nil(), taken(0, 0)));
        assert!(!copy.take(Uuid::nil(), taken(u64::MAX, 0)));
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_forgotten() {
        let mut copy = copy(HOME);
        for position in 1..=99 {
            assert!(copy.take(repeatable(), taken(position, position)));
        }
        let (now, window) = (Instant::now(), Duration::from_secs(30));
        copy.prune(now, window, |_| Some(99));
        assert!(copy.inbox.is_some() && copy.recent.is_some(), "99 is wanted");
        copy.prune(now + window, window, |_| Some(100));
        assert!(copy.inbox.is_some(), "another node may not know yet that it is not");
        assert!(copy.recent.is_some(), "it came a window ago at the most");
        copy.prune(now + window + peers::FORGET, window, |_| None);
        assert!(copy.inbox.is_none() && copy.recent.is_none() && copy.deliveries.capacity() == 0);
    }
}
