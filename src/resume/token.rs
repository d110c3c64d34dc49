//! Owns resume tokens: what one says, and who may have written it. Whoever holds one is its client.
//!
//! ```text
//!  1     4        16       8            8      8             8         32
//! ┌──────┬────────┬────────┬────────────┬──────┬─────────────┬─────────┬─────────────┐
//! │ type │ key id │ client │ generation │ home │ first issue │ expires │ HMAC-SHA256 │   in URL-safe base64, no padding
//! └──────┴────────┴────────┴────────────┴──────┴─────────────┴─────────┴─────────────┘
//! ```
//! That is type 1. A token of type 2 stands for the credentials that its client had, for as long as they are good: between
//! `expires` and the code it has 16 bytes of whose they were, and 8 of until when.
//!
//! Numbers are big-endian. The code covers all that is before it, so no field can be taken from another token. The
//! type is no letter of ASCII: what a JWT's signature covers begins with one, so neither can be taken for the other,
//! even under one key.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// The first byte, one for each form of token: of a client that needs no credentials, and of one that had some.
const PLAIN: u8 = 1;
const BACKED: u8 = 2;
/// Bytes that the code of a plain token covers.
const SIGNED: usize = 1 + 4 + 16 + 4 * 8;
/// Bytes of the backing.
const BACKING: usize = 16 + 8;
/// Bytes of the code.
const CODE: usize = 32;
/// Clocks of two nodes may differ by this.
const LEEWAY: Duration = Duration::from_secs(60);
/// From its first token on, a client can keep its id by newer and newer ones for so long: one that was stolen does
/// not work for ever.
pub const HARD_END: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of a key at the least: as many as the code has (RFC 2104, section 3).
pub const LEAST_KEY: usize = 32;

/// What a token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Whose it is.
    pub client: Uuid,
    /// Of the session, when it was written.
    pub generation: u64,
    /// Tag of the node that held the session then.
    pub home: u64,
    /// When the first token of this client was written, in seconds since 1970.
    pub first_issue: u64,
    /// When this one ends, in seconds since 1970.
    pub expires: u64,
    /// The credentials that it stands for, where some are demanded.
    pub backing: Option<Backing>,
}

/// Credentials that a client had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Whose they were, as a digest.
    pub subject: [u8; 16],
    /// When they end, in seconds since 1970.
    pub until: u64,
}

impl Claims {
    /// For a token that is written at `now` and is good for `lifetime`, but not beyond the [`HARD_END`]. The
    /// `first_issue` is that of the token which the client came with, if it came with one.
    pub fn new(
        client: Uuid,
        generation: u64,
        home: u64,
        first_issue: Option<u64>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Self {
        let now = unix(now);
        let first_issue = first_issue.unwrap_or(now);
        let end = first_issue.saturating_add(HARD_END.as_secs());
        let expires = now.saturating_add(lifetime.as_secs()).min(end);
        Self { client, generation, home, first_issue, expires, backing: None }
    }

    /// The same for a client that has credentials.
    pub fn backed(self, backing: Option<Backing>) -> Self {
        Self { backing, ..self }
    }

    /// How long it is good for, from `now` on.
    pub fn expires_in(&self, now: SystemTime) -> Duration {
        Duration::from_secs(self.expires.saturating_sub(unix(now)))
    }
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFlaw {
    /// It is none.
    #[error("it is no resume token")]
    Malformed,
    /// It may be one, but whoever wrote it has a key that is not known here.
    #[error("its key is not known here")]
    UnknownKey,
    /// It was changed, or made up.
    #[error("its signature is wrong")]
    Forged,
    /// It was good once.
    #[error("it has expired")]
    Expired,
}

impl TokenFlaw {
    /// Every flaw, for metrics.
    pub const ALL: [Self; 4] = [Self::Malformed, Self::UnknownKey, Self::Forged, Self::Expired];

    /// The flaw as metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::Forged => "forged",
            Self::Expired => "expired",
        }
    }
}

/// A key by its name: what nodes tell one another, and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 4]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// A key that signs tokens and verifies them.
#[derive(Clone)]
pub struct Key {
    fingerprint: Fingerprint,
    /// The state after the key: it is mixed once.
    mac: Hmac<Sha256>,
}

