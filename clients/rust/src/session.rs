//! Owns what a client does, and when: events in, actions out. Pure: without sockets, and without a clock.
//!
//! ```text
//!            ┌────────────────── dial ───────────────────┐
//!            ▼                                           │
//!        Dialing ──opened──▶ Registering ──greeted──▶ Talking
//!         ▲  │ refused, too late  │ closed, too late     │ closed, silent, overdue
//!   it is │  ▼                    ▼                      │
//!   time  Waiting ◀──────────────────────────────────────┘
//!
//!   each ── close, 4001, 4003 ──▶ Ended
//! ```

mod events;
mod inbox;
#[cfg(test)]
mod property;
mod sends;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::SendError;
use crate::frames::{self, Flaw, Frame, Greeting, Secret, Text, Wish};
use crate::state::{Cause, Ending, State};
pub use events::Message;
pub(crate) use events::{Action, Event, Settings};
use inbox::{Arrival, Inbox};
use sends::Sends;
pub(crate) use sends::Waiter;

/// Over which time clients come back that a node sends away: it spreads them itself.
const TOLD_PAUSE: Duration = Duration::from_millis(250);
/// Over which time they come back to a server that has too much to do.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(5);
/// No server makes a client wait for longer.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// Newer credentials, or a newer token, are asked for no sooner than this.
const SOONEST_RENEWAL: Duration = Duration::from_millis(250);

/// What a server's word about an expiry may be off by.
const ROUNDED: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Phase {
    Dialing { until: Instant },
    Registering { until: Instant },
    Talking(Talk),
    Waiting { until: Instant },
    Ended,
}

/// The timers of a connection.
#[derive(Debug)]
struct Talk {
    silent_at: Instant,
    is_asked: bool,
    renew_at: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Session<W> {
    settings: Settings,
    random: fastrand::Rng,
    /// How many addresses there are, and which is next.
    urls: usize,
    url: usize,
    /// Whether the application gives credentials.
    has_credentials: bool,
    phase: Phase,
    id: Option<Uuid>,
    /// By which the session is resumed.
    token: Option<Secret>,
    inbox: Inbox,
    sends: Sends<W>,
    missed: u64,
    /// The next pause, and how many attempts have failed since the last handshake that did not.
    pause: Duration,
    refusals: usize,
    /// Why the server does not let this client in, in its words.
    complaint: String,
}

impl<W: Waiter> Session<W> {
    /// A client of `urls` addresses.
    pub(crate) fn new(settings: Settings, urls: usize, has_credentials: bool, random: fastrand::Rng) -> Self {
        Self {
            inbox: Inbox::new(settings.most_messages, settings.most_bytes),
            sends: Sends::new(settings.most_open, settings.send_patience, settings.answer_patience),
            settings,
            random,
            urls,
            url: 0,
            has_credentials,
            phase: Phase::Ended,
            id: None,
            token: None,
            missed: 0,
            pause: Duration::ZERO,
            refusals: 0,
            complaint: String::new(),
        }
    }

    /// The id under which others reach this client.
    pub(crate) fn id(&self) -> Option<Uuid> {
        self.id
    }

