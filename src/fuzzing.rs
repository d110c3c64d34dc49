//! Owns what fuzzers call: everything that reads bytes which somebody else has written, and what must hold whatever
//! those bytes are. Compiled for fuzzers (`fuzz/`) and for tests, which replay the corpus; never part of the program.
//!
//! A target fails by a panic: its own assertion's, or that of the code it calls.

mod socket;

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use prometheus::IntGauge;
use uuid::Uuid;

use crate::broker::redis::{connection, role};
use crate::config::{Address, Limits};
use crate::edge::client_address::{Peer, TrustedProxies};
use crate::edge::websocket;
use crate::outbox::Outbox;
use crate::outbox::budget::Budget;
use crate::outbox::copy::Copy;
use crate::resume::token::{Claims, Key, Keyring};
use crate::sentinel::fuzzing::{event, views};
use crate::sentinel::machine::{Event, Machine};
use crate::session::protocol::{self, Reply};
use crate::transport::envelope::{self, Channel, Frame};
use crate::transport::record::{self, Record};

/// A name, and what is called with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them. Each has a folder in `fuzz/corpus` and a file in `fuzz/fuzz_targets`.
pub const TARGETS: [Target; 8] = [
    ("frames", socket::frames),
    ("protocol", protocol_frames),
    ("envelope", envelopes),
    ("record", records),
    ("resp", resp),
    ("token", tokens),
    ("sentinel", sentinels),
    ("head", heads),
];

/// Runs a target.
///
/// # Panics
/// When there is none of this name, or something is wrong with what it calls.
pub fn run(name: &str, bytes: &[u8]) {
    match TARGETS.iter().find(|(other, _)| *other == name) {
        Some((_, target)) => target(bytes),
        None => panic!("there is no target {name}"),
    }
}

/// A text frame of a client. What is refused is answered with JSON, whatever it was.
fn protocol_frames(bytes: &[u8]) {
    const LIMIT: usize = 100;
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match protocol::decode(text, Uuid::from_u128(1), LIMIT) {
        Ok(protocol::Request::Send { text, .. }) => assert!(text.len() <= LIMIT, "{} bytes", text.len()),
        Ok(_) => {}
        Err(rejection) => {
            let (code, description) = (rejection.code, rejection.description.as_str());
            let id = rejection.id.unwrap_or_default();
            let answer = protocol::encode(Uuid::from_u128(1), id, &Reply::Error { code, description });
            // What somebody sent is told again in part only.
            assert!(answer.len() < 2000, "{answer}");
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
            assert_eq!(answer["kind"], "error");
        }
    }
}

/// What nodes send one another: a channel's name, or the bytes on it.
fn envelopes(bytes: &[u8]) {
    if let Some(channel) = Channel::parse(bytes) {
        assert_eq!(Channel::parse(channel.name().as_bytes()), Some(channel));
    }
    let written = match envelope::decode(bytes) {
        Ok(Frame::Message(message)) => {
            let head = envelope::head(message.tag, message.place);
            [&head[..], &envelope::body(message.id, message.sender, message.text)].concat()
        }
        Ok(Frame::Receipts(tag, receipts)) => envelope::receipts(tag, &receipts).to_vec(),
        Ok(Frame::Held(tag, holding)) => envelope::held(tag, &holding).to_vec(),
        Ok(Frame::Keys(tag, list)) => envelope::keys(tag, list.edition, &list.keys, &list.name).to_vec(),
        _ => return,
    };
    assert_eq!(format!("{:?}", envelope::decode(&written)), format!("{:?}", envelope::decode(bytes)));
}

