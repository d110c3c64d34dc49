//! Owns an nginx in front of gateways, as the stack's own is: who refuses or is gone is passed over.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::http;
use crate::process::{Process, find, free_port, until};

const START: Duration = Duration::from_secs(10);

/// All that there is is passed on.
pub const LOCATIONS: &str = "
    location / {
      proxy_pass http://gateways;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }";

/// A running nginx. Ends when dropped.
#[derive(Debug)]
pub struct Nginx {
    /// Where clients connect.
    pub address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Nginx {
    /// Starts one in front of `gateways`.
    ///
    /// # Errors
    /// When it is not installed, or does not answer.
    pub async fn start(gateways: &[SocketAddr]) -> Result<Self> {
        let nginx = Self::start_with(gateways, LOCATIONS).await?;
        let serves = async || (http::get(nginx.address, "/", "").await.ok()?.status == 200).then_some(());
        until("nginx serves what the gateways do", START, serves).await?;
        Ok(nginx)
    }

    /// Starts one whose server has these `locations`; whether a gateway answers behind it is not looked at.
    ///
    /// # Errors
    /// When it is not installed, or does not answer.
    pub async fn start_with(gateways: &[SocketAddr], locations: &str) -> Result<Self> {
        let program = find("nginx", "nginx")?;
        let folder = TempDir::with_prefix("texto-nginx-")?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        std::fs::write(folder.path().join("nginx.conf"), configuration(folder.path(), address, gateways, locations))?;
        let process = Process::start("nginx", &program, |command| {
            command.arg("-p").arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf"));
            command.stdout(Stdio::null()).stderr(Stdio::null());
        })?;
        let nginx = Self { address, _process: process, _folder: folder };
        let answers = until("nginx answers", START, async || http::get(address, "/", "").await.ok().map(drop));
        if let Err(error) = answers.await {
            let log = std::fs::read_to_string(nginx._folder.path().join("error.log")).context("no log of nginx")?;
            return Err(error.context(log));
        }
        Ok(nginx)
    }
}

fn configuration(folder: &Path, address: SocketAddr, gateways: &[SocketAddr], locations: &str) -> String {
    let servers: String = gateways.iter().map(|gateway| format!("    server {gateway} max_fails=0;\n")).collect();
    let folder = folder.display();
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let paths: String = paths.iter().map(|path| format!("  {path}_temp_path {folder}/{path};\n")).collect();
    format!(
        "daemon off;
# One process: workers would outlive a master that is killed, as a test's end does it.
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
{paths}  access_log off;
  map $http_upgrade $connection_upgrade {{ \"\" \"\"; default upgrade; }}
  upstream gateways {{
    zone gateways 256k;
    least_conn;
{servers}  }}
  server {{
    listen {address};
    proxy_http_version 1.1;
    proxy_buffering off;
    proxy_next_upstream error timeout http_503;
    proxy_next_upstream_timeout 5s;
    proxy_connect_timeout 1s;
    proxy_read_timeout 75s;
{locations}
  }}
}}
"
    )
}
