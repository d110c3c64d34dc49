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
        /// What it asks for beside that; boxed, for it is rare.
        wish: Box<Wish>,
    },
    /// The client has everything up to this `seq`.
    Had(u64),
    /// Another `ack`, or an `error` of the client: taken without an answer.
    Notice,
}

/// What a `registration` asks for.
#[derive(Default, PartialEq, Eq)]
pub struct Wish {
    /// The session shall be one that can be resumed.
    pub resumable: bool,
    /// The token of the session that is to be resumed.
    pub resume: Option<String>,
    /// The highest `seq` that the client has of it.
    pub seq: u64,
    /// Credentials.
    pub token: Option<String>,
}

impl std::fmt::Debug for Wish {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resumable, resume, seq, token } = self;
        let [resume, token] = [resume, token].map(|secret| secret.as_ref().map(|_| "a token"));
        let mut shown = formatter.debug_struct("Wish");
        shown.field("resumable", resumable).field("resume", &resume).field("seq", seq).field("token", &token).finish()
    }
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
    /// Credentials are required, refused or expired.
    EAuth,
}

impl ErrorCode {
    /// Every code, for metrics.
    pub const ALL: [Self; 10] = [
        Self::ESyntax,
        Self::EKind,
        Self::EInval,
        Self::ECid,
        Self::ENotConn,
        Self::EBroker,
        Self::EMsgSize,
        Self::EAgain,
        Self::EBusy,
        Self::EAuth,
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
            Self::EAuth => "EAUTH",
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
struct RegistrationData<'a> {
    #[serde(borrow, default)]
    resumable: Option<&'a RawValue>,
    #[serde(borrow, default)]
    resume: Option<&'a RawValue>,
    #[serde(borrow, default)]
    seq: Option<&'a RawValue>,
    #[serde(borrow, default)]
    token: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct AckData {
    seq: u64,
}

#[derive(Deserialize)]
struct SendData<'a> {
    #[serde(borrow, default)]
    receiver_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
}

/// Reads a text frame of the session `client`. The first check that fails names the error, in the
/// order object, id, kind, client id, data, size (`max_text_bytes`, of UTF-8).
///
/// # Errors
/// A [`Rejection`], to be answered.
pub fn decode(frame: &str, client: Uuid, max_text_bytes: usize) -> Result<Request, Rejection> {
    let nameless = |(code, description)| Rejection { id: None, code, description };
    // Serde would also read an array as the fields of a struct.
    let begin = frame.trim_start_matches([' ', '\t', '\r', '\n']).chars().next();
    if begin != Some('{') {
        let is = begin.map_or("is empty".to_owned(), |begin| format!("begins with {begin:?}"));
        return Err(nameless((ErrorCode::ESyntax, format!("the frame {is}: it must be one JSON object"))));
    }
    let fields: Frame<'_> = serde_json::from_str(frame).map_err(|error| nameless(unreadable("frame", &error)))?;
    let id = uuid("id", fields.id, ErrorCode::ESyntax, A_UUID).map_err(nameless)?;
    decode_fields(id, &fields, client, max_text_bytes).map_err(|(code, description)| Rejection {
        id: Some(id),
        code,
        description,
    })
}

/// What an id must be.
const A_UUID: &str = "a UUID, such as \"1b4e28ba-2fa1-4d2b-883f-0016d3cca427\"";
/// Letters of a value that is repeated to whoever sent it.
const MOST_SHOWN: usize = 40;

/// What is wrong with a frame, for programs and for people.
type Flaw = (ErrorCode, String);

fn decode_fields(id: Uuid, fields: &Frame<'_>, client: Uuid, max_text_bytes: usize) -> Result<Request, Flaw> {
    let kinds = "\"send\", \"registration\", \"ack\" or \"error\"";
    let kind = string("kind", fields.kind, ErrorCode::ESyntax, kinds)?;
    match kind.as_str() {
        "ack" => {
            // Whatever it is, it is taken: v1 says nothing of what an `ack` may carry.
            let object = fields.data.filter(|raw| raw.get().starts_with('{'));
            let data = object.and_then(|raw| serde_json::from_str::<AckData>(raw.get()).ok());
            Ok(data.map_or(Request::Notice, |data| Request::Had(data.seq)))
        }
        "error" => Ok(Request::Notice),
        "registration" => Ok(Request::Registration { id, wish: Box::new(decode_wish(fields.data)?) }),
        "send" => {
            let expected = "the id of this session, as \"connection\" told it";
            if uuid("client_id", fields.client_id, ErrorCode::ECid, expected)? != client {
                return Err(wrong("client_id", fields.client_id, ErrorCode::ECid, expected));
            }
            decode_send(id, fields.data, max_text_bytes)
        }
        _ => Err(wrong("kind", fields.kind, ErrorCode::EKind, kinds)),
    }
}

fn decode_wish(data: Option<&RawValue>) -> Result<Wish, Flaw> {
    let Some(raw) = data else { return Ok(Wish::default()) };
    if !raw.get().starts_with('{') {
        return Err(wrong("data", data, ErrorCode::EInval, "null or an object in a \"registration\""));
    }
    let fields: RegistrationData<'_> =
        serde_json::from_str(raw.get()).map_err(|error| (ErrorCode::EInval, unreadable("field \"data\"", &error).1))?;
    let resume = match fields.resume {
        None => None,
        Some(_) => Some(string("resume", fields.resume, ErrorCode::EInval, "a token from a \"connection\", a string")?),
    };
    let resumable = value("resumable", fields.resumable, "true or false")?.unwrap_or(false) || resume.is_some();
    let seq = value("seq", fields.seq, "the \"seq\" of a \"receive\", or 0")?.unwrap_or(0);
    // Where none are asked for, whatever it is does no harm; where they are, it is refused as what it is.
    let token = fields.token.map(|raw| serde_json::from_str(raw.get()).unwrap_or_default());
    Ok(Wish { resumable, resume, seq, token })
}

fn value<T: serde::de::DeserializeOwned>(
    name: &str,
    raw: Option<&RawValue>,
    expected: &str,
) -> Result<Option<T>, Flaw> {
    raw.map(|json| serde_json::from_str(json.get()).map_err(|_| wrong(name, raw, ErrorCode::EInval, expected)))
        .transpose()
}

fn decode_send(id: Uuid, data: Option<&RawValue>, max_text_bytes: usize) -> Result<Request, Flaw> {
    let object = data.filter(|raw| raw.get().starts_with('{')).ok_or_else(|| {
        let expected = "an object with the strings \"receiver_id\" and \"text\" in a \"send\"";
        wrong("data", data, ErrorCode::EInval, expected)
    })?;
    let fields: SendData<'_> = serde_json::from_str(object.get())
        .map_err(|error| (ErrorCode::EInval, unreadable("field \"data\"", &error).1))?;
    let receiver = uuid("receiver_id", fields.receiver_id, ErrorCode::EInval, A_UUID)?;
    let text = string("text", fields.text, ErrorCode::EInval, "a string")?;
    if text.len() > max_text_bytes {
        let description = format!("the text has {} bytes; the limit is {max_text_bytes}", text.len());
        return Err((ErrorCode::EMsgSize, description));
    }
    Ok(Request::Send { id, receiver, text })
}

fn uuid(name: &str, raw: Option<&RawValue>, code: ErrorCode, expected: &str) -> Result<Uuid, Flaw> {
    let text = string(name, raw, code, expected)?;
    Uuid::try_parse(&text).map_err(|_| wrong(name, raw, code, expected))
}

fn string(name: &str, raw: Option<&RawValue>, code: ErrorCode, expected: &str) -> Result<String, Flaw> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).ok_or_else(|| wrong(name, raw, code, expected))
}

