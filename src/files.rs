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
