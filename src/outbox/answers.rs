//! Owns what becomes of what a client asks for, and the duty to say so ([`ReplyTo`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Outbox;
use super::resumable::Resumable;

/// What became of a `send`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A node that holds the receiver has it.
    Handed,
    /// Nobody is connected as the receiver.
    NotConnected,
    /// The receiver's outbox is full.
    Busy,
    /// Not handed over before the deadline.
    Unreachable,
}

/// The answer to a `send`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's id.
    pub request: Uuid,
    /// What became of it.
    pub outcome: Outcome,
    /// From the request to the decision.
    pub took: Duration,
}

/// What is to be done about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is new: it is to be published.
    New,
    /// It is under way already, and will be answered.
    UnderWay,
    /// It was acknowledged before.
    Acknowledged,
}

/// The duty to answer one `send`, exactly once. Dropped unused, it answers that the broker failed:
/// a message that gets lost in this program is never silent.
#[derive(Debug)]
pub struct ReplyTo {
    outbox: Option<Arc<Outbox>>,
    request: Uuid,
    since: Instant,
}

impl ReplyTo {
    /// The answer to `request` goes to `outbox`.
    pub fn new(outbox: Arc<Outbox>, request: Uuid) -> Self {
        Self { outbox: Some(outbox), request, since: Instant::now() }
    }

    /// Answers.
    pub fn answer(mut self, outcome: Outcome) {
        self.put(outcome);
    }

    fn put(&mut self, outcome: Outcome) {
        if let Some(outbox) = self.outbox.take() {
            outbox.answer(Answer { request: self.request, outcome, took: self.since.elapsed() });
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.put(Outcome::Unreachable);
    }
}

impl Outbox {
    fn answer(&self, answer: Answer) {
        let mut inner = self.lock();
        let times = match inner.resumable.as_deref_mut() {
            Some(Resumable { requests: Some(requests), .. }) => requests.answered(answer.request, answer.outcome),
            Some(_) => 0,
            None => 1,
        };
        if times > 0 {
            inner.answers.extend(std::iter::repeat_n(answer, times));
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// The client asks for something, and not twice: it does not know that its session can be resumed.
    pub fn begin_plain(&self, request: Uuid) {
        if let Some(resumable) = &mut self.lock().resumable {
            resumable.requests.get_or_insert_default().begin_plain(request);
        }
    }

    /// The client asks for something, perhaps for the second time.
    pub fn begin(&self, request: Uuid) -> Begun {
        match &mut self.lock().resumable {
            Some(resumable) => resumable.requests.get_or_insert_default().begin(request),
            None => Begun::New,
        }
    }
}
