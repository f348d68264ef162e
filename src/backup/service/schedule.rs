//! What runs when. A loop looks every half minute, and whenever it is poked, for the newest period of each kind that has
//! not been served: so a restart, a suspended machine or a jump of the clock neither forgets a run nor repeats one.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::{Act, PART, Parts, Refusal, Service, State};
use crate::backup::task::due;
use crate::backup::verify::chain;
use crate::backup::{Entry, Error, Plan, Recovered};
use crate::repository::manifest::Level;
use crate::telemetry::health::Condition;

const LOOK: Duration = Duration::from_secs(30);
/// While a restore waits to be finished or undone, and perhaps nobody can log in.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The metrics and what is overdue are brought up to date this often although nothing runs.
const REFRESH: Duration = Duration::from_secs(300);
/// After a failure, doubled each time up to the second.
const RETRY_FIRST: Duration = Duration::from_secs(300);
const RETRY_MAX: Duration = Duration::from_secs(3_600);
/// Runs of several instances or kinds spread over this.
const JITTER_MAX_MS: u64 = 20_000;
/// Old backups that one scheduled verification reads back.
const VERIFIED_AT_A_TIME: usize = 3;

/// What the loop remembers between two looks.
#[derive(Debug, Default)]
struct Memory {
    /// The newest period of each kind of work that was served.
    served: HashMap<String, String>,
    failures: u32,
    /// The last run that was taken into account.
    judged: Option<Ulid>,
    /// No scheduled work before this tick.
    not_before: Duration,
    refreshed: Option<Duration>,
    to_verify: Vec<String>,
    /// Nothing of an earlier restore was half done at the last look.
    is_recovered: bool,
    /// Somebody was told that it is.
    is_told: bool,
}

impl Memory {
    fn wait_longer(&mut self, tick: Duration) {
        let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(8)).min(RETRY_MAX);
        self.failures += 1;
        self.not_before = tick + pause;
    }
}

