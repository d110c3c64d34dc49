//! Owns the bounds on sessions and connections, and whether they fit one another and this host.

use std::time::Duration;

use super::cli::ServeArgs;
use super::{Check, option};
use crate::edge::keep_alive::Patience;
use crate::edge::limiter::Rate;
use crate::edge::limits::AddressBounds;
use crate::resume::token::HARD_END;

/// Descriptors that are not for clients: listeners, links to Redis and Sentinels, health requests.
const DESCRIPTOR_RESERVE: usize = 256;

/// Bytes that wait for all readers together, unless it is said otherwise or one may have more.
const OUTBOX_TOTAL_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of a text at the most. Redis cuts off a subscriber for whom more than 32 MB wait, unless it is told otherwise, and
/// with it everybody on its node: some texts must find room.
pub(super) const MOST_TEXT_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a frame at the most: such a text, all of it escaped.
pub(super) const MOST_FRAME_BYTES: usize = 64 * 1024 * 1024;
/// Sessions that one address may resume at once, at the least, unless it is said otherwise.
const FEWEST_RESUMES: usize = 1000;
/// Sessions of a node at the most.
const MOST_CONNECTIONS: usize = 1_000_000;

/// Bounds on sessions and connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// WebSockets at a time.
    pub max_connections: usize,
    /// Bytes of UTF-8 in a text.
    pub max_text_bytes: usize,
    /// Bytes in a WebSocket message.
    pub max_frame_bytes: usize,
    /// Whether messages are compressed for clients that offer it.
    pub compression: bool,
    /// Unanswered sends of a session.
    pub max_unanswered: usize,
    /// Messages waiting for a reader.
    pub outbox_messages: usize,
    /// Bytes of text waiting for a reader.
    pub outbox_bytes: usize,
    /// Bytes waiting for all readers together.
    pub outbox_total_bytes: usize,
    /// Every send is answered within this time.
    pub send_timeout: Duration,
    /// Silence after which a client is pinged.
    pub ping_interval: Duration,
    /// Time for a client to take its bytes.
    pub write_timeout: Duration,
    /// How long a session that can be resumed outlives its socket.
    pub resume_window: Duration,
    /// How long a resume token is good for.
    pub token_lifetime: Duration,
    /// How many sessions one client address may resume at once; 0: as many as it likes.
    pub resumes_per_address: usize,
    /// How often one session may send; as often as it likes, if that is none.
    pub send_rate: Option<Rate>,
    /// What one client address may have.
    pub addresses: AddressBounds,
    /// Time for the head of an HTTP request to arrive, and how long a connection may be idle between requests.
    pub http: Patience,
}

#[cfg(any(test, fuzzing))]
impl Limits {
    /// Bounds for tests of outboxes, and for fuzzers.
    pub(crate) fn small(outbox_messages: usize, outbox_bytes: usize) -> Self {
        let second = Duration::from_secs(1);
        Self {
            max_connections: 1,
            max_text_bytes: 1,
            max_frame_bytes: 1,
            compression: false,
            max_unanswered: 1,
            outbox_messages,
            outbox_bytes,
            outbox_total_bytes: usize::MAX,
            send_timeout: second,
            ping_interval: second,
            write_timeout: second,
            resume_window: second,
            token_lifetime: second,
            resumes_per_address: 0,
            send_rate: None,
            addresses: AddressBounds::default(),
            http: Patience { header: second, keep_alive: second },
        }
    }
}

