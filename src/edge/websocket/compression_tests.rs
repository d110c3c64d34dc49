//! What a socket with compression does with every splitting of bytes, every mixture of frames, and what nobody may send.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use proptest::prelude::*;
use tokio::io::DuplexStream;

use super::*;

const LIMIT: usize = 3000;
const BOUNDS: Bounds = Bounds { max_read: LIMIT, max_write: 100_000 };

fn selected(offer: &str) -> Deflate {
    let mut headers = HeaderMap::new();
    headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, offer.parse().unwrap());
    extensions::select(&headers).unwrap().unwrap()
}

async fn socket(early: Vec<u8>, offer: &str, pipe: usize) -> (Socket, DuplexStream) {
    let (client, server) = tokio::io::duplex(pipe);
    (Socket::new(Box::new(server), early, BOUNDS, Some(Agreed::uncounted(selected(offer)))).await, client)
}

/// As a client compresses, by a compressor of its own.
fn deflated(message: &[u8], level: u32) -> Vec<u8> {
    let mut written = Vec::with_capacity(message.len() * 2 + 100);
    let mut compressor = Compress::new(Compression::new(level), false);
    compressor.compress_vec(message, &mut written, FlushCompress::Sync).unwrap();
    assert_eq!(compressor.total_in(), message.len() as u64);
    written.truncate(written.len() - 4);
    written
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [7, 0, 255, 83];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A message in frames that end at `cuts`, with a ping before each but the first.
fn message(first: u8, payload: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (payload.len() + 1)).collect();
    cuts.sort_unstable();
    let (mut bytes, mut at) = (Vec::new(), 0);
    for (number, end) in cuts.iter().copied().chain([payload.len()]).enumerate() {
        let kind = if number == 0 { first } else { 0 };
        if number > 0 {
            bytes.extend(frame(0x89, b"!"));
        }
        let fin = if number == cuts.len() { 0x80 } else { 0 };
        bytes.extend(frame(kind | fin, &payload[at..end]));
        at = end;
    }
    bytes
}

/// Whoever cancels at each await has polled this often.
struct Woken(AtomicUsize);
impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
struct Sent {
    text: bool,
    compressed: bool,
    payload: Vec<u8>,
    cuts: Vec<usize>,
    level: u32,
}

fn sent() -> impl Strategy<Value = Sent> {
    let payload = prop_oneof![
        "[ab]{0,200}".prop_map(String::into_bytes),
        "\\PC{0,60}".prop_map(String::into_bytes),
        (0..=LIMIT).prop_map(|length| vec![b'z'; length]),
        // What can't be made shorter.
        (1000..=LIMIT, any::<u64>()).prop_map(|(length, seed)| {
            let mut random = fastrand::Rng::with_seed(seed);
            (0..length).map(|_| random.u8(33..127)).collect()
        }),
    ];
    (any::<bool>(), any::<bool>(), payload, proptest::collection::vec(0..5000_usize, 0..4), 0..10_u32)
        .prop_map(|(text, compressed, payload, cuts, level)| Sent { text, compressed, payload, cuts, level })
}

fn bytes_of(messages: &[Sent]) -> Vec<u8> {
    let each = messages.iter().flat_map(|sent| {
        let kind = if sent.text { 1 } else { 2 };
        match sent.compressed {
            true => message(kind | 0x40, &deflated(&sent.payload, sent.level), &sent.cuts),
            false => message(kind, &sent.payload, &sent.cuts),
        }
    });
    each.collect()
}

