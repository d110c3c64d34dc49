//! Owns who the other nodes are: which of them live, and what each of them still wants.
//!
//! ```text
//!              hello of an unknown tag       answer to our question
//!   (unknown) ──────────────────────▶ Asked ─────────────────────▶ Known ──silent for long, or bye──▶ (unknown)
//! ```
//! Nothing is taken from a tag that is not known. A hello alone makes nobody known: a replica that lags by an
//! hour replays the hellos of nodes that died; they can't answer a question that is asked now.

pub mod roll;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use super::envelope::{Hello, KeyList, Number, Tag};

/// How often a node says hello.
pub const HELLO_EVERY: Duration = Duration::from_secs(2);
/// Silent for so long, a node is forgotten: longer than any send may take.
pub const FORGET: Duration = Duration::from_secs(30);
/// So long it is remembered that a node has left: longer than anybody doubts what it could vouch for.
const REMEMBER_LEFT: Duration = Duration::from_secs(60);
/// A node that is subscribed nowhere may be connecting anew: for so long its clients are not declared absent.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same when nodes come and go all the time: one that crashes in a loop must not make every absence slow.
const IMPATIENCE: Duration = Duration::from_millis(250);
/// So many may be lost within [`LATELY`] before patience wears thin.
const FEW: usize = 3;
/// What was seen longer ago than this says nothing about now.
const LOOKED: Duration = Duration::from_secs(1);
const LATELY: Duration = Duration::from_secs(60);
/// After the first link is synced, and after a standstill, for so long nobody is declared absent: the others have not said
/// hello yet.
pub const INTRODUCTION: Duration = Duration::from_millis(500);
/// A node that no server knows at so many looks in a row is gone.
const GONE: u32 = 2;
/// A node that is subscribed, and says no hello for so long, is as good as gone.
const SILENT: Duration = Duration::from_millis(3500);
/// A node says hello more often than that, so one that is gone and was heard later has not been so for long.
const LATELY_HEARD: Duration = Duration::from_secs(3);
/// Characters of a node's name that are kept.
const MOST_NAME: usize = 128;
/// Questions that wait for an answer.
const MOST_ASKED: usize = 1024;
/// A question may find its node not subscribed yet: it is asked again after this, doubling, as long as there is reason.
const ASK_AGAIN: Duration = Duration::from_millis(2);
const ASK_AGAIN_MOST: Duration = Duration::from_secs(1);

/// The nodes, as this one knows them.
#[derive(Debug)]
pub struct Peers {
    me: Tag,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: BTreeMap<Tag, Peer>,
    asked: BTreeMap<Tag, Asked>,
    /// When nodes were lost lately.
    lost: VecDeque<Instant>,
    /// Nodes that have left in an orderly way, and when.
    left: BTreeMap<Tag, Instant>,
    listening: Option<Instant>,
}

impl Inner {
    fn own_hello(&self, me: Tag) -> Instant {
        self.known.get(&me).map_or_else(Instant::now, |peer| peer.heard)
    }
}

#[derive(Debug)]
struct Peer {
    name: String,
    floor: Number,
    /// When it answered its first question.
    met: Instant,
    heard: Instant,
    /// When it answered a question last: that can't be replayed.
    answered: Instant,
    absence: Absence,
    /// Looks at all servers in a row that did not find it.
    unseen: u32,
    leaving: bool,
    /// What it has said of its keys last.
    keys: Option<KeyList>,
}

impl Peer {
    fn new(now: Instant, name: &str, floor: Number) -> Self {
        Self {
            name: name.chars().take(MOST_NAME).collect(),
            floor,
            met: now,
            heard: now,
            answered: now,
            absence: Absence::None,
            unseen: 0,
            leaving: false,
            keys: None,
        }
    }

    /// `own`: when this node heard its own hello last. Cut off, it hears nobody's.
    fn is_gone(&self, own: Instant) -> bool {
        self.unseen >= GONE || own.saturating_duration_since(self.heard) >= SILENT
    }
}

/// Whether a node has its subscriptions on some server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    None,
    /// Since when on no server, when that was seen last, and how long it may be a new connection under way.
    Missing {
        since: Instant,
        seen: Instant,
        patience: Duration,
    },
    /// For too long: its sessions are not waited for.
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    nonce: u64,
    at: Instant,
    pause: Duration,
}

/// Whether a message may be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its node lives and may want it.
    Wanted,
    /// Its node wants it no more.
    Past,
    /// Its node is not known to live.
    Stranger,
}

impl Peers {
    /// Knows this node alone.
    pub fn new(now: Instant, me: Tag) -> Self {
        let peers = Self { me, inner: RwLock::default() };
        peers.write().known.insert(me, Peer::new(now, "", 0));
        peers
    }

