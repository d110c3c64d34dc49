//! Owns the conversations with the Sentinels: one task each, all feeding one [`Machine`].
//!
//! Events are hints only. On each, and on a period, every Sentinel is asked for the truth; a frozen
//! one delays nobody, since nobody waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::SentinelStatus;
use super::conversation::{AskError, Conversation, Look, Settings};
use super::machine::{Event, Machine, Topology};
use super::signs::{self, Sign};
use crate::backoff::Backoff;
use crate::config::Address;
use crate::operate::chronicle::{Chronicle, Happening};
use crate::operate::metrics::Metrics;
use crate::operate::repeats::Repeats;
use crate::operate::tasks::Tasks;
use crate::tls::reasons::Peer;

/// How often a Sentinel is asked in quiet times, and for how long how often in others.
const PERIOD: Duration = Duration::from_secs(2);
const ALERT_PERIOD: Duration = Duration::from_millis(200);
const ALERT: Duration = Duration::from_secs(5);
/// After an alert for which there is no more than a suspicion, the next one comes no sooner: a Sentinel or a Redis
/// that flaps keeps nobody alerted.
const SUSPICION_PERIOD: Duration = Duration::from_secs(30);
/// Hints make nobody ask sooner than this after the last time.
const HINT_PERIOD: Duration = Duration::from_secs(1);
const ALERT_HINT_PERIOD: Duration = Duration::from_millis(50);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(5);
/// Those that only others name may be gone for good; an event says when one is back.
const PAUSE_MOST_DISCOVERED: Duration = Duration::from_secs(30);

/// Watches all Sentinels of one master. A cheap handle.
#[derive(Clone, Debug)]
pub struct Watcher {
    shared: Arc<Conversations>,
}

#[derive(Debug)]
struct Conversations {
    settings: Settings,
    metrics: Arc<Metrics>,
    chronicle: Arc<Chronicle>,
    tasks: Tasks,
    machine: Mutex<Machine>,
    topology: watch::Sender<Topology>,
    /// Counts hints; each Sentinel's task asks anew when it grows.
    hints: watch::Sender<u64>,
    /// A Sentinel is back: those that can't be asked are tried now.
    revived: Notify,
    alarm: Notify,
    alert: Mutex<Alert>,
    failover_logged: Mutex<Option<Instant>>,
    sentinels: Mutex<BTreeMap<Address, Watched>>,
    said: Mutex<Repeats>,
}

/// How long every Sentinel is asked again and again.
#[derive(Debug)]
struct Alert {
    until: Instant,
    next_suspicion: Instant,
}

#[derive(Debug)]
struct Watched {
    cancel: CancellationToken,
    reachable: bool,
    reason: Option<String>,
    /// Others have named it, and it has not answered yet.
    announced_only: bool,
    /// What was said of it lately.
    said: Repeats,
}

/// What a Sentinel's connection tells beside answers.
#[derive(Debug, Default)]
struct Line {
    lost: Notify,
    changed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No state is left half-changed by the code that holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watcher {
    /// Starts to watch. Its tasks run until those of the gateway end.
    pub fn start(
        sentinels: &[Address],
        settings: Settings,
        metrics: Arc<Metrics>,
        chronicle: Arc<Chronicle>,
        tasks: &Tasks,
    ) -> Self {
        let now = Instant::now();
        let shared = Arc::new(Conversations {
            settings,
            metrics,
            chronicle,
            tasks: tasks.clone(),
            machine: Mutex::new(Machine::new(sentinels)),
            topology: watch::channel(Topology::default()).0,
            hints: watch::channel(0).0,
            revived: Notify::new(),
            alarm: Notify::new(),
            alert: Mutex::new(Alert { until: now, next_suspicion: now }),
            failover_logged: Mutex::default(),
            sentinels: Mutex::default(),
            said: Mutex::default(),
        });
        for address in sentinels {
            shared.clone().watch(address.clone(), false);
        }
        Self { shared }
    }

    /// The topology, as it changes.
    pub fn topology(&self) -> watch::Receiver<Topology> {
        self.shared.topology.subscribe()
    }

    /// Asks every Sentinel soon: something looks wrong from here. However often that is, they are asked little more.
    pub fn ask_now(&self) {
        self.shared.suspect();
    }

    /// Waits until a Sentinel says that the master is being replaced. Cancel safe.
    pub async fn alarmed(&self) {
        self.shared.alarm.notified().await;
    }

    /// Each Sentinel's state, and a problem if there is one.
    pub fn status(&self) -> (Vec<SentinelStatus>, Option<String>) {
        let known = lock(&self.shared.sentinels);
        let status = known.iter().map(|(address, known)| SentinelStatus {
            address: address.to_string(),
            reachable: known.reachable,
            reason: known.reason.clone(),
        });
        let problem =
            known.iter().find_map(|(address, known)| Some(format!("Sentinel {address}: {}", known.reason.as_ref()?)));
        (status.collect(), problem)
    }
}

impl Conversations {
    fn alert(&self) {
        lock(&self.alert).until = Instant::now() + ALERT;
        self.hints.send_modify(|count| *count += 1);
    }

