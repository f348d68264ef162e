//! What counts as one client: an IPv4 address, or an IPv6 network of `ipv6_prefix` bits; and sets of networks that
//! are asked about on every request. Pure: knows neither clock nor I/O.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// Clients beyond `max_tracked_clients` share their quota with the neighbours in a network of this many bits.
const NEIGHBOURHOOD_BITS_V4: u8 = 24;
const NEIGHBOURHOOD_BITS_V6: u8 = 48;

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

    /// The network that this client shares a quota with when it cannot be tracked by itself. Never smaller than
    /// the client.
    pub(super) fn neighbourhood(&self) -> Self {
        let bits = match self.0 {
            IpNet::V4(_) => NEIGHBOURHOOD_BITS_V4,
            IpNet::V6(_) => NEIGHBOURHOOD_BITS_V6,
        };
        IpNet::new(self.0.addr(), bits.min(self.0.prefix_len())).map_or(*self, |network| Self(network.trunc()))
    }

    /// Distinct for distinct clients: family and length, then the address.
    pub(super) fn key(&self) -> (u16, u128) {
        match self.0 {
            IpNet::V4(v4) => (0x0400 | u16::from(v4.prefix_len()), u128::from(v4.addr().to_bits())),
            IpNet::V6(v6) => (0x0600 | u16::from(v6.prefix_len()), v6.addr().to_bits()),
        }
    }
}

fn masked(address: Ipv6Addr, prefix: u8) -> IpNet {
    IpNet::new(IpAddr::V6(address), prefix.min(128))
        .map_or_else(|_| IpNet::from(IpAddr::V6(address)), |network| network.trunc())
}

/// A set of networks, as sorted disjoint ranges: a question is a binary search in a few cache lines, without lock or
/// allocation. A trie would also say which network matched, which nobody asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    /// IPv4-mapped IPv6 networks count as the IPv4 network they carry.
    #[must_use]
    pub fn new<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match canonical(*network) {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self {
            v4: disjoint(v4),
            v6: disjoint(v6),
        }
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => meets(&self.v4, v4.to_bits(), v4.to_bits()),
            IpAddr::V6(v6) => meets(&self.v6, v6.to_bits(), v6.to_bits()),
        }
    }

    /// Whether any address of `network` is in the set.
    #[must_use]
    pub fn overlaps(&self, network: IpNet) -> bool {
        match canonical(network) {
            IpNet::V4(net) => meets(&self.v4, net.network().to_bits(), net.broadcast().to_bits()),
            IpNet::V6(net) => meets(&self.v6, net.network().to_bits(), net.broadcast().to_bits()),
        }
    }

    /// Whether `network` lies wholly inside one of the networks.
    #[must_use]
    pub fn covers(&self, network: IpNet) -> bool {
        match canonical(network) {
            IpNet::V4(net) => holds(&self.v4, net.network().to_bits(), net.broadcast().to_bits()),
            IpNet::V6(net) => holds(&self.v6, net.network().to_bits(), net.broadcast().to_bits()),
        }
    }
}

fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let Some(bits) = v6.prefix_len().checked_sub(96) else {
        return network;
    };
    v6.addr()
        .to_ipv4_mapped()
        .and_then(|v4| Ipv4Net::new(v4, bits).ok())
        .map_or(network, IpNet::V4)
}

fn disjoint<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into_boxed_slice()
}

/// Whether the range `first..=last` shares an address with one of `ranges`.
fn meets<T: Ord + Copy>(ranges: &[(T, T)], first: T, last: T) -> bool {
    let candidates = ranges.partition_point(|range| range.0 <= last);
    candidates
        .checked_sub(1)
        .and_then(|index| ranges.get(index))
        .is_some_and(|range| range.1 >= first)
}

