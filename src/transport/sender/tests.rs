//! What is under way on one link.

use super::*;

const LINK: LinkId = 0;

/// A sender with one link, which is the master's, and messages of `size` bytes, `count` of them.
fn sender(count: usize, size: usize) -> (Sender<usize>, Instant) {
    let (now, wait) = (Instant::now(), Duration::from_secs(5));
    let times = Times { send: wait, hedge: wait, settle: wait, max_bytes: usize::MAX };
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
