//! Owns the flags for TLS, and what they mean together.

use std::path::PathBuf;

use clap::Args;
use futures_util::future::join_all;
use tokio_rustls::rustls::pki_types::ServerName;

use super::flags::{NODE, REDIS_TLS};
use super::{BrokerConfig, Check, Config, TopologyConfig, option};
use crate::tls::Expiries;
use crate::tls::connector::{Connector, TlsSettings};
use crate::tls::files::{FileFlaw, Identity};
use crate::tls::reasons::Peer;
use crate::tls::terminator::Terminator;

/// Flags for TLS to one kind of server.
macro_rules! server_flags {
    ($(#[$doc:meta])* $name:ident, $peer:literal, $variable:literal, $who:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Args)]
        pub struct $name {
            #[arg(
                id = concat!($peer, "-tls"), long = concat!($peer, "-tls"), env = concat!("TEXTO_", $variable, "_TLS"),
                default_value = "false", default_missing_value = "true", num_args = 0..=1, value_name = "BOOL",
                help_heading = REDIS_TLS, help = concat!("TLS to ", $who)
            )]
            tls: String,
            #[arg(
                id = concat!($peer, "-tls-ca"), long = concat!($peer, "-tls-ca"),
                env = concat!("TEXTO_", $variable, "_TLS_CA"), value_name = "PATH",
                help_heading = REDIS_TLS, hide_short_help = true,
                help = concat!("Authorities that sign the certificates of ", $who, " [default: the system's]")
            )]
            authorities: Option<String>,
            #[arg(
                id = concat!($peer, "-tls-cert"), long = concat!($peer, "-tls-cert"),
                env = concat!("TEXTO_", $variable, "_TLS_CERT"), value_name = "PATH",
                help_heading = REDIS_TLS, hide_short_help = true,
                help = concat!("Certificate that is shown to ", $who),
                long_help = concat!("Certificate that is shown to ", $who,
                    "\n\nOf use where one is demanded: by `tls-auth-clients yes`, which is the default of Redis.")
            )]
            certificate: Option<String>,
            #[arg(
                id = concat!($peer, "-tls-key"), long = concat!($peer, "-tls-key"),
                env = concat!("TEXTO_", $variable, "_TLS_KEY"), value_name = "PATH",
                help_heading = REDIS_TLS, hide_short_help = true,
                help = concat!("Key of --", $peer, "-tls-cert")
            )]
            key: Option<String>,
            #[arg(
                id = concat!($peer, "-tls-server-name"), long = concat!($peer, "-tls-server-name"),
                env = concat!("TEXTO_", $variable, "_TLS_SERVER_NAME"), value_name = "NAME",
                help_heading = REDIS_TLS, hide_short_help = true,
                help = concat!("What the certificates of ", $who, " must be for [default: the host of each address]"),
                long_help = concat!("What the certificates of ", $who, " must be for [default: the host of each address]",
                    "\n\nA name or an IP address, where all servers have a certificate for one that is not theirs.")
            )]
            server_name: Option<String>,
        }

        impl $name {
            /// As they were written.
            pub(super) fn written(&self) -> Written<'_> {
                Written {
                    tls: &self.tls,
                    authorities: given(&self.authorities),
                    certificate: given(&self.certificate),
                    key: given(&self.key),
                    server_name: given(&self.server_name),
                }
            }
        }
    };
}

server_flags!(
    /// Flags for TLS to Redis.
    RedisTls, "redis", "REDIS", "Redis"
);
server_flags!(
    /// Flags for TLS to the Sentinels.
    SentinelTls, "sentinel", "SENTINEL", "the Sentinels"
);

/// Flags for TLS to servers of one kind, as they were written.
pub(super) struct Written<'a> {
    tls: &'a str,
    authorities: Option<&'a str>,
    certificate: Option<&'a str>,
    key: Option<&'a str>,
    server_name: Option<&'a str>,
}

