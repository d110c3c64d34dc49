//! Owns the Redis servers of a world: what they make of commands, and who hears what is published.

use bytes::Bytes;

use super::agenda::Event;
use super::{MS, Op, Planted, SERVERS, Server, World};
use crate::transport::envelope::{Channel, Frame, decode, head};
use crate::transport::sender::{Answer, Command};

impl World {
    /// The connection ends; both sides notice, the node a little later.
    pub(super) fn cut(&mut self, node: usize, server: usize) {
        self.tell(|| format!("cut: node{node} and server{server}"));
        let link = self.nodes[node].links[server];
        if link != 0 {
            self.servers[server].closed.insert(link);
            self.servers[server].subscribers.values_mut().for_each(|set| _ = set.remove(&(node, link)));
            self.after(0, 30 * MS, Event::Lost { node, server, link });
        }
    }

    pub(super) fn publish(&mut self, server: usize, channel: Channel, payload: &Bytes) -> u64 {
        let subscribers: Vec<_> =
            self.servers[server].subscribers.get(&channel).into_iter().flatten().copied().collect();
        self.tell_published(server, channel, payload, subscribers.len());
        for (node, link) in &subscribers {
            let mut payload = payload.clone();
            if self.planted == Planted::CopyShown && matches!(channel, Channel::Client(_)) {
                let times = self.copies.entry((*node, payload.slice(16..24))).or_default();
                *times += 1;
                if *times > 1 {
                    let mut other = payload.to_vec();
                    other[17] = u8::try_from(*times).unwrap_or(u8::MAX);
                    payload = other.into();
                }
            }
            let (node, link) = (*node, *link);
            self.pipe(link, false, Event::Push { node, server, link, channel, payload });
        }
        if server == self.master {
            for replica in (0..SERVERS).filter(|replica| *replica != server) {
                let Server { alive, life, lag, .. } = self.servers[replica];
                if alive {
                    // In order: a replica has one link to its master.
                    let at = (self.now + 10 + lag).max(self.servers[replica].replicated_until);
                    self.servers[replica].replicated_until = at;
                    self.at(at, Event::Replicated { server: replica, life, channel, payload: payload.clone() });
                }
            }
        }
        subscribers.len() as u64
    }

    pub(super) fn execute(&mut self, node: usize, server: usize, link: u64, commands: Vec<Op>) {
        let mut answers = Vec::new();
        let mut numbers = Vec::new();
        for op in commands {
            match op {
                Op::Subscribe(channels, all) => {
                    for channel in channels {
                        self.servers[server].subscribers.entry(channel).or_default().insert((node, link));
                    }
                    self.pipe(link, false, Event::Confirmed { node, server, link, all });
                }
                Op::Unsubscribe(channel) => {
                    if let Some(set) = self.servers[server].subscribers.get_mut(&channel) {
                        set.remove(&(node, link));
                    }
                }
                Op::Do(Command::Message(channel, mut place, body), tag) => {
                    numbers.push(Some(place.number));
                    if self.planted == Planted::ForgottenPredecessor {
                        place.previous = 0;
                    }
                    let payload = Bytes::from([&head(tag, place)[..], &body].concat());
                    answers.push(Answer::Receivers(self.publish(server, channel, &payload)));
                }
                Op::Do(Command::Control(channel, bytes), _) => {
                    numbers.push(None);
                    if self.planted == Planted::NobodyYields && matches!(decode(&bytes), Ok(Frame::Held(..))) {
                        answers.push(Answer::Receivers(1));
                        continue;
                    }
                    answers.push(Answer::Receivers(self.publish(server, channel, &bytes)));
                }
                Op::Do(Command::Count(channels), _) => {
                    numbers.push(None);
                    let count =
                        |channel| self.servers[server].subscribers.get(channel).map_or(0, |set| set.len() as u64);
                    answers.push(Answer::Counts(channels.iter().map(count).collect()));
                }
            }
        }
        if !answers.is_empty() {
            self.pipe(link, false, Event::Answers { node, server, link, answers, numbers });
        }
    }
}
