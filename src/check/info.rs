//! Owns what INFO says: names and values, versions and clocks. **Pure.**

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::findings::Findings;

/// Clocks that differ by this much make logs and the ends of tokens hard to compare.
const APART: Duration = Duration::from_secs(2);
/// The oldest version that has the commands.
const OLDEST: (u32, u32) = (6, 2);

/// The answer to INFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Info(BTreeMap<String, String>);

impl Info {
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }

    pub(super) fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.get("redis_version")?.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    }

    /// Judges version and clock, which are looked at `here`.
    pub(super) fn judge(&self, names: (&'static str, &'static str), place: &str, here: SystemTime, out: &mut Findings) {
        let (version_name, clock_name) = names;
        match (self.version(), self.get("redis_version")) {
            (Some(version), Some(text)) if version < OLDEST => out.wrong(
                version_name,
                place,
                format!("it is version {text}"),
                "Texto needs commands and rights that came with Redis 6.2",
                "install Redis 6.2 or newer",
            ),
            (Some(_), Some(text)) => out.well(version_name, place, format!("version {text}")),
            _ => {}
        }
        let micros = self.number("server_time_usec").and_then(|micros| u64::try_from(micros).ok());
        let Some(there) = micros.map(|micros| UNIX_EPOCH + Duration::from_micros(micros)) else { return };
        let apart = there.duration_since(here).unwrap_or_else(|error| error.duration());
        if apart > APART {
            out.doubtful(
                clock_name,
                place,
                format!("its clock and this host's are {:.1} s apart", apart.as_secs_f64()),
                "what happens in a failover can't be put in order by the logs, and a clock that is set right with a jump \
                 sends Sentinel into TILT: it promotes nobody for 30 s",
                "let chrony or systemd-timesyncd run on both hosts",
            );
        } else {
            out.well(clock_name, place, "its clock agrees with this host's");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings::Verdict;
    use super::*;

    #[test]
    fn versions_and_clocks() {
        let here = UNIX_EPOCH + Duration::from_secs(1000);
        let judged = |text: &str| {
            let mut out = Findings::default();
            Info::parse(text).judge(("version", "clock"), "there", here, &mut out);
            out.iter().map(|finding| (finding.name, finding.verdict)).collect::<Vec<_>>()
        };
        let well = "# Server\r\nredis_version:7.0.15\r\nserver_time_usec:1001000000\r\n";
        assert_eq!(judged(well), [("version", Verdict::Well), ("clock", Verdict::Well)]);
        let bad = "redis_version:6.0.16\r\nserver_time_usec:990000000\r\n";
        assert_eq!(judged(bad), [("version", Verdict::Wrong), ("clock", Verdict::Doubtful)]);
        assert_eq!(judged("# Server\r\nredis_version:unstable\r\n"), []);
    }
}
