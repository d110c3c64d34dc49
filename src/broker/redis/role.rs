//! Owns what a server says of itself by ROLE: what it is, whom it follows, and how far it is.

use std::fmt;
use std::time::{Duration, Instant};

use super::connection::{ConnectionError, Reply};
use crate::config::Address;

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes and replicates to the others.
    Master,
    /// It follows a master.
    Replica {
        /// The master that it follows.
        master: Address,
        /// Whether it has a working connection to it.
        connected: bool,
    },
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Replica { master, connected: true } => write!(f, "replica of {master}"),
            Self::Replica { master, connected: false } => write!(f, "replica of {master}, without a connection to it"),
        }
    }
}

/// Reads the answer to ROLE.
///
/// # Errors
/// An error reply, or one that is not an answer to ROLE.
pub fn role(reply: &Reply<'_>) -> Result<Role, ConnectionError> {
    let parts = match reply {
        Reply::Array(parts) => parts,
        Reply::Error(text) => return Err(ConnectionError::from_reply(text)),
        _ => return Err(ConnectionError::Protocol),
    };
    let text = |at: usize| {
        let bytes: &[u8] = parts.get(at).and_then(Reply::text).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    match (text(0).as_str(), parts.get(2)) {
        ("master", _) => Ok(Role::Master),
        ("slave", Some(Reply::Number(port))) => Ok(Role::Replica {
            master: Address { host: text(1), port: u16::try_from(*port).unwrap_or(0) },
            connected: text(3) == "connected",
        }),
        _ => Err(ConnectionError::Protocol),
    }
}

/// How far in its master's stream the server is, in bytes, by the same answer; a replica without a master does not know.
pub fn replication_offset(reply: &Reply<'_>) -> Option<u64> {
    let Reply::Array(parts) = reply else { return None };
    let at = if parts.first().and_then(Reply::text) == Some(b"master") { 1 } else { 4 };
    match parts.get(at) {
        Some(Reply::Number(offset)) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

/// How far a server was in the master's stream, the last two times that it was asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    last: Option<Sample>,
    before: Option<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    asked: Instant,
    answered: Instant,
    offset: Option<u64>,
}

impl Progress {
    /// It was asked then, has answered now, and is so far.
    pub fn note(&mut self, asked: Instant, answered: Instant, offset: Option<u64>) {
        self.before = self.last.replace(Sample { asked, answered, offset });
    }

    /// How long the last answer took.
    pub fn trip(&self) -> Option<Duration> {
        self.last.map(|last| last.answered.saturating_duration_since(last.asked))
    }

    /// How many bytes a replica that is so far lacks of what its `master` had already said that it has. So one that keeps
    /// up lacks nothing, whatever came between the two answers.
    pub fn behind(&self, master: &Self) -> Option<u64> {
        let own = self.last?;
        let known = [master.last, master.before].into_iter().flatten().find(|said| said.answered <= own.asked);
        Some(known?.offset?.saturating_sub(own.offset?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::redis::connection;

    #[test]
    fn roles() {
        let parsed = |text: &'static [u8]| role(&connection::parse(text).unwrap().unwrap().0);
        assert_eq!(parsed(b"*3\r\n$6\r\nmaster\r\n:1\r\n*0\r\n").unwrap(), Role::Master);
        let replica = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:6379\r\n$9\r\nconnected\r\n:14\r\n";
        let master = "h:6379".parse().unwrap();
        assert_eq!(parsed(replica).unwrap().to_string(), "replica of h:6379");
        assert_eq!(parsed(replica).unwrap(), Role::Replica { master, connected: true });
        assert!(matches!(parsed(b"-NOAUTH Authentication required.\r\n"), Err(ConnectionError::Refused(_))));
        assert!(parsed(b"*1\r\n$8\r\nsentinel\r\n").is_err());

        let offset = |text: &'static [u8]| replication_offset(&connection::parse(text).unwrap().unwrap().0);
        assert_eq!(offset(b"*3\r\n$6\r\nmaster\r\n:99\r\n*0\r\n"), Some(99));
        assert_eq!(offset(replica), Some(14));
        let waiting = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:6379\r\n$7\r\nconnect\r\n:-1\r\n";
        assert_eq!(offset(waiting), None);
        assert_eq!(offset(b"-LOADING\r\n"), None);
    }

    #[test]
    fn a_replica_lacks_what_its_master_had_before() {
        let (start, beat) = (Instant::now(), Duration::from_millis(250));
        let (mut master, mut replica) = (Progress::default(), Progress::default());
        assert_eq!(replica.behind(&master), None);
        replica.note(start, start, Some(90));
        assert_eq!(replica.behind(&master), None);
        master.note(start, start + beat, Some(100));
        assert_eq!(replica.behind(&master), None, "it said so earlier");
        replica.note(start + beat, start + 2 * beat, Some(90));
        assert_eq!((replica.behind(&master), replica.trip()), (Some(10), Some(beat)));
        master.note(start + beat, start + 2 * beat, Some(500));
        assert_eq!(replica.behind(&master), Some(10), "what came since does not count");
        replica.note(start + 2 * beat, start + 2 * beat, Some(501));
        assert_eq!(replica.behind(&master), Some(0));
        replica.note(start + 3 * beat, start + 3 * beat, None);
        assert_eq!(replica.behind(&master), None, "it has no master");
    }
}
