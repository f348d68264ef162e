//! Who the client is when trusted proxies stand between: `X-Forwarded-For` or `Forwarded` (RFC 7239), read from right to
//! left past the hops that are trusted. Pure.
//!
//! Which of the two is read, the config says. To read whichever is there would let a client choose its address: a proxy
//! passes the one that it does not write on as the client sent it, and nothing in a request tells which one that is.

use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::config::ForwardedHeader;

/// More hops than any honest chain has; what lies beyond is not read.
const HOPS_MAX: usize = 32;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client's address, and the hops between it and us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub client: IpAddr,
    /// Whether the direct peer is a trusted proxy: its `X-Forwarded-*` and `X-Request-Id` may be kept.
    pub via_trusted: bool,
    /// Trusted hops between the client and the peer, nearest the client first.
    pub hops: Vec<IpAddr>,
}

/// Reads the chain only if `peer` is trusted. A hop that cannot be parsed ends the walk: the client is then the last
/// address that a trusted hop vouched for, never a bucket that strangers share.
pub fn origin(peer: IpAddr, trusted: &[IpNet], told_by: ForwardedHeader, headers: &HeaderMap) -> Origin {
    let peer = peer.to_canonical();
    if !is_trusted(peer, trusted) {
        return Origin {
            client: peer,
            via_trusted: false,
            hops: Vec::new(),
        };
    }
    let mut client = peer;
    let mut hops = Vec::new();
    let mut step = |address: Option<IpAddr>| match address {
        None => false,
        Some(address) => {
            if client != peer {
                hops.push(client);
            }
            client = address;
            is_trusted(address, trusted)
        }
    };
    let name = match told_by {
        ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
        ForwardedHeader::Forwarded => FORWARDED,
    };
    let lines = headers.get_all(name).iter().rev().map(http::HeaderValue::as_bytes);
    let _all_trusted = match told_by {
        ForwardedHeader::XForwardedFor => {
            let nodes = lines.flat_map(|line| line.rsplit(|&byte| byte == b','));
            nodes.take(HOPS_MAX).all(|node| step(parse_node(node)))
        }
        ForwardedHeader::Forwarded => {
            let elements = lines.flat_map(|line| elements(line).into_iter().rev());
            elements.take(HOPS_MAX).all(|element| step(forwarded_for(element)))
        }
    };
    hops.reverse();
    Origin {
        client,
        via_trusted: true,
        hops,
    }
}

pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The elements of one line of `Forwarded`. They may hold strings in quotes (RFC 7239 section 4), in which a comma is part of a
/// value: a client can put one into a host name. A line whose quotes do not end is one that nobody can read.
fn elements(line: &[u8]) -> Vec<&[u8]> {
    split_unquoted(line, b',').unwrap_or_else(|| vec![b""])
}

/// Splits at `separator` outside of quoted strings. `None`: a string does not end.
fn split_unquoted(text: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let parts = text.split(|&byte| {
        let separates = byte == separator && !is_quoted;
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
        separates
    });
    let parts: Vec<&[u8]> = parts.collect();
    (!is_quoted).then_some(parts)
}

