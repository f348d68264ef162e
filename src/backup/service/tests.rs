//! The vault inside the server, without PostgreSQL: file sets, and catalogues that are made up.

use std::path::PathBuf;

use jiff::SignedDuration;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;

use super::schedule::{BEGIN, Memory, RETRY};
use super::*;
use crate::backup::entry::tests::{dump, files};
use crate::backup::files::FileSet;
use crate::backup::task::Kind;
use crate::backup::verify::is_damage;
use crate::backup::{FilePlan, Plan, retention};
use crate::repository::manifest::Level;
use crate::secret::Secret;
use crate::tasks::calendar::Schedule;
use crate::telemetry::alert;
use crate::telemetry::health::Condition;
use crate::{postgres, repository};

const DAY: i64 = 86_400;
const NOW: i64 = 1_790_000_000;

struct Bed {
    root: tempfile::TempDir,
    service: Service,
    _sender: JoinSet<()>,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn plan(root: &std::path::Path) -> Plan {
    let four = Time::constant(4, 0, 0, 0);
    Plan {
        zone: TimeZone::UTC,
        kinds: Vec::new(),
        cleanup: Some(Schedule::Daily(Time::constant(2, 0, 0, 0))),
        verify: Some(Schedule::Weekly(Weekday::Wednesday, four)),
        files: vec![FilePlan {
            set: FileSet {
                name: "app".to_owned(),
                paths: vec![root.join("app")],
                keep_days: 30,
            },
            schedule: Schedule::Weekly(Weekday::Sunday, four),
        }],
    }
}

/// A vault for the files at `app` in `root`, and a database that is nowhere.
pub(crate) fn settings(root: &std::path::Path, recipients: Vec<String>) -> Settings {
    Settings {
        database: Some(postgres::Config { url: Secret::new("") }),
        repository: repository::Config {
            url: format!("file://{}/repository", root.display()),
            recipients,
            identity: None,
        },
        retention: retention::Policy::default(),
        keep_replaced: Duration::ZERO,
        plan: plan(root),
        state_dir: root.join("state"),
        scratch: None,
    }
}

impl Bed {
    fn new(recipients: Vec<String>) -> Self {
        let root = tempfile::tempdir().expect("a private folder");
        std::fs::write(root.path().join("app"), "some data").expect("a file");
        Self::start(root, recipients)
    }

    fn start(root: tempfile::TempDir, recipients: Vec<String>) -> Self {
        let (clock, registry) = (Clock::system(), Registry::new());
        let (alerts, sender) = Alerts::start(alert::Config::default(), clock, &registry).expect("alerts start");
        let parts = Parts {
            clock,
            alerts,
            board: Board::default(),
            registry,
            hold: Hold::nothing(),
            runtime: tokio::runtime::Handle::current(),
        };
        Self {
            service: Service::new(settings(root.path(), recipients), parts).expect("a service"),
            root,
            _sender: sender,
        }
    }

    /// With a daily backup of the database in the plan.
    fn with_daily(&self) {
        let mut settings = (*self.service.settings()).clone();
        settings.plan.kinds = vec![Kind {
            label: "daily".to_owned(),
            schedule: Schedule::Daily(Time::constant(3, 0, 0, 0)),
        }];
        self.service.reload(settings);
    }

    fn raised(&self) -> Vec<String> {
        self.service.shared.parts.alerts.raised().into_keys().collect()
    }

    fn condition(&self) -> Option<Condition> {
        self.service.shared.parts.board.read().remove(PART)
    }

    fn set(&self) -> FileSet {
        self.service.settings().plan.files[0].set.clone()
    }

    async fn ended(&self) -> Arc<Run> {
        while self.service.current().is_some() {
            tokio::task::yield_now().await;
        }
        self.service.past().first().map(Arc::clone).expect("a run")
    }

