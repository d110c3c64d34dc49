//! Owns the files that certificates, keys and authorities are in: what may be wrong with them, and when they are read again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{CertificateError, Error as TlsError, InconsistentKeys, RootCertStore};
use tracing::{info, warn};

use super::provider;
use crate::operate::repeats::Repeats;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How a certificate begins, wherever in a line that is.
const BEGIN: &[u8; 18] = b"BEGIN CERTIFICATE-";
/// Bytes of a file: more than all authorities of a system have.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The authorities that are believed.
    Authorities,
    /// The certificate that is shown, and those between it and its authority.
    Certificate,
    /// The key of that certificate.
    Key,
}

impl Part {
    /// How the flags for such files end.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Authorities => "tls-ca",
            Self::Certificate => "tls-cert",
            Self::Key => "tls-key",
        }
    }
}

/// Why a file can't be used. What stands in it is not part of it.
#[derive(Debug, thiserror::Error)]
#[error("{flaw}")]
pub struct FileFlaw {
    /// What it is for.
    pub part: Part,
    /// What is wrong.
    #[source]
    pub flaw: Flaw,
}

/// What may be wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// It is not there, or not for us.
    #[error("can't read the file {0:?}: {1}")]
    Unreadable(PathBuf, io::Error),
    /// More than such files can have.
    #[error("the file {0:?} has more than {MOST_BYTES} bytes")]
    TooLong(PathBuf),
    /// No certificate.
    #[error("the file {0:?} holds no certificate: it must be PEM, with a line -----BEGIN CERTIFICATE-----")]
    NoCertificate(PathBuf),
    /// No key.
    #[error("the file {0:?} holds no private key: it must be PEM, with a line -----BEGIN PRIVATE KEY-----")]
    NoKey(PathBuf),
    /// Nobody is here to type its passphrase.
    #[error(
        "the private key in the file {0:?} is encrypted: `openssl pkey -in FILE -out NEW` takes the passphrase away"
    )]
    Encrypted(PathBuf),
    /// Some of what it holds would not be seen.
    #[error(
        "the file {0:?} has {1} times BEGIN CERTIFICATE, and {2} of them can be read: each line -----BEGIN CERTIFICATE----- must \
         stand alone in its line, with nothing before it (was a file joined to one that ends without a line end?)"
    )]
    Hidden(PathBuf, usize, usize),
    /// PEM that is cut or mangled.
    #[error("the file {0:?} is damaged: {1}")]
    Damaged(PathBuf, &'static str),
    /// A certificate that can't be read.
    #[error("a certificate in the file {0:?} can't be used: {why}", why = words(.1))]
    Certificate(PathBuf, TlsError),
    /// A key of a kind that is not known.
    #[error(
        "the key in the file {0:?} can't be used: it must be RSA of 2048 bits or more, ECDSA (P-256, P-384, P-521) or Ed25519"
    )]
    Key(PathBuf),
    /// They don't belong together.
    #[error("the key in the file {key:?} is not that of the certificate in {certificate:?}")]
    Strangers {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// Nobody to believe.
    #[error("this system knows no authorities ({0}): install ca-certificates, or give the file")]
    NoSystem(String),
}

/// A certificate with its key, in two files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What stood in files.
#[derive(Debug)]
pub(super) struct Contents {
    files: Vec<io::Result<Vec<u8>>>,
    digest: [u8; 32],
}

impl Contents {
    fn read(paths: &[PathBuf]) -> Self {
        let files: Vec<_> = paths.iter().map(|path| crate::files::read_again(path, MOST_BYTES)).collect();
        let mut digest = Sha256::new();
        for file in &files {
            match file {
                Ok(bytes) => {
                    digest.update((bytes.len() as u64).to_be_bytes());
                    digest.update(bytes);
                }
                Err(error) => digest.update(error.to_string()),
            }
        }
        Self { files, digest: digest.finalize().into() }
    }

    fn part(&self, at: usize, part: Part, path: &Path) -> Result<&[u8], FileFlaw> {
        let too_long = |bytes: &&Vec<u8>| bytes.len() as u64 > MOST_BYTES;
        let flaw = match self.files.get(at) {
            Some(Ok(bytes)) if !too_long(&bytes) => return Ok(bytes),
            Some(Ok(_)) => Flaw::TooLong(path.to_owned()),
            // The same error again: it can't be cloned.
            Some(Err(error)) => Flaw::Unreadable(path.to_owned(), io::Error::new(error.kind(), error.to_string())),
            None => Flaw::Unreadable(path.to_owned(), io::ErrorKind::NotFound.into()),
        };
        Err(FileFlaw { part, flaw })
    }

