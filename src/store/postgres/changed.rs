//! What other instances have changed, gathered until somebody reads it. Bounded: too many networks become "all".

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::sync::Notify;

/// Beyond this many, reading everything is cheaper than asking for each.
const NETWORKS_MAX: usize = 1_000;
/// PostgreSQL refuses payloads of 8,000 bytes.
const PAYLOAD_MAX: usize = 7_000;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum What {
    #[default]
    Nothing,
    Networks(HashSet<IpNet>),
    All,
}

#[derive(Debug, Default)]
pub(crate) struct Changed {
    what: Mutex<What>,
    bell: Notify,
}

impl What {
    pub(crate) fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (_, Self::Nothing) | (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Nothing, networks @ Self::Networks(_)) => *self = networks,
            (Self::Networks(known), Self::Networks(more)) => {
                known.extend(more);
                if known.len() > NETWORKS_MAX {
                    *self = Self::All;
                }
            }
        }
    }
}

impl Changed {
    /// Something changed that nobody can name.
    pub(crate) fn all(&self) {
        self.add(What::All);
    }

    /// The payload of a notification.
    pub(super) fn payload(&self, payload: &str) {
        self.add(decode(payload));
    }

    pub(crate) fn take(&self) -> What {
        std::mem::take(&mut *self.lock())
    }

    /// Waits for the next change.
    pub(crate) async fn notified(&self) {
        self.bell.notified().await;
    }

    fn add(&self, what: What) {
        self.lock().add(what);
        self.bell.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, What> {
        self.what.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The networks, or nothing where they are too many to name.
pub(super) fn encode(networks: impl IntoIterator<Item = IpNet>) -> String {
    let mut payload = String::new();
    for network in networks {
        if !payload.is_empty() {
            payload.push(' ');
        }
        payload.push_str(&network.to_string());
        if payload.len() > PAYLOAD_MAX {
            return String::new();
        }
    }
    payload
}

/// What cannot be read, as from a later version, means that everything must be read again.
fn decode(payload: &str) -> What {
    let networks: Result<HashSet<IpNet>, _> = payload.split_ascii_whitespace().map(str::parse).collect();
    match networks {
        Ok(networks) if !networks.is_empty() => What::Networks(networks),
        _ => What::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(count: u32) -> impl Iterator<Item = IpNet> {
        (0..count).map(|number| IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from(number))))
    }

    #[test]
    fn payload_names_few_networks_and_is_empty_for_many() {
        let few: HashSet<IpNet> = networks(20).collect();
        assert_eq!(decode(&encode(few.iter().copied())), What::Networks(few));
        assert_eq!(encode(networks(2_000)), "");
        assert_eq!(decode(""), What::All);
        assert_eq!(decode("192.0.2.0/24 nonsense"), What::All);
    }

    #[test]
    fn too_many_networks_become_all() {
        let changed = Changed::default();
        changed.add(What::Networks(networks(1_000).collect()));
        assert!(matches!(changed.take(), What::Networks(_)));
        changed.add(What::Networks(networks(1_000).collect()));
        changed.payload("192.0.2.0/24");
        assert_eq!(changed.take(), What::All);
        assert_eq!(changed.take(), What::Nothing);
    }
}