    /// What the loop would do at this time.
    async fn look_at(&self, memory: &mut Memory, now: Timestamp) {
        self.service.begin_due(memory, now, Duration::ZERO).await;
    }

    fn acts(&self) -> Vec<&'static str> {
        let past = self.service.past();
        past.iter().rev().map(|run| run.act.name()).collect()
    }

    fn object(&self) -> PathBuf {
        let folder = self.root.path().join("repository/files");
        let mut found = std::fs::read_dir(folder).expect("readable").flatten();
        let folder = found.next().expect("a backup").path();
        let name = ["files.zst", "files.zst.age"].map(|name| folder.join(name));
        name.into_iter().find(|path| path.exists()).expect("an object")
    }
}

fn recipient() -> Vec<String> {
    vec!["age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg".to_owned()]
}

#[tokio::test]
async fn kind_without_a_good_backup_for_two_intervals_is_overdue_and_told_and_its_end_too() {
    let bed = Bed::new(Vec::new());
    bed.with_daily();
    let shared = &bed.service.shared;
    let mut entries = vec![dump("", "1", NOW - 3 * DAY)];
    let is_overdue = |entries: &[Entry], now: i64| {
        let kinds = shared.kinds(entries, at(now));
        kinds.iter().any(|kind| kind.kind == "daily" && kind.is_overdue)
    };
    shared.show(&entries, at(NOW));
    assert!(is_overdue(&entries, NOW) && bed.raised().contains(&"backup-overdue-daily".to_owned()));
    entries.push(dump("", "1", NOW - DAY));
    shared.show(&entries, at(NOW));
    assert!(
        !is_overdue(&entries, NOW) && bed.raised().is_empty(),
        "{:?}",
        bed.raised()
    );
    for spoil in [
        |entry: &mut Entry| entry.is_ahead = true,
        |entry: &mut Entry| entry.incomplete = Some("x is missing".to_owned()),
        |entry: &mut Entry| entry.manifest.verified = Level::L1,
    ] {
        let mut spoilt = entries.clone();
        spoil(&mut spoilt[1]);
        assert!(is_overdue(&spoilt, NOW), "{:?}", spoilt[1]);
    }
}

#[tokio::test]
async fn run_that_hangs_hides_no_overdue_backup_and_neither_does_a_repository_that_is_away() {
    let bed = Bed::new(Vec::new());
    drop(bed.service.start_files(bed.set(), Vec::new()).await.expect("it starts"));
    drop(bed.ended().await);
    let hang = |_, _, _| std::future::pending();
    drop(
        bed.service
            .start(Act::Create, Ulid::nil(), Vec::new(), hang)
            .await
            .expect("it starts"),
    );
    let (mut memory, now) = (Memory::default(), bed.service.shared.parts.clock.now());
    let later = |days: i64| Now {
        wall: now
            .wall
            .saturating_add(SignedDuration::from_secs(days * DAY))
            .expect("in range"),
        tick: now.tick + Duration::from_secs(days.unsigned_abs() * 86_400),
    };
    let overdue = ["backup-overdue-files:app"];
    bed.service.look(&mut memory, now).await;
    assert_eq!(bed.raised(), [""; 0]);
    bed.service.look(&mut memory, later(15)).await;
    assert_eq!(bed.raised(), overdue);
    assert!(bed.service.current().is_some(), "and nothing else is begun");
    bed.service.look(&mut memory, later(1)).await;
    assert_eq!(bed.raised(), overdue, "not before it is time to look again");
    bed.service.shared.is_stale.store(true, Ordering::Release);
    bed.service.look(&mut memory, later(1)).await;
    assert_eq!(bed.raised(), [""; 0]);
    let repository = bed.root.path().join("repository");
    std::fs::rename(&repository, bed.root.path().join("away")).expect("movable");
    // A loop, which nobody can read.
    std::os::unix::fs::symlink(&repository, &repository).expect("a link");
    bed.service.look(&mut memory, later(15)).await;
    assert_eq!(bed.raised(), ["backup-list", overdue[0]]);
}

