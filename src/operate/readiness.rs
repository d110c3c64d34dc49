//! Owns what the log says of readiness: that load balancers are to leave, why, and for how long they were away.

use std::time::Instant;

use tracing::{info, warn};

use super::health::Report;
use super::repeats::Repeats;

/// What was said of it.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    /// It was ready once: one that starts says by its links what it waits for.
    was_ever: bool,
    /// Since when it is not, and whether the log says so.
    away: Option<(Instant, bool)>,
    repeats: Repeats,
}

impl Readiness {
    /// Takes a report of a node that serves at `now`, and says what is new: a line for each change, few for one that flaps.
    pub(super) fn note(&mut self, now: Instant, report: &Report) {
        if let Some(line) = self.news(now, report) {
            match report.is_ready() {
                true => info!("{line}"),
                false => warn!("{line}"),
            }
        }
    }

    fn news(&mut self, now: Instant, report: &Report) -> Option<String> {
        if report.is_ready() {
            self.was_ever = true;
            let (since, _) = self.away.take().filter(|(_, is_said)| *is_said)?;
            let away = now.saturating_duration_since(since).as_secs_f64();
            return Some(format!("ready again, after {away:.1} s"));
        }
        if !self.was_ever || self.away.is_some() {
            return None;
        }
        let (names, reasons): (Vec<_>, Vec<_>) = report.failures().unzip();
        // Reasons have numbers in them that differ each time.
        let again = self.repeats.note(now, &names.join(" "));
        self.away = Some((now, again.is_some()));
        Some(format!("not ready: {}{}", reasons.join("; "), again?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_goes_unready_says_why_and_for_how_long() {
        let (mut readiness, start) = (Readiness::default(), Instant::now());
        let (ready, not) = (Report::with_failure(None), Report::with_failure(Some(("broker", "no usable Redis"))));
        let mut at = |seconds, report: &Report| readiness.news(start + Duration::from_secs(seconds), report);
        assert_eq!(at(0, &not), None, "it has not begun");
        assert_eq!(at(1, &ready), None);
        assert_eq!(at(2, &not).as_deref(), Some("not ready: no usable Redis"));
        assert_eq!(at(3, &not), None);
        assert_eq!(at(9, &ready).as_deref(), Some("ready again, after 7.0 s"));
        assert_eq!((at(10, &not), at(11, &ready)), (None, None), "one that flaps is counted");
        assert_eq!(at(62, &not).as_deref(), Some("not ready: no usable Redis (2 times in the last 1m)"));
        assert_eq!(at(63, &ready).as_deref(), Some("ready again, after 1.0 s"));
    }
}
