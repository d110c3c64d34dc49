//! Owns what the client of a session that can be resumed knows, and what it does as the protocol describes it. Pure:
//! without sockets.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::checker::Turn;
use crate::client::{self, Answer};

/// What has come is acknowledged at so many messages, or after so long.
const ACK_EVERY: u32 = 64;
/// See [`ACK_EVERY`].
pub(super) const ACK_AFTER: Duration = Duration::from_secs(1);

/// Which message a request is: its pair and number.
pub type Mark = (u32, usize);

/// A client of a session that outlives its connections. A clone is somebody who has got hold of its token.
#[derive(Clone, Debug, Default)]
pub struct Resumable {
    id: Option<Uuid>,
    token: Option<String>,
    /// The highest number that has come.
    seq: u64,
    /// How long what was written may be written again.
    window: Duration,
    /// Whether the server said last that another node has what it has.
    has_standby: bool,
    /// Whether this connection has begun.
    is_greeted: bool,
    unacknowledged: u32,
    sends: VecDeque<Unanswered>,
}

#[derive(Clone, Debug)]
struct Unanswered {
    request: Uuid,
    mark: Mark,
    frame: String,
    written: Instant,
}

/// What a frame meant.
#[derive(Debug)]
pub enum Seen {
    /// The connection has begun, after another one or not: see [`Resumable::again`].
    Greeted(Option<Turn>),
    /// A message is shown.
    Shown(String),
    /// A message was answered.
    Answered(Mark, Answer),
    /// Nothing that anybody sees.
    Nothing,
}

/// What is to be done about messages without an answer, once there is another connection.
#[derive(Debug, Default)]
pub struct Again {
    /// These frames are written again.
    pub frames: Vec<(Mark, String)>,
    /// For these it is too late.
    pub given_up: Vec<Mark>,
}

impl Resumable {
    /// Who this is, once that is known.
    pub fn id(&self) -> Option<Uuid> {
        self.id
    }

    /// What the session is resumed by.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whether the server said last that another node has what it has.
    pub fn has_standby(&self) -> bool {
        self.has_standby
    }

    /// Messages without an answer.
    pub fn unanswered(&self) -> impl ExactSizeIterator<Item = Mark> {
        self.sends.iter().map(|send| send.mark)
    }

    /// A connection begins: the first frame to write.
    pub fn begin(&mut self) -> String {
        self.is_greeted = false;
        self.unacknowledged = 0;
        let data = match &self.token {
            Some(token) => json!({ "resume": token, "seq": self.seq }),
            None => json!({ "resumable": true }),
        };
        frame("registration", data)
    }

    /// A frame that asks for a sign of life.
    pub fn question(&self) -> String {
        frame("registration", Value::Null)
    }

    /// Takes in a frame.
    pub fn take(&mut self, frame: &Value) -> Seen {
        let data = &frame["data"];
        match frame["kind"].as_str() {
            Some("connection") => self.greet(data),
            Some("receive") => {
                let seq = data["seq"].as_u64().unwrap_or(0);
                self.unacknowledged += 1;
                if seq <= self.seq {
                    return Seen::Nothing;
                }
                self.seq = seq;
                Seen::Shown(data["text"].as_str().unwrap_or_default().to_owned())
            }
            _ => {
                let Some((request, answer)) = client::answer_of(frame) else { return Seen::Nothing };
                let place = self.sends.iter().position(|send| send.request.to_string() == request);
                match place.and_then(|place| self.sends.remove(place)) {
                    Some(send) => Seen::Answered(send.mark, answer),
                    None => Seen::Nothing,
                }
            }
        }
    }

    fn greet(&mut self, data: &Value) -> Seen {
        let id = data["client_id"].as_str().and_then(|id| Uuid::try_parse(id).ok());
        self.token = data["resume"]["token"].as_str().map(str::to_owned);
        self.window = Duration::from_millis(data["resume"]["window_ms"].as_u64().unwrap_or(0));
        self.has_standby = data["resume"]["standby"] == true;
        if std::mem::replace(&mut self.is_greeted, true) {
            return Seen::Nothing;
        }
        let resumed = data["resumed"] == true;
        if !resumed {
            self.seq = 0;
        }
        let before = std::mem::replace(&mut self.id, id);
        Seen::Greeted(before.map(|before| match (Some(before) == id, resumed) {
            (true, true) => Turn::Resumed,
            (true, false) => Turn::Told,
            (false, _) => {
                self.window = Duration::ZERO;
                Turn::Changed
            }
        }))
    }

    /// What was not answered over the last connection, in order, before anything newer. For another id, or when the
    /// window has passed, the server would not know it again.
    pub fn again(&mut self, now: Instant) -> Again {
        let mut again = Again::default();
        let window = self.window;
        self.sends.retain(|send| {
            let is_known = now.saturating_duration_since(send.written) < window;
            if is_known {
                again.frames.push((send.mark, send.frame.clone()));
            } else {
                again.given_up.push(send.mark);
            }
            is_known
        });
        again
    }

