//! Owns the environment variables of a gateway: which are known, and what one that is not was meant to be.
//!
//! A variable that nobody reads is a mistake that looks like success: with `TEXTO_SENTINEL` for
//! `TEXTO_SENTINELS` a gateway would start without Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::CommandFactory;

use crate::config::cli::Cli;

/// What all variables of Texto begin with.
const PREFIX: &str = "TEXTO_";
/// The filter of the log, which is no flag.
pub const LOG: &str = "TEXTO_LOG";
/// Those of the compose stack, which means its other services by them; they may stand beside ours.
const COMPOSE: [&str; 8] = [
    "TEXTO_PORT",
    "TEXTO_PROMETHEUS_PORT",
    "TEXTO_GRAFANA_PORT",
    "TEXTO_SECRETS",
    "TEXTO_TLS",
    "TEXTO_NOFILE",
    "TEXTO_SESSION_KEYS",
    "TEXTO_SOCKETS_PER_ADDRESS",
];
/// How others end a name that is an address: ours have no end.
const ADDRESS: [&str; 4] = ["_HOST", "_URL", "_ADDR", "_ADDRESS"];
/// From here on (of 1) a name is like another.
const LIKE: f64 = 0.7;

/// The variables of a process whose names are Texto's.
#[derive(Clone, Debug, Default)]
pub struct Variables(BTreeMap<String, OsString>);

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let named = |(name, value): (K, V)| (name.into().to_string_lossy().into_owned(), value.into());
        Self(variables.into_iter().map(named).filter(|(name, _)| name.starts_with(PREFIX)).collect())
    }
}

