//! Owns a person in traffic who uses the Rust client, as applications do. What that hides nobody sees here: that a message
//! was written again, or that there are two copies; and it can't be led by the hand. Judged it is like everybody.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use texto_client::{Cause, Client, Messages, State, States};
use tokio::sync::watch;
use tokio::time::Interval;

use super::person::Attached;
use super::{Close, Note, Return, Writer, lock};
use crate::checker::{Event, Turn};
use crate::client::Answer;

/// Somebody with a client.
pub(super) struct User {
    writer: Writer,
    client: Client,
    messages: Messages,
    states: States,
    /// What it was told so far.
    missed: u64,
    attached: Option<Attached>,
    /// Since when it is away, by its own wish for so long.
    away: Option<(Instant, Duration)>,
}

impl User {
    /// Connects, at first to one gateway, and later to whichever takes it.
    pub(super) async fn connect(writer: Writer, gateway: usize) -> Result<Self> {
        let gateways = &writer.scene.gateways;
        let urls = (0..gateways.len()).map(|step| format!("ws://{}", gateways[(gateway + step) % gateways.len()]));
        let (client, messages) = Client::builder(urls).connect().await?;
        let mut states = client.states();
        let _connected = states.next().await;
        if let Some(id) = client.id() {
            lock(&writer.scene.ids)[writer.index] = id;
        }
        let attached = Some(Attached::new(&writer.scene.attached));
        Ok(Self { writer, client, messages, states, missed: 0, attached, away: None })
    }

    pub(super) async fn run(mut self, pace: Option<Interval>, mut sending: watch::Receiver<bool>) {
        self.writer.pace = pace;
        let mut sends = FuturesUnordered::new();
        loop {
            if self.writer.left == 0 || !*sending.borrow_and_update() {
                self.writer.finish();
            }
            let may_send = self.writer.left > 0 && sends.len() < self.writer.scene.window;
            tokio::select! {
                message = self.messages.next() => match message {
                    Some(message) => self.writer.read(&message.text),
                    None => return self.writer.finish(),
                },
                Some((pair, number, answer)) = sends.next() => {
                    self.writer.note(pair, number, &Event::Answered(answer));
                }
                () = self.writer.due(), if may_send => {
                    let Note { pair, number, receiver, text } = self.writer.next();
                    let client = self.client.clone();
                    // They are polled, and go out, in the order in which they stand here.
                    sends.push(async move {
                        let answer = match client.send(receiver, text).await {
                            Ok(()) => Answer::Ack,
                            Err(error) => Answer::Error(error.code().to_owned()),
                        };
                        (pair, number, answer)
                    });
                }
                Some(state) = self.states.next() => self.turn(&state),
                changed = sending.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// What its client tells it.
    fn turn(&mut self, state: &State) {
        let Writer { index, scene, .. } = &self.writer;
        let (index, now) = (*index, self.writer.now());
        match state {
            State::Away { retry_in, why, .. } => {
                self.attached = None;
                self.away.get_or_insert((Instant::now(), *retry_in));
                let Cause::Closed(code) = *why else { return };
                lock(&scene.closes).push(Close { client: index, code, at: now });
                match code {
                    1001 | 1012 => self.writer.note(0, 0, &Event::Moved),
                    1006 => {}
                    _ => self.writer.note(0, 0, &Event::Dropped(code)),
                }
            }
            State::Connected { id, resumed, missed, .. } => {
                let before = std::mem::replace(&mut lock(&scene.ids)[index], *id);
                let turn = match (before == *id, *resumed && *missed == self.missed) {
                    (false, _) => Turn::Changed,
                    (true, true) => Turn::Resumed,
                    (true, false) => Turn::Told,
                };
                self.missed = *missed;
                lock(&scene.checker).feed_person(now, index, turn);
                if let Some((since, pause)) = self.away.take() {
                    let took = since.elapsed().saturating_sub(pause);
                    lock(&scene.returns).push(Return { client: index, at: now, took });
                }
                self.attached.get_or_insert_with(|| Attached::new(&scene.attached));
            }
            _ => {}
        }
    }
}
