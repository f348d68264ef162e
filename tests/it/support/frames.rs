//! HTTP/2 by hand: single frames as an attacker would write them, and just enough HPACK to say and read what matters.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::wait;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

/// RFC 9113 section 7.
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Frames {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

/// What became of a stream, or of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// RFC 7541 section 6.2.2, without Huffman: each field as literal that is never indexed.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            integer(&mut out, text.len());
            out.extend(text.as_bytes());
        }
    }
    out
}

/// RFC 7541 section 5.1 with a prefix of seven bits.
fn integer(out: &mut Vec<u8>, value: usize) {
    if value < 127 {
        out.push(u8::try_from(value).expect("below 127"));
        return;
    }
    out.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).expect("below 128") | 128);
        rest /= 128;
    }
    out.push(u8::try_from(rest).expect("below 128"));
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", path),
    ])
}

pub(crate) fn post(path: &str, length: &str) -> Vec<u8> {
    block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", path),
        ("content-length", length),
    ])
}

/// The status at the begin of the first header block of a connection.
pub(crate) fn status(block: &[u8]) -> u16 {
    match block {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        [0x48 | 0x08, length, text @ ..] if length & 0x80 == 0 => std::str::from_utf8(&text[..usize::from(*length)])
            .expect("digits")
            .parse()
            .expect("a status"),
        [0x48 | 0x08, length, text @ ..] => digits(&text[..usize::from(length & 0x7f)]),
        other => panic!("no status in {other:x?}"),
    }
}

/// Three digits in the Huffman code of RFC 7541 appendix B.
fn digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u16> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |shift| u16::from(byte >> shift & 1)))
        .collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let value = |length: usize| bits[at..at + length].iter().fold(0, |sum, bit| sum << 1 | bit);
        let (digit, length) = if value(5) < 3 {
            (value(5), 5)
        } else {
            (value(6) - 0b01_1001 + 3, 6)
        };
        at += length;
        number = number * 10 + digit;
    }
    number
}

impl Frames {
    /// Prior knowledge: preface and empty settings are sent, the peer's are awaited and acknowledged.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, &[]).await
    }

    pub(crate) async fn open_with(address: SocketAddr, settings: &[u8]) -> Self {
        let stream = TcpStream::connect(address).await.expect("the port accepts");
        let mut frames = Self {
            stream,
            buffer: Vec::new(),
        };
        frames.send(PREFACE).await;
        frames.send(&frame(SETTINGS, 0, 0, settings)).await;
        let first = wait::within("settings", frames.next()).await.expect("settings");
        assert_eq!(first.kind, SETTINGS);
        frames.send(&frame(SETTINGS, 1, 0, &[])).await;
        frames
    }

    /// The server's side of a connection that was accepted: the client's preface is awaited, empty settings are sent.
    /// `None`: the client left.
    pub(crate) async fn accepted(mut stream: TcpStream) -> Option<Self> {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await.ok()?;
        assert_eq!(preface, PREFACE);
        let mut frames = Self {
            stream,
            buffer: Vec::new(),
        };
        frames.try_send(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
        Some(frames)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("the peer still reads");
    }

    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        // An attacker's peer may stop reading for ever.
        match tokio::time::timeout(wait::DEADLINE, self.stream.write_all(bytes)).await {
            Ok(written) => written,
            Err(_) => panic!("the peer neither reads nor closes"),
        }
    }

    /// Sends `bytes` again and again until the gate ends the connection; the code that it gave as its reason.
    pub(crate) async fn flood(&mut self, bytes: &[u8]) -> Option<u32> {
        let mut scrap = vec![0; 16 << 10];
        loop {
            // What comes back is read, so that the attack is not throttled by its own deafness.
            while let Ok(count) = self.stream.try_read(&mut scrap) {
                self.buffer.extend(&scrap[..count]);
                if count == 0 {
                    return self.ended().await;
                }
            }
            if self.try_send(bytes).await.is_err() {
                return self.ended().await;
            }
        }
    }

    /// Waits until all that was sent has been read.
    pub(crate) async fn settle(&mut self) {
        self.send(&frame(PING, 0, 0, b"settled?")).await;
        wait::within("the answer to a PING", async {
            loop {
                let frame = self.next().await.expect("the connection goes on");
                assert_ne!(frame.kind, GOAWAY, "the connection ends");
                if frame.kind == PING && frame.payload == b"settled?" {
                    return;
                }
            }
        })
        .await;
    }

    /// `None`: the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let [a, b, c, kind, _flags, s, t, u, v, ..] = *self.buffer.as_slice() {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if self.buffer.len() >= 9 + length {
                    let payload = self.buffer.drain(..9 + length).skip(9).collect();
                    let stream = u32::from_be_bytes([s, t, u, v]);
                    return Some(Frame { kind, stream, payload });
                }
            }
            if self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// What becomes of this stream, other frames being skipped.
    pub(crate) async fn fate(&mut self, stream: u32) -> Fate {
        wait::within("the fate of a stream", async {
            while let Some(frame) = self.next().await {
                let code = |at: usize| {
                    let bytes = frame.payload.get(at..at + 4).expect("an error code");
                    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
                };
                match frame.kind {
                    HEADERS if frame.stream == stream => return Fate::Status(status(&frame.payload)),
                    RST_STREAM if frame.stream == stream => return Fate::Reset(code(0)),
                    GOAWAY => return Fate::GoAway(code(4)),
                    _ => {}
                }
            }
            Fate::Closed
        })
        .await
    }

    /// The code with which the gate resets this stream.
    pub(crate) async fn reset(&mut self, stream: u32) -> u32 {
        wait::within("a reset", async {
            while let Some(frame) = self.next().await {
                assert_ne!(frame.kind, GOAWAY, "the whole connection ends");
                if frame.kind == RST_STREAM && frame.stream == stream {
                    return u32::from_be_bytes(frame.payload.try_into().expect("four bytes"));
                }
            }
            panic!("the connection ended without a reset");
        })
        .await
    }

    /// Reads so many bytes of this stream's body.
    pub(crate) async fn data(&mut self, stream: u32, length: usize) {
        wait::within("a body", async {
            let mut rest = length;
            while rest > 0 {
                let frame = self.next().await.expect("the body comes before the connection ends");
                assert!(frame.kind != RST_STREAM || frame.stream != stream, "{frame:?}");
                if frame.kind == DATA && frame.stream == stream {
                    rest -= frame.payload.len();
                }
            }
        })
        .await;
    }

    /// Reads until the connection ends; the last GOAWAY's code, if there was one.
    pub(crate) async fn ended(&mut self) -> Option<u32> {
        wait::within("the end of the connection", async {
            let mut last = None;
            while let Some(frame) = self.next().await {
                if frame.kind == GOAWAY {
                    last = frame
                        .payload
                        .get(4..8)
                        .map(|code| u32::from_be_bytes(code.try_into().expect("four bytes")));
                }
            }
            last
        })
        .await
    }
}
