//! Owns the bytes by which a session's home tells its standby what it has: what stands in a message between nodes where
//! others have a text.
//!
//! ```text
//! 0      1      9
//! | kind | term | the kind's own fields …
//!
//! open      generation, standby (2), proven, had, last | lanes, 4: (tag, 8 | sender, 16 | number, 8) … | recent, 4: (key, 8 | position, 8) …
//! message   position, had | origin's tag, number | sender, 16 | text …
//! had       had, generation, proven
//! promote   generation, proven, answers
//! end       (nothing)
//! claim     generation, of the token
//! ```
//! Numbers have eight bytes, big-endian, where nothing else is said.

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::envelope::{Number, Tag};
use crate::outbox::log::{Origin, Position};

/// What a standby has to know to begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// The session's generation.
    pub generation: u64,
    /// How often this home has given it to a standby, this time included.
    pub standby: u16,
    /// That of the newest token that its client is known to have.
    pub proven: u64,
    /// The client has everything up to here.
    pub had: Position,
    /// The last message that there is: before it has come, a copy is of no use.
    pub last: Position,
    /// What has been taken of each lane.
    pub lanes: Vec<(Tag, Uuid, Number)>,
    /// Messages that may come again by another node.
    pub recent: Vec<(u64, Position)>,
}

/// A message that the home has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its number in the session.
    pub position: Position,
    /// The client has everything up to here.
    pub had: Position,
    /// Who waits for the word of two nodes; the tag is zero when nobody does.
    pub origin: Origin,
    /// Who sent it.
    pub sender: Uuid,
    /// What it says.
    pub text: Box<str>,
}

/// What a home tells its standby of a session; the term tells one standby from those before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Be its standby.
    Open(Opening),
    /// It took a message.
    Message(Taken),
    /// Its client has everything up to `had`, and its token is of the generation `proven`, at least.
    Had {
        /// The position.
        had: Position,
        /// The session's generation.
        generation: u64,
        /// The token's.
        proven: u64,
    },
    /// Be its home.
    Promote {
        /// In this generation.
        generation: u64,
        /// The client's token is of this one, at least.
        proven: u64,
        /// The claim that this answers, by the number that it has from whoever made it; 0 if it answers none.
        answers: Number,
    },
    /// You are its standby no more.
    End,
    /// To the home: the client is here, with a token of this generation.
    Claim(u64),
}

const OPEN: u8 = 1;
const MESSAGE: u8 = 2;
const HAD: u8 = 3;
const PROMOTE: u8 = 4;
const END: u8 = 5;
const CLAIM: u8 = 6;

/// Writes a record.
pub fn encode(term: u64, record: &Record) -> Bytes {
    let mut bytes = BytesMut::new();
    let mut begin = |kind: u8, capacity: usize| {
        bytes.reserve(9 + capacity);
        bytes.put_u8(kind);
        bytes.put_u64(term);
    };
    match record {
        Record::Open(opening) => {
            begin(OPEN, 42 + opening.lanes.len() * 32 + opening.recent.len() * 16);
            bytes.put_u64(opening.generation);
            bytes.put_u16(opening.standby);
            bytes.put_u64(opening.proven);
            bytes.put_u64(opening.had);
            bytes.put_u64(opening.last);
            bytes.put_u32(u32::try_from(opening.lanes.len()).unwrap_or(u32::MAX));
            for (tag, sender, number) in &opening.lanes {
                bytes.put_u64(*tag);
                bytes.put_slice(sender.as_bytes());
                bytes.put_u64(*number);
            }
            for (key, position) in &opening.recent {
                bytes.put_u64(*key);
                bytes.put_u64(*position);
            }
        }
        Record::Message(Taken { position, had, origin, sender, text }) => {
            begin(MESSAGE, 48 + text.len());
            bytes.put_u64(*position);
            bytes.put_u64(*had);
            bytes.put_u64(origin.tag);
            bytes.put_u64(origin.number);
            bytes.put_slice(sender.as_bytes());
            bytes.put_slice(text.as_bytes());
        }
        Record::Had { had, generation, proven } => {
            begin(HAD, 24);
            [had, generation, proven].into_iter().for_each(|number| bytes.put_u64(*number));
        }
        Record::Promote { generation, proven, answers } => {
            begin(PROMOTE, 24);
            [generation, proven, answers].into_iter().for_each(|number| bytes.put_u64(*number));
        }
        Record::End => begin(END, 0),
        Record::Claim(generation) => {
            begin(CLAIM, 8);
            bytes.put_u64(*generation);
        }
    }
    bytes.freeze()
}

/// Reads a record and its term; `None` for anything else.
pub fn decode(bytes: &[u8]) -> Option<(u64, Record)> {
    let mut fields = Fields(bytes);
    let [kind] = fields.take()?;
    let term = fields.u64()?;
    let record = match kind {
        OPEN => {
            let (generation, standby, proven) = (fields.u64()?, fields.u16()?, fields.u64()?);
            let (had, last) = (fields.u64()?, fields.u64()?);
            let count = u32::from_be_bytes(fields.take()?);
            // Each has 32 bytes, so a count that is made up costs nothing.
            let lanes =
                (0..count).map(|_| Some((fields.u64()?, fields.uuid()?, fields.u64()?))).collect::<Option<_>>()?;
            let mut recent = Vec::with_capacity(fields.0.len() / 16);
            while !fields.0.is_empty() {
                recent.push((fields.u64()?, fields.u64()?));
            }
            Record::Open(Opening { generation, standby, proven, had, last, lanes, recent })
        }
        MESSAGE => {
            let (position, had, tag, number) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
            let sender = fields.uuid()?;
            let text = String::from_utf8_lossy(fields.0).into();
            Record::Message(Taken { position, had, origin: Origin { tag, sender, number }, sender, text })
        }
        HAD => Record::Had { had: fields.u64()?, generation: fields.u64()?, proven: fields.u64()? },
        PROMOTE => Record::Promote { generation: fields.u64()?, proven: fields.u64()?, answers: fields.u64()? },
        END => Record::End,
        CLAIM => Record::Claim(fields.u64()?),
        _ => return None,
    };
    Some((term, record))
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn uuid(&mut self) -> Option<Uuid> {
        self.take().map(Uuid::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            term: u64, a: u64, b: u64, tag: u64, id: u128, text: String,
            lanes in proptest::collection::vec((any::<u64>(), any::<u128>(), any::<u64>()), 0..5),
            recent in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..5),
        ) {
            let sender = Uuid::from_u128(id);
            let lanes = lanes.into_iter().map(|(tag, id, number)| (tag, Uuid::from_u128(id), number)).collect();
            let origin = Origin { tag, sender, number: b };
            for record in [
                Record::Open(Opening { generation: a, standby: a as u16, proven: tag, had: b, last: tag, lanes, recent }),
                Record::Message(Taken { position: a, had: b, origin, sender, text: text.into() }),
                Record::Had { had: a, generation: b, proven: tag },
                Record::Promote { generation: a, proven: b, answers: tag },
                Record::End,
                Record::Claim(a),
            ] {
                prop_assert_eq!(decode(&encode(term, &record)), Some((term, record)));
            }
        }

        #[test]
        fn other_bytes_are_harmless(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