/// The `for` parameter of one element of `Forwarded`.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    split_unquoted(element, b';')?.into_iter().find_map(|pair| {
        let pair = pair.trim_ascii();
        let (name, value) = pair.split_at_checked(4)?;
        name.eq_ignore_ascii_case(b"for=").then(|| parse_node(value)).flatten()
    })
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `"[2001:db8::1]:80"`; IPv4-mapped addresses are unwrapped.
fn parse_node(token: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(token.trim_ascii()).ok()?;
    let text = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(text);
    let bracketed = || {
        text.strip_prefix('[')?
            .strip_suffix(']')?
            .parse::<std::net::Ipv6Addr>()
            .ok()
            .map(IpAddr::V6)
    };
    let address = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
        .or_else(bracketed)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    use ForwardedHeader::{Forwarded, XForwardedFor};

    const XFF: &str = "x-forwarded-for";

    type Line = (&'static str, &'static str);

    fn found(peer: &str, told_by: ForwardedHeader, lines: &[Line]) -> Origin {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8:ffff::/48".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        origin(peer.parse().unwrap(), &trusted, told_by, &headers)
    }

    fn client(peer: &str, told_by: ForwardedHeader, lines: &[Line]) -> String {
        found(peer, told_by, lines).client.to_string()
    }

    #[test]
    fn the_first_untrusted_hop_from_the_right_is_the_client() {
        let cases: &[(&str, &[Line], &str)] = &[
            ("192.0.2.9", &[(XFF, "198.51.100.1")], "192.0.2.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[(XFF, "198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", &[(XFF, "1.1.1.1, 198.51.100.1, 10.2.3.4")], "198.51.100.1"),
            (
                "10.0.0.1",
                &[(XFF, "1.1.1.1"), (XFF, "198.51.100.1 ,10.2.3.4")],
                "198.51.100.1",
            ),
            ("10.0.0.1", &[(XFF, "10.9.9.9, 10.2.3.4")], "10.9.9.9"),
            ("10.0.0.1", &[(XFF, "junk")], "10.0.0.1"),
            ("10.0.0.1", &[(XFF, "198.51.100.1, junk, 10.2.3.4")], "10.2.3.4"),
            ("10.0.0.1", &[(XFF, "")], "10.0.0.1"),
            ("10.0.0.1", &[(XFF, "198.51.100.1:4711")], "198.51.100.1"),
            ("10.0.0.1", &[(XFF, "[2001:db8::7]:4711")], "2001:db8::7"),
            ("10.0.0.1", &[(XFF, "2001:db8::7")], "2001:db8::7"),
            ("::ffff:10.0.0.1", &[(XFF, "::ffff:198.51.100.1")], "198.51.100.1"),
            ("2001:db8:ffff::1", &[(XFF, "[2001:db8::7]")], "2001:db8::7"),
        ];
        for (peer, lines, wanted) in cases {
            assert_eq!(client(peer, XForwardedFor, lines), *wanted, "{peer} {lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_the_same_way() {
        let cases: &[(&[Line], &str)] = &[
            (
                &[("forwarded", "for=1.1.1.1, for=\"[2001:db8::7]:99\";proto=https")],
                "2001:db8::7",
            ),
            (&[("forwarded", "proto=https;For=198.51.100.1")], "198.51.100.1"),
            (&[("forwarded", "for=_hidden")], "10.0.0.1"),
            (&[("forwarded", "for=9.9.9.9, for=10.2.3.4")], "9.9.9.9"),
            (&[("forwarded", "by=9.9.9.9")], "10.0.0.1"),
            // What a client wrote into its host name is no address.
            (
                &[("forwarded", "for=198.51.100.1;proto=https;host=\"a,for=6.6.6.6;x=b\"")],
                "198.51.100.1",
            ),
            (
                &[(
                    "forwarded",
                    "host=\"a\\\";for=6.6.6.6,for=7.7.7.7;x=\";for=198.51.100.1",
                )],
                "198.51.100.1",
            ),
            (&[("forwarded", "for=9.9.9.9;host=\"a,for=6.6.6.6")], "10.0.0.1"),
        ];
        for (lines, wanted) in cases {
            assert_eq!(client("10.0.0.1", Forwarded, lines), *wanted, "{lines:?}");
        }
    }

    #[test]
    fn field_that_the_proxy_does_not_write_is_never_believed() {
        let both = [("forwarded", "for=9.9.9.9"), (XFF, "198.51.100.1")];
        assert_eq!(client("10.0.0.1", XForwardedFor, &both), "198.51.100.1");
        assert_eq!(client("10.0.0.1", Forwarded, &both), "9.9.9.9");
        // Nor in the absence of the other.
        assert_eq!(client("10.0.0.1", XForwardedFor, &both[..1]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", Forwarded, &both[1..]), "10.0.0.1");
    }

    #[test]
    fn a_very_long_chain_is_not_read_to_its_end() {
        let chain: &'static str = vec!["10.0.0.2"; 5000].join(", ").leak();
        assert_eq!(client("10.0.0.1", XForwardedFor, &[(XFF, chain)]), "10.0.0.2");
    }

    #[test]
    fn hops_between_client_and_peer_are_kept_in_order() {
        let chain = [(XFF, "6.6.6.6, 198.51.100.1, 10.0.0.3, 10.0.0.2")];
        let origin = found("10.0.0.1", XForwardedFor, &chain);
        assert_eq!(origin.client.to_string(), "198.51.100.1");
        let hops: Vec<String> = origin.hops.iter().map(ToString::to_string).collect();
        assert_eq!(hops, ["10.0.0.3", "10.0.0.2"]);
    }
}
