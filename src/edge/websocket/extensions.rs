//! Owns what client and gateway agree on about compression: `permessage-deflate`, RFC 7692, and nothing else.
//!
//! It is always agreed that no message refers to an earlier one (`…_no_context_takeover`): a session that is idle then
//! has no compressor, which would be 300 KB for each.

use std::num::NonZeroU8;

use http::{HeaderMap, HeaderValue, header};

/// The extension that is spoken here.
const NAME: &str = "permessage-deflate";
/// The largest window, in bits: what is meant where nothing is said.
const WINDOW: NonZeroU8 = NonZeroU8::new(15).unwrap();

/// What was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// How far back what is written may refer, as a power of two: 8 to 15.
    window_bits: NonZeroU8,
    /// The client asked for that, and must be answered, also if it is the largest (RFC 7692, section 7.1.2.1).
    was_asked: bool,
}

impl Deflate {
    /// How far back what is written may refer, as a power of two: 8 to 15.
    pub(super) fn window_bits(self) -> u8 {
        self.window_bits.get()
    }

    /// What the client is told of it.
    pub(super) fn answer(self) -> HeaderValue {
        let answer = format!("{NAME}; server_no_context_takeover; client_no_context_takeover");
        let bits = self.window_bits;
        let window = if self.was_asked { format!("; server_max_window_bits={bits}") } else { String::new() };
        // It consists of visible ASCII; that can't fail.
        HeaderValue::try_from(answer + &window).unwrap_or(HeaderValue::from_static(NAME))
    }
}

/// The header is not what RFC 6455, section 9.1, asks for: the connection must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Selects from what the client offers, in its order of preference: the first that can be served.
///
/// # Errors
/// When the header is malformed. An offer that is well-formed, but means nothing here, is passed over.
pub(super) fn select(headers: &HeaderMap) -> Result<Option<Deflate>, Malformed> {
    let mut selected = None;
    for value in headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS) {
        let value = value.to_str().map_err(|_| Malformed)?;
        for offer in value.split(',').map(trimmed).filter(|offer| !offer.is_empty()) {
            let (name, parameters) = extension(offer)?;
            if selected.is_none() && name == NAME {
                selected = deflate(&parameters);
            }
        }
    }
    Ok(selected)
}

/// A parameter: its name, and its value if it has one.
type Parameter<'a> = (&'a str, Option<String>);

/// Takes one extension apart. A value in quotes has to be a token without them, so no separator stands within quotes.
fn extension(text: &str) -> Result<(&str, Vec<Parameter<'_>>), Malformed> {
    let mut parts = text.split(';').map(trimmed);
    let name = parts.next().filter(|name| is_token(name)).ok_or(Malformed)?;
    let parameter = |part| {
        let (name, value) = match str::split_once(part, '=') {
            Some((name, value)) => (trimmed(name), Some(unquoted(trimmed(value)))),
            None => (part, None),
        };
        let is_well_formed = is_token(name) && value.as_deref().is_none_or(is_token);
        is_well_formed.then_some((name, value)).ok_or(Malformed)
    };
    Ok((name, parts.map(parameter).collect::<Result<_, _>>()?))
}

/// What these parameters of an offer come to (RFC 7692, section 7.1), if they can be served.
fn deflate(parameters: &[Parameter<'_>]) -> Option<Deflate> {
    let mut agreed = Deflate { window_bits: WINDOW, was_asked: false };
    for (at, (name, value)) in parameters.iter().enumerate() {
        if parameters[..at].iter().any(|(other, _)| other == name) {
            return None;
        }
        match (*name, value.as_deref()) {
            // Both are agreed anyway. What window the client says it needs is of no interest: the largest is read.
            ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
            ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(value)) => drop(window_bits(value)?),
            ("server_max_window_bits", Some(value)) => {
                agreed = Deflate { window_bits: window_bits(value)?, was_asked: true };
            }
            _ => return None,
        }
    }
    Some(agreed)
}

