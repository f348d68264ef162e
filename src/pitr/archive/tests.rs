//! The archive on a real directory.

use std::path::PathBuf;

use super::*;
use crate::pitr::name::Lsn;
use crate::secret::Secret;

const KEY: &str = "AGE-SECRET-KEY-184JMZMVQH3E6U0PSL869004Y3U2NYV7R30EU99CSEDNPH02YUVFSZW44VU";

struct Bed {
    directory: tempfile::TempDir,
    archive: Archive,
}

fn cluster() -> Cluster {
    Cluster {
        system_identifier: "7711".to_owned(),
        major: 15,
    }
}

fn bed() -> Bed {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("file://{}/repository", directory.path().display());
    let identity: age::x25519::Identity = KEY.parse().expect("an identity");
    let recipients = [identity.to_public().to_string()];
    let keys = Keys::new(&recipients, Some(&Secret::new(KEY))).expect("keys");
    let repository = Repository::open(&url).expect("a repository");
    Bed {
        archive: Archive::open(repository, Arc::new(keys), cluster()),
        directory,
    }
}

/// A segment of 1 MiB as PostgreSQL 15 would begin it.
fn segment(number: u64, filling: u8) -> Vec<u8> {
    let mut bytes = vec![filling; 1 << 20];
    let head = header(number, 1 << 20);
    bytes[..head.len()].copy_from_slice(&head);
    bytes
}

fn header(number: u64, segment_bytes: u32) -> Vec<u8> {
    let mut head = Vec::new();
    head.extend(0xD110_u16.to_ne_bytes());
    head.extend(0x0003_u16.to_ne_bytes());
    head.extend(1_u32.to_ne_bytes());
    head.extend((number * u64::from(segment_bytes)).to_ne_bytes());
    head.extend([0; 8]);
    head.extend(7711_u64.to_ne_bytes());
    head.extend(segment_bytes.to_ne_bytes());
    head.extend(8192_u32.to_ne_bytes());
    head
}

impl Bed {
    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join("source");
        std::fs::write(&path, bytes).expect("written");
        path
    }

    async fn push(&self, name: &str, bytes: &[u8]) -> Result<Pushed, Error> {
        self.archive.push(name, &self.write(bytes)).await
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let into = self.directory.path().join("into");
        drop(std::fs::remove_file(&into));
        let found = self.archive.get(name, &into).await;
        assert!(
            !self.directory.path().join("into.foregate").exists(),
            "nothing unfinished stays"
        );
        match found? {
            Found::Yes => Ok(Some(std::fs::read(&into).expect("it was written"))),
            Found::No => {
                assert!(!into.exists());
                Ok(None)
            }
        }
    }

    async fn only_object(&self) -> PathBuf {
        let listed = self.archive.list().await.expect("a list");
        assert_eq!(listed.len(), 1);
        self.directory.path().join("repository").join(&listed[0].key)
    }
}

const FIRST: &str = "000000010000000000000001";

#[tokio::test]
async fn what_goes_in_comes_out_and_is_listed() {
    let bed = bed();
    assert_eq!(bed.push(FIRST, &segment(1, 7)).await.expect("pushed"), Pushed::New);
    assert_eq!(bed.get(FIRST).await.expect("asked"), Some(segment(1, 7)));
    assert_eq!(bed.get("000000010000000000000002").await.expect("asked"), None);
    let listed = bed.archive.list().await.expect("a list");
    assert_eq!(listed[0].file, FIRST.parse().expect("a name"));
    assert_eq!(listed[0].hash().len(), 64);
    let key = format!("7711-15/wal/00000001/00000000/{FIRST}-{}.zst.age", listed[0].hash());
    assert_eq!(listed[0].key, key);
}

#[tokio::test]
async fn the_identical_file_again_succeeds_and_a_different_one_changes_nothing() {
    let bed = bed();
    bed.push(FIRST, &segment(1, 7)).await.expect("pushed");
    assert_eq!(bed.push(FIRST, &segment(1, 7)).await.expect("again"), Pushed::Already);
    let refused = bed.push(FIRST, &segment(1, 8)).await;
    assert!(matches!(refused, Err(Error::Different { .. })), "{refused:?}");
    assert_eq!(bed.get(FIRST).await.expect("asked"), Some(segment(1, 7)));
    assert_eq!(bed.archive.list().await.expect("a list").len(), 1);
}

#[tokio::test]
async fn what_cannot_be_this_clusters_segment_is_refused() {
    let bed = bed();
    let mut foreign = segment(1, 7);
    foreign[24] = 1;
    let refused = bed.push(FIRST, &foreign).await;
    assert!(matches!(refused, Err(Error::Foreign { .. })), "{refused:?}");
    let short = bed.push(FIRST, &segment(1, 7)[..1 << 19]).await;
    assert!(matches!(short, Err(Error::Length { .. })), "{short:?}");
    let elsewhere = bed.push(FIRST, &segment(2, 7)).await;
    assert!(matches!(elsewhere, Err(Error::Place { .. })), "{elsewhere:?}");
    let zeros = bed.push(FIRST, &[0; 1 << 20]).await;
    assert!(matches!(zeros, Err(Error::Header { .. })), "{zeros:?}");
    assert!(matches!(
        bed.push("00000002.history", b"").await,
        Err(Error::Irregular { .. })
    ));
    assert!(matches!(bed.push("postgresql.conf", b"x").await, Err(Error::Name(_))));
    assert!(bed.archive.list().await.expect("a list").is_empty());
}

