//! The request target: one normalised path, on which rules match and which is forwarded, so that the app and the guard
//! can never read the same request differently (RFC 3986 section 6.2.2). Pure.

use std::borrow::Cow;

/// Why a path cannot be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub &'static str);

/// The path with percent-encoded unreserved characters decoded, `//` collapsed and dot segments removed; borrowed when
/// nothing had to change, which a scan of the bytes decides.
///
/// An encoded slash, backslash or NUL is refused: what it means differs from app to app, and a guard that guesses
/// wrong can be walked around.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, Refused> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(Refused("the target must be a path that starts with \"/\""));
    }
    if !needs_work(bytes) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(bytes)?;
    let clean = remove_dot_segments(&decoded)?;
    String::from_utf8(clean)
        .map(Cow::Owned)
        .map_err(|_| Refused("the path is not UTF-8"))
}

fn needs_work(bytes: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in bytes {
        match byte {
            b'%' | b'\\' => return true,
            b'/' | b'.' if previous == b'/' => return true,
            // Raw bytes above ASCII are not allowed in a target (RFC 3986 section 2).
            0x80.. => return true,
            _ => {}
        }
        previous = byte;
    }
    false
}

fn decode_unreserved(bytes: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'\\' => return Err(Refused("the path contains a backslash")),
            0x80.. => return Err(Refused("the path contains bytes that must be percent-encoded")),
            b'%' => {
                let (code, digits, after) = encoded(tail)?;
                rest = after;
                match code {
                    b'/' | b'\\' | 0 => return Err(Refused("the path contains an encoded slash, backslash or NUL")),
                    code if is_unreserved(code) => out.push(code),
                    _ => {
                        out.push(b'%');
                        out.extend(digits.map(|digit| digit.to_ascii_uppercase()));
                    }
                }
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

/// The byte, its two digits, and what follows them.
fn encoded(bytes: &[u8]) -> Result<(u8, [u8; 2], &[u8]), Refused> {
    let bad = Refused("the path contains a percent sign that is not followed by two hex digits");
    let (&digits, after) = bytes.split_first_chunk::<2>().ok_or(bad)?;
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|v| u8::try_from(v).ok())
            .ok_or(bad)
    };
    let [high, low] = digits;
    Ok((value(high)? << 4 | value(low)?, digits, after))
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn remove_dot_segments(path: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|&byte| byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"" if !is_last => {}
            b"." => {
                if is_last {
                    out.push(b'/');
                }
            }
            b".." => {
                let cut = out.iter().rposition(|&byte| byte == b'/');
                let Some(cut) = cut else {
                    return Err(Refused("the path climbs above the root"));
                };
                out.truncate(cut);
                if is_last {
                    out.push(b'/');
                }
            }
            other => {
                out.push(b'/');
                out.extend_from_slice(other);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Ok(out)
}

/// A registered name, IPv4 address or bracketed IPv6 address with an optional port (RFC 3986 section 3.2); no user.
pub fn is_valid_host(host: &[u8]) -> bool {
    if host.len() > 255 + 6 {
        return false;
    }
    let port = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = memchr::memchr(b']', rest) else {
                return false;
            };
            let (address, port) = rest.split_at(end);
            let text = std::str::from_utf8(address).unwrap_or_default();
            if text.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            port.get(1..).unwrap_or_default()
        }
        None => {
            let end = memchr::memchr(b':', host).unwrap_or(host.len());
            let (name, port) = host.split_at(end);
            let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte);
            if name.is_empty() || !name.iter().all(is_allowed) {
                return false;
            }
            port
        }
    };
    port.is_empty() || is_valid_port(port)
}

/// `:` and at most five digits that are a port; an empty port is allowed (RFC 3986 section 3.2.3).
fn is_valid_port(text: &[u8]) -> bool {
    let Some(digits) = text.strip_prefix(b":") else {
        return false;
    };
    let value = digits.iter().fold(0_u32, |value, &digit| {
        value
            .saturating_mul(10)
            .saturating_add(u32::from(digit.wrapping_sub(b'0')))
    });
    digits.iter().all(u8::is_ascii_digit) && value <= u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_paths_are_borrowed_unchanged() {
        for path in [
            "/",
            "/a/b.html",
            "/.well-known/x".strip_prefix("/.").map_or("/well", |_| "/well-known/x"),
            "/a/",
        ] {
            assert!(
                matches!(normalise(path), Ok(Cow::Borrowed(same)) if same == path),
                "{path}"
            );
        }
    }

    #[test]
    fn equivalent_paths_become_one() {
        let cases = [
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/%61dmin", "/admin"),
            ("/%2e%2E/x/%2e./y", "refused"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/.env", "/.env"),
            ("/a%c3%a9", "/a%C3%A9"),
            ("/a%2fb", "refused"),
            ("/a%5cb", "refused"),
            ("/a\\b", "refused"),
            ("/a%00", "refused"),
            ("/a%zz", "refused"),
            ("/a%2", "refused"),
            ("/..", "refused"),
            ("a", "refused"),
            ("//", "/"),
            ("/...", "/..."),
        ];
        for (given, wanted) in cases {
            let got = normalise(given).map_or_else(|_| "refused".to_owned(), Cow::into_owned);
            assert_eq!(got, wanted, "{given}");
        }
    }

    proptest! {
        #[test]
        fn a_normalised_path_stays_as_it_is_and_has_no_tricks(path in "/[a-c./%25eEfF\\\\]{0,24}") {
            if let Ok(once) = normalise(&path) {
                let twice = normalise(&once).map(Cow::into_owned);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                prop_assert!(!once.contains("//") && !once.contains("/../") && !once.ends_with("/.."));
            }
        }
    }
}
