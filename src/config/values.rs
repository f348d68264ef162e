//! How single values are read: each reader says what is wrong with a value, where it stands, and what to write.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use jiff::fmt::friendly::{SpanParser, SpanPrinter};

use super::raw::{Node, nearest};

pub(super) fn text<'d>(node: &Node<'d>) -> Option<&'d str> {
    let text = node.value.as_str();
    if text.is_none() {
        node.error(
            format_args!("must be a string, not {}", node.kind()),
            "write it in double quotes".to_owned(),
        );
    }
    text
}

/// A string that is not empty.
pub(super) fn filled_text<'d>(node: &Node<'d>) -> Option<&'d str> {
    let text = text(node)?;
    if text.trim().is_empty() {
        node.error("must not be empty", None);
        return None;
    }
    Some(text)
}

pub(super) fn flag(node: &Node<'_>) -> Option<bool> {
    let flag = node.value.as_bool();
    if flag.is_none() {
        node.error(format_args!("must be true or false, not {}", node.kind()), None);
    }
    flag
}

/// An integer within `range`.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&Node<'_>) -> Option<T>
where
    T: TryFrom<i128> + PartialOrd + std::fmt::Display,
{
    move |node| {
        let Some(written) = node.value.as_integer() else {
            node.error(format_args!("must be an integer, not {}", node.kind()), None);
            return None;
        };
        let number = i128::from_str_radix(written.as_str(), written.radix())
            .ok()
            .and_then(|n| T::try_from(n).ok());
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                node.error(
                    format_args!("must be between {} and {}", range.start(), range.end()),
                    None,
                );
                None
            }
        }
    }
}

/// A number with or without a fraction, within `range`.
pub(super) fn number(range: RangeInclusive<f64>) -> impl Fn(&Node<'_>) -> Option<f64> {
    move |node| {
        let written = match (node.value.as_float(), node.value.as_integer()) {
            (Some(float), _) => float.as_str().parse::<f64>().ok(),
            (None, Some(integer)) => integer.as_str().parse::<f64>().ok().filter(|_| integer.radix() == 10),
            (None, None) => {
                node.error(format_args!("must be a number, not {}", node.kind()), None);
                return None;
            }
        };
        let number = written.filter(|number| range.contains(number));
        if number.is_none() {
            node.error(
                format_args!("must be between {:?} and {:?}", range.start(), range.end()),
                None,
            );
        }
        number
    }
}

/// A duration within `range`, in jiff's friendly format; days count 24 hours.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Node<'_>) -> Option<Duration> {
    move |node| {
        let help = || "write a number and a unit, as \"500ms\", \"60s\", \"10m\" or \"24h\"".to_owned();
        let Some(text) = node.value.as_str() else {
            node.error(
                format_args!("must be a duration in quotes, not {}", node.kind()),
                help(),
            );
            return None;
        };
        let days_are_24_hours = jiff::SpanRelativeTo::days_are_24_hours();
        let duration = SpanParser::new()
            .parse_span(text)
            .and_then(|span| span.to_duration(days_are_24_hours))
            .ok()
            .and_then(|duration| Duration::try_from(duration).ok());
        let Some(duration) = duration else {
            node.error("is not a duration", help());
            return None;
        };
        if !range.contains(&duration) {
            let (low, high) = (show_duration(*range.start()), show_duration(*range.end()));
            node.error(format_args!("must be between {low} and {high}"), None);
            return None;
        }
        Some(duration)
    }
}

pub(super) fn show_duration(duration: Duration) -> String {
    SpanPrinter::new().unsigned_duration_to_string(&duration)
}

/// A size in bytes within `range`.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&Node<'_>) -> Option<u64> {
    move |node| {
        let help = || "write a number and a unit, as \"512B\", \"32KiB\" or \"10MiB\"".to_owned();
        let Some(text) = node.value.as_str() else {
            node.error(format_args!("must be a size in quotes, not {}", node.kind()), help());
            return None;
        };
        let Ok(size) = ByteSize::from_str(text) else {
            node.error("is not a size", help());
            return None;
        };
        if !range.contains(&size.as_u64()) {
            let (low, high) = (show_size(*range.start()), show_size(*range.end()));
            node.error(format_args!("must be between {low} and {high}"), None);
            return None;
        }
        Some(size.as_u64())
    }
}

/// The same, or nothing where the text is empty.
pub(super) fn optional_size(range: RangeInclusive<u64>) -> impl Fn(&Node<'_>) -> Option<Option<u64>> {
    let size = size(range);
    move |node| {
        if node.value.as_str() == Some("") {
            return Some(None);
        }
        size(node).map(Some)
    }
}

/// The largest unit that says it exactly.
pub(super) fn show_size(bytes: u64) -> String {
    let units = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1_u64 << 10),
    ];
    let exact = units
        .iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    exact.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// One of a few words.
pub(super) fn word<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Node<'_>) -> Option<T> {
    move |node| {
        let written = text(node)?;
        let found = words.iter().find(|(name, _)| *name == written);
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
            let list = names
                .iter()
                .map(|name| format!("\"{name}\""))
                .collect::<Vec<_>>()
                .join(", ");
            node.error(format_args!("must be one of {list}"), nearest(written, &names));
        }
        found.map(|(_, value)| *value)
    }
}

