//! Owns the subscribed half of a link: subscriptions as the registry wants them, and what arrives on them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::Shared;
use super::connection::{ConnectionError, Reader, Reply, Writer, is_for_later, pack};
use super::link::Link;
use super::pace::Pace;
use super::probe::refusal;
use crate::backoff::Backoff;
use crate::broker::LinkState;
use crate::transport::Gathered;
use crate::transport::envelope::Channel;

/// What a server puts off, as one that runs a script does, is asked for again after this, doubling: whoever was greeted
/// meanwhile can't be reached before.
const AGAIN: Duration = Duration::from_millis(5);
const AGAIN_MOST: Duration = Duration::from_millis(50);

/// What the server has yet to answer, in order.
enum Owed {
    /// As many confirmations as are left, or one error for all of them.
    Channels { command: &'static str, of: Of, left: usize, sent: Instant },
    /// ROLE, which a server answers that loads, or has lost its master; PING it would not.
    Role(Instant),
}

/// Whose channels a command is about.
enum Of {
    Sessions(Vec<Channel>),
    Node,
}

/// Runs until the connection fails: hands arriving messages on, and demands a sign of life within the heartbeat's
/// timeout.
pub(super) async fn subscriptions(
    link: Arc<Link>,
    shared: Arc<Shared>,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<Infallible, ConnectionError> {
    let limit = shared.config.heartbeat_timeout;
    let began = Instant::now();
    let mut replay: VecDeque<Channel> = shared.registry.channels().into();
    let channels = replay.len();
    let mut own = shared.own_channels();
    let mut synced = false;
    let mut owed: VecDeque<Owed> = VecDeque::new();
    let mut unconfirmed = 0_usize;
    let mut pace = Pace::new(limit);
    // Until when the server is left in peace, if it has put something off.
    let mut put_off: Option<Instant> = None;
    let mut again = Backoff::new(AGAIN, AGAIN_MOST);
    let mut gathered = Gathered::default();
    let mut heard = Instant::now();
    let mut last_beat = heard;
    let mut beat = interval(limit / 4);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut commands = Vec::new();
    loop {
        while let Some(reply) = reader.buffered()? {
            match reply {
                Reply::Message { channel, payload } => shared.receive(channel, payload, &mut gathered),
                Reply::Push(parts) => {
                    unconfirmed = unconfirmed.saturating_sub(1);
                    if let Some(Owed::Channels { left, sent, .. }) = owed.front_mut() {
                        *left -= 1;
                        if *left == 0 {
                            pace.confirmed(sent.elapsed());
                            again.reset();
                            owed.pop_front();
                        }
                    }
                    let confirmed = parts.first().and_then(Reply::text) == Some(b"subscribe");
                    if let Some(channel) = parts.get(1).and_then(Reply::text).filter(|_| confirmed) {
                        shared.confirmed(&link, channel);
                    }
                }
                reply => match (owed.pop_front(), reply) {
                    // Whatever the answer is, it lives; but without the right to ask, that is not known for long.
                    (Some(Owed::Role(sent)), reply) => {
                        if let Reply::Error(text) = reply
                            && let Some(refusal) = refusal(text, "ROLE", &shared.config.credentials)
                        {
                            return Err(refusal);
                        }
                        let address = link.address().to_string();
                        let trip = sent.elapsed().as_secs_f64();
                        shared.metrics.heartbeat.with_label_values(&[&address]).observe(trip);
                    }
                    (Some(Owed::Channels { of, left, .. }), Reply::Error(text)) if is_for_later(text) => {
                        unconfirmed = unconfirmed.saturating_sub(left);
                        pace.put_off();
                        put_off.get_or_insert_with(|| Instant::now() + again.next_delay());
                        match of {
                            Of::Sessions(channels) => link.still_due(channels),
                            Of::Node => own = shared.own_channels(),
                        }
                    }
                    (Some(Owed::Channels { command, .. }), Reply::Error(text)) => {
                        let refusal = refusal(text, command, &shared.config.credentials);
                        return Err(refusal.unwrap_or_else(|| ConnectionError::from_reply(text)));
                    }
                    _ => return Err(ConnectionError::Protocol),
                },
            }
        }
        shared.after_read(&mut gathered);
        commands.clear();
        let room = if put_off.is_some() { 0 } else { pace.room(unconfirmed) };
        if room > 0 {
            let (join, leave) = if replay.is_empty() {
                link.take_dirty(room).into_iter().partition(|channel| shared.registry.wants(*channel))
            } else {
                let count = replay.len().min(room);
                (replay.drain(..count).collect::<Vec<_>>(), Vec::new())
            };
            for (command, channels) in [("SUBSCRIBE", join), ("UNSUBSCRIBE", leave)] {
                if !channels.is_empty() {
                    let names: Vec<_> = channels.iter().map(|channel| channel.name()).collect();
                    pack_channels(&mut commands, command, names.iter().map(String::as_bytes));
                    let left = channels.len();
                    owed.push_back(Owed::Channels { command, of: Of::Sessions(channels), left, sent: Instant::now() });
                    unconfirmed += left;
                }
            }
        }
        if put_off.is_none() && commands.is_empty() && replay.is_empty() && unconfirmed == 0 && !own.is_empty() {
            // Last of all: whoever counts them knows that all of this node's sessions are here.
            pack_channels(&mut commands, "SUBSCRIBE", own.iter().map(Vec::as_slice));
            owed.push_back(Owed::Channels {
                command: "SUBSCRIBE",
                of: Of::Node,
                left: own.len(),
                sent: Instant::now(),
            });
            unconfirmed += own.len();
            own.clear();
        }
        if !commands.is_empty() {
            writer.write(&commands).await?;
        } else if !synced && put_off.is_none() && own.is_empty() && unconfirmed == 0 {
            synced = true;
            link.set_stage(&shared, LinkState::Synced);
            shared.link_synced(&link, channels, began.elapsed());
        }
        let woke = tokio::select! {
            biased;
            result = reader.fill() => Woke::Read(result),
            () = link.dirty_wake.notified() => Woke::Dirty,
            _ = beat.tick() => Woke::Beat,
            () = sleep_until(put_off.unwrap_or_else(Instant::now).into()), if put_off.is_some() => Woke::Again,
        };
        let now = Instant::now();
        match woke {
            Woke::Read(result) => {
                result?;
                heard = now;
                continue;
            }
            Woke::Dirty => continue,
            Woke::Again => {
                put_off = None;
                continue;
            }
            Woke::Beat => {}
        }
        if now.saturating_duration_since(last_beat) > limit / 2 {
            heard = now; // This process stood still; it has no right to complain.
        }
        last_beat = now;
        if now.saturating_duration_since(heard) >= limit {
            return Err(ConnectionError::Silent(limit));
        }
        if !owed.iter().any(|owed| matches!(owed, Owed::Role(_))) {
            commands.clear();
            pack(&mut commands, &[b"ROLE"]);
            writer.write(&commands).await?;
            owed.push_back(Owed::Role(now));
        }
    }
}

enum Woke {
    Read(Result<(), ConnectionError>),
    Dirty,
    Beat,
    Again,
}

fn pack_channels<'a>(commands: &mut Vec<u8>, command: &'a str, channels: impl Iterator<Item = &'a [u8]>) {
    let arguments: Vec<&[u8]> = std::iter::once(command.as_bytes()).chain(channels).collect();
    pack(commands, &arguments);
}
