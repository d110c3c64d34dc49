//! Owns the question whether a failover would work, and how long it would take: quorum, majority, times, replicas. **Pure.**

use std::collections::BTreeSet;
use std::time::Duration;

use super::findings::Findings;
use super::sentinels::{Asked, epoch, master, text};
use crate::config::option;
use crate::sentinel::{AskError, Row, Settings, Survey, is_down};

/// Below this a new master's replicas are taken for dead while they find it: it flaps (measured with Redis 7.0).
const DOWN_AFTER_LEAST: u64 = 1200;
const DOWN_AFTER_MOST: u64 = 10_000;
const FAILOVER_LEAST: u64 = 3000;
const FAILOVER_MOST: u64 = 60_000;
/// What an election and a promotion take beside `down-after-milliseconds`, generously.
const ELECTION: Duration = Duration::from_secs(3);

const ALL: &str = "the Sentinels";

/// Judges what all the Sentinels together come to.
pub(super) fn judge(asked: &[Asked], settings: &Settings, ready_grace: Duration, out: &mut Findings) {
    let surveys: Vec<_> = asked.iter().filter_map(|asked| Some((asked, asked.answer.as_ref().ok()?))).collect();
    let Some((_, first)) = surveys.first() else {
        return out.wrong(
            "sentinel.none",
            ALL,
            "no Sentinel can be asked",
            "a gateway does not know any Redis then: it is not ready, and answers every `send` with EBROKER",
            "what is said of each of them here",
        );
    };
    agreement(&surveys, settings, out);
    votes(&surveys, settings, out);
    for (asked, survey) in &surveys {
        if let Err(AskError::Other(text)) = &survey.quorum
            && text.contains("NOQUORUM")
        {
            out.wrong(
                "sentinel.noquorum",
                format!("Sentinel {}", asked.address),
                format!("it says: {text}"),
                "it could not bring about a failover now: when the master dies, it stays dead",
                "start the Sentinels that are missing, and let them reach one another",
            );
        }
    }
    times(&surveys, &settings.master_name, ready_grace, out);
    replicas(first, settings, out);
}

type Answered<'a> = [(&'a Asked, &'a Survey)];

fn agreement(surveys: &Answered<'_>, settings: &Settings, out: &mut Findings) {
    let views: BTreeSet<_> = surveys.iter().map(|(_, survey)| (master(settings, survey), epoch(survey))).collect();
    if views.len() > 1 {
        let each = surveys.iter().map(|(asked, survey)| {
            let master = master(settings, survey).map_or("nobody".to_owned(), |master| master.to_string());
            format!("{} says {master} since epoch {}", asked.address, epoch(survey).unwrap_or_default())
        });
        out.wrong(
            "sentinel.agreement",
            ALL,
            format!("they don't agree on the master: {}", each.collect::<Vec<_>>().join(", ")),
            "gateways follow the newest epoch; whoever says another has not heard of it, and votes on what is over",
            "check again in ten seconds: during a failover it is so for a moment. If it stays: let the Sentinels reach one another",
        );
    } else if let Some((Some(master), epoch)) = views.first() {
        let count = surveys.len();
        let epoch = epoch.unwrap_or_default();
        out.well("sentinel.agreement", ALL, format!("{count} agree that {master} is master, since epoch {epoch}"));
    }
    if surveys.iter().any(|(_, survey)| is_down(&survey.master)) {
        out.wrong(
            "sentinel.master-down",
            ALL,
            "the master is held for dead",
            "either a failover is under way, or none is possible",
            "check again in ten seconds; if it stays, see what is said of quorum and replicas, and start that Redis",
        );
    }
}