#[tokio::test]
async fn kind_that_never_succeeded_is_overdue_although_the_process_is_started_anew() {
    let bed = Bed::new(Vec::new());
    let overdue = |bed: &Bed, now: i64| bed.service.shared.kinds(&[], at(now))[0].is_overdue;
    assert!(!overdue(&bed, NOW));
    let again = Bed::start(bed.root, Vec::new());
    assert!(!overdue(&again, NOW + 13 * DAY));
    let again = Bed::start(again.root, Vec::new());
    assert!(
        overdue(&again, NOW + 15 * DAY),
        "two weeks since it was first looked after"
    );
}

#[tokio::test]
async fn backup_that_is_incomplete_or_from_the_future_is_told() {
    let bed = Bed::new(Vec::new());
    let mut entry = dump("", "1", NOW);
    entry.incomplete = Some("dump.zst is missing".to_owned());
    bed.service.shared.show(&[entry.clone()], at(NOW));
    assert_eq!(bed.raised(), ["backup-incomplete"]);
    entry.incomplete = None;
    entry.is_ahead = true;
    bed.service.shared.show(&[entry], at(NOW));
    assert_eq!(bed.raised(), ["backup-clock"]);
    bed.service.shared.show(&[], at(NOW));
    assert_eq!((bed.raised(), bed.condition()), (Vec::new(), Some(Condition::Healthy)));
}

#[tokio::test]
async fn what_works_does_not_hide_what_fails() {
    let bed = Bed::new(Vec::new());
    let shared = &bed.service.shared;
    shared.trouble("create", "the dump fails");
    drop(bed.service.start_files(bed.set(), Vec::new()).await.expect("it starts"));
    assert_eq!(bed.ended().await.status().state, State::Succeeded);
    assert_eq!(bed.condition(), Some(Condition::Degraded("the dump fails".to_owned())));
    let missing = FileSet {
        name: "gone".to_owned(),
        paths: vec![bed.root.path().join("gone")],
        keep_days: 1,
    };
    drop(bed.service.start_files(missing, Vec::new()).await.expect("it starts"));
    drop(bed.ended().await);
    shared.well("create", "it works again");
    assert!(matches!(bed.condition(), Some(Condition::Degraded(text)) if text.contains("gone")));
    assert_eq!(bed.raised(), ["backup-files-gone"]);
    // A set that is configured no more is no trouble.
    bed.with_daily();
    assert_eq!((bed.raised(), bed.condition()), (Vec::new(), Some(Condition::Healthy)));
}

#[tokio::test]
async fn repository_that_cannot_be_opened_is_told_and_so_is_its_return() {
    let bed = Bed::new(Vec::new());
    let mut settings = (*bed.service.settings()).clone();
    let url = std::mem::replace(&mut settings.repository.url, "file:///dev/null/x".to_owned());
    bed.service.reload(settings.clone());
    assert_eq!(bed.raised(), ["backup-unusable"]);
    settings.repository.url = url;
    bed.service.reload(settings);
    assert_eq!((bed.raised(), bed.condition()), (Vec::new(), Some(Condition::Healthy)));
}

#[tokio::test]
async fn restore_that_cannot_be_finished_is_told_and_tried_again_until_it_is() {
    let bed = Bed::new(Vec::new());
    let note = bed.root.path().join("state/backup/restore.json");
    std::fs::create_dir_all(note.parent().expect("a folder")).expect("a folder");
    std::fs::write(&note, "{").expect("a file");
    assert!(!bed.service.recover().await);
    assert_eq!(bed.raised(), ["backup-recover"]);
    let vault = bed.service.vault().expect("a vault");
    let held = vault.lock().expect("the lock");
    assert!(!bed.service.recover().await, "the restore itself may be at work");
    drop(held);
    std::fs::remove_file(&note).expect("removable");
    assert!(bed.service.recover().await);
    assert_eq!((bed.raised(), bed.condition()), (Vec::new(), Some(Condition::Healthy)));
}

