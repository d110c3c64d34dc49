//! Owns the keys that resume tokens are signed with: one of this process alone, or those of a file, which is read
//! again when it changes.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_PAD_INDIFFERENT, URL_SAFE_PAD_INDIFFERENT};
use tracing::{info, warn};

use crate::files;
use crate::operate::repeats::Repeats;
use crate::resume::token::{Fingerprint, Key, Keyring, LEAST_KEY};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of a file: more than anybody's keys.
const MOST_BYTES: u64 = 64 * 1024;

/// The keys of a node, as they are now. A cheap handle.
#[derive(Clone, Debug)]
pub struct Keys {
    ring: Arc<RwLock<Arc<Keyring>>>,
    file: Option<PathBuf>,
}

/// Why there are no keys. What stands in the file is not part of it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFlaw {
    /// The file is not there, or not for us.
    #[error("can't read the file {0:?}: {1}")]
    Unreadable(PathBuf, io::Error),
    /// More than keys can be.
    #[error("the file {0:?} has more than {MOST_BYTES} bytes: it should hold one key a line, and nothing else")]
    TooLong(PathBuf),
    /// Nothing but blanks and comments.
    #[error("the file {0:?} holds no key: `texto session-key >> FILE` adds one")]
    Empty(PathBuf),
    /// A line is something else.
    #[error("the file {file:?}, line {line}: {flaw}; `texto session-key` prints a line that is good")]
    Line {
        /// Where.
        file: PathBuf,
        /// Which one, from 1.
        line: usize,
        /// What is wrong with it.
        flaw: LineFlaw,
    },
    /// The system has no randomness for one of our own.
    #[error("the system gives no random bytes for a key: {0}")]
    NoRandomness(#[from] getrandom::Error),
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFlaw {
    /// No bytes at all.
    NotBase64,
    /// So few bytes that they might be guessed.
    Short(usize),
}

impl fmt::Display for LineFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBase64 => f.write_str("this is not base64"),
            Self::Short(bytes) => write!(f, "a key of {bytes} bytes is too short, {LEAST_KEY} are the least"),
        }
    }
}

/// A line for a file of keys.
///
/// # Errors
/// When the system gives no random bytes.
pub fn new_line() -> Result<String, KeyFlaw> {
    Ok(STANDARD.encode(random()?))
}

fn random() -> Result<[u8; LEAST_KEY], KeyFlaw> {
    let mut bytes = [0; LEAST_KEY];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

impl Keys {
    /// One key, which nobody else has.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn own() -> Result<Self, KeyFlaw> {
        let bytes = random()?;
        // As many as a key needs.
        let key = Key::new(&bytes).ok_or(getrandom::Error::UNEXPECTED)?;
        Ok(Self::new(Keyring::new(key, Vec::new()), None))
    }

    /// Those in `file`.
    ///
    /// # Errors
    /// When it can't be read, or is no file of keys.
    pub fn from_file(file: &Path) -> Result<Self, KeyFlaw> {
        Ok(Self::new(read(file)?, Some(file.to_owned())))
    }

    fn new(ring: Keyring, file: Option<PathBuf>) -> Self {
        Self { ring: Arc::new(RwLock::new(Arc::new(ring))), file }
    }

    /// What they are now.
    pub fn ring(&self) -> Arc<Keyring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which they are now, the one that signs first.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.ring().fingerprints()
    }

    /// Whether other nodes can have them too.
    pub fn are_shared(&self) -> bool {
        self.file.is_some()
    }

    /// Says at the start what an operator should know of them. `is_alone`: there are no other nodes.
    pub fn announce(&self, is_alone: bool) {
        match &self.file {
            Some(file) => {
                info!(?file, keys = %list(&self.fingerprints()), "session keys, the first signs");
                if files::is_open_to_all(file) {
                    warn!(?file, "every user of this machine may read the session keys: chmod 600");
                }
            }
            None if is_alone => {}
            None => info!(
                "no --session-key-file: the key for resume tokens is this process' own, so no other node knows its \
                 clients again, nor does this one after a restart"
            ),
        }
    }

    /// Reads the file again and again. A file that can't be read at the moment leaves what was good last.
    pub async fn run(self) {
        let Some(file) = self.file.clone() else { return std::future::pending().await };
        let mut said = Repeats::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let file = file.clone();
            match tokio::task::spawn_blocking(move || read(&file)).await {
                Ok(read) => self.take(read, &mut said),
                Err(_) => continue, // The program ends.
            }
        }
    }

    fn take(&self, read: Result<Keyring, KeyFlaw>, said: &mut Repeats) {
        match read {
            Ok(ring) => {
                let (old, new) = (self.fingerprints(), ring.fingerprints());
                if old != new {
                    *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
                    info!(old = %list(&old), new = %list(&new), "session keys were read again, the first signs");
                }
            }
            Err(error) => {
                if let Some(again) = said.note(Instant::now(), &error.to_string()) {
                    warn!(%error, "the session keys can't be read again: the last ones are used{again}");
                }
            }
        }
    }
}

fn list(fingerprints: &[Fingerprint]) -> String {
    fingerprints.iter().map(Fingerprint::to_string).collect::<Vec<_>>().join(" ")
}

