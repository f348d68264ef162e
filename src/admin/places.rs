//! How many connections the admin listener holds at a time, and for whom.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::guard::client::Client;

const CONNECTIONS_MAX: usize = 256;
/// Of one client, so that nobody keeps the others out.
const CONNECTIONS_PER_CLIENT_MAX: usize = 64;
/// Of all strangers together: the rest is for callers who have shown a right token, and for this machine.
const CONNECTIONS_OF_STRANGERS_MAX: usize = 192;
/// Callers who are remembered; the one who came first is forgotten first.
const KNOWN_MAX: usize = 256;
/// As elsewhere, one IPv6 client is one network of this many bits.
const IPV6_PREFIX: u8 = 64;

/// The places; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    connections: HashMap<Client, usize>,
    known: VecDeque<Client>,
}

/// A connection's place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: Client,
}

impl Places {
    /// `None`: there is no place for `address`.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let client = Client::of(address, IPV6_PREFIX);
        let mut held = self.lock();
        let all: usize = held.connections.values().sum();
        let is_known = address.to_canonical().is_loopback() || held.known.contains(&client);
        let most = if is_known {
            CONNECTIONS_MAX
        } else {
            CONNECTIONS_OF_STRANGERS_MAX
        };
        let its = held.connections.get(&client).copied().unwrap_or_default();
        if all >= most || its >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        held.connections.insert(client, its + 1);
        Some(Place {
            places: self.clone(),
            client,
        })
    }

    /// Remembers who has shown a right token.
    pub(super) fn know(&self, address: IpAddr) {
        let client = Client::of(address, IPV6_PREFIX);
        let mut held = self.lock();
        if held.known.contains(&client) {
            return;
        }
        if held.known.len() >= KNOWN_MAX {
            held.known.pop_front();
        }
        held.known.push_back(client);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.lock();
        if let Some(count) = held.connections.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                held.connections.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(places: &Places, address: &str) -> Vec<Place> {
        let address = address.parse().unwrap();
        std::iter::from_fn(|| places.take(address)).collect()
    }

    #[test]
    fn one_ipv6_network_is_one_client() {
        let places = Places::default();
        let first = all_of(&places, "2001:db8::1");
        assert_eq!(first.len(), CONNECTIONS_PER_CLIENT_MAX);
        assert!(places.take("2001:db8::2".parse().unwrap()).is_none());
        assert!(places.take("2001:db8:0:1::1".parse().unwrap()).is_some());
    }

    #[test]
    fn strangers_leave_places_for_known_callers_and_this_machine() {
        let places = Places::default();
        let strangers: Vec<Place> = (1..=9)
            .flat_map(|it| all_of(&places, &format!("192.0.2.{it}")))
            .collect();
        assert_eq!(strangers.len(), CONNECTIONS_OF_STRANGERS_MAX);
        let operator: IpAddr = "198.51.100.7".parse().unwrap();
        assert!(places.take(operator).is_none());
        places.know(operator);
        let held = places.take(operator);
        assert!(held.is_some());
        let here = all_of(&places, "127.0.0.1");
        assert_eq!(here.len() + 1, CONNECTIONS_MAX - CONNECTIONS_OF_STRANGERS_MAX);
        assert!(places.take(operator).is_none());
        drop((strangers, held, here));
        assert!(places.lock().connections.is_empty());
    }

    #[test]
    fn memory_of_callers_is_bounded() {
        let places = Places::default();
        for number in 0..2_000_u32 {
            places.know(std::net::Ipv4Addr::from(number).into());
        }
        assert_eq!(places.lock().known.len(), KNOWN_MAX);
    }
}
