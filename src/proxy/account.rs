//! The account of one request: metrics, and one JSON line in the access log. Formatting allocates nothing: it appends to
//! the worker's buffer.

use std::io::Write as _;
use std::time::Duration;

use http::uri::PathAndQuery;
use jiff::Timestamp;

use super::flight::Flight;
use super::worker::Worker;
use crate::telemetry::access_log::BUFFER_BYTES;

pub(super) fn write(worker: &Worker, flight: &Flight) {
    let ended = worker.now();
    let took = ended.tick.saturating_sub(flight.started);
    let local = &worker.local;
    local.request(flight.outcome.get(), flight.status.get());
    local.request_seconds.observe(took.as_secs_f64());
    if let Some(upstream) = flight.upstream.get() {
        local.upstream_seconds.observe(upstream.as_secs_f64());
    }
    local.bytes_received.inc_by(flight.received.get());
    local.bytes_sent.inc_by(flight.sent.get());
    if worker.shared.access_log.is_on() {
        let mut buffer = worker.log_buffer.borrow_mut();
        line(&mut buffer, flight, ended.wall, took);
        if buffer.len() >= BUFFER_BYTES {
            worker.shared.access_log.submit(&mut buffer);
        }
    }
}

fn line(buffer: &mut Vec<u8>, flight: &Flight, wall: Timestamp, took: Duration) {
    let upstream_ms = flight.upstream.get().map_or(-1.0, |took| took.as_secs_f64() * 1e3);
    // Writing to a Vec cannot fail.
    drop(write!(
        buffer,
        "{{\"time\":\"{wall:.3}\",\"client\":\"{}\",\"method\":",
        flight.client
    ));
    string(buffer, flight.method.as_str().as_bytes());
    buffer.extend_from_slice(b",\"host\":");
    string(buffer, flight.host.as_bytes());
    buffer.extend_from_slice(b",\"path\":");
    // Without the query: it may carry codes and tokens.
    string(
        buffer,
        flight.target.as_ref().map_or("*", PathAndQuery::path).as_bytes(),
    );
    drop(write!(
        buffer,
        ",\"protocol\":\"{}\",\"status\":{},\"outcome\":\"{}\",\"requestBytes\":{},\"responseBytes\":{},\"durationMs\":{:.3},\"upstreamMs\":{:.3},\"requestId\":",
        if flight.http2 { "h2" } else { "http/1.1" },
        flight.status.get(),
        flight.outcome.get().name(),
        flight.received.get(),
        flight.sent.get(),
        took.as_secs_f64() * 1e3,
        upstream_ms,
    ));
    string(buffer, flight.request_id.as_bytes());
    buffer.extend_from_slice(b"}\n");
}

/// A JSON string of foreign bytes: what is not printable ASCII is escaped as the code point of its byte, so that a
/// log line can neither be broken nor forged.
fn string(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.push(b'"');
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => buffer.extend_from_slice(&[b'\\', byte]),
            b' '..=b'~' => buffer.push(byte),
            other => drop(write!(buffer, "\\u{:04x}", other)),
        }
    }
    buffer.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_bytes_cannot_break_out_of_a_log_line() {
        let mut buffer = Vec::new();
        string(&mut buffer, b"/a\"b\\c\n\xff\x00");
        let parsed: String = serde_json::from_slice(&buffer).unwrap();
        assert_eq!(parsed, "/a\"b\\c\n\u{ff}\u{0}");
        assert!(!buffer.contains(&b'\n'));
    }
}
