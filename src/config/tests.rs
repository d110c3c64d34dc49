//! What is said of configurations as a whole, as an operator gives them.

use super::limits::{MOST_FRAME_BYTES, MOST_TEXT_BYTES, descriptors};
use super::*;
use crate::config::cli::{Cli, Command};
use crate::config::flags::{REDIS, REDIS_TLS};

fn config(args: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
    let cli = Cli::read(std::iter::once(&"texto").chain(args)).unwrap();
    let variables = Variables::from_iter(variables.iter().copied());
    let serve = if let Some(Command::Serve(serve)) = &cli.command { serve } else { &cli.serve };
    Config::new(serve, &variables).map_err(|errors| errors.to_string())
}

#[test]
fn the_embedded_broker_is_the_default() {
    let config = config(&[], &[]).unwrap();
    assert!(matches!(config.broker, BrokerConfig::Embedded));
    assert_eq!(config.listen, "0.0.0.0:8398".parse().unwrap());
    assert_eq!(config.limits.max_text_bytes, 16384);
}

#[test]
fn every_error_is_reported_at_once_with_flag_and_variable() {
    let errors = config(
        &[
            "--listen",
            "nonsense",
            "--send-timeout",
            "5",
            "--redis",
            "a:1",
            "--sentinels",
            "b:2",
            "--max-text-bytes",
            "0",
            "--standby-subscriptions",
            "perhaps",
            "--trusted-proxies",
            "10.0.0.0/8,here,there",
            "--redis-password-file",
            "/nowhere/secret",
            "--address-map",
            "a:1=b:1,nowhere,a:1=c:1",
            "--max-connections",
            "99999999999999999999",
            "--heartbeat-timeout",
            "1h",
        ],
        &[],
    )
    .unwrap_err();
    for part in [
        "12 errors",
        "--listen (TEXTO_LISTEN)",
        "TEXTO_SEND_TIMEOUT",
        "exclude each other",
        "TEXTO_MAX_TEXT_BYTES",
        "TEXTO_STANDBY_SUBSCRIPTIONS",
        "\"here\"",
        "\"there\"",
        "/nowhere/secret",
        "TEXTO_ADDRESS_MAP): \"nowhere\"",
        "a:1 is given twice",
        "TEXTO_MAX_CONNECTIONS",
        "TEXTO_HEARTBEAT_TIMEOUT",
    ] {
        assert!(errors.contains(part), "{part} is not in: {errors}");
    }
}

#[test]
fn each_spelling_of_a_truth_is_taken_and_another_is_told_them() {
    let compresses = |text: &str| {
        let by_flag = config(&[&format!("--compression={text}")], &[]).map(|config| config.limits.compression);
        by_flag.map_err(|errors| errors.lines().last().unwrap().trim_start().to_owned())
    };
    for (yes, no) in [("true", "false"), ("yes", "no"), ("on", "off"), ("1", "0"), ("True", "FALSE")] {
        assert_eq!((compresses(yes), compresses(no)), (Ok(true), Ok(false)));
    }
    let told = |is: &str| {
        let expected = "true or false; or yes or no, on or off, 1 or 0";
        Err(format!("- --compression (TEXTO_COMPRESSION): {is} is not valid: {expected}"))
    };
    assert_eq!(compresses("perhaps"), told("\"perhaps\""));
    assert_eq!(compresses(""), told("an empty value"));
    assert!(config(&["--redis="], &[]).is_ok(), "no default: not set");
}

