//! `texto completions`, `texto man` and the two kinds of help, as a shell, `man` and a reader meet them.

#![cfg(feature = "manual")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_texto");

fn texto(arguments: &[&str]) -> String {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn run(program: &str, arguments: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    // It may end before it has read everything.
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// What bash offers for the last of `words`, by the script that is given to it.
fn offered(words: &[&str]) -> Vec<String> {
    let script = format!(
        "{}\nCOMP_WORDS=(\"$@\")\nCOMP_CWORD=$(($# - 1))\n\
         _texto texto \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        texto(&["completions", "bash"])
    );
    let arguments: Vec<_> = ["-s", "--"].iter().chain(words).copied().collect();
    let output = run("bash", &arguments, &script);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_flags() {
    assert_eq!(offered(&["texto", "--send-t"]), ["--send-timeout"]);
    assert_eq!(offered(&["texto", "serve", "--redis-tls-s"]), ["--redis-tls-server-name"]);
    assert_eq!(offered(&["texto", "healt"]), ["healthcheck"]);
    assert_eq!(offered(&["texto", "session-key", "si"]), ["sign"]);
    assert_eq!(offered(&["texto", "completions", "fi"]), ["fish"]);
    assert!(offered(&["texto", "--no-such"]).is_empty());
}

#[test]
fn other_shells_get_a_script_that_knows_the_flags() {
    for (shell, flag) in [("zsh", "--send-timeout"), ("fish", "-l send-timeout"), ("elvish", "--send-timeout")] {
        assert!(texto(&["completions", shell]).contains(flag), "{shell}");
    }
}

/// A page as a terminal of 80 columns shows it, without bold and underlined letters.
fn shown(page: &str) -> String {
    // As `man -l -` calls it; Debian has it in groff-base, on which man-db depends.
    let output = run("groff", &["-man", "-Kutf8", "-Tutf8", "-P-cbou", "-rLL=80n"], page);
    assert!(output.status.success() && output.stderr.is_empty(), "groff complains: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn has_groff() -> bool {
    Command::new("groff").arg("--version").output().is_ok()
}

#[test]
fn the_manual_page_has_every_section_flag_and_command() {
    let page = texto(&["man"]);
    for part in
        [".TH texto 1", ".SH NAME", ".SH SYNOPSIS", ".SH COMMANDS", "\\-\\-send\\-timeout", "TEXTO_SEND_TIMEOUT"]
    {
        assert!(page.contains(part), "{part} is not in the page");
    }
    if has_groff() {
        let shown = shown(&page);
        assert!(shown.contains("TEXTO(1)") || shown.contains("texto(1)"), "{shown}");
        assert!(!shown.contains("texto-help(1)"), "there is no such page");
        let synopsis = shown.split("SYNOPSIS").nth(1).unwrap().split("DESCRIPTION").next().unwrap();
        assert!(synopsis.trim().lines().count() < 5, "the flags are not in the synopsis: {synopsis}");
        assert!(shown.contains("--send-timeout") && shown.contains("[default: 5s]"), "{shown}");
    }
}

#[test]
fn each_command_has_a_page_and_another_word_has_none() {
    for (command, synopsis, codes) in [
        ("serve", "texto serve [OPTIONS]", "0 1 2 70 78"),
        ("check", "texto check [OPTIONS]", "0 1 2"),
        ("healthcheck", "texto healthcheck [OPTIONS]", "0 1 2"),
        ("session-key", "texto session-key\ntexto session-key add FILE\ntexto session-key sign FILE", "0 1 2"),
        ("token", "texto token [OPTIONS] --key-file PATH", "0 1 2"),
        ("chaos", "texto chaos [OPTIONS]", "0 1 2"),
        ("completions", "texto completions SHELL", "0 1 2"),
        ("man", "texto man [COMMAND]", "0 1 2"),
    ] {
        let page = texto(&["man", command]);
        assert!(page.contains(&format!(".TH texto-{command} 1")), "{}", &page[..200]);
        if !has_groff() {
            continue;
        }
        let shown = shown(&page);
        let section = |name: &str| {
            let rest = shown.split_once(&format!("\n{name}\n")).unwrap_or_else(|| panic!("no {name}: {shown}")).1;
            let lines = rest.lines().take_while(|line| line.is_empty() || line.starts_with(' '));
            lines.map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>()
        };
        assert!(section("SYNOPSIS").join("\n").starts_with(synopsis), "{shown}");
        let told: Vec<_> = section("EXIT STATUS").iter().filter_map(|line| line.split(' ').next()).collect();
        let told: Vec<_> = told.into_iter().filter(|word| word.parse::<u8>().is_ok()).collect();
        assert_eq!(told.join(" "), codes, "{shown}");
        assert!(!shown.contains("session-key-add"), "there is no such page: {shown}");
        if command == "completions" {
            let example = "texto completions bash > ~/.local/share/bash-completion/completions/texto";
            assert!(section("NOTES").contains(&example), "a line of its own: {shown}");
        }
        assert!(!shown.contains('•'), "no list within a list: {shown}");
        if command == "session-key" {
            assert!(section("COMMANDS").iter().any(|line| line.starts_with("add FILE")), "{shown}");
        }
    }
    let output = Command::new(BINARY).args(["man", "serves"]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("there is no command \"serves\""), "{told}");
}

#[test]
fn the_short_help_fits_a_screen_and_the_long_one_has_all() {
    let (short, long) = (texto(&["-h"]), texto(&["--help"]));
    assert!(short.lines().count() <= 70, "{} lines:\n{short}", short.lines().count());
    assert!(short.lines().all(|line| line.chars().count() <= 100), "{short}");
    assert!(short.contains("--sentinels") && !short.contains("--outbox-bytes") && !short.contains("[env:"), "{short}");
    for part in ["--outbox-bytes", "[env: TEXTO_OUTBOX_BYTES", "TEXTO_REDIS_PASSWORD_FILE"] {
        assert!(long.contains(part), "{part}");
    }
    assert!(long.lines().all(|line| line.chars().count() <= 100), "{long}");
}

#[test]
fn check_names_its_own_flags_first_and_its_exit_codes() {
    for help in ["-h", "--help"] {
        let text = texto(&["check", help]);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
        assert!(at("--nginx") < at("--listen") && at("--json") < at("--listen"), "{text}");
        assert!(at("The exit code is 0") > at("--listen"), "{text}");
    }
}
