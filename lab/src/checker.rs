//! Owns the judgement whether the promises were kept. Pure: it is fed with what clients saw.

mod report;

use std::collections::BTreeMap;
use std::time::Duration;

pub use report::Report;

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
    /// The connection ended while message `number` was unanswered: it will be sent again when the session is resumed.
    Suspended,
    /// Message `number` was sent again, by another connection of the session.
    SentAgain,
    /// Message `number` is unanswered, and can't be sent again: the session is another one.
    GivenUp,
    /// Message `number` arrived.
    Received,
    /// The gateway ended its session, with this code.
    Dropped(u16),
    /// The gateway asked it to go elsewhere (1012), which it did.
    Moved,
}

/// What happened to a person: a client whose session outlives its connections.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    /// It came back, and was told that nothing is missing.
    Resumed,
    /// It came back under its id, and was told that messages may be missing: of what was sent to it until now.
    Told,
    /// It came back, and was somebody else.
    Changed,
    /// By its own wish it did nothing for so long, until now.
    Paused(Duration),
}

/// The number of what `sender` writes to `receiver`, each by its index.
pub fn pair(sender: usize, receiver: usize) -> u32 {
    u32::try_from(sender << 16 | receiver).unwrap_or(u32::MAX)
}

/// Sender and receiver of a pair.
fn parties(pair: u32) -> (usize, usize) {
    ((pair >> 16) as usize, (pair & 0xffff) as usize)
}

#[derive(Debug, Default)]
struct Message {
    sent: Option<Duration>,
    /// Since when an answer is due; sent again, that begins anew.
    asked: Option<Duration>,
    answered: Option<(Duration, Answer)>,
    /// No answer is due any more.
    cut_short: bool,
    received: u32,
    first_received: Option<Duration>,
}

impl Message {
    fn is_acked(&self) -> bool {
        matches!(self.answered, Some((_, Answer::Ack)))
    }

    /// Acknowledged and not received, or not yet.
    fn is_missing(&self) -> bool {
        self.is_acked() && self.received == 0
    }

    /// The same, and the receiver was not `told` so.
    fn is_lost(&self, told: Option<Duration>) -> bool {
        self.is_missing() && self.sent > told
    }
}

#[derive(Debug, Default)]
struct Pair {
    messages: Vec<Message>,
    /// Until when the receiver knows that something may be missing.
    told: Option<Duration>,
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
    /// When persons did nothing by their own wish: from, to.
    pauses: BTreeMap<usize, Vec<(Duration, Duration)>>,
    /// When each person's session went on.
    back: BTreeMap<usize, Vec<Duration>>,
    report: Report,
    failed: u64,
    /// Messages without an answer that is due.
    outstanding: usize,
}

