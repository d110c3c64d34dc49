//! The status page in a real browser: what it shows while servers die, who can read it, and that text stays text.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "browser/page.rs"]
mod page;

use std::path::Path;
use std::time::Duration;

use page::{Chromium, Page};
use serde_json::json;
use tempfile::TempDir;
use texto_lab::cluster::{Cluster, ClusterOptions};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use texto_lab::traffic::{Load, Traffic};

const LIMIT: Duration = Duration::from_secs(30);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

/// Waits until the page says this of the whole.
async fn says(page: &Page<'_>, state: &str) {
    let script = format!("return document.getElementById('state').textContent === {}", json!(state));
    page.until(&format!("the state is {state}"), &script).await;
}

/// What the picture says of a box: its classes, by the text that it has.
fn marked(text: &str, class: &str) -> String {
    format!(
        "return Array.from(document.querySelectorAll('#picture .box')).some((box) => \
           box.querySelector('title').textContent.startsWith({}) && box.classList.contains({}))",
        json!(text),
        json!(class)
    )
}

async fn emulate(page: &Page<'_>, width: u32, scheme: &str, motion: &str) {
    let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500 });
    page.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    let features = json!([
        { "name": "prefers-color-scheme", "value": scheme },
        { "name": "prefers-reduced-motion", "value": motion },
    ]);
    page.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
}

/// Everything that is wider than the page, or hangs out of it.
const TOO_WIDE: &str = "const wide = document.documentElement.clientWidth; \
    const shown = Array.from(document.body.querySelectorAll('*')).filter((element) => \
      !element.closest('.hidden, .skip, thead') && element.getBoundingClientRect().width > 0); \
    const out = shown.filter((element) => element.getBoundingClientRect().right > wide + 1); \
    return [wide, document.documentElement.scrollWidth <= wide, out.map((element) => element.outerHTML.slice(0, 120))]";

