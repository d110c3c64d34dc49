//! Owns what has come: what is new of it, what the application has taken, and what the server is told of that. Pure.
//!
//! ```text
//!   acknowledged        taken          received
//!  ─────┴─────────────────┴────────────────┴────▶ seq
//!         by the                waits for
//!         application           the application
//! ```
//! Only what was taken is acknowledged: a receiver who is slow fills the server's outbox, which its senders are told
//! (EBUSY), and not the memory here.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::frames::{self, Text};

/// So many messages are acknowledged at a time, at least.
const ACK_EVERY: usize = 64;
/// So long a message that was taken is not acknowledged, at most.
const ACK_AFTER: Duration = Duration::from_secs(1);
/// The same is said again so often while the application takes nothing: who says nothing for half a minute is closed.
const ACK_AGAIN: Duration = Duration::from_secs(10);
/// Ids of messages without numbers that are remembered.
const MOST_SEEN: usize = 2048;

/// What is to be done with a message that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is shown.
    New,
    /// It came before.
    Known,
    /// There is no room. It comes again, as does all that is behind it, over another connection.
    Refused,
}

/// What waits for the application.
#[derive(Debug)]
struct Waiting {
    mark: Mark,
    bytes: usize,
}

/// By what a message is acknowledged.
#[derive(Clone, Copy, Debug)]
enum Mark {
    Number(u64),
    Id(Uuid),
    /// It is of an older numbering.
    Stale,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    most_messages: usize,
    most_bytes: usize,
    /// The highest number that came.
    received: u64,
    /// The highest number that was taken.
    taken: u64,
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Nobody reads: what comes is taken.
    is_unread: bool,
    is_full: bool,
    unacknowledged: usize,
    ack_at: Option<Instant>,
    seen: HashSet<Uuid>,
    seen_in_order: VecDeque<Uuid>,
}

impl Inbox {
    pub(crate) fn new(most_messages: usize, most_bytes: usize) -> Self {
        Self {
            most_messages,
            most_bytes,
            received: 0,
            taken: 0,
            waiting: VecDeque::new(),
            bytes: 0,
            is_unread: false,
            is_full: false,
            unacknowledged: 0,
            ack_at: None,
            seen: HashSet::new(),
            seen_in_order: VecDeque::new(),
        }
    }

    /// The highest number that was taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether something had no room, and there is room now.
    pub(crate) fn has_room_again(&self) -> bool {
        self.is_full && self.waiting.len() * 2 <= self.most_messages && self.bytes * 2 <= self.most_bytes
    }

