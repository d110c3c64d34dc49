//! Owns what becomes of compressed messages on their way in: they are rewritten into frames that are not compressed.
//!
//! tungstenite knows no extension. It stands behind this, and never learns that a message was compressed: it goes on
//! judging sizes, fragments, UTF-8 and the closing handshake for all messages alike. Frames that are not compressed
//! pass as they are, and in their order; a compressed message comes as one frame when its last fragment is here.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::Paced;
use super::frames::{Frames, Part};
use super::zlib::{Unreadable, inflated};
use crate::operate::metrics::CompressionMetrics;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const OPCODE: u8 = 0x0f;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CONTROL: u8 = 8;
const MASKED: u8 = 0x80;
/// The longest header of a masked frame: two bytes, the length in eight, the key in four.
const LONGEST_HEADER: usize = 14;

/// Why the connection must be closed, with what code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Violation {
    pub(super) code: u16,
    pub(super) reason: &'static str,
}

const fn violation(code: u16, reason: &'static str) -> Violation {
    Violation { code, reason }
}

const TOO_LONG: Violation = violation(1009, "the frame is over the limit");
const INVALID: Violation = violation(1007, "a message was not compressed as RFC 7692 says");
const UNMASKED: Violation = violation(1002, "a frame was not masked");
const MISPLACED: Violation = violation(1002, "a frame was compressed that may not be");
const INTERRUPTED: Violation = violation(1002, "a message began within another one");

impl From<Violation> for io::Error {
    fn from(violation: Violation) -> Self {
        Self::new(io::ErrorKind::InvalidData, violation)
    }
}

/// Rewrites what is read from a peer with whom compression was agreed. At rest it is empty.
#[derive(Debug)]
pub(super) struct Inflating {
    /// The longest message, in bytes.
    limit: usize,
    /// The first byte of the compressed message that is under way.
    message: Option<u8>,
    /// The frame that is under way is part of it, and the last part.
    holds: bool,
    ends: bool,
    /// What that frame is masked with; it is turned as its payload goes by.
    key: [u8; 4],
    have: u8,
    /// What has come of the message.
    compressed: Vec<u8>,
    /// Read, not looked at.
    unread: Vec<u8>,
    /// To be handed out, from here on.
    ready: Vec<u8>,
    handed: usize,
    /// What is wrong with what comes after that.
    broken: Option<Violation>,
    metrics: Arc<CompressionMetrics>,
}

impl Inflating {
    pub(super) fn new(limit: usize, early: Vec<u8>, metrics: Arc<CompressionMetrics>) -> Self {
        Self {
            limit,
            message: None,
            holds: false,
            ends: false,
            key: [0; 4],
            have: 0,
            compressed: Vec::new(),
            unread: early,
            ready: Vec::new(),
            handed: 0,
            broken: None,
            metrics,
        }
    }

    /// What the socket counts, in both directions.
    pub(super) fn metrics(&self) -> &CompressionMetrics {
        &self.metrics
    }

    /// Nothing is on its way through here. (A message under way is for [`Frames`] to know.)
    pub(super) fn at_rest(&self) -> bool {
        self.unread.is_empty() && self.ready.is_empty()
    }

