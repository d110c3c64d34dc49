//! Owns the publishing half of a link: commands out and answers in, both at the same time, with ROLE among them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use super::Shared;
use super::connection::{ConnectionError, Reader, Reply, Writer, is_for_later, pack, pack_publish};
use super::link::Link;
use super::probe::refusal;
use super::role;
use crate::transport::envelope::head;
use crate::transport::sender::{Answer, Command};

/// What the server has yet to answer, in order.
enum Owed {
    /// A command; the last one of a batch with the time when that was written.
    Command(&'static str, Option<Instant>),
    Role(Instant),
}

type Queue = Mutex<VecDeque<Owed>>;

fn lock(queue: &Queue) -> std::sync::MutexGuard<'_, VecDeque<Owed>> {
    // No state is left half-changed by the code that holds this lock.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the connection fails. How much is under way is the transport's to bound.
pub(super) async fn publishing(
    link: &Link,
    shared: &Shared,
    reader: &mut Reader,
    writer: &mut Writer,
) -> Result<Infallible, ConnectionError> {
    let owed = Queue::default();
    tokio::select! {
        ended = write(link, shared, writer, &owed) => ended,
        ended = read(link, shared, reader, &owed) => ended,
    }
}

async fn write(link: &Link, shared: &Shared, writer: &mut Writer, owed: &Queue) -> Result<Infallible, ConnectionError> {
    let wake = &shared.wakes[link.id()];
    let mut beat = interval(shared.config.heartbeat_timeout / 4);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut commands = Vec::new();
    loop {
        let (batch, gathers_until) = shared.next_batch(link.id());
        let ask_role = if batch.is_empty() {
            tokio::select! {
                () = wake.notified() => continue,
                () = sleep_until(gathers_until.unwrap_or_else(Instant::now).into()), if gathers_until.is_some() => continue,
                _ = beat.tick() => true,
            }
        } else {
            // Under load the wait above is never reached; ROLE must be asked all the same.
            std::future::poll_fn(|cx| std::task::Poll::Ready(beat.poll_tick(cx).is_ready())).await
        };
        commands.clear();
        batch.iter().for_each(|command| pack_command(&mut commands, shared, command));
        if ask_role {
            pack(&mut commands, &[b"ROLE"]);
        }
        owe(owed, &batch, ask_role);
        writer.write(&commands).await?;
        if commands.capacity() > 1024 * 1024 {
            commands = Vec::new();
        }
    }
}

fn owe(owed: &Queue, batch: &[Command], role: bool) {
    let now = Instant::now();
    let mut queue = lock(owed);
    for (left, command) in (0..batch.len()).rev().zip(batch) {
        queue.push_back(Owed::Command(name(command), (left == 0).then_some(now)));
    }
    queue.extend(role.then_some(Owed::Role(now)));
}

fn name(command: &Command) -> &'static str {
    match command {
        Command::Message(..) | Command::Control(..) => "PUBLISH",
        Command::Count(_) => "PUBSUB NUMSUB",
    }
}

fn pack_command(commands: &mut Vec<u8>, shared: &Shared, command: &Command) {
    match command {
        Command::Message(channel, place, body) => {
            pack_publish(commands, channel.name().as_bytes(), &[&head(shared.tag(), *place), body]);
        }
        Command::Control(channel, bytes) => pack_publish(commands, channel.name().as_bytes(), &[bytes]),
        Command::Count(channels) => {
            let names: Vec<String> = channels.iter().map(|channel| channel.name()).collect();
            let mut arguments: Vec<&[u8]> = vec![b"PUBSUB", b"NUMSUB"];
            arguments.extend(names.iter().map(String::as_bytes));
            pack(commands, &arguments);
        }
    }
}

async fn read(link: &Link, shared: &Shared, reader: &mut Reader, owed: &Queue) -> Result<Infallible, ConnectionError> {
    let limit = shared.config.heartbeat_timeout;
    let heartbeat = shared.metrics.heartbeat.with_label_values(&[link.address().to_string().as_str()]);
    loop {
        let mut answers = Vec::new();
        let mut heard = false;
        let mut refused = None;
        let mut put_off = false;
        while let Some(reply) = reader.buffered()? {
            heard = true;
            // Nothing is due: whatever comes is not Redis.
            let due = lock(owed).pop_front().ok_or(ConnectionError::Protocol)?;
            if let Reply::Error(text) = &reply {
                let command = match due {
                    Owed::Command(command, _) => command,
                    Owed::Role(_) => "ROLE",
                };
                refused = refusal(text, command, &shared.config.credentials);
                put_off |= is_for_later(text);
            }
            match due {
                Owed::Command(_, last) => {
                    answers.push(answer(&reply));
                    if let Some(began) = last {
                        shared.metrics.publish_duration.observe(began.elapsed().as_secs_f64());
                    }
                }
                Owed::Role(began) => {
                    heartbeat.observe(began.elapsed().as_secs_f64());
                    link.note_progress(began, role::replication_offset(&reply));
                    // An error is a sign of life as well; what it was stays true until it says otherwise.
                    if !matches!(reply, Reply::Error(_)) && link.set_role(role::role(&reply)?) {
                        shared.roles_changed();
                    }
                }
            }
            if refused.is_some() {
                break;
            }
        }
        if put_off {
            shared.transport.sender().put_off(Instant::now(), link.id());
        }
        if heard {
            shared.answered(link.id(), answers);
        }
        // A right was taken away: the link is of no use before somebody gives it back, and finds out when by a new one.
        if let Some(refused) = refused {
            return Err(refused);
        }
        // ROLE is asked four times as often, so a server that lives is never silent for so long.
        timeout(limit, reader.fill()).await.map_err(|_| ConnectionError::Silent(limit))??;
    }
}

/// What a reply to a command of the transport says.
fn answer(reply: &Reply<'_>) -> Answer {
    let count = |reply: &Reply<'_>| match reply {
        Reply::Number(count) => u64::try_from(*count).ok(),
        _ => None,
    };
    match reply {
        Reply::Number(_) => count(reply).map_or(Answer::Error, Answer::Receivers),
        // Names and counts in turn.
        Reply::Array(parts) => {
            parts.iter().skip(1).step_by(2).map(count).collect::<Option<_>>().map_or(Answer::Error, Answer::Counts)
        }
        _ => Answer::Error,
    }
}
