//! What a request must be before it is forwarded: its target, its host, its framing fields, its upgrade. Pure, but for
//! the random part of a request id.

use std::fmt::Write as _;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, MAX_FORWARDS, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING,
    UPGRADE, VIA,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use hyper::upgrade::OnUpgrade;

use super::address::Origin;
use super::config::Caps;
use super::connection::Connection;
use super::error::Error;
use super::metrics::Local;
use super::worker::Worker;
use super::{headers, target};

/// The request's id: the trusted proxy's, or a new one of 32 hex digits.
pub(super) fn id(worker: &Worker, fields: &HeaderMap, via_trusted: bool) -> HeaderValue {
    let kept = if via_trusted {
        headers::acceptable_request_id(fields)
    } else {
        None
    };
    headers::seldom_twice(kept.unwrap_or_else(|| {
        let random = u128::from(worker.random()) << 64 | u128::from(worker.random());
        let mut text = [0; 32];
        // The lengths fit, and hex digits are a valid value.
        let _ = hex::encode_to_slice(random.to_be_bytes(), &mut text);
        HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("none"))
    }))
}

/// Replaces the target by its normalised origin form and returns the host that was asked for. The absolute form wins
/// over `Host` (RFC 9112 section 3.2.2); `:authority` and `Host` must agree (RFC 9113 section 8.3.1).
pub(super) fn take_target(parts: &mut Parts) -> Result<HeaderValue, Error> {
    let host = host(parts);
    let path = match parts.uri.path_and_query() {
        Some(given) if given.as_str() == "*" => given.clone(),
        Some(given) => normalised(given)?,
        None => PathAndQuery::from_static("/"),
    };
    parts.uri = Uri::from(path);
    host
}

fn normalised(given: &PathAndQuery) -> Result<PathAndQuery, Error> {
    let path = target::normalise(given.path()).map_err(|refused| Error::BadRequest(refused.0))?;
    let std::borrow::Cow::Owned(path) = path else {
        return Ok(given.clone());
    };
    let whole = given
        .query()
        .map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    PathAndQuery::try_from(whole).map_err(|_| Error::BadRequest("the target is not valid"))
}

fn host(parts: &Parts) -> Result<HeaderValue, Error> {
    let mut fields = parts.headers.get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Error::BadRequest("there is more than one Host header"));
    }
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = match (authority, field) {
        (Some(authority), Some(field))
            if parts.version == Version::HTTP_2 && field.as_bytes() != authority.as_bytes() =>
        {
            return Err(Error::BadRequest("Host and :authority differ"));
        }
        // RFC 9112 section 3.2.3: the authority form is for CONNECT alone.
        (Some(_), _) if parts.uri.scheme().is_none() && parts.method != Method::CONNECT => {
            return Err(Error::BadRequest("the target must be a path that starts with \"/\""));
        }
        (Some(_), Some(field)) if !target::is_valid_host(field.as_bytes()) => {
            return Err(Error::BadRequest("the Host header is not valid"));
        }
        (Some(authority), _) => {
            HeaderValue::try_from(authority).map_err(|_| Error::BadRequest("the host is not valid"))?
        }
        (None, Some(field)) => field.clone(),
        (None, None) if parts.version <= Version::HTTP_10 => HeaderValue::from_static("localhost"),
        (None, None) => return Err(Error::BadRequest("the Host header is missing")),
    };
    if target::is_valid_host(host.as_bytes()) {
        Ok(host)
    } else {
        Err(Error::BadRequest("the host is not valid"))
    }
}

/// Checks what must hold for every request that is forwarded.
pub(super) fn check(parts: &Parts, caps: &Caps, via: &HeaderValue, counts: &Local) -> Result<(), Error> {
    if matches!(parts.method, Method::TRACE | Method::CONNECT) {
        return Err(Error::MethodRefused(parts.method.clone()));
    }
    if parts.uri.path() == "*" && parts.method != Method::OPTIONS {
        return Err(Error::BadRequest("the target \"*\" is for OPTIONS only"));
    }
    let (fields, bytes) = (parts.headers.len(), headers::size_of(&parts.headers));
    counts.header(fields, bytes);
    if fields > caps.max_headers || bytes > caps.max_header_size {
        return Err(Error::HeadersTooLarge {
            limit_bytes: caps.max_header_size,
            limit_count: caps.max_headers,
        });
    }
    if let Some(expectation) = parts.headers.get(EXPECT)
        && !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Error::ExpectationFailed);
    }
    if parts.headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(Error::BadRequest("there is more than one Content-Length"));
    }
    // hyper takes any list whose last coding is chunked; the app would be told "chunked" alone (RFC 9112 section 6.1).
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (!coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some())
    {
        return Err(Error::BadRequest(
            "the only transfer coding that is understood is one \"chunked\"",
        ));
    }
    let signature = via.as_bytes();
    if parts
        .headers
        .get_all(VIA)
        .iter()
        .any(|line| memchr::memmem::find(line.as_bytes(), signature).is_some())
    {
        return Err(Error::Loop);
    }
    Ok(())
}

/// Counts this hop (RFC 9110 section 7.6.2); of the methods that have it, TRACE is refused anyway.
pub(super) fn count_hop(parts: &mut Parts) -> Result<(), Error> {
    if parts.method != Method::OPTIONS {
        return Ok(());
    }
    let Some(field) = parts.headers.get(MAX_FORWARDS) else {
        return Ok(());
    };
    let left: Option<u64> = field.to_str().ok().and_then(|text| text.parse().ok());
    match left {
        None => Err(Error::BadRequest("Max-Forwards is not a number")),
        Some(0) => Err(Error::LastHop),
        Some(left) => {
            parts.headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            Ok(())
        }
    }
}

