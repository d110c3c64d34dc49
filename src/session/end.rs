//! Owns why a session ends, and what its client is told of that.

use crate::outbox::CloseOrder;
use crate::resume::limits::Limit;

/// The gateway's own close codes: no answer to a ping; the session goes on elsewhere; no registration; no credentials.
const SILENT: u16 = 4000;
const TAKEN_OVER: u16 = 4001;
const UNREGISTERED: u16 = 4002;
const UNAUTHORIZED: u16 = 4003;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closed, with this code if it gave one.
    Closed(Option<u16>),
    /// The connection broke.
    Broken,
    /// The client broke RFC 6455 or the frame limit: the close code, and the reason.
    Violation(u16, &'static str),
    /// Nothing came back to a ping.
    Silent,
    /// The client took its bytes too slowly.
    SlowReader,
    /// The client took nothing for too long; its session waits for it.
    Stuck,
    /// The node drains.
    Drained,
    /// The node stops.
    Stopped,
    /// The session goes on over a newer connection.
    TakenOver,
    /// The session goes on at another node.
    Moved,
    /// The client did not say what it wants.
    Unregistered,
    /// Sessions are resumed too often.
    Limited(Limit),
    /// Nobody can be asked now for the session that the client wants to resume.
    Unsure,
    /// The client has no credentials, or such as are refused.
    Unauthorized,
    /// Nobody can say now whether its credentials are good.
    Unverifiable,
    /// The credentials are good no longer.
    Expired,
}

impl End {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Closed(_) => "closed",
            Self::Broken => "broken",
            Self::Violation(..) => "violation",
            Self::Silent => "silent",
            Self::SlowReader => "slow_reader",
            Self::Stuck => "stuck",
            Self::Drained => "drained",
            Self::Stopped => "stopped",
            Self::TakenOver => "taken_over",
            Self::Moved => "moved",
            Self::Unregistered => "unregistered",
            Self::Limited(_) => "limited",
            Self::Unsure => "unsure",
            Self::Unauthorized => "unauthorized",
            Self::Unverifiable => "unverifiable",
            Self::Expired => "expired",
        }
    }

    /// What the client is told, as a close code and a reason.
    pub(super) fn farewell(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Closed(_) | Self::Broken => None,
            Self::Violation(code, reason) => Some((code, reason)),
            Self::Silent => Some((SILENT, "no answer to a ping")),
            Self::SlowReader | Self::Stuck => Some((1013, "messages were not read fast enough")),
            Self::Drained => Some((1012, "this node is draining: connect again")),
            Self::Stopped => Some((1001, "this node stops")),
            Self::TakenOver => Some((TAKEN_OVER, "this session goes on over a newer connection: do not reconnect")),
            Self::Moved => Some((1012, "this session has moved: connect again")),
            Self::Unsure => Some((1012, "the other nodes can't be asked now: connect again, with the same token")),
            Self::Unregistered => Some((UNREGISTERED, "no registration in time")),
            Self::Unauthorized => {
                Some((UNAUTHORIZED, "credentials are required, or were refused: the error says which"))
            }
            Self::Unverifiable => Some((1013, "credentials can't be checked now: connect again later")),
            Self::Expired => Some((UNAUTHORIZED, "the credentials have expired: connect again with newer ones")),
            // A new session would cost as much as the one that is not resumed, and take the client's id away.
            Self::Limited(_) => {
                Some((1013, "sessions are resumed too often: connect again later, with the same token"))
            }
        }
    }

    /// What an order to close means.
    pub(super) fn ordered(order: CloseOrder) -> Self {
        match order {
            CloseOrder::Drain => Self::Drained,
            CloseOrder::Stop => Self::Stopped,
            CloseOrder::SlowReader => Self::SlowReader,
            CloseOrder::TakenOver => Self::TakenOver,
            CloseOrder::Moved => Self::Moved,
        }
    }
}
