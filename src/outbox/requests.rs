//! Owns what became of the requests that a client may send again once it has resumed its session.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Begun, Outcome};

/// So many requests are remembered.
const MOST: usize = 1024;

/// The requests of one session.
#[derive(Debug, Default)]
pub(super) struct Requests {
    known: HashMap<Uuid, State>,
    /// Those that were acknowledged, the oldest first.
    acknowledged: VecDeque<(Instant, Uuid)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has no answer yet; `asked` over the connection that there is now.
    UnderWay {
        asked: bool,
    },
    Acknowledged,
}

impl Requests {
    pub(super) fn begin(&mut self, request: Uuid) -> Begun {
        match self.known.insert(request, State::UnderWay { asked: true }) {
            None => Begun::New,
            Some(State::UnderWay { .. }) => Begun::UnderWay,
            Some(State::Acknowledged) => {
                self.known.insert(request, State::Acknowledged);
                Begun::Acknowledged
            }
        }
    }

    /// There is an answer. Returns whether the client waits for it; what failed may be tried anew.
    pub(super) fn answered(&mut self, request: Uuid, outcome: Outcome) -> bool {
        let asked = self.known.remove(&request) == Some(State::UnderWay { asked: true });
        if outcome == Outcome::Handed {
            self.known.insert(request, State::Acknowledged);
            self.acknowledged.push_back((Instant::now(), request));
            if self.acknowledged.len() > MOST {
                self.forget_oldest();
            }
        }
        asked
    }

    /// The client will ask again for what it has heard no answer to.
    pub(super) fn disconnected(&mut self) {
        for state in self.known.values_mut() {
            if let State::UnderWay { asked } = state {
                *asked = false;
            }
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, request)) = self.acknowledged.pop_front()
            && self.known.get(&request) == Some(&State::Acknowledged)
        {
            self.known.remove(&request);
        }
    }

    /// Forgets what was acknowledged longer ago than `window`: the client has heard of it, or is gone.
    pub(super) fn forget(&mut self, now: Instant, window: Duration) {
        while self.acknowledged.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= window) {
            self.forget_oldest();
        }
        if self.acknowledged.is_empty() && self.known.len() * 4 < self.known.capacity() {
            self.acknowledged.shrink_to_fit();
            self.known.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_u128(1);

    #[test]
    fn a_request_is_published_once_and_answered_once_for_each_time_it_is_asked() {
        let mut requests = Requests::default();
        assert_eq!(requests.begin(ID), Begun::New);
        requests.disconnected();
        assert_eq!(requests.begin(ID), Begun::UnderWay);
        assert!(requests.answered(ID, Outcome::Handed), "the client waits for it");
        assert_eq!(requests.begin(ID), Begun::Acknowledged);
        assert_eq!(requests.begin(ID), Begun::Acknowledged);
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_remembered_and_a_failure_is_tried_anew() {
        let mut requests = Requests::default();
        requests.begin(ID);
        requests.disconnected();
        assert!(!requests.answered(ID, Outcome::Handed));
        assert_eq!(requests.begin(ID), Begun::Acknowledged);
        let other = Uuid::from_u128(2);
        requests.begin(other);
        assert!(requests.answered(other, Outcome::Unreachable));
        assert_eq!(requests.begin(other), Begun::New);
    }

    #[test]
    fn there_are_bounds_in_number_and_time() {
        let mut requests = Requests::default();
        for id in 0..2 * MOST as u128 {
            requests.begin(Uuid::from_u128(id));
            requests.answered(Uuid::from_u128(id), Outcome::Handed);
        }
        assert_eq!(requests.known.len(), MOST);
        let window = Duration::from_secs(30);
        requests.forget(Instant::now() + window, window);
        assert_eq!((requests.known.len(), requests.acknowledged.len()), (0, 0));
    }
}
