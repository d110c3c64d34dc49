//! Owns the list of faults: what each breaks, and how much silence it may cost.

mod guests;
mod persons;

use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

pub use persons::PERSONS;

use crate::network;
use crate::stage::Stage;
use crate::traffic::{Manners, Traffic};

/// How long servers may take for what a scenario waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The default of --heartbeat-timeout: what a hang is noticed by at the latest.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence that nobody notices; "0" cannot be measured on a machine that others use.
const UNNOTICEABLE: Duration = Duration::from_millis(20);

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// One way to break things.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// Replicas in the deployment.
    pub replicas: usize,
    /// Whether the gateways stand in networks of their own, which can be cut.
    pub network: bool,
    /// Silence allowed beyond the machine's noise.
    pub limit: Duration,
    /// Codes of errors that are proper answers in it.
    pub errors: &'static [&'static str],
    /// Whether clients are asked to go elsewhere in it.
    pub moves: bool,
    /// Whether the last replica hears its master through a proxy.
    pub proxied_replica: bool,
    /// Length of the texts in bytes, at least.
    pub bytes: usize,
    /// Further options of the Redis servers.
    pub redis: &'static [&'static str],
    /// Further options of the gateways.
    pub flags: &'static [&'static str],
    /// Persons, whose sessions outlive their connections, and how they behave; without it, clients of version 1. Of
    /// persons, what is limited is how long a message may be on its way.
    pub persons: Option<Manners>,
    /// Where they are, to begin with.
    pub company: Company,
    /// Whether persons may be told that messages may be missing.
    pub told: bool,
    /// Whether answers may be late, for the gateway that owes them is stopped.
    pub late: bool,
    /// Breaks things.
    pub run: for<'a> fn(&'a mut Fault<'_>) -> Running<'a>,
}

/// Where persons are, and who writes to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// On all gateways; each writes to others on each of them.
    Spread,
    /// On all gateways; each writes to others on its own.
    Together,
    /// Fifty times as many, all on the first gateway, and hardly a word.
    Crowd,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scenario").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Scenario {
    /// Why it can't be run here, if so.
    pub fn unavailable(&self) -> Option<String> {
        self.network.then(network::unavailable).flatten()
    }
}

/// A fault in the making.
#[derive(Debug)]
pub struct Fault<'a> {
    stage: &'a mut Stage,
    traffic: &'a Traffic,
    /// Since when silence counts, on the traffic's clock.
    pub from: Duration,
    /// How long nothing could have been delivered by anybody.
    pub outage: Duration,
    /// Promises that were broken, besides those that all scenarios are judged by.
    pub broken: Vec<String>,
    /// What else was measured.
    pub notes: Vec<String>,
}

impl<'a> Fault<'a> {
    /// Nothing is broken yet.
    pub fn new(stage: &'a mut Stage, traffic: &'a Traffic) -> Self {
        let from = traffic.now();
        Self { stage, traffic, from, outage: Duration::ZERO, broken: Vec::new(), notes: Vec::new() }
    }

