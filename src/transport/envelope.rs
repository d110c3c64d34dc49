//! Owns the bytes that nodes send one another through Redis.
//!
//! ```text
//! 0     3         4      5         8     16
//! | TXT | version | kind | attempt | tag | the kind's own fields …
//!
//! message   16 number | 24 previous | 32 floor | 40 generation | 44 (zero) | 48 id | 64 sender | 80 text …
//! receipts  16 (number, 8 | generation, 4 | decision, 1) …
//! hello     16 floor | 24 version written | 25 highest version read | 26 node's name …
//! ask       16 nonce
//! answer    16 nonce | 24 as a hello from 16 on
//! bye       (nothing)
//! leaving   (nothing)
//! held      16 generation | 24 term | 32 client
//! keys      16 edition | 24 count, 1 | fingerprints, 4 each, the one that signs first | node's name …
//! ```
//! Numbers are big-endian. `tag` is the sending process: new for each start. What a later version appends to
//! a frame is ignored by this one; a frame of another version is counted and named, never guessed at.

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use crate::resume::token::Fingerprint;

/// Tells one run of a node from all others.
pub type Tag = u64;
/// A message's number: each node counts its own, from 1.
pub type Number = u64;

/// The version that this release writes and reads.
pub const VERSION: u8 = 2;
const MAGIC: &[u8; 3] = b"TXT";
const HEAD: usize = 48;
const RECEIPT: usize = 13;
/// Bytes that a message costs beside its text, on the wire and in memory, roughly.
pub const OVERHEAD: usize = 256;

/// A channel of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// `texto:<uuid>`: messages for a client.
    Client(Uuid),
    /// `texto:claim:<uuid>`: who wants to have this client's session; its home and its standby listen.
    Claim(Uuid),
    /// `texto:node:<tag>`: what is for one node alone.
    Node(Tag),
    /// `texto:nodes`: what all nodes hear.
    Nodes,
}

impl Channel {
    /// The name in Redis.
    pub fn name(self) -> String {
        match self {
            Self::Client(client) => format!("texto:{client}"),
            Self::Claim(client) => format!("texto:claim:{client}"),
            Self::Node(tag) => format!("texto:node:{tag:016x}"),
            Self::Nodes => "texto:nodes".to_owned(),
        }
    }

    /// Reads a name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let rest = name.strip_prefix(b"texto:")?;
        if rest == b"nodes" {
            return Some(Self::Nodes);
        }
        if let Some(tag) = rest.strip_prefix(b"node:") {
            return Some(Self::Node(u64::from_str_radix(std::str::from_utf8(tag).ok()?, 16).ok()?));
        }
        if let Some(client) = rest.strip_prefix(b"claim:") {
            return Some(Self::Claim(Uuid::try_parse_ascii(client).ok()?));
        }
        Some(Self::Client(Uuid::try_parse_ascii(rest).ok()?))
    }
}

/// Where a message stands in its lane: written anew each time it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub number: Number,
    /// The newest unsettled message before it in its lane, or zero.
    pub previous: Number,
    /// The lowest number of the lane that its node still wants.
    pub floor: Number,
    /// How often its node has asked for a receipt already.
    pub attempt: u8,
}

/// What became of a message at its receiver's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// The session has it.
    Taken,
    /// There was no room.
    Full,
    /// No such session here (any more).
    Absent,
}

/// A message, still in the buffer it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The node that published it.
    pub tag: Tag,
    /// Where it stands in its lane.
    pub place: Place,
    /// The message's id.
    pub id: Uuid,
    /// Who sent it.
    pub sender: Uuid,
    /// What it says; not checked to be UTF-8 yet.
    pub text: &'a [u8],
}

/// A node's sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Nothing of it that is numbered lower is wanted any more.
    pub floor: Number,
    /// The version it writes.
    pub writes: u8,
    /// The highest version it reads.
    pub reads: u8,
    /// Its name, for logs.
    pub name: String,
}