impl Checker {
    /// Every send must be answered within `deadline`.
    pub fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            pairs: BTreeMap::new(),
            receipts: Vec::new(),
            pauses: BTreeMap::new(),
            back: BTreeMap::new(),
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
        let was_lost = message.is_lost(slot.told);
        match event {
            Event::Sent => {
                (message.sent, message.asked) = (Some(at), Some(at));
                report.sent += 1;
                self.outstanding += 1;
            }
            Event::SentAgain => message.asked = Some(at),
            Event::Suspended => {
                let is_late = message.asked.take().is_some_and(|asked| at.saturating_sub(asked) > self.deadline);
                report.unanswered += u64::from(is_late);
            }
            Event::Answered(_) if message.answered.is_some() => report.answered_twice += 1,
            Event::Answered(answer) => {
                message.answered = Some((at, answer.clone()));
                self.outstanding -= 1;
                match answer {
                    Answer::Ack => report.acked += 1,
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
            Event::GivenUp => {
                message.cut_short = true;
                report.given_up += 1;
                self.outstanding -= 1;
            }
            Event::Received => {
                self.receipts.push(at);
                message.received += 1;
                if message.received == 1 {
                    message.first_received = Some(at);
                    slot.arrivals.push((at, number));
                } else if message.first_received <= slot.told {
                    report.told_again += 1;
                } else {
                    report.received_twice += 1;
                    if report.examples.len() < EXAMPLES {
                        report.examples.push(format!(
                            "{}: {number} came again at {at:?} (sent {:?}, answered {:?}, {} times)",
                            named(pair),
                            message.sent,
                            message.answered,
                            message.received
                        ));
                    }
                }
            }
            Event::Dropped(_) | Event::Moved => {}
        }
        let is_lost = message.is_lost(slot.told);
        report.acked_lost = report.acked_lost + u64::from(is_lost) - u64::from(was_lost);
    }

    /// Takes in what happened at `at` to a person.
    pub fn feed_person(&mut self, at: Duration, person: usize, turn: Turn) {
        match turn {
            Turn::Resumed => {
                self.report.resumed += 1;
                self.back.entry(person).or_default().push(at);
            }
            Turn::Changed => self.report.id_changed += 1,
            Turn::Paused(time) => self.pauses.entry(person).or_default().push((at.saturating_sub(time), at)),
            Turn::Told => {
                self.report.told += 1;
                for (_, slot) in self.pairs.iter_mut().filter(|(pair, _)| parties(**pair).1 == person) {
                    let lost = |slot: &Pair| slot.messages.iter().filter(|message| message.is_lost(slot.told)).count();
                    let before = lost(slot);
                    slot.told = Some(at);
                    self.report.acked_lost -= (before - lost(slot)) as u64;
                }
            }
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
            let missing = |(number, message): (usize, &Message)| message.is_lost(slot.told).then_some((*pair, number));
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

    /// The longest time that an acknowledged message was on its way that arrived between `from` and `to`, but for the
    /// pauses of its sender and its receiver.
    pub fn longest_wait(&self, from: Duration, to: Duration) -> Duration {
        self.longest_waits(from, to).first().map(|wait| wait.0).unwrap_or_default()
    }

    /// The longest such time of each pair, and the message's number; the longest of all first.
    fn longest_waits(&self, from: Duration, to: Duration) -> Vec<(Duration, u32, usize)> {
        let wait = |pair: u32, message: &Message| {
            let (sent, came) = (message.sent?, message.first_received?);
            if !message.is_acked() || came < from || came > to {
                return None;
            }
            let (sender, receiver) = parties(pair);
            let pauses = [sender, receiver].into_iter().filter_map(|person| self.pauses.get(&person)).flatten();
            Some(came.saturating_sub(sent).saturating_sub(covered(sent, came, pauses)))
        };
        let longest = self.pairs.iter().filter_map(|(pair, slot)| {
            let messages = slot.messages.iter().enumerate();
            messages.filter_map(|(number, message)| Some((wait(*pair, message)?, *pair, number))).max()
        });
        let mut longest: Vec<_> = longest.collect();
        longest.sort_unstable_by_key(|(wait, ..)| std::cmp::Reverse(*wait));
        longest
    }

    /// Some of them in words, by times since `from`.
    fn in_words(&self, waits: &[(Duration, u32, usize)], from: Duration) -> Vec<String> {
        let since = |at: Duration| at.as_secs_f64() - from.as_secs_f64();
        let words = waits.iter().take(EXAMPLES).filter_map(|(wait, pair, number)| {
            let message = &self.pairs[pair].messages[*number];
            let (sent, came) = (message.sent?, message.first_received?);
            let answered = message.answered.as_ref().map_or(f64::NAN, |(at, _)| since(*at));
            let (sender, receiver) = parties(*pair);
            let pauses = |person| {
                let pauses = self.pauses.get(&person).into_iter().flatten().filter(|(start, end)| *start < came && *end > sent);
                let away = pauses.map(|(start, end)| format!(" {:.3} to {:.3}", since(*start), since(*end)));
                let back = self.back.get(&person).into_iter().flatten().filter(|at| **at > sent && **at <= came);
                away.chain(back.map(|at| format!(" back {:.3}", since(*at)))).collect::<String>()
            };
            Some(format!(
                "{:.0} ms {}: {number} sent {:.3} s, answered {answered:.3} s, came {:.3} s; away: sender{}; receiver{}",
                wait.as_secs_f64() * 1000.0,
                named(*pair),
                since(sent),
                since(came),
                pauses(sender),
                pauses(receiver),
            ))
        });
        words.collect()
    }

    /// The judgement at `now`, over silence and waits between `from` and `to`.
    pub fn report(&self, now: Duration, from: Duration, to: Duration) -> Report {
        let mut report = self.report.clone();
        let mut times = Vec::new();
        for (pair, slot) in &self.pairs {
            for message in &slot.messages {
                report.told_missing += u64::from(message.is_missing() && !message.is_lost(slot.told));
                if message.sent.is_none() {
                    continue;
                }
                let took = match (&message.answered, message.asked) {
                    (Some((at, _)), asked) => {
                        let took = at.saturating_sub(asked.unwrap_or(*at));
                        times.push(took);
                        took
                    }
                    (None, _) if message.cut_short => continue,
                    // Its connection ended, and it was never sent again: its person is still away.
                    (None, None) => Duration::MAX,
                    (None, Some(asked)) => now.saturating_sub(asked),
                };
                report.unanswered += u64::from(took > self.deadline);
            }
            for (number, at, before) in slot.late() {
                report.out_of_order += 1;
                if report.examples.len() < EXAMPLES {
                    let Message { sent, answered, .. } = &slot.messages[number];
                    report.examples.push(format!(
                        "{}: {number} came at {at:?}, after {before} (sent {sent:?}, answered {answered:?})",
                        named(*pair)
                    ));
                }
            }
        }
        let lost = self.lost().take(EXAMPLES.saturating_sub(report.examples.len()));
        report.examples.extend(lost.map(|(pair, number)| {
            let Message { sent, answered, .. } = &self.pairs[&pair].messages[number];
            format!("{}: {number} never came (sent {sent:?}, answered {answered:?})", named(pair))
        }));
        times.sort_unstable();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        report.longest_answer_ms = times.last().copied().map_or(0.0, ms);
        report.median_answer_ms = times.get(times.len() / 2).copied().map_or(0.0, ms);
        report.longest_silence_ms = ms(self.silence(from, to));
        let waits = self.longest_waits(from, to);
        report.longest_wait_ms = waits.first().map_or(0.0, |wait| ms(wait.0));
        report.longest_waits = self.in_words(&waits, from);
        report
    }
}

fn named(pair: u32) -> String {
    let (sender, receiver) = parties(pair);
    format!("{sender} to {receiver}")
}

/// How much of the time between `from` and `to` is in any of `pauses`.
fn covered<'a>(from: Duration, to: Duration, pauses: impl Iterator<Item = &'a (Duration, Duration)>) -> Duration {
    let mut pauses: Vec<_> = pauses.map(|(start, end)| ((*start).max(from), (*end).min(to))).collect();
    pauses.retain(|(start, end)| start < end);
    pauses.sort_unstable();
    let (mut sum, mut until) = (Duration::ZERO, from);
    for (start, end) in pauses {
        sum += end.saturating_sub(start.max(until));
        until = until.max(end);
    }
    sum
}

#[cfg(test)]
mod tests;
