//! Owns how often somebody may do something: so many times at once, and so many in each second after that.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many are remembered before those that are quits are looked for.
const FEW: usize = 1024;
/// So many at the most, that have asked for something and are not quits: whoever comes beyond is not limited.
const MOST: usize = 262_144;

/// A limit for each `K`. The generic cell rate algorithm (ITU-T I.371, annex A): each has one time, until which it has
/// used up what it may, and no counter that somebody would have to fill again.
#[derive(Debug)]
pub struct Limiter<K> {
    every: Duration,
    burst: u32,
    inner: Mutex<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K> {
    quits: HashMap<K, Instant>,
    look_at: usize,
}

impl<K: Eq + Hash> Limiter<K> {
    /// `burst` times at once, and one time more after each `every`.
    pub fn new(burst: u32, every: Duration) -> Self {
        Self { every, burst, inner: Mutex::new(Inner { quits: HashMap::new(), look_at: FEW }) }
    }

    /// Whether `key` may do it now, and then it has. Whoever may not has used up nothing.
    pub fn admits(&self, now: Instant, key: K) -> bool {
        // Nothing below can panic while it holds the lock.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { quits, look_at } = &mut *inner;
        if quits.len() >= *look_at {
            quits.retain(|_, at| *at > now);
            *look_at = (quits.len() * 2).clamp(FEW, MOST);
            quits.shrink_to(*look_at);
        }
        let before = quits.get(&key).copied().unwrap_or(now).max(now);
        if before.saturating_duration_since(now) > self.every * (self.burst - 1) {
            return false;
        }
        if quits.len() < MOST || quits.contains_key(&key) {
            quits.insert(key, before + self.every);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn so_many_at_once_then_one_at_a_time_and_each_for_itself() {
        let (limiter, start) = (Limiter::new(3, SECOND), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let answers = |ms| [0; 4].map(|_| limiter.admits(at(ms), "a"));
        assert_eq!(answers(0), [true, true, true, false]);
        assert!(limiter.admits(at(0), "b"));
        assert_eq!(answers(999), [false; 4], "who is refused uses up nothing");
        assert_eq!(answers(1000), [true, false, false, false]);
        assert_eq!(answers(3500), [true, true, false, false]);
        assert_eq!(answers(99_000), [true, true, true, false]);
    }

    #[test]
    fn whoever_is_quits_is_forgotten() {
        let (limiter, start) = (Limiter::new(2, SECOND), Instant::now());
        for key in 0..100_000_u32 {
            assert!(limiter.admits(start + SECOND * (key / 500), key));
        }
        assert!(limiter.inner.lock().unwrap().quits.len() <= 2 * FEW);
    }

    #[test]
    fn there_is_a_bound_to_how_many_are_remembered() {
        let (limiter, now) = (Limiter::new(1, SECOND), Instant::now());
        for key in 0..=MOST {
            assert!(limiter.admits(now, key));
        }
        assert_eq!(limiter.inner.lock().unwrap().quits.len(), MOST);
        assert!(!limiter.admits(now, 1));
        assert!(limiter.admits(now + SECOND, 1));
    }

    proptest! {
        /// In any time, no more than the burst and what has come in again.
        #[test]
        fn never_more_than_was_agreed(burst in 1..20_u32, pauses in proptest::collection::vec(0..500_u64, 1..200)) {
            let every = Duration::from_millis(100);
            let (limiter, start) = (Limiter::new(burst, every), Instant::now());
            let (mut now, mut admitted) = (start, 0);
            for pause in pauses {
                now += Duration::from_millis(pause);
                admitted += u32::from(limiter.admits(now, ()));
                let earned = now.duration_since(start).as_millis() / every.as_millis();
                prop_assert!(u128::from(admitted) <= u128::from(burst) + earned);
            }
        }
    }
}
