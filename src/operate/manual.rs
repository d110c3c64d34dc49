//! Owns `texto completions` and `texto man`: what is made of the command line's definition for shells and for readers.

use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
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
    let mut all = for_pages(Cli::command());
    all.build(); // Only then commands know their full names.
    let named = match command {
        None => &all,
        Some(name) => all.find_subcommand(name).ok_or_else(|| ManualError::Unknown(name.to_owned()))?,
    };
    let (mut page, mut roff) = (Vec::new(), Roff::new());
    let man = Man::new(named.clone().override_usage(synopsis(named)))
        .manual("Texto")
        .source(concat!("texto ", env!("CARGO_PKG_VERSION")));
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    commands(&mut roff, named);
    roff.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    if let Some(notes) = named.get_after_long_help().or_else(|| named.get_after_help()) {
        roff.control("SH", ["NOTES"]);
        prose(&mut roff, &notes.to_string());
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in exit_status(named.get_name()) {
        entry(&mut roff, bold(*code), meaning);
    }
    if command.is_some() {
        roff.control("SH", ["SEE ALSO"]);
        roff.text([bold(NAME), roman("(1)")]);
    }
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// Each way to call it, a line. Options are in a section of their own, for some have far too many.
fn synopsis(command: &Command) -> String {
    let usage = |command: &Command| {
        let usage = command.clone().render_usage().to_string();
        usage.trim_start_matches("Usage:").trim().replace(['<', '>'], "")
    };
    match command.get_bin_name() {
        // It does something by itself as well.
        Some(name) if command.has_subcommands() && command.get_name() != NAME => {
            let each: Vec<_> = std::iter::once(name.to_owned()).chain(command.get_subcommands().map(usage)).collect();
            each.join("\n")
        }
        _ => usage(command),
    }
}

/// The commands of the program, which have pages of their own; or those of a command, which have none.
fn commands(roff: &mut Roff, command: &Command) {
    if command.has_subcommands() {
        roff.control("SH", ["COMMANDS"]);
    }
    for sub in command.get_subcommands() {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        if command.get_name() == NAME {
            entry(roff, roman(format!("{NAME}-{}(1)", sub.get_name())), &about);
        } else {
            let takes = sub.get_positionals().filter_map(|taken| taken.get_value_names()?.first());
            let takes: String = takes.map(|name| format!(" {name}")).collect();
            entry(roff, bold(format!("{}{takes}", sub.get_name())), &about);
        }
    }
}

fn entry(roff: &mut Roff, term: Inline, meaning: &str) {
    roff.control("TP", []);
    roff.text([term]);
    roff.text([roman(meaning)]);
}

/// A help text: what is indented there stands as it is, line by line; the rest is filled.
fn prose(roff: &mut Roff, text: &str) {
    let mut is_as_it_is = false;
    for line in text.lines() {
        let is_indented = line.starts_with("  ");
        if is_indented != is_as_it_is {
            for request in if is_indented { ["RS", "nf"] } else { ["fi", "RE"] } {
                roff.control(request, []);
            }
            is_as_it_is = is_indented;
        }
        match line.trim() {
            "" => drop(roff.control("PP", [])),
            line => drop(roff.text([roman(line)])),
        }
    }
    if is_as_it_is {
        roff.control("fi", []);
        roff.control("RE", []);
    }
}

/// What each exit code means.
fn exit_status(command: &str) -> &'static [(&'static str, &'static str)] {
    const USAGE: (&str, &str) = ("2", "The command line can't be understood.");
    match command {
        NAME | "serve" => &[
            ("0", "It was told to stop, and has drained."),
            ("1", "It can't listen, or can't start for another reason."),
            USAGE,
            ("70", "A part of it that it can't do without has ended, which is a fault of Texto's."),
            ("78", "The configuration can't be used: all that is wrong with it is listed."),
        ],
        "check" => &[
            ("0", "All is well as far as it can be seen."),
            ("1", "Something is doubtful."),
            ("2", "Something is wrong, or the command line can't be understood."),
        ],
        "healthcheck" => &[("0", "The gateway is ready (or lives)."), ("1", "It is not, or does not answer."), USAGE],
        "chaos" | "demo" => &[
            ("0", "All promises were kept."),
            ("1", "A promise was broken."),
            ("2", "It could not be tried, or the command line can't be understood."),
        ],
        _ => &[("0", "It is done."), ("1", "It failed: standard error says why."), USAGE],
    }
}

/// As a page has it: without `help`, which has none, and with what a value may be in one line.
fn for_pages(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_args(with_values).mut_subcommands(for_pages)
}

fn with_values(flag: Arg) -> Arg {
    let values = flag.get_possible_values();
    let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
    match flag.get_help() {
        Some(help) if flag.get_action().takes_values() && !names.is_empty() => {
            let help = format!("{help}: {}", names.join(", "));
            flag.hide_possible_values(true).help(help)
        }
        _ => flag,
    }
}
