//! Owns the wire protocol, version 1: text frames in, typed requests out, and the other way round.
//!
//! Nothing else in the crate knows the JSON of a frame. The codec keeps no state, so that a frame
//! after a bad one is served like any other.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// What a valid frame asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Deliver `text` to `receiver`; one answer is due.
    Send {
        /// The request's own id, repeated in the answer.
        id: Uuid,
        /// Who is to get it.
        receiver: Uuid,
        /// What they get.
        text: String,
    },
    /// Say who this session is; answered with `connection`.
    Registration {
        /// The request's own id, repeated in the answer.
        id: Uuid,
    },
    /// An `ack` or `error` of the client: taken without an answer.
    Notice,
}

/// Why a frame was refused. Answered with `error`; the session goes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The frame's id, where one could be read.
    pub id: Option<Uuid>,
    /// The code.
    pub code: ErrorCode,
    /// For people.
    pub description: String,
}

/// The codes of `error` frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ErrorCode {
    /// Not JSON, not an object, a required field missing or of the wrong type.
    ESyntax,
    /// Not a kind that a client may send.
    EKind,
    /// The data does not fit the kind.
    EInval,
    /// Not this session's client id.
    ECid,
    /// Nobody is connected as the receiver.
    ENotConn,
    /// The message could not be handed over within the send deadline.
    EBroker,
    /// The text is too long.
    EMsgSize,
    /// Too many unanswered sends.
    EAgain,
    /// The receiver's outbox is full.
    EBusy,
}

impl ErrorCode {
    /// Every code, for metrics.
    pub const ALL: [Self; 9] = [
        Self::ESyntax,
        Self::EKind,
        Self::EInval,
        Self::ECid,
        Self::ENotConn,
        Self::EBroker,
        Self::EMsgSize,
        Self::EAgain,
        Self::EBusy,
    ];

    /// The code as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ESyntax => "ESYNTAX",
            Self::EKind => "EKIND",
            Self::EInval => "EINVAL",
            Self::ECid => "ECID",
            Self::ENotConn => "ENOTCONN",
            Self::EBroker => "EBROKER",
            Self::EMsgSize => "EMSGSIZE",
            Self::EAgain => "EAGAIN",
            Self::EBusy => "EBUSY",
        }
    }
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, default)]
    client_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct SendData {
    receiver_id: String,
    text: String,
}

/// Reads a text frame of the session `client`. The first check that fails names the error, in the
/// order object, id, kind, client id, data, size (`max_text_bytes`, of UTF-8).
///
/// # Errors
/// A [`Rejection`], to be answered.
pub fn decode(frame: &str, client: Uuid, max_text_bytes: usize) -> Result<Request, Rejection> {
    let reject = |id, code, description: &str| Rejection { id, code, description: description.to_owned() };
    let syntax = |description| reject(None, ErrorCode::ESyntax, description);
    // Serde would also read an array as the fields of a struct.
    if !frame.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(syntax("a frame must be one JSON object"));
    }
    let fields: Frame<'_> = serde_json::from_str(frame)
        .map_err(|error| reject(None, ErrorCode::ESyntax, &format!("the frame is not valid JSON: {error}")))?;
    let id = string(fields.id).and_then(|text| Uuid::try_parse(&text).ok());
    let id = id.ok_or_else(|| syntax("the field \"id\" must be a UUID"))?;
    let kind = string(fields.kind)
        .ok_or_else(|| reject(Some(id), ErrorCode::ESyntax, "the field \"kind\" must be a string"))?;
    match kind.as_str() {
        "ack" | "error" => Ok(Request::Notice),
        "registration" => match fields.data {
            None => Ok(Request::Registration { id }),
            Some(_) => Err(reject(Some(id), ErrorCode::EInval, "the data of a \"registration\" is null")),
        },
        "send" => {
            let named = string(fields.client_id).and_then(|text| Uuid::try_parse(&text).ok());
            if named != Some(client) {
                return Err(reject(Some(id), ErrorCode::ECid, "the field \"client_id\" is not this session's"));
            }
            decode_send(id, fields.data, max_text_bytes)
        }
        _ => Err(reject(
            Some(id),
            ErrorCode::EKind,
            "the field \"kind\" must be \"send\", \"registration\", \"ack\" or \"error\"",
        )),
    }
}

