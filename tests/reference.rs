//! docs/configuration.md: its tables are made of what the program says of itself.
//!
//! `UPDATE_DOCS=1 cargo test -p texto --test reference` writes them anew; what stands between them is written by hand.

#![cfg(feature = "lab")] // All commands, as somebody has them who builds it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};
use texto::config::cli::Cli;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
const UPDATE: &str = "UPDATE_DOCS=1 cargo test -p texto --test reference";
const END: &str = "<!-- end -->";

/// What a table says of a flag: the whole help, and a default that only the help knows.
fn said(flag: &Arg) -> (String, String) {
    let short = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let whole = flag.get_long_help().map_or_else(|| short.clone(), ToString::to_string);
    let (what, default) = match short.split_once(" [default: ") {
        Some((what, default)) => (what.to_owned(), default.trim_end_matches(']').to_owned()),
        None => (short.clone(), String::new()),
    };
    let rest = whole.strip_prefix(&short).unwrap().trim().replace("\n\n", " ");
    let what = if rest.is_empty() { what } else { format!("{what}. {rest}") };
    let written: Vec<_> = flag.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let written = written.join(" ");
    let default = if written.is_empty() { default } else { format!("`{written}`") };
    (prose(&what).replace('|', "\\|").replace('<', "&lt;"), prose(&default))
}

/// A text of a help as a page has it: flags are code there.
fn prose(help: &str) -> String {
    let word = |word: &str| match word.trim_end_matches([',', '.', ';', ':']) {
        flag if flag.starts_with("--") => format!("`{flag}`{}", &word[flag.len()..]),
        _ => word.to_owned(),
    };
    help.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn name(flag: &Arg) -> String {
    let value = flag.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let takes_value = flag.get_action().takes_values() && !value.is_empty();
    match flag.get_long() {
        Some(long) if takes_value => format!("`--{long} {value}`"),
        Some(long) => format!("`--{long}`"),
        None => format!("`{value}`"),
    }
}

fn table<'a>(flags: impl Iterator<Item = &'a Arg>) -> String {
    let mut table = String::from("| flag | variable | default | what |\n|---|---|---|---|\n");
    for flag in flags {
        let variable = flag.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
        let (what, default) = said(flag);
        let line = format!("| {} | {variable} | {default} | {what} |\n", name(flag));
        table.push_str(&line.replace("|  |", "| |").replace("|  |", "| |"));
    }
    table
}

fn is_help(id: &str) -> bool {
    ["help", "version"].contains(&id)
}

/// Each command but `serve`: what it is for, and what it takes that `serve` does not.
fn commands(all: &Command, serve: &Command) -> String {
    let mut text = String::new();
    for command in all.get_subcommands().filter(|command| !["serve", "help"].contains(&command.get_name())) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        write!(text, "### texto {}\n\n{}.\n", command.get_name(), prose(&about)).unwrap();
        let is_shared = |flag: &Arg| {
            let same = serve.get_arguments().find(|other| other.get_id() == flag.get_id());
            same.is_some_and(|same| {
                same.get_help().map(ToString::to_string) == flag.get_help().map(ToString::to_string)
            })
        };
        if command.get_arguments().any(|flag| flag.get_env().is_some() && is_shared(flag)) {
            text.push_str("It takes the flags of `serve` as well.\n");
        }
        let own: Vec<_> =
            command.get_arguments().filter(|flag| !is_help(flag.get_id().as_str()) && !is_shared(flag)).collect();
        if !own.is_empty() {
            write!(text, "\n{}", table(own.into_iter())).unwrap();
        }
        let changes: Vec<_> = command.get_subcommands().filter(|command| command.get_name() != "help").collect();
        if !changes.is_empty() {
            text.push_str("\n| command | what |\n|---|---|\n");
        }
        for change in changes {
            let takes: String =
                change.get_positionals().map(|taken| format!(" {}", name(taken).trim_matches('`'))).collect();
            let about = change.get_about().map(ToString::to_string).unwrap_or_default();
            writeln!(text, "| `{} {}{takes}` | {about} |", command.get_name(), change.get_name()).unwrap();
        }
        text.push('\n');
    }
    text
}

/// The page with its tables as they should be.
fn page(old: &str) -> String {
    let all = Cli::command();
    let serve = all.find_subcommand("serve").unwrap();
    let mut headings: Vec<_> = serve.get_arguments().filter_map(Arg::get_help_heading).collect();
    headings.dedup();
    let mut new = String::new();
    let mut rest = old;
    while let Some((before, after)) = rest.split_once("<!-- generated: ") {
        let (what, after) = after.split_once(" -->").unwrap();
        let made = if what == "commands" {
            commands(&all, serve)
        } else {
            assert!(
                headings.contains(&what),
                "no flags stand under {what:?}: docs/configuration.md has a table for it"
            );
            headings.retain(|heading| *heading != what);
            table(serve.get_arguments().filter(|flag| flag.get_help_heading() == Some(what)))
        };
        write!(new, "{before}<!-- generated: {what} -->\n\n{}\n\n{END}", made.trim_end()).unwrap();
        rest = after.split_once(END).unwrap().1;
    }
    assert!(headings.is_empty(), "docs/configuration.md has no `<!-- generated: … -->` for {headings:?}");
    new + rest
}

#[test]
fn the_tables_of_flags_are_what_the_program_says() {
    let old = std::fs::read_to_string(PAGE).unwrap();
    let new = page(&old);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, new).unwrap();
    } else {
        let differs = old.lines().zip(new.lines()).find(|(old, new)| old != new);
        assert!(
            old == new,
            "docs/configuration.md is not what the flags are: write it anew by\n  {UPDATE}\n{differs:?}"
        );
    }
}

#[test]
fn every_flag_of_serve_is_a_variable_of_its_own_name_and_has_one_line_in_the_short_help() {
    let all = Cli::command();
    let flags = all.find_subcommand("serve").unwrap().get_arguments().filter(|flag| !is_help(flag.get_id().as_str()));
    let mut count = 0;
    for flag in flags {
        count += 1;
        let long = flag.get_long().unwrap();
        let variable = format!("TEXTO_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "--{long}");
        let help = flag.get_help().unwrap().to_string();
        let what = help.split(" [default: ").next().unwrap();
        assert!(what.len() <= 75, "--{long}: {} characters are more than a line: {what}", what.len());
        assert!(!what.ends_with('.'), "--{long}");
    }
    assert!(count > 50, "{count} flags");
}
