//! One trial: start a subject, see that it works, put load on it, read what that cost, stop it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustls::ClientConfig;
use tempfile::TempDir;

use super::accounting::Tree;
use super::blocked::Door;
use super::certificate::Certificate;
use super::client::{Http1, request};
use super::configuration::Scene;
use super::load::{Expected, Http1Load, Http2Load, handshakes};
use super::row::Row;
use super::settings::Settings;
use super::subject::{Running, Subject, free_address};
use super::syscalls::Method;
use super::upstream::{self, DOWNLOAD_BYTES, DOWNLOAD_PATH, Upstream};

/// Before the measurement: until heaps and connection pools have the size that they keep.
const WARM_UP: Duration = Duration::from_millis(500);
/// Until what a subject holds for a connection that has done something is down to what it holds for an idle one.
const SETTLE: Duration = Duration::from_secs(5);
/// Connections or clients that are there before memory is measured: what the first ones cost is the program's own.
const BASE_CONNECTIONS: usize = 200;
const BASE_CLIENTS: u32 = 5_000;
const LATENCY_RATE: u32 = 4_000;

/// What one trial found: a value for each line of its row.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) values: Vec<f64>,
    /// Answers per second, where the load was as much as the subject would take.
    pub(super) per_second: Option<f64>,
    /// Part of its core that the subject used meanwhile.
    pub(super) busy: Option<f64>,
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.2?}", self.values)?;
        if let (Some(per_second), Some(busy)) = (self.per_second, self.busy) {
            write!(formatter, " at {per_second:.0}/s, {:.0} % of its core", busy * 100.0)?;
        }
        Ok(())
    }
}

/// What all trials share.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    settings: &'a Settings,
    directory: TempDir,
    certificate: Certificate,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    upstream: Upstream,
    /// What the upstream says to everything but a download.
    body: Vec<u8>,
    method: Method,
}

impl<'a> Bench<'a> {
    pub(super) fn prepare(settings: &'a Settings) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("foregate-peers-").tempdir()?;
        let certificate = Certificate::generate(directory.path())?;
        let body = upstream::body(settings.body_bytes);
        Ok(Self {
            settings,
            http1: certificate.client("http/1.1")?,
            http2: certificate.client("h2")?,
            certificate,
            directory,
            upstream: Upstream::start(&body)?,
            body,
            method: Method::available(),
        })
    }

    pub(super) fn finish(self) -> anyhow::Result<()> {
        self.upstream.stop()?;
        self.directory.close()?;
        Ok(())
    }

    pub(super) async fn trial(&self, row: Row, subject: Subject) -> anyhow::Result<Sample> {
        let directory = tempfile::Builder::new().tempdir_in(self.directory.path())?;
        let scene = Scene {
            listen: free_address()?,
            admin: free_address()?,
            upstream: self.upstream.address,
            certificate: &self.certificate,
            directory: directory.path(),
            quotas: row.quotas(),
            connections_max: self.settings.connections + BASE_CONNECTIONS + 100,
        };
        let mut running = subject.start(self.settings, &scene)?;
        let outcome = match self.ready(&mut running).await {
            Ok(()) => self.measure(row, &running, &scene).await,
            Err(error) => Err(error),
        };
        let stopped = running.stop().await;
        let sample = outcome?;
        stopped?;
        Ok(sample)
    }

