//! Owns how a session is called to the node where its client is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::doubts::Doubt;
use super::moves::{Goal, MoveReason};
use super::{DISTRUST, Homes};
use crate::outbox::log::{ANY, is_past};
use crate::outbox::{CloseOrder, Outbox};
use crate::transport::envelope::{self, Channel, Decision, Number, Place, Tag};
use crate::transport::inbox::Room;
use crate::transport::peers::Standing;
use crate::transport::record::{self, Record};
use crate::transport::sender::Actions;
use crate::transport::{Duty, Gathered, Transport};

/// A home that is asked whether it lives answers within this, or hangs.
const ANSWER_WITHIN: Duration = Duration::from_millis(50);
/// A claim that was not repeated for so long has been answered by somebody.
pub(super) const KNOCK: Duration = Duration::from_secs(1);
/// A claim that was heard, and led to nothing for so long, is made again.
pub(super) const CLAIM_AGAIN: Duration = Duration::from_millis(500);

/// What became of a claim.
#[derive(Clone, Debug)]
pub enum Resumption {
    /// The session is here, with all that was acknowledged.
    Here(Arc<Outbox>),
    /// Its client has a newer token.
    Refused,
    /// Nobody has it any more, or nobody could vouch for it in time.
    Lost,
    /// Nobody could be asked, for this node is cut off, or stood still a moment ago; or it could not come here in time.
    Unsure,
}

/// A claim, as it is heard.
#[derive(Clone, Copy, Debug)]
pub(in crate::transport) struct Call {
    /// The node that wants the session.
    pub(in crate::transport) tag: Tag,
    /// Where the claim stands in its lane.
    pub(in crate::transport) place: Place,
    /// Of the client's token.
    pub(in crate::transport) generation: u64,
}

/// A claim that this node has heard as the standby.
#[derive(Clone, Copy, Debug)]
pub(super) struct Knock {
    pub(super) call: Call,
    pub(super) at: Instant,
    /// When the home was asked whether it lives.
    pub(super) asked: Option<Instant>,
}

/// A session that is wanted here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) generation: u64,
    pub(super) until: Instant,
    /// When it is made again, for somebody said that it comes, or what nobody said was not known.
    pub(super) again: Option<Instant>,
    /// Somebody has it, or had a moment ago.
    pub(super) exists: bool,
}

/// What a claim says of the generations that there have been: nothing, if it goes by credentials.
fn told(generation: u64) -> u64 {
    if generation == ANY { 0 } else { generation }
}

/// The lane of claims with a token: that an older one is refused says nothing of the next.
fn lane(client: Uuid, generation: u64) -> Uuid {
    Uuid::from_u128(client.as_u128() ^ u128::from(generation))
}

/// A claim is decided by whoever hears it, before.
pub(super) struct Bell(bool);

impl Room<()> for Bell {
    fn may_wait(&mut self, (): &()) -> bool {
        false
    }
    fn waits_no_more(&mut self, (): &()) {}
    fn admit(&mut self, _: Number, (): ()) -> bool {
        self.0
    }
}

impl Homes {
    /// The claim that is answered by what becomes of one with a token of `generation`.
    pub(super) fn claim_of(&mut self, client: Uuid, generation: u64) -> Option<&mut Claim> {
        self.claims.get_mut(&client).filter(|claim| claim.generation == generation)
    }
}

impl<R> Transport<R> {
    /// The session of `client` for one that has a token of `generation`, if this node is its home.
    pub fn resume(
        &self,
        now: Instant,
        client: Uuid,
        generation: u64,
        actions: &mut Actions<Duty<R>>,
    ) -> Option<Resumption> {
        let outbox = self.home(client)?;
        let mut homes = self.homes();
        // It is claimed, and found here once that is sure. As long as nobody can be asked, what is here is shown: its standby
        // has all of that.
        if !homes.is_cut_off && homes.doubted.contains_key(&client) {
            return None;
        }
        if is_past(outbox.generation(), generation) {
            self.give_up(now, &mut homes, client, actions);
            return None;
        }
        Some(if outbox.refuses(generation) { Resumption::Refused } else { Resumption::Here(outbox) })
    }

    /// Has the session of `client`, for which there is a token of `generation`, come here. What becomes of it is among
    /// the `claims` of some later actions.
    pub fn claim(&self, now: Instant, client: Uuid, generation: u64, actions: &mut Actions<Duty<R>>) {
        let mut homes = self.homes();
        let until = now + self.times.send;
        homes.claims.insert(client, Claim { generation, until, again: None, exists: false });
        self.submit_claim(now, client, generation, actions);
    }

    pub(super) fn submit_claim(&self, now: Instant, client: Uuid, generation: u64, actions: &mut Actions<Duty<R>>) {
        let record = record::encode(0, &Record::Claim(generation));
        let body = envelope::body(Uuid::nil(), client, &record);
        self.sender().submit(
            now,
            lane(client, generation),
            Channel::Claim(client),
            body,
            Duty::Claim { client, generation },
            actions,
        );
    }

