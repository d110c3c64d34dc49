//! Owns how files are read that an operator gives: no more of them than they may hold, and who else may read them.

use std::io::{self, Read};
use std::path::Path;

/// What stands in `file`; of one that has more than `most` bytes, one more than that.
///
/// # Errors
/// When it can't be read.
pub(crate) fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same of a file that is read again and again: it must not be a pipe, which is empty after the first time, and keeps
/// whoever opens it waiting until somebody writes to it, perhaps for ever.
///
/// # Errors
/// When it can't be read, or is a pipe.
pub(crate) fn read_again(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    if is_pipe(file)? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a pipe, which can be read once, and this is read again and again: give a file",
        ));
    }
    read(file, most)
}

#[cfg(unix)]
fn is_pipe(file: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    Ok(std::fs::metadata(file)?.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_pipe(_file: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Whether every user of this machine may read it.
#[cfg(unix)]
pub(crate) fn is_open_to_all(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

/// Whether every user of this machine may read it, as far as is known.
#[cfg(not(unix))]
pub(crate) fn is_open_to_all(_file: &Path) -> bool {
    false
}