#[tokio::test]
async fn work_that_cannot_be_begun_is_told_waited_for_and_told_again_once_it_can() {
    let bed = Bed::new(Vec::new());
    let (mut memory, now) = (Memory::default(), bed.service.shared.parts.clock.wall());
    let unusable = Refusal::Unusable("the disk is away".to_owned());
    bed.service.stumbled(&mut memory, "upkeep", Duration::ZERO, &unusable);
    bed.service
        .stumbled(&mut memory, "files", Duration::ZERO, &Refusal::Busy(Ulid::nil()));
    assert_eq!(
        bed.raised(),
        ["backup-schedule-upkeep"],
        "that it is busy is no trouble"
    );
    for (seconds, acts) in [(9, &["files"][..]), (10, &["files", "prune"])] {
        for _ in 0..2 {
            bed.service
                .begin_due(&mut memory, now, Duration::from_secs(seconds))
                .await;
            drop(bed.ended().await);
        }
        assert_eq!(bed.acts(), acts);
    }
    assert_eq!((bed.raised(), bed.condition()), (Vec::new(), Some(Condition::Healthy)));
}

#[tokio::test]
async fn database_that_is_away_does_not_keep_file_sets_waiting() {
    let bed = Bed::new(Vec::new());
    bed.with_daily();
    let mut memory = Memory::default();
    let now = bed.service.shared.parts.clock.wall();
    bed.look_at(&mut memory, now).await;
    assert_eq!(bed.ended().await.status().state, State::Succeeded);
    assert_eq!(bed.acts(), ["files"]);
    assert_eq!(bed.raised(), ["backup-schedule-create"]);
    let stats = bed.service.stats().await.expect("stats").0;
    let counts: Vec<_> = stats
        .iter()
        .map(|kind| (kind.kind.as_str(), kind.succeeded_runs, kind.failed_runs))
        .collect();
    assert_eq!(
        counts,
        [("daily", 0, 0), ("files:app", 1, 0)],
        "what was not begun has not failed"
    );
}

#[tokio::test]
async fn database_that_is_away_while_nothing_is_due_is_no_trouble() {
    let bed = Bed::new(Vec::new());
    bed.with_daily();
    let (shared, plan) = (&bed.service.shared, bed.service.settings().plan.clone());
    let now = shared.parts.clock.wall();
    let mut made = dump("", "1", now.as_second());
    let period = plan.kinds[0].schedule.current(&plan.zone, now).expect("a period");
    made.manifest.schedule_keys = vec![period.key];
    *shared.catalogue.lock().await = Catalogue {
        read: Some((Duration::MAX, bed.service.vault().expect("a vault"))),
        entries: Arc::new(vec![made]),
        unreadable: Arc::default(),
    };
    shared.is_stale.store(false, Ordering::Release);
    let mut memory = Memory::default();
    bed.look_at(&mut memory, now).await;
    drop(bed.ended().await);
    assert_eq!((bed.acts(), bed.raised()), (vec!["files"], Vec::new()));
    let tomorrow = now.saturating_add(SignedDuration::from_secs(DAY)).expect("in range");
    bed.look_at(&mut memory, tomorrow).await;
    assert_eq!(bed.raised(), ["backup-schedule-create"]);
}

