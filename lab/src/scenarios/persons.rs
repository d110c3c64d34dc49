//! Owns the faults that persons, whose sessions outlive their connections, must not notice.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{Company, DEFAULTS, Fault, PATIENCE, Scenario, guests, scenario};
use crate::http;
use crate::network;
use crate::traffic::{Manners, Order, Traffic};

const MS: Duration = Duration::from_millis(1);
/// Of what the table says nothing.
const UNLIMITED: Duration = Duration::from_secs(3600);
/// How soon 99 of 100 must be back when all come at once.
const STORM: Duration = Duration::from_secs(3);

/// They are back soon.
const PROMPT: Manners = Manners {
    pause: (Duration::from_millis(50), Duration::from_millis(50)),
    quiet: (Duration::from_secs(10), Duration::from_secs(5)),
    dial: Duration::from_secs(1),
    uses_library: false,
};
/// They have the Rust client.
const USERS: Manners = Manners { uses_library: true, ..PROMPT };
/// They are back at once, all of them, and have time.
const EAGER: Manners = Manners { pause: (Duration::ZERO, Duration::ZERO), dial: Duration::from_secs(10), ..PROMPT };

impl Fault<'_> {
    /// Each third person's network resets its connection, beginning with `first`.
    fn reset_third(&self, first: usize, pause: Duration) {
        reset_third(self.traffic, first, pause);
    }

    /// Waits until every session has two copies again, and notes how long that took.
    async fn two_copies(&mut self) -> Result<()> {
        let began = std::time::Instant::now();
        self.traffic.copied(PATIENCE).await?;
        self.notes.push(format!("two copies again after {:.0?}", began.elapsed()));
        Ok(())
    }

    async fn back(&self) -> Result<()> {
        self.traffic.attached(PATIENCE).await
    }
}

fn reset_third(traffic: &Traffic, first: usize, pause: Duration) {
    for person in (first % 3..traffic.persons()).step_by(3) {
        traffic.order(person, Order::Reset(pause));
    }
}

/// A gateway dies, and its persons come back.
async fn kill_one(fault: &mut Fault<'_>) -> Result<()> {
    fault.stage.gateways[0].kill();
    fault.wait(5.0).await;
    fault.back().await
}

/// All gateways are restarted in order, one after the other.
async fn roll(fault: &mut Fault<'_>) -> Result<()> {
    let Fault { stage, traffic, .. } = fault;
    let roll = async {
        for gateway in 0..stage.gateways.len() {
            stage.gateways[gateway].signal(Signal::SIGTERM);
            stage.restart_gateway(gateway, PATIENCE).await?;
        }
        Ok(())
    };
    let leave = async {
        for third in 0.. {
            reset_third(traffic, third, 6000 * MS);
            tokio::time::sleep(6500 * MS).await;
        }
    };
    tokio::select! {
        rolled = roll => rolled,
        () = leave => Ok(()),
    }
}

/// All persons of the first gateway come back to the others at once; do those stay well, and how soon are they back?
async fn storm(fault: &mut Fault<'_>) -> Result<()> {
    let killed = fault.traffic.now();
    fault.stage.gateways[0].kill();
    let others: Vec<_> = fault.stage.addresses().split_off(1);
    let look = async {
        let mut stuck = 0;
        loop {
            for address in &others {
                let answer = tokio::time::timeout(1000 * MS, http::get(*address, "/livez", "")).await;
                stuck += usize::from(!matches!(answer, Ok(Ok(answer)) if answer.status == 200));
            }
            tokio::time::sleep(100 * MS).await;
            let returns = fault.traffic.returns();
            if returns.len() >= fault.traffic.persons() || fault.traffic.now() - killed > PATIENCE {
                return (stuck, returns);
            }
        }
    };
    let (stuck, returns) = look.await;
    if stuck > 0 {
        fault.broken.push(format!("/livez was not answered {stuck} times"));
    }
    let persons = fault.traffic.persons();
    let soon = returns.iter().filter(|back| back.at - killed <= STORM).count();
    if soon * 100 < persons * 99 {
        fault.broken.push(format!("{soon} of {persons} were back within {STORM:?}"));
    }
    let mut times: Vec<_> = returns.iter().map(|back| back.at - killed).collect();
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    fault.notes.push(format!("half of {persons} were back after {:.2?}, 99 % after {:.2?}", at(50), at(99)));
    Ok(())
}

