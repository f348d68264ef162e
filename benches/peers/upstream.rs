//! The app behind the gate: answers from memory, on a thread of this program, so that it is never the bottleneck.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// What `/mib` answers, in bytes.
pub(super) const DOWNLOAD_BYTES: usize = 1 << 20;
pub(super) const DOWNLOAD_PATH: &str = "/mib";

const HEAD_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    answered: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Upstream {
    pub(super) fn start(body: &[u8]) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let answered = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&answered);
        let small = answer(body);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("upstream".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve(listener, small, &counter, stopped))
        })?;
        Ok(Self {
            address,
            answered,
            stop,
            thread,
        })
    }

    /// How many requests have come through so far.
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn stop(self) -> anyhow::Result<()> {
        // An upstream that has ended already needs no telling; why it ended is in what its thread returns.
        self.stop.send(()).ok();
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("its thread panicked"))??;
        Ok(())
    }
}

/// The body of every answer but the download: a piece of JSON, as an app would send it.
pub(super) fn body(bytes: usize) -> Vec<u8> {
    let record = br#"{"id":"01J9Z3K7Q8","name":"Ada Lovelace","roles":["member","editor"],"active":true},"#;
    record.iter().copied().cycle().take(bytes).collect()
}

fn answer(body: &[u8]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nDate: Mon, 02 Nov 2026 09:00:00 GMT\r\nContent-Type: application/json\r\n\
         Cache-Control: no-store\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

async fn serve(
    listener: std::net::TcpListener,
    small: Vec<u8>,
    answered: &Arc<AtomicU64>,
    mut stopped: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let small = Arc::new(small);
    let large = Arc::new(answer(&vec![b'x'; DOWNLOAD_BYTES]));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let (small, large, answered) = (Arc::clone(&small), Arc::clone(&large), Arc::clone(answered));
                connections.spawn(async move { connection(stream, &small, &large, &answered).await });
            }
            // Subjects close as they like; what a client misses, the client reports.
            Some(_) = connections.join_next() => {}
            _ = &mut stopped => return Ok(()),
        }
    }
}

/// One request after the other, none with a body.
async fn connection(mut stream: TcpStream, small: &[u8], large: &[u8], answered: &AtomicU64) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(HEAD_BYTES_MAX);
    loop {
        while let Some(end) = memmem::find(&buffer, b"\r\n\r\n") {
            let wants_large = buffer
                .get(4..)
                .is_some_and(|rest| rest.starts_with(DOWNLOAD_PATH.as_bytes()));
            buffer.drain(..end + 4);
            answered.fetch_add(1, Ordering::Relaxed);
            stream.write_all(if wants_large { large } else { small }).await?;
        }
        if buffer.len() >= HEAD_BYTES_MAX || stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}
