//! Owns where the messages of a session that can be resumed stand. Pure.
//!
//! ```text
//!             had              written           confirmed          last
//!   forgotten ─┴─ at the client ─┴─ may be written ─┴─ not yet copied ─┤
//!                 or on its way                        to the standby
//! ```
//! What the standby has not is not written, and not acknowledged to its sender either: if this node dies, nobody has
//! seen what nobody has. Without a standby this node's word is enough.

use std::collections::VecDeque;
use std::time::Instant;

use uuid::Uuid;

use crate::transport::envelope::{Number, Tag};

/// What a session's generation grows by when it gets another home: more than by all the sockets that it can have had
/// since that home's standby heard of it last.
const MOVE: u64 = 1 << 32;
/// Beyond the sockets that it is likely to have with one home. Whoever takes a session over without its home's word may not be the
/// only one; so many times this is what its generation has besides [`MOVE`] as its home had standbys before.
const STANDBY: u64 = 1 << 20;
/// Standbys that are told apart; who gets a session from its home knows more than any.
const STANDBYS: u64 = 1 << 10;
/// Beyond all the sockets that it can have had with one home. Where a move to a node came to nothing, and that one may have
/// been its home all the same, the connections from here on are those of the home that there is.
const OUTLIVED: u64 = 1 << 31;
/// What it grows by when nobody vouches for it, and it begins anew: more than by all the moves that somebody may have
/// made with it who was not heard.
const ANEW: u64 = 1 << 48;

/// The generation that somebody claims a session by who has credentials for it: whichever it is in.
pub const ANY: u64 = u64::MAX;

/// The generation of a session that gets another home, by the word of the one before.
pub fn moved(generation: u64) -> u64 {
    above(generation, STANDBYS)
}

/// The generation of a session that gets another home without the word of the one before, with all that this had given to its
/// `standby`th standby: a later one has more.
pub fn taken_over(generation: u64, standby: u16) -> u64 {
    above(generation, u64::from(standby).min(STANDBYS - 1))
}

fn above(generation: u64, standby: u64) -> u64 {
    (generation & !(MOVE - 1)).saturating_add(MOVE + standby * STANDBY)
}

/// Whether a session of `generation` has moved as often as one of `other`, or oftener, whoever it moved to.
pub fn has_moved_to(generation: u64, other: u64) -> bool {
    generation / MOVE >= other / MOVE
}

/// Whether a session of `generation` was taken over from the same home as one of `other`, by a later standby.
pub fn has_more(generation: u64, other: u64) -> bool {
    generation / MOVE == other / MOVE && generation / STANDBY > other / STANDBY
}

/// The generation of a session that may have been elsewhere in `generation`, with a node that is gone and nobody who has it
/// from that one.
pub fn outlived(generation: u64) -> u64 {
    generation | OUTLIVED
}

/// The generation of a session that begins anew, its client having a token of `generation`.
pub fn anew(generation: u64) -> u64 {
    (generation & !(ANEW - 1)).saturating_add(ANEW)
}

/// Whether a session of `generation` has another home, or has begun anew, since, or [had one](outlived), or [has](taken_over) one
/// with more: somebody has a token of `token`, which a home of this generation can't have given.
pub fn is_past(generation: u64, token: u64) -> bool {
    let (home, other) = (generation / OUTLIVED, token / OUTLIVED);
    token != ANY && (generation / STANDBY < token / STANDBY || home != other && home / 2 == other / 2)
}

/// Whether a session of `generation` and one that gave a token of `token` were both [taken over](taken_over) from the same home: what
/// the one has taken since has the positions of what the other has.
pub fn is_forked(generation: u64, token: u64) -> bool {
    token != ANY && generation / MOVE == token / MOVE && generation / STANDBY != token / STANDBY
}

/// Whether a session of `generation` has begun [anew] once.
pub fn has_begun_anew(generation: u64) -> bool {
    generation >= ANEW
}

/// Whether a session of `generation` has begun [anew] since it had given a token of `token`: positions are others.
pub fn is_numbered_anew(generation: u64, token: u64) -> bool {
    generation / ANEW != token / ANEW
}

/// A session's own numbers for its messages, from 1 on.
pub type Position = u64;

/// The message of a sending node that a decision is due for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The sending node.
    pub tag: Tag,
    /// The client it came from.
    pub sender: Uuid,
    /// Its number there.
    pub number: Number,
}

/// Decided here, and not confirmed by the standby yet.
#[derive(Clone, Copy, Debug)]
struct Unconfirmed {
    position: Position,
    origin: Origin,
    /// It stands for a message of its own; else it was asked for a second time.
    is_first: bool,
}

