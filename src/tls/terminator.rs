//! Owns TLS for clients: handshakes, the certificate that they are shown, and what is told to somebody who speaks none.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::Ticketer;
use tokio_rustls::rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error as TlsError, ServerConfig};

use super::expiry::expiry;
use super::files::{FileFlaw, Flaw, Identity, Part, Reread};
use super::provider;
use super::reasons::is_about_certificates;
use super::stream::Stream;

/// What the first record of a handshake begins with.
const HANDSHAKE: u8 = 0x16;
/// The answer to HTTP without TLS.
const PLAIN_HTTP: &str = "this port speaks TLS: use https:// and wss://\n";
/// How long whoever spoke HTTP may take to read that.
const FAREWELL: Duration = Duration::from_secs(2);

/// Speaks TLS with clients. A cheap handle.
#[derive(Clone)]
pub struct Terminator {
    acceptor: TlsAcceptor,
    certificate: Arc<Reread<CertifiedKey>>,
}

impl fmt::Debug for Terminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminator").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Why a client was not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It took too long.
    #[error("the handshake took longer than {0:?}")]
    Silent(Duration),
    /// It speaks HTTP.
    #[error("it spoke HTTP, without TLS")]
    PlainHttp,
    /// It speaks something else.
    #[error("it did not speak TLS")]
    NoTls,
    /// The handshake failed, or the connection broke.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

impl Refusal {
    /// What they are counted as.
    pub const LABELS: [&'static str; 7] =
        ["timed_out", "plain_http", "no_tls", "certificate_refused", "incompatible", "broken_off", "failed"];

    /// What it is counted as: one of the [labels](Self::LABELS).
    pub fn label(&self) -> &'static str {
        match self {
            Self::Silent(_) => "timed_out",
            Self::PlainHttp => "plain_http",
            Self::NoTls => "no_tls",
            Self::Failed(error) => match error.get_ref().and_then(|error| error.downcast_ref()) {
                Some(TlsError::AlertReceived(alert)) if is_about_certificates(*alert) => "certificate_refused",
                Some(TlsError::PeerIncompatible(_)) => "incompatible",
                Some(_) => "failed",
                None => "broken_off",
            },
        }
    }
}

impl Terminator {
    /// One that shows the certificate in these files.
    ///
    /// # Errors
    /// Every flaw of the files.
    pub fn new(files: Identity) -> Result<Self, Vec<FileFlaw>> {
        let paths = vec![files.certificate.clone(), files.key.clone()];
        let flawed = |error| {
            let flaw = Flaw::Certificate(files.certificate.clone(), error);
            vec![FileFlaw { part: Part::Certificate, flaw }]
        };
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12]);
        let builder = builder.map_err(flawed)?.with_no_client_auth();
        let ticketer = Ticketer::new().map_err(flawed)?;
        let certificate = Reread::new("clients", paths, move |contents| contents.identity(0, &files))?;
        let certificate = Arc::new(certificate);
        let mut config = builder.with_cert_resolver(Arc::new(Shown(certificate.clone())));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A client that comes back to this node shows what it was given: nothing of it is kept here.
        config.ticketer = ticketer;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate })
    }

    /// Reads the files again when they change. Runs for ever.
    pub async fn watch(self) {
        self.certificate.watch().await;
    }

    /// When the certificate expires that is shown now.
    pub fn expiry(&self) -> Option<SystemTime> {
        expiry(&self.certificate.current())
    }

    /// Does the handshake on a new connection, within `limit`.
    ///
    /// # Errors
    /// When it is none. Somebody who spoke HTTP has been told.
    pub async fn welcome(&self, stream: TcpStream, limit: Duration) -> Result<Stream, Refusal> {
        let handshake = async {
            let mut first = [0];
            match stream.peek(&mut first).await? {
                0 => return Err(Refusal::NoTls),
                _ if first[0] == HANDSHAKE => {}
                _ if first[0].is_ascii_uppercase() => {
                    tell_plain_http(stream).await;
                    return Err(Refusal::PlainHttp);
                }
                _ => return Err(Refusal::NoTls),
            }
            Ok(Stream::ToClient(Box::new(self.acceptor.accept(stream).await?)))
        };
        timeout(limit, handshake).await.unwrap_or(Err(Refusal::Silent(limit)))
    }
}

async fn tell_plain_http(mut stream: TcpStream) {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{PLAIN_HTTP}",
        PLAIN_HTTP.len()
    );
    let tell = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection, and the peer might never read why.
        let mut rest = [0; 512];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(FAREWELL, tell).await;
}

/// The certificate as it is now.
#[derive(Debug)]
struct Shown(Arc<Reread<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current())
    }
}
