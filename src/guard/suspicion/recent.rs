//! Who had a strike of which kind within the last second: whoever hammers would else cost a look into the records, which
//! are a shared cache with an order of use, for each refusal. A hint: where two clients collide, one strike comes late.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Kind, STRIKE_SPACING};
use crate::guard::client::Client;

const PLACES: usize = 1024;
/// The lower half of a place, in which time wraps after seven weeks.
const MILLISECONDS: u64 = 0xffff_ffff;

/// In each place the millisecond of a strike, and above it what tells one client from another.
#[derive(Debug)]
pub(super) struct Recent {
    places: Box<[AtomicU64]>,
    key: RandomState,
}

/// A client and a kind of strike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    place: usize,
    tag: u64,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            key: RandomState::new(),
        }
    }

    pub(super) fn mark(&self, client: Client, kind: Kind) -> Mark {
        let hash = self.key.hash_one((client.key(), kind as u8));
        let places = PLACES as u64;
        Mark {
            place: usize::try_from(hash % places).unwrap_or(0),
            // Never that of an empty place.
            tag: (hash >> 32).max(1),
        }
    }

    pub(super) fn has(&self, mark: Mark, tick: Duration) -> bool {
        let known = self.place(mark).map_or(0, |place| place.load(Ordering::Relaxed));
        let age = millisecond(tick).wrapping_sub(known) & MILLISECONDS;
        known >> 32 == mark.tag && u128::from(age) < STRIKE_SPACING.as_millis()
    }

    pub(super) fn note(&self, mark: Mark, tick: Duration) {
        self.set(mark, mark.tag << 32 | millisecond(tick) & MILLISECONDS);
    }

    /// Its strikes were served: the next one counts at once.
    pub(super) fn forget(&self, mark: Mark) {
        self.set(mark, 0);
    }

    fn set(&self, mark: Mark, known: u64) {
        if let Some(place) = self.place(mark) {
            place.store(known, Ordering::Relaxed);
        }
    }

    fn place(&self, mark: Mark) -> Option<&AtomicU64> {
        self.places.get(mark.place)
    }
}

fn millisecond(tick: Duration) -> u64 {
    tick.as_secs()
        .wrapping_mul(1000)
        .wrapping_add(u64::from(tick.subsec_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_millis(u32::MAX as u64 - 300);

    fn client(last: u8) -> Client {
        Client::of(std::net::IpAddr::from([192, 0, 2, last]), 64)
    }

    #[test]
    fn mark_is_known_for_a_second_and_for_one_client_and_kind() {
        let recent = Recent::new();
        let mark = recent.mark(client(1), Kind::Limited);
        assert!(!recent.has(mark, START));
        recent.note(mark, START);
        for (later, known) in [(0, true), (999, true), (1000, false), (5_000_000, false)] {
            let at = START + Duration::from_millis(later);
            assert_eq!(recent.has(mark, at), known, "{later} ms later");
        }
        for other in [
            recent.mark(client(2), Kind::Limited),
            recent.mark(client(1), Kind::Flood),
        ] {
            assert!(!recent.has(other, START));
        }
        recent.forget(mark);
        assert!(!recent.has(mark, START));
    }

    #[test]
    fn every_client_has_a_place() {
        let recent = Recent::new();
        for last in 0..=u8::MAX {
            let mark = recent.mark(client(last), Kind::Probe);
            recent.note(mark, START);
            assert!(recent.has(mark, START));
        }
    }
}
