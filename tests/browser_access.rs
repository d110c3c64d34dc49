//! The web client where credentials are demanded: it shows them, renews them, and gives up when they are refused.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "access/issuer.rs"]
mod issuer;
#[path = "browser/page.rs"]
mod page;

use fantoccini::Locator;
use issuer::{Issuer, gateway, token};
use page::{Chromium, Page};
use serde_json::json;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_its_credentials_renews_them_and_gives_up_when_they_are_refused() {
    let (chromium, issuer) = (Chromium::start().await, Issuer::new());
    let key = issuer.secret("s");
    let gateway = gateway(&["--auth-key-file", key.to_str().unwrap(), "--auth-leeway", "0s"]).await;
    let url = format!("http://{}/", gateway.address);
    let closed = async |reason: &str| {
        gateway.metric(&format!("texto_sessions_closed_total{{reason=\"{reason}\"}}")).await.unwrap_or(0.0)
    };
    let accepted = async || gateway.metric("texto_handshakes_total{result=\"accepted\"}").await.unwrap();

    // The page itself asks whoever is not let in, and says what came of it.
    let known = Page::open(&chromium, &url).await;
    let asks = |words: &str| {
        let said = "document.getElementById('access-why').textContent";
        format!("return document.activeElement.id === 'token' && {said}.includes('{words}')")
    };
    known.until("it is asked for a token", &asks("demands credentials")).await;
    assert_eq!(known.state().await, "closed");
    assert_eq!((accepted().await, closed("unauthorized").await), (1.0, 1.0), "it tries once");
    let paste = async |token: &str| {
        let field = known.browser.find(Locator::Id("token")).await.unwrap();
        field.send_keys(&format!(" {token}\u{E007}")).await.unwrap(); // The Enter key.
    };
    paste("nonsense").await;
    known.until("it is asked for another one", &asks("no JWT")).await;
    let id = Uuid::new_v4().to_string();
    let good = token(&key, &["--subject", &id]);
    paste(&good).await;
    assert_eq!(known.id("").await, id);
    known.until("the field is gone", "return document.getElementById('access').hidden").await;
    // It is kept nowhere; loaded anew, the page resumes its session.
    let kept = "return location.href + JSON.stringify({ ...sessionStorage, ...localStorage }) + document.cookie";
    let kept = known.eval(kept).await.as_str().unwrap().to_owned();
    assert!(kept.starts_with(&url) && kept.contains(&id) && !kept.contains(&good), "{kept}");
    known.browser.refresh().await.unwrap();
    assert_eq!(known.id("").await, id);

    // Any page: a function that gives a fresh one.
    let of = |lifetime: &str| token(&key, &["--subject", "anna", "--expires-in", lifetime]);
    let tokens = json!([of("10s"), of("1h")]);
    let script = format!(
        "window.tokens = {tokens}; window.given = 0; window.began = performance.now(); window.states = []; window.received = []; \
         import('/texto.js').then(({{ Texto }}) => {{ \
           window.anna = new Texto(undefined, {{ keep: null, credentials: async () => tokens[given++] }}); \
           anna.onstate = ({{ state }}) => states.push(state); \
           anna.onreceive = ({{ text }}) => received.push(text); \
           anna.connect(); \
         }});"
    );
    known.eval(&script).await;
    known.until("it has shown both", "return window.given === 2").await;
    // The server has had the second one before the first was over, and the connection is still the same.
    known.eval("anna.send(anna.clientId, 'to myself')").await;
    known.until("it works", "return received.join() === 'to myself'").await;
    known.until("the first is over", "return performance.now() - began > 10_500").await;
    assert_eq!(known.eval("return states.join()").await, json!("connecting,connected"));
    assert_eq!(closed("expired").await, 0.0);

    // Without fresh ones the server ends it; it shows what it has once more, is refused, and does not try for ever.
    let before = accepted().await;
    let script = format!(
        "window.berta = new anna.constructor(undefined, {{ keep: null, credentials: () => {} }}); \
         window.ends = []; \
         berta.onstate = ({{ state, reason }}) => state === 'closed' && ends.push(reason); berta.connect();",
        json!(token(&key, &["--subject", "berta", "--expires-in", "2s"]))
    );
    known.eval(&script).await;
    known.until("it gives up", "return ends.join() === 'credentials'").await;
    assert_eq!(closed("expired").await, 1.0);
    assert_eq!((accepted().await, closed("unauthorized").await), (before + 2.0, 3.0));
}
