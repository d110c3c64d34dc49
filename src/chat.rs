//! Owns `texto chat`: two people in two terminals. It is a client like any other (`clients/rust`), and knows no gateway.

mod lines;

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt};
use texto_client::{Builder, Cause, Client, Ending, Message, Messages, SendError, State, Uuid};
use tokio::sync::mpsc;

use crate::files;
use lines::Line;

/// More of a line is another line.
const LONGEST_LINE: u64 = 64 << 10;
/// Lines that were typed, and wait.
const LINES: usize = 16;
/// Messages without an answer; then no more are read.
const MOST_UNANSWERED: usize = 64;
/// No token is longer.
const LONGEST_FILE: u64 = 64 << 10;
/// People who have been shown with their full ids.
const MOST_KNOWN: usize = 1024;
/// Shorter pauses are not worth a word.
const SHORT: Duration = Duration::from_millis(50);

/// `texto chat`: talk to somebody over running gateways.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Where gateways are: wss://chat.example.org; of several, the next one after each failure
    #[arg(value_name = "URL", default_value = "ws://localhost:8398")]
    pub urls: Vec<String>,
    /// To whom you write, until you say otherwise
    #[arg(long, value_name = "ID")]
    pub to: Option<Uuid>,
    /// A file that holds credentials (a JWT), where the gateway demands some; read again for each connection
    #[arg(long, value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// Whom to trust for wss://, as PEM [default: whom this system trusts]
    #[arg(long, value_name = "PATH")]
    pub ca_file: Option<PathBuf>,
}

/// What happens.
enum Event {
    Typed(Option<String>),
    Came(Option<Message>),
    Changed(Option<State>),
    Answered(String, Result<(), SendError>),
    Interrupted,
}

/// Talks until the input ends, or the server ends it.
///
/// # Errors
/// When it can't begin, or the server ended it: why.
pub async fn run(args: &ChatArgs) -> Result<()> {
    let (client, messages) = builder(args)?.start()?;
    let mut words = args.urls.clone();
    words.extend(args.ca_file.iter().map(|file| format!("--ca-file {}", file.display())));
    let (words, has_token) = (words.join(" "), args.token_file.is_some());
    let mut chat =
        Chat { client, words, has_token, receiver: args.to, id: None, missed: 0, is_away: false, known: Vec::new() };
    let ended = chat.talk(messages, typed()).await;
    chat.client.close().await;
    match ended {
        // Whoever reads the output has enough of it.
        Err(error) if error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == ErrorKind::BrokenPipe) => {
            Ok(())
        }
        ended => ended,
    }
}

fn builder(args: &ChatArgs) -> Result<Builder> {
    let mut builder = Client::builder(&args.urls);
    if let Some(file) = &args.token_file {
        token(file)?; // Said now rather than at the first connection.
        let file = file.clone();
        builder = builder.credentials(move || std::future::ready(token(&file).map_err(Into::into)));
    }
    if let Some(file) = &args.ca_file {
        let pem = files::read(file, LONGEST_FILE * 16);
        builder = builder.authorities(pem.with_context(|| format!("--ca-file: {} can't be read", file.display()))?);
    }
    Ok(builder)
}

/// The token in `file`, which is not part of an error.
fn token(file: &Path) -> Result<String> {
    let named = |what: &str| format!("--token-file: {} {what}", file.display());
    let bytes = files::read(file, LONGEST_FILE).with_context(|| named("can't be read"))?;
    let text = String::from_utf8(bytes).ok().map(|text| text.trim().to_owned());
    let text = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
    text.with_context(|| named("holds no token: it should hold a JWT, as `texto token` prints it, and nothing else"))
}

/// What is typed, line by line. The thread ends with the input, or with the program.
fn typed() -> mpsc::Receiver<String> {
    let (typed, lines) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match (&mut input).take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(1..) => {}
                _ => return,
            }
            if typed.blocking_send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    lines
}

struct Chat {
    client: Client,
    /// The addresses, and whom to trust there, as they were given.
    words: String,
    /// There are credentials.
    has_token: bool,
    receiver: Option<Uuid>,
    /// Who one was when that was said last.
    id: Option<Uuid>,
    missed: u64,
    is_away: bool,
    /// Who has been shown with the full id.
    known: Vec<Uuid>,
}

