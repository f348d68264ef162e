//! The one exit for requests that the app does not answer: an [`Error`] becomes a response whose body is a problem
//! document (RFC 9457) that says what happened, for how long, and under which reference to look it up.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use jiff::Timestamp;

use super::body::ResponseBody;
use super::connection::Connection;
use super::error::{Blame, Error};
use super::flight::Ticket;
use super::metrics::Outcome;
use crate::guard::limit::{Excess, Window};

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Registered by draft-ietf-httpapi-ratelimit-headers.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// The parts of a problem document that differ from error to error.
struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
}

/// The response to `error`. `reference` is the request's id, which the access log carries too.
pub(super) fn response(error: &Error, reference: &HeaderValue, now: Timestamp) -> Response<Bytes> {
    if matches!(error, Error::LastHop) {
        return options();
    }
    let problem = problem(error, now);
    // These, the security headers and the request's id.
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(CONTENT_TYPE, PROBLEM_JSON);
    headers.insert(CACHE_CONTROL, NO_STORE);
    extra_headers(error, now, &mut headers);
    let body = document(&problem, error, reference);
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = problem.status;
    *response.headers_mut() = headers;
    response
}

/// The answer to OPTIONS that goes no further (RFC 9110 section 9.3.7).
fn options() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, METHODS);
    response
}

/// What the problem document says, as one line.
pub(super) fn message(error: &Error, reference: &HeaderValue, now: Timestamp) -> String {
    let reference = reference.to_str().unwrap_or("");
    format!("{} (reference {reference})", problem(error, now).detail)
}

fn problem(error: &Error, now: Timestamp) -> Problem {
    let about_blank = |status: StatusCode, title, detail: String| Problem {
        status,
        kind: "about:blank",
        title,
        detail,
    };
    let said = || error.to_string();
    match error {
        Error::Blocked(entry) => about_blank(StatusCode::FORBIDDEN, "Blocked", blocked_detail(entry, now)),
        Error::Limited(excess) => Problem {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: QUOTA_EXCEEDED,
            title: "Too many requests",
            detail: limited_detail(excess),
        },
        Error::BodyTooLarge { .. } => about_blank(StatusCode::PAYLOAD_TOO_LARGE, "Request too large", said()),
        Error::HeadersTooLarge { .. } => about_blank(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "Request header fields too large",
            said(),
        ),
        Error::BadRequest(_) => about_blank(StatusCode::BAD_REQUEST, "Bad request", said()),
        Error::MethodRefused(_) => about_blank(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", said()),
        Error::ExpectationFailed => about_blank(StatusCode::EXPECTATION_FAILED, "Expectation failed", said()),
        Error::Misdirected => about_blank(StatusCode::MISDIRECTED_REQUEST, "Misdirected request", said()),
        Error::Loop => about_blank(StatusCode::LOOP_DETECTED, "Loop detected", said()),
        Error::LastHop => about_blank(StatusCode::NO_CONTENT, "Last hop", said()),
        Error::RequestTimeout => about_blank(StatusCode::REQUEST_TIMEOUT, "Request timeout", said()),
        Error::Unreachable | Error::BadAnswer => about_blank(StatusCode::BAD_GATEWAY, "Bad gateway", said()),
        Error::UpstreamTimeout => about_blank(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout", said()),
        Error::NoServer { .. } | Error::Held => {
            about_blank(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", said())
        }
        Error::Internal(_) => about_blank(StatusCode::INTERNAL_SERVER_ERROR, "Internal error", said()),
    }
}

fn limited_detail(excess: &Excess) -> String {
    Text::with_capacity(80)
        .text("You sent more than ")
        .number(quota_of(excess, excess.violated))
        .text(" requests per ")
        .text(name_of(excess.violated))
        .text(". Try again in ")
        .number(whole_seconds(excess.retry_after))
        .text(" s.")
        .0
}

fn blocked_detail(entry: &crate::guard::blocklist::Entry, now: Timestamp) -> String {
    let block = &entry.block;
    let until = block.expires_at.map_or_else(
        || "permanently".to_owned(),
        |at| format!("for another {} s", at.duration_since(now).as_secs().max(0)),
    );
    format!(
        "{} is blocked {until}: {}. Block reference: {}.",
        block.network, block.reason, block.reference
    )
}

fn extra_headers(error: &Error, now: Timestamp, headers: &mut HeaderMap) {
    match error {
        Error::Blocked(entry) => {
            if let Some(at) = entry.block.expires_at {
                headers.insert(RETRY_AFTER, HeaderValue::from(at.duration_since(now).as_secs().max(1)));
            }
        }
        Error::Limited(excess) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(excess.retry_after)));
            insert_text(headers, RATE_LIMIT_POLICY, policy_header(excess));
            insert_text(headers, RATE_LIMIT, limit_header(excess));
        }
        Error::NoServer { retry_after_s } => {
            headers.insert(RETRY_AFTER, HeaderValue::from(*retry_after_s));
        }
        Error::Held => {
            headers.insert(RETRY_AFTER, HeaderValue::from(1));
        }
        Error::MethodRefused(_) => {
            headers.insert(ALLOW, METHODS);
        }
        _ => {}
    }
}

