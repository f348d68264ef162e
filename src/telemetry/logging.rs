//! The log for operators: `tracing` to standard error, JSON or text. The access log is apart (`access_log`).
//!
//! Workers log too, and must not wait for whoever reads: lines go through a bounded queue (`outlet`). So the process has to
//! keep the [`Log`] until its end, which writes what still waits.

use std::io;

use prometheus::{IntCounter, Registry};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

use super::Format;
use super::outlet::{self, Output, Room};

/// Names of parts and levels, e.g. `foregate=debug`; overrides the default `info`.
const FILTER_VARIABLE: &str = "FOREGATE_LOG";
/// A burst of errors, not the history of a pipe that nobody reads.
const ROOM: Room = Room {
    pieces: 1024,
    bytes: 4 * 1024 * 1024,
};

type Written = Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the log cannot be written to standard error")]
    Stderr(#[source] io::Error),
    #[error("the log's thread cannot be started")]
    Thread(#[source] io::Error),
    #[error("the metric of lost lines cannot be made")]
    Metric(#[from] prometheus::Error),
}

/// The running log; dropping it writes what still waits, but does not wait for a reader that does not read.
#[derive(Debug)]
pub struct Log {
    steering: Steering,
    dropped: IntCounter,
    writer: Option<outlet::Writer>,
}

/// Changes how the log is written.
#[derive(Clone)]
pub struct Steering {
    layer: reload::Handle<Written, tracing_subscriber::Registry>,
    sink: Sink,
}

/// One line for each record.
#[derive(Debug, Clone)]
struct Sink(outlet::Sink);

/// Starts logging for the process. A second call changes nothing that others see.
pub fn start(format: Format) -> Result<Log, Error> {
    let dropped = IntCounter::new(
        "foregate_log_dropped_lines_total",
        "Lines of the log dropped because nobody read standard error",
    )?;
    let output = Output::stream(io::stderr()).map_err(Error::Stderr)?;
    let (sink, writer) = outlet::start("log", output, ROOM, dropped.clone()).map_err(Error::Thread)?;
    let sink = Sink(sink);
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info,tokio_postgres=warn"));
    let (layer, handle) = reload::Layer::new(written(format, sink.clone()));
    if tracing_subscriber::registry()
        .with(layer)
        .with(filter)
        .try_init()
        .is_err()
    {
        tracing::debug!("logging was started already");
    }
    Ok(Log {
        steering: Steering { layer: handle, sink },
        dropped,
        writer: Some(writer),
    })
}

fn written(format: Format, sink: Sink) -> Written {
    let layer = fmt::layer().with_writer(sink).with_target(false);
    match format {
        // Without spans: one that began under the other format has no fields in this one, which the formatter takes for a
        // bug and panics.
        Format::Json => {
            let layer = layer.json().flatten_event(true);
            layer.with_current_span(false).with_span_list(false).boxed()
        }
        Format::Text => layer.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
    }
}

impl Log {
    /// Shows how many lines got lost.
    pub fn register(&self, registry: &Registry) -> Result<(), Error> {
        Ok(registry.register(Box::new(self.dropped.clone()))?)
    }

    #[must_use]
    pub fn steering(&self) -> Steering {
        self.steering.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // Whether it succeeded can be told to nobody.
            let _is_written: bool = writer.stop();
        }
    }
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering")
            .field("sink", &self.sink)
            .finish_non_exhaustive()
    }
}

impl Steering {
    pub fn set_format(&self, format: Format) {
        if let Err(error) = self.layer.reload(written(format, self.sink.clone())) {
            tracing::warn!(%error, "the log keeps its format");
        }
    }
}

impl MakeWriter<'_> for Sink {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl io::Write for Sink {
    /// A record comes whole, as one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.submit(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
