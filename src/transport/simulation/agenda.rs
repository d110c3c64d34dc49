//! Owns what is to happen in a world, and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;

use super::Op;
use crate::transport::envelope::{Channel, Number};
use crate::transport::sender::Answer;

#[derive(Debug)]
pub(super) enum Event {
    /// Commands reach a server.
    Arrive {
        node: usize,
        server: usize,
        link: u64,
        commands: Vec<Op>,
    },
    /// Answers reach a node.
    Answers {
        node: usize,
        server: usize,
        link: u64,
        answers: Vec<Answer>,
        numbers: Vec<Option<Number>>,
    },
    /// A message reaches a subscriber.
    Push {
        node: usize,
        server: usize,
        link: u64,
        channel: Channel,
        payload: Bytes,
    },
    /// Subscriptions are confirmed: the last ones of a replay, if `all`.
    Confirmed {
        node: usize,
        server: usize,
        link: u64,
        all: bool,
    },
    /// What the master was told reaches a replica.
    Replicated {
        server: usize,
        life: u64,
        channel: Channel,
        payload: Bytes,
    },
    Connect {
        node: usize,
        server: usize,
    },
    Lost {
        node: usize,
        server: usize,
        link: u64,
    },
    /// A node hears who is master.
    Told {
        node: usize,
        master: usize,
    },
    Tick {
        node: usize,
        life: u64,
    },
    Read {
        client: usize,
    },
    /// A person connects again.
    Resume {
        client: usize,
    },
    /// A node that leaves looks whether it may.
    Leave {
        node: usize,
        life: u64,
        until: u64,
    },
    Submit,
    Fault,
    Elect,
    Start {
        node: usize,
    },
    Revive {
        server: usize,
    },
}

/// What is to happen, and when: what was put in first is first, of two at one time.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    order: u64,
    times: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
}

impl Agenda {
    pub(super) fn put(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.put_back(at, self.order, event);
    }

    /// The same for what has come, and must wait: it stays before what came later.
    pub(super) fn put_back(&mut self, at: u64, order: u64, event: Event) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.times.push(Reverse((at, order, place)));
    }

    pub(super) fn next(&mut self, end: u64) -> Option<(u64, u64, Event)> {
        self.times.peek().filter(|Reverse((at, ..))| *at <= end)?;
        let Reverse((at, order, place)) = self.times.pop()?;
        self.free.push(place);
        self.events[place].take().map(|event| (at, order, event))
    }
}
