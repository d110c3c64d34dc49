//! Owns what is found out about a server before a link relies on it: that both connections reach the same one, and
//! that this user may do there what Texto does.

use std::time::Duration;

use tokio::time::timeout;

use super::connection::{ConnectionError, Reader, Reply, Writer, is_unknown, pack};
use super::role::{self, Role};
use crate::config::secret::Credentials;

/// Tries each command on a channel of its own, which no node listens to, and returns what the server calls itself.
///
/// # Errors
/// What is missing and how to mend it, or that the two connections ended at different servers.
pub(super) async fn probe(
    (publish_reader, publish_writer): &mut (Reader, Writer),
    (subscribe_reader, subscribe_writer): &mut (Reader, Writer),
    credentials: &Credentials,
    limit: Duration,
) -> Result<Role, ConnectionError> {
    let channel = format!("texto:probe:{:016x}", fastrand::u64(..));
    let mut commands = Vec::new();
    pack(&mut commands, &[b"SUBSCRIBE", channel.as_bytes()]);
    subscribe_writer.write(&commands).await?;
    let reply = next(subscribe_reader, limit).await?;
    judge(&reply, "SUBSCRIBE", credentials)?;

    commands.clear();
    pack(&mut commands, &[b"PUBSUB", b"NUMSUB", channel.as_bytes()]);
    pack(&mut commands, &[b"PUBLISH", channel.as_bytes(), b""]);
    pack(&mut commands, &[b"ROLE"]);
    publish_writer.write(&commands).await?;
    let count = {
        let reply = next(publish_reader, limit).await?;
        judge(&reply, "PUBSUB NUMSUB", credentials)?;
        match &reply {
            Reply::Array(parts) => matches!(parts.get(1), Some(Reply::Number(count)) if *count > 0),
            _ => return Err(ConnectionError::Protocol),
        }
    };
    judge(&next(publish_reader, limit).await?, "PUBLISH", credentials)?;
    let role = {
        let reply = next(publish_reader, limit).await?;
        judge(&reply, "ROLE", credentials)?;
        role::role(&reply)?
    };
    if !count {
        return Err(ConnectionError::DifferentServers);
    }

    commands.clear();
    pack(&mut commands, &[b"UNSUBSCRIBE", channel.as_bytes()]);
    subscribe_writer.write(&commands).await?;
    loop {
        match next(subscribe_reader, limit).await? {
            Reply::Message { .. } => {} // What was published to it a moment ago.
            reply => {
                judge(&reply, "UNSUBSCRIBE", credentials)?;
                return Ok(role);
            }
        }
    }
}

async fn next(reader: &mut Reader, limit: Duration) -> Result<Reply<'_>, ConnectionError> {
    timeout(limit, reader.next()).await.map_err(|_| ConnectionError::Silent(limit))?
}

/// Any error is one here.
fn judge(reply: &Reply<'_>, command: &'static str, credentials: &Credentials) -> Result<(), ConnectionError> {
    let Reply::Error(text) = reply else { return Ok(()) };
    Err(refusal(text, command, credentials).unwrap_or_else(|| ConnectionError::from_reply(text)))
}

/// What an error reply to `command` says about this user's rights, or the server's commands, and its mend; `None` if
/// it is about something else.
pub(crate) fn refusal(text: &[u8], command: &'static str, credentials: &Credentials) -> Option<ConnectionError> {
    if is_unknown(text) {
        return Some(ConnectionError::Unknown(command));
    }
    if !text.starts_with(b"NOPERM") {
        return None;
    }
    let text = String::from_utf8_lossy(text).into_owned();
    let user = credentials.username.as_deref().unwrap_or("default");
    // Redis says "one of the channels" where the command itself is allowed.
    let right = match text.contains("channel") {
        true => "&texto:*".to_owned(),
        false => format!("+{}", command.to_ascii_lowercase().replace(' ', "|")),
    };
    Some(ConnectionError::Right { command, text, mend: format!("ACL SETUSER {user} {right}") })
}