fn decode_send(id: Uuid, data: Option<&RawValue>, max_text_bytes: usize) -> Result<Request, Rejection> {
    let reject = |code, description| Rejection { id: Some(id), code, description };
    let invalid = |description: &str| reject(ErrorCode::EInval, description.to_owned());
    let data = data.filter(|raw| raw.get().starts_with('{'));
    let data: SendData = data.and_then(|raw| serde_json::from_str(raw.get()).ok()).ok_or_else(|| {
        invalid("the data of a \"send\" must be an object with the strings \"receiver_id\" and \"text\"")
    })?;
    let receiver = Uuid::try_parse(&data.receiver_id).map_err(|_| invalid("\"receiver_id\" must be a UUID"))?;
    if data.text.len() > max_text_bytes {
        return Err(reject(
            ErrorCode::EMsgSize,
            format!("the text has {} bytes; the limit is {max_text_bytes}", data.text.len()),
        ));
    }
    Ok(Request::Send { id, receiver, text: data.text })
}

fn string(raw: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(raw?.get()).ok()
}

/// A frame for the client.
#[derive(Debug)]
pub enum Reply<'a> {
    /// Who this session is.
    Connection,
    /// The `send` was handed over.
    Ack,
    /// Something was refused or failed.
    Error {
        /// The code.
        code: ErrorCode,
        /// For people.
        description: &'a str,
    },
    /// A message for this client.
    Receive {
        /// Who sent it.
        sender: Uuid,
        /// What they sent.
        text: &'a str,
    },
}

