//! Owns what credentials must be: a JWT (RFC 7519, RFC 8725), and what is taken from it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::keys::VerifyKeys;
use super::source::KeySource;
use crate::resume::token::Backing;

/// Bytes of a token at the most: longer ones are not looked at.
pub const MOST_BYTES: usize = 8 * 1024;
/// No session is longer than its timer can count.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What an operator demands of credentials, beside a good signature.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// One of these must be in `aud`; without any, a token that names an audience is for somebody else.
    pub audience: Vec<String>,
    /// One of these must be `iss`; without any, it may be whoever has the key.
    pub issuer: Vec<String>,
    /// How much clocks may differ.
    pub leeway: Duration,
}

/// Verifies credentials.
#[derive(Debug)]
pub struct Verifier {
    source: Arc<KeySource>,
    demands: Demands,
}

/// What somebody with good credentials has: who they are, and until when.
#[derive(Clone, PartialEq, Eq)]
pub struct Pass {
    /// Who it is: a digest, for nothing but comparing it is done with it.
    pub subject: [u8; 16],
    /// The same as a client's id, if it is one.
    pub client: Option<Uuid>,
    /// The `exp` of the credentials, in seconds since 1970.
    pub expires: u64,
    /// When the session ends unless there are newer ones: that, and the leeway.
    pub ends: Instant,
}

/// Whoever reads a log learns nothing of persons.
impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Pass {
    /// What a resume token says that stands for these credentials.
    pub fn backing(&self) -> Backing {
        Backing { subject: self.subject, until: self.expires }
    }

    /// How long they are good, from `now` on.
    pub fn expires_in(&self, now: SystemTime) -> Duration {
        Duration::from_secs(self.expires.saturating_sub(unix(now)))
    }
}

/// Why credentials are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are none.
    #[error(
        "credentials are required: a \"registration\" with data.token after ?register=1, or the header Authorization: Bearer"
    )]
    Missing,
    /// The header is there, and is of another kind.
    #[error("the Authorization header must be, once, `Bearer` and a token")]
    NoBearer,
    /// It is too long to be one.
    #[error("the token has more than {MOST_BYTES} bytes")]
    TooLong,
    /// It is no JWT.
    #[error("the token is no JWT that is signed")]
    Malformed,
    /// It is a JWT for something else.
    #[error("the token's typ must be JWT or at+jwt, if it has one, and nothing in it critical")]
    Type,
    /// It is signed by a key that may be known, in a way that it is not good for; or not at all.
    #[error("the token's alg is not one that its key is good for here")]
    Algorithm,
    /// Nobody here knows the key that it names.
    #[error("the token's key (kid) is not known")]
    UnknownKey,
    /// It was changed, or made up.
    #[error("the token's signature is wrong")]
    Signature,
    /// It does not say until when, or not so that it can be read.
    #[error("the token has no exp")]
    NoExpiry,
    /// It was good once.
    #[error("the token has expired")]
    Expired,
    /// It will be good.
    #[error("the token is not good yet (nbf)")]
    NotYet,
    /// It is for somebody else.
    #[error("the token is not for this service (aud)")]
    Audience,
    /// It is by somebody else.
    #[error("the token is not by an issuer that is trusted here (iss)")]
    Issuer,
    /// It is good, and somebody else's.
    #[error("the token is somebody else's (sub) than this session's")]
    Subject,
    /// There are no keys yet.
    #[error("credentials can't be checked now: connect again later")]
    Unavailable,
}

impl Refusal {
    /// Every refusal, for metrics.
    pub const ALL: [Self; 15] = [
        Self::Missing,
        Self::NoBearer,
        Self::TooLong,
        Self::Malformed,
        Self::Type,
        Self::Algorithm,
        Self::UnknownKey,
        Self::Signature,
        Self::NoExpiry,
        Self::Expired,
        Self::NotYet,
        Self::Audience,
        Self::Issuer,
        Self::Subject,
        Self::Unavailable,
    ];

    /// The refusal as metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NoBearer => "no_bearer",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Type => "type",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::NoExpiry => "no_expiry",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::Audience => "audience",
            Self::Issuer => "issuer",
            Self::Subject => "subject",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What is read of a token beside what `jsonwebtoken` validates.
#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    exp: serde_json::Value,
    #[serde(default)]
    sub: Option<String>,
    #[serde(default)]
    iss: Option<serde_json::Value>,
    #[serde(default)]
    aud: Option<serde_json::Value>,
}

impl Verifier {
    /// Takes what `source` has keys for, and fits `demands`.
    pub fn new(source: Arc<KeySource>, demands: Demands) -> Self {
        Self { source, demands }
    }

    /// Where the keys come from.
    pub fn source(&self) -> &Arc<KeySource> {
        &self.source
    }

    /// Verifies a token. One whose key is not known has the keys asked for anew, if they come from elsewhere and that was
    /// not done a moment ago; so this may take as long as that. Cancel safe.
    ///
    /// # Errors
    /// Why it is not taken.
    pub async fn admit(&self, token: &str) -> Result<Pass, Refusal> {
        let before = self.source.keys();
        let verified = self.verify(token);
        if matches!(verified, Err(Refusal::UnknownKey | Refusal::Unavailable))
            && (self.source.refreshed().await || !Arc::ptr_eq(&before, &self.source.keys()))
        {
            return self.verify(token);
        }
        verified
    }

