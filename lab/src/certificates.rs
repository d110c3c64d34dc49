//! Owns certificates made on the spot: authorities, what they sign, the files of it, and connections that go by them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, SupportedProtocolVersion,
};

/// Who signs.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// Until a day long ago.
    Past,
    /// From a far day on.
    Future,
}

/// A certificate with its key, both as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Where a party has its certificate, its key, and the authority that it believes.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authorities.
    pub authority: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Its own certificate as PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for names and addresses, good for servers and for clients.
    ///
    /// # Errors
    /// When a name is none.
    pub fn sign(&self, names: &[&str], validity: Validity) -> Result<Pair> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "texto-lab");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        match validity {
            Validity::Now => {}
            Validity::Past => params.not_after = date_time_ymd(2001, 2, 3),
            Validity::Future => params.not_before = date_time_ymd(3001, 2, 3),
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

impl TlsFiles {
    /// New files in `folder`, whose names begin with `name`.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn create(folder: &Path, name: &str, authority: &Authority, pair: &Pair) -> Result<Self> {
        let path = |end: &str| folder.join(format!("{name}-{end}.pem"));
        let files = Self { authority: path("ca"), certificate: path("cert"), key: path("key") };
        files.replace(authority, pair)?;
        Ok(files)
    }

    /// Puts others in their place, each at once.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn replace(&self, authority: &Authority, pair: &Pair) -> Result<()> {
        replace(&self.authority, &authority.pem())?;
        replace(&self.certificate, &pair.certificate)?;
        replace(&self.key, &pair.key)
    }

    /// Copies of them as they are, in another folder.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn copy_to(&self, folder: &Path) -> Result<Self> {
        let copy = |path: &PathBuf| {
            let copy = folder.join(path.file_name().context("a file")?);
            std::fs::copy(path, &copy)?;
            Ok::<_, anyhow::Error>(copy)
        };
        Ok(Self { authority: copy(&self.authority)?, certificate: copy(&self.certificate)?, key: copy(&self.key)? })
    }

    /// The options of a redis-server that has TLS on `port`, and nothing else. Its clients must show certificates.
    pub fn redis_options(&self, port: u16) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        vec![
            ("port", "0".to_owned()),
            ("tls-port", port.to_string()),
            ("tls-cert-file", path(&self.certificate)),
            ("tls-key-file", path(&self.key)),
            ("tls-ca-cert-file", path(&self.authority)),
            ("tls-replication", "yes".to_owned()),
            ("tls-auth-clients", "yes".to_owned()),
        ]
    }

    /// The flags of a gateway for such servers; `peer` is `redis` or `sentinel`.
    pub fn flags(&self, peer: &str) -> Vec<String> {
        let flag = |end: &str, path: &Path| format!("--{peer}-tls-{end}={}", path.display());
        vec![
            format!("--{peer}-tls=true"),
            flag("ca", &self.authority),
            flag("cert", &self.certificate),
            flag("key", &self.key),
        ]
    }

    /// Makes connections as somebody who shows this certificate, and asks no server for its own: that of a test's server
    /// may be one that nobody takes.
    ///
    /// # Errors
    /// When the files are not good.
    pub fn connector(&self) -> Result<TlsConnector> {
        let certificates = CertificateDer::pem_file_iter(&self.certificate)?.collect::<Result<Vec<_>, _>>()?;
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider())));
        let config = builder.with_client_auth_cert(certificates, PrivateKeyDer::from_pem_file(&self.key)?)?;
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Makes connections as a browser does: it believes the authorities in a file, and has no certificate.
///
/// # Errors
/// When the file is not good.
pub fn visitor(authority: &Path, versions: &[&'static SupportedProtocolVersion]) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes every certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// As whoever renews certificates does it: a reader sees the old file or the new one.
///
/// # Errors
/// When it can't be written.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text).with_context(|| format!("can't write {}", new.display()))?;
    // It may be a key.
    std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(std::fs::rename(&new, path)?)
}
