//! What a vault of file sets keeps and deletes when backups turn out damaged and clocks jump. Without PostgreSQL.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use age::secrecy::ExposeSecret as _;
use jiff::{SignedDuration, Timestamp};

use super::files::FileSet;
use super::*;
use crate::postgres::child::Command;
use crate::repository::frames::Compression;
use crate::repository::layout;
use crate::repository::manifest::{Lease, Level, Part};
use crate::secret::Secret;

const DAY: i64 = 86_400;

struct Bed {
    root: tempfile::TempDir,
    vault: Vault,
}

impl Bed {
    /// Retention gives a grace of a day; a set is kept for no time.
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a private folder");
        std::fs::write(root.path().join("app"), "some data").expect("a file");
        let config = Config {
            database: postgres::Config { url: Secret::new("") },
            repository: repository::Config {
                url: format!("file://{}/repository", root.path().display()),
                recipients: Vec::new(),
                identity: None,
            },
            retention: retention::Policy::default(),
            state_dir: root.path().join("state"),
            scratch: root.path().join("scratch"),
            keep_replaced: Duration::ZERO,
            step_timeout: Duration::from_mins(1),
        };
        let vault = Vault::open(config, Clock::system(), silent()).expect("a vault");
        Self { root, vault }
    }

    /// The vault at another time of day.
    fn at(&self, seconds: i64) -> Vault {
        let clock = Clock::system().skewed(SignedDuration::from_secs(seconds));
        Vault {
            clock,
            ..self.vault.clone()
        }
    }

    async fn create_at(&self, seconds: i64) -> Entry {
        let set = FileSet {
            name: "app".to_owned(),
            paths: vec![self.root.path().join("app")],
            keep_days: 0,
        };
        let vault = self.at(seconds);
        let manifest = vault.create_files(&set).await.expect("a backup");
        vault.show(&manifest.id.to_string()).await.expect("it is listed")
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.path().join("repository").join(key)
    }

    fn object(&self, entry: &Entry) -> PathBuf {
        self.path(&entry.folder).join("files.zst")
    }

    async fn is_there(&self, entry: &Entry) -> bool {
        self.vault.show(&entry.manifest.id.to_string()).await.is_ok()
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).expect("writable");
}

#[tokio::test]
async fn marked_backup_survives_when_the_one_that_stood_in_for_it_is_found_damaged_within_the_grace() {
    let bed = Bed::new();
    let old = bed.create_at(-3 * DAY).await;
    let new = bed.create_at(-2 * DAY + 100).await;
    let marked = bed.at(-2 * DAY + 200).prune(false).await.expect("a clean-up").marked;
    assert_eq!(marked, [old.manifest.id]);
    flip(&bed.object(&new));
    bed.vault.verify(&new).await.expect_err("it is damaged");
    let pruned = bed.vault.prune(false).await.expect("a clean-up");
    assert_eq!((pruned.lifted, pruned.deleted), (vec![old.manifest.id], Vec::new()));
    let latest = bed.vault.list().await.expect("a list").0;
    let good: Vec<Ulid> = latest
        .iter()
        .filter(|entry| entry.is_good())
        .map(|entry| entry.manifest.id)
        .collect();
    assert_eq!(good, [old.manifest.id], "it counts again");
}

#[tokio::test]
async fn backup_deleted_by_hand_survives_when_no_other_good_one_is_left() {
    let bed = Bed::new();
    let old = bed.create_at(-3 * DAY).await;
    let new = bed.create_at(-2 * DAY + 100).await;
    let earlier = bed.at(-2 * DAY + 200);
    earlier
        .delete(&old.manifest.id.to_string())
        .await
        .expect("it is marked");
    flip(&bed.object(&new));
    bed.vault.verify(&new).await.expect_err("it is damaged");
    let pruned = bed.vault.prune(false).await.expect("a clean-up");
    assert_eq!((pruned.lifted, pruned.deleted), (vec![old.manifest.id], Vec::new()));
    assert!(bed.is_there(&old).await);
}