fn votes(surveys: &Answered<'_>, settings: &Settings, out: &mut Findings) {
    let quorums: BTreeSet<_> = surveys.iter().filter_map(|(_, survey)| number(&survey.master, "quorum")).collect();
    let known = |survey: &Survey| survey.sentinels.len() + 1;
    let counts: BTreeSet<_> = surveys.iter().map(|(_, survey)| known(survey)).collect();
    let Some(total) = counts.last().copied() else { return };
    let majority = total / 2 + 1;
    let name = &settings.master_name;
    if counts.len() > 1 {
        out.doubtful(
            "sentinel.known",
            ALL,
            format!("they don't know the same number of one another: {}", words(&counts)),
            "a failover needs the votes of most of those that are known, the dead ones too",
            format!("SENTINEL RESET {name} on each Sentinel in turn, 30 s apart"),
        );
    }
    if quorums.len() > 1 {
        out.doubtful(
            "sentinel.quorum",
            ALL,
            format!("their quorums differ: {}", words(&quorums)),
            "whether a master is dead depends on who leads",
            format!("SENTINEL SET {name} quorum {majority} on each"),
        );
    }
    let quorum = quorums.last().and_then(|quorum| usize::try_from(*quorum).ok()).unwrap_or(majority);
    // Of one view: those that it reaches, and itself.
    let reached = |survey: &Survey| survey.sentinels.iter().filter(|row| !is_down(row)).count() + 1;
    let best = surveys.iter().map(|(_, survey)| reached(survey)).max().unwrap_or_default();
    let needed = quorum.max(majority);
    if quorum > total {
        out.wrong(
            "sentinel.quorum",
            ALL,
            format!("the quorum is {quorum}, and there are {total}"),
            "a master can never be held for dead: when it dies, it stays dead",
            format!("SENTINEL SET {name} quorum {majority} on each"),
        );
    } else if best < needed {
        out.wrong(
            "sentinel.majority",
            ALL,
            format!("{best} of {total} live, and a failover needs {needed}"),
            "when the master dies, nobody takes its place",
            "start those that are missing",
        );
    } else if total < 3 {
        out.doubtful(
            "sentinel.count",
            ALL,
            format!("there are {total}"),
            "with fewer than three, the death of one host can take a Sentinel's vote away together with the master",
            "run three, on three hosts",
        );
    } else if total % 2 == 0 {
        out.doubtful(
            "sentinel.even",
            ALL,
            format!("there are {total}, and a failover needs {needed}"),
            "no more of them may die than if there were one less; and a network that splits them into halves has no majority on \
             either side",
            "run an odd number, on as many hosts",
        );
    } else if quorum == total || quorum == 1 {
        let why = match quorum {
            1 => "one Sentinel that loses its network holds the master for dead, and disturbs everybody",
            _ => "when one Sentinel is missing, the master can't be held for dead",
        };
        let found = format!("the quorum is {quorum} of {total}");
        out.doubtful("sentinel.quorum", ALL, found, why, format!("SENTINEL SET {name} quorum {majority} on each"));
    } else {
        out.well(
            "sentinel.quorum",
            ALL,
            format!("{best} of {total} live, the quorum is {quorum}, a majority {majority}"),
        );
    }
}

fn times(surveys: &Answered<'_>, master_name: &str, ready_grace: Duration, out: &mut Findings) {
    for (name, key) in [
        ("sentinel.down-after", "down-after-milliseconds"),
        ("sentinel.failover-timeout", "failover-timeout"),
        ("sentinel.parallel-syncs", "parallel-syncs"),
    ] {
        let values: BTreeSet<_> = surveys.iter().filter_map(|(_, survey)| number(&survey.master, key)).collect();
        let Some((least, most)) = values.first().zip(values.last()) else { continue };
        let found = format!("`{key}` is {}", words(&values));
        let replicas = surveys.iter().map(|(_, survey)| survey.replicas.len() as u64).max().unwrap_or_default();
        let (why, to) = match key {
            "down-after-milliseconds" if *least < DOWN_AFTER_LEAST => (
                "servers that are alive are held for dead: below 1200 ms the new master flaps right after a failover"
                    .to_owned(),
                "1500",
            ),
            "down-after-milliseconds" if Duration::from_millis(*most) + ELECTION > ready_grace => (
                format!(
                    "a failover takes about {} ms, longer than {} ({}): all gateways leave the load balancer in each",
                    most + 2000,
                    option("ready-grace"),
                    humantime::format_duration(ready_grace)
                ),
                "1500",
            ),
            "down-after-milliseconds" if *most > DOWN_AFTER_MOST => (
                "for so long a dead master has no successor: gateways get by with the replicas that are left"
                    .to_owned(),
                "1500",
            ),
            "failover-timeout" if *least < FAILOVER_LEAST => {
                ("a failover is given up before it is done, and begun again".to_owned(), "6000")
            }
            "failover-timeout" if *most > FAILOVER_MOST => {
                ("a failover that fails is tried again only after twice as long".to_owned(), "6000")
            }
            "parallel-syncs" if least * 4 < replicas => {
                ("replicas turn to a new master one after another: the last ones are late".to_owned(), "4")
            }
            _ if values.len() > 1 => ("which counts depends on who leads the failover".to_owned(), "the same"),
            _ => {
                out.well(name, ALL, found);
                continue;
            }
        };
        out.doubtful(name, ALL, found, why, format!("SENTINEL SET {master_name} {key} {to}, on each Sentinel"));
    }
}

