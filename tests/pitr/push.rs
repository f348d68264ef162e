//! Into the archive: `archive_command = 'foregate wal push %p'`.

use crate::support::cluster::{Cluster, program};
use crate::support::server::{Server, archive_through, socket, until_counted};
use crate::support::{as_postgres, files, run, until};

/// The archived file is the one that PostgreSQL wrote, read back with the tools that everybody has.
fn assert_archived(cluster: &Cluster, name: &str) {
    let objects = cluster.objects(name);
    assert_eq!(objects.len(), 1, "{name}: {objects:?}");
    let object = objects.first().expect("one").display().to_string();
    let command = format!("age -d -i {} {object} | zstd -d | b3sum", cluster.key());
    let hash = run("bash", &["-o", "pipefail", "-c", &command]);
    let hash = hash.split(' ').next().expect("a hash");
    assert!(object.contains(hash), "{object} holds {hash}");
}

#[test]
fn segments_are_archived_through_the_server_and_read_back_without_foregate() {
    let cluster = Cluster::new();
    let server = Server::start(&cluster);
    archive_through(&cluster);
    let names: Vec<String> = (0..3).map(|_| cluster.finish_segment()).collect();
    cluster.wait_until_archived();
    for name in &names {
        assert_archived(&cluster, name);
    }
    assert!(server.metric("foregate_pitr_pushes_total{result=\"new\"}") >= Some(3.0));
    assert_eq!(
        server.metric("foregate_pitr_pushes_total{result=\"failed\"}"),
        Some(0.0)
    );
    until_counted(&server, &cluster);
    assert_eq!(server.metric("foregate_pitr_gap_segments"), Some(0.0));
}

#[test]
fn the_identical_file_again_succeeds_and_a_different_one_fails_and_changes_nothing() {
    let cluster = Cluster::new();
    let server = Server::start(&cluster);
    let name = cluster.finish_segment();
    let (path, socket) = (format!("pg_wal/{name}"), socket(&cluster));
    let push = |path: &str| cluster.client(&["push", "--socket", &socket, path]);
    assert_eq!(push(&path), (0, String::new()));
    assert_eq!(push(&path), (0, String::new()));
    assert_eq!(
        server.metric("foregate_pitr_pushes_total{result=\"already\"}"),
        Some(1.0)
    );
    let elsewhere = cluster.root().join(&name);
    let mut bytes = std::fs::read(cluster.wal().join(&name)).expect("the segment");
    bytes[9000] ^= 1;
    std::fs::write(&elsewhere, bytes).expect("written");
    let (code, complaint) = push(&elsewhere.display().to_string());
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("with other content"), "{complaint}");
    assert_archived(&cluster, &name);
}

