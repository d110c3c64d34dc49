//! What the Dockerfile says of the image, and how the stack starts it, as far as that can be tried without a container.

#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use texto::resume::keys::Keys;
use texto_lab::gateway::Gateway;

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
    let builds = DOCKERFILE.matches("build --release").count();
    assert!(builds > 0 && DOCKERFILE.matches(". /etc/texto-build && cargo auditable build").count() == builds);

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
#[tokio::test]
async fn gateways_that_start_at_once_have_one_session_key() {
    let folder = tempfile::TempDir::new().unwrap();
    let keys = folder.path().join("session-keys");
    let variables = [("TEXTO_SESSION_KEY_CREATE", "true"), ("TEXTO_SESSION_KEY_FILE", keys.to_str().unwrap())];
    let start = || Gateway::start(Path::new(TEXTO), &[], &variables);
    let (a, b, c, d) = tokio::join!(start(), start(), start(), start());
    let later = start().await;
    let fingerprint = Keys::from_file(&keys).unwrap().fingerprints()[0].to_string();
    for gateway in [a, b, c, d, later] {
        gateway.unwrap().wait_for_log(&fingerprint, Duration::from_secs(10)).await.unwrap();
    }
    assert_eq!(std::fs::read_to_string(&keys).unwrap().lines().count(), 1);
    assert_eq!(std::fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something is left over");

    // As docs/sessions.md changes it: each step leaves keys that a gateway reads.
    for (step, count) in [("add", 2), ("sign", 2), ("drop", 1)] {
        assert!(Command::new(TEXTO).args(["session-key", step]).arg(&keys).status().unwrap().success());
        assert_eq!(Keys::from_file(&keys).unwrap().fingerprints().len(), count, "{step}");
    }
    assert_ne!(Keys::from_file(&keys).unwrap().fingerprints()[0].to_string(), fingerprint);
    let output = Command::new(TEXTO).args(["session-key", "drop"]).arg(&keys).output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("holds one key alone"));
}

/// Nothing is in the image but what the Dockerfile puts into it: neither a shell nor a library too few.
#[test]
fn the_program_runs_with_no_more_than_the_image_holds() {
    let folder = tempfile::TempDir::new().unwrap();
    let release = folder.path().join("target/release");
    std::fs::create_dir_all(&release).unwrap();
    symlink(TEXTO, release.join("texto")).unwrap();
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (image, volumes) = (place("image"), place("volumes"));
    let collect = run("ldd").replace("/image", &image).replace("/volumes", &volumes);
    let said = shell(folder.path(), &collect, &[]).expect("it needs root, for chroot");
    assert!(said.starts_with("texto "), "{said}");
    for program in ["sh", "bash", "ls"] {
        let there =
            ["bin", "usr/bin", "usr/local/bin"].map(|folder| Path::new(&image).join(folder).join(program).exists());
        assert_eq!(there, [false; 3], "{program}");
    }
    // Names are looked up there too: by a file of hosts, as Docker writes it.
    std::fs::write(format!("{image}/etc/hosts"), "127.0.0.1 redis.example\n").unwrap();
    let serve = format!(
        "timeout 20 chroot {image} /usr/local/bin/texto --listen 127.0.0.1:0 --redis redis.example:1 2>&1 | \
                         grep -m 1 -o 'Connection refused\\|failed to lookup\\|not known'"
    );
    assert_eq!(shell(folder.path(), &serve, &[]).unwrap().trim(), "Connection refused");
    let mode = std::fs::metadata(format!("{volumes}/texto")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // The image is built without the lab, and says of what it is made.
    assert_eq!(DOCKERFILE.matches("cargo auditable build --release --locked --no-default-features").count(), 2);
    assert!(DOCKERFILE.lines().rev().any(|line| line == "FROM scratch"));
}
