//! The only door to the time of day and to monotonic time. Everything below the edges takes time as an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// A reading of both clocks, taken once and handed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since the clock was made: for limits, deadlines and durations.
    pub tick: Duration,
    /// Time of day, UTC: for what is stored or shown.
    pub wall: Timestamp,
}

impl Now {
    /// A made-up reading for tests: `tick` after an arbitrary fixed instant on both clocks.
    #[must_use]
    pub fn at(tick: Duration) -> Self {
        let start = Timestamp::constant(1_800_000_000, 0);
        let wall = start.checked_add(tick).unwrap_or(Timestamp::MAX);
        Self { tick, wall }
    }
}

/// The system's clocks. Copies share one origin, so their ticks compare.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    /// By how much the time of day is wrong: for tests of what a wrong clock does.
    skew: jiff::SignedDuration,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the door to the system's clocks")]
    #[must_use]
    pub fn system() -> Self {
        Self {
            origin: Instant::now(),
            skew: jiff::SignedDuration::ZERO,
        }
    }

    /// The same clock with a time of day that is wrong by `skew`, as after a dead battery.
    #[must_use]
    pub fn skewed(self, skew: jiff::SignedDuration) -> Self {
        Self { skew, ..self }
    }

    /// Monotonic time since the clock was made.
    #[expect(clippy::disallowed_methods, reason = "this is the door to the system's clocks")]
    #[must_use]
    pub fn tick(&self) -> Duration {
        Instant::now().saturating_duration_since(self.origin)
    }

    /// Time of day, UTC. A system clock before 1970 reads as 1970.
    #[expect(clippy::disallowed_methods, reason = "this is the door to the system's clocks")]
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp::UNIX_EPOCH.checked_add(since_epoch).unwrap_or(Timestamp::MAX);
        wall.saturating_add(self.skew).unwrap_or(wall)
    }

    /// Both readings.
    #[must_use]
    pub fn now(&self) -> Now {
        Now {
            tick: self.tick(),
            wall: self.wall(),
        }
    }
}
