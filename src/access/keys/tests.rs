use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::EncodingKey;
use serde_json::json;
use tempfile::TempDir;
use texto_lab::issuer::{KeyPair, openssl};

use super::*;

fn read(bytes: &[u8]) -> Result<VerifyKeys, KeysFlaw> {
    VerifyKeys::read(bytes, KeyPlace::File, None)
}

fn algorithms(keys: &VerifyKeys) -> Vec<Vec<Algorithm>> {
    keys.keys.iter().map(|key| key.algorithms.clone()).collect()
}

fn public(folder: &TempDir, kind: &str) -> Vec<u8> {
    std::fs::read(KeyPair::new(folder.path(), kind, kind).unwrap().public).unwrap()
}

/// The JWK of a public key in PEM, with further fields.
fn jwk(key: &DecodingKey, more: Value) -> Value {
    let mut jwk = serde_json::to_value(Jwk::from_decoding_key(key, None).unwrap()).unwrap();
    jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    jwk
}

#[test]
fn a_public_key_is_good_for_what_it_is_and_for_nothing_else() {
    let folder = TempDir::new().unwrap();
    let mut all = Vec::new();
    for (kind, expected) in
        [("rsa-2048", RSA.to_vec()), ("P-256", vec![ES256]), ("P-384", vec![ES384]), ("ed25519", vec![EdDSA])]
    {
        let pem = public(&folder, kind);
        assert_eq!(algorithms(&read(&pem).unwrap()), [expected], "{kind}");
        all.extend(pem);
    }
    // Several in one file, with what people write between them.
    let text = format!("\u{feff}# May\r\n{}\nend", String::from_utf8(all).unwrap().replace('\n', "\r\n"));
    let keys = read(text.as_bytes()).unwrap();
    assert_eq!(keys.len(), 4);
    assert!(!keys.has_secret());
    let only = VerifyKeys::read(text.as_bytes(), KeyPlace::File, Some(&[ES384, PS256])).unwrap();
    assert_eq!(algorithms(&only), [[PS256], [ES384]]);
    let flaw = VerifyKeys::read(text.as_bytes(), KeyPlace::File, Some(&[HS256])).unwrap_err();
    assert!(matches!(flaw, KeysFlaw::NotAllowed(_)), "{flaw}");
}

#[test]
fn what_is_no_public_key_for_us_is_refused_and_named() {
    let folder = TempDir::new().unwrap();
    for (kind, reason) in
        [("rsa-1024", "RSA with fewer bits"), ("P-521", "another curve"), ("secp256k1", "another curve")]
    {
        let flaw = read(&public(&folder, kind)).unwrap_err().to_string();
        assert!(flaw.contains(reason), "{kind}: {flaw}");
    }
    let pair = KeyPair::new(folder.path(), "pair", "P-256").unwrap();
    assert_eq!(read(&std::fs::read(&pair.private).unwrap()).unwrap_err(), KeysFlaw::Private);
    let private = pair.private.to_string_lossy().into_owned();
    let request = ["req", "-x509", "-key", &private, "-subj", "/CN=x", "-days", "1"].map(str::to_owned);
    assert_eq!(read(&openssl(&request).unwrap()).unwrap_err(), KeysFlaw::Certificate);
    let cut = std::fs::read_to_string(&pair.public).unwrap();
    assert!(matches!(read(&cut.as_bytes()[..80]), Err(KeysFlaw::Unusable(_))));
    for blank in ["", " \r\n", "\u{feff}"] {
        assert_eq!(read(blank.as_bytes()).unwrap_err(), KeysFlaw::Empty);
    }
}

/// As a secret, everybody who has the issuer's public key could sign by it.
#[test]
fn a_public_key_in_any_form_is_no_secret() {
    let folder = TempDir::new().unwrap();
    for kind in ["rsa-2048", "P-256", "P-384", "ed25519"] {
        let pem = String::from_utf8(public(&folder, kind)).unwrap();
        let bare: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(&bare).unwrap();
        let wrapped = pem.lines().filter(|line| !line.starts_with("-----")).collect::<Vec<_>>().join("\n");
        for form in [der, bare.clone().into_bytes(), format!("{bare}\n").into_bytes(), wrapped.into_bytes()] {
            let flaw = read(&form).unwrap_err();
            assert!(matches!(flaw, KeysFlaw::Public(_)), "{kind}: {flaw}");
        }
    }
    let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJmGzW2m0oFv5XxSx8r1b8vX3qk2Tt0y3B6d1Jt4f0aB somebody@somewhere";
    assert!(matches!(read(ssh.as_bytes()), Err(KeysFlaw::Public(_))));
}