    /// Whether all is over.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// When there is something to do, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Dialing { until } | Phase::Registering { until } | Phase::Waiting { until } => Some(*until),
            Phase::Talking(talk) => {
                talk.renew_at.into_iter().chain([talk.silent_at]).chain(self.inbox.deadline()).min()
            }
            Phase::Ended => return None,
        };
        phase.into_iter().chain(self.sends.deadline()).min()
    }

    /// The beginning.
    pub(crate) fn dial(&mut self, now: Instant, out: &mut Vec<Action<W>>) {
        self.phase = Phase::Dialing { until: now + self.settings.greeting_patience };
        out.extend([Action::Dial(self.url), Action::Become(State::Connecting)]);
    }

    /// Takes in what happened at `now`.
    pub(crate) fn handle(&mut self, now: Instant, event: Event<W>, out: &mut Vec<Action<W>>) {
        match event {
            Event::Opened(credentials) => self.register(credentials.as_ref(), out),
            Event::Failed { why, retry_after } => self.fail(now, why, retry_after, out),
            Event::Came(text) => {
                self.hear(now);
                if let Some(frame) = frames::read(&text) {
                    self.take_in(now, frame, out);
                }
            }
            Event::Heard => self.hear(now),
            Event::Closed(code) => self.closed(now, code, out),
            Event::Credentials(token) => {
                // Without any, the answer says when to try again.
                self.write(out, |_, texts| texts.push(frames::question(token.as_ref())));
            }
            Event::Send { too_late, receiver, text, waiter } => self.send(now, too_late, receiver, text, waiter, out),
            Event::Taken(count) => self.write(out, |this, texts| this.inbox.take(now, count, texts)),
            Event::Unread => self.write(out, |this, texts| this.inbox.take_all(now, texts)),
            Event::RetryNow => {
                if let Phase::Waiting { until } = &mut self.phase {
                    *until = now;
                }
            }
            Event::Close => self.end(Ending::Closed, out),
            Event::Tick => {}
        }
        self.tick(now, out);
    }

    fn register(&mut self, credentials: Option<&Secret>, out: &mut Vec<Action<W>>) {
        let Phase::Dialing { until } = self.phase else { return };
        self.phase = Phase::Registering { until };
        self.refusals = 0;
        self.complaint.clear();
        // What is not taken comes again, lest the server forgets it before the application has seen it.
        let resume = self.token.as_ref().map(|token| (token, self.inbox.taken()));
        out.push(Action::Write(frames::registration(&Wish { resume, credentials })));
    }

    fn hear(&mut self, now: Instant) {
        if let Phase::Talking(talk) = &mut self.phase {
            (talk.silent_at, talk.is_asked) = (now + self.settings.quiet, false);
        }
    }

    fn take_in(&mut self, now: Instant, frame: Frame, out: &mut Vec<Action<W>>) {
        match frame {
            Frame::Connection(greeting) => self.greet(now, greeting, out),
            Frame::Receive { id, received } => {
                if !matches!(self.phase, Phase::Talking(_)) {
                    return;
                }
                let (seq, sender, text) = (received.seq, received.sender_id, received.text);
                let mut arrival = Arrival::Known;
                self.write(out, |this, texts| arrival = this.inbox.receive(now, id, seq, text.len(), texts));
                if arrival == Arrival::New {
                    out.push(Action::Show(Message { id, sender, text }));
                }
            }
            Frame::Ack(id) => self.answered(now, id, Ok(()), out),
            Frame::Error { id, error: Flaw { code, description } } => {
                if code == "EAUTH" {
                    self.complaint.clone_from(&description);
                }
                if let Some(id) = id {
                    self.answered(now, id, Err(SendError::from_server(code, description)), out);
                }
            }
        }
    }

    /// The answer to the registration; later, to a question for a sign of life or for a newer token.
    fn greet(&mut self, now: Instant, greeting: Greeting, out: &mut Vec<Action<W>>) {
        let Greeting { client_id, resumed, resume, credentials } = greeting;
        let is_first = match self.phase {
            Phase::Registering { .. } => true,
            Phase::Talking(_) if self.id == Some(client_id) => false,
            _ => return,
        };
        let window = resume.as_ref().map_or(Duration::ZERO, |resume| Duration::from_millis(resume.window_ms));
        // A connection may outlast the token, and the credentials, that it began with.
        let of_token = resume.as_ref().map(|resume| Duration::from_millis(resume.expires_ms / 2));
        let of_credentials = credentials.filter(|_| self.has_credentials);
        // Credentials end at a whole second, and a server may have rounded.
        let of_credentials = of_credentials.map(|expiry| Duration::from_millis(expiry.expires_ms));
        let of_credentials = of_credentials.map(|time| time.saturating_sub(ROUNDED).mul_f64(0.8));
        let renew_in = of_token.into_iter().chain(of_credentials).min().map(|time| time.max(SOONEST_RENEWAL));
        let renew_at = renew_in.and_then(|time| now.checked_add(time));
        self.token = resume.map(|resume| Secret(resume.token));
        if let Phase::Talking(talk) = &mut self.phase {
            talk.renew_at = renew_at;
        }
        if !is_first {
            return;
        }
        let before = self.id.replace(client_id);
        self.phase = Phase::Talking(Talk { silent_at: now + self.settings.quiet, is_asked: false, renew_at });
        self.inbox.begin(resumed);
        if self.token.is_some() {
            // The server is to know that the newer token has come.
            out.push(Action::Write(self.inbox.acknowledge(now)));
        }
        self.missed += u64::from(before.is_some() && !resumed);
        // Only now: a server that accepts and drops is not hammered.
        self.pause = Duration::ZERO;
        let mut told = Vec::new();
        // For somebody else the server would not know again what was written.
        self.sends.begin(now, window, before == Some(client_id), &mut told);
        out.extend(told.into_iter().map(|(waiter, answer)| Action::Answer(waiter, answer)));
        out.push(Action::Become(State::Connected { id: client_id, resumed, missed: self.missed }));
        self.pump(now, out);
    }

    fn answered(&mut self, now: Instant, id: Uuid, answer: Result<(), SendError>, out: &mut Vec<Action<W>>) {
        out.extend(self.sends.answer(id, answer).map(|(waiter, answer)| Action::Answer(waiter, answer)));
        self.pump(now, out);
    }

    fn send(
        &mut self,
        now: Instant,
        too_late: Instant,
        receiver: Uuid,
        text: String,
        waiter: W,
        out: &mut Vec<Action<W>>,
    ) {
        if self.is_ended() {
            out.push(Action::Answer(waiter, Err(SendError::Closed)));
            return;
        }
        self.sends.push(too_late, receiver, text, waiter);
        self.pump(now, out);
    }

    fn pump(&mut self, now: Instant, out: &mut Vec<Action<W>>) {
        if let (Phase::Talking(_), Some(id)) = (&self.phase, self.id) {
            self.write(out, |this, texts| this.sends.pump(now, id, texts));
        }
    }

    /// Writes what `compose` gives, if there is a connection.
    fn write(&mut self, out: &mut Vec<Action<W>>, compose: impl FnOnce(&mut Self, &mut Vec<Text>)) {
        let mut texts = Vec::new();
        compose(self, &mut texts);
        if matches!(self.phase, Phase::Talking(_)) {
            out.extend(texts.into_iter().map(Action::Write));
        }
    }

    fn fail(&mut self, now: Instant, why: Cause, retry_after: Option<Duration>, out: &mut Vec<Action<W>>) {
        if !matches!(self.phase, Phase::Dialing { .. }) {
            return;
        }
        self.refusals += 1;
        // One that is full is obeyed when there is no other to go to.
        let asked = retry_after.filter(|_| self.refusals >= self.urls).unwrap_or_default();
        self.lost(now, why, self.settings.pauses.0, asked.min(LONGEST_ASKED), out);
    }

    fn closed(&mut self, now: Instant, code: u16, out: &mut Vec<Action<W>>) {
        let is_greeted = match self.phase {
            Phase::Registering { .. } => false,
            Phase::Talking(_) => true,
            _ => return,
        };
        let pause = match code {
            4001 => return self.end(Ending::Elsewhere, out),
            // Those that have expired are replaced; what is refused at once would be refused again.
            4003 if !(is_greeted && self.has_credentials) => {
                let complaint = std::mem::take(&mut self.complaint);
                return self.end(Ending::Credentials(complaint), out);
            }
            1001 | 1012 => TOLD_PAUSE,
            1013 => OVERLOAD_PAUSE,
            _ => self.settings.pauses.0,
        };
        if code == 1009 {
            out.extend(self.sends.refuse_longest().map(|(waiter, answer)| Action::Answer(waiter, answer)));
        }
        self.lost(now, Cause::Closed(code), pause, Duration::ZERO, out);
    }

    /// Gives up a connection that leads nowhere, or one that there is not yet.
    fn give_up(&mut self, now: Instant, why: Cause, out: &mut Vec<Action<W>>) {
        out.push(Action::Drop);
        self.lost(now, why, self.settings.pauses.0, Duration::ZERO, out);
    }

    /// There is no connection any more: the next one is after a pause, and at the next address.
    fn lost(&mut self, now: Instant, why: Cause, pause: Duration, asked: Duration, out: &mut Vec<Action<W>>) {
        self.leave();
        self.url = (self.url + 1) % self.urls;
        // Full jitter, for thousands may be coming back at the same moment.
        let most = self.pause.max(pause);
        self.pause = most.saturating_mul(2).min(self.settings.pauses.1);
        let retry_in = asked + most.mul_f64(self.random.f64());
        self.wait(now, why, retry_in, out);
    }

    fn leave(&mut self) {
        self.sends.put_back();
        self.inbox.end();
    }

    fn wait(&mut self, now: Instant, why: Cause, retry_in: Duration, out: &mut Vec<Action<W>>) {
        self.phase = Phase::Waiting { until: now + retry_in };
        out.push(Action::Become(State::Away { retry_in, why }));
    }

    fn end(&mut self, ending: Ending, out: &mut Vec<Action<W>>) {
        if self.is_ended() {
            return;
        }
        self.phase = Phase::Ended;
        self.token = None;
        let mut told = Vec::new();
        self.sends.end(&mut told);
        out.push(Action::Close);
        out.extend(told.into_iter().map(|(waiter, answer)| Action::Answer(waiter, answer)));
        out.push(Action::Become(State::Closed(ending)));
    }

    /// Does what is due.
    fn tick(&mut self, now: Instant, out: &mut Vec<Action<W>>) {
        let mut told = Vec::new();
        self.sends.expire(now, &mut told);
        out.extend(told.into_iter().map(|(waiter, answer)| Action::Answer(waiter, answer)));
        match &mut self.phase {
            Phase::Dialing { until } | Phase::Registering { until } if now >= *until => {
                self.refusals += 1;
                self.give_up(now, Cause::Unreachable("no answer in time".to_owned()), out);
            }
            Phase::Waiting { until } if now >= *until => self.dial(now, out),
            Phase::Talking(_) if self.sends.is_overdue(now) => self.give_up(now, Cause::Silent, out),
            Phase::Talking(_) if self.inbox.has_room_again() => {
                // At the same address, for it is not its fault.
                out.push(Action::Drop);
                self.leave();
                self.wait(now, Cause::Overflow, Duration::ZERO, out);
            }
            Phase::Talking(talk) => {
                if now >= talk.silent_at {
                    if talk.is_asked {
                        return self.give_up(now, Cause::Silent, out);
                    }
                    (talk.silent_at, talk.is_asked) = (now + self.settings.sign_patience, true);
                    out.push(Action::Write(frames::question(None)));
                }
                if talk.renew_at.is_some_and(|at| now >= at) {
                    talk.renew_at = None;
                    out.push(if self.has_credentials { Action::Renew } else { Action::Write(frames::question(None)) });
                }
                if self.inbox.deadline().is_some_and(|at| now >= at) {
                    out.push(Action::Write(self.inbox.acknowledge(now)));
                }
            }
            _ => {}
        }
    }
}
