//! Owns the look at the Sentinels: who answers, whether they agree, and which servers they announce, reachable or not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::SystemTime;

use futures_util::future::join_all;

use super::failover;
use super::findings::Findings;
use super::info::Info;
use crate::config::Address;
use crate::sentinel::{AskError, Conversation, Row, Settings, Survey, is_down};

/// Sentinels and servers that are looked at, at the most: dead ones stay in the Sentinels' lists for ever.
const MOST: usize = 64;

/// A Redis that the Sentinels list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// As it is announced.
    pub(super) announced: Address,
    pub(super) is_master: bool,
    /// Held for dead by most of those that list it.
    pub(super) is_down: bool,
}

/// One Sentinel and what became of asking it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) address: Address,
    /// Given by the operator, not only named by others.
    pub(super) is_configured: bool,
    pub(super) answer: Result<Survey, AskError>,
    pub(super) at: SystemTime,
}

/// Asks all Sentinels, also those that only others name, and judges. Returns the servers that they list, by where they
/// are reached from here.
pub(super) async fn look(
    settings: &Settings,
    configured: &[Address],
    ready_grace: std::time::Duration,
    out: &mut Findings,
) -> BTreeMap<Address, Listed> {
    let mut asked = ask_all(settings, configured.iter().cloned(), true).await;
    let ids: BTreeSet<_> = asked.iter().filter_map(|asked| asked.answer.as_ref().ok()?.id.clone()).collect();
    let rows = asked.iter().filter_map(|asked| asked.answer.as_ref().ok()).flat_map(|survey| &survey.sentinels);
    let others = rows.filter(|row| row.get("runid").is_none_or(|id| !ids.contains(id)));
    let others: BTreeSet<_> = others.filter_map(|row| settings.address(row)).collect();
    let others = others.into_iter().filter(|address| !configured.contains(address)).take(MOST);
    asked.extend(ask_all(settings, others, false).await);
    for one in &asked {
        judge_one(settings, one, out);
    }
    failover::judge(&asked, settings, ready_grace, out);
    listed(settings, &asked, out)
}

async fn ask_all(settings: &Settings, addresses: impl Iterator<Item = Address>, is_configured: bool) -> Vec<Asked> {
    let ask = async |address: Address| {
        let answer = async { Conversation::begin(settings, &address, |_| Ok::<_, ()>(())).await?.survey().await };
        let answer = answer.await;
        Asked { address, is_configured, answer, at: SystemTime::now() }
    };
    join_all(addresses.map(ask)).await
}

fn judge_one(settings: &Settings, asked: &Asked, out: &mut Findings) {
    let place = format!("Sentinel {}", asked.address);
    let survey = match &asked.answer {
        Ok(survey) => survey,
        Err(error) => return refused(settings, asked, &place, error, out),
    };
    let how = if settings.connector.has_tls() { "by TLS" } else { "without TLS" };
    out.well("sentinel.reachable", &place, format!("answers {how}, and may be asked all that Texto asks"));
    match &survey.info {
        Ok(info) => {
            let info = Info::parse(info);
            info.judge(("sentinel.version", "sentinel.clock"), &place, asked.at, out);
            if info.number("sentinel_tilt").is_some_and(|tilt| tilt != 0) {
                out.wrong(
                    "sentinel.tilt",
                    &place,
                    "it is in TILT: its clock jumped, or it stood still",
                    "for 30 s it takes part in no failover",
                    "find out what stops it: a name server that does not answer, a host without time for it, a clock that is set",
                );
            }
        }
        Err(error) => out.unseen(
            "sentinel.info",
            &place,
            format!("version, clock and TILT: {error}"),
            format!("ACL SETUSER {} +info, if you want it", user(settings)),
        ),
    }
    // What it announces must mean the same everywhere; a loopback address means another host to each.
    let rows = [("the master", std::slice::from_ref(&survey.master))];
    let rows = rows.into_iter().chain([("a replica", &*survey.replicas), ("a Sentinel", &*survey.sentinels)]);
    for (what, rows) in rows {
        for row in rows.iter().filter(|row| is_for_another_host(&asked.address, row)) {
            let (host, port) = (text(row, "ip"), text(row, "port"));
            let option = if what == "a Sentinel" { "sentinel announce-ip" } else { "replica-announce-ip" };
            out.wrong(
                "sentinel.loopback",
                &place,
                format!("it announces {what} as {host}:{port}, though it is on another host"),
                "a loopback address is the reader's own host: each gateway would look for that server at its own",
                format!("`{option} <address that all hosts reach>` there, and `sentinel monitor` with such an address"),
            );
        }
    }
}

