//! Owns where the keys of credentials come from, and what they are now: those of a file, which is read again when it
//! changes, or those of an address, which are asked for again and again. What was good stays while there is nothing better.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jsonwebtoken::Algorithm;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use super::jwks::{FETCH_LIMIT, Fetcher};
use super::keys::{KeyPlace, KeysFlaw, VerifyKeys};
use crate::files;
use crate::operate::repeats::Repeats;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often an address is asked because of tokens whose keys are not known: whoever likes can make those up.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How soon an address is asked again that did not answer, at first; then twice as late each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Bytes of keys at the most.
pub const MOST_BYTES: usize = 256 * 1024;

/// The keys, as they are now.
#[derive(Debug)]
pub struct KeySource {
    keys: RwLock<Arc<VerifyKeys>>,
    allowed: Option<Vec<Algorithm>>,
    from: From,
    state: Mutex<State>,
    /// Somebody wants them anew.
    wanted: Notify,
    /// How often they were asked for.
    asked: watch::Sender<u64>,
}

#[derive(Debug)]
enum From {
    File(PathBuf),
    Url { fetcher: Box<Fetcher>, refresh: Duration },
}

#[derive(Debug, Default)]
struct State {
    /// When an address was asked last.
    asked: Option<Instant>,
    /// It has not answered yet.
    is_asking: bool,
    /// Why the last attempt came to nothing, and since when none came to anything.
    failing: Option<(Instant, String)>,
    failures: u64,
    said: Repeats,
}

/// Why a file gives no keys.
#[derive(Debug, thiserror::Error)]
pub enum FileFlaw {
    /// It is not there, or not for us.
    #[error("can't read the file {0:?}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// More than keys can be.
    #[error("the file {0:?} has more than {MOST_BYTES} bytes")]
    TooLong(PathBuf),
    /// It holds something else.
    #[error("the file {0:?}: {1}")]
    Keys(PathBuf, KeysFlaw),
}

/// What an operator wants to know of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysStatus {
    /// How many there are.
    pub keys: usize,
    /// Since when they can't be read, and why.
    pub failing: Option<(Duration, String)>,
    /// How often that was so.
    pub failures: u64,
}

impl KeySource {
    /// Those of `file`.
    ///
    /// # Errors
    /// When it holds none that are of use.
    pub fn from_file(file: &Path, allowed: Option<Vec<Algorithm>>) -> Result<Self, FileFlaw> {
        let keys = read(file, allowed.as_deref())?;
        Ok(Self::new(From::File(file.to_owned()), keys, allowed))
    }

    /// Those that `fetcher` gets, asked for every `refresh`. Until it has got some, there are none.
    pub fn from_url(fetcher: Fetcher, refresh: Duration, allowed: Option<Vec<Algorithm>>) -> Self {
        Self::new(From::Url { fetcher: Box::new(fetcher), refresh }, VerifyKeys::default(), allowed)
    }

    fn new(from: From, keys: VerifyKeys, allowed: Option<Vec<Algorithm>>) -> Self {
        Self {
            keys: RwLock::new(Arc::new(keys)),
            allowed,
            from,
            state: Mutex::default(),
            wanted: Notify::new(),
            asked: watch::Sender::new(0),
        }
    }

    /// What they are now.
    pub fn keys(&self) -> Arc<VerifyKeys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an operator wants to know of them.
    pub fn status(&self) -> KeysStatus {
        let state = self.state();
        let failing = state.failing.as_ref().map(|(since, reason)| (since.elapsed(), reason.clone()));
        KeysStatus { keys: self.keys().len(), failing, failures: state.failures }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // No state is left half-changed by the code that holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the keys anew, because one is not known, and waits for that. Returns whether there was an answer to wait
    /// for: files are looked at all the time, and an address is not asked again for everything that somebody makes up.
    pub async fn refreshed(&self) -> bool {
        let From::Url { .. } = self.from else { return false };
        let mut asked = self.asked.subscribe();
        {
            let state = self.state();
            if !state.is_asking {
                if state.asked.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
                    return false;
                }
                self.wanted.notify_one();
            }
        }
        matches!(timeout(FETCH_LIMIT + LOOK, asked.changed()).await, Ok(Ok(())))
    }

    /// Says at the start what an operator should know of them.
    pub fn announce(&self) {
        match &self.from {
            From::File(file) => {
                let keys = self.keys();
                info!(?file, %keys, "credentials are demanded, and verified by the keys of a file");
                say_skipped(&keys);
                self.say_who_reads(&keys);
            }
            From::Url { fetcher, .. } => {
                info!(url = %fetcher, "credentials are demanded, and verified by the keys of an address");
                if !fetcher.is_safe() {
                    warn!(url = %fetcher, "the keys of credentials come by http: whoever is on the way can give others; use https");
                }
            }
        }
    }

