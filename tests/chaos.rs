//! A short selection of `texto chaos`, with the counts as the test: silence is for the tables in
//! docs/performance.md, since a machine that runs other tests meanwhile is no place to measure it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

async fn chaos(arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_texto"));
    command.args(["chaos", "--json", "--pairs", "20", "--rate", "300", "--gateways", "3"]).args(arguments);
    let output = command.kill_on_drop(true).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let verdicts = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    (output.status.code(), verdicts)
}

async fn verdict(scenario: &str) -> Value {
    let (_, mut verdicts) = chaos(&[scenario]).await;
    assert_eq!(verdicts.len(), 1, "{verdicts:?}");
    let verdict = verdicts.remove(0);
    assert_eq!(verdict["skipped"], Value::Null, "{scenario} needs root: it makes networks");
    let report = &verdict["report"];
    let counts = ["acked_lost", "received_twice", "out_of_order", "unanswered", "answered_twice", "dropped_sessions"];
    for count in counts {
        assert_eq!(report[count], 0, "{count} in {verdict:#}");
    }
    assert!(report["acked"].as_u64().unwrap() > 2_000, "{verdict:#}");
    verdict
}

async fn keeps_its_word(scenario: &str) {
    let verdict = verdict(scenario).await;
    assert_eq!(verdict["report"]["errors"], serde_json::json!({}), "{verdict:#}");
}

#[tokio::test]
async fn the_last_link_killed_by_its_promotion() {
    keeps_its_word("one-replica").await;
}

#[tokio::test]
async fn replicas_carry_messages_without_master_and_sentinels() {
    keeps_its_word("kill-sentinels-then-master").await;
}

#[tokio::test]
async fn an_outage_below_the_deadline_loses_nothing() {
    keeps_its_word("outage-3s").await;
}

#[tokio::test]
async fn a_gateway_that_hears_its_master_but_is_not_heard() {
    keeps_its_word("cut-to-master").await;
}

/// In a network that drops packets; `tests/acks.rs` has a proxy that stands still.
#[tokio::test]
async fn a_gateway_without_redis_and_sentinels_asks_its_clients_to_leave() {
    let verdict = verdict("isolate-gateway").await;
    assert!(verdict["report"]["moved"].as_u64().unwrap() > 5, "{verdict:#}");
    let errors = verdict["report"]["errors"].as_object().unwrap();
    assert!(errors.keys().all(|code| code == "EBROKER" || code == "ENOTCONN"), "{verdict:#}");
}

async fn persons_notice_nothing(scenario: &str) {
    let verdict = verdict(scenario).await;
    let report = &verdict["report"];
    for count in ["id_changed", "told", "told_missing", "given_up"] {
        assert_eq!(report[count], 0, "{count} in {verdict:#}");
    }
    assert_eq!(report["errors"], serde_json::json!({}), "{verdict:#}");
    assert!(report["resumed"].as_u64().unwrap() > 5, "{verdict:#}");
}

#[tokio::test]
async fn a_gateway_dies_with_sender_and_receiver() {
    persons_notice_nothing("kill-shared-gateway").await;
}

#[tokio::test]
async fn a_gateway_is_restarted_and_another_dies() {
    persons_notice_nothing("restart-then-kill").await;
}

#[tokio::test]
async fn what_was_not_answered_is_sent_again_elsewhere() {
    persons_notice_nothing("resend-elsewhere").await;
}

#[tokio::test]
async fn a_gateway_dies_whose_clients_are_those_of_applications() {
    persons_notice_nothing("library-kill-gateway").await;
}

/// Without links to the replicas a killed master is noticed, and the judge says so.
#[tokio::test]
async fn the_judge_finds_what_is_broken() {
    let (code, verdicts) = chaos(&["kill-master", "--no-standby"]).await;
    assert_eq!((code, &verdicts[0]["kept"]), (Some(1), &Value::Bool(false)), "{verdicts:?}");
    assert!(verdicts[0]["silence_ms"].as_f64().unwrap() > 500.0, "{verdicts:?}");
    assert_eq!(chaos(&["no-such-scenario"]).await.0, Some(2));
}

/// As `| head` does it: whoever reads the output has enough of it.
#[tokio::test]
async fn a_reader_who_leaves_ends_the_program_quietly() {
    for (arguments, lines) in [(&["demo", "--seconds", "20"][..], 2), (&["demo"], 0), (&["chaos", "--list"], 0)] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_texto"));
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut read = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..lines {
            read.next_line().await.unwrap().expect("a line");
        }
        drop(read);
        let output = tokio::time::timeout(Duration::from_secs(15), child.wait_with_output()).await.expect("it goes on");
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{arguments:?}");
    }
}