/// Those for persons, in the order of docs/performance.md.
pub const PERSONS: &[Scenario] = &[
    scenario!(
        "drop-clients",
        "the network resets the connections of a third of the persons, ten times, then of all; they are back after 50 ms",
        Duration::from_millis(100),
        |fault| {
            Box::pin(async {
                for round in 0..10 {
                    fault.reset_third(round, 50 * MS);
                    fault.wait(1.0).await;
                }
                (0..3).for_each(|third| fault.reset_third(third, 50 * MS));
                fault.wait(1.0).await;
                fault.back().await
            })
        },
        persons: Some(PROMPT)
    ),
    scenario!(
        "drop-clients-long",
        "the network resets the connections of a third of the persons, three times; they are back after 8 s",
        Duration::from_millis(100),
        |fault| {
            Box::pin(async {
                for round in 0..3 {
                    fault.reset_third(round, 8000 * MS);
                    fault.wait(9.0).await;
                }
                fault.back().await
            })
        },
        persons: Some(PROMPT)
    ),
    scenario!(
        "kill-gateway",
        "SIGKILL of a gateway",
        Duration::from_millis(300),
        |fault| Box::pin(kill_one(fault)),
        persons: Some(PROMPT)
    ),
    scenario!(
        "kill-shared-gateway",
        "SIGKILL of a gateway; each person writes to persons on its own gateway",
        Duration::from_millis(300),
        |fault| Box::pin(kill_one(fault)),
        persons: Some(PROMPT),
        company: Company::Together
    ),
    scenario!(
        "freeze-gateway",
        "SIGSTOP of a gateway for 25 s, then SIGCONT: persons notice by silence",
        Duration::from_millis(15_300),
        |fault| {
            Box::pin(async {
                fault.stage.gateways[0].signal(Signal::SIGSTOP);
                fault.wait(25.0).await;
                fault.stage.gateways[0].signal(Signal::SIGCONT);
                fault.wait(8.0).await;
                fault.back().await
            })
        },
        persons: Some(PROMPT),
        errors: &["EBROKER"],
        late: true
    ),
    scenario!(
        "terminate-gateway",
        "SIGTERM of a gateway: its persons are told to connect again",
        Duration::from_millis(100),
        |fault| {
            Box::pin(async {
                fault.stage.gateways[0].signal(Signal::SIGTERM);
                fault.stage.gateways[0].wait_exit(PATIENCE).await?;
                fault.wait(2.0).await;
                fault.back().await
            })
        },
        persons: Some(PROMPT),
        flags: &["--drain-delay", "1s", "--drain-window", "3s"],
        moves: true
    ),
    scenario!(
        "restart-then-kill",
        "a gateway is restarted in order, and another is killed as soon as every session has two copies again",
        Duration::from_millis(300),
        |fault| {
            Box::pin(async {
                fault.stage.gateways[0].signal(Signal::SIGTERM);
                fault.stage.restart_gateway(0, PATIENCE).await?;
                fault.two_copies().await?;
                fault.stage.gateways[1].kill();
                fault.wait(5.0).await;
                fault.back().await
            })
        },
        persons: Some(PROMPT),
        flags: &["--drain-delay", "1s", "--drain-window", "3s"],
        moves: true
    ),
    scenario!(
        "resend-elsewhere",
        "persons write twenty messages at once, lose their connection before an answer, and send them again elsewhere",
        UNLIMITED,
        |fault| {
            Box::pin(async {
                for round in 0..12 {
                    for person in (round % 3..fault.traffic.persons()).step_by(3) {
                        fault.traffic.order(person, Order::Burst(20));
                    }
                    fault.wait(1.0).await;
                }
                fault.back().await
            })
        },
        persons: Some(PROMPT)
    ),
    scenario!(
        "roll-gateways",
        "all gateways are restarted in order, one after the other; a third of the persons is away for 6 s at any time",
        UNLIMITED,
        |fault| {
            Box::pin(async {
                roll(fault).await?;
                fault.wait(8.0).await;
                fault.back().await
            })
        },
        persons: Some(PROMPT),
        flags: &["--drain-delay", "1s", "--drain-window", "3s"],
        moves: true
    ),
    scenario!(
        "cut-gateway",
        "a gateway's packets to and from all Redis and Sentinels are dropped for 25 s; its persons are asked to leave it",
        // Until a heartbeat has failed the node knows of nothing; then --isolated-after, the drain's window, and what a
        // death may cost.
        Duration::from_millis(1_000 + 15_000 + 3_000 + 300),
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
                fault.back().await
            })
        },
        persons: Some(PROMPT),
        network: true,
        flags: &["--drain-window", "3s"],
        moves: true,
        errors: &["EBROKER", "ENOTCONN"]
    ),
    scenario!(
        "kill-gateway-and-master",
        "SIGKILL of a gateway and of the master at the same moment",
        Duration::from_millis(500),
        |fault| {
            Box::pin(async {
                fault.stage.gateways[0].kill();
                fault.stage.cluster.servers[0].kill();
                fault.promoted(0).await?;
                fault.whole().await?;
                fault.back().await
            })
        },
        persons: Some(PROMPT)
    ),
    scenario!(
        "kill-two-gateways",
        "SIGKILL of two gateways at once, which is more than was promised: whoever may miss something is told",
        UNLIMITED,
        |fault| {
            Box::pin(async {
                // Away, and with it both copies of what comes meanwhile.
                fault.reset_third(0, 3000 * MS);
                fault.wait(1.0).await;
                fault.stage.gateways[0].kill();
                fault.stage.gateways[1].kill();
                fault.wait(8.0).await;
                fault.back().await
            })
        },
        persons: Some(PROMPT),
        errors: &["EBROKER", "ENOTCONN"],
        told: true
    ),
    scenario!(
        "takeover",
        "two connections with one token at once, on one gateway and on two, forty times: exactly one stays",
        Duration::from_millis(100),
        |fault| Box::pin(guests::duels(fault)),
        persons: Some(PROMPT)
    ),
    scenario!(
        "outstay-window",
        "a third of the persons is away for longer than the window: they keep their ids, and are told",
        UNLIMITED,
        |fault| {
            Box::pin(async {
                fault.reset_third(0, 5000 * MS);
                fault.wait(8.0).await;
                fault.back().await
            })
        },
        persons: Some(PROMPT),
        flags: &["--resume-window", "2s"],
        errors: &["ENOTCONN"],
        told: true
    ),
    scenario!(
        "storm",
        "SIGKILL of a gateway with fifty times as many persons, who are all back at once",
        UNLIMITED,
        |fault| Box::pin(storm(fault)),
        persons: Some(EAGER),
        company: Company::Crowd
    ),
    scenario!(
        "mute-clients",
        "somebody never acknowledges, and somebody never reads: their senders are pushed back, nobody else notices",
        Duration::from_millis(100),
        |fault| Box::pin(guests::mutes(fault)),
        persons: Some(PROMPT)
    ),
    scenario!(
        "library-kill-gateway",
        "SIGKILL of a gateway; persons use the Rust client, and come back when that does",
        // Its first pause, and what a death may cost.
        Duration::from_millis(1_000 + 300),
        |fault| Box::pin(kill_one(fault)),
        persons: Some(USERS)
    ),
    scenario!(
        "library-roll-gateways",
        "all gateways are restarted in order, one after the other; persons use the Rust client",
        // Over so long clients come back that are asked to go.
        Duration::from_millis(250 + 300),
        |fault| {
            Box::pin(async {
                fault.restart_each(1.0).await?;
                fault.back().await
            })
        },
        persons: Some(USERS),
        flags: &["--drain-delay", "1s", "--drain-window", "3s"],
        moves: true
    ),
];
