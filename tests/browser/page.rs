//! Owns a browser and its pages, for tests of the web client.

#![allow(dead_code)] // Each test uses what it needs.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client as Browser, ClientBuilder, Locator};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use texto_lab::process::{Process, find, until};
use url::{ParseError, Url};

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A browser that ends with the test, however the test ends.
pub(crate) struct Chromium {
    pub(crate) browser: Browser,
    _profile: TempDir,
    _driver: Process,
}

impl Chromium {
    pub(crate) async fn start() -> Self {
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
pub(crate) struct Page<'a> {
    pub(crate) browser: &'a Browser,
    window: fantoccini::wd::WindowHandle,
}

impl<'a> Page<'a> {
    pub(crate) async fn open(chromium: &'a Chromium, url: &str) -> Page<'a> {
        let browser = &chromium.browser;
        let window = browser.new_window(true).await.unwrap().handle;
        browser.switch_to_window(window.clone()).await.unwrap();
        browser.goto(url).await.unwrap();
        Page { browser, window }
    }

    pub(crate) async fn eval(&self, script: &str) -> Value {
        self.browser.switch_to_window(self.window.clone()).await.unwrap();
        self.browser.execute(script, vec![]).await.unwrap()
    }

    pub(crate) async fn until(&self, what: &str, script: &str) {
        let result = until(what, LIMIT, async || (self.eval(script).await == json!(true)).then_some(())).await;
        if let Err(error) = result {
            panic!("{error}; the page says: {}", self.eval("return document.body.innerText").await);
        }
    }

    /// The id, once there is one other than `old`.
    pub(crate) async fn id(&self, old: &str) -> String {
        let id = until("the page is connected", LIMIT, async || {
            let script = "return document.getElementById('state').dataset.state === 'connected' \
                          ? document.getElementById('own-id').textContent : ''";
            let id = self.eval(script).await.as_str().unwrap().to_owned();
            (id.len() == 36 && id != old).then_some(id)
        });
        id.await.unwrap()
    }

    pub(crate) async fn send(&self, to: &str, text: &str) {
        self.browser.switch_to_window(self.window.clone()).await.unwrap();
        let recipient = self.browser.find(Locator::Id("recipient")).await.unwrap();
        recipient.clear().await.unwrap();
        recipient.send_keys(to).await.unwrap();
        let area = self.browser.find(Locator::Id("text")).await.unwrap();
        area.send_keys(text).await.unwrap();
        area.send_keys("\u{E007}").await.unwrap(); // The Enter key.
    }

    /// Waits until the last message says `text` and its state is `state` ("" for a received one).
    pub(crate) async fn last(&self, text: &str, state: &str) {
        let (text, state) = (json!(text), json!(state));
        let script = format!(
            "const last = document.querySelector('#log li:last-child'); \
             return last !== null && last.querySelector('.text').textContent === {text} \
             && (last.querySelector('.status').dataset.state ?? '') === {state}"
        );
        self.until(&format!("{text} is {state}"), &script).await;
    }

    /// Its state, as the page shows it.
    pub(crate) async fn state(&self) -> String {
        let state = self.eval("return document.getElementById('state').dataset.state").await;
        state.as_str().unwrap_or_default().to_owned()
    }

    /// All texts that it shows, in order.
    pub(crate) async fn texts(&self) -> Vec<String> {
        let script = "return Array.from(document.querySelectorAll('#log .text'), (text) => text.textContent)";
        serde_json::from_value(self.eval(script).await).unwrap()
    }

    /// The page in a window that is open.
    pub(crate) fn at(chromium: &'a Chromium, window: fantoccini::wd::WindowHandle) -> Page<'a> {
        Page { browser: &chromium.browser, window }
    }

    /// Says something to the browser by the DevTools protocol.
    pub(crate) async fn devtools(&self, command: &'static str, parameters: Value) {
        self.browser.switch_to_window(self.window.clone()).await.unwrap();
        self.browser.issue_cmd(DevTools { command, parameters }).await.unwrap();
    }
}

#[derive(Debug)]
struct DevTools {
    command: &'static str,
    parameters: Value,
}

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "cmd": self.command, "params": self.parameters }).to_string()))
    }
}
