//! Owns where frames begin and end in a stream of bytes (RFC 6455, section 5.2).

/// Follows the frames that a peer sends, as far as their ends go.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: [u8; 10],
    have: u8,
    mask: u8,
    payload: u64,
    control: bool,
    fragmented: bool,
    /// Frames of the message that is not complete.
    pub(super) fragments: u32,
    /// Payload of texts and binaries that has come so far; it wraps.
    pub(super) arrived: u64,
}

/// What bytes of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Of its header, which is not complete with them.
    Header,
    /// The last ones of its header.
    HeaderEnd,
    /// Of the key that its payload is masked with.
    Key,
    /// Of its payload.
    Payload,
}

impl Frames {
    /// Between two messages: no frame begun, and no message either.
    pub(super) fn at_rest(&self) -> bool {
        self.between_frames() && !self.fragmented
    }

    /// No frame begun, though perhaps a message of several.
    pub(super) fn between_frames(&self) -> bool {
        self.have == 0 && self.mask == 0 && self.payload == 0
    }

    /// Once the header of a frame is complete: whether its payload is masked.
    pub(super) fn is_masked(&self) -> bool {
        self.header[1] & 0x80 != 0
    }

    /// Follows all of `bytes`.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (count, _) = self.step(bytes);
            bytes = &bytes[count..];
        }
    }

    /// Follows the first of `bytes`, of which there must be some: those of one part of one frame. Returns how many.
    pub(super) fn step(&mut self, bytes: &[u8]) -> (usize, Part) {
        if self.mask > 0 {
            let count = bytes.len().min(usize::from(self.mask));
            self.mask -= count as u8; // At most four.
            return (count, Part::Key);
        }
        if self.payload > 0 {
            let count = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            self.payload -= count as u64;
            if !self.control {
                self.arrived = self.arrived.wrapping_add(count as u64);
            }
            return (count, Part::Payload);
        }
        for (byte, count) in bytes.iter().zip(1..) {
            if let Some(place) = self.header.get_mut(usize::from(self.have)) {
                *place = *byte;
            }
            self.have += 1;
            if self.header_ends() {
                return (count, Part::HeaderEnd);
            }
        }
        (bytes.len(), Part::Header)
    }

    /// Whether the header is complete; what it says is taken over then.
    fn header_ends(&mut self) -> bool {
        let length_bytes = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.have < 2 || self.have < 2 + length_bytes {
            return false;
        }
        let extended = self.header[2..2 + usize::from(length_bytes)].iter();
        let length = match length_bytes {
            0 => u64::from(self.header[1] & 0x7f),
            _ => extended.fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        self.mask = if self.is_masked() { 4 } else { 0 };
        self.control = self.header[0] & 0x0f >= 8;
        if !self.control {
            self.fragmented = self.header[0] & 0x80 == 0;
            self.fragments = if self.fragmented { self.fragments.saturating_add(1) } else { 0 };
        }
        self.payload = length;
        self.have = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(first: u8, payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match payload {
            0..126 => bytes.push(mask | payload as u8),
            126..65536 => {
                bytes.push(mask | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(std::iter::repeat_n(0x5a, payload + if masked { 4 } else { 0 }));
        bytes
    }

    proptest! {
        #[test]
        fn rest_is_found_exactly_between_messages(
            sizes in proptest::collection::vec((prop_oneof![0..130_usize, 65530..65540_usize], any::<bool>()), 1..6),
            step in 1..5000_usize,
        ) {
            let (mut frames, mut payload) = (Frames::default(), 0);
            for (size, masked) in sizes {
                // A message in two fragments with a ping between them.
                let parts = [frame(0x01, size, masked), frame(0x89, 3, masked), frame(0x80, size, masked)];
                for (at, part) in parts.iter().enumerate() {
                    for chunk in part.chunks(step) {
                        prop_assert!(at == 0 || !frames.at_rest());
                        frames.feed(chunk);
                    }
                }
                prop_assert!(frames.at_rest());
                payload += 2 * size as u64;
                prop_assert_eq!(frames.arrived, payload);
            }
        }
    }
}
