//! Owns from which pages a browser may connect.
//!
//! A browser names the page's origin in each WebSocket handshake, and lets any page connect anywhere: only the server can
//! keep a page elsewhere from chatting in somebody's name. Whoever is no browser names none, and could name any.

use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, header};

/// Characters of a refused origin that are shown again.
const SHOWN: usize = 100;

/// Which pages may connect: those of the gateway's own address, and these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    any: bool,
    listed: Vec<Pattern>,
}

/// An origin that is allowed, or all below one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    origin: PageOrigin,
    /// All subdomains, however deep, and not the name itself.
    below: bool,
}

/// A page's origin (RFC 6454): `https://chat.example.org`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PageOrigin {
    scheme: String,
    /// In lower case; an address of IPv6 in brackets.
    host: String,
    /// None where the scheme has no default, and none is given.
    port: Option<u16>,
}

/// Why a page may not connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginFlaw {
    /// It is of another address.
    #[error(
        "pages of {origin} may not connect here: --allowed-origins (TEXTO_ALLOWED_ORIGINS) says which may, beside those of \
         {}; a proxy must pass the Host header on (nginx: `proxy_set_header Host $http_host;`)",
        own.as_deref().unwrap_or("this address, which the handshake does not name")
    )]
    Foreign {
        /// Of the page.
        origin: String,
        /// The `Host` of the handshake.
        own: Option<String>,
    },
    /// It has none: it is a file, or a frame without rights.
    #[error(
        "pages without an origin of their own (files, sandboxed frames) may not connect here: serve the page from an \
         address that --allowed-origins (TEXTO_ALLOWED_ORIGINS) names"
    )]
    Null,
    /// Nobody can tell.
    #[error("the Origin header is malformed or there are several: a browser sends one, like https://chat.example.org")]
    Malformed,
}

impl OriginFlaw {
    /// Every flaw as metrics name it.
    pub const LABELS: [&str; 3] = ["origin_foreign", "origin_null", "origin_malformed"];

    /// The flaw as metrics name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Foreign { .. } => "origin_foreign",
            Self::Null => "origin_null",
            Self::Malformed => "origin_malformed",
        }
    }
}

impl Origins {
    /// Reads a list such as `https://chat.example.org,https://*.example.org`, or `*`.
    ///
    /// # Errors
    /// Each part that is no origin, with what it should be.
    pub fn parse(list: &str) -> Result<Self, Vec<(String, &'static str)>> {
        let parts: Vec<_> = list.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts == ["*"] {
            return Ok(Self { any: true, listed: Vec::new() });
        }
        let (mut listed, mut errors) = (Vec::new(), Vec::new());
        for part in parts {
            match part.parse() {
                Ok(pattern) => listed.push(pattern),
                Err(expected) => errors.push((part.to_owned(), expected)),
            }
        }
        if errors.is_empty() { Ok(Self { any: false, listed }) } else { Err(errors) }
    }

    /// Whether any page may connect.
    pub fn is_any(&self) -> bool {
        self.any
    }

    /// Whether whoever sent these headers may connect.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), OriginFlaw> {
        let mut values = headers.get_all(header::ORIGIN).iter();
        let Some(value) = values.next().filter(|_| !self.any) else { return Ok(()) };
        let text = value.to_str().ok().filter(|_| values.next().is_none()).ok_or(OriginFlaw::Malformed)?;
        if text == "null" {
            return Err(OriginFlaw::Null);
        }
        let origin: PageOrigin = text.parse().map_err(|_| OriginFlaw::Malformed)?;
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if host.is_some_and(|host| origin.is_of(host)) || self.listed.iter().any(|pattern| pattern.fits(&origin)) {
            return Ok(());
        }
        let shown = |text: &str| text.chars().take(SHOWN).collect();
        Err(OriginFlaw::Foreign { origin: shown(text), own: host.map(shown) })
    }
}

impl Pattern {
    fn fits(&self, origin: &PageOrigin) -> bool {
        let PageOrigin { scheme, host, port } = &self.origin;
        let is_host = if self.below {
            origin.host.strip_suffix(host.as_str()).is_some_and(|below| below.len() > 1 && below.ends_with('.'))
        } else {
            origin.host == *host
        };
        is_host && origin.scheme == *scheme && origin.port == *port
    }
}