    /// This node's own tag.
    pub fn me(&self) -> Tag {
        self.me
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        // No state is left half-changed by the code that holds this lock.
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether message `number` of `tag` may be looked at.
    pub fn standing(&self, tag: Tag, number: Number) -> Standing {
        match self.read().known.get(&tag) {
            None => Standing::Stranger,
            // It wants nothing any more, but a server that lags may replay what it once wanted.
            Some(peer) if peer.unseen >= GONE => Standing::Stranger,
            Some(peer) if number < peer.floor => Standing::Past,
            Some(_) => Standing::Wanted,
        }
    }

    /// The lowest number that `tag` may still want; `None` for one that is not known.
    pub fn floor(&self, tag: Tag) -> Option<Number> {
        self.read().known.get(&tag).map(|peer| peer.floor)
    }

    /// `tag` said hello. Returns whether it is known.
    pub fn hello(&self, now: Instant, tag: Tag, hello: &Hello) -> bool {
        match self.write().known.get_mut(&tag) {
            Some(peer) => {
                peer.heard = now;
                peer.floor = peer.floor.max(hello.floor);
                true
            }
            None => false,
        }
    }

    /// Whether `tag` has told its floor since `since`.
    pub fn has_told_floor(&self, tag: Tag, since: Instant) -> bool {
        self.read().known.get(&tag).is_some_and(|peer| peer.answered > since)
    }

    /// The nonce to ask `tag` with, if it is time to ask. One that is known is asked for its floor, if `again`.
    pub fn question(&self, now: Instant, tag: Tag, again: bool) -> Option<u64> {
        let mut inner = self.write();
        if !again && inner.known.contains_key(&tag) {
            return None;
        }
        if inner.asked.len() >= MOST_ASKED {
            inner.asked.retain(|_, asked| now.saturating_duration_since(asked.at) < HELLO_EVERY);
        }
        if inner.asked.len() >= MOST_ASKED {
            return None;
        }
        let new = Asked { nonce: fastrand::u64(1..), at: now, pause: ASK_AGAIN };
        let asked = match inner.asked.get(&tag) {
            None => new,
            Some(asked) if now.saturating_duration_since(asked.at) < asked.pause => return None,
            Some(asked) => Asked { at: now, pause: (asked.pause * 2).min(ASK_AGAIN_MOST), ..*asked },
        };
        inner.asked.insert(tag, asked);
        Some(asked.nonce)
    }

    /// `tag` answered. Returns whether it is known from now on and was not before.
    pub fn answered(&self, now: Instant, tag: Tag, nonce: u64, hello: &Hello) -> bool {
        let mut inner = self.write();
        if inner.asked.get(&tag).is_none_or(|asked| asked.nonce != nonce) {
            return false;
        }
        inner.asked.remove(&tag);
        let is_new = !inner.known.contains_key(&tag);
        let peer = inner.known.entry(tag).or_insert_with(|| Peer::new(now, &hello.name, hello.floor));
        peer.floor = peer.floor.max(hello.floor);
        (peer.heard, peer.answered, peer.unseen) = (now, now, 0);
        is_new
    }

    /// `tag` has left in an orderly way.
    pub fn left(&self, now: Instant, tag: Tag) {
        if tag != self.me {
            let mut inner = self.write();
            inner.known.remove(&tag);
            inner.left.insert(tag, now);
        }
    }

    /// Whether it has, a while ago at the most: it had no session any more then.
    pub fn has_left(&self, tag: Tag) -> bool {
        self.read().left.contains_key(&tag)
    }

    /// Forgets who has been silent for long; this node's own floor is `floor`.
    pub fn tick(&self, now: Instant, floor: Number) {
        let mut inner = self.write();
        let me = self.me;
        if let Some(own) = inner.known.get_mut(&me) {
            own.floor = own.floor.max(floor);
        }
        inner.left.retain(|_, at| now.saturating_duration_since(*at) < REMEMBER_LEFT);
        inner.known.retain(|tag, peer| *tag == me || now.saturating_duration_since(peer.heard) < FORGET);
        // It is asked anew each time that it is heard of.
        inner.asked.retain(|_, asked| now.saturating_duration_since(asked.at) < 2 * HELLO_EVERY);
    }

    /// A link of this node is synced: the others can be heard from now on.
    pub fn listening(&self, now: Instant) {
        self.write().listening.get_or_insert(now);
    }

    /// This node stood still: whoever began meanwhile has yet to be met.
    pub fn stood_still(&self, now: Instant) {
        if let Some(since) = &mut self.write().listening {
            *since = now;
        }
    }

    /// Everybody who is known.
    pub fn tags(&self) -> Vec<Tag> {
        self.read().known.keys().copied().collect()
    }

    /// Since when `tag` is known.
    pub fn met(&self, tag: Tag) -> Option<Instant> {
        self.read().known.get(&tag).map(|peer| peer.met)
    }

    /// A server has all the subscriptions of these nodes.
    pub fn present(&self, tags: &HashSet<Tag>) {
        let is_away = |peer: &Peer| peer.absence != Absence::None || peer.unseen > 0;
        if self.read().known.iter().any(|(tag, peer)| is_away(peer) && tags.contains(tag)) {
            let mut inner = self.write();
            for (_, peer) in inner.known.iter_mut().filter(|(tag, _)| tags.contains(tag)) {
                (peer.absence, peer.unseen) = (Absence::None, 0);
            }
        }
    }

    /// All servers were asked for these nodes' own channels, and have these.
    pub fn looked(&self, asked: &[Tag], present: &HashSet<Tag>) {
        let mut inner = self.write();
        for tag in asked {
            if let Some(peer) = inner.known.get_mut(tag) {
                peer.unseen = if present.contains(tag) { 0 } else { peer.unseen + 1 };
            }
        }
    }

    /// `tag` is about to leave.
    pub fn leaving(&self, tag: Tag) {
        if let Some(peer) = self.write().known.get_mut(&tag) {
            peer.leaving = true;
        }
    }

    /// `tag` has these keys. One that is not known may be dead, and this a replay.
    pub fn has_keys(&self, tag: Tag, list: KeyList) {
        if let Some(peer) = self.write().known.get_mut(&tag)
            && peer.keys.as_ref().is_none_or(|known| known.edition <= list.edition)
        {
            peer.keys = Some(list);
        }
    }

    /// The keys of the others, as far as they have said.
    pub fn keys(&self) -> Vec<(Tag, KeyList)> {
        let inner = self.read();
        let said = inner.known.iter().filter(|(tag, _)| **tag != self.me);
        said.filter_map(|(tag, peer)| Some((*tag, peer.keys.clone()?))).collect()
    }

    /// Whether `tag` lives no more, as far as can be seen from here.
    pub fn is_gone(&self, tag: Tag) -> bool {
        let inner = self.read();
        tag != self.me && inner.known.get(&tag).is_none_or(|peer| peer.is_gone(inner.own_hello(self.me)))
    }

    /// Whether `tag`, which is gone, has its subscriptions all the same: it hangs.
    pub fn hangs(&self, tag: Tag) -> bool {
        self.read().known.get(&tag).is_some_and(|peer| peer.unseen < GONE)
    }

    /// How many nodes are gone that were heard of a moment ago, and have not said goodbye: they may have died, or stand still.
    pub fn vanished(&self, now: Instant) -> usize {
        let inner = self.read();
        let own = inner.own_hello(self.me);
        let has_vanished = |peer: &Peer| peer.is_gone(own) && now.saturating_duration_since(peer.heard) < LATELY_HEARD;
        inner.known.iter().filter(|(tag, peer)| **tag != self.me && has_vanished(peer)).count()
    }

    /// Whether this node's own hellos come back to it, as they do unless it is cut off.
    pub fn hears_itself(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.read().own_hello(self.me)) < SILENT
    }