/// What a home tells its standby: one record; and several, each behind a byte that says how long it is, as a standby takes
/// them, and what becomes of it at the end.
fn records(bytes: &[u8]) {
    if let Some((term, record)) = record::decode(bytes) {
        let written = record::encode(term, &record);
        assert_eq!(record::decode(&written), Some((term, record)));
    }
    let Ok(used) = IntGauge::new("used", "bytes") else { return };
    let (budget, limits) = (Budget::new(10_000, used.clone()), Limits::small(9, 10_000));
    let (client, mut copy, mut rest) = (Uuid::from_u128(1), None, bytes);
    while let Some((length, more)) = rest.split_first() {
        let (piece, more) = more.split_at(usize::from(*length).min(more.len()));
        rest = more;
        match record::decode(piece) {
            Some((term, Record::Open(opening))) => copy = Some(Copy::new(1, term, opening, &budget)),
            Some((_, Record::Message(taken))) => {
                let id = Uuid::from_u128(u128::from(taken.position));
                copy = copy.and_then(|mut copy| copy.take(id, taken).then_some(copy));
            }
            Some((_, Record::Had { had, generation, proven })) => {
                copy.iter_mut().for_each(|copy| copy.learn(had, generation, proven));
            }
            Some((_, Record::Promote { generation, .. })) => {
                let Some(copy) = copy.take() else { continue };
                let outbox = Outbox::promoted(Instant::now(), client, generation, copy, &limits);
                assert!(outbox.kept() <= bytes.len());
            }
            Some((_, Record::End)) => copy = None,
            Some((_, Record::Claim(_))) | None => {}
        }
        assert!(used.get() <= 10_000, "{} bytes", used.get());
    }
    drop(copy);
    assert_eq!(used.get(), 0, "nothing is left");
}

/// What a Redis server answers, complete or not.
fn resp(bytes: &[u8]) {
    let Ok(Some((reply, length))) = connection::parse(bytes) else { return };
    assert!((1..=bytes.len()).contains(&length), "{length}");
    assert!(matches!(connection::parse(&bytes[..length - 1]), Ok(None)), "it is complete without its end");
    let again = connection::parse(&bytes[..length]);
    assert!(again.is_ok_and(|again| again.is_some_and(|(again, _)| again == reply)), "what follows is part of it");
    let _ = (role::role(&reply), role::replication_offset(&reply));
}

/// A resume token. Nobody can know whether a fuzzer has guessed a key, but what is taken must be what was signed.
fn tokens(bytes: &[u8]) {
    let Some(key) = Key::new(&[7; 32]) else { return };
    let keys = Keyring::new(key, Vec::new());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let claims = Claims::new(Uuid::from_u128(1), 2, 3, None, now, Duration::from_secs(60));
    let good = keys.sign(&claims);
    assert_eq!(keys.verify(&good, now), Ok(claims));
    // The bytes as they are; and as a difference to a good token.
    let mut changed = good.clone().into_bytes();
    for (place, byte) in changed.iter_mut().zip(bytes) {
        *place ^= byte;
    }
    for token in [String::from_utf8_lossy(bytes), String::from_utf8_lossy(&changed)] {
        if let Ok(claims) = keys.verify(&token, now) {
            assert_eq!(keys.sign(&claims), token, "it was taken, and never written");
        }
    }
}

/// What Sentinels answer, and what they publish.
fn sentinels(bytes: &[u8]) {
    event(bytes);
    let now = Instant::now();
    let configured = [Address { host: "s".to_owned(), port: 1 }, Address { host: "t".to_owned(), port: 1 }];
    let mut machine = Machine::new(&configured);
    let (mut epoch, mut asked) = (0, configured.len());
    for (view, seconds) in views(bytes).into_iter().zip(0..) {
        let from = &configured[seconds as usize % configured.len()];
        let follows = machine.apply(now + Duration::from_secs(seconds), Event::Answered(from.clone(), view));
        assert!(machine.topology().epoch >= epoch || follows.begun_anew.is_some(), "an epoch came back");
        epoch = machine.topology().epoch;
        asked = asked + follows.watch.len() - follows.forget.len();
        assert!(asked <= configured.len() + 32, "{asked} Sentinels are asked");
    }
}