#[tokio::test]
async fn backup_whose_mark_was_taken_off_or_made_anew_since_a_clean_up_listed_it_is_spared() {
    let bed = Bed::new();
    let old = bed.create_at(-3 * DAY).await;
    drop(bed.create_at(-2 * DAY).await);
    let (id, now, earlier) = (old.manifest.id, bed.vault.clock.wall(), bed.at(-2 * DAY + 100));
    let marked_by = async |vault: &Vault| vault.delete(&id.to_string()).await.expect("it is marked");
    let erased = async || bed.vault.erase(&old.folder, id, now).await.expect("the store answers");
    marked_by(&earlier).await;
    bed.vault.undelete(&id.to_string()).await.expect("it was marked");
    assert!(
        !erased().await && bed.is_there(&old).await,
        "nobody wants it gone any more"
    );
    marked_by(&bed.vault).await;
    assert!(!erased().await && bed.is_there(&old).await, "its grace has only begun");
    bed.vault.undelete(&id.to_string()).await.expect("it was marked");
    marked_by(&earlier).await;
    assert!(erased().await && !bed.is_there(&old).await);
}

#[tokio::test]
async fn nothing_marked_is_erased_while_the_newest_good_backup_is_overdue() {
    let bed = Bed::new();
    let old = bed.create_at(-9 * DAY).await;
    let by_hand = bed.create_at(-8 * DAY).await;
    let new = bed.create_at(-7 * DAY).await;
    let earlier = bed.at(-7 * DAY + 100);
    earlier
        .delete(&by_hand.manifest.id.to_string())
        .await
        .expect("it is marked");
    assert_eq!(
        earlier.prune(false).await.expect("a clean-up").marked,
        [old.manifest.id]
    );
    let pruned = bed.vault.prune(false).await.expect("a clean-up");
    assert_eq!((pruned.lifted, pruned.deleted), (Vec::new(), Vec::new()));
    let fresh = bed.create_at(0).await;
    let pruned = bed.vault.prune(false).await.expect("a clean-up");
    assert_eq!(pruned.deleted, [old.manifest.id, by_hand.manifest.id]);
    assert_eq!(pruned.marked, [new.manifest.id]);
    assert!(bed.is_there(&fresh).await && !bed.is_there(&old).await);
}

#[tokio::test]
async fn clock_that_jumps_ahead_and_back_deletes_nothing_that_the_right_clock_keeps() {
    let bed = Bed::new();
    let first = bed.create_at(-DAY).await;
    let second = bed.create_at(-60).await;
    // A year ahead for a moment: a backup is made and a clean-up runs by the wrong clock.
    let ahead = bed.create_at(365 * DAY).await;
    drop(bed.at(365 * DAY + 60).prune(false).await.expect("a clean-up"));
    for seconds in [0, 60, -400 * DAY] {
        let pruned = bed.at(seconds).prune(false).await.expect("a clean-up");
        assert_eq!(pruned.deleted, [], "{seconds}");
    }
    assert!(bed.is_there(&first).await && bed.is_there(&second).await);
    assert!(
        bed.vault
            .show(&ahead.manifest.id.to_string())
            .await
            .expect("listed")
            .is_ahead
    );
    // Once the one from the future is deleted by hand, all is as it was.
    bed.vault
        .delete(&ahead.manifest.id.to_string())
        .await
        .expect("it is marked");
    drop(bed.vault.prune(false).await.expect("a clean-up"));
    let second = bed.vault.show(&second.manifest.id.to_string()).await.expect("listed");
    assert!(second.is_good(), "{second:?}");
}

#[tokio::test]
async fn failure_counts_although_the_clock_went_back_since_the_last_proof() {
    let bed = Bed::new();
    let entry = bed.create_at(0).await;
    let ahead = bed.at(365 * DAY);
    assert_eq!(ahead.verify(&entry).await.expect("it is whole").level, Level::L2);
    // The id of that proof, too, is of the clock that was wrong.
    let folder = bed.path(&entry.folder);
    let mut note = std::fs::read_dir(&folder)
        .expect("readable")
        .flatten()
        .map(|found| found.path());
    let note = note
        .find(|path| path.display().to_string().contains("verify-"))
        .expect("a record");
    let later = Ulid::from_parts(u64::MAX >> 17, 5);
    std::fs::rename(note, bed.path(&layout::verification(&entry.folder, later))).expect("renamed");
    flip(&bed.object(&entry));
    bed.vault.verify(&entry).await.expect_err("it is damaged");
    let entry = bed.vault.show(&entry.manifest.id.to_string()).await.expect("listed");
    assert!(!entry.is_good() && entry.is_condemned());
}