proptest! {
    /// Each read is given up as soon as it waits, and the socket is put together anew whenever it seems to be at rest.
    #[test]
    fn messages_are_read_whatever_they_are_split_into_and_whenever_a_read_is_given_up(
        messages in proptest::collection::vec(sent(), 1..6),
        early in 0..3000_usize,
        pipe in 1..4000_usize,
        step in 1..2000_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // Unconstrained: a pipe must not say "later" only because it was asked so often.
        runtime.block_on(tokio::task::unconstrained(async {
            let bytes = bytes_of(&messages);
            let (early, rest) = bytes.split_at(early.min(bytes.len()));
            let (mut socket, mut client) = socket(early.to_vec(), "permessage-deflate", pipe).await;
            let mut rest = rest.chunks(step.min(pipe));
            let waker = Arc::new(Woken(AtomicUsize::new(0)));
            let mut heard = Vec::new();
            let mut note = |incoming| match incoming {
                Incoming::Text(text) => heard.push((true, text.as_bytes().to_vec())),
                Incoming::Binary(bytes) => heard.push((false, bytes.to_vec())),
                Incoming::Ping | Incoming::Pong(_) => {}
                other => panic!("{other:?}"),
            };
            loop {
                let next = Box::pin(socket.next()).poll_unpin(&mut Context::from_waker(&waker.clone().into()));
                match next {
                    Poll::Ready(incoming) => note(incoming),
                    Poll::Pending => {
                        socket = socket.compact().await;
                        if socket.peek().is_some() {
                            continue;
                        }
                        let Some(chunk) = rest.next() else { break };
                        client.write_all(chunk).now_or_never().expect("the pipe is empty").unwrap();
                    }
                }
                // Pongs must find room.
                let mut pongs = [0; 4096];
                while client.read(&mut pongs).now_or_never().is_some() {}
            }
            let wanted: Vec<_> = messages.iter().map(|sent| (sent.text, sent.payload.clone())).collect();
            prop_assert_eq!(heard, wanted);
            prop_assert!(socket.stream.get_ref().at_rest());
            Ok(())
        }))?;
    }

    #[test]
    fn whatever_is_written_a_client_with_that_window_reads(
        texts in proptest::collection::vec(
            prop_oneof!["[a-d]{0,2000}", "\\PC{0,700}", (400..90_000_usize).prop_map(|length| "12 345 6 ".repeat(length / 9))],
            1..5,
        ),
        bits in 8..16_u8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            let (mut socket, client) = socket(Vec::new(), &offer, 1 << 20).await;
            for text in &texts {
                socket.feed(Message::text(text.clone())).await.unwrap();
                socket.feed(Message::Ping(Bytes::new())).await.unwrap();
            }
            socket.flush().await.unwrap();
            drop(socket);
            for (text, compressed) in texts.iter().zip(read_all(client).await) {
                let (compressed, mut payload) = compressed;
                if compressed {
                    payload.extend([0, 0, 0xff, 0xff]);
                    // flate2 knows no window of 8 bits; those messages must fit into it.
                    prop_assert!(bits > 8 || text.len() <= 256);
                    let mut decompressor = Decompress::new_with_window_bits(false, bits.max(9));
                    let mut said = Vec::with_capacity(text.len() + 1);
                    decompressor.decompress_vec(&payload, &mut said, FlushDecompress::None).unwrap();
                    payload = said;
                }
                prop_assert_eq!(String::from_utf8(payload).unwrap(), text.clone());
            }
            Ok(())
        })?;
    }

    #[test]
    fn no_bytes_make_a_socket_panic_or_take_more_than_its_limit(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        first in prop_oneof![Just(0xc1_u8), Just(0x41), Just(0xc2)],
    ) {
        // The first frame claims to be compressed; all else is left to chance.
        bytes.splice(0..0, [first, 0x80 | (bytes.len() % 100) as u8]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut socket, client) = socket(bytes, "permessage-deflate", 100_000).await;
            drop(client);
            while let Incoming::Text(_) | Incoming::Binary(_) | Incoming::Ping | Incoming::Pong(_) = socket.next().await {}
        });
    }
}

