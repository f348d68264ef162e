//! Notices the floods of HTTP/2: frames that carry nothing of a request (CVE-2019-9512 to -9518), and streams that are
//! reset as fast as they are opened, by the client (CVE-2023-44487) or by errors that it provokes (CVE-2025-8671). Each of
//! these frames is allowed, so that h2 bears most of them for as long as its answers are read. Reads frame heads in both
//! directions. Pure.

mod heads;
#[cfg(test)]
mod tests;

use std::time::Duration;

use heads::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Head, Heads, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE,
};
use smallvec::SmallVec;

/// RFC 9113 section 3.4.
const PREFACE_BYTES: usize = 24;

const SECOND: Duration = Duration::from_secs(1);
/// Streams and their resets are counted in windows of this length.
const WINDOW: Duration = Duration::from_secs(30);
/// So many resets in a window are a flood, if they also are most of its streams. A page whose images scroll by, a map that
/// is dragged and a search that asks at each key cancel much, but get an answer to most of what they ask.
const SPOILT_MAX: u32 = 100;
/// A reset counts on streams younger than this: who lets them live gains nothing, since a hundred at a time are allowed
/// anyhow. Calls of gRPC that run into their deadline live longer.
const YOUNG: Duration = Duration::from_secs(1);
/// Streams without an answer that are followed; twice what h2 lets a client have open, beyond which it refuses them.
const FOLLOWED_MAX: usize = 200;

/// What a PING or WINDOW_UPDATE beyond the budget costs of what was sent: a client in Go acknowledges each 4 KiB twice.
const CREDIT_BYTES: u64 = 1024;
/// A frame of DATA is worth at least this much credit: some clients acknowledge each, however small.
const CREDIT_PER_FRAME: u64 = 4 * CREDIT_BYTES;
/// As much as may be on its way to the client, unacknowledged.
const CREDIT_MAX: u64 = 64 << 20;

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

/// RFC 9113 section 7.
const ENHANCE_YOUR_CALM: u32 = 11;

/// What a client does too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Streams that are spoilt before their answer.
    Resets,
    Frames(Kind),
}

/// Frames that carry nothing of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Settings,
    Ping,
    WindowUpdate,
    EmptyData,
    Priority,
    Reset,
    /// Streams beyond those that a client may have open.
    Refused,
    Other,
}

const KINDS: usize = 8;

impl Kind {
    /// Beyond so many in a second, a client is cut off; per kind, since honest clients need no two of them at once.
    fn budget(self) -> u32 {
        match self {
            // A connection has a handful of them in its whole life; each must be acknowledged.
            Self::Settings => 100,
            // More are free with what is downloaded, see `CREDIT_BYTES`: windows are opened, and gRPC measures its line.
            Self::Ping | Self::WindowUpdate => 1000,
            // Once a request at the most, and a client with a thousand requests a second needs its own kind of gate.
            Self::EmptyData | Self::Priority | Self::Reset | Self::Refused | Self::Other => 1000,
        }
    }
}

impl Flood {
    /// As a label of metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Resets => "resets",
            Self::Frames(Kind::Settings) => "settings",
            Self::Frames(Kind::Ping) => "ping",
            Self::Frames(Kind::WindowUpdate) => "window_update",
            Self::Frames(Kind::EmptyData) => "empty_data",
            Self::Frames(Kind::Priority) => "priority",
            Self::Frames(Kind::Reset) => "rst_stream",
            Self::Frames(Kind::Refused) => "refused_stream",
            Self::Frames(Kind::Other) => "other",
        }
    }
}

/// A header block that is under way.
#[derive(Debug, Clone, Copy)]
struct Block {
    since: Duration,
    /// Its last frame has begun.
    ends: bool,
}

/// Follows both directions of one connection.
#[derive(Debug)]
pub struct Control {
    received: Heads,
    sent: Heads,
    flood: Option<Flood>,
    /// When the current second began, and what came in it.
    second: Duration,
    counts: [u32; KINDS],
    /// Bytes of DATA that were sent, less what frames beyond the budget have cost.
    credit: u64,
    /// When the current window began, and what came in it.
    window: Duration,
    streams: u32,
    spoilt: u32,
    /// Streams without an answer, and when they were opened.
    open: SmallVec<[(u32, Duration); 2]>,
    last_stream: u32,
    block: Option<Block>,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            received: Heads::behind(PREFACE_BYTES),
            sent: Heads::default(),
            flood: None,
            second: Duration::ZERO,
            counts: [0; KINDS],
            credit: 0,
            window: Duration::ZERO,
            streams: 0,
            spoilt: 0,
            open: SmallVec::new(),
            last_stream: 0,
            block: None,
        }
    }
}