fn window_bits(text: &str) -> Option<NonZeroU8> {
    let bits = text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())??;
    (!text.starts_with('0') && (8..=WINDOW.get()).contains(&bits)).then(|| NonZeroU8::new(bits))?
}

fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c))
}

/// What a string in quotes says; anything else says itself.
fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else { return text.to_owned() };
    let mut said = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        // A backslash that quotes nothing leaves one in, which is in no token.
        said.push(if character == '\\' { characters.next().unwrap_or(character) } else { character });
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn selected(values: &[&str]) -> Result<Option<String>, Malformed> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Ok(select(&headers)?.map(|deflate| deflate.answer().to_str().unwrap().to_owned()))
    }

    const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    #[test]
    fn offers_are_answered_as_rfc_7692_asks() {
        let nine = format!("{PLAIN}; server_max_window_bits=9");
        for (offer, answer) in [
            // As browsers, Python and Autobahn offer it.
            ("permessage-deflate; client_max_window_bits", Some(PLAIN)),
            ("permessage-deflate; server_max_window_bits=12; client_max_window_bits=12", Some("12")),
            ("permessage-deflate; server_no_context_takeover; server_max_window_bits=9", Some(nine.as_str())),
            ("permessage-deflate", Some(PLAIN)),
            ("permessage-deflate;server_max_window_bits=15", Some("=15")),
            ("permessage-deflate; server_max_window_bits=8", Some("=8")),
            ("permessage-deflate; server_max_window_bits=\"10\"", Some("=10")),
            ("permessage-deflate; server_max_window_bits=\"1\\0\"", Some("=10")),
            // Others are passed over, and so are offers that make no sense.
            ("x-webkit-deflate-frame, permessage-bzip2; level=9 , permessage-deflate", Some(PLAIN)),
            ("permessage-deflate; server_max_window_bits=7, permessage-deflate", Some(PLAIN)),
            ("permessage-deflate; from_the_future, permessage-deflate; server_max_window_bits=9", Some(&nine)),
            (" ,, permessage-deflate ,", Some(PLAIN)),
            ("", None),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=08", None),
            ("permessage-deflate; server_max_window_bits=+9", None),
            ("permessage-deflate; client_max_window_bits=7", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
            ("permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", None),
            ("permessage-bzip2", None),
        ] {
            let selected = selected(&[offer]).unwrap();
            assert_eq!(selected.is_some(), answer.is_some(), "{offer}");
            assert!(
                selected.clone().unwrap_or_default().ends_with(answer.unwrap_or_default()),
                "{offer}: {selected:?}"
            );
        }
        assert_eq!(selected(&["foo", "permessage-deflate; server_max_window_bits=9"]), Ok(Some(nine)));
        assert_eq!(selected(&[]), Ok(None));
    }

    #[test]
    fn a_malformed_header_is_told_from_an_offer_that_is_declined() {
        for malformed in [
            ";",
            "permessage-deflate;",
            "permessage-deflate; =9",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=\"9",
            "permessage-deflate; server_max_window_bits=\"\"",
            "permessage-deflate; server_max_window_bits=\"9\\\"",
            "permessage-deflate; server_max_window_bits=\"9;\"",
            "permessage deflate",
            "permessage-deflate; a=b=c",
            "permessage-deflate, \u{fc}",
            // Also behind an offer that could be served, and in a header of its own.
            "permessage-deflate, @",
        ] {
            assert_eq!(selected(&[malformed]), Err(Malformed), "{malformed}");
            assert_eq!(selected(&["permessage-deflate", malformed]), Err(Malformed), "{malformed}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_offered_an_answer_is_one_that_was_asked_for(
            offer in "(permessage-deflate|;|,|=|\"|\\\\| |server_max_window_bits|client_max_window_bits|[0-9]{1,2}|[a-z]){0,12}",
        ) {
            if let Ok(Some(answer)) = selected(&[&offer]) {
                prop_assert!(answer.starts_with(PLAIN), "{}", answer);
                prop_assert!(answer == PLAIN || offer.contains("server_max_window_bits"), "{}", answer);
            }
        }
    }
}
