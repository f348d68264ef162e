//! The server's end of `archive_command` and `restore_command`: checks whose log it is, archives or feeds it, counts.

use std::collections::HashMap;
use std::fs::File as OpenFile;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::archive::{Archive, Error, Found, Pushed};
use super::feed::Feed;
use super::metrics::Metrics;
use super::name::File;
use super::socket::{Act, Answer, Request, parse_cluster};
use crate::clock::Clock;
use crate::postgres::{self, Admin, Target};
use crate::repository::layout::Cluster;
use crate::repository::{Keys, Repository};
use crate::telemetry::cause::chain;

/// Which cluster is ours, from one start to the next.
const CLUSTER_FILE: &str = "pitr-cluster";
/// A feed for which nobody has asked so long lets go of what it fetched ahead.
const FEED_REST: Duration = Duration::from_secs(30);
/// Old and new cluster, and a drill or two.
const FEEDS_MAX: usize = 8;

/// What an archiver needs.
#[derive(Debug)]
pub struct Parts {
    pub repository: Repository,
    pub keys: Arc<Keys>,
    /// Whose log it is; `None`: nobody to ask, so that every cluster's log is archived, each in its own folder.
    pub target: Option<Target>,
    pub state_dir: PathBuf,
    pub clock: Clock,
    pub metrics: Metrics,
}

/// Answers requests; one per process.
#[derive(Debug)]
pub struct Archiver {
    parts: Parts,
    ours: Mutex<Option<Cluster>>,
    last: Mutex<Option<Last>>,
    feeds: Mutex<HashMap<String, Fed>>,
}

/// What was archived last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    pub file: File,
    pub at: Timestamp,
}

#[derive(Debug)]
struct Fed {
    feed: Arc<Feed>,
    asked: Duration,
}

impl Archiver {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let remembered = std::fs::read_to_string(parts.state_dir.join(CLUSTER_FILE)).ok();
        let ours = remembered.as_deref().map(str::trim).and_then(parse_cluster);
        Self {
            parts,
            ours: Mutex::new(ours),
            last: Mutex::default(),
            feeds: Mutex::default(),
        }
    }

    /// Where it archives.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.parts.repository
    }

    /// The cluster whose log is archived, as far as it is known.
    #[must_use]
    pub fn ours(&self) -> Option<Cluster> {
        lock(&self.ours).clone()
    }

    /// What was archived last since the start.
    #[must_use]
    pub fn last(&self) -> Option<Last> {
        lock(&self.last).clone()
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    #[must_use]
    pub fn archive(&self, cluster: Cluster) -> Archive {
        let parts = &self.parts;
        Archive::open(parts.repository.clone(), Arc::clone(&parts.keys), cluster)
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request, file: OpenFile) -> Answer {
        let answer = match request.act {
            Act::Push => self.push(&request, file).await,
            Act::Get => self.get(&request, file).await,
            Act::Check => match self.admit(&request.cluster).await {
                Ok(()) => Answer::Done,
                Err(why) => Answer::Failed(why),
            },
        };
        if let Answer::Failed(why) = &answer {
            tracing::warn!(file = %request.file, %why, "the archive did not do what PostgreSQL asked");
        }
        answer
    }

    async fn push(&self, request: &Request, file: OpenFile) -> Answer {
        let metrics = &self.parts.metrics;
        if let Err(why) = self.admit(&request.cluster).await {
            metrics.push_failures.inc();
            return Answer::Failed(why);
        }
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let begun = self.parts.clock.tick();
        let pushed = self
            .archive(request.cluster.clone())
            .push_file(request.file, file)
            .await;
        match pushed {
            Ok(pushed) => {
                self.archived(request.file, pushed, bytes, begun);
                Answer::Done
            }
            Err(error) => {
                metrics.push_failures.inc();
                Answer::Failed(chain(&error))
            }
        }
    }

    /// Archives the file at `path` as `file` of `cluster`, and counts it.
    ///
    /// # Errors
    /// Why it is not archived.
    pub(super) async fn push_path(&self, cluster: &Cluster, file: File, path: &Path) -> Result<(), Error> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::Read { file, source })?;
        let begun = self.parts.clock.tick();
        let pushed = self.archive(cluster.clone()).push(&file.to_string(), path).await?;
        self.archived(file, pushed, metadata.len(), begun);
        Ok(())
    }

    /// Counts a file that is durable now; `begun` is when it arrived.
    fn archived(&self, file: File, pushed: Pushed, bytes: u64, begun: Duration) {
        let now = self.parts.clock.now();
        let took = now.tick.saturating_sub(begun);
        self.parts.metrics.pushed(pushed, bytes, took, now.wall);
        *lock(&self.last) = Some(Last { file, at: now.wall });
        if pushed == Pushed::Already {
            tracing::info!(%file, "archived already, and identical");
        }
    }

    async fn get(&self, request: &Request, file: OpenFile) -> Answer {
        let feed = self.feed(&request.cluster);
        match feed.get(request.file, file).await {
            Ok(Found::Yes) => Answer::Done,
            Ok(Found::No) => Answer::Absent,
            Err(error) => Answer::Failed(chain(&error)),
        }
    }

    fn feed(&self, cluster: &Cluster) -> Arc<Feed> {
        let asked = self.parts.clock.tick();
        let mut feeds = lock(&self.feeds);
        if feeds.len() >= FEEDS_MAX && !feeds.contains_key(&cluster.prefix()) {
            feeds.clear();
        }
        let fed = feeds.entry(cluster.prefix()).or_insert_with(|| Fed {
            feed: Arc::new(Feed::new(self.archive(cluster.clone()))),
            asked,
        });
        fed.asked = asked;
        Arc::clone(&fed.feed)
    }

    /// Lets go of feeds that nobody asks any more; called now and then.
    pub fn rest(&self) {
        let now = self.parts.clock.tick();
        lock(&self.feeds).retain(|_, fed| now.saturating_sub(fed.asked) < FEED_REST);
    }

    /// Whether `cluster` is ours. Asks the server when that is not known, or is said to have changed, as `pg_upgrade`
    /// does. While the server cannot be asked, what was known holds.
    ///
    /// # Errors
    /// Why not, as a sentence.
    async fn admit(&self, cluster: &Cluster) -> Result<(), String> {
        let Some(target) = &self.parts.target else {
            *lock(&self.ours) = Some(cluster.clone());
            return Ok(());
        };
        if self.ours().as_ref() == Some(cluster) {
            return Ok(());
        }
        let ours = identify(target)
            .await
            .map_err(|error| format!("whose log this is cannot be checked: {}", chain(&error)))?;
        self.remember(&ours);
        if ours == *cluster {
            return Ok(());
        }
        Err(format!(
            "this is the log of cluster {}, but [database] is cluster {}",
            cluster.prefix(),
            ours.prefix()
        ))
    }

    /// Notes which cluster is ours.
    pub fn remember(&self, ours: &Cluster) {
        let before = lock(&self.ours).replace(ours.clone());
        if before.as_ref() != Some(ours) {
            // Only a cache: without it the server is asked again.
            let path = self.parts.state_dir.join(CLUSTER_FILE);
            drop(std::fs::write(path, format!("{}\n", ours.prefix())));
        }
    }
}

