//! Owns child processes: started on free ports, signalled, and gone when dropped.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How often a condition is looked at.
pub const LOOK: Duration = Duration::from_millis(5);

/// Ports given out by this process; none is given twice.
static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A free port on loopback, outside the range that the kernel takes for outgoing connections, so that
/// a server can be restarted on it.
///
/// # Errors
/// When none is found.
pub fn free_port() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..1000 {
        let port = fastrand::u16(11_000..31_000);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port on loopback")
}

/// A running child. Killed and reaped when dropped, also when it is stopped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command`. Should this process die, the kernel kills the child (`setpriv --pdeathsig`).
    ///
    /// # Errors
    /// When the program is missing: then it says how to get it.
    pub fn start(name: &str, program: &Path, configure: impl FnOnce(&mut Command)) -> Result<Self> {
        let setpriv = Path::new("/usr/bin/setpriv");
        let mut command = if setpriv.exists() {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.stdin(Stdio::null());
        configure(&mut command);
        let child = command.spawn().with_context(|| format!("can't start {}", program.display()))?;
        Ok(Self { child, name: name.to_owned() })
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. One that has gone already is no error. After SIGSTOP it stands still when this returns: on a busy
    /// machine a process may run on for many milliseconds until a signal takes effect.
    pub fn signal(&self, signal: Signal) {
        // A pid fits; the child is not reaped before `wait`, so it can't be anybody else's.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, signal);
        if signal == Signal::SIGSTOP {
            // Its end would do as well. Neither is taken from whoever waits for it.
            let _ = waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        }
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} did not end within {limit:?}", self.name);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Finds a program on the path.
///
/// # Errors
/// When it is missing: then it says which Debian package has it.
pub fn find(program: &str, package: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(Into::into));
    for place in places {
        let candidate = place.join(program);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("{program} is not installed: get it with `apt-get install {package}`")
}

/// Waits until `condition` gives something.
///
/// # Errors
/// When it does not within `limit`; `what` says what was waited for.
pub async fn until<T>(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("{what}: not within {limit:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}
