//! The Rust client against real gateways that die meanwhile: the cases of `clients/js/tests/conformance.mjs`, and what only
//! this one promises.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "client_rust/people.rs"]
mod people;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::poll;
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use people::{BINARY, LIMIT, NOBODY, Pair, Person, gateway, url};
use tempfile::TempDir;
use texto_client::{Cause, Client, ConfigError, ConnectError, Ending, SendError, State, Uuid};
use texto_lab::certificates::{Authority, Validity};
use texto_lab::gateway::Gateway;
use texto_lab::process::{free_port, until};
use texto_lab::proxy::Proxy;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, connect_async};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn what_cannot_work_is_told_at_once() {
    for bad in ["", "nowhere", "ftp://localhost/", "ws://me:hunter2@localhost/v1/texto"] {
        let error = Client::connect(bad).await.unwrap_err();
        assert!(matches!(error, ConnectError::Config(ConfigError::Url { .. })), "{bad}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    assert_eq!(Client::builder::<&str>([]).start().unwrap_err(), ConfigError::NoUrl);
    let wrong = Client::builder(["wss://localhost"]).authorities("nonsense").start();
    assert!(matches!(wrong.unwrap_err(), ConfigError::Authorities(_)));
    let outside = std::thread::spawn(|| Client::builder(["ws://localhost"]).start().map(drop));
    assert_eq!(outside.join().unwrap(), Err(ConfigError::NoRuntime));

    // Nobody is there: it is said why.
    let url = format!("ws://127.0.0.1:{}", free_port().unwrap());
    let error = Client::builder([url]).connect_timeout(300 * MS).connect().await.unwrap_err().to_string();
    assert!(error.contains("can't be reached") && error.contains("refused"), "{error}");
    // Somebody is, who is no gateway.
    let gateway = gateway(&[]).await;
    let url = format!("ws://{}/v1/nonsense", gateway.address);
    let error = Client::builder([url]).connect_timeout(300 * MS).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { why: Some(Cause::Refused(404)), .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_talk_and_each_error_has_its_code() {
    let gateway = gateway(&[]).await;
    let anna = Person::connected(&[url(&gateway)]).await;
    let berta = Person::connected(&[url(&gateway).replace("ws:", "http:")]).await;
    assert_ne!(anna.id(), berta.id());
    let texts: Vec<String> = (0..300).map(|number| format!("{number} <&> \"ü\" 🙂")).collect();
    let sends = join_all(texts.iter().map(|text| anna.client.send(berta.id(), text.as_str()))).await;
    assert!(sends.iter().all(Result::is_ok), "{sends:?}");
    berta.hears(300).await;
    assert_eq!(berta.texts(), texts);
    assert!(berta.heard().iter().all(|message| message.sender == anna.id()));
    anna.client.send(anna.id(), "to myself").await.unwrap();
    anna.hears(1).await;

    let error = anna.client.send(NOBODY, "anybody?").await.unwrap_err();
    assert!(matches!(&error, SendError::NotConnected(why) if why.len() > 10), "{error:?}");
    assert!(error.to_string().starts_with("ENOTCONN: ") && !error.is_transient() && !error.may_have_arrived());
    let error = anna.client.send(berta.id(), "x".repeat(20_000)).await.unwrap_err();
    assert!(matches!(error, SendError::TooLong(_)), "{error:?}");
    // More than fit are not refused, but wait for their turn.
    let outcomes = join_all((0..1_500).map(|_| anna.code(anna.id(), "much"))).await;
    assert!(outcomes.iter().all(|outcome| outcome == "ack"), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_is_exceeded_is_told_and_may_be_tried_again() {
    let gateway = gateway(&["--send-rate", "1", "--send-burst", "2"]).await;
    let anna = Person::connected(&[url(&gateway)]).await;
    let errors: Vec<_> = join_all((0..5).map(|_| anna.client.send(anna.id(), "x"))).await;
    let refused: Vec<_> = errors.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 3, "{refused:?}");
    assert!(refused.iter().all(|error| matches!(error, SendError::TooMany(_)) && error.is_transient()));
}

/// What passes every message of the server on twice, with its number or without.
async fn echo(gateway: &Gateway, with_numbers: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = format!("ws://{}/v1/texto?register=1", gateway.address);
    tokio::spawn(async move {
        let client = accept_async(listener.accept().await.unwrap().0).await.unwrap();
        let (server, _) = connect_async(target).await.unwrap();
        let ((mut to_client, from_client), (to_server, mut from_server)) = (client.split(), server.split());
        tokio::spawn(from_client.forward(to_server));
        while let Some(Ok(message)) = from_server.next().await {
            let Message::Text(text) = message else { continue };
            let mut frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            if let Some(data) = frame["data"].as_object_mut().filter(|_| !with_numbers) {
                data.remove("seq");
            }
            for _ in 0..2 {
                to_client.send(Message::text(frame.to_string())).await.unwrap();
            }
        }
    });
    format!("ws://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_twice_is_shown_once_with_numbers_and_without() {
    let gateway = gateway(&[]).await;
    let berta = Person::connected(&[url(&gateway)]).await;
    for with_numbers in [true, false] {
        let anna = Person::connected(&[echo(&gateway, with_numbers).await]).await;
        let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        join_all(texts.iter().map(|text| berta.client.send(anna.id(), text.as_str()))).await;
        anna.hears(100).await;
        // What came before its answer has come by then.
        assert_eq!(anna.code(NOBODY, "x").await, "ENOTCONN");
        assert_eq!(anna.texts(), texts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_the_limit_1009_fails_and_nothing_else_does() {
    let gateway = gateway(&["--max-frame-bytes", "20000"]).await;
    let (anna, berta) = (Person::connected(&[url(&gateway)]).await, Person::connected(&[url(&gateway)]).await);
    let texts = ["before".to_owned(), "x".repeat(30_000), "after".to_owned()];
    let outcomes = join_all(texts.iter().map(|text| anna.code(berta.id(), text))).await;
    assert_eq!(outcomes, ["ack", "EMSGSIZE", "ack"]);
    berta.hears(2).await;
    assert_eq!(berta.texts(), ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_pauses_grow_to_15_s_with_full_jitter_and_what_is_sent_waits() {
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let builder = Client::builder([format!("ws://{address}")]).pauses(20 * MS, 100 * MS);
    let anna = Person::start(builder);
    let (client, waiting) = (anna.client.clone(), AtomicBool::new(true));
    let sent = async {
        let answer = client.send(NOBODY, "it waits").await;
        waiting.store(false, Ordering::SeqCst);
        answer
    };
    let look = async {
        until("it has tried often", LIMIT, async || (anna.pauses().len() >= 12).then_some(())).await.unwrap();
        assert!(waiting.load(Ordering::SeqCst));
        Gateway::start_on(&address, Path::new(BINARY), &[], &[]).await.unwrap()
    };
    let (sent, _gateway) = tokio::join!(sent, look);
    assert!(matches!(sent, Err(SendError::NotConnected(_))), "{sent:?}");
    let pauses = anna.pauses();
    assert!(pauses.iter().all(|pause| *pause < 100 * MS), "{pauses:?}");
    let [early, late] = [&pauses[..1], &pauses[4..]].map(|some| some.iter().max().copied().unwrap());
    assert!(early < 20 * MS && late > 20 * MS, "they grow: {pauses:?}");

    // Whoever waits for too long is told.
    let url = format!("ws://127.0.0.1:{}", free_port().unwrap());
    let (client, _messages) = Client::builder([url]).send_timeout(200 * MS).start().unwrap();
    assert_eq!(client.send(NOBODY, "x").await, Err(SendError::Timeout(200 * MS)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_says_when_to_come_back() {
    let gateway = gateway(&["--max-connections", "1"]).await;
    let first = Person::connected(&[url(&gateway)]).await;
    let second = Person::start(Client::builder([url(&gateway)]).pauses(10 * MS, 10 * MS));
    until("it is refused", LIMIT, async || (!second.pauses().is_empty()).then_some(())).await.unwrap();
    let pause = second.pauses()[0];
    assert!(pause >= SECOND && pause <= 1_010 * MS, "{:?}", second.states());
    assert!(matches!(second.states().last(), Some(State::Away { why: Cause::Refused(503), .. })));
    first.client.close().await;
    second.is_connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_asked_to_go_1012_comes_back_within_a_quarter_of_a_second() {
    let gateway = gateway(&["--drain-delay", "100ms", "--drain-window", "200ms"]).await;
    let anna = Person::start(Client::builder([url(&gateway)]).pauses(60 * SECOND, 60 * SECOND).seed(1));
    anna.is_connected().await;
    gateway.signal(Signal::SIGTERM);
    until("it is asked to go", LIMIT, async || (!anna.pauses().is_empty()).then_some(())).await.unwrap();
    assert!(anna.pauses()[0] < 250 * MS, "{:?}", anna.states());
    assert!(anna.states().iter().any(|state| matches!(state, State::Away { why: Cause::Closed(1012), .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_told_to_come_later_1013_does_and_keeps_the_id() {
    let gateway = gateway(&["--resumes-per-address", "10"]).await;
    let proxy = Proxy::start(&gateway.address.to_string()).await.unwrap();
    let anna = Person::start(Client::builder([format!("ws://{}", proxy.address)]).pauses(5 * MS, 5 * MS));
    anna.is_connected().await;
    let id = anna.id();
    let is_told = || anna.states().iter().any(|state| matches!(state, State::Away { why: Cause::Closed(1013), .. }));
    let mut before = 0;
    while !is_told() {
        proxy.cut();
        let connections = || anna.states().iter().filter(|state| matches!(state, State::Connected { .. })).count();
        before = before.max(connections());
        until("it is back, or told", LIMIT, async || (is_told() || connections() > before).then_some(()))
            .await
            .unwrap();
    }
    anna.becomes("connected", |state| matches!(state, State::Connected { resumed: true, missed: 0, .. })).await;
    assert_eq!(anna.id(), id);
}

fn token(key: &Path, subject: &str, lifetime: &str) -> String {
    let mut command = Command::new(BINARY);
    command.args(["token", "--subject", subject, "--expires-in", lifetime, "--key-file"]).arg(key);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A gateway that demands credentials, and the file of its key, which is in this folder.
async fn guarded() -> (Gateway, std::path::PathBuf, TempDir) {
    let folder = TempDir::new().unwrap();
    let key = folder.path().join("secret");
    std::fs::write(&key, "0123456789abcdef".repeat(4)).unwrap();
    (gateway(&["--auth-key-file", key.to_str().unwrap(), "--auth-leeway", "0s"]).await, key, folder)
}

async fn accepted(gateway: &Gateway) -> Option<f64> {
    gateway.metric("texto_handshakes_total{result=\"accepted\"}").await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_let_in_4003_does_not_come_back() {
    let (gateway, _key, _folder) = guarded().await;
    let refused = Client::connect(&url(&gateway)).await.unwrap_err();
    assert!(matches!(&refused, ConnectError::Ended(Ending::Credentials(why)) if why.len() > 10), "{refused:?}");
    assert_eq!(accepted(&gateway).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_replaced_4001_does_not_come_back() {
    let (gateway, key, _folder) = guarded().await;
    let id = Uuid::new_v4();
    let same = token(&key, &id.to_string(), "1h");
    let with_token = || {
        let same = same.clone();
        Client::builder([url(&gateway)]).credentials(move || std::future::ready(Ok(same.clone())))
    };
    let older = Person::start(with_token());
    older.is_connected().await;
    let newer = Person::start(with_token());
    newer.is_connected().await;
    older.becomes("ended", |state| *state == State::Closed(Ending::Elsewhere)).await;
    assert_eq!(older.client.send(id, "x").await, Err(SendError::Closed));
    assert_eq!((newer.id(), accepted(&gateway).await), (id, Some(2.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_renewed_in_time() {
    let (gateway, key, _folder) = guarded().await;
    // The first is for some seconds, the next one comes late, and is there in time all the same.
    let tokens = Arc::new(Mutex::new(vec![token(&key, "berta", "1h"), token(&key, "berta", "4s")]));
    let asked = Arc::new(AtomicUsize::new(0));
    let provider = {
        let (tokens, asked) = (tokens.clone(), asked.clone());
        move || {
            let (tokens, asked) = (tokens.clone(), asked.clone());
            async move {
                if asked.fetch_add(1, Ordering::SeqCst) == 1 {
                    return Err("not now".into());
                }
                Ok(tokens.lock().unwrap().pop().expect("asked for once too often"))
            }
        }
    };
    let berta = Person::start(Client::builder([url(&gateway)]).credentials(provider));
    berta.is_connected().await;
    until("both are used", LIMIT, async || tokens.lock().unwrap().is_empty().then_some(())).await.unwrap();
    tokio::time::sleep(4_500 * MS).await; // As long as the first was good: time is what this is about.
    berta.client.send(berta.id(), "still here").await.unwrap();
    let connections = berta.states().iter().filter(|state| matches!(state, State::Connected { .. })).count();
    assert_eq!(connections, 1, "{:?}", berta.states());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_comes_twice_while_gateways_are_killed_drained_and_stopped() {
    // Nobody is to hear EBUSY because the other one was away: what waits for somebody from one sender is a quarter of this.
    let flags = ["--drain-delay", "100ms", "--drain-window", "200ms", "--outbox-messages", "8192"];
    let mut pair = Pair::start(&flags).await;
    let [one, other] = pair.urls();
    let person = async |urls: [&String; 2]| {
        let person = Person::start(Client::builder(urls).signs_of_life(SECOND, SECOND));
        person.is_connected().await;
        person
    };
    let (anna, berta) = (person([&one, &other]).await, person([&other, &one]).await);
    let (to_anna, to_berta) = (anna.id(), berta.id());
    let is_over = Arc::new(AtomicBool::new(false));
    let talk = |client: Client, name: &'static str, to: Uuid| {
        let is_over = is_over.clone();
        tokio::spawn(async move {
            let mut outcomes = Vec::new();
            let mut pace = tokio::time::interval(40 * MS);
            let mut number = 0;
            while !is_over.load(Ordering::SeqCst) {
                pace.tick().await;
                let sends = (0..2).map(|_| {
                    number += 1;
                    client.send(to, format!("{name} {number}"))
                });
                outcomes.extend(join_all(sends).await);
            }
            outcomes
        })
    };
    let talks = [talk(anna.client.clone(), "anna", to_berta), talk(berta.client.clone(), "berta", to_anna)];
    // Of Anna's, then of both twice, and of the other one.
    let ends = [(0, Signal::SIGKILL), (1, Signal::SIGTERM), (0, Signal::SIGSTOP), (1, Signal::SIGKILL)];
    for (at, signal) in ends {
        pair.together().await;
        let mut before = [0; 2];
        for (person, before) in [&anna, &berta].into_iter().zip(&mut before) {
            *before = person.states().len();
        }
        pair.end(at, signal, async |pair| {
            let there = &pair.gateways[1 - at];
            until("all are at the other one", LIMIT, async || {
                (there.metric("texto_connections").await == Some(2.0)).then_some(())
            })
            .await
            .unwrap_or_else(|error| panic!("{error} after {signal}: {:?} {:?}", anna.states(), berta.states()));
        })
        .await;
    }
    is_over.store(true, Ordering::SeqCst);
    let [of_anna, of_berta] = join_all(talks).await.try_into().unwrap();
    for (person, name, outcomes) in [(&anna, "berta", of_berta.unwrap()), (&berta, "anna", of_anna.unwrap())] {
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        person.hears(outcomes.len()).await;
        let expected: Vec<_> = (1..=outcomes.len()).map(|number| format!("{name} {number}")).collect();
        assert_eq!(person.texts(), expected);
        let mut again = person.states();
        again.retain(|state| matches!(state, State::Connected { .. }));
        assert!(again.len() >= 3, "{again:?}");
        let id = person.id();
        let is_well =
            |state: &State| matches!(state, State::Connected { id: is, resumed: true, missed: 0, .. } if *is == id);
        assert!(again[1..].iter().all(is_well), "{again:?}");
        assert!(outcomes.len() > 100, "{}", outcomes.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_out_in_the_order_in_which_their_futures_were_polled() {
    let gateway = gateway(&[]).await;
    let anna = Person::connected(&[url(&gateway)]).await;
    let berta = Person::connected(&[url(&gateway)]).await;
    let texts: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    let mut sends: Vec<_> = texts.iter().map(|text| Box::pin(anna.client.send(berta.id(), text.as_str()))).collect();
    // Many at once, those are taken in, and then the rest: before the first ones are polled for the second time.
    for send in &mut sends[..40] {
        assert!(poll!(send).is_pending());
    }
    berta.hears(1).await;
    let outcomes = join_all(sends.into_iter().rev()).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let expected = texts[..40].iter().chain(texts[40..].iter().rev());
    berta.hears(texts.len()).await;
    assert_eq!(berta.texts(), expected.cloned().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_slowly_misses_nothing_and_can_write_meanwhile() {
    let gateway = gateway(&[]).await;
    let anna = Person::connected(&[url(&gateway)]).await;
    let builder = Client::builder([url(&gateway)]).queue(50, 1 << 20);
    let (berta, mut messages) = builder.connect().await.unwrap();
    let id = berta.id().unwrap();
    // More than fit into the queue of the client; not more than the server keeps from one sender.
    let texts: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let sends = join_all(texts.iter().map(|text| anna.client.send(id, text.as_str()))).await;
    assert!(sends.iter().all(Result::is_ok), "{sends:?}");
    let mut heard = Vec::new();
    while heard.len() < texts.len() {
        let message = tokio::time::timeout(LIMIT, messages.next()).await.expect("more comes").unwrap();
        if heard.len() % 20 == 0 {
            berta.send(anna.id(), format!("I have {}", message.text)).await.unwrap();
        }
        heard.push(message.text);
    }
    assert_eq!(heard, texts);
    assert!(matches!(berta.states().current(), State::Connected { missed: 0, .. }));
    anna.hears(10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_is_known_by_its_senders() {
    let gateway = gateway(&["--outbox-messages", "40"]).await;
    let anna = Person::connected(&[url(&gateway)]).await;
    let (berta, messages) = Client::connect(&url(&gateway)).await.unwrap();
    let outcomes = join_all((0..50).map(|_| anna.code(berta.id().unwrap(), "x"))).await;
    assert!(outcomes.iter().any(|outcome| outcome == "EBUSY"), "{outcomes:?}");
    // Who throws the stream away takes everything.
    drop(messages);
    until("there is room", LIMIT, async || (anna.code(berta.id()?, "x").await == "ack").then_some(())).await.unwrap();
    let outcomes = join_all((0..9).map(|_| anna.code(berta.id().unwrap(), "x"))).await;
    assert!(outcomes.iter().all(|outcome| outcome == "ack"), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_is_dropped_is_withdrawn_and_harms_no_other() {
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let anna = Person::start(Client::builder([format!("ws://{address}")]).pauses(20 * MS, 20 * MS));
    // Each is given up at another moment: before it is polled, while it waits.
    drop(anna.client.send(NOBODY, "never polled"));
    for pause in [0, 1, 5, 20, 50] {
        let given_up = tokio::time::timeout(pause * MS, anna.client.send(NOBODY, "given up")).await;
        assert!(given_up.is_err());
    }
    let gateway = Gateway::start_on(&address, Path::new(BINARY), &[], &[]).await.unwrap();
    anna.is_connected().await;
    assert_eq!(anna.code(anna.id(), "the only one").await, "ack");
    anna.hears(1).await;
    // Nobody else's was written.
    assert_eq!(gateway.metric("texto_errors_total{code=\"ENOTCONN\"}").await.unwrap_or(0.0), 0.0);
    // When it is written already, it may arrive, and all else goes on.
    for number in 0..50 {
        let pause = Duration::from_micros(number * 40);
        drop(tokio::time::timeout(pause, anna.client.send(anna.id(), "perhaps")).await);
    }
    assert_eq!(anna.code(anna.id(), "the last").await, "ack");
    until("the last has come", LIMIT, async || (anna.texts().last()? == "the last").then_some(())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_it_is_closed_and_when_nobody_holds_it() {
    let gateway = gateway(&[]).await;
    let anna = Person::connected(&[url(&gateway)]).await;
    let (berta, mut messages) = Client::connect(&url(&gateway)).await.unwrap();
    let id = berta.id().unwrap();
    anna.client.send(id, "before").await.unwrap();
    // Acknowledged by its node: it may be on its way still.
    assert_eq!(messages.next().await.map(|message| message.text).as_deref(), Some("before"));
    berta.close().await;
    // At once, and not when the window has passed; the server knew before `close` returned.
    assert_eq!(anna.code(id, "after").await, "ENOTCONN");
    assert_eq!(messages.next().await, None);
    assert_eq!(berta.states().current(), State::Closed(Ending::Closed));
    berta.close().await;

    let (carla, messages) = Client::connect(&url(&gateway)).await.unwrap();
    let id = carla.id().unwrap();
    drop(carla);
    assert_eq!(anna.code(id, "somebody listens").await, "ack");
    drop(messages);
    until("it is gone", LIMIT, async || (anna.code(id, "anybody?").await == "ENOTCONN").then_some(())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_speaks_tls_with_whom_it_trusts() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("an authority").unwrap();
    let pair = authority.sign(&["127.0.0.1"], Validity::Now).unwrap();
    let [certificate, key] = ["certificate", "key"].map(|name| folder.path().join(name));
    std::fs::write(&certificate, pair.certificate).unwrap();
    std::fs::write(&key, pair.key).unwrap();
    let flags = ["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let gateway = gateway(&flags).await;
    let url = format!("wss://{}", gateway.address);
    let anna = Person::start(Client::builder([&url]).authorities(authority.pem()));
    anna.is_connected().await;
    anna.client.send(anna.id(), "in secret").await.unwrap();
    anna.hears(1).await;

    let stranger = Authority::new("somebody else").unwrap().pem();
    let refused = Client::builder([&url]).authorities(stranger).connect_timeout(SECOND).connect().await.unwrap_err();
    assert!(refused.to_string().contains("no TLS with 127.0.0.1"), "{refused}");
}
