//! The web client in a real browser: two pages chat, survive hostility, and a restart of the server.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "browser/page.rs"]
mod page;

use std::path::Path;
use std::time::{Duration, Instant};

use page::{Chromium, Page};
use serde_json::json;
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::proxy::Proxy;
use uuid::Uuid;

async fn gateway(listen: &str) -> Gateway {
    Gateway::start_on(listen, Path::new(env!("CARGO_BIN_EXE_texto")), &[], &[]).await.unwrap()
}

async fn chat(a: &Page<'_>, b: &Page<'_>, a_id: &str, b_id: &str) {
    a.send(b_id, "hello, you").await;
    a.last("hello, you", "acked").await;
    b.last("hello, you", "").await;
    b.send(a_id, "hello yourself").await;
    b.last("hello yourself", "acked").await;
    a.last("hello yourself", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pages_chat_hostile_text_stays_text_and_a_restart_is_survived() {
    let chromium = Chromium::start().await;
    let mut server = gateway("127.0.0.1:0").await;
    let listen = server.address.to_string();
    let url = format!("http://{listen}/");
    let (a, b) = (Page::open(&chromium, &url).await, Page::open(&chromium, &url).await);
    let (a_id, b_id) = (a.id("").await, b.id("").await);
    chat(&a, &b, &a_id, &b_id).await;

    let hostile = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script>\u{202E}&amp;";
    a.send(&b_id, hostile).await;
    b.last(hostile, "").await;
    for page in [&a, &b] {
        let found = "return document.querySelectorAll('#log img, #log script').length === 0 && !window.hacked";
        assert_eq!(page.eval(found).await, json!(true));
    }

    a.send("00000000-0000-4000-8000-000000000000", "anybody?").await;
    a.last("anybody?", "failed").await;
    let why = a.eval("return document.querySelector('#log li:last-child').textContent").await;
    assert!(why.as_str().unwrap().contains("ENOTCONN") && why.as_str().unwrap().contains("Send again"), "{why}");
    a.send("nonsense", "unsent").await;
    a.until("a wrong id is explained", "return document.getElementById('recipient-hint').textContent !== ''").await;

    server.kill();
    for page in [&a, &b] {
        page.until("the loss is shown", "return document.getElementById('state').dataset.state !== 'connected'").await;
    }
    let _server = gateway(&listen).await;
    let (a_new, b_new) = (a.id(&a_id).await, b.id(&b_id).await);
    a.until("the new id is explained", "return document.getElementById('notice').textContent.includes('new id')").await;
    a.eval("document.getElementById('text').value = ''").await;
    chat(&a, &b, &a_new, &b_new).await;

    let linked = Page::open(&chromium, &format!("{url}#to={b_new}")).await;
    linked.id("").await;
    let filled = linked.eval("return document.getElementById('recipient').value").await;
    assert_eq!(filled, json!(b_new));
    if let Some(folder) = std::env::var_os("TEXTO_SCREENSHOTS") {
        a.eval("").await;
        std::fs::write(Path::new(&folder).join("page.png"), a.browser.screenshot().await.unwrap()).unwrap();
    }
}

/// A proxy or a network that forwards nothing any more, and tells nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_notices_a_connection_that_died_without_a_word() {
    let chromium = Chromium::start().await;
    let server = gateway("127.0.0.1:0").await;
    let proxy = Proxy::start(&server.address.to_string()).await.unwrap();
    let page = Page::open(&chromium, &format!("http://{}/", proxy.address)).await;
    let id = page.id("").await;
    let began = Instant::now();
    proxy.hold();
    page.send(&id, "into the void").await;
    page.until("the loss is shown", "return document.getElementById('state').dataset.state !== 'connected'").await;
    // Ten seconds of silence, and five for a sign of life.
    let (took, slack) = (began.elapsed(), Duration::from_secs(3));
    assert!(took < Duration::from_secs(15) + slack, "noticed after {took:?}");
    proxy.release();
    page.until("it was not in vain", "return document.querySelectorAll('#log .status[data-state=acked]').length === 1")
        .await;
    assert_eq!(page.id("").await, id);
    let mut other = Client::connect(server.address).await.unwrap();
    let own: Uuid = id.parse().unwrap();
    assert_eq!(other.send(own, "welcome back").await.unwrap(), Answer::Ack);
    page.last("welcome back", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_left_open_does_not_grow() {
    let chromium = Chromium::start().await;
    let server = gateway("127.0.0.1:0").await;
    let page = Page::open(&chromium, &format!("http://{}/", server.address)).await;
    let id: Uuid = page.id("").await.parse().unwrap();
    let mut senders = Vec::new();
    for _ in 0..60 {
        senders.push(Client::connect(server.address).await.unwrap());
    }
    for number in 0..520 {
        let sender = &mut senders[number % 60];
        assert_eq!(sender.send(id, &format!("message {number}")).await.unwrap(), Answer::Ack);
    }
    page.last("message 519", "").await;
    let shown = "return [document.querySelectorAll('#log li').length, \
                 document.querySelector('#log li .text').textContent, document.getElementById('removed').textContent]";
    let expected = json!([500, "message 20", "20 older messages are shown no more"]);
    assert_eq!(page.eval(shown).await, expected);
    let known = page.eval("return document.getElementById('recent').childElementCount").await;
    assert_eq!(known, json!(50), "people whom the page offers to write to");
}
