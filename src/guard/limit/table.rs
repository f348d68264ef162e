//! The limiter's memory: a lock-free table of fixed capacity in which each tracked client has one slot.
//!
//! Why not a concurrent map: it grows with every new address, is swept under locks, and forgets a client that was
//! evicted, who then returns with a full quota. Here
//! - a slot is 24 bytes: a keyed 64-bit fingerprint of its owner, and the theoretical arrival time (GCRA) for the minute
//!   and for the hour. Two clients share a slot only if their fingerprints are equal, about once in 10^7 tables of a
//!   million; then they share a quota;
//! - each owner may live in two buckets of eight slots, and takes the emptier one when it comes, which lets three
//!   quarters of all slots fill before anybody finds both full;
//! - a slot changes hands only when both its quotas are full again, so that eviction never refunds anything;
//! - an owner that finds no slot is charged to its neighbourhood, in a second and smaller region. When that is full as
//!   well, neighbourhoods share slots: stricter, never laxer.
//!
//! Nobody waits for anybody: slots are taken and charged by compare-and-swap. Two workers that meet a new client at the
//! same moment may take two slots for it; whoever comes second sees both, since all of this is sequentially consistent,
//! and adds what was charged to the one to the other. Memory comes in segments of 3 KiB, when a slot in them is first
//! taken.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const LANES: usize = 8;
const SEGMENT_BUCKETS: u32 = 16;
/// How many segments are counted to know how many clients are tracked; a larger table is sampled.
const SAMPLED_SEGMENTS: usize = 1024;
/// More than this many entries is a mistyped configuration.
const ENTRIES_MAX: usize = 1 << 30;

/// A line of fingerprints and two of times, a client's two in one line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket {
    /// Fingerprints; 0: nobody. A lane is free when both its times have come, whoever had it.
    owners: [AtomicU64; LANES],
    times: [Times; LANES],
}

/// Theoretical arrival times, since the clock's origin.
#[derive(Debug, Default)]
struct Times {
    minute: AtomicU64,
    hour: AtomicU64,
}

type Segment = [Bucket; SEGMENT_BUCKETS as usize];

/// Which of the two times of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Minute,
    Hour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Tier {
    Client,
    Neighbourhood,
}

/// Where an owner's times are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    tier: Tier,
    bucket: u32,
    lane: u8,
    /// 0: shared, because both regions are full.
    owner: u64,
}

#[cfg(test)]
impl Slot {
    /// Whether it is a client's own, not its neighbourhood's.
    pub(super) fn is_own(self) -> bool {
        self.tier == Tier::Client
    }
}

#[cfg(test)]
impl Table {
    /// Takes a slot for a client as one does that has not seen the client's own.
    pub(super) fn take_again(&self, client: u64, now: u64) {
        self.clients.claim(client, now).expect("a free slot");
    }

    /// How many slots a client has.
    pub(super) fn slots_of(&self, client: u64) -> usize {
        let segments = self.clients.segments.iter().filter_map(OnceLock::get);
        let owners = segments
            .flat_map(|segment| segment.iter())
            .flat_map(|bucket| &bucket.owners);
        owners.filter(|owner| owner.load(Ordering::SeqCst) == client).count()
    }
}

/// Fingerprints of a client and of its neighbourhood, under a key that no client knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) client: u64,
    pub(super) neighbourhood: u64,
}

#[derive(Debug)]
pub(super) struct Table {
    clients: Region,
    neighbourhoods: Region,
}

impl Table {
    pub(super) fn new(max_tracked_clients: usize) -> Self {
        let entries = max_tracked_clients.min(ENTRIES_MAX);
        Self {
            clients: Region::new(entries),
            neighbourhoods: Region::new(entries / 8),
        }
    }

    /// The slot to charge: the owner's own, else one that it may take, else that of its neighbourhood.
    pub(super) fn slot(&self, client: u64, neighbourhood: impl FnOnce() -> u64, now: u64) -> Slot {
        if let Some(place) = self.clients.find(client).or_else(|| self.clients.claim(client, now)) {
            return place.slot(Tier::Client, client);
        }
        let neighbourhood = neighbourhood();
        let region = &self.neighbourhoods;
        match region.find(neighbourhood).or_else(|| region.claim(neighbourhood, now)) {
            Some(place) => place.slot(Tier::Neighbourhood, neighbourhood),
            None => region.shared(neighbourhood).slot(Tier::Neighbourhood, 0),
        }
    }

    /// The slot that [`Self::slot`] would charge, without taking one; `None`: a new one, with full quotas.
    pub(super) fn peek(&self, owner: Owner, now: u64) -> Option<Slot> {
        if let Some(place) = self.clients.find(owner.client) {
            return Some(place.slot(Tier::Client, owner.client));
        }
        if self.clients.vacancy(owner.client, now).is_some() {
            return None;
        }
        let region = &self.neighbourhoods;
        if let Some(place) = region.find(owner.neighbourhood) {
            return Some(place.slot(Tier::Neighbourhood, owner.neighbourhood));
        }
        if region.vacancy(owner.neighbourhood, now).is_some() {
            return None;
        }
        Some(region.shared(owner.neighbourhood).slot(Tier::Neighbourhood, 0))
    }

