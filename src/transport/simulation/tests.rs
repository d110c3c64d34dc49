//! Which worlds there are, and what must hold in them.

use std::time::Duration;

use super::agenda::Event;
use super::{Client, Faults, MS, NODES, Planted, SECOND, SERVERS, Submission, World, story};
use crate::outbox::Outcome;
use crate::transport::homes::MoveReason;

/// Worlds that run with the tests: about a minute of them. More are `TEXTO_SEEDS`.
const USUAL: u64 = 1000;
/// The same, of those with one fault at a time; everything must have happened in them.
const SINGLE: u64 = 300;

/// Which worlds there are; `usual`, unless somebody wants more.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let wish = |name: &str| std::env::var(name).ok();
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{text} is no number of a seed"));
    match (wish("TEXTO_SEED"), wish("TEXTO_SEEDS")) {
        (Some(seed), _) => number(&seed)..number(&seed) + 1,
        (None, Some(seeds)) => match seeds.split_once("..") {
            Some((first, end)) => number(first)..number(end),
            None => 0..number(&seeds),
        },
        (None, None) => 0..usual,
    }
}

#[test]
fn every_promise_is_kept_whatever_happens() {
    let (mut handed, mut failures) = (0, Vec::new());
    story::tell_wanted(|| World::new(seeds(USUAL).start, Planted::Nothing, Faults::All));
    for seed in seeds(USUAL) {
        match World::new(seed, Planted::Nothing, Faults::All).run() {
            Ok(count) => handed += count,
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(handed > 0);
    println!("{} seeds, {handed} messages acknowledged", seeds(USUAL).count());
}

#[test]
fn a_session_outlives_each_single_fault_of_a_node() {
    let (mut resumed, mut moves, mut restored) = (0, Vec::new(), Vec::new());
    for seed in seeds(SINGLE) {
        let mut world = World::new(seed, Planted::Nothing, Faults::OneNode);
        world.play();
        if let Some(failure) = world.failure {
            panic!("{failure}");
        }
        assert_eq!(world.lost, 0, "seed {seed}: a person was told that messages may be missing");
        resumed += world.resumed;
        moves.append(&mut world.moves);
        restored.append(&mut world.restored);
    }
    assert!(resumed > 0);
    if seeds(SINGLE).count() < SINGLE as usize {
        return; // Not everything happens in each world.
    }
    for reason in MoveReason::ALL {
        assert!(moves.contains(&reason), "no session was ever {reason:?}");
    }
    restored.sort_unstable();
    let [half, most, all] = [50, 99, 100].map(|part| restored[(restored.len() - 1) * part / 100]);
    println!("two copies again: half of {} within {half:?}, 99 % within {most:?}, all within {all:?}", restored.len());
    // Until others notice that a node is gone, though it looks connected.
    assert!(all < Duration::from_secs(8), "{all:?}");
}

#[test]
fn planted_faults_are_found() {
    for planted in [
        Planted::AckOnCount,
        Planted::ForgottenPredecessor,
        Planted::CopyShown,
        Planted::NobodyYields,
        Planted::ShownBeforeCopied,
    ] {
        let found = (0..1000)
            .find_map(|seed| World::new(seed, planted, Faults::All).run().err().map(|failure| (seed, failure)));
        let (_, failure) = found.unwrap_or_else(|| panic!("{planted:?} is not found within a thousand seeds"));
        println!("{planted:?}: {failure}");
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in 0..20 {
        assert_eq!(
            World::new(seed, Planted::Nothing, Faults::All).run(),
            World::new(seed, Planted::Nothing, Faults::All).run()
        );
    }
}

/// Nothing goes wrong any more: every promise is kept.
fn judge_the_calm(world: &mut World) {
    let before = world.submissions.len();
    world.run_until(20 * SECOND);
    world.judge(before);
    assert_eq!(world.failure, None);
}

/// A node that was the only one stands still, meanwhile others come, and persons come to them; then it goes on.
#[test]
fn the_only_node_that_stood_still_acknowledges_nothing_for_whom_others_have_begun_anew() {
    let mut anew = 0;
    for seed in seeds(60) {
        let mut world = World::new(seed, Planted::Nothing, Faults::All);
        world.run_until(3 * SECOND);
        world.kill(1);
        world.kill(2);
        world.run_until(3300 * MS);
        let wakes = world.now + 900 * MS;
        world.nodes[0].paused_until = wakes;
        (0..SERVERS).for_each(|server| world.cut(0, server));
        (0..world.clients.len()).for_each(|client| world.disconnect(client, false));
        for _ in 0..60 {
            let at = wakes + world.random.u64(0..600 * MS);
            world.at(at, Event::Submit);
        }
        // Whoever has begun a session anew may stand still as well.
        world.run_until(wakes - 50 * MS);
        for node in 1..NODES {
            if world.random.bool() {
                world.nodes[node].paused_until = wakes + world.random.u64(0..500 * MS);
            }
        }
        world.run_until(10 * SECOND);
        judge_the_calm(&mut world);
        anew += world.lost;
    }
    assert!(anew > 0, "nobody has begun a session anew");
}

/// A session moves, and before its standby has heard that, both who know stand still for a moment: it takes over what it has
/// an old copy of, and there is nobody to contradict it.
#[test]
fn who_is_alone_with_an_old_copy_acknowledges_nothing_before_those_who_stand_still_can_be_back() {
    let mut alone = 0;
    for seed in seeds(400) {
        let mut world = World::new(seed, Planted::Nothing, Faults::OneNode);
        world.run_until(3 * SECOND);
        let before: Vec<usize> = world.clients.iter().map(|client| client.node).collect();
        (0..world.clients.len()).for_each(|client| world.disconnect(client, false));
        let has_moved = |world: &World, client: usize| {
            let Client { node, person, .. } = &world.clients[client];
            *node != before[client] && person.as_ref().is_some_and(|person| person.connected)
        };
        let mut moved = None;
        while moved.is_none() && world.now < 4 * SECOND {
            let now = world.now + MS / 5;
            world.run_until(now);
            moved = (0..before.len()).find(|client| has_moved(&world, *client));
        }
        let Some(client) = moved else { continue };
        let wakes = world.now + world.random.u64(400 * MS..900 * MS);
        for node in [world.clients[client].node, before[client]] {
            world.nodes[node].paused_until = wakes - world.random.u64(0..100 * MS);
            (0..SERVERS).for_each(|server| world.cut(node, server));
        }
        for _ in 0..60 {
            let at = wakes - world.random.u64(0..300 * MS);
            world.at(at, Event::Submit);
        }
        let moves = world.moves.len();
        world.run_until(10 * SECOND);
        alone += world.moves[moves..].iter().filter(|reason| **reason == MoveReason::HomeGone).count();
        judge_the_calm(&mut world);
    }
    assert!(alone > 0, "nobody has taken a session over");
}

/// A node stands still, and loses all of its links when it goes on; who wrote to it meanwhile is answered soon after.
#[test]
fn what_was_written_to_a_node_that_stood_still_is_not_left_to_its_deadline() {
    for seed in seeds(500).step_by(5) {
        let mut world = World::new(seed, Planted::Nothing, Faults::All);
        world.run_until(4 * SECOND);
        for _ in 0..3 * NODES {
            world.join();
        }
        world.run_until(6 * SECOND);
        for _ in 0..250 {
            world.after(0, 3 * SECOND, Event::Submit);
        }
        world.run_until(7 * SECOND);
        let node = world.random.usize(..NODES);
        let resumes = world.now + world.random.u64(50 * MS..900 * MS);
        world.nodes[node].paused_until = resumes;
        for server in 0..SERVERS {
            let link = world.nodes[node].links[server];
            let lost = resumes + world.random.u64(0..5 * MS);
            world.at(lost, Event::Lost { node, server, link });
        }
        world.run_until(13 * SECOND);
        let late = world.submissions.iter().enumerate().filter(|(_, submission)| {
            let Submission { receiver, outcome, .. } = submission;
            receiver.is_some() && *outcome == Some(Outcome::Unreachable)
        });
        let late: Vec<_> = late.map(|(number, submission)| (number, submission.node, submission.at / MS)).collect();
        assert!(late.is_empty(), "seed {seed}: {node} stood still until {} ms: {late:?}", resumes / MS);
    }
}