#[test]
fn while_the_server_is_down_the_log_waits_or_goes_straight_to_the_repository() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let first = cluster.finish_segment();
    until("the archiver tried", || {
        cluster.sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    assert!(cluster.waiting() > 0);
    assert_eq!(cluster.objects(&first).len(), 0);
    let command = format!("{} wal push --socket /nowhere {} %p", cluster.binary(), cluster.alone());
    cluster.archive_command(&command);
    let second = cluster.finish_segment();
    cluster.wait_until_archived();
    assert_archived(&cluster, &first);
    assert_archived(&cluster, &second);
}

#[test]
fn archiving_resumes_by_itself_when_the_server_comes_back() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let server = Server::start(&cluster);
    cluster.finish_segment();
    cluster.wait_until_archived();
    server.kill();
    let name = cluster.finish_segment();
    until("the archiver tried", || {
        cluster.sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    let _server = Server::start(&cluster);
    cluster.wait_until_archived();
    assert_archived(&cluster, &name);
}

/// Kills at many moments of a push; what is there must be whole, and everything gets there.
#[test]
fn killed_during_pushes_nothing_torn_is_found_and_nothing_is_lost() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let mut names = Vec::new();
    for _ in 0..6 {
        let server = Server::start(&cluster);
        names.push(cluster.finish_segment());
        let last = names.last().expect("a name").clone();
        // As soon as anything of it is seen, finished or not.
        until("a push has begun", || {
            let seen = files(&cluster.repository());
            seen.iter().any(|path| path.to_string_lossy().contains(&last)) || cluster.waiting() == 0
        });
        server.kill();
    }
    let _server = Server::start(&cluster);
    cluster.wait_until_archived();
    for name in &names {
        assert_archived(&cluster, name);
    }
}

#[test]
fn a_full_repository_disk_leaves_the_log_with_postgresql_and_archiving_resumes_by_itself() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let repository = cluster.repository().display().to_string();
    std::fs::create_dir_all(&repository).expect("a place to mount");
    let mount = format!("mount -t tmpfs -o size=1m none {repository} && exec \"$@\"");
    let server = Server::start_with(
        &cluster,
        "patience = \"1s\"",
        &["unshare", "-m", "sh", "-c", &mount, "sh"],
    );
    cluster.sql("CREATE TABLE big AS SELECT md5(random()::text) FROM generate_series(1, 200000)");
    cluster.finish_segment();
    let failures = "foregate_pitr_pushes_total{result=\"failed\"}";
    until("the disk is full", || server.metric(failures) > Some(0.0));
    assert!(cluster.waiting() > 0, "PostgreSQL keeps what is not archived");
    until("the gauge shows it", || {
        server.metric("foregate_pitr_ready_age_seconds") > Some(1.0)
    });
    until("the board shows it", || server.get("/health").contains("degraded"));
    let pid = server.pid().to_string();
    run(
        "nsenter",
        &["-t", &pid, "-m", "mount", "-o", "remount,size=500m", &repository],
    );
    cluster.wait_until_archived();
    until("the gauge falls", || {
        server.metric("foregate_pitr_ready_age_seconds") == Some(0.0)
    });
    until("the board is green", || server.get("/health").contains("\"healthy\""));
}

#[test]
fn a_limit_on_file_sizes_is_a_failure_and_not_the_end_of_the_archiver() {
    let cluster = Cluster::new();
    cluster.sql("CREATE TABLE big AS SELECT md5(random()::text) FROM generate_series(1, 100000)");
    let name = cluster.finish_segment();
    let command = format!(
        "ulimit -f 10; {} wal push --socket /nowhere {} pg_wal/{name}",
        cluster.binary(),
        cluster.alone()
    );
    let done = crate::support::output("setpriv", &as_postgres(&["sh", "-c", &command]), &cluster.data());
    let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{complaint}");
    assert_eq!(cluster.objects(&name).len(), 0);
}

#[test]
fn the_log_of_another_cluster_is_refused() {
    let (ours, other) = (Cluster::new(), Cluster::new());
    let _server = Server::start(&ours);
    run("chmod", &["777", &ours.root().display().to_string()]);
    let name = other.finish_segment();
    let (code, complaint) = other.client(&["push", "--socket", &socket(&ours), &format!("pg_wal/{name}")]);
    assert_eq!(code, 1);
    assert!(complaint.contains("but [database] is cluster"), "{complaint}");
    assert_eq!(ours.objects(&name).len(), 0);
}

#[test]
fn a_user_that_is_not_postgresqls_may_not_use_the_socket() {
    let cluster = Cluster::new();
    let _server = Server::start(&cluster);
    let binary = cluster.binary();
    let data = cluster.data().display().to_string();
    let name = cluster.finish_segment();
    let path = cluster.root().join(&name);
    std::fs::copy(cluster.wal().join(&name), &path).expect("copied");
    run("chmod", &["644", &path.display().to_string()]);
    let args = [
        "--reuid",
        "nobody",
        "--regid",
        "nogroup",
        "--clear-groups",
        &binary,
        "wal",
        "push",
        "--of",
        "1-15",
        "--socket",
        &socket(&cluster),
        &path.display().to_string(),
    ];
    let refused = crate::support::output("setpriv", &args, std::path::Path::new("/"));
    assert_eq!(refused.status.code(), Some(1), "{data}");
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("may not use this socket"), "{complaint}");
}

