use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::crypto::sign;
use serde_json::{Value, json};

use super::*;

const SECRET: [u8; 64] = [b's'; 64];

fn verifier(demands: Demands) -> Verifier {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SECRET).unwrap();
    Verifier::new(Arc::new(KeySource::from_file(file.path(), None).unwrap()), demands)
}

fn demands() -> Demands {
    Demands { leeway: Duration::from_secs(60), ..Demands::default() }
}

fn now() -> u64 {
    unix(SystemTime::now())
}

/// A token that says just this, with a good signature.
fn craft(header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let algorithm = header["alg"].as_str().and_then(|name| name.parse().ok()).unwrap_or(Algorithm::HS256);
    let signature = sign(message.as_bytes(), &EncodingKey::from_secret(&SECRET), algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hs256() -> Value {
    json!({ "alg": "HS256", "typ": "JWT" })
}

#[test]
fn what_is_good_is_taken_and_says_who_and_until_when() {
    let verifier = verifier(demands());
    let client = Uuid::new_v4();
    for algorithm in ["HS256", "HS384", "HS512"] {
        let token = craft(&json!({ "alg": algorithm }), &json!({ "sub": client, "exp": now() + 100 }));
        let pass = verifier.verify(&token).unwrap();
        assert_eq!(pass.client, Some(client));
        assert!(pass.expires.abs_diff(now() + 100) <= 1);
        let ends = pass.ends.saturating_duration_since(Instant::now()).as_secs();
        assert!((155..=160).contains(&ends), "with the leeway: {ends}");
    }
    for typ in ["JWT", "jwt", "at+jwt", "application/jwt", "application/at+jwt"] {
        verifier.verify(&craft(&json!({ "alg": "HS256", "typ": typ }), &json!({ "exp": now() + 9 }))).unwrap();
    }
    // For ever is as long as a timer can count.
    for exp in [json!(u64::MAX / 2), json!(9.0e15), json!((now() + 9) as f64 + 0.5)] {
        verifier.verify(&craft(&hs256(), &json!({ "exp": exp }))).unwrap();
    }
}

#[test]
fn nobody_is_everybody() {
    let verifier = verifier(demands());
    for sub in [Uuid::nil().to_string(), Uuid::max().to_string(), "anna".to_owned(), String::new()] {
        let pass = verifier.verify(&craft(&hs256(), &json!({ "sub": sub, "exp": now() + 100 }))).unwrap();
        assert_eq!(pass.client, None, "{sub}");
    }
}

#[test]
fn whoever_is_somebody_else_is_told_apart() {
    let verifier = verifier(demands());
    let subject = |claims: Value| {
        let mut claims = claims;
        claims["exp"] = json!(now() + 100);
        verifier.verify(&craft(&hs256(), &claims)).unwrap().subject
    };
    let client = Uuid::new_v4();
    assert_eq!(
        subject(json!({ "sub": client })),
        subject(json!({ "sub": client.to_string().to_uppercase(), "iss": "i" }))
    );
    let all = [
        json!({ "sub": client }),
        json!({ "sub": Uuid::new_v4() }),
        json!({ "sub": "anna" }),
        json!({ "sub": "berta" }),
        json!({ "sub": "anna", "iss": "one" }),
        json!({ "sub": "anna", "iss": "two" }),
        json!({ "sub": "eanna", "iss": "on" }),
        json!({}),
    ];
    let subjects: std::collections::HashSet<_> = all.iter().map(|claims| subject(claims.clone())).collect();
    assert_eq!(subjects.len(), all.len());
}

#[test]
fn each_flaw_is_found() {
    let demanding =
        Demands { audience: vec!["texto".into(), "chat".into()], issuer: vec!["login".into()], ..demands() };
    let verifier = verifier(demanding);
    let good = json!({ "exp": now() + 100, "aud": "texto", "iss": "login" });
    let with = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        craft(&hs256(), &claims)
    };
    let without = |field: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(field);
        craft(&hs256(), &claims)
    };
    let headed = |header: Value| craft(&header, &good);
    let signed = craft(&hs256(), &good);
    assert_eq!(verifier.verify(&signed).map(|_| ()), Ok(()));
    for token in [with("aud", json!(["other", "chat"])), with("exp", json!(now() - 55)), with("nbf", json!(now() + 55))]
    {
        assert_eq!(verifier.verify(&token).map(|_| ()), Ok(()));
    }
    let (message, signature) = signed.rsplit_once('.').unwrap();
    let forged = URL_SAFE_NO_PAD.encode(json!({ "exp": now() + 9999, "aud": "texto", "iss": "login" }).to_string());
    let forged = format!("{}.{forged}.{signature}", message.split('.').next().unwrap());
    let none = |alg: &str| {
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        format!("{}.{}.", encode(&json!({ "alg": alg, "typ": "JWT" })), encode(&good))
    };
    let resume = crate::resume::token::Keyring::new(crate::resume::token::Key::new(&SECRET).unwrap(), Vec::new());
    let claims =
        crate::resume::token::Claims::new(Uuid::new_v4(), 1, 2, None, SystemTime::now(), Duration::from_secs(99));
    for (token, refusal) in [
        (String::new(), Refusal::Malformed),
        ("a.b.c".to_owned(), Refusal::Malformed),
        (format!("{signed}.more"), Refusal::Malformed),
        (message.to_owned(), Refusal::Malformed),
        (resume.sign(&claims), Refusal::Malformed),
        ("x".repeat(MOST_BYTES + 1), Refusal::TooLong),
        (with("more", json!("x".repeat(MOST_BYTES))), Refusal::TooLong),
        (none("none"), Refusal::Algorithm),
        (none("None"), Refusal::Algorithm),
        (none("HS256"), Refusal::Signature),
        (headed(json!({ "alg": "ES512" })), Refusal::Algorithm),
        (headed(json!({ "alg": "HS256", "typ": "JWS" })), Refusal::Type),
        (headed(json!({ "alg": "HS256", "typ": "dpop+jwt" })), Refusal::Type),
        (headed(json!({ "alg": "HS256", "typ": "" })), Refusal::Type),
        (headed(json!({ "alg": "HS256", "crit": ["b64"], "b64": false })), Refusal::Type),
        (headed(json!({ "typ": "JWT" })), Refusal::Malformed),
        (forged, Refusal::Signature),
        (format!("{message}."), Refusal::Signature),
        (without("exp"), Refusal::NoExpiry),
        (with("exp", json!(null)), Refusal::NoExpiry),
        (with("exp", json!("tomorrow")), Refusal::NoExpiry),
        (with("exp", json!(-1)), Refusal::NoExpiry),
        (with("exp", json!(1e300)), Refusal::NoExpiry),
        (with("exp", json!(now() - 65)), Refusal::Expired),
        (with("exp", json!(0)), Refusal::Expired),
        (with("nbf", json!(now() + 65)), Refusal::NotYet),
        (with("nbf", json!("tomorrow")), Refusal::NotYet),
        (without("aud"), Refusal::Audience),
        (with("aud", json!("other")), Refusal::Audience),
        (with("aud", json!([])), Refusal::Audience),
        (with("aud", json!(7)), Refusal::Audience),
        (without("iss"), Refusal::Issuer),
        (with("iss", json!("somebody")), Refusal::Issuer),
        (with("sub", json!(7)), Refusal::Malformed),
        (with("aud", json!([["texto"]])), Refusal::Audience),
        (with("aud", json!({ "texto": "texto" })), Refusal::Audience),
        (with("nbf", json!(1e300)), Refusal::NotYet),
        (with("nbf", json!([0])), Refusal::Malformed),
        (headed(json!({ "alg": ["HS256"] })), Refusal::Malformed),
        (headed(json!({ "alg": "HS256", "kid": 7 })), Refusal::Malformed),
        (headed(json!({ "alg": "hs256" })), Refusal::Algorithm),
        (headed(json!({ "alg": "HS256", "crit": [] })), Refusal::Type),
        (format!(" {signed}"), Refusal::Malformed),
        (format!("{signed} "), Refusal::Malformed),
        (format!("{signed}\n"), Refusal::Malformed),
        (signed.replacen('.', "\n.", 1), Refusal::Malformed),
        (format!("{signed}="), Refusal::Malformed),
        (signed.replacen('.', "=.", 1), Refusal::Malformed),
    ] {
        assert_eq!(verifier.verify(&token).map(|_| ()), Err(refusal), "{token}");
    }
    // Twice is not what anybody signs.
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let twice = format!(r#"{{"exp":1,"exp":{},"aud":"texto","iss":"login"}}"#, now() + 100);
    let message = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(&twice));
    let signature = sign(message.as_bytes(), &EncodingKey::from_secret(&SECRET), Algorithm::HS256).unwrap();
    assert_eq!(verifier.verify(&format!("{message}.{signature}")).map(|_| ()), Err(Refusal::Malformed));
}