    /// Whether `tag` has said that it will leave.
    pub fn is_leaving(&self, tag: Tag) -> bool {
        self.read().known.get(&tag).is_some_and(|peer| peer.leaving)
    }

    /// The other nodes that can be given something to keep.
    pub fn keepers(&self) -> Vec<Tag> {
        let inner = self.read();
        let own = inner.own_hello(self.me);
        let is_well = |peer: &Peer| !peer.leaving && peer.unseen == 0 && !peer.is_gone(own);
        inner.known.iter().filter(|(tag, peer)| **tag != self.me && is_well(peer)).map(|(tag, _)| *tag).collect()
    }

    /// Whether a server that has `present` has every node, but for those that are not waited for.
    pub fn are_all_in(&self, present: &HashSet<Tag>) -> bool {
        self.read().known.iter().all(|(tag, peer)| present.contains(tag) || peer.absence == Absence::Lost)
    }

    /// Whether servers on which these nodes have all their subscriptions speak for everybody: who has none there is
    /// not subscribed anywhere else either. It takes note of who is missing.
    pub fn speak_for_all(&self, now: Instant, covered: &HashSet<Tag>, every_server_asked: bool) -> bool {
        let mut inner = self.write();
        let introduced = inner.listening.is_some_and(|since| now.saturating_duration_since(since) >= INTRODUCTION);
        let Inner { known, lost, .. } = &mut *inner;
        while lost.front().is_some_and(|at| now.saturating_duration_since(*at) > LATELY) {
            lost.pop_front();
        }
        let patience = if lost.len() < FEW { PATIENCE } else { IMPATIENCE };
        let mut all = true;
        for (tag, peer) in known {
            match peer.absence {
                _ if covered.contains(tag) => peer.absence = Absence::None,
                Absence::None if every_server_asked => {
                    peer.absence = Absence::Missing { since: now, seen: now, patience };
                }
                // Nobody looked for a while: it may have been back in between.
                Absence::Missing { seen, .. } if now.saturating_duration_since(seen) > LOOKED => {
                    peer.absence = Absence::Missing { since: now, seen: now, patience };
                }
                Absence::Missing { since, patience, .. } if now.saturating_duration_since(since) >= patience => {
                    peer.absence = Absence::Lost;
                    lost.push_back(now);
                }
                Absence::Missing { since, patience, .. } => {
                    peer.absence = Absence::Missing { since, seen: now, patience };
                }
                _ => {}
            }
            all &= covered.contains(tag) || peer.absence == Absence::Lost;
        }
        all && introduced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_living_and_the_newest() {
        let now = Instant::now();
        let peers = Peers::new(now, 1);
        let list = |edition| KeyList { edition, keys: Vec::new(), name: "two".to_owned() };
        let editions = || peers.keys().iter().map(|(tag, list)| (*tag, list.edition)).collect::<Vec<_>>();
        peers.has_keys(2, list(1));
        assert_eq!(editions(), [], "it is not known to live");
        let nonce = peers.question(now, 2, false).unwrap();
        peers.answered(now, 2, nonce, &said(1));
        for (edition, newest) in [(1, 1), (3, 3), (2, 3)] {
            peers.has_keys(2, list(edition));
            assert_eq!(editions(), [(2, newest)]);
        }
        peers.has_keys(1, list(1));
        assert_eq!(editions(), [(2, 3)], "its own are no news");
        peers.left(now, 2);
        assert_eq!(editions(), []);
    }

    fn said(floor: Number) -> Hello {
        Hello { floor, writes: 2, reads: 2, name: String::new() }
    }

    #[test]
    fn only_who_answers_is_known() {
        let now = Instant::now();
        let peers = Peers::new(now, 1);
        assert!(!peers.hello(now, 2, &said(5)));
        assert_eq!(peers.standing(2, 9), Standing::Stranger);
        let nonce = peers.question(now, 2, false).unwrap();
        assert_eq!(peers.question(now + Duration::from_millis(1), 2, false), None, "asked a moment ago");
        assert!(!peers.answered(now, 2, nonce ^ 1, &said(5)));
        assert!(peers.answered(now, 2, nonce, &said(5)));
        assert!(!peers.answered(now, 2, nonce, &said(5)), "an answer is good once");
        assert_eq!((peers.standing(2, 4), peers.standing(2, 5)), (Standing::Past, Standing::Wanted));
        peers.hello(now, 2, &said(8));
        peers.hello(now, 2, &said(6));
        assert_eq!(peers.standing(2, 7), Standing::Past, "a replayed hello takes nothing back");
        peers.tick(now + FORGET, 3);
        assert_eq!(peers.standing(2, 9), Standing::Stranger);
        assert_eq!(peers.floor(1), Some(3));
    }

    #[test]
    fn nobody_is_absent_while_a_node_is_missing_but_a_crash_loop_is_no_excuse() {
        let start = Instant::now();
        let peers = Peers::new(start, 1);
        peers.listening(start);
        let mut now = start + INTRODUCTION;
        let meet = |tag, now| {
            let nonce = peers.question(now, tag, false).unwrap();
            peers.answered(now, tag, nonce, &said(0));
        };
        let all = |covered: &[Tag], now| peers.speak_for_all(now, &covered.iter().copied().collect(), true);
        assert!(all(&[1], now));
        for tag in 2..=4 {
            meet(tag, now);
            assert!(!all(&[1], now));
            for _ in 0..9 {
                now += PATIENCE / 10;
                assert!(!all(&[1], now));
            }
            now += PATIENCE / 10;
            assert!(all(&[1], now));
        }
        meet(5, now);
        assert!(!all(&[1], now));
        assert!(all(&[1], now + IMPATIENCE));
        assert!(!peers.speak_for_all(now, &HashSet::new(), false), "not everybody was asked");
        now += IMPATIENCE;
        peers.stood_still(now);
        assert!(!all(&[1], now), "somebody may have begun meanwhile");
        assert!(all(&[1], now + INTRODUCTION));
    }
}
