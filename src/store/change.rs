//! A change of the stored blocks, and what two changes of one network come to. Pure.

use ipnet::IpNet;
use jiff::Timestamp;

use super::{Block, Source};

/// A change of the table of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Block(Block),
    /// Lifts what was made until `until`, then blocks: a change that took the place of another one while both waited
    /// for the store must not be outlived by what the first one had overruled.
    Replace {
        block: Block,
        until: Timestamp,
    },
    /// Lifts the block of `network` unless it was made after `at`: a change that waited for the store must not lift
    /// a newer block of another instance.
    Unblock {
        network: IpNet,
        at: Timestamp,
    },
}

impl Change {
    #[must_use]
    pub fn network(&self) -> IpNet {
        match self {
            Self::Block(block) | Self::Replace { block, .. } => block.network,
            Self::Unblock { network, .. } => *network,
        }
    }

    /// The block that this change makes.
    #[must_use]
    pub fn block(&self) -> Option<&Block> {
        match self {
            Self::Block(block) | Self::Replace { block, .. } => Some(block),
            Self::Unblock { .. } => None,
        }
    }

    /// A block made until then is lifted.
    #[must_use]
    pub fn lifts_until(&self) -> Option<Timestamp> {
        match self {
            Self::Block(_) => None,
            Self::Replace { until, .. } => Some(*until),
            Self::Unblock { at, .. } => Some(*at),
        }
    }

    /// The one change that does what this one and then `later`, of the same network, would do.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        // A manual block wins over all that were made before it, as lifting them would.
        let manual = self.block().filter(|block| block.source == Source::Manual);
        let overruled = manual.map(|block| block.created_at);
        let until = self.lifts_until().max(overruled).max(later.lifts_until());
        match (later, until) {
            (Self::Unblock { network, at }, until) => Self::Unblock {
                network,
                at: until.map_or(at, |until| until.max(at)),
            },
            (Self::Block(block) | Self::Replace { block, .. }, Some(until)) => Self::Replace { block, until },
            (Self::Block(block) | Self::Replace { block, .. }, None) => Self::Block(block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn block(source: Source, created: i64) -> Change {
        Change::Block(Block {
            reference: ulid::Ulid::nil(),
            network: "192.0.2.0/24".parse().expect("a network"),
            reason: String::new(),
            source,
            created_by: String::new(),
            created_at: at(created),
            expires_at: None,
        })
    }

    fn lift(second: i64) -> Change {
        Change::Unblock {
            network: "192.0.2.0/24".parse().expect("a network"),
            at: at(second),
        }
    }

    #[test]
    fn block_after_lift_still_lifts_the_one_before() {
        assert_eq!(lift(5).then(block(Source::Automatic, 6)).lifts_until(), Some(at(5)));
    }

    #[test]
    fn automatic_block_after_manual_one_overrules_what_that_one_did() {
        let merged = block(Source::Manual, 7).then(block(Source::Automatic, 8));
        assert_eq!(merged.lifts_until(), Some(at(7)));
        assert_eq!(merged.block(), block(Source::Automatic, 8).block());
    }

    #[test]
    fn lift_forgets_the_block_and_keeps_the_later_time() {
        assert_eq!(lift(9).then(block(Source::Automatic, 3)).then(lift(4)), lift(9));
    }
}