/// Closes an HTTP/1.1 connection where the rest of the message is unread or cannot be trusted to be framed as we think.
pub(super) fn close_where_needed(error: &Error, is_shared: bool, headers: &mut HeaderMap) {
    let is_doubtful = matches!(
        error,
        Error::Blocked(_)
            | Error::BodyTooLarge { .. }
            | Error::RequestTimeout
            | Error::BadRequest(_)
            | Error::HeadersTooLarge { .. }
    );
    if is_doubtful && !is_shared {
        headers.insert(CONNECTION, CLOSE);
    }
}

/// How a refused request is counted.
pub(super) fn outcome(error: &Error) -> Outcome {
    match error {
        Error::Blocked(_) => Outcome::Blocked,
        Error::Limited(_) => Outcome::Limited,
        Error::BodyTooLarge { .. } | Error::HeadersTooLarge { .. } => Outcome::Oversized,
        other if other.blame() == Blame::Client => Outcome::Refused,
        _ => Outcome::UpstreamError,
    }
}

/// The answer of a plain-HTTP listener that only sends clients to HTTPS.
pub(super) fn redirect(
    connection: &Connection,
    host: Result<HeaderValue, Error>,
    target: &Uri,
    ticket: Ticket,
) -> Response<ResponseBody> {
    let now = connection.worker.now();
    let location = host.and_then(|host| location(&host, connection.worker.shared.https_port, target));
    let mut answer = match location {
        Ok(location) => {
            let mut answer = Response::new(Bytes::new());
            *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
            answer.headers_mut().insert(LOCATION, location);
            answer
        }
        Err(error) => response(&error, &ticket.request_id, now.wall),
    };
    answer.headers_mut().insert(CONNECTION, CLOSE);
    ticket.status.set(answer.status().as_u16());
    ticket.outcome.set(Outcome::Refused);
    let patience = connection.worker.snapshot().config.server.timeouts.response_idle;
    answer.map(|bytes| ResponseBody::own(bytes, patience, ticket))
}

fn location(host: &HeaderValue, https_port: u16, target: &Uri) -> Result<HeaderValue, Error> {
    let host = host.to_str().map_err(|_| Error::BadRequest("the host is not valid"))?;
    // The port of the plain listener means nothing to HTTPS; the colons of a bracketed IPv6 address stay.
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let port = if https_port == 443 {
        String::new()
    } else {
        format!(":{https_port}")
    };
    HeaderValue::try_from(format!("https://{name}{port}{target}"))
        .map_err(|_| Error::BadRequest("the target is not valid"))
}

