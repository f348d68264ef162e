//! The header work of one request: who the client is, the normalised target, the fields to the app and to the client.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark prints its figures and may fail"
)]

use std::hint::black_box;
use std::net::IpAddr;

use foregate::clock::Clock;
use foregate::proxy::address::origin;
use foregate::proxy::config::ForwardedHeader;
use foregate::proxy::headers::{Forwarding, for_client, for_upstream};
use foregate::proxy::target::normalise;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const ROUNDS: usize = 11;
const TIMES: u32 = 200_000;

/// What a browser sends, about.
const BROWSER: [(&str, &str); 11] = [
    ("host", "app.example"),
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    ),
    (
        "accept",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    ),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("connection", "keep-alive"),
    ("cookie", "session=0123456789abcdef0123456789abcdef; theme=dark"),
    ("referer", "https://app.example/"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
    ("x-forwarded-for", "198.51.100.7, 10.0.0.3"),
];

/// What an app answers, about.
const APP: [(&str, &str); 5] = [
    ("content-type", "text/html; charset=utf-8"),
    ("content-length", "1234"),
    ("set-cookie", "session=0123; HttpOnly; Secure"),
    ("cache-control", "no-store"),
    ("date", "Mon, 23 Nov 2026 12:00:00 GMT"),
];

fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair =
        |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    lines.iter().map(pair).collect()
}

fn forwarding(via: &HeaderValue) -> Forwarding<'_> {
    Forwarding {
        client: HeaderValue::from_static("198.51.100.7"),
        chain: HeaderValue::from_static("198.51.100.7, 10.0.0.3, 10.0.0.1"),
        via_trusted: true,
        scheme: HeaderValue::from_static("https"),
        host: HeaderValue::from_static("app.example"),
        request_id: HeaderValue::from_static("0123456789abcdef0123456789abcdef"),
        via,
        upgrade: None,
    }
}

/// Prints the median over rounds of what one call of `work` costs.
fn report(what: &str, mut work: impl FnMut()) {
    let clock = Clock::system();
    let mut rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let before = clock.tick();
            (0..TIMES).for_each(|_| work());
            clock.tick().saturating_sub(before) / TIMES
        })
        .collect();
    rounds.sort_unstable();
    let (least, median) = (rounds.first(), rounds.get(ROUNDS / 2));
    println!(
        "{what}: {:?} (fastest {:?})",
        median.expect("rounds"),
        least.expect("rounds")
    );
}

fn main() {
    let (request, response) = (fields(&BROWSER), fields(&APP));
    let via = HeaderValue::from_static("1.1 fg-00000000");
    let security: Vec<(HeaderName, HeaderValue)> = ["x-content-type-options", "x-frame-options", "referrer-policy"]
        .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("value")))
        .into();
    let peer: IpAddr = [10, 0, 0, 1].into();
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];

    report("client address behind a trusted proxy", || {
        drop(black_box(origin(
            peer,
            &trusted,
            ForwardedHeader::XForwardedFor,
            black_box(&request),
        )))
    });
    report("ordinary target", || {
        drop(black_box(normalise(black_box("/api/v1/sessions/current"))))
    });
    report("target with dots and escapes", || {
        drop(black_box(normalise(black_box("/api/../a//b/%7euser/./x"))))
    });
    report("copy of a request's fields (in the next row too)", || {
        drop(black_box(request.clone()))
    });
    report("fields to the app", || {
        let mut copy = request.clone();
        for_upstream(&mut copy, forwarding(&via));
        drop(black_box(copy));
    });
    report("copy of a response's fields (in the next row too)", || {
        drop(black_box(response.clone()))
    });
    report("fields to the client", || {
        let mut copy = response.clone();
        for_client(&mut copy, &security, None);
        drop(black_box(copy));
    });
}
