//! A judge of persons that finds nothing wrong is worth something only if it finds what is: gateways that lie to those
//! who come back.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use texto_lab::checker::Report;
use texto_lab::fake_home::{FakeHome, Flaw};
use texto_lab::process::until;
use texto_lab::traffic::{Manners, Order, Plan, Traffic};

const AWAY: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(1);

/// Six persons write to one another; each loses its connection three times, in turn, once in the middle of a burst.
async fn report(flaw: Flaw) -> Report {
    let gateway = FakeHome::start(flaw).await.unwrap();
    let plan = Plan { rate: Some(600.0), ..Plan::persons(6, Manners::default(), DEADLINE) };
    let traffic = Traffic::start(&[gateway.address], plan).await.unwrap();
    let returns = async |count: usize| {
        until("they are back", Duration::from_secs(10), async || (traffic.returns().len() >= count).then_some(()))
            .await
            .unwrap();
        let now = traffic.checker().totals().0;
        until("more is sent", Duration::from_secs(10), async || {
            (traffic.checker().totals().0 > now + 60).then_some(())
        })
        .await
        .unwrap();
    };
    returns(0).await;
    for (round, order) in [Order::Reset(AWAY), Order::Burst(8), Order::Reset(AWAY)].into_iter().enumerate() {
        for person in 0..6 {
            traffic.order(person, order);
            returns(round * 6 + person + 1).await;
        }
    }
    let end = traffic.now();
    traffic.finish(Duration::ZERO, end).await.unwrap()
}

#[tokio::test]
async fn an_honest_gateway_is_not_blamed() {
    let report = report(Flaw::Honest).await;
    assert_eq!(report.broken(), Vec::<String>::new(), "{report:?}");
    assert_eq!((report.resumed, report.failed(), report.given_up, report.told), (18, 0, 0, 0), "{report:?}");
    assert!(report.acked > 1000 && report.longest_wait_ms < 300.0, "{report:?}");
}

#[tokio::test]
async fn what_is_gone_though_nothing_was_said_to_be_missing_is_caught() {
    let report = report(Flaw::Forgotten).await;
    assert!(report.acked_lost > 0 && report.told_missing == 0, "{report:?}");
    assert_eq!((report.received_twice, report.out_of_order, report.id_changed), (0, 0, 0), "{report:?}");
}

#[tokio::test]
async fn what_is_gone_and_was_said_to_be_is_told_apart() {
    let report = report(Flaw::Told).await;
    assert!(report.told_missing > 0 && report.told == 18 && report.resumed == 0, "{report:?}");
    assert_eq!(report.broken(), Vec::<String>::new(), "{report:?}");
}

#[tokio::test]
async fn what_is_shown_again_is_caught() {
    let report = report(Flaw::Replayed).await;
    assert!(report.received_twice > 0 && report.acked_lost == 0, "{report:?}");
}

#[tokio::test]
async fn a_request_that_is_taken_twice_is_caught() {
    let report = report(Flaw::Amnesia).await;
    assert!(report.received_twice > 0 && report.acked_lost == 0, "{report:?}");
}

#[tokio::test]
async fn what_comes_in_another_order_is_caught() {
    let report = report(Flaw::Reversed).await;
    assert!(report.out_of_order > 0 && report.received_twice + report.acked_lost == 0, "{report:?}");
}

#[tokio::test]
async fn another_id_is_caught() {
    let report = report(Flaw::Stranger).await;
    assert_eq!((report.id_changed, report.resumed), (18, 0), "{report:?}");
}

#[tokio::test]
async fn a_wait_after_the_return_is_caught() {
    let report = report(Flaw::Slow).await;
    assert!(report.longest_wait_ms > 400.0, "{report:?}");
    assert_eq!(report.broken(), Vec::<String>::new(), "{report:?}");
}

#[tokio::test]
async fn errors_for_somebody_who_is_away_are_counted() {
    let report = report(Flaw::Refused).await;
    assert!(report.errors["ENOTCONN"] > 0 && report.acked_lost == 0, "{report:?}");
}

#[tokio::test]
async fn a_missing_answer_is_caught() {
    let report = report(Flaw::Unanswered).await;
    assert!(report.unanswered > 0 && report.acked_lost == 0, "{report:?}");
}
