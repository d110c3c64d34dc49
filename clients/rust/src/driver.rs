//! Owns the task of a client: it carries events to the [`Session`], and does what that decides.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use uuid::Uuid;

use crate::address::Address;
use crate::error::SendError;
use crate::frames::Secret;
use crate::session::{Action, Event, Message, Session, Waiter};
use crate::socket::{Incoming, Refusal, Socket};
use crate::state::{Cause, State, Status};
use crate::tls::Tls;

/// How long the server may take to answer the close of a session.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Events that are handled one after the other before others have their turn.
const IN_A_ROW: usize = 64;

/// What may go wrong where credentials come from.
pub(crate) type CredentialsError = Box<dyn std::error::Error + Send + Sync>;
type Fetch = Pin<Box<dyn Future<Output = Result<String, CredentialsError>> + Send>>;
/// Gives fresh credentials.
pub(crate) type Provider = Arc<dyn Fn() -> Fetch + Send + Sync>;
type Dial = Pin<Box<dyn Future<Output = Result<(Socket, Option<Secret>), Refusal>> + Send>>;

/// A message to send.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) too_late: Instant,
    pub(crate) receiver: Uuid,
    pub(crate) text: String,
    pub(crate) answer: Answer,
}

#[derive(Debug)]
pub(crate) struct Answer(pub(crate) oneshot::Sender<Result<(), SendError>>);

impl Waiter for Answer {
    fn is_waiting(&self) -> bool {
        !self.0.is_closed()
    }
}

/// What else the application wants.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    RetryNow,
    Close,
}

/// What the application has taken, since that was asked last.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    count: AtomicUsize,
    is_unread: AtomicBool,
    changed: Notify,
}

impl Taken {
    /// The next message was taken.
    pub(crate) fn one(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Nobody reads any more.
    pub(crate) fn all(&self) {
        self.is_unread.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Cancel safe.
    async fn next(&self) -> Event<Answer> {
        loop {
            if self.is_unread.swap(false, Ordering::AcqRel) {
                return Event::Unread;
            }
            match self.count.swap(0, Ordering::AcqRel) {
                0 => self.changed.notified().await,
                count => return Event::Taken(count),
            }
        }
    }
}

/// The ends of a client that its task holds.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    pub(crate) wishes: mpsc::Receiver<Wish>,
    pub(crate) messages: mpsc::Sender<Message>,
    pub(crate) taken: Arc<Taken>,
    pub(crate) status: watch::Sender<Status>,
}

pub(crate) struct Driver {
    pub(crate) session: Session<Answer>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) tls: Option<Tls>,
    pub(crate) provider: Option<Provider>,
    pub(crate) ends: Ends,
    pub(crate) link: Link,
}

/// What there is of a connection. Futures in it are polled where they stand, so nothing is lost when another event wins.
#[derive(Default)]
pub(crate) struct Link {
    socket: Option<Socket>,
    dial: Option<Dial>,
    renewal: Option<Fetch>,
}

impl Driver {
    pub(crate) async fn run(mut self) {
        let mut actions = Vec::new();
        self.session.dial(now(), &mut actions);
        let mut row = 0;
        loop {
            for action in actions.drain(..) {
                self.link_or_tell(action);
            }
            if self.session.is_ended() {
                break;
            }
            row += 1;
            if row % IN_A_ROW == 0 {
                tokio::task::yield_now().await;
            }
            let event = self.next().await;
            self.session.handle(now(), event, &mut actions);
        }
        // Whoever waits for the end knows it once the server does.
        if let Some(socket) = self.link.socket.take() {
            let _ = timeout(CLOSE_PATIENCE, socket.close()).await;
        }
    }

    /// What happens next. Cancel safe: it only chooses.
    async fn next(&mut self) -> Event<Answer> {
        let deadline = self.session.deadline();
        let due = async {
            match deadline {
                Some(at) => sleep_until(Instant::from_std(at)).await,
                None => pending().await,
            }
        };
        let Ends { orders, wishes, taken, .. } = &mut self.ends;
        tokio::select! {
            event = self.link.next() => event,
            Some(Order { too_late, receiver, text, answer }) = orders.recv() => {
                Event::Send { too_late: too_late.into_std(), receiver, text, waiter: answer }
            }
            wish = wishes.recv() => match wish {
                Some(Wish::RetryNow) => Event::RetryNow,
                // Nobody is left who could want anything.
                Some(Wish::Close) | None => Event::Close,
            },
            event = taken.next() => event,
            () = due => Event::Tick,
        }
    }

    fn link_or_tell(&mut self, action: Action<Answer>) {
        match action {
            Action::Dial(url) => {
                if let Some(address) = self.addresses.get(url).cloned() {
                    self.link.dial = Some(Box::pin(dial(address, self.tls.clone(), self.provider.clone())));
                }
            }
            Action::Renew => self.link.renewal = self.provider.as_ref().map(|provider| provider()),
            Action::Write(text) => {
                if let Some(socket) = &mut self.link.socket {
                    socket.write(text);
                }
            }
            Action::Drop => self.link = Link::default(),
            // The socket is closed at the very end, when everybody has been told.
            Action::Close => (self.link.dial, self.link.renewal) = (None, None),
            Action::Show(message) => {
                // There is room, for the session counts; and whoever reads no more has said so.
                let _ = self.ends.messages.try_send(message);
            }
            Action::Answer(Answer(waiter), answer) => {
                let _ = waiter.send(answer);
            }
            Action::Become(state) => {
                let id = self.session.id();
                self.ends.status.send_modify(|status| {
                    if let State::Away { why, .. } = &state {
                        status.last_cause = Some(why.clone());
                    }
                    (status.state, status.id) = (state, id);
                });
            }
        }
    }
}

impl Link {
    /// Cancel safe.
    async fn next(&mut self) -> Event<Answer> {
        if let Some(dial) = &mut self.dial {
            let dialed = dial.await;
            self.dial = None;
            return match dialed {
                Ok((socket, credentials)) => {
                    self.socket = Some(socket);
                    Event::Opened(credentials)
                }
                Err(Refusal { why, retry_after }) => Event::Failed { why, retry_after },
            };
        }
        let Some(socket) = &mut self.socket else { return pending().await };
        let renewal = async {
            match &mut self.renewal {
                Some(renewal) => renewal.await,
                None => pending().await,
            }
        };
        tokio::select! {
            fetched = renewal => {
                self.renewal = None;
                Event::Credentials(fetched.ok().map(Secret))
            }
            incoming = socket.next() => match incoming {
                Incoming::Text(text) => Event::Came(text),
                Incoming::Sign => Event::Heard,
                Incoming::Closed(code) => {
                    *self = Self::default();
                    Event::Closed(code)
                }
            }
        }
    }
}

async fn dial(
    address: Address,
    tls: Option<Tls>,
    provider: Option<Provider>,
) -> Result<(Socket, Option<Secret>), Refusal> {
    let credentials = async {
        match provider {
            Some(provider) => match provider().await {
                Ok(token) => Ok(Some(Secret(token))),
                Err(error) => Err(Refusal::from(Cause::Credentials(error.to_string()))),
            },
            None => Ok(None),
        }
    };
    tokio::try_join!(Socket::open(&address, tls.as_ref()), credentials)
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
