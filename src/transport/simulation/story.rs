//! Owns the story of one client in a world, for whoever looks for what went wrong there: what it did, what nodes said and
//! heard of it, and how each of them had its session.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{MS, Node, World};
use crate::transport::envelope::{Channel, Envelope, Frame, Place, Tag, decode};
use crate::transport::homes::Resumption;
use crate::transport::record::{self, Opening, Record, Taken};

#[derive(Debug)]
pub(super) struct Story {
    client: Uuid,
    /// How each node had it last.
    nodes: Vec<String>,
    /// Every run of a node that there was.
    names: BTreeMap<Tag, String>,
    /// What has been told: copies are not told again.
    told: RefCell<BTreeSet<String>>,
}

/// Tells the story that `TEXTO_STORY` names, if it does: of client `c7`, or of the receiver of message `81`.
pub(super) fn tell_wanted(world: impl Fn() -> World) {
    let Ok(wanted) = std::env::var("TEXTO_STORY") else { return };
    let mut first = world();
    first.play();
    let client = match wanted.strip_prefix('c') {
        Some(client) => client.parse().ok().and_then(|client: usize| Some(first.clients.get(client)?.id)),
        None => wanted.parse().ok().and_then(|number: usize| Some(first.submissions.get(number)?.to)),
    };
    let mut again = world();
    again.story = Some(Story::of(client.unwrap_or_else(|| panic!("{wanted} is no client, nor a message"))));
    again.play();
}

/// A generation, for people: moves, and connections.
fn generation(generation: u64) -> String {
    match generation {
        u64::MAX => "any".to_owned(),
        _ => {
            let [begun, moves, standby] = [48, 32, 20].map(|bits| generation >> bits & 0xffff);
            let by = match standby & 0x7ff {
                0 | 0x400 => String::new(),
                standby => format!(" by standby {standby}"),
            };
            format!("{begun}.{moves}.{}{by}", generation & 0xf_ffff)
        }
    }
}

/// Where a message stands in its lane, for people.
fn place(Place { number, previous, floor, attempt }: Place) -> String {
    format!("#{number} (after {previous}, floor {floor}, attempt {attempt})")
}

impl Story {
    fn of(client: Uuid) -> Self {
        Self { client, nodes: Vec::new(), names: BTreeMap::new(), told: RefCell::default() }
    }

    fn name(&self, tag: Tag) -> &str {
        self.names.get(&tag).map_or("nobody", String::as_str)
    }

    fn frame(&self, channel: Channel, payload: &[u8]) -> Option<String> {
        let client = self.client;
        let said = match decode(payload).ok()? {
            Frame::Message(envelope) if envelope.sender == client && channel != Channel::Client(client) => {
                self.letter(&envelope)
            }
            Frame::Message(envelope) if channel == Channel::Client(client) => {
                format!("{} {}: {}", self.name(envelope.tag), place(envelope.place), envelope.id.as_u128() as u32)
            }
            Frame::Held(tag, holding) if holding.client == client => format!(
                "{} holds it in {}, term {}, nonce {:x}",
                self.name(tag),
                generation(holding.generation),
                holding.term,
                holding.nonce
            ),
            Frame::Bye(tag) => format!("bye of {}", self.name(tag)),
            Frame::Leaving(tag) => format!("{} leaves", self.name(tag)),
            _ => return None,
        };
        let to = match channel {
            Channel::Node(tag) => self.name(tag),
            Channel::Claim(_) => "claims",
            Channel::Client(_) => "client",
            Channel::Nodes => "all",
        };
        Some(format!("to {to}, {said}"))
    }

