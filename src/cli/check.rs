//! `foregate check`

use super::{Error, Source, complain, say};
use crate::app::Origin;
use crate::config::{self, Config, Loaded, Overrides, Style};

pub(super) fn run(source: &Source) -> Result<(), Error> {
    let overrides = Overrides {
        upstream: source.upstream.clone(),
    };
    let loaded = load(&Origin {
        path: source.config.clone(),
        overrides,
    })?;
    say(&config::effective::render(&loaded.config));
    Ok(())
}

/// Loads the configuration, prints its warnings, or returns all its errors as text.
pub(super) fn load(origin: &Origin) -> Result<Loaded, Error> {
    let style = if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        Style::Coloured
    } else {
        Style::Plain
    };
    match Config::load(origin.path.as_deref(), &origin.overrides) {
        Ok(loaded) => {
            complain(&loaded.warnings.render(config::Severity::Warning, style));
            Ok(loaded)
        }
        Err(errors) => Err(Error::Usage(config::report(&errors, style))),
    }
}