    /// The authorities in the file at `at`.
    pub(super) fn authorities(&self, at: usize, path: &Path) -> Result<RootCertStore, FileFlaw> {
        let flawed = |flaw| FileFlaw { part: Part::Authorities, flaw };
        let mut store = RootCertStore::empty();
        for certificate in certificates(self.part(at, Part::Authorities, path)?, path).map_err(flawed)? {
            store.add(certificate).map_err(|error| flawed(Flaw::Certificate(path.to_owned(), error)))?;
        }
        Ok(store)
    }

    /// The certificate in the file at `at`, and its key in the next. Every flaw is told.
    pub(super) fn identity(&self, at: usize, paths: &Identity) -> Result<CertifiedKey, Vec<FileFlaw>> {
        let chain = self.part(at, Part::Certificate, &paths.certificate).and_then(|bytes| {
            let chain = certificates(bytes, &paths.certificate);
            chain.map_err(|flaw| FileFlaw { part: Part::Certificate, flaw })
        });
        let key = self.part(at + 1, Part::Key, &paths.key).and_then(|bytes| {
            let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
                pem::Error::NoItemsFound if has(bytes, b"BEGIN ENCRYPTED") => Flaw::Encrypted(paths.key.clone()),
                pem::Error::NoItemsFound if has(bytes, b"PRIVATE KEY-") => Flaw::Damaged(
                    paths.key.clone(),
                    "its line -----BEGIN … PRIVATE KEY----- must have nothing before it",
                ),
                pem::Error::NoItemsFound => Flaw::NoKey(paths.key.clone()),
                error => Flaw::Damaged(paths.key.clone(), damage(&error)),
            });
            let key = key.and_then(|key| {
                provider().key_provider.load_private_key(key).map_err(|_| Flaw::Key(paths.key.clone()))
            });
            key.map_err(|flaw| FileFlaw { part: Part::Key, flaw })
        });
        let (chain, key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return Err([chain.err(), key.err()].into_iter().flatten().collect()),
        };
        let identity = CertifiedKey::new(chain, key);
        match identity.keys_match() {
            Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(identity),
            Err(TlsError::InconsistentKeys(_)) => {
                let flaw = Flaw::Strangers { key: paths.key.clone(), certificate: paths.certificate.clone() };
                Err(vec![FileFlaw { part: Part::Key, flaw }])
            }
            Err(error) => {
                let flaw = Flaw::Certificate(paths.certificate.clone(), error);
                Err(vec![FileFlaw { part: Part::Certificate, flaw }])
            }
        }
    }
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|at| at == part)
}

fn certificates(bytes: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let begun = bytes.windows(BEGIN.len()).filter(|part| *part == BEGIN).count();
    match found {
        Ok(found) if found.len() < begun => Err(Flaw::Hidden(path.to_owned(), begun, found.len())),
        Ok(found) if found.is_empty() => Err(Flaw::NoCertificate(path.to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(Flaw::Damaged(path.to_owned(), damage(&error))),
    }
}

/// Why a certificate can't be used, for people.
fn words(error: &TlsError) -> String {
    let TlsError::InvalidCertificate(CertificateError::Other(other)) = error else { return error.to_string() };
    match other.0.to_string().as_str() {
        "UnsupportedCertVersion" => "it is X.509 version 1, and version 3 is needed: sign it with extensions \
                                     (`openssl x509 -req … -extfile FILE`), such as subjectAltName"
            .to_owned(),
        name => format!("it is no certificate that can be read ({name})"),
    }
}

/// In words, and without what stands in the file: it may be a key.
fn damage(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "its last line is missing: is it complete?",
        pem::Error::IllegalSectionStart { .. } => "a line that begins with -----BEGIN is malformed",
        pem::Error::Base64Decode(_) => "what stands between BEGIN and END is not base64",
        _ => "it is no PEM",
    }
}

/// The authorities that this system knows. They are read once: their files are the system's.
pub(super) fn system_authorities() -> Result<RootCertStore, FileFlaw> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let why = if errors.is_empty() { "no file of them was found".to_owned() } else { errors.join("; ") };
        return Err(FileFlaw { part: Part::Authorities, flaw: Flaw::NoSystem(why) });
    }
    Ok(store)
}

/// Makes something of what stands in files.
type Make<T> = dyn Fn(&Contents) -> Result<T, Vec<FileFlaw>> + Send + Sync;

/// Something that is made of files, and made anew when they change.
pub(super) struct Reread<T> {
    /// Whose they are, for the log.
    whose: &'static str,
    paths: Vec<PathBuf>,
    make: Box<Make<T>>,
    current: RwLock<(Arc<T>, [u8; 32])>,
}

