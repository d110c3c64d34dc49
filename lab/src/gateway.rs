//! Owns a gateway as a process, and what its log says.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::http;
use crate::process::{Process, find, until};

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Where clients connect.
    pub address: SocketAddr,
    process: Process,
    log: Arc<Mutex<Vec<String>>>,
}

/// A file of a new key for sessions that can be resumed, which all gateways of a deployment share; made by `binary`.
///
/// # Errors
/// When it can't make one.
pub async fn session_key_file(binary: &Path, folder: &Path) -> Result<PathBuf> {
    let output = tokio::process::Command::new(binary).arg("session-key").output().await?;
    anyhow::ensure!(output.status.success(), "{} has no key for us: {output:?}", binary.display());
    let file = folder.join("session-keys");
    tokio::fs::write(&file, output.stdout).await?;
    Ok(file)
}

const START: Duration = Duration::from_secs(10);

impl Gateway {
    /// Starts `binary` on a free port with `arguments` and nothing of this process' TEXTO_ variables.
    ///
    /// # Errors
    /// When it does not listen soon; its log is part of the error then.
    pub async fn start(binary: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::start_on("127.0.0.1:0", binary, arguments, variables).await
    }

    /// The same on a given address.
    ///
    /// # Errors
    /// When it does not listen soon; its log is part of the error then.
    pub async fn start_on(listen: &str, binary: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::start_within(&[], listen, binary, arguments, variables).await
    }

    /// The same, started by the command `before`, such as `ip netns exec NAME`.
    ///
    /// # Errors
    /// When it does not listen soon; its log is part of the error then.
    pub async fn start_within(
        before: &[String],
        listen: &str,
        binary: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let words: Vec<_> = before.iter().map(Into::into).chain([binary.as_os_str().to_owned()]).collect();
        let (program, rest) = words.split_first().context("no program")?;
        let program = if before.is_empty() { binary.to_owned() } else { find(&program.to_string_lossy(), "iproute2")? };
        let mut process = Process::start("the gateway", &program, |command| {
            command.args(rest);
            for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TEXTO_")) {
                command.env_remove(name);
            }
            command.args(["--listen", listen, "--log-format", "json"]).args(arguments);
            command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
        })?;
        let stderr = process.child().stderr.take().context("no standard error")?;
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = log.clone();
        // Ends with the process, whose end of the pipe it reads.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let listening = until("the gateway listens", START, async || {
            let lines = log.lock().unwrap_or_else(PoisonError::into_inner);
            let fields = lines.iter().find_map(|line| {
                let fields = serde_json::from_str::<Value>(line).ok()?.get("fields")?.clone();
                (fields["message"] == "listening").then_some(fields)
            })?;
            fields["address"].as_str()?.parse().ok()
        });
        let address = listening.await.with_context(|| format!("its log: {:?}", log.lock()))?;
        Ok(Self { address, process, log })
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Errors
    /// When it does not within `limit`; the last answer is part of the error.
    pub async fn wait_ready(&self, limit: Duration) -> Result<()> {
        let ready = until("the gateway is ready", limit, async || {
            (http::get(self.address, "/readyz", "").await.ok()?.status == 200).then_some(())
        });
        if let Err(error) = ready.await {
            let answer = http::get(self.address, "/readyz?verbose", "").await.map(|response| response.body);
            return Err(error.context(format!("{answer:?}")));
        }
        Ok(())
    }

    /// Waits until its links to all of `servers` Redis are synced, and it has been quiet for a while.
    ///
    /// # Errors
    /// When they are not within `limit`.
    pub async fn wait_synced(&self, servers: usize, limit: Duration) -> Result<()> {
        until("the gateway's links are synced", limit, async || {
            let health = self.health().await.ok()?;
            let links = health["checks"]["redis:links"][0]["observedValue"].as_array()?.clone();
            (links.iter().filter(|link| link["state"] == "synced").count() >= servers).then_some(())
        })
        .await
    }

    /// The answer of `/readyz`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn health(&self) -> Result<Value> {
        Ok(serde_json::from_str(&http::get(self.address, "/readyz", "").await?.body)?)
    }

    /// The value of a metric, named with its labels as Prometheus prints it.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = http::get(self.address, "/metrics", "").await.ok()?.body;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a line of its log that contains `text`.
    ///
    /// # Errors
    /// When there is none within `limit`; the log is part of the error.
    pub async fn wait_for_log(&self, text: &str, limit: Duration) -> Result<String> {
        let what = format!("the log says {text:?}");
        let line = until(&what, limit, async || self.log().into_iter().find(|line| line.contains(text)));
        line.await.with_context(|| self.log().join("\n"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit).await
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When /proc does not say.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// Threads that it has now.
    ///
    /// # Errors
    /// When /proc does not say.
    pub fn threads(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/task", self.process.pid()))?.count())
    }

    /// Processor time in seconds, spent so far.
    ///
    /// # Errors
    /// When /proc does not say.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.pid()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).context("no times");
        Ok((ticks(11)? + ticks(12)?) / 100.0)
    }
}