fn unreadable(what: &str, error: &serde_json::Error) -> Flaw {
    let reason = if error.is_data() { "can't be read" } else { "is not valid JSON" };
    (ErrorCode::ESyntax, format!("the {what} {reason}: {error}"))
}

/// Why the value of a field is not what it must be.
fn wrong(name: &str, raw: Option<&RawValue>, code: ErrorCode, expected: &str) -> Flaw {
    let json = raw.map_or("", RawValue::get);
    let is = match json.as_bytes().first() {
        None => "missing or null".to_owned(),
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array".to_owned(),
        // JSON's grammar knows the escape, but no string of Unicode has what it stands for.
        Some(b'"') => match unpaired_surrogate(json) {
            Some(escape) => {
                let reason = "half of an emoji or of another character that takes two escapes: send both or none";
                let description = format!("the field \"{name}\" holds an unpaired surrogate ({escape}), {reason}");
                return (ErrorCode::ESyntax, description);
            }
            None => shown(json),
        },
        Some(_) => shown(json),
    };
    (code, format!("the field \"{name}\" is {is}: it must be {expected}"))
}

/// A value as it came, or its beginning.
fn shown(json: &str) -> String {
    let end = json.char_indices().nth(MOST_SHOWN).map_or(json.len(), |(end, _)| end);
    format!("{}{}", &json[..end], if end < json.len() { "…" } else { "" })
}

