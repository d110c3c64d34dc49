//! Owns the look-up of host names, and connecting to whichever of a name's addresses answers.
//!
//! Asked is the system itself (`getaddrinfo`), in threads of its own. It knows `/etc/hosts`, search domains, `ndots`,
//! containers' name servers and whatever else an operator sees with `getent hosts`, and reads changes of
//! `/etc/resolv.conf`; a resolver crate has its own idea of each. Its flaw is that it can't be cancelled: where name servers
//! never answer, a look-up takes minutes. So there is one at a time for each name, whoever asks meanwhile waits for
//! that one, nobody waits longer than they want, and the end of the program waits for none.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

/// Names looked up at a time: more than a node has servers and Sentinels.
const MOST: usize = 128;
/// An address of a name that has not answered for this long gets company by the next. (RFC 8305, section 5.)
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// The addresses of a name, or why there are none.
type Answer = Result<Vec<IpAddr>, String>;
type LookUps = BTreeMap<String, watch::Receiver<Option<Answer>>>;

/// The look-ups under way. They are the process', as their threads are.
static UNDER_WAY: Mutex<LookUps> = Mutex::new(BTreeMap::new());

fn look_ups() -> MutexGuard<'static, LookUps> {
    // Each change is one call.
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names that are being looked up now, each by a thread.
pub fn under_way() -> usize {
    look_ups().len()
}

/// The addresses of `host`, which may be an address itself; at least one. Cancel safe.
///
/// # Errors
/// When it has none, or the name servers don't say so within `limit`.
pub async fn resolve(host: &str, port: u16, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let mut answer = look_up(host)?;
    let answer = match timeout(limit, answer.wait_for(Option::is_some)).await {
        Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Err("nothing was said".to_owned())),
        Ok(Err(_)) => Err("the look-up broke off".to_owned()),
        Err(_) => Err(format!("the name servers have not answered within {limit:?}")),
    };
    let addresses =
        answer.map_err(|reason| io::Error::other(format!("the name {host:?} can't be resolved: {reason}")))?;
    Ok(addresses.into_iter().map(|address| (address, port).into()).collect())
}

/// Joins the look-up of `host`, or begins one.
fn look_up(host: &str) -> io::Result<watch::Receiver<Option<Answer>>> {
    let mut look_ups = look_ups();
    if let Some(answer) = look_ups.get(host) {
        return Ok(answer.clone());
    }
    if look_ups.len() >= MOST {
        return Err(io::Error::other(format!("the name servers don't answer: {MOST} look-ups are under way already")));
    }
    let (sender, answer) = watch::channel(None);
    let name = host.to_owned();
    std::thread::Builder::new().name("texto-look-up".to_owned()).spawn(move || {
        let found = (name.as_str(), 0).to_socket_addrs();
        let mut addresses = Vec::new();
        let answer = found.map_err(|error| error.to_string()).and_then(|found| {
            for address in found.map(|address| address.ip()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok(addresses) }
        });
        // Whoever comes from here on begins a new one; whoever waits has the answer.
        self::look_ups().remove(&name);
        sender.send_replace(Some(answer));
    })?;
    look_ups.insert(host.to_owned(), answer.clone());
    Ok(answer)
}

/// Connects to `host`: to the first of its addresses that takes the connection. Cancel safe.
///
/// # Errors
/// When none does within `limit`, of which the look-up may take three quarters.
pub async fn connect(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let connect = async {
        let addresses = resolve(host, port, limit * 3 / 4).await?;
        connect_any(addresses).await
    };
    let silent = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
    timeout(limit, connect).await.unwrap_or_else(|_| Err(silent()))
}

async fn connect_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut left = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::other("the name has no address");
    loop {
        match left.next() {
            Some(address) => attempts.push(TcpStream::connect(address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if left.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn addresses_names_of_the_hosts_file_and_nonsense() {
        let v6 = resolve("::1", 7, LIMIT).await.unwrap();
        assert_eq!(v6, ["[::1]:7".parse().unwrap()]);
        assert!(resolve("localhost", 7, LIMIT).await.unwrap().contains(&"127.0.0.1:7".parse().unwrap()));
        let error = resolve("no such name", 7, LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("\"no such name\""), "{error}");
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        // One that refuses, and one that nobody has: it is silent, or out of reach.
        let refuses = "127.0.0.1:1".parse().unwrap();
        for first in [refuses, "192.0.2.1:9".parse().unwrap()] {
            let stream = timeout(LIMIT, connect_any(vec![first, there])).await.unwrap().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), there);
        }
        assert!(connect_any(vec![refuses, refuses]).await.is_err());
    }
}
