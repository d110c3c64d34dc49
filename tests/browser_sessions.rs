//! What a person at the web client sees of sessions that outlive their connections: nothing.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "browser/page.rs"]
mod page;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use page::{Chromium, LIMIT, Page};
use serde_json::{Value, json};
use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::cluster::ClusterOptions;
use texto_lab::fake_gateway::{FakeGateway, Lie};
use texto_lab::gateway::{Gateway, session_key_file};
use texto_lab::nginx::Nginx;
use texto_lab::process::until;
use texto_lab::proxy::Proxy;
use texto_lab::stage::Stage;
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_texto");
/// As long as a laptop that is closed for a moment.
const ASLEEP: Duration = Duration::from_secs(20);

/// A gateway that knows its clients again after a restart.
struct Bench {
    gateway: Gateway,
    keys: PathBuf,
    _folder: TempDir,
}

impl Bench {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let keys = session_key_file(Path::new(BINARY), folder.path()).await.unwrap();
        let gateway = start("127.0.0.1:0", &keys).await;
        Self { gateway, keys, _folder: folder }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.gateway.address)
    }

    async fn client(&self) -> Client {
        Client::connect(self.gateway.address).await.unwrap()
    }
}

async fn start(listen: &str, keys: &Path) -> Gateway {
    let arguments = ["--session-key-file", keys.to_str().unwrap()];
    Gateway::start_on(listen, Path::new(BINARY), &arguments, &[]).await.unwrap()
}

async fn tell(client: &mut Client, to: &str, texts: &[&str]) {
    for text in texts {
        assert_eq!(client.send(to.parse().unwrap(), text).await.unwrap(), Answer::Ack, "{text}");
    }
}

