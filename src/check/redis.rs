//! Owns the look at one Redis: whether it is reached, by whom, as what, and what this user may do there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::findings::Findings;
use super::info::Info;
use super::sentinels::Listed;
use super::talk::{Said, Talk};
use crate::address_map::AddressMap;
use crate::broker::redis::connection::ConnectionError;
use crate::broker::redis::probe::refusal;
use crate::broker::redis::role::Role;
use crate::config::{Address, RedisConfig};
use crate::transport::envelope::Channel;

/// An answer that takes longer than this makes gateways ask other servers as well.
const SLOW: Duration = Duration::from_millis(100);
/// What is asked for by CONFIG GET.
const OPTIONS: [&str; 5] =
    ["maxclients", "client-output-buffer-limit", "tcp-keepalive", "replica-serve-stale-data", "min-replicas-to-write"];

/// A Redis that answers.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: Address,
    /// For findings.
    pub(super) place: String,
    pub(super) listed: Option<Listed>,
    pub(super) subscriber: Talk,
    pub(super) publisher: Talk,
    pub(super) role: Option<Role>,
    /// Gateways that are subscribed here.
    pub(super) gateways: Option<u64>,
    pub(super) info: Option<Info>,
    pub(super) options: BTreeMap<String, String>,
    /// Messages can be published and subscribed to.
    pub(super) is_usable: bool,
}

/// Connects to a server as a link does, twice, tries all that a link does, and asks what it says of itself.
pub(super) async fn look(
    address: Address,
    listed: Option<Listed>,
    config: &RedisConfig,
    map: Option<&AddressMap>,
) -> (Option<Server>, Findings) {
    let mut out = Findings::default();
    let place = format!("Redis {address}");
    let (subscriber, publisher) = tokio::join!(Talk::open(&address, config), Talk::open(&address, config));
    let (subscriber, publisher) = match (subscriber, publisher) {
        (Ok(subscriber), Ok(publisher)) => (subscriber, publisher),
        (Err(error), _) | (_, Err(error)) => {
            unreachable(&place, &address, listed.as_ref(), map, &error, &mut out);
            return (None, out);
        }
    };
    let how = if config.connector.has_tls() { "by TLS" } else { "without TLS" };
    let user = config.credentials.username.as_deref().unwrap_or("default");
    out.well("redis.reachable", &place, format!("takes connections {how}, as the user {user}"));
    let mut server = Server {
        address,
        place,
        listed,
        subscriber,
        publisher,
        role: None,
        gateways: None,
        info: None,
        options: BTreeMap::new(),
        is_usable: false,
    };
    match server.ask(config, &mut out).await {
        Ok(()) => (Some(server), out),
        Err(error) => {
            out.wrong(
                "redis.reachable",
                &server.place,
                format!("it stopped answering: {error}"),
                "a link to it is lost in the same way, again and again",
                "see its log; and --heartbeat-timeout (TEXTO_HEARTBEAT_TIMEOUT), if it is only far away",
            );
            (None, out)
        }
    }
}