impl Chat {
    async fn talk(&mut self, mut messages: Messages, mut typed: mpsc::Receiver<String>) -> Result<()> {
        let mut states = self.client.states();
        let mut sends = FuturesUnordered::new();
        let mut is_over = false;
        while !(is_over && sends.is_empty()) {
            let event = tokio::select! {
                line = typed.recv(), if !is_over && sends.len() < MOST_UNANSWERED => Event::Typed(line),
                message = messages.next() => Event::Came(message),
                state = states.next() => Event::Changed(state),
                Some((text, answer)) = sends.next() => Event::Answered(text, answer),
                Ok(()) = tokio::signal::ctrl_c() => Event::Interrupted,
            };
            match event {
                Event::Typed(Some(line)) => match lines::read(&line) {
                    Line::Quit => is_over = true,
                    line => {
                        if let Some((receiver, text)) = self.obey(line)? {
                            let client = self.client.clone();
                            // They go out in the order in which they stand here.
                            sends.push(async move {
                                let answer = client.send(receiver, text.clone()).await;
                                (text, answer)
                            });
                        }
                    }
                },
                Event::Typed(None) => is_over = true,
                Event::Came(Some(message)) => self.show(&message)?,
                Event::Came(None) | Event::Changed(None | Some(State::Closed(_))) => return self.ending(),
                Event::Changed(Some(state)) => self.tell(&state)?,
                Event::Answered(text, Err(error)) => say(format_args!("* not sent: {:?} ({error})", shorten(&text)))?,
                Event::Answered(_, Ok(())) => {}
                Event::Interrupted => return Ok(()),
            }
        }
        Ok(())
    }

    /// How it ended, once the session is over.
    fn ending(&self) -> Result<()> {
        match self.client.states().current() {
            State::Closed(Ending::Credentials(_)) if !self.has_token => anyhow::bail!(
                "the server does not let this client in: it wants credentials, a JWT in a file: give it by --token-file \
                 (`texto token` makes one to try out)"
            ),
            State::Closed(ending) if ending != Ending::Closed => anyhow::bail!("{ending}"),
            _ => Ok(()),
        }
    }

    /// Does what a line asks for. Returns what is to be sent, and to whom.
    fn obey(&mut self, line: Line) -> Result<Option<(Uuid, String)>> {
        match line {
            Line::Say(to, text) => match to.or(self.receiver) {
                Some(receiver) => {
                    self.receiver.get_or_insert(receiver);
                    return Ok(Some((receiver, text)));
                }
                None => say("* to whom? /to ID, or ID TEXT; or wait until somebody writes to you")?,
            },
            Line::To(id) => {
                self.receiver = Some(id);
                say(format_args!("* what you type goes to {id}"))?;
            }
            Line::Me => match self.client.id() {
                Some(id) => say(format_args!("* you are {id}"))?,
                None => say("* you are nobody yet: there is no connection")?,
            },
            Line::Help => say(lines::HELP)?,
            Line::Wrong(why) => say(format_args!("* {why}"))?,
            Line::Empty | Line::Quit => {}
        }
        Ok(None)
    }

    fn show(&mut self, message: &Message) -> Result<()> {
        let sender = message.sender;
        if !self.known.contains(&sender) {
            self.known.truncate(MOST_KNOWN - 1);
            self.known.insert(0, sender);
            say(format_args!("* {} is {sender}", lines::name(sender)))?;
        }
        say(format_args!("{}: {}", lines::name(sender), lines::tame(&message.text)))?;
        if self.receiver.is_none() {
            self.receiver = Some(sender);
            say(format_args!("* what you type goes to {}", lines::name(sender)))?;
        }
        Ok(())
    }

    fn tell(&mut self, state: &State) -> Result<()> {
        match state {
            State::Connected { id, missed, .. } => {
                if self.id.replace(*id) != Some(*id) {
                    say(format_args!("* you are {id}"))?;
                    if self.receiver.is_none() {
                        say(format_args!("* in the other terminal: texto chat {} --to {id}", self.words))?;
                    }
                } else if self.is_away {
                    say("* back")?;
                }
                self.is_away = false;
                if std::mem::replace(&mut self.missed, *missed) != *missed {
                    say("* some messages may be missing")?;
                }
            }
            State::Away { retry_in, why, .. } => {
                let soon = if *retry_in < SHORT {
                    "at once".to_owned()
                } else {
                    format!("in {:.1} s", retry_in.as_secs_f64())
                };
                let what = if self.id.is_some() { "away, coming back" } else { "no connection, trying again" };
                self.is_away = true;
                let mend = match why {
                    Cause::Untrusted(_) => ": give its authority by --ca-file",
                    _ => "",
                };
                say(format_args!("* {what} {soon}: {why}{mend}"))?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// As much of a text as says which one it was.
fn shorten(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Prints a line.
fn say(line: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}
