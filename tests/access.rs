//! Who comes in, and who does not: pages by their origin, and everybody by credentials, where those are demanded.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "access/issuer.rs"]
mod issuer;

use issuer::{Issuer, bearer, body, closed, craft, gateway, next, now, open, refused, register, send, token};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::json;
use texto_lab::client::{self, PATIENCE};
use texto_lab::gateway::Gateway;
use texto_lab::nginx::Nginx;
use uuid::Uuid;

async fn refusals(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("texto_access_refused_total{{reason=\"{reason}\"}}")).await.unwrap()
}

#[tokio::test]
async fn a_page_elsewhere_does_not_come_in_and_is_told_how_it_could() {
    let gateway = gateway(&[]).await;
    let own = format!("http://{}", gateway.address);
    open(gateway.address, "/v1/texto", &[("Origin", &own)]).await.unwrap();
    open(gateway.address, "/v1/texto", &[]).await.unwrap();
    for _ in 0..3 {
        let refused = open(gateway.address, "/v1/texto", &[("Origin", "https://evil.example")]).await.unwrap_err();
        assert_eq!(refused.status(), 403);
        let body = body(&refused);
        assert!(body.contains("https://evil.example") && body.contains("--allowed-origins"), "{body}");
    }
    let null = open(gateway.address, "/v1/texto", &[("Origin", "null")]).await.unwrap_err();
    assert_eq!(null.status(), 403);
    let two = [("Origin", &*own), ("Origin", &*own)];
    assert_eq!(open(gateway.address, "/v1/texto", &two).await.unwrap_err().status(), 403);
    // What a proxy says about the host is what the client said to it, perhaps.
    let forged = [("Origin", "https://evil.example"), ("X-Forwarded-Host", "evil.example")];
    assert_eq!(open(gateway.address, "/v1/texto", &forged).await.unwrap_err().status(), 403);
    assert_eq!(refusals(&gateway, "origin_foreign").await, 4.0);
    assert_eq!(refusals(&gateway, "origin_null").await, 1.0);
    assert_eq!(refusals(&gateway, "origin_malformed").await, 1.0);
    assert_eq!(gateway.metric("texto_handshakes_total{result=\"forbidden\"}").await, Some(6.0));
    gateway.wait_for_log("may not connect here", PATIENCE).await.unwrap();
    let lines = gateway.log().into_iter().filter(|line| line.contains("pages of https://evil.example")).count();
    assert_eq!(lines, 1, "the same is not said again and again");
    // Only what a page could do in somebody's name is kept from it.
    let page = texto_lab::http::get(gateway.address, "/", "Origin: https://evil.example\r\n").await.unwrap();
    assert_eq!(page.status, 200);
}

#[tokio::test]
async fn pages_that_are_allowed_come_in() {
    let gateway = gateway(&["--allowed-origins", "https://chat.example.org,https://*.example.com"]).await;
    let own = format!("http://{}", gateway.address);
    for good in ["https://chat.example.org", "https://a.b.example.com", &own] {
        assert!(open(gateway.address, "/v1/texto", &[("Origin", good)]).await.is_ok(), "{good}");
    }
    for bad in ["https://example.com", "http://chat.example.org", "null"] {
        let refused = open(gateway.address, "/v1/texto", &[("Origin", bad)]).await.unwrap_err();
        assert_eq!(refused.status(), 403, "{bad}");
    }
    let all = issuer::gateway(&["--allowed-origins", "*"]).await;
    for any in ["https://evil.example", "null"] {
        assert!(open(all.address, "/v1/texto", &[("Origin", any)]).await.is_ok(), "{any}");
    }
}

#[tokio::test]
async fn nginx_passes_on_where_a_page_is_from() {
    let gateway = gateway(&[]).await;
    let nginx = Nginx::start(&[gateway.address]).await.unwrap();
    let own = format!("http://{}", nginx.address);
    open(nginx.address, "/v1/texto", &[("Origin", &own)]).await.unwrap();
    for bad in [format!("http://{}", gateway.address), "https://evil.example".to_owned()] {
        assert_eq!(open(nginx.address, "/v1/texto", &[("Origin", &bad)]).await.unwrap_err().status(), 403, "{bad}");
    }
}