impl Key {
    /// The key that these bytes are, if there are [enough](LEAST_KEY).
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mac = Hmac::<Sha256>::new_from_slice(bytes).ok().filter(|_| bytes.len() >= LEAST_KEY)?;
        // No token begins like this, so the fingerprint is the code of none.
        let code = mac.clone().chain_update(b"texto session key").finalize().into_bytes();
        let fingerprint = Fingerprint([code[0], code[1], code[2], code[3]]);
        Some(Self { fingerprint, mac })
    }
}

/// Shows which one it is, and nothing of it.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.fingerprint)
    }
}

/// The keys of a node: the first signs, all of them verify.
#[derive(Clone, Debug)]
pub struct Keyring {
    first: Key,
    others: Vec<Key>,
}

impl Keyring {
    /// `first` signs; `others` verify as well.
    pub fn new(first: Key, others: Vec<Key>) -> Self {
        Self { first, others }
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Which keys these are, the one that signs first.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.keys().map(|key| key.fingerprint).collect()
    }

    /// A token that says `claims`. It is a secret.
    pub fn sign(&self, claims: &Claims) -> String {
        let mut bytes = Vec::with_capacity(SIGNED + BACKING + CODE);
        bytes.push(if claims.backing.is_some() { BACKED } else { PLAIN });
        bytes.extend(self.first.fingerprint.0);
        bytes.extend(claims.client.as_bytes());
        for number in [claims.generation, claims.home, claims.first_issue, claims.expires] {
            bytes.extend(number.to_be_bytes());
        }
        if let Some(Backing { subject, until }) = claims.backing {
            bytes.extend(subject);
            bytes.extend(until.to_be_bytes());
        }
        let code = self.first.mac.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend(code);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// What `token` says, if it was signed by one of these keys and is still good at `now`. Codes are compared in
    /// constant time.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenFlaw> {
        // The length is looked at first: nothing is decoded that could not be one.
        let form = [PLAIN, BACKED].into_iter().find(|form| token.len() == length(*form)).ok_or(TokenFlaw::Malformed)?;
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| TokenFlaw::Malformed)?;
        let (signed, code) = bytes.split_at_checked(signed(form)).ok_or(TokenFlaw::Malformed)?;
        let (kind, mut fields) = Fields(signed).take().ok_or(TokenFlaw::Malformed)?;
        if kind != [form] {
            return Err(TokenFlaw::Malformed);
        }
        let id = fields.next().map(Fingerprint).ok_or(TokenFlaw::Malformed)?;
        let mut is_known = false;
        // Two keys may have one id.
        let is_good = self.keys().filter(|key| key.fingerprint == id).any(|key| {
            is_known = true;
            key.mac.clone().chain_update(signed).verify_slice(code).is_ok()
        });
        match (is_known, is_good) {
            (false, _) => Err(TokenFlaw::UnknownKey),
            (true, false) => Err(TokenFlaw::Forged),
            (true, true) => {
                let claims = fields.claims().ok_or(TokenFlaw::Malformed)?;
                let end = claims.first_issue.saturating_add(HARD_END.as_secs()).min(claims.expires);
                let is_over = unix(now) > end.saturating_add(LEEWAY.as_secs());
                if is_over { Err(TokenFlaw::Expired) } else { Ok(claims) }
            }
        }
    }
}

/// Bytes that the code covers in a token of this form.
fn signed(form: u8) -> usize {
    if form == BACKED { SIGNED + BACKING } else { SIGNED }
}

/// Characters of a token of this form, always.
fn length(form: u8) -> usize {
    ((signed(form) + CODE) * 4).div_ceil(3)
}

