//! Owns the waiting time between attempts: capped, exponential, jittered.

use std::time::Duration;

/// Waiting times for one peer. Reset it when the peer has proved useful, not when it was merely
/// reachable: a server that accepts and drops connections must not be hammered.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
    random: fastrand::Rng,
}

impl Backoff {
    /// Starts at once, then `base` doubling up to `cap`, each time with half of it at random.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self::with_random(base, cap, fastrand::Rng::new())
    }

    /// The same, with a source of randomness that a test can seed.
    pub fn with_random(base: Duration, cap: Duration, random: fastrand::Rng) -> Self {
        Self { base, cap, attempt: 0, random }
    }

    /// How long to wait before the next attempt; the first wait is zero.
    pub fn next_delay(&mut self) -> Duration {
        let attempt = self.attempt;
        self.attempt = attempt.saturating_add(1);
        let Some(doublings) = attempt.checked_sub(1) else {
            return Duration::ZERO;
        };
        let full = self.base.saturating_mul(1 << doublings.min(20)).min(self.cap);
        full.mul_f64(0.5 + 0.5 * self.random.f64())
    }

    /// The peer is fine again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_starts_over() {
        let (base, cap) = (Duration::from_millis(10), Duration::from_millis(500));
        let mut backoff = Backoff::with_random(base, cap, fastrand::Rng::with_seed(7));
        assert_eq!(backoff.next_delay(), Duration::ZERO);
        let second = backoff.next_delay();
        assert!(second >= base / 2 && second <= base, "{second:?}");
        for _ in 0..100 {
            assert!(backoff.next_delay() <= cap);
        }
        assert!(backoff.next_delay() >= cap / 2);
        backoff.reset();
        assert_eq!(backoff.next_delay(), Duration::ZERO);
    }
}
