//! Owns what credentials are verified with: keys, how they are read, and which algorithms each is good for.
//!
//! A key is bound to algorithms when it is read, by what it is; a token chooses among keys, never among ways to use one. So
//! no public key can be used as a secret, and nothing as "none".

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};

/// Every algorithm that there is.
pub const ALL: [Algorithm; 12] = [HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA];
const RSA: [Algorithm; 6] = [RS256, RS384, RS512, PS256, PS384, PS512];
/// Bytes of a modulus at the least: 2,048 bits (RFC 7518, section 3.3).
const LEAST_MODULUS: usize = 256;
/// The names of the curves in DER (RFC 5480, section 2.1.1.1): others have points of the same length.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
/// Keys at the most: each may have to be tried.
const MOST: usize = 64;

/// What verifies.
#[derive(Clone)]
pub struct VerifyKey {
    /// Its name, if it has one.
    pub kid: Option<String>,
    /// What it is good for.
    pub algorithms: Vec<Algorithm>,
    /// Itself; its `Debug` shows nothing.
    pub key: DecodingKey,
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.algorithms.iter().map(|algorithm| format!("{algorithm:?}")).collect();
        match &self.kid {
            Some(kid) => write!(f, "{kid:?} ({})", names.join(" ")),
            None => write!(f, "one without a name ({})", names.join(" ")),
        }
    }
}

/// Keys that were read together.
#[derive(Clone, Debug, Default)]
pub struct VerifyKeys {
    keys: Vec<VerifyKey>,
    /// Those that were passed over, and why.
    pub skipped: Vec<String>,
    /// Of what they were read from: tells whether that has changed.
    pub digest: [u8; 32],
}

/// Where keys come from: what is a secret must not come from a place that everybody can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// A file of this machine.
    File,
    /// An address, which serves it to whoever asks.
    Url,
}

/// Why there are no keys. What was read is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysFlaw {
    /// Nothing but blanks.
    #[error("it is empty")]
    Empty,
    /// What only the issuer should have.
    #[error(
        "it holds a private key, which only the issuer should have: `openssl pkey -in FILE -pubout` prints the public one"
    )]
    Private,
    /// A certificate is no key.
    #[error("it holds a certificate: `openssl x509 -in FILE -pubkey -noout` prints its key")]
    Certificate,
    /// A block of PEM that is none of ours.
    #[error(
        "it holds a key that can't be used ({0}): a public key for RSA (2048 bits or more), P-256, P-384 or Ed25519 is needed"
    )]
    Unusable(&'static str),
    /// It would be used as a secret, and everybody has it.
    #[error("it holds {0}: a public key must be in PEM (`-----BEGIN PUBLIC KEY-----`), or in a JWKS")]
    Public(&'static str),
    /// It is more likely that it came by mistake.
    #[error(
        "it holds {0}, and no secret that was made to be one: a secret is a single word, such as `openssl rand -hex 32` prints, \
         or in a JWKS (\"kty\": \"oct\")"
    )]
    Prose(&'static str),
    /// A secret where public keys were: who reads what has come there by mistake could make credentials.
    #[error("it holds a secret now, and held public keys before: if that is meant, start anew with it")]
    Turned,
    /// It can be guessed.
    #[error("the secret has {0} bytes: {1} at the least, such as `openssl rand -hex 32` prints")]
    Short(usize, usize),
    /// No JWKS.
    #[error("it is no JWKS: {0}")]
    NoJwks(String),
    /// None of them is of use.
    #[error("none of its keys can be used: {0}")]
    NoneUsable(String),
    /// They are all there, and nobody may use them.
    #[error("its keys are good for {0}, and none of that is in --auth-algorithms (TEXTO_AUTH_ALGORITHMS)")]
    NotAllowed(String),
}

