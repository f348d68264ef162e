//! `wal = "stream"`: the log over a replication slot.

use crate::support::cluster::Cluster;
use crate::support::server::{Server, token, until_counted};
use crate::support::until;

const STREAM: &str = "wal = \"stream\"";
const VIEWER: &str = "a-token-that-may-look";

#[test]
fn the_log_is_streamed_and_continues_without_a_gap_after_a_kill() {
    let cluster = Cluster::new();
    cluster.archive_command("true");
    let server = Server::start_with(&cluster, STREAM, &[]);
    let read = "SELECT active FROM pg_replication_slots WHERE slot_name = 'foregate'";
    until("the slot is read", || cluster.sql(read) == "t");
    let mut names = vec![cluster.finish_segment(), cluster.finish_segment()];
    until("they are archived", || {
        names.iter().all(|name| cluster.objects(name).len() == 1)
    });
    until("a slot without a bound is told", || {
        server.get("/health").contains("degraded")
    });
    cluster.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'");
    cluster.sql("SELECT pg_reload_conf()");
    until("it is well", || server.get("/health").contains("\"healthy\""));
    server.kill();
    until("nobody reads", || cluster.sql(read) == "f");
    names.extend([cluster.finish_segment(), cluster.finish_segment()]);
    let server = Server::start_with(&cluster, STREAM, &[]);
    names.push(cluster.finish_segment());
    until("all are archived", || {
        names.iter().all(|name| cluster.objects(name).len() == 1)
    });
    until("the slot is well", || server.get("/health").contains("\"healthy\""));
    until_counted(&server, &cluster);
    assert_eq!(server.metric("foregate_pitr_gap_segments"), Some(0.0));
}

#[test]
fn after_a_lost_slot_the_log_goes_on_by_itself_at_once_and_the_gap_is_told() {
    let cluster = Cluster::new();
    cluster.archive_command("true");
    let server = Server::start_with(&cluster, STREAM, &[]);
    let slot = |what: &str| {
        cluster.sql(&format!(
            "SELECT {what} FROM pg_replication_slots WHERE slot_name = 'foregate'"
        ))
    };
    until("the slot is read", || slot("active") == "t");
    let first = cluster.finish_segment();
    until("it is archived", || cluster.objects(&first).len() == 1);
    server.kill();
    until("nobody reads", || slot("active") == "f");
    cluster.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    cluster.sql("ALTER SYSTEM SET max_wal_size = '32MB'");
    cluster.sql("ALTER SYSTEM SET wal_keep_size = 0");
    cluster.sql("SELECT pg_reload_conf()");
    until("the slot is lost", || {
        cluster.finish_segment();
        cluster.sql("CHECKPOINT");
        slot("wal_status") == "lost"
    });
    // What the new slot holds is held until it is read, however long that takes here.
    cluster.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'");
    cluster.sql("SELECT pg_reload_conf()");
    let server = Server::start_with(&cluster, STREAM, &[]);
    // What lies in the spool cannot go on: the log does, from where the server still has it, and is held from there on.
    until("a slot is read that holds the log", || {
        slot("active AND wal_status <> 'lost'") == "t"
    });
    let next = cluster.finish_segment();
    until("its log is archived", || cluster.objects(&next).len() == 1);
    let log = std::fs::read_to_string(cluster.root().join("log")).expect("its log");
    let asked = log.matches("has already been removed").count();
    assert_eq!(asked, 0, "nobody tried first, while the gap grew");
    until("the gap is counted", || {
        server.metric("foregate_pitr_gap_segments") > Some(0.0)
    });
    until("the board shows it", || server.get("/health").contains("degraded"));
}

#[test]
fn what_waits_in_the_spool_is_well_again_once_it_is_archived_although_nothing_is_streamed_then() {
    let cluster = Cluster::new();
    cluster.archive_command("true");
    let server = Server::start_with(&cluster, &format!("{STREAM}\n{}", token("viewer", VIEWER)), &[]);
    let problems = || server.ask("GET", "pitr/stats", VIEWER, "").1["problems"].to_string();
    let is_read = "SELECT bool_or(active) FROM pg_replication_slots WHERE slot_name = 'foregate'";
    until("the slot is read", || cluster.sql(is_read) == "t");
    let first = cluster.finish_segment();
    until("it is archived", || cluster.objects(&first).len() == 1);
    let identifier = cluster.sql("SELECT system_identifier FROM pg_control_system()");
    let repository = std::fs::read_dir(cluster.repository()).expect("a repository");
    let mut folders = repository.flatten().map(|entry| entry.path());
    let own = folders.find(|path| path.display().to_string().contains(&format!("/{identifier}-")));
    let wal = own.expect("its folder").join("wal");
    let aside = wal.with_extension("aside");
    std::fs::rename(&wal, &aside).expect("put aside");
    std::fs::write(&wal, "no directory").expect("a file is in the way");
    let second = cluster.finish_segment();
    let told = || problems().contains("what is streamed is not archived");
    until("it is told", told);
    cluster.stop();
    std::fs::remove_file(&wal).expect("the place is free");
    std::fs::rename(&aside, &wal).expect("put back");
    until("what waited is archived", || cluster.objects(&second).len() == 1);
    until("it is well again", || !told());
}
