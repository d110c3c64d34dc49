//! Owns the checks of what one client may do: sends, handshakes, WebSockets.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Check, option};
use crate::config::cli::ServeArgs;
use crate::edge::limiter::Rate;
use crate::edge::limits::AddressBounds;

/// More of anything in a second is no limit.
const MOST: u32 = 1_000_000;
/// What a burst is, as a multiple of the rate, unless it is said otherwise: a client that catches up, and everybody
/// behind one address who comes back at once.
const SEND_BURST: u32 = 2;
const CONNECTION_BURST: u32 = 10;

impl Check<'_> {
    /// How often one session may send.
    pub(super) fn send_rate(&mut self, args: &ServeArgs) -> Option<Rate> {
        self.rate(("send-rate", &args.send_rate), ("send-burst", args.send_burst.as_deref()), SEND_BURST)
    }

    /// What one client address may have.
    pub(super) fn address_bounds(&mut self, args: &ServeArgs) -> AddressBounds {
        let handshakes = self.rate(
            ("connection-rate", &args.connection_rate),
            ("connection-burst", args.connection_burst.as_deref()),
            CONNECTION_BURST,
        );
        let sockets = self.parse(
            "max-connections-per-address",
            &args.max_connections_per_address,
            "a whole number, or 0 for no limit",
        );
        AddressBounds { handshakes, sockets: sockets.unwrap_or(0) }
    }

    fn rate(&mut self, rate: (&str, &str), burst: (&str, Option<&str>), times: u32) -> Option<Rate> {
        let expected = format!("a whole number up to {MOST}, or 0 for no limit");
        let a_second: u32 = self.parse(rate.0, rate.1, &expected)?;
        if a_second > MOST {
            self.invalid(rate.0, rate.1, &expected);
            return None;
        }
        let given = burst.1.filter(|text| !text.is_empty());
        let Some(a_second) = NonZeroU32::new(a_second) else {
            if let Some(text) = given {
                let (burst, rate) = (option(burst.0), option(rate.0));
                self.errors.push(format!("{burst}: {text:?} is of use with {rate} only: add that, or take this away"));
            }
            return None;
        };
        let burst = match given {
            None => a_second.saturating_mul(NonZeroU32::new(times)?),
            Some(text) => {
                let expected = "a whole number from 1";
                let count = self.parse(burst.0, text, expected)?;
                let count = NonZeroU32::new(count);
                if count.is_none() {
                    self.invalid(burst.0, text, expected);
                }
                count?
            }
        };
        Some(Rate { burst, every: Duration::from_secs(1) / a_second.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cli::Cli;
    use crate::config::variables::Variables;
    use crate::config::{Config, Limits};

    fn limits(args: &[&str]) -> Result<Limits, String> {
        let cli = Cli::read(std::iter::once(&"texto").chain(args)).unwrap();
        Config::new(&cli.serve, &Variables::default()).map(|config| config.limits).map_err(|errors| errors.to_string())
    }

    fn rate(burst: u32, ms: u64) -> Option<Rate> {
        Some(Rate { burst: NonZeroU32::new(burst).unwrap(), every: Duration::from_millis(ms) })
    }

    #[test]
    fn nothing_is_limited_unless_it_is_asked_for() {
        let limits = limits(&[]).unwrap();
        assert_eq!((limits.send_rate, limits.addresses), (None, AddressBounds::default()));
    }

    #[test]
    fn a_rate_has_a_burst() {
        assert_eq!(limits(&["--send-rate", "10"]).unwrap().send_rate, rate(20, 100));
        assert_eq!(limits(&["--send-rate", "10", "--send-burst", "1"]).unwrap().send_rate, rate(1, 100));
        let flags = ["--connection-rate", "50", "--max-connections-per-address", "7"];
        let addresses = limits(&flags).unwrap().addresses;
        assert_eq!(addresses, AddressBounds { handshakes: rate(500, 20), sockets: 7 });
    }

    #[test]
    fn what_is_half_configured_or_no_number_is_named() {
        for (flags, words) in [
            (["--send-burst", "5"], "--send-burst (TEXTO_SEND_BURST): \"5\" is of use with --send-rate"),
            (["--connection-burst", "5"], "is of use with --connection-rate (TEXTO_CONNECTION_RATE) only"),
            (["--send-rate", "many"], "--send-rate (TEXTO_SEND_RATE): \"many\" is not valid"),
            (["--connection-rate", "1000001"], "up to 1000000"),
            (["--max-connections-per-address", "-1"], "a whole number, or 0 for no limit"),
        ] {
            let flags = flags.join("=");
            let errors = limits(&[&flags]).unwrap_err();
            assert!(errors.contains(words), "{flags}: {errors}");
        }
        let errors = limits(&["--send-rate=5", "--send-burst=0"]).unwrap_err();
        assert!(
            errors.contains("--send-burst (TEXTO_SEND_BURST): \"0\" is not valid: a whole number from 1"),
            "{errors}"
        );
    }
}
