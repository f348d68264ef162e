//! What clients do to a subject. Every load counts only answers that are what they should be, and fails at the first
//! that is not.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustls::ClientConfig;
use tokio::task::JoinSet;

use super::client::{Answer, Http1, Http2, request};

/// Handshakes that run at a time.
const HANDSHAKES: usize = 32;

/// What each answer must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) status: u16,
    /// `None`: the body is the subject's own.
    pub(super) body_bytes: Option<usize>,
}

impl Expected {
    fn check(self, answer: Answer) -> anyhow::Result<()> {
        ensure!(
            answer.status == self.status,
            "answered {} instead of {}",
            answer.status,
            self.status
        );
        ensure!(
            self.body_bytes.is_none_or(|bytes| bytes == answer.body_bytes),
            "a body of {} bytes",
            answer.body_bytes
        );
        ensure!(!answer.closes, "the subject closes a connection that was to be kept");
        Ok(())
    }
}

/// HTTP/1.1 connections that each send one request after the other.
#[derive(Debug)]
pub(super) struct Http1Load {
    pub(super) connections: Vec<Http1>,
    request: Arc<[u8]>,
    expected: Expected,
}

impl Http1Load {
    /// Opens `count` connections and sends one request over each.
    pub(super) async fn open(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        count: usize,
        path: &str,
        expected: Expected,
    ) -> anyhow::Result<Self> {
        let mut load = Self {
            connections: Vec::new(),
            request: request(path, "").into(),
            expected,
        };
        load.grow(address, tls, count).await?;
        Ok(load)
    }

    /// Opens `count` connections over which nothing is said yet.
    pub(super) async fn silent(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        count: usize,
        expected: Expected,
    ) -> anyhow::Result<Self> {
        let mut load = Self::open(address, tls, 0, "/", expected).await?;
        for _ in 0..count {
            load.connections.push(Http1::connect(address, tls).await?);
        }
        Ok(load)
    }

    /// Opens `count` more.
    pub(super) async fn grow(
        &mut self,
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        count: usize,
    ) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        for offset in 0..HANDSHAKES {
            let (tls, request, expected) = (Arc::clone(tls), Arc::clone(&self.request), self.expected);
            tasks.spawn_local(async move {
                let mut opened = Vec::new();
                for _ in (offset..count).step_by(HANDSHAKES) {
                    let mut connection = Http1::connect(address, &tls).await?;
                    expected.check(connection.exchange(&request, |_| ()).await?)?;
                    connection.rest();
                    opened.push(connection);
                }
                anyhow::Ok(opened)
            });
        }
        while let Some(opened) = tasks.join_next().await {
            self.connections.extend(opened??);
        }
        Ok(())
    }

    pub(super) async fn run(&mut self, duration: Duration) -> anyhow::Result<u64> {
        let deadline = Instant::now() + duration;
        let mut tasks = JoinSet::new();
        for mut connection in self.connections.drain(..) {
            let (request, expected) = (Arc::clone(&self.request), self.expected);
            tasks.spawn_local(async move {
                let mut answered = 0;
                while Instant::now() < deadline {
                    expected.check(connection.exchange(&request, |_| ()).await?)?;
                    answered += 1;
                }
                anyhow::Ok((connection, answered))
            });
        }
        let mut sum = 0;
        while let Some(done) = tasks.join_next().await {
            let (connection, answered) = done??;
            self.connections.push(connection);
            sum += answered;
        }
        Ok(sum)
    }

    /// Sends at a fixed rate, spread over the connections, and returns how long each answer took, sorted.
    pub(super) async fn pace(&mut self, duration: Duration, per_second: u32) -> anyhow::Result<Vec<Duration>> {
        let count = u32::try_from(self.connections.len())?;
        let begin = tokio::time::Instant::now();
        let mut tasks = JoinSet::new();
        for (offset, mut connection) in (0..count).zip(self.connections.drain(..)) {
            let (request, expected) = (Arc::clone(&self.request), self.expected);
            tasks.spawn_local(async move {
                let mut taken = Vec::new();
                let period = Duration::from_secs(1) * count / per_second;
                let mut interval = tokio::time::interval_at(begin + period * offset / count, period);
                while begin.elapsed() < duration {
                    interval.tick().await;
                    let sent = Instant::now();
                    expected.check(connection.exchange(&request, |_| ()).await?)?;
                    taken.push(sent.elapsed());
                }
                anyhow::Ok((connection, taken))
            });
        }
        let mut all = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (connection, taken) = done??;
            self.connections.push(connection);
            all.extend(taken);
        }
        all.sort_unstable();
        Ok(all)
    }

    /// One request for each of the clients with these numbers.
    pub(super) async fn speak_for(&mut self, clients: Range<u32>) -> anyhow::Result<u64> {
        let step = self.connections.len();
        let mut tasks = JoinSet::new();
        for (offset, mut connection) in self.connections.drain(..).enumerate() {
            let (clients, expected) = (clients.clone(), self.expected);
            tasks.spawn_local(async move {
                let mut answered = 0;
                for client in clients.skip(offset).step_by(step) {
                    let [_, high, middle, low] = client.to_be_bytes();
                    let request = request("/", &format!("X-Forwarded-For: 10.{high}.{middle}.{low}\r\n"));
                    expected.check(connection.exchange(&request, |_| ()).await?)?;
                    answered += 1;
                }
                anyhow::Ok((connection, answered))
            });
        }
        let mut sum = 0;
        while let Some(done) = tasks.join_next().await {
            let (connection, answered) = done??;
            self.connections.push(connection);
            sum += answered;
        }
        Ok(sum)
    }
}