/// The cluster that `target` is.
///
/// # Errors
/// When it cannot be asked.
pub async fn identify(target: &Target) -> Result<Cluster, postgres::Error> {
    whose(&Admin::connect(target, target.database(), "foregate wal").await?).await
}

/// The cluster that `admin` is in.
///
/// # Errors
/// Of the server.
pub async fn whose(admin: &Admin) -> Result<Cluster, postgres::Error> {
    Ok(Cluster {
        system_identifier: admin.system_identifier().await?,
        major: admin.server_version().await? / 10_000,
    })
}

impl Error {
    /// The error and its causes, as one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archiver(directory: &Path) -> Archiver {
        let repository = format!("file://{}", directory.join("repository").display());
        let nowhere = directory.join("no-server");
        Archiver::new(Parts {
            repository: Repository::open(&repository).expect("a repository"),
            keys: Arc::new(Keys::new(&[], None).expect("no keys")),
            target: Some(Target::local(&nowhere, 5432, "postgres", "postgres").expect("a target")),
            state_dir: directory.to_owned(),
            clock: Clock::system(),
            metrics: Metrics::new().expect("metrics"),
        })
    }

    #[tokio::test]
    async fn after_pg_upgrade_the_new_clusters_log_is_ours_and_the_old_ones_no_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let cluster = |system_identifier: &str, major| Cluster {
            system_identifier: system_identifier.to_owned(),
            major,
        };
        let (before, after) = (cluster("7566000000000000001", 15), cluster("7566000000000000002", 16));
        let first = archiver(directory.path());
        first.remember(&before);
        assert_eq!(first.admit(&before).await, Ok(()), "known without asking");
        let asked = first.admit(&after).await.expect_err("the server cannot be asked");
        assert!(asked.contains("cannot be checked"), "{asked}");
        assert_eq!(first.ours(), Some(before.clone()), "what was known holds");
        first.remember(&after);
        assert_eq!(first.admit(&after).await, Ok(()));
        assert!(first.admit(&before).await.is_err());
        let again = archiver(directory.path());
        assert_eq!(again.ours(), Some(after), "from one start to the next");
    }
}