/// Who else has the session's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standby {
    /// The node.
    pub tag: Tag,
    /// Tells this standby from those before it.
    pub term: u64,
    /// It has everything up to here.
    pub confirmed: Position,
    /// It was given everything up to here.
    pub recorded: Position,
    /// It knows of the session.
    pub opened: bool,
    /// It has known it before this term, without another in between.
    pub known: bool,
}

/// The state of a session that can be resumed, beside its messages.
#[derive(Debug)]
pub struct Log {
    /// Grows whenever the session gets a new socket, and by much more when it [moves](moved).
    pub generation: u64,
    /// The client has everything up to here.
    pub had: Position,
    /// Written to the socket that there is now, up to here.
    pub written: Position,
    /// The highest that there is.
    pub last: Position,
    pub(super) standby: Option<Standby>,
    /// How often this home has given it to a standby.
    pub(super) standbys: u16,
    unconfirmed: VecDeque<Unconfirmed>,
    /// Since when something is written, and the client has not said what it has of it.
    pub unacknowledged_since: Option<Instant>,
    /// Tells the session's connections apart.
    pub attachment: u32,
    /// Since when there is no socket.
    pub detached_since: Option<Instant>,
    /// The newest token that the client is known to have is of this generation.
    pub proven: u64,
    /// It is on its way to another node, which has it from here on.
    pub moving: bool,
    /// The standby was told what the client has, in this generation.
    pub told: bool,
}

impl Log {
    pub(super) fn new(generation: u64) -> Self {
        Self {
            generation,
            had: 0,
            written: 0,
            last: 0,
            standby: None,
            standbys: 0,
            unconfirmed: VecDeque::new(),
            unacknowledged_since: None,
            attachment: 0,
            detached_since: None,
            proven: 0,
            moving: false,
            told: false,
        }
    }

    /// Up to where messages may be written.
    pub(super) fn writable(&self) -> Position {
        self.standby.map_or(self.last, |standby| standby.confirmed.min(self.last))
    }

    /// A message comes in behind `kept` others.
    pub(super) fn admitted(&mut self, kept: usize, tag: Tag, sender: Uuid, number: Number) -> Position {
        debug_assert_eq!(self.had + kept as u64, self.last);
        self.last += 1;
        if self.standby.is_some() {
            let origin = Origin { tag, sender, number };
            self.unconfirmed.push_back(Unconfirmed { position: self.last, origin, is_first: true });
        }
        self.last
    }

    /// The message at `position` comes once more, under another number.
    pub(super) fn had_already(&mut self, position: Position, tag: Tag, sender: Uuid, number: Number) {
        if position > self.writable() {
            let origin = Origin { tag, sender, number };
            self.unconfirmed.push_back(Unconfirmed { position, origin, is_first: false });
        }
    }

    /// Whether the sender of this may not be told yet that it is taken.
    pub(super) fn is_unconfirmed(&self, tag: Tag, sender: Uuid, number: Number) -> bool {
        let origin = Origin { tag, sender, number };
        self.unconfirmed.iter().any(|entry| entry.origin == origin)
    }

    /// The origin of the message at `position`, while the standby has not confirmed it.
    pub(super) fn origin(&self, position: Position) -> Option<Origin> {
        self.unconfirmed
            .iter()
            .rev()
            .find(|entry| entry.position == position && entry.is_first)
            .map(|entry| entry.origin)
    }

    /// The standby of `term` has everything up to `position`. Returns whom to tell, of those that it has not told itself.
    pub(super) fn confirm(&mut self, term: u64, position: Position) -> Vec<Origin> {
        match &mut self.standby {
            Some(standby) if standby.term == term => {
                standby.confirmed = standby.confirmed.max(position);
                standby.opened = true;
            }
            _ => return Vec::new(),
        }
        self.release(|entry| !entry.is_first)
    }

    /// Takes out what is confirmed; returns those of it that `tell` chooses.
    fn release(&mut self, tell: impl Fn(&Unconfirmed) -> bool) -> Vec<Origin> {
        let confirmed = self.writable();
        let mut told = Vec::new();
        while let Some(entry) = self.unconfirmed.front().filter(|entry| entry.position <= confirmed) {
            if tell(entry) {
                told.push(entry.origin);
            }
            self.unconfirmed.pop_front();
        }
        told
    }

