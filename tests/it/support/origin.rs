//! A scripted upstream on a bare socket: it records the exact bytes it got and answers as it is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::wait;

const RECORD_BYTES_MAX: usize = 64 << 20;

/// What to do with one request, once its head is complete.
#[derive(Clone)]
pub(crate) enum Script {
    /// These bytes, after the whole body has come.
    Answer(Vec<u8>),
    /// These bytes as soon as the gate is opened by the test.
    After(Arc<Notify>, Vec<u8>),
    /// 101, then everything comes back as it was sent.
    Echo,
    /// These bytes, then the end of the connection.
    Close(Vec<u8>),
    Never,
    /// These bytes as soon as the test opens the gate; nothing of the body is ever read, and the connection stays.
    Deaf(Arc<Notify>, Vec<u8>),
    /// These bytes, after the whole body has come, of which nothing is read before the test opens the gate.
    Rested(Arc<Notify>, Vec<u8>),
    /// The first piece after the head, each further one when the test opens the gate; the body is recorded meanwhile.
    Pieces(Arc<Notify>, Vec<Vec<u8>>),
}

/// Picks the script by the head of the request.
type Choose = dyn Fn(&str) -> Script + Send + Sync;

pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    heads: Arc<Mutex<Vec<String>>>,
    acceptor: JoinHandle<()>,
}

/// A whole answer with a length.
pub(crate) fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

impl Origin {
    pub(crate) async fn answering(body: &str) -> Self {
        let answer = ok(body);
        Self::start(move |_| Script::Answer(answer.clone())).await
    }

    pub(crate) async fn start(choose: impl Fn(&str) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let received = Arc::new(Mutex::new(Vec::new()));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, chosen) = (Arc::clone(&heads), choose);
        let choose = move |head: &str| {
            seen.lock()
                .expect("no test thread panics while it records")
                .push(head.to_string());
            chosen(head)
        };
        let (records, choose): (_, Arc<Choose>) = (Arc::clone(&received), Arc::new(choose));
        let acceptor = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&records), Arc::clone(&choose)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            received,
            heads,
            acceptor,
        }
    }

    /// The heads of all requests so far, as a server reads them.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads
            .lock()
            .expect("no test thread panics while it records")
            .clone()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What each connection sent, byte for byte, in the order of the first byte.
    pub(crate) fn received(&self) -> Vec<Vec<u8>> {
        self.received
            .lock()
            .expect("no test thread panics while it records")
            .clone()
    }

    pub(crate) fn text(&self) -> String {
        self.received()
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    }

    pub(crate) async fn wait_for(&self, text: &str) {
        wait::until(&format!("{text:?} at the upstream"), async || {
            self.text().contains(text).then_some(())
        })
        .await;
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

struct Recorder {
    stream: TcpStream,
    records: Arc<Mutex<Vec<Vec<u8>>>>,
    slot: Option<usize>,
    buffer: Vec<u8>,
}

impl Recorder {
    async fn fill(&mut self) -> Option<()> {
        let before = self.buffer.len();
        if self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
            return None;
        }
        let mut records = self.records.lock().expect("no test thread panics while it records");
        let slot = *self.slot.get_or_insert_with(|| {
            records.push(Vec::new());
            records.len() - 1
        });
        let record = records.get_mut(slot)?;
        record.extend(self.buffer.get(before..)?);
        assert!(record.len() < RECORD_BYTES_MAX, "an endless request");
        Some(())
    }

    /// Records what comes until the test opens the gate.
    async fn fill_until(&mut self, gate: &Notify) -> Option<()> {
        let mut opened = std::pin::pin!(gate.notified());
        loop {
            tokio::select! {
                () = &mut opened => return Some(()),
                filled = self.fill() => filled?,
            }
        }
    }

    /// The position just behind this mark.
    async fn behind(&mut self, mark: &[u8]) -> Option<usize> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return Some(at + mark.len());
            }
            self.fill().await?;
        }
    }

    async fn head(&mut self) -> Option<String> {
        let end = self.behind(b"\r\n\r\n").await?;
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        Some(String::from_utf8_lossy(&head).into_owned())
    }

    async fn skip_body(&mut self, head: &str) -> Option<()> {
        let head = head.to_ascii_lowercase();
        if head.contains("transfer-encoding: chunked") {
            return self.skip_chunks().await;
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        self.skip(length.map_or(0, |length| length.trim().parse().unwrap_or(0)))
            .await
    }

    async fn skip_chunks(&mut self) -> Option<()> {
        loop {
            let size = usize::from_str_radix(&self.line().await?, 16).ok()?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Some(());
            }
            self.skip(size + 2).await?;
        }
    }

    async fn line(&mut self) -> Option<String> {
        let end = self.behind(b"\r\n").await?;
        let line: Vec<u8> = self.buffer.drain(..end).take(end - 2).collect();
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    async fn skip(&mut self, length: usize) -> Option<()> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        self.buffer.drain(..length);
        Some(())
    }
}

async fn serve(stream: TcpStream, records: Arc<Mutex<Vec<Vec<u8>>>>, choose: Arc<Choose>) {
    let mut recorder = Recorder {
        stream,
        records,
        slot: None,
        buffer: Vec::new(),
    };
    while let Some(head) = recorder.head().await {
        if answer(&mut recorder, &head, choose(&head)).await.is_none() {
            return;
        }
    }
}

/// `None` ends the connection.
async fn answer(recorder: &mut Recorder, head: &str, script: Script) -> Option<()> {
    match script {
        Script::Answer(bytes) => {
            recorder.skip_body(head).await?;
            recorder.stream.write_all(&bytes).await.ok()
        }
        Script::After(gate, bytes) => {
            recorder.skip_body(head).await?;
            gate.notified().await;
            recorder.stream.write_all(&bytes).await.ok()
        }
        Script::Deaf(gate, bytes) => {
            gate.notified().await;
            recorder.stream.write_all(&bytes).await.ok()?;
            std::future::pending().await
        }
        Script::Rested(gate, bytes) => {
            gate.notified().await;
            recorder.skip_body(head).await?;
            recorder.stream.write_all(&bytes).await.ok()
        }
        Script::Echo => echo(recorder).await,
        Script::Close(bytes) => {
            recorder.stream.write_all(&bytes).await.ok()?;
            None
        }
        Script::Pieces(gate, pieces) => {
            for (number, piece) in pieces.iter().enumerate() {
                if number > 0 {
                    recorder.fill_until(&gate).await?;
                }
                recorder.stream.write_all(piece).await.ok()?;
            }
            recorder.skip_body(head).await
        }
        Script::Never => {
            while recorder.fill().await.is_some() {}
            None
        }
    }
}

async fn echo(recorder: &mut Recorder) -> Option<()> {
    let head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    recorder.stream.write_all(head).await.ok()?;
    loop {
        if recorder.buffer.is_empty() {
            recorder.fill().await?;
        }
        let bytes = std::mem::take(&mut recorder.buffer);
        recorder.stream.write_all(&bytes).await.ok()?;
    }
}
