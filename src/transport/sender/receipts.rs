//! Owns the way of receipts: by one replica in calm, by every link that carries in motion, by all when asked again.
//!
//! What is published on a replica stays there, so a receipt comes once and not once a link, and the master has less to
//! do. The replica's count tells whether the other node listens there; a receipt that may not have arrived is told again
//! by whoever carries messages, at once.

use std::time::{Duration, Instant};

use super::{Actions, LinkId, Links, Sender, bit, links};
use crate::transport::envelope::{Decision, Number, Tag};

/// A replica that answers within this, or twice the master's time, is near enough.
const PROMPT: Duration = Duration::from_millis(5);
/// Receipts for one node that wait for a link: what is dropped is asked for again.
const RECEIPTS_MOST: usize = 65_536;

impl<R> Sender<R> {
    /// Has receipts published on the channel of the node `tag`: on every link if it has asked again, else where a message
    /// would go.
    ///
    /// But for calm, with a replica to rely on: what is published there stays there, so it comes once and not once a link. The
    /// replica's count tells whether that node listens to it.
    pub fn receipt(
        &mut self,
        now: Instant,
        tag: Tag,
        receipts: &[(Number, Decision)],
        everywhere: bool,
        actions: &mut Actions<R>,
    ) {
        let replica = self.replica_for_nodes(now);
        if let Some(replica) = replica.filter(|_| everywhere) {
            self.doubt(now, replica); // That node has not heard those before.
        }
        let on = if everywhere { self.up } else { replica.map_or(self.carriers, bit) };
        self.tell(on, tag, receipts, actions);
    }

    pub(super) fn tell(&mut self, on: Links, tag: Tag, receipts: &[(Number, Decision)], actions: &mut Actions<R>) {
        for link in links(on) {
            let slot = &mut self.links[link];
            let waiting = slot.receipts.entry(tag).or_default();
            if waiting.len() < RECEIPTS_MOST {
                waiting.extend_from_slice(receipts);
            }
            if slot.receipts_in_flight == 0 {
                actions.wake |= bit(link);
            }
        }
    }

    /// The replica that what is for one node alone goes by in calm, if there is one that can be relied on.
    pub(super) fn replica_for_nodes(&self, now: Instant) -> Option<LinkId> {
        let master = self.master.filter(|_| !self.in_motion(now))?;
        let prompt = self.links[master].trip * 2;
        links(self.up & !bit(master)).find(|link| {
            let slot = &self.links[*link];
            let held = slot.up_since.is_some_and(|since| now.saturating_duration_since(since) >= self.reliance());
            held && !slot.suspect
                && slot.trip <= prompt.max(PROMPT)
                && slot.doubted_until.is_none_or(|until| now >= until)
        })
    }

    /// The replica behind `link` did not pass these on, or not in time: whoever carries messages does.
    pub(super) fn tell_by_carriers(
        &mut self,
        now: Instant,
        link: LinkId,
        tag: Tag,
        receipts: &[(Number, Decision)],
        actions: &mut Actions<R>,
    ) {
        if !receipts.is_empty() {
            self.doubt(now, link);
            self.tell(self.carriers & !bit(link), tag, receipts, actions);
        }
    }

    fn doubt(&mut self, now: Instant, link: LinkId) {
        self.links[link].doubted_until = Some(now + self.reliance());
    }

    /// A replica is given receipts alone once its link has held for so long, and again so long after some were lost.
    fn reliance(&self) -> Duration {
        self.times.settle * 2
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::transport::envelope::Channel;
    use crate::transport::peers::Peers;
    use crate::transport::sender::{Answer, Command, Times};

    const MASTER: LinkId = 3;
    const REPLICA: LinkId = 5;
    const OTHER: Tag = 9;

    /// In calm, with a replica that has held for long.
    struct Calm {
        sender: Sender<()>,
        now: Instant,
    }

    impl Calm {
        fn new() -> Self {
            let now = Instant::now();
            let second = Duration::from_secs(1);
            let times = Times { send: 5 * second, hedge: second / 10, settle: second, max_bytes: 1 << 20 };
            let peers = Arc::new(Peers::new(now, 1));
            let mut sender = Sender::new(now, times, peers, fastrand::Rng::with_seed(1));
            let mut actions = Actions::default();
            for link in [MASTER, REPLICA] {
                sender.link_up(now, link, &mut actions);
            }
            sender.set_master(now, Some(MASTER), &mut actions);
            let now = now + 3 * second;
            sender.tick(now, &mut actions);
            Self { sender, now }
        }

        fn tell(&mut self, number: Number, everywhere: bool) {
            let receipts = [(number, Decision::Taken)];
            self.sender.receipt(self.now, OTHER, &receipts, everywhere, &mut Actions::default());
        }

        /// How many receipts `link` is given now.
        fn given(&mut self, link: LinkId) -> usize {
            let batch = self.sender.next_batch(self.now, link);
            let is_receipt = |command: &&Command| matches!(command, Command::Control(Channel::Node(OTHER), _));
            batch.iter().filter(is_receipt).count()
        }
    }

    #[test]
    fn in_calm_a_replica_alone_is_given_receipts_and_those_asked_for_again_go_everywhere() {
        let mut calm = Calm::new();
        calm.tell(1, false);
        assert_eq!((calm.given(MASTER), calm.given(REPLICA)), (0, 1));
        calm.sender.answered(calm.now, REPLICA, vec![Answer::Receivers(1)], &mut Actions::default());
        assert_eq!(calm.given(MASTER), 0, "it was told");
        calm.tell(1, true);
        assert_eq!((calm.given(MASTER), calm.given(REPLICA)), (1, 1));
        calm.tell(2, false);
        calm.sender.answered(calm.now, MASTER, vec![Answer::Receivers(1)], &mut Actions::default());
        assert_eq!(calm.given(MASTER), 1, "the replica is not relied on for a while");
    }

    #[test]
    fn receipts_that_a_replica_passes_to_nobody_are_told_by_the_master() {
        type Fault = fn(&mut Calm, &mut Actions<()>);
        let faults: [(&str, Fault); 4] = [
            ("nobody listens there", |calm, actions| {
                calm.sender.answered(calm.now, REPLICA, vec![Answer::Receivers(0)], actions);
            }),
            ("it refuses", |calm, actions| calm.sender.answered(calm.now, REPLICA, vec![Answer::Error], actions)),
            ("it is lost", |calm, actions| calm.sender.link_lost(calm.now, REPLICA, actions)),
            ("it hangs", |calm, actions| {
                calm.now += Duration::from_millis(100);
                calm.sender.tick(calm.now, actions);
            }),
        ];
        for (name, fault) in faults {
            let mut calm = Calm::new();
            calm.tell(1, false);
            assert_eq!((calm.given(MASTER), calm.given(REPLICA)), (0, 1));
            let mut actions = Actions::default();
            fault(&mut calm, &mut actions);
            assert!(actions.links().any(|link| link == MASTER), "{name}");
            assert_eq!(calm.given(MASTER), 1, "{name}");
            calm.tell(2, false);
            calm.sender.answered(calm.now, MASTER, vec![Answer::Receivers(1)], &mut Actions::default());
            assert_eq!(calm.given(MASTER), 1, "{name}: it is not relied on for a while");
        }
    }

    #[test]
    fn without_a_replica_that_has_held_the_master_is_given_receipts() {
        let mut calm = Calm::new();
        calm.sender.link_up(calm.now, REPLICA, &mut Actions::default());
        calm.tell(1, false);
        assert_eq!((calm.given(MASTER), calm.given(REPLICA)), (1, 0));
    }
}