impl FromStr for Pattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "an origin such as https://chat.example.org or https://*.example.org, or * alone for all";
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        if rest.contains('/') {
            return Err(
                "an origin has no path: https://chat.example.org, without anything behind the host and its port",
            );
        }
        let (below, rest) = rest.strip_prefix("*.").map_or((false, rest), |rest| (true, rest));
        if rest.contains('*') {
            return Err("a * stands for all below a name, and only there: https://*.example.org");
        }
        let origin: PageOrigin = format!("{scheme}://{rest}").parse().map_err(|()| EXPECTED)?;
        // No page is of those: it would never fit.
        if ["ws", "wss", "ftp", "file"].contains(&origin.scheme.as_str()) {
            return Err("the origin is that of the page, not of the WebSocket: it begins with https:// or http://");
        }
        if origin.port == Some(0) {
            return Err("there is no port 0");
        }
        Ok(Self { origin, below })
    }
}

impl PageOrigin {
    /// Whether it is where this `Host` header is from. The scheme is not known here, for a proxy may have ended TLS: a
    /// host without a port has the default one of the origin's scheme.
    fn is_of(&self, host: &str) -> bool {
        let Some((name, port)) = split(host) else { return false };
        let port = port.or_else(|| default_port(&self.scheme));
        self.host == name && port.is_some() && self.port == port
    }
}