/// The head of a request: a line for each header, as `name: value`. What it is about is decided by the program.
fn heads(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let value = value[1..].trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    for compression in [false, true] {
        match websocket::handshake(Version::HTTP_11, &headers, compression) {
            Ok(response) => {
                assert_eq!(response.status(), 101);
                let agreed = response.extensions().get::<websocket::Deflate>().is_some();
                assert!(compression || !agreed);
                assert_eq!(response.headers().contains_key(http::header::SEC_WEBSOCKET_EXTENSIONS), agreed);
            }
            Err(error) => {
                assert!(error.status().is_client_error());
                // A client is told what it said, up to a length.
                assert!(error.to_string().len() < 1000, "{error}");
            }
        }
    }
    let peer = Peer(SocketAddr::from(([10, 0, 0, 1], 1)));
    let strict = TrustedProxies::default().client(peer, &headers);
    assert_eq!(strict, peer.0.ip(), "a stranger was believed");
    let Ok(proxies) = TrustedProxies::parse("10.0.0.0/8,::1") else { return };
    let _ = proxies.client(peer, &headers);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn names(folder: &str) -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What fuzzers have found interesting, or broke, goes the same way in each run of the tests.
    #[test]
    fn the_corpus_is_replayed() {
        for (name, target) in TARGETS {
            let folder = format!("fuzz/corpus/{name}");
            let files = names(&folder);
            assert!(files.len() >= 3, "{folder} has {} files", files.len());
            for file in files {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder).join(&file);
                let bytes = std::fs::read(&path).unwrap();
                let went = std::panic::catch_unwind(|| target(&bytes));
                assert!(went.is_ok(), "{} broke on {path:?}", name);
                // And what is cut off somewhere.
                target(&bytes[..bytes.len() / 2]);
            }
        }
    }

    /// As a fuzzer does it that sees nothing of the code: files of the corpus, changed at random. For a moment, or for
    /// `TEXTO_FUZZ_SECONDS` each.
    #[test]
    fn what_is_almost_of_the_corpus_breaks_nothing() {
        let seconds = std::env::var("TEXTO_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        let seed = fastrand::u64(..);
        for (name, target) in TARGETS {
            let mut random = fastrand::Rng::with_seed(seed);
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
            let files: Vec<_> = names(&format!("fuzz/corpus/{name}")).into_iter().collect();
            let files: Vec<_> = files.iter().map(|file| std::fs::read(folder.join(file)).unwrap()).collect();
            let (began, mut executions) = (Instant::now(), 0_u64);
            while began.elapsed() < Duration::from_secs(seconds) {
                let mut bytes = random.choice(&files).unwrap().clone();
                for _ in 0..random.usize(1..6) {
                    mutate(&mut random, &mut bytes, &files);
                }
                let went = std::panic::catch_unwind(|| target(&bytes));
                assert!(went.is_ok(), "{name} broke on {}, seed {seed}", bytes.escape_ascii());
                executions += 1;
            }
            println!("{name}: {executions} executions");
        }
    }

    fn mutate(random: &mut fastrand::Rng, bytes: &mut Vec<u8>, files: &[Vec<u8>]) {
        const TELLING: [u8; 12] = [0, 1, 0x40, 0x7d, 0x7e, 0x7f, 0x80, 0xc1, 0xff, b'"', b'\n', b' '];
        let at = random.usize(0..=bytes.len());
        let end = random.usize(at..=bytes.len());
        match random.u8(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
            1 if at < bytes.len() => bytes[at] = TELLING[random.usize(0..TELLING.len())],
            2 => bytes.insert(at, random.u8(..)),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => bytes.truncate(end),
            _ => {
                let other = &files[random.usize(0..files.len())];
                let from = random.usize(0..=other.len());
                let to = random.usize(from..=other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
        bytes.truncate(8192);
    }

    #[test]
    fn every_target_can_be_fuzzed_and_has_a_corpus() {
        let targets = BTreeSet::from_iter(TARGETS.map(|(name, _)| name.to_owned()));
        assert_eq!(names("fuzz/corpus"), targets);
        let files = names("fuzz/fuzz_targets");
        assert_eq!(files, targets.iter().map(|name| format!("{name}.rs")).collect());
        let manifest = include_str!("../fuzz/Cargo.toml");
        for name in targets {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        }
    }
}
