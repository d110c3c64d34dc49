//! Owns `texto token`: credentials to try a gateway out with. A gateway never makes any.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::keys::{ALL, KeysFlaw, least_secret, no_secret};
use crate::config::cli::TokenArgs;

/// Longer ones are a mistake.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The key is not there, or not for us.
    #[error("--key-file: can't read the file {0:?}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// It is no key that signs.
    #[error(
        "--key-file: the file {0:?} holds no private key for RSA (2048 bits or more), P-256, P-384 or Ed25519 (PKCS#8: `openssl pkcs8 -topk8 -nocrypt`), and no secret"
    )]
    NoKey(PathBuf),
    /// A gateway would not take it for one either.
    #[error("--key-file: the file {0:?}: {1}")]
    NoSecret(PathBuf, KeysFlaw),
    /// It is too short for what is asked of it.
    #[error("--key-file: the secret has {0} bytes, and {1:?} needs {2}")]
    Short(usize, Algorithm, usize),
    /// Not an algorithm, or not of this key.
    #[error("--algorithm: {0:?} is not one that the key is good for: {1}")]
    Algorithm(String, String),
    /// No duration.
    #[error("--expires-in: {0:?} is no duration such as 30s, 10m or 1h, of a year at most")]
    Duration(String),
    /// It can't be signed.
    #[error("the token can't be signed: {0}")]
    Signing(#[from] jsonwebtoken::errors::Error),
}

/// Makes a token.
///
/// # Errors
/// When the key can't sign it, or a flag makes no sense.
pub fn run(args: &TokenArgs) -> Result<String, MintError> {
    let file = || args.key_file.clone();
    let bytes = std::fs::read(&args.key_file).map_err(|error| MintError::Unreadable(file(), error))?;
    let (key, good_for) = key(&bytes).ok_or_else(|| MintError::NoKey(file()))?;
    if least_secret(good_for[0]).is_some()
        && let Some(flaw) = no_secret(key.as_bytes())
    {
        return Err(MintError::NoSecret(file(), flaw));
    }
    let algorithm = match &args.algorithm {
        None => good_for[0],
        Some(name) => name.parse().ok().filter(|algorithm| good_for.contains(algorithm)).ok_or_else(|| {
            let names: Vec<_> = good_for.iter().map(|algorithm| format!("{algorithm:?}")).collect();
            MintError::Algorithm(name.clone(), names.join(", "))
        })?,
    };
    if let Some(least) = least_secret(algorithm).filter(|least| key.as_bytes().len() < *least) {
        return Err(MintError::Short(key.as_bytes().len(), algorithm, least));
    }
    let lifetime = humantime::parse_duration(&args.expires_in).ok().filter(|lifetime| *lifetime <= LONGEST);
    let lifetime = lifetime.ok_or_else(|| MintError::Duration(args.expires_in.clone()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut claims = Map::new();
    let subject = args.subject.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
    claims.insert("sub".to_owned(), subject.into());
    claims.insert("iat".to_owned(), now.as_secs().into());
    claims.insert("exp".to_owned(), (now + lifetime).as_secs().into());
    for (name, value) in [("aud", &args.audience), ("iss", &args.issuer)] {
        claims.extend(value.clone().map(|value| (name.to_owned(), Value::from(value))));
    }
    let header = Header { kid: args.key_id.clone(), ..Header::new(algorithm) };
    Ok(encode(&header, &claims, &key)?)
}

/// The key in a file, and what it is good for, the usual first.
fn key(bytes: &[u8]) -> Option<(EncodingKey, Vec<Algorithm>)> {
    let of = |family: &dyn Fn(&Algorithm) -> bool| ALL.into_iter().filter(family).collect();
    if !bytes.windows(11).any(|part| part == b"-----BEGIN ") {
        let end = bytes.iter().rposition(|byte| !b"\r\n".contains(byte))? + 1;
        let secrets = of(&|algorithm| least_secret(*algorithm).is_some());
        return Some((EncodingKey::from_secret(&bytes[..end]), secrets));
    }
    if let Ok(key) = EncodingKey::from_ec_pem(bytes) {
        // The curve decides, and signing tells.
        let signs = |algorithm: &Algorithm| {
            matches!(algorithm, Algorithm::ES256 | Algorithm::ES384)
                && encode(&Header::new(*algorithm), &Map::new(), &key).is_ok()
        };
        let algorithms: Vec<_> = of(&signs);
        return (!algorithms.is_empty()).then_some((key, algorithms));
    }
    if let Ok(key) = EncodingKey::from_ed_pem(bytes) {
        return Some((key, vec![Algorithm::EdDSA]));
    }
    let key = EncodingKey::from_rsa_pem(bytes).ok()?;
    let signs = |algorithm: &Algorithm| {
        algorithm.family() == jsonwebtoken::AlgorithmFamily::Rsa
            && encode(&Header::new(*algorithm), &Map::new(), &key).is_ok()
    };
    let algorithms: Vec<_> = of(&signs);
    (!algorithms.is_empty()).then_some((key, algorithms))
}
