//! Owns what the clients of a world do: they come, send, read, lose their connections, come again and leave.

use std::sync::Arc;

use uuid::Uuid;

use super::agenda::Event;
use super::{Client, MS, NODES, Person, Planted, Submission, World, limits, story};
use crate::outbox::log::Position;
use crate::outbox::{CloseOrder, Outbox};
use crate::transport::Duty;
use crate::transport::envelope::{Channel, body};
use crate::transport::homes::Resumption;
use crate::transport::sender::Actions;

impl World {
    pub(super) fn join(&mut self) {
        let node = self.random.usize(..NODES);
        if !self.nodes[node].alive || self.now < self.nodes[node].paused_until {
            return;
        }
        let id = Uuid::from_u128(self.random.u128(..));
        let outbox = Arc::new(Outbox::new(id, &limits(), &crate::outbox::tests::unbounded()));
        let registration = Some(self.nodes[node].registry.register(outbox.clone()));
        let client = self.come(id, node, outbox, None);
        self.clients[client].registration = registration;
        self.subscription_changed(node, Channel::Client(id));
        self.after(0, MS, Event::Read { client });
    }

    /// A client that has seen nothing yet.
    fn come(&mut self, id: Uuid, node: usize, outbox: Arc<Outbox>, person: Option<Person>) -> usize {
        let slow = self.random.u8(..6) == 0;
        let since = self.now;
        self.clients.push(Client {
            id,
            node,
            outbox,
            registration: None,
            since,
            slow,
            shown: Vec::new(),
            anew_at: 0,
            gone: false,
            person,
        });
        self.clients.len() - 1
    }

    pub(super) fn join_person(&mut self) {
        let node = self.random.usize(..NODES);
        if !self.nodes[node].alive || self.nodes[node].leaving || self.now < self.nodes[node].paused_until {
            return;
        }
        let id = Uuid::from_u128(self.random.u128(..));
        let outbox = Arc::new(Outbox::resumable(id, 0, &limits(), &crate::outbox::tests::unbounded()));
        let person = Person {
            attachment: 0,
            connection: 0,
            connected: false,
            claiming: false,
            generation: 0,
            had: 0,
            misses: false,
            unanswered: Vec::new(),
        };
        let client = self.come(id, node, outbox.clone(), Some(person));
        self.begin_session(client, node, outbox);
        self.after(0, MS, Event::Read { client });
    }

    /// A session of which nobody has anything.
    pub(super) fn begin_session(&mut self, client: usize, node: usize, outbox: Arc<Outbox>) {
        let id = self.clients[client].id;
        self.nodes[node].registry.keep(outbox.clone());
        self.subscription_changed(node, Channel::Client(id));
        self.subscription_changed(node, Channel::Claim(id));
        let mut actions = Actions::default();
        self.nodes[node].transport.opened(self.instant(), id, &mut actions);
        self.act(node, actions);
        self.attach(client, node, outbox, 0);
    }

    pub(super) fn attach(&mut self, client: usize, node: usize, outbox: Arc<Outbox>, had: Position) {
        let now = self.instant();
        let number = client;
        let client = &mut self.clients[number];
        let Some(person) = &mut client.person else { return };
        // As a registration does it.
        let continues = outbox.continues(person.generation, had);
        let had = if continues { had } else { 0 };
        let Some((attachment, _)) = outbox.attach(now, person.generation, had, false) else {
            // It has just gone elsewhere.
            person.claiming = false;
            return self.after(MS, 10 * MS, Event::Resume { client: number });
        };
        person.attachment = attachment;
        person.generation = outbox.generation();
        person.connection += 1;
        let connection = person.connection;
        (person.connected, person.claiming, person.had) = (true, false, had);
        person.misses |= !continues;
        (client.node, client.outbox) = (node, outbox);
        let id = client.id;
        if !continues {
            // It is told that what was acknowledged before may be missing.
            (client.since, client.anew_at) = (self.now, client.shown.len());
            self.lost += 1;
        }
        self.tell_of(id, || {
            format!("attached to node{node} for the {connection}. time, having {had}, misses nothing: {continues}")
        });
        let Some(person) = &self.clients[number].person else { return };
        // What was not answered goes out again before anything newer.
        for number in person.unanswered.clone() {
            let life = self.nodes[node].life;
            let submission = &mut self.submissions[number];
            (submission.node, submission.life, submission.at) = (node, life, self.now);
            self.submit_one(number);
        }
    }

