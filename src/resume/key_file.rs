//! Owns changes of a file of session keys, each in one step: whoever reads it meanwhile sees it as it was or as it will be.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::resume::keys::{KeyFlaw, Keys, new_line};

/// What is to be done to a file of keys. In this order, with time for all nodes between, a key is changed and nobody
/// becomes a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new key as the last line: it verifies.
    Add,
    /// The last key becomes the first: it signs.
    Sign,
    /// The last key goes.
    Drop,
}

/// Why a file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It is no file of keys.
    #[error(transparent)]
    Keys(#[from] KeyFlaw),
    /// It can't be written.
    #[error("can't write the file {0:?}: {1}")]
    Unwritable(PathBuf, io::Error),
    /// Without its only key nothing would be left.
    #[error("the file {0:?} holds one key alone: `texto session-key add FILE` adds one")]
    OneKey(PathBuf),
}

/// Makes a file with one new key where there is none. Of several that do so at once, one is first, and the others keep
/// what it wrote.
///
/// # Errors
/// When the folder can't be written to, or the system gives no random bytes.
pub fn create(file: &Path) -> Result<(), ChangeError> {
    if file.exists() {
        return Ok(());
    }
    let unwritable = |error| ChangeError::Unwritable(file.to_owned(), error);
    let new = New::beside(file, &format!("{}\n", new_line()?)).map_err(unwritable)?;
    // It replaces nothing, unlike a rename.
    match fs::hard_link(&new.0, file) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(unwritable(error)),
        _ => Ok(()),
    }
}

/// Changes a file that is there; where a link points to it, the file. It stays who it belonged to, and as readable.
///
/// # Errors
/// When it stays as it was.
pub fn change(file: &Path, change: Change) -> Result<(), ChangeError> {
    // What is no file of keys is not touched.
    Keys::from_file(file)?;
    let text = fs::read_to_string(file).map_err(|error| KeyFlaw::Unreadable(file.to_owned(), error))?;
    let text = changed(&text, change, new_line()?).ok_or_else(|| ChangeError::OneKey(file.to_owned()))?;
    let write = || {
        let file = file.canonicalize()?;
        let before = fs::metadata(&file)?;
        let new = New::beside(&file, &text)?;
        #[cfg(unix)]
        give_as(&new.0, &before)?;
        fs::set_permissions(&new.0, before.permissions())?;
        fs::rename(&new.0, &file)
    };
    write().map_err(|error| ChangeError::Unwritable(file.to_owned(), error))
}

/// The file's text after a change, in which comments stay where they are; none if it would have no key left.
fn changed(text: &str, change: Change, new: String) -> Option<String> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let is_key = |line: &String| !line.trim().is_empty() && !line.trim().starts_with('#');
    let (first, last) = (lines.iter().position(is_key)?, lines.iter().rposition(is_key)?);
    match change {
        Change::Add => lines.push(new),
        _ if first == last => return None,
        Change::Sign => {
            let key = lines.remove(last);
            lines.insert(first, key);
        }
        Change::Drop => drop(lines.remove(last)),
    }
    Some(lines.join("\n") + "\n")
}

/// A new file that nobody else may read, and that is gone afterwards unless it was renamed.
struct New(PathBuf);

impl New {
    fn beside(file: &Path, text: &str) -> io::Result<Self> {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:016x}", fastrand::u64(..)));
        let new = Self(file.with_file_name(name));
        let mut opened = private(&new.0)?;
        opened.write_all(text.as_bytes())?;
        opened.sync_all()?;
        Ok(new)
    }
}

impl Drop for New {
    fn drop(&mut self) {
        // It has another name by now, or one more.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whoever may read the file before, such as the gateway's user, may read it after root has changed it.
#[cfg(unix)]
fn give_as(new: &Path, before: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    let is_same = fs::metadata(new).is_ok_and(|now| (now.uid(), now.gid()) == (before.uid(), before.gid()));
    if is_same { Ok(()) } else { chown(new, Some(before.uid()), Some(before.gid())) }
}

fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_changed_in_three_steps() {
        let text = "# ours\nAAA\n\n# older\nBBB\n";
        let new = || "NEW".to_owned();
        assert_eq!(changed(text, Change::Add, new()).unwrap(), "# ours\nAAA\n\n# older\nBBB\nNEW\n");
        assert_eq!(changed(text, Change::Sign, new()).unwrap(), "# ours\nBBB\nAAA\n\n# older\n");
        assert_eq!(changed(text, Change::Drop, new()).unwrap(), "# ours\nAAA\n\n# older\n");
        // A last line without its end is not continued.
        assert_eq!(changed("AAA", Change::Add, new()).unwrap(), "AAA\nNEW\n");
        assert_eq!(changed("AAA\n", Change::Drop, new()), None);
        assert_eq!(changed("AAA\n", Change::Sign, new()), None);
    }

    #[test]
    fn what_is_no_file_of_keys_is_not_touched() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("keys");
        fs::write(&file, "something else\n").unwrap();
        for step in [Change::Add, Change::Sign, Change::Drop] {
            assert!(matches!(change(&file, step), Err(ChangeError::Keys(_))));
        }
        create(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "something else\n");
        assert!(matches!(change(&folder.path().join("none"), Change::Add), Err(ChangeError::Keys(_))));
        assert!(matches!(create(&folder.path().join("no/folder")), Err(ChangeError::Unwritable(..))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left over");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_stays_where_it_is_and_whose_it_is() {
        use std::os::unix::fs::{MetadataExt, chown, symlink};
        let folder = tempfile::TempDir::new().unwrap();
        let [file, link] = ["keys", "link"].map(|name| folder.path().join(name));
        create(&file).unwrap();
        symlink("keys", &link).unwrap();
        // Only root can give a file away.
        let owner = if chown(&file, Some(65534), None).is_ok() { 65534 } else { fs::metadata(&file).unwrap().uid() };
        change(&link, Change::Add).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(Keys::from_file(&file).unwrap().fingerprints().len(), 2);
        assert_eq!(fs::metadata(&file).unwrap().uid(), owner);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_stays_as_private_as_it_was() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("keys");
        create(&file).unwrap();
        let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let before = Keys::from_file(&file).unwrap().fingerprints();
        for step in [Change::Add, Change::Sign, Change::Drop] {
            change(&file, step).unwrap();
            assert_eq!(mode(&file), 0o640);
        }
        let after = Keys::from_file(&file).unwrap().fingerprints();
        assert!(before.len() == 1 && after.len() == 1 && before != after);
        assert!(matches!(change(&file, Change::Drop), Err(ChangeError::OneKey(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left over");
    }
}
