//! `foregate check`

use super::{Error, Source, complain, say};
use crate::app::{self, Origin};
use crate::config::{self, Config, Errors, Findings, Loaded, Overrides, Style};

pub(super) fn run(source: &Source) -> Result<(), Error> {
    let overrides = Overrides {
        upstream: source.upstream.clone(),
    };
    let origin = Origin {
        path: source.config.clone(),
        overrides,
    };
    let loaded = load(&origin)?;
    let name = origin
        .path
        .map_or("defaults".to_owned(), |path| path.display().to_string());
    let app::Checked { faults, doubts } = app::check(&loaded);
    let doubts = Findings::about(name.clone(), doubts);
    complain(&doubts.render(config::Severity::Warning, style()));
    if !faults.is_empty() {
        return Err(Error::Usage(config::report(&Errors::about(name, faults), style())));
    }
    say(&config::effective::render(&loaded.config));
    Ok(())
}

pub(super) fn style() -> Style {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        Style::Coloured
    } else {
        Style::Plain
    }
}

/// Loads the configuration, prints its warnings, or returns all its errors as text.
pub(super) fn load(origin: &Origin) -> Result<Loaded, Error> {
    let style = style();
    match Config::load(origin.path.as_deref(), &origin.overrides) {
        Ok(loaded) => {
            complain(&loaded.warnings.render(config::Severity::Warning, style));
            Ok(loaded)
        }
        Err(errors) => Err(Error::Usage(config::report(&errors, style))),
    }
}