    /// Verifies a token by the keys that there are.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn verify(&self, token: &str) -> Result<Pass, Refusal> {
        if token.len() > MOST_BYTES {
            return Err(Refusal::TooLong);
        }
        let header = header(token)?;
        let keys = self.source.keys();
        if keys.is_empty() {
            return Err(Refusal::Unavailable);
        }
        self.pass(&self.content(token, &header, &keys)?)
    }

    fn content(&self, token: &str, header: &Header, keys: &VerifyKeys) -> Result<Content, Refusal> {
        let kid = header.kid.as_deref();
        if !keys.knows(kid) {
            return Err(Refusal::UnknownKey);
        }
        let validation = self.validation(header.alg);
        let mut refusal = Refusal::Algorithm;
        for candidate in keys.candidates(kid, header.alg) {
            match decode::<Content>(token, &candidate.key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => refusal = refusal_of(error.kind()),
            }
            if refusal != Refusal::Signature {
                break; // The signature was good.
            }
        }
        Err(refusal)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.demands.leeway.as_secs();
        validation.validate_nbf = true;
        // A claim that is demanded has to be there: the library compares it only if it is.
        let mut required = vec!["exp"];
        if !self.demands.audience.is_empty() {
            validation.set_audience(&self.demands.audience);
            required.push("aud");
        }
        if !self.demands.issuer.is_empty() {
            validation.set_issuer(&self.demands.issuer);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn pass(&self, content: &Content) -> Result<Pass, Refusal> {
        // The library passes over an audience that is neither a text nor a list of texts, unless one is demanded.
        if self.demands.audience.is_empty() && content.aud.is_some() {
            return Err(Refusal::Audience);
        }
        // It has been validated: a number that is not negative.
        let expires = content.exp.as_f64().unwrap_or_default().round() as u64;
        let client = content.sub.as_deref().and_then(|sub| Uuid::try_parse(sub).ok());
        // These two stand for nobody and for everybody, here and elsewhere.
        let client = client.filter(|client| !client.is_nil() && !client.is_max());
        let subject = match (client, &content.sub) {
            (Some(client), _) => digest(&[b"client", client.as_bytes()]),
            // Another issuer means somebody else by the same name.
            (None, Some(sub)) => {
                let issuer = content.iss.as_ref().map(serde_json::Value::to_string).unwrap_or_default();
                digest(&[b"sub", &(issuer.len() as u64).to_be_bytes(), issuer.as_bytes(), sub.as_bytes()])
            }
            (None, None) => [0; 16],
        };
        Ok(Pass { subject, client, expires, ends: self.end(expires)? })
    }

    /// The pass of somebody who comes with a resume token that stands for credentials.
    ///
    /// # Errors
    /// When their time is over.
    pub fn resumed(&self, backing: &Backing) -> Result<Pass, Refusal> {
        let Backing { subject, until } = *backing;
        Ok(Pass { subject, client: None, expires: until, ends: self.end(until)? })
    }

    /// When a session ends whose credentials say `expires`: on that moment and after it they are good for nothing (RFC 7519,
    /// section 4.1.4).
    fn end(&self, expires: u64) -> Result<Instant, Refusal> {
        let last = Duration::from_secs(expires).saturating_add(self.demands.leeway);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = last.saturating_sub(now);
        if left.is_zero() { Err(Refusal::Expired) } else { Ok(Instant::now() + left.min(LONGEST)) }
    }
}

/// The header, if it is one of a token that may be meant for us.
fn header(token: &str) -> Result<Header, Refusal> {
    let header = decode_header(token).map_err(|_| match algorithm_name(token) {
        // It is a header, but for the algorithm.
        Some(name) if name.parse::<Algorithm>().is_err() => Refusal::Algorithm,
        _ => Refusal::Malformed,
    })?;
    // A media type may be written with "application/" before it (RFC 7515, section 4.1.9).
    let is_ours = header.typ.as_deref().is_none_or(|typ| {
        let typ = typ.to_ascii_lowercase();
        ["jwt", "at+jwt"].contains(&typ.strip_prefix("application/").unwrap_or(&typ))
    });
    // Whatever it is that must be understood, it isn't (RFC 7515, section 4.1.11).
    if is_ours && header.crit.is_none() { Ok(header) } else { Err(Refusal::Type) }
}

/// The `alg` of a token, whatever it is.
fn algorithm_name(token: &str) -> Option<String> {
    use base64::Engine;
    #[derive(Deserialize)]
    struct Named {
        alg: String,
    }
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    serde_json::from_slice::<Named>(&bytes).ok().map(|named| named.alg)
}

fn refusal_of(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::NotYet,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => match claim.as_str() {
            "exp" => Refusal::NoExpiry,
            "nbf" => Refusal::NotYet,
            "aud" => Refusal::Audience,
            "iss" => Refusal::Issuer,
            _ => Refusal::Malformed,
        },
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => Refusal::Algorithm,
        // A key that can't be used with what the signature is.
        ErrorKind::InvalidEcdsaKey
        | ErrorKind::InvalidEddsaKey
        | ErrorKind::InvalidRsaKey(_)
        | ErrorKind::InvalidKeyFormat
        | ErrorKind::Provider(_) => Refusal::Signature,
        _ => Refusal::Malformed,
    }
}

/// A digest that nobody can make twice.
fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    bytes
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
