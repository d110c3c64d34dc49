//! Owns what commands print. Whoever reads it may have enough of it at any time, as `head` does.

use std::fmt;
use std::io::{ErrorKind, Result, Write};

/// Nobody reads standard output any more: there is nothing left to do.
#[derive(Clone, Copy, Debug)]
pub struct Unread;

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

impl std::error::Error for Unread {}

/// Prints a line.
///
/// # Errors
/// [`Unread`], or why it can't be written.
pub fn line(text: impl fmt::Display) -> anyhow::Result<()> {
    write(|out| writeln!(out, "{text}"))
}

/// Prints whatever `text` writes.
///
/// # Errors
/// [`Unread`], or why it can't be written.
pub fn write(text: impl FnOnce(&mut dyn Write) -> Result<()>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    text(&mut out).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Unread.into(),
        _ => anyhow::Error::from(error).context("standard output"),
    })
}
