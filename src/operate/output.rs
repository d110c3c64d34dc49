//! Owns what commands print. Whoever reads it may have enough of it at any time, as `head` does.

use std::fmt::Display;
use std::io::{ErrorKind, Result, Write};

/// Prints a line, unless nobody reads standard output any more.
///
/// # Errors
/// Why it can't be written.
pub fn line(text: impl Display) -> Result<()> {
    unless_unread(writeln!(std::io::stdout(), "{text}"))
}

/// Prints what has its own ends of lines, unless nobody reads standard output any more.
///
/// # Errors
/// Why it can't be written.
pub fn all(text: &[u8]) -> Result<()> {
    let mut output = std::io::stdout();
    unless_unread(output.write_all(text).and_then(|()| output.flush()))
}

fn unless_unread(written: Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
