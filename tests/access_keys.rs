//! The keys of credentials: of a file that changes, of an address that changes, is slow, lies, or is not there.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "access/issuer.rs"]
mod issuer;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use issuer::{BINARY, Issuer, gateway, jwks, open, refused, register, token};
use serde_json::json;
use texto_lab::client::PATIENCE;
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::issuer::{KeyPair, KeyServer, Says, openssl};
use texto_lab::process::{Process, find, free_port, until};

const LIMIT: Duration = Duration::from_secs(20);

/// Whether somebody comes in with a token that this key has signed.
async fn comes_in(gateway: &Gateway, pair: &KeyPair, kid: &str) -> bool {
    let token = token(&pair.private, &["--key-id", kid]);
    register(gateway.address, json!({ "token": token })).await.frame["kind"] == "connection"
}

async fn wait_until_in(gateway: &Gateway, pair: &KeyPair, kid: &str) {
    until("it is known", LIMIT, async || comes_in(gateway, pair, kid).await.then_some(())).await.unwrap();
}

async fn credentials(gateway: &Gateway) -> (String, String) {
    let check = gateway.health().await.unwrap()["checks"]["credentials"][0].clone();
    (check["status"].as_str().unwrap().to_owned(), check["output"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_what_was_good_stays_while_it_is_not() {
    let issuer = Issuer::new();
    let (old, new) = (issuer.pair("P-256", "old"), issuer.pair("ed25519", "new"));
    let file = issuer.folder.path().join("keys");
    std::fs::write(&file, jwks(&[("old", &old)])).unwrap();
    let gateway = gateway(&["--auth-key-file", file.to_str().unwrap()]).await;
    assert!(comes_in(&gateway, &old, "old").await);
    let (description, code) =
        refused(gateway.address, json!({ "token": token(&new.private, &["--key-id", "new"]) })).await;
    assert!(description.contains("kid") && code == 4003, "{description}");

    // First both, then the new one alone: nobody is refused in between.
    std::fs::write(&file, jwks(&[("old", &old), ("new", &new)])).unwrap();
    wait_until_in(&gateway, &new, "new").await;
    assert!(comes_in(&gateway, &old, "old").await);
    std::fs::write(&file, jwks(&[("new", &new)])).unwrap();
    let gone = async || (!comes_in(&gateway, &old, "old").await).then_some(());
    until("the old one is gone", LIMIT, gone).await.unwrap();

    // A secret, too, is a flaw where public keys were: it may have come there by mistake, and whoever guesses it is in.
    for flaw in ["", "{", "too short", "{\"keys\":[]}", "0123456789abcdef0123456789abcdef"] {
        std::fs::write(&file, flaw).unwrap();
        let warned = async || (credentials(&gateway).await.0 == "warn").then_some(());
        until("it is noticed", LIMIT, warned).await.unwrap();
        assert!(comes_in(&gateway, &new, "new").await, "{flaw:?}");
    }
    assert_eq!(http::get(gateway.address, "/readyz", "").await.unwrap().status, 200);
    std::fs::remove_file(&file).unwrap();
    // Whatever stands there instead, nobody waits for it: a pipe would never be read to its end.
    let make: [(fn(&Path), _); 2] = [
        (|file| std::fs::create_dir(file).unwrap(), "Is a directory"),
        (|file| assert!(std::process::Command::new("mkfifo").arg(file).status().unwrap().success()), "it is a pipe"),
    ];
    for (make, reason) in make {
        make(&file);
        gateway.wait_for_log(reason, LIMIT).await.unwrap();
        assert!(comes_in(&gateway, &new, "new").await, "{reason}");
        let _ = std::fs::remove_file(&file).or_else(|_| std::fs::remove_dir(&file));
    }
    gateway.wait_for_log("No such file", LIMIT).await.unwrap();
    assert!(comes_in(&gateway, &new, "new").await);
    std::fs::copy(&old.public, &file).unwrap();
    wait_until_in(&gateway, &old, "any name, for it has none").await;
    assert_eq!(credentials(&gateway).await.0, "pass");
}

#[tokio::test]
async fn an_address_is_asked_again_for_a_key_that_is_not_known_and_not_for_everything_that_is_made_up() {
    let issuer = Issuer::new();
    let (old, new) = (issuer.pair("P-256", "old"), issuer.pair("P-256", "new"));
    let server = KeyServer::start(Says::Body(jwks(&[("old", &old)]))).await.unwrap();
    let gateway = gateway(&["--auth-jwks-url", &server.url()]).await;
    assert!(comes_in(&gateway, &old, "old").await, "who comes before the keys waits for them");
    let asked = server.asked();
    for _ in 0..20 {
        assert!(!comes_in(&gateway, &old, "made up").await);
    }
    assert!(server.asked() <= asked + 1, "{} more", server.asked() - asked);
    // The issuer has a new key, and the gateway is not told.
    server.say(Says::Body(jwks(&[("old", &old), ("new", &new)])));
    wait_until_in(&gateway, &new, "new").await;
    assert!(comes_in(&gateway, &old, "old").await);
    assert!(!comes_in(&gateway, &old, "new").await, "a key of another name");
    assert_eq!(gateway.metric("texto_auth_keys").await, Some(2.0));
}

#[tokio::test]
async fn the_last_keys_are_used_while_the_address_is_gone_or_says_something_else() {
    let issuer = Issuer::new();
    let key = issuer.pair("P-256", "key");
    let server = KeyServer::start(Says::Body(jwks(&[("key", &key)]))).await.unwrap();
    let gateway = gateway(&["--auth-jwks-url", &server.url(), "--auth-jwks-refresh", "5s"]).await;
    assert!(comes_in(&gateway, &key, "key").await);
    let big = format!("{{\"keys\":[],\"more\":\"{}\"}}", "x".repeat(300_000));
    for (says, reason) in [
        (Says::Status("500 Internal Server Error", ""), "answered 500"),
        (Says::Status("302 Found", "Location: http://evil.example/\r\n"), "where nobody goes by itself"),
        (Says::Body(big), "262144 bytes"),
        (Says::Body("<html>".to_owned()), "no JWKS"),
        (Says::Nothing, "no answer within 5s"),
    ] {
        server.say(says);
        gateway.wait_for_log(reason, 2 * LIMIT).await.unwrap();
        assert!(comes_in(&gateway, &key, "key").await, "{reason}");
        let (status, output) = credentials(&gateway).await;
        assert!(status == "warn" && output.contains("the last ones are used"), "{status} {output}");
    }
    let address = server.address;
    drop(server);
    gateway.wait_for_log("Connection refused", 2 * LIMIT).await.unwrap();
    assert!(comes_in(&gateway, &key, "key").await);
    assert!(gateway.metric("texto_auth_keys_failing_seconds").await.unwrap() > 0.0);
    let new = issuer.pair("P-256", "new");
    let _server = KeyServer::start_on(address, Says::Body(jwks(&[("new", &new)]))).await.unwrap();
    wait_until_in(&gateway, &new, "new").await;
    assert_eq!(credentials(&gateway).await.0, "pass");
}

/// Whoever answers for ever costs nobody more than the five seconds that a fetch may take.
#[tokio::test]
async fn an_address_that_never_comes_to_an_end_is_given_up_and_nobody_waits_for_it_longer() {
    const SECOND: Duration = Duration::from_secs(1);
    const BLANKS: &str = "                                                                ";
    let says = [
        (Says::Nothing, "no answer within 5s"),
        (Says::Forever("HTTP/1.1 200 OK\r\nX-Slow: ", "x", SECOND), "no answer within 5s"),
        (Says::Forever("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{", " ", SECOND), "no answer within 5s"),
        (Says::Forever("", "HTTP/1.1 103 Early Hints\r\n\r\n", Duration::from_millis(1)), "no answer within 5s"),
        (Says::Forever("HTTP/1.1 200 OK\r\n\r\n{", BLANKS, Duration::ZERO), "more than 262144 bytes"),
    ];
    futures_util::future::join_all(says.map(|(says, reason)| never_comes_to_an_end(says, reason))).await;
}

async fn never_comes_to_an_end(says: Says, reason: &'static str) {
    let issuer = Issuer::new();
    let key = issuer.pair("P-256", "key");
    let server = KeyServer::start(Says::Body(jwks(&[("key", &key)]))).await.unwrap();
    let gateway = gateway(&["--auth-jwks-url", &server.url(), "--auth-jwks-refresh", "5s"]).await;
    wait_until_in(&gateway, &key, "key").await;
    let asked = server.asked();
    server.say(says.clone());
    let is_asked = async || (server.asked() > asked).then_some(());
    until("it is asked again", LIMIT, is_asked).await.unwrap();
    // While it is waited for: whoever has a key that is known does not wait, others no longer than for an answer.
    assert!(comes_in(&gateway, &key, "key").await, "{says:?}");
    let unknown = token(&key.private, &["--key-id", "unknown"]);
    let refused = tokio::time::timeout(LIMIT, refused(gateway.address, json!({ "token": unknown }))).await;
    let (description, code) = refused.unwrap_or_else(|_| panic!("{says:?}: nobody answers"));
    assert!(description.contains("kid") && code == 4003, "{says:?}: {description}");
    gateway.wait_for_log(reason, LIMIT).await.unwrap();
    let is_given_up = async || (server.given_up() > 0).then_some(());
    until("its connection is closed", LIMIT, is_given_up).await.unwrap();
    assert!(comes_in(&gateway, &key, "key").await, "{says:?}: the last keys are used");
    // And it is asked again.
    let new = issuer.pair("P-256", "new");
    server.say(Says::Body(jwks(&[("new", &new)])));
    wait_until_in(&gateway, &new, "new").await;
}

#[tokio::test]
async fn a_gateway_that_never_had_keys_starts_says_so_and_takes_nobody() {
    let issuer = Issuer::new();
    let key = issuer.pair("P-256", "key");
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let gateway = gateway(&["--auth-jwks-url", &format!("http://{address}/jwks.json")]).await;
    let unready = async || (credentials(&gateway).await.1.contains("there are none")).then_some(());
    until("it says why", LIMIT, unready).await.unwrap();
    let ready = http::get(gateway.address, "/readyz?verbose", "").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("[-] credentials") && ready.body.contains("Connection refused"), "{}", ready.body);
    let token = token(&key.private, &["--key-id", "key"]);
    let (description, code) = refused(gateway.address, json!({ "token": token })).await;
    assert!(description.contains("can't be checked now"), "{description}");
    assert_eq!(code, 1013, "it may come again");
    let header = format!("Bearer {token}");
    let handshake = open(gateway.address, "/v1/texto", &[("Authorization", &header)]).await.unwrap_err();
    assert_eq!(handshake.status(), 503);
    assert!(handshake.headers().contains_key("retry-after"));
    // Nor does anybody wait for ever for one that takes connections, and says nothing on them.
    let server = KeyServer::start_on(address.parse().unwrap(), Says::Nothing).await.unwrap();
    let is_asked = async || (server.asked() > 0).then_some(());
    until("it is asked", LIMIT, is_asked).await.unwrap();
    let answer = tokio::time::timeout(LIMIT, refused(gateway.address, json!({ "token": token }))).await;
    assert_eq!(answer.expect("nobody answers").1, 1013);
    server.say(Says::Body(jwks(&[("key", &key)])));
    wait_until_in(&gateway, &key, "key").await;
    gateway.wait_ready(LIMIT).await.unwrap();
}

/// openssl's own server, with a certificate of an authority that nobody knows but whoever is told.
#[tokio::test]
async fn an_address_with_https_is_believed_if_its_authority_is() {
    let issuer = Issuer::new();
    let key = issuer.pair("P-256", "key");
    let folder = issuer.folder.path();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost \
                -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE";
    let mut make: Vec<_> = make.split_whitespace().map(str::to_owned).collect();
    make.extend(["-keyout".to_owned(), path("tls.key"), "-out".to_owned(), path("tls.crt")]);
    openssl(&make).unwrap();
    let set = jwks(&[("key", &key)]);
    let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{set}", set.len());
    std::fs::write(folder.join("jwks.json"), answer).unwrap();
    let port = free_port().unwrap().to_string();
    let _server = Process::start("openssl s_server", &find("openssl", "openssl").unwrap(), |command| {
        command.args(["s_server", "-accept", &port, "-HTTP", "-quiet", "-cert", "tls.crt", "-key", "tls.key"]);
        command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    })
    .unwrap();
    let url = format!("https://localhost:{port}/jwks.json");
    let flags = ["--auth-jwks-url", &url];
    let told = [("SSL_CERT_FILE", &*path("tls.crt"))];
    let friend = Gateway::start(Path::new(BINARY), &flags, &told).await.unwrap();
    wait_until_in(&friend, &key, "key").await;
    let stranger = gateway(&flags).await;
    stranger.wait_for_log("invalid peer certificate", PATIENCE).await.unwrap();
    assert_eq!(credentials(&stranger).await.0, "fail");
}
