//! Owns the JSON of frames: what goes out, and what comes in.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

/// Whoever holds it is this client: it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

/// A frame to write. It may hold a token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a frame of {} bytes", self.0.len())
    }
}

/// What a `registration` asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish<'a> {
    /// The session that shall go on, and the highest number that is taken in it.
    pub(crate) resume: Option<(&'a Secret, u64)>,
    pub(crate) credentials: Option<&'a Secret>,
}

/// The first frame of a connection.
pub(crate) fn registration(wish: &Wish<'_>) -> Text {
    let mut data = match wish.resume {
        Some((token, seq)) => json!({ "resume": token.0, "seq": seq }),
        None => json!({ "resumable": true }),
    };
    if let Some(token) = wish.credentials {
        data["token"] = json!(token.0);
    }
    frame(None, Uuid::new_v4(), "registration", &data)
}

/// Asks for a sign of life, or a newer token; by newer credentials, if there are some.
pub(crate) fn question(credentials: Option<&Secret>) -> Text {
    let data = credentials.map_or(Value::Null, |token| json!({ "token": token.0 }));
    frame(None, Uuid::new_v4(), "registration", &data)
}

pub(crate) fn send(client: Uuid, id: Uuid, receiver: Uuid, text: &str) -> Text {
    frame(Some(client), id, "send", &json!({ "receiver_id": receiver, "text": text }))
}

/// All numbers up to `seq` are taken.
pub(crate) fn had(seq: u64) -> Text {
    frame(None, Uuid::new_v4(), "ack", &json!({ "seq": seq }))
}

/// The message `id`, which has no number, is taken.
pub(crate) fn ack(id: Uuid) -> Text {
    frame(None, id, "ack", &Value::Null)
}

fn frame(client: Option<Uuid>, id: Uuid, kind: &str, data: &Value) -> Text {
    Text(json!({ "client_id": client, "id": id, "kind": kind, "data": data }).to_string())
}

/// What came.
#[derive(Debug)]
pub(crate) enum Frame {
    Connection(Greeting),
    Receive { id: Uuid, received: Received },
    Ack(Uuid),
    Error { id: Option<Uuid>, error: Flaw },
}

#[derive(Debug, Deserialize)]
pub(crate) struct Greeting {
    pub(crate) client_id: Uuid,
    #[serde(default)]
    pub(crate) resumed: bool,
    #[serde(default)]
    pub(crate) resume: Option<Resume>,
    #[serde(default)]
    pub(crate) credentials: Option<Expiry>,
}

#[derive(Deserialize)]
pub(crate) struct Resume {
    pub(crate) token: String,
    pub(crate) window_ms: u64,
    pub(crate) expires_ms: u64,
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token, for {} ms", self.expires_ms)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Expiry {
    pub(crate) expires_ms: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Received {
    pub(crate) sender_id: Uuid,
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) seq: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Flaw {
    pub(crate) code: String,
    #[serde(default)]
    pub(crate) description: String,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default)]
    id: Option<Uuid>,
    kind: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// Reads a frame; none of a kind that is not known here, or that can't be read.
pub(crate) fn read(text: &str) -> Option<Frame> {
    let Envelope { id, kind, data } = serde_json::from_str(text).ok()?;
    let data = data.map_or("null", RawValue::get);
    Some(match kind.as_str() {
        "connection" => Frame::Connection(serde_json::from_str(data).ok()?),
        "receive" => Frame::Receive { id: id?, received: serde_json::from_str(data).ok()? },
        "ack" => Frame::Ack(id?),
        "error" => Frame::Error { id, error: serde_json::from_str(data).ok()? },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_written_and_never_shown() {
        let token = Secret("hunter2".to_owned());
        let wish = Wish { resume: Some((&token, 7)), credentials: Some(&token) };
        let Text(text) = registration(&wish);
        let data = serde_json::from_str::<Value>(&text).unwrap()["data"].take();
        assert_eq!(data, json!({ "resume": "hunter2", "seq": 7, "token": "hunter2" }));
        let greeting = r#"{"kind":"connection","data":{"client_id":"00000000-0000-4000-8000-000000000001",
            "resume":{"token":"hunter2","window_ms":1,"expires_ms":2,"standby":true},"later":{}}}"#;
        let shown = format!("{wish:?} {:?} {:?}", Text(text), read(greeting).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let id = Uuid::from_u128(1);
        let nothing = ["", "{}", "[]", "nonsense", r#"{"kind":"ack"}"#, r#"{"kind":"new","data":{}}"#];
        for text in nothing {
            assert!(read(text).is_none(), "{text}");
        }
        assert!(read(&format!(r#"{{"kind":"receive","id":"{id}","data":{{"text":"x"}}}}"#)).is_none());
        assert!(read(r#"{"kind":"error","id":null,"data":{"code":"EKIND"}}"#).is_some());
    }
}