/// As a secret, it would be known to whoever asks for the same, or has the public key.
#[test]
fn what_came_instead_of_a_key_or_was_mangled_is_no_secret() {
    let folder = TempDir::new().unwrap();
    let pem = String::from_utf8(public(&folder, "P-256")).unwrap();
    let without_begin = pem.lines().skip(1).collect::<Vec<_>>().join("\n");
    let utf16 = |bom: [u8; 2], bytes: fn(u16) -> [u8; 2]| {
        bom.into_iter().chain(pem.encode_utf16().flat_map(bytes)).collect::<Vec<u8>>()
    };
    let ec = DecodingKey::from_ec_pem(pem.as_bytes()).unwrap();
    let list = json!([jwk(&ec, json!({ "kid": "a" }))]).to_string();
    let ssh2 =
        "---- BEGIN SSH2 PUBLIC KEY ----\nAAAAC3NzaC1lZDI1NTE5AAAAIJmGzW2m0oFv5Xx\n---- END SSH2 PUBLIC KEY ----\n";
    for text in [
        without_begin.into_bytes(),
        utf16([0xff, 0xfe], u16::to_le_bytes),
        utf16([0xfe, 0xff], u16::to_be_bytes),
        list.into_bytes(),
        ssh2.into(),
        b"<!DOCTYPE html>\n<title>404 Not Found</title>\n<p>There is no such set of keys.".to_vec(),
        b"\r\n<HTML><head><title>Sign in</title></head></HTML>".to_vec(),
        b"https://login.example.org/.well-known/jwks.json\n".to_vec(),
    ] {
        let flaw = read(&text);
        assert!(matches!(flaw, Err(KeysFlaw::Public(_))), "{}: {flaw:?}", text.escape_ascii());
    }
    for secret in ["<k3s!no-page-at-all,but-a-secret", "[0;32m-is-where-this-secret-begins", "--END--of-it-is-no-end"] {
        assert!(read(format!("{secret:x<32}").as_bytes()).is_ok(), "{secret}");
    }
}

/// Whoever can guess it could sign with it.
#[test]
fn what_people_or_programs_wrote_for_others_to_read_is_no_secret() {
    for text in [
        "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
        "HTTP/2 200\r\ncontent-type: application/json\r\n\r\n{\"keys\":[]}",
        "// the keys of the login\n{\"keys\":[{\"kty\":\"RSA\",\"n\":\"AQAB\"}]}",
        "\"keys\":[{\"kty\":\"RSA\",\"n\":\"AQAB\",\"e\":\"AQAB\"}]}",
        "\"https://login.example.org/.well-known/jwks.json\"",
        "Modulus=C0FFEEC0FFEEC0FFEEC0FFEEC0FFEEC0FFEEC0FFEE",
        "Public-Key: (2048 bit)\nModulus:\n    00:c0:ff:ee:c0:ff:ee:c0:ff:ee",
    ] {
        let flaw = read(text.as_bytes());
        assert!(matches!(flaw, Err(KeysFlaw::Prose(_))), "{text}: {flaw:?}");
    }
    // As a JWK it is meant to be one, whatever it holds.
    let oct = Jwk::from_encoding_key(&EncodingKey::from_secret(b"a secret that has blanks, and is long enough"), HS256)
        .unwrap();
    assert!(read(serde_json::to_string(&oct).unwrap().as_bytes()).unwrap().has_secret());
}

#[test]
fn a_secret_is_good_for_the_hashes_that_it_is_as_long_as() {
    for (bytes, expected) in
        [(32, vec![HS256]), (47, vec![HS256]), (48, vec![HS256, HS384]), (64, vec![HS256, HS384, HS512])]
    {
        let keys = read(format!("{}\r\n", "s".repeat(bytes)).as_bytes()).unwrap();
        assert_eq!(algorithms(&keys), [expected], "{bytes}");
        assert!(keys.has_secret());
    }
    assert_eq!(read(&[b's'; 31]).unwrap_err(), KeysFlaw::Short(31, 32));
    let asked = |bytes, algorithm| VerifyKeys::read(&vec![b's'; bytes], KeyPlace::File, Some(&[algorithm]));
    assert_eq!(asked(63, HS512).unwrap_err(), KeysFlaw::Short(63, 64));
    assert_eq!(algorithms(&asked(64, HS512).unwrap()), [[HS512]]);
    // Bytes that are no text are one as well; so is what looks like base64 of something else.
    assert!(read(&[0xfe; 40]).is_ok());
    assert!(read(STANDARD.encode([7; 48]).as_bytes()).is_ok());
    let shown = format!("{:?}", read("hunter2hunter2hunter2hunter2hunter2".as_bytes()).unwrap());
    assert!(!shown.contains("hunter2") && shown.contains("HS256"), "{shown}");
}