#[tokio::test]
async fn clean_up_that_failed_is_tried_again_before_the_next_day() {
    let bed = Bed::new(Vec::new());
    let (mut memory, now) = (Memory::default(), bed.service.shared.parts.clock.wall());
    bed.look_at(&mut memory, now).await;
    drop(bed.ended().await);
    let unreadable = bed
        .root
        .path()
        .join("repository/files/01JH0000000000000000000000/manifest.json");
    std::fs::create_dir_all(unreadable.parent().expect("a folder")).expect("a folder");
    std::fs::write(&unreadable, "{").expect("writable");
    for (seconds, acts) in [(0, 2), (59, 2), (60, 3)] {
        let tick = Duration::from_secs(seconds);
        bed.service.begin_due(&mut memory, now, tick).await;
        drop(bed.ended().await);
        bed.service.judge(&mut memory, tick);
        assert_eq!(bed.acts().len(), acts, "{:?}", bed.acts());
        std::fs::remove_file(&unreadable).ok();
    }
    drop(bed.service.list().await.expect("a list"));
    assert_eq!(bed.raised(), [""; 0]);
}

#[test]
fn what_cannot_be_begun_is_tried_again_soon_and_a_run_that_failed_ever_later() {
    let pauses = |(first, most): (Duration, Duration)| {
        let (mut memory, mut tick) = (Memory::default(), 0);
        let seconds = std::iter::repeat_with(|| {
            memory.wait_longer("x", Duration::from_secs(tick), (first, most));
            let waited = (tick..).find(|tick| !memory.is_paused("x", Duration::from_secs(*tick)));
            let waited = waited.expect("an end") - tick;
            tick += waited;
            waited
        });
        seconds.take(8).collect::<Vec<u64>>()
    };
    assert_eq!(pauses(BEGIN), [10, 20, 40, 60, 60, 60, 60, 60]);
    assert_eq!(pauses(RETRY), [60, 120, 240, 480, 960, 1920, 3600, 3600]);
}

#[tokio::test]
async fn configuration_that_lost_its_keys_is_told_until_it_has_them_again() {
    let bed = Bed::new(Vec::new());
    let mut entries = [files("app", NOW), files("other", NOW)];
    entries[1].manifest.recipients = recipient();
    bed.service.shared.show(&entries, at(NOW));
    assert_eq!(bed.raised(), [""; 0], "the other set is somebody else's");
    entries[0].manifest.recipients = recipient();
    bed.service.shared.show(&entries, at(NOW));
    assert_eq!(bed.raised(), ["backup-clear"]);
    let mut settings = (*bed.service.settings()).clone();
    settings.repository.recipients = recipient();
    bed.service.reload(settings);
    bed.service.shared.show(&entries, at(NOW));
    assert_eq!((bed.raised(), bed.condition()), (Vec::new(), Some(Condition::Healthy)));
}

#[tokio::test]
async fn sealed_dumps_of_a_neighbour_are_no_reason_to_be_told_of_ours_in_the_clear() {
    let bed = Bed::new(Vec::new());
    let mut entries = [dump("", "1", NOW), dump("", "2", NOW)];
    entries[1].manifest.recipients = recipient();
    let is_told_in = |cluster: Option<&str>| {
        *lock(&bed.service.shared.cluster) = cluster.map(str::to_owned);
        bed.service.shared.show(&entries, at(NOW));
        bed.raised().contains(&"backup-clear".to_owned())
    };
    for cluster in [None, Some("1"), Some("2")] {
        assert!(!is_told_in(cluster), "no dumps are made here: {cluster:?}");
    }
    bed.with_daily();
    assert!(!is_told_in(None), "whose they are is not known yet");
    assert!(!is_told_in(Some("1")) && is_told_in(Some("2")));
    assert!(
        is_told_in(None),
        "after a reload what was told stands until it is known"
    );
    assert!(!is_told_in(Some("1")));
}

