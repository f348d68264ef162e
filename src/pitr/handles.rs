//! What runs of point-in-time recovery, for those who ask.

use std::sync::{Arc, OnceLock};

use super::{Keeper, Routine};

/// Empty while recovery is off, and until it could begin. Clones share it; one per process.
#[derive(Debug, Clone, Default)]
pub struct Handles {
    keeper: Arc<OnceLock<Arc<Keeper>>>,
    routine: Arc<OnceLock<Arc<Routine>>>,
}

impl Handles {
    /// The keeper has begun.
    pub fn set_keeper(&self, keeper: Arc<Keeper>) {
        self.keeper.get_or_init(|| keeper);
    }

    /// The routine has begun.
    pub fn set_routine(&self, routine: Arc<Routine>) {
        self.routine.get_or_init(|| routine);
    }

    #[must_use]
    pub fn keeper(&self) -> Option<&Keeper> {
        self.keeper.get().map(Arc::as_ref)
    }

    #[must_use]
    pub fn routine(&self) -> Option<&Arc<Routine>> {
        self.routine.get()
    }
}