/// Each text with less contrast than WCAG 2.2 asks for (AA, 4.5 to 1; nothing here counts as large), on the backgrounds
/// that are really behind it.
const TOO_FAINT: &str = r"
    const channels = (color) => { const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number); return { rgb: [r, g, b], a }; };
    const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (element) => {
      const box = element.ownerSVGElement && element.parentElement.querySelector('rect');
      if (box) return channels(getComputedStyle(box).fill).rgb;
      for (let at = element; at; at = at.parentElement) {
        const { rgb, a } = channels(getComputedStyle(at).backgroundColor);
        if (a === 1) return rgb;
      }
      return [255, 255, 255];
    };
    const texts = Array.from(document.body.querySelectorAll('*')).filter((element) =>
      !element.closest('noscript, title, .hidden, .skip, [hidden]') && getComputedStyle(element).visibility === 'visible'
      && Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.data.trim()));
    const found = texts.map((element) => {
      const style = getComputedStyle(element);
      const [a, b] = [light(channels(element.ownerSVGElement ? style.fill : style.color).rgb), light(behind(element))];
      return [element.textContent.trim().slice(0, 60), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
    return [found.length, found.filter(([, contrast]) => contrast < 4.5)]";

/// What a screen reader needs, and a keyboard.
const NOT_ACCESSIBLE: &str = r"
    const flaws = [];
    const one = (selector) => {
      const { length } = document.querySelectorAll(selector);
      if (length !== 1) flaws.push(`${length} of ${selector}`);
    };
    ['body > header', 'body > main', 'body > footer', 'nav[aria-label]', 'h1', 'html[lang]', 'head > title'].forEach(one);
    ['#picture[role=img]', '[aria-live]', '#announcer[aria-live=polite]', '.skip[href=\'#words\']'].forEach(one);
    const ids = Array.from(document.querySelectorAll('[id]'), ({ id }) => id);
    if (new Set(ids).size !== ids.length) flaws.push('an id twice');
    for (const element of document.querySelectorAll('[aria-labelledby], [aria-describedby]')) {
      for (const name of ['aria-labelledby', 'aria-describedby']) {
        for (const id of (element.getAttribute(name) ?? '').split(' ').filter(Boolean)) {
          if (!document.getElementById(id)?.textContent.trim()) flaws.push(`${name} of ${element.tagName} leads nowhere: ${id}`);
        }
      }
    }
    for (const section of document.querySelectorAll('section')) if (!section.hasAttribute('aria-labelledby')) flaws.push('a section without a name');
    for (const image of document.images) if (!image.hasAttribute('alt')) flaws.push('an image without alt');
    const tables = Array.from(document.querySelectorAll('table:not([hidden])'));
    if (tables.length !== 3) flaws.push(`${tables.length} tables`);
    for (const table of tables) {
      if (!table.caption?.textContent || table.getAttribute('role') !== 'table') flaws.push('a table without caption or role');
      if (table.tBodies[0].rows.length === 0) flaws.push(`${table.id} is empty`);
      for (const row of table.tBodies[0].rows) {
        if (row.cells[0].scope !== 'row' || row.cells.length !== table.tHead.rows[0].cells.length) flaws.push(`a row of ${table.id}`);
      }
    }
    const levels = Array.from(document.querySelectorAll('h1, h2, h3'), ({ tagName }) => Number(tagName[1]));
    if (levels.some((level, at) => level > (levels[at - 1] ?? 0) + 1)) flaws.push(`headings: ${levels}`);
    return flaws";

async fn check_looks(page: &Page<'_>) {
    for scheme in ["light", "dark"] {
        for width in [320, 1000] {
            emulate(page, width, scheme, "no-preference").await;
            let drawn = format!("return document.getElementById('picture').getAttribute('width') < {width}");
            page.until("it is drawn anew", &drawn).await;
            let wide = page.eval(TOO_WIDE).await;
            assert!(wide[1] == true && wide[2] == json!([]), "{scheme} at {width}: {wide:#}");
            // A transition of colours may go on.
            page.until(
                "colours have settled",
                "return document.getAnimations().every((one) => !(one instanceof CSSTransition))",
            )
            .await;
            let faint = page.eval(TOO_FAINT).await;
            assert!(faint[0].as_u64() > Some(30) && faint[1] == json!([]), "{scheme} at {width}: {faint:#}");
        }
    }
    assert_eq!(page.eval(NOT_ACCESSIBLE).await, json!([]));
}

async fn picture(page: &Page<'_>, name: &str) {
    if let Some(folder) = std::env::var_os("TEXTO_SCREENSHOTS") {
        page.devtools("Emulation.setScrollbarsHidden", json!({ "hidden": true })).await;
        std::fs::write(Path::new(&folder).join(name), page.browser.screenshot().await.unwrap()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_picture_follows_a_failover_and_an_outage() {
    let chromium = Chromium::start().await;
    let mut cluster = Cluster::start(&ClusterOptions::default()).await.unwrap();
    let mut gateways = Vec::new();
    for name in ["gateway-1", "gateway-2", "gateway-3"] {
        let flags = [&cluster.flags()[..], &["--node-id".to_owned(), name.to_owned()]].concat();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let gateway = Gateway::start(binary(), &flags, &[]).await.unwrap();
        gateway.wait_synced(3, LIMIT).await.unwrap();
        gateways.push(gateway);
    }
    let addresses: Vec<_> = gateways.iter().map(|gateway| gateway.address).collect();
    let load = Load { pairs: 10, rate: 200.0, deadline: Duration::from_secs(6) };
    let traffic = Traffic::start(&addresses, load).await.unwrap();
    let have_met = async || {
        let status = http::get(addresses[1], "/status.json", "").await.ok()?.body;
        (status.matches("gateway_came").count() == 2).then_some(())
    };
    until("the gateways know one another", LIMIT, have_met).await.unwrap();
    let url = format!("http://{}/status", addresses[1]);
    let page = Page::open(&chromium, &url).await;
    emulate(&page, 1000, "light", "no-preference").await;
    says(&page, "Calm").await;
    let old = cluster.servers[0].address();
    page.until("the master is marked", &marked(&old, "master")).await;
    page.until("messages are counted", "return parseFloat(document.getElementById('rate').textContent) > 0").await;
    page.until("the other gateways are there", "return document.querySelectorAll('#gateways tbody tr').length === 3")
        .await;
    // Dots go along the wire that carries, unless somebody wants rest.
    let flows = "return document.getAnimations().some((one) => one.animationName === 'flow')";
    page.until("it moves", flows).await;
    picture(&page, "status-calm.png").await;
    emulate(&page, 1000, "light", "reduce").await;
    page.until("it does not move", "return document.getAnimations().length === 0").await;
    check_looks(&page).await;
    emulate(&page, 1000, "dark", "no-preference").await;

    let quiet = page.eval("return document.getElementById('announcer').textContent").await;
    assert_eq!(quiet, json!(""), "what was there before is not announced");
    cluster.servers[0].kill();
    page.until("the old master is marked as dead", &marked(&old, "bad")).await;
    says(&page, "Failover").await;
    let both = "return document.querySelectorAll('#picture .wire.carries').length === 2";
    page.until("messages go by both replicas", both).await;
    picture(&page, "status-failover.png").await;
    check_looks(&page).await;
    let new = cluster.wait_for_new_master(0, LIMIT).await.unwrap();
    let new = cluster.servers[new].address();
    says(&page, "Calm").await;
    page.until("the new master is marked", &marked(&new, "master")).await;
    let alone = "return document.querySelectorAll('#picture .wire.carries').length === 1";
    page.until("messages go to it alone", alone).await;
    let shown = page.eval("return document.querySelectorAll('#picture .box.master').length").await;
    assert_eq!(shown, json!(1), "the old one is master no more");
    let told = page.eval("return document.getElementById('events').innerText").await;
    for what in ["Failover begun", &format!("New master {new}"), "Failover over"] {
        assert!(told.as_str().unwrap().contains(what), "{told}");
    }
    let announced = page.eval("return document.getElementById('announcer').textContent").await;
    assert!(!announced.as_str().unwrap().is_empty());
    let row = page.eval("return document.querySelector('#servers tbody').innerText").await;
    assert!(row.as_str().unwrap().contains("not connected"), "{row}");
    emulate(&page, 320, "dark", "reduce").await;
    picture(&page, "status-phone.png").await;

    // The page comes without any Redis, too.
    traffic.stop();
    for server in &mut cluster.servers {
        server.kill();
    }
    says(&page, "No Redis").await;
    let page = Page::open(&chromium, &url).await;
    says(&page, "No Redis").await;
    let crosses = "return document.querySelectorAll('#picture .box.bad').length >= 3";
    page.until("each server is marked as dead", crosses).await;
    check_looks(&page).await;

    gateways[1].kill();
    says(&page, "No answer").await;
}

/// Whoever may name a node, or answers as Redis, must not get a script into an operator's browser.
#[tokio::test(flavor = "multi_thread")]
async fn names_with_markup_are_shown_as_text() {
    const HOSTILE: &str = "<img/src=x/onerror=window.hacked=1><b>";
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let address = redis.address();
    let arguments = ["--redis", &address, "--node-id", HOSTILE];
    let one = Gateway::start(binary(), &arguments, &[]).await.unwrap();
    let other = Gateway::start(binary(), &arguments, &[]).await.unwrap();
    for gateway in [&one, &other] {
        gateway.wait_synced(1, LIMIT).await.unwrap();
    }
    let chromium = Chromium::start().await;
    let page = Page::open(&chromium, &format!("http://{}/status", one.address)).await;
    let both = "return document.querySelectorAll('#gateways tbody tr').length === 2";
    page.until("both are there", both).await;
    let heads = "return Array.from(document.querySelectorAll('#gateways tbody th'), (head) => head.textContent)";
    assert_eq!(page.eval(heads).await, json!([HOSTILE, HOSTILE]));
    let event = format!("return document.getElementById('events').textContent.includes({})", json!(HOSTILE));
    page.until("it came", &event).await;
    let made = "return document.querySelectorAll('main img, main b, header b').length === 0 && !window.hacked";
    assert_eq!(page.eval(made).await, json!(true));
    // Even a mistake in the page's scripts could not: nothing makes text into markup, and nothing in line runs.
    let refused =
        "try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); return false } catch { return true }";
    assert_eq!(page.eval(refused).await, json!(true));
}

/// Whoever looks while the node drains sees it to its end, and its successor after that.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_follows_a_drain_and_finds_the_node_again() {
    let drain = ["--drain-delay", "6s", "--drain-window", "100ms"];
    let mut gateway = Gateway::start(binary(), &drain, &[]).await.unwrap();
    let listen = gateway.address.to_string();
    let chromium = Chromium::start().await;
    let page = Page::open(&chromium, &format!("http://{listen}/status")).await;
    says(&page, "One node").await;
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    says(&page, "Draining").await;
    gateway.wait_exit(LIMIT).await.unwrap();
    says(&page, "No answer").await;
    let again = until("it starts again", LIMIT, async || Gateway::start_on(&listen, binary(), &[], &[]).await.ok());
    let _again = again.await.unwrap();
    says(&page, "One node").await;
}
