//! Owns the log: lines on standard error, for people or for machines.
//!
//! It must never harm. Whoever logs only puts a line into memory; one thread writes. Whatever standard error
//! is (closed, full, slow, a disk without room), lines are dropped, counted, and that is said later.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tracing::{Level, Metadata, error, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Bytes of lines that may wait for the thread that writes.
const MOST_WAITING: usize = 1024 * 1024;
/// Pause before more is written to what takes nothing just now.
const PAUSE: Duration = Duration::from_millis(50);

/// The log. A cheap handle.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    most: usize,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// The thread writes lines that it has taken away.
    is_writing: bool,
}

impl Log {
    /// A log on standard error; its thread runs from now on.
    ///
    /// # Errors
    /// When there is no thread or descriptor for it.
    pub fn to_stderr() -> io::Result<Self> {
        // Not `io::stderr`: its lock would be held by the thread for as long as a write takes.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::to(stderr, MOST_WAITING)
    }

    fn to(sink: impl Write + Send + 'static, most: usize) -> io::Result<Self> {
        let dropped = IntCounter::new("texto_log_lines_dropped_total", "Lines that standard error did not take.");
        let dropped = dropped.map_err(io::Error::other)?;
        let shared = Arc::new(Shared { most, waiting: Mutex::default(), changed: Condvar::new(), dropped });
        let log = Self { shared: shared.clone() };
        std::thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_to(sink))?;
        Ok(log)
    }

    /// Takes the program's events that pass `filter`, and its panics. To be called once.
    pub fn start(&self, format: LogFormat, filter: &str) {
        let filter = EnvFilter::new(filter);
        let logs = tracing_subscriber::fmt::layer().with_writer(self.clone()).with_target(false);
        let logs = logs.log_internal_errors(false); // Those would go to standard error, past this.
        let registry = tracing_subscriber::registry().with(filter).with(filter_fn(is_ours));
        match format {
            LogFormat::Json => registry.with(logs.json()).init(),
            LogFormat::Text => registry.with(logs.with_ansi(io::stderr().is_terminal())).init(),
        }
        // The hook of the standard library writes to standard error itself, and waits for it.
        std::panic::set_hook(Box::new(|panic| {
            let text = panic.to_string().replace('\n', " ");
            let backtrace = Backtrace::capture();
            let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
            error!(backtrace = backtrace.as_ref().map(tracing::field::display), "{text}");
        }));
    }

    /// Adds a line of its own.
    pub fn line(&self, text: &str) {
        self.shared.put(format!("{text}\n").as_bytes());
    }

    /// Waits until everything is written, for `limit` at the most.
    pub fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut waiting = self.shared.lock();
        while waiting.is_writing || !waiting.lines.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = self.shared.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Counts what was dropped.
    pub fn lines_dropped(&self) -> IntCounter {
        self.shared.dropped.clone()
    }
}

/// The crates below trace what goes over connections: texts, credentials, tokens. No filter lets that into the log.
fn is_ours(event: &Metadata<'_>) -> bool {
    *event.level() < Level::TRACE || event.target().starts_with("texto")
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Log;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Each call is a line, or more of them. It never fails and never waits for standard error.
impl Write for &Log {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.shared.put(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No state is left half-changed by the code that holds it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, lines: &[u8]) {
        let mut waiting = self.lock();
        if waiting.lines.len() + lines.len() > self.most {
            self.dropped.inc_by(lines.iter().filter(|byte| **byte == b'\n').count() as u64);
            return;
        }
        waiting.lines.extend_from_slice(lines);
        self.changed.notify_all();
    }

    /// Writes what comes, for ever.
    fn write_to(&self, mut sink: impl Write) {
        let (mut said, mut is_torn) = (0, false);
        loop {
            let lines = self.take();
            let mut is_taken = false;
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                // What is left of a line is not to spoil the next.
                let is_clean = !is_torn || write_patiently(&mut sink, b"\n") == 1;
                let written = if is_clean { write_patiently(&mut sink, line) } else { 0 };
                is_taken = written == line.len();
                is_torn = !is_clean || (written > 0 && !is_taken);
                if !is_taken {
                    self.dropped.inc();
                }
            }
            let dropped = self.dropped.get();
            if is_taken && dropped > said {
                warn!(lines = dropped - said, "lines of the log were dropped: standard error did not take them");
                said = dropped;
            }
        }
    }

    /// Waits for lines. What was taken before has been written when this is called.
    fn take(&self) -> Vec<u8> {
        let mut waiting = self.lock();
        waiting.is_writing = false;
        self.changed.notify_all();
        while waiting.lines.is_empty() {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.is_writing = true;
        std::mem::take(&mut waiting.lines)
    }
}

/// Writes `bytes`, however long that takes; returns how many were, should it become impossible.
fn write_patiently(sink: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody made it non-blocking, and it is full.
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const LIMIT: Duration = Duration::from_secs(10);

    /// What standard error does with a write: each is waited for, then answered.
    struct Sink {
        writes: Sender<String>,
        answers: Receiver<io::Result<usize>>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
            self.answers.recv().map_err(io::Error::other)?
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A log that keeps 20 bytes, what it writes, and the answers to that.
    fn log() -> (Log, Receiver<String>, Sender<io::Result<usize>>) {
        let (writes, written) = channel();
        let (answer, answers) = channel();
        (Log::to(Sink { writes, answers }, 20).unwrap(), written, answer)
    }

    #[test]
    fn a_sink_that_hangs_costs_lines_but_nobody_waits() {
        let (log, written, answer) = log();
        log.line("first");
        assert_eq!(written.recv_timeout(LIMIT).unwrap(), "first\n");
        for _ in 0..1000 {
            log.line("12345678"); // Two of them find room.
        }
        assert_eq!(log.lines_dropped().get(), 998);
        let began = Instant::now();
        log.finish(Duration::from_millis(10));
        assert!(began.elapsed() < LIMIT);
        for length in [6, 9] {
            answer.send(Ok(length)).unwrap();
            assert_eq!(written.recv_timeout(LIMIT).unwrap(), "12345678\n");
        }
        answer.send(Ok(9)).unwrap();
        log.finish(LIMIT);
        assert_eq!(log.lines_dropped().get(), 998);
    }

    #[test]
    fn a_line_that_was_torn_does_not_spoil_the_next() {
        let (log, written, answer) = log();
        let step = |line: &str, result| {
            assert_eq!(written.recv_timeout(LIMIT).unwrap(), line);
            answer.send(result).unwrap();
        };
        log.line("first");
        step("first\n", Ok(3));
        step("st\n", Err(ErrorKind::Interrupted.into()));
        step("st\n", Err(ErrorKind::WouldBlock.into()));
        step("st\n", Err(ErrorKind::StorageFull.into()));
        log.line("second");
        step("\n", Err(ErrorKind::StorageFull.into()));
        log.line("third");
        step("\n", Ok(1));
        step("third\n", Ok(6));
        log.finish(LIMIT);
        assert_eq!(log.lines_dropped().get(), 2);
    }
}