/// HTTP/2 connections with several streams each.
#[derive(Debug)]
pub(super) struct Http2Load {
    connections: Vec<Http2>,
    streams: usize,
    expected: Expected,
    /// End with the load.
    _drivers: JoinSet<Result<(), h2::Error>>,
}

impl Http2Load {
    pub(super) async fn open(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        count: usize,
        streams: usize,
        expected: Expected,
    ) -> anyhow::Result<Self> {
        let mut drivers = JoinSet::new();
        let mut connections = Vec::new();
        for _ in 0..count {
            let mut connection = Http2::connect(address, tls, &mut drivers).await?;
            expected.check(connection.exchange().await?)?;
            connections.push(connection);
        }
        Ok(Self {
            connections,
            streams,
            expected,
            _drivers: drivers,
        })
    }

    pub(super) async fn run(&mut self, duration: Duration) -> anyhow::Result<u64> {
        let deadline = Instant::now() + duration;
        let mut tasks = JoinSet::new();
        for connection in &self.connections {
            for _ in 0..self.streams {
                let (mut connection, expected) = (connection.clone(), self.expected);
                tasks.spawn_local(async move {
                    let mut answered = 0;
                    while Instant::now() < deadline {
                        expected.check(connection.exchange().await?)?;
                        answered += 1;
                    }
                    anyhow::Ok(answered)
                });
            }
        }
        let mut sum = 0;
        while let Some(answered) = tasks.join_next().await {
            sum += answered??;
        }
        Ok(sum)
    }
}

/// New connections with one request each.
pub(super) async fn handshakes(
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
    expected: Expected,
    duration: Duration,
) -> anyhow::Result<u64> {
    let deadline = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for _ in 0..HANDSHAKES {
        let tls = Arc::clone(tls);
        tasks.spawn_local(async move {
            let request = request("/", "");
            let mut answered = 0;
            while Instant::now() < deadline {
                let mut connection = Http1::connect(address, &tls).await?;
                expected.check(connection.exchange(&request, |_| ()).await?)?;
                connection.close().await?;
                answered += 1;
            }
            anyhow::Ok(answered)
        });
    }
    let mut sum = 0;
    while let Some(answered) = tasks.join_next().await {
        sum += answered??;
    }
    Ok(sum)
}
