//! Owns a relay that puts TLS on connections: whoever speaks plainly to it speaks TLS to a gateway.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// A running relay. When it is dropped, its connections break.
#[derive(Debug)]
pub struct TlsRelay {
    /// Where it listens, for those who speak plainly.
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

impl TlsRelay {
    /// Starts one in front of `target`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(target: SocketAddr, connector: TlsConnector) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let connector = connector.clone();
                // Whichever side breaks, breaks the other.
                connections.spawn(async move { drop(relay(stream, target, &connector).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, _task: task })
    }
}

async fn relay(mut plain: TcpStream, target: SocketAddr, connector: &TlsConnector) -> Result<()> {
    let secured = TcpStream::connect(target).await?;
    plain.set_nodelay(true)?;
    secured.set_nodelay(true)?;
    let mut secured = connector.connect(ServerName::from(target.ip()), secured).await?;
    copy_bidirectional(&mut plain, &mut secured).await?;
    Ok(())
}
