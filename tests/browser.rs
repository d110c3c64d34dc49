//! The web client in a real browser: two pages chat, survive hostility, and a restart of the server.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fantoccini::{Client as Browser, ClientBuilder, Locator};
use serde_json::{Value, json};
use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::process::{Process, find, until};
use texto_lab::proxy::Proxy;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);

/// A browser that ends with the test, however the test ends.
struct Chromium {
    browser: Browser,
    _profile: TempDir,
    _driver: Process,
}

impl Chromium {
    async fn start() -> Self {
        find("chromium", "chromium").unwrap();
        let program = find("chromedriver", "chromium-driver").unwrap();
        let mut driver = Process::start("chromedriver", &program, |command| {
            command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null());
        })
        .unwrap();
        let output = BufReader::new(driver.child().stdout.take().unwrap());
        let port = output.lines().map_while(Result::ok).find_map(|line| {
            let rest = line.split_once("started successfully on port ")?.1;
            rest.trim_end_matches('.').parse::<u16>().ok()
        });
        let profile = TempDir::new().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let options = json!({ "goog:chromeOptions": { "args": arguments } });
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        builder.capabilities(options.as_object().unwrap().clone());
        let address = format!("http://127.0.0.1:{}", port.expect("chromedriver names its port"));
        let browser = builder.connect(&address).await.unwrap();
        Self { browser, _profile: profile, _driver: driver }
    }
}

/// One page; pages of a browser are windows of it.
struct Page<'a> {
    browser: &'a Browser,
    window: fantoccini::wd::WindowHandle,
}

impl<'a> Page<'a> {
    async fn open(chromium: &'a Chromium, url: &str) -> Page<'a> {
        let browser = &chromium.browser;
        let window = browser.new_window(true).await.unwrap().handle;
        browser.switch_to_window(window.clone()).await.unwrap();
        browser.goto(url).await.unwrap();
        Page { browser, window }
    }

    async fn eval(&self, script: &str) -> Value {
        self.browser.switch_to_window(self.window.clone()).await.unwrap();
        self.browser.execute(script, vec![]).await.unwrap()
    }

    async fn until(&self, what: &str, script: &str) {
        let result = until(what, LIMIT, async || (self.eval(script).await == json!(true)).then_some(())).await;
        if let Err(error) = result {
            panic!("{error}; the page says: {}", self.eval("return document.body.innerText").await);
        }
    }

    /// The id, once there is one other than `old`.
    async fn id(&self, old: &str) -> String {
        let id = until("the page is connected", LIMIT, async || {
            let script = "return document.getElementById('state').dataset.state === 'connected' \
                          ? document.getElementById('own-id').textContent : ''";
            let id = self.eval(script).await.as_str().unwrap().to_owned();
            (id.len() == 36 && id != old).then_some(id)
        });
        id.await.unwrap()
    }

    async fn send(&self, to: &str, text: &str) {
        self.browser.switch_to_window(self.window.clone()).await.unwrap();
        let recipient = self.browser.find(Locator::Id("recipient")).await.unwrap();
        recipient.clear().await.unwrap();
        recipient.send_keys(to).await.unwrap();
        let area = self.browser.find(Locator::Id("text")).await.unwrap();
        area.send_keys(text).await.unwrap();
        area.send_keys("\u{E007}").await.unwrap(); // The Enter key.
    }

    /// Waits until the last message says `text` and its state is `state` ("" for a received one).
    async fn last(&self, text: &str, state: &str) {
        let (text, state) = (json!(text), json!(state));
        let script = format!(
            "const last = document.querySelector('#log li:last-child'); \
             return last !== null && last.querySelector('.text').textContent === {text} \
             && (last.querySelector('.status').dataset.state ?? '') === {state}"
        );
        self.until(&format!("{text} is {state}"), &script).await;
    }
}

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
    page.last("into the void", "failed").await;
    proxy.release();
    let new = page.id(&id).await;
    page.eval("document.getElementById('text').value = ''").await;
    let mut other = Client::connect(server.address).await.unwrap();
    let own: Uuid = new.parse().unwrap();
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