async fn notice(page: &Page<'_>) -> String {
    page.eval("return document.getElementById('notice').textContent").await.as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_loaded_anew_is_the_same_person_and_misses_nothing() {
    let (chromium, bench) = (Chromium::start().await, Bench::start().await);
    let page = Page::open(&chromium, &bench.url()).await;
    let id = page.id("").await;
    let mut other = bench.client().await;
    tell(&mut other, &id, &["before"]).await;
    page.last("before", "").await;
    for _ in 0..3 {
        // Elsewhere for a moment: what comes meanwhile waits.
        page.browser.goto("about:blank").await.unwrap();
        tell(&mut other, &id, &["meanwhile", "and again"]).await;
        page.browser.goto(&bench.url()).await.unwrap();
        assert_eq!(page.id("").await, id);
        page.last("and again", "").await;
        assert_eq!(page.texts().await, ["meanwhile", "and again"], "what was shown before is not shown again");
    }
    page.browser.refresh().await.unwrap();
    assert_eq!(page.id("").await, id);
    assert!(page.texts().await.is_empty());
    // Whoever ends the session is somebody else next time.
    page.eval("sessionStorage.clear()").await;
    page.browser.refresh().await.unwrap();
    page.id(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_that_is_duplicated_becomes_a_person_of_its_own() {
    let (chromium, bench) = (Chromium::start().await, Bench::start().await);
    let page = Page::open(&chromium, &bench.url()).await;
    let id = page.id("").await;
    // The new window gets a copy of the storage, as a duplicated tab does.
    let before = page.browser.windows().await.unwrap();
    page.eval("window.open(location.href)").await;
    let window = until("the other window is there", LIMIT, async || {
        page.browser.windows().await.ok()?.into_iter().find(|window| !before.contains(window))
    });
    let twin = Page::at(&chromium, window.await.unwrap());
    let copied = twin.eval("return sessionStorage.length").await;
    assert_eq!(copied, json!(1), "the storage was copied");
    let other_id = twin.id(&id).await;
    assert_eq!(page.id("").await, id, "the first goes on as it was");
    twin.send(&id, "hello, you").await;
    twin.last("hello, you", "acked").await;
    page.last("hello, you", "").await;
    page.send(&other_id, "hello yourself").await;
    twin.last("hello yourself", "").await;
    // Each keeps its id from now on.
    for (window, own) in [(&twin, &other_id), (&page, &id)] {
        window.eval("location.reload()").await;
        window.until("it is loaded anew", "return document.querySelectorAll('#log li').length === 0").await;
        assert_eq!(&window.id("").await, own);
    }
}

/// The connection breaks while a message is on its way there, and while its answer is on its way back.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_connection_breaks_is_delivered_once_and_the_page_hears_of_it() {
    let (chromium, bench) = (Chromium::start().await, Bench::start().await);
    let proxy = Proxy::start(&bench.gateway.address.to_string()).await.unwrap();
    let page = Page::open(&chromium, &format!("http://{}/", proxy.address)).await;
    let id = page.id("").await;
    let mut other = bench.client().await;
    let other_id = other.id.to_string();

    proxy.hold();
    page.send(&other_id, "there").await;
    page.last("there", "sending").await;
    proxy.cut();
    proxy.release();
    page.last("there", "acked").await;
    assert_eq!(other.receive().await.unwrap().1, "there");

    proxy.delay(Duration::from_secs(1));
    page.eval("document.getElementById('text').value = ''").await;
    page.send(&other_id, "back").await;
    assert_eq!(other.receive().await.unwrap().1, "back");
    assert_eq!(page.texts().await, ["there", "back"]);
    page.last("back", "sending").await;
    proxy.cut();
    proxy.delay(Duration::ZERO);
    page.last("back", "acked").await;
    assert_eq!(page.id("").await, id);
    assert!(!notice(&page).await.contains("missing"), "{}", notice(&page).await);
    // It was not delivered a second time: what comes next is this.
    page.send(&other_id, "once").await;
    assert_eq!(other.receive().await.unwrap().1, "once");
    tell(&mut other, &id, &["indeed"]).await;
    page.last("indeed", "").await;
    assert_eq!(page.texts().await, ["there", "back", "once", "indeed"]);
}

/// A message that is written without a connection waits for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_restarted_knows_its_people_and_says_that_something_may_be_missing() {
    let (chromium, mut bench) = (Chromium::start().await, Bench::start().await);
    let page = Page::open(&chromium, &bench.url()).await;
    let id = page.id("").await;
    let listen = bench.gateway.address.to_string();
    bench.gateway.kill();
    page.until("it reconnects", "return document.getElementById('state').textContent === 'Reconnecting…'").await;
    page.send(&id, "to myself").await;
    page.last("to myself", "sending").await;
    bench.gateway = start(&listen, &bench.keys).await;
    page.until("it was shown", "return document.querySelectorAll('#log li').length === 2").await;
    assert_eq!(page.id("").await, id);
    page.until("it was acknowledged", "return document.querySelector('#log .mine .status').dataset.state === 'acked'")
        .await;
    assert!(notice(&page).await.contains("some messages may be missing"), "{}", notice(&page).await);
}

/// As a browser does it with a page of a laptop that sleeps: nothing of it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_frozen_goes_on_where_it_was() {
    let (chromium, bench) = (Chromium::start().await, Bench::start().await);
    let proxy = Proxy::start(&bench.gateway.address.to_string()).await.unwrap();
    let page = Page::open(&chromium, &format!("http://{}/", proxy.address)).await;
    let id = page.id("").await;
    let mut other = bench.client().await;
    let texts: Vec<String> = (0..20).map(|number| format!("message {number}")).collect();
    // Once with the connection as it was, once without it.
    for is_cut in [false, true] {
        page.eval("document.getElementById('log').replaceChildren()").await;
        page.eval("window.ticks = 0; window.ticking ??= setInterval(() => ticks++, 100)").await;
        page.devtools("Page.setWebLifecycleState", json!({ "state": "frozen" })).await;
        let began = Instant::now();
        if is_cut {
            proxy.cut();
        }
        for text in &texts {
            tell(&mut other, &id, &[text]).await;
            tokio::time::sleep(ASLEEP / 20).await;
        }
        page.devtools("Page.setWebLifecycleState", json!({ "state": "active" })).await;
        page.last("message 19", "").await;
        let awake = Instant::now();
        assert_eq!(page.texts().await, texts, "all, once, and in order");
        assert_eq!(page.id("").await, id);
        assert!(!notice(&page).await.contains("missing"), "{}", notice(&page).await);
        let ticks = page.eval("return ticks").await.as_u64().unwrap();
        let slept = began.elapsed();
        assert!(Duration::from_millis(100 * ticks) < slept - ASLEEP / 2, "{ticks} ticks: it was not frozen");
        assert!(awake - began < ASLEEP + Duration::from_secs(8), "{:?}", awake - began);
    }
}