impl Control {
    /// Takes what came from the client, behind what came before.
    pub fn received(&mut self, mut bytes: &[u8], now: Duration) {
        if now.saturating_sub(self.second) >= SECOND {
            self.second = now;
            self.counts = [0; KINDS];
        }
        if now.saturating_sub(self.window) >= WINDOW {
            self.window = now;
            (self.streams, self.spoilt) = (0, 0);
        }
        while let Some(head) = self.received.next(&mut bytes) {
            self.take_received(head, now);
        }
        if self.received.is_between() {
            self.block = self.block.filter(|block| !block.ends);
        }
    }

    /// Takes what goes to the client, behind what went before.
    pub fn sent(&mut self, mut bytes: &[u8], now: Duration) {
        while let Some(head) = self.sent.next(&mut bytes) {
            match head.kind {
                DATA => {
                    let earned = CREDIT_PER_FRAME.max(head.carried as u64);
                    self.credit = self.credit.saturating_add(earned).min(CREDIT_MAX);
                }
                HEADERS => drop(self.close(head.stream)),
                RST_STREAM => self.take_sent_reset(head, now),
                _ => {}
            }
        }
    }

    /// What the client does too much of; from the first time on.
    #[must_use]
    pub fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// All that was counted: frames by kind, streams, resets. For tests.
    #[must_use]
    pub fn tally(&self) -> Vec<u32> {
        [self.counts.as_slice(), &[self.streams, self.spoilt]].concat()
    }

    /// Since when a header block is under way that is not complete.
    pub(super) fn block_since(&self) -> Option<Duration> {
        self.block.map(|block| block.since)
    }

    /// The frame that ends the connection with a reason, where one may be written: behind a whole one.
    pub(super) fn farewell(&self) -> Option<[u8; 17]> {
        if !self.sent.is_between() {
            return None;
        }
        let [a, b, c, d] = self.last_stream.to_be_bytes();
        let [e, f, g, h] = ENHANCE_YOUR_CALM.to_be_bytes();
        Some([0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h])
    }

    fn take_received(&mut self, head: Head, now: Duration) {
        let ends = head.flags & END_HEADERS != 0;
        match head.kind {
            HEADERS => self.block = Some(Block { since: now, ends }),
            CONTINUATION => self.block = self.block.map(|block| Block { ends, ..block }),
            _ => self.block = self.block.filter(|block| !block.ends),
        }
        match head.kind {
            HEADERS => self.take_request(head.stream, now),
            CONTINUATION => {}
            DATA if head.carried > 0 || head.flags & END_STREAM != 0 => {}
            DATA => self.count(Kind::EmptyData),
            PRIORITY => self.count(Kind::Priority),
            SETTINGS => self.count(Kind::Settings),
            PING => self.count(Kind::Ping),
            WINDOW_UPDATE => self.count(Kind::WindowUpdate),
            RST_STREAM => {
                self.count(Kind::Reset);
                if let Some(opened) = self.close(head.stream)
                    && now.saturating_sub(opened) < YOUNG
                {
                    self.spoil();
                }
            }
            _ => self.count(Kind::Other),
        }
    }

    fn take_request(&mut self, stream: u32, now: Duration) {
        // Trailers come on a stream that is known.
        if stream <= self.last_stream {
            return;
        }
        self.last_stream = stream;
        self.streams = self.streams.saturating_add(1);
        if self.open.len() < FOLLOWED_MAX {
            self.open.push((stream, now));
        }
    }

    fn take_sent_reset(&mut self, head: Head, now: Duration) {
        let opened = self.close(head.stream);
        match head.code {
            REFUSED_STREAM => {
                // Or refused streams would be among those that the spoilt ones are measured by.
                self.streams = self.streams.saturating_sub(1);
                self.count(Kind::Refused);
            }
            // What the app or the gate has ended.
            NO_ERROR | INTERNAL_ERROR | CANCEL => {}
            _ if opened.is_some_and(|opened| now.saturating_sub(opened) < YOUNG) => self.spoil(),
            _ => {}
        }
    }

    /// Follows a stream no longer; when it was opened, if it had no answer.
    fn close(&mut self, stream: u32) -> Option<Duration> {
        let at = self.open.iter().position(|(open, _)| *open == stream)?;
        Some(self.open.swap_remove(at).1)
    }

    fn spoil(&mut self) {
        self.spoilt = self.spoilt.saturating_add(1);
        if self.spoilt > SPOILT_MAX && u64::from(self.spoilt) * 2 > u64::from(self.streams) {
            self.note(Flood::Resets);
        }
    }

    fn count(&mut self, kind: Kind) {
        let Some(count) = self.counts.get_mut(kind as usize) else {
            return;
        };
        *count = count.saturating_add(1);
        if *count <= kind.budget() {
            return;
        }
        if matches!(kind, Kind::Ping | Kind::WindowUpdate) && self.credit >= CREDIT_BYTES {
            *count -= 1;
            self.credit -= CREDIT_BYTES;
            return;
        }
        self.note(Flood::Frames(kind));
    }

    fn note(&mut self, flood: Flood) {
        self.flood.get_or_insert(flood);
    }
}
