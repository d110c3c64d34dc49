//! What an idle session costs in resident memory: fresh, and after large messages went through it.
//!
//! `cargo build --release && cargo run --release -p texto-lab --example memory -- target/release/texto`, and with `--tls`
//! behind it for sessions that come by TLS.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use texto_lab::certificates::{Authority, TlsFiles, Validity, visitor};
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::tls_relay::TlsRelay;
use tokio_rustls::rustls::version::{TLS12, TLS13};

const SESSIONS: usize = 10_000;
/// Each takes three descriptors here.
const TLS_SESSIONS: usize = 5_000;
const LARGE: usize = 16_384;

#[tokio::main]
async fn main() -> Result<()> {
    let binary = std::env::args().nth(1).context("usage: memory PATH-OF-TEXTO [--tls] [FLAGS…]")?;
    let (tls, flags): (Vec<_>, Vec<_>) = std::env::args().skip(2).partition(|flag| flag == "--tls");
    let (tls, sessions) = if tls.is_empty() { (None, SESSIONS) } else { (Some(Tls::new()?), TLS_SESSIONS) };
    let own = tls.as_ref().map(Tls::flags).unwrap_or_default();
    let flags: Vec<&str> = own.iter().chain(&flags).map(String::as_str).collect();
    let gateway = Gateway::start(Path::new(&binary), &flags, &[]).await?;
    let relay = match &tls {
        None => None,
        Some(tls) => Some(TlsRelay::start(gateway.address, visitor(&tls.files.authority, &[&TLS13, &TLS12])?).await?),
    };
    let address = relay.as_ref().map_or(gateway.address, |relay| relay.address);
    let empty = gateway.resident_bytes()?;
    let mut clients = Vec::new();
    for _ in 0..sessions {
        clients.push(Client::connect(address).await?);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let report = |what: &str| {
        let now = gateway.resident_bytes()?;
        let each = now.saturating_sub(empty) / sessions as u64;
        println!("{what}: {each} bytes a session ({sessions} sessions, {} KiB in all)", now / 1024);
        anyhow::Ok(())
    };
    report("idle, fresh")?;
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
    report("busy")?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    report("idle, after 4 messages of 16 KiB each way")?;
    drop(clients);
    tokio::time::sleep(Duration::from_secs(15)).await;
    println!("all gone: {} KiB more than when empty", gateway.resident_bytes()?.saturating_sub(empty) / 1024);
    Ok(())
}

/// What a gateway needs for TLS.
struct Tls {
    files: TlsFiles,
    _folder: TempDir,
}

impl Tls {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let authority = Authority::new("an authority")?;
        let pair = authority.sign(&["127.0.0.1"], Validity::Now)?;
        let files = TlsFiles::create(folder.path(), "gateway", &authority, &pair)?;
        Ok(Self { files, _folder: folder })
    }

    fn flags(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        vec!["--tls-cert".into(), path(&self.files.certificate), "--tls-key".into(), path(&self.files.key)]
    }
}
