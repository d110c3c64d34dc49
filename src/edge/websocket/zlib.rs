//! Owns the compressors and decompressors of RFC 7692: one of each for a thread, none for a session.
//!
//! A compressor needs 300 KB and a decompressor 50 KB (zlib's own figures), for the duration of a message. One that was
//! stopped in the middle is not used again: zlib-rs 0.6.8 panics over what a reset leaves behind.

use std::cell::Cell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::extensions::Deflate;

/// A shorter message is written as it is.
const WORTH_IT_FROM: usize = 512;
/// A longer one too: it would keep a thread of the runtime busy for too long.
const WORTH_IT_TO: usize = 256 * 1024;
/// Chat is short: a higher level gains nothing, and the lowest knows no codes but the fixed ones.
const LEVEL: Compression = Compression::new(2);
/// What every message would end with, and what its receiver therefore adds to it (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// An empty block that says that it is the last one. It is understood only where a block may begin.
const END: [u8; 5] = [1, 0, 0, 0xff, 0xff];
/// Bytes of room that are made at first for what comes out of a message, and the ratio that is hoped for.
const FIRST_ROOM: usize = 1024;
const RATIO: usize = 3;

thread_local! {
    static COMPRESSOR: Cell<Option<Compress>> = const { Cell::new(None) };
    static DECOMPRESSOR: Cell<Option<Decompress>> = const { Cell::new(None) };
}

/// Compresses a message, if that is worth it.
pub(super) fn deflated(message: &[u8], deflate: Deflate) -> Option<Vec<u8>> {
    if !(WORTH_IT_FROM..=WORTH_IT_TO).contains(&message.len()) {
        return None;
    }
    // A reference back is never longer than the message, for it can't refer to an earlier one.
    let is_within_window = message.len() <= 1 << deflate.window_bits();
    let mut compressor = match (is_within_window, deflate.window_bits()) {
        (true, _) => COMPRESSOR.take().unwrap_or_else(|| Compress::new(LEVEL, false)),
        // Such a small window is none that zlib could work with.
        (false, 8) => return None,
        (false, bits) => Compress::new_with_window_bits(LEVEL, false, bits),
    };
    compressor.reset();
    // What can't be made shorter becomes a little longer, and finds room, so that it needs not be stopped.
    let mut written = Vec::with_capacity(message.len() + message.len() / 8 + 64);
    let status = compressor.compress_vec(message, &mut written, FlushCompress::Sync);
    let is_whole = compressor.total_in() == message.len() as u64 && written.len() < written.capacity();
    if !is_whole || !matches!(status, Ok(Status::Ok)) || !written.ends_with(&TAIL) {
        return None;
    }
    if is_within_window {
        COMPRESSOR.set(Some(compressor));
    }
    written.truncate(written.len() - TAIL.len());
    (written.len() < message.len()).then_some(written)
}

/// Why a message can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is not what RFC 7692 means.
    Invalid,
    /// It is longer than the limit.
    TooLong,
}

/// What a compressed message says, behind `room` bytes that are left free. It takes memory for `limit` bytes at the
/// most, whatever the message would come to, and forgets the message itself.
///
/// # Errors
/// When it can't be read.
pub(super) fn inflated(mut message: Vec<u8>, room: usize, limit: usize) -> Result<Vec<u8>, Unreadable> {
    message.extend(TAIL);
    message.extend(END);
    let mut decompressor = DECOMPRESSOR.take().unwrap_or_else(|| Decompress::new(false));
    decompressor.reset(false);
    let mut said = Vec::with_capacity(room + message.len().saturating_mul(RATIO).max(FIRST_ROOM).min(limit + 1));
    said.resize(room, 0);
    inflate(&mut decompressor, &message, &mut said, room + limit)?;
    DECOMPRESSOR.set(Some(decompressor));
    Ok(said)
}

fn inflate(
    decompressor: &mut Decompress,
    mut message: &[u8],
    said: &mut Vec<u8>,
    limit: usize,
) -> Result<(), Unreadable> {
    loop {
        if said.len() == said.capacity() {
            said.reserve_exact(said.len().min((limit + 1).saturating_sub(said.len())));
        }
        let (before, room) = (decompressor.total_in(), said.capacity() - said.len());
        let length = said.len();
        let status = decompressor.decompress_vec(message, said, FlushDecompress::None);
        if said.len() > limit {
            return Err(Unreadable::TooLong);
        }
        let taken = usize::try_from(decompressor.total_in() - before).unwrap_or(usize::MAX);
        message = message.get(taken..).ok_or(Unreadable::Invalid)?;
        match status {
            Ok(Status::StreamEnd) if message.is_empty() => return Ok(()),
            // Whoever can't end a message otherwise may end it so, and a block follows (RFC 7692, section 7.2.3.4).
            Ok(Status::StreamEnd) => decompressor.reset(false),
            // The message ended in the middle of a block.
            Ok(_) if taken == 0 && said.len() == length && room > 0 => return Err(Unreadable::Invalid),
            Ok(_) => {}
            Err(_) => return Err(Unreadable::Invalid),
        }
    }
}
