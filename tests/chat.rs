//! `texto chat`: two of them, as people have them in two terminals, over gateways that die.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "client_rust/people.rs"]
#[allow(dead_code)]
mod people;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use people::{BINARY, LIMIT, Pair, gateway, url};
use tempfile::TempDir;
use texto_lab::certificates::{Authority, TlsFiles, Validity};
use texto_lab::gateway::Gateway;
use texto_lab::process::{Process, free_port, until};

/// A terminal with `texto chat`.
struct Terminal {
    process: Process,
    shown: Arc<Mutex<Vec<String>>>,
}

impl Terminal {
    /// Whatever is meant for gateways stands in its variables, and does not concern it.
    fn open(arguments: &[&str]) -> Self {
        let mut process = Process::start("texto chat", BINARY.as_ref(), |command| {
            command.arg("chat").args(arguments).env("TEXTO_SENTINEL", "nonsense").env("TEXTO_LISTEN", "nonsense");
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        })
        .unwrap();
        let shown: Arc<Mutex<Vec<String>>> = Arc::default();
        let (out, err) = (process.child().stdout.take().unwrap(), process.child().stderr.take().unwrap());
        let (of_out, of_err) = (shown.clone(), shown.clone());
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).for_each(|line| of_out.lock().unwrap().push(line))
        });
        std::thread::spawn(move || {
            BufReader::new(err).lines().map_while(Result::ok).for_each(|line| of_err.lock().unwrap().push(line))
        });
        Self { process, shown }
    }

    fn type_in(&mut self, line: &str) {
        writeln!(self.process.child().stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn lines(&self) -> Vec<String> {
        self.shown.lock().unwrap().clone()
    }

    /// Waits for a line that begins so, and gives the rest of the last such line.
    async fn shows(&self, beginning: &str) -> String {
        let found = until(beginning, LIMIT, async || {
            self.lines().iter().rev().find_map(|line| line.strip_prefix(beginning).map(str::to_owned))
        });
        found.await.unwrap_or_else(|error| panic!("{error}: {:#?}", self.lines()))
    }

    /// Ctrl-D; what the exit code is.
    async fn leave(mut self) -> (Option<i32>, Vec<String>) {
        drop(self.process.child().stdin.take());
        let code = self.process.wait(LIMIT).await.unwrap().code();
        (code, self.lines())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_chat_on_while_their_gateways_die() {
    let mut pair = Pair::start(&["--drain-delay", "100ms", "--drain-window", "200ms"]).await;
    let [one, other] = pair.urls();
    let mut anna = Terminal::open(&[&one, &other]);
    let id = anna.shows("* you are ").await;
    // As it says itself, but that berta begins at the other one.
    assert_eq!(anna.shows("* in the other terminal: ").await, format!("texto chat {one} {other} --to {id}"));
    let mut berta = Terminal::open(&[&other, &one, "--to", &id]);
    let of_berta = berta.shows("* you are ").await;
    let (short, short_of_berta) = (&id[..8], &of_berta[..8]);
    berta.type_in("hello, you");
    anna.shows(&format!("{short_of_berta}: hello, you")).await;
    assert_eq!(anna.shows(&format!("* {short_of_berta} is ")).await, of_berta);
    anna.type_in("hello yourself");
    berta.shows(&format!("{short}: hello yourself")).await;

    // Anna's gateway dies; then the one where both are is restarted.
    pair.together().await;
    pair.end(0, Signal::SIGKILL, async |_| {
        anna.type_in("are you still there?");
        berta.shows(&format!("{short}: are you still there?")).await;
        berta.type_in("I am");
        anna.shows(&format!("{short_of_berta}: I am")).await;
    })
    .await;
    assert!(anna.shows("* away, coming back ").await.contains("the connection broke"));
    anna.shows("* back").await;
    pair.together().await;
    pair.end(1, Signal::SIGTERM, async |_| {
        berta.shows("* away, coming back ").await;
        berta.type_in(&format!("{id} and now?"));
        anna.shows(&format!("{short_of_berta}: and now?")).await;
    })
    .await;
    berta.type_in("and goodbye");
    let (code, lines) = berta.leave().await;
    assert_eq!(code, Some(0), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("missing") || line.contains("not sent")), "{lines:#?}");
    // What was typed last has been sent, and the session is over at once.
    anna.shows(&format!("{short_of_berta}: and goodbye")).await;
    anna.type_in("anybody?");
    assert!(anna.shows("* not sent: \"anybody?\" (").await.starts_with("ENOTCONN"));
    let (code, lines) = anna.leave().await;
    assert_eq!(code, Some(0), "{lines:#?}");
    let heard: Vec<_> = lines.iter().filter(|line| line.starts_with(short_of_berta)).collect();
    assert_eq!(heard.len(), 4, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_is_wrong_and_what_to_do() {
    let gateway = gateway(&[]).await;
    let mut anna = Terminal::open(&[&format!("http://{}", gateway.address)]);
    let id = anna.shows("* you are ").await;
    for (line, answer) in [
        ("hello?", "* to whom? "),
        ("/nonsense", "* /nonsense is no command"),
        ("/to nobody", "* /to wants an id"),
        ("/me", "* you are "),
        ("/help", "* /to ID "),
    ] {
        anna.type_in(line);
        anna.shows(answer).await;
    }
    anna.type_in(&format!("/to {id}"));
    anna.type_in("//me \u{1b}[31mred");
    anna.shows(&format!("{}: /me \u{fffd}[31mred", &id[..8])).await;
    anna.type_in(&"x".repeat(20_000));
    assert!(anna.shows("* not sent: \"xxx").await.contains("(EMSGSIZE"));
    anna.process.signal(Signal::SIGINT);
    assert!(anna.process.wait(LIMIT).await.unwrap().success());

    // Nobody is there, and it goes on trying.
    let nowhere = Terminal::open(&[&format!("ws://127.0.0.1:{}", free_port().unwrap())]);
    assert!(nowhere.shows("* no connection, trying again ").await.contains("refused"));

    let run = |arguments: &[&str]| {
        let output = Command::new(BINARY).arg("chat").args(arguments).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["nowhere"]);
    assert!(code == Some(1) && said.contains("wss://chat.example.org"), "{said}");
    let (code, said) = run(&["--token-file", "/nonexistent"]);
    assert!(code == Some(1) && said.contains("--token-file: /nonexistent can't be read"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_tls_is_said_with_its_mend() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("ours").unwrap();
    let pair = authority.sign(&["localhost"], Validity::Now).unwrap();
    let files = TlsFiles::create(folder.path(), "gateway", &authority, &pair).unwrap();
    let [certificate, key, ca] = [&files.certificate, &files.key, &files.authority].map(|file| file.to_str().unwrap());
    let secure = gateway(&["--tls-cert", certificate, "--tls-key", key]).await;
    let plain = gateway(&[]).await;
    let at = |scheme: &str, gateway: &Gateway| format!("{scheme}://localhost:{}", gateway.address.port());
    for (url, said) in [
        (at("ws", &secure), "this port speaks TLS: use https:// and wss:// (HTTP 400)"),
        (at("wss", &plain), "speaks no TLS: is it ws://localhost:"),
        (at("wss", &secure), "signed by nobody whom this client trusts: give its authority by --ca-file"),
    ] {
        let lost = Terminal::open(&[&url]);
        let why = lost.shows("* no connection, trying again ").await;
        assert!(why.contains(said), "{url}: {why}");
    }
    let anna = Terminal::open(&[&at("wss", &secure), "--ca-file", ca]);
    let id = anna.shows("* you are ").await;
    let other = anna.shows("* in the other terminal: ").await;
    assert_eq!(other, format!("texto chat {} --ca-file {ca} --to {id}", at("wss", &secure)));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_the_credentials_of_a_file_and_never_prints_them() {
    let folder = TempDir::new().unwrap();
    let [key, token] = ["key", "token"].map(|name| folder.path().join(name));
    std::fs::write(&key, "0123456789abcdef".repeat(4)).unwrap();
    let flags = ["--auth-key-file", key.to_str().unwrap(), "--auth-leeway", "0s"];
    let gateway = gateway(&flags).await;
    let issue = |lifetime: &str| {
        let mut command = Command::new(BINARY);
        command.args(["token", "--subject", "anna", "--expires-in", lifetime, "--key-file"]).arg(&key);
        std::fs::write(&token, command.output().unwrap().stdout).unwrap();
    };
    let without = Terminal::open(&[&url(&gateway)]);
    assert!(without.shows("texto: the server does not let this client in: ").await.contains("give it by --token-file"));
    assert_eq!(without.leave().await.0, Some(1));

    issue("5s");
    let mut anna = Terminal::open(&[&url(&gateway), "--token-file", token.to_str().unwrap()]);
    let id = anna.shows("* you are ").await;
    // Somebody keeps the file fresh, and the chat goes on.
    issue("1h");
    tokio::time::sleep(Duration::from_millis(5_500)).await; // As long as the first was good.
    anna.type_in(&format!("{id} still here"));
    anna.shows(&format!("{}: still here", &id[..8])).await;
    std::fs::write(&token, "hunter2 hunter2").unwrap();
    let (code, lines) = anna.leave().await;
    assert_eq!(code, Some(0), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("away")), "{lines:#?}");
    let output = Command::new(BINARY).args(["chat", "--token-file"]).arg(&token).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("holds no token") && !said.contains("hunter2"), "{said}");
}
