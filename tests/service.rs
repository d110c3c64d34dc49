//! What a service manager is told by a gateway: read from a real socket, as systemd has it.

#![allow(missing_docs, clippy::unwrap_used)]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use texto_lab::gateway::Gateway;
use texto_lab::process::Process;
use texto_lab::redis_server::RedisServer;

const LIMIT: Duration = Duration::from_secs(20);

/// What systemd is to a service: a socket, and how often it wants to hear of it.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn at(address: &SocketAddr, name: String) -> Self {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { socket, name }
    }

    fn start(&self, flags: &[&str], watchdog: Option<(Duration, u32)>) -> Process {
        Process::start("the gateway", Path::new(env!("CARGO_BIN_EXE_texto")), |command| {
            for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TEXTO_")) {
                command.env_remove(name);
            }
            command.args(["--listen", "127.0.0.1:0"]).args(flags).env("NOTIFY_SOCKET", &self.name);
            if let Some((limit, pid)) = watchdog {
                command.env("WATCHDOG_USEC", limit.as_micros().to_string());
                if pid != 0 {
                    command.env("WATCHDOG_PID", pid.to_string());
                }
            }
            // Whoever waits for the manager holds everything up.
            command.env("TOKIO_WORKER_THREADS", "1");
            command.stdout(Stdio::null()).stderr(Stdio::null());
        })
        .unwrap()
    }

    /// Reads until something has `text` in it, and returns all that was said until then.
    fn hear(&self, text: &str) -> Vec<String> {
        let (end, mut heard) = (Instant::now() + LIMIT, Vec::new());
        while Instant::now() < end {
            let mut buffer = [0; 4096];
            let count = self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{error}, after {heard:?}"));
            heard.push(String::from_utf8(buffer[..count].to_vec()).unwrap());
            if heard.last().unwrap().contains(text) {
                return heard;
            }
        }
        panic!("{text} was not said: {heard:?}")
    }
}

fn at_path(folder: &TempDir) -> Manager {
    let path = folder.path().join("notify");
    Manager::at(&SocketAddr::from_pathname(&path).unwrap(), path.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_that_it_serves_lives_and_leaves_and_how_long_that_takes() {
    let folder = TempDir::new().unwrap();
    let manager = at_path(&folder);
    let flags = ["--drain-delay", "100ms", "--drain-window", "100ms", "--send-timeout", "2s"];
    let mut gateway = manager.start(&flags, Some((Duration::from_millis(400), 0)));
    assert_eq!(manager.hear("READY=1").len(), 1, "nothing is said before it serves");
    for _ in 0..3 {
        let heard = manager.hear("WATCHDOG=1");
        assert_eq!(heard.last().unwrap(), "STATUS=0 sessions\nWATCHDOG=1");
    }
    gateway.signal(Signal::SIGTERM);
    let heard = manager.hear("STOPPING=1");
    // Delay, window, answers and six seconds.
    assert!(heard.last().unwrap().contains("\nEXTEND_TIMEOUT_USEC=8200000\n"), "{heard:?}");
    assert_eq!(gateway.wait(LIMIT).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_it_serves_all_the_same_and_says_what_is_missing() {
    let folder = TempDir::new().unwrap();
    let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
    let address = redis.address();
    drop(redis);
    let manager = at_path(&folder);
    let _gateway = manager.start(&["--redis", &address], Some((Duration::from_millis(400), 0)));
    manager.hear("READY=1");
    let heard = manager.hear("no usable Redis");
    assert!(heard.last().unwrap().ends_with("\nWATCHDOG=1"), "to restart it would not mend that: {heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchdog_of_another_process_is_not_fed_and_a_name_without_a_file_is_found() {
    let name = format!("texto-test-{}", std::process::id());
    let manager = Manager::at(&SocketAddr::from_abstract_name(&name).unwrap(), format!("@{name}"));
    let mut gateway =
        manager.start(&["--drain-delay", "0s", "--drain-window", "0s"], Some((Duration::from_millis(400), 1)));
    manager.hear("READY=1");
    gateway.signal(Signal::SIGTERM);
    let heard = manager.hear("STOPPING=1");
    assert!(!heard.concat().contains("WATCHDOG"), "{heard:?}");
    assert_eq!(gateway.wait(LIMIT).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_takes_nothing_holds_nobody_up() {
    let folder = TempDir::new().unwrap();
    let manager = at_path(&folder);
    let flags = ["--drain-delay", "0s", "--drain-window", "0s"];
    // It feeds every two milliseconds, and nobody reads: the socket's queue is full at once.
    let mut gateway = manager.start(&flags, Some((Duration::from_millis(8), 0)));
    manager.hear("READY=1");
    tokio::time::sleep(Duration::from_millis(500)).await; // Not for something to happen: for nothing to have stopped it.
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait(LIMIT).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_busy_manager_did_not_take_is_said_again() {
    let folder = TempDir::new().unwrap();
    let manager = at_path(&folder);
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"busy", &manager.name).is_ok() {}
    let binary = Path::new(env!("CARGO_BIN_EXE_texto"));
    let gateway = Gateway::start(binary, &[], &[("NOTIFY_SOCKET", &manager.name)]).await.unwrap();
    gateway.wait_for_log("takes nothing at the moment", LIMIT).await.unwrap();
    let heard = manager.hear("READY=1");
    assert!(heard.len() > 1 && heard[0] == "busy", "{heard:?}");
}

/// It may be that of whoever started whoever started this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_not_there_is_named_and_keeps_nobody_from_serving() {
    let binary = Path::new(env!("CARGO_BIN_EXE_texto"));
    let gateway = Gateway::start(binary, &[], &[("NOTIFY_SOCKET", "/nowhere/notify")]).await.unwrap();
    gateway.wait_for_log("/nowhere/notify", LIMIT).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
}