    /// Waits until the subject passes on what the upstream says.
    async fn ready(&self, running: &mut Running) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            running.ensure_alive()?;
            match Http1::connect(running.address, &self.http1).await {
                Ok(mut connection) => {
                    let mut body = Vec::new();
                    let answer = connection
                        .exchange(&request("/", ""), |piece| body.extend_from_slice(piece))
                        .await?;
                    ensure!(answer.status == 200, "its first answer is {}", answer.status);
                    ensure!(body == self.body, "its first answer is not what the upstream said");
                    return Ok(());
                }
                Err(error) => ensure!(Instant::now() < deadline, "does not come up: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn measure(&self, row: Row, running: &Running, scene: &Scene<'_>) -> anyhow::Result<Sample> {
        let tree = running.tree()?;
        let address = running.address;
        let passed = Expected {
            status: 200,
            body_bytes: Some(self.body.len()),
        };
        match row {
            Row::Http1 => {
                let mut load = Http1Load::open(address, &self.http1, 64, "/", passed).await?;
                self.cost(&tree, async |time| load.run(time).await).await
            }
            Row::Http2 => {
                let mut load = Http2Load::open(address, &self.http2, 16, 16, passed).await?;
                self.cost(&tree, async |time| load.run(time).await).await
            }
            Row::Handshake => {
                self.cost(&tree, async |time| handshakes(address, &self.http1, passed, time).await)
                    .await
            }
            Row::Download => {
                let all = Expected {
                    status: 200,
                    body_bytes: Some(DOWNLOAD_BYTES),
                };
                let mut load = Http1Load::open(address, &self.http1, 8, DOWNLOAD_PATH, all).await?;
                self.cost(&tree, async |time| load.run(time).await).await
            }
            Row::Refusal => {
                let refused = Expected {
                    status: 429,
                    body_bytes: None,
                };
                let before = self.upstream.answered();
                let mut load = Http1Load::open(address, &self.http1, 64, "/", refused).await?;
                let sample = self.cost(&tree, async |time| load.run(time).await).await?;
                ensure!(
                    self.upstream.answered() == before,
                    "refused requests reached the upstream"
                );
                Ok(sample)
            }
            Row::Blocked => {
                let door = Door::open(running.subject, address, scene.admin, &self.http1).await?;
                self.cost(&tree, async |time| door.turn_away(time).await).await
            }
            Row::Idle => self.idle(&tree, running, passed).await,
            Row::Tracked => self.tracked(&tree, running, passed).await,
            Row::Syscalls => {
                let mut load = Http1Load::open(address, &self.http1, 64, "/", passed).await?;
                load.run(WARM_UP).await?;
                let counting = self.method.begin(&tree, scene.directory).await?;
                let answered = load.run(self.settings.duration.min(Duration::from_secs(2))).await?;
                Ok(plain([counting.end()? / count(answered)]))
            }
            Row::Latency => {
                let mut load = Http1Load::open(address, &self.http1, 64, "/", passed).await?;
                load.pace(WARM_UP, LATENCY_RATE).await?;
                let taken = load.pace(self.settings.duration, LATENCY_RATE).await?;
                let percentile = |percent: usize| {
                    let place = (taken.len() * percent / 100).min(taken.len().saturating_sub(1));
                    taken.get(place).map_or(f64::NAN, |taken| taken.as_secs_f64() * 1e6)
                };
                Ok(plain([percentile(50), percentile(99)]))
            }
        }
    }

    /// CPU time per answer, in microseconds, after a warm-up.
    async fn cost(
        &self,
        tree: &Tree,
        mut run: impl AsyncFnMut(Duration) -> anyhow::Result<u64>,
    ) -> anyhow::Result<Sample> {
        run(WARM_UP).await?;
        let before = tree.cpu()?;
        let begin = Instant::now();
        let answered = run(self.settings.duration).await?;
        let elapsed = begin.elapsed().as_secs_f64();
        let spent = tree.cpu()?.saturating_sub(before).as_secs_f64();
        ensure!(answered > 0, "no answer at all");
        Ok(Sample {
            values: vec![spent * 1e6 / count(answered)],
            per_second: Some(count(answered) / elapsed),
            busy: Some(spent / elapsed),
        })
    }

    async fn idle(&self, tree: &Tree, running: &Running, passed: Expected) -> anyhow::Result<Sample> {
        let connections = self.settings.connections;
        let mut load = Http1Load::open(running.address, &self.http1, BASE_CONNECTIONS, "/", passed).await?;
        tokio::time::sleep(SETTLE).await;
        let before = tree.memory_bytes()?;
        load.grow(running.address, &self.http1, connections).await?;
        tokio::time::sleep(SETTLE).await;
        let after = tree.memory_bytes()?;
        load.run(Duration::from_millis(1))
            .await
            .context("a connection that was idle no longer works")?;
        Ok(plain([difference(after, before)
            / count(u64::try_from(connections)?)
            / 1024.0]))
    }

    async fn tracked(&self, tree: &Tree, running: &Running, passed: Expected) -> anyhow::Result<Sample> {
        let last = BASE_CLIENTS + self.settings.clients;
        let mut load = Http1Load::silent(running.address, &self.http1, 64, passed).await?;
        load.speak_for(0..BASE_CLIENTS).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = tree.memory_bytes()?;
        let begin = Instant::now();
        let answered = load.speak_for(BASE_CLIENTS..last).await?;
        ensure!(
            begin.elapsed() < Duration::from_secs(28),
            "so slow that the first clients are forgotten"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(plain([difference(tree.memory_bytes()?, before) / count(answered)]))
    }
}

fn plain<const N: usize>(values: [f64; N]) -> Sample {
    Sample {
        values: values.to_vec(),
        per_second: None,
        busy: None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn count(number: u64) -> f64 {
    number as f64
}

/// Of two sizes; negative if memory was given back.
fn difference(after: u64, before: u64) -> f64 {
    count(after) - count(before)
}
