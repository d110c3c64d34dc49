//! What the Dockerfile says of the image, as far as that can be tried without a container.

#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const DOCKERFILE: &str = include_str!("../Dockerfile");

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
    let uname = folder.path().join("uname");
    std::fs::write(&uname, "#!/bin/sh\necho $MACHINE\n").unwrap();
    std::fs::set_permissions(&uname, PermissionsExt::from_mode(0o755)).unwrap();
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
    symlink(env!("CARGO_BIN_EXE_texto"), release.join("texto")).unwrap();
    let question = run("stats_print").split_once("_RJEM").unwrap().1.to_owned();
    let question = format!("_RJEM{}", question.split(" && ").next().unwrap());
    let is_built_for =
        |pages: u32| shell(folder.path(), &question, &[("JEMALLOC_SYS_WITH_LG_PAGE", &pages.to_string())]).is_some();
    let fitting: Vec<_> = (12..=16).filter(|pages| is_built_for(*pages)).collect();
    assert_eq!(fitting.len(), 1, "{question}");
}