#[tokio::test]
async fn every_kind_of_key_is_taken_for_each_of_its_algorithms() {
    let issuer = Issuer::new();
    for (kind, algorithms) in [
        ("rsa-2048", &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"][..]),
        ("P-256", &["ES256"]),
        ("P-384", &["ES384"]),
        ("ed25519", &["EdDSA"]),
        ("secret", &["HS256", "HS384", "HS512"]),
    ] {
        let (private, public) = if kind == "secret" {
            (issuer.secret("s"), issuer.secret("s"))
        } else {
            let pair = issuer.pair(kind, kind);
            (pair.private, pair.public)
        };
        let gateway = gateway(&["--auth-key-file", public.to_str().unwrap()]).await;
        for algorithm in algorithms {
            let subject = Uuid::new_v4();
            let token = token(&private, &["--algorithm", algorithm, "--subject", &subject.to_string()]);
            let person = register(gateway.address, json!({ "token": token, "resumable": true })).await;
            assert_eq!(person.id(), subject, "{algorithm}: {}", person.frame);
            let expires = person.frame["data"]["credentials"]["expires_ms"].as_u64().unwrap();
            assert!((3_590_000..=3_600_000).contains(&expires), "{expires}");
        }
    }
}

#[tokio::test]
async fn whoever_has_no_good_credentials_is_told_why_and_closed() {
    let issuer = Issuer::new();
    let (rsa, other) = (issuer.pair("rsa-2048", "rsa"), issuer.pair("rsa-2048", "other"));
    let public = rsa.public.to_str().unwrap();
    let flags = ["--auth-key-file", public, "--auth-audience", "texto", "--auth-issuer", "login,sso"];
    let gateway = gateway(&flags).await;
    let key = EncodingKey::from_rsa_pem(&std::fs::read(&rsa.private).unwrap()).unwrap();
    let good = json!({ "exp": now() + 100, "aud": ["texto"], "iss": "sso", "sub": "anna" });
    let header = json!({ "alg": "RS256", "typ": "JWT" });
    let signed = |header: &serde_json::Value, claims: &serde_json::Value| craft(header, claims, &key, Algorithm::RS256);
    let with = |field: &str, value: serde_json::Value| {
        let mut claims = good.clone();
        claims[field] = value;
        signed(&header, &claims)
    };
    let person = register(gateway.address, json!({ "token": signed(&header, &good) })).await;
    assert_eq!(person.frame["kind"], "connection", "{}", person.frame);

    // The attack: whoever has the public key signs by it, and says that it is a secret.
    let pem = std::fs::read(&rsa.public).unwrap();
    let confused =
        craft(&json!({ "alg": "HS256", "typ": "JWT" }), &good, &EncodingKey::from_secret(&pem), Algorithm::HS256);
    let unsigned = signed(&json!({ "alg": "none" }), &good);
    let unsigned = format!("{}.", unsigned.rsplit_once('.').unwrap().0);
    let foreign = token(&other.private, &["--audience", "texto", "--issuer", "sso"]);
    let mut without_exp = good.clone();
    without_exp.as_object_mut().unwrap().remove("exp");
    for (token, reason, says) in [
        ("".to_owned(), "malformed", "no JWT"),
        ("nonsense".to_owned(), "malformed", "no JWT"),
        (unsigned, "algorithm", "alg"),
        (confused, "algorithm", "alg"),
        (signed(&json!({ "alg": "RS256", "typ": "logout+jwt" }), &good), "type", "typ"),
        (signed(&json!({ "alg": "RS256", "crit": ["exp"] }), &good), "type", "critical"),
        (foreign, "signature", "signature"),
        (signed(&header, &without_exp), "no_expiry", "no exp"),
        (with("exp", json!(now() - 100)), "expired", "expired"),
        (with("nbf", json!(now() + 100)), "not_yet", "nbf"),
        (with("aud", json!("chat")), "audience", "aud"),
        (with("iss", json!("evil")), "issuer", "iss"),
        (with("sub", json!("x".repeat(8192))), "too_long", "8192 bytes"),
    ] {
        let before = refusals(&gateway, reason).await;
        let (description, code) = refused(gateway.address, json!({ "token": token, "resumable": true })).await;
        assert!(description.contains(says), "{reason}: {description}");
        assert_eq!(code, 4003, "{reason}");
        assert_eq!(refusals(&gateway, reason).await, before + 1.0, "{reason}");
    }
    let (description, code) = refused(gateway.address, json!(null)).await;
    assert!(description.contains("credentials are required"), "{description}");
    assert_eq!(code, 4003);
    assert_eq!(gateway.metric("texto_sessions_closed_total{reason=\"unauthorized\"}").await, Some(14.0));
    assert_eq!(gateway.metric("texto_errors_total{code=\"EAUTH\"}").await, Some(14.0));
    for line in gateway.log() {
        assert!(!line.contains("eyJ"), "a token is in the log: {line}");
    }
}

#[tokio::test]
async fn a_v1_client_without_credentials_is_told_and_closed_and_does_nothing_meanwhile() {
    let issuer = Issuer::new();
    let secret = issuer.secret("s");
    let gateway = gateway(&["--auth-key-file", secret.to_str().unwrap()]).await;
    for path in ["/v1/texto", "/v1/texto?nogreet=1"] {
        let mut socket = client::open(gateway.address, path).await.unwrap();
        let frame = next(&mut socket).await;
        assert_eq!((frame["kind"].as_str(), frame["data"]["code"].as_str()), (Some("error"), Some("EAUTH")));
        assert!(Uuid::try_parse(frame["id"].as_str().unwrap()).is_ok());
        assert_eq!(closed(&mut socket).await, 4003, "{path}");
    }
    // Nobody sends before there is a session.
    let mut socket = client::open(gateway.address, "/v1/texto?register=1").await.unwrap();
    assert_eq!(send(&mut socket, Uuid::nil(), Uuid::nil(), "early").await, "ECID");
}

#[tokio::test]
async fn a_handshake_may_carry_credentials_and_a_bad_one_is_401() {
    let issuer = Issuer::new();
    let secret = issuer.secret("s");
    let gateway = gateway(&["--auth-key-file", secret.to_str().unwrap()]).await;
    let (anna, berta) = (Uuid::new_v4(), Uuid::new_v4());
    let of = |id: Uuid| token(&secret, &["--subject", &id.to_string()]);
    let mut one = bearer(gateway.address, &of(anna)).await;
    assert_eq!(one.id(), anna);
    // Nothing else is different for a v1 client: no numbers, nothing that it must acknowledge, any id for a request.
    let header = format!("bearer {}", of(berta));
    let mut other = open(gateway.address, "/v1/texto?nogreet=1", &[("Authorization", &header)]).await.unwrap();
    for text in ["a", "b"] {
        assert_eq!(send(&mut other, berta, anna, text).await, "ack");
        let frame = next(&mut one.socket).await;
        assert_eq!(frame["data"], json!({ "sender_id": berta, "text": text }));
    }
    let same =
        json!({ "client_id": anna, "id": Uuid::nil(), "kind": "send", "data": { "receiver_id": berta, "text": "x" } });
    for _ in 0..3 {
        issuer::write(&mut one.socket, &same).await;
    }
    for _ in 0..3 {
        let frame = next(&mut one.socket).await;
        assert_eq!((frame["kind"].as_str(), frame["id"].as_str()), (Some("ack"), Some(&*Uuid::nil().to_string())));
        assert_eq!(next(&mut other).await["data"]["text"], "x");
    }
    // It is gone when its connection is.
    drop(other);
    let absent = async || (send(&mut one.socket, anna, berta, "still there?").await == "ENOTCONN").then_some(());
    let mut absent = absent;
    let end = std::time::Instant::now() + PATIENCE;
    while absent().await.is_none() {
        assert!(std::time::Instant::now() < end, "it never went");
    }

    for (header, says) in [
        ("Bearer nonsense", "no JWT"),
        ("Bearer ", "Bearer"),
        ("Basic YTpi", "`Bearer` and a token"),
        (&*format!("Bearer {}", token(&secret, &["--expires-in", "0s", "--audience", "x"])), "aud"),
    ] {
        let refused = open(gateway.address, "/v1/texto", &[("Authorization", header)]).await.unwrap_err();
        assert_eq!(refused.status(), 401, "{header}");
        let challenge = refused.headers()["www-authenticate"].to_str().unwrap().to_owned();
        assert!(challenge.starts_with("Bearer error=\"invalid_token\""), "{challenge}");
        assert!(body(&refused).contains(says) || says == "Bearer", "{}", body(&refused));
    }
    let good = format!("Bearer {}", of(anna));
    let twice = [("Authorization", &*good), ("Authorization", &*good)];
    assert_eq!(open(gateway.address, "/v1/texto", &twice).await.unwrap_err().status(), 401);
    assert_eq!(gateway.metric("texto_handshakes_total{result=\"unauthorized\"}").await, Some(5.0));
}

#[tokio::test]
async fn where_no_credentials_are_demanded_nobody_looks_at_them() {
    let gateway = gateway(&[]).await;
    let mut socket = open(gateway.address, "/v1/texto", &[("Authorization", "Basic YTpi")]).await.unwrap();
    assert_eq!(next(&mut socket).await["kind"], "connection");
    for token in [json!("nonsense"), json!(7)] {
        let mut person = register(gateway.address, json!({ "token": token })).await;
        assert_eq!(person.frame["data"], json!({ "client_id": person.id() }));
        assert_eq!(person.again(json!({ "token": token })).await["kind"], "connection");
    }
}

#[tokio::test]
async fn texto_token_says_what_is_wrong() {
    let issuer = Issuer::new();
    let pair = issuer.pair("P-256", "key");
    let short = issuer.folder.path().join("short");
    std::fs::write(&short, "hunter2").unwrap();
    let set = issuer.folder.path().join("set");
    std::fs::write(&set, r#"{"keys":[{"kty":"EC","crv":"P-256","x":"hunter2","y":"hunter2"}]}"#).unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(issuer::BINARY).arg("token").args(arguments).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let (private, public) = (pair.private.to_str().unwrap(), pair.public.to_str().unwrap());
    for (arguments, says) in [
        (&["--key-file", "/nowhere/key"][..], "can't read"),
        (&["--key-file", public], "holds no private key"),
        (&["--key-file", short.to_str().unwrap()], "has 7 bytes, and HS256 needs 32"),
        (&["--key-file", set.to_str().unwrap()], "something in JSON, and no secret"),
        (&["--key-file", private, "--algorithm", "RS256"], "ES256"),
        (&["--key-file", private, "--expires-in", "soon"], "--expires-in"),
    ] {
        let error = run(arguments);
        assert!(error.contains(says) && !error.contains("hunter2"), "{arguments:?}: {error}");
    }
}