fn unreachable(
    place: &str,
    address: &Address,
    listed: Option<&Listed>,
    map: Option<&AddressMap>,
    error: &ConnectionError,
    out: &mut Findings,
) {
    let text = error.to_string();
    let (name, why, change) = match error {
        ConnectionError::Refused(_) => (
            "redis.credentials",
            "no message goes over it",
            "TEXTO_REDIS_USERNAME, and TEXTO_REDIS_PASSWORD or its _FILE; or `ACL SETUSER … on >password +hello +auth`",
        ),
        ConnectionError::Tls(_) => ("redis.tls", "no message goes over it", "the --redis-tls… flags, as said"),
        ConnectionError::Sentinel => ("redis.kind", "a Sentinel carries no messages", "--redis (TEXTO_REDIS)"),
        ConnectionError::Unknown(_) => ("redis.version", "no message goes over it", "install Redis 6.2 or newer"),
        ConnectionError::Server(text) if text.contains("max number of clients") => (
            "redis.maxclients",
            "it takes no more clients: a gateway that loses its connection does not come back",
            "`maxclients 10000` in redis.conf, and a limit of open files (ulimit -n) that allows it",
        ),
        ConnectionError::Silent(_) | ConnectionError::Io(_)
            if listed.is_some_and(|listed| listed.is_down && listed.is_master) =>
        {
            return out.wrong(
                "redis.down",
                place,
                format!("the master is down, the Sentinels say so too: {text}"),
                "messages go by the replicas, as long as there are some, until one of them takes its place",
                "check again in ten seconds, for a failover may be under way; if it stays: start it, and see what is said of \
                 the Sentinels' majority",
            );
        }
        ConnectionError::Silent(_) | ConnectionError::Io(_) if listed.is_some_and(|listed| listed.is_down) => {
            return out.doubtful(
                "redis.down",
                place,
                format!("it is down, the Sentinels say so too: {text}"),
                "one server less bridges a failover, and gateways try it again and again",
                "start it; if it is gone for good: `SENTINEL RESET <master name>` on each Sentinel in turn",
            );
        }
        ConnectionError::Io(_) if listed.is_some() => {
            let text = map.map_or_else(|| text.clone(), |map| map.out_of_reach(address, &text));
            return out.wrong(
                "redis.announced",
                place,
                text,
                "the Sentinels reach it, and this host does not: gateways here do without it, and without Redis once it is master",
                "`replica-announce-ip` and `replica-announce-port` in its redis.conf, or --address-map (TEXTO_ADDRESS_MAP) here",
            );
        }
        ConnectionError::Silent(_) => (
            "redis.reachable",
            "it takes connections and says nothing: it hangs, or something in between takes them in its place",
            "see what it does (its log, its host); a gateway gives it up after --heartbeat-timeout (TEXTO_HEARTBEAT_TIMEOUT)",
        ),
        _ => (
            "redis.reachable",
            "no message goes over it",
            "start it, open the way to it, or give another address by --redis (TEXTO_REDIS)",
        ),
    };
    out.wrong(name, place, text, why, change);
}

impl Server {
    pub(super) fn is_master(&self) -> bool {
        self.role == Some(Role::Master)
    }

    /// Asks everything. An error means that the connection is of no use any more.
    async fn ask(&mut self, config: &RedisConfig, out: &mut Findings) -> Result<(), ConnectionError> {
        self.rights(config, out).await?;
        let user = config.credentials.username.as_deref().unwrap_or("default");
        match self.publisher.ask(&["INFO"]).await? {
            Said::Text(text) => {
                let info = Info::parse(&text);
                info.judge(("redis.version", "redis.clock"), &self.place, SystemTime::now(), out);
                self.info = Some(info);
            }
            other => out.unseen(
                "redis.info",
                &self.place,
                format!("version, clock, clients and lag: INFO is refused{}", because(&other)),
                format!("ACL SETUSER {user} +info, if you want it"),
            ),
        }
        let mut refused = None;
        for name in OPTIONS {
            match self.publisher.setting(name).await? {
                Ok(value) => self.options.extend(value.map(|value| (name.to_owned(), value))),
                Err(answer) => refused = Some(answer),
            }
        }
        if let Some(answer) = refused {
            out.unseen(
                "redis.config",
                &self.place,
                format!("{}: CONFIG GET is refused{}", OPTIONS.join(", "), because(&answer)),
                format!("ACL SETUSER {user} +config|get, if you want it"),
            );
        }
        Ok(())
    }