    /// Whether the slot is still its owner's. It can change hands between being found and being charged, if the owner
    /// returns at the very moment at which its quotas have become full.
    pub(super) fn holds(&self, slot: Slot) -> bool {
        slot.owner == 0
            || self
                .bucket(slot)
                .and_then(|bucket| bucket.owners.get(usize::from(slot.lane)))
                .is_some_and(|owner| owner.load(Ordering::SeqCst) == slot.owner)
    }

    /// The theoretical arrival time in a slot.
    pub(super) fn time(&self, slot: Slot, column: Column) -> Option<&AtomicU64> {
        let times = self.bucket(slot)?.times.get(usize::from(slot.lane))?;
        Some(match column {
            Column::Minute => &times.minute,
            Column::Hour => &times.hour,
        })
    }

    /// How many clients (and rules that they met) have less than their full quota: counted while the table is small,
    /// estimated from a sample when it is large. For the control plane.
    pub(super) fn tracked(&self, now: u64) -> u64 {
        self.clients.tracked(now) + self.neighbourhoods.tracked(now)
    }

    /// Memory held now.
    pub(super) fn bytes(&self) -> usize {
        self.clients.bytes() + self.neighbourhoods.bytes()
    }

    /// Memory that can ever be held.
    pub(super) fn bytes_max(&self) -> usize {
        self.clients.bytes_max() + self.neighbourhoods.bytes_max()
    }