    /// The connection of a person breaks, or its node asks it to come again. `heard`: the node notices.
    pub(super) fn disconnect(&mut self, client: usize, heard: bool) {
        let now = self.instant();
        let Client { outbox, person: Some(person), .. } = &mut self.clients[client] else { return };
        if !std::mem::take(&mut person.connected) {
            return;
        }
        if heard {
            outbox.detach(now, person.attachment);
        }
        let id = outbox.client();
        self.tell_of(id, || format!("disconnected, heard: {heard}"));
        self.after(MS, 400 * MS, Event::Resume { client });
    }

    pub(super) fn resume(&mut self, client: usize) {
        let Client { id, person: Some(person), .. } = &self.clients[client] else { return };
        let (id, generation, had) = (*id, person.generation, person.had);
        if person.connected || person.claiming {
            return;
        }
        let now = self.now;
        let takes = |node: &usize| {
            let node = &self.nodes[*node];
            node.alive && !node.leaving && node.paused_until <= now
        };
        let able: Vec<usize> = (0..NODES).filter(takes).collect();
        let Some(node) = self.random.choice(&able).copied() else {
            return self.after(50 * MS, 100 * MS, Event::Resume { client });
        };
        let mut actions = Actions::default();
        let here = self.nodes[node].transport.resume(self.instant(), id, generation, &mut actions);
        self.act(node, actions);
        match here {
            Some(Resumption::Here(outbox)) => {
                self.resumed += 1;
                return self.attach(client, node, outbox, had);
            }
            Some(_) => return self.fail(format!("{client}: its newest token was refused")),
            None => {}
        }
        let client_of_id = &mut self.clients[client];
        client_of_id.node = node;
        if let Some(person) = &mut client_of_id.person {
            person.claiming = true;
        }
        let mut actions = Actions::default();
        self.nodes[node].transport.claim(self.instant(), id, generation, &mut actions);
        self.act(node, actions);
    }

    /// A claim of `node` has come to an end.
    pub(super) fn claim_ended(&mut self, node: usize, id: Uuid, resumption: Resumption) {
        let wanted = |client: &Client| {
            client.id == id && client.node == node && client.person.as_ref().is_some_and(|p| p.claiming)
        };
        let Some(client) = self.clients.iter().position(wanted) else { return };
        self.tell_of(id, || format!("the claim of node{node} ends: {}", story::named(&resumption)));
        let had = self.clients[client].person.as_ref().map_or(0, |person| person.had);
        match resumption {
            Resumption::Here(outbox) => {
                self.resumed += 1;
                self.attach(client, node, outbox, had);
            }
            Resumption::Refused => self.fail(format!("{client}: its newest token was refused")),
            Resumption::Unsure => {
                if let Some(person) = &mut self.clients[client].person {
                    person.claiming = false;
                }
                self.after(MS, 250 * MS, Event::Resume { client });
            }
            Resumption::Lost if self.nodes[node].transport.home(id).is_some() => {
                self.fail(format!("{client}: node{node} has its session, and called it lost"));
            }
            Resumption::Lost => {
                let generation = self.clients[client].person.as_ref().map_or(0, |person| person.generation);
                let now = self.instant();
                let outbox = Arc::new(Outbox::anew(now, id, generation, &limits(), &crate::outbox::tests::unbounded()));
                self.begin_session(client, node, outbox);
            }
        }
    }

    pub(super) fn leave(&mut self, client: usize) {
        let (node, id) = (self.clients[client].node, self.clients[client].id);
        self.show(client, usize::MAX);
        if let Some(person) = &self.clients[client].person {
            if !person.connected || !self.nodes[node].alive {
                return;
            }
            let outbox = self.clients[client].outbox.clone();
            outbox.detach(self.instant(), person.attachment);
            if outbox.is_moving() {
                return self.after(MS, 400 * MS, Event::Resume { client });
            }
            self.clients[client].person = None;
            outbox.discard();
            self.nodes[node].registry.remove(&outbox);
            self.subscription_changed(node, Channel::Claim(id));
            let mut actions = Actions::default();
            self.nodes[node].transport.ended(self.instant(), &outbox, &mut actions);
            self.act(node, actions);
        }
        let client = &mut self.clients[client];
        client.gone = true;
        client.outbox.close(CloseOrder::Stop);
        client.outbox.discard();
        client.registration = None;
        self.subscription_changed(node, Channel::Client(id));
    }

