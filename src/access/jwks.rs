//! Owns how a JWKS is fetched from its address: by http or https, within bounds, and without following anybody elsewhere.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;

use crate::resolver;

/// How long an answer may take, all of it.
pub const FETCH_LIMIT: Duration = Duration::from_secs(5);

/// Fetches from one address.
pub struct Fetcher {
    url: Uri,
    client: Client<HttpsConnector<HttpConnector<SystemResolver>>, Empty<Bytes>>,
}

/// Why there is no JWKS.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is nobody, or nobody who is trusted.
    #[error("can't be reached: {0}")]
    Unreachable(String),
    /// It has moved.
    #[error("answered {0} and points to {1:?}, where nobody goes by itself: give that address, if it is right")]
    Redirect(StatusCode, String),
    /// It says no.
    #[error("answered {0}")]
    Status(StatusCode),
    /// The answer is cut off, or too long.
    #[error("its answer can't be read, or has more than {0} bytes: {1}")]
    Body(usize, String),
    /// The address can't be asked for.
    #[error("can't be asked for: {0}")]
    Request(#[from] http::Error),
}

impl Fetcher {
    /// From `url`; https by the authorities that the system trusts (or `SSL_CERT_FILE`).
    ///
    /// # Errors
    /// When the address is none, or there are no authorities.
    pub fn new(url: &str) -> Result<Self, String> {
        let expected = "an address such as https://login.example.org/.well-known/jwks.json";
        let url: Uri = url.parse().map_err(|_| expected.to_owned())?;
        let is_https = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(expected.to_owned()),
        };
        let authority = url.authority().ok_or(expected)?;
        if authority.as_str().contains('@') {
            return Err(format!("{expected}, without a user and a password"));
        }
        let mut tcp = HttpConnector::new_with_resolver(SystemResolver);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(FETCH_LIMIT));
        let provider = hyper_rustls_provider();
        let builder = HttpsConnectorBuilder::new();
        let builder = if is_https {
            let builder = builder.with_provider_and_native_roots(provider);
            builder.map_err(|error| format!("the system's certificates of authorities can't be read: {error}"))?
        } else {
            let config = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(provider));
            let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
            builder.with_tls_config(config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
        };
        let https = if is_https { builder.https_only() } else { builder.https_or_http() };
        let connector = https.enable_http1().wrap_connector(tcp);
        let mut client = Client::builder(TokioExecutor::new());
        // It is asked seldom: a connection would be closed by then.
        client.pool_max_idle_per_host(0);
        Ok(Self { url, client: client.build(connector) })
    }

    /// Whether nobody on the way can change what is fetched.
    pub fn is_safe(&self) -> bool {
        let is_here = |host: &str| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        self.url.scheme_str() == Some("https") || self.url.host().is_some_and(is_here)
    }

    /// What is there, up to `most` bytes. Cancel safe; without a deadline of its own.
    ///
    /// # Errors
    /// Why there is nothing.
    pub async fn fetch(&self, most: usize) -> Result<Bytes, FetchError> {
        let request = http::Request::get(self.url.clone())
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::USER_AGENT, concat!("texto/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())?;
        let response = self.client.request(request).await.map_err(|error| FetchError::Unreachable(reasons(&error)))?;
        let status = response.status();
        if status.is_redirection() {
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
            return Err(FetchError::Redirect(status, to.chars().take(200).collect()));
        }
        if status != StatusCode::OK {
            return Err(FetchError::Status(status));
        }
        let body = Limited::new(response.into_body(), most).collect().await;
        Ok(body.map_err(|error| FetchError::Body(most, error.to_string()))?.to_bytes())
    }
}

/// The one that all of Texto uses.
fn hyper_rustls_provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// An error with what caused it: the causes say why, as with a certificate.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fetcher").field(&self.to_string()).finish()
    }
}

/// Without the query, which may hold a secret.
impl fmt::Display for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.url.authority().map_or("", |authority| authority.as_str());
        write!(f, "{}://{authority}{}", self.url.scheme_str().unwrap_or_default(), self.url.path())
    }
}

/// Looks names up as the rest of the gateway does.
#[derive(Clone, Copy, Debug)]
struct SystemResolver;

impl tower_service::Service<Name> for SystemResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        // The connector puts the port in itself.
        Box::pin(async move { Ok(resolver::resolve(name.as_str(), 0, FETCH_LIMIT).await?.into_iter()) })
    }
}