    /// The node `tag` wants the session of `client` for one that has a token of `generation`.
    pub(in crate::transport) fn claimed(
        &self,
        now: Instant,
        client: Uuid,
        call: Call,
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) {
        let Call { tag, place, generation } = call;
        let mut homes = self.homes();
        let mut home = self.home(client);
        // Its client has been elsewhere since.
        if home.as_ref().is_some_and(|outbox| is_past(outbox.generation(), generation)) {
            return self.give_up(now, &mut homes, client, actions);
        }
        let copy = self.registry.with_copy(client, |copy| (copy.home, copy.generation));
        if copy.is_some_and(|(_, known)| is_past(known, generation)) {
            return self.drop_copy(client, actions);
        }
        if home.is_none()
            && let Some((its_home, _)) = copy
            && its_home != tag
        {
            let knock = homes.knocks.entry(client).or_insert(Knock { call, at: now, asked: None });
            (knock.call, knock.at) = (call, now);
            // A home that lives answers the claim at once. One that answers neither that nor this node hangs, and nothing
            // was acknowledged without this node.
            let hangs = knock.asked.is_some_and(|at| now.saturating_duration_since(at) >= ANSWER_WITHIN);
            if place.attempt > 0 && knock.asked.is_none() {
                knock.asked = Some(now);
                self.question(client, Channel::Node(its_home), 0, actions);
            }
            let is_over = (hangs || self.peers.is_gone(its_home)) && self.is_awake(now, &mut homes);
            if is_over && self.may_take_over(now, &homes, client) {
                let reason = if self.peers.hangs(its_home) { MoveReason::HomeHung } else { MoveReason::HomeGone };
                homes.distrusted.insert(its_home, now + DISTRUST);
                self.take_over(now, &mut homes, client, reason, actions);
                home = self.home(client);
            }
        }
        // One that is just over is found nowhere in a moment.
        if let Some(outbox) = home.filter(|outbox| !outbox.is_sealed())
            && !homes.doubted.contains_key(&client)
        {
            if self.is_awake(now, &mut homes) {
                self.answer_claim(now, &mut homes, &outbox, call, gathered, actions);
            } else if place.attempt > 0 && tag != self.peers.me() && outbox.standby().is_some() {
                // Its standby may have answered, for this node seemed to hang. It is to say so, and no other.
                homes.doubted.insert(client, Doubt::New);
            }
        }
    }

    /// This node is the session's home, and another wants to be.
    pub(super) fn answer_claim(
        &self,
        now: Instant,
        homes: &mut Homes,
        outbox: &Arc<Outbox>,
        Call { tag, place, generation }: Call,
        gathered: &mut Gathered,
        actions: &mut Actions<Duty<R>>,
    ) {
        let client = outbox.client();
        homes.knocks.remove(&client);
        let mut due = Vec::new();
        let is_good = !outbox.refuses(generation);
        let is_wanted = || self.peers.standing(tag, place.number) == Standing::Wanted;
        homes.bell.arrive((tag, lane(client, generation)), place, is_wanted, || (), &mut Bell(is_good), &mut due);
        let is_new = due.iter().any(|due| !due.again && due.decision == Decision::Taken);
        gathered.due(tag, due);
        if tag == self.peers.me() {
            if is_new && homes.claim_of(client, generation).is_some() {
                homes.claims.remove(&client);
                actions.claims.push((client, Resumption::Here(outbox.clone())));
            }
        } else if is_new {
            // The connection that it has may be its client's still, who has a newer token and comes back with it.
            let is_older = generation < outbox.generation();
            let order = if is_older { CloseOrder::Moved } else { CloseOrder::TakenOver };
            outbox.show(generation);
            let (at_least, reason, answers) = (told(generation), MoveReason::Claimed, place.number);
            let to = Goal { tag, at_least, reason, answers, order };
            self.start_move(now, homes, outbox, to, actions);
        }
    }

    /// What a claim came to that was not answered in time. A session that somebody has (`exists`) is not lost because it could
    /// not come here: others go on with it. Nor is one that is here, and may be somewhere else, or is to go there, nor one of which
    /// this node has a copy.
    pub(super) fn unanswered(&self, now: Instant, homes: &mut Homes, client: Uuid, exists: bool) -> Resumption {
        let is_kept = || !homes.unsure.contains_key(&client) && self.registry.with_copy(client, |_| ()).is_some();
        let exists = exists || self.session(client).is_some() || is_kept();
        let hears_others = !homes.is_cut_off && self.is_settled(now, homes);
        if hears_others && !homes.leaving && !exists { Resumption::Lost } else { Resumption::Unsure }
    }

    pub(super) fn repeat_claims(&self, now: Instant, homes: &mut Homes, actions: &mut Actions<Duty<R>>) {
        let mut again = Vec::new();
        let mut lost = Vec::new();
        for (client, claim) in &mut homes.claims {
            if now >= claim.until {
                lost.push((*client, claim.exists));
            } else if claim.again.is_some_and(|at| now >= at) {
                claim.again = None;
                again.push((*client, claim.generation));
            }
        }
        for (client, exists) in lost {
            homes.claims.remove(&client);
            let resumption = self.unanswered(now, homes, client, exists);
            actions.claims.push((client, resumption));
        }
        for (client, generation) in again {
            self.submit_claim(now, client, generation, actions);
        }
    }
}
