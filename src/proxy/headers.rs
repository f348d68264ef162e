//! Which header fields pass, which are removed, which are added, in both directions (RFC 9110 section 7.6). Pure.
//!
//! What comes in is stripped before anything is added, so that a client can neither forge our fields nor make a
//! `Connection` header delete them.

use http::header::{CONNECTION, COOKIE, HOST, TE, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const CONNECTION_TE: HeaderValue = HeaderValue::from_static("te");
const CONNECTION_UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// A request id from a trusted proxy is kept up to this length.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What is told to the app about where the request came from.
#[derive(Debug)]
pub struct Forwarding<'a> {
    /// The client's address in text.
    pub client: HeaderValue,
    /// The chain for `X-Forwarded-For`: the client, then trusted hops and the peer.
    pub chain: HeaderValue,
    /// From a trusted proxy, whose `X-Forwarded-Proto` and `-Host` are kept.
    pub via_trusted: bool,
    pub scheme: HeaderValue,
    /// The host that the client asked for, as it goes into `Host`.
    pub host: HeaderValue,
    pub request_id: HeaderValue,
    /// `1.1 <pseudonym>` of this process.
    pub via: &'a HeaderValue,
    /// The protocol of a valid upgrade request.
    pub upgrade: Option<HeaderValue>,
}

/// Turns the header fields of a client's request into those for the app.
pub fn for_upstream(headers: &mut HeaderMap, forwarding: Forwarding<'_>) {
    let wants_trailers = has_token(headers, &TE, "trailers");
    let kept = forwarding
        .via_trusted
        .then(|| (headers.remove(&X_FORWARDED_PROTO), headers.remove(&X_FORWARDED_HOST)));
    strip(headers, is_removed_from_requests);
    join_cookie_crumbs(headers);

    let (proto, host) = kept.unwrap_or((None, None));
    headers.insert(X_FORWARDED_PROTO, proto.unwrap_or(forwarding.scheme));
    headers.insert(X_FORWARDED_HOST, host.unwrap_or_else(|| forwarding.host.clone()));
    headers.insert(HOST, forwarding.host);
    headers.insert(X_FORWARDED_FOR, forwarding.chain);
    headers.insert(X_REAL_IP, forwarding.client);
    headers.insert(X_REQUEST_ID, forwarding.request_id);
    headers.append(VIA, forwarding.via.clone());
    if let Some(protocol) = forwarding.upgrade {
        headers.insert(CONNECTION, CONNECTION_UPGRADE);
        headers.insert(UPGRADE, protocol);
    } else if wants_trailers {
        headers.insert(CONNECTION, CONNECTION_TE);
        headers.insert(TE, TRAILERS);
    }
}

/// Turns the header fields of the app's response into those for the client; the app's own security headers win.
pub fn for_client(headers: &mut HeaderMap, security: &[(HeaderName, HeaderValue)], upgrade: Option<HeaderValue>) {
    strip(headers, is_removed_from_responses);
    secure(headers, security);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, CONNECTION_UPGRADE);
        headers.insert(UPGRADE, protocol);
    }
}

/// Adds the security headers that are not there yet.
pub fn secure(headers: &mut HeaderMap, security: &[(HeaderName, HeaderValue)]) {
    for (name, value) in security {
        if !headers.contains_key(name) {
            headers.insert(name.clone(), value.clone());
        }
    }
}

/// Trailers are forwarded, never merged into headers, and carry nothing that frames, routes or authenticates
/// (RFC 9110 section 6.5.1).
pub fn for_trailers(trailers: &mut HeaderMap) {
    strip(trailers, |name| {
        is_removed_from_requests(name)
            || matches!(
                name,
                "content-length"
                    | "host"
                    | "authorization"
                    | "cookie"
                    | "set-cookie"
                    | "content-encoding"
                    | "content-type"
                    | "content-range"
                    | "trailer"
                    | "cache-control"
                    | "max-forwards"
                    | "age"
                    | "location"
                    | "date"
                    | "via"
                    | "www-authenticate"
            )
    });
}

/// Keeps a value that differs from message to message out of HPACK's table (RFC 7541 section 6.2.3): one entry for each of
/// them pushes out what does repeat, and h2 compares a new one with all that are left.
pub(super) fn seldom_twice(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// The request id of a trusted proxy, if it is short and made of visible characters.
pub fn acceptable_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(&X_REQUEST_ID)?;
    let plain = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_graphic());
    (id.len() <= REQUEST_ID_BYTES_MAX && plain(id.as_bytes())).then(|| id.clone())
}

/// Whether a comma-separated header contains `token`, ignoring case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|line| {
        line.as_bytes()
            .split(|&byte| byte == b',')
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

/// Bytes that the header fields count for: name, value and 32 for each (RFC 9113 section 6.5.2).
pub fn size_of(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32)
        .sum()
}

/// Removes the fields that `Connection` nominates, those that `is_removed` names, and their underscore and dot aliases.
fn strip(headers: &mut HeaderMap, is_removed: fn(&str) -> bool) {
    let mut removed: SmallVec<[HeaderName; 8]> = SmallVec::new();
    for line in headers.get_all(CONNECTION) {
        for token in line.as_bytes().split(|&byte| byte == b',') {
            if let Ok(name) = HeaderName::from_bytes(token.trim_ascii())
                && !is_never_nominated(&name)
            {
                removed.push(name);
            }
        }
    }
    for name in headers.keys() {
        let text = name.as_str();
        if is_removed(text) || is_alias(text, is_removed) {
            removed.push(name.clone());
        }
    }
    for name in removed {
        while headers.remove(&name).is_some() {}
    }
}

