//! What an idle session costs in resident memory: fresh, and after large messages went through it.
//!
//! `cargo build --release && cargo run --release -p texto-lab --example memory -- target/release/texto`

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;

const SESSIONS: u64 = 10_000;
const LARGE: usize = 16_384;

#[tokio::main]
async fn main() -> Result<()> {
    let binary = std::env::args().nth(1).context("usage: memory PATH-OF-TEXTO [FLAGS…]")?;
    let flags: Vec<String> = std::env::args().skip(2).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let gateway = Gateway::start(Path::new(&binary), &flags, &[]).await?;
    gateway.wait_ready(Duration::from_secs(10)).await?;
    let empty = gateway.resident_bytes()?;
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        clients.push(Client::connect(gateway.address).await?);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    report("idle, fresh", &gateway, empty)?;
    let text = "x".repeat(LARGE);
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        let text = text.clone();
        tasks.spawn(async move {
            for _ in 0..4 {
                anyhow::ensure!(client.send(client.id, &text).await? == Answer::Ack, "not acknowledged");
                anyhow::ensure!(client.receive().await?.1.len() == LARGE, "not received");
            }
            Ok(client)
        });
    }
    let clients: Vec<_> = tasks.join_all().await.into_iter().collect::<Result<_>>()?;
    report("busy", &gateway, empty)?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    report("idle, after 4 messages of 16 KiB each way", &gateway, empty)?;
    drop(clients);
    tokio::time::sleep(Duration::from_secs(15)).await;
    println!("all gone: {} KiB more than when empty", gateway.resident_bytes()?.saturating_sub(empty) / 1024);
    Ok(())
}

fn report(what: &str, gateway: &Gateway, empty: u64) -> Result<()> {
    let now = gateway.resident_bytes()?;
    println!("{what}: {} bytes a session ({SESSIONS} sessions, {} KiB in all)", (now - empty) / SESSIONS, now / 1024);
    Ok(())
}
