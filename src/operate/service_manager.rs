//! Owns what the service manager (systemd) is told, if there is one: that this node serves, lives, stops, and how long that
//! may take. The protocol is `sd_notify(3)`: lines in a datagram.
//!
//! Nothing else waits for it: PID 1 may be busy for a while.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use crate::config::DrainConfig;
use crate::operate::drain::Shutdown;
use crate::operate::health::Health;
use crate::registry::Registry;

/// What a drain takes beside delay, window and the answers that are waited for, at the most.
const REST: Duration = Duration::from_secs(6);
/// So often within its time the watchdog is fed: one feed that is late bites nobody.
const FEEDS: u32 = 4;
/// How often the status line is written, where there is no watchdog.
const STATUS: Duration = Duration::from_secs(10);
/// How soon a manager that was busy is told again.
const AGAIN: Duration = Duration::from_millis(100);

/// Whoever started this process and wants to be told. A cheap handle; by default there is nobody.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
    failed: Arc<OnceLock<()>>,
}

impl ServiceManager {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`). One that can't be reached is nobody: it may be
    /// that of whoever started whoever started this.
    pub fn from_environment() -> Self {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Self::default();
        };
        let socket = match connect(&path) {
            Ok(socket) => socket,
            Err(error) => {
                warn!(?path, %error, "the service manager that NOTIFY_SOCKET names can't be reached: it is told nothing");
                return Self::default();
            }
        };
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|microseconds| is_meant && *microseconds > 0);
        Self { socket: Some(Arc::new(socket)), watchdog: watchdog.map(Duration::from_micros), failed: Arc::default() }
    }

    /// Says that clients may come (Redis may still be away: that is no reason to start this node anew); then feeds the
    /// watchdog for as long as the node lives, as `/livez` has it, and says how many sessions there are. When the node leaves, it
    /// asks for the time that this takes, whatever `TimeoutStopSec=` says. Runs for ever.
    pub async fn run(
        self,
        health: Arc<Health>,
        registry: Arc<Registry>,
        shutdown: Shutdown,
        drain: DrainConfig,
        answers: Duration,
    ) {
        if self.socket.is_none() {
            return std::future::pending().await;
        }
        self.insist("READY=1").await;
        let mut interval = interval(self.watchdog.map_or(STATUS, |limit| limit / FEEDS));
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_leaving = false;
        loop {
            tokio::select! {
                _ = interval.tick() => {
                    let told = Pulse { lives: health.lives(), serves: health.is_serving(), takes: health.takes_sessions() };
                    self.tell(&told.text(self.watchdog.is_some(), registry.len()));
                }
                () = shutdown.begun(), if !is_leaving => {
                    is_leaving = true;
                    let most = (drain.delay + drain.window + answers + REST).as_micros();
                    self.insist(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={most}\nSTATUS=draining")).await;
                }
            }
        }
    }

    /// Says it again until it is taken: without it the manager would think that this node never started.
    async fn insist(&self, text: &str) {
        while !self.tell(text) {
            sleep(AGAIN).await;
        }
    }

    /// Whether it was taken.
    fn tell(&self, text: &str) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| !text.is_empty()) else { return true };
        match socket.send(text.as_bytes()) {
            Ok(_) => return true,
            Err(error) if self.failed.set(()).is_ok() => {
                warn!(%error, "the service manager (NOTIFY_SOCKET) takes nothing at the moment");
            }
            Err(_) => {}
        }
        false
    }
}

/// A name that begins with `@` is no file's.
fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// How a node is at a moment.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    lives: bool,
    serves: bool,
    takes: bool,
}

impl Pulse {
    fn text(self, is_watched: bool, sessions: usize) -> String {
        let redis = if self.takes { "" } else { ", and no usable Redis: see /readyz?verbose" };
        // Who leaves has said so, and that stays.
        let status = if self.serves { format!("STATUS={sessions} sessions{redis}\n") } else { String::new() };
        let feed = if is_watched && self.lives { "WATCHDOG=1" } else { "" };
        status + feed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_fed_for_as_long_as_the_node_lives_whatever_redis_does() {
        let well = Pulse { lives: true, serves: true, takes: true };
        assert_eq!(well.text(true, 3), "STATUS=3 sessions\nWATCHDOG=1");
        assert_eq!(well.text(false, 3), "STATUS=3 sessions\n");
        assert_eq!(Pulse { lives: false, ..well }.text(true, 3), "STATUS=3 sessions\n");
        assert!(
            Pulse { takes: false, ..well }.text(true, 3).ends_with("no usable Redis: see /readyz?verbose\nWATCHDOG=1")
        );
        assert_eq!(Pulse { serves: false, takes: false, ..well }.text(true, 3), "WATCHDOG=1", "while it drains, too");
    }
}
