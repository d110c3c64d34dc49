//! Owns the comparison of session keys: a client keeps its id at each node that knows the key of its token.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::{info, warn};

use crate::operate::repeats::Repeats;
use crate::resume::keys::Keys;
use crate::resume::token::Fingerprint;
use crate::transport::envelope::{KeyList, Tag};

/// The keys of this node, held against those of the others.
#[derive(Debug)]
pub(super) struct Comparison {
    keys: Keys,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    edition: u64,
    own: Vec<Fingerprint>,
    /// Who signs with a key that is not known here.
    strange: BTreeSet<(Tag, Fingerprint)>,
    said: Repeats,
}

impl Comparison {
    pub(super) fn new(keys: Keys) -> Self {
        let own = keys.fingerprints();
        let inner = Inner { edition: 1, own, strange: BTreeSet::new(), said: Repeats::default() };
        Self { keys, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No state is left half-changed by the code that holds this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be said of this node's keys: a number that grows when they change, and which they are now.
    pub(super) fn own(&self) -> (u64, Vec<Fingerprint>) {
        let mut inner = self.lock();
        let now = self.keys.fingerprints();
        if inner.own != now {
            inner.own = now;
            inner.edition += 1;
        }
        (inner.edition, inner.own.clone())
    }

    /// Warns of nodes whose tokens mean nothing here. Returns how many there are.
    pub(super) fn compare(&self, now: Instant, others: &[(Tag, KeyList)]) -> usize {
        let mut inner = self.lock();
        let mut strange = BTreeSet::new();
        for (tag, KeyList { keys, name, .. }) in others {
            let Some(signs) = keys.first().filter(|key| !inner.own.contains(key)) else { continue };
            strange.insert((*tag, *signs));
            // Without a file this node has told at its start what that means.
            let is_news = self.keys.are_shared() && !inner.strange.contains(&(*tag, *signs));
            if is_news && let Some(again) = inner.said.note(now, name) {
                warn!(
                    node = name,
                    key = %signs,
                    "another node signs resume tokens with a key that this one does not know: clients that come from there \
                     will be strangers here, with new ids. Give all nodes the same --session-key-file; a new key goes last \
                     everywhere before it goes first{again}"
                );
            }
        }
        if self.keys.are_shared() && strange.is_empty() && !inner.strange.is_empty() {
            info!("the keys that other nodes sign resume tokens with are known here now");
        }
        inner.strange = strange;
        inner.strange.len()
    }
}
