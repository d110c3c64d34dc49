//! Owns how often somebody may do something: so many times at once, and so many in each second after that.
//!
//! The arithmetic is that of `governor` (the generic cell rate algorithm). Its own maps of keys grow between two calls of
//! `retain_recent`, by as many keys as strangers care to have; so the map is ours, and has a bound.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{NotUntil, Quota, RateLimiter};

/// So many are remembered at the most, that have used up something: whoever comes beyond is not limited.
const MOST: usize = 262_144;
/// Room for so many is kept, whatever there was.
const FEW: usize = 1024;

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Times at once.
    pub burst: NonZeroU32,
    /// One time more after each of these.
    pub every: Duration,
}

impl Rate {
    fn quota(self) -> Quota {
        let quota = Quota::with_period(self.every).unwrap_or(Quota::per_second(self.burst));
        quota.allow_burst(self.burst)
    }
}

/// A limit for each `K`.
#[derive(Debug)]
pub struct Limiter<K: Clone + Eq + Hash, C: Clock = MonotonicClock> {
    inner: RateLimiter<K, Bounded<K>, C, NoOpMiddleware<C::Instant>>,
}

impl<K: Clone + Eq + Hash> Limiter<K> {
    /// A limit of `rate` for each.
    pub fn new(rate: Rate) -> Self {
        Self::with_clock(rate, MonotonicClock)
    }
}

impl<K: Clone + Eq + Hash, C: Clock> Limiter<K, C> {
    /// The same by another clock.
    pub fn with_clock(rate: Rate, clock: C) -> Self {
        Self { inner: RateLimiter::new(rate.quota(), Bounded(Mutex::default()), clock) }
    }

    /// Whether `key` may do it now, and then it has. Whoever may not has used up nothing.
    ///
    /// # Errors
    /// How long it must wait, when it may not.
    pub fn admits(&self, key: &K) -> Result<(), Duration> {
        self.inner.check_key(key).map_err(|until| wait(&until, self.inner.clock()))
    }

    /// Forgets whoever has used up nothing. To be called now and then.
    pub fn tidy(&self) {
        self.inner.retain_recent();
        self.inner.shrink_to_fit();
    }
}

/// A limit for one alone.
#[derive(Debug)]
pub struct Pacer(RateLimiter<NotKeyed, InMemoryState, MonotonicClock>);

impl Pacer {
    /// A limit of `rate`.
    pub fn new(rate: Rate) -> Self {
        Self(RateLimiter::direct_with_clock(rate.quota(), MonotonicClock))
    }

    /// Whether it may be done now, and then it is.
    ///
    /// # Errors
    /// How long that has to wait, when it may not.
    pub fn admits(&self) -> Result<(), Duration> {
        self.0.check().map_err(|until| wait(&until, self.0.clock()))
    }
}

fn wait<C: Clock>(until: &NotUntil<C::Instant>, clock: &C) -> Duration {
    until.wait_time_from(clock.now())
}

/// Until when each key has used up what it may, as far as there is room.
#[derive(Debug)]
struct Bounded<K>(Mutex<HashMap<K, Nanos>>);

impl<K> Bounded<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Nanos>> {
        // Each change of the map is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> StateStore for Bounded<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut map = self.lock();
        let known = map.get(key).copied();
        let (outcome, until) = decide(known)?;
        if known.is_some() || map.len() < MOST {
            map.insert(key.clone(), until);
        }
        Ok(outcome)
    }
}

impl<K: Clone + Eq + Hash> ShrinkableKeyedStateStore<K> for Bounded<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        self.lock().retain(|_, until| *until >= drop_below);
    }

    fn shrink_to_fit(&self) {
        let mut map = self.lock();
        let room = (2 * map.len()).max(FEW);
        map.shrink_to(room);
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limiter<K: Clone + Eq + Hash>(
        burst: u32,
        every: Duration,
    ) -> (Limiter<K, FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let rate = Rate { burst: NonZeroU32::new(burst).unwrap(), every };
        (Limiter::with_clock(rate, clock.clone()), clock)
    }

    #[test]
    fn so_many_at_once_then_one_at_a_time_and_each_for_itself() {
        let (limiter, clock) = limiter(3, SECOND);
        let answers = || [0; 4].map(|_| limiter.admits(&"a").is_ok());
        assert_eq!(answers(), [true, true, true, false]);
        assert_eq!(limiter.admits(&"b"), Ok(()));
        clock.advance(SECOND * 3 / 4);
        assert_eq!(answers(), [false; 4], "who is refused uses up nothing");
        assert_eq!(limiter.admits(&"a"), Err(SECOND / 4), "and is told how long to wait");
        clock.advance(SECOND / 4);
        assert_eq!(answers(), [true, false, false, false]);
        clock.advance(SECOND * 5 / 2);
        assert_eq!(answers(), [true, true, false, false]);
        clock.advance(99 * SECOND);
        assert_eq!(answers(), [true, true, true, false]);
    }

    #[test]
    fn whoever_has_used_up_nothing_is_forgotten() {
        let (limiter, clock) = limiter(2, SECOND);
        for key in 0..100_000_u32 {
            assert_eq!(limiter.admits(&key), Ok(()));
        }
        assert_eq!(limiter.admits(&7), Ok(()));
        clock.advance(SECOND * 5 / 2);
        limiter.tidy();
        assert_eq!(limiter.inner.len(), 1);
        clock.advance(10 * SECOND);
        limiter.tidy();
        assert!(limiter.inner.is_empty());
        assert!(limiter.inner.into_state_store().lock().capacity() <= 2 * FEW);
    }

    #[test]
    fn there_is_a_bound_to_how_many_are_remembered() {
        let (limiter, clock) = limiter(1, SECOND);
        for key in 0..=MOST {
            assert_eq!(limiter.admits(&key), Ok(()));
        }
        assert_eq!(limiter.inner.len(), MOST);
        assert_eq!(limiter.admits(&1), Err(SECOND), "whoever is known is limited as ever");
        clock.advance(SECOND);
        assert_eq!(limiter.admits(&1), Ok(()));
    }

    proptest! {
        /// In any time, no more than the burst and what has come in again.
        #[test]
        fn never_more_than_was_agreed(burst in 1..20_u32, pauses in proptest::collection::vec(0..500_u64, 1..200)) {
            let every = Duration::from_millis(100);
            let (limiter, clock) = limiter(burst, every);
            let (mut passed, mut admitted) = (0, 0);
            for pause in pauses {
                clock.advance(Duration::from_millis(pause));
                passed += pause;
                admitted += u64::from(limiter.admits(&()).is_ok());
                limiter.tidy();
                prop_assert!(admitted <= u64::from(burst) + passed / 100);
            }
        }
    }
}
