//! TLS for clients: handshakes, certificates that are renewed, and those who stall or speak something else.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use texto_lab::certificates::{Authority, TlsFiles, Validity, replace, visitor};
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::until;
use texto_lab::tls_relay::TlsRelay;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ProtocolVersion, SupportedProtocolVersion};

const HOST: &str = "127.0.0.1";
const LIMIT: Duration = Duration::from_secs(20);
const BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

struct Bench {
    gateway: Gateway,
    files: TlsFiles,
    authority: Authority,
    folder: TempDir,
}

async fn bench(flags: &[&str]) -> Bench {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("an authority").unwrap();
    let pair = authority.sign(&[HOST], Validity::Now).unwrap();
    let files = TlsFiles::create(folder.path(), "gateway", &authority, &pair).unwrap();
    let own = [format!("--tls-cert={}", files.certificate.display()), format!("--tls-key={}", files.key.display())];
    let flags: Vec<&str> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let gateway = Gateway::start(binary(), &flags, &[]).await.unwrap();
    Bench { gateway, files, authority, folder }
}

impl Bench {
    /// For clients that speak plainly.
    async fn relay(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsRelay {
        let connector = visitor(&self.files.authority, versions).unwrap();
        TlsRelay::start(self.gateway.address, connector).await.unwrap()
    }

    /// A handshake.
    async fn shake(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.gateway.address).await.unwrap();
        let connector = visitor(&self.files.authority, versions).unwrap();
        connector.connect(HOST.try_into().unwrap(), stream).await.unwrap()
    }

