//! Owns addresses of gateways: what may be one, and what is asked of it.

use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::http::uri::PathAndQuery;

use crate::error::ConfigError;

/// Where gateways have their WebSocket.
const PATH: &str = "/v1/texto";

/// The address of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) uri: Uri,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) is_tls: bool,
}

impl Address {
    /// Reads `url`: `ws`, `wss`, or `http` and `https`, which mean the same. Without a path it is [`PATH`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(url: &str) -> Result<Self, ConfigError> {
        let bad = |why: &str| ConfigError::Url { url: shown(url), why: why.to_owned() };
        let uri: Uri = url.trim().parse().map_err(|error| bad(&format!("{error}")))?;
        let is_tls = match uri.scheme_str() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            Some(_) => return Err(bad("it begins with neither ws:// nor wss://")),
            None => return Err(bad("it does not begin with ws:// or wss://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("credentials don't belong into an address, which is logged on its way"));
        }
        // Of an IPv6 address what stands between the brackets.
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        let has_port = authority.as_str().len() > uri.host().map_or(0, str::len);
        let port = match authority.port_u16() {
            Some(port) => port,
            None if has_port => return Err(bad("its port is none")),
            None if is_tls => 443,
            None => 80,
        };
        let path = if uri.path() == "/" { PATH } else { uri.path() };
        let query = uri.query().filter(|query| !query.is_empty()).map_or(String::new(), |query| format!("{query}&"));
        let mut parts = uri.clone().into_parts();
        parts.scheme = (if is_tls { "wss" } else { "ws" }).parse().ok();
        let path_and_query: Result<PathAndQuery, _> = format!("{path}?{query}register=1").parse();
        parts.path_and_query = Some(path_and_query.map_err(|error| bad(&error.to_string()))?);
        let uri = Uri::from_parts(parts).map_err(|error| bad(&error.to_string()))?;
        Ok(Self { uri, host, port, is_tls })
    }
}

/// What of an address may be repeated: neither a password nor a query.
fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_asked_for_a_registration() {
        let good = [
            ("ws://localhost:8398/v1/texto", "ws://localhost:8398/v1/texto?register=1", "localhost", 8398),
            ("https://chat.example.org", "wss://chat.example.org/v1/texto?register=1", "chat.example.org", 443),
            ("http://[::1]/", "ws://[::1]/v1/texto?register=1", "::1", 80),
            (" wss://a.example/chat/v1/texto?x=1 ", "wss://a.example/chat/v1/texto?x=1&register=1", "a.example", 443),
        ];
        for (url, uri, host, port) in good {
            let address = Address::read(url).unwrap();
            assert_eq!((&*address.uri.to_string(), &*address.host, address.port), (uri, host, port), "{url}");
        }
    }

    #[test]
    fn what_is_none_is_said_without_secrets() {
        let bad = [
            "",
            "nowhere",
            "/v1/texto",
            "ftp://a.example/",
            "ws://",
            "ws://:80/",
            "ws://a.example:99999/",
            "ws://ä.example/",
        ];
        for url in bad {
            assert!(Address::read(url).is_err(), "{url}");
        }
        let error = Address::read("wss://me:hunter2@a.example/v1/texto?token=hunter3").unwrap_err().to_string();
        assert!(error.contains("a.example") && !error.contains("hunter"), "{error}");
    }
}