#[tokio::test]
async fn one_flipped_bit_is_an_error_and_never_an_absence() {
    let bed = bed();
    bed.push(FIRST, &segment(1, 7)).await.expect("pushed");
    let object = bed.only_object().await;
    let good = std::fs::read(&object).expect("read");
    for at in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&object, &bad).expect("written");
        assert!(bed.get(FIRST).await.is_err(), "byte {at}");
    }
    std::fs::write(&object, &good[..good.len() - 20]).expect("written");
    assert!(bed.get(FIRST).await.is_err(), "cut off");
}

#[tokio::test]
async fn an_object_under_anothers_name_is_found_out() {
    let bed = bed();
    bed.push(FIRST, &segment(1, 7)).await.expect("pushed");
    let object = bed.only_object().await;
    let name = object
        .to_string_lossy()
        .replace(bed.archive.list().await.expect("a list")[0].hash(), &"0".repeat(64));
    std::fs::rename(&object, name).expect("renamed");
    assert!(matches!(bed.get(FIRST).await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn small_files_and_partial_ones_are_archived_too() {
    let bed = bed();
    let history = "1\t0/1000060\tno recovery target specified\n";
    bed.push("00000002.history", history.as_bytes()).await.expect("pushed");
    bed.push(&format!("{FIRST}.00000028.backup"), b"START WAL LOCATION")
        .await
        .expect("pushed");
    bed.push(&format!("{FIRST}.partial"), &segment(1, 9))
        .await
        .expect("pushed");
    assert_eq!(
        bed.get(FIRST).await.expect("asked"),
        Some(segment(1, 9)),
        "the partial file will do"
    );
    bed.push(FIRST, &segment(1, 7)).await.expect("pushed");
    assert_eq!(
        bed.get(FIRST).await.expect("asked"),
        Some(segment(1, 7)),
        "the whole one is better"
    );
    let read = bed
        .archive
        .history(name::Timeline(2))
        .await
        .expect("asked")
        .expect("it is archived");
    assert_eq!(read.ancestors[0].switch, Lsn(0x0100_0060));
    assert_eq!(bed.archive.history(name::Timeline(3)).await.expect("asked"), None);
    assert_eq!(bed.archive.list().await.expect("a list").len(), 4);
}

#[tokio::test]
async fn two_who_send_different_files_at_once_are_never_both_believed() {
    let bed = bed();
    for round in 0..10 {
        let name = format!("0000000100000000{:08X}", round + 1);
        let paths = [1, 2].map(|filling| {
            let path = bed.directory.path().join(format!("source-{filling}"));
            std::fs::write(&path, segment(round + 1, filling)).expect("written");
            path
        });
        let (one, other) = tokio::join!(bed.archive.push(&name, &paths[0]), bed.archive.push(&name, &paths[1]));
        let accepted = [&one, &other].iter().filter(|done| done.is_ok()).count();
        assert!(accepted <= 1, "{one:?} {other:?}");
        let listed = bed.archive.list().await.expect("a list");
        let there = listed
            .iter()
            .filter(|archived| archived.file.to_string() == name)
            .count();
        assert_eq!(there, accepted, "{one:?} {other:?}");
    }
}

#[tokio::test]
async fn an_archive_without_any_log_is_a_fault_and_not_the_end_of_the_log() {
    let bed = bed();
    assert!(matches!(bed.get(FIRST).await, Err(Error::Empty(_))));
    bed.push("00000002.history", b"1\t0/1000060\twhy\n")
        .await
        .expect("pushed");
    assert_eq!(bed.get(FIRST).await.expect("asked"), None);
}

#[tokio::test]
async fn beats_are_kept_beside_the_log() {
    let bed = bed();
    let beat = |second: i64| Beat {
        at: Timestamp::from_second(1_800_000_000 + second).expect("a time"),
        lsn: Lsn(1 << 30),
        timeline: name::Timeline(1),
    };
    bed.archive.put_beats(&[]).await.expect("nothing to keep");
    bed.archive.put_beats(&[beat(30), beat(45)]).await.expect("kept");
    bed.archive.put_beats(&[beat(0), beat(15)]).await.expect("kept");
    let since = bed.archive.beats(beat(15).at).await.expect("read");
    assert_eq!(since, [beat(15), beat(30), beat(45)]);
}

#[tokio::test]
async fn segment_that_is_too_long_for_memory_goes_the_same_way() {
    const BYTES: u32 = 128 << 20;
    let bed = bed();
    let path = bed.write(&header(1, BYTES));
    let file = std::fs::File::options().write(true).open(&path).expect("opened");
    file.set_len(u64::from(BYTES)).expect("longer");
    let push = || bed.archive.push(FIRST, &path);
    assert_eq!(push().await.expect("pushed"), Pushed::New);
    assert_eq!(push().await.expect("pushed"), Pushed::Already);
    let found = bed.get(FIRST).await.expect("asked").expect("archived");
    assert!(found == std::fs::read(&path).expect("read"));
    std::os::unix::fs::FileExt::write_at(&file, &[1], 1 << 20).expect("written");
    assert!(matches!(push().await, Err(Error::Different { .. })));
}
