//! What a cluster writes about itself: the long page header at the head of each segment, and the head of `pg_control`.
//! Pure: no clock, no I/O.
//!
//! PostgreSQL writes both in the byte order of its machine; the files are not portable, so neither is this.

use super::name::{Lsn, SegmentSize, Timeline};
use super::version::major_of_page_magic;
use crate::repository::layout::Cluster;

/// `XLogLongPageHeaderData` of `access/xlog_internal.h`.
pub const BYTES: usize = 40;
/// `XLP_LONG_HEADER`.
const LONG_HEADER: u16 = 0x0002;

/// What is wrong with a segment's head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("it ends within its header")]
    Short,
    #[error("its first page begins with {0:#06x}, which no supported version of PostgreSQL writes")]
    Magic(u16),
    #[error("its first page has no long header")]
    NotLong,
    #[error("it says that segments have {0} bytes")]
    Size(u32),
}

/// The head of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub cluster: Cluster,
    pub size: SegmentSize,
    /// That of the first record, which may be older than the file's: a promotion copies the segment it happens in.
    pub timeline: Timeline,
    pub first: Lsn,
}

impl Header {
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let magic = u16::from_ne_bytes(field(bytes, 0)?);
        let info = u16::from_ne_bytes(field(bytes, 2)?);
        let major = major_of_page_magic(magic).ok_or(Error::Magic(magic))?;
        if info & LONG_HEADER == 0 {
            return Err(Error::NotLong);
        }
        let size = u32::from_ne_bytes(field(bytes, 32)?);
        Ok(Self {
            cluster: Cluster {
                system_identifier: u64::from_ne_bytes(field(bytes, 24)?).to_string(),
                major,
            },
            size: SegmentSize::new(u64::from(size)).map_err(|_| Error::Size(size))?,
            timeline: Timeline(u32::from_ne_bytes(field(bytes, 4)?)),
            first: Lsn(u64::from_ne_bytes(field(bytes, 8)?)),
        })
    }
}

/// The system identifier, the first field of `global/pg_control`.
#[must_use]
pub fn system_identifier(pg_control: &[u8]) -> Option<String> {
    let number = u64::from_ne_bytes(field(pg_control, 0).ok()?);
    (number != 0).then(|| number.to_string())
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Error> {
    bytes
        .get(at..at + N)
        .and_then(|found| found.try_into().ok())
        .ok_or(Error::Short)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As PostgreSQL 15 wrote it at the head of 000000010000000000000001, on x86-64.
    const FIRST: &str = "10d102000100000000000001000000000000000000000000d85b23d54f61046b0000000100200000";

    #[test]
    fn the_head_of_a_segment_tells_cluster_size_and_place() {
        let header = Header::parse(&hex::decode(FIRST).expect("hexadecimal")).expect("a header");
        assert_eq!(header.cluster.major, 15);
        assert_eq!(header.cluster.system_identifier, 0x6B04_614F_D523_5BD8_u64.to_string());
        assert_eq!(
            (header.size, header.timeline, header.first),
            (SegmentSize::DEFAULT, Timeline(1), Lsn(1 << 24))
        );
    }

    #[test]
    fn what_is_no_segment_is_refused() {
        let good = hex::decode(FIRST).expect("hexadecimal");
        assert_eq!(
            Header::parse(&good[..39]).map(|_| ()),
            Ok(()),
            "the block size is not needed"
        );
        assert_eq!(Header::parse(&good[..35]), Err(Error::Short));
        assert_eq!(Header::parse(&[0; BYTES]), Err(Error::Magic(0)));
        let mut short_page = good.clone();
        short_page[2] = 0x01;
        assert_eq!(Header::parse(&short_page), Err(Error::NotLong));
        let mut odd_size = good;
        odd_size[32] = 1;
        assert_eq!(Header::parse(&odd_size), Err(Error::Size(0x0100_0001)));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(Header::parse(&bytes));
            drop(system_identifier(&bytes));
        }
    }
}