#[tokio::test]
async fn part_that_is_lost_or_cut_makes_a_backup_incomplete_without_reading_it() {
    let bed = Bed::new();
    let (old, new) = (bed.create_at(-60).await, bed.create_at(0).await);
    let whole = std::fs::read(bed.object(&new)).expect("readable");
    for damaged in [Some(whole[..whole.len() - 1].to_vec()), Some(Vec::new()), None] {
        match damaged {
            Some(bytes) => std::fs::write(bed.object(&new), bytes).expect("writable"),
            None => std::fs::remove_file(bed.object(&new)).expect("removable"),
        }
        let entry = bed.vault.show(&new.manifest.id.to_string()).await.expect("listed");
        assert_eq!((entry.is_good(), entry.state()), (false, "incomplete"));
        let problem = entry.incomplete.expect("a reason");
        assert!(problem.contains("files.zst"), "{problem}");
        let plan = bed.vault.prune(true).await.expect("a plan");
        assert_eq!(plan.marked, [], "the old one is the last good one");
        bed.vault
            .delete(&old.manifest.id.to_string())
            .await
            .expect_err("the last good one");
    }
    std::fs::write(bed.object(&new), whole).expect("writable");
    assert!(
        bed.vault
            .show(&new.manifest.id.to_string())
            .await
            .expect("listed")
            .is_good()
    );
}

#[tokio::test]
async fn backup_in_use_is_neither_deleted_by_hand_nor_by_a_clean_up() {
    let bed = Bed::new();
    let old = bed.create_at(-3 * DAY).await;
    bed.create_at(-60).await;
    let id = old.manifest.id;
    let (now, mut notes) = (bed.vault.clock.wall(), Vec::new());
    let lease = bed
        .vault
        .repository
        .lease(id, now, Duration::from_hours(14 * 24), &mut notes);
    let lease = lease.await.expect("a lease").expect("the repository may be written");
    let entry = bed.vault.show(&id.to_string()).await.expect("it is listed");
    let after = |days: i64| now + SignedDuration::from_hours(24 * days);
    assert!(entry.is_leased(after(13)) && !entry.is_leased(after(15)));
    let refused = bed
        .vault
        .delete(&id.to_string())
        .await
        .expect_err("it is in use")
        .to_string();
    assert!(refused.contains("in use"), "{refused}");
    assert_eq!(bed.vault.prune(false).await.expect("a clean-up").marked, []);
    assert_eq!(bed.vault.repository.end_lease(Some(lease)).await, None);
    assert_eq!(bed.at(-2 * DAY).prune(false).await.expect("a clean-up").marked, []);
    assert_eq!(bed.vault.prune(false).await.expect("a clean-up").marked, [id]);
    // A restore began within the grace.
    let expires_at = "9000-01-01T00:00:00Z".parse().expect("a time");
    let holder = Ulid::from_parts(1, 1);
    let note = serde_json::to_vec(&Lease { id, holder, expires_at }).expect("JSON");
    bed.vault
        .repository
        .create(&layout::lease(id, holder), note)
        .await
        .expect("written");
    bed.create_at(2 * DAY).await;
    assert_eq!(bed.at(2 * DAY).prune(false).await.expect("a clean-up").deleted, []);
    assert!(bed.is_there(&old).await);
}

#[tokio::test]
async fn data_whose_manifest_was_lost_stays_for_two_days_and_what_never_was_an_object_goes_at_once() {
    let bed = Bed::new();
    let entry = bed.create_at(-60).await;
    std::fs::remove_file(bed.path(&layout::manifest(&entry.folder))).expect("removable");
    let cut = bed.path(&layout::files(Ulid::generate()));
    std::fs::create_dir(&cut).expect("a folder");
    std::fs::write(cut.join("files.zst#1"), "half").expect("a file");
    bed.create_at(0).await;
    assert!(bed.object(&entry).exists(), "it may be whole");
    assert!(!cut.exists());
    bed.create_at(DAY).await;
    assert!(bed.object(&entry).exists());
    bed.create_at(3 * DAY).await;
    assert!(!bed.path(&entry.folder).exists());
}

