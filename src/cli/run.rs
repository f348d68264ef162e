//! `foregate run`

use super::{Error, Source};
use crate::app;
use crate::config::Overrides;

pub(super) fn run(source: &Source) -> Result<(), Error> {
    let origin = app::Origin {
        path: source.config.clone(),
        overrides: Overrides {
            upstream: source.upstream.clone(),
        },
    };
    let loaded = super::check::load(&origin)?;
    app::run(origin, loaded)?;
    Ok(())
}