/// The texts in what the server wrote: whether each was compressed, and its payload.
async fn read_all(mut client: DuplexStream) -> Vec<(bool, Vec<u8>)> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    let (mut rest, mut texts) = (&bytes[..], Vec::new());
    while let [first, length, tail @ ..] = rest {
        let (length, tail) = match length {
            126 => (usize::from(u16::from_be_bytes(tail[..2].try_into().unwrap())), &tail[2..]),
            127 => (u64::from_be_bytes(tail[..8].try_into().unwrap()) as usize, &tail[8..]),
            length => (usize::from(*length), tail),
        };
        let (payload, tail) = tail.split_at(length);
        match first {
            0xc1 => texts.push((true, payload.to_vec())),
            0x81 => texts.push((false, payload.to_vec())),
            0x89 => {}
            other => panic!("{other:x}"),
        }
        rest = tail;
    }
    texts
}

/// What the client is closed with when it sends `bytes`.
async fn told(bytes: Vec<u8>) -> (u16, &'static str) {
    let (mut socket, _client) = socket(bytes, "permessage-deflate", 1 << 16).await;
    loop {
        match tokio::time::timeout(Duration::from_secs(5), socket.next()).await.expect("there is an answer") {
            Incoming::Violation(code, reason) => return (code, reason),
            Incoming::Text(_) | Incoming::Binary(_) | Incoming::Ping | Incoming::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Found by fuzzing: what was read along with a violation was lost, depending on how the bytes were split.
#[tokio::test]
async fn what_comes_before_a_violation_is_read() {
    let hello = deflated(b"hello", 6);
    let bytes = [frame(0xc1, &hello), frame(0x81, b"plain"), frame(0xc9, b"")].concat();
    let (mut socket, _client) = socket(bytes, "permessage-deflate", 1 << 16).await;
    assert_eq!(socket.next().await, Incoming::Text("hello".into()));
    assert_eq!(socket.next().await, Incoming::Text("plain".into()));
    assert!(matches!(socket.next().await, Incoming::Violation(1002, _)));
}

/// A DEFLATE block that is stored.
fn stored(last: bool, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u16;
    [&[u8::from(last)], &length.to_le_bytes()[..], &(!length).to_le_bytes(), bytes].concat()
}

#[tokio::test]
async fn what_rfc_7692_forbids_closes_with_the_code_that_says_so() {
    let hello = deflated(b"hello", 6);
    for (what, code, bytes) in [
        ("a compressed ping", 1002, frame(0xc9, b"")),
        ("a compressed close", 1002, frame(0xc8, &[3, 232])),
        ("a compressed pong within a message", 1002, [frame(0x41, &hello), frame(0xca, b"")].concat()),
        ("a continuation that says that it is compressed", 1002, [frame(0x41, b""), frame(0xc0, &hello)].concat()),
        ("such a continuation of a plain message", 1002, [frame(1, b"a"), frame(0xc0, b"a")].concat()),
        ("a continuation of nothing", 1002, frame(0xc0, &hello)),
        ("a plain message within a compressed one", 1002, [frame(0x41, &hello), frame(0x81, b"a")].concat()),
        ("a compressed message within a compressed one", 1002, [frame(0x41, &hello), frame(0xc1, &hello)].concat()),
        ("a compressed message within a plain one", 1002, [frame(1, b"a"), frame(0xc1, &hello)].concat()),
        ("RSV2 as well", 1002, frame(0xe1, &hello)),
        ("RSV2 in a continuation", 1002, [frame(0x41, &hello), frame(0xa0, b"")].concat()),
        ("an opcode that is not known", 1002, frame(0xc3, &hello)),
        ("no mask", 1002, [&[0xc1, hello.len() as u8], &hello[..]].concat()),
        ("no data at all", 1007, frame(0xc1, b"")),
        ("what is not compressed", 1007, frame(0xc1, b"hello")),
        ("half of it", 1007, frame(0xc1, &hello[..hello.len() / 2])),
        ("a last block, and no other behind it", 1007, frame(0xc1, &stored(true, b"hello"))),
        ("something behind it", 1007, frame(0xc1, &[&hello[..], &[0xff]].concat())),
        ("a reference to before its beginning", 1007, frame(0xc1, &[0x03 | 0x80, 0x11, 0x00, 0x00])),
        ("no UTF-8", 1007, frame(0xc1, &deflated(&[b'a', 0xff], 6))),
        ("more than the limit, when it is inflated", 1009, frame(0xc1, &deflated(&[b'a'; LIMIT + 1], 6))),
        ("more than the limit, as it is", 1009, frame(0xc1, &[0; LIMIT + LIMIT / 64 + 65])),
        ("a length that nobody can have", 1009, [&[0xc1, 0xff], &[0x7f; 8][..], &[0; 4000]].concat()),
    ] {
        assert_eq!(told(bytes).await.0, code, "{what}");
    }
}

#[tokio::test]
async fn what_rfc_7692_permits_is_read() {
    // Section 7.2.3: one block, two blocks, a stored one, a last one with another behind it.
    let examples: [(&str, &[u8]); 6] = [
        ("Hello", &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]),
        ("Hello", &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00]),
        ("Hello", &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]),
        ("Hello", &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]),
        ("", &[0x00]),
        ("", &[0x02, 0x00]),
    ];
    let longest = "x".repeat(LIMIT);
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(LIMIT).collect();
    let (by_9, by_0) = (deflated(longest.as_bytes(), 9), deflated(random.as_bytes(), 0));
    assert!(by_0.len() > LIMIT);
    let all = examples.into_iter().chain([(longest.as_str(), &by_9[..]), (random.as_str(), &by_0[..])]);
    for (text, compressed) in all {
        let (mut socket, _client) = socket(frame(0xc1, compressed), "permessage-deflate", 10).await;
        assert_eq!(socket.next().await, Incoming::Text(text.into()), "{compressed:x?}");
    }
}

