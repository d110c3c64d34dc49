//! Owns how many channels a link asks for at a time. Pure: no sockets, no clock.
//!
//! A server serves its clients in turn, and a SUBSCRIBE of a thousand channels takes it some milliseconds. When
//! hundreds of gateways come back at once, each of them waits for the turns of all the others; so do their signs of
//! life. So each asks for less while answers are slow, as TCP does while a road is full.

use std::time::Duration;

const LEAST: usize = 64;
const STEP: usize = 64;
const FIRST: usize = 128;
const MOST: usize = 1024;

/// The pace of one link.
#[derive(Debug)]
pub struct Pace {
    at_once: usize,
    /// What may be asked for grows by a step when an answer takes less than the first, and halves when it takes more
    /// than the second (RFC 5681 has it for TCP).
    quick: Duration,
    slow: Duration,
}

impl Pace {
    /// For a server that is given up when it is silent for `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { at_once: FIRST, quick: limit / 8, slow: limit / 4 }
    }

    /// How many channels may be asked for now; nothing before half of those under way are confirmed, so that commands
    /// stay few.
    pub fn room(&self, unconfirmed: usize) -> usize {
        let room = self.at_once.saturating_sub(unconfirmed);
        if 2 * room >= self.at_once { room } else { 0 }
    }

    /// All that one command asked for was confirmed, and that took so long.
    pub fn confirmed(&mut self, took: Duration) {
        if took < self.quick {
            self.at_once = (self.at_once + STEP).min(MOST);
        } else if took > self.slow {
            self.at_once = (self.at_once / 2).max(LEAST);
        }
    }

    /// The server did none of it, and will be asked again before long.
    pub fn put_off(&mut self) {
        self.at_once = LEAST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    /// What a channel costs a server, with its share of the answer.
    const CHANNEL: Duration = Duration::from_micros(5);

    /// So many gateways that each have all under way that they may, one turn of the server after the other: how long
    /// each turn took, and how many channels one of them has by then.
    fn turns(gateways: usize, distance: Duration, turns: usize) -> (Vec<Duration>, usize) {
        let mut paces: Vec<_> = (0..gateways).map(|_| Pace::new(LIMIT)).collect();
        let mut channels = 0;
        let mut took = Vec::new();
        for _ in 0..turns {
            channels += paces[0].room(0);
            let asked: usize = paces.iter().map(|pace| pace.room(0)).sum();
            took.push(CHANNEL * u32::try_from(asked).unwrap());
            let answered = distance + *took.last().unwrap();
            // Two commands are under way at a time.
            paces.iter_mut().for_each(|pace| (0..2).for_each(|_| pace.confirmed(answered)));
        }
        (took, channels)
    }

    #[test]
    fn however_many_come_back_nobody_waits_for_as_long_as_a_heartbeat_may_take() {
        for gateways in [1, 10, 100, 300, 1000, 2000] {
            let (took, _) = turns(gateways, Duration::from_millis(1), 100);
            let longest = *took.iter().max().unwrap();
            assert!(longest < LIMIT * 2 / 3 || gateways > 1000, "{gateways}: {longest:?}");
            let settled = *took[4..].iter().max().unwrap();
            assert!(settled < LIMIT / 3 || gateways > 1000 && settled < LIMIT * 2 / 3, "{gateways}: {settled:?}");
        }
    }

    #[test]
    fn commands_stay_few_and_what_is_under_way_is_bounded() {
        let mut pace = Pace::new(LIMIT);
        assert_eq!([0, 64, 65, 128, 1000].map(|unconfirmed| pace.room(unconfirmed)), [128, 64, 0, 0, 0]);
        (0..100).for_each(|_| pace.confirmed(Duration::ZERO));
        assert_eq!(pace.room(0), MOST);
        (0..100).for_each(|_| pace.confirmed(LIMIT));
        assert_eq!(pace.room(0), LEAST);
    }

    #[test]
    fn one_alone_is_as_quick_as_the_server_also_from_far_away() {
        for distance in [0, 20, 100] {
            let (_, channels) = turns(1, Duration::from_millis(distance), 16);
            assert!(channels >= 10_000, "{distance}: {channels}");
        }
    }
}
