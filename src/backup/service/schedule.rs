//! What runs when. A loop looks every half minute, and whenever it is poked, for the newest period of each kind that has
//! not been served: so a restart, a suspended machine or a jump of the clock neither forgets a run nor repeats one.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::{Act, Refusal, Service, State, files_subject, lock};
use crate::backup::task::{due, served};
use crate::backup::{Entry, Error, Plan, Recovered};
use crate::clock::Now;
use crate::tasks::calendar::Schedule;
use crate::telemetry::cause::chain;

const LOOK: Duration = Duration::from_secs(30);
/// While a restore waits to be finished or undone, and perhaps nobody can log in.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The metrics and what is overdue are brought up to date this often although nothing is changed.
const REFRESH: Duration = Duration::from_secs(300);
/// After a run that failed, doubled each time up to the second: it may have taken hours of the server's.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));
/// Likewise for what cannot be begun, which costs nobody anything: mostly PostgreSQL is away, or another instance is at work.
pub(super) const BEGIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// Runs of several instances or kinds spread over this.
const JITTER_MAX_MS: u64 = 20_000;
/// Old backups that one scheduled verification reads back.
const VERIFIED_AT_A_TIME: usize = 3;

/// What the loop remembers between two looks.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The newest period of each kind of work that was served.
    pub(super) served: HashMap<String, String>,
    /// What failed of late, by subject: one that fails does not keep the others waiting.
    pauses: HashMap<String, Pause>,
    /// The last run that was taken into account.
    judged: Option<Ulid>,
    /// Nothing of an earlier restore was half done at the last look.
    is_recovered: bool,
    refreshed: Option<Duration>,
    to_verify: Vec<String>,
}

#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    /// Not again before this tick.
    until: Duration,
}

impl Memory {
    pub(super) fn wait_longer(&mut self, subject: &str, tick: Duration, (first, most): (Duration, Duration)) {
        let pause = self.pauses.entry(subject.to_owned()).or_default();
        pause.until = tick + first.saturating_mul(1 << pause.failures.min(8)).min(most);
        pause.failures += 1;
    }

    pub(super) fn is_paused(&self, subject: &str, tick: Duration) -> bool {
        self.pauses.get(subject).is_some_and(|pause| tick < pause.until)
    }

    /// Until it is worth another look.
    fn rest(&self, tick: Duration) -> Duration {
        let ends = self.pauses.values().map(|pause| pause.until.saturating_sub(tick));
        ends.filter(|rest| !rest.is_zero()).fold(LOOK, Duration::min)
    }

    fn is_new(&self, kind: &str, key: &str) -> bool {
        self.served.get(kind).is_none_or(|served| served != key)
    }
}

