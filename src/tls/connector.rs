//! Owns connections to Redis and Sentinels, with TLS or without; and finds out which a server speaks when it does not answer.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, Error, SignatureScheme};

use super::expiry::expiry;
use super::files::{FileFlaw, Flaw, Identity, Part, Reread, system_authorities};
use super::provider;
use super::reasons::{Course, Peer, TlsReason};
use super::stream::Stream;
use crate::config::Address;
use crate::resolver;

/// The beginning of a handshake of TLS 1.2 ([RFC 5246, section 7.4.1.2]) that is not gone on with: who speaks TLS answers
/// it, if only with an alert. A constant, as the first true one of a thread takes AWS-LC 30 ms of processor time, for
/// randomness, and this is asked when a server has just died.
///
/// [RFC 5246, section 7.4.1.2]: https://www.rfc-editor.org/rfc/rfc5246#section-7.4.1.2
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\0\x3b\x01\0\0\x37\
    \x03\x03texto asks: is TLS spoken here? \
    \0\
    \0\x04\xc0\x2b\xc0\x2f\
    \x01\0\
    \0\x0a\0\x0d\0\x06\0\x04\x04\x03\x04\x01";

/// How to connect to the servers of a kind. A cheap handle.
#[derive(Clone, Debug)]
pub struct Connector {
    peer: Peer,
    tls: Option<Arc<Tls>>,
}

#[derive(Debug)]
struct Tls {
    /// The name that certificates must be for; the address' host if there is none.
    name: Option<ServerName<'static>>,
    by_system: bool,
    credentials: Arc<Reread<Credentials>>,
}

/// What is made of the files.
#[derive(Debug)]
struct Credentials {
    verifier: Arc<WebPkiServerVerifier>,
    identity: Option<Arc<CertifiedKey>>,
}

/// Which files, and which name.
#[derive(Debug, Default)]
pub struct TlsSettings {
    /// The authorities; those of the system if there is none.
    pub authorities: Option<PathBuf>,
    /// For servers that demand a certificate.
    pub identity: Option<Identity>,
    /// The name that certificates must be for; the address' host if there is none.
    pub name: Option<ServerName<'static>>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// TCP failed.
    Io(io::Error),
    /// TLS failed.
    Tls(TlsReason),
}

impl Connector {
    /// One without TLS.
    pub fn plain(peer: Peer) -> Self {
        Self { peer, tls: None }
    }

    /// One with TLS.
    ///
    /// # Errors
    /// Every flaw of the files.
    pub fn tls(peer: Peer, settings: TlsSettings) -> Result<Self, Vec<FileFlaw>> {
        let TlsSettings { authorities, identity, name } = settings;
        let by_system = authorities.is_none();
        let system = if by_system { Some(system_authorities().map_err(|flaw| vec![flaw])?) } else { None };
        let system = system.map(Arc::new);
        let own = identity.iter().flat_map(|identity| [identity.certificate.clone(), identity.key.clone()]);
        let paths: Vec<_> = authorities.iter().cloned().chain(own).collect();
        let credentials = Reread::new(peer.name(), paths, move |contents| {
            let roots = match (&system, &authorities) {
                (Some(system), _) => Ok(system.clone()),
                (None, path) => contents.authorities(0, path.as_deref().unwrap_or("".as_ref())).map(Arc::new),
            };
            let identity = identity.as_ref().map(|paths| contents.identity(usize::from(!by_system), paths)).transpose();
            let (roots, identity) = match (roots, identity) {
                (Ok(roots), Ok(identity)) => (roots, identity.map(Arc::new)),
                (roots, identity) => {
                    return Err(roots.err().into_iter().chain(identity.err().into_iter().flatten()).collect());
                }
            };
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
            let verifier = verifier.map_err(|error| {
                let flaw = Flaw::NoSystem(error.to_string()); // For want of roots, which has been seen to.
                vec![FileFlaw { part: Part::Authorities, flaw }]
            })?;
            Ok(Credentials { verifier, identity })
        })?;
        Ok(Self { peer, tls: Some(Arc::new(Tls { name, by_system, credentials: Arc::new(credentials) })) })
    }

    /// Whether it speaks TLS.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Which servers it is for, and when the certificate expires that they are shown now.
    pub fn expiry(&self) -> (Peer, Option<SystemTime>) {
        let identity = self.tls.as_ref().and_then(|tls| tls.credentials.current().identity.clone());
        (self.peer, identity.and_then(|identity| expiry(&identity)))
    }

    /// Reads the files again when they change. Runs for ever.
    pub async fn watch(self) {
        match self.tls {
            Some(tls) => tls.credentials.clone().watch().await,
            None => std::future::pending().await,
        }
    }

    /// Connects, and does the handshake if there is to be one; each within `limit`. Cancel safe.
    ///
    /// # Errors
    /// Why not.
    pub async fn connect(&self, address: &Address, limit: Duration) -> Result<ServerStream, ConnectError> {
        let stream = resolver::connect(&address.host, address.port, limit).await.map_err(ConnectError::Io)?;
        set_options(&stream, limit).map_err(ConnectError::Io)?;
        let Some(tls) = &self.tls else {
            let course = Course { peer: self.peer, by_system: false, have_certificate: false, asked: false };
            let told = Arc::new(Told { course, asked: AtomicBool::new(false), reason: OnceLock::new() });
            return Ok(ServerStream { stream: Stream::Plain(stream), told, heard: false });
        };
        match self.handshake(tls, stream, address, limit).await {
            // A Redis without TLS waits for the end of a line in what is none, for ever.
            Err(TlsReason::Silent(_)) if answers(address, b"PING\r\n", limit).await.is_some_and(is_redis) => {
                Err(ConnectError::Tls(TlsReason::PlainServer(self.peer)))
            }
            result => result.map_err(ConnectError::Tls),
        }
    }