/// Flags for TLS for clients.
#[derive(Clone, Debug, Args)]
pub struct ClientTls {
    /// Certificate for clients: --listen then speaks TLS alone
    ///
    /// PEM, with the certificates between it and its authority. It is read again when it changes.
    #[arg(id = "tls-cert", long = "tls-cert", env = "TEXTO_TLS_CERT", value_name = "PATH", help_heading = NODE)]
    certificate: Option<String>,
    /// Key of --tls-cert
    #[arg(id = "tls-key", long = "tls-key", env = "TEXTO_TLS_KEY", value_name = "PATH", help_heading = NODE)]
    key: Option<String>,
}

impl<'a> Written<'a> {
    pub(super) fn key(&self) -> Option<&'a str> {
        self.key
    }
}

impl ClientTls {
    pub(super) fn key(&self) -> Option<&str> {
        given(&self.key)
    }
}

fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

impl Config {
    /// When the certificates expire that clients and servers are shown now, those that there are.
    pub fn certificate_expiries(&self) -> Expiries {
        let clients = self.terminator.iter().map(|terminator| ("clients", terminator.expiry()));
        let servers = self.connectors().into_iter().map(|connector| {
            let (server, expiry) = connector.expiry();
            (server.name(), expiry)
        });
        clients.chain(servers).collect()
    }

    /// How servers are connected to, of each kind that there is.
    fn connectors(&self) -> Vec<Connector> {
        let BrokerConfig::Redis(redis) = &self.broker else { return Vec::new() };
        match &redis.topology {
            TopologyConfig::Sentinel { connector, .. } => vec![redis.connector.clone(), connector.clone()],
            TopologyConfig::Fixed(_) => vec![redis.connector.clone()],
        }
    }

    /// Reads certificates again when their files change, for ever; `None` where there are none.
    pub fn watch_certificates(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut connectors = self.connectors();
        connectors.retain(Connector::has_tls);
        let terminator = self.terminator.clone();
        if connectors.is_empty() && terminator.is_none() {
            return None;
        }
        let for_clients = async {
            match terminator {
                Some(terminator) => terminator.watch().await,
                None => std::future::pending().await,
            }
        };
        let to_servers = join_all(connectors.into_iter().map(Connector::watch));
        Some(async move {
            tokio::join!(for_clients, to_servers);
        })
    }
}

impl Check<'_> {
    /// How servers of a kind are connected to.
    pub(super) fn connector(&mut self, peer: Peer, written: Written<'_>) -> Option<Connector> {
        let flag = |end: &str| format!("{}-{end}", peer.name());
        let tls = match written.tls {
            "" => false,
            text => self.truth(&flag("tls"), text)?,
        };
        if !tls {
            let without = [
                ("tls-ca", written.authorities),
                ("tls-cert", written.certificate),
                ("tls-key", written.key),
                ("tls-server-name", written.server_name),
            ];
            let without = without.into_iter().filter(|(_, value)| value.is_some());
            let without: Vec<_> = without.map(|(end, _)| option(&flag(end))).collect();
            if !without.is_empty() {
                let (these, tls) = (without.join(", "), option(&flag("tls")));
                self.errors.push(format!("{these}: of use with {tls} only: add it, or take this away"));
            }
            return Some(Connector::plain(peer));
        }
        let errors = self.errors.len();
        let identity = self.identity(&flag(""), written.certificate, written.key);
        let name = written.server_name.and_then(|name| match ServerName::try_from(name.to_owned()) {
            Ok(name) => Some(name),
            Err(_) => {
                self.invalid(&flag("tls-server-name"), name, "a host name or an IP address, without a port");
                None
            }
        });
        let authorities = written.authorities.map(PathBuf::from);
        let connector = Connector::tls(peer, TlsSettings { authorities, identity, name });
        let connector = connector.map_err(|flaws| self.file_flaws(&flag(""), flaws)).ok();
        connector.filter(|_| self.errors.len() == errors)
    }

    /// How clients are welcomed, if by TLS.
    pub(super) fn terminator(&mut self, written: &ClientTls) -> Option<Terminator> {
        let identity = self.identity("", given(&written.certificate), given(&written.key))?;
        Terminator::new(identity).map_err(|flaws| self.file_flaws("", flaws)).ok()
    }

    /// A certificate and its key, if they are given: both.
    fn identity(&mut self, prefix: &str, certificate: Option<&str>, key: Option<&str>) -> Option<Identity> {
        let names = ["tls-cert", "tls-key"].map(|end| option(&format!("{prefix}{end}")));
        let (given, lacking) = match (certificate, key) {
            (None, None) => return None,
            (Some(certificate), Some(key)) => {
                return Some(Identity { certificate: certificate.into(), key: key.into() });
            }
            (Some(_), None) => (&names[0], &names[1]),
            (None, Some(_)) => (&names[1], &names[0]),
        };
        self.errors.push(format!("{given} is given without {lacking}: give both, or none"));
        None
    }

    fn file_flaws(&mut self, prefix: &str, flaws: Vec<FileFlaw>) {
        let told = flaws.iter().map(|flaw| format!("{}: {flaw}", option(&format!("{prefix}{}", flaw.part.flag()))));
        self.errors.extend(told);
    }
}