    /// A message for `receiver`: the frame to write.
    pub fn send(&mut self, now: Instant, mark: Mark, receiver: Uuid, text: &str) -> String {
        let request = Uuid::new_v4();
        let frame = client::send_frame(self.id.unwrap_or_default(), request, receiver, text);
        self.sends.push_back(Unanswered { request, mark, frame: frame.clone(), written: now });
        frame
    }

    /// Whether something has come that was not acknowledged.
    pub fn owes_ack(&self) -> bool {
        self.unacknowledged > 0
    }

    /// Whether so much has come that it must be acknowledged now.
    pub fn must_ack(&self) -> bool {
        self.unacknowledged >= ACK_EVERY
    }

    /// Acknowledges all that has come: the frame to write.
    pub fn ack(&mut self) -> String {
        self.unacknowledged = 0;
        frame("ack", json!({ "seq": self.seq }))
    }
}

fn frame(kind: &str, data: Value) -> String {
    json!({ "client_id": null, "id": Uuid::new_v4(), "kind": kind, "data": data }).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);

    fn connection(id: Uuid, resumed: bool, token: &str) -> Value {
        let resume = json!({ "token": token, "window_ms": 30_000, "expires_ms": 1, "standby": true });
        json!({ "kind": "connection", "data": { "client_id": id, "resumed": resumed, "resume": resume } })
    }

    fn receive(seq: u64) -> Value {
        json!({ "kind": "receive", "data": { "sender_id": A, "text": seq.to_string(), "seq": seq } })
    }

    fn shown(session: &mut Resumable, seq: u64) -> bool {
        matches!(session.take(&receive(seq)), Seen::Shown(text) if text == seq.to_string())
    }

    fn answer(frame: &str) -> Value {
        let request: Value = serde_json::from_str(frame).unwrap();
        json!({ "kind": "ack", "id": request["id"], "data": null })
    }

    fn data(frame: &str) -> Value {
        serde_json::from_str::<Value>(frame).unwrap()["data"].take()
    }

    #[test]
    fn numbers_go_on_after_a_resume_and_begin_anew_where_something_may_be_missing() {
        let mut session = Resumable::default();
        assert_eq!(data(&session.begin()), json!({ "resumable": true }));
        assert!(matches!(session.take(&connection(A, false, "one")), Seen::Greeted(None)));
        assert!(shown(&mut session, 1) && shown(&mut session, 2) && !shown(&mut session, 2));
        assert!(session.owes_ack() && !session.must_ack());
        assert_eq!(data(&session.ack()), json!({ "seq": 2 }));
        assert!(!session.owes_ack());

        // The answer to a question for a sign of life brings a newer token, and changes nothing else.
        assert!(matches!(session.take(&connection(A, true, "two")), Seen::Nothing));
        assert_eq!(data(&session.begin()), json!({ "resume": "two", "seq": 2 }));
        assert!(matches!(session.take(&connection(A, true, "three")), Seen::Greeted(Some(Turn::Resumed))));
        assert!(!shown(&mut session, 2) && shown(&mut session, 3));
        assert!(session.owes_ack(), "a copy is acknowledged all the same");

        session.begin();
        assert!(matches!(session.take(&connection(A, false, "four")), Seen::Greeted(Some(Turn::Told))));
        assert!(shown(&mut session, 1));
        session.begin();
        let other = connection(Uuid::from_u128(2), false, "five");
        assert!(matches!(session.take(&other), Seen::Greeted(Some(Turn::Changed))));
    }

    #[test]
    fn what_was_not_answered_is_written_again_under_the_same_ids_and_in_order() {
        let mut session = Resumable::default();
        let now = Instant::now();
        session.begin();
        session.take(&connection(A, false, "one"));
        let frames: Vec<_> = (0..3).map(|number| session.send(now, (7, number), A, "text")).collect();
        assert!(matches!(session.take(&answer(&frames[1])), Seen::Answered((7, 1), Answer::Ack)));
        assert!(matches!(session.take(&answer(&frames[1])), Seen::Nothing), "a second answer is none");
        session.begin();
        session.take(&connection(A, true, "two"));
        let again = session.again(now + Duration::from_secs(29));
        assert_eq!(again.frames, [((7, 0), frames[0].clone()), ((7, 2), frames[2].clone())]);
        assert!(again.given_up.is_empty());
        assert!(matches!(session.take(&answer(&frames[2])), Seen::Answered((7, 2), Answer::Ack)));
        // The window has passed: the server may have forgotten it.
        session.begin();
        session.take(&connection(A, true, "three"));
        let again = session.again(now + Duration::from_secs(31));
        assert_eq!((again.frames.len(), again.given_up), (0, vec![(7, 0)]));
        assert_eq!(session.unanswered().len(), 0);
    }

    #[test]
    fn somebody_else_writes_nothing_again() {
        let mut session = Resumable::default();
        let now = Instant::now();
        session.begin();
        session.take(&connection(A, false, "one"));
        session.send(now, (7, 0), A, "text");
        session.begin();
        session.take(&connection(Uuid::from_u128(2), false, "two"));
        assert_eq!(session.again(now).given_up, [(7, 0)]);
    }
}