#[tokio::test]
async fn clean_up_runs_once_a_day_and_old_backups_are_read_back_once_a_week() {
    let bed = Bed::new(Vec::new());
    let mut memory = Memory::default();
    let mut now = bed.service.shared.parts.clock.wall();
    let mut days = 0;
    // At the start nothing is read back: the first period only begins the count.
    while bed.acts().len() < 2 {
        bed.look_at(&mut memory, now).await;
        drop(bed.ended().await);
    }
    assert_eq!(bed.acts(), ["files", "prune"]);
    while !bed.acts().contains(&"verify") {
        assert!(days <= 8, "{:?}", bed.acts());
        days += 1;
        now = now.saturating_add(SignedDuration::from_secs(DAY)).expect("in range");
        for _ in 0..4 {
            bed.look_at(&mut memory, now).await;
            drop(bed.ended().await);
        }
    }
    let acts = bed.acts();
    assert_eq!(acts.iter().filter(|act| **act == "prune").count(), days + 1, "{acts:?}");
    let entries = bed.service.list().await.expect("a list");
    assert!(entries.iter().any(|entry| !entry.verifications.is_empty()));
    assert!(bed.raised().is_empty(), "{:?}", bed.raised());
}

#[tokio::test]
async fn damaged_backup_is_tried_again_by_the_schedule_and_good_again_once_its_store_has_healed() {
    let bed = Bed::new(Vec::new());
    drop(bed.service.start_files(bed.set(), Vec::new()).await.expect("it starts"));
    let id = bed.ended().await.id.to_string();
    let whole = std::fs::read(bed.object()).expect("readable");
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    std::fs::write(bed.object(), damaged).expect("writable");
    drop(bed.service.start_verify(&id, false).await.expect("it starts"));
    assert!(matches!(bed.ended().await.status().state, State::Failed { .. }));
    let not_what_it_was = format!("backup-verify-{id}");
    assert_eq!(bed.raised(), ["backup-verify".to_owned(), not_what_it_was]);
    assert!(bed.service.list().await.expect("a list")[0].is_condemned());
    std::fs::write(bed.object(), whole).expect("writable");
    let chosen = bed.service.proven_longest_ago().await.expect("a list");
    assert_eq!(chosen, std::slice::from_ref(&id));
    drop(bed.service.start_verify(&id, false).await.expect("it starts"));
    drop(bed.ended().await);
    assert!(bed.service.list().await.expect("a list")[0].is_good());
    assert!(bed.raised().is_empty(), "{:?}", bed.raised());
}

#[tokio::test]
async fn damaged_backup_that_is_deleted_is_no_trouble_any_more() {
    let bed = Bed::new(Vec::new());
    drop(bed.service.start_files(bed.set(), Vec::new()).await.expect("it starts"));
    let id = bed.ended().await.id.to_string();
    let mut bytes = std::fs::read(bed.object()).expect("readable");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(bed.object(), bytes).expect("writable");
    drop(bed.service.start_verify(&id, false).await.expect("it starts"));
    drop(bed.ended().await);
    let is_told = || bed.raised().contains(&format!("backup-verify-{id}"));
    drop(bed.service.list().await.expect("a list"));
    assert!(is_told(), "{:?}", bed.raised());
    bed.service.delete(&id).await.expect("it is marked");
    let repository = bed.root.path().join("repository");
    let unreadable = repository.join("files/01JH0000000000000000000000/manifest.json");
    std::fs::create_dir_all(unreadable.parent().expect("a folder")).expect("a folder");
    std::fs::write(&unreadable, "{").expect("writable");
    drop(bed.service.list().await.expect("a list"));
    assert!(is_told(), "which one cannot be read is not known: {:?}", bed.raised());
    std::fs::remove_file(&unreadable).expect("removable");
    bed.service.shared.is_stale.store(true, Ordering::Release);
    drop(bed.service.list().await.expect("a list"));
    assert_eq!(bed.raised(), ["backup-verify"], "the run that failed is another matter");
}

