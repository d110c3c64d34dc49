//! Owns a session's place in registry and broker, and what becomes of it when a connection ends.

use std::sync::Arc;
use std::time::Instant;

use super::{Context, End};
use crate::outbox::{Attachment, Outbox};
use crate::registry::Registration;
use crate::resume::windows;

/// The place; dropped without a word, as by a panic, it is as if the connection had broken.
#[derive(Debug)]
pub(super) struct Place {
    context: Arc<Context>,
    outbox: Arc<Outbox>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The session ends with the connection.
    Connection(Option<Registration>),
    /// The session outlives it, unless the client does not know that.
    Resumable(Attachment, bool),
    Left,
}

impl Place {
    /// The place of a session that ends with its connection.
    pub(super) fn of_connection(context: &Arc<Context>, outbox: Arc<Outbox>) -> Self {
        let registration = context.registry.register(outbox.clone());
        context.broker.joined(outbox.client());
        Self { context: context.clone(), outbox, kind: Kind::Connection(Some(registration)) }
    }

    /// The place of a connection of a session that is in the registry already; it ends with the connection unless its client
    /// `comes_back`.
    pub(super) fn of_resumable(
        context: &Arc<Context>,
        outbox: Arc<Outbox>,
        attachment: Attachment,
        comes_back: bool,
    ) -> Self {
        Self { context: context.clone(), outbox, kind: Kind::Resumable(attachment, comes_back) }
    }

    /// The connection has ended. Returns how many messages will not be written any more.
    pub(super) fn leave(mut self, end: End) -> usize {
        self.give_up(matches!(end, End::Closed(Some(1000)) | End::SlowReader))
    }

    fn give_up(&mut self, for_good: bool) -> usize {
        match std::mem::replace(&mut self.kind, Kind::Left) {
            Kind::Connection(registration) => {
                // Whatever comes now is not taken, and its sender is told so. What was taken and can't be written any
                // more is lost with the connection; an orderly end has written it.
                let unwritten = self.outbox.discard();
                drop(registration);
                self.context.broker.left(self.outbox.client());
                unwritten
            }
            Kind::Resumable(attachment, comes_back) => {
                let now = Instant::now();
                if !self.outbox.detach(now, attachment) {
                    return 0; // A newer connection has it.
                }
                if for_good || !comes_back {
                    let (registry, broker) = (&self.context.registry, &*self.context.broker);
                    return windows::end(&self.outbox, now, registry, broker).unwrap_or(0);
                }
                self.context.windows.begin(&self.outbox);
                0
            }
            Kind::Left => 0,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_up(false);
    }
}
