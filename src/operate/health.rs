//! Owns the answers to "do you live" and "may you get traffic", in the form of
//! `application/health+json` (draft-inadarei-api-health-check-06) or as text for people.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::access::source::KeySource;
use crate::broker::{Broker, BrokerStatus, LinkState, LinkStatus};
use crate::operate::isolation::is_cut_off;
use crate::operate::metrics::Metrics;
use crate::operate::readiness::Readiness;
use crate::sentinel::SentinelStatus;

/// The runtime is stuck when its own heartbeat is older than this.
const STUCK: Duration = Duration::from_secs(10);
const BEAT: Duration = Duration::from_millis(500);

/// Where a gateway stands in its life; it only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Lifecycle {
    /// It takes sessions.
    Serving = 0,
    /// It serves on, but takes no new sessions: load balancers are to notice.
    Draining = 1,
    /// It closes its sessions.
    Closing = 2,
    /// It is done.
    Stopped = 3,
}

/// The health of one gateway.
#[derive(Debug)]
pub struct Health {
    node_id: String,
    ready_grace: Duration,
    isolated_after: Duration,
    lifecycle: AtomicU8,
    started: Instant,
    beat_ms: AtomicU64,
    broker: Arc<dyn Broker>,
    seats: Arc<Semaphore>,
    max_connections: usize,
    auth_keys: Option<Arc<KeySource>>,
    metrics: Arc<Metrics>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Pass,
    /// Something is wrong, but the node does its work.
    Warn,
    /// The node must not get traffic.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    #[serde(skip)]
    name: &'static str,
    status: Status,
    #[serde(rename = "observedValue")]
    observed: Value,
    /// The reason, where the status is not `pass`.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// The same without what other checks say, where they do.
    #[serde(skip)]
    brief: Option<String>,
    /// For people: all that is to be said, and what it consists of, a line each.
    #[serde(skip)]
    words: String,
    #[serde(skip)]
    parts: Vec<(Status, String)>,
}

/// The whole picture.
#[derive(Debug)]
pub struct Report {
    status: Status,
    node_id: String,
    checks: Vec<Check>,
}

impl Report {
    /// Whether the node may get traffic.
    pub fn is_ready(&self) -> bool {
        self.status != Status::Fail
    }

    /// What is wrong, a sentence each, and each reason once.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().filter_map(|check| check.brief.as_deref().or(check.output.as_deref()))
    }

    /// What keeps traffic away: each check that fails, and its reason.
    pub(super) fn failures(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let failed = self.checks.iter().filter(|check| check.status == Status::Fail);
        failed.map(|check| (check.name, check.output.as_deref().unwrap_or(check.name)))
    }

    #[cfg(test)]
    pub(super) fn with_failure(failure: Option<(&'static str, &str)>) -> Self {
        let check = |(name, reason): (_, &str)| Check {
            name,
            status: Status::Fail,
            observed: Value::Null,
            output: Some(reason.to_owned()),
            brief: None,
            words: reason.to_owned(),
            parts: Vec::new(),
        };
        let status = if failure.is_some() { Status::Fail } else { Status::Pass };
        Self { status, node_id: "test".to_owned(), checks: failure.map(check).into_iter().collect() }
    }

    /// As `application/health+json`.
    pub fn json(&self) -> String {
        let checks: serde_json::Map<String, Value> =
            self.checks.iter().map(|check| (check.name.to_owned(), json!([check]))).collect();
        json!({
            "status": self.status,
            "version": "1",
            "releaseId": env!("CARGO_PKG_VERSION"),
            "serviceId": self.node_id,
            "description": "Texto gateway",
            "checks": checks,
        })
        .to_string()
    }

    /// The status alone, as JSON: for whoever need not know what it comes from.
    pub fn verdict(&self) -> String {
        json!({ "status": self.status }).to_string()
    }

    /// As text: one line a check, and one for each link and each Sentinel.
    pub fn text(&self) -> String {
        let mark = |status: &Status| match status {
            Status::Pass => "[+]",
            Status::Warn => "[!]",
            Status::Fail => "[-]",
        };
        let mut text = String::new();
        for Check { name, status, words, parts, .. } in &self.checks {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{} {name}: {words}", mark(status));
            for (status, words) in parts {
                let _ = writeln!(text, "    {} {words}", mark(status));
            }
        }
        let _ = writeln!(text, "{} {}", self.node_id, if self.is_ready() { "is ready" } else { "is not ready" });
        text
    }
}