impl VerifyKeys {
    /// Reads a JWKS, public keys in PEM, or a secret. Of what they are good for, only `allowed` is, if that is given.
    ///
    /// # Errors
    /// When there is no key in it that is of use.
    pub fn read(bytes: &[u8], place: KeyPlace, allowed: Option<&[Algorithm]>) -> Result<Self, KeysFlaw> {
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let trimmed = text.trim_ascii();
        let mut skipped = Vec::new();
        let keys = if trimmed.is_empty() {
            return Err(KeysFlaw::Empty);
        } else if trimmed.starts_with(b"{") || place == KeyPlace::Url {
            jwks(trimmed, place, &mut skipped)?
        } else if let Some(pem) = std::str::from_utf8(trimmed).ok().filter(|text| text.contains("-----BEGIN")) {
            pems(pem)?
        } else {
            vec![secret(text, allowed)?]
        };
        if keys.is_empty() {
            return Err(KeysFlaw::NoneUsable(if skipped.is_empty() {
                "there are none".to_owned()
            } else {
                skipped.join("; ")
            }));
        }
        let good_for: Vec<_> = keys.iter().map(VerifyKey::to_string).collect();
        let keys: Vec<_> = keys.into_iter().filter_map(|key| key.restricted(allowed)).take(MOST).collect();
        if keys.is_empty() {
            return Err(KeysFlaw::NotAllowed(good_for.join(", ")));
        }
        Ok(Self { keys, skipped, digest: Sha256::digest(bytes).into() })
    }

    /// Those that may have signed a token whose header says this. One that names a key is by that, or by a key without
    /// a name; one that names none may be by any.
    pub fn candidates(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<&VerifyKey> {
        let named = |key: &&VerifyKey| kid.is_none() || key.kid.as_deref() == kid;
        let by_name: Vec<_> = self.keys.iter().filter(named).collect();
        let chosen =
            if by_name.is_empty() { self.keys.iter().filter(|key| key.kid.is_none()).collect() } else { by_name };
        chosen.into_iter().filter(|key| key.algorithms.contains(&algorithm)).collect()
    }

    /// Whether there is a key that such a token may name.
    pub fn knows(&self, kid: Option<&str>) -> bool {
        kid.is_none() && !self.keys.is_empty()
            || self.keys.iter().any(|key| key.kid.is_none() || key.kid.as_deref() == kid)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether one of them is a secret.
    pub fn has_secret(&self) -> bool {
        self.keys.iter().any(|key| key.algorithms.iter().any(|algorithm| [HS256, HS384, HS512].contains(algorithm)))
    }
}

impl fmt::Display for VerifyKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.keys.iter().map(VerifyKey::to_string).collect();
        f.write_str(&keys.join(", "))
    }
}

impl VerifyKey {
    fn restricted(mut self, allowed: Option<&[Algorithm]>) -> Option<Self> {
        self.algorithms.retain(|algorithm| allowed.is_none_or(|allowed| allowed.contains(algorithm)));
        (!self.algorithms.is_empty()).then_some(self)
    }
}

/// Bytes of a secret at the least: as many as the hash has (RFC 7518, section 3.2).
pub fn least_secret(algorithm: Algorithm) -> Option<usize> {
    match algorithm {
        HS256 => Some(32),
        HS384 => Some(48),
        HS512 => Some(64),
        _ => None,
    }
}

/// The algorithms that a secret of so many bytes is long enough for.
fn of_secret(bytes: usize) -> Vec<Algorithm> {
    let is_long_enough = |algorithm: &Algorithm| least_secret(*algorithm).is_some_and(|least| bytes >= least);
    ALL.into_iter().filter(is_long_enough).collect()
}

/// The whole file but for the line ends after it, as with the passwords.
fn secret(bytes: &[u8], allowed: Option<&[Algorithm]>) -> Result<VerifyKey, KeysFlaw> {
    let end = bytes.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
    let secret = &bytes[..end];
    if let Some(flaw) = no_secret(secret) {
        return Err(flaw);
    }
    // Whoever asks for an algorithm gets it, or is told.
    let asked = allowed.into_iter().flatten().filter_map(|algorithm| least_secret(*algorithm)).max();
    let least = asked.or(least_secret(HS256)).unwrap_or_default();
    if secret.len() < least {
        return Err(KeysFlaw::Short(secret.len(), least));
    }
    Ok(VerifyKey { kid: None, algorithms: of_secret(secret.len()), key: DecodingKey::from_secret(secret) })
}

/// Why it is more likely that it came by mistake than that it is a secret.
pub(super) fn no_secret(bytes: &[u8]) -> Option<KeysFlaw> {
    public(bytes).map(KeysFlaw::Public).or_else(|| prose(bytes).map(KeysFlaw::Prose))
}

