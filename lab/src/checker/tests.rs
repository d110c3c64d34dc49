//! Runs that are spoilt on purpose.

#![allow(clippy::unwrap_used)]

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Ten messages, one every 10 ms, each answered and received 1 ms later, but for what `spoil` does.
fn run(spoil: impl Fn(usize, &Event) -> Vec<(usize, Event)>) -> Report {
    let mut checker = Checker::new(100 * MS);
    for number in 0..10 {
        let at = 10 * MS * u32::try_from(number).unwrap();
        checker.feed(at, 0, number, &Event::Sent);
        for event in [Event::Received, Event::Answered(Answer::Ack)] {
            for (number, event) in spoil(number, &event) {
                checker.feed(at + MS, 0, number, &event);
            }
        }
    }
    checker.report(Duration::from_secs(1), Duration::ZERO, 100 * MS)
}

fn keep(number: usize, event: &Event) -> Vec<(usize, Event)> {
    vec![(number, event.clone())]
}

#[test]
fn kept_promises_are_no_complaint() {
    let report = run(keep);
    assert_eq!(report.broken(), Vec::<String>::new());
    assert_eq!((report.sent, report.acked), (10, 10));
    assert!((report.longest_silence_ms - 10.0).abs() < 0.01, "{report:?}");
}

#[test]
fn a_false_ack_is_caught() {
    let report = run(|number, event| match event {
        Event::Received if number == 4 => vec![],
        _ => keep(number, event),
    });
    assert_eq!(report.acked_lost, 1);
    assert!((report.longest_silence_ms - 20.0).abs() < 0.01, "{report:?}");
}

#[test]
fn a_repeated_message_is_caught() {
    let report = run(|number, event| match event {
        Event::Received if number == 4 => vec![(4, event.clone()), (4, event.clone())],
        _ => keep(number, event),
    });
    assert_eq!((report.received_twice, report.out_of_order), (1, 0));
}

#[test]
fn a_swapped_message_is_caught() {
    let report = run(|number, event| match (event, number) {
        (Event::Received, 4) => vec![],
        (Event::Received, 5) => vec![(5, event.clone()), (4, event.clone())],
        _ => keep(number, event),
    });
    assert_eq!((report.out_of_order, report.acked_lost, report.received_twice), (1, 0, 0));
}

#[test]
fn a_missing_or_second_answer_is_caught() {
    let report = run(|number, event| match event {
        Event::Answered(_) if number == 4 => vec![],
        Event::Answered(_) if number == 5 => vec![(5, event.clone()), (5, event.clone())],
        _ => keep(number, event),
    });
    assert_eq!((report.unanswered, report.answered_twice), (1, 1));
}

#[test]
fn a_late_answer_is_caught() {
    let mut checker = Checker::new(100 * MS);
    checker.feed(Duration::ZERO, 0, 0, &Event::Sent);
    checker.feed(101 * MS, 0, 0, &Event::Answered(Answer::Error("EBROKER".to_owned())));
    let report = checker.report(200 * MS, Duration::ZERO, 200 * MS);
    assert_eq!((report.unanswered, report.failed()), (1, 1));
}

/// An error means "not acknowledged", not "not shown": it has no place in the order, but is shown once.
#[test]
fn order_holds_among_the_acknowledged() {
    let refused = |spoilt: usize, again: usize| {
        run(move |number, event| match event {
            Event::Answered(_) if number == spoilt => {
                vec![(number, Event::Answered(Answer::Error("EBROKER".to_owned())))]
            }
            Event::Received if number == 4 => vec![],
            Event::Received if number == 5 => vec![(5, event.clone()), (4, event.clone())],
            Event::Received if number == again => vec![(number, event.clone()), (4, event.clone())],
            _ => keep(number, event),
        })
    };
    for (spoilt, late) in [(3, 1), (4, 0), (5, 0)] {
        let report = refused(spoilt, 99);
        assert_eq!((report.out_of_order, report.acked_lost, report.received_twice), (late, 0, 0), "{spoilt}");
    }
    assert_eq!(refused(4, 7).received_twice, 1);
}

#[test]
fn a_send_that_crosses_the_farewell_is_not_owed_an_answer() {
    for (age, unanswered) in [(CROSSING / 2, 0), (CROSSING * 2, 1)] {
        let mut checker = Checker::new(100 * MS);
        checker.feed(Duration::ZERO, 0, 0, &Event::Sent);
        checker.feed(age, 0, 0, &Event::CutShort);
        checker.feed(age, 0, 0, &Event::Moved);
        let report = checker.report(Duration::from_secs(9), Duration::ZERO, Duration::ZERO);
        assert_eq!((report.unanswered, report.moved, report.dropped_sessions), (unanswered, 1, 0), "{age:?}");
        assert_eq!(checker.outstanding(), 0);
    }
}

#[test]
fn a_dropped_session_is_caught() {
    let mut checker = Checker::new(100 * MS);
    checker.feed(Duration::ZERO, 0, 0, &Event::Dropped(1013));
    assert_eq!(checker.report(MS, Duration::ZERO, MS).broken(), ["1 sessions dropped"]);
}

/// A message at 0 ms, acknowledged, and whatever happens to its receiver.
fn one(received: Option<Duration>, turns: &[(Duration, usize, Turn)]) -> Report {
    let mut checker = Checker::new(100 * MS);
    let (sender, receiver) = (3, 5);
    checker.feed(Duration::ZERO, pair(sender, receiver), 0, &Event::Sent);
    checker.feed(MS, pair(sender, receiver), 0, &Event::Answered(Answer::Ack));
    for (at, person, turn) in turns {
        checker.feed_person(*at, *person, *turn);
    }
    if let Some(at) = received {
        checker.feed(at, pair(sender, receiver), 0, &Event::Received);
    }
    checker.report(Duration::from_secs(9), Duration::ZERO, Duration::from_secs(9))
}