#[test]
fn a_token_for_somebody_is_not_for_whoever_was_told_no_name() {
    let verifier = verifier(demands());
    for audience in [json!("another service"), json!([["nested"]]), json!({ "a": "b" }), json!(7), json!([])] {
        let claims = json!({ "exp": now() + 100, "aud": audience });
        assert_eq!(verifier.verify(&craft(&hs256(), &claims)).map(|_| ()), Err(Refusal::Audience), "{audience}");
    }
    let claims = json!({ "exp": now() + 100, "aud": null });
    assert_eq!(verifier.verify(&craft(&hs256(), &claims)).map(|_| ()), Ok(()), "as if it were not there");
}

#[test]
fn a_resume_token_stands_for_credentials_as_long_as_they_are_good() {
    let verifier = verifier(demands());
    let pass = verifier.verify(&craft(&hs256(), &json!({ "sub": "anna", "exp": now() + 100 }))).unwrap();
    let again = verifier.resumed(&pass.backing()).unwrap();
    assert_eq!((again.subject, again.expires, again.client), (pass.subject, pass.expires, None));
    let over = Backing { until: now() - 61, ..pass.backing() };
    assert_eq!(verifier.resumed(&over), Err(Refusal::Expired));
    assert!(verifier.resumed(&Backing { until: now() - 55, ..over }).is_ok(), "the leeway");
}

#[test]
fn nothing_of_anybody_is_shown() {
    let verifier = verifier(demands());
    let pass = verifier.verify(&craft(&hs256(), &json!({ "sub": "hunter2", "exp": now() + 100 }))).unwrap();
    let shown = format!("{pass:?} {verifier:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("ssss"), "{shown}");
}

proptest::proptest! {
    #[test]
    fn nothing_makes_it_panic(token in "[A-Za-z0-9_.=-]{0,200}") {
        let _ = verifier(demands()).verify(&token);
    }
}
