//! Results of drills, kept beside the base backups: the newest hundred of a cluster.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{Drill, Finding};
use crate::pitr::recover::Phases;
use crate::pitr::{Error, Recovery};
use crate::repository;
use crate::repository::layout::{self, Cluster};

const KEPT: usize = 100;
/// Those of some clusters.
const REMEMBERED_MAX: usize = 4 * KEPT;

/// Drills by the keys of their records, which never change once they are written.
pub(in crate::pitr) type Records = Arc<Mutex<HashMap<String, Drill>>>;

const RECORD_BYTES_MAX: u64 = 1024 * 1024;

/// As it is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    format: u32,
    id: Ulid,
    at: Timestamp,
    target: Option<Timestamp>,
    base: Option<Ulid>,
    /// Before it was measured, it was none.
    #[serde(default)]
    plan_seconds: f64,
    unpack_seconds: f64,
    verify_seconds: f64,
    replay_seconds: f64,
    promote_seconds: f64,
    check_seconds: f64,
    recovery_time_seconds: f64,
    recovery_point_seconds: Option<f64>,
    unpacked_bytes: u64,
    replayed_bytes: u64,
    findings: Vec<StoredFinding>,
    failure: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredFinding {
    what: String,
    passed: bool,
    found: String,
}

impl Stored {
    fn of(drill: &Drill) -> Self {
        Self {
            format: 1,
            id: drill.id,
            at: drill.at,
            target: drill.target,
            base: drill.base,
            plan_seconds: drill.phases.plan.as_secs_f64(),
            unpack_seconds: drill.phases.unpack.as_secs_f64(),
            verify_seconds: drill.phases.verify.as_secs_f64(),
            replay_seconds: drill.phases.replay.as_secs_f64(),
            promote_seconds: drill.phases.promote.as_secs_f64(),
            check_seconds: drill.check.as_secs_f64(),
            recovery_time_seconds: drill.recovery_time().as_secs_f64(),
            recovery_point_seconds: drill.recovery_point.map(|point| point.as_secs_f64()),
            unpacked_bytes: drill.unpacked_bytes,
            replayed_bytes: drill.replayed_bytes,
            findings: drill
                .findings
                .iter()
                .map(|finding| StoredFinding {
                    what: finding.what.clone(),
                    passed: finding.passed,
                    found: finding.found.clone(),
                })
                .collect(),
            failure: drill.failure.clone(),
        }
    }

    fn into_drill(self) -> Drill {
        let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Drill {
            id: self.id,
            at: self.at,
            target: self.target,
            base: self.base,
            phases: Phases {
                plan: time(self.plan_seconds),
                unpack: time(self.unpack_seconds),
                verify: time(self.verify_seconds),
                replay: time(self.replay_seconds),
                promote: time(self.promote_seconds),
            },
            check: time(self.check_seconds),
            unpacked_bytes: self.unpacked_bytes,
            replayed_bytes: self.replayed_bytes,
            recovery_point: self.recovery_point_seconds.map(time),
            findings: self
                .findings
                .into_iter()
                .map(|finding| Finding {
                    what: finding.what,
                    passed: finding.passed,
                    found: finding.found,
                })
                .collect(),
            failure: self.failure,
        }
    }
}

impl Recovery {
    /// Writes a result down and lets the oldest go.
    pub(super) async fn keep(&self, cluster: &Cluster, drill: &Drill) -> Result<(), Error> {
        let repository = &self.bases.repository;
        let json = serde_json::to_vec_pretty(&Stored::of(drill)).unwrap_or_default();
        repository.create(&layout::drill(cluster, drill.id), json).await?;
        let mut keys = repository.list(&layout::drills(cluster)).await?;
        keys.sort();
        let surplus = keys.len().saturating_sub(KEPT);
        for (key, _) in keys.iter().take(surplus) {
            repository.delete(key).await?;
        }
        Ok(())
    }

    /// The results of past drills, newest first.
    ///
    /// # Errors
    /// Of the store.
    pub async fn drills(&self) -> Result<Vec<Drill>, Error> {
        let cluster = self.cluster().await?;
        self.drills_of(&cluster, KEPT).await
    }

    pub(super) async fn drills_of(&self, cluster: &Cluster, most: usize) -> Result<Vec<Drill>, Error> {
        let repository = &self.bases.repository;
        let mut keys = repository.list(&layout::drills(cluster)).await?;
        keys.sort_by(|a, b| b.cmp(a));
        let mut drills = Vec::new();
        for (key, _) in keys.iter().take(most) {
            if let Some(known) = self.remembered().get(key) {
                drills.push(known.clone());
                continue;
            }
            let Some(bytes) = repository.read(key, RECORD_BYTES_MAX).await? else {
                continue;
            };
            let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| repository::Error::Manifest {
                key: key.clone(),
                reason: error.to_string(),
            })?;
            let drill = stored.into_drill();
            let mut remembered = self.remembered();
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
            remembered.insert(key.clone(), drill.clone());
            drills.push(drill);
        }
        Ok(drills)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<String, Drill>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
