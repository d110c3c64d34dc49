//! Owns how often sessions may be resumed: by one client address, and each of them.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use uuid::Uuid;

use crate::edge::client_address::Neighbourhood;
use crate::edge::limiter::{Limiter, Rate};

/// How often one session may be resumed at once: somebody's network may come and go. Each time may be a claim that other
/// nodes hear, and a move.
const SESSION: Rate = Rate { burst: NonZeroU32::new(20).unwrap(), every: Duration::from_millis(500) };
/// The part of what one address may do at once that it may do in each second after.
const A_SECOND: u32 = 10;

/// Whose limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The client address'.
    Address,
    /// The session's.
    Session,
}

/// How often sessions may be resumed.
#[derive(Debug)]
pub struct ResumeLimits<C: Clock = MonotonicClock> {
    by_address: Option<Limiter<Neighbourhood, C>>,
    by_session: Limiter<Uuid, C>,
}

impl ResumeLimits {
    /// One address may resume `per_address` sessions at once, and a tenth of that in each second; as many as it likes, if
    /// that is zero.
    pub fn new(per_address: usize) -> Self {
        Self::with_clock(per_address, &MonotonicClock)
    }
}

impl<C: Clock + Clone> ResumeLimits<C> {
    fn with_clock(per_address: usize, clock: &C) -> Self {
        let burst = NonZeroU32::new(u32::try_from(per_address).unwrap_or(u32::MAX));
        let by_address = burst.map(|burst| {
            let rate = Rate { burst, every: Duration::from_secs(1) * A_SECOND / burst.get() };
            Limiter::with_clock(rate, clock.clone())
        });
        Self { by_address, by_session: Limiter::with_clock(SESSION, clock.clone()) }
    }

    /// Whether a client at `address` may try now, whatever its token is.
    ///
    /// # Errors
    /// When it may not.
    pub fn admits_address(&self, address: Option<IpAddr>) -> Result<(), Limit> {
        let (Some(limiter), Some(address)) = (&self.by_address, address) else { return Ok(()) };
        limiter.admits(&Neighbourhood::of(address)).map_err(|_| Limit::Address)
    }

    /// Whether one with a good token of `client` may.
    ///
    /// # Errors
    /// When it may not.
    pub fn admits_session(&self, client: Uuid) -> Result<(), Limit> {
        self.by_session.admits(&client).map_err(|_| Limit::Session)
    }

    /// Forgets whoever has used up nothing. To be called now and then.
    pub fn tidy(&self) {
        self.by_session.tidy();
        if let Some(limiter) = &self.by_address {
            limiter.tidy();
        }
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn limits(per_address: usize) -> (ResumeLimits<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (ResumeLimits::with_clock(per_address, &clock), clock)
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_address_is_limited_with_its_neighbourhood_and_no_other_is() {
        let (limits, clock) = limits(10);
        for (one, same, other) in
            [("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"), ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2")]
        {
            for _ in 0..10 {
                assert_eq!(limits.admits_address(address(one)), Ok(()));
            }
            assert_eq!(limits.admits_address(address(same)), Err(Limit::Address));
            assert_eq!(limits.admits_address(address(other)), Ok(()));
            clock.advance(Duration::from_secs(1));
            assert_eq!(limits.admits_address(address(one)), Ok(()), "a tenth in each second");
            assert_eq!(limits.admits_address(address(one)), Err(Limit::Address));
        }
    }

    #[test]
    fn zero_is_no_limit_for_an_address_but_each_session_has_one() {
        let (limits, _) = limits(0);
        for client in 0..100_000 {
            assert_eq!(limits.admits_address(address("192.0.2.1")), Ok(()));
            assert_eq!(limits.admits_session(Uuid::from_u128(client)), Ok(()));
        }
        let again = (0..SESSION.burst.get()).map(|_| limits.admits_session(Uuid::nil()));
        assert_eq!(again.filter(Result::is_err).count(), 1);
    }
}
