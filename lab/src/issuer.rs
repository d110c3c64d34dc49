//! Owns what an issuer of credentials has: pairs of keys, made by openssl, and an address that serves its keys.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::process::find;

/// A pair of keys, as files in PEM.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// PKCS#8.
    pub private: PathBuf,
    /// SubjectPublicKeyInfo.
    pub public: PathBuf,
}

impl KeyPair {
    /// Makes one in `folder`, under `name`: "rsa-2048" (or other bits), "ed25519", or a curve such as "P-256".
    ///
    /// # Errors
    /// When openssl is missing, or can't.
    pub fn new(folder: &Path, name: &str, kind: &str) -> Result<Self> {
        let (private, public) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.pub.pem")));
        let option = |option: String| vec!["-pkeyopt".to_owned(), option];
        let (algorithm, options) = match kind.strip_prefix("rsa-") {
            Some(bits) => ("RSA", option(format!("rsa_keygen_bits:{bits}"))),
            None if kind == "ed25519" => ("ED25519", Vec::new()),
            None => ("EC", option(format!("ec_paramgen_curve:{kind}"))),
        };
        let mut arguments =
            vec!["genpkey".into(), "-algorithm".into(), algorithm.into(), "-out".into(), path(&private)];
        arguments.extend(options);
        openssl(&arguments)?;
        openssl(&["pkey".into(), "-in".into(), path(&private), "-pubout".into(), "-out".into(), path(&public)])?;
        Ok(Self { private, public })
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs openssl, and gives what it prints.
///
/// # Errors
/// When it is missing, or fails; what it says is part of the error.
pub fn openssl(arguments: &[String]) -> Result<Vec<u8>> {
    let output = Command::new(find("openssl", "openssl")?).args(arguments).output()?;
    ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// What an address says when it is asked.
#[derive(Clone, Debug)]
pub enum Says {
    /// 200, and this.
    Body(String),
    /// A status, with further header lines (each ended by CRLF), and nothing else.
    Status(&'static str, &'static str),
    /// Nothing, for as long as anybody waits.
    Nothing,
    /// The first of these as it is, and then the other one again and again, with a pause after each, or none.
    Forever(&'static str, &'static str, Duration),
}

/// An HTTP server that says one thing, whatever it is asked. Ends when dropped.
#[derive(Debug)]
pub struct KeyServer {
    /// Where it is.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    says: Says,
    asked: usize,
    given_up: usize,
}

impl KeyServer {
    /// Starts one.
    ///
    /// # Errors
    /// When there is no address for it.
    pub async fn start(says: Says) -> Result<Self> {
        Self::start_on("127.0.0.1:0".parse()?, says).await
    }

    /// Starts one at an address, such as that of one before.
    ///
    /// # Errors
    /// When that is in use.
    pub async fn start_on(address: SocketAddr, says: Says) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("no server at {address}"))?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State { says, asked: 0, given_up: 0 }));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Ok(Self { address, state, task })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Says something else from now on.
    pub fn say(&self, says: Says) {
        self.state().says = says;
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.state().asked
    }

    /// How often somebody left before the end of what has none.
    pub fn given_up(&self) -> usize {
        self.state().given_up
    }

    /// Where its keys are said to be.
    pub fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {}
    let says = {
        let mut state = lock(&state);
        state.asked += 1;
        state.says.clone()
    };
    let (status, head, body) = match says {
        Says::Body(body) => ("200 OK", "Content-Type: application/json\r\n", body),
        Says::Status(status, head) => (status, head, String::new()),
        Says::Nothing => return never_end(stream, "", "", Duration::MAX, &state).await,
        Says::Forever(first, more, pause) => return never_end(stream, first, more, pause, &state).await,
    };
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    let _ = stream.write_all(answer.as_bytes()).await; // Whoever has left needs none.
}

/// Goes on until the other end leaves.
async fn never_end(stream: TcpStream, first: &str, more: &str, pause: Duration, state: &Mutex<State>) {
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        writer.write_all(first.as_bytes()).await?;
        loop {
            writer.write_all(more.as_bytes()).await?;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    };
    let gone = async { while reader.read(&mut [0; 512]).await.is_ok_and(|read| read > 0) {} };
    let _: Result<(), std::io::Error> = tokio::select! {
        ended = write => ended,
        () = gone => Ok(()),
    };
    lock(state).given_up += 1;
}