fn refused(settings: &Settings, asked: &Asked, place: &str, error: &AskError, out: &mut Findings) {
    let (name, why, change) = match error {
        AskError::UnknownMaster(_) => (
            "sentinel.master-name",
            "it can't say which Redis is master",
            "--master-name (TEXTO_MASTER_NAME), as in its `sentinel monitor NAME …`".to_owned(),
        ),
        AskError::Right(_) => (
            "sentinel.rights",
            "without these rights it can't be followed",
            format!(
                "ACL SETUSER {} allchannels +subscribe +hello +auth +ping +sentinel|master +sentinel|replicas +sentinel|sentinels",
                user(settings)
            ),
        ),
        AskError::Refused(_) => (
            "sentinel.credentials",
            "it can't be followed",
            "TEXTO_SENTINEL_USERNAME, and TEXTO_SENTINEL_PASSWORD or its _FILE: they are apart from those of Redis"
                .to_owned(),
        ),
        AskError::Redis => {
            ("sentinel.kind", "it knows nothing of failovers", "--sentinels (TEXTO_SENTINELS)".to_owned())
        }
        AskError::Tls(_) => ("sentinel.tls", "it can't be followed", "the --sentinel-tls… flags, as said".to_owned()),
        _ if asked.is_configured => (
            "sentinel.reachable",
            "each Sentinel that is missing is one vote less for a failover",
            format!("start it, open the way to it, or take it out of --sentinels (TEXTO_SENTINELS): {}", asked.address),
        ),
        _ => {
            return out.doubtful(
                "sentinel.announced",
                place,
                settings.address_map.out_of_reach(&asked.address, &error.to_string()),
                "gateways ask only those that they reach; if it is dead, the others count it as a vote that is missing",
                format!(
                    "`SENTINEL RESET {}` on each Sentinel in turn if it is gone for good; `sentinel announce-ip` there, or \
                     --address-map (TEXTO_ADDRESS_MAP), if it lives",
                    settings.master_name
                ),
            );
        }
    };
    out.wrong(name, place, error.to_string(), why, change);
}

fn user(settings: &Settings) -> &str {
    settings.credentials.username.as_deref().unwrap_or("default")
}

/// The servers, as most of those see them that list them; the master as the newest epoch has it.
fn listed(settings: &Settings, asked: &[Asked], out: &mut Findings) -> BTreeMap<Address, Listed> {
    let surveys: Vec<_> = asked.iter().filter_map(|asked| asked.answer.as_ref().ok()).collect();
    let mut votes: BTreeMap<Address, (Address, usize, usize)> = BTreeMap::new();
    for row in surveys.iter().flat_map(|survey| std::iter::once(&survey.master).chain(&survey.replicas)) {
        let (Some(announced), Some(address)) = (announced(row), settings.address(row)) else { continue };
        let (_, dead, all) = votes.entry(address).or_insert((announced, 0, 0));
        *dead += usize::from(is_down(row));
        *all += 1;
    }
    let newest = surveys.iter().max_by_key(|survey| epoch(survey));
    let master = newest.and_then(|survey| master(settings, survey));
    if votes.len() > MOST {
        out.unseen(
            "sentinel.servers",
            "the Sentinels",
            format!("they list {} servers, {MOST} are looked at", votes.len()),
            format!("SENTINEL RESET {} on each Sentinel in turn, if most are gone for good", settings.master_name),
        );
    }
    let listed = votes.into_iter().take(MOST).map(|(address, (announced, dead, all))| {
        let is_master = Some(&address) == master.as_ref();
        (address, Listed { announced, is_master, is_down: dead * 2 > all })
    });
    listed.collect()
}

pub(super) fn epoch(survey: &Survey) -> Option<u64> {
    survey.master.get("config-epoch")?.parse().ok()
}

/// Where the master is that a Sentinel names.
pub(super) fn master(settings: &Settings, survey: &Survey) -> Option<Address> {
    let promoted = survey.promoted.clone().map(|(host, port)| settings.address_map.reachable(Address { host, port }));
    promoted.or_else(|| settings.address(&survey.master))
}

pub(super) fn text<'a>(row: &'a Row, name: &str) -> &'a str {
    row.get(name).map(String::as_str).unwrap_or_default()
}

fn announced(row: &Row) -> Option<Address> {
    let port = row.get("port")?.parse().ok().filter(|port| *port != 0)?;
    Some(Address { host: row.get("ip").filter(|host| !host.is_empty())?.clone(), port })
}

/// Whether a Sentinel at `address`, which is not on this host's loopback, announces a loopback address.
fn is_for_another_host(address: &Address, row: &Row) -> bool {
    !is_loopback(&address.host) && is_loopback(text(row, "ip"))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_address_that_a_sentinel_elsewhere_announces_is_another_host() {
        let row = |ip: &str| Row::from([("ip".to_owned(), ip.to_owned())]);
        let address = |text: &str| text.parse::<Address>().unwrap();
        for announced in ["127.0.0.1", "::1", "localhost", "127.0.1.1"] {
            assert!(is_for_another_host(&address("10.0.0.1:26379"), &row(announced)), "{announced}");
            assert!(is_for_another_host(&address("sentinel-1:26379"), &row(announced)), "{announced}");
            assert!(!is_for_another_host(&address("127.0.0.1:26379"), &row(announced)), "all on one host");
        }
        assert!(!is_for_another_host(&address("10.0.0.1:26379"), &row("10.0.0.2")));
    }
}