#[tokio::test]
async fn no_backup_is_lost_by_the_length_of_what_is_recorded_of_it() {
    let bed = Bed::new();
    let entry = bed.create_at(0).await;
    let error = Error::Noted {
        notes: "\u{1}ä".repeat(50_000),
        source: Box::new(Error::Unproven {
            id: entry.manifest.id,
            reason: "a row is missing".to_owned(),
        }),
    };
    let missed = verify::Missed { test: Level::L3, error };
    bed.vault.record(&entry, Err(missed)).await.expect_err("it failed");
    let (listed, unreadable) = bed.vault.list().await.expect("a list");
    assert!(unreadable.is_empty(), "{unreadable:?}");
    assert!(listed[0].is_condemned() && listed[0].unread.is_none());
    let why = listed[0].verifications[0].failure.as_ref().expect("a reason");
    assert!(why.starts_with('\u{1}') && why.len() <= 4096, "{}", why.len());
}

/// The second time, the place where it is mounted is there, and empty.
#[tokio::test]
async fn disk_that_is_away_damages_no_backup() {
    let bed = Bed::new();
    let entry = bed.create_at(0).await;
    let (disk, away) = (bed.path(""), bed.root.path().join("away"));
    for is_there in [false, true] {
        std::fs::rename(&disk, &away).expect("unmounted");
        if is_there {
            std::fs::create_dir(&disk).expect("a directory");
        }
        let unread = bed.vault.prove_again(&entry, false).await.expect_err("it is away");
        assert!(
            !verify::is_damage(&unread) && explain(&unread).contains("mounted"),
            "{unread:?}"
        );
        let key = format!("{}/files.zst", entry.folder);
        let unread = bed.vault.repository.hash_stored(&key, |_| {}).await;
        let told = bed.vault.judged(&entry, unread.expect_err("it is away").into()).await;
        assert!(explain(&told).contains("cannot be told"), "{told:?}");
        if is_there {
            // The lease that was not to be had, or the lock, would be found there.
            std::fs::remove_dir(&disk).expect("still empty");
        }
        std::fs::rename(&away, &disk).expect("mounted");
        let (listed, _) = bed.vault.list().await.expect("a list");
        assert!(listed[0].is_good() && listed[0].verifications.is_empty());
    }
}

#[tokio::test]
async fn nothing_is_recorded_of_a_backup_that_was_erased_meanwhile() {
    let bed = Bed::new();
    let entry = bed.create_at(0).await;
    let object = bed.object(&entry);
    let whole = std::fs::read(&object).expect("readable");
    std::fs::remove_file(bed.path(&layout::manifest(&entry.folder))).expect("removable");
    let remove = |path: &Path| std::fs::remove_file(path).expect("removable");
    let damages: [fn(&Path); 3] = [flip, remove, |_| {}];
    for damage in damages {
        std::fs::write(&object, &whole).expect("writable");
        damage(&object);
        let gone = bed.vault.verify(&entry).await.expect_err("it is gone");
        assert!(matches!(gone, Error::Unknown(_)), "{gone:?}");
        let listed = bed.vault.repository.list(&entry.folder).await.expect("listed");
        assert!(!listed.iter().any(|(key, _)| key.contains("verify-")), "{listed:?}");
    }
}