impl Health {
    /// The health of a gateway that starts to serve now. `seats` are the places for sessions.
    pub fn new(
        node_id: &str,
        ready_grace: Duration,
        isolated_after: Duration,
        broker: Arc<dyn Broker>,
        seats: Arc<Semaphore>,
        max_connections: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            node_id: node_id.to_owned(),
            ready_grace,
            isolated_after,
            lifecycle: AtomicU8::new(Lifecycle::Serving as u8),
            started: Instant::now(),
            beat_ms: AtomicU64::new(0),
            broker,
            seats,
            max_connections,
            auth_keys: None,
            metrics,
        }
    }

    /// Looks at the keys of credentials as well.
    pub fn with_auth_keys(self, auth_keys: Option<Arc<KeySource>>) -> Self {
        Self { auth_keys, ..self }
    }

    /// The name of this node.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// How long it has lived.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Moves on in life; never back.
    pub fn advance(&self, to: Lifecycle) {
        self.lifecycle.fetch_max(to as u8, Ordering::SeqCst);
        self.metrics.drain_state.set(i64::from(self.lifecycle.load(Ordering::SeqCst)));
    }

    /// Where it stands in its life.
    pub fn lifecycle(&self) -> Lifecycle {
        match self.lifecycle.load(Ordering::SeqCst) {
            0 => Lifecycle::Serving,
            1 => Lifecycle::Draining,
            2 => Lifecycle::Closing,
            _ => Lifecycle::Stopped,
        }
    }

    /// Beats, for [`Self::lives`], and keeps the metric of readiness fresh, and the log. Runs for ever.
    pub async fn run_heartbeat(&self) {
        let mut readiness = Readiness::default();
        let mut interval = tokio::time::interval(BEAT);
        loop {
            interval.tick().await;
            let age = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.beat_ms.store(age, Ordering::Relaxed);
            let report = self.report();
            self.metrics.ready.set(i64::from(report.is_ready()));
            // The drain says itself that it begins.
            if self.is_serving() {
                readiness.note(Instant::now(), &report);
            }
        }
    }

    /// Whether the runtime still turns. Knows nothing of Redis: restarting this process would not mend that.
    pub fn lives(&self) -> bool {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat) < STUCK
    }

    /// Whether it has not been told to stop.
    pub fn is_serving(&self) -> bool {
        self.lifecycle() == Lifecycle::Serving
    }

    /// Whether a new session may begin.
    pub fn takes_sessions(&self) -> bool {
        self.is_serving() && self.check_broker(&self.broker.status()).status != Status::Fail
    }

    /// Looks at everything.
    pub fn report(&self) -> Report {
        let broker = self.broker.status();
        let mut checks = vec![self.check_lifecycle(), self.check_broker(&broker), self.check_connections()];
        checks.extend(self.auth_keys.as_deref().map(check_credentials));
        if broker.kind != "embedded" {
            checks.push(self.check_master(&broker));
            checks.push(check_links(&broker));
        }
        if broker.kind == "sentinel" {
            checks.push(check_sentinels(&broker));
        }
        let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Pass);
        Report { status, node_id: self.node_id.clone(), checks }
    }

    fn check_lifecycle(&self) -> Check {
        let lifecycle = self.lifecycle();
        let serving = lifecycle == Lifecycle::Serving;
        let output = (!serving).then(|| "this node is told to stop and takes no new sessions".to_owned());
        Check {
            name: "lifecycle",
            status: if serving { Status::Pass } else { Status::Fail },
            observed: json!(lifecycle),
            words: output.clone().unwrap_or_else(|| "serving".to_owned()),
            parts: Vec::new(),
            output,
            brief: None,
        }
    }

    fn check_broker(&self, broker: &BrokerStatus) -> Check {
        let now = Instant::now();
        let away = broker.unusable_for(now);
        let status = match away {
            None => Status::Pass,
            // Whoever is asked to leave must not come back here.
            Some(_) if is_cut_off(broker, now, self.isolated_after) => Status::Fail,
            // A failover must not empty the load balancer; a node that never had Redis is another matter.
            Some(away) if broker.ever_usable && away < self.ready_grace => Status::Warn,
            Some(_) => Status::Fail,
        };
        let since = away.map(|away| format!("no usable Redis for {:.1} s", away.as_secs_f64()));
        let reason = broker.reason.as_deref().unwrap_or("no usable link");
        let output = since.as_ref().map(|since| format!("{since}: {reason}"));
        let brief = since.filter(|_| is_told(broker, reason));
        let words = brief.as_ref().or(output.as_ref());
        let words = words.map_or(broker.kind.to_owned(), |words| format!("{}, {words}", broker.kind));
        Check { name: "broker", status, observed: json!(broker.kind), output, brief, words, parts: Vec::new() }
    }

    fn check_connections(&self) -> Check {
        let open = self.max_connections.saturating_sub(self.seats.available_permits());
        let full = open >= self.max_connections;
        let output = full.then(|| "every place is taken: raise --max-connections or add nodes".to_owned());
        let words = format!("{open} of {}", self.max_connections);
        Check {
            name: "connections",
            status: if full { Status::Fail } else { Status::Pass },
            observed: json!({ "open": open, "max": self.max_connections }),
            words: output.as_ref().map_or(words.clone(), |reason| format!("{words}, {reason}")),
            parts: Vec::new(),
            output,
            brief: None,
        }
    }

    fn check_master(&self, broker: &BrokerStatus) -> Check {
        let master = broker.master.as_deref();
        let link = broker.links.iter().find(|link| Some(link.address.as_str()) == master);
        let because = |what: String, reason: Option<&str>| match reason {
            Some(reason) => (Some(format!("{what}: {reason}")), is_told(broker, reason).then_some(what)),
            None => (Some(what), None),
        };
        let (output, brief) = match (master, link) {
            (None, _) => because("no master is known".to_owned(), broker.reason.as_deref()),
            (Some(master), Some(link)) if link.state == LinkState::Connecting => {
                because(format!("no connection to the master {master}"), link.reason.as_deref())
            }
            (Some(master), Some(link)) if link.role != Some("master") => {
                (Some(format!("{master} ought to be master, but says that it is a replica")), None)
            }
            _ => (None, None),
        };
        let fine = || format!("{}, epoch {}", master.unwrap_or_default(), broker.epoch);
        let words = brief.as_ref().or(output.as_ref()).cloned().unwrap_or_else(fine);
        Check {
            name: "redis:master",
            status: if output.is_some() { Status::Warn } else { Status::Pass },
            observed: json!({
                "address": broker.master,
                "epoch": broker.epoch,
                "lastSwitchSecondsAgo": broker.last_switch_seconds_ago,
            }),
            output,
            brief,
            words,
            parts: Vec::new(),
        }
    }
}

