//! Header fields: nothing that a client sends survives in a field that is ours, and what it may not have deleted stays.

use foregate::proxy::headers::{Forwarding, for_client, for_trailers, for_upstream, has_token, size_of};
use http::header::{AUTHORIZATION, CONNECTION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

const OURS: [&str; 6] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-real-ip",
    "x-request-id",
    "host",
];

fn fields(bytes: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in bytes.split(|&byte| byte == b'\n').take(64) {
        let at = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(at);
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name),
            HeaderValue::from_bytes(value.get(1..).unwrap_or_default()),
        ) {
            fields.append(name, value);
        }
    }
    fields
}

pub(crate) fn check(bytes: &[u8]) {
    let given = fields(bytes);
    let ours = HeaderValue::from_static("ours");
    let via = HeaderValue::from_static("1.1 fg");
    let mut request = given.clone();
    let forwarding = Forwarding {
        client: ours.clone(),
        chain: ours.clone(),
        via_trusted: false,
        scheme: ours.clone(),
        host: ours.clone(),
        request_id: ours.clone(),
        via: &via,
        upgrade: None,
    };
    for_upstream(&mut request, forwarding);
    for name in OURS {
        assert!(request.get_all(name).iter().eq([&ours]), "{name}: {request:?}");
    }
    for name in request.keys() {
        let dashed = name.as_str().replace(['_', '.'], "-");
        assert!(dashed == name.as_str() || !OURS.contains(&dashed.as_str()), "{name}");
    }
    for name in [
        "transfer-encoding",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "proxy",
        "forwarded",
    ] {
        assert!(!request.contains_key(name), "{name}");
    }
    assert_eq!(request.get(&AUTHORIZATION), given.get(&AUTHORIZATION));
    assert_eq!(request.contains_key(&COOKIE), given.contains_key(&COOKIE));
    assert!(!request.contains_key(&CONNECTION) || has_token(&request, &CONNECTION, "te"));

    let mut answer = given.clone();
    for_client(&mut answer, &[], None);
    assert!(!answer.contains_key(&CONNECTION) && size_of(&answer) <= size_of(&given));
    let mut trailers = given;
    for_trailers(&mut trailers);
    assert!(!trailers.contains_key("content-length") && !trailers.contains_key("host"));
}