/// What a node may say to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message for a client.
    Message(Envelope<'a>),
    /// What became of messages of the node whose channel this came on, by the word of another.
    Receipts(Tag, Vec<(Number, Decision)>),
    /// A sign of life, to everybody.
    Hello(Tag, Hello),
    /// Are you alive? A replayed hello can't answer.
    Ask(Tag, u64),
    /// Yes.
    Answer(Tag, u64, Hello),
    /// This node has left in an orderly way.
    Bye(Tag),
    /// This node will leave: nobody is to give it anything to keep.
    Leaving(Tag),
    /// This node has a client's session, and whoever has it in an older generation has it no more.
    Held(Tag, Holding),
    /// Which keys this node signs and verifies resume tokens with.
    Keys(Tag, KeyList),
}

/// The keys of a node, by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyList {
    /// Grows when they change: what is older may be a replay.
    pub edition: u64,
    /// The one that signs first; 255 at the most.
    pub keys: Vec<Fingerprint>,
    /// The node's name, for logs.
    pub name: String,
}

/// Which session a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Whose it is.
    pub client: Uuid,
    /// Its generation.
    pub generation: u64,
    /// Between two of one generation the later term wins: its standby was told more.
    pub term: u64,
    /// Of the question that this is, or answers; else 0.
    pub nonce: u64,
}

/// Why bytes are no frame of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Foreign {
    /// A version that this release doesn't read, 1 being that of release 0.1.
    Version(u8),
    /// A kind that this release doesn't know.
    Kind(u8),
    /// Not written by Texto.
    Malformed,
}

const MESSAGE: u8 = 1;
const RECEIPTS: u8 = 2;
const HELLO: u8 = 3;
const ASK: u8 = 4;
const ANSWER: u8 = 5;
const BYE: u8 = 6;
const LEAVING: u8 = 7;
const HELD: u8 = 8;
const KEYS: u8 = 9;

/// The head of a message: what goes before [`body`]'s bytes.
pub fn head(tag: Tag, place: Place) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..3].copy_from_slice(MAGIC);
    head[3] = VERSION;
    head[4] = MESSAGE;
    head[5] = place.attempt;
    head[8..16].copy_from_slice(&tag.to_be_bytes());
    head[16..24].copy_from_slice(&place.number.to_be_bytes());
    head[24..32].copy_from_slice(&place.previous.to_be_bytes());
    head[32..40].copy_from_slice(&place.floor.to_be_bytes());
    head
}

/// What is the same each time a message is published.
pub fn body(id: Uuid, sender: Uuid, text: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(32 + text.len());
    body.put_slice(id.as_bytes());
    body.put_slice(sender.as_bytes());
    body.put_slice(text);
    body.freeze()
}

/// Whether the message of this [`body`] may be asked for again by another node.
pub fn may_come_again(body: &[u8]) -> bool {
    // The version of its id: the high half of its seventh byte (RFC 9562, section 4.2).
    body.get(6).is_some_and(|byte| usize::from(byte >> 4) == crate::broker::REPEATABLE)
}

fn begin(kind: u8, tag: Tag, capacity: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(16 + capacity);
    bytes.put_slice(MAGIC);
    bytes.put_slice(&[VERSION, kind, 0, 0, 0]);
    bytes.put_u64(tag);
    bytes
}

/// Receipts from `tag`.
pub fn receipts(tag: Tag, receipts: &[(Number, Decision)]) -> Bytes {
    let mut bytes = begin(RECEIPTS, tag, receipts.len() * RECEIPT);
    for (number, decision) in receipts {
        bytes.put_u64(*number);
        bytes.put_u32(0); // The session's generation: there is one so far.
        bytes.put_u8(match decision {
            Decision::Taken => 1,
            Decision::Full => 2,
            Decision::Absent => 3,
        });
    }
    bytes.freeze()
}

/// A sign of life of `tag`.
pub fn hello(tag: Tag, floor: Number, name: &str) -> Bytes {
    let mut bytes = begin(HELLO, tag, 16 + name.len());
    put_hello(&mut bytes, floor, name);
    bytes.freeze()
}

/// The question of `tag` whether a node is alive.
pub fn ask(tag: Tag, nonce: u64) -> Bytes {
    let mut bytes = begin(ASK, tag, 8);
    bytes.put_u64(nonce);
    bytes.freeze()
}

