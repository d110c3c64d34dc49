//! Owns a whole deployment of Redis: a master, its replicas, and Sentinels that watch them.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::certificates::{Authority, TlsFiles, Validity};
use crate::process::{free_port, until};
use crate::proxy::Proxy;
use crate::redis_server::RedisServer;

/// What a deployment looks like.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Replicas of the master.
    pub replicas: usize,
    /// Sentinels.
    pub sentinels: usize,
    /// Silence after which a Sentinel holds a server for dead.
    pub down_after: Duration,
    /// Sentinel's `failover-timeout`; for as long it bears with a replica that follows another address.
    pub failover_timeout: Duration,
    /// Password of the Redis servers.
    pub redis_password: Option<String>,
    /// Password of the Sentinels.
    pub sentinel_password: Option<String>,
    /// The address under which all servers are known.
    pub host: String,
    /// Further options of the Redis servers.
    pub redis_options: Vec<String>,
    /// Whether the last replica hears its master through a proxy: [`Cluster::replication`]. Such a deployment is never
    /// whole, as [`Cluster::wait_until_whole`] has it.
    pub proxied_replica: bool,
    /// Whether all of it speaks TLS, and nothing else; clients must show certificates.
    pub tls: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            replicas: 2,
            sentinels: 3,
            down_after: Duration::from_millis(1200),
            failover_timeout: Duration::from_secs(3),
            redis_password: None,
            sentinel_password: None,
            host: "127.0.0.1".to_owned(),
            redis_options: Vec::new(),
            proxied_replica: false,
            tls: false,
        }
    }
}

/// A running deployment.
#[derive(Debug)]
pub struct Cluster {
    /// The Redis servers; the first was the first master.
    pub servers: Vec<RedisServer>,
    /// The Sentinels.
    pub sentinels: Vec<RedisServer>,
    /// What stands between the master and the last replica, if that was asked for.
    pub replication: Option<Proxy>,
    /// What it shows and believes, if it speaks TLS.
    pub tls: Option<ClusterTls>,
    folder: TempDir,
}

/// The certificates of a deployment.
#[derive(Debug)]
pub struct ClusterTls {
    /// Who signed them all.
    pub authority: Authority,
    /// Those of the Redis servers and Sentinels.
    pub servers: TlsFiles,
    /// Those of the gateways.
    pub gateways: TlsFiles,
}

impl ClusterTls {
    fn new(folder: &Path, host: &str) -> Result<Self> {
        let authority = Authority::new("texto-lab authority")?;
        let servers = TlsFiles::create(folder, "servers", &authority, &authority.sign(&[host], Validity::Now)?)?;
        let own = authority.sign(&["gateway.example"], Validity::Now)?;
        let gateways = TlsFiles::create(folder, "gateways", &authority, &own)?;
        Ok(Self { authority, servers, gateways })
    }
}

const START: Duration = Duration::from_secs(45);

impl Cluster {
    /// Starts everything and waits until the Sentinels know everybody.
    ///
    /// # Errors
    /// When a program is missing or the servers do not find each other.
    pub async fn start(options: &ClusterOptions) -> Result<Self> {
        let folder = TempDir::with_prefix("texto-lab-")?;
        let tls = options.tls.then(|| ClusterTls::new(folder.path(), &options.host)).transpose()?;
        let files = tls.as_ref().map(|tls| &tls.servers);
        let (servers, replication) = start_servers(folder.path(), options, files).await?;
        let sentinels = start_sentinels(folder.path(), &servers, options, files).await?;
        let cluster = Self { servers, sentinels, replication, tls, folder };
        until("the Sentinels know each other and all servers", START, async || cluster.is_settled(options).await)
            .await?;
        Ok(cluster)
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn is_settled(&self, options: &ClusterOptions) -> Option<()> {
        for sentinel in &self.sentinels {
            let master: HashMap<String, String> = sentinel.command(&["SENTINEL", "MASTER", "mymaster"]).await.ok()?;
            let others = (options.sentinels - 1).to_string();
            if master.get("flags")? != "master" || *master.get("num-other-sentinels")? != others {
                return None;
            }
            for what in ["REPLICAS", "SENTINELS"] {
                let rows: Vec<HashMap<String, String>> =
                    sentinel.command(&["SENTINEL", what, "mymaster"]).await.ok()?;
                let expected = if what == "REPLICAS" { options.replicas } else { options.sentinels - 1 };
                let well = |row: &&HashMap<String, String>| {
                    row.get("flags").is_some_and(|flags| matches!(flags.as_str(), "slave" | "sentinel"))
                        && row.get("master-link-status").is_none_or(|status| status == "ok")
                };
                if rows.iter().filter(well).count() != expected {
                    return None;
                }
            }
        }
        Some(())
    }

    /// The addresses of the Sentinels, as `--sentinels` wants them.
    pub fn sentinel_addresses(&self) -> String {
        let addresses: Vec<_> = self.sentinels.iter().map(RedisServer::address).collect();
        addresses.join(",")
    }

    /// The flags by which a gateway finds it.
    pub fn flags(&self) -> Vec<String> {
        let tls = self.tls.iter().flat_map(|tls| ["redis", "sentinel"].map(|peer| tls.gateways.flags(peer)));
        ["--sentinels".to_owned(), self.sentinel_addresses()].into_iter().chain(tls.flatten()).collect()
    }

    /// The index of the server that most Sentinels which answer hold for the master.
    pub async fn master(&self) -> Option<usize> {
        let mut votes: HashMap<u16, usize> = HashMap::new();
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_running()) {
            let address: Result<Vec<String>> =
                sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]).await;
            if let Some(port) = address.ok().and_then(|parts| parts.get(1)?.parse().ok()) {
                *votes.entry(port).or_default() += 1;
            }
        }
        let (port, _) = votes.into_iter().max_by_key(|(_, votes)| *votes)?;
        self.servers.iter().position(|server| server.port == port)
    }

    /// Waits until the Sentinels have another master than `old`, and it says so itself.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn wait_for_new_master(&self, old: usize, limit: Duration) -> Result<usize> {
        until("the Sentinels promote another master", limit, async || {
            let master = self.master().await.filter(|master| *master != old)?;
            (self.servers[master].role().await? == "master").then_some(master)
        })
        .await
    }

    /// `SENTINEL FAILOVER`, tried again while the Sentinel is not ready for it.
    ///
    /// # Errors
    /// When no Sentinel takes it.
    pub async fn failover(&self) -> Result<()> {
        let sentinel = self.sentinels.iter().find(|sentinel| sentinel.is_running()).context("no Sentinel runs")?;
        until("a Sentinel takes SENTINEL FAILOVER", Duration::from_secs(15), async || {
            sentinel.command::<()>(&["SENTINEL", "FAILOVER", "mymaster"]).await.ok()
        })
        .await
    }

    /// Waits until every server that runs is the master or a connected replica of it, and the
    /// Sentinels find nothing wrong with it.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn wait_until_whole(&self, limit: Duration) -> Result<()> {
        until("all Redis servers are in their place again", limit, async || self.is_whole().await).await
    }

    async fn is_whole(&self) -> Option<()> {
        let master = self.master().await?;
        for (index, server) in self.servers.iter().enumerate().filter(|(_, server)| server.is_running()) {
            let role: Vec<redis::Value> = server.command(&["ROLE"]).await.ok()?;
            let text = |at: usize| redis::from_redis_value::<String>(role.get(at)?.clone()).ok();
            let right = match text(0)?.as_str() {
                "master" => index == master,
                _ => text(2)? == self.servers[master].port.to_string() && text(3)? == "connected",
            };
            if !right {
                return None;
            }
        }
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_running()) {
            let rows: Vec<HashMap<String, String>> =
                sentinel.command(&["SENTINEL", "REPLICAS", "mymaster"]).await.ok()?;
            let well = rows.iter().filter(|row| row.get("flags").is_some_and(|flags| flags == "slave")).count();
            if well + 1 < self.servers.iter().filter(|server| server.is_running()).count() {
                return None;
            }
        }
        Some(())
    }
}

