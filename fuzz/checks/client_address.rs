//! The walk over `X-Forwarded-For` and `Forwarded`: what strangers wrote is never believed beyond the first of them.

use foregate::proxy::address::{is_trusted, origin};
use foregate::proxy::config::ForwardedHeader;
use http::{HeaderMap, HeaderValue};

pub(crate) fn check(bytes: &[u8]) {
    let trusted = [
        "10.0.0.0/8".parse().expect("a network"),
        "2001:db8::/32".parse().expect("a network"),
    ];
    let mut headers = HeaderMap::new();
    for line in bytes.split(|&byte| byte == b'\n').take(8) {
        let Some((&choice, value)) = line.split_first() else {
            continue;
        };
        let name = if choice % 2 == 0 {
            "x-forwarded-for"
        } else {
            "forwarded"
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let stranger = "192.0.2.1".parse().expect("an address");
    let told_by = match bytes.len() % 2 {
        0 => ForwardedHeader::XForwardedFor,
        _ => ForwardedHeader::Forwarded,
    };
    let untrusted = origin(stranger, &trusted, told_by, &headers);
    assert_eq!((untrusted.client, untrusted.via_trusted), (stranger, false));
    assert!(untrusted.hops.is_empty());

    let peer = "10.0.0.1".parse().expect("an address");
    let found = origin(peer, &trusted, told_by, &headers);
    assert!(found.via_trusted && found.hops.len() <= 32);
    assert!(found.hops.iter().all(|hop| is_trusted(*hop, &trusted)), "{found:?}");
    assert_eq!(found.client, found.client.to_canonical());
}
