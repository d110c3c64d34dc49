//! What is under way on one link, and what its server's answers mean.

use super::batch::{BATCH_BYTES, BATCH_COMMANDS, GATHER, WINDOW_BYTES, WINDOW_COMMANDS};
use super::*;

const LINK: LinkId = 0;
const SETTLE: Duration = Duration::from_secs(2);

/// A sender with one link, which is the master's, and messages of `size` bytes, `count` of them.
fn sender(count: usize, size: usize) -> (Sender<usize>, Instant) {
    let (now, wait) = (Instant::now(), Duration::from_secs(8));
    let times = Times { send: wait, hedge: wait, settle: SETTLE, max_bytes: usize::MAX };
    let mut sender = Sender::new(now, times, Arc::new(Peers::new(now, 1)), fastrand::Rng::with_seed(1));
    let mut actions = Actions::default();
    sender.link_up(now, LINK, &mut actions);
    sender.set_master(now, Some(LINK), &mut actions);
    for number in 0..count {
        let (from, to) = (Uuid::from_u128(number as u128), Channel::Client(Uuid::from_u128(0)));
        sender.submit(now, from, to, vec![0; size].into(), number, &mut actions);
    }
    (sender, now)
}

/// The batches that it gives out without a single answer, one after the other in time: how many commands there are in
/// each.
fn batches(sender: &mut Sender<usize>, now: &mut Instant) -> Vec<usize> {
    let next = || {
        *now += Duration::from_millis(20);
        Some(sender.next_batch(*now, LINK).len()).filter(|count| *count > 0)
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn several_batches_are_under_way_up_to_a_bound_in_commands() {
    let (mut sender, mut now) = sender(WINDOW_COMMANDS + 1000, 10);
    assert_eq!(batches(&mut sender, &mut now), vec![BATCH_COMMANDS; WINDOW_COMMANDS / BATCH_COMMANDS]);
    // Each answer makes room for one more.
    let mut actions = Actions::default();
    sender.answered(now, LINK, vec![Answer::Receivers(1); 3], &mut actions);
    assert_eq!(actions.links().collect::<Vec<_>>(), [LINK], "whoever waits for room is woken");
    assert_eq!(batches(&mut sender, &mut now), [3]);
    sender.answered(now, LINK, vec![Answer::Receivers(1); WINDOW_COMMANDS], &mut Actions::default());
    assert_eq!(batches(&mut sender, &mut now), [512, 485], "the rest, and nothing twice");
}

#[test]
fn several_batches_are_under_way_up_to_a_bound_in_bytes() {
    const SIZE: usize = 16 * 1024 - OVERHEAD;
    let (mut sender, mut now) = sender(1000, SIZE);
    let in_batch = BATCH_BYTES / (SIZE + OVERHEAD);
    assert_eq!(batches(&mut sender, &mut now), vec![in_batch; WINDOW_BYTES / BATCH_BYTES]);
    sender.answered(now, LINK, vec![Answer::Receivers(1)], &mut Actions::default());
    assert_eq!(batches(&mut sender, &mut now), [1]);
}

#[test]
fn a_message_larger_than_a_batch_goes_alone_and_none_is_too_large_for_an_empty_link() {
    for (size, expected) in [(BATCH_BYTES, vec![1; WINDOW_BYTES / BATCH_BYTES]), (WINDOW_BYTES, vec![1])] {
        let (mut sender, mut now) = sender(20, size);
        assert_eq!(batches(&mut sender, &mut now), expected, "{size}");
    }
}

#[test]
fn a_link_that_was_lost_has_an_empty_window_again() {
    let (mut sender, mut now) = sender(WINDOW_COMMANDS + 1000, 10);
    let full = batches(&mut sender, &mut now);
    sender.link_lost(now, LINK, &mut Actions::default());
    sender.link_up(now, LINK, &mut Actions::default());
    assert_eq!(batches(&mut sender, &mut now), full);
}

/// Nobody is counted for a message; what is then answered to each question about its receiver, until it is decided.
fn sought(answer: impl Fn(&mut Sender<usize>, Instant, usize) -> Answer) -> (Outcome, Duration) {
    let (mut sender, start) = sender(1, 10);
    sender.peers.listening(start - Duration::from_secs(1));
    let mut now = start;
    loop {
        let batch = sender.next_batch(now, LINK);
        let answers = batch.iter().map(|command| match command {
            Command::Count(channels) => answer(&mut sender, now, channels.len()),
            _ => Answer::Receivers(0),
        });
        let answers = answers.collect();
        let mut actions = Actions::default();
        sender.answered(now, LINK, answers, &mut actions);
        sender.tick(now, &mut actions);
        if let Some((_, outcome)) = actions.decided.pop() {
            return (outcome, now - start);
        }
        now += Duration::from_millis(5);
    }
}

/// The receiver has no subscription, and this node has its own.
fn nobody(channels: usize) -> Answer {
    Answer::Counts((0..channels).map(|at| u64::from(at == channels - 1)).collect())
}

#[test]
fn a_receiver_is_absent_when_a_server_says_so_that_has_all_subscriptions() {
    let (outcome, took) = sought(|_, _, channels| nobody(channels));
    assert_eq!(outcome, Outcome::NotConnected);
    assert!(took < Duration::from_millis(100), "{took:?}");
    let (outcome, _) = sought(|_, _, _| Answer::Error);
    assert_eq!(outcome, Outcome::Unreachable, "nothing was said");
}

#[test]
fn a_server_that_puts_things_off_says_nothing_about_absence_for_a_while() {
    let (outcome, _) = sought(|sender, now, channels| {
        sender.put_off(now, LINK);
        nobody(channels)
    });
    assert_eq!(outcome, Outcome::Unreachable);
    let (outcome, took) = sought(|sender, now, channels| {
        if sender.links[LINK].put_off.is_none() {
            sender.put_off(now, LINK);
        }
        nobody(channels)
    });
    assert_eq!(outcome, Outcome::NotConnected);
    assert!(took >= SETTLE && took < SETTLE + 2 * PAUSE_MOST, "{took:?}");
}

#[test]
fn in_motion_one_server_does_not_speak_for_the_others() {
    let (mut sender, now) = sender(1, 10);
    sender.peers.listening(now - Duration::from_secs(1));
    let other = LINK + 1;
    let mut actions = Actions::default();
    sender.link_up(now, other, &mut actions);
    sender.set_master(now, None, &mut actions);
    // Nobody is counted anywhere; then both servers are asked, the first alone at first.
    for link in [LINK, other] {
        let batch = sender.next_batch(now, link);
        sender.answered(now, link, vec![Answer::Receivers(0); batch.len()], &mut actions);
    }
    let now = now + GATHER;
    let mut ask = |link, receiver| {
        let batch = sender.next_batch(now, link);
        assert_eq!(batch.len(), 1, "{batch:?}");
        let mut actions = Actions::default();
        sender.answered(now, link, vec![Answer::Counts(vec![receiver, 1])], &mut actions);
        actions.decided
    };
    assert_eq!(ask(LINK, 0), [], "the other may know better");
    assert_eq!(ask(other, 0), [(0, Outcome::NotConnected)]);
}

/// Nobody is counted for a message, while there is no master and two servers are there; `trouble` is what happens before
/// both are asked. How long it takes until nobody is said to be there.
fn sought_on_two(trouble: impl Fn(&mut Sender<usize>, Instant), answer: impl Fn(LinkId, usize) -> Answer) -> Duration {
    let (mut sender, start) = sender(1, 10);
    sender.peers.listening(start - Duration::from_secs(1));
    let mut actions = Actions::default();
    sender.link_up(start, LINK + 1, &mut actions);
    sender.set_master(start, None, &mut actions);
    trouble(&mut sender, start);
    let mut now = start;
    while now < start + Duration::from_secs(3) {
        for link in links(sender.up) {
            let batch = sender.next_batch(now, link);
            let answers = batch.iter().map(|command| match command {
                Command::Count(channels) => answer(link, channels.len()),
                _ => Answer::Receivers(0),
            });
            let answers = answers.collect();
            sender.answered(now, link, answers, &mut actions);
        }
        sender.tick(now, &mut actions);
        if let Some((_, outcome)) = actions.decided.pop() {
            assert_eq!(outcome, Outcome::NotConnected);
            return now - start;
        }
        now += Duration::from_millis(5);
    }
    panic!("nothing was decided");
}

#[test]
fn who_was_greeted_by_a_server_that_is_lost_is_not_absent() {
    let calm = sought_on_two(|_, _| {}, |_, channels| nobody(channels));
    assert!(calm < Duration::from_millis(100), "{calm:?}");
    let lose = |sender: &mut Sender<usize>, now| sender.link_lost(now, LINK + 1, &mut Actions::default());
    let lost = sought_on_two(lose, |_, channels| nobody(channels));
    assert!(lost >= search::UNHEARD && lost < search::UNHEARD + 2 * PAUSE_MOST, "{lost:?}");
}

#[test]
fn who_was_greeted_by_a_server_that_says_nothing_or_has_lost_its_node_is_not_absent() {
    let refuses = |link, channels| if link == LINK { nobody(channels) } else { Answer::Error };
    let lacks = |link, channels| if link == LINK { nobody(channels) } else { Answer::Counts(vec![0; channels]) };
    for took in [sought_on_two(|_, _| {}, refuses), sought_on_two(|_, _| {}, lacks)] {
        assert!(took >= search::UNHEARD && took < search::UNHEARD + 2 * PAUSE_MOST, "{took:?}");
    }
}

/// A message to somebody whose node is nowhere, for a second: how often it is published. `answer`: what servers say of
/// the receiver; `absent`: whether whoever gets the message is about to hand the receiver on to another node.
fn published(answer: u64, absent: bool) -> Vec<Duration> {
    let start = Instant::now();
    let (send, hedge) = (Duration::from_secs(5), Duration::from_millis(100));
    let times = Times { send, hedge, settle: SETTLE, max_bytes: usize::MAX };
    let peers = Arc::new(Peers::new(start, 1));
    let other = super::super::envelope::Hello { floor: 0, writes: 0, reads: 0, name: String::new() };
    let nonce = peers.question(start, 2, false).unwrap();
    assert!(peers.answered(start, 2, nonce, &other));
    peers.listening(start - Duration::from_secs(1));
    let mut sender = Sender::new(start, times, peers, fastrand::Rng::with_seed(1));
    let mut actions = Actions::default();
    sender.link_up(start, LINK, &mut actions);
    sender.set_master(start, Some(LINK), &mut actions);
    sender.submit(start, Uuid::nil(), Channel::Client(Uuid::nil()), vec![0; 10].into(), 0, &mut actions);
    let (mut now, mut at) = (start, Vec::new());
    while now < start + Duration::from_secs(1) {
        let mut answers = Vec::new();
        for command in sender.next_batch(now, LINK) {
            answers.push(match command {
                Command::Message(..) => {
                    at.push(now - start);
                    Answer::Receivers(u64::from(at.len() > 1) * answer)
                }
                // The receiver; this node; the other, which is nowhere.
                Command::Count(channels) => {
                    assert_eq!(channels.len(), 3);
                    Answer::Counts(vec![answer, 1, 0])
                }
                Command::Control(..) => Answer::Receivers(1),
            });
        }
        let is_found = answers.iter().any(|answer| matches!(answer, Answer::Receivers(1..)));
        sender.answered(now, LINK, answers, &mut actions);
        if absent && is_found {
            sender.receipts(now, &[(1, Decision::Absent)], &mut actions);
        }
        sender.tick(now, &mut actions);
        now += Duration::from_millis(5);
    }
    at
}

#[test]
fn what_is_sought_is_not_sent_again_and_uses_up_nobodys_budget() {
    assert_eq!(published(0, false).len(), 1);
}

#[test]
fn who_was_found_on_its_way_to_another_node_is_asked_about_again_at_once() {
    let at = published(1, true);
    let longest = at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest <= 2 * search::PAUSE_YOUNG, "{at:?}");
}

#[test]
fn a_look_does_not_wait_for_a_connection_that_was_replaced_meanwhile() {
    let start = Instant::now();
    let times =
        Times { send: Duration::from_secs(5), hedge: Duration::from_millis(100), settle: SETTLE, max_bytes: 99 };
    let mut sender: Sender<()> = Sender::new(start, times, Arc::new(Peers::new(start, 1)), fastrand::Rng::with_seed(1));
    let mut actions = Actions::default();
    sender.link_up(start, LINK, &mut actions);
    sender.look(start, &mut actions);
    assert_eq!(sender.next_batch(start, LINK).len(), 1);
    assert!(!sender.look_ends(start), "it has not been answered");
    sender.link_lost(start, LINK, &mut actions);
    sender.link_up(start, LINK, &mut actions);
    assert!(sender.look_ends(start));
}
