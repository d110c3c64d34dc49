//! A checker that finds nothing wrong is worth something only if it finds what is: gateways that lie.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use texto_lab::checker::Report;
use texto_lab::fake_gateway::{FakeGateway, Lie};
use texto_lab::process::until;
use texto_lab::traffic::{Load, Traffic};

/// Four clients write two hundred messages to each other.
async fn report(lie: Lie) -> Report {
    let gateway = FakeGateway::start(lie).await.unwrap();
    let load = Load { pairs: 2, rate: 200.0, deadline: Duration::from_secs(1) };
    let traffic = Traffic::start(&[gateway.address], load).await.unwrap();
    until("two hundred are sent", Duration::from_secs(10), async || {
        let dropped = traffic.checker().report(traffic.now(), Duration::ZERO, Duration::ZERO).dropped_sessions;
        (traffic.checker().totals().0 >= 200 || dropped == 4).then_some(())
    })
    .await
    .unwrap();
    let end = traffic.now();
    traffic.finish(Duration::ZERO, end).await.unwrap()
}

#[tokio::test]
async fn an_honest_gateway_is_not_blamed() {
    let report = report(Lie::Honest).await;
    assert_eq!(report.broken(), Vec::<String>::new());
    assert!(report.acked >= 200 && report.longest_silence_ms < 1000.0, "{report:?}");
}

#[tokio::test]
async fn a_false_ack_is_caught() {
    let report = report(Lie::FalseAck).await;
    assert!(report.acked_lost >= 10 && report.received_twice + report.out_of_order == 0, "{report:?}");
}

#[tokio::test]
async fn a_repeated_message_is_caught() {
    let report = report(Lie::Repeat).await;
    assert!(report.received_twice >= 10 && report.acked_lost + report.out_of_order == 0, "{report:?}");
}

#[tokio::test]
async fn a_reordered_message_is_caught() {
    let report = report(Lie::Reorder).await;
    assert!(report.out_of_order >= 10 && report.received_twice == 0, "{report:?}");
}

#[tokio::test]
async fn a_missing_answer_is_caught() {
    let report = report(Lie::NoAnswer).await;
    assert!(report.unanswered >= 10 && report.acked_lost == 0, "{report:?}");
}

#[tokio::test]
async fn silence_is_caught() {
    let report = report(Lie::Silence).await;
    assert!(report.longest_silence_ms > 400.0 && report.unanswered > 100, "{report:?}");
}

#[tokio::test]
async fn dropped_sessions_are_caught() {
    let report = report(Lie::Drop).await;
    assert_eq!(report.dropped_sessions, 4, "{report:?}");
}