    fn letter(&self, envelope: &Envelope<'_>) -> String {
        let said = match record::decode(envelope.text) {
            Some((term, Record::Open(Opening { generation: known, proven, had, last, .. }))) => {
                let (known, proven) = (generation(known), generation(proven));
                format!("open, term {term}, {known}, proven {proven}, {had}..{last}")
            }
            Some((term, Record::Message(Taken { position, .. }))) => {
                format!("message {} at {position}, term {term}", envelope.id.as_u128() as u32)
            }
            Some((term, Record::Had { had, generation: known, .. })) => {
                format!("had {had} in {}, term {term}", generation(known))
            }
            Some((term, Record::Promote { generation: new, .. })) => {
                format!("promote, term {term}, to {}", generation(new))
            }
            Some((_, Record::Claim(known))) => format!("claim of {}", generation(known)),
            other => format!("{other:?}"),
        };
        format!("{} {}: {said}", self.name(envelope.tag), place(envelope.place))
    }
}

/// How a node has the session.
fn condition(node: &Node, story: &Story) -> String {
    let client = story.client;
    let mut parts = Vec::new();
    if !node.alive {
        parts.push("dead".to_owned());
    }
    if node.leaving {
        parts.push("leaving".to_owned());
    }
    if let Some(outbox) = node.registry.get(client).filter(|outbox| outbox.is_resumable()) {
        let standby = outbox.standby().map(|(tag, term)| format!("{} of term {term}", story.name(tag)));
        let state = if outbox.is_moving() { "moving" } else { "home" };
        parts.push(format!("{state} {}, {standby:?}, keeps {}", generation(outbox.generation()), outbox.kept()));
    } else if node.registry.get(client).is_some() {
        parts.push("has it".to_owned());
    }
    let copy = node.registry.with_copy(client, |copy| {
        let whole = if copy.is_complete() { "" } else { " in part" };
        let (home, known) = (story.name(copy.home), generation(copy.generation));
        format!("copy{whole} of {home}, {known}, term {}, keeps {}", copy.term, copy.kept().0)
    });
    parts.extend(copy);
    parts.extend(node.transport.story(client));
    parts.join("; ")
}

impl World {
    pub(super) fn tell(&self, text: impl FnOnce() -> String) {
        if self.story.is_some() {
            println!("{:>8.1} {}", self.now as f64 / MS as f64, text());
        }
    }

    /// The same, if it concerns the client.
    pub(super) fn tell_of(&self, client: Uuid, text: impl FnOnce() -> String) {
        if self.story.as_ref().is_some_and(|story| story.client == client) {
            self.tell(text);
        }
    }

    /// A node hears something.
    pub(super) fn tell_heard(&self, node: usize, channel: Channel, payload: &[u8]) {
        self.tell_frame(channel, payload, || format!("node{node} hears"));
    }

    /// A server is given something to publish.
    pub(super) fn tell_published(&self, server: usize, channel: Channel, payload: &[u8], receivers: usize) {
        self.tell_frame(channel, payload, || format!("server{server} has for {receivers}"));
    }

    fn tell_frame(&self, channel: Channel, payload: &[u8], who: impl FnOnce() -> String) {
        let Some(story) = &self.story else { return };
        let Some(said) = story.frame(channel, payload).map(|said| format!("  {}: {said}", who())) else { return };
        if story.told.borrow_mut().insert(said.clone()) {
            self.tell(|| said);
        }
    }

    /// What has changed for the client.
    pub(super) fn tell_changes(&mut self) {
        let Some(mut story) = self.story.take() else { return };
        for (node, state) in self.nodes.iter().enumerate() {
            story.names.entry(state.tag).or_insert_with(|| format!("node{node}/{}", state.life));
        }
        story.nodes.resize(self.nodes.len(), String::new());
        for (node, state) in self.nodes.iter().enumerate() {
            let now = condition(state, &story);
            if story.nodes[node] != now {
                println!("{:>8.1}     node{node}: {now}", self.now as f64 / MS as f64);
                story.nodes[node] = now;
            }
        }
        self.story = Some(story);
    }
}

pub(super) fn named(resumption: &Resumption) -> &'static str {
    match resumption {
        Resumption::Here(_) => "it is here",
        Resumption::Refused => "refused",
        Resumption::Lost => "lost",
        Resumption::Unsure => "unsure",
    }
}
