//! The documentation: every link of it leads somewhere, every flag that it names is one, and every client is tested by
//! the cases that it names.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use texto::config::cli::Cli;

/// What the pages name of other programs' flags where they stand alone.
const OF_OTHERS: [&str; 2] = ["--no-default-features", "--tls"];

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let clients = std::fs::read_dir(root.join("clients")).unwrap().map(|entry| entry.unwrap().path());
    let clients = clients.filter(|path| path.is_dir());
    let folders = ["", "docs", "clients"].map(|folder| root.join(folder)).into_iter().chain(clients);
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    files.filter(|path| path.extension().is_some_and(|ext| ext == "md")).collect()
}

/// A page without its blocks of code.
fn prose(page: &Path) -> String {
    let text = std::fs::read_to_string(page).unwrap();
    text.split("```").step_by(2).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = prose(page);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| -> String {
        let kept = line.trim_start_matches('#').trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_between_pages_leads_to_a_page_and_a_heading() {
    let mut count = 0;
    for page in pages() {
        let text = prose(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            let is_there = anchor.is_empty() || anchors(&target).contains(anchor);
            assert!(is_there, "{}: there is no such heading: {link}", page.display());
        }
    }
    assert!(count > 20, "{count} links were found");
}

/// The suites of the clients, with what stands before and behind a case's name in its line.
const SUITES: [(&str, &str, &str); 3] = [
    ("clients/js/tests/conformance.mjs", "test(\"", "\", async () => {"),
    ("clients/python/tests/conformance.py", "    async def test_", "(self) -> None:"),
    ("tests/client_rust.rs", "async fn ", "() {"),
];
/// What the suite of the Rust client has beside them, and what another of its tests is.
const RUST_ALONE: [&str; 7] = [
    "messages_go_out_in_the_order_in_which_their_futures_were_polled",
    "a_rate_that_is_exceeded_is_told_and_may_be_tried_again",
    "who_reads_slowly_misses_nothing_and_can_write_meanwhile",
    "who_takes_nothing_is_known_by_its_senders",
    "a_send_that_is_dropped_is_withdrawn_and_harms_no_other",
    "a_session_ends_when_it_is_closed_and_when_nobody_holds_it",
    "it_speaks_tls_with_whom_it_trusts",
];
const EXAMPLE: &str = "the_example_chats_and_a_program_ends_when_its_client_is_closed";

/// A case's name, as a function is called.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("_")
}

#[test]
fn every_client_is_tested_by_the_same_cases() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = std::fs::read_to_string(root.join("clients/CONFORMANCE.md")).unwrap();
    let rows = list.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let mut expected: Vec<String> = rows.skip(1).map(slug).collect();
    expected.sort();
    assert!(expected.len() > 10, "{expected:?}");
    for (suite, before, behind) in SUITES {
        let text = std::fs::read_to_string(root.join(suite)).unwrap();
        let names = text.lines().filter_map(|line| line.strip_prefix(before)?.strip_suffix(behind));
        let mut found: Vec<String> = names.map(slug).filter(|name| !RUST_ALONE.contains(&name.as_str())).collect();
        if suite.ends_with(".rs") {
            found.push(EXAMPLE.to_owned()); // `texto chat` is it: tests/chat.rs.
        }
        found.sort();
        assert_eq!(found, expected, "{suite} and clients/CONFORMANCE.md");
    }
}

/// The flags of a command and of all below it, with their dashes.
fn flags(command: &clap::Command, known: &mut BTreeSet<String>) {
    known.extend(command.get_arguments().filter_map(|flag| Some(format!("--{}", flag.get_long()?))));
    command.get_subcommands().for_each(|command| flags(command, known));
}

#[test]
#[cfg(feature = "lab")] // All commands.
fn every_flag_that_a_page_names_alone_or_of_texto_is_one() {
    let mut command = Cli::command();
    command.build();
    let mut known = BTreeSet::from_iter(OF_OTHERS.map(str::to_owned));
    flags(&command, &mut known);
    let mut count = 0;
    for page in pages() {
        let text = prose(&page);
        for span in text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
            if !span.starts_with("--") && !span.starts_with("texto ") {
                continue;
            }
            let ends = |c: char| !c.is_ascii_alphanumeric() && c != '-';
            for flag in span.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2) {
                count += 1;
                let name = &flag[..flag.find(ends).unwrap_or(flag.len())];
                // `--auth-…` and `--redis-tls…` are all that begin so.
                let is_group = flag.ends_with('…') && known.iter().any(|known| known.starts_with(name));
                assert!(is_group || known.contains(name), "{}: `{span}`: Texto has no {name}", page.display());
            }
        }
    }
    assert!(count > 100, "{count} flags were found");
}