/// The answer of `tag` to such a question.
pub fn answer(tag: Tag, nonce: u64, floor: Number, name: &str) -> Bytes {
    let mut bytes = begin(ANSWER, tag, 24 + name.len());
    bytes.put_u64(nonce);
    put_hello(&mut bytes, floor, name);
    bytes.freeze()
}

/// The farewell of `tag`.
pub fn bye(tag: Tag) -> Bytes {
    begin(BYE, tag, 0).freeze()
}

/// The word of `tag` that it will leave.
pub fn leaving(tag: Tag) -> Bytes {
    begin(LEAVING, tag, 0).freeze()
}

/// The word of `tag` that it has a session.
pub fn held(tag: Tag, holding: &Holding) -> Bytes {
    let mut bytes = begin(HELD, tag, 40);
    bytes.put_u64(holding.generation);
    bytes.put_u64(holding.term);
    bytes.put_u64(holding.nonce);
    bytes.put_slice(holding.client.as_bytes());
    bytes.freeze()
}

/// The word of `tag` on the keys that it has.
pub fn keys(tag: Tag, edition: u64, keys: &[Fingerprint], name: &str) -> Bytes {
    let keys = &keys[..keys.len().min(usize::from(u8::MAX))];
    let mut bytes = begin(KEYS, tag, 9 + keys.len() * 4 + name.len());
    bytes.put_u64(edition);
    bytes.put_u8(u8::try_from(keys.len()).unwrap_or(u8::MAX));
    keys.iter().for_each(|key| bytes.put_slice(&key.0));
    bytes.put_slice(name.as_bytes());
    bytes.freeze()
}

fn put_hello(bytes: &mut BytesMut, floor: Number, name: &str) {
    bytes.put_u64(floor);
    bytes.put_slice(&[VERSION, VERSION]);
    bytes.put_slice(name.as_bytes());
}

