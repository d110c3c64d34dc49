//! Owns what travels through Redis: a fixed binary header and the text, on the receiver's channel.
//!
//! ```text
//! 0             16          24        25           41          49          65
//! | predecessor | stamp, ms | version | message id | node tag  | sender id | text, UTF-8 …
//! ```
//! The predecessor is the message that the same node handed over to the same receiver last, or zero:
//! a receiver's node that has not seen it yet waits for it a moment, since it is on its way over
//! another link. The stamp counts milliseconds on the sending node's own monotonic clock, see [`Ages`].
//! Both are known only when the message is sent, so [`encode`] leaves them to [`prefix`].
//!
//! The header is fixed so that a copy is recognised by its id before anything is parsed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use crate::broker::Message;

const VERSION: u8 = 1;
/// Bytes of what [`prefix`] writes, and of what [`encode`] writes before the text.
const PREFIX: usize = 24;
const HEADER: usize = 41;
const CHANNEL_PREFIX: &[u8] = b"texto:";

/// Nodes whose clocks are remembered; beyond it, all are learnt anew.
const NODES: usize = 4096;

/// An envelope that was received, still in the buffer it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The message to be received before this one; nil if there is none.
    pub after: Uuid,
    /// The message's id.
    pub id: Uuid,
    /// Who sent it.
    pub sender: Uuid,
    /// The node that published it.
    pub node: u64,
    /// When that was wanted, on that node's clock.
    pub stamp_ms: u64,
    /// What it says; not checked to be UTF-8 yet.
    pub text: &'a [u8],
}

/// The beginning of an envelope: what goes before [`encode`]'s bytes.
pub fn prefix(after: Uuid, stamp_ms: u64) -> [u8; PREFIX] {
    let mut prefix = [0; PREFIX];
    prefix[..16].copy_from_slice(after.as_bytes());
    prefix[16..].copy_from_slice(&stamp_ms.to_be_bytes());
    prefix
}

/// Writes an envelope, but for its [`prefix`].
pub fn encode(message: &Message, node: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER + message.text.len());
    bytes.put_u8(VERSION);
    bytes.put_slice(message.id.as_bytes());
    bytes.put_u64(node);
    bytes.put_slice(message.sender.as_bytes());
    bytes.put_slice(message.text.as_bytes());
    bytes.freeze()
}

/// Reads an envelope without copying; `None` for anything that Texto did not write.
pub fn decode(bytes: &[u8]) -> Option<Envelope<'_>> {
    let (prefix, bytes) = bytes.split_first_chunk::<PREFIX>()?;
    let (header, text) = bytes.split_first_chunk::<HEADER>()?;
    if header[0] != VERSION {
        return None;
    }
    Some(Envelope {
        after: Uuid::from_slice(&prefix[..16]).ok()?,
        id: Uuid::from_slice(&header[1..17]).ok()?,
        sender: Uuid::from_slice(&header[25..41]).ok()?,
        node: u64::from_be_bytes(header[17..25].try_into().ok()?),
        stamp_ms: u64::from_be_bytes(prefix[16..].try_into().ok()?),
        text,
    })
}

/// The channel of `client`, `texto:<uuid>`.
pub fn channel(client: Uuid) -> [u8; 42] {
    let mut channel = [0; 42];
    channel[..6].copy_from_slice(CHANNEL_PREFIX);
    client.hyphenated().encode_lower(&mut channel[6..]);
    channel
}

/// The client of a channel.
pub fn client(channel: &[u8]) -> Option<Uuid> {
    Uuid::try_parse_ascii(channel.strip_prefix(CHANNEL_PREFIX)?).ok()
}

/// Tells how old an envelope is without trusting anybody's wall clock: the smallest difference of the
/// last minutes between the sender's stamp and the arrival here stands for "just now". It forgets, so
/// that a node whose clock stood still (a suspended machine) is understood again.
///
/// It is asked on a link to a replica that was connected anew: a replica that comes back after a long
/// hang replays its backlog, and the ids of such old copies may be forgotten already.
#[derive(Debug)]
pub struct Ages {
    start: Instant,
    nodes: HashMap<u64, Clock>,
}

#[derive(Debug)]
struct Clock {
    since_ms: i64,
    before_ms: i64,
    offset_ms: i64,
}

const GENERATION_MS: i64 = 60_000;

impl Ages {
    /// Starts to learn at `start`.
    pub fn new(start: Instant) -> Self {
        Self { start, nodes: HashMap::new() }
    }

    /// The age of an envelope that `node` stamped with `stamp_ms` and that arrives at `now`.
    pub fn age(&mut self, now: Instant, node: u64, stamp_ms: u64) -> Duration {
        let here = i64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(i64::MAX);
        let offset = here.saturating_sub(i64::try_from(stamp_ms).unwrap_or(i64::MAX));
        if self.nodes.len() >= NODES && !self.nodes.contains_key(&node) {
            self.nodes.clear();
        }
        let new = Clock { since_ms: here, before_ms: offset, offset_ms: offset };
        let clock = self.nodes.entry(node).or_insert(new);
        if here.saturating_sub(clock.since_ms) > GENERATION_MS {
            *clock = Clock { since_ms: here, before_ms: clock.offset_ms, offset_ms: offset };
        }
        clock.offset_ms = clock.offset_ms.min(offset);
        let least = clock.offset_ms.min(clock.before_ms);
        Duration::from_millis(u64::try_from(offset.saturating_sub(least)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(after: u128, id: u128, sender: u128, node: u64, stamp_ms: u64, text: String) {
            let (after, id, sender) = (Uuid::from_u128(after), Uuid::from_u128(id), Uuid::from_u128(sender));
            let message = Message { id, sender, receiver: Uuid::nil(), text };
            let bytes = [&prefix(after, stamp_ms)[..], &encode(&message, node)[..]].concat();
            let text = message.text.as_bytes();
            prop_assert_eq!(decode(&bytes), Some(Envelope { after, id, sender, node, stamp_ms, text }));
        }

        #[test]
        fn foreign_bytes_are_harmless(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = client(&bytes);
        }
    }

    #[test]
    fn channels() {
        let id = Uuid::new_v4();
        assert_eq!(channel(id), format!("texto:{id}").as_bytes());
        assert_eq!(client(&channel(id)), Some(id));
        assert_eq!(client(b"texto:nobody"), None);
    }

    #[test]
    fn age_is_told_without_a_common_clock() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut ages = Ages::new(start);
        assert_eq!(ages.age(at(1000), 1, 7_000_000), Duration::ZERO);
        assert_eq!(ages.age(at(1500), 1, 7_000_500), Duration::ZERO);
        assert_eq!(ages.age(at(41_500), 1, 7_000_500), Duration::from_secs(40));
        assert_eq!(ages.age(at(41_500), 2, 3), Duration::ZERO, "another node has another clock");
        for step in 0..200 {
            // Node 1 was suspended for 40 s: its messages look old at first, but not for ever.
            ages.age(at(41_500 + step * 1000), 1, 7_000_500 + step * 1000);
        }
        assert_eq!(ages.age(at(241_500), 1, 7_200_500), Duration::ZERO);
    }
}