#[derive(Serialize)]
struct OutFrame<'a> {
    client_id: Uuid,
    id: Uuid,
    kind: &'static str,
    data: OutData<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OutData<'a> {
    Connection { client_id: Uuid },
    Null,
    Error { code: ErrorCode, description: &'a str },
    Receive { sender_id: Uuid, text: &'a str },
}

/// Writes a text frame for the session `client`.
pub fn encode(client: Uuid, id: Uuid, reply: &Reply<'_>) -> String {
    let (kind, data) = match *reply {
        Reply::Connection => ("connection", OutData::Connection { client_id: client }),
        Reply::Ack => ("ack", OutData::Null),
        Reply::Error { code, description } => ("error", OutData::Error { code, description }),
        Reply::Receive { sender, text } => ("receive", OutData::Receive { sender_id: sender, text }),
    };
    // Strings and UUIDs alone: there is nothing in it that could fail to be written.
    serde_json::to_string(&OutFrame { client_id: client, id, kind, data }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENT: Uuid = Uuid::from_u128(0x754cd3a0_27b3_4c51_a66e_466fed82b667);
    const ID: Uuid = Uuid::from_u128(0x8a15b000_02d7_4823_8336_0cd0b0b13ae9);

    fn send(client_id: &str, data: &str) -> String {
        format!(r#"{{"client_id":{client_id},"id":"{ID}","kind":"send","data":{data}}}"#)
    }

    fn code(frame: &str) -> (Option<Uuid>, ErrorCode) {
        let rejection = decode(frame, CLIENT, 8).expect_err(frame);
        (rejection.id, rejection.code)
    }

    #[test]
    fn golden_frames_out() {
        let golden = |reply, data: &str, kind: &str| {
            let expected = format!(
                r#"{{"client_id":"754cd3a0-27b3-4c51-a66e-466fed82b667","id":"8a15b000-02d7-4823-8336-0cd0b0b13ae9","kind":"{kind}","data":{data}}}"#
            );
            assert_eq!(encode(CLIENT, ID, &reply), expected);
        };
        golden(Reply::Connection, r#"{"client_id":"754cd3a0-27b3-4c51-a66e-466fed82b667"}"#, "connection");
        golden(Reply::Ack, "null", "ack");
        let error = Reply::Error { code: ErrorCode::ENotConn, description: "nobody" };
        golden(error, r#"{"code":"ENOTCONN","description":"nobody"}"#, "error");
        let receive = Reply::Receive { sender: ID, text: "a\"<b>\u{1F600}" };
        golden(
            receive,
            "{\"sender_id\":\"8a15b000-02d7-4823-8336-0cd0b0b13ae9\",\"text\":\"a\\\"<b>\u{1F600}\"}",
            "receive",
        );
    }

    #[test]
    fn golden_frames_in() {
        let data = format!(r#"{{"receiver_id":"{}","text":"héy","extra":1}}"#, ID.to_string().to_uppercase());
        let client = format!("\"{}\"", CLIENT.to_string().to_uppercase());
        let expected = Request::Send { id: ID, receiver: ID, text: "héy".to_owned() };
        assert_eq!(decode(&send(&client, &data), CLIENT, 8), Ok(expected));
        for client_id in ["", r#""client_id":null,"#, r#""client_id":"anything","#, r#""client_id":7,"#] {
            let frame = format!(r#" {{{client_id}"id":"{ID}","kind":"registration","data":null}}"#);
            assert_eq!(decode(&frame, CLIENT, 8), Ok(Request::Registration { id: ID }), "{frame}");
            for kind in ["ack", "error"] {
                let frame = format!(r#"{{{client_id}"id":"{ID}","kind":"{kind}","data":[{{}}]}}"#);
                assert_eq!(decode(&frame, CLIENT, 8), Ok(Request::Notice), "{frame}");
            }
        }
    }

    #[test]
    fn the_first_check_that_fails_names_the_error() {
        for frame in ["", "[]", "1", "null", "{", "{}x", "\u{feff}{}", r#"["a","b","c","d"]"#, r#"{"id":7}"#, "{}"] {
            assert_eq!(code(frame), (None, ErrorCode::ESyntax), "{frame}");
        }
        assert_eq!(code(&format!(r#"{{"id":"{ID}","kind":null}}"#)), (Some(ID), ErrorCode::ESyntax));
        assert_eq!(code(&format!(r#"{{"id":"{ID}","kind":"receive"}}"#)), (Some(ID), ErrorCode::EKind));
        for client_id in ["null", "7", r#""x""#, &format!("\"{ID}\"")] {
            assert_eq!(code(&send(client_id, "null")), (Some(ID), ErrorCode::ECid), "{client_id}");
        }
        let own = format!("\"{CLIENT}\"");
        for data in
            ["null", "[]", "{}", r#"{"receiver_id":"x","text":"far too long"}"#, r#"{"receiver_id":7,"text":""}"#]
        {
            assert_eq!(code(&send(&own, data)), (Some(ID), ErrorCode::EInval), "{data}");
        }
        let long = format!(r#"{{"receiver_id":"{ID}","text":"123456789"}}"#);
        let rejection = decode(&send(&own, &long), CLIENT, 8).unwrap_err();
        assert_eq!(rejection.code, ErrorCode::EMsgSize);
        assert!(rejection.description.contains('8'), "the limit is named");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_codec_panic(frame in any::<String>()) {
            let _ = decode(&frame, CLIENT, 8);
        }

        #[test]
        fn no_json_makes_the_codec_panic(
            kind in prop_oneof![Just("send"), Just("ack"), Just("registration"), Just("nonsense")],
            client in prop_oneof![Just(format!("\"{CLIENT}\"")), Just("null".to_owned())],
            data in "[\\[{\"a-z:,0-9}\\]\\\\u]{0,40}",
        ) {
            let frame = format!(r#"{{"client_id":{client},"id":"{ID}","kind":"{kind}","data":{data}}}"#);
            if let Ok(Request::Send { id, .. } | Request::Registration { id }) = decode(&frame, CLIENT, 8) {
                prop_assert_eq!(id, ID);
            }
        }

        #[test]
        fn every_text_survives_both_ways(text in any::<String>()) {
            let frame = encode(CLIENT, ID, &Reply::Receive { sender: ID, text: &text });
            let value: serde_json::Value = serde_json::from_str(&frame).unwrap();
            prop_assert_eq!(value["data"]["text"].as_str(), Some(text.as_str()));
            let data = serde_json::json!({ "receiver_id": ID, "text": text });
            let request = decode(&send(&format!("\"{CLIENT}\""), &data.to_string()), CLIENT, usize::MAX);
            prop_assert_eq!(request, Ok(Request::Send { id: ID, receiver: ID, text }));
        }
    }
}
