//! Owns what an application holds: the handle, the stream of messages, and how both begin.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::address::Address;
use crate::driver::{Answer, CredentialsError, Driver, Ends, Link, Order, Provider, Taken, Wish};
use crate::error::{ConfigError, ConnectError, SendError};
use crate::session::{Message, Session, Settings};
use crate::state::{State, States, Status};
use crate::tls::Tls;

/// More than that nobody can mean.
const WISHES: usize = 4;
/// How long a closing client may take, at most: longer than the server has for its answer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A client of Texto: cheap to clone, each clone is the same client.
///
/// The session ends when [`close`](Client::close) is called, or when the last clone and the [`Messages`] are dropped.
#[derive(Clone, Debug)]
pub struct Client {
    orders: mpsc::UnboundedSender<Order>,
    wishes: mpsc::Sender<Wish>,
    status: watch::Receiver<Status>,
    send_patience: Duration,
}

impl Client {
    /// Connects to `url`, such as `wss://chat.example.org/v1/texto`; see [`Builder::connect`].
    ///
    /// # Errors
    /// When there is no connection within half a minute, or never can be.
    pub async fn connect(url: &str) -> Result<(Self, Messages), ConnectError> {
        Self::builder([url]).connect().await
    }

    /// A client of gateways at `urls`, of which it goes on to the next one after each failure.
    pub fn builder<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Builder {
        Builder {
            urls: urls.into_iter().map(|url| url.as_ref().to_owned()).collect(),
            settings: Settings::default(),
            connect_patience: Duration::from_secs(30),
            provider: None,
            authorities: None,
            seed: None,
        }
    }

    /// The id under which others reach this client; none before the first connection. It stays the same as long as the
    /// server knows the session.
    pub fn id(&self) -> Option<Uuid> {
        self.status.borrow().id
    }

    /// Sends a text, and waits until the server vouches that the receiver gets it: the receiver's node has it, or two
    /// nodes, if the receiver can resume.
    ///
    /// Without a connection it waits for one ([`Builder::send_timeout`]). What was not answered when a connection is lost
    /// is sent again over the next one, under the same id, and shown once. Messages whose futures were polled one after
    /// the other go out in that order; 64 at a time are on their way to the server.
    ///
    /// # Errors
    /// A [`SendError`], each of which means "not acknowledged".
    ///
    /// # Cancel safety
    /// A future that is dropped withdraws the message, unless it has been written already: then it may arrive, and nobody
    /// is told whether it has.
    pub async fn send(&self, to: Uuid, text: impl Into<String>) -> Result<(), SendError> {
        let too_late = Instant::now() + self.send_patience;
        let (waiter, answer) = oneshot::channel();
        let order = Order { too_late, receiver: to, text: text.into(), answer: Answer(waiter) };
        // At the first poll, for that is its place among others; as many as there are futures hold a text anyway.
        self.orders.send(order).map_err(|_| SendError::Closed)?;
        // Its task answers every one; if it is gone, all is over.
        answer.await.unwrap_or(Err(SendError::Closed))
    }

    /// The states of the connection: the one that is, and those to come.
    pub fn states(&self) -> States {
        let mut status = self.status.clone();
        status.mark_changed();
        States { status }
    }

    /// Tries to connect now instead of after the pause, if there is none: because the network is back, for instance.
    pub fn retry_now(&self) {
        // Whoever has wished for so much already is heard.
        let _ = self.wishes.try_send(Wish::RetryNow);
    }

    /// Ends the session, and waits until the server knows (two seconds at most). Unanswered messages fail with
    /// [`SendError::Closed`]; what came and was not taken is still in [`Messages`].
    ///
    /// # Cancel safety
    /// Once it was polled, the session ends, whether it is waited for or not.
    pub async fn close(&self) {
        let _ = self.wishes.send(Wish::Close).await;
        let _ = timeout(CLOSE_PATIENCE, self.wishes.closed()).await;
    }
}

/// The messages that come for a client: a [`Stream`], each message once, and in the order of its sender.
///
/// A message is acknowledged to the server when it is taken from here. Whoever takes nothing for long fills the server's
/// outbox, and senders are told so (`EBUSY`); nothing is lost by that, and memory here is bounded ([`Builder::queue`]).
/// The stream ends when the session does. If it is dropped, all that comes is acknowledged and thrown away.
#[derive(Debug)]
pub struct Messages {
    messages: mpsc::Receiver<Message>,
    taken: Arc<Taken>,
    /// As long as somebody listens, the session goes on.
    _wishes: mpsc::Sender<Wish>,
}

impl Messages {
    /// The next message; `None` when the session is over.
    ///
    /// Cancel safe: a message that is not returned is not taken.
    pub async fn next(&mut self) -> Option<Message> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for Messages {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let this = self.get_mut();
        let message = ready!(this.messages.poll_recv(context));
        if message.is_some() {
            this.taken.one();
        }
        Poll::Ready(message)
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.taken.all();
    }
}

