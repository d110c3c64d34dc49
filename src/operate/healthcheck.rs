//! Owns `texto healthcheck`: one request to a running gateway, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::config::cli::HealthcheckArgs;
use crate::operate::inquiry;
use crate::tls;
use crate::tls::stream::Stream;

/// Why a gateway is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum HealthcheckError {
    /// An argument makes no sense.
    #[error("{0}")]
    Argument(String),
    /// It can't be reached.
    #[error("{0} can't be reached: {1}")]
    Unreachable(SocketAddr, std::io::Error),
    /// It did not answer in time.
    #[error("{0} did not answer within {1:?}")]
    Silent(SocketAddr, Duration),
    /// Its answer was no HTTP.
    #[error("{0} did not answer properly: {1}")]
    Http(SocketAddr, String),
    /// It does not speak HTTP without TLS.
    #[error("{0} answered 400 Bad Request: if it speaks TLS, give --tls-cert (TEXTO_TLS_CERT) as it has it")]
    Refused(SocketAddr),
    /// It says that it is not healthy.
    #[error("{0} answered {1}")]
    Unhealthy(SocketAddr, http::StatusCode),
}

/// Asks a gateway.
///
/// # Errors
/// When it is not healthy, or can't be asked.
pub fn run(args: &HealthcheckArgs) -> Result<(), HealthcheckError> {
    let limit = humantime::parse_duration(&args.timeout)
        .map_err(|_| HealthcheckError::Argument(format!("--timeout: {:?} is no duration such as 2s", args.timeout)))?;
    let address: SocketAddr = args.listen.parse().map_err(|_| {
        HealthcheckError::Argument(format!(
            "--listen (TEXTO_LISTEN): {:?} is no address such as 0.0.0.0:8398",
            args.listen
        ))
    })?;
    let address = reachable(address);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| HealthcheckError::Unreachable(address, error))?;
    runtime.block_on(async {
        let by_tls = args.tls_cert.as_ref().is_some_and(|path| !path.is_empty());
        match tokio::time::timeout(limit, ask(address, by_tls, &args.path)).await {
            Ok(result) => result,
            Err(_) => Err(HealthcheckError::Silent(address, limit)),
        }
    })
}

/// Where a listener on `address` is reached from the same machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(address: SocketAddr, by_tls: bool, path: &str) -> Result<(), HealthcheckError> {
    let http = |error: &dyn std::fmt::Display| HealthcheckError::Http(address, error.to_string());
    let stream = TcpStream::connect(address).await.map_err(|error| HealthcheckError::Unreachable(address, error))?;
    let stream = match by_tls {
        true => tls::unverified::connect(stream, &address.ip().to_string()).await.map_err(|error| http(&error))?,
        false => Stream::Plain(stream),
    };
    let status = inquiry::get(stream, &address.to_string(), path, async |response| response.status()).await;
    match status.map_err(|error| http(&error))? {
        status if status.is_success() => Ok(()),
        http::StatusCode::BAD_REQUEST if !by_tls => Err(HealthcheckError::Refused(address)),
        status => Err(HealthcheckError::Unhealthy(address, status)),
    }
}
