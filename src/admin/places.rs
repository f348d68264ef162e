//! Who may hold how many connections to the admin listener. What a connection is for is known only once it has shown a
//! token, so that places are shared out by where it comes from; the last of them are kept for those who have shown one.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::auth::IPV6_PREFIX;
use crate::guard::client::Client;

const CONNECTIONS_MAX: usize = 256;
/// Of one client, so that nobody keeps the others out.
const CONNECTIONS_PER_CLIENT_MAX: usize = 64;
/// Of all places. A few strangers with some addresses each can take the others, and renew them for ever.
const KEPT_FOR_KNOWN: usize = 64;
/// Token owners move about; beyond this many places all are forgotten, and learnt again by their next request.
const KNOWN_MAX: usize = 1024;

/// How many connections each client holds, and which clients have shown a token.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Clients>>);

#[derive(Debug, Default)]
struct Clients {
    held: HashMap<Client, usize>,
    known: HashSet<Client>,
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
        let mut clients = self.lock();
        let kept = if clients.known.contains(&client) {
            0
        } else {
            KEPT_FOR_KNOWN
        };
        let all: usize = clients.held.values().sum();
        let its = clients.held.get(&client).copied().unwrap_or(0);
        if all >= CONNECTIONS_MAX - kept || its >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        clients.held.insert(client, its + 1);
        Some(Place {
            places: self.clone(),
            client,
        })
    }

    /// `address` has shown a token.
    pub(super) fn know(&self, address: IpAddr) {
        let known = &mut self.lock().known;
        let client = Client::of(address, IPV6_PREFIX);
        if known.len() >= KNOWN_MAX && !known.contains(&client) {
            known.clear();
        }
        known.insert(client);
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = &mut self.places.lock().held;
        if let Some(count) = held.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                held.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    fn v6(network: u16, host: u16) -> IpAddr {
        IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, host])
    }

    fn fill(places: &Places, from: impl Fn(u16) -> IpAddr) -> Vec<Place> {
        (0..512).filter_map(|number| places.take(from(number))).collect()
    }

    #[test]
    fn one_client_cannot_take_the_places_of_all_whatever_address_of_its_network_it_comes_from() {
        let places = Places::default();
        for from in [|_| v4(1), |number| v6(1, number)] {
            assert_eq!(fill(&places, from).len(), CONNECTIONS_PER_CLIENT_MAX);
        }
        assert!(places.lock().held.is_empty(), "a place is free again");
    }

    #[test]
    fn strangers_who_take_all_places_leave_some_to_who_has_shown_a_token() {
        let places = Places::default();
        places.know(v4(7));
        let strangers = fill(&places, |number| v6(number, 1));
        assert_eq!(strangers.len(), CONNECTIONS_MAX - KEPT_FOR_KNOWN);
        assert!(places.take(v4(8)).is_none());
        let own = fill(&places, |_| v4(7));
        assert_eq!(own.len(), CONNECTIONS_PER_CLIENT_MAX.min(KEPT_FOR_KNOWN));
        assert!(places.take(v4(7)).is_none(), "there are no more");
    }

    #[test]
    fn who_is_known_stays_bounded() {
        let places = Places::default();
        for network in 0..2 * u16::try_from(KNOWN_MAX).unwrap() {
            places.know(v6(network, 1));
        }
        assert!(places.lock().known.len() <= KNOWN_MAX);
    }
}
