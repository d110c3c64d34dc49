//! An echo server on the very code that upgrades and bounds Texto's sockets: what the conformance
//! tests of RFC 6455 run against.
//!
//! `cargo run --release --example echo -- 127.0.0.1:9001`

use std::net::SocketAddr;

use hyper::server::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use texto::edge::keep_alive::{Waiting, Watched};
use texto::edge::websocket::{self, Agreed, Bounds, Incoming, Message, Socket};
use texto::tls::stream::Stream;
use tokio::net::TcpListener;
use warp::Filter;
use warp::reply::Response;

/// The largest message of the conformance tests.
const LARGEST: usize = 64 * 1024 * 1024;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address: SocketAddr = std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:9001").parse()?;
    let listener = TcpListener::bind(address).await?;
    println!("echo on ws://{}/", listener.local_addr()?);
    let route = warp::header::headers_cloned().and(warp::ext::optional::<OnUpgrade>()).map(
        |headers: http::HeaderMap, upgrade: Option<OnUpgrade>| {
            let (Ok(response), Some(upgrade)) = (websocket::handshake(http::Version::HTTP_11, &headers, true), upgrade)
            else {
                let mut refusal = Response::default();
                *refusal.status_mut() = http::StatusCode::UPGRADE_REQUIRED;
                return refusal;
            };
            let bounds = Bounds { max_read: LARGEST, max_write: LARGEST };
            let compression = response.extensions().get().copied().map(Agreed::uncounted);
            tokio::spawn(async move {
                if let Ok(socket) = Socket::upgrade(upgrade, bounds, compression).await {
                    echo(socket).await;
                }
            });
            response.map(|()| Response::default().into_body())
        },
    );
    let waiting = Waiting::new(usize::MAX, prometheus::IntCounter::new("expelled", "Nobody is.")?);
    loop {
        let (stream, _) = listener.accept().await?;
        let stream = Watched::new(Stream::Plain(stream), waiting.connection(None));
        let service = TowerToHyperService::new(warp::service(route));
        let serve = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        tokio::spawn(serve.with_upgrades());
    }
}

async fn echo(mut socket: Socket) {
    loop {
        let sent = match socket.next().await {
            Incoming::Text(text) => socket.feed(Message::Text(text)).await,
            Incoming::Binary(bytes) => socket.feed(Message::Binary(bytes)).await,
            Incoming::Ping | Incoming::Pong(_) => Ok(()),
            Incoming::Violation(code, reason) => return socket.close(code, reason).await,
            Incoming::Closed(_) => return socket.answer_close().await,
            Incoming::Broken => return,
        };
        if sent.is_err() || socket.flush().await.is_err() {
            return;
        }
        // A session does this after a second of rest; here it is done all the time, to be tested.
        socket = socket.compact().await;
    }
}
