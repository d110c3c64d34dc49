//! Owns the look at what stands in front of the gateways, as a client meets it: the upgrade, headers, 503, what leaks.

use std::io;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::findings::Findings;
use crate::config::{Config, option};
use crate::edge::client_address::TrustedProxies;
use crate::operate::inquiry;
use crate::resolver;
use crate::tls::stream::Stream;
use crate::tls::unverified;

/// For each step.
const LIMIT: Duration = Duration::from_secs(3);
/// Bytes of a page that are read at the most: enough to see what it is.
const MOST: usize = 1024 * 1024;
/// A page of nobody's.
const STRANGER: &str = "http://texto-check.invalid";

/// An address in front of the gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Front {
    is_https: bool,
    host: String,
    port: u16,
    /// As a browser writes it in Host and Origin.
    authority: String,
}

impl Front {
    fn parse(text: &str) -> Option<Self> {
        let url: http::Uri = text.trim().parse().ok()?;
        let is_https = match url.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = url.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if !matches!(url.path(), "" | "/") {
            return None;
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Some(Self { is_https, host, port, authority: authority.as_str().to_owned() })
    }

    fn origin(&self) -> String {
        format!("{}://{}", if self.is_https { "https" } else { "http" }, self.authority)
    }

    async fn connect(&self) -> io::Result<Stream> {
        let stream = resolver::connect(&self.host, self.port, LIMIT).await?;
        match self.is_https {
            true => unverified::connect(stream, &self.host).await,
            false => Ok(Stream::Plain(stream)),
        }
    }

    /// Asks for a page: its status, and its beginning.
    async fn get(&self, path: &str) -> Result<(StatusCode, String), String> {
        let exchange = async {
            let stream = self.connect().await.map_err(|error| error.to_string())?;
            let read = async |response: Response<Incoming>| {
                let status = response.status();
                let body = Limited::new(response.into_body(), MOST).collect().await;
                let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                (status, String::from_utf8_lossy(&body).into_owned())
            };
            inquiry::get(stream, &self.authority, path, read).await.map_err(|error| error.to_string())
        };
        timeout(LIMIT, exchange).await.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")))
    }

    /// Asks for a WebSocket as a browser does on a page of `origin`.
    async fn upgrade(&self, origin: &str) -> Upgrade {
        let handshake = async {
            let stream = self.connect().await.map_err(tungstenite::Error::Io)?;
            let request = http::Request::get(format!("ws://{}/v1/texto", self.authority))
                .header(header::HOST, &self.authority)
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "websocket")
                .header(header::SEC_WEBSOCKET_VERSION, "13")
                .header(header::SEC_WEBSOCKET_KEY, generate_key())
                .header(header::ORIGIN, origin)
                .body(())
                .map_err(tungstenite::Error::HttpFormat)?;
            client_async(request, stream).await
        };
        match timeout(LIMIT, handshake).await {
            Ok(Ok((socket, _))) => Upgrade::Open(Box::new(socket)),
            Ok(Err(tungstenite::Error::Http(response))) => {
                let said = response.body().as_deref().unwrap_or_default();
                let said: String = String::from_utf8_lossy(said).chars().take(200).collect();
                Upgrade::Refused(response.status(), said)
            }
            Ok(Err(error)) => Upgrade::Failed(error.to_string()),
            Err(_) => Upgrade::Failed(format!("no answer within {LIMIT:?}")),
        }
    }
}

enum Upgrade {
    Open(Box<WebSocketStream<Stream>>),
    Refused(StatusCode, String),
    Failed(String),
}

pub(super) async fn look(address: &str, config: &Config, out: &mut Findings) {
    let Some(front) = Front::parse(address) else {
        return out.wrong(
            "nginx.address",
            "--nginx",
            format!("{address:?} is not valid"),
            "nothing can be asked there",
            "--nginx http://host:port, or https://host, without a path",
        );
    };
    let place = front.origin();
    let own = front.origin();
    let (own, stranger, metrics, status, readiness) = tokio::join!(
        front.upgrade(&own),
        front.upgrade(STRANGER),
        front.get("/metrics"),
        front.get("/status.json"),
        front.get("/readyz")
    );
    let is_open = matches!(own, Upgrade::Open(_));
    upgrade(&front, &place, own, out).await;
    if is_open {
        foreign_page(config, &place, &stranger, out);
    }
    inside(&place, "nginx.metrics", ("/metrics", "location /metrics"), metrics, "texto_", out);
    inside(&place, "nginx.status", ("/status.json", "location /status"), status, "texto-status/", out);
    if let Ok((_, text)) = readiness
        && text.contains("\"broker\"")
    {
        out.doubtful(
            "nginx.readyz",
            &place,
            "/readyz is served to everybody, with addresses of Redis and Sentinels",
            "strangers need not know them; load balancers in front have /healthz of nginx' own",
            "`location /readyz { return 404; }`, and the same for /livez and /healthz",
        );
    }
    if front.is_https {
        out.unseen(
            "nginx.certificate",
            &place,
            "whether browsers believe its certificate is not looked at",
            format!("`openssl s_client -connect {}:{} -verify_return_error`", front.host, front.port),
        );
    }
    unseen(config, &place, out);
}