#[tokio::test]
async fn backup_with_a_record_that_cannot_be_read_is_listed_kept_and_proven_again() {
    let bed = Bed::new();
    let old = bed.create_at(-3 * DAY).await;
    let new = bed.create_at(-60).await;
    let newer_version = br#"{"at":"2026-01-01T00:00:00Z","level":"L2","failure":null,"colour":"green"}"#;
    for note in [newer_version.to_vec(), vec![b' '; 100_000], b"{".to_vec()] {
        let key = layout::verification(&old.folder, Ulid::from_parts(1, 1));
        bed.vault.repository.delete(&key).await.expect("deleted");
        assert!(bed.vault.repository.create(&key, note).await.expect("written"));
        let (listed, unreadable) = bed.vault.list().await.expect("a list");
        assert!(unreadable.is_empty(), "{unreadable:?}");
        assert_eq!(listed[0].state(), "not proven");
        assert!(!listed[0].is_good() && !listed[0].is_condemned());
        let problem = listed[0].problem().expect("a reason");
        assert!(problem.contains(&key), "{problem}");
        let pruned = bed.vault.prune(false).await.expect("a clean-up");
        assert_eq!(pruned.marked, [], "it may be good");
    }
    assert_eq!(bed.vault.verify(&old).await.expect("it is whole").level, Level::L2);
    let (listed, _) = bed.vault.list().await.expect("a list");
    assert!(listed[0].is_good(), "{:?}", listed[0]);
    assert_eq!(
        bed.vault.prune(false).await.expect("a clean-up").marked,
        [old.manifest.id]
    );
    assert!(bed.is_there(&new).await);
}

/// Which note it is that cannot be read must not make a backup vanish, nor a lease let one go.
#[tokio::test]
async fn lease_or_mark_that_cannot_be_read_hides_no_backup_and_deletes_none() {
    let bed = Bed::new();
    let old = bed.create_at(-3 * DAY).await;
    let new = bed.create_at(-60).await;
    let id = old.manifest.id;
    let lease = layout::lease(id, Ulid::from_parts(1, 1));
    for note in [b"{".to_vec(), vec![b' '; 100_000]] {
        for key in [&lease, &layout::tombstone(id)] {
            assert!(bed.vault.repository.create(key, note.clone()).await.expect("written"));
            let entry = bed.vault.show(&id.to_string()).await.expect("it is listed");
            assert!(entry.is_good() && entry.is_leased(Timestamp::MAX) == (key == &lease));
            let problem = entry.problem().expect("it is told");
            assert!(problem.contains(key), "{problem}");
            if key == &lease {
                let refused = bed.vault.delete(&id.to_string()).await.expect_err("it may be in use");
                assert!(refused.to_string().contains(key), "{refused}");
                assert_eq!(bed.vault.prune(false).await.expect("a clean-up").marked, []);
            }
            bed.vault.repository.delete(key).await.expect("deleted");
        }
    }
    // A mark that says nothing gives way to one that does.
    let mark = layout::tombstone(id);
    assert!(
        bed.vault
            .repository
            .create(&mark, b"{".to_vec())
            .await
            .expect("written")
    );
    assert_eq!(bed.vault.prune(false).await.expect("a clean-up").marked, [id]);
    let marked = bed.vault.show(&id.to_string()).await.expect("listed");
    assert!(marked.tombstone.is_some() && marked.problem().is_none());
    // And one beside no manifest erases nothing, nor does it stop the clean-up.
    std::fs::write(bed.path(&mark), "{").expect("writable");
    std::fs::remove_file(bed.path(&layout::manifest(&old.folder))).expect("removable");
    assert_eq!(bed.vault.prune(false).await.expect("a clean-up").deleted, []);
    assert!(bed.object(&old).exists() && bed.is_there(&new).await);
}

#[tokio::test]
async fn backup_that_cannot_be_read_is_not_said_to_be_missing() {
    let bed = Bed::new();
    let entry = bed.create_at(0).await;
    let manifest = layout::manifest(&entry.folder);
    std::fs::write(bed.path(&manifest), "{").expect("writable");
    let told = bed.vault.show(&entry.manifest.id.to_string()).await;
    let told = told.expect_err("it cannot be read").to_string();
    assert!(
        told.contains("is there and cannot be read") && told.contains(&manifest),
        "{told}"
    );
    let told = bed.vault.show(&Ulid::from_parts(1, 1).to_string()).await;
    assert!(matches!(told, Err(Error::Unknown(_))), "{told:?}");
}

#[tokio::test]
async fn repository_whose_disk_went_is_not_taken_for_an_empty_one() {
    let bed = Bed::new();
    bed.create_at(0).await;
    std::fs::rename(bed.path(""), bed.root.path().join("away")).expect("renamed");
    std::fs::create_dir(bed.path("")).expect("where it was mounted");
    let told = bed.vault.list().await.expect_err("it is away").to_string();
    assert!(told.contains("is its disk mounted?"), "{told}");
}