/// A list; every element is read, so that all mistakes are found.
pub(super) fn list<'d, T>(read: impl Fn(&Node<'d>) -> Option<T>) -> impl Fn(&Node<'d>) -> Option<Vec<T>> {
    move |node| {
        let Some(elements) = node.elements() else {
            node.error(
                format_args!("must be a list, not {}", node.kind()),
                "write it in square brackets".to_owned(),
            );
            return None;
        };
        let values: Vec<Option<T>> = elements.iter().map(&read).collect();
        values.into_iter().collect()
    }
}

/// An address and a port.
pub(super) fn socket_address(node: &Node<'_>) -> Option<SocketAddr> {
    let written = text(node)?;
    let help = match written.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => format!("add a port, as \"{address}:443\""),
        Ok(IpAddr::V6(address)) => format!("add a port, as \"[{address}]:443\""),
        Err(_) if written.starts_with(':') => format!("write the address too, as \"0.0.0.0{written}\""),
        Err(_) => "write an IP address and a port, as \"0.0.0.0:443\" or \"[::]:443\"".to_owned(),
    };
    match written.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 || address.ip().is_loopback() => Some(address),
        Ok(_) => {
            node.error(
                "has port 0, which lets the system choose one",
                "write the port to listen on".to_owned(),
            );
            None
        }
        Err(_) => {
            node.error("is not an address with a port", help);
            None
        }
    }
}

/// A network, or an address that stands for itself alone.
pub(super) fn network(node: &Node<'_>) -> Option<IpNet> {
    let written = text(node)?;
    if let Ok(address) = written.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    let Ok(network) = written.parse::<IpNet>() else {
        node.error(
            "is not a network",
            "write it as \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.7\"".to_owned(),
        );
        return None;
    };
    if network != network.trunc() {
        node.warn(
            "has bits set beyond its prefix",
            format!("it is read as \"{}\"", network.trunc()),
        );
    }
    Some(canonical(network.trunc()))
}

/// An IPv4 network written as IPv4-mapped IPv6 (RFC 4291 2.5.5.2) is compared as what it is.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network.addr().to_canonical() {
        IpAddr::V4(address) if network.addr().is_ipv6() => network
            .prefix_len()
            .checked_sub(96)
            .and_then(|prefix| IpNet::new(address.into(), prefix).ok()),
        _ => None,
    };
    mapped.unwrap_or(network)
}

/// A path that can be asked for, with or without a query.
pub(super) fn url_path(node: &Node<'_>) -> Option<String> {
    let written = text(node)?;
    if !written.starts_with('/') {
        node.error("must start with \"/\"", format!("write \"/{}\"", excerpt(written)));
        return None;
    }
    // RFC 3986 leaves nothing else unencoded; a fragment is never sent.
    let sendable = written.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !sendable || written.parse::<http::uri::PathAndQuery>().is_err() {
        let help = "write other characters percent-encoded, a space as %20".to_owned();
        node.error("holds characters that no URL path has", help);
        return None;
    }
    Some(written.to_owned())
}

/// The beginning of paths, as it is compared with the normalised paths of requests.
pub(super) fn path_prefix(node: &Node<'_>) -> Option<String> {
    let path = url_path(node)?;
    if path.contains('?') {
        node.error(
            "must not hold a query",
            "paths are compared without their query".to_owned(),
        );
        return None;
    }
    let dots = path.split('/').any(|segment| segment == "." || segment == "..");
    if dots || path.contains("//") {
        let help = "paths are compared after \"//\", \"/./\" and \"/../\" have been resolved".to_owned();
        node.error("matches no request", help);
        return None;
    }
    Some(path)
}

/// A file, relative to `base`, the directory of the configuration.
pub(super) fn file(base: &Path) -> impl Fn(&Node<'_>) -> Option<PathBuf> {
    move |node| {
        let written = filled_text(node)?;
        if written.contains('\0') {
            node.error("must not hold a NUL byte", None);
            return None;
        }
        Some(base.join(written))
    }
}

/// A file, or `""` for none.
pub(super) fn optional_file(base: &Path) -> impl Fn(&Node<'_>) -> Option<Option<PathBuf>> {
    move |node| {
        if node.is_empty_string() {
            Some(None)
        } else {
            file(base)(node).map(Some)
        }
    }
}

/// The hexadecimal SHA-256 of something.
pub(super) fn sha256(node: &Node<'_>) -> Option<[u8; 32]> {
    let written = text(node)?;
    let mut digest = [0; 32];
    if hex::decode_to_slice(written, &mut digest).is_err() {
        // Hidden: it may well be the token itself.
        let help = "`foregate token` makes a token and prints this line".to_owned();
        node.error_hidden("must be a SHA-256: 64 hexadecimal digits", help);
        return None;
    }
    Some(digest)
}

/// As much of what was written as a message should repeat.
pub(super) fn excerpt(written: &str) -> String {
    written.chars().take(60).flat_map(char::escape_debug).collect()
}