#[test]
fn of_a_set_what_is_not_for_us_is_passed_over() {
    let folder = TempDir::new().unwrap();
    let key = |kind: &str| public(&folder, kind);
    let rsa = DecodingKey::from_rsa_pem(&key("rsa-2048")).unwrap();
    let ec = DecodingKey::from_ec_pem(&key("P-256")).unwrap();
    let ed = DecodingKey::from_ed_pem(&key("ed25519")).unwrap();
    let secret = |bytes: usize| {
        let jwk = Jwk::from_encoding_key(&EncodingKey::from_secret(&vec![7; bytes]), HS256).unwrap();
        serde_json::to_value(jwk).unwrap()
    };
    let set = json!({ "keys": [
        jwk(&rsa, json!({ "kid": "a", "use": "sig", "alg": "RS256" })),
        jwk(&ec, json!({ "kid": "b", "key_ops": ["verify"] })),
        jwk(&ed, json!({ "kid": "c" })),
        jwk(&rsa, json!({ "kid": "for encryption", "use": "enc", "alg": "RSA-OAEP" })),
        jwk(&rsa, json!({ "kid": "signs only", "key_ops": ["sign"] })),
        jwk(&ec, json!({ "kid": "lies", "alg": "ES384" })),
        jwk(&ec, json!({ "kid": "lies more", "alg": "HS256" })),
        jwk(&ec, json!({ "kid": "private", "d": "AAAA" })),
        { "kty": "EC", "crv": "P-999", "x": "AA", "y": "AA", "kid": "strange" },
        { "kty": "OKP", "crv": "X25519", "x": "AA", "kid": "exchange" },
        { "kty": "new", "kid": "of tomorrow" },
        "nonsense",
        secret(31),
    ]});
    let keys = read(set.to_string().as_bytes()).unwrap();
    assert_eq!(keys.to_string(), "\"a\" (RS256), \"b\" (ES256), \"c\" (EdDSA)");
    assert_eq!(keys.skipped.len(), 10, "{:?}", keys.skipped);
    assert_eq!(read(jwk(&ed, json!({})).to_string().as_bytes()).unwrap().len(), 1, "a key alone");

    let secrets = json!({ "keys": [secret(32)] }).to_string();
    assert_eq!(algorithms(&read(secrets.as_bytes()).unwrap()), [[HS256]]);
    let served = VerifyKeys::read(secrets.as_bytes(), KeyPlace::Url, None).unwrap_err().to_string();
    assert!(served.contains("a secret that is served to everybody"), "{served}");
    for (text, reason) in [
        ("{", "no JSON"),
        ("{}", "no \"keys\""),
        (r#"{"keys":{}}"#, "not a list"),
        (r#"{"keys":[]}"#, "there are none"),
        (r#"{"keys":[{"kty":"new"}]}"#, "number 1: its kind is not known"),
    ] {
        let flaw = read(text.as_bytes()).unwrap_err().to_string();
        assert!(flaw.contains(reason), "{text}: {flaw}");
    }
    // An address that serves something else, a page perhaps, gives no secret.
    for text in ["<html>".repeat(20), "s".repeat(64), String::from_utf8(key("P-256")).unwrap()] {
        let flaw = VerifyKeys::read(text.as_bytes(), KeyPlace::Url, None).unwrap_err();
        assert!(matches!(flaw, KeysFlaw::NoJwks(_)), "{flaw}");
    }
}

#[test]
fn a_token_chooses_by_name_and_among_what_fits() {
    let folder = TempDir::new().unwrap();
    let rsa = DecodingKey::from_rsa_pem(&public(&folder, "rsa-2048")).unwrap();
    let ec = DecodingKey::from_ec_pem(&public(&folder, "P-256")).unwrap();
    let set = |nameless| {
        let mut keys = vec![jwk(&rsa, json!({ "kid": "a" })), jwk(&ec, json!({ "kid": "b" }))];
        keys.extend(Some(jwk(&ec, json!({}))).filter(|_| nameless));
        read(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    };
    let named = set(false);
    let chosen = |keys: &VerifyKeys, kid, algorithm| {
        keys.candidates(kid, algorithm).iter().map(|key| key.kid.clone().unwrap_or_default()).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&named, Some("a"), RS256), ["a"]);
    assert_eq!(chosen(&named, Some("a"), ES256), [""; 0], "it is of another kind");
    assert_eq!(chosen(&named, Some("c"), ES256), [""; 0]);
    assert_eq!(chosen(&named, None, ES256), ["b"]);
    assert_eq!(chosen(&named, Some("a"), HS256), [""; 0]);
    assert!(named.knows(Some("a")) && named.knows(None) && !named.knows(Some("c")));
    let nameless = set(true);
    assert_eq!(chosen(&nameless, Some("c"), ES256), [""], "one without a name may be any");
    assert_eq!(chosen(&nameless, Some("b"), ES256), ["b"]);
    assert_eq!(chosen(&nameless, None, ES256), ["b", ""]);
    assert!(nameless.knows(Some("c")));
}
