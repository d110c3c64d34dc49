//! Owns one redis-server or redis-sentinel process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use tokio::net::TcpStream;

use crate::certificates::TlsFiles;
use crate::process::{Process, find, free_port, until};

/// How long a server may take to answer after its start.
const START: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_secs(2);

/// A server that speaks Redis' protocol: redis-server, or the same in Sentinel mode.
#[derive(Debug)]
pub struct RedisServer {
    /// Its port.
    pub port: u16,
    host: String,
    program: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
    password: Option<String>,
    tls: Option<TlsFiles>,
    process: Option<Process>,
}

impl RedisServer {
    /// Starts a redis-server in `folder`, on a port of its own, without persistence.
    ///
    /// # Errors
    /// When it is missing or does not answer.
    pub async fn start(host: &str, folder: &Path, options: &[&str], password: Option<&str>) -> Result<Self> {
        Self::start_secured(host, folder, options, password, None).await
    }

    /// The same; with `tls` it speaks nothing else.
    ///
    /// # Errors
    /// When it is missing or does not answer.
    pub async fn start_secured(
        host: &str,
        folder: &Path,
        options: &[&str],
        password: Option<&str>,
        tls: Option<&TlsFiles>,
    ) -> Result<Self> {
        let mut last = None;
        for _ in 0..3 {
            let port = free_port()?;
            match Self::start_secured_on(host, port, folder, options, password, tls).await {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error), // Perhaps somebody else has the port now.
            }
        }
        Err(last.context("no attempt was made")?)
    }

    /// The same, on a given port.
    ///
    /// # Errors
    /// When it is missing or does not answer.
    pub async fn start_on(
        host: &str,
        port: u16,
        folder: &Path,
        options: &[&str],
        password: Option<&str>,
    ) -> Result<Self> {
        Self::start_secured_on(host, port, folder, options, password, None).await
    }

    async fn start_secured_on(
        host: &str,
        port: u16,
        folder: &Path,
        options: &[&str],
        password: Option<&str>,
        tls: Option<&TlsFiles>,
    ) -> Result<Self> {
        let program = find("redis-server", "redis-server")?;
        let mut arguments: Vec<String> = [
            "--bind",
            host,
            "--protected-mode",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
            "--repl-diskless-sync-delay",
            "0",
        ]
        .map(str::to_owned)
        .into();
        for (name, value) in listening(port, tls) {
            arguments.extend([format!("--{name}"), value]);
        }
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        if let Some(password) = password {
            arguments.extend(["--requirepass", password, "--masterauth", password].map(str::to_owned));
        }
        let mut server = Self {
            port,
            host: host.to_owned(),
            program,
            arguments,
            folder: folder.to_owned(),
            password: password.map(str::to_owned),
            tls: tls.cloned(),
            process: None,
        };
        server.restart().await?;
        Ok(server)
    }

    /// Starts a Sentinel with the configuration `config` (its port is added), which it will rewrite.
    ///
    /// # Errors
    /// When it is missing or does not answer.
    pub async fn start_sentinel(
        host: &str,
        port: u16,
        folder: &Path,
        config: &str,
        password: Option<&str>,
    ) -> Result<Self> {
        Self::start_secured_sentinel(host, port, folder, config, password, None).await
    }

    /// The same; with `tls` it speaks nothing else.
    ///
    /// # Errors
    /// When it is missing or does not answer.
    pub async fn start_secured_sentinel(
        host: &str,
        port: u16,
        folder: &Path,
        config: &str,
        password: Option<&str>,
        tls: Option<&TlsFiles>,
    ) -> Result<Self> {
        let program = find("redis-sentinel", "redis-sentinel")?;
        let path = folder.join(format!("sentinel-{port}.conf"));
        let listening = listening(port, tls).into_iter().map(|(name, value)| format!("{name} {value}\n"));
        let listening: String = listening.collect();
        std::fs::write(
            &path,
            format!("{listening}bind {host}\nprotected-mode no\ndir {}\n{config}", folder.display()),
        )?;
        let mut server = Self {
            port,
            host: host.to_owned(),
            program,
            arguments: vec![path.display().to_string()],
            folder: folder.to_owned(),
            password: password.map(str::to_owned),
            tls: tls.cloned(),
            process: None,
        };
        server.restart().await?;
        Ok(server)
    }

    /// Kills it if it runs, and starts it again on its port.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("server-{}.log", self.port)))?;
        let (arguments, folder) = (self.arguments.clone(), self.folder.clone());
        let process = Process::start(&format!("Redis on {}", self.port), &self.program, |command| {
            command.args(arguments).current_dir(folder).stdout(log).stderr(std::process::Stdio::null());
        })?;
        self.process = Some(process);
        let what = format!("Redis on port {} answers", self.port);
        let answer = until(&what, START, async || {
            let mut connection = self.client().await.ok()?;
            redis::cmd("PING").query_async::<String>(&mut connection).await.ok()
        });
        answer.await?;
        Ok(())
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// A connection for commands.
    ///
    /// # Errors
    /// When it can't be had within two seconds.
    pub async fn client(&self) -> Result<MultiplexedConnection> {
        let mut settings = RedisConnectionInfo::default();
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        if let Some(tls) = &self.tls {
            return tokio::time::timeout(STEP, self.secured_client(tls, settings)).await?;
        }
        let info = ConnectionAddr::Tcp(self.host.clone(), self.port).into_connection_info()?;
        let client = redis::Client::open(info.set_redis_settings(settings))?;
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(STEP)).set_response_timeout(Some(STEP));
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        Ok(tokio::time::timeout(STEP, connect).await??)
    }

    async fn secured_client(&self, tls: &TlsFiles, settings: RedisConnectionInfo) -> Result<MultiplexedConnection> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let stream = tls.connector()?.connect(self.host.clone().try_into()?, stream).await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(STEP));
        let (connection, driver) = MultiplexedConnection::new_with_config(&settings, stream, config).await?;
        tokio::spawn(driver); // It ends with the connection.
        Ok(connection)
    }

    /// One command, its answer read as `T`.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let (name, arguments) = words.split_first().context("an empty command")?;
        let mut connection = self.client().await?;
        Ok(redis::cmd(name).arg(arguments).query_async(&mut connection).await?)
    }

    /// "master" or "slave", as it says itself.
    pub async fn role(&self) -> Option<String> {
        let parts: Vec<redis::Value> = self.command(&["ROLE"]).await.ok()?;
        redis::from_redis_value(parts.into_iter().next()?).ok()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGSTOP: it hangs, its connections stay open.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Whether it was not killed.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }
}

/// Where it listens.
fn listening(port: u16, tls: Option<&TlsFiles>) -> Vec<(&'static str, String)> {
    match tls {
        None => vec![("port", port.to_string())],
        Some(tls) => tls.redis_options(port),
    }
}
