//! Owns `texto healthcheck`: one request to a running gateway, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::cli::HealthcheckArgs;

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
        match tokio::time::timeout(limit, ask(address, &args.path)).await {
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

async fn ask(address: SocketAddr, path: &str) -> Result<(), HealthcheckError> {
    let http = |error: &dyn std::fmt::Display| HealthcheckError::Http(address, error.to_string());
    let stream = TcpStream::connect(address).await.map_err(|error| HealthcheckError::Unreachable(address, error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| http(&error))?;
    let request = http::Request::get(path)
        .header(http::header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| http(&error))?;
    let response = tokio::select! {
        response = sender.send_request(request) => response.map_err(|error| http(&error))?,
        ended = connection => return Err(match ended {
            Ok(()) => http(&"the connection was closed"),
            Err(error) => http(&error),
        }),
    };
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(HealthcheckError::Unhealthy(address, status)),
    }
}