#[cfg(test)]
mod tests {
    use texto_lab::certificates::{Authority, TlsFiles, Validity};

    use super::*;
    use crate::config::cli::Cli;
    use crate::config::variables::Variables;

    fn config(args: &[&str]) -> Result<Config, String> {
        let cli = Cli::read(std::iter::once(&"texto").chain(args)).unwrap();
        Config::new(&cli.serve, &Variables::default()).map_err(|errors| errors.to_string())
    }

    fn files(folder: &tempfile::TempDir, name: &str) -> TlsFiles {
        let authority = Authority::new(name).unwrap();
        let pair = authority.sign(&["localhost"], Validity::Now).unwrap();
        TlsFiles::create(folder.path(), name, &authority, &pair).unwrap()
    }

    fn connector(config: Config) -> (bool, Option<bool>) {
        let BrokerConfig::Redis(redis) = config.broker else { panic!("no Redis") };
        let sentinels = match &redis.topology {
            TopologyConfig::Sentinel { connector, .. } => Some(connector.has_tls()),
            TopologyConfig::Fixed(_) => None,
        };
        (redis.connector.has_tls(), sentinels)
    }

    #[test]
    fn redis_and_sentinels_have_tls_of_their_own() {
        let folder = tempfile::TempDir::new().unwrap();
        let files = files(&folder, "one");
        let [redis, sentinel] = ["redis", "sentinel"].map(|peer| files.flags(peer));
        let with = |flags: &[String]| {
            let flags: Vec<&str> = ["--sentinels", "s:1"].into_iter().chain(flags.iter().map(String::as_str)).collect();
            connector(config(&flags).unwrap())
        };
        assert_eq!(with(&[]), (false, Some(false)));
        assert_eq!(with(&redis), (true, Some(false)));
        assert_eq!(with(&sentinel), (false, Some(true)));
        assert_eq!(with(&[redis, sentinel].concat()), (true, Some(true)));
        let ca = files.authority.to_str().unwrap();
        // Alone, with a value, and followed by another flag.
        for flags in [
            &["--redis", "r:1", "--redis-tls-ca", ca, "--redis-tls"][..],
            &["--redis", "r:1", "--redis-tls", "yes", "--redis-tls-ca", ca],
            &["--redis", "r:1", "--redis-tls", "--redis-tls-ca", ca, "--redis-tls-server-name", "redis.example"],
            &["--redis", "r:1", "--redis-tls", "--redis-tls-ca", ca, "--redis-tls-server-name", "::1"],
        ] {
            assert_eq!(connector(config(flags).unwrap()), (true, None), "{flags:?}");
        }
        assert_eq!(
            connector(config(&["--redis", "r:1", "--redis-tls", "", "--redis-tls-ca="]).unwrap()),
            (false, None)
        );
    }

