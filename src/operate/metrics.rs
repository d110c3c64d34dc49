//! Owns the Prometheus metrics: one typed struct a gateway, with the children of hot labels kept.

mod access;
mod compression;
mod limits;
mod sessions;
mod tally;
mod tls;

use std::sync::Arc;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use self::access::AccessMetrics;
pub use self::compression::{Compressed, CompressionMetrics};
pub use self::limits::LimitMetrics;
pub use self::sessions::{Resumes, SessionMetrics};
pub use self::tally::{Durations, Tally};
pub use self::tls::{TlsHandshakes, TlsMetrics};
use crate::config::Address;
use crate::resolver;
use crate::session::protocol::ErrorCode;
use crate::transport::Arrived;
use crate::transport::envelope::Foreign;
use crate::transport::inbox::Arrival;
use crate::transport::sender::Figures;

/// Bounds in seconds: from a local answer to the send deadline.
const LATENCIES: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All that a gateway counts. Registered with a registry of its own, so that two gateways live in one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open sessions.
    pub connections: IntGauge,
    /// The most sessions that may be open.
    pub connections_max: IntGauge,
    /// Handshakes that became a session.
    pub handshakes_accepted: IntCounter,
    /// Handshakes refused because the node was not ready.
    pub handshakes_not_ready: IntCounter,
    /// Handshakes refused because the node was full.
    pub handshakes_full: IntCounter,
    /// Requests to the WebSocket's path that were no proper handshake.
    pub handshakes_bad: IntCounter,
    /// Handshakes of pages that may not connect.
    pub handshakes_forbidden: IntCounter,
    /// Handshakes whose credentials were refused, or could not be checked.
    pub handshakes_unauthorized: IntCounter,
    /// Who may come in.
    pub access: AccessMetrics,
    /// Handshakes refused because their address has had enough of them.
    pub handshakes_limited: IntCounter,
    /// Which limits were reached.
    pub limited: LimitMetrics,
    /// TLS, with clients and servers.
    pub tls: TlsMetrics,
    /// Messages that went compressed.
    pub compression: Arc<CompressionMetrics>,
    /// Sessions ended, by reason.
    pub sessions_closed: IntCounterVec,
    /// Sessions that can be resumed.
    pub sessions: SessionMetrics,
    /// Sends answered with `ack`.
    pub messages_acked: IntCounter,
    /// Sends answered with `error`.
    pub messages_failed: IntCounter,
    /// Errors answered, by code, in the order of [`ErrorCode::ALL`].
    errors: Vec<IntCounter>,
    /// From the `send` frame to its answer.
    pub send_duration: Histogram,
    /// From a batch of PUBLISH to its answers.
    pub publish_duration: Histogram,
    /// From a PUBLISH to the word of the receiver's node.
    receipt_duration: Histogram,
    /// Messages under way: sends that wait for a decision, and what is sent again.
    pub messages_pending: IntGauge,
    /// Messages sent again because a link died, hung, or knew nobody.
    messages_resent: IntCounter,
    /// What became of messages that arrived at this node.
    pub deliveries: Deliveries,
    /// Bytes in all outboxes.
    pub outbox_bytes: IntGauge,
    /// Bytes that there may be.
    pub outbox_bytes_max: IntGauge,
    /// Messages dropped with the outbox of a slow reader.
    pub outbox_dropped: IntCounter,
    /// Sessions closed because they read too slowly.
    pub slow_readers: IntCounter,
    /// 1 for the master in use.
    pub master_info: IntGaugeVec,
    /// 1 when there is a link to a server that is master for Sentinel and by its own word.
    pub master_linked: IntGauge,
    /// Configuration epoch of the master in use.
    pub epoch: IntGauge,
    /// Changes of master seen.
    pub failovers: IntCounter,
    /// 1 for a Sentinel that answers.
    pub sentinel_up: IntGaugeVec,
    /// State of each link: 0 connecting, 1 replaying, 2 synced.
    pub link_state: IntGaugeVec,
    /// Round trip of heartbeats.
    pub heartbeat: HistogramVec,
    /// Connections to Redis that were lost or failed.
    pub link_failures: IntCounterVec,
    /// Time to replay all subscriptions on a new connection.
    pub replay_duration: Histogram,
    /// Channels in the last replay.
    pub replay_channels: GaugeVec,
    /// Names that are being looked up, each by a thread.
    look_ups: IntGauge,
    /// 0 serving, 1 waiting for load balancers, 2 closing sessions, 3 stopped.
    pub drain_state: IntGauge,
    /// 1 when ready.
    pub ready: IntGauge,
}