impl Check<'_> {
    pub(super) fn limits(&mut self, args: &ServeArgs, send_timeout: Option<Duration>) -> Option<Limits> {
        let ms = Duration::from_millis(1);
        let descriptors = descriptors();
        let most = descriptors.min(MOST_CONNECTIONS);
        let max_connections = match &args.max_connections {
            Some(text) if !text.is_empty() => {
                let count = self.count("max-connections", text);
                if count.is_some_and(|count| count > most) {
                    let expected = format!(
                        "at most {most} here, by the limit of open files (ulimit -n, or LimitNOFILE= in systemd)"
                    );
                    self.invalid("max-connections", text, &expected);
                }
                count
            }
            _ => Some(descriptors.saturating_sub(DESCRIPTOR_RESERVE).max(descriptors / 2).clamp(1, MOST_CONNECTIONS)),
        };
        let outbox_bytes = self.count("outbox-bytes", &args.outbox_bytes).unwrap_or(usize::MAX);
        let outbox_total_bytes = match &args.outbox_total_bytes {
            Some(text) if !text.is_empty() => {
                let count = self.count("outbox-total-bytes", text);
                if count.is_some_and(|count| count < outbox_bytes) {
                    self.invalid(
                        "outbox-total-bytes",
                        text,
                        &format!("at least {outbox_bytes}, which is --outbox-bytes"),
                    );
                }
                count
            }
            _ => None,
        };
        let resumes_per_address = match args.resumes_per_address.as_deref() {
            Some(text) if !text.is_empty() => {
                self.parse("resumes-per-address", text, "a whole number, or 0 for no limit")
            }
            // All of them may come at once, by one proxy, when another node has died.
            _ => max_connections.map(|count| count.max(FEWEST_RESUMES)),
        };
        let limits = Limits {
            max_connections: max_connections.unwrap_or(1),
            max_text_bytes: self.count_to("max-text-bytes", &args.max_text_bytes, MOST_TEXT_BYTES).unwrap_or(1),
            max_frame_bytes: self
                .count_to("max-frame-bytes", &args.max_frame_bytes, MOST_FRAME_BYTES)
                .unwrap_or(MOST_FRAME_BYTES),
            compression: self.truth("compression", &args.compression).unwrap_or_default(),
            max_unanswered: self.count("max-unanswered", &args.max_unanswered).unwrap_or(1),
            outbox_messages: self.count("outbox-messages", &args.outbox_messages).unwrap_or(1),
            outbox_bytes,
            outbox_total_bytes: outbox_total_bytes.unwrap_or(OUTBOX_TOTAL_BYTES.max(outbox_bytes)),
            send_timeout: send_timeout.unwrap_or(ms),
            ping_interval: self.duration("ping-interval", &args.ping_interval, ms).unwrap_or(ms),
            write_timeout: self.duration("write-timeout", &args.write_timeout, ms).unwrap_or(ms),
            resume_window: self
                .duration_within("resume-window", &args.resume_window, ms..=Duration::from_secs(3600))
                .unwrap_or(ms),
            token_lifetime: self
                .duration_within("token-lifetime", &args.token_lifetime, Duration::from_secs(1)..=HARD_END)
                .unwrap_or(HARD_END),
            resumes_per_address: resumes_per_address.unwrap_or(0),
            send_rate: self.send_rate(args),
            addresses: self.address_bounds(args),
            http: Patience {
                header: self.duration("header-timeout", &args.header_timeout, ms).unwrap_or(ms),
                keep_alive: self.duration("keep-alive-timeout", &args.keep_alive_timeout, ms).unwrap_or(ms),
            },
        };
        if limits.max_frame_bytes < limits.max_text_bytes.saturating_add(512) {
            self.invalid(
                "max-frame-bytes",
                &args.max_frame_bytes,
                "at least 512 more than --max-text-bytes, for the JSON around the text",
            );
        }
        if limits.token_lifetime < limits.resume_window {
            let expected = format!("at least as long as {}", option("resume-window"));
            self.invalid("token-lifetime", &args.token_lifetime, &expected);
        }
        if limits.outbox_bytes < limits.max_text_bytes {
            self.invalid("outbox-bytes", &args.outbox_bytes, "at least --max-text-bytes");
        }
        self.errors.is_empty().then_some(limits)
    }
}

/// Raises the soft limit of open files to the hard one, and tells it.
pub(super) fn descriptors() -> usize {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    usize::try_from(limit).unwrap_or(usize::MAX)
}
