//! Owns the look at what a gateway shows and hides: its certificates, who may come in, and who else may read its keys.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::findings::Findings;
use super::host::CONFIGURATION;
use crate::config::{Config, option};
use crate::files;
use crate::tls::Expiries;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// As long as the alert gives.
const SOON: Duration = Duration::from_secs(7 * DAY.as_secs());

pub(super) fn look(config: &Config, out: &mut Findings) {
    certificates(config.certificate_expiries(), SystemTime::now(), out);
    openings(config.access.origins.is_any(), config.trusted_proxies.are_all(), out);
    open_files(&config.tls_keys, out);
}

fn certificates(expiries: Expiries, now: SystemTime, out: &mut Findings) {
    let days = |time: Duration| time.as_secs() / DAY.as_secs();
    for (shown_to, expiry) in expiries {
        let Some(expiry) = expiry else { continue };
        let place = format!("the certificate for {shown_to}");
        let change = "a new certificate in the file: it is read again by itself";
        match expiry.duration_since(now) {
            Err(_) => {
                let found =
                    format!("it has expired, {} days ago", days(now.duration_since(expiry).unwrap_or_default()));
                out.wrong("tls.expiry", place, found, "whoever looks at it connects no more", change);
            }
            Ok(left) if left < SOON => {
                let found = format!("it expires in {} days", days(left));
                out.doubtful("tls.expiry", place, found, "whoever looks at it connects no more then", change);
            }
            Ok(left) => out.well("tls.expiry", place, format!("it is good for {} days", days(left))),
        }
    }
}

/// What is open to everybody, perhaps on purpose.
fn openings(any_origin: bool, all_proxies: bool, out: &mut Findings) {
    if any_origin {
        out.doubtful(
            "access.origins",
            CONFIGURATION,
            "pages of any address may connect",
            "a page elsewhere chats in the name of whoever opens it",
            format!("{}: the addresses of your pages", option("allowed-origins")),
        );
    }
    if all_proxies {
        out.doubtful(
            "access.proxies",
            CONFIGURATION,
            "everybody is a trusted proxy",
            "whoever writes X-Forwarded-For has any address, and so no limit",
            format!("{}: the addresses of your proxies", option("trusted-proxies")),
        );
    }
}

/// Of keys for TLS: those of tokens say so themselves, and passwords are often where a container shows them to its one user.
fn open_files(keys: &[(&'static str, PathBuf)], out: &mut Findings) {
    for (flag, file) in keys.iter().filter(|(_, file)| files::is_open_to_all(file)) {
        let found = format!("every user of this machine may read {file:?} ({})", option(flag));
        let change = "`chmod 640`, with a group that the gateway's user is in; or 600";
        out.doubtful("config.open-files", CONFIGURATION, found, "it is a secret", change);
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings::Verdict;
    use super::*;

    fn names(out: &Findings) -> Vec<(&'static str, Verdict)> {
        out.iter().map(|finding| (finding.name, finding.verdict)).collect()
    }

    #[test]
    fn certificates_are_judged_by_the_days_that_they_have_left() {
        let now = SystemTime::now();
        let judged = |expiry| {
            let mut out = Findings::default();
            certificates(vec![("clients", expiry)], now, &mut out);
            names(&out)
        };
        assert_eq!(judged(None), []);
        assert_eq!(judged(Some(now + 8 * DAY)), [("tls.expiry", Verdict::Well)]);
        assert_eq!(judged(Some(now + 6 * DAY)), [("tls.expiry", Verdict::Doubtful)]);
        assert_eq!(judged(Some(now - DAY)), [("tls.expiry", Verdict::Wrong)]);
    }

    #[test]
    fn what_is_open_to_all_is_named() {
        let judged = |any, all| {
            let mut out = Findings::default();
            openings(any, all, &mut out);
            out.iter().map(|finding| finding.name).collect::<Vec<_>>()
        };
        assert_eq!(judged(false, false), Vec::<&str>::new());
        assert_eq!(judged(true, true), ["access.origins", "access.proxies"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_everybody_may_read_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, expected) in [(0o600, 0), (0o640, 0), (0o644, 1)] {
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            let mut out = Findings::default();
            open_files(&[("tls-key", file.path().to_owned())], &mut out);
            assert_eq!(out.iter().count(), expected, "{mode:o}");
        }
    }
}
