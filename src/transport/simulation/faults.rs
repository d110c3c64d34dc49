//! Owns what goes wrong in a world.

use super::agenda::Event;
use super::{Faults, MS, NODES, SECOND, SERVERS, World};
use crate::transport::sender::Actions;

impl World {
    pub(super) fn fault(&mut self) {
        let (node, server) = (self.random.usize(..NODES), self.random.usize(..SERVERS));
        let which = match self.faults {
            Faults::All => self.random.u8(..21),
            Faults::OneNode => *self.random.choice(&[5, 13, 13, 16, 18]).unwrap_or(&13),
        };
        match which {
            0..=4 => self.cut(node, server),
            5 | 6 => {
                // Long enough for its subscriptions to be dropped, sometimes.
                let now = self.now;
                let most = if self.faults == Faults::All { 900 * MS } else { 2 * SECOND };
                let pause = self.random.u64(50 * MS..most);
                self.nodes[node].paused_until = self.nodes[node].paused_until.max(now + pause);
                self.tell(|| format!("node{node} stands still for {} ms", pause / MS));
                if pause > 300 * MS {
                    // Some clients notice by silence.
                    for client in 0..self.clients.len() {
                        if self.clients[client].node == node && self.random.bool() {
                            self.disconnect(client, false);
                        }
                    }
                }
                if self.random.bool() {
                    (0..SERVERS).for_each(|server| self.cut(node, server));
                }
            }
            7 | 8 if self.servers[server].alive && self.servers.iter().filter(|server| server.alive).count() > 1 => {
                self.tell(|| format!("server{server} dies"));
                self.servers[server].alive = false;
                (0..NODES).for_each(|node| self.cut(node, server));
                self.servers[server].subscribers.clear();
                self.after(200 * MS, 3 * SECOND, Event::Revive { server });
                if server == self.master {
                    self.after(300 * MS, 1500 * MS, Event::Elect);
                }
            }
            9 => {
                self.servers[server].hung_at = self.now;
                let until = self.now + self.random.u64(50 * MS..1500 * MS);
                self.tell(|| format!("server{server} hangs until {} ms", until / MS));
                self.servers[server].hung_until = self.servers[server].hung_until.max(until);
            }
            10 | 11 => {
                self.servers[server].lag = if self.random.bool() { self.random.u64(0..8 * SECOND) } else { 0 };
                self.tell(|| format!("server{server} lags by {} ms", self.servers[server].lag / MS));
            }
            12 => self.after(0, MS, Event::Elect),
            13 => self.kill(node),
            14 => self.join(),
            15 => self.join_person(),
            16 | 17 => self.drop_persons(),
            18 => self.leave_node(node),
            _ => {
                let living: Vec<usize> = (0..self.clients.len()).filter(|client| !self.clients[*client].gone).collect();
                if living.len() > NODES {
                    let client = self.random.choice(&living).copied().unwrap_or(0);
                    if self.nodes[self.clients[client].node].paused_until <= self.now {
                        self.leave(client);
                    }
                }
            }
        }
    }

    /// The node dies.
    pub(super) fn kill(&mut self, node: usize) {
        if !self.nodes[node].alive || self.nodes.iter().filter(|node| node.alive).count() == 1 {
            return;
        }
        self.tell(|| format!("node{node} dies"));
        self.nodes[node].alive = false;
        for server in 0..SERVERS {
            let link = std::mem::take(&mut self.nodes[node].links[server]);
            self.servers[server].subscribers.values_mut().for_each(|set| _ = set.remove(&(node, link)));
            self.nodes[node].synced_since[server] = None;
        }
        for client in 0..self.clients.len() {
            if self.clients[client].node != node {
                continue;
            }
            match &mut self.clients[client].person {
                None => {
                    self.clients[client].gone = true;
                    self.clients[client].registration = None;
                }
                Some(person) => {
                    person.connected = false;
                    person.claiming = false;
                    self.after(MS, 400 * MS, Event::Resume { client });
                }
            }
        }
        self.after(100 * MS, 2 * SECOND, Event::Start { node });
    }

    /// Connections of persons break.
    pub(super) fn drop_persons(&mut self) {
        for client in 0..self.clients.len() {
            if self.random.u8(..3) == 0 {
                let heard = self.random.bool();
                self.disconnect(client, heard);
            }
        }
    }

    /// The node is asked to leave.
    pub(super) fn leave_node(&mut self, node: usize) {
        let others =
            (0..NODES).filter(|other| *other != node && self.nodes[*other].alive && !self.nodes[*other].leaving);
        if !self.nodes[node].alive || self.nodes[node].leaving || others.count() == 0 {
            return;
        }
        self.nodes[node].leaving = true;
        let mut actions = Actions::default();
        self.nodes[node].transport.leave(&mut actions);
        self.act(node, actions);
        let (life, until) = (self.nodes[node].life, self.now + 4 * SECOND);
        self.after(300 * MS, 500 * MS, Event::Leave { node, life, until });
    }

    pub(super) fn try_to_leave(&mut self, node: usize, life: u64, until: u64) {
        if !self.nodes[node].alive || self.nodes[node].life != life {
            return;
        }
        for client in 0..self.clients.len() {
            if self.clients[client].node == node && self.clients[client].person.is_none() && !self.clients[client].gone
            {
                self.leave(client);
            }
        }
        let mut clients = self.nodes[node].registry.clients();
        clients.sort_unstable();
        for id in clients {
            let mut actions = Actions::default();
            self.nodes[node].transport.move_away(self.instant(), id, &mut actions);
            self.act(node, actions);
        }
        let (copies, moves) = self.nodes[node].transport.kept();
        let idle = self.nodes[node].registry.is_empty();
        // One that is the only one left stays until another has begun.
        let is_last = self.nodes.iter().filter(|node| node.alive).count() == 1;
        if is_last || (copies + moves > 0 || !idle) && self.now < until {
            return self.after(20 * MS, 50 * MS, Event::Leave { node, life, until });
        }
        let mut actions = Actions::default();
        self.nodes[node].transport.bye(&mut actions);
        self.act(node, actions);
        self.kill(node);
    }
}
