//! The PROXY protocol before everything else: who the client is, told by a balancer.

use crate::support::client::{self, Raw};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

const REQUEST: &str = "GET /c HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

fn v2(command: u8, family: u8, addresses: &[u8], additions: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([0x20 | command, family]);
    let length = u16::try_from(addresses.len() + additions.len()).expect("a short header");
    bytes.extend(length.to_be_bytes());
    bytes.extend(addresses);
    bytes.extend(additions);
    bytes
}

/// With a checksum as its only addition.
fn checked(mut header: Vec<u8>, right: bool) -> Vec<u8> {
    let sum = header.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    });
    let at = header.len() - 4;
    header[at..].copy_from_slice(&(!sum ^ u32::from(!right)).to_be_bytes());
    header
}

const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0x01, 0xbb];

async fn start(origin: &Origin) -> Gate {
    let config = Config::before(origin)
        .set("server.proxy_protocol", "true")
        .set("server.timeouts.tls_handshake", r#""3s""#);
    Gate::start(&config).await
}

#[tokio::test]
async fn both_versions_tell_who_the_client_is() {
    let origin = Origin::answering("x").await;
    let gate = start(&origin).await;
    let mut v6 = [0_u8; 36];
    v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    v6[15] = 7;
    let cases: [(&str, Vec<u8>, &str); 9] = [
        (
            "v1 TCP4",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 12345 443\r\n".to_vec(),
            "192.0.2.1",
        ),
        (
            "v1 TCP6",
            b"PROXY TCP6 2001:db8::5 ::1 12345 443\r\n".to_vec(),
            "2001:db8::5",
        ),
        ("v1 UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        ("v2 TCP4", v2(1, 0x11, &V4, &[]), "192.0.2.7"),
        ("v2 TCP6", v2(1, 0x21, &v6, &[]), "2001:db8::7"),
        ("v2 LOCAL", v2(0, 0x00, &[], &[]), "127.0.0.1"),
        ("v2 UNSPEC", v2(1, 0x00, &[], &[]), "127.0.0.1"),
        (
            "v2 with additions",
            v2(1, 0x11, &V4, &[0x04, 0, 2, 9, 9, 0xea, 0, 1, 1]),
            "192.0.2.7",
        ),
        (
            "v2 with its checksum",
            checked(v2(1, 0x11, &V4, &[0x03, 0, 4, 0, 0, 0, 0]), true),
            "192.0.2.7",
        ),
    ];
    for (name, header, client) in cases {
        let before = origin.heads().len();
        let mut raw = Raw::plain(gate.address).await;
        raw.send([header.as_slice(), REQUEST.as_bytes()].concat()).await;
        assert_eq!(raw.answer().await.status, 200, "{name}");
        let seen = origin.heads().split_off(before).concat();
        assert!(seen.contains(&format!("x-real-ip: {client}\r\n")), "{name}: {seen}");
    }
}

#[tokio::test]
async fn anything_else_than_a_valid_header_is_closed_unanswered() {
    let origin = Origin::answering("x").await;
    let gate = start(&origin).await;
    let wrong_sum = checked(v2(1, 0x11, &V4, &[0x03, 0, 4, 0, 0, 0, 0]), false);
    let cases: [(&str, Vec<u8>); 8] = [
        ("none", Vec::new()),
        ("another version", b"PROXY TCP9 192.0.2.1 10.0.0.1 1 2\r\n".to_vec()),
        (
            "a port out of range",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 70000 2\r\n".to_vec(),
        ),
        ("no addresses", b"PROXY TCP4\r\n".to_vec()),
        ("v1 without its end", [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat()),
        ("version 3", v2(0x11, 0x11, &V4, &[])),
        ("short addresses", v2(1, 0x11, &V4[..8], &[])),
        ("a wrong checksum", wrong_sum),
    ];
    for (name, header) in cases {
        let mut raw = Raw::plain(gate.address).await;
        drop(raw.try_send([header.as_slice(), REQUEST.as_bytes()].concat()).await);
        assert!(wait::within(name, raw.try_answer()).await.is_none(), "{name}");
    }
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn header_that_never_comes_is_not_awaited_for_ever() {
    let origin = Origin::answering("x").await;
    let gate = start(&origin).await;
    for begun in ["", "PROXY TCP4 192.0."] {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(begun).await;
        raw.closed().await;
    }
}

#[tokio::test]
async fn limits_and_blocks_follow_the_told_address() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("server.proxy_protocol", "true")
        .set("limits.requests_per_minute", "2");
    let gate = Gate::start(&config).await;
    let ask = async |address: &str| {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(format!("PROXY TCP4 {address} 10.0.0.1 1 2\r\n{REQUEST}"))
            .await;
        raw.answer().await.status
    };
    assert_eq!(ask("192.0.2.1").await, 200);
    assert_eq!(ask("192.0.2.1").await, 200);
    assert_eq!(ask("192.0.2.1").await, 429);
    assert_eq!(ask("192.0.2.2").await, 200);
    let made = gate.admin("POST", "/api/infrastructure/ddos/block/192.0.2.3", "").await;
    assert!((200..300).contains(&made.status), "{made:?}");
    assert_eq!(ask("192.0.2.3").await, 403);
    assert_eq!(client::get(gate.admin, "/health", "").await.status, 200);
}
