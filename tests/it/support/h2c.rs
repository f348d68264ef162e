//! An `h2c` app on a bare socket: it answers each request, and each reset, with frames as the test writes them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, RST_STREAM, SETTINGS, frame};

/// What the gate sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Request,
    Reset,
}

/// Where it came: the number of the connection from 0, the stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) connection: usize,
    pub(crate) stream: u32,
}

type Answer = dyn Fn(Event, Place) -> Vec<u8> + Send + Sync;

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
    resets: AtomicUsize,
    is_dead: AtomicBool,
}

pub(crate) struct H2c {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    acceptor: JoinHandle<()>,
}

/// Status 200 and a body.
pub(crate) fn ok(stream: u32, body: &str) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
    [head, frame(DATA, END_STREAM, stream, body.as_bytes())].concat()
}

impl H2c {
    /// Answers each request whole and at once, and opens no window for its body.
    pub(crate) async fn answering_early() -> Self {
        Self::start(|event, place| match event {
            Event::Request => ok(place.stream, "early"),
            Event::Reset => Vec::new(),
        })
        .await
    }

    pub(crate) async fn start(answer: impl Fn(Event, Place) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (counts, answer): (_, Arc<Answer>) = (Arc::<Counts>::default(), Arc::new(answer));
        let shared = Arc::clone(&counts);
        let acceptor = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(serve(stream, number, Arc::clone(&shared), Arc::clone(&answer)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            counts,
            acceptor,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("h2c://{}", self.address)
    }

    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn resets(&self) -> usize {
        self.counts.resets.load(Ordering::SeqCst)
    }

    /// Connections that are open say nothing more, not even to a PING; new ones are served.
    pub(crate) fn play_dead(&self) {
        self.counts.is_dead.store(true, Ordering::SeqCst);
    }
}

impl Drop for H2c {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn serve(stream: TcpStream, connection: usize, counts: Arc<Counts>, answer: Arc<Answer>) {
    let lives_on = counts.is_dead.load(Ordering::SeqCst);
    let Some(mut frames) = Frames::accepted(stream).await else {
        return;
    };
    while let Some(next) = frames.next().await {
        let place = Place {
            connection,
            stream: next.stream,
        };
        let reply = match next.kind {
            SETTINGS if next.payload.is_empty() => Vec::new(),
            SETTINGS => frame(SETTINGS, 1, 0, &[]),
            PING => frame(PING, 1, 0, &next.payload),
            HEADERS => {
                counts.requests.fetch_add(1, Ordering::SeqCst);
                answer(Event::Request, place)
            }
            RST_STREAM => {
                counts.resets.fetch_add(1, Ordering::SeqCst);
                answer(Event::Reset, place)
            }
            _ => Vec::new(),
        };
        let is_dead = counts.is_dead.load(Ordering::SeqCst) && !lives_on;
        if !is_dead && !reply.is_empty() && frames.try_send(&reply).await.is_err() {
            return;
        }
    }
}