    fn suspect(&self) {
        let now = Instant::now();
        let mut alert = lock(&self.alert);
        if now >= alert.next_suspicion {
            *alert = Alert { until: now + ALERT, next_suspicion: now + SUSPICION_PERIOD };
        }
        drop(alert);
        self.hints.send_modify(|count| *count += 1);
    }

    fn is_alerted(&self) -> bool {
        Instant::now() < lock(&self.alert).until
    }

    fn watch(self: Arc<Self>, address: Address, discovered: bool) {
        let cancel = self.tasks.end().child_token();
        let known = Watched {
            cancel: cancel.clone(),
            reachable: false,
            reason: None,
            announced_only: discovered,
            said: Repeats::default(),
        };
        lock(&self.sentinels).insert(address.clone(), known);
        self.tasks.clone().spawn_vital("watcher", &cancel.clone(), async move {
            let pause_most = if discovered { PAUSE_MOST_DISCOVERED } else { PAUSE_MOST };
            let backoff = Backoff::new(PAUSE_FIRST, pause_most);
            cancel.run_until_cancelled(self.converse(&address, backoff)).await;
        });
    }

    /// Asks one Sentinel again and again; returns never.
    async fn converse(self: &Arc<Self>, address: &Address, mut backoff: Backoff) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = self.revived.notified() => {}
            }
            let reason = match self.converse_inner(address, &mut backoff).await {
                Ok(never) => match never {},
                Err(reason) => reason,
            };
            self.note(address, Some(&reason));
            self.apply(Event::Lost(address.clone()));
        }
    }

    async fn converse_inner(
        self: &Arc<Self>,
        address: &Address,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, AskError> {
        let line = Arc::new(Line::default());
        let mut hints = self.hints.subscribe();
        let mut conversation = Conversation::begin(&self.settings, address, self.pushes(&line)).await?;
        let mut look = Look::Lists;
        loop {
            let view = conversation.ask(look).await?;
            let asked = Instant::now();
            backoff.reset();
            self.note(address, None);
            self.apply(Event::Answered(address.clone(), view));
            let period = |quiet, alert| if self.is_alerted() { alert } else { quiet };
            let mut due = asked + period(PERIOD, ALERT_PERIOD);
            look = Look::Glance;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => break,
                    () = line.lost.notified() => return Err(AskError::Closed),
                    () = line.changed.notified() => look = Look::Lists,
                    _ = hints.changed() => {}
                }
                due = due.min(asked + period(HINT_PERIOD, ALERT_HINT_PERIOD));
            }
            if self.is_alerted() {
                look = look.max(Look::Master);
            }
        }
    }

    /// Takes what a Sentinel's connection tells beside answers.
    fn pushes(self: &Arc<Self>, line: &Arc<Line>) -> impl Fn(PushInfo) -> Result<(), std::convert::Infallible> + use<> {
        let (shared, line) = (Arc::downgrade(self), line.clone());
        move |push: PushInfo| {
            match push.kind {
                PushKind::Disconnection => line.lost.notify_one(),
                PushKind::Message => {
                    if let Some(shared) = shared.upgrade() {
                        shared.hint(&line, &push.data);
                    }
                }
                _ => {}
            }
            Ok(())
        }
    }

    /// A Sentinel published an event: `[channel, payload]`.
    fn hint(&self, line: &Line, data: &[Value]) {
        let text = |at: usize| match data.get(at) {
            Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Some(Value::SimpleString(text)) => text.clone(),
            _ => String::new(),
        };
        let (event, payload) = (text(0), text(1));
        let master = &self.settings.master_name;
        let Some(sign) = signs::read(&event, &payload, master) else { return };
        // Its lists may be others now. The other Sentinels have events of their own.
        line.changed.notify_one();
        match sign {
            Sign::Failover => {
                self.note_failover(&event);
                self.alarm.notify_one();
                self.alert();
            }
            Sign::Suspicion => self.suspect(),
            Sign::Sentinel => self.revived.notify_waiters(),
            Sign::Change => {}
        }
    }

    fn note_failover(&self, event: &str) {
        let mut logged = lock(&self.failover_logged);
        let now = Instant::now();
        let begins = matches!(event, "+odown" | "+try-failover");
        if begins && logged.is_none_or(|at| now.saturating_duration_since(at) > ALERT) {
            *logged = Some(now);
            info!(master = %self.settings.master_name, %event, "failover begun");
            let master = self.topology.borrow().master.as_ref().map(Address::to_string);
            self.chronicle.note(&Happening::FailoverBegun { master, sign: event.to_owned() });
        }
    }

    /// Notes that a Sentinel answers, or why not. One line in the log for each change, few for one that flaps.
    fn note(&self, address: &Address, problem: Option<&AskError>) {
        let mut sentinels = lock(&self.sentinels);
        let Some(known) = sentinels.get_mut(address) else { return };
        if let Some(AskError::Tls(reason)) = problem {
            self.metrics.tls.server_failed(Peer::Sentinel, reason);
        }
        known.announced_only &= problem.is_some();
        let reason = problem.map(|problem| match problem.to_string() {
            text if known.announced_only && problem.is_out_of_reach() => {
                self.settings.address_map.out_of_reach(address, &text)
            }
            text => text,
        });
        if known.reachable == problem.is_none() && known.reason == reason {
            return;
        }
        let again = known.said.note(Instant::now(), reason.as_deref().unwrap_or_default());
        match (&reason, again) {
            (Some(reason), Some(again)) => {
                warn!(%address, %reason, "Sentinel can't be used, trying again{again}");
                let (address, reason) = (address.to_string(), reason.clone());
                self.chronicle.note(&Happening::SentinelLost { address, reason });
            }
            (None, Some(again)) => {
                info!(%address, "Sentinel answers{again}");
                self.chronicle.note(&Happening::SentinelBack { address: address.to_string() });
            }
            (_, None) => {}
        }
        known.reachable = problem.is_none();
        known.reason = reason;
        self.metrics.sentinel_up.with_label_values(&[&address.to_string()]).set(i64::from(known.reachable));
    }

    /// Says what comes and goes with a Sentinel that flaps.
    fn say_seldom(&self, address: &Address, text: &str) {
        if let Some(again) = lock(&self.said).note(Instant::now(), &format!("{text} {address}")) {
            info!(%address, "{text}{again}");
        }
    }

    fn apply(self: &Arc<Self>, event: Event) {
        let mut machine = lock(&self.machine);
        let follows = machine.apply(Instant::now(), event);
        if let Some(epoch) = follows.begun_anew {
            warn!(epoch, "the Sentinels know only an older epoch than before: they were set up anew, and are followed");
        }
        if follows.changed {
            let topology = machine.topology().clone();
            self.metrics.epoch.set(i64::try_from(topology.epoch).unwrap_or(i64::MAX));
            self.topology.send_replace(topology);
        }
        // Still under the machine's lock: what another event makes of the same Sentinel comes after this.
        for address in follows.watch {
            self.say_seldom(&address, "Sentinel discovered");
            self.clone().watch(address, true);
        }
        for address in follows.forget {
            let mut sentinels = lock(&self.sentinels);
            if let Some(known) = sentinels.remove(&address) {
                known.cancel.cancel();
                self.say_seldom(&address, "Sentinel forgotten: it has another address, or nobody knows it any more");
                // Under the lock, so that its last words don't bring it back. One that never answered has none.
                let _ = self.metrics.sentinel_up.remove_label_values(&[&address.to_string()]);
            }
        }
    }
}
