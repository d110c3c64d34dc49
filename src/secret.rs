//! Owns secrets: values that are used, but never shown.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

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

/// A password: one that stays, or the first line of a file, which is read again each time it is used. So it can be
/// rotated: the next connection has the new one, and those that stand are not disturbed.
#[derive(Clone, Debug)]
pub struct Password {
    /// The one that was good last.
    value: Arc<Mutex<Secret>>,
    file: Option<PathBuf>,
}

impl Password {
    /// One that stays.
    pub fn fixed(value: impl Into<String>) -> Self {
        Self { value: Arc::new(Mutex::new(Secret::new(value))), file: None }
    }

    /// The one in `file`.
    ///
    /// # Errors
    /// When it can't be read, or is empty ([`io::ErrorKind::InvalidData`]).
    pub fn from_file(file: &Path) -> io::Result<Self> {
        Ok(Self { value: Arc::new(Mutex::new(read(file)?)), file: Some(file.to_owned()) })
    }

    fn lock(&self) -> MutexGuard<'_, Secret> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is now; a file that can't be read at the moment, or is empty, leaves what it was.
    pub fn current(&self) -> Secret {
        let mut value = self.lock();
        match self.file.as_deref().map(|file| (file, read(file))) {
            None => {}
            Some((_, Ok(read))) => *value = read,
            Some((file, Err(error))) => warn!(?file, %error, "the password can't be read again: the last one is used"),
        }
        value.clone()
    }
}

fn read(file: &Path) -> io::Result<Secret> {
    let text = std::fs::read_to_string(file)?;
    if text.trim().is_empty() {
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
        match self.password.as_ref().map(|password| password.lock().clone()) {
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
