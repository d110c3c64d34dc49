//! Owns how single values are read: numbers, durations, addresses; what is wrong with one is said with its flag.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::Check;
use super::address::Address;

impl Check<'_> {
    pub(super) fn truth(&mut self, flag: &str, text: &str) -> Option<bool> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(true),
            "false" | "no" | "off" | "0" => Some(false),
            _ => {
                self.invalid(flag, text, "true or false; or yes or no, on or off, 1 or 0");
                None
            }
        }
    }

    pub(super) fn address(&mut self, flag: &str, text: &str) -> Option<Address> {
        match text.parse() {
            Ok(address) => Some(address),
            Err(reason) => {
                self.invalid(flag, text, reason);
                None
            }
        }
    }

    pub(super) fn count(&mut self, flag: &str, text: &str) -> Option<usize> {
        let count = self.parse(flag, text, "a whole number from 1")?;
        if count == 0 {
            self.invalid(flag, text, "a whole number from 1");
            return None;
        }
        Some(count)
    }

    pub(super) fn count_to(&mut self, flag: &str, text: &str, most: usize) -> Option<usize> {
        let count = self.count(flag, text)?;
        if count > most {
            self.invalid(flag, text, &format!("at most {most}"));
            return None;
        }
        Some(count)
    }

    pub(super) fn duration(&mut self, flag: &str, text: &str, least: Duration) -> Option<Duration> {
        self.duration_within(flag, text, least..=Duration::from_secs(24 * 3600))
    }

    pub(super) fn duration_within(
        &mut self,
        flag: &str,
        text: &str,
        bounds: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        match humantime::parse_duration(text) {
            Ok(duration) if bounds.contains(&duration) => Some(duration),
            Ok(_) => {
                let (least, most) = (bounds.start(), humantime::format_duration(*bounds.end()));
                self.invalid(flag, text, &format!("a duration from {least:?} to {most}"));
                None
            }
            Err(_) => {
                self.invalid(flag, text, "a duration with a unit, such as 500ms, 5s or 2m");
                None
            }
        }
    }

    pub(super) fn parse<T: FromStr>(&mut self, flag: &str, text: &str, expected: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(_) => {
                self.invalid(flag, text, expected);
                None
            }
        }
    }

    pub(super) fn invalid(&mut self, flag: &str, value: &str, expected: &str) {
        let is = match value {
            "" => "an empty value".to_owned(), // Of a flag: an empty variable counts as not set.
            value => format!("{value:?}"),
        };
        self.errors.push(format!("{}: {is} is not valid: {expected}", option(flag)));
    }
}

/// A flag with its variable.
pub(crate) fn option(flag: &str) -> String {
    format!("--{flag} (TEXTO_{})", flag.to_uppercase().replace('-', "_"))
}
