//! The PROXY protocol, versions 1 and 2, in front of everything else on a connection: who the client is, told by a load
//! balancer. Parsed by `ppp`; what it leaves to its callers is here: bounds, and the checksum.
//!
//! Source: the PROXY protocol specification of HAProxy, sections 2.1 and 2.2.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use ppp::v2::{Addresses as V2Addresses, Type};
use ppp::{HeaderResult, PartialResult as _, v1};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Version 2 may carry 65,535 bytes of additions; honest ones carry a few hundred.
const HEADER_BYTES_MAX: usize = 4096;

/// What the header told.
#[derive(Debug)]
pub(super) struct Header {
    /// `None`: the balancer speaks for itself (LOCAL, UNKNOWN): the peer is the client.
    pub(super) source: Option<SocketAddr>,
    /// Bytes that followed the header in the same read.
    pub(super) rest: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection ended inside the header")]
    Ended,
    #[error("the header is longer than {HEADER_BYTES_MAX} bytes")]
    TooLong,
    #[error("these bytes are not a PROXY protocol header")]
    Malformed,
    #[error("the header's checksum does not match its bytes")]
    Checksum,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reads a header of either version. The caller bounds the time.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Header, Error> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        if let Some((source, length)) = parse(&bytes)? {
            return Ok(Header {
                source,
                rest: Bytes::from(bytes.split_off(length)),
            });
        }
        if bytes.len() >= HEADER_BYTES_MAX {
            return Err(Error::TooLong);
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(Error::Ended);
        }
    }
}

/// The source and the header's length; `None`: more bytes are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let result = HeaderResult::parse(bytes);
    if result.is_incomplete() {
        return Ok(None);
    }
    match result {
        // `ppp` takes a space for the CR in front of the LF, and a CR for a space.
        HeaderResult::V1(Ok(header)) if !is_line(&header.header) => Err(Error::Malformed),
        HeaderResult::V1(Ok(header)) => {
            let source = match header.addresses {
                v1::Addresses::Tcp4(tcp) => Some(SocketAddr::new(IpAddr::V4(tcp.source_address), tcp.source_port)),
                v1::Addresses::Tcp6(tcp) => Some(SocketAddr::new(IpAddr::V6(tcp.source_address), tcp.source_port)),
                v1::Addresses::Unknown => None,
            };
            Ok(Some((source, header.header.len())))
        }
        HeaderResult::V2(Ok(header)) => {
            check_sum(&header)?;
            let source = match (header.command, header.addresses) {
                (ppp::v2::Command::Local, _) => None,
                (_, V2Addresses::IPv4(ip)) => Some(SocketAddr::new(IpAddr::V4(ip.source_address), ip.source_port)),
                (_, V2Addresses::IPv6(ip)) => Some(SocketAddr::new(IpAddr::V6(ip.source_address), ip.source_port)),
                _ => None,
            };
            Ok(Some((source, header.len())))
        }
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Err(Error::Malformed),
    }
}

/// One line, which ends with CRLF and has no CR before it (section 2.1).
fn is_line(header: &str) -> bool {
    header.strip_suffix("\r\n").is_some_and(|line| !line.contains('\r'))
}

/// PP2_TYPE_CRC32C: the CRC-32C of the whole header with this field's value set to zero.
fn check_sum(header: &ppp::v2::Header<'_>) -> Result<(), Error> {
    let whole = header.as_bytes();
    for addition in header.tlvs() {
        let addition = addition.map_err(|_| Error::Malformed)?;
        if addition.kind != u8::from(Type::CRC32C) {
            continue;
        }
        let value: [u8; 4] = addition.value.as_ref().try_into().map_err(|_| Error::Malformed)?;
        // The value's place in the whole: it is a slice of it, so it can be found by its distance from the end.
        let mut zeroed = whole.to_vec();
        let at = position(header, whole.len()).ok_or(Error::Malformed)?;
        zeroed.get_mut(at..at + 4).ok_or(Error::Malformed)?.fill(0);
        if crc32c(&zeroed) != u32::from_be_bytes(value) {
            return Err(Error::Checksum);
        }
    }
    Ok(())
}

/// Where the checksum's value begins.
fn position(header: &ppp::v2::Header<'_>, length: usize) -> Option<usize> {
    let additions: Vec<_> = header.tlvs().filter_map(Result::ok).collect();
    let total: usize = additions.iter().map(|addition| 3 + addition.value.len()).sum();
    let mut at = length.checked_sub(total)?;
    for addition in &additions {
        if addition.kind == u8::from(Type::CRC32C) {
            return Some(at + 3);
        }
        at += 3 + addition.value.len();
    }
    None
}

/// CRC-32C (Castagnoli), reflected; bit by bit, since a header is short and rare.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(additions: &[u8]) -> Vec<u8> {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
        let length = u16::try_from(12 + additions.len()).unwrap();
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0x01, 0xbb]);
        bytes.extend_from_slice(additions);
        bytes
    }

    fn source(bytes: &[u8]) -> String {
        match parse(bytes) {
            Ok(Some((source, _))) => source.map_or_else(|| "none".to_owned(), |source| source.to_string()),
            Ok(None) => "more".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn both_versions_tell_the_client() {
        assert_eq!(
            source(b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\nGET"),
            "192.0.2.7:12345"
        );
        assert_eq!(
            source(b"PROXY TCP6 2001:db8::7 ::1 12345 443\r\n"),
            "[2001:db8::7]:12345"
        );
        assert_eq!(source(b"PROXY UNKNOWN\r\n"), "none");
        assert_eq!(source(b"PROXY TCP4 192.0"), "more");
        assert_eq!(source(&v2(&[])), "192.0.2.7:12345");
        assert_eq!(source(&v2(&[0x04, 0, 2, 9, 9])), "192.0.2.7:12345");
        assert_eq!(source(b"GET / HTTP/1.1\r\n"), Error::Malformed.to_string());
    }

    #[test]
    fn first_version_is_one_line_that_ends_as_the_specification_says() {
        for odd in [
            "PROXY TCP6 2001:db8::25 ::1 12345 45 \n",
            "PROXY TCP4 192.0.2.7\r10.0.0.1 12345 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\n",
        ] {
            let found = source(odd.as_bytes());
            assert!(
                found == Error::Malformed.to_string() || found == "more",
                "{odd:?}: {found}"
            );
        }
    }

    #[test]
    fn a_wrong_checksum_is_refused_and_a_right_one_accepted() {
        let mut good = v2(&[0x04, 0, 1, 9, 0x03, 0, 4, 0, 0, 0, 0]);
        let sum = crc32c(&good);
        let at = good.len() - 4;
        good[at..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(source(&good), "192.0.2.7:12345");
        good[at] ^= 1;
        assert_eq!(source(&good), Error::Checksum.to_string());
    }

    #[tokio::test]
    async fn bytes_after_the_header_are_kept() {
        let mut stream: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n\x16\x03\x01";
        let header = read(&mut stream).await.unwrap();
        assert_eq!(&header.rest[..], b"\x16\x03\x01");
        let mut cut: &[u8] = b"PROXY TCP4 192";
        assert!(matches!(read(&mut cut).await, Err(Error::Ended)));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), versioned in any::<bool>()) {
            let bytes = if versioned { v2(&bytes) } else { bytes };
            drop(parse(&bytes));
        }
    }
}