    /// Tries each command, and each kind of channel, as the very user. What is published and subscribed to is for nobody.
    async fn rights(&mut self, config: &RedisConfig, out: &mut Findings) -> Result<(), ConnectionError> {
        let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut note = |answer: &Said, what: String, command: &'static str| {
            let Said::Error(text) = answer else { return true };
            let (said, mend) = match refusal(text, command, &config.credentials) {
                Some(ConnectionError::Right { text, mend, .. }) => (text, mend),
                Some(other) => (other.to_string(), "redis.conf: `rename-command`, or its version".to_owned()),
                None => (String::from_utf8_lossy(text).into_owned(), "see what it says".to_owned()),
            };
            missing.entry(mend).or_default().push(format!("{what} ({said})"));
            false
        };
        let stranger = Uuid::new_v4();
        let own = Channel::Client(stranger).name();
        let others = [Channel::Claim(stranger), Channel::Node(fastrand::u64(..)), Channel::Nodes];
        let before = self.publisher.ask(&["PUBSUB", "NUMSUB", &Channel::Nodes.name()]).await?;
        note(&before, "PUBSUB NUMSUB".to_owned(), "PUBSUB NUMSUB");
        self.gateways = count(&before);
        let answer = self.subscriber.ask(&["SUBSCRIBE", &own]).await?;
        let heard = note(&answer, "SUBSCRIBE texto:<client>".to_owned(), "SUBSCRIBE");
        for channel in others.map(Channel::name) {
            // Publishing needs the same right, and would be heard by the gateways.
            let answer = self.subscriber.ask(&["SUBSCRIBE", &channel]).await?;
            if note(&answer, format!("SUBSCRIBE {channel}"), "SUBSCRIBE") {
                let answer = self.subscriber.ask(&["UNSUBSCRIBE", &channel]).await?;
                note(&answer, "UNSUBSCRIBE".to_owned(), "UNSUBSCRIBE");
            }
        }
        let answer = self.publisher.ask(&["PUBLISH", &own, ""]).await?;
        let said = note(&answer, "PUBLISH texto:<client>".to_owned(), "PUBLISH");
        let both = self.publisher.ask(&["PUBSUB", "NUMSUB", &own]).await?;
        if heard && count(&both) == Some(0) {
            out.wrong(
                "redis.same-server",
                &self.place,
                ConnectionError::DifferentServers.to_string(),
                "what is published on one is not heard on the other",
                "--redis (TEXTO_REDIS): an address of one server, no load balancer's",
            );
        }
        match self.publisher.role(&config.credentials).await {
            Ok((role, mut trip)) => {
                self.role = Some(role);
                for _ in 0..2 {
                    if trip > SLOW {
                        // This host may have been busy for a moment.
                        trip = trip.min(self.publisher.role(&config.credentials).await?.1);
                    }
                }
                if trip > SLOW {
                    out.doubtful(
                        "redis.trip",
                        &self.place,
                        format!("a question and its answer took {} ms", trip.as_millis()),
                        "after 100 ms without an answer gateways ask the other servers too",
                        "put gateways and Redis into one data centre, or find out what keeps this server busy (SLOWLOG GET)",
                    );
                }
            }
            Err(ConnectionError::Right { text, mend, .. }) => {
                missing.entry(mend).or_default().push(format!("ROLE ({text})"));
            }
            Err(error @ ConnectionError::Unknown(_)) => {
                missing.entry("redis.conf: `rename-command`".to_owned()).or_default().push(error.to_string());
            }
            Err(error) => return Err(error),
        }
        self.is_usable = heard && said;
        if missing.is_empty() {
            out.well("redis.rights", &self.place, "this user may do all that Texto does, on all its channels");
        }
        for (mend, what) in missing {
            let what: BTreeSet<_> = what.into_iter().collect();
            let what = what.into_iter().collect::<Vec<_>>().join("; ");
            out.wrong(
                "redis.rights",
                &self.place,
                format!("refused to this user: {what}"),
                "a gateway gives up a server where it may not do all that it does: no message goes over it",
                mend,
            );
        }
        Ok(())
    }
}

/// The number in `[channel, number]`.
fn count(said: &Said) -> Option<u64> {
    match said {
        Said::List(parts) => match parts.as_slice() {
            [_, Said::Number(count)] => u64::try_from(*count).ok(),
            _ => None,
        },
        _ => None,
    }
}

fn because(said: &Said) -> String {
    match said {
        Said::Error(text) => format!(" ({})", String::from_utf8_lossy(text)),
        _ => String::new(),
    }
}
