//! Owns secrets: values that are used, but never shown.

use std::fmt;

/// A password. `Debug` shows that there is one, never which.
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

impl Credentials {
    /// `text` without the password, should a server have repeated it: an old one names the arguments of a
    /// command that it does not know.
    pub fn censor(&self, text: &str) -> String {
        match &self.password {
            Some(Secret(password)) if !password.is_empty() => text.replace(password, "…"),
            _ => text.to_owned(),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a server asks of its clients. Both empty: no authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// ACL user; `None` means the user `default`.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_comes_back_is_not_shown() {
        let credentials = Credentials { username: None, password: Some(Secret::new("hunter2")) };
        let text = "ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `hunter2`";
        assert!(!credentials.censor(text).contains("hunter2"));
        assert_eq!(Credentials::default().censor(text), text);
    }
}
