//! Owns who may come in: from which pages, and with which credentials.
//!
//! ```text
//!  handshake ──▶ Origin ──▶ Authorization ──▶ 101 ──▶ registration: token ──▶ session ──▶ a fresh one before `exp`
//!                  │ 403        │ 401, 503                 │ EAUTH, 4003                        │ 4003 after it
//! ```

pub mod jwks;
pub mod keys;
pub mod mint;
pub mod origin;
pub mod source;
pub mod verifier;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{HeaderMap, header};
use tracing::info;

use self::origin::{OriginFlaw, Origins};
use self::verifier::{Pass, Refusal, Verifier};
use crate::operate::repeats::Repeats;

/// Who may come in.
#[derive(Debug, Default)]
pub struct Access {
    /// From which pages.
    pub origins: Origins,
    /// With which credentials; without this, none are asked for.
    pub verifier: Option<Arc<Verifier>>,
    said: Mutex<Repeats>,
}

impl Access {
    /// As the operator wants it.
    pub fn new(origins: Origins, verifier: Option<Arc<Verifier>>) -> Self {
        Self { origins, verifier, said: Mutex::default() }
    }

    /// Whether nobody comes in without credentials.
    pub fn demands_credentials(&self) -> bool {
        self.verifier.is_some()
    }

    /// Whether a page may come in whose handshake has these headers.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit_page(&self, headers: &HeaderMap) -> Result<(), OriginFlaw> {
        self.origins.admit(headers).inspect_err(|flaw| self.say(&format!("a page was refused: {flaw}")))
    }

    /// What the `Authorization` header of a handshake says; nothing, if credentials are not asked for or may still come.
    ///
    /// # Errors
    /// Why the client does not come in.
    pub async fn admit_bearer(&self, headers: &HeaderMap) -> Result<Option<Pass>, Refusal> {
        let Some(verifier) = &self.verifier else { return Ok(None) };
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let admitted =
            match token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer") && values.next().is_none()) {
                Some((_, token)) => verifier.admit(token.trim()).await.map(Some),
                None => Err(Refusal::NoBearer),
            };
        admitted.inspect_err(|refusal| self.complain(*refusal))
    }

    /// Says to the operator that somebody did not come in.
    pub fn complain(&self, refusal: Refusal) {
        self.say(&format!("credentials were refused: {refusal}"));
    }

    fn say(&self, what: &str) {
        let again = self.said.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now(), what);
        if let Some(again) = again {
            info!("{what}{again}");
        }
    }
}
