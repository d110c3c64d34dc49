//! Owns how much a client may say that leads nowhere: frames that are answered with errors, pings, questions, messages for
//! nobody.
//!
//! None of it closes a session. Whoever says too much of it is not listened to for a moment, so that its own network holds it
//! back; sends that are acknowledged cost nothing here.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::edge::limiter::{Pacer, Rate};

/// More than any honest client says, and too little to disturb others.
const RATE: Rate = Rate { burst: NonZeroU32::new(1000).unwrap(), every: Duration::from_millis(5) };

/// What a session has said.
#[derive(Debug, Default)]
pub(super) struct Chatter {
    /// Boxed, and made when it is first needed: most sessions say nothing of the kind.
    state: Option<Box<State>>,
}

#[derive(Debug)]
struct State {
    pacer: Pacer,
    until: Option<Instant>,
}

impl Chatter {
    /// One more was said. Returns whether a pause begins with it.
    pub(super) fn note(&mut self, now: Instant) -> bool {
        let state = self.state.get_or_insert_with(|| Box::new(State { pacer: Pacer::new(RATE), until: None }));
        let Err(wait) = state.pacer.admits() else { return false };
        let before = state.until.replace(now + wait);
        before.is_none_or(|until| until <= now)
    }

    /// Until when the session is not listened to, or was not.
    pub(super) fn until(&self) -> Option<Instant> {
        self.state.as_ref()?.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_begins_when_it_is_too_much_and_it_ends() {
        let (mut chatter, now) = (Chatter::default(), Instant::now());
        assert_eq!(chatter.until(), None);
        // Some come in again while this runs.
        let before = (1..).take_while(|_| !chatter.note(now)).count() + 1;
        assert!(before > 1000 && before < 3000, "{before}");
        let until = chatter.until().unwrap();
        assert!(until > now && until <= now + RATE.every, "{:?}", until - now);
        // What is said then begins another.
        let before = (1..).take_while(|_| !chatter.note(until)).count();
        assert!(before < 1000, "{before}");
        assert!(chatter.until().unwrap() > until);
    }
}
