//! Owns the checks of who may come in: origins, and credentials with their keys.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::Algorithm;

use super::cli::ServeArgs;
use super::{Check, option};
use crate::access::jwks::Fetcher;
use crate::access::keys::ALL;
use crate::access::origin::Origins;
use crate::access::source::KeySource;
use crate::access::verifier::{Demands, Verifier};

/// Clocks that differ by more are wrong.
const MOST_LEEWAY: Duration = Duration::from_secs(600);

/// Who may come in.
#[derive(Clone, Debug, Default)]
pub struct AccessConfig {
    /// From which pages.
    pub origins: Origins,
    /// With which credentials; without this, none are asked for.
    pub verifier: Option<Arc<Verifier>>,
}

impl Check<'_> {
    pub(super) fn access(&mut self, args: &ServeArgs) -> Option<AccessConfig> {
        let origins = Origins::parse(args.allowed_origins.as_deref().unwrap_or_default()).unwrap_or_else(|errors| {
            for (part, expected) in errors {
                self.invalid("allowed-origins", &part, expected);
            }
            Origins::default()
        });
        let given = |value: &Option<String>| value.clone().filter(|text| !text.trim().is_empty());
        let (file, url) = (given(&args.auth_key_file), given(&args.auth_jwks_url));
        let algorithms = given(&args.auth_algorithms).map(|list| self.algorithms(&list));
        let leeway = self.duration_within("auth-leeway", &args.auth_leeway, Duration::ZERO..=MOST_LEEWAY);
        let least = Duration::from_secs(5);
        let refresh = self.duration("auth-jwks-refresh", &args.auth_jwks_refresh, least);
        let (file_flag, url_flag) = (option("auth-key-file"), option("auth-jwks-url"));
        let source = match (file, url) {
            (Some(_), Some(_)) => {
                self.errors.push(format!(
                    "{file_flag} and {url_flag} exclude each other: give the file for keys that you distribute, or the \
                     address for those of an issuer"
                ));
                None
            }
            (Some(file), None) => match KeySource::from_file(Path::new(&file), algorithms) {
                Ok(source) => Some(source),
                Err(flaw) => {
                    self.errors.push(format!("{file_flag}: {flaw}"));
                    None
                }
            },
            (None, Some(url)) => match (Fetcher::new(&url), refresh) {
                (Ok(fetcher), Some(refresh)) => Some(KeySource::from_url(fetcher, refresh, algorithms)),
                (Ok(_), None) => None,
                (Err(expected), _) => {
                    // An address may hold a password.
                    self.errors.push(format!("{url_flag}: the value is not valid: {expected}"));
                    None
                }
            },
            (None, None) => {
                self.useless_for_access(args, &file_flag, &url_flag);
                return Some(AccessConfig { origins, verifier: None });
            }
        };
        if given(&args.auth_jwks_url).is_none() {
            self.useless_without_url(args, &url_flag);
        }
        let list = |value: &Option<String>| {
            let parts = value.as_deref().unwrap_or_default().split(',').map(str::trim);
            parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let (audience, issuer) = (list(&args.auth_audience), list(&args.auth_issuer));
        let demands = Demands { audience, issuer, leeway: leeway? };
        Some(AccessConfig { origins, verifier: Some(Arc::new(Verifier::new(Arc::new(source?), demands))) })
    }

    fn algorithms(&mut self, list: &str) -> Vec<Algorithm> {
        let mut algorithms = Vec::new();
        for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.parse() {
                Ok(algorithm) => algorithms.push(algorithm),
                Err(_) => {
                    let known: Vec<_> = ALL.iter().map(|algorithm| format!("{algorithm:?}")).collect();
                    self.invalid("auth-algorithms", part, &format!("one or several of {}", known.join(", ")));
                }
            }
        }
        if algorithms.is_empty() && self.errors.is_empty() {
            self.invalid("auth-algorithms", list, "at least one, or nothing for all that fit the keys");
        }
        algorithms
    }

    /// Whoever gives these wants credentials to be asked for, and would not notice that they are not.
    fn useless_for_access(&mut self, args: &ServeArgs, file: &str, url: &str) {
        let flags = args.given.iter().map(|given| given.flag.as_str()).filter(|flag| flag.starts_with("auth-"));
        let names: Vec<_> =
            flags.filter(|flag| !["auth-key-file", "auth-jwks-url"].contains(flag)).map(option).collect();
        if !names.is_empty() {
            self.errors.push(format!(
                "{}: of use with credentials only, and none are asked for: add {file} or {url}, or take this away",
                names.join(", ")
            ));
        }
    }

    fn useless_without_url(&mut self, args: &ServeArgs, url: &str) {
        if args.given.iter().any(|given| given.flag == "auth-jwks-refresh") {
            let name = option("auth-jwks-refresh");
            self.errors.push(format!("{name}: of use with {url} only: files are read again when they change"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::cli::Cli;
    use crate::config::variables::Variables;

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let cli = Cli::read(std::iter::once(&"texto").chain(arguments)).unwrap();
        Config::new(&cli.serve, &Variables::default()).map_err(|errors| errors.to_string())
    }

    fn secret(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn without_a_word_nobody_needs_credentials_and_pages_are_the_gateways_own() {
        let access = config(&[]).unwrap().access;
        assert!(access.verifier.is_none());
        assert_eq!(access.origins, Origins::default());
        config(&["--auth-key-file", "", "--auth-issuer", "", "--allowed-origins="]).unwrap();
    }

    #[test]
    fn what_is_configured_by_half_is_refused() {
        for flag in [
            "--auth-algorithms=HS256",
            "--auth-audience=a",
            "--auth-issuer=i",
            "--auth-leeway=5s",
            "--auth-jwks-refresh=1m",
        ] {
            let errors = config(&[flag]).unwrap_err();
            let name = flag[2..].split('=').next().unwrap();
            assert!(errors.contains(&option(name)) && errors.contains("TEXTO_AUTH_JWKS_URL"), "{errors}");
        }
        let file = secret(&"k".repeat(32));
        let path = file.path().to_str().unwrap();
        let both = config(&["--auth-key-file", path, "--auth-jwks-url", "https://a/jwks"]).unwrap_err();
        assert!(both.contains("exclude each other"), "{both}");
        let refresh = config(&["--auth-key-file", path, "--auth-jwks-refresh", "1m"]).unwrap_err();
        assert!(refresh.contains("TEXTO_AUTH_JWKS_REFRESH"), "{refresh}");
    }

    #[test]
    fn every_flaw_is_named_with_its_flag_and_no_secret_is_shown() {
        let short = secret("hunter2hunter2");
        let path = short.path().to_str().unwrap();
        let errors = config(&[
            "--allowed-origins",
            "chat.example.org,https://good.example,https://bad.example/",
            "--auth-key-file",
            path,
            "--auth-algorithms",
            "HS256,none,ES512",
            "--auth-leeway",
            "1h",
        ])
        .unwrap_err();
        for part in [
            "6 errors",
            "--allowed-origins (TEXTO_ALLOWED_ORIGINS): \"chat.example.org\"",
            "\"https://bad.example/\"",
            "--auth-algorithms (TEXTO_AUTH_ALGORITHMS): \"none\"",
            "\"ES512\"",
            "TEXTO_AUTH_LEEWAY",
            "--auth-key-file (TEXTO_AUTH_KEY_FILE): the file",
            "has 14 bytes: 32 at the least",
        ] {
            assert!(errors.contains(part), "{part} is not in: {errors}");
        }
        assert!(!errors.contains("hunter2"), "{errors}");
        for url in ["login.example.org", "ftp://a/b", "https://", "https://user:hunter2@a/jwks", "a b"] {
            let errors = config(&["--auth-jwks-url", url]).unwrap_err();
            assert!(errors.contains("--auth-jwks-url (TEXTO_AUTH_JWKS_URL)"), "{url}: {errors}");
            assert!(!errors.contains("hunter2"), "{errors}");
        }
    }

    #[test]
    fn a_secret_that_is_too_short_for_what_is_asked_of_it_is_refused() {
        let file = secret(&"k".repeat(48));
        let path = file.path().to_str().unwrap();
        for (algorithms, is_good) in [("HS256", true), ("HS384", true), ("HS256,HS512", false), ("RS256", false)] {
            let result = config(&["--auth-key-file", path, "--auth-algorithms", algorithms]);
            assert_eq!(result.is_ok(), is_good, "{algorithms}: {result:?}");
        }
    }
}
