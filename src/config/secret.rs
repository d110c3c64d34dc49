//! Owns secrets: values that are used, but never shown.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::warn;

use crate::operate::repeats::Repeats;

/// A secret. `Debug` shows that there is one, never which.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `value`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A password: one that stays, or what a file holds, which is read again each time it is used. So it can be rotated:
/// the next connection has the new one, and those that stand are not disturbed.
///
/// The whole file is the password, but for the line ends after it (LF or CRLF, any number of them): spaces belong to
/// it, and so does a line end in its middle. A file that holds nothing but blanks holds none.
#[derive(Clone, Debug)]
pub struct Password {
    state: Arc<Mutex<State>>,
    file: Option<PathBuf>,
}

#[derive(Debug)]
struct State {
    /// The one that was good last.
    value: Secret,
    /// What is said of a file that can't be read: it is tried at every connection.
    said: Repeats,
}

impl Password {
    fn new(value: Secret, file: Option<PathBuf>) -> Self {
        Self { state: Arc::new(Mutex::new(State { value, said: Repeats::default() })), file }
    }

    /// One that stays.
    pub fn fixed(value: impl Into<String>) -> Self {
        Self::new(Secret::new(value), None)
    }

    /// The one in `file`.
    ///
    /// # Errors
    /// When it can't be read, or is blank ([`io::ErrorKind::InvalidData`]).
    pub fn from_file(file: &Path) -> io::Result<Self> {
        Ok(Self::new(read(file)?, Some(file.to_owned())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No state is left half-changed by the code that holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is now; a file that can't be read at the moment, or is blank, leaves what it was.
    pub fn current(&self) -> Secret {
        let mut state = self.lock();
        match self.file.as_deref().map(|file| (file, read(file))) {
            None => {}
            Some((_, Ok(read))) => state.value = read,
            Some((file, Err(error))) => {
                if let Some(again) = state.said.note(Instant::now(), &error.to_string()) {
                    warn!(?file, %error, "the password can't be read again: the last one is used{again}");
                }
            }
        }
        state.value.clone()
    }
}

fn read(file: &Path) -> io::Result<Secret> {
    let text = std::fs::read_to_string(file)?;
    // As `[:space:]` has it, by which the scripts of the stack go.
    if text.bytes().all(|byte| byte.is_ascii_whitespace() || byte == b'\x0b') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// What a server asks of its clients. Both empty: no authentication.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// ACL user; `None` means the user `default`.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Password>,
}

impl Credentials {
    /// `text` without the password, should a server have repeated it: an old one names the arguments of a
    /// command that it does not know.
    pub fn censor(&self, text: &str) -> String {
        match self.password.as_ref().map(|password| password.lock().value.clone()) {
            Some(Secret(password)) if !password.is_empty() => text.replace(&password, "…"),
            _ => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_comes_back_is_not_shown() {
        let credentials = Credentials { username: None, password: Some(Password::fixed("hunter2")) };
        let text = "ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `hunter2`";
        assert!(!credentials.censor(text).contains("hunter2"));
        assert_eq!(Credentials::default().censor(text), text);
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }

    #[test]
    fn the_whole_file_but_for_the_line_ends_after_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in [
            ("one", "one"),
            ("one\n", "one"),
            ("one\r\n\r\n", "one"),
            (" o n e \n", " o n e "),
            ("\none\r\ntwo\n", "\none\r\ntwo"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(Password::from_file(file.path()).unwrap().current().expose(), expected, "{text:?}");
        }
        for blank in ["", "\r\n", " \t\n", "\x0b\x0c "] {
            std::fs::write(file.path(), blank).unwrap();
            assert_eq!(Password::from_file(file.path()).unwrap_err().kind(), io::ErrorKind::InvalidData, "{blank:?}");
        }
    }

    #[test]
    fn a_file_is_read_again_and_what_was_good_stays_while_it_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Password::from_file(file.path()).is_err(), "empty");
        std::fs::write(file.path(), "one\r\n").unwrap();
        let password = Password::from_file(file.path()).unwrap();
        assert_eq!(password.current(), Secret::new("one"));
        std::fs::write(file.path(), "two").unwrap();
        assert_eq!(password.current(), Secret::new("two"));
        std::fs::write(file.path(), "").unwrap();
        assert_eq!(password.current(), Secret::new("two"));
        file.close().unwrap();
        assert_eq!(password.current(), Secret::new("two"));
    }
}