    async fn wait(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    async fn promoted(&self, old: usize) -> Result<usize> {
        self.stage.cluster.wait_for_new_master(old, PATIENCE).await
    }

    async fn whole(&self) -> Result<()> {
        self.stage.cluster.wait_until_whole(PATIENCE).await
    }

    fn kill_sentinels(&mut self) {
        for sentinel in &mut self.stage.cluster.sentinels {
            sentinel.kill();
        }
    }

    /// Restarts all gateways in order, one after the other, with a pause behind each.
    async fn restart_each(&mut self, seconds: f64) -> Result<()> {
        for gateway in 0..self.stage.gateways.len() {
            self.stage.gateways[gateway].signal(Signal::SIGTERM);
            self.stage.restart_gateway(gateway, PATIENCE).await?;
            self.wait(seconds).await;
        }
        Ok(())
    }

    async fn outage(&mut self, seconds: u64) -> Result<()> {
        let began = self.traffic.now();
        for server in &mut self.stage.cluster.servers {
            server.kill();
        }
        self.wait(seconds as f64).await;
        for server in &mut self.stage.cluster.servers {
            server.restart().await?;
        }
        self.outage = self.traffic.now() - began;
        self.wait(5.0).await;
        Ok(())
    }

    /// Cuts the first gateway off.
    async fn cut(&self, rules: &[network::Cut]) -> Result<()> {
        self.cut_all(1, rules).await
    }

    /// Cuts the first so many gateways off, for five seconds.
    async fn cut_all(&self, gateways: usize, rules: &[network::Cut]) -> Result<()> {
        let Some(network) = &self.stage.network else { return Ok(()) };
        for gateway in 0..gateways {
            for rule in rules {
                network.cut(gateway, rule)?;
            }
        }
        self.wait(5.0).await;
        for gateway in 0..gateways {
            network.mend(gateway)?;
        }
        self.wait(3.0).await;
        Ok(())
    }

    fn port(&self, server: usize) -> u16 {
        self.stage.cluster.servers[server].port
    }
}

macro_rules! scenario {
    ($name:literal, $about:literal, $limit:expr, $run:expr $(, $field:ident: $value:expr)*) => {
        Scenario {
            name: $name,
            about: $about,
            limit: $limit,
            run: $run,
            $($field: $value,)*
            ..DEFAULTS
        }
    };
}

const DEFAULTS: Scenario = Scenario {
    name: "",
    about: "",
    replicas: 2,
    network: false,
    limit: Duration::ZERO,
    errors: &[],
    moves: false,
    proxied_replica: false,
    bytes: 0,
    redis: &[],
    flags: &[],
    persons: None,
    company: Company::Spread,
    told: false,
    late: false,
    run: |_| Box::pin(async { Ok(()) }),
};

use scenario;

/// Those for clients of version 1, in the order of docs/performance.md.
pub const ALL: &[Scenario] = &[
    scenario!("kill-master", "SIGKILL of the master", Duration::from_millis(50), |fault| {
        Box::pin(async {
            fault.stage.cluster.servers[0].kill();
            fault.promoted(0).await?;
            fault.whole().await
        })
    }),
    scenario!("planned-failover", "SENTINEL FAILOVER", Duration::from_millis(50), |fault| {
        Box::pin(async {
            fault.stage.cluster.failover().await?;
            fault.promoted(0).await?;
            fault.whole().await
        })
    }),
    scenario!(
        "freeze-master",
        "SIGSTOP of the master; SIGCONT after the failover",
        HEARTBEAT.saturating_add(Duration::from_millis(100)),
        |fault| {
            Box::pin(async {
                fault.stage.cluster.servers[0].freeze();
                fault.promoted(0).await?;
                fault.wait(2.0).await;
                fault.stage.cluster.servers[0].thaw();
                fault.whole().await
            })
        }
    ),
    scenario!(
        "unplug-master",
        "all packets between the gateways and the master are dropped for 5 s; the Sentinels see nothing wrong",
        HEARTBEAT.saturating_add(Duration::from_millis(100)),
        |fault| {
            Box::pin(async {
                let gateways = fault.stage.gateways.len();
                fault.cut_all(gateways, &[network::Cut::Both(fault.port(0))]).await
            })
        },
        network: true
    ),
    scenario!(
        "cut-from-master",
        "a gateway's packets to and from the master are dropped for 5 s",
        HEARTBEAT.saturating_add(Duration::from_millis(100)),
        |fault| Box::pin(async { fault.cut(&[network::Cut::Both(fault.port(0))]).await }),
        network: true
    ),
    scenario!(
        "cut-from-all-but-one-replica",
        "a gateway reaches one replica only, for 5 s",
        HEARTBEAT.saturating_add(Duration::from_millis(100)),
        |fault| {
            Box::pin(async {
                let sentinels = fault.stage.cluster.sentinels.iter().map(|s| network::Cut::Both(s.port));
                let rules: Vec<_> = [0, 1].map(|s| network::Cut::Both(fault.port(s))).into_iter().chain(sentinels).collect();
                fault.cut(&rules).await
            })
        },
        network: true
    ),
    scenario!(
        "cut-to-master",
        "a gateway's packets to the master are dropped for 5 s, the master's arrive",
        HEARTBEAT.saturating_add(Duration::from_millis(100)),
        |fault| Box::pin(async { fault.cut(&[network::Cut::To(fault.port(0))]).await }),
        network: true
    ),
    scenario!(
        "cut-back-from-master",
        "the master's packets to a gateway are dropped for 5 s, the gateway's arrive",
        HEARTBEAT.saturating_add(Duration::from_millis(100)),
        |fault| Box::pin(async { fault.cut(&[network::Cut::From(fault.port(0))]).await }),
        network: true
    ),
    scenario!(
        "kill-master-twice",
        "the master is killed, and its successor as soon as it is promoted",
        Duration::from_millis(100),
        |fault| {
            Box::pin(async {
                fault.stage.cluster.servers[0].kill();
                let successor = fault.promoted(0).await?;
                fault.stage.cluster.servers[successor].kill();
                fault.promoted(successor).await?;
                fault.wait(3.0).await;
                Ok(())
            })
        }
    ),
    scenario!(
        "old-master-returns",
        "a killed master is back after 30 s and calls itself master until it is demoted",
        UNNOTICEABLE,
        |fault| {
            Box::pin(async {
                fault.stage.cluster.servers[0].kill();
                fault.promoted(0).await?;
                fault.wait(30.0).await;
                fault.from = fault.traffic.now();
                fault.stage.cluster.servers[0].restart().await?;
                fault.whole().await
            })
        }
    ),
    scenario!(
        "restart-all-redis",
        "every Redis is killed and started again, one after the other",
        Duration::from_millis(100),
        |fault| {
            Box::pin(async {
                for server in [1, 2, 0] {
                    fault.stage.cluster.servers[server].kill();
                    if fault.stage.cluster.master().await == Some(server) {
                        fault.promoted(server).await?;
                    }
                    fault.wait(1.0).await;
                    fault.stage.cluster.servers[server].restart().await?;
                    fault.whole().await?;
                    fault.wait(2.0).await;
                }
                Ok(())
            })
        }
    ),
    scenario!(
        "restart-all-sentinels",
        "every Sentinel is killed and started again, one after the other",
        Duration::from_millis(100),
        |fault| {
            Box::pin(async {
                for sentinel in 0..3 {
                    fault.stage.cluster.sentinels[sentinel].kill();
                    fault.wait(2.0).await;
                    fault.stage.cluster.sentinels[sentinel].restart().await?;
                    fault.wait(2.0).await;
                }
                Ok(())
            })
        }
    ),
    scenario!(
        "one-replica",
        "with one replica: the master is killed; the promotion then kills the only link left",
        Duration::from_millis(100),
        |fault| {
            Box::pin(async {
                fault.stage.cluster.servers[0].kill();
                fault.promoted(0).await?;
                fault.wait(4.0).await;
                Ok(())
            })
        },
        replicas: 1
    ),
    scenario!("kill-sentinels", "all Sentinels are killed; the master lives", UNNOTICEABLE, |fault| {
        Box::pin(async {
            fault.kill_sentinels();
            fault.wait(8.0).await;
            Ok(())
        })
    }),
    scenario!(
        "kill-sentinels-then-master",
        "all Sentinels are killed, then the master: the replicas carry on alone",
        Duration::from_millis(50),
        |fault| {
            Box::pin(async {
                fault.kill_sentinels();
                fault.wait(3.0).await;
                fault.stage.cluster.servers[0].kill();
                fault.wait(8.0).await;
                Ok(())
            })
        }
    ),
    scenario!(
        "outage-3s",
        "all Redis are dead for 3 s: below the send deadline, so nothing is lost",
        Duration::from_millis(300),
        |fault| Box::pin(fault.outage(3))
    ),
    scenario!(
        "outage-15s",
        "all Redis are dead for 15 s: sends get EBROKER, none a false ack",
        Duration::from_millis(300),
        |fault| Box::pin(fault.outage(15)),
        errors: &["EBROKER"]
    ),
    scenario!(
        "pause-gateway",
        "a gateway is stopped for 0.7 s, three times: what Redis drops of its long texts, nobody calls delivered",
        Duration::from_millis(100),
        |fault| {
            Box::pin(async {
                for _ in 0..3 {
                    fault.stage.gateways[0].signal(Signal::SIGSTOP);
                    fault.wait(0.7).await;
                    fault.stage.gateways[0].signal(Signal::SIGCONT);
                    fault.wait(2.0).await;
                }
                Ok(())
            })
        },
        bytes: 16_000,
        // Of the rest the kernel holds some megabytes.
        redis: &["--client-output-buffer-limit", "pubsub", "1mb", "1mb", "1"],
        errors: &["EBROKER", "EBUSY"]
    ),
    scenario!(
        "isolate-gateway",
        "a gateway's packets to and from all Redis and Sentinels are dropped for 25 s: its clients are asked to leave",
        HEARTBEAT.saturating_add(Duration::from_millis(100)),
        |fault| {
            Box::pin(async {
                let Some(network) = &fault.stage.network else { return Ok(()) };
                let cluster = &fault.stage.cluster;
                for server in cluster.servers.iter().chain(&cluster.sentinels) {
                    network.cut(0, &network::Cut::Both(server.port))?;
                }
                fault.wait(25.0).await;
                network.mend(0)?;
                fault.stage.gateways[0].wait_ready(PATIENCE).await?;
                fault.wait(3.0).await;
                Ok(())
            })
        },
        network: true,
        flags: &["--drain-window", "3s"],
        moves: true,
        errors: &["EBROKER", "ENOTCONN"]
    ),
    scenario!(
        "lagging-replica",
        "a replica is 9 s behind, then 65 s: what it tells late is known already",
        UNNOTICEABLE,
        |fault| {
            Box::pin(async {
                let Some(replication) = &fault.stage.cluster.replication else { return Ok(()) };
                for (lag, seconds) in [(9, 15.0), (65, 75.0)] {
                    replication.delay(Duration::from_secs(lag));
                    fault.wait(seconds).await;
                }
                Ok(())
            })
        },
        proxied_replica: true,
        // Neither end may hold the other for dead meanwhile.
        redis: &["--repl-timeout", "600"]
    ),
    scenario!(
        "stale-replicas",
        "the master is killed without Sentinels; replicas with replica-serve-stale-data no refuse all they can",
        Duration::from_millis(50),
        |fault| {
            Box::pin(async {
                fault.kill_sentinels();
                fault.wait(3.0).await;
                fault.stage.cluster.servers[0].kill();
                fault.wait(8.0).await;
                Ok(())
            })
        },
        redis: &["--replica-serve-stale-data", "no"]
    ),
    scenario!(
        "flapping-replica",
        "one replica hangs, the other and a Sentinel are killed and started again and again",
        UNNOTICEABLE,
        |fault| {
            Box::pin(async {
                fault.stage.cluster.servers[2].freeze();
                for _ in 0..10 {
                    fault.stage.cluster.servers[1].kill();
                    fault.stage.cluster.sentinels[2].kill();
                    fault.wait(0.5).await;
                    fault.stage.cluster.servers[1].restart().await?;
                    fault.stage.cluster.sentinels[2].restart().await?;
                    fault.wait(0.5).await;
                }
                fault.stage.cluster.servers[2].thaw();
                fault.whole().await
            })
        }
    ),
    scenario!(
        "drain-gateway",
        "the gateways are drained and started anew, one after the other: a rolling update",
        Duration::from_millis(50),
        |fault| Box::pin(fault.restart_each(2.0)),
        flags: &["--drain-delay", "1s", "--drain-window", "3s"],
        moves: true,
        errors: &["ENOTCONN"]
    ),
];