/// Without keys nobody new comes in, here or wherever else they can't be had; whoever is here, or resumes, goes on. So a node
/// that has none yet should get no traffic, and one that can't renew those it has should.
fn check_credentials(source: &KeySource) -> Check {
    let status = source.status();
    let output = match (&status.failing, status.keys) {
        (Some((since, reason)), keys) => Some(format!(
            "the keys can't be read for {:.0} s, {}: {reason}",
            since.as_secs_f64(),
            if keys == 0 { "and there are none" } else { "the last ones are used" }
        )),
        (None, 0) => Some(format!("the keys have not come yet: {source}")),
        (None, _) => None,
    };
    let passes = if output.is_some() { Status::Warn } else { Status::Pass };
    let words = output.clone().unwrap_or_else(|| format!("{} keys", status.keys));
    Check {
        name: "credentials",
        status: if status.keys == 0 { Status::Fail } else { passes },
        observed: json!({ "keys": status.keys }),
        output,
        brief: None,
        words,
        parts: Vec::new(),
    }
}

/// The links that are to be there, and are not.
fn missing(broker: &BrokerStatus) -> impl Iterator<Item = &LinkStatus> {
    broker.links.iter().filter(|link| link.expected && link.state != LinkState::Synced)
}

/// The Sentinels that don't answer.
fn silent(broker: &BrokerStatus) -> impl Iterator<Item = &SentinelStatus> {
    broker.sentinels.iter().filter(|sentinel| !sentinel.reachable)
}

/// Whether a link that is missing, or a Sentinel, says this of itself.
fn is_told(broker: &BrokerStatus, reason: &str) -> bool {
    let links = missing(broker).filter_map(|link| link.reason.as_ref());
    let sentinels = silent(broker).filter_map(|sentinel| sentinel.reason.as_ref());
    links.chain(sentinels).any(|told| reason.ends_with(told.as_str()))
}

/// Each reason once, behind all whose it is; `None` if there are none.
fn grouped<'a>(kind: &str, each: impl Iterator<Item = (&'a String, &'a str)>) -> Option<String> {
    let mut groups: Vec<(Vec<&str>, &str)> = Vec::new();
    for (address, reason) in each {
        match groups.iter_mut().find(|(_, known)| *known == reason) {
            Some((addresses, _)) => addresses.push(address),
            None => groups.push((vec![address], reason)),
        }
    }
    let groups: Vec<_> = groups.iter().map(|(all, reason)| format!("{kind} {}: {reason}", all.join(", "))).collect();
    (!groups.is_empty()).then(|| groups.join("; "))
}