/// The first escape of half a character in a JSON string, whose grammar has been checked.
fn unpaired_surrogate(json: &str) -> Option<&str> {
    let unit = |at: usize| {
        let digits = json.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = json.get(at..).and_then(|rest| rest.find('\\')) {
        at += found;
        match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            Some(0xD800..=0xDFFF) => return json.get(at..at + 6),
            _ => at += 2,
        }
    }
    None
}

/// A frame for the client.
#[derive(Debug)]
pub enum Reply<'a> {
    /// Who this session is, and how long its credentials are good, if it has some.
    Connection(Option<Expiry>),
    /// The same for one that can be resumed.
    Resumable(&'a Resumable),
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
        /// Its place in a session that can be resumed.
        seq: Option<u64>,
    },
}

/// What a client is told of a session that can be resumed.
#[derive(Debug, Serialize)]
pub struct Resumable {
    /// Nothing that was acknowledged to others since the client was here last is missing.
    pub resumed: bool,
    /// How it is resumed next time.
    pub resume: Resume,
    /// How long its credentials are good, if it has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Expiry>,
}

/// How long something is good.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Expiry {
    /// In milliseconds from now.
    pub expires_ms: u64,
}

/// How a session is resumed.
#[derive(Debug, Serialize)]
pub struct Resume {
    /// A secret: whoever has it is this client.
    pub token: String,
    /// How long the client may be without a socket and miss nothing, in milliseconds.
    pub window_ms: u64,
    /// How long the token is good, in milliseconds.
    pub expires_ms: u64,
    /// Whether another node has what this one has.
    pub standby: bool,
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
    Connection {
        client_id: Uuid,
        #[serde(skip_serializing_if = "Option::is_none")]
        credentials: Option<Expiry>,
    },
    Resumable {
        client_id: Uuid,
        #[serde(flatten)]
        resumable: &'a Resumable,
    },
    Null,
    Error {
        code: ErrorCode,
        description: &'a str,
    },
    Receive {
        sender_id: Uuid,
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
    },
}