/// What people have that is a public key in another form, or that came instead of one: as a secret, everybody would know it.
fn public(bytes: &[u8]) -> Option<&'static str> {
    if is_der(bytes) {
        return Some("binary DER");
    }
    if let [0xff, 0xfe, rest @ ..] | [0xfe, 0xff, rest @ ..] = bytes
        && rest.chunks(2).all(|unit| unit.contains(&0))
    {
        return Some("text in UTF-16, as some shells of Windows write it");
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_start();
    if ["ssh-", "ecdsa-sha2-", "sk-ssh-"].iter().any(|start| text.starts_with(start)) {
        return Some("a key in the form of OpenSSH");
    }
    if text.contains("-----END") || text.contains("---- BEGIN") {
        return Some("a part of a key in PEM, or one in a similar form");
    }
    let lower = text.get(..9).unwrap_or(text).to_ascii_lowercase();
    if ["<!doctype", "<html", "<?xml", "<head", "<body"].iter().any(|start| lower.starts_with(start)) {
        return Some("a page, not a key");
    }
    if lower.starts_with("http://") || lower.starts_with("https://") {
        return Some("an address (of a JWKS? That is for --auth-jwks-url)");
    }
    if text.starts_with('[') && serde_json::from_str::<Value>(text).is_ok() {
        return Some("a list in JSON, which is no JWKS");
    }
    let joined: String = text.split_ascii_whitespace().collect();
    let decoded = STANDARD_PAD_INDIFFERENT.decode(joined).ok()?;
    is_der(&decoded).then_some("base64 of DER without its PEM lines")
}

/// What is written for people or programs to read, such as an answer of some server in place of a key, can be guessed.
fn prose(bytes: &[u8]) -> Option<&'static str> {
    let text = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains(|c: char| c.is_control() && !c.is_whitespace()))?;
    if text.contains(char::is_whitespace) {
        return Some("text of several words");
    }
    if text.starts_with("Modulus=") {
        return Some("the modulus of a public key");
    }
    if text.contains("://") {
        return Some("an address");
    }
    text.contains("\":").then_some("a part of something in JSON")
}