#[tokio::test]
async fn what_is_out_of_the_configuration_is_no_trouble_any_more() {
    let bed = Bed::new(Vec::new());
    let without = (*bed.service.settings()).clone();
    bed.with_daily();
    let shared = &bed.service.shared;
    let days_later = at(NOW + 30 * DAY);
    let all_overdue = ["backup-overdue-daily", "backup-overdue-files:app"];
    shared.show(&[], at(NOW));
    shared.show(&[], days_later);
    shared.parts.alerts.raise("backup-size-files-app", "it is small");
    assert_eq!(bed.raised(), [&all_overdue[..], &["backup-size-files-app"]].concat());
    bed.service.reload(without.clone());
    assert_eq!(bed.raised(), ["backup-overdue-files:app", "backup-size-files-app"]);
    let mut nothing = without;
    nothing.plan.files.clear();
    bed.service.reload(nothing.clone());
    assert_eq!(bed.raised(), [""; 0]);
    // A run that began before may fail after.
    shared.trouble("files-app", "it is not there");
    shared.show(&[], days_later);
    assert_eq!((bed.raised(), bed.condition()), (Vec::new(), Some(Condition::Healthy)));
    shared.parts.alerts.raise("backup-restore", "it failed");
    nothing.database = None;
    bed.service.reload(nothing);
    assert_eq!(bed.raised(), [""; 0], "the vault is off");
}

#[tokio::test]
async fn without_an_identity_the_stored_bytes_are_compared_and_only_damage_is_called_damage() {
    let bed = Bed::new(recipient());
    drop(bed.service.start_files(bed.set(), Vec::new()).await.expect("it starts"));
    let id = bed.ended().await.id.to_string();
    let verify = async || {
        drop(bed.service.start_verify(&id, false).await.expect("it starts"));
        bed.ended().await.status()
    };
    let status = verify().await;
    assert_eq!(status.state, State::Succeeded);
    assert!(status.log.iter().any(|line| line.contains("not opened")), "{status:?}");
    let entry = bed.service.list().await.expect("a list")[0].clone();
    assert_eq!((entry.level(), entry.verifications[0].level), (Level::L2, Level::L1));
    let object = bed.object();
    let mut bytes = std::fs::read(&object).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&object, bytes).expect("writable");
    assert!(matches!(verify().await.state, State::Failed { .. }));
    assert!(bed.raised().iter().any(|key| key.ends_with(&id)), "{:?}", bed.raised());
}

#[test]
fn store_that_is_away_says_nothing_of_the_backup() {
    let store = |source| {
        Error::Repository(repository::Error::Store {
            act: "reading",
            key: "x".to_owned(),
            source,
        })
    };
    let (path, source) = ("x".to_owned(), Box::<dyn std::error::Error + Send + Sync>::from("x"));
    assert!(is_damage(&store(object_store::Error::NotFound { path, source })));
    let source = Box::<dyn std::error::Error + Send + Sync>::from("x");
    assert!(!is_damage(&store(object_store::Error::Generic { store: "S3", source })));
    let slow = repository::Error::Slow {
        act: "reading",
        key: "x".to_owned(),
        seconds: 1,
    };
    assert!(!is_damage(&slow.into()) && !is_damage(&Error::Busy(String::new())));
}

#[tokio::test]
async fn another_instance_at_work_is_said_at_once_and_is_no_alert_and_what_is_due_waits_for_its_end() {
    let bed = Bed::new(Vec::new());
    let vault = bed.service.vault().expect("a vault");
    let held = vault.lock().expect("the lock");
    let refused = bed.service.start_files(bed.set(), Vec::new()).await;
    assert!(matches!(refused, Err(Refusal::Domain(Error::Busy(_)))), "{refused:?}");
    let (mut memory, now) = (Memory::default(), bed.service.shared.parts.clock.wall());
    bed.look_at(&mut memory, now).await;
    drop(held);
    bed.look_at(&mut memory, now).await;
    assert_eq!(bed.acts(), [""; 0], "it waits a while");
    assert_eq!(bed.raised(), [""; 0]);
    bed.service.begin_due(&mut memory, now, Duration::from_secs(10)).await;
    assert_eq!(bed.ended().await.status().state, State::Succeeded);
    assert_eq!(bed.acts(), ["files"]);
    assert_eq!((bed.raised(), bed.condition()), (Vec::new(), Some(Condition::Healthy)));
}