/// Whether the range `first..=last` lies inside one of `ranges`.
fn holds<T: Ord + Copy>(ranges: &[(T, T)], first: T, last: T) -> bool {
    let candidates = ranges.partition_point(|range| range.0 <= first);
    candidates
        .checked_sub(1)
        .and_then(|index| ranges.get(index))
        .is_some_and(|range| range.1 >= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Client {
        Client::of(address.parse().expect("an address"), 64)
    }

    fn networks(list: &[&str]) -> Networks {
        let parsed: Vec<IpNet> = list.iter().map(|text| text.parse().expect("a network")).collect();
        Networks::new(&parsed)
    }

    #[test]
    fn ipv6_addresses_of_one_prefix_are_one_client() {
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("2001:db8::1").network().to_string(), "2001:db8::/64");
    }

    #[test]
    fn mapped_ipv4_address_is_the_ipv4_client() {
        assert_eq!(client("::ffff:192.0.2.7"), client("192.0.2.7"));
        assert_ne!(client("::192.0.2.7"), client("192.0.2.7"));
    }

    #[test]
    fn neighbourhood_is_coarser_but_never_finer_than_the_client() {
        assert_eq!(
            client("192.0.2.7").neighbourhood(),
            client("192.0.2.200").neighbourhood()
        );
        assert_ne!(client("192.0.2.7").neighbourhood(), client("192.0.3.7").neighbourhood());
        let wide = Client::of("2001:db8::1".parse().expect("an address"), 32);
        assert_eq!(wide.neighbourhood(), wide);
        assert_eq!(
            client("2001:db8::1").neighbourhood().network().to_string(),
            "2001:db8::/48"
        );
    }

    #[test]
    fn keys_tell_families_and_lengths_apart() {
        let v4 = client("0.0.0.1");
        let v6 = Client::of("::1".parse().expect("an address"), 128);
        assert_ne!(v4.key(), v6.key());
        let network = client("192.0.2.0");
        assert_ne!(network.key(), network.neighbourhood().key());
    }

    #[test]
    fn set_contains_what_its_networks_contain() {
        let set = networks(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.0.2.7/32",
            "2001:db8::/32",
            "::ffff:198.51.100.0/120",
        ]);
        for inside in [
            "10.0.0.0",
            "10.255.255.255",
            "192.0.2.7",
            "::ffff:10.1.2.3",
            "2001:db8:ffff::1",
            "198.51.100.9",
        ] {
            assert!(set.contains(inside.parse().expect("an address")), "{inside}");
        }
        for outside in [
            "9.255.255.255",
            "11.0.0.0",
            "192.0.2.6",
            "192.0.2.8",
            "2001:db9::1",
            "198.51.101.0",
        ] {
            assert!(!set.contains(outside.parse().expect("an address")), "{outside}");
        }
        assert!(!Networks::default().contains("10.0.0.1".parse().expect("an address")));
    }

    #[test]
    fn network_overlaps_when_either_holds_the_other() {
        let set = networks(&["2001:db8:0:1::5/128", "10.0.0.0/8"]);
        for meeting in ["2001:db8:0:1::/64", "10.3.0.0/16", "0.0.0.0/0"] {
            assert!(set.overlaps(meeting.parse().expect("a network")), "{meeting}");
        }
        for apart in ["2001:db8:0:2::/64", "11.0.0.0/8"] {
            assert!(!set.overlaps(apart.parse().expect("a network")), "{apart}");
        }
    }

    #[test]
    fn network_is_covered_when_it_lies_inside_and_not_when_it_is_wider() {
        let set = networks(&["10.0.0.0/8", "192.0.2.0/32", "192.0.2.255/32", "2001:db8::/32"]);
        for inside in [
            "10.0.0.0/8",
            "10.255.255.255/32",
            "::ffff:10.1.0.0/112",
            "2001:db8:5::/48",
        ] {
            assert!(set.covers(inside.parse().expect("a network")), "{inside}");
        }
        for wider in ["8.0.0.0/6", "192.0.2.0/24", "2001:d00::/24", "11.0.0.0/8"] {
            assert!(!set.covers(wider.parse().expect("a network")), "{wider}");
        }
    }
}