/// Whether it is one whole SEQUENCE of ASN.1 that begins with another, or with a number, as keys do.
fn is_der(bytes: &[u8]) -> bool {
    let (length, rest) = match bytes {
        [0x30, length, rest @ ..] if *length < 0x80 => (usize::from(*length), rest),
        [0x30, 0x81, length, rest @ ..] => (usize::from(*length), rest),
        [0x30, 0x82, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return false,
    };
    rest.len() == length && matches!(rest, [0x30 | 0x02, ..])
}

fn pems(text: &str) -> Result<Vec<VerifyKey>, KeysFlaw> {
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("-----BEGIN ") {
        let block = &rest[at..];
        let label = block["-----BEGIN ".len()..].split("-----").next().unwrap_or_default();
        let end = format!("-----END {label}-----");
        let length = block.find(&end).ok_or(KeysFlaw::Unusable("its end is missing"))? + end.len();
        keys.push(pem(label, &block.as_bytes()[..length])?);
        rest = &block[length..];
    }
    Ok(keys)
}

fn pem(label: &str, block: &[u8]) -> Result<VerifyKey, KeysFlaw> {
    if label.contains("PRIVATE") {
        return Err(KeysFlaw::Private);
    }
    if label.contains("CERTIFICATE") {
        return Err(KeysFlaw::Certificate);
    }
    let of = |algorithms: &[Algorithm], key| Ok(VerifyKey { kid: None, algorithms: algorithms.to_vec(), key });
    if let Ok(key) = DecodingKey::from_ec_pem(block) {
        let lines = String::from_utf8_lossy(block);
        let body: String = lines.lines().map(str::trim).filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD_PAD_INDIFFERENT.decode(body).unwrap_or_default();
        let names = |curve: &[u8]| der.windows(curve.len()).any(|part| part == curve);
        return match key.try_get_as_bytes().map_or(0, <[u8]>::len) {
            // An uncompressed point.
            65 if names(P256) => of(&[ES256], key),
            97 if names(P384) => of(&[ES384], key),
            _ => Err(KeysFlaw::Unusable("of another curve")),
        };
    }
    if let Ok(key) = DecodingKey::from_ed_pem(block) {
        return of(&[EdDSA], key);
    }
    match DecodingKey::from_rsa_pem(block) {
        // The modulus, and little more.
        Ok(key) if key.try_get_as_bytes().is_ok_and(|der| der.len() >= LEAST_MODULUS) => of(&RSA, key),
        Ok(_) => Err(KeysFlaw::Unusable("RSA with fewer bits")),
        Err(_) => Err(KeysFlaw::Unusable("of another kind")),
    }
}

/// The keys of a JWKS (RFC 7517), or a single JWK. What is not for us is passed over: a set is shared with others.
fn jwks(bytes: &[u8], place: KeyPlace, skipped: &mut Vec<String>) -> Result<Vec<VerifyKey>, KeysFlaw> {
    let parsed: Value =
        serde_json::from_slice(bytes).map_err(|error| KeysFlaw::NoJwks(format!("line {}: no JSON", error.line())))?;
    let list = match parsed.get("keys") {
        Some(Value::Array(list)) => list.clone(),
        Some(_) => return Err(KeysFlaw::NoJwks("\"keys\" is not a list".to_owned())),
        None if parsed.get("kty").is_some() => vec![parsed],
        None => return Err(KeysFlaw::NoJwks("it has no \"keys\"".to_owned())),
    };
    let mut keys = Vec::new();
    for (index, value) in list.into_iter().enumerate().take(MOST) {
        let name = value.get("kid").and_then(Value::as_str).map(str::to_owned);
        match jwk(value, place) {
            Ok(key) => keys.push(key),
            Err(reason) => {
                let name = name.map_or_else(|| format!("number {}", index + 1), |kid| format!("{kid:?}"));
                skipped.push(format!("{name}: {reason}"));
            }
        }
    }
    Ok(keys)
}

fn jwk(value: Value, place: KeyPlace) -> Result<VerifyKey, &'static str> {
    let is_asymmetric = value.get("kty").and_then(Value::as_str) != Some("oct");
    if is_asymmetric && value.get("d").is_some() {
        return Err("it is private, and only the issuer should have it");
    }
    let jwk: Jwk = serde_json::from_value(value).map_err(|_| "its kind is not known")?;
    if matches!(jwk.algorithm, AlgorithmParameters::Other(_)) {
        return Err("its kind is not known");
    }
    if matches!(&jwk.common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature) {
        return Err("it is not for signatures");
    }
    if jwk.common.key_operations.as_ref().is_some_and(|all| !all.contains(&jsonwebtoken::jwk::KeyOperations::Verify)) {
        return Err("it is not for verifying");
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| "it can't be read")?;
    let algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) if modulus(&key) >= LEAST_MODULUS => RSA.to_vec(),
        AlgorithmParameters::RSA(_) => return Err("RSA needs 2048 bits or more"),
        AlgorithmParameters::EllipticCurve(point) => match point.curve {
            EllipticCurve::P256 => vec![ES256],
            EllipticCurve::P384 => vec![ES384],
            _ => return Err("its curve is not known"),
        },
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => vec![EdDSA],
        AlgorithmParameters::OctetKey(_) if place == KeyPlace::Url => {
            return Err("a secret that is served to everybody");
        }
        AlgorithmParameters::OctetKey(_) => match of_secret(key.try_get_as_bytes().map_or(0, <[u8]>::len)) {
            algorithms if algorithms.is_empty() => return Err("a secret of less than 32 bytes"),
            algorithms => algorithms,
        },
        _ => return Err("its kind is not known"),
    };
    let algorithms = match jwk.common.key_algorithm {
        None => algorithms,
        Some(own) => algorithms.into_iter().filter(|algorithm| own == (*algorithm).into()).collect(),
    };
    if algorithms.is_empty() {
        return Err("its \"alg\" does not fit it");
    }
    Ok(VerifyKey { kid: jwk.common.key_id, algorithms, key })
}

/// Bytes of the modulus, without the zeros before it.
fn modulus(key: &DecodingKey) -> usize {
    match key.kind() {
        jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => n.iter().skip_while(|byte| **byte == 0).count(),
        jsonwebtoken::DecodingKeyKind::SecretOrDer(_) => 0,
    }
}

#[cfg(test)]
mod tests;
