//! Owns what one client address may have: handshakes in a second, and WebSockets at a time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::edge::client_address::Neighbourhood;
use crate::edge::limiter::{Limiter, Rate};

/// When a client may try again that has all the WebSockets that its address may have. Nobody knows when one of them ends.
const LATER: Duration = Duration::from_secs(5);

/// What one address may have; with none, as much as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressBounds {
    /// Handshakes.
    pub handshakes: Option<Rate>,
    /// WebSockets at a time; 0 is no bound.
    pub sockets: usize,
}

/// Which of the bounds is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// There were so many handshakes; the next may be after this time.
    #[error("too many connections were begun from this address: try again in {} s", seconds(*.0))]
    Handshakes(Duration),
    /// There are so many WebSockets.
    #[error("too many connections are open from this address: close some, or try again later")]
    Sockets,
}

impl Excess {
    /// Seconds after which the client may try again: rounded up, for earlier it would be refused again.
    pub fn retry_after(self) -> u64 {
        seconds(match self {
            Self::Handshakes(wait) => wait,
            Self::Sockets => LATER,
        })
    }

    /// What an operator is told of it.
    pub fn complaint(self) -> &'static str {
        match self {
            Self::Handshakes(_) => {
                "handshakes are refused, for so many came from this address (--connection-rate); if it is a proxy's, name \
                 it in --trusted-proxies"
            }
            Self::Sockets => {
                "handshakes are refused, for this address has as many connections as it may \
                 (--max-connections-per-address); if it is a proxy's, name it in --trusted-proxies"
            }
        }
    }
}

fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// What each address has.
#[derive(Debug, Default)]
pub struct AddressLimits {
    handshakes: Option<Limiter<Neighbourhood>>,
    most: usize,
    sockets: Arc<Sockets>,
}

/// How many WebSockets each has that has some: as many entries at the most as there are WebSockets.
#[derive(Debug, Default)]
struct Sockets(Mutex<HashMap<Neighbourhood, usize>>);

impl Sockets {
    fn lock(&self) -> MutexGuard<'_, HashMap<Neighbourhood, usize>> {
        // Nothing can panic while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AddressLimits {
    /// Nobody has anything yet.
    pub fn new(bounds: AddressBounds) -> Self {
        let AddressBounds { handshakes, sockets } = bounds;
        Self { handshakes: handshakes.map(Limiter::new), most: sockets, sockets: Arc::default() }
    }

    /// Whether a client at `address` may shake hands now; to be asked before that costs anything.
    ///
    /// # Errors
    /// When it may not.
    pub fn admits_handshake(&self, address: Option<IpAddr>) -> Result<(), Excess> {
        let (Some(limiter), Some(address)) = (&self.handshakes, address) else { return Ok(()) };
        limiter.admits(&Neighbourhood::of(address)).map_err(Excess::Handshakes)
    }

    /// The place of one more WebSocket.
    ///
    /// # Errors
    /// When the address has as many as it may.
    pub fn place(&self, address: Option<IpAddr>) -> Result<AddressPlace, Excess> {
        let Some(address) = address.filter(|_| self.most > 0) else { return Ok(AddressPlace(None)) };
        let neighbourhood = Neighbourhood::of(address);
        let mut sockets = self.sockets.lock();
        let count = sockets.entry(neighbourhood).or_insert(0);
        if *count >= self.most {
            return Err(Excess::Sockets);
        }
        *count += 1;
        Ok(AddressPlace(Some((self.sockets.clone(), neighbourhood))))
    }

    /// Forgets whoever has nothing. To be called now and then.
    pub fn tidy(&self) {
        if let Some(limiter) = &self.handshakes {
            limiter.tidy();
        }
    }
}

/// What a WebSocket holds as long as it is open.
#[derive(Debug)]
pub struct AddressPlace(Option<(Arc<Sockets>, Neighbourhood)>);

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let Some((sockets, neighbourhood)) = self.0.take() else { return };
        let mut sockets = sockets.lock();
        if let Some(count) = sockets.get_mut(&neighbourhood) {
            *count -= 1;
            if *count == 0 {
                sockets.remove(&neighbourhood);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let limits = AddressLimits::new(AddressBounds { handshakes: None, sockets: 2 });
        let place = |text: &str| limits.place(Some(text.parse().unwrap()));
        let (one, two) = (place("2001:db8::1").unwrap(), place("2001:db8::2").unwrap());
        assert_eq!(place("2001:db8::3").unwrap_err(), Excess::Sockets);
        let other = place("2001:db8:0:1::1").unwrap();
        drop(one);
        let three = place("2001:db8::3").unwrap();
        assert_eq!(place("2001:db8::1").unwrap_err(), Excess::Sockets);
        drop((two, three, other));
        assert!(limits.sockets.lock().is_empty(), "nobody is remembered who has nothing");
    }

    #[test]
    fn who_has_to_wait_is_told_seconds_that_are_enough() {
        for (ms, seconds) in [(1, 1), (999, 1), (1000, 1), (1001, 2), (59_500, 60)] {
            assert_eq!(Excess::Handshakes(Duration::from_millis(ms)).retry_after(), seconds);
        }
    }
}
