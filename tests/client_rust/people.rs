//! Owns people who use the Rust client, and remember all that they hear; and gateways that may die.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use texto_client::{Builder, Client, Message, State, Uuid};
use texto_lab::gateway::{Gateway, session_key_file};
use texto_lab::process::{free_port, until};
use texto_lab::redis_server::RedisServer;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_texto");
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const NOBODY: Uuid = Uuid::from_u128(0x4000_8000_0000_0000_0000);

pub(crate) fn url(gateway: &Gateway) -> String {
    format!("ws://{}/v1/texto", gateway.address)
}

pub(crate) async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(BINARY), arguments, &[]).await.unwrap()
}

/// Somebody with a client.
pub(crate) struct Person {
    pub(crate) client: Client,
    heard: Arc<Mutex<Vec<Message>>>,
    states: Arc<Mutex<Vec<State>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Person {
    /// Begins, and does not wait for a connection.
    pub(crate) fn start(builder: Builder) -> Self {
        let (client, mut messages) = builder.start().unwrap();
        let person = Self { client, heard: Arc::default(), states: Arc::default() };
        let (heard, seen) = (person.heard.clone(), person.states.clone());
        let mut states = person.client.states();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                lock(&heard).push(message);
            }
        });
        tokio::spawn(async move {
            while let Some(state) = states.next().await {
                lock(&seen).push(state);
            }
        });
        person
    }

    pub(crate) async fn connected(urls: &[String]) -> Self {
        let person = Self::start(Client::builder(urls));
        person.is_connected().await;
        person
    }

    pub(crate) async fn is_connected(&self) {
        self.becomes("connected", |state| matches!(state, State::Connected { .. })).await;
    }

    pub(crate) async fn becomes(&self, what: &str, is_it: impl Fn(&State) -> bool) {
        let state = until(what, LIMIT, async || is_it(&self.client.states().current()).then_some(()));
        state.await.unwrap_or_else(|error| panic!("{error}: {:?}", self.states()));
    }

    pub(crate) fn id(&self) -> Uuid {
        self.client.id().unwrap()
    }

    pub(crate) fn heard(&self) -> Vec<Message> {
        lock(&self.heard).clone()
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.heard().into_iter().map(|message| message.text).collect()
    }

    pub(crate) async fn hears(&self, count: usize) {
        until("all has come", LIMIT, async || (lock(&self.heard).len() >= count).then_some(())).await.unwrap();
    }

    pub(crate) fn states(&self) -> Vec<State> {
        lock(&self.states).clone()
    }

    pub(crate) fn pauses(&self) -> Vec<Duration> {
        let pause = |state| match state {
            State::Away { retry_in, .. } => Some(retry_in),
            _ => None,
        };
        self.states().into_iter().filter_map(pause).collect()
    }

    /// Sends, and gives the code of what came of it.
    pub(crate) async fn code(&self, to: Uuid, text: &str) -> String {
        match self.client.send(to, text).await {
            Ok(()) => "ack".to_owned(),
            Err(error) => error.code().to_owned(),
        }
    }
}

/// Two gateways with a Redis, each of which can be ended and started again where it was.
pub(crate) struct Pair {
    pub(crate) gateways: [Gateway; 2],
    arguments: Vec<String>,
    _redis: RedisServer,
    _folder: TempDir,
}

impl Pair {
    pub(crate) async fn start(more: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await.unwrap();
        let keys: PathBuf = session_key_file(Path::new(BINARY), folder.path()).await.unwrap();
        let mut arguments = vec!["--redis".to_owned(), redis.address(), "--session-key-file".to_owned()];
        arguments.push(keys.display().to_string());
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        let gateways = [start(None, &arguments).await, start(None, &arguments).await];
        let pair = Self { gateways, arguments, _redis: redis, _folder: folder };
        pair.together().await;
        pair
    }

    pub(crate) fn urls(&self) -> [String; 2] {
        [url(&self.gateways[0]), url(&self.gateways[1])]
    }

    /// Waits until the gateways know one another, and every session has two copies.
    pub(crate) async fn together(&self) {
        let alone = async |gateway: &Gateway| {
            gateway.metric("texto_other_nodes").await != Some(1.0)
                || gateway.metric("texto_sessions_without_standby").await != Some(0.0)
        };
        until("there are two copies", LIMIT, async || {
            (!alone(&self.gateways[0]).await && !alone(&self.gateways[1]).await).then_some(())
        })
        .await
        .unwrap();
    }

    /// Ends one by a signal, and starts it again once `moved` says so.
    pub(crate) async fn end(&mut self, at: usize, signal: Signal, moved: impl AsyncFnOnce(&Self)) {
        self.gateways[at].signal(signal);
        moved(self).await;
        if signal == Signal::SIGTERM {
            self.gateways[at].wait_exit(LIMIT).await.unwrap();
        } else {
            self.gateways[at].kill();
        }
        let address = self.gateways[at].address.to_string();
        self.gateways[at] = start(Some(&address), &self.arguments).await;
    }
}

async fn start(listen: Option<&str>, arguments: &[String]) -> Gateway {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // One that it can have again, for nobody's outgoing connection has it meanwhile.
    let listen = listen.map_or_else(|| format!("127.0.0.1:{}", free_port().unwrap()), str::to_owned);
    let gateway = Gateway::start_on(&listen, Path::new(BINARY), &words, &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    gateway
}