fn replicas(survey: &Survey, settings: &Settings, out: &mut Findings) {
    let live: Vec<_> = survey.replicas.iter().filter(|row| !is_down(row)).collect();
    let is_candidate = |row: &&&Row| text(row, "slave-priority") != "0";
    let (found, why, change) = if live.is_empty() {
        (
            format!("of {} replicas that are listed none lives", survey.replicas.len()),
            "when the master dies, nobody can take its place, and gateways have no other server to go by",
            format!("start replicas (`replicaof`) of {:?}; two bridge a failover best", settings.master_name),
        )
    } else if !live.iter().any(|row| is_candidate(&row)) {
        (
            "all replicas have `replica-priority 0`".to_owned(),
            "Sentinel promotes none of those: when the master dies, it stays dead",
            "`replica-priority 100` on the replicas that may be promoted".to_owned(),
        )
    } else {
        return out.well("sentinel.replicas", ALL, format!("{} replicas live, one can be promoted", live.len()));
    };
    out.wrong("sentinel.replicas", ALL, found, why, change);
}

fn number(row: &Row, name: &str) -> Option<u64> {
    row.get(name)?.parse().ok()
}

fn words<T: ToString>(values: &BTreeSet<T>) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::findings::Verdict;
    use super::*;
    use crate::address_map::AddressMap;
    use crate::config::Address;
    use crate::config::secret::Credentials;
    use crate::tls::connector::Connector;
    use crate::tls::reasons::Peer;

    fn row(fields: &[(&str, &str)]) -> Row {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn survey(replicas: Vec<Row>) -> Survey {
        Survey {
            id: None,
            master: row(&[("ip", "10.0.0.1"), ("port", "6379"), ("config-epoch", "1"), ("parallel-syncs", "1")]),
            promoted: None,
            replicas,
            sentinels: Vec::new(),
            quorum: Ok(String::new()),
            info: Ok(String::new()),
        }
    }

    fn settings() -> Settings {
        Settings {
            master_name: "mymaster".to_owned(),
            credentials: Credentials::default(),
            connector: Connector::plain(Peer::Sentinel),
            address_map: Arc::new(AddressMap::default()),
            limit: Duration::from_secs(1),
        }
    }

    fn asked() -> Asked {
        Asked {
            address: Address { host: "10.0.0.1".to_owned(), port: 26379 },
            is_configured: true,
            answer: Err(AskError::Closed),
            at: std::time::SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_master_without_anybody_who_could_follow_it() {
        let judged = |rows: Vec<Row>| {
            let mut out = Findings::default();
            replicas(&survey(rows), &settings(), &mut out);
            out.iter().map(|finding| (finding.verdict, finding.found.clone())).collect::<Vec<_>>()
        };
        let live = |priority| row(&[("flags", "slave"), ("slave-priority", priority)]);
        let dead = row(&[("flags", "slave,s_down"), ("slave-priority", "100")]);
        assert_eq!(judged(vec![])[0], (Verdict::Wrong, "of 0 replicas that are listed none lives".to_owned()));
        assert_eq!(judged(vec![dead.clone()])[0].0, Verdict::Wrong);
        assert!(judged(vec![live("0"), dead])[0].1.contains("replica-priority 0"));
        assert_eq!(judged(vec![live("0"), live("100")])[0].0, Verdict::Well);
    }

    #[test]
    fn an_even_number_of_sentinels_is_doubtful() {
        let judged = |others: usize| {
            let mut survey = survey(Vec::new());
            survey.master.insert("quorum".to_owned(), (others.div_ceil(2) + 1).to_string());
            survey.sentinels = vec![Row::new(); others];
            let mut out = Findings::default();
            votes(&[(&asked(), &survey)], &settings(), &mut out);
            out.iter().map(|finding| (finding.verdict, finding.name)).collect::<Vec<_>>()
        };
        assert_eq!(judged(0), [(Verdict::Doubtful, "sentinel.count")]);
        assert_eq!(judged(1), [(Verdict::Doubtful, "sentinel.count")]);
        assert_eq!(judged(2), [(Verdict::Well, "sentinel.quorum")]);
        assert_eq!(judged(3), [(Verdict::Doubtful, "sentinel.even")]);
        assert_eq!(judged(4), [(Verdict::Well, "sentinel.quorum")]);
    }

    #[test]
    fn many_replicas_that_follow_one_after_another_are_doubtful() {
        let judged = |count: usize| {
            let survey = survey(vec![Row::new(); count]);
            let mut out = Findings::default();
            times(&[(&asked(), &survey)], "mymaster", Duration::from_secs(15), &mut out);
            out.iter().map(|finding| finding.verdict).collect::<Vec<_>>()
        };
        assert_eq!(judged(4), [Verdict::Well]);
        assert_eq!(judged(5), [Verdict::Doubtful]);
    }
}
