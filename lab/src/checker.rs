//! Owns the judgement whether the promises were kept. Pure: it is fed with what clients saw.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::client::Answer;

/// Broken promises that are kept in words.
const EXAMPLES: usize = 5;
/// A send may cross the close of its session on the way. One older than this was there before.
pub const CROSSING: Duration = Duration::from_secs(1);

/// What a client saw or did. Times count from one common start.
#[derive(Clone, Debug)]
pub enum Event {
    /// It sent message `number` of its pair. Numbers of a pair rise.
    Sent,
    /// Message `number` was answered.
    Answered(Answer),
    /// The session ended (1012) while message `number` was unanswered.
    CutShort,
    /// Message `number` arrived.
    Received,
    /// The gateway ended its session, with this code.
    Dropped(u16),
    /// The gateway asked it to go elsewhere (1012), which it did.
    Moved,
}

/// The figures of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Messages sent.
    pub sent: u64,
    /// Messages answered with `ack`.
    pub acked: u64,
    /// Messages answered with `error`, by code.
    pub errors: BTreeMap<String, u64>,
    /// Acknowledged, but never received.
    pub acked_lost: u64,
    /// Received more than once.
    pub received_twice: u64,
    /// Acknowledged, and received after a later acknowledged one of the same sender to the same receiver.
    pub out_of_order: u64,
    /// Not answered within the deadline.
    pub unanswered: u64,
    /// Answered more than once.
    pub answered_twice: u64,
    /// Sessions that the gateway ended, but for those in `moved`.
    pub dropped_sessions: u64,
    /// The same, by close code.
    pub closes: BTreeMap<u16, u64>,
    /// Sessions that were asked to go elsewhere (1012) where that is part of the play.
    pub moved: u64,
    /// The longest time in which nobody received anything, in milliseconds.
    pub longest_silence_ms: f64,
    /// The longest time from a send to its answer, in milliseconds.
    pub longest_answer_ms: f64,
    /// Half of the answers came within this, in milliseconds.
    pub median_answer_ms: f64,
    /// The first few messages that came out of order or twice, in words.
    pub examples: Vec<String>,
}

impl Report {
    /// The promises that were broken, whatever happens to Redis.
    pub fn broken(&self) -> Vec<String> {
        let counts = [
            ("acknowledged but never received", self.acked_lost),
            ("received twice", self.received_twice),
            ("received out of order", self.out_of_order),
            ("not answered within the deadline", self.unanswered),
            ("answered twice", self.answered_twice),
            ("sessions dropped", self.dropped_sessions),
        ];
        counts.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect()
    }

