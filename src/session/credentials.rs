//! Owns how a session shows its credentials: at its beginning, and anew before they end.

use std::time::{Instant, SystemTime};

use tracing::debug;

use super::protocol::{Expiry, Wish};
use super::{Context, End};
use crate::access::verifier::{Pass, Refusal};
use crate::resume::token::Claims;

/// What a session may begin with, where credentials are demanded: those of its `registration`, of its handshake, or those
/// that its resume token (`claims`) stands for.
///
/// # Errors
/// Why it may not begin.
pub(super) async fn shown(
    context: &Context,
    handshake: Option<Pass>,
    wish: &Wish,
    claims: Option<&Claims>,
) -> Result<Option<Pass>, Refusal> {
    let Some(verifier) = &context.access.verifier else { return Ok(None) };
    let shown = match (&wish.token, handshake, claims.and_then(|claims| claims.backing)) {
        (Some(token), handshake, _) => verifier.admit(token).await.and_then(|pass| match handshake {
            Some(first) if first.subject != pass.subject => Err(Refusal::Subject),
            _ => Ok(pass),
        }),
        (None, Some(pass), _) => Ok(pass),
        (None, None, Some(backing)) => verifier.resumed(&backing),
        (None, None, None) => Err(Refusal::Missing),
    };
    shown.map(Some).inspect_err(|refusal| refused(context, *refusal))
}

/// Newer credentials for a session that has some: they must be those of the same person.
///
/// # Errors
/// Why they are not taken; the session goes on as it was.
pub(super) async fn prolonged(context: &Context, pass: &Pass, token: &str) -> Result<Pass, Refusal> {
    let Some(verifier) = &context.access.verifier else { return Ok(pass.clone()) };
    let newer = verifier.admit(token).await.and_then(|newer| {
        // The client's id is the session's, whatever it was by which it began.
        if newer.subject == pass.subject { Ok(newer) } else { Err(Refusal::Subject) }
    });
    newer.inspect_err(|refusal| refused(context, *refusal))
}

fn refused(context: &Context, refusal: Refusal) {
    debug!(%refusal, "credentials are not taken");
    context.metrics.access.refused(refusal.label());
    context.access.complain(refusal);
}

/// How the connection ends of somebody whose credentials were refused.
pub(super) fn end(refusal: Refusal) -> End {
    if refusal == Refusal::Unavailable { End::Unverifiable } else { End::Unauthorized }
}

/// What the client is told of its credentials.
pub(super) fn expiry(pass: Option<&Pass>) -> Option<Expiry> {
    pass.map(|pass| Expiry { expires_ms: super::registration::millis(pass.expires_in(SystemTime::now())) })
}

/// Whether they are over.
pub(super) fn are_over(pass: Option<&Pass>, now: Instant) -> bool {
    pass.is_some_and(|pass| now >= pass.ends)
}
