//! Every bound, reached on purpose: what happens then, and that nobody else is disturbed.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use texto_lab::client::{self, Answer, Client, Incoming};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::until;
use texto_lab::redis_server::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(15);

async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), arguments, &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_refuses_with_503_and_takes_the_next_when_one_leaves() {
    let gateway = gateway(&["--max-connections", "3"]).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::connect(gateway.address).await.unwrap());
    }
    let refused = http::get(gateway.address, "/v1/texto", http::UPGRADE).await.unwrap();
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("1")));
    assert_eq!(http::get(gateway.address, "/readyz", "").await.unwrap().status, 503);
    assert_eq!(http::get(gateway.address, "/livez", "").await.unwrap().status, 200);
    drop(clients.pop());
    gateway.wait_ready(LIMIT).await.unwrap();
    Client::connect(gateway.address).await.unwrap();
    assert_eq!(gateway.metric("texto_handshakes_total{result=\"full\"}").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_unanswered_sends_get_eagain_and_each_is_answered_in_time() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let address = redis.address();
    let gateway = gateway(&["--redis", &address, "--max-unanswered", "5", "--send-timeout", "1s"]).await;
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut client = Client::connect(gateway.address).await.unwrap();
    redis.freeze();
    let began = Instant::now();
    let mut requests = Vec::new();
    for _ in 0..8 {
        requests.push(client.post(client.id, "?").await.unwrap());
    }
    let mut answers = Vec::new();
    for request in requests.split_off(5) {
        answers.push(client.answer(request).await.unwrap());
    }
    assert_eq!(answers, vec![Answer::Error("EAGAIN".to_owned()); 3]);
    for request in requests {
        assert_eq!(client.answer(request).await.unwrap(), Answer::Error("EBROKER".to_owned()));
    }
    assert!(began.elapsed() < Duration::from_secs(4), "answered after {:?}", began.elapsed());
    redis.thaw();
    until("messages flow again", LIMIT, async || {
        (client.send(client.id, "!").await.unwrap() == Answer::Ack).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_is_closed_with_1013_and_disturbs_nobody() {
    let gateway = gateway(&["--outbox-messages", "50", "--outbox-bytes", "100000", "--write-timeout", "5s"]).await;
    let slow = Client::connect(gateway.address).await.unwrap();
    let target = slow.id;
    let mut slow = slow;
    let mut flooder = Client::connect(gateway.address).await.unwrap();
    let mut a = Client::connect(gateway.address).await.unwrap();
    let mut b = Client::connect(gateway.address).await.unwrap();
    let text = "x".repeat(16_000);
    let mut slowest = Duration::ZERO;
    let is_counted = async || gateway.metric("texto_slow_readers_closed_total").await == Some(1.0);
    // Megabytes fit into the kernel's buffers before anything comes back to the gateway. It may be refused before that, when
    // the gateway has not come to write.
    let end = Instant::now() + 4 * LIMIT;
    while Instant::now() < end && !is_counted().await {
        flooder.send(target, &text).await.unwrap();
        let began = Instant::now();
        assert_eq!(a.send(b.id, "undisturbed").await.unwrap(), Answer::Ack);
        assert_eq!(b.receive().await.unwrap().1, "undisturbed");
        slowest = slowest.max(began.elapsed());
    }
    assert!(is_counted().await, "the slow reader was never given up");
    assert!(slowest < Duration::from_secs(1), "others waited {slowest:?}");
    // It wakes up, and is told why, if the kernel had room for it; at least it is closed.
    let code = slow.closed(LIMIT).await.unwrap();
    assert!(matches!(code, 1013 | 1006), "{code}");
}

/// Each alone is within its bounds; together they would fill the node's memory.
#[tokio::test(flavor = "multi_thread")]
async fn many_slow_readers_together_are_bounded_and_the_slowest_go_first() {
    const TOTAL: f64 = 2_000_000.0;
    let room = ["--outbox-bytes", "1000000", "--outbox-total-bytes", "2000000"];
    let gateway = gateway(&[&room[..], &["--write-timeout", "1h", "--ping-interval", "1h"]].concat()).await;
    let mut slow = Vec::new();
    for _ in 0..12 {
        slow.push(Client::connect(gateway.address).await.unwrap());
    }
    let (mut flooder, mut a, mut b) = (
        Client::connect(gateway.address).await.unwrap(),
        Client::connect(gateway.address).await.unwrap(),
        Client::connect(gateway.address).await.unwrap(),
    );
    let text = "x".repeat(16_000);
    let began = Instant::now();
    while gateway.metric("texto_slow_readers_closed_total").await != Some(1.0) {
        assert!(began.elapsed() < 4 * LIMIT, "nobody was closed");
        for reader in &slow {
            for _ in 0..16 {
                if flooder.send(reader.id, &text).await.unwrap() != Answer::Ack {
                    break;
                }
            }
        }
        let held = gateway.metric("texto_outbox_bytes").await.unwrap();
        assert!(held <= TOTAL, "{held} bytes");
        if gateway.metric("texto_slow_readers_closed_total").await.unwrap() > 0.0 {
            break;
        }
    }
    // Whoever reads is not thrown out, and there is room again.
    until("there is room", LIMIT, async || (a.send(b.id, "undisturbed").await.unwrap() == Answer::Ack).then_some(()))
        .await
        .unwrap();
    assert_eq!(b.receive().await.unwrap().1, "undisturbed");
    let closed = gateway.metric("texto_slow_readers_closed_total").await.unwrap();
    assert!(closed < 12.0, "all of them were closed");
    drop(slow);
    until("all is given back", LIMIT, async || (gateway.metric("texto_outbox_bytes").await? == 0.0).then_some(()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_are_one_line_and_a_count() {
    let gateway = gateway(&["--write-timeout", "300ms", "--outbox-messages", "50"]).await;
    let mut flooder = Client::connect(gateway.address).await.unwrap();
    let text = "x".repeat(16_000);
    for count in 1..=3_u32 {
        let slow = Client::connect(gateway.address).await.unwrap();
        let closed = until("it is closed", LIMIT, async || {
            // More than the kernel's buffers hold, after a while.
            for _ in 0..50 {
                flooder.send(slow.id, &text).await.unwrap();
            }
            let closed = gateway.metric("texto_slow_readers_closed_total").await?;
            (closed == f64::from(count)).then_some(())
        });
        closed.await.unwrap();
    }
    // Each has been said, or counted, at the end.
    gateway.signal(Signal::SIGINT);
    gateway.wait_for_log("stopped", LIMIT).await.unwrap();
    let lines: Vec<_> = gateway.log().into_iter().filter(|line| line.contains("did not read")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
}

/// While a write waits for the client, more arrives for it: that must not wait for the next ping.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_pauses_gets_the_rest_without_another_word() {
    let room = ["--outbox-messages", "100000", "--outbox-bytes", "1000000000"];
    let patience = ["--ping-interval", "1h", "--write-timeout", "1h"];
    let gateway = gateway(&[room, patience].concat()).await;
    let mut reader = Client::connect(gateway.address).await.unwrap();
    let mut writer = Client::connect(gateway.address).await.unwrap();
    let text = "x".repeat(16_000);
    // More than the kernel's buffers hold.
    const COUNT: usize = 1_000;
    for _ in 0..COUNT {
        assert_eq!(writer.send(reader.id, &text).await.unwrap(), Answer::Ack);
    }
    for number in 0..COUNT {
        let next = tokio::time::timeout(LIMIT, reader.receive()).await;
        assert_eq!(next.unwrap_or_else(|_| panic!("nothing after {number}")).unwrap().1, text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_is_the_senders_business_and_closes_nobody() {
    let gateway = gateway(&["--outbox-messages", "2"]).await;
    let mut client = Client::connect(gateway.address).await.unwrap();
    // Far more at once than the outbox holds.
    for _ in 0..64 {
        client.post(client.id, &"x".repeat(100)).await.unwrap();
    }
    let (mut answers, mut busy, mut acked, mut received) = (0, 0, 0, 0);
    while answers < 64 || received < acked {
        let Incoming::Frame(frame) = client.frame().await.unwrap() else { panic!("the session was closed") };
        match frame["kind"].as_str() {
            Some("receive") => received += 1,
            Some("ack") => acked += 1,
            _ => busy += usize::from(frame["data"]["code"] == "EBUSY"),
        }
        answers = acked + busy;
    }
    assert!(busy > 0 && acked > 0 && busy + acked == 64, "{busy} refused, {acked} acknowledged");
    assert_eq!(client.send(client.id, "still here").await.unwrap(), Answer::Ack);
}

/// As large as the configuration lets them be: Redis must not cut off a node for one.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_texts_go_from_node_to_node() {
    const MOST: usize = 8 * 1024 * 1024;
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let (address, most) = (redis.address(), MOST.to_string());
    let frame = (8 * MOST).to_string();
    let room = ["--max-text-bytes", &most, "--max-frame-bytes", &frame, "--outbox-bytes", &frame];
    let arguments = [&["--redis", &address], &room[..]].concat();
    let (one, other) = (gateway(&arguments).await, gateway(&arguments).await);
    one.wait_ready(LIMIT).await.unwrap();
    other.wait_ready(LIMIT).await.unwrap();
    let mut sender = Client::connect(one.address).await.unwrap();
    let mut receiver = Client::connect(other.address).await.unwrap();
    // The second is six times as long in JSON, which is as much as this client takes.
    for text in ["x".repeat(MOST), "\u{1}".repeat(MOST / 4)] {
        assert_eq!(sender.send(receiver.id, &text).await.unwrap(), Answer::Ack);
        assert!(receiver.receive().await.unwrap().1 == text, "something else came");
    }
    for gateway in [&one, &other] {
        let failures = format!("texto_link_failures_total{{address=\"{address}\"}}");
        assert_eq!(gateway.metric(&failures).await.unwrap_or(0.0), 0.0);
    }
}

/// Their connections would be asked for again after a second, and then after three.
#[tokio::test(flavor = "multi_thread")]
async fn all_clients_of_a_dead_node_may_come_at_once() {
    let longest = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let gateway = gateway(&[]).await;
    gateway.signal(Signal::SIGSTOP);
    let connect = |_| tokio::time::timeout(Duration::from_millis(900), TcpStream::connect(gateway.address));
    let clients = futures_util::future::join_all((0..3000.min(longest)).map(connect)).await;
    gateway.signal(Signal::SIGCONT);
    assert!(clients.into_iter().all(|client| client.is_ok_and(|client| client.is_ok())), "somebody found no room");
    assert_eq!(http::get(gateway.address, "/livez", "").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_half_sent_requests_are_closed() {
    let gateway = gateway(&["--header-timeout", "300ms", "--keep-alive-timeout", "300ms"]).await;
    for start in ["", "GET /v1/texto HTTP/1.1\r\nHost: x\r\n", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("it stays open").unwrap();
        assert_eq!(answer.is_empty(), !start.ends_with("\r\n\r\n"), "{}", String::from_utf8_lossy(&answer));
    }
}

const LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";

/// Waits until nothing more comes, not even an answer.
async fn end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("it stays open").unwrap();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test(flavor = "multi_thread")]
async fn between_requests_a_connection_may_be_idle_for_longer_than_a_request_may_take() {
    let gateway = gateway(&["--header-timeout", "300ms", "--keep-alive-timeout", "3s"]).await;
    let (header, keep_alive) = (Duration::from_millis(290), Duration::from_millis(2900));
    let connect = async || TcpStream::connect(gateway.address).await.unwrap();
    let (mut idle, mut begun, mut silent) = (connect().await, connect().await, connect().await);
    assert_eq!(http::ask(&mut idle, LIVEZ).await.unwrap().status, 200);
    assert_eq!(http::ask(&mut begun, LIVEZ).await.unwrap().status, 200);
    // The header timeout has passed when this one is closed.
    end(&mut silent).await;
    assert_eq!(http::ask(&mut idle, LIVEZ).await.unwrap().status, 200);
    let answered = Instant::now();
    begun.write_all(b"GET /li").await.unwrap();
    end(&mut begun).await;
    assert!(answered.elapsed() > header && answered.elapsed() < keep_alive, "{:?}", answered.elapsed());
    end(&mut idle).await;
    assert!(answered.elapsed() > keep_alive, "closed after {:?}", answered.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_yield_their_places_to_handshakes() {
    let gateway = gateway(&["--max-connections", "4", "--header-timeout", "1h", "--keep-alive-timeout", "1h"]).await;
    let mut early = Client::connect(gateway.address).await.unwrap();
    let mut idle = Vec::new();
    // Several times as many as there are places.
    for _ in 0..400 {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        assert_eq!(http::ask(&mut stream, LIVEZ).await.unwrap().status, 200);
        idle.push(stream);
    }
    let began = Instant::now();
    let late = Client::connect(gateway.address).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "a handshake took {:?}", began.elapsed());
    assert_eq!(early.send(late.id, "still here").await.unwrap(), Answer::Ack);
    // Those that were idle longest are gone, without a word, and the others still serve.
    end(&mut idle[0]).await;
    end(&mut idle[200]).await;
    assert_eq!(http::ask(&mut idle[399], LIVEZ).await.unwrap().status, 200);
    assert_eq!(http::ask(&mut idle[300], LIVEZ).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_answer_pings_is_closed() {
    let gateway = gateway(&["--ping-interval", "200ms"]).await;
    // It never reads, so its library never answers.
    let _silent = Client::connect(gateway.address).await.unwrap();
    let mut lively = Client::connect(gateway.address).await.unwrap();
    let gone = until("the silent one is closed", LIMIT, async || {
        let count = gateway.metric("texto_sessions_closed_total{reason=\"silent\"}").await;
        // Asked with a deadline that lets it read, and so answer pings.
        let heard = tokio::time::timeout(Duration::from_millis(20), lively.frame()).await;
        assert!(heard.is_err(), "the lively one got {heard:?}");
        (count == Some(1.0)).then_some(())
    });
    gone.await.unwrap();
    assert_eq!(lively.send(lively.id, "still here").await.unwrap(), Answer::Ack);
}

/// Nobody can hear a node that stands still, and it hears nobody: that is not their silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stood_still_blames_nobody() {
    const PING: Duration = Duration::from_secs(1);
    let gateway = gateway(&["--ping-interval", "1s"]).await;
    let began = Instant::now();
    let mut clients = Vec::new();
    // Some were pinged before, and have not answered yet; some were not.
    for wait in [Duration::ZERO, PING * 3 / 2] {
        tokio::time::sleep_until((began + wait).into()).await;
        for _ in 0..20 {
            clients.push(Client::connect(gateway.address).await.unwrap());
        }
    }
    let mut thoughtful = Client::connect(gateway.address).await.unwrap();
    gateway.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    for client in &mut clients {
        client.post(client.id, "are you there?").await.unwrap();
    }
    tokio::time::sleep_until((stopped + 5 * PING / 2).into()).await;
    gateway.signal(Signal::SIGCONT);
    for client in &mut clients {
        assert_eq!(client.receive().await.unwrap().1, "are you there?");
    }
    // Who has said nothing is asked, and has as long as ever to answer.
    tokio::time::sleep_until((stopped + 3 * PING).into()).await;
    assert_eq!(thoughtful.send(thoughtful.id, "I am").await.unwrap(), Answer::Ack);
}

/// A session that waits for its client in a write neither reads nor pings: both come first when it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_for_a_while_is_asked_before_it_is_called_silent() {
    // Who is not full within two of these is silent indeed.
    const PING: Duration = Duration::from_secs(2);
    let gateway = gateway(&["--ping-interval", "2s", "--write-timeout", "1h"]).await;
    let text = "x".repeat(16_000);
    let mut readers = Vec::new();
    for _ in 0..12 {
        let reader = Client::connect(gateway.address).await.unwrap();
        let mut writer = Client::connect(gateway.address).await.unwrap();
        let mut acked = 0;
        // More than the kernel's buffers hold.
        while writer.send(reader.id, &text).await.unwrap() == Answer::Ack {
            acked += 1;
        }
        readers.push((reader, acked));
    }
    let full = Instant::now();
    let mut pace = tokio::time::interval(PING / 10);
    while full.elapsed() < 3 * PING {
        pace.tick().await;
        // Half of them speak all the while.
        for (reader, _) in readers.iter_mut().skip(6) {
            reader.write("{}").await.unwrap();
        }
    }
    for (reader, acked) in &mut readers {
        for number in 0..*acked {
            let received = reader.receive().await;
            assert_eq!(received.unwrap_or_else(|error| panic!("{number} of {acked}: {error}")).1, text);
        }
        assert_eq!(reader.send(reader.id, "still here").await.unwrap(), Answer::Ack);
    }
}

/// A frame as a client sends it, masked with zeros. Its first byte says whether it is the last, and what it is.
fn masked(first: u8, payload: &str) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[first, 0x80 | 126, length[0], length[1], 0, 0, 0, 0], payload.as_bytes()].concat()
}

/// Writes `bytes` piece by piece, one every 20 ms, until the server closes. Gives what it had to say.
async fn trickle(client: Client, pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> String {
    let stream = client.into_socket().into_inner();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        for piece in pieces {
            pace.tick().await;
            if writer.write_all(&piece).await.is_err() {
                break;
            }
        }
    });
    let mut said = Vec::new();
    // What is broken off has been said all the same.
    let _ = tokio::time::timeout(LIMIT, reader.read_to_end(&mut said)).await.expect("it stays open");
    writing.abort();
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upload_is_a_sign_of_life_and_dribbling_is_not() {
    let gateway = gateway(&["--ping-interval", "300ms"]).await;
    let connect = async || Client::connect(gateway.address).await.unwrap();
    let (uploads, dribbles, empty) = (connect().await, connect().await, connect().await);
    // At 5 KB a second, which takes ten times as long as a silent client has; then it is as silent as any.
    let send = client::send_frame(uploads.id, Uuid::new_v4(), uploads.id, &"x".repeat(16_000));
    let pieces: Vec<_> = masked(0x81, &send).chunks(100).map(<[u8]>::to_vec).collect();
    // A byte at a time, and fragments that hold nothing, of a message that never ends.
    let frame = masked(0x81, &"x".repeat(60_000));
    let bytes = frame.into_iter().map(|byte| vec![byte]);
    let fragments = std::iter::repeat(masked(0x00, "").repeat(50));
    let fragments = std::iter::once(masked(0x01, "x")).chain(fragments);
    let began = Instant::now();
    let closed = async |client, pieces: Box<dyn Iterator<Item = Vec<u8>> + Send>| {
        let said = trickle(client, pieces).await;
        (said, began.elapsed())
    };
    let (uploaded, dribbled, nothing) = tokio::join!(
        closed(uploads, Box::new(pieces.into_iter())),
        closed(dribbles, Box::new(bytes)),
        closed(empty, Box::new(fragments)),
    );
    assert!(uploaded.0.contains(r#""kind":"ack""#), "closed after {:?}: {}", uploaded.1, uploaded.0);
    for (said, _) in [&uploaded, &dribbled, &nothing] {
        assert!(said.contains("no answer to a ping"), "{said}");
    }
    assert!(dribbled.1 < uploaded.1 && nothing.1 < uploaded.1, "{:?}, {:?}", dribbled.1, nothing.1);
    assert_eq!(gateway.metric("texto_sessions_closed_total{reason=\"silent\"}").await, Some(3.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_can_have_an_address_of_their_own() {
    let port = texto_lab::process::free_port().unwrap();
    let admin = format!("127.0.0.1:{port}");
    let gateway = gateway(&["--admin-listen", &admin]).await;
    assert_eq!(http::get(gateway.address, "/metrics", "").await.unwrap().status, 404);
    let metrics = http::get(admin.parse().unwrap(), "/metrics", "").await.unwrap();
    assert_eq!(metrics.status, 200);
    for line in metrics.body.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("texto_") || line.starts_with("process_"), "{line}");
    }
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(http::get(admin.parse().unwrap(), path, "").await.unwrap().status, 200);
        assert_eq!(http::get(gateway.address, path, "").await.unwrap().status, 200);
    }
}
