//! Owns a deployment with gateways on it, ready for traffic.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Cluster, ClusterOptions};
use crate::gateway::Gateway;
use crate::network::Network;
use crate::traffic::{Load, Traffic};

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
        let mut stage = Self { cluster, gateways: Vec::new(), network };
        for _ in 0..gateways {
            stage.add_gateway(binary, arguments).await?;
        }
        Ok(stage)
    }

    async fn add_gateway(&mut self, binary: &Path, arguments: &[&str]) -> Result<()> {
        let sentinels = self.cluster.sentinel_addresses();
        let mut all = vec!["--sentinels", sentinels.as_str()];
        all.extend_from_slice(arguments);
        let gateway = match &self.network {
            None => Gateway::start(binary, &all, &[]).await?,
            Some(network) => {
                let (before, host) = network.place(self.gateways.len());
                Gateway::start_within(&before, &format!("{host}:0"), binary, &all, &[]).await?
            }
        };
        gateway.wait_ready(READY).await?;
        let standby = !arguments.iter().any(|argument| argument.contains("standby-subscriptions=false"));
        gateway.wait_synced(if standby { self.cluster.servers.len() } else { 1 }, READY).await?;
        self.gateways.push(gateway);
        Ok(())
    }

    /// Where clients connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|gateway| gateway.address).collect()
    }

    /// Connects clients and lets them write.
    ///
    /// # Errors
    /// When they can't connect.
    pub async fn traffic(&self, load: Load) -> Result<Traffic> {
        Traffic::start(&self.addresses(), load).await
    }
}