/// Reads a frame without copying its text.
///
/// # Errors
/// [`Foreign`], for anything that this release did not write.
pub fn decode(bytes: &[u8]) -> Result<Frame<'_>, Foreign> {
    let Some((start, rest)) = bytes.split_first_chunk::<16>().filter(|(start, _)| start.starts_with(MAGIC)) else {
        // Release 0.1 began with a predecessor's id and a stamp, and had its version at byte 24.
        let old = bytes.len() >= 65 && bytes[24] == 1;
        return Err(if old { Foreign::Version(1) } else { Foreign::Malformed });
    };
    // A hello says which versions a node speaks, so it is read whatever its version is.
    if start[3] != VERSION && start[4] != HELLO {
        return Err(Foreign::Version(start[3]));
    }
    let tag =
        u64::from_be_bytes([start[8], start[9], start[10], start[11], start[12], start[13], start[14], start[15]]);
    let mut fields = Fields(rest);
    match start[4] {
        MESSAGE => {
            let (number, previous, floor) = (fields.u64()?, fields.u64()?, fields.u64()?);
            fields.u64()?;
            let (id, sender) = (fields.uuid()?, fields.uuid()?);
            let place = Place { number, previous, floor, attempt: start[5] };
            Ok(Frame::Message(Envelope { tag, place, id, sender, text: fields.0 }))
        }
        RECEIPTS => {
            let receipt = |entry: &[u8]| {
                let mut fields = Fields(entry);
                let number = fields.u64()?;
                let decision = match entry[RECEIPT - 1] {
                    1 => Decision::Taken,
                    2 => Decision::Full,
                    3 => Decision::Absent,
                    _ => return Err(Foreign::Malformed),
                };
                Ok((number, decision))
            };
            rest.chunks_exact(RECEIPT)
                .map(receipt)
                .collect::<Result<_, _>>()
                .map(|receipts| Frame::Receipts(tag, receipts))
        }
        HELLO => Ok(Frame::Hello(tag, fields.hello()?)),
        ASK => Ok(Frame::Ask(tag, fields.u64()?)),
        ANSWER => Ok(Frame::Answer(tag, fields.u64()?, fields.hello()?)),
        BYE => Ok(Frame::Bye(tag)),
        LEAVING => Ok(Frame::Leaving(tag)),
        HELD => {
            let (generation, term, nonce) = (fields.u64()?, fields.u64()?, fields.u64()?);
            Ok(Frame::Held(tag, Holding { client: fields.uuid()?, generation, term, nonce }))
        }
        KEYS => {
            let edition = fields.u64()?;
            let [count] = fields.take()?;
            let keys = (0..count).map(|_| fields.take().map(Fingerprint)).collect::<Result<_, _>>()?;
            let name = String::from_utf8_lossy(fields.0).into_owned();
            Ok(Frame::Keys(tag, KeyList { edition, keys, name }))
        }
        kind => Err(Foreign::Kind(kind)),
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Foreign> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Foreign::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u64(&mut self) -> Result<u64, Foreign> {
        self.take().map(u64::from_be_bytes)
    }

    fn uuid(&mut self) -> Result<Uuid, Foreign> {
        self.take().map(Uuid::from_bytes)
    }

    fn hello(&mut self) -> Result<Hello, Foreign> {
        let floor = self.u64()?;
        let [writes, reads] = self.take()?;
        Ok(Hello { floor, writes, reads, name: String::from_utf8_lossy(self.0).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(tag: u64, number: u64, previous: u64, floor: u64, attempt: u8, id: u128, text: String) {
            let place = Place { number, previous, floor, attempt };
            let (id, sender) = (Uuid::from_u128(id), Uuid::from_u128(!id));
            let bytes = [&head(tag, place)[..], &body(id, sender, text.as_bytes())].concat();
            let envelope = Envelope { tag, place, id, sender, text: text.as_bytes() };
            prop_assert_eq!(decode(&bytes), Ok(Frame::Message(envelope)));
            let given = vec![(number, Decision::Taken), (previous, Decision::Full), (floor, Decision::Absent)];
            let said = Hello { floor, writes: VERSION, reads: VERSION, name: text.clone() };
            let holding = Holding { client: id, generation: number, term: floor, nonce: previous };
            let list = KeyList { edition: floor, keys: vec![Fingerprint([1, 2, 3, attempt]), Fingerprint([0; 4])], name: text.clone() };
            for (bytes, frame) in [
                (receipts(tag, &given), Frame::Receipts(tag, given)),
                (hello(tag, floor, &text), Frame::Hello(tag, said.clone())),
                (ask(tag, number), Frame::Ask(tag, number)),
                (answer(tag, number, floor, &text), Frame::Answer(tag, number, said)),
                (bye(tag), Frame::Bye(tag)),
                (leaving(tag), Frame::Leaving(tag)),
                (held(tag, &holding), Frame::Held(tag, holding)),
                (keys(tag, floor, &list.keys, &text), Frame::Keys(tag, list)),
            ] {
                prop_assert_eq!(decode(&bytes), Ok(frame));
            }
        }

        #[test]
        fn foreign_bytes_are_harmless(mut bytes: Vec<u8>, version: u8, kind: u8, ours: bool) {
            if ours && bytes.len() > 5 {
                bytes[..3].copy_from_slice(MAGIC);
                (bytes[3], bytes[4]) = (version, kind);
            }
            let _ = decode(&bytes);
            let _ = Channel::parse(&bytes);
        }
    }

    #[test]
    fn channels() {
        for channel in [
            Channel::Client(Uuid::new_v4()),
            Channel::Claim(Uuid::new_v4()),
            Channel::Node(7),
            Channel::Node(u64::MAX),
            Channel::Nodes,
        ] {
            assert_eq!(Channel::parse(channel.name().as_bytes()), Some(channel));
        }
        assert_eq!(Channel::parse(b"texto:nobody"), None);
    }

    #[test]
    fn other_versions_are_named() {
        let mut old = [0; 80];
        old[24] = 1;
        assert_eq!(decode(&old), Err(Foreign::Version(1)));
        let mut newer = bye(1).to_vec();
        newer[3] = VERSION + 1;
        assert_eq!(decode(&newer), Err(Foreign::Version(VERSION + 1)));
        let mut unknown = bye(1).to_vec();
        unknown[4] = 99;
        assert_eq!(decode(&unknown), Err(Foreign::Kind(99)));
        let mut greeting = hello(1, 2, "next").to_vec();
        greeting[3] = VERSION + 1;
        assert!(matches!(decode(&greeting), Ok(Frame::Hello(1, _))), "whoever it is, it says so");
    }
}