#[tokio::test]
async fn latest_of_a_file_set_tells_of_the_newer_one_that_it_passes_over() {
    let bed = Bed::new();
    bed.create_at(-60).await;
    let new = bed.create_at(0).await;
    let into = bed.root.path().join("into");
    let restored = bed.vault.restore_files("latest", &into).await.expect("restored");
    assert_eq!((restored.id, restored.notes), (new.manifest.id, Vec::new()));
    let ahead = bed.create_at(DAY).await.manifest.id;
    let into = bed.root.path().join("not ahead");
    let restored = bed.vault.restore_files("latest", &into).await.expect("restored");
    assert_eq!(restored.id, new.manifest.id);
    assert!(
        restored.notes.concat().contains(&format!("{ahead} of")),
        "{:?}",
        restored.notes
    );
    flip(&bed.object(&new));
    bed.vault.verify(&new).await.expect_err("it is damaged");
    let into = bed.root.path().join("again");
    let notes = bed.vault.restore_files("latest", &into).await.expect("restored").notes;
    let told = notes.concat();
    assert!(
        told.contains(&new.manifest.id.to_string()) && told.contains("is damaged"),
        "{told}"
    );
}

#[tokio::test]
async fn damage_that_looks_like_a_wrong_key_condemns_a_backup_and_a_wrong_key_does_not() {
    let [own, other] = [(); 2].map(|()| age::x25519::Identity::generate());
    let keys = |identity: &age::x25519::Identity| {
        let secret = Secret::new(identity.to_string().expose_secret());
        Keys::new(&[identity.to_public().to_string()], Some(&secret)).expect("keys")
    };
    let mut bed = Bed::new();
    bed.vault.keys = Arc::new(keys(&own));
    let entry = bed.create_at(0).await;
    let id = entry.manifest.id.to_string();
    let stranger = Vault {
        keys: Arc::new(keys(&other)),
        ..bed.vault.clone()
    };
    let told = stranger.verify(&entry).await.expect_err("no key fits");
    assert!(chain(&told).contains("does not open"), "{}", chain(&told));
    assert!(bed.vault.show(&id).await.expect("listed").is_good());
    // In the stanza of the recipient, which is base64 (age's specification).
    let object = bed.path(&entry.folder).join("files.zst.age");
    let mut bytes = std::fs::read(&object).expect("readable");
    bytes[40] = if bytes[40] == b'A' { b'B' } else { b'A' };
    std::fs::write(&object, bytes).expect("writable");
    bed.vault.verify(&entry).await.expect_err("it is damaged");
    assert!(bed.vault.show(&id).await.expect("listed").is_condemned());
}

/// Whoever feeds a program waits as long as it lives.
#[tokio::test]
async fn program_that_neither_reads_nor_ends_is_killed_when_its_time_is_over() {
    let bed = Bed::new();
    let config = Config {
        step_timeout: Duration::from_millis(200),
        ..bed.vault.config.clone()
    };
    let vault = Vault {
        config,
        ..bed.vault.clone()
    };
    let (key, keys) = ("x/dumps/1/dump.zst", Arc::clone(&vault.keys));
    let zeros = std::io::repeat(0).take(64 << 20);
    let put = vault
        .repository
        .put_sealed(key, zeros, Arc::clone(&keys), Compression::DEFAULT, || Ok(()), |_| {});
    let part = Part::new("dump", key, put.await.expect("stored"));
    // By its argument it is known among all others.
    let deaf = Command::new("/bin/sleep".into()).arg("3600.0815");
    let lives = || {
        let processes = std::fs::read_dir("/proc").expect("readable").flatten();
        let lines = processes.map(|process| std::fs::read(process.path().join("cmdline")).unwrap_or_default());
        lines.into_iter().any(|line| line.ends_with(b"3600.0815\0"))
    };
    let error = vault
        .prove_by(deaf, key, &part, &keys, |_| {})
        .await
        .expect_err("it hears nothing");
    assert!(
        matches!(error, Error::Postgres(postgres::Error::Slow { .. })),
        "{error}"
    );
    while lives() {
        tokio::task::yield_now().await;
    }
}
