//! Owns `texto completions` and `texto man`: what is made of the command line's definition for shells and for readers.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use thiserror::Error;

use crate::config::cli::Cli;

const NAME: &str = "texto";

/// Why there is no such page.
#[derive(Debug, Error)]
pub enum ManualError {
    /// There is no such command.
    #[error("there is no command {0:?}: `texto --help` names them all")]
    Unknown(String),
    /// It could not be written.
    #[error("the page can't be written: {0}")]
    Write(#[from] std::io::Error),
}

/// What `shell` reads to complete commands and flags.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    script
}

/// The manual page of the program, or of one of its commands, in the language of `man`.
///
/// # Errors
/// When there is no such command.
pub fn page(command: Option<&str>) -> Result<Vec<u8>, ManualError> {
    let mut all = without_help(Cli::command());
    all.build(); // Only then commands know their full names.
    let named = match command {
        None => all.override_usage(format!("{NAME} [OPTIONS]\n{NAME} COMMAND [OPTIONS]")),
        Some(name) => {
            let known = all.find_subcommand(name).cloned().ok_or_else(|| ManualError::Unknown(name.to_owned()))?;
            let usage = format!("{NAME} {name} [OPTIONS]");
            // The flags of `serve` are far too many for a synopsis.
            if known.get_arguments().count() > 20 { known.override_usage(usage) } else { known }
        }
    };
    let mut page = Vec::new();
    Man::new(named).manual("Texto").render(&mut page)?;
    Ok(page)
}

/// Without `help`, which has no page.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}
