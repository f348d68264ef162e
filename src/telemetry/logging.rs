//! The log for operators: `tracing` to standard error, JSON or text. The access log is apart (`access_log`).

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use super::Format;

/// Names of parts and levels, e.g. `foregate=debug`; overrides the default `info`.
const FILTER_VARIABLE: &str = "FOREGATE_LOG";

/// Starts logging for the process. A second call changes nothing.
pub fn start(format: Format) {
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info,tokio_postgres=warn"));
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let started = match format {
        Format::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        Format::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started already");
    }
}