/// As all servers were before: it greets, and refuses a registration that wants something.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_not_resume_works_as_it_did() {
    let (chromium, bench) = (Chromium::start().await, Bench::start().await);
    let page = Page::open(&chromium, &bench.url()).await;
    page.id("").await;
    // The last one ends a session at each tenth message.
    for (lie, is_lost) in [(Lie::Honest, false), (Lie::Drop, true)] {
        let server = FakeGateway::start(lie).await.unwrap();
        let script = format!(
            "window.heard = []; window.changes = []; window.outcomes = []; \
             import('/texto.js').then(async ({{ Texto }}) => {{ \
               const texto = new Texto('ws://{}/v1/texto', {{ keep: null }}); \
               texto.onreceive = ({{ text }}) => heard.push(text); \
               texto.onstate = (change) => changes.push(change); \
               texto.connect(); \
               for (let number = 0; number < 12; number += 1) {{ \
                 while (texto.state !== 'connected') await new Promise((done) => setTimeout(done, 10)); \
                 outcomes.push(await texto.send(texto.clientId, String(number)).then(() => 'ack', (error) => error.code)); \
               }} \
             }})",
            server.address
        );
        page.eval(&script).await;
        page.until("all is answered", "return outcomes.length === 12").await;
        let outcomes: Vec<String> = serde_json::from_value(page.eval("return outcomes").await).unwrap();
        let changes = page.eval("return changes.filter((change) => change.state === 'connected')").await;
        let lost = outcomes.iter().filter(|outcome| *outcome == "EDISCONNECTED").count();
        let acked = outcomes.iter().filter(|outcome| *outcome == "ack").count();
        assert_eq!((lost, acked), (usize::from(is_lost), 12 - usize::from(is_lost)), "{outcomes:?}");
        assert_eq!(changes.as_array().unwrap().len(), 1 + usize::from(is_lost), "{changes}");
        assert_eq!(changes[0]["missing"], json!(false));
        if is_lost {
            assert_eq!(changes[1]["missing"], json!(true));
            assert_ne!(changes[1]["clientId"], changes[0]["clientId"]);
        }
        // A message may come a moment after its ack.
        page.until("all is heard", &format!("return heard.length === {acked}")).await;
    }
}

/// A browser does not tell why a handshake failed; the page finds out.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_says_when_to_come_back() {
    let chromium = Chromium::start().await;
    let gateway = Gateway::start(Path::new(BINARY), &["--max-connections", "1"], &[]).await.unwrap();
    let client = Client::connect(gateway.address).await.unwrap();
    let page = Page::open(&chromium, &format!("http://{}/", gateway.address)).await;
    page.eval(
        "window.pauses = []; Math.random = () => 0.01; \
         import('/texto.js').then(({ Texto }) => { \
           window.texto = new Texto(undefined, { keep: null }); \
           texto.onstate = ({ state, retryIn }) => state === 'waiting' && pauses.push(retryIn); \
           texto.connect(); \
         })",
    )
    .await;
    let asked = "return pauses.some((pause) => pause >= 1_000) && pauses.every((pause) => pause < 1_150)";
    page.until("it waits for a second more", asked).await;
    // There is one place, and it shall be the page's.
    page.eval("texto.close()").await;
    drop(client);
    page.id("").await;
}

/// Whoever has the token is the client; who had it before is told, and may start anew.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_over_does_not_fight_for_it() {
    let (chromium, bench) = (Chromium::start().await, Bench::start().await);
    let page = Page::open(&chromium, &bench.url()).await;
    let id = page.id("").await;
    let kept = page.eval("return sessionStorage.getItem('texto')").await;
    let kept: Value = serde_json::from_str(kept.as_str().unwrap()).unwrap();
    assert_eq!(kept["clientId"], json!(id));
    let mut socket = texto_lab::client::open(bench.gateway.address, "/v1/texto?register=1").await.unwrap();
    let data = json!({ "resume": kept["token"], "seq": 0 });
    let frame = json!({ "id": Uuid::new_v4(), "kind": "registration", "data": data }).to_string();
    futures_util::SinkExt::send(&mut socket, tokio_tungstenite::tungstenite::Message::text(frame)).await.unwrap();
    page.until("it says so", "return document.getElementById('notice').textContent.includes('another tab')").await;
    assert_eq!(page.state().await, "closed");
    page.eval("document.getElementById('anew').click()").await;
    page.id(&id).await;
}