fn read(file: &Path) -> Result<Keyring, KeyFlaw> {
    let text = files::read_again(file, MOST_BYTES).map_err(|error| KeyFlaw::Unreadable(file.to_owned(), error))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(KeyFlaw::TooLong(file.to_owned()));
    }
    let mut keys = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let key = parse(line).map_err(|flaw| KeyFlaw::Line { file: file.to_owned(), line: index + 1, flaw })?;
        keys.push(key);
    }
    let mut keys = keys.into_iter();
    let first = keys.next().ok_or_else(|| KeyFlaw::Empty(file.to_owned()))?;
    Ok(Keyring::new(first, keys.collect()))
}

/// Both alphabets are taken, with or without padding: people make keys with what they have.
fn parse(line: &[u8]) -> Result<Key, LineFlaw> {
    let bytes = STANDARD_PAD_INDIFFERENT.decode(line).or_else(|_| URL_SAFE_PAD_INDIFFERENT.decode(line));
    let bytes = bytes.map_err(|_| LineFlaw::NotBase64)?;
    Key::new(&bytes).ok_or(LineFlaw::Short(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> (tempfile::NamedTempFile, Result<Keys, String>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let keys = Keys::from_file(file.path()).map_err(|error| error.to_string());
        (file, keys)
    }

    #[test]
    fn one_key_a_line_among_comments() {
        let (one, two) = (new_line().unwrap(), new_line().unwrap());
        let alone = with(&one).1.unwrap();
        assert!(alone.are_shared());
        let (_, both) = with(&format!("# from May on\r\n\r\n  {one}\r\n\n#old:\n{two}"));
        let both = both.unwrap().fingerprints();
        assert_eq!(both.len(), 2);
        assert_eq!(both[..1], alone.fingerprints());
        // As other programs write it.
        let other = [0xfb; 48];
        let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(other);
        assert!(url_safe.contains('-'));
        assert_eq!(with(&url_safe).1.unwrap().fingerprints(), with(&STANDARD.encode(other)).1.unwrap().fingerprints());
    }

    #[test]
    fn each_flaw_of_a_file_is_named_with_its_line_and_nothing_of_its_content() {
        let good = new_line().unwrap();
        for (text, expected) in [
            ("", "holds no key: `texto session-key >> FILE` adds one"),
            (" \n# nothing\n", "holds no key"),
            (&format!("{good}\nhunter2!\n"), "line 2: this is not base64; `texto session-key` prints"),
            (&format!("# a comment\n\n{}\n", STANDARD.encode([7; 31])), "line 3: a key of 31 bytes is too short, 32"),
            (&format!("{good} # no comment here"), "line 1: this is not base64"),
            (&"#\n".repeat(40_000), "more than 65536 bytes"),
        ] {
            let (file, keys) = with(text);
            let error = keys.unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(file.path().to_str().unwrap()), "{error}");
            assert!(!error.contains("hunter2") && !error.contains(&good), "{error}");
        }
        let error = Keys::from_file(Path::new("/nowhere/keys")).unwrap_err().to_string();
        assert!(error.contains("can't read the file \"/nowhere/keys\""), "{error}");
    }

    #[test]
    fn keys_are_never_shown() {
        let line = new_line().unwrap();
        let keys = with(&line).1.unwrap();
        let shown = format!("{keys:?}");
        assert!(shown.contains(&keys.fingerprints()[0].to_string()) && !shown.contains(&line[..8]), "{shown}");
    }

    #[test]
    fn each_process_without_a_file_has_a_key_of_its_own() {
        let (one, other) = (Keys::own().unwrap(), Keys::own().unwrap());
        assert_ne!(one.fingerprints(), other.fingerprints());
        assert!(!one.are_shared());
        assert_ne!(new_line().unwrap(), new_line().unwrap());
    }

    #[tokio::test]
    async fn a_file_is_read_again_and_what_was_good_stays_while_it_is_not() {
        let (one, two) = (new_line().unwrap(), new_line().unwrap());
        let (file, keys) = with(&one);
        let keys = keys.unwrap();
        let old = keys.fingerprints();
        let running = tokio::spawn(keys.clone().run());
        std::fs::write(file.path(), format!("{two}\n{one}")).unwrap();
        let read_again = async || Some(keys.fingerprints()).filter(|new| *new != old);
        let new = texto_lab::process::until("it is read again", 20 * LOOK, read_again).await.unwrap();
        assert_eq!((new.len(), new[1]), (2, old[0]));
        running.abort();

        let mut said = Repeats::default();
        for flaw in ["", "nonsense"] {
            std::fs::write(file.path(), flaw).unwrap();
            keys.take(read(file.path()), &mut said);
            assert_eq!(keys.fingerprints(), new);
        }
        std::fs::write(file.path(), &one).unwrap();
        keys.take(read(file.path()), &mut said);
        assert_eq!(keys.fingerprints(), old);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_everybody_may_read_is_noticed() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, is_open) in [(0o600, false), (0o640, false), (0o644, true), (0o444, true)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(files::is_open_to_all(file.path()), is_open, "{mode:o}");
        }
    }
}
