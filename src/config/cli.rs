//! Owns the command line: commands, the flags of all but `serve`, and how help is given; all values still raw.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use super::flags::ServeArgs;
use super::flags::{REDIS, REDIS_TLS};

/// The command line of `texto`.
#[derive(Debug, Parser)]
#[command(name = "texto", version, about, args_conflicts_with_subcommands = true)]
#[command(after_help = BRIEF_HELP, after_long_help = SECRETS_HELP)]
pub struct Cli {
    /// What to do; `serve` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `serve`, accepted without the word as well.
    #[command(flatten)]
    pub serve: ServeArgs,
}

impl Cli {
    /// Reads a command line and the variables of its flags, and notes what was given.
    ///
    /// # Errors
    /// When it can't be understood, or asks for help.
    pub fn read(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let is_brief = arguments.iter().any(|argument| argument == "-h");
        let command = without_empty_variables(Self::command());
        let mut command = if is_brief { brief(command) } else { command };
        let matches = command.try_get_matches_from_mut(arguments)?;
        let mut cli = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        match (&mut cli.command, matches.subcommand()) {
            (Some(Command::Serve(serve) | Command::Check(CheckArgs { serve, .. })), Some((_, matches))) => {
                serve.given = given(&command, matches)
            }
            _ => cli.serve.given = given(&command, &matches),
        }
        Ok(cli)
    }
}

/// The same without the names of variables, so that most flags have one line.
fn brief(command: clap::Command) -> clap::Command {
    command.mut_args(|flag| flag.hide_env(true)).mut_subcommands(brief)
}

/// A variable that is empty counts as one that is not set: so they are written where files name all of them.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |flag: &clap::Arg| flag.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|flag| if is_empty(&flag) { flag.env(Resettable::Reset) } else { flag });
    command.mut_subcommands(without_empty_variables)
}

/// An option of `serve` that has a value because somebody gave it one.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its flag, without the dashes.
    pub flag: String,
    /// Whether it stands under a heading of those that make no sense without Redis.
    pub is_for_redis: bool,
}

fn given(command: &clap::Command, matches: &clap::ArgMatches) -> Vec<Given> {
    let is_given = |id: &str| {
        let source = matches.value_source(id);
        let mut values = matches.get_raw(id).into_iter().flatten();
        matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
            && values.any(|text| !text.is_empty())
    };
    let flags = command.get_arguments().filter(|flag| flag.get_env().is_some() && is_given(flag.get_id().as_str()));
    let note = |flag: &clap::Arg| {
        let is_for_redis = flag.get_help_heading().is_some_and(|heading| [REDIS, REDIS_TLS].contains(&heading));
        Some(Given { flag: flag.get_long()?.to_owned(), is_for_redis })
    };
    flags.filter_map(note).collect()
}

const BRIEF_HELP: &str = "\
These are the flags that most people need; --help has all of them, and says more about each.
Each is a variable as well: --send-timeout is TEXTO_SEND_TIMEOUT.";

const SECRETS_HELP: &str = "\
Secrets are never taken from the command line, where every user of the machine could read them:
  TEXTO_REDIS_PASSWORD      or TEXTO_REDIS_PASSWORD_FILE     for the Redis servers
  TEXTO_SENTINEL_PASSWORD   or TEXTO_SENTINEL_PASSWORD_FILE  for the Sentinels
  TEXTO_SESSION_KEY_FILE    the keys of resume tokens; `texto session-key` prints a new one

Durations are written like 500ms, 5s, 2m. Sizes are bytes.
Logging: TEXTO_LOG takes a filter such as `info` (default), `texto=debug`.";

#[cfg(feature = "lab")]
const CHAOS_HELP: &str = "\
Needs redis-server and redis-sentinel here (apt-get install redis-server redis-sentinel), and for the
scenarios that cut networks root and iptables. Everything runs on this machine's own addresses and is
gone afterwards. The exit code is 1 when a promise was broken.";

#[cfg(feature = "chat")]
const CHAT_HELP: &str = "\
It says who you are. In another terminal `texto chat URL --to ID`, and type: each line is a message. In both:
  ID TEXT   says TEXT to ID
  /to ID    from now on, what you type goes to ID
  /help     what else there is
What you are sent, and your id, outlive the gateway that you are connected to.";

const CHECK_HELP: &str = "\
Give it the flags and variables of `texto serve`, and run it where gateways run. It connects as they do,
publishes messages that are for nobody, and changes nothing. The exit code is 0 when all is well as far as
it can be seen, 1 when something is doubtful, 2 when something is wrong.";

const CHECK_BRIEF_HELP: &str = "\
Give it the flags and variables of `texto serve`; --help has all of them, and says more about each.
The exit code is 0 when all is well, 1 when something is doubtful, 2 when something is wrong.";

const SESSION_KEY_HELP: &str = "\
All nodes have the same file: `(umask 077; texto session-key > FILE)`. To change the key, `add` a new
one, let it `sign` when every node has it, and `drop` the old one when its tokens have expired
(--token-lifetime). Nodes read the file again when it changes.";