/// The rest of a token's fields.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(mut self) -> Option<([u8; N], Self)> {
        Some((self.next()?, self))
    }

    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn claims(mut self) -> Option<Claims> {
        let client = Uuid::from_bytes(self.next()?);
        let mut number = || self.next().map(u64::from_be_bytes);
        let (generation, home, first_issue, expires) = (number()?, number()?, number()?, number()?);
        let backing = self.next().zip(self.next().map(u64::from_be_bytes));
        let backing = backing.map(|(subject, until)| Backing { subject, until });
        Some(Claims { client, generation, home, first_issue, expires, backing })
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn key(byte: u8) -> Key {
        Key::new(&[byte; LEAST_KEY]).unwrap()
    }

    fn ring(keys: &[u8]) -> Keyring {
        let (first, others) = keys.split_first().unwrap();
        Keyring::new(key(*first), others.iter().map(|byte| key(*byte)).collect())
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn claims(client: u128) -> Claims {
        Claims::new(Uuid::from_u128(client), 7, 0x0102_0304_0506_0708, None, now(), DAY)
    }

    fn backed(client: u128) -> Claims {
        claims(client).backed(Some(Backing { subject: [7; 16], until: 1_800_000_060 }))
    }

    #[test]
    fn what_stands_for_credentials_says_whose_and_until_when() {
        let (ring, claims) = (ring(&[1]), backed(99));
        let token = ring.sign(&claims);
        assert_eq!(token.len(), length(BACKED));
        assert_eq!(ring.verify(&token, now()), Ok(claims));
        // The id is kept for longer than that: newer credentials may come with it.
        assert_eq!(ring.verify(&token, now() + DAY), Ok(claims));
    }

    #[test]
    fn no_token_is_made_one_of_another_form() {
        let ring = ring(&[1]);
        for claims in [claims(99), backed(99)] {
            let bytes = URL_SAFE_NO_PAD.decode(ring.sign(&claims)).unwrap();
            let (signed, code) = bytes.split_at(bytes.len() - CODE);
            let shorter = [&signed[..SIGNED], code].concat();
            let longer = [signed, &[0; BACKING][..], code].concat();
            for mut other in [bytes.clone(), shorter, longer] {
                for form in [PLAIN, BACKED] {
                    other[0] = form;
                    if other != bytes {
                        ring.verify(&URL_SAFE_NO_PAD.encode(&other), now()).unwrap_err();
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_signed_is_read_again() {
        let (ring, claims) = (ring(&[1]), claims(99));
        let token = ring.sign(&claims);
        assert_eq!(token.len(), length(PLAIN));
        assert_eq!(ring.verify(&token, now()), Ok(claims));
        assert_eq!(claims.expires_in(now()), DAY);
        let shown = format!("{ring:?}");
        assert_eq!(shown, format!("Keyring {{ first: Key({}), others: [] }}", ring.fingerprints()[0]));
        assert!(Key::new(&[1; LEAST_KEY - 1]).is_none(), "short keys can be guessed");
    }

    #[test]
    fn no_character_of_a_token_may_be_another() {
        let ring = ring(&[1]);
        let token = ring.sign(&claims(99));
        for (place, is) in token.char_indices() {
            for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=.ä\0".chars() {
                if other == is {
                    continue;
                }
                let mut changed = token.clone();
                changed.replace_range(place..=place, other.encode_utf8(&mut [0; 4]));
                ring.verify(&changed, now()).unwrap_err();
            }
        }
    }

    #[test]
    fn no_bit_of_a_token_may_be_another() {
        let ring = ring(&[1]);
        for token in [ring.sign(&claims(99)), ring.sign(&backed(99))] {
            let bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let flaw = ring.verify(&URL_SAFE_NO_PAD.encode(changed), now()).unwrap_err();
                let expected = match bit / 8 {
                    0 => TokenFlaw::Malformed,
                    1..5 => TokenFlaw::UnknownKey,
                    _ => TokenFlaw::Forged,
                };
                assert_eq!(flaw, expected, "bit {bit}");
            }
        }
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_none() {
        let ring = ring(&[1]);
        let token = ring.sign(&claims(99));
        for length in 0..length(PLAIN) {
            assert_eq!(ring.verify(&token[..length], now()), Err(TokenFlaw::Malformed), "{length}");
        }
        for tail in ["A", "=", "==", " ", "\n", &token, &"A".repeat(1 << 20)] {
            assert_eq!(ring.verify(&format!("{token}{tail}"), now()), Err(TokenFlaw::Malformed));
        }
        let jwt = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhIn0.9UbDnR3yYl3nFhZ2RZ6c1Rk2o6i7JrQ9Zb8U8uV0kqU";
        assert_eq!(ring.verify(jwt, now()), Err(TokenFlaw::Malformed));
        for width in [length(PLAIN), length(BACKED)] {
            assert_eq!(
                ring.verify(&format!("{jwt:.<width$}"), now()),
                Err(TokenFlaw::Malformed),
                "of a token's length"
            );
        }
    }

    #[test]
    fn fields_of_two_tokens_make_no_third() {
        let ring = ring(&[1]);
        let tokens = [
            claims(1),
            Claims { generation: 8, home: 9, ..claims(2) },
            Claims { first_issue: 1_799_999_999, expires: 1_800_000_001, ..claims(3) },
        ];
        let tokens = tokens.map(|claims| URL_SAFE_NO_PAD.decode(ring.sign(&claims)).unwrap());
        let bounds = [5, 21, 29, 37, 45, SIGNED, SIGNED + CODE];
        for (one, other) in [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] {
            for field in bounds.windows(2) {
                let mut mixed = tokens[one].clone();
                mixed[field[0]..field[1]].copy_from_slice(&tokens[other][field[0]..field[1]]);
                if mixed != tokens[one] {
                    let mixed = URL_SAFE_NO_PAD.encode(mixed);
                    assert_eq!(ring.verify(&mixed, now()), Err(TokenFlaw::Forged), "{one} {other} {field:?}");
                }
            }
        }
    }

    #[test]
    fn a_token_ends_but_for_the_difference_of_clocks() {
        let ring = ring(&[1]);
        let token = ring.sign(&claims(99));
        for (later, is_good) in [(DAY, true), (DAY + LEEWAY, true), (DAY + LEEWAY + Duration::from_secs(1), false)] {
            assert_eq!(ring.verify(&token, now() + later).is_ok(), is_good, "{later:?}");
        }
        assert_eq!(ring.verify(&token, now() + 2 * DAY), Err(TokenFlaw::Expired));
        assert!(ring.verify(&token, now() - DAY).is_ok(), "a clock that is behind makes nobody a stranger");
    }

    #[test]
    fn nobody_renews_a_token_for_ever() {
        let ring = ring(&[1]);
        let mut claims = claims(99);
        let mut days = 0;
        while let Ok(read) = ring.verify(&ring.sign(&claims), now() + days * DAY) {
            days += 1;
            assert!(days < 40, "for ever");
            claims = Claims::new(read.client, 8, 9, Some(read.first_issue), now() + days * DAY, DAY);
        }
        assert_eq!(days, 31);
        // Also for whoever gave it a longer life.
        let endless = Claims { expires: u64::MAX, ..claims };
        assert_eq!(ring.verify(&ring.sign(&endless), now() + 31 * DAY), Err(TokenFlaw::Expired));
    }

    #[test]
    fn a_key_of_somebody_else_is_of_no_use() {
        let token = ring(&[2]).sign(&claims(99));
        assert_eq!(ring(&[1]).verify(&token, now()), Err(TokenFlaw::UnknownKey));
        // Also if it claims to be ours.
        let mut bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
        bytes[1..5].copy_from_slice(&key(1).fingerprint.0);
        assert_eq!(ring(&[1]).verify(&URL_SAFE_NO_PAD.encode(bytes), now()), Err(TokenFlaw::Forged));
    }

    /// A rolling rotation: the new key goes last in all files before it goes first in any.
    #[test]
    fn a_key_is_rotated_node_by_node_and_makes_nobody_a_stranger() {
        let stages = [ring(&[1]), ring(&[1, 2]), ring(&[2, 1]), ring(&[2])];
        for pair in stages.windows(2) {
            for (signs, reads) in [(0, 1), (1, 0)] {
                let token = pair[signs].sign(&claims(99));
                let read = pair[reads].verify(&token, now());
                // The last step is taken when no token of the old key is good any more.
                let is_last = pair[1].fingerprints().len() == 1;
                assert!(read.is_ok() || is_last, "{pair:?}");
            }
        }
        let early = ring(&[2, 1]).sign(&claims(99));
        assert_eq!(ring(&[1]).verify(&early, now()), Err(TokenFlaw::UnknownKey), "first before it is last everywhere");
    }
}
