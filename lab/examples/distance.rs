//! What distance costs: throughput from one gateway to another, with Redis far away from both.
//!
//! `cargo build --release && cargo run --release -p texto-lab --example distance -- target/release/texto [ROUND-TRIP-MS]`

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use texto_lab::gateway::Gateway;
use texto_lab::proxy::Proxy;
use texto_lab::redis_server::RedisServer;
use texto_lab::traffic::{Plan, Traffic};

/// Clients that send, each to one of its own; with 64 unanswered each.
const PAIRS: usize = 200;
const WARM_UP: Duration = Duration::from_secs(3);
const RUN: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().context("usage: distance PATH-OF-TEXTO [ROUND-TRIP-MS]")?;
    let round_trip = match arguments.next() {
        Some(text) => text.parse()?,
        None => 100,
    };
    for round_trip in [0, round_trip] {
        let folder = tempfile::TempDir::new()?;
        let redis = RedisServer::start("127.0.0.1", folder.path(), &[], None).await?;
        let mut gateways = Vec::new();
        for _ in 0..2 {
            let proxy = Proxy::start(&redis.address()).await?;
            let address = proxy.address.to_string();
            let gateway = Gateway::start(Path::new(&binary), &["--redis", &address], &[]).await?;
            gateway.wait_ready(Duration::from_secs(10)).await?;
            proxy.delay(Duration::from_millis(round_trip) / 2);
            gateways.push((gateway, proxy));
        }
        let addresses: Vec<_> = gateways.iter().map(|(gateway, _)| gateway.address).collect();
        let mut plan = Plan::one_way(PAIRS, PAIRS, Duration::from_secs(6));
        for role in &mut plan.roles {
            role.to.truncate(1);
        }
        let traffic = Traffic::start(&addresses, plan).await?;
        tokio::time::sleep(WARM_UP).await;
        let (before, from) = (traffic.checker().totals().1, traffic.now());
        tokio::time::sleep(RUN).await;
        let (after, to) = (traffic.checker().totals().1, traffic.now());
        let report = traffic.finish(from, to).await?;
        println!(
            "{round_trip} ms to Redis and back: {:.0} messages/s, half of the answers within {:.0} ms; errors: {:?}; \
             broken promises: {:?}",
            (after - before) as f64 / (to - from).as_secs_f64(),
            report.median_answer_ms,
            report.errors,
            report.broken()
        );
    }
    Ok(())
}