const TOKEN_HELP: &str = "\
The token alone is printed. For example, with a secret of this machine's own:
  (umask 077; openssl rand -hex 32 > secret)
  texto serve --auth-key-file secret
  curl -H \"Authorization: Bearer $(texto token --key-file secret)\" …";

#[cfg(feature = "manual")]
const COMPLETIONS_HELP: &str = "\
For example, for every new shell of this user:
  texto completions bash > ~/.local/share/bash-completion/completions/texto
  texto completions zsh > \"${fpath[1]}/_texto\"
  texto completions fish > ~/.config/fish/completions/texto.fish";

/// What `texto` can be asked to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // Parsed once, at start.
pub enum Command {
    /// Run the gateway (what `texto` alone does)
    #[command(after_help = BRIEF_HELP, after_long_help = SECRETS_HELP)]
    Serve(ServeArgs),
    /// Break real Redis servers under traffic, and judge whether the promises hold
    #[cfg(feature = "lab")]
    #[command(after_help = CHAOS_HELP)]
    Chaos(texto_lab::chaos::ChaosArgs),
    /// Talk to somebody, in two terminals, over running gateways
    #[cfg(feature = "chat")]
    #[command(after_help = CHAT_HELP)]
    Chat(crate::chat::ChatArgs),
    /// Watch people chat while the Redis master dies: thirty seconds in the terminal
    #[cfg(feature = "lab")]
    Demo(texto_lab::demo::DemoArgs),
    /// Look at a deployment before its users do: Sentinels, Redis, this host, nginx
    #[command(after_help = CHECK_BRIEF_HELP, after_long_help = CHECK_HELP)]
    Check(CheckArgs),
    /// Ask a running gateway whether it is ready; exit code 0 if it is, 1 if not
    Healthcheck(HealthcheckArgs),
    /// Print a new key for --session-key-file, or change such a file
    #[command(after_help = SESSION_KEY_HELP)]
    SessionKey {
        /// What to do to a file; without it, a new key is printed.
        #[command(subcommand)]
        change: Option<SessionKeyChange>,
    },
    /// Make credentials (a JWT) to try a gateway out that demands some
    #[command(after_help = TOKEN_HELP)]
    Token(TokenArgs),
    /// Print what a shell needs to complete commands and flags
    #[cfg(feature = "manual")]
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// For which one.
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or that of a command, to be read by `man -l -`
    #[cfg(feature = "manual")]
    Man {
        /// Which command's.
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// The flags of `texto check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print the findings as JSON
    #[arg(long, help_heading = "Check")]
    pub json: bool,
    /// What stands in front of the gateways, to be looked at as well: http://host:port
    #[arg(long, value_name = "URL", help_heading = "Check")]
    pub nginx: Option<String>,
    /// The configuration that is looked at.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The flags of `texto token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What signs: a secret, or a private key in PEM (PKCS#8, or PKCS#1 for RSA)
    #[arg(long, value_name = "PATH")]
    pub key_file: std::path::PathBuf,
    /// Who it is for (`sub`); a UUID is the client's id [default: a new UUID]
    #[arg(long, value_name = "NAME")]
    pub subject: Option<String>,
    /// How long it is good
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    pub expires_in: String,
    /// Whom it is to be shown to (`aud`)
    #[arg(long, value_name = "NAME")]
    pub audience: Option<String>,
    /// Who says so (`iss`)
    #[arg(long, value_name = "NAME")]
    pub issuer: Option<String>,
    /// How it is signed [default: HS256, RS256, ES256, ES384 or EdDSA, as the key is]
    #[arg(long, value_name = "NAME")]
    pub algorithm: Option<String>,
    /// The name of the key (`kid`), for a gateway that has several
    #[arg(long, value_name = "NAME")]
    pub key_id: Option<String>,
}

/// A change of a file of session keys.
#[derive(Debug, Subcommand)]
pub enum SessionKeyChange {
    /// Add a new key as the last line: nodes that read it take its tokens
    Add {
        /// The file of --session-key-file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Make the last key the first: nodes that read it sign with it
    Sign {
        /// The file of --session-key-file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Take the last key away: its tokens are good for nothing then
    Drop {
        /// The file of --session-key-file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// The flags of `texto healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Address of the gateway; a wildcard address means this machine
    #[arg(long, env = "TEXTO_LISTEN", default_value = "0.0.0.0:8398", value_name = "ADDR:PORT")]
    pub listen: String,
    /// As the gateway has it: if it is given, the gateway is asked by TLS
    #[arg(long, env = "TEXTO_TLS_CERT", value_name = "PATH")]
    pub tls_cert: Option<String>,
    /// What to ask: /readyz (may it get traffic?) or /livez (does it live?)
    #[arg(long, default_value = "/readyz", value_name = "PATH")]
    pub path: String,
    /// How long the answer may take
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    pub timeout: String,
}
