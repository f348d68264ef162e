//! HTTP/2 from clients, by hyper over h2.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::control::Flood;
use super::outbox::Outbox;
use super::{ClientIo, Connection, Signal};
use crate::proxy::flight::Flight;
use crate::proxy::pipeline;

/// Streams of one connection at a time.
const STREAMS_MAX: u32 = 100;
/// What a client may send ahead, per stream and per connection.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Answer bytes waiting for the client, per stream.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// How long a client that is cut off has for reading why.
const PARTING: Duration = Duration::from_secs(1);

/// Runs the streams of one connection on the worker's thread, each so that its flight can end it. Nothing else can, while
/// the client's window is shut: hyper then waits for the window and for nothing besides.
#[derive(Debug, Clone)]
struct Streams {
    connection: Rc<Connection>,
    /// A flood was noticed. Streams that came with it and have not begun must not cost the app a connection each.
    is_cut_off: Rc<Cell<bool>>,
}

impl<F: Future + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(Stream {
            future,
            streams: self.clone(),
            flight: None,
        }));
    }
}

pin_project_lite::pin_project! {
    /// Dropping it resets the stream, where it has not ended.
    struct Stream<F> {
        #[pin]
        future: F,
        streams: Streams,
        flight: Option<Rc<Flight>>,
    }
}

impl<F: Future> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.streams.is_cut_off.get() {
            return Poll::Ready(());
        }
        let polled = this.future.poll(cx);
        // The pipeline registers its flight before it first waits.
        if let Some(flight) = this.streams.connection.take_newest() {
            *this.flight = Some(flight);
        }
        if polled.is_ready() {
            return Poll::Ready(());
        }
        match this.flight {
            Some(flight) if flight.poll_abandoned(cx) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

pub(super) async fn serve(connection: Rc<Connection>, io: ClientIo) {
    let snapshot = connection.worker.snapshot();
    let caps = &snapshot.config.caps;
    let service = {
        let connection = Rc::clone(&connection);
        // On its way into its task a stream is moved several times; this way what it will need is not.
        service_fn(move |request| Box::pin(pipeline::serve(Rc::clone(&connection), request)))
    };
    let outbox = Outbox::new(io, Rc::clone(&connection));
    let header_list = u32::try_from(caps.max_header_size.saturating_add(8 * 1024)).unwrap_or(u32::MAX);
    let streams = Streams {
        connection: Rc::clone(&connection),
        is_cut_off: Rc::default(),
    };
    let mut http = Box::pin(
        Builder::new(streams.clone())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_header_list_size(header_list)
            .enable_connect_protocol()
            .serve_connection(TokioIo::new(outbox.clone()), service),
    );
    drop(snapshot);
    let mut ended = false;
    std::future::poll_fn(|cx| {
        loop {
            if !ended && let Poll::Ready(result) = http.as_mut().poll(cx) {
                ended = true;
                if let Err(error) = result {
                    tracing::debug!(client = %connection.peer, %error, "connection ended");
                }
            }
            if outbox.flood().is_some() {
                streams.is_cut_off.set(true);
                return Poll::Ready(());
            }
            // Also when the connection has ended: its last frame says why.
            let drained = outbox.poll_drain(cx);
            if let Poll::Ready(Err(error)) = &drained {
                tracing::debug!(client = %connection.peer, %error, "connection ended");
            }
            if drained.is_ready() && (ended || matches!(drained, Poll::Ready(Err(_)))) {
                return Poll::Ready(());
            }
            match connection.poll_signal(cx) {
                Signal::None => return Poll::Pending,
                Signal::Close => return Poll::Ready(()),
                Signal::Drain if !ended => http.as_mut().graceful_shutdown(),
                Signal::Drain | Signal::Park => {}
            }
        }
    })
    .await;
    // Before the last words, so that the app is free of what this client asked for.
    drop(http);
    if let Some(flood) = outbox.flood() {
        calm(&connection, &outbox, flood).await;
    }
}

/// Ends a connection on which its client floods the gate.
async fn calm(connection: &Connection, outbox: &Outbox, flood: Flood) {
    tracing::debug!(client = %connection.peer, kind = flood.name(), "a flood over HTTP/2");
    let worker = &connection.worker;
    worker.metrics.floods.with_label_values(&[flood.name()]).inc();
    worker.shared.guard.flooded(connection.peer, worker.now());
    let parting = connection.unless_closed(outbox.part());
    // Whoever reads nothing, or never stops sending, is not waited for.
    if let Ok(Some(Err(error))) = tokio::time::timeout(PARTING, parting).await {
        tracing::debug!(client = %connection.peer, %error, "connection ended");
    }
}