/// Counters of arrived messages.
#[derive(Debug)]
pub struct Deliveries {
    /// Put into a session's outbox.
    pub delivered: IntCounter,
    /// A copy of a message that had arrived before.
    pub duplicate: IntCounter,
    /// No such client on this node (any more).
    pub absent: IntCounter,
    /// Wanted no more by the node that sent it.
    pub late: IntCounter,
    /// Of a node that is not known to live.
    pub stranger: IntCounter,
    /// It waits for its predecessor, or until it is known whether its receiver is here.
    pub waiting: IntCounter,
    /// The receiver's outbox was full.
    pub full: IntCounter,
    /// No room to wait for its predecessor.
    pub overflow: IntCounter,
    /// Not an envelope of Texto's.
    pub malformed: IntCounter,
    /// Of a version of Texto that this one doesn't read.
    pub other_version: IntCounter,
}

impl Deliveries {
    /// Counts what became of an arrived message.
    pub fn count(&self, arrived: &Arrived) {
        match arrived {
            Arrived::Message(Arrival::Decided) => &self.delivered,
            Arrived::Message(Arrival::Waits) => &self.waiting,
            Arrived::Message(Arrival::Copy) => &self.duplicate,
            Arrived::Message(Arrival::Dropped) => &self.overflow,
            Arrived::Absent => &self.absent,
            Arrived::Past => &self.late,
            Arrived::Stranger => &self.stranger,
            Arrived::Foreign(Foreign::Malformed) => &self.malformed,
            Arrived::Foreign(Foreign::Version(_) | Foreign::Kind(_)) => &self.other_version,
            Arrived::Control | Arrived::Met(..) => return,
        }
        .inc();
    }
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When two metrics share a name: a mistake in this file.
    pub fn new(node_id: &str) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = Register(&registry);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process))?;
        let build = r.gauges("texto_build_info", "Version and name of this node.", &["version", "node"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), node_id]).set(1);
        let handshakes = r.counters("texto_handshakes_total", "WebSocket handshakes by result.", &["result"])?;
        let messages = r.counters("texto_messages_total", "Sends answered, by outcome.", &["outcome"])?;
        let errors = r.counters("texto_errors_total", "Error frames sent, by code.", &["code"])?;
        let deliveries =
            r.counters("texto_deliveries_total", "Messages that arrived at this node, by result.", &["result"])?;
        Ok(Self {
            connections: r.gauge("texto_connections", "Open sessions.")?,
            connections_max: r.gauge("texto_connections_max", "Sessions that may be open at a time.")?,
            handshakes_accepted: handshakes.with_label_values(&["accepted"]),
            handshakes_not_ready: handshakes.with_label_values(&["not_ready"]),
            handshakes_full: handshakes.with_label_values(&["full"]),
            handshakes_bad: handshakes.with_label_values(&["bad_request"]),
            handshakes_forbidden: handshakes.with_label_values(&["forbidden"]),
            handshakes_unauthorized: handshakes.with_label_values(&["unauthorized"]),
            access: AccessMetrics::new(&r)?,
            handshakes_limited: handshakes.with_label_values(&["limited"]),
            limited: LimitMetrics::new(&r)?,
            tls: TlsMetrics::new(&r)?,
            compression: Arc::new(CompressionMetrics::new(&r)?),
            sessions_closed: {
                let closed = r.counters("texto_sessions_closed_total", "Sessions ended, by reason.", &["reason"])?;
                // It must be there before the first: Prometheus takes no increase from a series that begins with 1.
                closed.with_label_values(&["panicked"]);
                closed
            },
            sessions: SessionMetrics::new(&r)?,
            messages_acked: messages.with_label_values(&["acked"]),
            messages_failed: messages.with_label_values(&["failed"]),
            errors: ErrorCode::ALL.iter().map(|code| errors.with_label_values(&[code.as_str()])).collect(),
            send_duration: r.histogram("texto_send_duration_seconds", "From a send frame to its answer.")?,
            publish_duration: r
                .histogram("texto_publish_duration_seconds", "From a batch of PUBLISH commands to its last answer.")?,
            receipt_duration: r.histogram(
                "texto_receipt_duration_seconds",
                "From a PUBLISH to the word of the receiver's node, of two nodes where its session can be resumed.",
            )?,
            messages_pending: r.gauge(
                "texto_messages_pending",
                "Messages under way: sends without a decision, and what is sent again.",
            )?,
            messages_resent: r.counter(
                "texto_messages_resent_total",
                "Messages sent on further links because one died, hung, or knew nobody.",
            )?,
            deliveries: Deliveries {
                delivered: deliveries.with_label_values(&["delivered"]),
                duplicate: deliveries.with_label_values(&["duplicate"]),
                absent: deliveries.with_label_values(&["absent"]),
                late: deliveries.with_label_values(&["late"]),
                stranger: deliveries.with_label_values(&["stranger"]),
                waiting: deliveries.with_label_values(&["waiting"]),
                full: deliveries.with_label_values(&["full"]),
                overflow: deliveries.with_label_values(&["overflow"]),
                malformed: deliveries.with_label_values(&["malformed"]),
                other_version: deliveries.with_label_values(&["other_version"]),
            },
            outbox_bytes: r.gauge("texto_outbox_bytes", "Bytes of messages that wait for their readers.")?,
            outbox_bytes_max: r.gauge("texto_outbox_bytes_max", "Bytes that may wait for all readers together.")?,
            outbox_dropped: r.counter("texto_outbox_dropped_total", "Messages dropped with a slow reader.")?,
            slow_readers: r.counter("texto_slow_readers_closed_total", "Sessions closed for reading too slowly.")?,
            master_info: r.gauges("texto_redis_master_info", "1 for the Redis master in use.", &["address"])?,
            master_linked: r.gauge(
                "texto_redis_master_linked",
                "1 with a link to the server that is master for Sentinel and by its own word.",
            )?,
            epoch: r.gauge("texto_sentinel_epoch", "Configuration epoch of the master in use.")?,
            failovers: r.counter("texto_failovers_total", "Changes of the Redis master seen by this node.")?,
            sentinel_up: r.gauges("texto_sentinel_up", "1 for a Sentinel that answers.", &["address"])?,
            link_state: r.gauges(
                "texto_link_state",
                "State of the link to a Redis: 0 connecting, 1 replaying, 2 synced.",
                &["address"],
            )?,
            heartbeat: r.histograms("texto_heartbeat_seconds", "Round trip of a ROLE to Redis.", &["address"])?,
            link_failures: r.counters(
                "texto_link_failures_total",
                "Connections to Redis that were lost or could not be made.",
                &["address"],
            )?,
            replay_duration: r.histogram(
                "texto_replay_duration_seconds",
                "Time to subscribe to every channel on a new connection.",
            )?,
            replay_channels: {
                let opts = Opts::new("texto_replay_channels", "Channels in the last replay of a link.");
                r.add(GaugeVec::new(opts, &["address"])?)?
            },
            look_ups: r.gauge("texto_name_lookups", "Host names that are being looked up, each by a thread.")?,
            drain_state: r.gauge(
                "texto_drain_state",
                "0 serving, 1 waiting for load balancers, 2 closing sessions, 3 stopped.",
            )?,
            ready: r.gauge("texto_ready", "1 when the node takes new sessions.")?,
            registry,
        })
    }

    /// Takes the series of a Redis server away that has no link any more.
    pub fn forget_server(&self, address: &Address) {
        let address = address.to_string();
        // One that never got far has not all of them.
        let _ = self.link_state.remove_label_values(&[&address]);
        let _ = self.heartbeat.remove_label_values(&[&address]);
        let _ = self.link_failures.remove_label_values(&[&address]);
        let _ = self.replay_channels.remove_label_values(&[&address]);
    }

    /// Shows a counter of somebody else's as well.
    ///
    /// # Errors
    /// When its name is taken.
    pub fn add(&self, counter: IntCounter) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(counter))
    }

    /// Counts what the transport has seen.
    pub fn count(&self, figures: &Figures) {
        self.messages_resent.inc_by(figures.resent);
        figures.trips.iter().for_each(|trip| self.receipt_duration.observe(trip.as_secs_f64()));
        self.sessions.count(figures);
    }

    /// Counts an `error` frame.
    pub fn error(&self, code: ErrorCode) {
        // The two lists have the same order and length by construction.
        if let Some(counter) = ErrorCode::ALL.iter().position(|c| *c == code).and_then(|at| self.errors.get(at)) {
            counter.inc();
        }
    }

    /// The text format of Prometheus.
    ///
    /// # Errors
    /// When a metric can't be encoded.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.tls.show();
        self.look_ups.set(i64::try_from(resolver::under_way()).unwrap_or(i64::MAX));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// A gauge that counts its holders, also those that panic.
#[derive(Debug)]
pub struct Held(IntGauge);

impl Held {
    /// Adds one, until dropped.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct Register<'a>(&'a Registry);

impl Register<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::new(name, help)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(LATENCIES.to_vec()))?)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, prometheus::Error> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(LATENCIES.to_vec()), labels)?)
    }
}
