//! What counts as one client: an IPv4 address, or an IPv6 network of `ipv6_prefix` bits.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// The key under which a client is limited, given strikes and blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(IpNet);

impl Client {
    /// IPv4-mapped IPv6 addresses (RFC 4291 2.5.5.2) count as the IPv4 address they carry.
    #[must_use]
    pub fn of(address: IpAddr, ipv6_prefix: u8) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(IpNet::from(IpAddr::V4(v4))),
            IpAddr::V6(v6) => Self(masked(v6, ipv6_prefix)),
        }
    }

    /// The addresses that belong to this client.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.0
    }
}

fn masked(address: Ipv6Addr, prefix: u8) -> IpNet {
    IpNet::new(IpAddr::V6(address), prefix.min(128))
        .map_or_else(|_| IpNet::from(IpAddr::V6(address)), |network| network.trunc())
}