#[test]
fn other_segment_sizes_are_archived_and_counted_right() {
    let cluster = Cluster::with(&["--wal-segsize=1"]);
    archive_through(&cluster);
    let server = Server::start(&cluster);
    cluster.sql("CREATE TABLE big AS SELECT md5(g::text) FROM generate_series(1, 150000) g");
    let name = cluster.finish_segment();
    cluster.wait_until_archived();
    assert_archived(&cluster, &name);
    assert!(cluster.archived_segments() >= 10.0);
    until_counted(&server, &cluster);
    assert_eq!(server.metric("foregate_pitr_gap_segments"), Some(0.0));
}

/// A label, a history and a partial segment come only with a base backup and a promotion.
#[test]
fn labels_histories_and_partial_segments_are_archived_too() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let server = Server::start(&cluster);
    let copy = cluster.root().join("copy").display().to_string();
    let socket_directory = cluster.root().display().to_string();
    let base = [
        program("pg_basebackup"),
        "-D".to_owned(),
        copy,
        "-h".to_owned(),
        socket_directory,
    ];
    let base: Vec<&str> = base
        .iter()
        .map(String::as_str)
        .chain(["-U", "postgres", "-c", "fast"])
        .collect();
    run("setpriv", &as_postgres(&base));
    cluster.finish_segment();
    cluster.wait_until_archived();
    assert!(
        files(&cluster.repository())
            .iter()
            .any(|path| path.to_string_lossy().contains(".backup-"))
    );
    // Recovery of the stopped cluster ends at the end of its own log, and a new timeline begins in mid-segment.
    cluster.sql("CREATE TABLE later AS SELECT 1");
    cluster.stop();
    std::fs::write(cluster.data().join("recovery.signal"), "").expect("a signal file");
    cluster.add_settings("restore_command = 'false'\n");
    cluster.start();
    until("it is promoted", || cluster.sql("SELECT pg_is_in_recovery()") == "f");
    let name = cluster.finish_segment();
    cluster.wait_until_archived();
    assert!(name.starts_with("00000002"), "{name}");
    assert_archived(&cluster, &name);
    assert_archived(&cluster, "00000002.history");
    let partial = name.replacen("00000002", "00000001", 1) + ".partial";
    assert_archived(&cluster, &partial);
    until_counted(&server, &cluster);
    assert_eq!(server.metric("foregate_pitr_gap_segments"), Some(0.0));
}

#[test]
fn push_without_the_server_takes_no_empty_directory_for_the_repository() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let server = Server::start(&cluster);
    cluster.finish_segment();
    cluster.wait_until_archived();
    server.stop();
    let (root, repository) = (cluster.root().display().to_string(), cluster.repository());
    run("chown", &["-R", "postgres", &repository.display().to_string()]);
    let config = format!("{root}/config.toml");
    let push = |name: &str| {
        let path = format!("pg_wal/{name}");
        cluster.client(&["push", "--socket", "/nowhere", "--config", &config, &path])
    };
    let name = cluster.finish_segment();
    assert_eq!(push(&name), (0, String::new()));
    // As when its disk is not mounted: a directory of the same name on another one.
    let away = cluster.root().join("away");
    let next = cluster.finish_segment();
    for may_look in [false, true] {
        if may_look {
            run("chmod", &["-R", "a+rX", &format!("{root}/state")]);
        }
        std::fs::rename(&repository, &away).expect("moved away");
        for is_there in [false, true] {
            if is_there {
                run("install", &["-d", "-o", "postgres", &repository.display().to_string()]);
            }
            let (code, said) = push(&next);
            assert_eq!(code, 1, "{said}");
            assert!(said.contains("is its disk mounted?"), "{said}");
            assert_eq!(files(&repository), Vec::<std::path::PathBuf>::new());
            assert_eq!(repository.exists(), is_there);
        }
        std::fs::remove_dir(&repository).expect("it is empty");
        std::fs::rename(&away, &repository).expect("moved back");
    }
    assert_eq!(push(&next), (0, String::new()));
    assert_archived(&cluster, &next);
}
