//! Owns the status of the deployment as this node sees it, for people and scripts: one JSON object.
//!
//! It asks the pieces what they know anyway, and waits for none of them: it is there while Redis is not.

pub mod streams;
mod traffic;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use self::traffic::{Ledger, Traffic};
use crate::broker::deployment::{Deployment, Movement, ServerView};
use crate::broker::{Broker, BrokerStatus};
use crate::operate::chronicle::Noted;
use crate::operate::health::{Health, Lifecycle};
use crate::operate::metrics::Metrics;
use crate::sentinel::SentinelStatus;
use crate::transport::peers::roll::Life;

/// The form of what is said; another number when something is taken away or means something else.
const FORMAT: &str = "texto-status/1";
/// Other gateways that are listed at the most.
const MOST_GATEWAYS: usize = 256;
/// Characters of a reason. What servers say is in some of them.
const MOST_REASON: usize = 240;

/// The deployment, as this node sees it.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    format: &'static str,
    /// When it was made, in milliseconds since 1970, UTC.
    at_ms: u64,
    node: NodeView,
    broker: BrokerView,
    gateways: Vec<GatewayView>,
    /// Gateways that are not listed for want of room.
    gateways_more: usize,
    servers: Vec<ServerView>,
    sentinels: Vec<SentinelStatus>,
    sessions: SessionsView,
    traffic: Traffic,
    totals: Totals,
    events: Vec<Noted>,
}

/// This node.
#[derive(Debug, Serialize)]
struct NodeView {
    name: String,
    /// New for each start.
    run: String,
    version: &'static str,
    uptime_seconds: u64,
    lifecycle: Lifecycle,
    ready: bool,
    /// What is wrong, as `/readyz` has it.
    problems: Vec<String>,
}

/// What carries messages.
#[derive(Debug, Serialize)]
struct BrokerView {
    /// "embedded", "redis" or "sentinel".
    kind: &'static str,
    movement: Movement,
    master: Option<String>,
    epoch: u64,
    last_switch_seconds_ago: Option<f64>,
    unusable_for_seconds: Option<f64>,
}

/// Another gateway.
#[derive(Debug, Serialize)]
struct GatewayView {
    name: String,
    /// New for each start, as in `texto:node:…`.
    tag: String,
    life: Life,
    silent_seconds: f64,
}

/// The sessions of this node.
#[derive(Debug, Serialize)]
struct SessionsView {
    /// With a connection.
    open: i64,
    /// The most there may be.
    max: i64,
    /// Without one: they wait for their clients.
    waiting: i64,
}

/// What was counted since the node began.
#[derive(Debug, Serialize)]
struct Totals {
    acked: u64,
    failed: u64,
    delivered: u64,
    failovers: u64,
}

/// Who is asked.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Who carries messages.
    pub broker: Arc<dyn Broker>,
    /// Whether the node is well.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Sources {
    /// How it is at `now`, in this `run` of the node; `ledger` has the counters of earlier looks.
    fn look(&self, now: Instant, run: u64, ledger: &mut Ledger) -> Snapshot {
        let Self { broker, health, metrics } = self;
        let tally = metrics.tally();
        let totals = Totals {
            acked: tally.acked,
            failed: tally.failed,
            delivered: tally.delivered,
            failovers: metrics.failovers.get(),
        };
        let status = broker.status();
        let Deployment { movement, gateways, mut servers, events } = broker.deployment();
        let gateways_more = gateways.len().saturating_sub(MOST_GATEWAYS);
        let gateways = gateways.into_iter().take(MOST_GATEWAYS).map(|member| GatewayView {
            name: member.name,
            tag: format!("{:016x}", member.tag),
            life: member.life,
            silent_seconds: member.silence.as_secs_f64(),
        });
        for server in &mut servers {
            server.reason = server.reason.take().map(cut);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Snapshot {
            format: FORMAT,
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            node: NodeView::of(health, run),
            gateways: gateways.collect(),
            gateways_more,
            servers,
            sessions: SessionsView {
                open: metrics.connections.get(),
                max: metrics.connections_max.get(),
                waiting: metrics.sessions.detached.get(),
            },
            traffic: ledger.enter(now, tally, metrics.messages_pending.get()),
            totals,
            events,
            sentinels: sentinels(&status),
            broker: BrokerView {
                kind: status.kind,
                movement,
                unusable_for_seconds: status.unusable_for(now).map(|time| time.as_secs_f64()),
                master: status.master,
                epoch: status.epoch,
                last_switch_seconds_ago: status.last_switch_seconds_ago,
            },
        }
    }
}

impl NodeView {
    fn of(health: &Health, run: u64) -> Self {
        let report = health.report();
        Self {
            name: health.node_id().to_owned(),
            run: format!("{run:016x}"),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: health.uptime().as_secs(),
            lifecycle: health.lifecycle(),
            ready: report.is_ready(),
            problems: report.problems().map(|problem| cut(problem.to_owned())).collect(),
        }
    }
}

fn sentinels(status: &BrokerStatus) -> Vec<SentinelStatus> {
    let sentinels = status.sentinels.iter().cloned();
    sentinels.map(|sentinel| SentinelStatus { reason: sentinel.reason.map(cut), ..sentinel }).collect()
}

fn cut(text: String) -> String {
    match text.char_indices().nth(MOST_REASON) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