impl Service {
    /// Looks after the vault until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let looking = async {
            let mut memory = Memory::default();
            loop {
                self.look(&mut memory).await;
                let pause = if memory.is_recovered { LOOK } else { LOOK_AGAIN };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.shared.poke.notified() => {}
                }
            }
        };
        tokio::select! {
            () = looking => {}
            () = stop.cancelled() => {}
        }
        self.shutdown().await;
    }

    /// Finishes or undoes a restore that a crash cut short, ours or that of a command beside us, before anything else is
    /// done and as often as it takes: after a reboot PostgreSQL may come up later than we do.
    async fn recover(&self, memory: &mut Memory) {
        let Ok(vault) = self.vault() else { return };
        let Parts { board, alerts, .. } = &self.shared.parts;
        match vault.recover().await {
            // Another process is in the middle of one, or of a backup: it leaves nothing half done, or it dies.
            Err(Error::Busy) => {
                memory.is_recovered = false;
                return;
            }
            Err(error) => {
                memory.is_recovered = false;
                let text = format!("a restore was cut short and cannot be finished yet: {}", chain(&error));
                board.set(PART, Condition::Degraded(text.clone()));
                alerts.raise("backup-recover", &text);
                memory.is_told = true;
                return;
            }
            Ok(Recovered::Nothing) => {}
            Ok(Recovered::Undone) => {
                tracing::warn!("a restore was cut short: the old database serves, the new one was dropped");
            }
            Ok(Recovered::Finished) => {
                tracing::warn!("a restore was cut short after its swap: the new database serves")
            }
        }
        memory.is_recovered = true;
        if std::mem::take(&mut memory.is_told) {
            board.set(PART, Condition::Healthy);
            alerts.resolve("backup-recover", "the restore that was cut short has been seen to");
        }
    }

    async fn look(&self, memory: &mut Memory) {
        let clock = self.shared.parts.clock;
        if self.shared.vault.load().is_none() {
            // A bucket or disk that was away may be back.
            self.open();
        }
        if self.current().is_none() {
            self.recover(memory).await;
        }
        if self.current().is_some() || self.vault().is_err() {
            return;
        }
        let tick = clock.tick();
        if memory.refreshed.is_none_or(|at| tick.saturating_sub(at) >= REFRESH) {
            memory.refreshed = Some(tick);
            if let Err(error) = self.list().await {
                self.failed(memory, &error.to_string());
                return;
            }
        }
        self.judge_last(memory, tick);
        if tick < memory.not_before {
            return;
        }
        if let Err(error) = self.begin_due(memory, clock.wall()).await
            && !matches!(error, Refusal::Busy(_))
        {
            self.failed(memory, &error.to_string());
        }
    }

    /// After a failed run the next one waits, longer each time.
    fn judge_last(&self, memory: &mut Memory, tick: Duration) {
        let mut past = self.past().into_iter();
        let Some(last) = past.find(|run| matches!(run.act, Act::Create | Act::Files)) else {
            return;
        };
        // What an earlier process did is no reason to wait.
        if memory.judged.replace(last.id) == Some(last.id) || last.started_at < self.shared.since {
            return;
        }
        match last.status().state {
            State::Failed { .. } => memory.wait_longer(tick),
            _ => memory.failures = 0,
        }
    }

    fn failed(&self, memory: &mut Memory, reason: &str) {
        memory.wait_longer(self.shared.parts.clock.tick());
        let text = format!("backup: {reason}");
        self.shared.parts.board.set(PART, Condition::Degraded(text.clone()));
        self.shared.parts.alerts.raise("backup-schedule", &text);
    }

    /// Starts the first of what is due; its end pokes the loop, which then starts the next.
    async fn begin_due(&self, memory: &mut Memory, now: Timestamp) -> Result<(), Refusal> {
        let plan = self.settings().plan.clone();
        let current =
            |schedule: &crate::tasks::calendar::Schedule| schedule.current(&plan.zone, now).map(|period| period.key);
        let is_new = |kind: &str, key: &Option<String>, memory: &Memory| {
            key.is_some() && memory.served.get(kind) != key.as_ref()
        };
        if plan
            .kinds
            .iter()
            .any(|kind| is_new(&kind.label, &current(&kind.schedule), memory))
        {
            self.begin_backup(memory, &plan, now).await?;
        }
        if self.current().is_none() {
            self.begin_files(memory, &plan, now).await?;
        }
        if self.current().is_some() {
            return Ok(());
        }
        if let Some(key) = plan
            .cleanup
            .as_ref()
            .map(current)
            .filter(|key| is_new("cleanup", key, memory))
        {
            drop(self.start_prune()?);
            memory.served.extend(key.map(|key| ("cleanup".to_owned(), key)));
            return Ok(());
        }
        if let Some(key) = plan
            .verify
            .as_ref()
            .map(current)
            .filter(|key| is_new("verify", key, memory))
        {
            // Not at the start of the process: that would read everything back at each restart.
            if memory.served.contains_key("verify") {
                memory.to_verify = self.proven_longest_ago().await?;
            }
            memory.served.extend(key.map(|key| ("verify".to_owned(), key)));
        }
        if let Some(id) = memory.to_verify.pop() {
            drop(self.start_verify(&id, false).await?);
        }
        Ok(())
    }

    /// One backup for every label that the catalogue does not show as served.
    async fn begin_backup(&self, memory: &mut Memory, plan: &Plan, now: Timestamp) -> Result<(), Refusal> {
        self.shared.is_stale.store(true, Ordering::Release);
        let entries = self.list().await?;
        let mut good = entries.iter().filter(|entry| entry.is_good());
        let served = |key: &str| {
            good.clone()
                .any(|entry| entry.manifest.schedule_keys.iter().any(|other| other == key))
        };
        let due = due(&plan.kinds, &plan.zone, served, now);
        if due.labels.is_empty() {
            for kind in &plan.kinds {
                let period = kind.schedule.current(&plan.zone, now);
                memory
                    .served
                    .extend(period.map(|period| (kind.label.clone(), period.key)));
            }
            return Ok(());
        }
        let is_first = good.next().is_none();
        if !is_first {
            let jitter = getrandom::u64().unwrap_or(0) % JITTER_MAX_MS;
            tokio::time::sleep(Duration::from_millis(jitter)).await;
        }
        tracing::info!(labels = due.labels.join(" "), "backup: due");
        drop(self.start_create(due.labels, due.keys)?);
        Ok(())
    }

    /// The first file set whose newest period the catalogue does not show as served.
    async fn begin_files(&self, memory: &mut Memory, plan: &Plan, now: Timestamp) -> Result<(), Refusal> {
        for file in &plan.files {
            let kind = format!("files:{}", file.set.name);
            let Some(period) = file.schedule.current(&plan.zone, now) else {
                continue;
            };
            let key = format!("{kind}:{}", period.key);
            if memory.served.get(&kind) == Some(&key) {
                continue;
            }
            let entries = self.list().await?;
            let has_key = |entry: &Entry| entry.is_good() && entry.manifest.schedule_keys.contains(&key);
            if entries.iter().any(has_key) {
                memory.served.extend([(kind, key)]);
                continue;
            }
            tracing::info!(set = file.set.name, "backup: files are due");
            drop(self.start_files(file.set.clone(), vec![key])?);
            break;
        }
        Ok(())
    }

    /// The good backups whose last proof is the oldest, the oldest last.
    async fn proven_longest_ago(&self) -> Result<Vec<String>, Refusal> {
        let entries = self.list().await?;
        let mut good: Vec<_> = entries.iter().filter(|entry| entry.is_good()).collect();
        good.sort_by_key(|entry| {
            let proofs = entry.verifications.iter().filter(|record| record.level >= Level::L2);
            proofs
                .map(|record| record.at)
                .max()
                .unwrap_or(entry.manifest.finished_at)
        });
        good.truncate(VERIFIED_AT_A_TIME);
        Ok(good.iter().rev().map(|entry| entry.manifest.id.to_string()).collect())
    }
}
