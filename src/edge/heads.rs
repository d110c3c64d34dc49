//! Owns whether the lines of a request's head end as they must: by CR and LF.
//!
//! A lone LF ends a line for some and not for others (RFC 9112, section 2.2), so a proxy may see one request where the
//! gateway sees two. hyper takes it, and so these look at the bytes before hyper does.

/// Follows the heads on a connection. Requests with bodies are refused, so what comes before an upgrade is nothing else.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Heads that have ended.
    ended: u64,
    /// Heads that were asked about.
    asked: u64,
    /// The first head with a line that ends in another way.
    flawed: Option<u64>,
    begun: bool,
    line_begun: bool,
    after_cr: bool,
}

impl Heads {
    /// More bytes came.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    if !self.after_cr {
                        self.flawed.get_or_insert(self.ended);
                    }
                    // An empty line ends a head, and is nothing before one.
                    if !self.line_begun && std::mem::take(&mut self.begun) {
                        self.ended += 1;
                    }
                    self.line_begun = false;
                }
                b'\r' => {}
                _ => (self.begun, self.line_begun) = (true, true),
            }
            self.after_cr = *byte == b'\r';
        }
    }

    /// Whether the next request's head was flawless.
    pub(super) fn next_is_sound(&mut self) -> bool {
        let number = self.asked;
        self.asked += 1;
        self.flawed.is_none_or(|flawed| flawed > number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound(bytes: &str, step: usize) -> Vec<bool> {
        let mut heads = Heads::default();
        bytes.as_bytes().chunks(step).for_each(|chunk| heads.feed(chunk));
        let begun = heads.ended + u64::from(heads.begun);
        (0..begun).map(|_| heads.next_is_sound()).collect()
    }

    #[test]
    fn a_lone_line_feed_is_found_in_the_head_that_has_it_and_all_that_follow() {
        const GOOD: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for (bytes, expected) in [
            (GOOD.to_owned(), vec![true]),
            (format!("\r\n{GOOD}\r\n{GOOD}"), vec![true, true]),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(), vec![false]),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n".to_owned(), vec![false]),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned(), vec![false]),
            (format!("\n{GOOD}"), vec![false]),
            // Frames that come right behind a handshake are not its business.
            (format!("{GOOD}\u{1}\n\n\u{2}"), vec![true, false, false]),
            (format!("{GOOD}GET / HTTP/1.1\nHost: a\n\n{GOOD}"), vec![true, false, false]),
        ] {
            for step in [1, 2, 3, 1000] {
                assert_eq!(sound(&bytes, step), expected, "{bytes:?} by {step}");
            }
        }
    }
}