    /// When there is something to say.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.ack_at
    }

    /// A connection begins; what had no room comes again.
    pub(crate) fn begin(&mut self, is_resumed: bool) {
        self.is_full = false;
        self.unacknowledged = 0;
        self.ack_at = None;
        if !is_resumed {
            (self.received, self.taken) = (0, 0);
            for waiting in &mut self.waiting {
                waiting.mark = Mark::Stale;
            }
        }
    }

    /// The connection has ended: there is nobody to tell.
    pub(crate) fn end(&mut self) {
        self.ack_at = None;
    }

    /// A message came. Whoever shows it says so by [`Inbox::take`] once the application has it.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        id: Uuid,
        seq: Option<u64>,
        bytes: usize,
        out: &mut Vec<Text>,
    ) -> Arrival {
        let is_known = match seq {
            Some(seq) => seq <= self.received,
            None => self.seen.contains(&id),
        };
        if is_known {
            match seq {
                Some(_) => self.owe(now, ACK_AFTER),
                None => out.push(frames::ack(id)),
            }
            return Arrival::Known;
        }
        let is_over = self.waiting.len() >= self.most_messages || self.bytes + bytes > self.most_bytes;
        if self.is_full || (is_over && !self.waiting.is_empty()) {
            self.is_full = true;
            self.owe(now, ACK_AGAIN);
            return Arrival::Refused;
        }
        let mark = match seq {
            Some(seq) => {
                self.received = seq;
                self.owe(now, ACK_AGAIN);
                Mark::Number(seq)
            }
            None => {
                self.remember(id);
                Mark::Id(id)
            }
        };
        self.waiting.push_back(Waiting { mark, bytes });
        self.bytes += bytes;
        if self.is_unread {
            self.take(now, 1, out);
        }
        Arrival::New
    }

    fn remember(&mut self, id: Uuid) {
        self.seen.insert(id);
        self.seen_in_order.push_back(id);
        if self.seen_in_order.len() > MOST_SEEN
            && let Some(oldest) = self.seen_in_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }

    /// The application took the next `count` messages.
    pub(crate) fn take(&mut self, now: Instant, count: usize, out: &mut Vec<Text>) {
        for Waiting { mark, bytes } in self.waiting.drain(..count.min(self.waiting.len())) {
            self.bytes -= bytes;
            match mark {
                Mark::Number(seq) => {
                    self.taken = seq;
                    self.unacknowledged += 1;
                }
                Mark::Id(id) => out.push(frames::ack(id)),
                Mark::Stale => {}
            }
        }
        if self.unacknowledged >= ACK_EVERY {
            out.push(self.acknowledge(now));
        } else if self.unacknowledged > 0 {
            self.owe(now, ACK_AFTER);
        }
    }

    /// Nobody reads any more: all is taken, and what will come.
    pub(crate) fn take_all(&mut self, now: Instant, out: &mut Vec<Text>) {
        self.is_unread = true;
        self.take(now, usize::MAX, out);
    }

    fn owe(&mut self, now: Instant, within: Duration) {
        let at = now + within;
        self.ack_at = Some(self.ack_at.map_or(at, |before| before.min(at)));
    }

    /// Tells the server what was taken.
    pub(crate) fn acknowledge(&mut self, now: Instant) -> Text {
        self.unacknowledged = 0;
        self.ack_at = (!self.waiting.is_empty() || self.is_full).then(|| now + ACK_AGAIN);
        frames::had(self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn inbox() -> Inbox {
        Inbox::new(100, 1000)
    }

    fn seq_of(Text(frame): &Text) -> u64 {
        serde_json::from_str::<serde_json::Value>(frame).unwrap()["data"]["seq"].as_u64().unwrap()
    }

    fn come(inbox: &mut Inbox, now: Instant, seq: u64) -> Arrival {
        inbox.receive(now, Uuid::new_v4(), Some(seq), 1, &mut Vec::new())
    }

    #[test]
    fn only_what_was_taken_is_acknowledged_lazily() {
        let (mut inbox, now, mut out) = (inbox(), Instant::now(), Vec::new());
        (1..=70).for_each(|seq| assert_eq!(come(&mut inbox, now, seq), Arrival::New));
        assert_eq!(come(&mut inbox, now, 70), Arrival::Known);
        inbox.acknowledge(now); // For what came twice.
        inbox.take(now, 63, &mut out);
        assert!(out.is_empty());
        assert_eq!(inbox.deadline(), Some(now + SECOND));
        inbox.take(now, 1, &mut out);
        assert_eq!(out.iter().map(seq_of).collect::<Vec<_>>(), [64]);
        // The rest waits: the same is said again, lest the server takes this client for dead.
        assert_eq!(inbox.deadline(), Some(now + ACK_AGAIN));
        let later = now + ACK_AGAIN;
        assert_eq!((seq_of(&inbox.acknowledge(later)), inbox.deadline()), (64, Some(later + ACK_AGAIN)));
        inbox.take(later, 6, &mut out);
        assert_eq!((seq_of(&inbox.acknowledge(later)), inbox.deadline()), (70, None));
    }

    #[test]
    fn what_has_no_room_comes_again_and_nothing_overtakes_it() {
        let (mut inbox, now, mut out) = (inbox(), Instant::now(), Vec::new());
        (1..=100).for_each(|seq| assert_eq!(come(&mut inbox, now, seq), Arrival::New));
        assert_eq!(come(&mut inbox, now, 101), Arrival::Refused);
        inbox.take(now, 49, &mut out);
        assert!(!inbox.has_room_again());
        assert_eq!(come(&mut inbox, now, 102), Arrival::Refused, "101 comes first");
        inbox.take(now, 1, &mut out);
        assert!(inbox.has_room_again());
        inbox.begin(true);
        assert!(!inbox.has_room_again());
        assert_eq!(inbox.taken(), 50);
        assert_eq!(come(&mut inbox, now, 100), Arrival::Known);
        assert_eq!(come(&mut inbox, now, 101), Arrival::New);
        // By bytes as well; but one message always has room.
        assert_eq!(inbox.receive(now, Uuid::new_v4(), Some(102), 950, &mut out), Arrival::Refused);
        inbox.take(now, 100, &mut out);
        inbox.begin(true);
        assert_eq!(inbox.receive(now, Uuid::new_v4(), Some(102), 5000, &mut out), Arrival::New);
    }

    #[test]
    fn numbers_of_an_older_session_are_not_acknowledged_in_a_newer_one() {
        let (mut inbox, now, mut out) = (inbox(), Instant::now(), Vec::new());
        (1..=5).for_each(|seq| assert_eq!(come(&mut inbox, now, seq), Arrival::New));
        inbox.take(now, 2, &mut out);
        inbox.begin(false);
        assert_eq!(come(&mut inbox, now, 1), Arrival::New);
        inbox.take(now, 3, &mut out);
        assert_eq!(inbox.taken(), 0);
        inbox.take(now, 1, &mut out);
        assert_eq!((inbox.taken(), out.len()), (1, 0));
    }

    #[test]
    fn without_numbers_each_is_acknowledged_by_its_id_and_shown_once() {
        let (mut inbox, now, mut out) = (inbox(), Instant::now(), Vec::new());
        let id = Uuid::new_v4();
        assert_eq!(inbox.receive(now, id, None, 1, &mut out), Arrival::New);
        assert!(out.is_empty());
        inbox.take(now, 1, &mut out);
        assert_eq!(inbox.receive(now, id, None, 1, &mut out), Arrival::Known);
        assert_eq!(out, [frames::ack(id), frames::ack(id)]);
        (0..3000).for_each(|_| {
            inbox.receive(now, Uuid::new_v4(), None, 1, &mut out);
            inbox.take(now, 1, &mut out);
        });
        assert_eq!((inbox.seen.len(), inbox.seen_in_order.len()), (MOST_SEEN, MOST_SEEN));
    }

    #[test]
    fn what_nobody_reads_is_taken_as_it_comes() {
        let (mut inbox, now, mut out) = (inbox(), Instant::now(), Vec::new());
        assert_eq!(come(&mut inbox, now, 1), Arrival::New);
        inbox.take_all(now, &mut out);
        (2..=200).for_each(|seq| assert_eq!(come(&mut inbox, now, seq), Arrival::New));
        assert_eq!((inbox.taken(), inbox.bytes), (200, 0));
    }
}