#[test]
fn what_could_never_work_is_refused() {
    assert!(config(&["--sentinels", " , "], &[]).unwrap_err().contains("TEXTO_SENTINELS"));
    let map = config(&["--redis", "a:1", "--address-map", "a:1=b:1"], &[]).unwrap_err();
    assert!(map.contains("with Sentinels only"), "{map}");
    let more = (descriptors() + 1).to_string();
    let errors = config(&["--max-connections", &more], &[]).unwrap_err();
    assert!(errors.contains("ulimit -n"), "{errors}");
    for (flag, most) in [("--max-text-bytes", MOST_TEXT_BYTES), ("--max-frame-bytes", MOST_FRAME_BYTES)] {
        let [most, more] = [most, most + 1].map(|bytes| bytes.to_string());
        assert!(config(&[flag, &more], &[]).unwrap_err().contains(&format!("at most {most}")));
        assert!(!config(&[flag, &most], &[]).err().unwrap_or_default().contains("at most"));
    }
}

#[test]
fn options_for_a_redis_that_is_not_given_are_refused() {
    // What a gateway was once started with, and it was ready.
    let variables = [("TEXTO_SENTINEL", "s:26379"), ("TEXTO_REDIS_PASSWORD", "hunter2")];
    let errors = config(&["--master-name", "mymaster"], &variables).unwrap_err();
    for part in ["2 errors", "did you mean TEXTO_SENTINELS?", "--master-name (TEXTO_MASTER_NAME), TEXTO_REDIS_PASS"] {
        assert!(errors.contains(part), "{part} is not in: {errors}");
    }
    // Each flag under those headings alone, except for the two that name servers.
    let command = <Cli as clap::CommandFactory>::command();
    let flags = command
        .get_arguments()
        .filter(|flag| flag.get_help_heading().is_some_and(|heading| [REDIS, REDIS_TLS].contains(&heading)));
    let flags: Vec<_> = flags.filter_map(|flag| flag.get_long()).collect();
    assert!(flags.len() >= 19, "{flags:?}");
    for flag in flags.into_iter().filter(|flag| !["redis", "sentinels"].contains(flag)) {
        let name = option(flag);
        for words in [vec![format!("--{flag}=1")], vec!["serve".to_owned(), format!("--{flag}=1")]] {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let errors = config(&words, &[]).unwrap_err();
            let line = errors.lines().find(|line| line.contains("of use with Redis only"));
            assert!(line.is_some_and(|line| line.contains(&name)), "{errors}");
        }
    }
    config(&["--master-name", "", "--redis-username="], &[("TEXTO_REDIS_PASSWORD", "")]).unwrap();
    let errors = config(&["--redis", "r:6379"], &[("TEXTO_SENTINEL_PASSWORD", "hunter2")]).unwrap_err();
    assert!(errors.contains("TEXTO_SENTINEL_PASSWORD: of use with Sentinels only"), "{errors}");
}

#[test]
fn a_file_of_session_keys_is_made_where_it_is_asked_for_and_said_where() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("keys");
    let file = file.to_str().unwrap();
    assert!(config(&["--session-key-file", file], &[]).unwrap_err().contains("--session-key-file"));
    let create = ["--session-key-create", "true"];
    let made = config(&[&create[..], &["--session-key-file", file]].concat(), &[]).unwrap();
    let again = config(&[&create[..], &["--session-key-file", file]].concat(), &[]).unwrap();
    assert_eq!(made.session_keys.fingerprints(), again.session_keys.fingerprints());
    let errors = config(&create, &[]).unwrap_err();
    assert!(errors.contains("TEXTO_SESSION_KEY_CREATE): of use with --session-key-file"), "{errors}");
    let nowhere = ["--session-key-file", "/nowhere/keys"];
    let errors = config(&[&create[..], &nowhere].concat(), &[]).unwrap_err();
    assert!(errors.contains("1 error") && errors.contains("can't write the file"), "{errors}");
}

#[test]
fn a_node_has_a_name_that_redis_takes() {
    for bad in ["köln-1", "two words", "tab\there", &"x".repeat(129)] {
        assert!(config(&["--node-id", bad], &[]).unwrap_err().contains("--node-id (TEXTO_NODE_ID)"), "{bad}");
    }
    assert_eq!(config(&["--node-id", "node-{1}/a"], &[]).unwrap().node_id, "node-{1}/a");
    for host in ["köln-1\n", "two words", "", " \n", &"ü".repeat(200)] {
        let name = default_node_id(host);
        config(&[&format!("--node-id={name}")], &[]).unwrap();
    }
    assert!(default_node_id("köln-1\n").starts_with("k-ln-1-"));
}