/// Writes a text frame for the session `client`.
pub fn encode(client: Uuid, id: Uuid, reply: &Reply<'_>) -> String {
    let (kind, data) = match *reply {
        Reply::Connection(credentials) => ("connection", OutData::Connection { client_id: client, credentials }),
        Reply::Resumable(resumable) => ("connection", OutData::Resumable { client_id: client, resumable }),
        Reply::Ack => ("ack", OutData::Null),
        Reply::Error { code, description } => ("error", OutData::Error { code, description }),
        Reply::Receive { sender, text, seq } => ("receive", OutData::Receive { sender_id: sender, text, seq }),
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
        golden(Reply::Connection(None), r#"{"client_id":"754cd3a0-27b3-4c51-a66e-466fed82b667"}"#, "connection");
        let expiry = Reply::Connection(Some(Expiry { expires_ms: 9 }));
        let data = r#"{"client_id":"754cd3a0-27b3-4c51-a66e-466fed82b667","credentials":{"expires_ms":9}}"#;
        golden(expiry, data, "connection");
        golden(Reply::Ack, "null", "ack");
        let error = Reply::Error { code: ErrorCode::ENotConn, description: "nobody" };
        golden(error, r#"{"code":"ENOTCONN","description":"nobody"}"#, "error");
        let receive = Reply::Receive { sender: ID, text: "a\"<b>\u{1F600}", seq: None };
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
            assert_eq!(
                decode(&frame, CLIENT, 8),
                Ok(Request::Registration { id: ID, wish: Box::default() }),
                "{frame}"
            );
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

    #[test]
    fn what_a_registration_asks_for() {
        let wish =
            |data: &str| match decode(&format!(r#"{{"id":"{ID}","kind":"registration","data":{data}}}"#), CLIENT, 8) {
                Ok(Request::Registration { wish, .. }) => Ok(*wish),
                Ok(other) => panic!("{other:?}"),
                Err(rejection) => Err(rejection.code),
            };
        assert_eq!(wish("{}"), Ok(Wish::default()));
        assert_eq!(wish(r#"{"resumable":true,"more":[]}"#), Ok(Wish { resumable: true, ..Wish::default() }));
        let resumed = Wish { resumable: true, resume: Some("abc".to_owned()), seq: 7, token: None };
        assert_eq!(wish(r#"{"resume":"abc","seq":7}"#), Ok(resumed), "a token implies that it is resumable");
        assert_eq!(wish(r#"{"resume":null,"resumable":null,"seq":null,"token":null}"#), Ok(Wish::default()));
        let with = |token: &str| Ok(Wish { token: Some(token.to_owned()), ..Wish::default() });
        assert_eq!(wish(r#"{"token":"a.b.c"}"#), with("a.b.c"));
        assert_eq!(wish(r#"{"token":[7]}"#), with(""), "for whoever asks for credentials");
        let shown = format!("{:?}", wish(r#"{"token":"hunter2","resume":"hunter2"}"#).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        for data in ["[]", "7", r#"{"resumable":1}"#, r#"{"resume":1}"#, r#"{"resume":"a","seq":-1}"#, r#"{"seq":"1"}"#]
        {
            assert_eq!(wish(data), Err(ErrorCode::EInval), "{data}");
        }
    }

    #[test]
    fn an_ack_may_say_up_to_where() {
        let ack = |data: &str| decode(&format!(r#"{{"id":"{ID}","kind":"ack","data":{data}}}"#), CLIENT, 8);
        assert_eq!(ack(r#"{"seq":7,"more":1}"#), Ok(Request::Had(7)));
        for data in ["null", "[]", "[7]", "{}", r#"{"seq":-1}"#, r#"{"seq":"7"}"#, "7"] {
            assert_eq!(ack(data), Ok(Request::Notice), "{data}");
        }
    }

    #[test]
    fn a_session_that_can_be_resumed_is_told_how() {
        let resume = Resume { token: "t".to_owned(), window_ms: 1, expires_ms: 2, standby: false };
        let frame = encode(CLIENT, ID, &Reply::Resumable(&Resumable { resumed: true, resume, credentials: None }));
        let data = format!(
            r#""data":{{"client_id":"{CLIENT}","resumed":true,"resume":{{"token":"t","window_ms":1,"expires_ms":2,"standby":false}}}}"#
        );
        assert!(frame.contains(&data), "{frame}");
        let frame = encode(CLIENT, ID, &Reply::Receive { sender: ID, text: "x", seq: Some(3) });
        assert!(frame.contains(r#""text":"x","seq":3"#), "{frame}");
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
            if let Ok(Request::Send { id, .. } | Request::Registration { id, .. }) = decode(&frame, CLIENT, 8) {
                prop_assert_eq!(id, ID);
            }
        }

        #[test]
        fn every_text_survives_both_ways(text in any::<String>()) {
            let frame = encode(CLIENT, ID, &Reply::Receive { sender: ID, text: &text, seq: None });
            let value: serde_json::Value = serde_json::from_str(&frame).unwrap();
            prop_assert_eq!(value["data"]["text"].as_str(), Some(text.as_str()));
            let data = serde_json::json!({ "receiver_id": ID, "text": text });
            let request = decode(&send(&format!("\"{CLIENT}\""), &data.to_string()), CLIENT, usize::MAX);
            prop_assert_eq!(request, Ok(Request::Send { id: ID, receiver: ID, text }));
        }
    }
}
