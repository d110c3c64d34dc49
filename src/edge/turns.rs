//! Owns whose turn it is: connections and requests of one address that come faster than a crowd behind it would, wait.
//!
//! Nobody is refused who would have come a moment later; but what one address has the gateway do beside its sessions
//! takes a part of its time, whatever comes. `governor` says when to ask again, and reserves no turn: of a thousand that
//! wait, each would ask a thousand times.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::edge::client_address::Neighbourhood;

/// As many as there may be: when a node dies, the people of a whole company are back in a moment.
const CROWD: Pace = Pace { at_once: 10_000, every: Duration::from_millis(1) };
/// Nobody waits for longer: whoever would have to is refused.
const MOST_WAIT: Duration = Duration::from_secs(1);
/// So many addresses are remembered at the most, that have used up something: whoever comes beyond does not wait.
const MOST: usize = 65_536;
/// Below this many nobody looks whom to forget.
const FEW: usize = 1024;
/// To look at all of them takes a moment, and whoever wants to could have that done for each of its addresses.
const TIDY_EVERY: Duration = Duration::from_millis(100);

/// There would be a turn after more than a second only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests came from this address: try again in a second")]
pub struct Crowded;

/// How many turns an address has.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// So many at once.
    pub at_once: u32,
    /// And one more after each of these.
    pub every: Duration,
}

/// The turns of all addresses.
#[derive(Debug)]
pub struct Turns {
    pace: Pace,
    taken: Mutex<Taken>,
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(CROWD)
    }
}

#[derive(Debug, Default)]
struct Taken {
    /// By when each address has nothing used up any more, if it takes no other turn.
    until: HashMap<Neighbourhood, Instant>,
    /// With so many, those that have nothing used up are forgotten; but not before this time.
    tidy_at: usize,
    tidy_from: Option<Instant>,
}

impl Turns {
    /// Nobody has taken any.
    pub fn new(pace: Pace) -> Self {
        Self { pace, taken: Mutex::default() }
    }

    /// Takes the next turn of `address`. Returns how long it is until then.
    ///
    /// # Errors
    /// When that is more than a second: then no turn is taken.
    pub fn take(&self, now: Instant, address: Neighbourhood) -> Result<Duration, Crowded> {
        let Pace { at_once, every } = self.pace;
        // Each change of the map is one call.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let known = taken.until.get(&address).copied();
        let until = known.unwrap_or(now).max(now);
        let wait = until.saturating_duration_since(now).saturating_sub(every * (at_once - 1));
        if wait > MOST_WAIT {
            return Err(Crowded);
        }
        let is_due = taken.until.len() >= taken.tidy_at && taken.tidy_from.is_none_or(|from| now >= from);
        if known.is_none() && is_due {
            taken.until.retain(|_, until| *until > now);
            taken.tidy_at = (2 * taken.until.len()).clamp(FEW, MOST);
            taken.tidy_from = Some(now + TIDY_EVERY);
        }
        if known.is_some() || taken.until.len() < MOST {
            taken.until.insert(address, until + every);
        }
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Neighbourhood {
        Neighbourhood::of(std::net::Ipv4Addr::from(number).into())
    }

    #[test]
    fn a_crowd_does_not_wait_and_whoever_goes_on_waits_longer_and_longer_and_is_sent_away() {
        let (turns, now) = (Turns::default(), Instant::now());
        for _ in 0..CROWD.at_once {
            assert_eq!(turns.take(now, address(1)), Ok(Duration::ZERO));
        }
        for number in 1..=1000 {
            assert_eq!(turns.take(now, address(1)), Ok(CROWD.every * number));
        }
        assert_eq!(turns.take(now, address(1)), Err(Crowded));
        assert_eq!(turns.take(now, address(2)), Ok(Duration::ZERO), "another address has turns of its own");
        let later = now + Duration::from_millis(100);
        let admitted = (0..1000).filter(|_| turns.take(later, address(1)).is_ok()).count();
        assert_eq!(admitted, 100, "who was sent away has taken no turn");
    }

    #[test]
    fn whoever_has_used_up_nothing_is_forgotten_and_there_is_a_bound() {
        let (turns, now) = (Turns::default(), Instant::now());
        for number in 0..2 * MOST as u32 {
            assert_eq!(turns.take(now, address(number)), Ok(Duration::ZERO));
        }
        let remembered = || turns.taken.lock().unwrap().until.len();
        assert_eq!(remembered(), MOST);
        assert_eq!(turns.take(now + Duration::from_secs(1), address(u32::MAX)), Ok(Duration::ZERO));
        assert_eq!(remembered(), 1);
    }
}
