//! Owns why there is no TLS with a server, in words for an operator.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

use crate::config::option;

/// What kind of server it is: each has flags of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A Redis.
    Redis,
    /// A Sentinel.
    Sentinel,
}

impl Peer {
    /// How its flags begin.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Sentinel => "sentinel",
        }
    }

    /// A flag of its own with its variable.
    fn option(self, end: &str) -> String {
        option(&format!("{}-{end}", self.name()))
    }
}

/// Why there is no TLS with a server, or why there ought to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsReason {
    /// It speaks TLS, and is spoken to without.
    #[error("the server speaks TLS on this port, and is spoken to without: give {}", .0.option("tls"))]
    TlsServer(Peer),
    /// It is spoken to by TLS, and speaks none.
    #[error("the server speaks no TLS on this port: give its TLS port, or take {} away", .0.option("tls"))]
    PlainServer(Peer),
    /// It takes the connection, and says nothing.
    #[error("no answer to the TLS handshake within {0:?}")]
    Silent(Duration),
    /// It ended the connection in the middle of the handshake.
    #[error("the connection broke off in the TLS handshake: {0}")]
    BrokenOff(String),
    /// Nobody vouches for its certificate.
    #[error("the server's certificate is signed by nobody in {}: give the authority that signed it", .0.option("tls-ca"))]
    WrongAuthority(Peer),
    /// No authority of the system vouches for its certificate.
    #[error("the server's certificate is signed by no authority that this system knows: give its authority by {}", .0.option("tls-ca"))]
    NoSystemAuthority(Peer),
    /// Its certificate is another server's.
    #[error(
        "the server's certificate is not for the name {expected}{}: give a name that it is for by {}, or the server another certificate",
        others(.presented), .peer.option("tls-server-name")
    )]
    WrongName {
        /// Whose flags mend it.
        peer: Peer,
        /// The name that was expected.
        expected: String,
        /// Those that it is for.
        presented: Vec<String>,
    },
    /// Its certificate is out of date.
    #[error("the server's certificate has expired{}: renew it", at(" on ", *.0))]
    Expired(Option<SystemTime>),
    /// Its certificate is ahead of its time.
    #[error("the server's certificate is not valid yet{}: is the clock right, here and where it was made?", at(", only from ", *.0))]
    NotYet(Option<SystemTime>),
    /// It wants to see a certificate.
    #[error("the server demands a client certificate: give {} and {}", .0.option("tls-cert"), .0.option("tls-key"))]
    CertificateDemanded(Peer),
    /// It does not want the one that it has seen.
    #[error(
        "the server refuses the client certificate of {}{}: is it signed by an authority that the server knows, and in date?",
        .0.option("tls-cert"), because(.1.as_deref())
    )]
    CertificateRefused(Peer, Option<String>),
    /// The address has a host that no certificate can be for.
    #[error("{host:?} is no name that a certificate can be for: give {}", .peer.option("tls-server-name"))]
    NoName {
        /// Whose flags mend it.
        peer: Peer,
        /// The host.
        host: String,
    },
    /// Anything else.
    #[error("TLS failed: {0}")]
    Other(String),
}

impl TlsReason {
    /// What it is counted as.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TlsServer(_) => "server_speaks_tls",
            Self::PlainServer(_) => "server_speaks_no_tls",
            Self::Silent(_) => "timed_out",
            Self::BrokenOff(_) => "broken_off",
            Self::WrongAuthority(_) | Self::NoSystemAuthority(_) => "wrong_authority",
            Self::WrongName { .. } | Self::NoName { .. } => "wrong_name",
            Self::Expired(_) => "expired",
            Self::NotYet(_) => "not_yet_valid",
            Self::CertificateDemanded(_) => "certificate_demanded",
            Self::CertificateRefused(..) => "certificate_refused",
            Self::Other(_) => "other",
        }
    }
}

/// What a handshake is with, and what came of it so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    pub(super) peer: Peer,
    /// The authorities are those of the system.
    pub(super) by_system: bool,
    /// We have a certificate of our own.
    pub(super) have_certificate: bool,
    /// The server has asked for one.
    pub(super) asked: bool,
}

impl Course {
    /// Why rustls gave up.
    pub(super) fn reason(&self, error: &Error) -> TlsReason {
        let peer = self.peer;
        match error {
            Error::InvalidCertificate(error) => self.certificate(error),
            Error::AlertReceived(alert) if self.asked && is_about_certificates(*alert) => {
                if self.have_certificate {
                    TlsReason::CertificateRefused(peer, Some(format!("{alert:?}")))
                } else {
                    TlsReason::CertificateDemanded(peer)
                }
            }
            Error::InvalidMessage(_) => TlsReason::PlainServer(peer),
            error => TlsReason::Other(error.to_string()),
        }
    }

    /// Why a server ends the connection without a word once the handshake is done here: its last word may be lost.
    pub(super) fn hung_up(&self) -> Option<TlsReason> {
        match (self.asked, self.have_certificate) {
            (false, _) => None,
            (true, false) => Some(TlsReason::CertificateDemanded(self.peer)),
            (true, true) => Some(TlsReason::CertificateRefused(self.peer, None)),
        }
    }

    fn certificate(&self, error: &CertificateError) -> TlsReason {
        let peer = self.peer;
        match error {
            // The latter: an authority of the same name has another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature if self.by_system => {
                TlsReason::NoSystemAuthority(peer)
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsReason::WrongAuthority(peer),
            CertificateError::Expired => TlsReason::Expired(None),
            CertificateError::ExpiredContext { not_after, .. } => TlsReason::Expired(time(*not_after)),
            CertificateError::NotValidYet => TlsReason::NotYet(None),
            CertificateError::NotValidYetContext { not_before, .. } => TlsReason::NotYet(time(*not_before)),
            CertificateError::NotValidForNameContext { expected, presented } => {
                TlsReason::WrongName { peer, expected: shown(expected), presented: presented.clone() }
            }
            error => TlsReason::Other(Error::InvalidCertificate(error.clone()).to_string()),
        }
    }
}

/// What a peer says of a certificate that is missing, or that it does not like.
pub(super) fn is_about_certificates(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::HandshakeFailure
    )
}

fn shown(name: &ServerName<'_>) -> String {
    name.to_str().into_owned()
}

pub(super) fn time(time: UnixTime) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()))
}

fn at(before: &str, time: Option<SystemTime>) -> String {
    time.map(|time| format!("{before}{}", humantime::format_rfc3339_seconds(time))).unwrap_or_default()
}

fn because(why: Option<&str>) -> String {
    why.map(|why| format!(" ({why})")).unwrap_or_default()
}

/// As rustls has them: `DnsName("redis.example")`, `IpAddress(10.0.0.1)`.
fn others(names: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        inner.unwrap_or(name).trim_matches('"').to_owned()
    };
    match names {
        [] => ", nor for any other".to_owned(),
        names => format!(", but for {}", names.iter().map(bare).collect::<Vec<_>>().join(", ")),
    }
}