    fn say_who_reads(&self, keys: &VerifyKeys) {
        if let From::File(file) = &self.from
            && keys.has_secret()
            && files::is_open_to_all(file)
        {
            warn!(?file, "every user of this machine may read the secret of the credentials: chmod 600");
        }
    }

    /// Keeps them as they are where they come from, for ever.
    pub async fn run(self: Arc<Self>) {
        match &self.from {
            From::File(file) => self.follow_file(file).await,
            From::Url { fetcher, refresh } => self.follow_url(fetcher, *refresh).await,
        }
    }

    async fn follow_file(self: &Arc<Self>, file: &Path) {
        loop {
            tokio::time::sleep(LOOK).await;
            let (source, path) = (self.clone(), file.to_owned());
            let read = tokio::task::spawn_blocking(move || read(&path, source.allowed.as_deref())).await;
            if let Ok(read) = read {
                self.take(read.map_err(|flaw| flaw.to_string()));
            } // Else the program ends.
        }
    }

    async fn follow_url(&self, fetcher: &Fetcher, refresh: Duration) {
        let mut pause = FIRST_RETRY;
        loop {
            let began = Instant::now();
            {
                let mut state = self.state();
                (state.asked, state.is_asking) = (Some(began), true);
            }
            let fetched = match timeout(FETCH_LIMIT, fetcher.fetch(MOST_BYTES)).await {
                Ok(fetched) => fetched.map_err(|error| error.to_string()),
                Err(_) => Err(format!("there was no answer within {FETCH_LIMIT:?}")),
            };
            let read = fetched.and_then(|bytes| {
                VerifyKeys::read(&bytes, KeyPlace::Url, self.allowed.as_deref()).map_err(|flaw| flaw.to_string())
            });
            pause = if read.is_ok() { FIRST_RETRY } else { (pause * 2).min(refresh) };
            let next = if read.is_ok() { refresh } else { pause };
            self.take(read.map_err(|reason| format!("{fetcher}: {reason}")));
            self.state().is_asking = false;
            self.asked.send_modify(|times| *times += 1);
            // Not at the same moment as all other nodes.
            let next = next.mul_f64(0.9 + 0.1 * fastrand::f64());
            let wanted = async {
                self.wanted.notified().await;
                tokio::time::sleep(ASK_AGAIN.saturating_sub(began.elapsed()).min(next)).await;
            };
            let _ = timeout(next, wanted).await;
        }
    }

    fn take(&self, read: Result<VerifyKeys, String>) {
        let now = Instant::now();
        let before = self.keys();
        let turned = |new: &VerifyKeys| new.has_secret() && !before.is_empty() && !before.has_secret();
        match read.and_then(|new| if turned(&new) { Err(format!("{self}: {}", KeysFlaw::Turned)) } else { Ok(new) }) {
            Ok(new) => {
                if self.state().failing.take().is_some() {
                    info!("the keys of credentials can be read again");
                }
                if before.digest != new.digest {
                    info!(keys = %new, "keys of credentials were read");
                    say_skipped(&new);
                    self.say_who_reads(&new);
                    *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                }
            }
            Err(reason) => {
                let has_some = !self.keys().is_empty();
                let mut state = self.state();
                state.failures += 1;
                let since = state.failing.as_ref().map_or(now, |(since, _)| *since);
                state.failing = Some((since, reason.clone()));
                let again = state.said.note(now, &reason);
                drop(state);
                if let Some(again) = again {
                    let so = if has_some { "the last ones are used" } else { "nobody comes in" };
                    warn!(%reason, "the keys of credentials can't be read: {so}{again}");
                }
            }
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            From::File(file) => write!(f, "the file {file:?}"),
            From::Url { fetcher, .. } => write!(f, "{fetcher}"),
        }
    }
}

fn say_skipped(keys: &VerifyKeys) {
    if !keys.skipped.is_empty() {
        info!(keys = %keys.skipped.join("; "), "some keys of credentials are passed over");
    }
}

fn read(file: &Path, allowed: Option<&[Algorithm]>) -> Result<VerifyKeys, FileFlaw> {
    let bytes =
        files::read_again(file, MOST_BYTES as u64).map_err(|error| FileFlaw::Unreadable(file.to_owned(), error))?;
    if bytes.len() > MOST_BYTES {
        return Err(FileFlaw::TooLong(file.to_owned()));
    }
    VerifyKeys::read(&bytes, KeyPlace::File, allowed).map_err(|flaw| FileFlaw::Keys(file.to_owned(), flaw))
}