    fn bucket(&self, slot: Slot) -> Option<&Bucket> {
        match slot.tier {
            Tier::Client => self.clients.bucket(slot.bucket),
            Tier::Neighbourhood => self.neighbourhoods.bucket(slot.bucket),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    bucket: u32,
    lane: u8,
}

impl Place {
    fn slot(self, tier: Tier, owner: u64) -> Slot {
        Slot {
            tier,
            bucket: self.bucket,
            lane: self.lane,
            owner,
        }
    }
}

/// A slot that may be taken, and whose it was.
#[derive(Debug, Clone, Copy)]
struct Vacancy {
    place: Place,
    previous: u64,
}

#[derive(Debug)]
struct Region {
    segments: Box<[OnceLock<Box<Segment>>]>,
    buckets: u32,
}

impl Region {
    /// With a third more slots than entries.
    fn new(entries: usize) -> Self {
        let buckets = (entries + entries / 3).div_ceil(LANES).max(SEGMENT_BUCKETS as usize);
        let segments = buckets.div_ceil(SEGMENT_BUCKETS as usize);
        Self {
            segments: std::iter::repeat_with(OnceLock::new).take(segments).collect(),
            buckets: u32::try_from(segments).map_or(u32::MAX, |count| count.saturating_mul(SEGMENT_BUCKETS)),
        }
    }

    /// The two buckets of an owner. Multiplying takes the upper bits, so each home uses bits of its own.
    fn homes(&self, owner: u64) -> [u32; 2] {
        let first = scaled(owner >> 32, self.buckets);
        let second = scaled(owner.wrapping_mul(0x9E37_79B9_7F4A_7C15) & 0xFFFF_FFFF, self.buckets);
        [first, second]
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        let segment = self.segments.get((index / SEGMENT_BUCKETS) as usize)?.get()?;
        segment.get((index % SEGMENT_BUCKETS) as usize)
    }

    fn bucket_or_new(&self, index: u32) -> Option<&Bucket> {
        let segment = self.segments.get((index / SEGMENT_BUCKETS) as usize)?;
        let segment = segment.get_or_init(Box::default);
        segment.get((index % SEGMENT_BUCKETS) as usize)
    }

    fn find(&self, owner: u64) -> Option<Place> {
        self.homes(owner).into_iter().find_map(|index| {
            let bucket = self.bucket(index)?;
            bucket.touch();
            let lane = bucket
                .owners
                .iter()
                .position(|held| held.load(Ordering::SeqCst) == owner)?;
            Some(place(index, lane))
        })
    }

    /// Takes a slot for an owner that has none. `None`: both its buckets are full.
    fn claim(&self, owner: u64, now: u64) -> Option<Place> {
        // Another owner may be quicker, but each time one is there is a free lane less.
        for _ in 0..2 * LANES {
            let vacancy = self.vacancy(owner, now)?;
            let lane = usize::from(vacancy.place.lane);
            let slot = self.bucket_or_new(vacancy.place.bucket)?.owners.get(lane)?;
            // The times of the previous owner stay: both lie in the past, which means a full quota.
            if slot
                .compare_exchange(vacancy.previous, owner, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
            {
                return Some(self.settle(owner, now).unwrap_or(vacancy.place));
            }
        }
        None
    }

    /// Leaves an owner one slot, the first by position, and charges to it what was charged to the others.
    fn settle(&self, owner: u64, now: u64) -> Option<Place> {
        let [first, second] = self.homes(owner);
        let mut kept: Option<(Place, &Bucket)> = None;
        for index in [Some(first), (second != first).then_some(second)].into_iter().flatten() {
            let Some(bucket) = self.bucket(index) else { continue };
            for (lane, (held, times)) in bucket.owners.iter().zip(&bucket.times).enumerate() {
                if held.load(Ordering::SeqCst) != owner {
                    continue;
                }
                let Some((place, keeper)) = kept else {
                    kept = Some((place(index, lane), bucket));
                    continue;
                };
                // Given up first, read after it: who charges it later finds that it is the owner's no more, and comes
                // again. Until its times have come nobody else takes it.
                if held
                    .compare_exchange(owner, 0, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
                {
                    keeper.add_charges(usize::from(place.lane), times, now);
                }
            }
        }
        kept.map(|(place, _)| place)
    }

    /// The slot to take: in the first bucket while it is at most half full, else in the emptier one.
    fn vacancy(&self, owner: u64, now: u64) -> Option<Vacancy> {
        let [first, second] = self.homes(owner);
        let (free_in_first, in_first) = self.vacancies(first, now);
        if free_in_first * 2 >= LANES {
            return in_first;
        }
        let (free_in_second, in_second) = self.vacancies(second, now);
        if free_in_second > free_in_first {
            in_second
        } else {
            in_first
        }
    }

    fn vacancies(&self, index: u32, now: u64) -> (usize, Option<Vacancy>) {
        let Some(bucket) = self.bucket(index) else {
            let place = place(index, 0);
            return (LANES, Some(Vacancy { place, previous: 0 }));
        };
        let mut free = 0;
        let mut best = None;
        for (lane, previous) in bucket.free(now) {
            free += 1;
            best = best.or(Some(Vacancy {
                place: place(index, lane),
                previous,
            }));
        }
        (free, best)
    }

    /// Where an owner is charged when there is nothing to take: with whoever is there.
    fn shared(&self, owner: u64) -> Place {
        let [first, _] = self.homes(owner);
        // A full bucket exists already; should it not, the request is charged nowhere only until it does.
        place(first, usize::try_from(owner % LANES as u64).unwrap_or(0))
    }

    fn tracked(&self, now: u64) -> u64 {
        let held = || self.segments.iter().filter_map(OnceLock::get);
        let segments = held().count();
        let step = segments.div_ceil(SAMPLED_SEGMENTS).max(1);
        let sampled = segments.div_ceil(step).max(1);
        let slots: usize = held()
            .step_by(step)
            .flat_map(|segment| segment.iter())
            .map(|bucket| LANES - bucket.free(now).count())
            .sum();
        (slots as u64 * segments as u64) / sampled as u64
    }

    fn bytes(&self) -> usize {
        let held = self.segments.iter().filter(|segment| segment.get().is_some()).count();
        self.bytes_fixed() + held * size_of::<Segment>()
    }

    fn bytes_max(&self) -> usize {
        self.bytes_fixed() + self.segments.len() * size_of::<Segment>()
    }

    fn bytes_fixed(&self) -> usize {
        size_of_val(&*self.segments)
    }
}

impl Bucket {
    /// Sends for all lines at once. In a table that the caches cannot hold each would else be waited for in turn, since
    /// what to read next hangs on what was read. Doing so for both homes of an owner measured slower.
    fn touch(&self) {
        let [first, .., last] = &self.times;
        let lines = [self.owners.first(), Some(&first.minute), Some(&last.hour)];
        for line in lines.into_iter().flatten() {
            black_box(line.load(Ordering::Relaxed));
        }
    }

    /// Lanes that may be taken, with their owners.
    fn free(&self, now: u64) -> impl Iterator<Item = (usize, u64)> {
        let lanes = self.owners.iter().zip(&self.times).enumerate();
        lanes.filter_map(move |(lane, (owner, times))| {
            let owner = owner.load(Ordering::SeqCst);
            (times.minute.load(Ordering::SeqCst) <= now && times.hour.load(Ordering::SeqCst) <= now)
                .then_some((lane, owner))
        })
    }

    /// Charges a lane with what another one has been charged with.
    fn add_charges(&self, lane: usize, other: &Times, now: u64) {
        let Some(times) = self.times.get(lane) else { return };
        for (time, other) in [(&times.minute, &other.minute), (&times.hour, &other.hour)] {
            let charged = other.load(Ordering::SeqCst).saturating_sub(now);
            if charged > 0 {
                let add = |known: u64| Some(known.max(now) + charged);
                // Cannot fail: there is always a new value.
                time.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).ok();
            }
        }
    }
}

/// Both factors have 32 bits, and 32 are shifted away.
fn scaled(bits: u64, count: u32) -> u32 {
    ((bits * u64::from(count)) >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "a lane is less than LANES")]
fn place(bucket: u32, lane: usize) -> Place {
    Place {
        bucket,
        lane: lane as u8,
    }
}
