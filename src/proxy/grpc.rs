//! Refusals in the words of gRPC. Its clients read a status from the header fields (RFC 9113 responses that are "trailers
//! only" in the gRPC specification) and would take a problem document for a broken message. Pure.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether these are the fields of a gRPC call; gRPC-Web, which is framed otherwise, is none.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Follows the messages of a call, each a flag, a length of four bytes and so many bytes more, so that a pause between two of
/// them can be told from a message that drips.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Messages {
    /// How much of a message's head has come.
    known: u8,
    length: u32,
    /// What is left of a message.
    rest: u64,
}

/// A flag, and a length in big-endian order.
const MESSAGE_HEAD_BYTES: u8 = 5;

impl Messages {
    /// `bytes` follow those of the last call.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len());
            self.rest -= skipped as u64;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((&byte, after)) = bytes.split_first() else {
                return;
            };
            bytes = after;
            // The flag is shifted out by the four bytes that follow it.
            self.length = self.length << 8 | u32::from(byte);
            self.known += 1;
            if self.known == MESSAGE_HEAD_BYTES {
                self.known = 0;
                self.rest = u64::from(self.length);
            }
        }
    }

    /// Whether the last message is complete, and nothing of the next has come.
    pub(super) fn is_between(&self) -> bool {
        self.known == 0 && self.rest == 0
    }
}

/// The refusal that a problem document stands for. The log and the metrics keep the status of HTTP.
pub(super) fn refusal(problem: Response<Bytes>, message: &str) -> Response<Bytes> {
    let (mut head, _) = problem.into_parts();
    head.headers.insert(CONTENT_TYPE, GRPC);
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(GRPC_STATUS, HeaderValue::from(code(head.status)));
    if let Ok(message) = HeaderValue::try_from(encoded(message)) {
        head.headers.insert(GRPC_MESSAGE, message);
    }
    head.status = StatusCode::OK;
    Response::from_parts(head, Bytes::new())
}

/// As gRPC clients map the answers of proxies (doc/http-grpc-status-mapping.md), but for a body that is too large, which
/// gRPC servers themselves call exhausted.
fn code(status: StatusCode) -> u16 {
    const UNKNOWN: u16 = 2;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    match status {
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => INTERNAL,
        StatusCode::FORBIDDEN => PERMISSION_DENIED,
        StatusCode::PAYLOAD_TOO_LARGE => RESOURCE_EXHAUSTED,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// Visible ASCII but for the percent sign as it is, other bytes as two digits behind one.
fn encoded(message: &str) -> String {
    message
        .bytes()
        .fold(String::with_capacity(message.len()), |mut out, byte| {
            if matches!(byte, b' '..=b'~') && byte != b'%' {
                out.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_itself_is_a_call() {
        for (kind, wanted) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_call(&headers), wanted, "{kind}");
        }
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn pause_between_messages_is_told_from_one_within_a_message() {
        let stream = [
            b"\0\0\0\0\x03abc".as_slice(),
            b"\x01\0\0\0\0",
            b"\0\0\0\x01\0",
            &[7; 256],
        ]
        .concat();
        let ends = [0, 8, 13, stream.len()];
        for piece in [1, 2, 3, 7, 300] {
            let (mut messages, mut at) = (Messages::default(), 0);
            assert!(messages.is_between());
            for part in stream.chunks(piece) {
                messages.pass(part);
                at += part.len();
                assert_eq!(
                    messages.is_between(),
                    ends.contains(&at),
                    "at {at} in pieces of {piece}"
                );
            }
        }
    }

    #[test]
    fn refusal_is_one_block_of_fields() {
        let mut problem = Response::new(Bytes::from_static(b"{}"));
        *problem.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        problem.headers_mut().insert("retry-after", HeaderValue::from(7));
        let answer = refusal(problem, "100 % \u{fc}ber");
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.body().is_empty());
        let headers = answer.headers();
        assert_eq!(headers["grpc-status"], "14");
        assert_eq!(headers["grpc-message"], "100 %25 %C3%BCber");
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(headers["retry-after"], "7");
    }
}
