//! Owns the waiting time between attempts: capped, exponential, jittered.

use std::time::Duration;

/// Waiting times for one peer. Reset it when the peer has proved useful, not when it was merely
/// reachable: a server that accepts and drops connections must not be hammered.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    next: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    /// Starts at once, then `base` doubling up to `cap`, each time with half of it at random.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self::with_random(base, cap, fastrand::Rng::new())
    }

    /// The same, with a source of randomness that a test can seed.
    pub fn with_random(base: Duration, cap: Duration, random: fastrand::Rng) -> Self {
        Self { base, cap, next: Duration::ZERO, random }
    }

    /// From now on waits at most `cap`. A longer one is grown into, from where the waits are.
    pub fn set_cap(&mut self, cap: Duration) {
        self.cap = cap;
    }

    /// How long to wait before the next attempt; the first wait is zero.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.next.min(self.cap);
        self.next = full.saturating_mul(2).clamp(self.base.min(self.cap), self.cap);
        full.mul_f64(0.5 + 0.5 * self.random.f64())
    }

    /// The peer is fine again.
    pub fn reset(&mut self) {
        self.next = Duration::ZERO;
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
    #[test]
    fn grows_into_a_longer_cap_and_falls_to_a_shorter_one() {
        let (base, short, long) = (Duration::from_millis(10), Duration::from_millis(200), Duration::from_secs(30));
        let mut backoff = Backoff::with_random(base, short, fastrand::Rng::with_seed(7));
        (0..100).for_each(|_| assert!(backoff.next_delay() <= short));
        backoff.set_cap(long);
        assert!(backoff.next_delay() <= short * 2, "not at once");
        let longest = (0..20).map(|_| backoff.next_delay()).max().unwrap_or_default();
        assert!(longest >= long / 2);
        backoff.set_cap(short);
        assert!(backoff.next_delay() <= short);
    }
}