impl Service {
    /// Looks after the vault until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let looking = async {
            let mut memory = Memory::default();
            loop {
                let now = self.shared.parts.clock.now();
                self.look(&mut memory, now).await;
                let pause = match memory.is_recovered {
                    true => memory.rest(now.tick),
                    false => LOOK_AGAIN,
                };
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
    /// done and as often as it takes: after a reboot PostgreSQL may come up later than we do. `false`: to be tried again.
    pub(super) async fn recover(&self) -> bool {
        let Ok(vault) = self.vault() else { return false };
        match vault.recover().await {
            // Another process is in the middle of one, or of a backup: it leaves nothing half done, or it dies.
            Err(Error::Busy(_)) => return false,
            Err(error) => {
                let text = format!("a restore was cut short and cannot be finished yet: {}", chain(&error));
                self.shared.trouble("recover", &text);
                return false;
            }
            Ok(Recovered::Nothing) => {}
            Ok(Recovered::Undone(told) | Recovered::Finished(told)) => tracing::warn!("{told}"),
        }
        self.shared.well("recover", "what a restore left half done is finished");
        true
    }

    pub(super) async fn look(&self, memory: &mut Memory, now: Now) {
        if self.shared.vault.load().is_none() {
            // A bucket or disk that was away may be back.
            self.open();
        }
        if self.vault().is_err() {
            return;
        }
        let is_at_work = self.current().is_some();
        if !is_at_work {
            memory.is_recovered = self.recover().await;
        }
        // Also while a run is under way: one that hangs must not hide that others are overdue.
        let is_listed = self.refresh(memory, now).await;
        if is_listed && !is_at_work {
            self.judge(memory, now.tick);
            self.begin_due(memory, now.wall, now.tick).await;
        }
    }

    /// Brings the list up to date if it is time, and with it what is told of it. `false`: it cannot be read.
    async fn refresh(&self, memory: &mut Memory, now: Now) -> bool {
        let is_old = |at| now.tick.saturating_sub(at) >= REFRESH;
        if !self.shared.is_stale.load(Ordering::Acquire) && !memory.refreshed.is_none_or(is_old) {
            return true;
        }
        let listed = self.catalogue(now).await;
        // What could not be read is asked for again at the next look.
        memory.refreshed = listed.is_ok().then_some(now.tick);
        match &listed {
            Ok(_) => self.shared.well("list", "the list of backups can be read again"),
            Err(error) => {
                let text = format!("backup: the list of backups cannot be read: {}", explain(error));
                self.shared.trouble("list", &text);
            }
        }
        listed.is_ok()
    }

    /// After a failed run the next one of its subject waits, longer each time.
    pub(super) fn judge(&self, memory: &mut Memory, tick: Duration) {
        let past = self.past();
        let fresh = past
            .iter()
            // What an earlier process did is no reason to wait.
            .take_while(|run| Some(run.id) != memory.judged && run.started_at >= self.shared.started_at);
        let fresh: Vec<_> = fresh.collect();
        for run in fresh.into_iter().rev() {
            match run.status().state {
                State::Failed { .. } => {
                    memory.wait_longer(&run.subject(), tick, RETRY);
                    if run.act == Act::Prune {
                        let _not_yet = memory.served.remove("cleanup");
                    }
                }
                _ => drop(memory.pauses.remove(&run.subject())),
            }
        }
        memory.judged = past.first().map(|run| run.id);
    }

    /// What could not even be begun.
    pub(super) fn stumbled(&self, memory: &mut Memory, subject: &str, tick: Duration, refusal: &Refusal) {
        if matches!(refusal, Refusal::Busy(_)) {
            return;
        }
        let schedule = format!("schedule-{subject}");
        memory.wait_longer(&schedule, tick, BEGIN);
        // That another instance is quicker is no trouble; were it to be so always, backups would be overdue.
        if matches!(refusal, Refusal::Domain(Error::Busy(_))) {
            return tracing::info!(subject, "backup: another instance is at work, what is due waits");
        }
        let text = format!("backup: what is due cannot be begun: {}", explain(refusal));
        self.shared.trouble(&schedule, &text);
    }

    /// Starts the first of what is due; its end pokes the loop, which then starts the next.
    pub(super) async fn begin_due(&self, memory: &mut Memory, now: Timestamp, tick: Duration) {
        let plan = self.settings().plan.clone();
        for subject in ["create", "files", "upkeep"] {
            if self.current().is_some() {
                return;
            }
            let schedule = format!("schedule-{subject}");
            if memory.is_paused(subject, tick) || memory.is_paused(&schedule, tick) {
                continue;
            }
            let begun = match subject {
                "create" => self.begin_backup(memory, &plan, now).await,
                "files" => self.begin_files(memory, &plan, now, tick).await,
                _ => self.begin_upkeep(memory, &plan, now, tick).await,
            };
            match begun {
                Ok(()) => {
                    let _pause = memory.pauses.remove(&schedule);
                    self.shared.well(&schedule, "backup: what is due can be begun again");
                }
                Err(refusal) => self.stumbled(memory, subject, tick, &refusal),
            }
        }
    }

    /// The clean-up, and reading old backups back.
    async fn begin_upkeep(
        &self,
        memory: &mut Memory,
        plan: &Plan,
        now: Timestamp,
        tick: Duration,
    ) -> Result<(), Refusal> {
        let current = |schedule: &Schedule| schedule.current(&plan.zone, now).map(|period| period.key);
        let due = plan.cleanup.as_ref().and_then(current);
        let is_paused = memory.is_paused(Act::Prune.name(), tick);
        if let Some(key) = due.filter(|key| memory.is_new("cleanup", key) && !is_paused) {
            drop(self.start_prune().await?);
            drop(memory.served.insert("cleanup".to_owned(), key));
            return Ok(());
        }
        let due = plan.verify.as_ref().and_then(current);
        if let Some(key) = due.filter(|key| memory.is_new("verify", key)) {
            // Not at the start of the process: that would read everything back at each restart.
            if memory.served.contains_key("verify") {
                memory.to_verify = self.proven_longest_ago().await?;
            }
            drop(memory.served.insert("verify".to_owned(), key));
        }
        if let Some(id) = memory.to_verify.pop() {
            drop(self.start_verify(&id, false).await?);
        }
        Ok(())
    }

    /// One backup for every label that the catalogue does not show as served.
    async fn begin_backup(&self, memory: &mut Memory, plan: &Plan, now: Timestamp) -> Result<(), Refusal> {
        let periods: Vec<(String, String)> = plan
            .kinds
            .iter()
            .filter_map(|kind| Some((kind.label.clone(), kind.schedule.current(&plan.zone, now)?.key)))
            .collect();
        // After a reload it may be another server.
        let is_known = periods.is_empty() || lock(&self.shared.cluster).is_some();
        if is_known && !periods.iter().any(|(label, key)| memory.is_new(label, key)) {
            return Ok(());
        }
        // Which cluster's backups are ours only the server can say: another one's must not stand in for them. While it does not
        // answer there is nothing to begin, and that is no trouble unless something is due, as far as is known.
        let asked = self.vault()?.ask().await.map(|(cluster, same_disk)| {
            *lock(&self.shared.cluster) = Some(cluster);
            *lock(&self.shared.same_disk) = same_disk;
            self.shared.is_stale.store(true, Ordering::Release);
        });
        let entries = self.list().await?;
        let subject = self.shared.subject();
        let due = due(&plan.kinds, &plan.zone, |key| served(&entries, &subject, key), now);
        if let Err(error) = asked {
            return match due.labels.is_empty() {
                true => Ok(()),
                false => Err(error.into()),
            };
        }
        if due.labels.is_empty() {
            memory.served.extend(periods);
            return Ok(());
        }
        if entries.iter().any(|entry| entry.is_good() && subject.owns(entry)) {
            let jitter = getrandom::u64().unwrap_or(0) % JITTER_MAX_MS;
            tokio::time::sleep(Duration::from_millis(jitter)).await;
        }
        tracing::info!(labels = due.labels.join(" "), "backup: due");
        drop(self.start_create(due.labels, due.keys).await?);
        Ok(())
    }

    /// The first file set whose newest period the catalogue does not show as served.
    async fn begin_files(
        &self,
        memory: &mut Memory,
        plan: &Plan,
        now: Timestamp,
        tick: Duration,
    ) -> Result<(), Refusal> {
        for file in &plan.files {
            let kind = format!("files:{}", file.set.name);
            let Some(period) = file.schedule.current(&plan.zone, now) else {
                continue;
            };
            let key = format!("{kind}:{}", period.key);
            if !memory.is_new(&kind, &key) || memory.is_paused(&files_subject(&file.set.name), tick) {
                continue;
            }
            let entries = self.list().await?;
            let has_key = |entry: &Entry| entry.is_good() && entry.manifest.schedule_keys.contains(&key);
            if entries.iter().any(has_key) {
                memory.served.extend([(kind, key)]);
                continue;
            }
            tracing::info!(set = file.set.name, "backup: files are due");
            drop(self.start_files(file.set.clone(), vec![key]).await?);
            break;
        }
        Ok(())
    }

    /// The backups that were looked at the longest ago, the oldest last. Those that were found damaged are among them: a
    /// store may have healed, or a network lied. So are those of which a record cannot be read.
    pub(super) async fn proven_longest_ago(&self) -> Result<Vec<String>, Refusal> {
        let entries = self.list().await?;
        let subject = self.shared.subject();
        let is_ours = |entry: &Entry| entry.is_files() || subject.owns(entry);
        let is_worth_it = |entry: &Entry| {
            entry.is_good() || (entry.tombstone.is_none() && (entry.is_condemned() || entry.unread.is_some()))
        };
        let mut found: Vec<&Entry> = entries
            .iter()
            .filter(|entry| is_ours(entry) && is_worth_it(entry))
            .collect();
        found.sort_by_key(|entry| {
            let last = entry.verifications.last();
            last.map_or(entry.manifest.finished_at, |record| record.at)
        });
        found.truncate(VERIFIED_AT_A_TIME);
        Ok(found.iter().rev().map(|entry| entry.manifest.id.to_string()).collect())
    }
}

fn explain(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Domain(error) => chain(error),
        other => other.to_string(),
    }
}