#[test]
fn what_a_receiver_was_told_of_is_not_lost() {
    assert_eq!(one(None, &[]).acked_lost, 1);
    let resumed = one(None, &[(MS, 5, Turn::Resumed)]);
    assert_eq!((resumed.acked_lost, resumed.told_missing, resumed.resumed), (1, 0, 1), "its word was broken");
    let told = one(None, &[(MS, 5, Turn::Told)]);
    assert_eq!((told.acked_lost, told.told_missing, told.told), (0, 1, 1));
    assert_eq!(told.broken(), Vec::<String>::new());
    assert_eq!(one(None, &[(MS, 3, Turn::Told)]).acked_lost, 1, "the sender was told, not the receiver");
    let all_the_same = one(Some(2 * MS), &[(MS, 5, Turn::Told)]);
    assert_eq!((all_the_same.acked_lost, all_the_same.told_missing), (0, 0));

    // What is sent after that is owed again; what was sent before may still be acknowledged.
    let mut checker = Checker::new(100 * MS);
    checker.feed(Duration::ZERO, pair(3, 5), 0, &Event::Sent);
    checker.feed_person(MS, 5, Turn::Told);
    checker.feed(2 * MS, pair(3, 5), 0, &Event::Answered(Answer::Ack));
    checker.feed(2 * MS, pair(3, 5), 1, &Event::Sent);
    checker.feed(3 * MS, pair(3, 5), 1, &Event::Answered(Answer::Ack));
    let report = checker.report(9 * MS, Duration::ZERO, 9 * MS);
    assert_eq!((report.acked_lost, report.told_missing, checker.missing()), (1, 1, 1));
    assert_eq!(report.examples.len(), 1, "{report:?}");
}

#[test]
fn what_comes_again_is_excused_only_if_the_receiver_was_told_in_between() {
    let again = |told: Option<Duration>| {
        let mut checker = Checker::new(100 * MS);
        checker.feed(Duration::ZERO, pair(3, 5), 0, &Event::Sent);
        for at in [2 * MS, 4 * MS] {
            if let Some(told) = told.filter(|told| *told < at) {
                checker.feed_person(told, 5, Turn::Told);
            }
            checker.feed(at, pair(3, 5), 0, &Event::Received);
        }
        let report = checker.report(9 * MS, Duration::ZERO, 9 * MS);
        (report.received_twice, report.told_again)
    };
    assert_eq!(again(None), (1, 0));
    assert_eq!(again(Some(MS)), (1, 0), "it was told before");
    assert_eq!(again(Some(3 * MS)), (0, 1));
}

#[test]
fn another_id_is_caught() {
    assert_eq!(one(Some(MS), &[(MS, 5, Turn::Changed)]).broken(), ["1 persons with another id"]);
}

#[test]
fn a_wait_is_counted_but_for_the_pauses_of_both() {
    let wait = |turns: &[(Duration, usize, Turn)]| one(Some(100 * MS), turns).longest_wait_ms.round();
    assert_eq!(wait(&[]), 100.0);
    // From 10 to 40, and from 20 to 60, and one of somebody else.
    let pauses =
        [(40 * MS, 5, Turn::Paused(30 * MS)), (60 * MS, 3, Turn::Paused(40 * MS)), (90 * MS, 4, Turn::Paused(90 * MS))];
    assert_eq!(wait(&pauses), 50.0);
    // One that began before, and one that ends later.
    let pauses = [(10 * MS, 5, Turn::Paused(10 * MS)), (150 * MS, 3, Turn::Paused(60 * MS))];
    assert_eq!(wait(&pauses), 80.0);
}

#[test]
fn a_message_that_is_sent_again_is_owed_an_answer_anew() {
    let p = pair(0, 1);
    for (again, answered, late) in [(90, 180, 0), (90, 210, 1)] {
        let mut checker = Checker::new(100 * MS);
        checker.feed(Duration::ZERO, p, 0, &Event::Sent);
        checker.feed(50 * MS, p, 0, &Event::Suspended);
        checker.feed(again * MS, p, 0, &Event::SentAgain);
        checker.feed(answered * MS, p, 0, &Event::Answered(Answer::Ack));
        checker.feed(answered * MS, p, 0, &Event::Received);
        let report = checker.report(Duration::from_secs(9), Duration::ZERO, Duration::ZERO);
        assert_eq!((report.unanswered, report.acked, report.sent), (late, 1, 1));
    }
    let mut checker = Checker::new(100 * MS);
    checker.feed(Duration::ZERO, p, 0, &Event::Sent);
    checker.feed(150 * MS, p, 0, &Event::Suspended);
    assert_eq!(checker.outstanding(), 1);
    let report = checker.report(Duration::from_secs(9), Duration::ZERO, Duration::ZERO);
    assert_eq!(report.unanswered, 2, "not answered while the connection stood, nor ever sent again");
    checker.feed(160 * MS, p, 0, &Event::GivenUp);
    let report = checker.report(Duration::from_secs(9), Duration::ZERO, Duration::ZERO);
    assert_eq!((report.unanswered, report.given_up, checker.outstanding()), (1, 1, 0));
}
