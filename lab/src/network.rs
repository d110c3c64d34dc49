//! Owns networks that can be cut: each gateway in a namespace of its own, its packets dropped at will.
//!
//! A gateway stands behind a pair of virtual interfaces; Redis listens on this machine's end of every
//! pair. Rules live in the gateway's namespace alone and go with it. Needs root and iptables.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::find;

/// Which packets of a gateway are dropped, by the port of a server.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// To the server.
    To(u16),
    /// From the server.
    From(u16),
    /// Both.
    Both(u16),
}

/// One namespace for each gateway.
#[derive(Debug)]
pub struct Network {
    tag: String,
    subnet: u8,
    gateways: usize,
}

/// Why networks can't be cut here, if so.
pub fn unavailable() -> Option<String> {
    let able = find("ip", "iproute2").and(find("iptables", "iptables")).map(drop);
    let able = able.and_then(|()| {
        if nix::unistd::geteuid().is_root() { Ok(()) } else { bail!("only root can make network namespaces") }
    });
    able.err().map(|error| error.to_string())
}

impl Network {
    /// Makes a namespace for each of `gateways`.
    ///
    /// # Errors
    /// When a command fails: its words are part of the error.
    pub fn new(gateways: usize) -> Result<Self> {
        let network = Self { tag: format!("tx{:04x}", fastrand::u16(..)), subnet: fastrand::u8(1..250), gateways };
        for gateway in 0..gateways {
            let name = network.namespace(gateway);
            let (outer, inner) = (format!("{name}o"), format!("{name}i"));
            let (here, there) = (network.address(gateway, 1), network.address(gateway, 2));
            let home = network.home();
            for command in [
                format!("ip netns add {name}"),
                format!("ip link add {outer} type veth peer name {inner}"),
                format!("ip link set {inner} netns {name}"),
                format!("ip addr add {here}/30 dev {outer}"),
                format!("ip link set {outer} up"),
                format!("ip -n {name} addr add {there}/30 dev {inner}"),
                format!("ip -n {name} link set {inner} up"),
                format!("ip -n {name} link set lo up"),
                format!("ip -n {name} route add default via {here}"),
            ] {
                run(&command)?;
            }
            if gateway == 0 {
                run(&format!("ip addr add {home}/32 dev lo"))?;
            }
        }
        Ok(network)
    }

    fn namespace(&self, gateway: usize) -> String {
        format!("{}-{gateway}", self.tag)
    }

    fn address(&self, gateway: usize, end: u8) -> String {
        format!("10.213.{}.{}", self.subnet, gateway * 4 + usize::from(end))
    }

    /// The address under which every gateway reaches this machine.
    pub fn home(&self) -> String {
        format!("10.214.{}.1", self.subnet)
    }

    /// What a gateway's command line begins with, and the address on which it listens.
    pub fn place(&self, gateway: usize) -> (Vec<String>, String) {
        let words = ["ip", "netns", "exec"].map(str::to_owned);
        (words.into_iter().chain([self.namespace(gateway)]).collect(), self.address(gateway, 2))
    }

    /// Drops packets of a gateway.
    ///
    /// # Errors
    /// When iptables refuses.
    pub fn cut(&self, gateway: usize, cut: &Cut) -> Result<()> {
        let name = self.namespace(gateway);
        let (to, from) = match *cut {
            Cut::To(port) => (Some(port), None),
            Cut::From(port) => (None, Some(port)),
            Cut::Both(port) => (Some(port), Some(port)),
        };
        if let Some(port) = to {
            run(&format!("ip netns exec {name} iptables -w -A OUTPUT -p tcp --dport {port} -j DROP"))?;
        }
        if let Some(port) = from {
            run(&format!("ip netns exec {name} iptables -w -A INPUT -p tcp --sport {port} -j DROP"))?;
        }
        Ok(())
    }

    /// Lets all packets of a gateway pass again.
    ///
    /// # Errors
    /// When iptables refuses.
    pub fn mend(&self, gateway: usize) -> Result<()> {
        run(&format!("ip netns exec {} iptables -w -F", self.namespace(gateway)))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for gateway in 0..self.gateways {
            // The interfaces go with the namespace. What is gone already need not go again.
            let _ = run(&format!("ip link del {}o", self.namespace(gateway)));
            let _ = run(&format!("ip netns del {}", self.namespace(gateway)));
        }
        let _ = run(&format!("ip addr del {}/32 dev lo", self.home()));
    }
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let program = words.next().context("an empty command")?;
    let output = Command::new(find(program, "iproute2 iptables")?).args(words).output()?;
    if !output.status.success() {
        bail!("`{command}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
