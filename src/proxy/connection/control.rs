//! Counts the HTTP/2 frames of a client that carry nothing of a request: PING, SETTINGS, WINDOW_UPDATE, PRIORITY, RST_STREAM,
//! empty DATA, unknown ones. Each is allowed, and h2 answers or ignores it; a flood of them is an attack (CVE-2019-9512,
//! -9515, -9518), which h2 itself does not end as long as the answers are read. Reads frame heads alone. Pure.

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const HEAD_BYTES: usize = 9;
/// RFC 9113 section 3.4.
const PREFACE_BYTES: usize = 24;

/// Follows the frames of one connection.
#[derive(Debug, Default)]
pub struct Control {
    begun: bool,
    head: [u8; HEAD_BYTES],
    /// How much of the head has come.
    known: usize,
    /// What is left of a payload.
    skip: usize,
}

impl Control {
    /// How many such frames begin in `bytes`, which follow those of the last call.
    pub fn count(&mut self, mut bytes: &[u8]) -> u32 {
        if !self.begun {
            self.begun = true;
            self.skip = PREFACE_BYTES;
        }
        let mut count = 0;
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                return count;
            }
            let wanted = HEAD_BYTES - self.known;
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            if let Some(space) = self.head.get_mut(self.known..self.known + part.len()) {
                space.copy_from_slice(part);
            }
            self.known += part.len();
            bytes = rest;
            if self.known == HEAD_BYTES {
                self.known = 0;
                count += self.judge();
            }
        }
    }

    fn judge(&mut self) -> u32 {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let carries = match kind {
            HEADERS | CONTINUATION => true,
            DATA => self.skip > 0 || flags & END_STREAM != 0,
            _ => false,
        };
        u32::from(!carries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.extend(vec![4; usize::from(length)]);
        bytes
    }

    fn session() -> Vec<u8> {
        let frames = [
            frame(4, 0, 0),
            frame(HEADERS, 4, 200),
            frame(CONTINUATION, 4, 3),
            frame(DATA, 0, 9),
            frame(DATA, 0, 0),
            frame(DATA, END_STREAM, 0),
            frame(6, 0, 8),
            frame(8, 0, 4),
        ];
        let mut bytes = vec![b'P'; PREFACE_BYTES];
        bytes.extend(frames.concat());
        bytes
    }

    #[test]
    fn frames_that_carry_nothing_are_counted() {
        assert_eq!(Control::default().count(&session()), 4);
    }

    proptest! {
        #[test]
        fn count_does_not_depend_on_how_the_bytes_come(sizes in prop::collection::vec(1_usize..40, 1..60)) {
            let (session, mut control, mut count, mut at) = (session(), Control::default(), 0, 0);
            for size in sizes.into_iter().chain([session.len()]) {
                let end = session.len().min(at + size);
                count += control.count(&session[at..end]);
                at = end;
            }
            prop_assert_eq!(count, 4);
        }
    }
}