impl<T> fmt::Debug for Reread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reread").field("whose", &self.whose).field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// What a look at the files has shown.
enum Found<T> {
    Same,
    New(T, [u8; 32]),
    Flawed(Vec<FileFlaw>, [u8; 32]),
}

impl<T: Send + Sync + 'static> Reread<T> {
    pub(super) fn new(
        whose: &'static str,
        paths: Vec<PathBuf>,
        make: impl Fn(&Contents) -> Result<T, Vec<FileFlaw>> + Send + Sync + 'static,
    ) -> Result<Self, Vec<FileFlaw>> {
        let contents = Contents::read(&paths);
        let current = RwLock::new((Arc::new(make(&contents)?), contents.digest));
        Ok(Self { whose, paths, make: Box::new(make), current })
    }

    /// What it is now.
    pub(super) fn current(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn look(&self) -> Found<T> {
        let contents = Contents::read(&self.paths);
        if contents.digest == self.current.read().unwrap_or_else(PoisonError::into_inner).1 {
            return Found::Same;
        }
        match (self.make)(&contents) {
            Ok(made) => Found::New(made, contents.digest),
            Err(flaws) => Found::Flawed(flaws, contents.digest),
        }
    }

    /// Looks at the files again and again. What can't be used leaves what was good last.
    pub(super) async fn watch(self: Arc<Self>) {
        if self.paths.is_empty() {
            return std::future::pending().await;
        }
        let mut said = Repeats::default();
        let mut doubtful = None;
        let mut is_flawed = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let this = self.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || this.look()).await else { continue }; // The program ends.
            let flawed = match found {
                Found::Same => {
                    if std::mem::take(&mut is_flawed) {
                        info!(files = ?self.paths, "{}: certificates can be read again, and are as they were", self.whose);
                    }
                    None
                }
                Found::New(made, digest) => {
                    is_flawed = false;
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(made), digest);
                    info!(files = ?self.paths, "{}: certificates were read again; new connections use them", self.whose);
                    None
                }
                Found::Flawed(flaws, digest) => Some((flaws, digest)),
            };
            // Two files are not replaced at once: only what stays as it is has a flaw.
            let before = std::mem::replace(&mut doubtful, flawed.as_ref().map(|(_, digest)| *digest));
            let Some((flaws, _)) = flawed.filter(|(_, digest)| before == Some(*digest)) else { continue };
            is_flawed = true;
            for flaw in flaws {
                if let Some(again) = said.note(Instant::now(), &flaw.to_string()) {
                    let whose = self.whose;
                    warn!(reason = %flaw, "{whose}: certificates can't be read again, the last ones are used{again}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `openssl x509 -req` signs where nothing is said of extensions.
    #[test]
    fn a_certificate_of_version_1_is_named_as_one() {
        let folder = tempfile::TempDir::new().unwrap();
        let [key, request, certificate] = ["key", "request", "certificate"].map(|name| folder.path().join(name));
        let openssl = |arguments: &[&str], files: &[(&str, &Path)]| {
            let files = files.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()]);
            let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).chain(files).collect();
            texto_lab::issuer::openssl(&arguments).unwrap();
        };
        openssl(&["genpkey", "-algorithm", "ed25519"], &[("-out", &key)]);
        openssl(&["req", "-new", "-subj", "/CN=chat"], &[("-key", &key), ("-out", &request)]);
        let signed = [("-in", &*request), ("-key", &*key), ("-out", &*certificate)];
        openssl(&["x509", "-req", "-days", "9"], &signed);
        let identity = Identity { certificate: certificate.clone(), key: key.clone() };
        let contents = Contents::read(&[certificate, key]);
        let flaws = contents.identity(0, &identity).unwrap_err();
        let said = flaws.iter().map(ToString::to_string).collect::<String>();
        assert!(said.contains("X.509 version 1") && !said.contains("Other"), "{said}");
    }

    /// What is joined to a file without a line end at its end: the reader of PEM passes over it.
    #[test]
    fn a_certificate_that_would_not_be_seen_is_a_flaw() {
        let one = texto_lab::certificates::Authority::new("ours").unwrap().pem();
        let path = Path::new("bundle.pem");
        let of = |text: &str| certificates(text.as_bytes(), path);
        assert_eq!(of(&format!("# ours\r\n{one}{one}")).unwrap().len(), 2);
        for glued in [
            format!("{}{one}", one.trim_end()),
            format!("\u{feff}{one}{one}"),
            one.replace("-----BEGIN", " -----BEGIN"),
        ] {
            let flaw = of(&glued).unwrap_err();
            assert!(matches!(flaw, Flaw::Hidden(..)), "{flaw}");
        }
        assert!(matches!(of("nothing"), Err(Flaw::NoCertificate(_))));
    }
}