    /// From now on `tag` has what this node has, once it was given it; or nobody, and this node's word is enough.
    /// Returns whom to tell.
    pub(super) fn set_standby(&mut self, tag: Option<Tag>, term: u64) -> Vec<Origin> {
        let had = self.had;
        // What another node once had may be shown: whoever takes over has it as well, or says that something is missing.
        let once = self.standby.map_or(0, |standby| standby.confirmed).min(self.last);
        let confirmed = self.written.max(had).max(once);
        let has_known = |tag| self.standby.is_some_and(|before| before.tag == tag && (before.opened || before.known));
        self.standbys = self.standbys.saturating_add(u16::from(tag.is_some()));
        self.standby =
            tag.map(|tag| Standby { tag, term, confirmed, recorded: had, opened: false, known: has_known(tag) });
        if tag.is_none() { self.release(|_| true) } else { Vec::new() }
    }

    /// The client has everything up to `position`. Returns how many messages are not needed any more.
    pub(super) fn had(&mut self, now: Instant, position: Position) -> usize {
        let position = position.min(self.written);
        let gone = position.saturating_sub(self.had);
        self.had += gone;
        self.told &= gone == 0;
        // Also if it has nothing more than before: whoever says so lives, and is just slow.
        self.unacknowledged_since = (self.written > self.had).then_some(now);
        if let Some(standby) = &mut self.standby {
            standby.recorded = standby.recorded.max(self.had);
        }
        gone as usize
    }

    /// Somebody has shown a token of `generation`, or that it has come.
    pub(super) fn show(&mut self, generation: u64) {
        if generation != ANY && generation > self.proven {
            self.proven = generation;
            self.told = false;
        }
    }

    /// Whether the standby has to be given messages.
    pub(super) fn has_records(&self) -> bool {
        self.standby.is_some_and(|standby| standby.recorded < self.last)
    }

    /// Whether the standby has to be told what the client has.
    pub(super) fn owes_had(&self) -> bool {
        self.standby.is_some() && !self.moving && !self.told
    }

    /// The next messages that the standby is to be given, by position, and its term.
    pub(super) fn next_records(&mut self) -> Option<(u64, std::ops::RangeInclusive<Position>)> {
        let last = self.last;
        let standby = self.standby.as_mut()?;
        let from = std::mem::replace(&mut standby.recorded, last) + 1;
        (from <= last).then_some((standby.term, from..=last))
    }

    /// Nothing is kept any more.
    pub(super) fn clear(&mut self) {
        self.told &= self.had == self.last;
        (self.had, self.written) = (self.last, self.last);
        self.unconfirmed.clear();
        if let Some(standby) = &mut self.standby {
            standby.recorded = self.last;
        }
    }

    /// A new connection, whose client has everything up to `seq`. Returns how many messages are not needed any more.
    pub(super) fn attach(&mut self, now: Instant, seq: Position) -> usize {
        self.attachment += 1;
        self.generation += 1;
        self.detached_since = None;
        self.told = false;
        // It may have what its last connection brought it, and had no time to say so.
        self.written = seq.clamp(self.had, self.last);
        self.had(now, self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_who_take_over_from_one_home_the_one_wins_who_has_more() {
        let home = 5 * MOVE + 7;
        let [first, third, most, given] =
            [taken_over(home, 1), taken_over(home, 3), taken_over(home, u16::MAX), moved(home)];
        assert!(first + 9 < third && third + 9 < most && most + 9 < given && given + 9 < outlived(given));
        assert!(has_more(third, first + 9) && has_more(given, third) && !has_more(first + 9, first));
        assert!(!has_more(moved(given), third), "of another home");
        assert!(is_past(first, third + 1) && !is_past(third, first + 1) && !is_past(first, first + 9));
        assert!(!is_past(moved(first), third) && is_past(home, first));
        assert!(is_forked(third, first + 1) && !is_forked(third, third + 1) && !is_forked(moved(first), first));
    }

    #[test]
    fn a_token_of_a_home_that_was_outlived_is_not_an_older_one() {
        let before = 3; // The third connection with this home, when it gave the session to another.
        let elsewhere = moved(before);
        let after = outlived(elsewhere);
        let tokens = [before, elsewhere + 1, after + 1];
        assert_eq!(tokens.map(|token| is_past(before, token)), [false, true, true]);
        assert_eq!(tokens.map(|token| is_past(elsewhere + 1, token)), [false, false, true]);
        assert_eq!(tokens.map(|token| is_past(after + 1, token)), [false, true, false]);
        assert_eq!(
            tokens.map(|token| is_past(moved(after + 1), token)),
            [false; 3],
            "whoever has it has all that there is"
        );
        assert!([before, after, anew(after)].map(|generation| is_past(generation, ANY)) == [false; 3]);
        assert!(!has_begun_anew(after) && has_begun_anew(moved(anew(after))));
    }
}
