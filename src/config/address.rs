//! Owns how a server's address is written: `host:port`.

use std::fmt;
use std::str::FromStr;

/// A `host:port` that is resolved anew on each connection, so that a moved host is found again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// A name or an IP address, IPv6 without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains("://") {
            return Err("expected host:port, without a scheme such as redis://");
        }
        let (host, port) = text.trim().rsplit_once(':').ok_or("expected host:port")?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or("the port must be 1 to 65535")?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or("an IPv6 address is written [::1]:6379")?,
            None if host.contains(':') => return Err("an IPv6 address is written [::1]:6379"),
            None => host,
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@') {
            return Err("expected host:port, without scheme, user or spaces");
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("[::1]:6379".parse::<Address>().unwrap().to_string(), "[::1]:6379");
        assert_eq!(" redis-0:6379".parse::<Address>().unwrap().host, "redis-0");
        for bad in ["redis", "redis:0", "redis:99999", "redis://h:1", "::1:6379", ":1", "u@h:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        for url in ["redis://a:26379", "rediss://a"] {
            assert!(url.parse::<Address>().unwrap_err().contains("without a scheme"), "{url}");
        }
    }
}