    /// Reads from `stream`, whose frames `frames` follows.
    pub(super) fn poll_read(
        &mut self,
        stream: &mut Paced,
        frames: &mut Frames,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.ready.is_empty() {
                self.hand_out(buf);
                return Poll::Ready(Ok(()));
            }
            if let Some(violation) = self.broken {
                return Poll::Ready(Err(violation.into()));
            }
            if !self.unread.is_empty() {
                let unread = std::mem::take(&mut self.unread);
                match self.rewrite(frames, &unread) {
                    Ok(looked_at) => self.unread = unread[looked_at..].to_vec(),
                    // What passed before it is judged first.
                    Err(violation) => self.broken = Some(violation),
                }
                continue;
            }
            let before = buf.filled().len();
            ready!(stream.poll_read(frames.fragments, cx, buf))?;
            let new = &buf.filled()[before..];
            let passing = self.passing(frames, new);
            if passing < new.len() {
                self.unread = new[passing..].to_vec();
                buf.set_filled(before + passing);
            }
            // None at all is the end of the stream, unless some are to be looked at.
            if passing > 0 || self.unread.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = &self.ready[self.handed..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.handed += count;
        if self.handed == self.ready.len() {
            (self.ready, self.handed) = (Vec::new(), 0);
        }
    }

    /// How many of `bytes` pass as they are, before a compressed message goes on or begins, or something is wrong.
    fn passing(&mut self, frames: &mut Frames, bytes: &[u8]) -> usize {
        let mut passing = 0;
        while let Some(byte) = bytes.get(passing) {
            if frames.between_frames() {
                let is_control = byte & OPCODE >= CONTROL;
                if byte & RSV1 != 0 || (self.message.is_some() && !is_control) {
                    break;
                }
                (self.holds, self.ends) = (false, false);
            } else if self.holds {
                break;
            }
            passing += frames.step(&bytes[passing..]).0;
        }
        passing
    }

    /// Looks at `bytes` until something is ready that may be large. Returns how many it looked at.
    fn rewrite(&mut self, frames: &mut Frames, bytes: &[u8]) -> Result<usize, Violation> {
        let mut at = 0;
        while at < bytes.len() {
            self.look(frames, bytes[at])?;
            let (count, part) = frames.step(&bytes[at..]);
            let part_bytes = &bytes[at..at + count];
            at += count;
            if !self.holds {
                self.ready.extend(part_bytes);
                continue;
            }
            match part {
                Part::Header => {}
                Part::HeaderEnd if !frames.is_masked() => return Err(UNMASKED),
                Part::HeaderEnd => self.have = 0,
                Part::Key => {
                    for byte in part_bytes {
                        self.key[usize::from(self.have) % 4] = *byte;
                        self.have += 1;
                    }
                }
                Part::Payload => self.hold(part_bytes)?,
            }
            if self.ends && frames.between_frames() {
                self.finish()?;
                break;
            }
        }
        Ok(at)
    }

    /// Decides about a frame by its first byte, if this is one.
    fn look(&mut self, frames: &Frames, byte: u8) -> Result<(), Violation> {
        if !frames.between_frames() {
            return Ok(());
        }
        let opcode = byte & OPCODE;
        (self.holds, self.ends) = (false, false);
        match (byte & RSV1 != 0, opcode, self.message) {
            (true, TEXT | BINARY, None) => self.message = Some(byte),
            (true, ..) => return Err(MISPLACED),
            (false, CONTINUATION, Some(_)) => {}
            (false, 0..CONTROL, Some(_)) => return Err(INTERRUPTED),
            (false, ..) => return Ok(()),
        }
        if byte & (FIN | RSV1 | OPCODE) != byte {
            return Err(MISPLACED);
        }
        (self.holds, self.ends) = (true, byte & FIN != 0);
        Ok(())
    }

    fn hold(&mut self, payload: &[u8]) -> Result<(), Violation> {
        // What can't be made shorter becomes a little longer.
        if self.compressed.len() + payload.len() > self.limit + self.limit / 64 + 64 {
            return Err(TOO_LONG);
        }
        let key = self.key.iter().cycle();
        self.compressed.extend(payload.iter().zip(key).map(|(byte, key)| byte ^ key));
        self.key.rotate_left(payload.len() % 4);
        Ok(())
    }

    /// The compressed message is complete: makes a frame of what it says.
    fn finish(&mut self) -> Result<(), Violation> {
        let opcode = self.message.take().unwrap_or_default() & OPCODE;
        (self.holds, self.ends) = (false, false);
        let compressed = std::mem::take(&mut self.compressed);
        let on_the_wire = compressed.len();
        let inflated = inflated(compressed, self.ready.len() + LONGEST_HEADER, self.limit);
        let mut inflated = inflated.map_err(|unreadable| match unreadable {
            Unreadable::Invalid => INVALID,
            Unreadable::TooLong => TOO_LONG,
        })?;
        let payload = inflated.len() - self.ready.len() - LONGEST_HEADER;
        self.metrics.received.count(payload, on_the_wire);
        let (header, length) = header(opcode, payload);
        // What passed before it comes first.
        let start = LONGEST_HEADER - length;
        inflated[start..start + self.ready.len()].copy_from_slice(&self.ready);
        inflated[start + self.ready.len()..LONGEST_HEADER + self.ready.len()].copy_from_slice(&header[..length]);
        (self.ready, self.handed) = (inflated, start);
        Ok(())
    }
}

/// The header of a masked frame, whose key changes nothing, and its length.
fn header(opcode: u8, payload: usize) -> ([u8; LONGEST_HEADER], usize) {
    let mut header = [0; LONGEST_HEADER];
    header[0] = FIN | opcode;
    let length = match payload {
        0..126 => {
            header[1] = MASKED | payload as u8;
            2
        }
        126..65536 => {
            header[1] = MASKED | 126;
            header[2..4].copy_from_slice(&(payload as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = MASKED | 127;
            header[2..10].copy_from_slice(&(payload as u64).to_be_bytes());
            10
        }
    };
    (header, length + 4)
}