/// Waits until what both have written so far is acknowledged: then both sessions have two copies, for that is what an
/// acknowledgement says.
async fn two_copies(pages: &[&Page<'_>]) {
    for page in pages {
        let written = page.eval("return written").await;
        let acked = "document.querySelectorAll('#log .mine .status[data-state=acked]').length";
        page.until("it is acknowledged", &format!("return {acked} >= {written}")).await;
    }
}

/// Two pages talk all the time, through nginx, while what serves them goes away in every way.
#[tokio::test(flavor = "multi_thread")]
async fn two_pages_chat_through_nginx_while_gateways_die_and_come_back() {
    let folder = TempDir::new().unwrap();
    let keys = session_key_file(Path::new(BINARY), folder.path()).await.unwrap();
    let flags = ["--session-key-file", keys.to_str().unwrap(), "--drain-delay", "1s", "--drain-window", "1s"];
    let mut stage = Stage::start(Path::new(BINARY), &ClusterOptions::default(), 3, &flags).await.unwrap();
    let nginx = Nginx::start(&stage.addresses()).await.unwrap();
    let chromium = Chromium::start().await;
    let url = format!("http://{}/", nginx.address);
    let (a, b) = (Page::open(&chromium, &url).await, Page::open(&chromium, &url).await);
    let (a_id, b_id) = (a.id("").await, b.id("").await);
    for (page, to) in [(&a, &b_id), (&b, &a_id)] {
        // By the page's own form, again and again; what it reads is kept apart from what it writes.
        page.eval(&format!(
            "document.getElementById('recipient').value = '{to}'; window.written = 0; \
             window.states = []; \
             new MutationObserver(() => states.push(document.getElementById('state').dataset.state)) \
               .observe(document.getElementById('state'), {{ attributes: true }}); \
             window.writing = setInterval(() => {{ \
               document.getElementById('text').value = 'message ' + written; written += 1; \
               document.getElementById('form').requestSubmit(); \
             }}, 100)"
        ))
        .await;
    }
    let connected = async || {
        for page in [&a, &b] {
            page.until("it is connected", "return document.getElementById('state').dataset.state === 'connected'")
                .await;
        }
    };
    for gateway in 0..3 {
        // In turn, so that each page's is among them: killed, then drained.
        stage.gateways[gateway].kill();
        connected().await;
        stage.restart_gateway(gateway, LIMIT).await.unwrap();
        two_copies(&[&a, &b]).await;
        stage.gateways[gateway].signal(Signal::SIGTERM);
        stage.restart_gateway(gateway, LIMIT).await.unwrap();
        connected().await;
        two_copies(&[&a, &b]).await;
    }
    for page in [&a, &b] {
        page.eval("clearInterval(writing)").await;
    }
    for (writer, reader, id) in [(&a, &b, &b_id), (&b, &a, &a_id)] {
        writer
            .until(
                "all is acknowledged",
                "return document.querySelectorAll('#log .mine .status[data-state=acked]').length === written",
            )
            .await;
        let written = writer.eval("return written").await.as_u64().unwrap();
        // A page in the background may do so once a second.
        assert!(written > 15, "{written}");
        let expected: Vec<String> = (0..written).map(|number| format!("message {number}")).collect();
        let read =
            "return Array.from(document.querySelectorAll('#log li:not(.mine) .text'), (text) => text.textContent)";
        reader
            .until(
                "all has come",
                &format!("return document.querySelectorAll('#log li:not(.mine)').length >= {written}"),
            )
            .await;
        let read: Vec<String> = serde_json::from_value(reader.eval(read).await).unwrap();
        assert_eq!(read, expected, "all, once, and in order");
        assert_eq!(&reader.id("").await, id);
        assert!(!notice(reader).await.contains("missing"), "{}", notice(reader).await);
        let states: Vec<String> = serde_json::from_value(reader.eval("return states").await).unwrap();
        assert!(states.iter().all(|state| state == "connected" || state == "waiting"), "{states:?}");
        assert!(states.contains(&"waiting".to_owned()), "nothing happened to it");
    }
}
