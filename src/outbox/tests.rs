//! What one outbox takes, keeps and gives; and outboxes for the tests of others.

use super::*;
use std::sync::Arc;

pub(crate) fn unbounded() -> Arc<Budget> {
    Budget::new(usize::MAX, prometheus::IntGauge::new("bytes", "for tests").unwrap())
}

pub(crate) fn outbox(messages: usize, bytes: usize) -> Arc<Outbox> {
    Arc::new(Outbox::new(Uuid::new_v4(), &Limits::small(messages, bytes), &unbounded()))
}

pub(crate) fn delivery(text: &str) -> Delivery {
    Delivery { id: Uuid::new_v4(), sender: Uuid::nil(), text: text.into() }
}

pub(crate) fn place(number: Number) -> Place {
    Place { number, previous: 0, floor: number, attempt: 0 }
}

fn push(outbox: &Outbox, sender: u128, number: Number, text: &str) -> Decision {
    let mut due = Vec::new();
    let sender = Uuid::from_u128(sender);
    let make = || Delivery { sender, ..delivery(text) };
    assert!(outbox.arrive((1, sender), place(number), || true, make, &mut due).is_some());
    due[0].decision
}

/// jemalloc has pieces of 192, 224, 256 and 320 bytes; there is one of each for a session, on one node or on two.
#[test]
fn an_outbox_fits_its_pieces_of_memory() {
    let counts = 2 * size_of::<usize>();
    assert!(size_of::<Outbox>() + counts <= 256);
    assert!(size_of::<Resumable>() <= 192);
}

#[test]
fn a_full_outbox_closes_nobody_and_has_room_again() {
    for outbox in [outbox(2, 1000), outbox(1000, 6)] {
        assert_eq!(push(&outbox, 1, 1, "abc"), Decision::Taken);
        assert_eq!(push(&outbox, 2, 2, "abc"), Decision::Taken);
        assert_eq!(push(&outbox, 3, 3, "a"), Decision::Full);
        assert!(!outbox.must_end(0));
        assert_eq!(outbox.take(0, 1).deliveries.len(), 1);
        assert_eq!(push(&outbox, 3, 4, "a"), Decision::Taken);
    }
}

#[test]
fn one_sender_leaves_room_for_others() {
    let outbox = outbox(16, 1600);
    for number in 1..=4 {
        assert_eq!(push(&outbox, 1, number, "a"), Decision::Taken);
    }
    assert_eq!(push(&outbox, 1, 5, "a"), Decision::Full);
    for sender in 2..=4 {
        assert_eq!(push(&outbox, sender, 5 + sender as u64, &"a".repeat(400)[..390]), Decision::Taken);
    }
}

#[test]
fn a_drain_lets_waiting_messages_out_first_and_what_comes_after_the_seal_is_not_taken() {
    let outbox = outbox(9, 99);
    push(&outbox, 1, 1, "a");
    push(&outbox, 2, 2, "b");
    outbox.close(CloseOrder::Drain);
    assert_eq!(outbox.take(0, 1).close, None);
    assert!(!outbox.seal());
    assert!(outbox.arrive((1, Uuid::nil()), place(3), || true, || delivery("c"), &mut Vec::new()).is_none());
    assert_eq!(outbox.take(0, 1).close, Some(CloseOrder::Drain));
    assert!(outbox.seal());
    outbox.close(CloseOrder::Stop);
    assert_eq!(outbox.take(0, 1).close, Some(CloseOrder::Stop));
}

#[test]
fn a_copy_is_not_even_made() {
    let outbox = outbox(9, 99);
    push(&outbox, 1, 1, "a");
    let make = || unreachable!("a copy was made");
    let copy = outbox.arrive((1, Uuid::from_u128(1)), place(1), || true, make, &mut Vec::new());
    assert_eq!(copy, Some((Arrival::Copy, false)));
}

#[test]
fn who_says_the_same_again_lives_and_is_slow_all_the_same() {
    let outbox = Outbox::resumable(Uuid::nil(), 0, &Limits::small(9, 99), &unbounded());
    let (attachment, _) = outbox.attach(Instant::now(), 0, 0, false).unwrap();
    for text in ["a", "b", "c"] {
        assert_eq!(outbox.admit(delivery(text)), Some(true));
    }
    assert_eq!(outbox.take(attachment, 2).deliveries.len(), 2);
    outbox.written();
    let since = outbox.backlog().unwrap().0;
    let later = since + Duration::from_secs(10);
    outbox.had(later, attachment, 0);
    assert_eq!(outbox.unacknowledged_since(), Some(later));
    assert_eq!(outbox.backlog().unwrap().0, since);
    outbox.had(later, attachment, 1);
    assert_eq!(outbox.backlog().unwrap().0, later);
    assert_eq!(outbox.take(attachment, 2).deliveries.len(), 1);
    outbox.had(later, attachment, 3);
    assert_eq!(outbox.backlog(), None);
}

#[test]
fn a_window_that_ends_does_not_end_a_session_whose_client_has_just_come() {
    let outbox = Outbox::resumable(Uuid::nil(), 0, &Limits::small(9, 99), &unbounded());
    let now = Instant::now();
    let (attachment, _) = outbox.attach(now, 0, 0, false).unwrap();
    outbox.admit(delivery("a"));
    assert!(outbox.detach(now, attachment));
    let (attachment, _) = outbox.attach(now, 0, 0, false).unwrap();
    assert_eq!(outbox.discard_waiting(now), None, "it is here again");
    assert_eq!(outbox.take(attachment, 9).deliveries.len(), 1);
    let later = now + Duration::from_secs(1);
    assert!(outbox.detach(later, attachment));
    assert_eq!(outbox.discard_waiting(now), None, "and away again, but not for as long");
    assert_eq!(outbox.discard_waiting(later), Some(1));
    assert!(outbox.attach(later, 0, 0, false).is_none(), "it is over");
}

#[test]
fn a_reply_is_given_exactly_once_even_when_forgotten() {
    let outbox = outbox(1, 1);
    ReplyTo::new(outbox.clone(), Uuid::nil()).answer(Outcome::Handed);
    drop(ReplyTo::new(outbox.clone(), Uuid::nil()));
    let outcomes: Vec<_> = outbox.take(0, 0).answers.iter().map(|answer| answer.outcome).collect();
    assert_eq!(outcomes, [Outcome::Handed, Outcome::Unreachable]);
}

/// Its sender was told that it is here, between the last look and the end.
#[test]
fn what_came_before_the_end_is_written_also_in_a_session_that_can_be_resumed() {
    let outbox = Outbox::resumable(Uuid::from_u128(7), 1, &Limits::small(9, 99), &unbounded());
    let (attachment, _) = outbox.attach(Instant::now(), 1, 0, true).unwrap();
    assert!(outbox.take(attachment, 16).deliveries.is_empty());
    assert_eq!(push(&outbox, 1, 1, "a word"), Decision::Taken);
    assert!(!outbox.seal_settled());
    assert_eq!(outbox.take(attachment, 16).deliveries.len(), 1);
    assert!(outbox.seal_settled());
}