    pub(super) fn submit(&mut self) {
        let living: Vec<usize> = (0..self.clients.len()).filter(|client| !self.clients[*client].gone).collect();
        let can_send = |client: &&usize| self.clients[**client].person.as_ref().is_none_or(|person| person.connected);
        let senders: Vec<usize> = living.iter().filter(can_send).copied().collect();
        let Some(sender) = self.random.choice(&senders).copied() else { return };
        let node = self.clients[sender].node;
        if self.nodes[node].paused_until > self.now || !self.nodes[node].alive {
            return;
        }
        let absent = self.random.u8(..10) == 0;
        let receiver = if absent { None } else { self.random.choice(&living).copied() };
        let to = receiver.map_or(Uuid::from_u128(self.random.u128(..)), |receiver| self.clients[receiver].id);
        // Often a few at once, so that lanes have something under way together.
        for _ in 0..self.random.usize(1..=6) {
            let number = self.submissions.len();
            let life = self.nodes[node].life;
            self.submissions.push(Submission {
                sender,
                to,
                receiver,
                node,
                life,
                first: self.now,
                at: self.now,
                outcome: None,
            });
            if let Some(person) = &mut self.clients[sender].person {
                person.unanswered.push(number);
            }
            self.submit_one(number);
        }
    }

    pub(super) fn submit_one(&mut self, number: usize) {
        let Submission { sender, to, node, .. } = self.submissions[number];
        let (from, person) = (self.clients[sender].id, &self.clients[sender].person);
        let mut id = Uuid::from_u128(number as u128);
        if person.is_some() {
            id = uuid::Builder::from_custom_bytes(id.into_bytes()).into_uuid();
        }
        let asked = (number, person.as_ref().map_or(0, |person| person.connection));
        self.tell_of(to, || format!("{number} is sent by {sender} on node{node}"));
        let bytes = body(id, from, b"x");
        let mut actions = Actions::default();
        self.nodes[node].transport.sender().submit(
            self.instant(),
            from,
            Channel::Client(to),
            bytes,
            Duty::Send(asked),
            &mut actions,
        );
        self.act(node, actions);
    }

    pub(super) fn show(&mut self, client: usize, most: usize) {
        if self.planted == Planted::ShownBeforeCopied
            && let Some((_, term)) = self.clients[client].outbox.standby()
        {
            self.clients[client].outbox.confirm(term, Position::MAX);
        }
        let attachment = match &self.clients[client].person {
            None => 0,
            Some(person) if person.connected => person.attachment,
            Some(_) => return,
        };
        let batch = self.clients[client].outbox.take(attachment, most);
        for (delivery, at) in batch.deliveries.into_iter().zip(0..) {
            if let (Some(first), Some(person)) = (batch.first, &mut self.clients[client].person) {
                if first + at <= person.had {
                    continue;
                }
                let may_miss = std::mem::take(&mut person.misses);
                if first + at != person.had + 1 && !may_miss {
                    let (had, seq) = (person.had, first + at);
                    self.fail(format!("{client}: {seq} came after {had}"));
                    return;
                }
                person.had = first + at;
            }
            let number = delivery.id.as_u128() as u32 as usize;
            // With what a session had taken, the memory is gone of what may be asked for again, or is on its way still.
            let was_before = self.submissions[number].at < self.clients[client].since;
            let from = if delivery.may_come_again() || was_before { self.clients[client].anew_at } else { 0 };
            if self.clients[client].shown[from..].contains(&number) {
                self.fail(format!("{number} was shown twice"));
            }
            self.clients[client].shown.push(number);
            self.tell_of(self.clients[client].id, || {
                format!("is shown {number}, number {:?}", batch.first.map(|first| first + at))
            });
        }
        if self.clients[client].person.is_some() {
            if batch.close.is_some() {
                self.disconnect(client, true);
            } else if self.random.bool() {
                let now = self.instant();
                let Client { outbox, person: Some(person), .. } = &self.clients[client] else { return };
                outbox.prove(person.attachment);
                outbox.had(now, person.attachment, person.had);
            }
        }
    }
}
