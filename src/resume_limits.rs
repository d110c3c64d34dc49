//! Owns how often sessions may be resumed: by one client address, and each of them.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::limiter::Limiter;

/// How often one session may be resumed at once: somebody's network may come and go. Each time may be a claim that other
/// nodes hear, and a move.
const SESSION_BURST: u32 = 20;
const SESSION_EVERY: Duration = Duration::from_millis(500);
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
pub struct ResumeLimits {
    by_address: Option<Limiter<IpAddr>>,
    by_session: Limiter<Uuid>,
}

impl ResumeLimits {
    /// One address may resume `per_address` sessions at once, and a tenth of that in each second; as many as it likes, if
    /// that is zero.
    pub fn new(per_address: usize) -> Self {
        let burst = u32::try_from(per_address).unwrap_or(u32::MAX);
        let by_address = (burst > 0).then(|| Limiter::new(burst, Duration::from_secs(1) * A_SECOND / burst));
        Self { by_address, by_session: Limiter::new(SESSION_BURST, SESSION_EVERY) }
    }

    /// Whether a client at `address` may try now, whatever its token is.
    ///
    /// # Errors
    /// When it may not.
    pub fn admits_address(&self, now: Instant, address: Option<IpAddr>) -> Result<(), Limit> {
        let (Some(limiter), Some(address)) = (&self.by_address, address) else { return Ok(()) };
        if limiter.admits(now, neighbourhood(address)) { Ok(()) } else { Err(Limit::Address) }
    }

    /// Whether one with a good token of `client` may.
    ///
    /// # Errors
    /// When it may not.
    pub fn admits_session(&self, now: Instant, client: Uuid) -> Result<(), Limit> {
        if self.by_session.admits(now, client) { Ok(()) } else { Err(Limit::Session) }
    }
}

/// Whoever has an address of version 6 usually has 2^64 of them (RFC 6177).
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_address_is_limited_with_its_neighbourhood_and_no_other_is() {
        let (limits, now) = (ResumeLimits::new(10), Instant::now());
        for (one, same, other) in
            [("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"), ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2")]
        {
            for _ in 0..10 {
                assert_eq!(limits.admits_address(now, address(one)), Ok(()));
            }
            assert_eq!(limits.admits_address(now, address(same)), Err(Limit::Address));
            assert_eq!(limits.admits_address(now, address(other)), Ok(()));
            let later = now + Duration::from_secs(1);
            assert_eq!(limits.admits_address(later, address(one)), Ok(()), "a tenth in each second");
            assert_eq!(limits.admits_address(later, address(one)), Err(Limit::Address));
        }
    }

    #[test]
    fn zero_is_no_limit_for_an_address_but_each_session_has_one() {
        let (limits, now) = (ResumeLimits::new(0), Instant::now());
        for client in 0..100_000 {
            assert_eq!(limits.admits_address(now, address("192.0.2.1")), Ok(()));
            assert_eq!(limits.admits_session(now, Uuid::from_u128(client)), Ok(()));
        }
        let again = (0..SESSION_BURST).map(|_| limits.admits_session(now, Uuid::nil()));
        assert_eq!(again.filter(Result::is_err).count(), 1);
    }
}