impl Variables {
    /// The value of `name`, if it is set and not empty.
    pub fn get(&self, name: &str) -> Option<String> {
        // One that is no text is among the mistakes.
        self.0.get(name)?.to_str().filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// What is wrong with them, each in a sentence. Values are not part of it.
    pub fn mistakes(&self) -> Vec<String> {
        let known = known();
        let mut mistakes = Vec::new();
        for (name, value) in &self.0 {
            match value.to_str() {
                Some(value) if known.contains(name) || is_of_a_service(name, value) => {}
                Some(_) => mistakes.push(unknown(name, &known)),
                None => mistakes.push(format!("{name}: its value is not valid UTF-8")),
            }
        }
        mistakes
    }
}

/// The variables of all flags, those that hold passwords themselves, and those that are no flags.
fn known() -> BTreeSet<String> {
    fn collect(command: &clap::Command, names: &mut BTreeSet<String>) {
        names.extend(command.get_arguments().filter_map(|flag| Some(flag.get_env()?.to_string_lossy().into_owned())));
        command.get_subcommands().for_each(|command| collect(command, names));
    }
    let mut names = BTreeSet::from_iter(COMPOSE.into_iter().chain([LOG]).map(str::to_owned));
    collect(&Cli::command(), &mut names);
    let passwords: Vec<_> = names.iter().filter_map(|name| name.strip_suffix("_FILE")).map(str::to_owned).collect();
    names.extend(passwords.into_iter().filter(|name| name.ends_with("_PASSWORD")));
    names
}

/// Whether Kubernetes (or Docker, for a link) sets such a variable for a Service whose name begins with
/// `texto`: `TEXTO_SERVICE_HOST`, `TEXTO_SERVICE_PORT_HTTP`, `TEXTO_PORT=tcp://…`, `TEXTO_PORT_8398_TCP_ADDR`.
fn is_of_a_service(name: &str, value: &str) -> bool {
    let is_part = |part: &str| ["TCP", "UDP", "SCTP"].contains(&part);
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    if name.ends_with("_PORT") && value.contains("://") {
        return true;
    }
    // …_PORT_<number>_<protocol>, and the same with _PROTO, _PORT or _ADDR.
    let base = ["_PROTO", "_PORT", "_ADDR"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let mut parts = base.rsplit('_');
    parts.next().is_some_and(is_part)
        && parts.next().is_some_and(|number| number.parse::<u16>().is_ok())
        && parts.next() == Some("PORT")
}

fn unknown(name: &str, known: &BTreeSet<String>) -> String {
    let bare = |name: &str| {
        let bare = name.trim_start_matches(PREFIX);
        ADDRESS.iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare).to_owned()
    };
    let likeness = |other: &&String| strsim::jaro(&bare(name), &bare(other));
    let nearest = known.iter().filter(|other| !COMPOSE.contains(&other.as_str()));
    let nearest = nearest.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|nearest| likeness(nearest) >= LIKE) {
        Some(nearest) => format!("{name} is not a variable of Texto: did you mean {nearest}?"),
        None => format!("{name} is not a variable of Texto: `texto --help` names them all"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(variables: &[(&str, &str)]) -> String {
        Variables::from_iter(variables.iter().copied()).mistakes().join("\n")
    }

    #[test]
    fn a_name_that_is_not_known_is_told_with_the_nearest_that_is() {
        for (wrong, right) in [
            ("TEXTO_SENTINEL", "TEXTO_SENTINELS"),
            ("TEXTO_REDIS_HOST", "TEXTO_REDIS"),
            ("TEXTO_REDIS_URL", "TEXTO_REDIS"),
            ("TEXTO_REDIS_TLS_CRT", "TEXTO_REDIS_TLS_CERT"),
            ("TEXTO_REDIS_PASS", "TEXTO_REDIS_PASSWORD"),
            ("TEXTO_SENTINEL_PASWORD", "TEXTO_SENTINEL_PASSWORD"),
            ("TEXTO_HEARTBEAT", "TEXTO_HEARTBEAT_TIMEOUT"),
            ("TEXTO_MASTERNAME", "TEXTO_MASTER_NAME"),
            ("TEXTO_LOGLEVEL", "TEXTO_LOG"),
        ] {
            let told = mistakes(&[(wrong, "hunter2")]);
            assert_eq!(told, format!("{wrong} is not a variable of Texto: did you mean {right}?"));
        }
        assert!(mistakes(&[("TEXTO_ZZZ", "")]).contains("texto --help"));
        assert_eq!(mistakes(&[("TEXTO_REDIS_PORT", "6379")]).lines().count(), 1, "that is no Service's");
    }

    #[test]
    fn every_flag_every_password_and_the_log_are_known() {
        let known = known();
        for name in ["TEXTO_LISTEN", "TEXTO_LOG", "TEXTO_REDIS_PASSWORD", "TEXTO_SENTINEL_PASSWORD_FILE"] {
            assert!(known.contains(name), "{name}");
        }
        // What the table of flags names, and nobody's other variables.
        let readme = include_str!("../../docs/configuration.md");
        let flags = readme.lines().filter(|line| line.starts_with("| `--"));
        for name in flags.flat_map(|line| line.split('`').filter(|word| word.starts_with(PREFIX))) {
            assert!(known.contains(name), "{name}");
        }
    }

    #[test]
    fn what_the_compose_stack_and_kubernetes_set_may_be_there() {
        let compose = [include_str!("../../docker-compose.yml"), include_str!("../../docker-compose.tls.yml")].concat();
        let asked = compose.split("${").skip(1).map(|rest| &rest[..rest.find([':', '}']).unwrap()]);
        assert_eq!(mistakes(&asked.map(|name| (name, "1")).collect::<Vec<_>>()), "");
        // As a pod sees them for Services named texto, texto-redis and texto-admin.
        for service in ["TEXTO", "TEXTO_REDIS", "TEXTO_ADMIN"] {
            for (name, value) in [
                ("SERVICE_HOST", "10.96.0.7"),
                ("SERVICE_PORT", "8398"),
                ("SERVICE_PORT_HTTP", "8398"),
                ("PORT", "tcp://10.96.0.7:8398"),
                ("PORT_8398_TCP", "tcp://10.96.0.7:8398"),
                ("PORT_8398_TCP_PROTO", "tcp"),
                ("PORT_8398_TCP_PORT", "8398"),
                ("PORT_8398_TCP_ADDR", "10.96.0.7"),
            ] {
                assert_eq!(mistakes(&[(&format!("{service}_{name}"), value)]), "");
            }
        }
        assert_eq!(mistakes(&[("HOME", "/"), ("TEXTOS", "1")]), "", "not ours");
    }

    #[test]
    fn a_value_that_is_no_text_is_not_taken_for_none() {
        use std::os::unix::ffi::OsStringExt;
        let value = OsString::from_vec(b"caf\xe9".to_vec());
        let variables = Variables::from_iter([(OsString::from("TEXTO_REDIS_PASSWORD"), value)]);
        assert_eq!(variables.mistakes(), ["TEXTO_REDIS_PASSWORD: its value is not valid UTF-8"]);
    }
}
