//! What the Dockerfile says of the image, and how the stack starts it, as far as that can be tried without a container.

#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

const DOCKERFILE: &str = include_str!("../Dockerfile");
const TEXTO: &str = env!("CARGO_BIN_EXE_texto");

/// Makes a program of the shell in `folder`.
fn program(folder: &Path, name: &str, commands: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{commands}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// The commands of a RUN that holds `part`, as a shell would have them.
fn run(part: &str) -> String {
    let lines = DOCKERFILE.replace("\\\n", " ");
    let mut found = lines.lines().filter_map(|line| line.strip_prefix("RUN ")).filter(|line| line.contains(part));
    let line = found.next().unwrap_or_else(|| panic!("no RUN with {part}"));
    assert!(found.next().is_none(), "more than one RUN with {part}");
    line.to_owned()
}

fn shell(folder: &Path, commands: &str, variables: &[(&str, &str)]) -> Option<String> {
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-euc", commands]).current_dir(folder).env("PATH", path).envs(variables.iter().copied());
    let output = command.output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// jemalloc aborts where pages are larger than it was built for.
#[test]
fn the_image_runs_on_kernels_with_any_size_of_pages() {
    let folder = tempfile::TempDir::new().unwrap();
    program(folder.path(), "uname", "echo $MACHINE");
    let choice = run("uname").replace("/etc/texto-build", "/dev/stdout");
    for (machine, pages) in [("aarch64", "16"), ("x86_64", "12")] {
        let chosen = shell(folder.path(), &choice, &[("MACHINE", machine)]).unwrap();
        assert_eq!(chosen, format!("export JEMALLOC_SYS_WITH_LG_PAGE={pages}\n"));
    }
    // Each time that cargo builds, for jemalloc is built anew when the choice changes.
    let builds = DOCKERFILE.matches("cargo build").count();
    assert!(builds > 0 && DOCKERFILE.matches(". /etc/texto-build && cargo build").count() == builds);

    // The build asks the program itself, and fails where it was built for others. This one has the pages of this machine.
    let release = folder.path().join("target/release");
    std::fs::create_dir_all(&release).unwrap();
    symlink(TEXTO, release.join("texto")).unwrap();
    let question = run("stats_print").split_once("_RJEM").unwrap().1.to_owned();
    let question = format!("_RJEM{}", question.split(" && ").next().unwrap());
    let is_built_for =
        |pages: u32| shell(folder.path(), &question, &[("JEMALLOC_SYS_WITH_LG_PAGE", &pages.to_string())]).is_some();
    let fitting: Vec<_> = (12..=16).filter(|pages| is_built_for(*pages)).collect();
    assert_eq!(fitting.len(), 1, "{question}");
}

/// Gateways that start at once begin with one key, and with the same one ever after.
#[test]
fn gateways_that_start_at_once_have_one_session_key() {
    let folder = tempfile::TempDir::new().unwrap();
    let (keys, entrypoint) =
        (folder.path().join("session-keys"), concat!(env!("CARGO_MANIFEST_DIR"), "/gateway/entrypoint"));
    // As a gateway it only says what it begins with.
    program(
        folder.path(),
        "texto",
        &format!("[ \"$1\" = session-key ] && exec {TEXTO} session-key\ncat $TEXTO_SESSION_KEY_FILE; echo \"$@\""),
    );
    let start = |keys: &Path| {
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args([entrypoint, "--redis", "two words"]).env("PATH", path).env("TEXTO_SESSION_KEY_FILE", keys);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let gateways: Vec<_> = (0..12).map(|_| start(&keys)).collect();
    let began: Vec<_> = gateways.into_iter().map(|gateway| gateway.wait_with_output().unwrap()).collect();
    let key = std::fs::read_to_string(&keys).unwrap();
    for gateway in began.into_iter().chain([start(&keys).wait_with_output().unwrap()]) {
        assert!(gateway.status.success(), "{gateway:?}");
        assert_eq!(String::from_utf8(gateway.stdout).unwrap(), format!("{key}--redis two words\n"));
    }
    assert_eq!(key.lines().count(), 1);
    assert_eq!(std::fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "something is left over");

    let nowhere = start(Path::new("/nowhere/session-keys")).wait_with_output().unwrap();
    let said = String::from_utf8(nowhere.stderr).unwrap();
    assert_eq!(nowhere.status.code(), Some(78));
    assert!(said.contains("there is no /nowhere/session-keys, and user") && said.contains("session-key"), "{said}");
}
