//! The PROXY protocol: a header that is whole stays what it is whatever follows it, and one that is cut is never taken for
//! another.

use foregate::proxy::proxy_protocol::parse;

pub(crate) fn check(bytes: &[u8]) {
    let Ok(Some((source, length))) = parse(bytes) else {
        return;
    };
    assert!(length <= bytes.len());
    let header = &bytes[..length];
    assert_eq!(parse(header).expect("a header"), Some((source, length)));
    let mut followed = header.to_vec();
    followed.extend(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(parse(&followed).expect("a header"), Some((source, length)));
    for cut in 0..length {
        if let Ok(Some(found)) = parse(&header[..cut]) {
            panic!("{found:?} in the first {cut} of {length} bytes");
        }
    }
}
