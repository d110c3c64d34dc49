//! The log must never harm: standard error that is closed, full or broken, while Redis comes and goes.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::http;
use texto_lab::process::{Process, free_port, until};
use texto_lab::redis_server::RedisServer;

const LIMIT: Duration = Duration::from_secs(20);

/// A gateway and its Redis. The gateway's standard error is the test's.
struct Bench {
    redis: RedisServer,
    gateway: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Bench {
    async fn start(stderr: impl Into<Stdio>) -> Self {
        let folder = TempDir::new().unwrap();
        let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let gateway = Process::start("the gateway", Path::new(env!("CARGO_BIN_EXE_texto")), |command| {
            for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TEXTO_")) {
                command.env_remove(name);
            }
            command.args(["--listen", &address.to_string(), "--redis", &redis.address()]);
            command.args(["--drain-delay", "0s", "--drain-window", "0s"]).env("TEXTO_LOG", "texto=debug");
            command.stdout(Stdio::null()).stderr(stderr);
        })
        .unwrap();
        let bench = Self { redis, gateway, address, _folder: folder };
        bench.wait_ready().await;
        bench
    }

    async fn wait_ready(&self) {
        until("the gateway is ready", LIMIT, async || {
            let answer = tokio::time::timeout(Duration::from_secs(1), http::get(self.address, "/readyz", "")).await;
            (answer.ok()?.ok()?.status == 200).then_some(())
        })
        .await
        .unwrap();
    }

    /// Breaks the link to Redis, which is logged, and sees whether messages flow again.
    async fn survives_a_broken_link(&mut self) {
        let mut a = Client::connect(self.address).await.unwrap();
        let mut b = Client::connect(self.address).await.unwrap();
        assert_eq!(a.send(b.id, "before").await.unwrap(), Answer::Ack);
        assert_eq!(b.receive().await.unwrap().1, "before");
        for _ in 0..3 {
            self.redis.restart().await.unwrap();
            let end = Instant::now() + LIMIT;
            while a.send(b.id, "after").await.unwrap() != Answer::Ack {
                assert!(Instant::now() < end, "no message flows any more");
            }
            assert_eq!(b.receive().await.unwrap().1, "after");
        }
    }

    async fn dropped(&self) -> f64 {
        let text = http::get(self.address, "/metrics", "").await.unwrap().body;
        let value = text.lines().find_map(|line| line.strip_prefix("texto_log_lines_dropped_total "));
        value.expect("the metric is there").parse().unwrap()
    }

    /// `signal` ends it in time, with code 0.
    async fn ends(mut self, signal: Signal) {
        self.gateway.signal(signal);
        assert_eq!(self.gateway.wait(Duration::from_secs(10)).await.unwrap().code(), Some(0));
    }
}

/// A pipe that is full before the gateway gets it.
fn full_pipe() -> (PipeReader, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    // It blocks when the pipe is full, goes on when somebody reads, and ends with the reader.
    std::thread::spawn(move || while filler.write_all(b"full\n").is_ok() {});
    (reader, writer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_goes_away_does_not_take_the_link_to_redis_with_it() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut bench = Bench::start(writer).await;
    assert!(reader.read(&mut [0; 64]).unwrap() > 0, "it logs");
    drop(reader);
    bench.survives_a_broken_link().await;
    assert!(bench.dropped().await > 0.0);
    bench.ends(Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_lost_is_said_when_somebody_reads_again() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let first_reader = File::options().read(true).write(true).open(&path).unwrap();
    let bench = Bench::start(File::options().write(true).open(&path).unwrap()).await;
    drop(first_reader);
    until("lines are lost", LIMIT, async || {
        drop(Client::connect(bench.address).await.unwrap());
        (bench.dropped().await > 0.0).then_some(())
    })
    .await
    .unwrap();
    let mut reader = File::open(&path).unwrap();
    bench.ends(Signal::SIGTERM).await;
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert!(log.contains("lines of the log were dropped"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stops_nobody() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (_reader, writer) = full_pipe();
        let mut bench = Bench::start(writer).await;
        bench.survives_a_broken_link().await;
        bench.ends(signal).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_log_stops_nobody() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut bench = Bench::start(full).await;
    bench.survives_a_broken_link().await;
    assert!(bench.dropped().await > 0.0);
    bench.ends(Signal::SIGTERM).await;
}

/// Without descriptors, an acceptor tries twenty times a second.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_again_and_again_is_one_line() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let bench = Bench::start(writer).await;
    let limit = |count: u32| {
        let pid = bench.gateway.pid().to_string();
        let status =
            std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={count}:")]).status();
        assert!(status.unwrap().success());
    };
    limit(1);
    let waiting = tokio::net::TcpStream::connect(bench.address).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await; // Not for something to happen: to see how often it does.
    limit(1000);
    bench.wait_ready().await;
    drop(waiting);
    bench.ends(Signal::SIGTERM).await;
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("a connection could not be accepted").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_is_no_loss_of_redis() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let bench = Bench::start(writer).await;
        bench.ends(signal).await;
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        assert!(log.contains("clean=true"), "{log}");
        assert!(!log.contains("no usable link"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_goes_unready_says_why_and_when_it_is_back() {
    let folder = TempDir::new().unwrap();
    let mut redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let arguments = ["--redis", &redis.address(), "--ready-grace", "0s"];
    let gateway = Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), &arguments, &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    // As long as a look at itself takes.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    redis.kill();
    gateway.wait_for_log("not ready: no usable Redis for ", LIMIT).await.unwrap();
    redis.restart().await.unwrap();
    gateway.wait_for_log("ready again, after ", LIMIT).await.unwrap();
}

/// The crates below would tell all that goes over a connection.
#[tokio::test(flavor = "multi_thread")]
async fn no_filter_lets_texts_and_tokens_into_the_log() {
    let variables = [("TEXTO_LOG", "trace")];
    let gateway = Gateway::start(Path::new(env!("CARGO_BIN_EXE_texto")), &[], &variables).await.unwrap();
    let mut client = Client::connect(gateway.address).await.unwrap();
    assert_eq!(client.send(client.id, "what only two may know").await.unwrap(), Answer::Ack);
    assert_eq!(client.receive().await.unwrap().1, "what only two may know");
    let credentials = "Authorization: Bearer what.nobody.may.know\r\n";
    assert_eq!(http::get(gateway.address, "/v1/texto?token=hidden", credentials).await.unwrap().status, 426);
    gateway.wait_for_log("DEBUG", LIMIT).await.unwrap();
    let log = gateway.log().join("\n");
    for secret in ["only two may know", "nobody.may.know", "hidden"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_can_tell_nobody_what_is_wrong_ends_all_the_same() {
    let (_reader, writer) = full_pipe();
    let mut refused = Process::start("the gateway", Path::new(env!("CARGO_BIN_EXE_texto")), |command| {
        command.args(["--listen", "nowhere"]).stdout(Stdio::null()).stderr(writer);
    })
    .unwrap();
    assert_eq!(refused.wait(LIMIT).await.unwrap().code(), Some(78));
}