/// Whether what is for operators alone, and has `mark` in it, is told to everybody.
fn inside(
    place: &str,
    name: &'static str,
    (path, location): (&str, &str),
    answer: Result<(StatusCode, String), String>,
    mark: &str,
    out: &mut Findings,
) {
    match answer {
        Ok((status, text)) if status.is_success() && text.contains(mark) => out.wrong(
            name,
            place,
            format!("{path} is served to everybody"),
            "it tells how many people are connected, how the deployment is built, and what fails just now",
            format!("`{location} {{ return 404; }}`, or {} on the gateways", option("admin-listen")),
        ),
        Ok((status, _)) if status.is_server_error() => out.unseen(
            name,
            place,
            format!("{path} is answered with {}, for there is no gateway", status.as_u16()),
            "check again when there are gateways",
        ),
        Ok((status, _)) => out.well(name, place, format!("{path} is answered with {}", status.as_u16())),
        Err(error) => out.unseen(name, place, format!("{path}: {error}"), "see what is said of the upgrade"),
    }
}

async fn upgrade(front: &Front, place: &str, own: Upgrade, out: &mut Findings) {
    let why = "no client can connect by it";
    match own {
        Upgrade::Open(mut socket) => {
            let began = Instant::now();
            let registration = r#"{"id":"00000000-0000-4000-8000-000000000000","kind":"registration","data":null}"#;
            let talk = async {
                socket.send(Message::text(registration)).await.ok()?;
                while let Some(Ok(message)) = socket.next().await {
                    match message {
                        Message::Text(text) if text.contains("\"connection\"") || text.contains("\"EAUTH\"") => {
                            return Some(began.elapsed());
                        }
                        Message::Close(_) => return None,
                        _ => {}
                    }
                }
                None
            };
            let answered = timeout(LIMIT, talk).await.ok().flatten();
            let _ = timeout(Duration::from_millis(200), socket.close()).await; // The front may keep the end to itself.
            match answered {
                Some(took) => {
                    let took = took.as_secs_f64() * 1e3;
                    out.well("nginx.upgrade", place, format!("a WebSocket opens, and Texto answers on it ({took:.1} ms)"));
                    out.well("nginx.host", place, "Host is passed on: a page of this address may connect");
                }
                None => out.wrong(
                    "nginx.upgrade",
                    place,
                    "a WebSocket opens, and nothing of Texto's is said on it",
                    why,
                    "`proxy_buffering off;`, and `proxy_pass` to the gateways' --listen",
                ),
            }
        }
        Upgrade::Refused(StatusCode::FORBIDDEN, said) => out.wrong(
            "nginx.host",
            place,
            format!("a page of this very address may not connect (403: {said})"),
            "gateways compare a page's Origin with Host: if Host is not passed on, no browser gets in",
            format!(
                "`proxy_set_header Host $http_host;`, or {} {}",
                option("allowed-origins"),
                front.origin()
            ),
        ),
        Upgrade::Refused(StatusCode::SERVICE_UNAVAILABLE, said) => {
            out.wrong(
                "nginx.upgrade",
                place,
                format!("no gateway takes clients (503: {})", said.trim()),
                why,
                "see `/readyz?verbose` of each gateway",
            );
            out.well("nginx.503", place, "a gateway's 503 is passed on, or said in its place");
        }
        Upgrade::Refused(status @ (StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT), _) => out.wrong(
            "nginx.503",
            place,
            format!("it reaches no gateway, and says so by {}", status.as_u16()),
            "clients are to hear 503 with Retry-After: many take 502 for something that coming again does not mend",
            "start the gateways; `proxy_next_upstream error timeout http_503;` and `error_page 502 504 = @unavailable;`",
        ),
        // As a gateway says it, and as nginx does.
        Upgrade::Refused(StatusCode::BAD_REQUEST, said) if said.contains("speaks TLS") || said.contains("HTTPS port") => {
            out.wrong("nginx.reachable", place, "it speaks TLS on this port", why, "--nginx https://…");
        }
        Upgrade::Refused(status @ (StatusCode::BAD_REQUEST | StatusCode::UPGRADE_REQUIRED), said) => out.wrong(
            "nginx.upgrade",
            place,
            format!("the upgrade does not reach the gateways ({}: {})", status.as_u16(), said.trim()),
            why,
            "`proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;`",
        ),
        Upgrade::Refused(status, said) => out.wrong(
            "nginx.upgrade",
            place,
            format!("the upgrade is answered with {}: {}", status.as_u16(), said.trim()),
            why,
            "`location = /v1/texto { proxy_pass http://gateways; … }`",
        ),
        Upgrade::Failed(error) => {
            out.wrong("nginx.reachable", place, error, why, "start it, or give its address by --nginx");
        }
    }
}

