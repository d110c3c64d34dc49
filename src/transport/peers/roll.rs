//! Owns the list of the other nodes, for people: what each is called, and whether it lives.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{GONE, Peers, SILENT};
use crate::transport::envelope::Tag;

/// Another node, as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// This run of it.
    pub tag: Tag,
    /// What it calls itself.
    pub name: String,
    /// Whether it lives.
    pub life: Life,
    /// Since it was heard last.
    pub silence: Duration,
}

/// Whether a node lives, as far as can be seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// It says hello.
    Alive,
    /// It says hello, and that it will leave.
    Leaving,
    /// It says nothing any more.
    Silent,
    /// It is subscribed nowhere.
    Gone,
    /// This node hears nobody, not even itself.
    Unknown,
}

impl Peers {
    /// The other nodes that are not forgotten yet, in the order of their names.
    pub fn roll(&self, now: Instant) -> Vec<Member> {
        let hears = self.hears_itself(now);
        let inner = self.read();
        let own = inner.own_hello(self.me);
        let others = inner.known.iter().filter(|(tag, _)| **tag != self.me).map(|(tag, peer)| Member {
            tag: *tag,
            name: peer.name.clone(),
            life: match () {
                () if !hears => Life::Unknown,
                () if peer.unseen >= GONE => Life::Gone,
                () if own.saturating_duration_since(peer.heard) >= SILENT => Life::Silent,
                () if peer.leaving => Life::Leaving,
                () => Life::Alive,
            },
            silence: now.saturating_duration_since(peer.heard),
        });
        let mut members: Vec<_> = others.collect();
        members.sort_by(|one, other| (&one.name, one.tag).cmp(&(&other.name, other.tag)));
        members
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::transport::envelope::Hello;

    fn said(name: &str) -> Hello {
        Hello { floor: 0, writes: 2, reads: 2, name: name.to_owned() }
    }

    #[test]
    fn others_are_called_by_their_names_and_are_dead_only_for_who_hears() {
        let start = Instant::now();
        let peers = Peers::new(start, 1);
        for (tag, name) in [(2, "zoe"), (3, "adam")] {
            let nonce = peers.question(start, tag, false).unwrap();
            peers.answered(start, tag, nonce, &said(name));
        }
        let roll = |now| -> Vec<_> {
            let members = peers.roll(now);
            members.into_iter().map(|member| (member.name, member.life)).collect()
        };
        let both = |adam, zoe| vec![("adam".to_owned(), adam), ("zoe".to_owned(), zoe)];
        assert_eq!(roll(start), both(Life::Alive, Life::Alive));
        peers.leaving(3);
        peers.looked(&[2], &HashSet::new());
        assert_eq!(roll(start), both(Life::Leaving, Life::Alive), "one look is none");
        peers.looked(&[2], &HashSet::new());
        assert_eq!(roll(start), both(Life::Leaving, Life::Gone));

        let later = start + SILENT;
        assert_eq!(roll(later), both(Life::Unknown, Life::Unknown), "it does not hear itself either");
        peers.hello(later, 1, &said(""));
        assert_eq!(roll(later), both(Life::Silent, Life::Gone));
    }
}