impl FromStr for PageOrigin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (scheme, rest) = text.split_once("://").ok_or(())?;
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(is_scheme) {
            return Err(());
        }
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = split(rest).ok_or(())?;
        let port = port.or_else(|| default_port(&scheme));
        Ok(Self { scheme, host, port })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PageOrigin { scheme, host, port } = &self.origin;
        write!(f, "{scheme}://{}{host}", if self.below { "*." } else { "" })?;
        match port {
            Some(port) if Some(*port) != default_port(scheme) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.any {
            return f.write_str("*");
        }
        let listed: Vec<_> = self.listed.iter().map(Pattern::to_string).collect();
        f.write_str(&listed.join(","))
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// The host, in lower case and without the dot that may end it, and the port.
fn split(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        // Within the brackets of an address of IPv6 there are colons as well.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    // A u16 would be read from "+80" as well.
    let is_number = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().ok().filter(|_| is_number(port))?),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_v6 = host.starts_with('[') && host.ends_with(']');
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c) || is_v6 && "[]:".contains(c);
    (!host.is_empty() && host.chars().all(is_name)).then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(origin: &str, host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        headers.insert(header::ORIGIN, origin.parse().unwrap());
        headers
    }

    #[test]
    fn by_default_a_page_of_the_same_address_may_come_in_whatever_ends_tls() {
        let origins = Origins::default();
        for (origin, host) in [
            ("http://localhost:8398", "localhost:8398"),
            ("https://chat.example.org", "chat.example.org"),
            ("https://chat.example.org", "chat.example.org:443"),
            ("http://chat.example.org", "chat.example.org"),
            ("http://chat.example.org:80", "chat.example.org"),
            ("https://chat.example.org:8443", "chat.example.org:8443"),
            ("https://Chat.Example.org", "chat.example.ORG."),
            ("http://[::1]:8398", "[::1]:8398"),
            ("https://[2001:db8::1]", "[2001:DB8::1]"),
        ] {
            assert_eq!(origins.admit(&headers(origin, host)), Ok(()), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "chat.example.org"),
            ("https://chat.example.org", "gateways"),
            ("https://chat.example.org:8443", "chat.example.org"),
            ("https://chat.example.org", "chat.example.org:8443"),
            ("http://chat.example.org", "chat.example.org:443"),
            ("https://chat.example.org.evil.example", "chat.example.org"),
            ("https://evilchat.example.org", "chat.example.org"),
            ("app://chat.example.org", "chat.example.org:443"),
            ("https://chat.example.org", ""),
        ] {
            let flaw = origins.admit(&headers(origin, host)).unwrap_err();
            assert_eq!(flaw.label(), "origin_foreign", "{origin} {host}");
            let text = flaw.to_string();
            assert!(text.contains("--allowed-origins") && text.contains(origin), "{text}");
        }
    }

    #[test]
    fn an_app_whose_scheme_has_no_port_is_of_no_host_without_one() {
        // Both ports would be "none", which is no reason to take one for the other.
        assert!(Origins::default().admit(&headers("app://chat.example.org", "chat.example.org")).is_err());
    }

    #[test]
    fn who_is_no_browser_comes_in_and_what_no_browser_says_does_not() {
        let origins = Origins::default();
        assert_eq!(origins.admit(&HeaderMap::new()), Ok(()));
        assert_eq!(origins.admit(&headers("null", "localhost")), Err(OriginFlaw::Null));
        let mut two = headers("http://localhost", "localhost");
        two.append(header::ORIGIN, "http://localhost".parse().unwrap());
        assert_eq!(origins.admit(&two), Err(OriginFlaw::Malformed));
        for malformed in [
            "",
            "localhost",
            "http://",
            "http://localhost/",
            "http://localhost:x",
            "http://localhost:",
            "http://localhost:+80",
            "http://localhost:99999",
            "http://user@localhost",
            "http://localhost http://evil.example",
            "://localhost",
            "NULL",
        ] {
            assert_eq!(origins.admit(&headers(malformed, "localhost")), Err(OriginFlaw::Malformed), "{malformed}");
        }
        let nowhere = |origin| {
            let mut headers = headers(origin, "x");
            headers.remove(header::HOST);
            origins.admit(&headers)
        };
        assert!(nowhere("http://localhost").is_err());
    }

    #[test]
    fn what_is_listed_comes_in_and_nothing_that_looks_like_it() {
        let list = "https://chat.example.org, https://*.example.com,http://dev.example.org:3000,capacitor://localhost,\
                    https://*.example.net:8443";
        let origins = Origins::parse(list).unwrap();
        for good in [
            "https://chat.example.org",
            "https://CHAT.example.org:443",
            "https://a.example.com",
            "https://a.b.example.com",
            "http://dev.example.org:3000",
            "capacitor://localhost",
            "https://a.example.net:8443",
            // Its own address as well.
            "http://gateway",
        ] {
            assert_eq!(origins.admit(&headers(good, "gateway")), Ok(()), "{good}");
        }
        for bad in [
            "http://chat.example.org",
            "https://chat.example.org:8443",
            "https://a.chat.example.org",
            "https://example.com",
            "https://.example.com",
            "https://evilexample.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://a.example.com.evil.example",
            "http://dev.example.org",
            "capacitor://localhost:1",
            "https://a.example.net",
            "null",
        ] {
            assert!(origins.admit(&headers(bad, "gateway")).is_err(), "{bad}");
        }
        assert_eq!(Origins::parse(&origins.to_string()), Ok(origins));
    }

    #[test]
    fn a_star_is_for_all() {
        let origins = Origins::parse(" * ").unwrap();
        for any in ["https://evil.example", "null", "nonsense"] {
            assert_eq!(origins.admit(&headers(any, "gateway")), Ok(()), "{any}");
        }
    }

    #[test]
    fn what_is_no_origin_is_named_with_what_it_should_be() {
        for (part, expected) in [
            ("chat.example.org", "such as https://chat.example.org"),
            ("https://chat.example.org/", "no path"),
            ("https://chat.example.org/chat", "no path"),
            ("https://chat.*.org", "all below a name"),
            ("https://*", "all below a name"),
            ("https://*.*.org", "all below a name"),
            ("https://", "such as"),
            ("https://a b", "such as"),
            ("wss://chat.example.org", "of the page"),
            ("https://chat.example.org:0", "no port 0"),
            ("null", "such as"),
            ("*", "alone for all"),
        ] {
            let errors = Origins::parse(&format!("https://good.example,{part}")).unwrap_err();
            assert_eq!(errors.len(), 1);
            assert_eq!(errors[0].0, part);
            assert!(errors[0].1.contains(expected), "{part}: {}", errors[0].1);
        }
        assert_eq!(Origins::parse(" , "), Ok(Origins::default()));
    }
}