    /// Messages answered with an error, of whatever code.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

#[derive(Debug, Default)]
struct Message {
    sent: Option<Duration>,
    answered: Option<(Duration, Answer)>,
    cut_short: bool,
    received: u32,
}

impl Message {
    fn is_acked(&self) -> bool {
        matches!(self.answered, Some((_, Answer::Ack)))
    }
}

#[derive(Debug, Default)]
struct Pair {
    messages: Vec<Message>,
    /// Numbers in the order in which they first arrived.
    arrivals: Vec<(Duration, usize)>,
}

impl Pair {
    /// What came after a later one: among the acknowledged, for what was answered with an error stands nowhere.
    /// Each with when it came and what had come before it.
    fn late(&self) -> impl Iterator<Item = (usize, Duration, usize)> {
        let mut newest = None;
        self.arrivals.iter().filter(|(_, number)| self.messages[*number].is_acked()).filter_map(move |(at, number)| {
            let before = newest.filter(|newest| newest > number);
            newest = newest.max(Some(*number));
            Some((*number, *at, before?))
        })
    }
}

/// Judges a run.
#[derive(Debug)]
pub struct Checker {
    deadline: Duration,
    pairs: BTreeMap<u32, Pair>,
    receipts: Vec<Duration>,
    report: Report,
    failed: u64,
    /// Messages without an answer.
    outstanding: usize,
}

impl Checker {
    /// Every send must be answered within `deadline`.
    pub fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            pairs: BTreeMap::new(),
            receipts: Vec::new(),
            report: Report::default(),
            failed: 0,
            outstanding: 0,
        }
    }

    /// Takes in what happened at `at` to message `number` from one sender to one receiver (`pair`).
    pub fn feed(&mut self, at: Duration, pair: u32, number: usize, event: &Event) {
        match event {
            Event::Dropped(code) => {
                self.report.dropped_sessions += 1;
                *self.report.closes.entry(*code).or_default() += 1;
                return;
            }
            Event::Moved => {
                self.report.moved += 1;
                return;
            }
            _ => {}
        }
        let report = &mut self.report;
        let slot = self.pairs.entry(pair).or_default();
        if slot.messages.len() <= number {
            slot.messages.resize_with(number + 1, Message::default);
        }
        let message = &mut slot.messages[number];
        match event {
            Event::Sent => {
                message.sent = Some(at);
                report.sent += 1;
                self.outstanding += 1;
            }
            Event::Answered(_) if message.answered.is_some() => report.answered_twice += 1,
            Event::Answered(answer) => {
                message.answered = Some((at, answer.clone()));
                self.outstanding -= 1;
                match answer {
                    Answer::Ack => {
                        report.acked += 1;
                        report.acked_lost += u64::from(message.received == 0);
                    }
                    Answer::Error(code) => {
                        self.failed += 1;
                        *report.errors.entry(code.clone()).or_default() += 1;
                    }
                }
            }
            Event::CutShort => {
                message.cut_short = message.sent.is_some_and(|sent| at.saturating_sub(sent) < CROSSING);
                self.outstanding -= 1;
            }
            Event::Received => {
                self.receipts.push(at);
                message.received += 1;
                if message.received == 1 {
                    report.acked_lost -= u64::from(message.is_acked());
                    slot.arrivals.push((at, number));
                } else {
                    report.received_twice += 1;
                    if report.examples.len() < EXAMPLES {
                        report.examples.push(format!(
                            "pair {pair}: {number} came again at {at:?} (sent {:?}, answered {:?}, {} times)",
                            message.sent, message.answered, message.received
                        ));
                    }
                }
            }
            Event::Dropped(_) | Event::Moved => {}
        }
    }

    /// The counts so far: sent, acknowledged, failed, received.
    pub fn totals(&self) -> (u64, u64, u64, u64) {
        (self.report.sent, self.report.acked, self.failed, self.receipts.len() as u64)
    }

    /// Messages without an answer.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Messages that are acknowledged and have not arrived.
    pub fn missing(&self) -> u64 {
        self.report.acked_lost
    }

    /// When something arrived last.
    pub fn last_received(&self) -> Option<Duration> {
        self.receipts.last().copied()
    }

    /// The acknowledged messages that have not arrived: their pairs and numbers.
    pub fn lost(&self) -> impl Iterator<Item = (u32, usize)> {
        self.pairs.iter().flat_map(|(pair, slot)| {
            let missing = |(number, message): (usize, &Message)| {
                (message.is_acked() && message.received == 0).then_some((*pair, number))
            };
            slot.messages.iter().enumerate().filter_map(missing)
        })
    }

    /// The messages that were answered with an error: their pairs and numbers, when they were sent and answered.
    pub fn refused(&self) -> impl Iterator<Item = (u32, usize, Duration, Duration)> {
        self.pairs.iter().flat_map(|(pair, slot)| {
            let refused = |(number, message): (usize, &Message)| match &message.answered {
                Some((at, Answer::Error(_))) => Some((*pair, number, message.sent?, *at)),
                _ => None,
            };
            slot.messages.iter().enumerate().filter_map(refused)
        })
    }

    /// The longest time between `from` and `to` in which nobody received anything.
    pub fn silence(&self, from: Duration, to: Duration) -> Duration {
        let mut times: Vec<_> = self.receipts.iter().copied().filter(|at| *at >= from && *at <= to).collect();
        times.extend([from, to]);
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// The judgement at `now`, over silence between `from` and `to`.
    pub fn report(&self, now: Duration, from: Duration, to: Duration) -> Report {
        let mut report = self.report.clone();
        let mut times = Vec::new();
        for (pair, slot) in &self.pairs {
            for message in &slot.messages {
                let Some(sent) = message.sent else { continue };
                let took = match &message.answered {
                    Some((at, _)) => {
                        times.push(at.saturating_sub(sent));
                        at.saturating_sub(sent)
                    }
                    None if message.cut_short => continue,
                    None => now.saturating_sub(sent),
                };
                report.unanswered += u64::from(took > self.deadline);
            }
            for (number, at, before) in slot.late() {
                report.out_of_order += 1;
                if report.examples.len() < EXAMPLES {
                    let Message { sent, answered, .. } = &slot.messages[number];
                    report.examples.push(format!(
                        "pair {pair}: {number} came at {at:?}, after {before} (sent {sent:?}, answered {answered:?})"
                    ));
                }
            }
        }
        times.sort_unstable();
        let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        report.longest_answer_ms = ms(times.last());
        report.median_answer_ms = ms(times.get(times.len() / 2));
        report.longest_silence_ms = self.silence(from, to).as_secs_f64() * 1000.0;
        report
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Ten messages, one every 10 ms, each answered and received 1 ms later, but for what `spoil` does.
    fn run(spoil: impl Fn(usize, &Event) -> Vec<(usize, Event)>) -> Report {
        let mut checker = Checker::new(100 * MS);
        for number in 0..10 {
            let at = 10 * MS * u32::try_from(number).unwrap();
            checker.feed(at, 0, number, &Event::Sent);
            for event in [Event::Received, Event::Answered(Answer::Ack)] {
                for (number, event) in spoil(number, &event) {
                    checker.feed(at + MS, 0, number, &event);
                }
            }
        }
        checker.report(Duration::from_secs(1), Duration::ZERO, 100 * MS)
    }

    fn keep(number: usize, event: &Event) -> Vec<(usize, Event)> {
        vec![(number, event.clone())]
    }

    #[test]
    fn kept_promises_are_no_complaint() {
        let report = run(keep);
        assert_eq!(report.broken(), Vec::<String>::new());
        assert_eq!((report.sent, report.acked), (10, 10));
        assert!((report.longest_silence_ms - 10.0).abs() < 0.01, "{report:?}");
    }

    #[test]
    fn a_false_ack_is_caught() {
        let report = run(|number, event| match event {
            Event::Received if number == 4 => vec![],
            _ => keep(number, event),
        });
        assert_eq!(report.acked_lost, 1);
        assert!((report.longest_silence_ms - 20.0).abs() < 0.01, "{report:?}");
    }

    #[test]
    fn a_repeated_message_is_caught() {
        let report = run(|number, event| match event {
            Event::Received if number == 4 => vec![(4, event.clone()), (4, event.clone())],
            _ => keep(number, event),
        });
        assert_eq!((report.received_twice, report.out_of_order), (1, 0));
    }

    #[test]
    fn a_swapped_message_is_caught() {
        let report = run(|number, event| match (event, number) {
            (Event::Received, 4) => vec![],
            (Event::Received, 5) => vec![(5, event.clone()), (4, event.clone())],
            _ => keep(number, event),
        });
        assert_eq!((report.out_of_order, report.acked_lost, report.received_twice), (1, 0, 0));
    }

    #[test]
    fn a_missing_or_second_answer_is_caught() {
        let report = run(|number, event| match event {
            Event::Answered(_) if number == 4 => vec![],
            Event::Answered(_) if number == 5 => vec![(5, event.clone()), (5, event.clone())],
            _ => keep(number, event),
        });
        assert_eq!((report.unanswered, report.answered_twice), (1, 1));
    }

    #[test]
    fn a_late_answer_is_caught() {
        let mut checker = Checker::new(100 * MS);
        checker.feed(Duration::ZERO, 0, 0, &Event::Sent);
        checker.feed(101 * MS, 0, 0, &Event::Answered(Answer::Error("EBROKER".to_owned())));
        let report = checker.report(200 * MS, Duration::ZERO, 200 * MS);
        assert_eq!((report.unanswered, report.failed()), (1, 1));
    }

    /// An error means "not acknowledged", not "not shown": it has no place in the order, but is shown once.
    #[test]
    fn order_holds_among_the_acknowledged() {
        let refused = |spoilt: usize, again: usize| {
            run(move |number, event| match event {
                Event::Answered(_) if number == spoilt => {
                    vec![(number, Event::Answered(Answer::Error("EBROKER".to_owned())))]
                }
                Event::Received if number == 4 => vec![],
                Event::Received if number == 5 => vec![(5, event.clone()), (4, event.clone())],
                Event::Received if number == again => vec![(number, event.clone()), (4, event.clone())],
                _ => keep(number, event),
            })
        };
        for (spoilt, late) in [(3, 1), (4, 0), (5, 0)] {
            let report = refused(spoilt, 99);
            assert_eq!((report.out_of_order, report.acked_lost, report.received_twice), (late, 0, 0), "{spoilt}");
        }
        assert_eq!(refused(4, 7).received_twice, 1);
    }

    #[test]
    fn a_send_that_crosses_the_farewell_is_not_owed_an_answer() {
        for (age, unanswered) in [(CROSSING / 2, 0), (CROSSING * 2, 1)] {
            let mut checker = Checker::new(100 * MS);
            checker.feed(Duration::ZERO, 0, 0, &Event::Sent);
            checker.feed(age, 0, 0, &Event::CutShort);
            checker.feed(age, 0, 0, &Event::Moved);
            let report = checker.report(Duration::from_secs(9), Duration::ZERO, Duration::ZERO);
            assert_eq!((report.unanswered, report.moved, report.dropped_sessions), (unanswered, 1, 0), "{age:?}");
            assert_eq!(checker.outstanding(), 0);
        }
    }

    #[test]
    fn a_dropped_session_is_caught() {
        let mut checker = Checker::new(100 * MS);
        checker.feed(Duration::ZERO, 0, 0, &Event::Dropped(1013));
        assert_eq!(checker.report(MS, Duration::ZERO, MS).broken(), ["1 sessions dropped"]);
    }
}
