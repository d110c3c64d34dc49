//! Owns what a receiver's session has decided about the messages of each lane. Pure.
//!
//! A lane is what one sender's node has for one receiver from one client, in order:
//!
//! ```text
//!          floor        taken            full
//!   past ───┴── taken ───┴── undecided ───┴── full … until the floor has passed them all (go back N)
//! ```
//! - Each number is decided once; asked again, the same decision is repeated.
//! - A named predecessor is never passed over by time: only a floor above it lets its successors go on.
//! - So an `ack` of a number says the same of everything in its lane before it.
//!
//! No ids are remembered and no clock is asked: a copy is told from a new message by its number, however
//! late it comes. Lanes whose node wants nothing of them any more are forgotten ([`Inbox::prune`]).

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::envelope::{Decision, Number, Place, Tag};

/// So many lanes have room once they were there.
const USUAL_LANES: usize = 16;
/// So many lanes are kept at the most of which nothing is wanted any more.
const MOST_AT_REST: usize = 4096;

/// The lanes of one session; `T` is what a message is kept as.
#[derive(Debug)]
pub struct Inbox<T> {
    lanes: HashMap<(Tag, Uuid), Lane<T>>,
}

#[derive(Debug)]
struct Lane<T> {
    floor: Number,
    taken: Number,
    full: Option<(Number, Number)>,
    /// The questions that were answered again: the last attempt for each number that may still be wanted. One answer may
    /// be lost though a later one was asked for; so they are told apart.
    repeated: BTreeMap<Number, u8>,
    waiting: BTreeMap<Number, Waiting<T>>,
    /// Since when its node wants nothing of it any more.
    past_since: Option<Instant>,
}

#[derive(Debug)]
struct Waiting<T> {
    previous: Number,
    message: T,
}

/// Where messages go, with its bounds.
pub trait Room<T> {
    /// Whether one more may wait for its predecessor.
    fn may_wait(&mut self, message: &T) -> bool;
    /// One that waited is taken out again.
    fn waits_no_more(&mut self, message: &T);
    /// Takes a message in for good, or gives back `false`: there is no room.
    fn admit(&mut self, number: Number, message: T) -> bool;
}

/// Room for nothing: what waits is forgotten.
#[derive(Debug)]
pub struct Nothing;

impl<T> Room<T> for Nothing {
    fn may_wait(&mut self, _: &T) -> bool {
        false
    }
    fn waits_no_more(&mut self, _: &T) {}
    fn admit(&mut self, _: Number, _: T) -> bool {
        false
    }
}

/// A receipt that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The message.
    pub number: Number,
    /// What became of it.
    pub decision: Decision,
    /// Whether it was asked for again: then it goes out on every link.
    pub again: bool,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self { lanes: HashMap::new() }
    }
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { floor: 0, taken: 0, full: None, repeated: BTreeMap::new(), waiting: BTreeMap::new(), past_since: None }
    }
}

/// What became of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It was decided now.
    Decided,
    /// It waits for its predecessor, or comes again once it is known whether its receiver is here.
    Waits,
    /// It had come before, or is not wanted any more.
    Copy,
    /// It would have to wait, but there is no room for that: its node will send it again.
    Dropped,
}

