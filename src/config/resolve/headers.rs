//! `[headers]`: security headers, one key each.

use http::{HeaderName, HeaderValue};

use crate::config::raw::{Node, Section};
use crate::config::values::text;

/// Key, header, default; `""` leaves a header out.
pub(in crate::config) const HEADERS: [(&str, HeaderName, &str); 6] = [
    (
        "strict_transport_security",
        http::header::STRICT_TRANSPORT_SECURITY,
        "max-age=31536000; includeSubDomains",
    ),
    (
        "x_content_type_options",
        http::header::X_CONTENT_TYPE_OPTIONS,
        "nosniff",
    ),
    ("x_frame_options", http::header::X_FRAME_OPTIONS, "DENY"),
    (
        "referrer_policy",
        http::header::REFERRER_POLICY,
        "strict-origin-when-cross-origin",
    ),
    ("content_security_policy", http::header::CONTENT_SECURITY_POLICY, ""),
    ("permissions_policy", HeaderName::from_static("permissions-policy"), ""),
];

pub(super) fn headers(mut section: Section<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for (key, name, default) in HEADERS {
        let value = section.read(key, HeaderValue::from_static(default), value).value;
        if !value.is_empty() {
            headers.push((name, value));
        }
    }
    section.finish();
    headers
}

fn value(node: &Node<'_>) -> Option<HeaderValue> {
    let written = text(node)?;
    // Visible ASCII: RFC 9110 section 5.5 leaves other bytes to guesses of the reader.
    let visible = written.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let value = HeaderValue::from_str(written.trim()).ok().filter(|_| visible);
    if value.is_none() {
        let help = "write visible ASCII characters on one line; \"\" leaves the header out".to_owned();
        node.error("is not a header value", help);
    }
    value
}