async fn start_servers(
    folder: &Path,
    options: &ClusterOptions,
    tls: Option<&TlsFiles>,
) -> Result<(Vec<RedisServer>, Option<Proxy>)> {
    let password = options.redis_password.as_deref();
    let flags: Vec<&str> = options.redis_options.iter().map(String::as_str).collect();
    let master = RedisServer::start_secured(&options.host, folder, &flags, password, tls).await?;
    let proxy = if options.proxied_replica { Some(Proxy::start(&master.address()).await?) } else { None };
    let (direct, last) = (master.port, options.replicas);
    let mut servers = vec![master];
    for replica in 1..=last {
        let (host, port) = match &proxy {
            Some(proxy) if replica == last => (proxy.address.ip().to_string(), proxy.address.port()),
            _ => (options.host.clone(), direct),
        };
        let port = port.to_string();
        let flags = [flags.as_slice(), &["--replicaof", &host, &port]].concat();
        servers.push(RedisServer::start_secured(&options.host, folder, &flags, password, tls).await?);
    }
    until("the replicas are connected", START, async || {
        for server in &servers[1..] {
            let role: Vec<redis::Value> = server.command(&["ROLE"]).await.ok()?;
            let state: String = redis::from_redis_value(role.get(3)?.clone()).ok()?;
            (state == "connected").then_some(())?;
        }
        Some(())
    })
    .await?;
    Ok((servers, proxy))
}

/// The Sentinels are told of one another, so that nobody has to wait for their greetings.
async fn start_sentinels(
    folder: &Path,
    servers: &[RedisServer],
    options: &ClusterOptions,
    tls: Option<&TlsFiles>,
) -> Result<Vec<RedisServer>> {
    let Some(master) = servers.first() else { bail!("no Redis server") };
    let id = |_| std::iter::repeat_with(|| fastrand::digit(16)).take(40).collect::<String>();
    let ids: Vec<String> = (0..options.sentinels).map(id).collect();
    let ports = (0..options.sentinels).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
    let quorum = options.sentinels / 2 + 1;
    let mut sentinels = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let mut config = format!(
            "sentinel myid {}\nsentinel monitor mymaster {} {} {quorum}\n\
             sentinel down-after-milliseconds mymaster {}\nsentinel failover-timeout mymaster {}\n\
             sentinel parallel-syncs mymaster 1\n",
            ids[index],
            options.host,
            master.port,
            options.down_after.as_millis(),
            options.failover_timeout.as_millis(),
        );
        if let Some(password) = &options.redis_password {
            config.push_str(&format!("sentinel auth-pass mymaster {password}\n"));
        }
        if let Some(password) = &options.sentinel_password {
            config.push_str(&format!("requirepass {password}\nsentinel sentinel-pass {password}\n"));
        }
        for (other, id) in ids.iter().enumerate().filter(|(other, _)| *other != index) {
            config.push_str(&format!("sentinel known-sentinel mymaster {} {} {id}\n", options.host, ports[other]));
        }
        for replica in &servers[1..] {
            config.push_str(&format!("sentinel known-replica mymaster {} {}\n", options.host, replica.port));
        }
        let password = options.sentinel_password.as_deref();
        let start = RedisServer::start_secured_sentinel(&options.host, *port, folder, &config, password, tls);
        sentinels.push(start.await?);
    }
    Ok(sentinels)
}
