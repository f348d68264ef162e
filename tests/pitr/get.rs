//! Out of the archive: `restore_command = 'foregate wal get %f "%p"'`. Its exit codes decide whether a recovery loses data.

use crate::support::cluster::Cluster;
use crate::support::server::{Server, archive_through, socket};
use crate::support::until;

/// Below it PostgreSQL takes the answer for the end of the log.
const FAULT: i32 = 126;

fn archived(cluster: &Cluster, segments: usize) -> Vec<String> {
    cluster.archive_command(&format!(
        "{} wal push --socket /nowhere {} %p",
        cluster.binary(),
        cluster.alone()
    ));
    let names = (0..segments).map(|_| cluster.finish_segment()).collect();
    cluster.wait_until_archived();
    names
}

/// Exit code of a get without the server, into the place that PostgreSQL uses.
fn get(cluster: &Cluster, more: &[&str], name: &str) -> (i32, Option<Vec<u8>>) {
    let into = cluster.wal().join("RECOVERYXLOG");
    drop(std::fs::remove_file(&into));
    let alone = cluster.alone();
    let mut args: Vec<&str> = vec!["get"];
    if more.is_empty() {
        args.extend(alone.split(' '));
    } else {
        args.extend(more);
    }
    args.extend([name, "pg_wal/RECOVERYXLOG"]);
    let (code, complaint) = cluster.client(&args);
    // Shown only where the test fails.
    eprintln!("{code}: {complaint}");
    assert!(
        !cluster.wal().join("RECOVERYXLOG.foregate").exists(),
        "nothing unfinished stays"
    );
    (code, std::fs::read(&into).ok())
}

#[test]
fn what_is_there_comes_and_what_is_not_is_exit_code_1() {
    let cluster = Cluster::new();
    let names = archived(&cluster, 4);
    for name in &names {
        let whole = std::fs::read(cluster.wal().join(name)).ok();
        let (code, got) = get(&cluster, &[], name);
        assert_eq!(code, 0, "{name}");
        // PostgreSQL may have recycled its own by now.
        assert!(whole.is_none() || got == whole);
    }
    assert_eq!(get(&cluster, &[], "0000000100000FFF00000001"), (1, None));
    assert_eq!(get(&cluster, &[], "00000009.history"), (1, None));
}

#[test]
fn every_fault_is_126_or_above_and_leaves_nothing_behind() {
    let cluster = Cluster::new();
    let names = archived(&cluster, 1);
    let name = names.first().expect("a name");
    let repository = format!("file://{}", cluster.repository().display());
    let nothing = cluster.root().join("nothing");
    std::fs::create_dir(&nothing).expect("a directory");
    crate::support::run("chmod", &["777", &nothing.display().to_string()]);
    let not_mounted = format!("file://{}", nothing.display());
    for (why, more) in [
        ("no key", vec!["--repository", &repository]),
        (
            "an empty repository",
            vec!["--repository", &not_mounted, "--identity", "KEY"],
        ),
        (
            "no repository",
            vec!["--repository", "file:///proc/nowhere", "--identity", "KEY"],
        ),
        (
            "a bucket that cannot be",
            vec!["--repository", "ftp://x", "--identity", "KEY"],
        ),
        ("no server", vec!["--socket", "/nowhere"]),
        ("an unknown flag", vec!["--no-such-flag"]),
        (
            "a missing key file",
            vec!["--repository", &repository, "--identity", "/nowhere"],
        ),
    ] {
        let key = cluster.key();
        let more: Vec<&str> = more
            .iter()
            .map(|word| if *word == "KEY" { key.as_str() } else { word })
            .collect();
        let (code, got) = get(&cluster, &more, name);
        assert!(code >= FAULT, "{why}: {code}");
        assert_eq!(got, None, "{why}");
    }
    assert!(get(&cluster, &[], "nonsense").0 >= FAULT);
}

#[test]
fn one_flipped_bit_is_a_fault_and_not_the_end_of_the_log() {
    let cluster = Cluster::new();
    let names = archived(&cluster, 1);
    let name = names.first().expect("a name");
    let object = cluster.objects(name).pop().expect("it is archived");
    let good = std::fs::read(&object).expect("read");
    for at in [10, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        std::fs::write(&object, bad).expect("written");
        let alone = format!("--no-prefetch {}", cluster.alone());
        let (code, got) = get(&cluster, &alone.split(' ').collect::<Vec<_>>(), name);
        assert!(code >= FAULT, "byte {at}: {code}");
        assert_eq!(got, None);
    }
}

#[test]
fn the_server_feeds_a_recovery_too() {
    let cluster = Cluster::new();
    let _server = Server::start(&cluster);
    archive_through(&cluster);
    let names: Vec<String> = (0..4).map(|_| cluster.finish_segment()).collect();
    cluster.wait_until_archived();
    let socket = socket(&cluster);
    for name in &names {
        let (code, got) = get(&cluster, &["--socket", &socket], name);
        assert_eq!((code, got.map(|bytes| bytes.len())), (0, Some(16 << 20)));
    }
    assert_eq!(
        get(&cluster, &["--socket", &socket], "0000000100000FFF00000001"),
        (1, None)
    );
    let object = cluster
        .objects(names.first().expect("a name"))
        .pop()
        .expect("it is archived");
    std::fs::write(&object, "nonsense").expect("written");
    assert!(get(&cluster, &["--socket", &socket], names.first().expect("a name")).0 >= FAULT);
}

/// The helper that fetches ahead ends when nobody asks any more, and nothing hangs on it.
#[test]
fn a_whole_cluster_recovers_through_the_client_alone() {
    let cluster = Cluster::new();
    let root = cluster.root().display().to_string();
    let copy = format!("{root}/copy");
    cluster.archive_command(&format!(
        "{} wal push --socket /nowhere {} %p",
        cluster.binary(),
        cluster.alone()
    ));
    let base = crate::support::cluster::program("pg_basebackup");
    let args = [
        base.as_str(),
        "-D",
        &copy,
        "-h",
        &root,
        "-U",
        "postgres",
        "-c",
        "fast",
        "-X",
        "none",
    ];
    crate::support::run("setpriv", &crate::support::as_postgres(&args));
    for _ in 0..6 {
        cluster.finish_segment();
    }
    let rows = cluster.sql("SELECT count(*) FROM filler");
    cluster.finish_segment();
    cluster.wait_until_archived();
    cluster.stop();
    // The copy takes the cluster's place, with nothing but the archive to recover from.
    let (data, old) = (cluster.data(), cluster.root().join("old"));
    std::fs::rename(&data, &old).expect("moved aside");
    std::fs::rename(&copy, &data).expect("moved in");
    std::fs::write(data.join("recovery.signal"), "").expect("a signal file");
    cluster.add_settings(&format!(
        "archive_mode = off\nrestore_command = '{} wal get {} %f \"%p\"'\nrecovery_target_timeline = 'current'\n",
        cluster.binary(),
        cluster.alone()
    ));
    cluster.start();
    until("it is promoted", || cluster.sql("SELECT pg_is_in_recovery()") == "f");
    let recovered: u64 = cluster.sql("SELECT count(*) FROM filler").parse().expect("a count");
    assert!(recovered >= rows.parse().expect("a count"), "{recovered} of {rows}");
}
