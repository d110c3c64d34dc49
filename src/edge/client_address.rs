//! Owns the question from which address a client comes when proxies stand between, and which addresses count as one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use ipnet::{IpNet, Ipv4Net};

/// The header in which proxies note whom they speak for, the nearest last.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Who is at the other end of the TCP connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Proxies whose word on the client's address is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Whether everybody is believed.
    pub fn are_all(&self) -> bool {
        self.0.iter().any(|network| network.prefix_len() == 0)
    }

    /// Reads addresses and networks such as `10.0.0.0/8,::1`, comma-separated.
    ///
    /// # Errors
    /// The parts that are neither.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let network = |part: &str| part.parse().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
        let (mut networks, mut bad) = (Vec::new(), Vec::new());
        for part in parts {
            match network(part) {
                Ok(network) => networks.push(canonical(network)),
                Err(_) => bad.push(part.to_owned()),
            }
        }
        if bad.is_empty() { Ok(Self(networks)) } else { Err(bad) }
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address nearest to the client that somebody trusted vouches for. Whatever stands before an
    /// untrusted address in the header was written by a stranger, and is not believed.
    pub fn client(&self, peer: Peer, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.0.ip().to_canonical();
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        // Bytes, for what a proxy appends may stand behind whatever its client has sent.
        for hop in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
            if !self.contains(client) {
                break;
            }
            let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| address(hop.trim())) else { break };
            client = address.to_canonical();
        }
        client
    }
}

/// An address, perhaps with a port, as some balancers write it.
fn address(hop: &str) -> Option<IpAddr> {
    hop.parse().or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip())).ok()
}

/// The same network in version 4, if it is one of those that are written in version 6.
fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(length)) if matches!(network, IpNet::V6(_)) => {
            Ipv4Net::new(address, length).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

/// Addresses that count as one wherever something is limited by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbourhood(IpAddr);

impl Neighbourhood {
    /// The one that `address` belongs to. Whoever has an address of version 6 usually has 2^64 of them (RFC 6177); one of
    /// version 4 is the same however it is written.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_64_is_one_neighbourhood_and_so_is_an_address_of_version_4_however_it_is_written() {
        let of = |text: &str| Neighbourhood::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    fn client(trusted: &str, peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let peer = Peer(SocketAddr::new(peer.parse().unwrap(), 1));
        TrustedProxies::parse(trusted).unwrap().client(peer, &headers).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_about_their_own_client() {
        let trusted = "10.0.0.0/8, ::1";
        assert_eq!(client(trusted, "10.1.1.1", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(client(trusted, "::ffff:10.1.1.1", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(client(trusted, "10.1.1.1", &["6.6.6.6, 203.0.113.7"]), "203.0.113.7", "a forged beginning");
        assert_eq!(client(trusted, "10.1.1.1", &["6.6.6.6", "203.0.113.7, 10.2.2.2"]), "203.0.113.7", "two proxies");
        assert_eq!(client(trusted, "10.1.1.1", &[]), "10.1.1.1");
        assert_eq!(client(trusted, "10.1.1.1", &["nonsense"]), "10.1.1.1");
        assert_eq!(client(trusted, "8.8.8.8", &["203.0.113.7"]), "8.8.8.8", "a stranger");
        assert_eq!(client("", "10.1.1.1", &["203.0.113.7"]), "10.1.1.1", "nobody is trusted");
        assert_eq!(client(trusted, "10.1.1.1", &["203.0.113.7:4711"]), "203.0.113.7");
        assert_eq!(client(trusted, "10.1.1.1", &["[2001:db8::7]:4711"]), "2001:db8::7");
        for mapped in ["::ffff:10.0.0.0/104", "::ffff:10.1.1.1"] {
            assert_eq!(client(mapped, "10.1.1.1", &["203.0.113.7"]), "203.0.113.7", "{mapped}");
            assert_eq!(client(mapped, "11.1.1.1", &["203.0.113.7"]), "11.1.1.1", "{mapped}");
        }
        assert_eq!(client("::/0", "2001:db8::1", &["203.0.113.7"]), "203.0.113.7");
    }

    #[test]
    fn what_a_client_has_written_hides_nothing_that_its_proxy_writes_behind_it() {
        let trusted = "10.0.0.0/8";
        // nginx' $proxy_add_x_forwarded_for writes one line.
        assert_eq!(client(trusted, "10.1.1.1", &["6.6.6.6, \u{fc}, 203.0.113.7"]), "203.0.113.7");
        // Others append to the last line that is there, and so the line before it would be believed.
        assert_eq!(client(trusted, "10.1.1.1", &["6.6.6.6", "\u{fc}, 203.0.113.7"]), "203.0.113.7");
        assert_eq!(client(trusted, "10.1.1.1", &["6.6.6.6", "\u{fc}"]), "10.1.1.1", "nobody knows whom it is for");
    }

    #[test]
    fn what_is_no_network_is_named() {
        assert_eq!(TrustedProxies::parse("10.0.0.0/8,10.0.0.0/99"), Err(vec!["10.0.0.0/99".to_owned()]));
        assert_eq!(TrustedProxies::parse(""), Ok(TrustedProxies::default()));
    }
}
