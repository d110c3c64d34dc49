//! Owns TLS: whom a client trusts. By rustls, with aws-lc-rs whatever else the program has.

#[cfg(feature = "tls")]
pub(crate) use rustls_here::Tls;

#[cfg(feature = "tls")]
mod rustls_here {
    use std::io;
    use std::sync::Arc;

    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{CertificateError, ClientConfig, Error, RootCertStore};

    use crate::error::ConfigError;
    use crate::state::Cause;

    #[derive(Clone)]
    pub(crate) struct Tls(TlsConnector);

    impl Tls {
        /// Trusts those of `authorities` (PEM), or whom this system trusts.
        ///
        /// # Errors
        /// When there is nobody to trust.
        pub(crate) fn new(authorities: Option<&[u8]>) -> Result<Self, ConfigError> {
            let bad = |why: String| ConfigError::Authorities(why);
            let mut roots = RootCertStore::empty();
            match authorities {
                Some(pem) => {
                    for certificate in CertificateDer::pem_slice_iter(pem) {
                        let certificate = certificate.map_err(|error| bad(format!("not PEM: {error}")))?;
                        roots.add(certificate).map_err(|error| bad(format!("not a certificate: {error}")))?;
                    }
                }
                None => {
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                }
            }
            if roots.is_empty() {
                return Err(bad(match authorities {
                    Some(_) => "there is no certificate in it".to_owned(),
                    None => "this system has no certificates (Debian: apt-get install ca-certificates)".to_owned(),
                }));
            }
            let provider = Arc::new(aws_lc_rs::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let builder = builder.map_err(|error| bad(error.to_string()))?;
            let config = builder.with_root_certificates(roots).with_no_client_auth();
            Ok(Self(TlsConnector::from(Arc::new(config))))
        }

        /// Does the handshake with `host`, which is called `place` in what is said of it.
        pub(crate) async fn connect(
            &self,
            host: &str,
            place: &str,
            tcp: TcpStream,
        ) -> Result<TlsStream<TcpStream>, Cause> {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other);
            let secured = async { self.0.connect(name?, tcp).await };
            secured.await.map_err(|error| cause(place, &error))
        }
    }

    /// What went wrong, in words that say what to change.
    fn cause(place: &str, error: &io::Error) -> Cause {
        use CertificateError as Flaw;
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(Error::InvalidMessage(_)) => Cause::Unreachable(format!("{place} speaks no TLS: is it ws://{place}?")),
            Some(Error::InvalidCertificate(Flaw::UnknownIssuer | Flaw::BadSignature)) => Cause::Untrusted(format!(
                "no TLS with {place}: its certificate is signed by nobody whom this client trusts"
            )),
            _ => Cause::Unreachable(format!("no TLS with {place}: {error}")),
        }
    }
}

#[cfg(not(feature = "tls"))]
pub(crate) use without::Tls;

#[cfg(not(feature = "tls"))]
mod without {
    use tokio::net::TcpStream;

    use crate::error::ConfigError;
    use crate::state::Cause;

    /// There is none.
    #[derive(Clone)]
    pub(crate) enum Tls {}

    impl Tls {
        pub(crate) fn new(_authorities: Option<&[u8]>) -> Result<Self, ConfigError> {
            Err(ConfigError::NoTls)
        }

        #[allow(clippy::unused_async)] // As the other one.
        pub(crate) async fn connect(&self, _host: &str, _place: &str, _tcp: TcpStream) -> Result<TcpStream, Cause> {
            match *self {}
        }
    }
}
