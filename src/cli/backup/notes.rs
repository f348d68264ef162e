//! What the vault tells while it works, for a person at a terminal.

use std::fmt;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A line that begins as all other notes do.
struct Note;

impl<S, N> FormatEvent<S, N> for Note
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "note: ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Prints the warnings of our own parts: those of others are for a log.
pub(super) fn show() {
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Note)
        .with_ansi(false)
        .with_writer(std::io::stderr);
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::WARN);
    // There is one subscriber, and a command that nobody hears is no worse for it.
    drop(tracing_subscriber::registry().with(lines).with(ours).try_init());
}