    /// The certificate that newcomers are shown.
    async fn shown(&self) -> Vec<u8> {
        let stream = self.shake(&BOTH).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

/// They can talk.
async fn talk(one: &mut Client, other: &mut Client) {
    assert_eq!(one.send(other.id, "x").await.unwrap(), Answer::Ack);
    assert_eq!(other.receive().await.unwrap(), (one.id, "x".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_come_by_either_version_and_speak_http_1() {
    let bench = bench(&[]).await;
    let listening = bench.gateway.wait_for_log("listening", LIMIT).await.unwrap();
    assert!(listening.contains(&format!("https://{}/", bench.gateway.address)), "{listening}");
    for (version, name) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let stream = bench.shake(&[version]).await;
        assert_eq!(stream.get_ref().1.protocol_version(), Some(name));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
        let relay = bench.relay(&[version]).await;
        let page = http::get(relay.address, "/", "").await.unwrap();
        assert!(page.status == 200 && page.body.contains("<html"), "{}", page.head);
        let mut one = Client::connect(relay.address).await.unwrap();
        let mut other = Client::connect(relay.address).await.unwrap();
        let text = "x".repeat(16_384);
        assert_eq!(one.send(other.id, &text).await.unwrap(), Answer::Ack);
        assert_eq!(other.receive().await.unwrap(), (one.id, text));
        talk(&mut other, &mut one).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_to_newcomers_and_sessions_go_on() {
    let bench = bench(&[]).await;
    let relay = bench.relay(&BOTH).await;
    let mut one = Client::connect(relay.address).await.unwrap();
    let mut other = Client::connect(relay.address).await.unwrap();
    let first = bench.shown().await;
    let renewed = bench.authority.sign(&[HOST], Validity::Now).unwrap();
    bench.files.replace(&bench.authority, &renewed).unwrap();
    bench.gateway.wait_for_log("clients: certificates were read again", LIMIT).await.unwrap();
    let second = bench.shown().await;
    assert_ne!(first, second);
    talk(&mut one, &mut other).await;
    // A new pair that is broken, and one that belongs to two.
    let stranger = bench.authority.sign(&[HOST], Validity::Now).unwrap();
    for (key, reason) in
        [("-----BEGIN PRIVATE KEY-----\nMIG", "is damaged"), (stranger.key.as_str(), "is not that of the certificate")]
    {
        replace(&bench.files.key, key).unwrap();
        let said = bench.gateway.wait_for_log(reason, LIMIT).await.unwrap();
        assert!(said.contains("certificates can't be read again, the last ones are used"), "{said}");
        assert!(!said.contains("MIG"), "{said}");
        assert_eq!(bench.shown().await, second);
    }
    talk(&mut other, &mut one).await;
    let third = bench.authority.sign(&[HOST], Validity::Now).unwrap();
    bench.files.replace(&bench.authority, &third).unwrap();
    until("the third one is shown", LIMIT, async || (bench.shown().await != second).then_some(())).await.unwrap();
    talk(&mut one, &mut other).await;
}

/// The gateway has ended it.
async fn ended(mut stream: impl AsyncRead + Unpin) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest));
    drop(read.await.expect("it is still open"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_stall_in_the_handshake_disturb_nobody_and_are_given_up() {
    let bench = bench(&["--header-timeout", "2s"]).await;
    let relay = bench.relay(&BOTH).await;
    let mut one = Client::connect(relay.address).await.unwrap();
    let mut other = Client::connect(relay.address).await.unwrap();
    let began = Instant::now();
    let mut stalled = Vec::new();
    for index in 0..60 {
        let mut stream = TcpStream::connect(bench.gateway.address).await.unwrap();
        // Nothing at all; the beginning of a record; one that says that much more will come.
        let said: &[u8] = [&[], &[0x16_u8][..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]][index % 3];
        stream.write_all(said).await.unwrap();
        stalled.push(stream);
    }
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(http::get(relay.address, "/livez", "").await.unwrap().status, 200);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    talk(&mut one, &mut other).await;
    for stream in &mut stalled {
        ended(stream).await;
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2), "they had no time: {took:?}");
    talk(&mut other, &mut one).await;
}

/// One that has done the handshake, and asks for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_after_the_handshake_is_given_up() {
    let bench = bench(&["--header-timeout", "500ms"]).await;
    ended(bench.shake(&BOTH).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_without_tls_is_told_or_left() {
    let bench = bench(&[]).await;
    let answer = http::get(bench.gateway.address, "/", "").await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (400, "this port speaks TLS: use https:// and wss://\n"));
    let refused = Client::connect(bench.gateway.address).await.unwrap_err().to_string();
    assert!(refused.contains("400"), "{refused}");
    for nonsense in [b"\0\0\0\0".as_slice(), b"\x16\x03\x01\0\x05hello", b"\x80\x2e\x01\x03"] {
        let mut stream = TcpStream::connect(bench.gateway.address).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        ended(&mut stream).await;
    }
}

fn healthcheck(address: SocketAddr, tls: Option<&Path>) -> std::process::Output {
    let mut command = std::process::Command::new(binary());
    command.args(["healthcheck", "--listen", &address.to_string()]).env_remove("TEXTO_TLS_CERT");
    if let Some(path) = tls {
        command.env("TEXTO_TLS_CERT", path);
    }
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_healthcheck_asks_by_tls_where_the_gateway_speaks_it() {
    let bench = bench(&[]).await;
    let well = healthcheck(bench.gateway.address, Some(&bench.files.certificate));
    assert!(well.status.success(), "{well:?}");
    let plain = healthcheck(bench.gateway.address, None);
    let said = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert_eq!(plain.status.code(), Some(1));
    assert!(said.contains("if it speaks TLS, give --tls-cert (TEXTO_TLS_CERT)"), "{said}");
    let other = Gateway::start(binary(), &[], &[]).await.unwrap();
    let wrong = healthcheck(other.address, Some(&bench.files.certificate));
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
}

/// By what came of them; and until when the certificate is good that is shown now.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_are_counted_and_the_end_of_the_certificate_is_known() {
    let port = texto_lab::process::free_port().unwrap();
    let admin: SocketAddr = format!("{HOST}:{port}").parse().unwrap();
    let bench = bench(&["--admin-listen", &admin.to_string(), "--header-timeout", "2s"]).await;
    let shows = async |metric: &str| {
        until(&format!("/metrics has {metric}"), LIMIT, async || {
            let metrics = http::get(admin, "/metrics", "").await.ok()?.body;
            metrics.lines().any(|line| line == metric).then_some(())
        })
        .await
        .unwrap();
    };
    shows("texto_tls_handshakes_total{result=\"done\"} 0").await;
    let welcome = [bench.shake(&[&TLS12]).await, bench.shake(&[&TLS13]).await];
    let strangers = bench.folder.path().join("strangers.pem");
    std::fs::write(&strangers, Authority::new("another").unwrap().pem()).unwrap();
    for version in BOTH {
        let connector = visitor(&strangers, &[version]).unwrap();
        let stream = TcpStream::connect(bench.gateway.address).await.unwrap();
        connector.connect(HOST.try_into().unwrap(), stream).await.unwrap_err();
    }
    assert_eq!(http::get(bench.gateway.address, "/", "").await.unwrap().status, 400);
    for said in [b"\0\0\0\0".as_slice(), b"\x16\x03\x01\0\x05hello"] {
        let mut stream = TcpStream::connect(bench.gateway.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        ended(&mut stream).await;
    }
    let mut gone = TcpStream::connect(bench.gateway.address).await.unwrap();
    gone.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
    drop(gone);
    let silent = TcpStream::connect(bench.gateway.address).await.unwrap();
    for (result, count) in [
        ("done", 2),
        ("certificate_refused", 2),
        ("plain_http", 1),
        ("no_tls", 1),
        ("failed", 1),
        ("broken_off", 1),
        ("timed_out", 1),
        ("incompatible", 0),
    ] {
        shows(&format!("texto_tls_handshakes_total{{result=\"{result}\"}} {count}")).await;
    }
    drop((silent, welcome));
    // One that is out of date: 2001-02-03.
    let old = bench.authority.sign(&[HOST], Validity::Past).unwrap();
    bench.files.replace(&bench.authority, &old).unwrap();
    shows("texto_tls_certificate_expiry_timestamp_seconds{shown_to=\"clients\"} 981158400").await;
}

/// Metrics and health stay as they are.
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_speaks_without_tls() {
    let port = texto_lab::process::free_port().unwrap();
    let admin: SocketAddr = format!("{HOST}:{port}").parse().unwrap();
    let _bench = bench(&["--admin-listen", &admin.to_string()]).await;
    assert_eq!(http::get(admin, "/livez", "").await.unwrap().status, 200);
}
