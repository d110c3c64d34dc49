//! Owns what follows from the transport's decisions: answers, wake-ups, subscriptions; and what it is told of bytes that come.

use std::time::Instant;

use tracing::{info, warn};

use super::{Effects, Shared, lock};
use crate::outbox::ReplyTo;
use crate::transport::envelope::{Channel, Foreign, Hello, Tag, VERSION};
use crate::transport::sender::{Actions, Answer, Command, LinkId, Sender};
use crate::transport::{Arrived, Duty, Gathered, Transport};

impl Shared {
    /// Changes the sender, then answers and wakes outside its lock.
    pub(super) fn with_sender<T>(
        &self,
        change: impl FnOnce(&mut Sender<Duty<ReplyTo>>, Instant, &mut Effects) -> T,
    ) -> T {
        let mut actions = Actions::default();
        let mut sender = self.transport.sender();
        let was_idle = sender.pending() == 0;
        let result = change(&mut sender, Instant::now(), &mut actions);
        let pending = sender.pending();
        drop(sender);
        if was_idle && pending > 0 {
            self.ticker.notify_one();
        }
        self.metrics.messages_pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        self.act(actions);
        result
    }

    /// Answers, subscribes, and wakes the links that have something to send.
    pub(super) fn act(&self, mut actions: Effects) {
        loop {
            self.metrics.count(&std::mem::take(&mut actions.figures));
            for link in actions.links() {
                self.wakes[link].notify_one();
            }
            actions.changed.drain(..).for_each(|channel| self.changed(channel));
            for outbox in actions.detached.drain(..) {
                self.windows.begin(&outbox);
            }
            for (client, resumption) in actions.claims.drain(..) {
                let claimants = lock(&self.claimants).remove(&client).unwrap_or_default();
                for claimant in claimants {
                    // Whoever does not wait any more will find it by its token again.
                    let _ = claimant.send(resumption.clone());
                }
            }
            if actions.decided.is_empty() {
                return;
            }
            let mut more = Actions::default();
            for (duty, outcome) in actions.decided {
                if let Some(reply) = self.transport.decided(Instant::now(), duty, outcome, &mut more) {
                    reply.answer(outcome);
                }
            }
            actions = more;
        }
    }

    /// The same with the whole transport, which locks for itself.
    pub(super) fn with_transport<T>(&self, change: impl FnOnce(&Transport<ReplyTo>, Instant, &mut Effects) -> T) -> T {
        let mut actions = Actions::default();
        let result = change(&self.transport, Instant::now(), &mut actions);
        self.ticker.notify_one();
        self.act(actions);
        result
    }

    /// This run of this node, in envelopes.
    pub(super) fn tag(&self) -> Tag {
        self.transport.tag()
    }

    /// The channels that a link subscribes last.
    pub(super) fn own_channels(&self) -> Vec<Vec<u8>> {
        self.transport.own_channels().iter().map(|channel| channel.name().into_bytes()).collect()
    }

    /// What `link` is to send now, or until when it gathers.
    pub(super) fn next_batch(&self, link: LinkId) -> (Vec<Command>, Option<Instant>) {
        let mut sender = self.transport.sender();
        let now = Instant::now();
        let batch = sender.next_batch(now, link);
        let until = if batch.is_empty() { sender.gathers_until(now, link) } else { None };
        (batch, until)
    }

    pub(super) fn answered(&self, link: LinkId, answers: Vec<Answer>) {
        self.with_sender(|sender, now, actions| sender.answered(now, link, answers, actions));
    }

    /// Something has come in on a subscription.
    pub(super) fn receive(&self, channel: &[u8], payload: &[u8], gathered: &mut Gathered) {
        let mut actions = Actions::default();
        let arrived = self.transport.arrived(Instant::now(), channel, payload, gathered, &mut actions);
        self.metrics.deliveries.count(&arrived);
        match arrived {
            Arrived::Met(_, hello) => self.note_met(&hello),
            Arrived::Foreign(foreign) => self.note_foreign(foreign),
            _ => {}
        }
        self.act(actions);
    }

    /// All that a read has brought was handed on: its receipts go out.
    pub(super) fn after_read(&self, gathered: &mut Gathered) {
        let mut actions = Actions::default();
        self.transport.send_receipts(Instant::now(), gathered, &mut actions);
        self.act(actions);
    }

    fn note_met(&self, Hello { writes, reads, name, .. }: &Hello) {
        info!(node = name, writes, reads, "another node is there");
        if *reads < VERSION || *writes > VERSION {
            warn!(node = name, writes, reads, own = VERSION, "it speaks another version: messages between us are lost");
        }
    }

    fn note_foreign(&self, foreign: Foreign) {
        if let (Foreign::Version(_) | Foreign::Kind(_), true) = (foreign, lock(&self.strange).insert(foreign)) {
            warn!(
                ?foreign,
                own = VERSION,
                "another version of Texto uses this Redis: stop its nodes, or upgrade this one"
            );
        }
    }

    /// Somebody here wants a channel, or wants it no longer.
    pub(super) fn changed(&self, channel: Channel) {
        let links: Vec<_> = lock(&self.fleet).links().map(|(running, _)| running.link.clone()).collect();
        for link in links {
            link.changed(channel);
        }
    }
}
