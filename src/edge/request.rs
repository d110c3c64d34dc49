//! Owns which requests are refused before anybody looks at what they ask for: those that a proxy in front may have
//! understood otherwise (RFC 9112, section 11), and what all answers have in common.

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};
use warp::reply::Response as WarpResponse;

/// What may be there once: two that differ are read differently by different servers.
const ONCE: [HeaderName; 3] = [header::SEC_WEBSOCKET_KEY, header::SEC_WEBSOCKET_VERSION, header::CONTENT_LENGTH];

/// Why a request is not served. The connection is closed: nobody knows where its next request begins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A line ends with LF alone.
    #[error("a line of the request's head ends without CR")]
    LineEnd,
    /// HTTP/1.1 demands it (RFC 9112, section 3.2).
    #[error("the header Host is missing: HTTP/1.1 demands it")]
    NoHost,
    /// There are two.
    #[error("the header Host is there more than once")]
    Hosts,
    /// It is no host.
    #[error("the header Host is malformed: it must be a name or an address, and perhaps a port")]
    Host,
    /// The request line names another one (RFC 9112, section 3.2.2).
    #[error("the request line names another host than the header Host")]
    OtherHost,
    /// A header is there twice.
    #[error("the header {0} is there more than once")]
    Twice(HeaderName),
    /// It has a body, or says so. No path takes one.
    #[error("the request has a body (Transfer-Encoding, or a Content-Length other than 0), and nothing here takes one")]
    Body,
}

/// What is wrong with a request, if anything is.
pub fn flaw<B>(request: &Request<B>) -> Option<Flaw> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() >= Version::HTTP_11 => return Some(Flaw::NoHost),
        (Some(_), Some(_)) => return Some(Flaw::Hosts),
        (Some(host), None) if !is_host(host) => return Some(Flaw::Host),
        (host, _) => {
            let named = request.uri().authority().map(|authority| authority.as_str().as_bytes());
            if named.is_some_and(|named| host.is_none_or(|host| !host.as_bytes().eq_ignore_ascii_case(named))) {
                return Some(Flaw::OtherHost);
            }
        }
    }
    if let Some(name) = ONCE.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        return Some(Flaw::Twice(name.clone()));
    }
    let is_long = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    (is_long || headers.contains_key(header::TRANSFER_ENCODING)).then_some(Flaw::Body)
}

/// An empty one is what a client sends whose address has none (RFC 9112, section 3.2).
fn is_host(host: &HeaderValue) -> bool {
    let authority = || host.to_str().ok()?.parse::<Authority>().ok();
    host.is_empty() || authority().is_some_and(|authority| !authority.as_str().contains('@'))
}

/// The answer to a request with a flaw, after which the connection is closed.
pub fn refusal(status: StatusCode, reason: &dyn std::fmt::Display) -> WarpResponse {
    let mut response = WarpResponse::new(format!("{reason}\n").into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What every answer says: it is of the type that it says it is.
pub fn harden(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(target: &str, lines: &[(&str, &str)]) -> Option<Flaw> {
        let mut request = Request::builder().version(Version::HTTP_11).uri(target);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        flaw(&request.body(()).unwrap())
    }

    #[test]
    fn what_two_servers_may_understand_otherwise_is_a_flaw() {
        for host in ["texto", "texto:8398", "[::1]:8398", "192.0.2.1", ""] {
            assert_eq!(of("/", &[("host", host)]), None, "{host}");
        }
        for host in ["a b", "a@b", "a/b", "http://a", "a:b:c", "[::1", "caf\u{e9}"] {
            assert_eq!(of("/", &[("host", host)]), Some(Flaw::Host), "{host}");
        }
        assert_eq!(of("/", &[]), Some(Flaw::NoHost));
        assert_eq!(of("/", &[("host", "a"), ("host", "a")]), Some(Flaw::Hosts));
        assert_eq!(of("http://Texto/", &[("host", "texto")]), None);
        assert_eq!(of("http://other/", &[("host", "texto")]), Some(Flaw::OtherHost));
        assert_eq!(of("http://texto:1/", &[("host", "texto")]), Some(Flaw::OtherHost));
        assert_eq!(of("/", &[("host", "a"), ("content-length", "0")]), None);
        for body in [("content-length", "1"), ("content-length", "00"), ("transfer-encoding", "chunked")] {
            assert_eq!(of("/", &[("host", "a"), body]), Some(Flaw::Body), "{body:?}");
        }
        for name in ONCE {
            let lines = [("host", "a"), (name.as_str(), "0"), (name.as_str(), "0")];
            assert_eq!(of("/", &lines), Some(Flaw::Twice(name.clone())));
        }
        let old = Request::builder().version(Version::HTTP_10).uri("/").body(()).unwrap();
        assert_eq!(flaw(&old), None, "HTTP/1.0 does not know it");
    }
}
