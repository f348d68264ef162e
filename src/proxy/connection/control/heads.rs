//! Reads the heads of HTTP/2 frames out of one direction of a connection, in whatever pieces its bytes come (RFC 9113
//! section 4.1). Payloads are skipped, but for the few bytes that tell what a frame means. Pure.

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const HEAD_BYTES: usize = 9;
/// Of the payload: the length of a padding, or the code of a reset.
const TOLD_BYTES_MAX: usize = 4;

/// What one frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// Bytes of the payload, of which padding is no part.
    pub(super) carried: usize,
    /// The code of a RST_STREAM.
    pub(super) code: u32,
}

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Heads {
    known: [u8; HEAD_BYTES + TOLD_BYTES_MAX],
    /// How much of it has come.
    have: usize,
    /// What is left of a payload.
    skip: usize,
}

impl Heads {
    /// With so many bytes in front of the first frame.
    pub(super) fn behind(preface: usize) -> Self {
        Self {
            skip: preface,
            ..Self::default()
        }
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    /// The next head in `bytes`, which follow those of the last call and are taken up to its end. `None`: more must come.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = bytes.get(skipped..).unwrap_or_default();
        // The second round takes what the first has found to be needed.
        for _ in 0..2 {
            let wanted = self.wanted().saturating_sub(self.have).min(bytes.len());
            let (part, rest) = bytes.split_at(wanted);
            if let Some(space) = self.known.get_mut(self.have..self.have + wanted) {
                space.copy_from_slice(part);
            }
            self.have += wanted;
            *bytes = rest;
        }
        if self.have < self.wanted() {
            return None;
        }
        Some(self.judge())
    }

    /// Bytes of this head, as far as is known yet.
    fn wanted(&self) -> usize {
        if self.have < HEAD_BYTES {
            return HEAD_BYTES;
        }
        let [a, b, c, kind, flags, ..] = self.known;
        let told = match kind {
            DATA if flags & PADDED != 0 => 1,
            RST_STREAM => TOLD_BYTES_MAX,
            _ => 0,
        };
        HEAD_BYTES + length([a, b, c]).min(told)
    }

    fn judge(&mut self) -> Head {
        let told = self.have - HEAD_BYTES;
        self.have = 0;
        let [a, b, c, kind, flags, d, e, f, g, h, i, j, k] = self.known;
        let length = length([a, b, c]);
        self.skip = length - told;
        let padding = if kind == DATA && told > 0 {
            1 + usize::from(h)
        } else {
            0
        };
        Head {
            kind,
            flags,
            // The highest bit is reserved.
            stream: u32::from_be_bytes([d & 0x7f, e, f, g]),
            carried: length.saturating_sub(padding),
            code: if told == TOLD_BYTES_MAX {
                u32::from_be_bytes([h, i, j, k])
            } else {
                0
            },
        }
    }
}

fn length([a, b, c]: [u8; 3]) -> usize {
    usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
}
