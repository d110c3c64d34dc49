//! Owns a deployment with gateways on it, ready for traffic.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Cluster, ClusterOptions};
use crate::gateway::Gateway;
use crate::network::Network;
use crate::traffic::{Plan, Traffic};

/// How long gateways may take to be ready.
const READY: Duration = Duration::from_secs(15);

/// Redis, Sentinels and gateways.
#[derive(Debug)]
pub struct Stage {
    /// Redis and Sentinels.
    pub cluster: Cluster,
    /// The gateways.
    pub gateways: Vec<Gateway>,
    /// The gateways' own networks, if they have some.
    pub network: Option<Network>,
    binary: PathBuf,
    arguments: Vec<String>,
}

impl Stage {
    /// Starts everything and waits until it is ready and calm.
    ///
    /// # Errors
    /// When it does not get so.
    pub async fn start(binary: &Path, options: &ClusterOptions, gateways: usize, arguments: &[&str]) -> Result<Self> {
        Self::start_with(binary, options, gateways, arguments, None).await
    }

    /// The same; with `network`, the gateways stand in as many networks of their own.
    ///
    /// # Errors
    /// When it does not get so.
    pub async fn start_with(
        binary: &Path,
        options: &ClusterOptions,
        gateways: usize,
        arguments: &[&str],
        network: Option<usize>,
    ) -> Result<Self> {
        let network = network.map(Network::new).transpose()?;
        let mut options = options.clone();
        if let Some(network) = &network {
            options.host = network.home();
        }
        let cluster = Cluster::start(&options).await?;
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut stage = Self { cluster, gateways: Vec::new(), network, binary: binary.to_owned(), arguments };
        for index in 0..gateways {
            let gateway = stage.start_gateway(index, None).await?;
            stage.gateways.push(gateway);
        }
        Ok(stage)
    }

    /// Waits until a gateway has ended, and starts another in its place.
    ///
    /// # Errors
    /// When it does not end within `limit`, or the other does not get ready.
    pub async fn restart_gateway(&mut self, index: usize, limit: Duration) -> Result<()> {
        self.gateways[index].wait_exit(limit).await?;
        let address = self.gateways[index].address;
        self.gateways[index] = self.start_gateway(index, Some(address)).await?;
        Ok(())
    }

    async fn start_gateway(&self, index: usize, address: Option<SocketAddr>) -> Result<Gateway> {
        let flags = self.cluster.flags();
        let arguments: Vec<&str> = flags.iter().chain(&self.arguments).map(String::as_str).collect();
        let (before, host) = match &self.network {
            None => (Vec::new(), "127.0.0.1".to_owned()),
            Some(network) => network.place(index),
        };
        let listen = address.map_or_else(|| format!("{host}:0"), |address| address.to_string());
        let gateway = Gateway::start_within(&before, &listen, &self.binary, &arguments, &[]).await?;
        gateway.wait_ready(READY).await?;
        let standby = !arguments.iter().any(|argument| argument.contains("standby-subscriptions=false"));
        gateway.wait_synced(if standby { self.cluster.servers.len() } else { 1 }, READY).await?;
        Ok(gateway)
    }

    /// Where clients connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|gateway| gateway.address).collect()
    }

    /// Connects clients and lets them write.
    ///
    /// # Errors
    /// When they can't connect.
    pub async fn traffic(&self, plan: impl Into<Plan>) -> Result<Traffic> {
        Traffic::start(&self.addresses(), plan).await
    }
}
