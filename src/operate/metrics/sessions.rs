//! Owns the metrics of sessions that can be resumed.

use std::time::Duration;

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge};

use super::Register;
use crate::operate::census::{Census, Kept};
use crate::resume::limits::Limit;
use crate::resume::token::TokenFlaw;
use crate::transport::homes::MoveReason;
use crate::transport::sender::Figures;

/// Bounds in seconds of what takes as long as it takes to notice that a node is gone.
const RECOVERIES: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What is counted of sessions that can be resumed.
#[derive(Debug)]
pub struct SessionMetrics {
    /// What became of wishes to resume one.
    pub resumes: Resumes,
    /// From such a wish to what became of it.
    pub resume_duration: Histogram,
    /// Sessions without a connection, which wait for their clients.
    pub detached: IntGauge,
    attached: IntGauge,
    with_standby: IntGauge,
    without_standby: IntGauge,
    longest_without_standby: Gauge,
    copies: IntGauge,
    other_nodes: IntGauge,
    strange_keys: IntGauge,
    unacknowledged: KeptMetrics,
    away: KeptMetrics,
    copied: KeptMetrics,
    /// In the order of [`MoveReason::ALL`].
    moves: Vec<IntCounter>,
    /// From the loss of a second copy until there is one again.
    restored: Histogram,
    /// Messages of sessions whose window was over.
    pub abandoned_by_window: IntCounter,
    /// Messages of sessions that ended with their connection.
    pub abandoned_by_connection: IntCounter,
}

/// Wishes to resume a session, by what became of them.
#[derive(Debug)]
pub struct Resumes {
    /// It goes on, with all that was acknowledged.
    pub resumed: IntCounter,
    /// The client keeps its id, but messages may be missing.
    pub lost: IntCounter,
    /// The client has a newer token.
    pub refused: IntCounter,
    /// Nobody could be asked: the client is to come again.
    pub unsure: IntCounter,
    /// The token is not taken, in the order of [`TokenFlaw::ALL`].
    flaws: Vec<IntCounter>,
    by_address: IntCounter,
    by_session: IntCounter,
}

impl Resumes {
    /// Counts one that was not tried, for this limit.
    pub fn limited(&self, limit: Limit) {
        match limit {
            Limit::Address => &self.by_address,
            Limit::Session => &self.by_session,
        }
        .inc();
    }

    /// Counts a token that is not taken.
    pub fn flaw(&self, flaw: TokenFlaw) {
        // The two lists have the same order and length by construction.
        if let Some(counter) = TokenFlaw::ALL.iter().position(|known| *known == flaw).and_then(|at| self.flaws.get(at))
        {
            counter.inc();
        }
    }
}

/// Messages that are kept for one reason.
#[derive(Debug)]
struct KeptMetrics {
    messages: IntGauge,
    bytes: IntGauge,
}

impl KeptMetrics {
    fn set(&self, kept: Kept) {
        self.messages.set(gauge(kept.messages));
        self.bytes.set(gauge(kept.bytes));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl SessionMetrics {
    pub(super) fn new(r: &Register<'_>) -> Result<Self, prometheus::Error> {
        let resumes = r.counters(
            "texto_sessions_resumed_total",
            "Wishes to resume a session, by what became of them.",
            &["outcome"],
        )?;
        let moves =
            r.counters("texto_session_moves_total", "Sessions that got another home, by reason.", &["reason"])?;
        let abandoned = r.counters(
            "texto_messages_abandoned_total",
            "Acknowledged messages that were thrown away because their client did not come back (in its window, or at all).",
            &["with"],
        )?;
        let messages = r.gauges(
            "texto_held_messages",
            "Messages that are kept for clients of sessions that can be resumed, by reason.",
            &["why"],
        )?;
        let bytes =
            r.gauges("texto_held_bytes", "What they take of the budget of all outboxes, in bytes.", &["why"])?;
        let kept = |why: &str| KeptMetrics {
            messages: messages.with_label_values(&[why]),
            bytes: bytes.with_label_values(&[why]),
        };
        Ok(Self {
            resumes: Resumes {
                resumed: resumes.with_label_values(&["resumed"]),
                lost: resumes.with_label_values(&["lost"]),
                refused: resumes.with_label_values(&["refused"]),
                unsure: resumes.with_label_values(&["unsure"]),
                by_address: resumes.with_label_values(&["address_limit"]),
                by_session: resumes.with_label_values(&["session_limit"]),
                flaws: TokenFlaw::ALL.iter().map(|flaw| resumes.with_label_values(&[flaw.label()])).collect(),
            },
            resume_duration: r.histogram(
                "texto_resume_duration_seconds",
                "From the wish to resume a session to what became of it.",
            )?,
            detached: r
                .gauge("texto_sessions_detached", "Sessions without a connection, which wait for their clients.")?,
            attached: r.gauge("texto_sessions_attached", "Sessions that can be resumed, and have a connection.")?,
            with_standby: r.gauge(
                "texto_sessions_with_standby",
                "Sessions that can be resumed, and that another node has a copy of.",
            )?,
            without_standby: r.gauge(
                "texto_sessions_without_standby",
                "Sessions that can be resumed, and would be lost with this node.",
            )?,
            longest_without_standby: r.add(Gauge::new(
                "texto_longest_without_standby_seconds",
                "How long the session has waited for its second copy that waits the longest.",
            )?)?,
            copies: r.gauge("texto_session_copies", "Copies of other nodes' sessions.")?,
            other_nodes: r.gauge("texto_other_nodes", "Other nodes that live and can keep copies of sessions.")?,
            strange_keys: r.gauge(
                "texto_nodes_with_strange_keys",
                "Other nodes that sign resume tokens with a key that this one does not know.",
            )?,
            unacknowledged: kept("unacknowledged"),
            away: kept("away"),
            copied: kept("copy"),
            moves: MoveReason::ALL.iter().map(|reason| moves.with_label_values(&[reason.label()])).collect(),
            restored: {
                let opts = HistogramOpts::new(
                    "texto_standby_restored_seconds",
                    "From the moment that a session lost its second copy, or moved, until it has one again.",
                );
                r.add(Histogram::with_opts(opts.buckets(RECOVERIES.to_vec()))?)?
            },
            abandoned_by_window: abandoned.with_label_values(&["window"]),
            abandoned_by_connection: abandoned.with_label_values(&["connection"]),
        })
    }

    /// Shows how the sessions are now.
    pub fn show(&self, census: &Census) {
        self.attached.set(gauge(census.attached));
        self.with_standby.set(gauge(census.with_standby));
        self.without_standby.set(gauge(census.without_standby));
        self.copies.set(gauge(census.copies));
        self.unacknowledged.set(census.unacknowledged);
        self.away.set(census.away);
        self.copied.set(census.copied);
    }

    /// Shows how many other nodes there are, and how long the session has waited for its second copy that waits the
    /// longest.
    pub fn show_safety(&self, others: usize, longest: Duration) {
        self.other_nodes.set(gauge(others));
        self.longest_without_standby.set(longest.as_secs_f64());
    }

    /// Shows how many other nodes sign with a key that is not known here.
    pub fn show_strange_keys(&self, nodes: usize) {
        self.strange_keys.set(gauge(nodes));
    }

    /// Counts what the transport has seen.
    pub fn count(&self, figures: &Figures) {
        for reason in &figures.moves {
            // The reasons are numbered in the order of their list.
            if let Some(counter) = self.moves.get(*reason as usize) {
                counter.inc();
            }
        }
        figures.restored.iter().for_each(|took| self.restored.observe(took.as_secs_f64()));
    }
}
