//! The snapshot that lookups read: one prefix trie for IPv4, one for IPv6. Immutable once it is in force.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use prefix_trie::PrefixMap;

use super::{Block, Entry};

#[derive(Clone, Default)]
pub(super) struct Table {
    v4: PrefixMap<Ipv4Net, Arc<Entry>>,
    v6: PrefixMap<Ipv6Net, Arc<Entry>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("entries", &self.len()).finish()
    }
}

fn live(entry: &Entry, now: Timestamp) -> bool {
    entry.block.expires_at.is_none_or(|end| end > now)
}

/// Where `network` is kept: without host bits, IPv4-mapped networks as IPv4.
pub(super) fn normal(network: IpNet) -> IpNet {
    if let IpNet::V6(v6) = network
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(v4, v6.prefix_len() - 96)
    {
        return IpNet::V4(v4.trunc());
    }
    network.trunc()
}

impl Table {
    /// The longest matching prefix that is in force at `now`. The trie walks from short to long prefixes, so the
    /// last one that lives wins; an expired longer one hides nothing.
    pub(super) fn find(&self, address: IpAddr, now: Timestamp) -> Option<&Arc<Entry>> {
        match address.to_canonical() {
            IpAddr::V4(address) if !self.v4.is_empty() => {
                let host = Ipv4Net::from(address);
                let (_, longest) = self.v4.get_lpm(&host)?;
                if live(longest, now) {
                    return Some(longest);
                }
                self.v4
                    .cover(&host)
                    .map(|(_, entry)| entry)
                    .filter(|entry| live(entry, now))
                    .last()
            }
            IpAddr::V6(address) if !self.v6.is_empty() => {
                let host = Ipv6Net::from(address);
                let (_, longest) = self.v6.get_lpm(&host)?;
                if live(longest, now) {
                    return Some(longest);
                }
                self.v6
                    .cover(&host)
                    .map(|(_, entry)| entry)
                    .filter(|entry| live(entry, now))
                    .last()
            }
            _ => None,
        }
    }

    pub(super) fn get(&self, network: IpNet) -> Option<&Arc<Entry>> {
        match network {
            IpNet::V4(network) => self.v4.get(&network),
            IpNet::V6(network) => self.v6.get(&network),
        }
    }

    /// Puts `block` in force. The same block keeps its entry, and with it the count of those told.
    pub(super) fn insert(&mut self, block: Block, before: &Self) {
        let entry = match before.get(block.network) {
            Some(entry) if entry.block == block => Arc::clone(entry),
            _ => Arc::new(Entry {
                block,
                told: AtomicU32::new(0),
            }),
        };
        match entry.block.network {
            IpNet::V4(network) => drop(self.v4.insert(network, entry)),
            IpNet::V6(network) => drop(self.v6.insert(network, entry)),
        }
    }

    pub(super) fn remove(&mut self, network: IpNet) -> Option<Arc<Entry>> {
        match network {
            IpNet::V4(network) => self.v4.remove(&network),
            IpNet::V6(network) => self.v6.remove(&network),
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.v4.values().chain(self.v6.values())
    }

    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}