#[tokio::test]
async fn what_cannot_be_restored_or_is_not_configured_is_refused_before_anything_begins() {
    let bed = Bed::new(Vec::new());
    let refused = bed
        .service
        .start_set("gone")
        .await
        .expect_err("there is no such set")
        .to_string();
    assert!(refused.contains("it names: app"), "{refused}");
    drop(bed.service.start_set("app").await.expect("it starts"));
    let id = bed.ended().await.id.to_string();
    let refused = bed
        .service
        .start_verify(&id, true)
        .await
        .expect_err("these are files")
        .to_string();
    assert!(refused.contains("not restored into a database"), "{refused}");
    assert_eq!(bed.acts(), ["files"]);
}

#[test]
fn size_far_from_the_usual_is_worth_a_look_once_there_is_a_usual() {
    let sized = |second: i64, bytes: u64| {
        let mut entry = files("app", second);
        entry.manifest.parts = vec![repository::manifest::Part {
            name: "files".to_owned(),
            object: "files.zst".to_owned(),
            plain_bytes: bytes,
            plain_sha256: Some(String::new()),
            stored_bytes: bytes,
            stored_sha256: String::new(),
        }];
        entry
    };
    let warning = |sizes: &[u64]| {
        let entries: Vec<Entry> = (1..).zip(sizes).map(|(second, bytes)| sized(second, *bytes)).collect();
        stats::unusual_size(&entries.iter().collect::<Vec<_>>())
    };
    assert_eq!(warning(&[]), None);
    assert_eq!(warning(&[100, 100, 1]), None, "two do not make a usual");
    for usual in [50, 100, 150] {
        assert_eq!(warning(&[90, 100, 110, usual]), None, "{usual}");
    }
    for odd in [0, 49, 151, u64::MAX] {
        let text = warning(&[90, 100, 110, odd]).expect("a warning");
        assert!(text.contains(&format!("{odd} bytes")), "{text}");
    }
}

#[test]
fn another_database_in_the_repository_neither_serves_nor_counts() {
    let entries = [dump("shop", "1", NOW), dump("app", "2", NOW), files("app", NOW)];
    let subject = |cluster: &str| Subject {
        database: "app".to_owned(),
        cluster: Some(cluster.to_owned()),
    };
    assert!(!crate::backup::task::served(&entries, &subject("1"), "daily:x"));
    assert!(crate::backup::task::served(&entries, &subject("2"), "daily:x"));
    let plan = Plan {
        files: Vec::new(),
        ..plan(std::path::Path::new("/"))
    };
    let count = |cluster: &str| {
        let kinds = stats::kinds(&entries, &subject(cluster), &plan, &BTreeMap::new(), at(NOW));
        kinds
            .iter()
            .map(|kind| (kind.kind.clone(), kind.good))
            .collect::<Vec<_>>()
    };
    assert_eq!(count("1"), [("files:app".to_owned(), 1)]);
    assert_eq!(count("2"), [("daily".to_owned(), 1), ("files:app".to_owned(), 1)]);
}

#[test]
fn label_of_its_own_for_each_backup_does_not_make_ever_more_kinds() {
    let labelled = |second: i64| {
        let mut entry = dump("app", "1", second);
        entry.manifest.labels = vec![format!("release-{second:03}")];
        entry
    };
    let entries: Vec<Entry> = (1..=200).map(labelled).collect();
    let plan = plan(std::path::Path::new("/"));
    let subject = Subject {
        database: "app".to_owned(),
        cluster: None,
    };
    let kinds = stats::kinds(&entries, &subject, &plan, &BTreeMap::new(), at(NOW));
    let names: Vec<&str> = kinds.iter().map(|kind| kind.kind.as_str()).collect();
    assert_eq!(
        (names.len(), names[0], names[1], names[50]),
        (51, "files:app", "release-151", "release-200")
    );
}