#[test]
fn durations_that_contradict_one_another_are_refused() {
    let durations = ["--send-timeout", "2s", "--heartbeat-timeout", "3s"];
    let errors = config(&[&["--redis", "r:1"], &durations[..]].concat(), &[]).unwrap_err();
    assert!(errors.contains("--heartbeat-timeout (TEXTO_HEARTBEAT_TIMEOUT)"), "{errors}");
    config(&["--redis", "r:1", "--send-timeout", "20s", "--heartbeat-timeout", "5s"], &[]).unwrap();
}

#[test]
fn a_filter_of_the_log_that_makes_no_sense_is_named() {
    let errors = config(&[], &[("TEXTO_LOG", "texto=loud")]).unwrap_err();
    assert!(errors.contains("TEXTO_LOG: \"texto=loud\""), "{errors}");
    assert_eq!(config(&[], &[("TEXTO_LOG", "")]).unwrap().log_filter, "info");
}

#[test]
fn secrets_come_from_variable_or_file_and_are_not_shown() {
    let shown = format!("{:?}", config(&["--redis", "r:6379"], &[("TEXTO_REDIS_PASSWORD", "hunter2")]).unwrap());
    assert!(shown.contains("Secret(…)") && !shown.contains("hunter2"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter3\n").unwrap();
    let path = file.path().to_str().unwrap();
    let read = config(&["--redis", "r:6379", "--redis-password-file", path], &[]).unwrap();
    let BrokerConfig::Redis(redis) = read.broker else { panic!("not Redis") };
    assert_eq!(redis.credentials.password.unwrap().current().expose(), "hunter3");
    std::fs::write(file.path(), "\r\n").unwrap();
    let empty = config(&["--redis", "r:6379", "--redis-password-file", path], &[]).unwrap_err();
    assert!(empty.contains("is empty"), "{empty}");
    let both = config(&["--redis-password-file", path], &[("TEXTO_REDIS_PASSWORD", "hunter2")]).unwrap_err();
    assert!(both.contains("TEXTO_REDIS_PASSWORD_FILE") && !both.contains("hunter"));
}

#[test]
fn session_keys_come_from_a_file_and_its_flaws_are_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let errors = config(&["--session-key-file", path, "--token-lifetime", "31days"], &[]).unwrap_err();
    for part in ["2 errors", "--session-key-file (TEXTO_SESSION_KEY_FILE): the file", "holds no key", "30days"] {
        assert!(errors.contains(part), "{part} is not in: {errors}");
    }
    std::fs::write(file.path(), crate::resume::keys::new_line().unwrap()).unwrap();
    assert!(config(&["--session-key-file", path], &[]).unwrap().session_keys.are_shared());
    let alone = config(&["--session-key-file", ""], &[]).unwrap();
    assert!(!alone.session_keys.are_shared());
    assert_eq!(alone.limits.resume_window, Duration::from_secs(30));
    // A node's clients may all come back by one proxy.
    let per_address = |arguments: &[&str]| config(arguments, &[]).map(|config| config.limits.resumes_per_address);
    assert_eq!(per_address(&[]), Ok(alone.limits.max_connections.max(1000)));
    assert_eq!(per_address(&["--max-connections", "3"]), Ok(1000));
    assert_eq!(per_address(&["--max-connections", "300", "--resumes-per-address", "7"]), Ok(7));
    assert_eq!(per_address(&["--resumes-per-address", "0"]), Ok(0), "no limit");
    let errors = config(&["--resume-window", "10m", "--token-lifetime", "5m"], &[]).unwrap_err();
    assert!(errors.contains("at least as long as --resume-window (TEXTO_RESUME_WINDOW)"), "{errors}");
}