    #[test]
    fn what_is_half_configured_is_refused_and_all_of_it_named() {
        let folder = tempfile::TempDir::new().unwrap();
        let (one, two) = (files(&folder, "one"), files(&folder, "two"));
        let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing").unwrap();
        let errors = config(&[
            "--sentinels=s:1",
            "--redis-tls",
            &format!("--redis-tls-ca={}", path(&empty)),
            &format!("--redis-tls-cert={}", path(&one.certificate)),
            &format!("--redis-tls-key={}", path(&two.key)),
            "--redis-tls-server-name=redis.example:6379",
            "--sentinel-tls-ca=/nowhere/ca.pem",
            "--tls-key=/nowhere/key.pem",
        ])
        .unwrap_err();
        for part in [
            "5 errors",
            "--redis-tls-ca (TEXTO_REDIS_TLS_CA): the file",
            "holds no certificate",
            "--redis-tls-key (TEXTO_REDIS_TLS_KEY): the key in the file",
            "is not that of the certificate in",
            "--redis-tls-server-name (TEXTO_REDIS_TLS_SERVER_NAME): \"redis.example:6379\" is not valid",
            "--sentinel-tls-ca (TEXTO_SENTINEL_TLS_CA): of use with --sentinel-tls (TEXTO_SENTINEL_TLS) only",
            "--tls-key (TEXTO_TLS_KEY) is given without --tls-cert (TEXTO_TLS_CERT): give both, or none",
        ] {
            assert!(errors.contains(part), "{part} is not in: {errors}");
        }
        let errors = config(&[
            "--redis=r:1",
            "--redis-tls=perhaps",
            "--tls-cert=/nowhere/cert.pem",
            &format!("--tls-key={}", path(&one.certificate)),
        ])
        .unwrap_err();
        for part in [
            "3 errors",
            "--redis-tls (TEXTO_REDIS_TLS): \"perhaps\" is not valid: true or false; or yes or no",
            "--tls-cert (TEXTO_TLS_CERT): can't read the file \"/nowhere/cert.pem\": No such file or directory",
            "--tls-key (TEXTO_TLS_KEY): the file",
            "holds no private key",
        ] {
            assert!(errors.contains(part), "{part} is not in: {errors}");
        }
        let errors = config(&["--sentinel-tls", "--redis=r:1"]).unwrap_err();
        assert!(errors.contains("--sentinel-tls (TEXTO_SENTINEL_TLS): of use with Sentinels only"), "{errors}");
    }

    #[test]
    fn a_key_is_shown_nowhere() {
        let folder = tempfile::TempDir::new().unwrap();
        let one = files(&folder, "one");
        let own = [format!("--tls-cert={}", one.certificate.display()), format!("--tls-key={}", one.key.display())];
        let flags = [one.flags("redis"), vec!["--redis=r:1".to_owned()], own.to_vec()].concat();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let shown = format!("{:?}", config(&flags).unwrap());
        let key = std::fs::read_to_string(&one.key).unwrap();
        let line = key.lines().nth(1).unwrap();
        assert!(!shown.contains(line) && shown.len() < 20_000, "{shown}");
        // A file that is cut, and one that is mangled, are named without what stands in them.
        for (broken, reason) in [(key[..100].to_owned(), "is damaged"), (key.replace(line, "MIG$SECRET"), "is damaged")]
        {
            std::fs::write(&one.key, broken).unwrap();
            let errors = config(&flags).unwrap_err();
            assert!(errors.contains(reason), "{errors}");
            assert!(!errors.contains(&line[..20]) && !errors.contains("SECRET"), "{errors}");
        }
    }
}
