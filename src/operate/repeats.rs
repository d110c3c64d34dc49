//! Owns what the log says of something that happens again and again: one line at first, then a count.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

/// How long a reason is only counted after its first line, its second, and every later one.
const INTERVALS: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];
/// What was quiet for this long is news when it comes back.
const QUIET: Duration = Duration::from_secs(300);
/// Reasons that are told apart; more of them within [`QUIET`] are counted as one.
const MOST: usize = 64;

/// Decides which occurrences get a line. However often things happen and however many reasons there are, the
/// number of lines is bounded.
///
/// ```
/// # use std::time::{Duration, Instant};
/// # let (mut repeats, now) = (texto::operate::repeats::Repeats::default(), Instant::now());
/// assert_eq!(repeats.note(now, "refused").map(|again| format!("link lost{again}")).as_deref(), Some("link lost"));
/// assert_eq!(repeats.note(now + Duration::from_secs(1), "refused"), None);
/// let again = repeats.note(now + Duration::from_secs(60), "refused");
/// assert_eq!(again.map(|again| format!("link lost{again}")).as_deref(), Some("link lost (2 times in the last 1m)"));
/// ```
#[derive(Debug, Default)]
pub struct Repeats {
    reasons: HashMap<String, Entry>,
    /// What found no place among the reasons.
    others: Option<Entry>,
}

#[derive(Debug)]
struct Entry {
    said: Instant,
    seen: Instant,
    /// Occurrences since it was said.
    unsaid: u64,
    /// The place in [`INTERVALS`] of the silence that runs now.
    interval: usize,
}

/// What to add to the line: nothing the first time, then how often it happened since the last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    times: u64,
    since: Option<Duration>,
}

impl Again {
    const FIRST: Self = Self { times: 1, since: None };
}

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(since) = self.since else { return Ok(()) };
        let times = if self.times == 1 { "once".to_owned() } else { format!("{} times", self.times) };
        write!(f, " ({times} in the last {})", humantime::format_duration(Duration::from_secs(since.as_secs())))
    }
}

impl Repeats {
    /// `reason` occurred at `now`: what the line about it ends with, or nothing if there is to be no line.
    pub fn note(&mut self, now: Instant, reason: &str) -> Option<Again> {
        if let Some(entry) = self.reasons.get_mut(reason) {
            return entry.again(now);
        }
        if self.reasons.len() >= MOST {
            // What is owed to those that are forgotten is said with them no more: they were quiet for long.
            self.reasons.retain(|_, entry| now.saturating_duration_since(entry.seen) < QUIET);
        }
        if self.reasons.len() >= MOST {
            return match &mut self.others {
                Some(entry) => entry.again(now),
                none => {
                    *none = Some(Entry::new(now));
                    Some(Again::FIRST)
                }
            };
        }
        self.reasons.insert(reason.to_owned(), Entry::new(now));
        Some(Again::FIRST)
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self { said: now, seen: now, unsaid: 0, interval: 0 }
    }

    fn again(&mut self, now: Instant) -> Option<Again> {
        let news = now.saturating_duration_since(self.seen) >= QUIET;
        self.seen = now;
        self.unsaid += 1;
        let since = now.saturating_duration_since(self.said);
        if !news && since < INTERVALS[self.interval] {
            return None;
        }
        self.interval = if news { 0 } else { (self.interval + 1).min(INTERVALS.len() - 1) };
        self.said = now;
        Some(Again { times: std::mem::take(&mut self.unsaid), since: Some(since) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The lines about something that happens every `pace` for `length`.
    fn lines(pace: Duration, length: Duration) -> Vec<String> {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let mut at = Duration::ZERO;
        let mut lines = Vec::new();
        while at <= length {
            lines.extend(repeats.note(start + at, "a reason").map(|again| format!("lost{again}")));
            at += pace;
        }
        lines
    }

    #[test]
    fn the_same_again_is_counted_and_said_ever_more_seldom() {
        let day = 24 * 3600 * SECOND;
        let lines = lines(SECOND, day);
        let expected = ["lost", "lost (60 times in the last 1m)", "lost (600 times in the last 10m)"];
        assert_eq!(lines[..3], expected);
        assert_eq!(lines[3], "lost (3600 times in the last 1h)");
        assert!(lines.len() <= 3 + 24, "{} lines a day", lines.len());
    }

    #[test]
    fn what_was_quiet_is_news_and_nothing_stays_uncounted() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let mut note = |at| repeats.note(start + at * SECOND, "a reason").map(|again| again.to_string());
        assert_eq!(note(0).as_deref(), Some(""));
        assert_eq!(note(1), None);
        assert_eq!(note(2), None);
        assert_eq!(note(602).as_deref(), Some(" (3 times in the last 10m 2s)"));
        // It starts over: the next line comes after a minute.
        assert_eq!(note(603), None);
        assert_eq!(note(662).as_deref(), Some(" (2 times in the last 1m)"));
        assert_eq!(lines(400 * SECOND, 1200 * SECOND)[1..], ["lost (once in the last 6m 40s)"; 3]);
    }

    #[test]
    fn reasons_are_told_apart_up_to_a_bound() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let said: usize = (0..10_000).filter_map(|n| repeats.note(start, &format!("port {n}"))).count();
        assert_eq!(said, MOST + 1);
        assert!(repeats.note(start, "port 3").is_none());
        let later = repeats.note(start + 60 * SECOND, "one more").unwrap();
        assert_eq!(later.to_string(), format!(" ({} times in the last 1m)", 10_000 - MOST));
        // Once the first ones are quiet, there is room again.
        assert_eq!(repeats.note(start + QUIET, "another").unwrap().to_string(), "");
        assert!(repeats.reasons.len() <= MOST);
    }
}