fn insert_text(headers: &mut HeaderMap, name: HeaderName, text: String) {
    // The text is made of digits and fixed words; a refusal without this header would still be right.
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

/// Text that is put together without the machinery of `format!`: of a refusal by a limit, which a flood asks for again and
/// again, that was a fifth of all that the gate did.
struct Text(String);

impl Text {
    fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    fn text(mut self, text: &str) -> Self {
        self.0.push_str(text);
        self
    }

    fn number(self, number: impl itoa::Integer) -> Self {
        self.text(itoa::Buffer::new().format(number))
    }

    /// RFC 8259 section 7.
    fn json_string(mut self, text: &str) -> Self {
        push_json_string(&mut self.0, text);
        self
    }

    /// The name of a window as an item of a list (RFC 9651 section 3.1).
    fn item(self, window: Window) -> Self {
        let comma = if self.0.is_empty() { "\"" } else { ",\"" };
        self.text(comma).text(name_of(window)).text("\"")
    }
}

/// `"minute";q=100;w=60,"hour";q=1000;w=3600`
fn policy_header(excess: &Excess) -> String {
    let mut text = Text::with_capacity(48);
    for (window, seconds) in [(Window::Minute, ";w=60"), (Window::Hour, ";w=3600")] {
        let quota = quota_of(excess, window);
        if quota > 0 {
            text = text.item(window).text(";q=").number(quota).text(seconds);
        }
    }
    text.0
}

/// `"minute";r=0;t=1,"hour";r=12`
fn limit_header(excess: &Excess) -> String {
    let mut text = Text::with_capacity(40);
    for (window, left) in [
        (Window::Minute, excess.remaining_minute),
        (Window::Hour, excess.remaining_hour),
    ] {
        if quota_of(excess, window) > 0 {
            text = text.item(window).text(";r=").number(left);
            if window == excess.violated {
                text = text.text(";t=").number(whole_seconds(excess.retry_after));
            }
        }
    }
    text.0
}

fn document(problem: &Problem, error: &Error, reference: &HeaderValue) -> Vec<u8> {
    let mut json = Text::with_capacity(320)
        .text("{\"type\":\"")
        .text(problem.kind)
        .text("\",\"title\":\"")
        .text(problem.title)
        .text("\",\"status\":")
        .number(problem.status.as_u16())
        .text(",\"detail\":")
        .json_string(&problem.detail)
        .text(",\"reference\":")
        .json_string(reference.to_str().unwrap_or(""));
    if let Error::Limited(excess) = error {
        json = json
            .text(",\"violated-policies\":[\"")
            .text(name_of(excess.violated))
            .text("\"]");
    }
    json.text("}\n").0.into_bytes()
}

/// RFC 8259 section 7.
fn push_json_string(json: &mut String, text: &str) {
    json.push('"');
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        json.push_str(text);
        json.push('"');
        return;
    }
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            control if control < ' ' => json.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => json.push(other),
        }
    }
    json.push('"');
}

fn name_of(window: Window) -> &'static str {
    match window {
        Window::Minute => "minute",
        Window::Hour => "hour",
    }
}

fn quota_of(excess: &Excess, window: Window) -> u32 {
    let quota = match window {
        Window::Minute => excess.quota.per_minute,
        Window::Hour => excess.quota.per_hour,
    };
    quota.map_or(0, std::num::NonZeroU32::get)
}

/// Rounded up, so that a client that obeys is not refused again.
fn whole_seconds(duration: std::time::Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;
    use std::time::Duration;

    fn excess() -> Excess {
        Excess {
            violated: Window::Minute,
            retry_after: Duration::from_millis(1500),
            quota: crate::guard::limit::Quota {
                per_minute: NonZeroU32::new(100),
                per_hour: NonZeroU32::new(1000),
            },
            remaining_minute: 0,
            remaining_hour: 12,
        }
    }

    #[test]
    fn a_limited_request_is_told_which_policy_and_how_long() {
        let reference = HeaderValue::from_static("ref-1");
        let answer = response(&Error::Limited(Box::new(excess())), &reference, Timestamp::UNIX_EPOCH);
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers()["retry-after"], "2");
        assert_eq!(
            answer.headers()["ratelimit-policy"],
            "\"minute\";q=100;w=60,\"hour\";q=1000;w=3600"
        );
        assert_eq!(answer.headers()["ratelimit"], "\"minute\";r=0;t=2,\"hour\";r=12");
        let document: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(document["type"], QUOTA_EXCEEDED);
        assert_eq!(document["violated-policies"][0], "minute");
        assert_eq!(document["reference"], "ref-1");
    }

    #[test]
    fn text_in_a_problem_document_is_escaped() {
        let mut json = String::new();
        push_json_string(&mut json, "a\"b\\c\n\u{1}é");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "a\"b\\c\n\u{1}é");
    }
}