/// What a client is to be. Made by [`Client::builder`].
#[must_use = "nothing happens until `connect` or `start`"]
pub struct Builder {
    urls: Vec<String>,
    settings: Settings,
    connect_patience: Duration,
    provider: Option<Provider>,
    authorities: Option<Vec<u8>>,
    seed: Option<u64>,
}

impl Builder {
    /// Where fresh credentials (a JWT) come from, if the gateway demands some. It is asked for each connection, and before
    /// those of the last time expire. When it fails, the client tries again later.
    pub fn credentials<F, Fut>(mut self, fetch: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, CredentialsError>> + Send + 'static,
    {
        self.provider = Some(Arc::new(move || Box::pin(fetch())));
        self
    }

    /// Whom to trust for `wss://`, as PEM, instead of whom this system trusts.
    pub fn authorities(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities = Some(pem.into());
        self
    }

    /// How long [`connect`](Self::connect) waits for the first connection. Default: 30 s.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_patience = time;
        self
    }

    /// How long a message may wait to be written, where there is no connection. Default: 30 s.
    pub fn send_timeout(mut self, time: Duration) -> Self {
        self.settings.send_patience = time;
        self
    }

    /// After how long a silence the server is asked for a sign of life, and how long that may take. Default: 10 s, 5 s.
    pub fn signs_of_life(mut self, quiet: Duration, patience: Duration) -> Self {
        (self.settings.quiet, self.settings.sign_patience) = (quiet, patience);
        self
    }

    /// Over which time a client comes back that has lost its connection: at first, and at most, for it doubles with each
    /// failure. The pause is any part of it ("full jitter"). Default: 1 s, 15 s.
    pub fn pauses(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.pauses = (first, longest.max(first));
        self
    }

    /// How many messages, and bytes of text in them, may wait for the application. What comes beyond is left to the
    /// server, which sends it again once half of this is taken; for that the connection is made anew. Default: 2,048
    /// messages, 16 MiB, which is more than a server keeps for one client by default.
    pub fn queue(mut self, messages: usize, bytes: usize) -> Self {
        (self.settings.most_messages, self.settings.most_bytes) = (messages, bytes);
        self
    }

    /// The seed of the jitter, so that a test sees the same pauses each time. Default: another one for each client.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Connects, and waits for the first connection. From then on the client comes back by itself.
    ///
    /// # Errors
    /// When there is none in time, the server ends the session at once, or the configuration can't be used.
    ///
    /// # Cancel safety
    /// A future that is dropped leaves nothing behind.
    pub async fn connect(self) -> Result<(Client, Messages), ConnectError> {
        let after = self.connect_patience;
        let (client, messages) = self.start()?;
        let mut status = client.status.clone();
        let is_settled = |status: &Status| matches!(status.state, State::Connected { .. } | State::Closed(_));
        let settled = timeout(after, status.wait_for(is_settled)).await;
        let state = settled.ok().and_then(|settled| settled.ok().map(|status| status.state.clone()));
        match state {
            Some(State::Closed(ending)) => Err(ConnectError::Ended(ending)),
            Some(_) => Ok((client, messages)),
            None => Err(ConnectError::Unreachable { after, why: status.borrow().last_cause.clone() }),
        }
    }

    /// Begins, and waits for nothing: what is sent waits for the first connection, [`Client::states`] tells of it.
    ///
    /// # Errors
    /// When the configuration can't be used, or there is no Tokio runtime here.
    pub fn start(self) -> Result<(Client, Messages), ConfigError> {
        let Self { urls, settings, provider, authorities, seed, .. } = self;
        let addresses = urls.iter().map(|url| Address::read(url)).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(ConfigError::NoUrl);
        }
        let limits = [("the queue's number of messages", settings.most_messages), ("its bytes", settings.most_bytes)];
        if let Some((name, _)) = limits.into_iter().find(|(_, limit)| *limit == 0) {
            return Err(ConfigError::Zero(name));
        }
        let needs_tls = addresses.iter().any(|address| address.is_tls);
        let tls = needs_tls.then(|| Tls::new(authorities.as_deref())).transpose()?;
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;

        let (orders, ordered) = mpsc::unbounded_channel();
        let (wishes, wished) = mpsc::channel(WISHES);
        let (shown, messages) = mpsc::channel(settings.most_messages.min(tokio::sync::Semaphore::MAX_PERMITS));
        let (status, seen) = watch::channel(Status { state: State::Connecting, id: None, last_cause: None });
        let taken = Arc::<Taken>::default();
        let send_patience = settings.send_patience;
        let random = seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let session = Session::new(settings, addresses.len(), provider.is_some(), random);
        let ends = Ends { orders: ordered, wishes: wished, messages: shown, taken: taken.clone(), status };
        runtime.spawn(Driver { session, addresses, tls, provider, ends, link: Link::default() }.run());
        let client = Client { orders, wishes: wishes.clone(), status: seen, send_patience };
        Ok((client, Messages { messages, taken, _wishes: wishes }))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_credentials = self.provider.is_some();
        let mut shown = f.debug_struct("Builder");
        shown.field("settings", &self.settings).field("has_credentials", &has_credentials).finish_non_exhaustive()
    }
}