fn check_links(broker: &BrokerStatus) -> Check {
    let missing = missing(broker).map(|link| (&link.address, link.reason.as_deref().unwrap_or("subscribing")));
    let output = grouped("Redis", missing).map(|missing| format!("not synced: {missing}"));
    let parts = broker.links.iter().map(|link| {
        let role = link.role.map(|role| format!(", {role}")).unwrap_or_default();
        let dead = if link.expected { "" } else { ", dead for the Sentinels" };
        let reason = link.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let status = if link.state == LinkState::Synced { Status::Pass } else { Status::Warn };
        (status, format!("{} {}{role}{dead}{reason}", link.address, link.state.name()))
    });
    let synced = broker.links.iter().filter(|link| link.state == LinkState::Synced).count();
    Check {
        name: "redis:links",
        words: format!("{synced} of {} synced", broker.links.len()),
        parts: parts.collect(),
        status: if output.is_none() { Status::Pass } else { Status::Warn },
        observed: json!(broker.links),
        output,
        brief: None,
    }
}

fn check_sentinels(broker: &BrokerStatus) -> Check {
    let known = broker.sentinels.len();
    let answer = known - silent(broker).count();
    let silent = silent(broker).map(|sentinel| (&sentinel.address, sentinel.reason.as_deref().unwrap_or("connecting")));
    let output = grouped("Sentinel", silent);
    let parts = broker.sentinels.iter().map(|sentinel| match (sentinel.reachable, &sentinel.reason) {
        (true, _) => (Status::Pass, format!("{} answers", sentinel.address)),
        (false, reason) => {
            (Status::Warn, format!("{} connecting: {}", sentinel.address, reason.as_deref().unwrap_or("no answer yet")))
        }
    });
    Check {
        name: "sentinels",
        words: format!("{answer} of {known} answer"),
        parts: parts.collect(),
        status: if output.is_none() { Status::Pass } else { Status::Warn },
        observed: json!({ "reachable": answer, "known": known, "sentinels": broker.sentinels }),
        output,
        brief: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_of_each_link_in_a_line_and_of_each_reason_once() {
        let link = |address: &str, state, expected, reason: Option<&str>| LinkStatus {
            address: address.to_owned(),
            state,
            role: (state == LinkState::Synced).then_some("replica"),
            expected,
            reason: reason.map(str::to_owned),
        };
        let broker = BrokerStatus {
            kind: "sentinel",
            master: Some("a:1".to_owned()),
            reason: Some("Redis a:1: it refused the password".to_owned()),
            unusable_since: Some(Instant::now()),
            links: vec![
                link("a:1", LinkState::Connecting, true, Some("it refused the password")),
                link("b:2", LinkState::Synced, true, None),
                link("e:5", LinkState::Connecting, true, Some("it refused the password")),
                link("c:3", LinkState::Connecting, false, Some("Connection refused")),
            ],
            sentinels: vec![SentinelStatus { address: "d:4".to_owned(), reachable: true, reason: None }],
            ..BrokerStatus::default()
        };
        let registry = Arc::<crate::registry::Registry>::default();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let embedded = Arc::new(crate::broker::embedded::Embedded::new(registry, metrics.clone()));
        let seats = Arc::new(Semaphore::new(9));
        let health = Health::new("node", Duration::ZERO, Duration::ZERO, embedded, seats, 9, metrics);
        let mut checks = vec![health.check_broker(&broker), health.check_connections(), health.check_master(&broker)];
        checks.extend([check_links(&broker), check_sentinels(&broker)]);
        let report = Report { status: Status::Fail, node_id: "node".to_owned(), checks };
        let problems: Vec<_> = report.problems().collect();
        let once = [
            "no usable Redis for 0.0 s",
            "no connection to the master a:1",
            "not synced: Redis a:1, e:5: it refused the password",
        ];
        assert_eq!(problems, once);
        let text = report.text();
        let expected = "[-] broker: sentinel, no usable Redis for 0.0 s\n\
            [+] connections: 0 of 9\n\
            [!] redis:master: no connection to the master a:1\n\
            [!] redis:links: 1 of 4 synced\n    \
                [!] a:1 connecting: it refused the password\n    \
                [+] b:2 synced, replica\n    \
                [!] e:5 connecting: it refused the password\n    \
                [!] c:3 connecting, dead for the Sentinels: Connection refused\n\
            [+] sentinels: 1 of 1 answer\n    \
                [+] d:4 answers\n\
            node is not ready\n";
        assert_eq!(text, expected);
    }
}