#[tokio::test]
async fn a_message_that_would_be_a_thousand_times_as_long_takes_no_more_than_the_limit() {
    let bomb = deflated(&vec![0; 100_000_000], 9);
    assert!(bomb.len() < 100_000);
    let inflated = zlib::inflated(bomb, 0, 131_072);
    assert_eq!(inflated, Err(zlib::Unreadable::TooLong));
    // What it may come to is what is reserved, and a byte.
    let inflated = zlib::inflated(deflated(&vec![0; 131_072], 9), 14, 131_072).unwrap();
    assert!(inflated.len() == 131_072 + 14 && inflated.capacity() <= 131_072 + 15, "{}", inflated.capacity());
}

/// It was Autobahn's pictures that a session panicked over: the compressor was stopped where a message became longer by
/// it, and used again.
#[test]
fn a_compressor_that_was_stopped_is_not_used_again() {
    let mut random = fastrand::Rng::with_seed(1);
    let deflate = selected("permessage-deflate");
    for number in 0..100 {
        for _ in 0..3 {
            let length = random.usize(512..100_000);
            let noise: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            assert!(zlib::deflated(&noise, deflate).is_none(), "noise {number} can't become shorter");
            // Nor is a decompressor.
            assert!(zlib::inflated(noise, 0, LIMIT).is_err());
        }
        let text = "as before ".repeat(60);
        let compressed = zlib::deflated(text.as_bytes(), deflate).unwrap();
        assert_eq!(zlib::inflated(compressed, 0, LIMIT).unwrap(), text.as_bytes());
    }
}

#[tokio::test]
async fn a_compressed_message_that_is_slow_to_come_is_a_sign_of_life() {
    let (mut socket, mut client) = socket(Vec::new(), "permessage-deflate", 10_000).await;
    let bytes = frame(0xc1, &deflated(&[b'x'; 1000], 0));
    client.write_all(&bytes[..500]).await.unwrap();
    assert!(socket.next().now_or_never().is_none());
    assert_eq!(socket.arrived(), 500 - 8);
}

/// Compression is off by default, and a session without it must not pay for it.
#[test]
fn a_socket_without_compression_costs_what_it_did_before_there_was_any() {
    assert_eq!(size_of::<Socket>(), 32);
    // It was 328: jemalloc makes 384 of both.
    let size = size_of::<WebSocketStream<Tracked>>();
    assert!(size <= 384, "{size}");
}