/// Whether Origin is passed on.
fn foreign_page(config: &Config, place: &str, stranger: &Upgrade, out: &mut Findings) {
    match stranger {
        Upgrade::Refused(StatusCode::FORBIDDEN, _) => {
            out.well("nginx.origin", place, "Origin is passed on: a page of another address is refused");
        }
        Upgrade::Open(_) if config.access.origins.is_any() => {
            out.well("nginx.origin", place, "pages of all addresses may connect, as it is configured");
        }
        Upgrade::Open(_) => out.wrong(
            "nginx.origin",
            place,
            "a page of another address may connect",
            "any page that a person opens can open a WebSocket with that person's network and cookies",
            "take `proxy_set_header Origin …;` away; or the gateways have other --allowed-origins (TEXTO_ALLOWED_ORIGINS) than this check",
        ),
        Upgrade::Refused(status, _) => {
            out.unseen("nginx.origin", place, format!("Origin: another page was answered with {status}"), "check again");
        }
        Upgrade::Failed(error) => out.unseen("nginx.origin", place, format!("Origin: {error}"), "check again"),
    }
}

/// What a client can't see, or not within seconds.
fn unseen(config: &Config, place: &str, out: &mut Findings) {
    if config.trusted_proxies == TrustedProxies::default() {
        out.doubtful(
            "nginx.proxies",
            place,
            "no proxy is believed about whom it speaks for",
            "all clients that come by it count as one address: limits for an address are limits for all of them together",
            format!("{}: the address of nginx, or its network", option("trusted-proxies")),
        );
    }
    out.unseen(
        "nginx.forwarded-for",
        place,
        "whether X-Forwarded-For is set, and forged ones are dropped, only gateways see",
        "`proxy_set_header X-Forwarded-For $remote_addr;` ($proxy_add_x_forwarded_for keeps what the client wrote)",
    );
    // Three pings: one that is late, or is lost, is no reason to give up.
    let least = config.limits.ping_interval * 3;
    out.unseen(
        "nginx.idle",
        place,
        "how long it bears with a silent WebSocket takes as long to see",
        format!("`proxy_read_timeout` and `proxy_send_timeout`: {} s or more", least.as_secs_f64().ceil()),
    );
    if !out.iter().any(|finding| finding.name == "nginx.503") {
        out.unseen(
            "nginx.503",
            place,
            "whether it goes on to the next gateway, and passes a 503 on, can't be seen while they take clients",
            "`proxy_next_upstream error timeout http_503;` and `max_fails=0` for each gateway",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_front() {
        let front = Front::parse("http://127.0.0.1:8398").unwrap();
        assert_eq!(
            (front.host.as_str(), front.port, front.origin().as_str()),
            ("127.0.0.1", 8398, "http://127.0.0.1:8398")
        );
        let front = Front::parse("https://chat.example.org/").unwrap();
        assert_eq!((front.port, front.is_https, front.origin().as_str()), (443, true, "https://chat.example.org"));
        let front = Front::parse("http://[::1]:80").unwrap();
        assert_eq!((front.host.as_str(), front.origin().as_str()), ("::1", "http://[::1]:80"));
        for bad in ["127.0.0.1:8398", "ws://host", "http://u:p@host", "http://host/path", ""] {
            assert_eq!(Front::parse(bad), None, "{bad}");
        }
    }
}