/// End-to-end fields that a client must not be able to have deleted (RFC 9110 section 7.6.1).
fn is_never_nominated(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host"
            | "content-length"
            | "content-type"
            | "authorization"
            | "cookie"
            | "set-cookie"
            | "cache-control"
            | "date"
            | "origin"
            | "location"
            | "www-authenticate"
            | "strict-transport-security"
            | "content-security-policy"
    )
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authenticate"
    )
}

/// What the gate says itself, and what only somebody before the app may say: whatever is called forwarded comes from the gate alone.
fn is_removed_from_requests(name: &str) -> bool {
    is_hop_by_hop(name)
        || name.starts_with("x-forwarded-")
        || matches!(
            name,
            "proxy-authorization"
                | "proxy"
                | "forwarded"
                | "x-real-ip"
                | "x-request-id"
                | "expect"
                | "http2-settings"
                | "true-client-ip"
                | "x-client-ip"
                | "x-original-url"
                | "x-rewrite-url"
        )
}

fn is_removed_from_responses(name: &str) -> bool {
    is_hop_by_hop(name)
}

/// CGI-like apps read `X_Real_IP` and `X.Real.IP` as `X-Real-IP`.
fn is_alias(name: &str, is_removed: fn(&str) -> bool) -> bool {
    const LONGEST: usize = 64;
    if name.len() > LONGEST || !name.bytes().any(|byte| byte == b'_' || byte == b'.') {
        return false;
    }
    let dashed = name.replace(['_', '.'], "-");
    is_removed(&dashed)
        || matches!(
            dashed.as_str(),
            "host" | "content-length" | "authorization" | "cookie" | "via"
        )
}

/// HTTP/2 may split `Cookie` (RFC 9113 section 8.2.3); HTTP/1.1 wants one line.
fn join_cookie_crumbs(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    // Values that were valid one by one are valid joined.
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarding(via: &HeaderValue) -> Forwarding<'_> {
        Forwarding {
            client: HeaderValue::from_static("192.0.2.1"),
            chain: HeaderValue::from_static("192.0.2.1"),
            via_trusted: false,
            scheme: HeaderValue::from_static("https"),
            host: HeaderValue::from_static("app.example"),
            request_id: HeaderValue::from_static("id-1"),
            via,
            upgrade: None,
        }
    }

    fn through(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let via = HeaderValue::from_static("1.1 fg");
        for_upstream(&mut headers, forwarding(&via));
        headers
    }

    #[test]
    fn forged_forwarding_fields_and_their_aliases_never_reach_the_app() {
        let headers = through(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "7.7.7.7"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x.real.ip", "6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("proxy", "http://evil"),
            ("x-forwarded-port", "1"),
            ("my_header", "kept"),
        ]);
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
        assert_eq!(headers["x-real-ip"], "192.0.2.1");
        assert_eq!(headers["my_header"], "kept");
        for gone in ["x_forwarded_for", "x.real.ip", "forwarded", "proxy", "x-forwarded-port"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn connection_cannot_delete_what_the_app_relies_on() {
        let headers = through(&[
            (
                "connection",
                "close, x-real-ip, X-Forwarded-For, host, authorization, cookie, x-custom",
            ),
            ("authorization", "Basic x"),
            ("cookie", "a=1"),
            ("x-custom", "hop"),
        ]);
        assert_eq!(headers["authorization"], "Basic x");
        assert_eq!(headers["cookie"], "a=1");
        assert_eq!(headers["x-real-ip"], "192.0.2.1");
        assert_eq!(headers["host"], "app.example");
        assert!(!headers.contains_key("x-custom") && !headers.contains_key("connection"));
    }

    #[test]
    fn only_trailers_of_te_is_forwarded() {
        let headers = through(&[("te", "gzip, trailers")]);
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["connection"], "te");
        assert!(!through(&[("te", "gzip")]).contains_key("te"));
    }

    #[test]
    fn cookie_crumbs_become_one_line() {
        let headers = through(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn the_apps_own_security_headers_win() {
        let mut headers = HeaderMap::new();
        headers.insert("x-frame-options", HeaderValue::from_static("SAMEORIGIN"));
        headers.append("set-cookie", HeaderValue::from_static("a=1"));
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        let deny = (
            HeaderName::from_static("x-frame-options"),
            HeaderValue::from_static("DENY"),
        );
        let nosniff = (
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        );
        for_client(&mut headers, &[deny, nosniff], None);
        assert_eq!(headers["x-frame-options"], "SAMEORIGIN");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn trailers_lose_what_frames_or_authenticates() {
        let mut trailers = HeaderMap::new();
        for name in [
            "grpc-status",
            "content-length",
            "authorization",
            "set-cookie",
            "www-authenticate",
            "via",
            "x-forwarded-for",
        ] {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("0"));
        }
        for_trailers(&mut trailers);
        assert_eq!(
            trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["grpc-status"]
        );
    }
}
