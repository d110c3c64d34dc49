//! Owns what became of the requests that a client may send again once it has resumed its session.

use std::collections::hash_map::Entry;
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
    /// Those of a client that asks for nothing twice, and how often it waits for an answer: it may give two one id.
    plain: HashMap<Uuid, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has no answer yet; `asked` so often over the connection that there is now.
    UnderWay {
        asked: u32,
    },
    Acknowledged,
}

impl Requests {
    pub(super) fn begin(&mut self, request: Uuid) -> Begun {
        match self.known.entry(request) {
            Entry::Vacant(place) => {
                place.insert(State::UnderWay { asked: 1 });
                Begun::New
            }
            Entry::Occupied(mut place) => match place.get_mut() {
                State::UnderWay { asked } => {
                    *asked += 1;
                    Begun::UnderWay
                }
                State::Acknowledged => Begun::Acknowledged,
            },
        }
    }

    /// The same for a client that can't resume: each time is a new request, with an answer of its own.
    pub(super) fn begin_plain(&mut self, request: Uuid) {
        *self.plain.entry(request).or_default() += 1;
    }

    /// There is an answer. Returns how often the client waits for it; what failed may be tried anew.
    pub(super) fn answered(&mut self, request: Uuid, outcome: Outcome) -> usize {
        if let Some(waits) = self.plain.get_mut(&request) {
            *waits -= 1;
            if *waits == 0 {
                self.plain.remove(&request);
            }
            return 1;
        }
        let asked = match self.known.remove(&request) {
            Some(State::UnderWay { asked }) => asked,
            _ => 0,
        };
        if outcome == Outcome::Handed {
            self.known.insert(request, State::Acknowledged);
            self.acknowledged.push_back((Instant::now(), request));
            if self.acknowledged.len() > MOST {
                self.forget_oldest();
            }
        }
        asked as usize
    }

    /// The client will ask again for what it has heard no answer to.
    pub(super) fn disconnected(&mut self) {
        self.plain = HashMap::new();
        for state in self.known.values_mut() {
            if let State::UnderWay { asked } = state {
                *asked = 0;
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

    /// Forgets what was acknowledged longer ago than `window`: the client has heard of it, or is gone. Returns whether
    /// nothing is left, and nobody waits for an answer.
    pub(super) fn forget(&mut self, now: Instant, window: Duration) -> bool {
        while self.acknowledged.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= window) {
            self.forget_oldest();
        }
        if self.acknowledged.is_empty() && self.known.len() * 4 < self.known.capacity() {
            self.acknowledged.shrink_to_fit();
            self.known.shrink_to_fit();
        }
        self.known.is_empty() && self.plain.is_empty()
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
        assert_eq!(requests.begin(ID), Begun::UnderWay);
        assert_eq!(requests.answered(ID, Outcome::Handed), 2, "over the connection that there is now");
        assert_eq!(requests.begin(ID), Begun::Acknowledged);
        assert_eq!(requests.begin(ID), Begun::Acknowledged);
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_remembered_and_a_failure_is_tried_anew() {
        let mut requests = Requests::default();
        requests.begin(ID);
        requests.disconnected();
        assert_eq!(requests.answered(ID, Outcome::Handed), 0);
        assert_eq!(requests.begin(ID), Begun::Acknowledged);
        let other = Uuid::from_u128(2);
        requests.begin(other);
        assert_eq!(requests.answered(other, Outcome::Unreachable), 1);
        assert_eq!(requests.begin(other), Begun::New);
    }

    #[test]
    fn a_client_that_asks_for_nothing_twice_may_give_two_requests_one_id() {
        let mut requests = Requests::default();
        requests.begin_plain(ID);
        requests.begin_plain(ID);
        assert_eq!(requests.answered(ID, Outcome::Handed), 1);
        requests.begin_plain(ID);
        assert_eq!(requests.answered(ID, Outcome::Handed), 1);
        assert_eq!(requests.answered(ID, Outcome::NotConnected), 1);
        requests.begin_plain(ID);
        requests.disconnected();
        assert_eq!(requests.answered(ID, Outcome::Handed), 0, "somebody else has the session now");
        requests.begin_plain(ID);
        let later = Instant::now() + Duration::from_secs(60);
        assert!(!requests.forget(later, Duration::from_secs(30)), "somebody waits for an answer");
        assert_eq!(requests.answered(ID, Outcome::Handed), 1);
        assert!(requests.forget(later, Duration::from_secs(30)));
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
        assert!(requests.forget(Instant::now() + window, window));
        assert_eq!((requests.known.len(), requests.acknowledged.len()), (0, 0));
    }
}