    async fn handshake(
        &self,
        tls: &Tls,
        stream: TcpStream,
        address: &Address,
        limit: Duration,
    ) -> Result<ServerStream, TlsReason> {
        let name = match &tls.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(address.host.clone())
                .map_err(|_| TlsReason::NoName { peer: self.peer, host: address.host.clone() })?,
        };
        let credentials = tls.credentials.current();
        let course = Course {
            peer: self.peer,
            by_system: tls.by_system,
            have_certificate: credentials.identity.is_some(),
            asked: false,
        };
        let told = Arc::new(Told { course, asked: AtomicBool::new(false), reason: OnceLock::new() });
        let config = credentials.config(told.clone()).map_err(|error| TlsReason::Other(error.to_string()))?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        match timeout(limit, handshake).await {
            Ok(Ok(stream)) => Ok(ServerStream { stream: Stream::ToServer(Box::new(stream)), told, heard: false }),
            Ok(Err(error)) => Err(match rustls_error(&error) {
                Some(error) => told.course().reason(error),
                None => told.course().hung_up().unwrap_or_else(|| TlsReason::BrokenOff(error.to_string())),
            }),
            Err(_) => Err(TlsReason::Silent(limit)),
        }
    }

    /// Why a server to which we spoke without TLS has hung up before it said anything: it may have expected TLS.
    pub async fn doubt(&self, address: &Address, limit: Duration) -> Option<TlsReason> {
        if self.tls.is_some() {
            return None;
        }
        let answer = answers(address, CLIENT_HELLO, limit).await?;
        is_tls(answer).then_some(TlsReason::TlsServer(self.peer))
    }
}

fn set_options(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(limit.max(Duration::from_secs(1)) * 2))?;
    Ok(())
}

impl Credentials {
    /// For one connection, which tells `told` when the server asks for a certificate.
    fn config(&self, told: Arc<Told>) -> Result<ClientConfig, Error> {
        let shown = Shown { identity: self.identity.clone(), told };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_webpki_verifier(self.verifier.clone())
            .with_client_cert_resolver(Arc::new(shown));
        // Each connection looks at the certificates as they are now.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// Our certificate, as it is shown to a server that asks.
#[derive(Debug)]
struct Shown {
    identity: Option<Arc<CertifiedKey>>,
    told: Arc<Told>,
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.told.asked.store(true, Ordering::Relaxed);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        // Otherwise it would not be asked.
        true
    }
}

/// What a connection has told of TLS.
#[derive(Debug)]
pub struct Told {
    course: Course,
    asked: AtomicBool,
    reason: OnceLock<TlsReason>,
}

impl Told {
    fn course(&self) -> Course {
        Course { asked: self.asked.load(Ordering::Relaxed), ..self.course }
    }

    /// Why it broke, if TLS was the reason.
    pub fn reason(&self) -> Option<TlsReason> {
        self.reason.get().cloned()
    }

    /// Takes note of the end of the connection. With TLS 1.3 a server judges our certificate when the handshake is over
    /// for us.
    fn note(&self, error: Option<&io::Error>, heard: bool) {
        let reason = match error.and_then(rustls_error) {
            Some(error) => Some(self.course().reason(error)),
            None if heard => None,
            None => self.course().hung_up(),
        };
        if let Some(reason) = reason {
            let _ = self.reason.set(reason); // The first one counts.
        }
    }
}

fn rustls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// A connection to a server.
#[derive(Debug)]
pub struct ServerStream {
    stream: Stream,
    told: Arc<Told>,
    /// The server has said something.
    heard: bool,
}

impl ServerStream {
    /// What it tells of TLS, also when it is gone.
    pub fn told(&self) -> Arc<Told> {
        self.told.clone()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = match ready!(Pin::new(&mut self.stream).poll_read(cx, buf)) {
            // Whoever dies says no farewell. What is cut off can't be taken for whole: Redis' protocol says lengths.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            result => result,
        };
        match &result {
            Ok(()) if buf.filled().len() > before => self.heard = true,
            Ok(()) if buf.remaining() == 0 => {}
            Ok(()) => self.told.note(None, self.heard),
            Err(error) => self.told.note(Some(error), self.heard),
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        if let Err(error) = &result {
            self.told.note(Some(error), self.heard);
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        if let Err(error) = &result {
            self.told.note(Some(error), self.heard);
        }
        Poll::Ready(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The first bytes that a server answers `question` with, on a connection of its own. Nothing secret is said.
async fn answers(address: &Address, question: &[u8], limit: Duration) -> Option<[u8; 2]> {
    let ask = async {
        let mut stream = resolver::connect(&address.host, address.port, limit).await.ok()?;
        stream.write_all(question).await.ok()?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer)
    };
    timeout(limit, ask).await.ok().flatten()
}

/// `+PONG`, `-NOAUTH …`, `-DENIED …`.
fn is_redis(answer: [u8; 2]) -> bool {
    matches!(answer, [b'+' | b'-', b'A'..=b'Z'])
}

/// A record of a handshake, or an alert, of TLS 1.x.
fn is_tls(answer: [u8; 2]) -> bool {
    matches!(answer, [0x16 | 0x15, 3])
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::server::Acceptor;

    use super::*;

    #[test]
    fn who_speaks_tls_understands_the_question_whether_it_is_spoken() {
        let mut acceptor = Acceptor::default();
        let mut question = CLIENT_HELLO;
        acceptor.read_tls(&mut question).unwrap();
        assert!(question.is_empty());
        let accepted = acceptor.accept().map_err(|(error, _)| error).unwrap();
        assert!(accepted.is_some_and(|accepted| accepted.client_hello().cipher_suites().len() == 2));
    }
}