/// Where client certificates are required, the certificate was checked for the name of the handshake: a request for
/// another host is sent away (RFC 9110 section 15.5.20).
pub(super) fn check_server_name(server_name: Option<&str>, host: &HeaderValue) -> Result<(), Error> {
    let Some(wanted) = server_name else { return Ok(()) };
    let host = host.as_bytes();
    let name = match host.iter().rposition(|&byte| byte == b':') {
        Some(colon) if host.last() != Some(&b']') => host.get(..colon).unwrap_or(host),
        _ => host,
    };
    if name.eq_ignore_ascii_case(wanted.as_bytes()) {
        Ok(())
    } else {
        Err(Error::Misdirected)
    }
}

/// How a client asks for another protocol.
#[derive(Debug)]
pub(super) enum Upgrade {
    /// `Upgrade` in HTTP/1.1.
    Switch(HeaderValue),
    /// Extended CONNECT in HTTP/2 (RFC 8441): the stream becomes the tunnel.
    Stream {
        protocol: HeaderValue,
        stream: OnUpgrade,
        /// The `Sec-WebSocket-Key` that we asked the app with: the client has none to check the answer by.
        key: HeaderValue,
    },
}

impl Upgrade {
    pub(super) fn protocol(&self) -> &HeaderValue {
        match self {
            Self::Switch(protocol) | Self::Stream { protocol, .. } => protocol,
        }
    }

    /// Whether a 101 with these fields switches to what was asked for (RFC 9110 section 7.8), and, where we asked in the
    /// client's place, proves that it was meant (RFC 6455 section 4.1).
    pub(super) fn is_granted(&self, answer: &HeaderMap) -> bool {
        let is_switched = headers::has_token(answer, &CONNECTION, "upgrade") && same_protocol(answer, self.protocol());
        match self {
            Self::Switch(_) => is_switched,
            Self::Stream { key, .. } => {
                let proof = answer.get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
                is_switched && proof == Some(accept_of(key).as_bytes())
            }
        }
    }
}

/// Takes a wish for another protocol out of the request. An extended CONNECT for WebSocket becomes the GET of RFC 6455
/// that it stands for; other protocols stay CONNECT and are refused.
pub(super) fn take_upgrade(worker: &Worker, parts: &mut Parts) -> Option<Upgrade> {
    match parts.version {
        Version::HTTP_11 => {
            let is_wanted = headers::has_token(&parts.headers, &CONNECTION, "upgrade");
            let protocol = parts.headers.get(UPGRADE).filter(|_| is_wanted)?;
            // RFC 9113 section 3.1: HTTP/2 over TCP by Upgrade is obsolete.
            let mut wished = protocol.as_bytes().split(|&byte| byte == b',');
            let is_h2c = wished.any(|one| one.trim_ascii().eq_ignore_ascii_case(b"h2c"));
            (!is_h2c).then(|| Upgrade::Switch(protocol.clone()))
        }
        Version::HTTP_2 if parts.method == Method::CONNECT => {
            let protocol = parts.extensions.get::<hyper::ext::Protocol>()?;
            if !protocol.as_str().eq_ignore_ascii_case("websocket") {
                return None;
            }
            let stream = parts.extensions.remove::<OnUpgrade>()?;
            parts.method = Method::GET;
            // Base64 is always a valid value.
            let key = HeaderValue::try_from(BASE64_STANDARD.encode(random_bytes(worker))).ok()?;
            parts.headers.insert(SEC_WEBSOCKET_KEY, key.clone());
            Some(Upgrade::Stream {
                protocol: HeaderValue::from_static("websocket"),
                stream,
                key,
            })
        }
        _ => None,
    }
}

/// RFC 6455 section 4.2.2.
fn accept_of(key: &HeaderValue) -> String {
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(digest.finish())
}

fn random_bytes(worker: &Worker) -> [u8; 16] {
    (u128::from(worker.random()) << 64 | u128::from(worker.random())).to_be_bytes()
}

/// Whether the app switched to the protocol that was asked for.
fn same_protocol(answer: &HeaderMap, wanted: &HeaderValue) -> bool {
    answer.get(UPGRADE).is_some_and(|got| {
        let got = got.as_bytes();
        wanted
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(got))
    })
}

/// The value of `X-Forwarded-For`: the client, the trusted hops, the peer.
pub(super) fn chain(connection: &Connection, origin: &Origin) -> HeaderValue {
    if origin.client == connection.peer {
        return connection.peer_text.clone();
    }
    let mut text = origin.client.to_string();
    for hop in origin.hops.iter().chain(std::iter::once(&connection.peer)) {
        let _ = write!(text, ", {hop}");
    }
    HeaderValue::try_from(text).map_or_else(|_| connection.peer_text.clone(), headers::seldom_twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_that_of_the_standard() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_of(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn switch_is_granted_only_by_both_fields() {
        let wish = Upgrade::Switch(HeaderValue::from_static("echo, other"));
        let granted = |lines: &[(&'static str, &'static str)]| {
            let fields = lines.iter().map(|(name, value)| {
                let value = HeaderValue::from_static(value);
                (http::HeaderName::from_static(name), value)
            });
            wish.is_granted(&fields.collect())
        };
        assert!(granted(&[("connection", "keep-alive, Upgrade"), ("upgrade", "Echo")]));
        assert!(!granted(&[("upgrade", "echo")]));
        assert!(!granted(&[("connection", "upgrade")]));
        assert!(!granted(&[("connection", "upgrade"), ("upgrade", "another")]));
        assert!(!granted(&[("connection", "upgrades"), ("upgrade", "echo")]));
    }
}
