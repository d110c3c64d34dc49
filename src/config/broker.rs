//! Owns where Redis is and how it is used, or that there is none: servers, Sentinels, passwords.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::address::Address;
use super::cli::{Given, ServeArgs};
use super::secret::{Credentials, Password};
use super::{Check, option};
use crate::address_map::AddressMap;
use crate::tls::connector::Connector;
use crate::tls::reasons::Peer;

/// Who carries the messages.
#[allow(clippy::large_enum_variant)] // There is one in a program.
#[derive(Clone, Debug)]
pub enum BrokerConfig {
    /// This process alone.
    Embedded,
    /// Redis.
    Redis(RedisConfig),
}

/// How Redis is found and used.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Where it is.
    pub topology: TopologyConfig,
    /// For Redis itself; Sentinels have their own.
    pub credentials: Credentials,
    /// How connections to Redis are made, with TLS or without.
    pub connector: Connector,
    /// Whether replicas get links too.
    pub standby_subscriptions: bool,
    /// A peer that is silent this long is given up.
    pub heartbeat_timeout: Duration,
    /// Every message is decided within this time.
    pub send_timeout: Duration,
}

/// Where Redis is.
#[derive(Clone, Debug)]
pub enum TopologyConfig {
    /// One server.
    Fixed(Address),
    /// Whatever the Sentinels say.
    Sentinel {
        /// The first ones; others are discovered.
        sentinels: Vec<Address>,
        /// The master's name.
        master_name: String,
        /// For the Sentinels themselves.
        credentials: Credentials,
        /// How connections to them are made, with TLS or without.
        connector: Connector,
        /// What the addresses mean here that they announce.
        address_map: Arc<AddressMap>,
    },
}

impl Check<'_> {
    pub(super) fn broker(
        &mut self,
        args: &ServeArgs,
        send_timeout: Option<Duration>,
        heartbeat_timeout: Option<Duration>,
    ) -> Option<BrokerConfig> {
        let standby_subscriptions = self.truth("standby-subscriptions", &args.standby_subscriptions).unwrap_or(true);
        let credentials = self.credentials("redis", &args.redis_username, &args.redis_password_file);
        let sentinel_credentials = self.credentials("sentinel", &args.sentinel_username, &args.sentinel_password_file);
        let connector = self.connector(Peer::Redis, args.redis_tls.written());
        let sentinel_connector = self.connector(Peer::Sentinel, args.sentinel_tls.written());
        let address_map = AddressMap::parse(&args.address_map).unwrap_or_else(|errors| {
            for (part, expected) in errors {
                self.invalid("address-map", &part, &expected);
            }
            AddressMap::default()
        });
        let given = |value: &Option<String>| value.clone().filter(|text| !text.trim().is_empty());
        let redis = given(&args.redis).map(|redis| self.address("redis", &redis));
        let sentinels = given(&args.sentinels).map(|list| self.sentinels(&list, &args.master_name));
        if sentinels.is_none() {
            self.useless(&args.given, redis.is_some());
        }
        let topology = match (redis, sentinels) {
            (None, None) => return Some(BrokerConfig::Embedded),
            (Some(_), Some(_)) => {
                self.errors.push(
                    "--redis (TEXTO_REDIS) and --sentinels (TEXTO_SENTINELS) exclude each other: give the \
                     Sentinels to follow failovers, or the one Redis to use without them"
                        .to_owned(),
                );
                return None;
            }
            (Some(redis), None) => TopologyConfig::Fixed(redis?),
            (None, Some(sentinels)) => TopologyConfig::Sentinel {
                sentinels,
                master_name: args.master_name.clone(),
                credentials: sentinel_credentials?,
                connector: sentinel_connector?,
                address_map: Arc::new(address_map),
            },
        };
        if heartbeat_timeout > send_timeout {
            let expected = format!(
                "at most as long as {}: a hang would be noticed too late for any message",
                option("send-timeout")
            );
            self.invalid("heartbeat-timeout", &args.heartbeat_timeout, &expected);
        }
        Some(BrokerConfig::Redis(RedisConfig {
            topology,
            credentials: credentials?,
            connector: connector?,
            standby_subscriptions,
            heartbeat_timeout: heartbeat_timeout?,
            send_timeout: send_timeout?,
        }))
    }

    /// Options for Redis without a Redis, or for Sentinels without Sentinels: somebody wanted them, and would
    /// not notice that they are not there.
    fn useless(&mut self, given: &[Given], has_redis: bool) {
        let flags = given.iter().filter(|given| given.is_for_redis).map(|given| given.flag.as_str());
        let flags = flags.filter(|flag| !["redis", "sentinels"].contains(flag)).map(|flag| (flag, option(flag)));
        let passwords = [("redis-password", "TEXTO_REDIS_PASSWORD"), ("sentinel-password", "TEXTO_SENTINEL_PASSWORD")];
        let passwords = passwords.into_iter().filter(|(_, variable)| self.variables.get(variable).is_some());
        let useless = flags.chain(passwords.map(|(flag, variable)| (flag, variable.to_owned()))).filter(|(flag, _)| {
            !has_redis || flag.starts_with("sentinel-") || ["master-name", "address-map"].contains(flag)
        });
        let names: Vec<_> = useless.map(|(_, name)| name).collect();
        if names.is_empty() {
            return;
        }
        let (these, sentinels, redis) = (names.join(", "), option("sentinels"), option("redis"));
        self.errors.push(if has_redis {
            format!("{these}: of use with Sentinels only, and none are given: add {sentinels}, or take this away")
        } else {
            format!(
                "{these}: of use with Redis only, and none is given: add {sentinels} or {redis}, or take this away \
                 for a node that works alone"
            )
        });
    }

    fn sentinels(&mut self, list: &str, master_name: &str) -> Vec<Address> {
        let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
        let sentinels: BTreeSet<_> = parts.clone().filter_map(|part| self.address("sentinels", part)).collect();
        if parts.count() == 0 {
            self.invalid("sentinels", list, "at least one host:port");
        }
        if master_name.is_empty() || master_name.contains(char::is_whitespace) {
            self.invalid("master-name", master_name, "the name in `sentinel monitor`");
        }
        sentinels.into_iter().collect()
    }

    /// Reads the password of `peer` ("redis" or "sentinel") from its variable or its file.
    fn credentials(&mut self, peer: &str, username: &Option<String>, file: &Option<String>) -> Option<Credentials> {
        let username = username.clone().filter(|name| !name.is_empty());
        let name = format!("TEXTO_{}_PASSWORD", peer.to_uppercase());
        let direct = self.variables.get(&name);
        let password = match (direct, file.as_deref().filter(|path| !path.is_empty())) {
            (Some(_), Some(_)) => {
                self.errors.push(format!("{name} and {name}_FILE exclude each other: set one of them"));
                return None;
            }
            (Some(value), None) => Some(Password::fixed(value)),
            (None, Some(path)) => match Password::from_file(Path::new(path)) {
                Ok(password) => Some(password),
                Err(error) => {
                    let problem = match error.kind() {
                        std::io::ErrorKind::InvalidData => format!("the file {path:?} is empty, or no text"),
                        _ => format!("can't read the file {path:?}: {error}"),
                    };
                    self.errors.push(format!("--{peer}-password-file ({name}_FILE): {problem}"));
                    return None;
                }
            },
            (None, None) => None,
        };
        if username.is_some() && password.is_none() {
            self.errors.push(format!(
                "--{peer}-username (TEXTO_{}_USERNAME) is given without a password: set {name} or {name}_FILE",
                peer.to_uppercase()
            ));
        }
        Some(Credentials { username, password })
    }
}