impl<T> Inbox<T> {
    /// A message of `sender` by the node `tag` has come; `make` is called only if it is kept.
    ///
    /// Whoever looked at `is_wanted` before may be late: since then a copy may have been decided, and its lane forgotten.
    /// So it is asked once more before a lane is begun.
    pub fn arrive(
        &mut self,
        (tag, sender): (Tag, Uuid),
        place: Place,
        is_wanted: impl FnOnce() -> bool,
        make: impl FnOnce() -> T,
        room: &mut impl Room<T>,
        due: &mut Vec<Due>,
    ) -> Arrival {
        let lane = match self.lanes.entry((tag, sender)) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(_) if !is_wanted() => return Arrival::Copy,
            Entry::Vacant(new) => new.insert(Lane::default()),
        };
        lane.arrive(place, make, room, due)
    }

    /// Forgets the lanes of which their node has wanted nothing for as long as `rest`: `floor` is that node's own, `None`
    /// for one that is gone (whose messages are refused before they come here).
    pub fn prune(
        &mut self,
        now: Instant,
        rest: Duration,
        floor: impl Fn(Tag) -> Option<Number>,
        room: &mut impl Room<T>,
    ) {
        let rest = if self.lanes.len() > MOST_AT_REST { Duration::ZERO } else { rest };
        self.lanes.retain(|(tag, _), lane| {
            if floor(*tag).is_some_and(|floor| lane.newest() >= floor) {
                lane.past_since = None;
                return true;
            }
            std::mem::take(&mut lane.waiting).values().for_each(|waiting| room.waits_no_more(&waiting.message));
            now.saturating_duration_since(*lane.past_since.get_or_insert(now)) < rest
        });
        self.lanes.shrink_to((self.lanes.len() * 2).max(USUAL_LANES));
    }

    /// What has been taken of each lane.
    pub fn taken(&self) -> impl Iterator<Item = (Tag, Uuid, Number)> {
        self.lanes.iter().map(|((tag, sender), lane)| (*tag, *sender, lane.taken))
    }

    /// Another node has decided this lane up to `number`, and taken that.
    pub fn learn(&mut self, tag: Tag, sender: Uuid, number: Number) {
        let lane = self.lanes.entry((tag, sender)).or_default();
        lane.taken = lane.taken.max(number);
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

impl<T> Lane<T> {
    /// The highest number that this lane knows of.
    fn newest(&self) -> Number {
        let waiting = self.waiting.last_key_value().map_or(0, |(number, _)| *number);
        let full = self.full.map_or(0, |(_, to)| to);
        self.taken.max(full).max(waiting).max(self.floor)
    }

    fn decision(&self, number: Number) -> Option<Decision> {
        match self.full {
            Some((from, to)) if (from..=to).contains(&number) => Some(Decision::Full),
            _ if number <= self.taken => Some(Decision::Taken),
            _ => None,
        }
    }

    /// Whether nothing has to come before what names `previous`.
    fn is_open(&self, previous: Number) -> bool {
        previous < self.floor || self.decision(previous).is_some()
    }

    fn arrive(
        &mut self,
        place: Place,
        make: impl FnOnce() -> T,
        room: &mut impl Room<T>,
        due: &mut Vec<Due>,
    ) -> Arrival {
        let Place { number, previous, floor, attempt } = place;
        if floor > self.floor {
            self.raise(floor, room);
        }
        let arrival = self.place(number, previous, attempt, make, room, due);
        self.release(room, due);
        arrival
    }

    fn place(
        &mut self,
        number: Number,
        previous: Number,
        attempt: u8,
        make: impl FnOnce() -> T,
        room: &mut impl Room<T>,
        due: &mut Vec<Due>,
    ) -> Arrival {
        if number < self.floor {
            return Arrival::Copy;
        }
        if let Some(decision) = self.decision(number) {
            if attempt > self.repeated.get(&number).copied().unwrap_or(0) {
                self.repeated.insert(number, attempt);
                due.push(Due { number, decision, again: true });
            }
            return Arrival::Copy;
        }
        if let Some(waiting) = self.waiting.get_mut(&number) {
            // Sent again, it may name an older one, or none: what was between is not wanted any more.
            waiting.previous = waiting.previous.min(previous);
            return Arrival::Copy;
        }
        let message = make();
        if self.is_open(previous) {
            self.decide(number, message, room, due);
            return Arrival::Decided;
        }
        if !room.may_wait(&message) {
            return Arrival::Dropped;
        }
        self.waiting.insert(number, Waiting { previous, message });
        Arrival::Waits
    }

    fn raise(&mut self, floor: Number, room: &mut impl Room<T>) {
        self.floor = floor;
        while let Some(first) = self.waiting.first_entry().filter(|first| *first.key() < floor) {
            room.waits_no_more(&first.remove().message);
        }
        self.full = self.full.filter(|(_, to)| *to >= floor);
        if !self.repeated.is_empty() {
            self.repeated = self.repeated.split_off(&floor);
        }
    }

    fn decide(&mut self, number: Number, message: T, room: &mut impl Room<T>, due: &mut Vec<Due>) {
        let decision = match self.full {
            Some((from, to)) => {
                self.full = Some((from, to.max(number)));
                Decision::Full
            }
            None if room.admit(number, message) => {
                self.taken = number;
                Decision::Taken
            }
            None => {
                self.full = Some((number, number));
                Decision::Full
            }
        };
        due.push(Due { number, decision, again: false });
    }

    /// Decides what has waited for what is decided now.
    fn release(&mut self, room: &mut impl Room<T>, due: &mut Vec<Due>) {
        while let Some(number) = self.waiting.iter().find(|(_, w)| self.is_open(w.previous)).map(|(number, _)| *number)
        {
            let Some(waiting) = self.waiting.remove(&number) else { return };
            room.waits_no_more(&waiting.message);
            if self.decision(number).is_none() {
                self.decide(number, waiting.message, room, due);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Shelf {
        had: Vec<Number>,
        room: usize,
        waiting: usize,
    }

    impl Room<Number> for Shelf {
        fn may_wait(&mut self, _: &Number) -> bool {
            self.waiting += 1;
            self.waiting <= 8
        }
        fn waits_no_more(&mut self, _: &Number) {
            self.waiting -= 1;
        }
        fn admit(&mut self, _number: Number, message: Number) -> bool {
            let fits = self.had.len() < self.room;
            if fits {
                self.had.push(message);
            }
            fits
        }
    }

    struct Desk {
        inbox: Inbox<Number>,
        shelf: Shelf,
    }

    impl Desk {
        fn new(room: usize) -> Self {
            Self { inbox: Inbox::default(), shelf: Shelf { room, ..Shelf::default() } }
        }

        fn put(&mut self, number: Number, previous: Number, floor: Number, attempt: u8) -> Vec<(Number, Decision)> {
            let mut due = Vec::new();
            let place = Place { number, previous, floor, attempt };
            self.inbox.arrive((1, Uuid::nil()), place, || true, || number, &mut self.shelf, &mut due);
            due.into_iter().map(|due| (due.number, due.decision)).collect()
        }
    }

    use Decision::{Full, Taken};

    #[test]
    fn a_successor_waits_for_its_predecessor_however_long() {
        let mut desk = Desk::new(9);
        assert_eq!(desk.put(8, 7, 7, 0), []);
        assert_eq!(desk.put(9, 8, 7, 0), []);
        assert_eq!(desk.put(7, 0, 7, 1), [(7, Taken), (8, Taken), (9, Taken)]);
        assert_eq!(desk.shelf.had, [7, 8, 9]);
        assert_eq!(desk.shelf.waiting, 0);
    }

    #[test]
    fn a_floor_above_a_predecessor_lets_go_on_and_the_predecessor_is_shown_no_more() {
        let mut desk = Desk::new(9);
        assert_eq!(desk.put(8, 7, 7, 0), []);
        assert_eq!(desk.put(8, 0, 8, 1), [(8, Taken)]);
        assert_eq!(desk.put(7, 0, 7, 0), [], "a late copy");
        assert_eq!(desk.shelf.had, [8]);
    }

    #[test]
    fn a_copy_is_answered_once_for_each_time_it_is_asked_for() {
        let mut desk = Desk::new(9);
        assert_eq!(desk.put(1, 0, 1, 0), [(1, Taken)]);
        assert_eq!(desk.put(1, 0, 1, 0), []);
        assert_eq!(desk.put(1, 0, 1, 1), [(1, Taken)]);
        assert_eq!(desk.put(1, 0, 1, 1), []);
        assert_eq!(desk.put(1, 0, 1, 2), [(1, Taken)]);
        assert_eq!(desk.shelf.had, [1]);
    }

    /// All links may be lost with the answers; then the first alone is asked about again.
    #[test]
    fn an_answer_about_a_later_one_does_not_stand_for_an_earlier_one() {
        let mut desk = Desk::new(9);
        for number in 1..=3 {
            desk.put(number, number - 1, 1, 0);
        }
        for number in 1..=3 {
            assert_eq!(desk.put(number, number - 1, 1, 1), [(number, Taken)]);
        }
        assert_eq!(desk.put(1, 0, 1, 2), [(1, Taken)]);
        assert_eq!(desk.put(3, 2, 3, 1), [], "a copy");
        assert_eq!(desk.put(3, 2, 3, 2), [(3, Taken)]);
        assert_eq!(desk.inbox.lanes[&(1, Uuid::nil())].repeated.len(), 1, "what nobody wants any more is forgotten");
    }

    #[test]
    fn after_a_full_everything_is_full_until_the_floor_has_passed() {
        let mut desk = Desk::new(1);
        assert_eq!(desk.put(1, 0, 1, 0), [(1, Taken)]);
        assert_eq!(desk.put(2, 1, 1, 0), [(2, Full)]);
        desk.shelf.room = 9;
        assert_eq!(desk.put(3, 2, 1, 0), [(3, Full)], "it may not overtake");
        assert_eq!(desk.put(2, 1, 1, 1), [(2, Full)], "a decision is repeated, whatever room there is now");
        assert_eq!(desk.put(4, 3, 3, 0), [(4, Full)], "3 was full, and its node does not know yet");
        assert_eq!(desk.put(5, 0, 5, 0), [(5, Taken)]);
        assert_eq!(desk.put(3, 2, 1, 0), [], "past");
        assert_eq!(desk.shelf.had, [1, 5]);
    }

    #[test]
    fn lanes_of_which_nothing_is_wanted_are_forgotten_and_not_begun() {
        let mut desk = Desk::new(9);
        desk.put(5, 0, 5, 0);
        desk.put(9, 8, 5, 0);
        let Desk { inbox, shelf } = &mut desk;
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        inbox.prune(now, second, |_| Some(9), shelf);
        assert!(!inbox.is_empty(), "9 is wanted");
        inbox.prune(now, second, |_| Some(10), shelf);
        assert!(!inbox.is_empty() && shelf.waiting == 0, "others may not know yet that nothing is wanted");
        inbox.prune(now + second, second, |_| Some(10), shelf);
        assert!(inbox.is_empty() && shelf.waiting == 0);
        let (lane, place) = ((1, Uuid::nil()), Place { number: 9, previous: 8, floor: 5, attempt: 0 });
        let arrival = inbox.arrive(lane, place, || false, || unreachable!("it is a copy"), shelf, &mut Vec::new());
        assert!(arrival == Arrival::Copy && inbox.is_empty());
    }
}
