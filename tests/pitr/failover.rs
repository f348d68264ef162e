//! `wal = "stream"` when the server dies and its standby takes over, or another cluster answers in its place.

use std::path::{Path, PathBuf};

use crate::support::cluster::{Cluster, PORT, program};
use crate::support::server::{Server, config, token, until_counted};
use crate::support::{files, output, until};

const VIEWER: &str = "a-token-that-may-look";

/// A server of ours with the state of `first`, which streams from `second`.
fn moved(first: &Cluster, second: &Cluster) -> Server {
    streaming(first, &second.url(), "")
}

/// One that streams from whoever answers at `address`, with more lines in `[pitr]`.
fn streaming(first: &Cluster, address: &str, more: &str) -> Server {
    let url = first.root().join("url");
    std::fs::write(&url, address).expect("the address is written");
    let text = config(first, &format!("wal = \"stream\"\n{more}"));
    let text = text.replace(
        "url = { env = \"DATABASE_URL\" }",
        &format!("url = {{ file = \"{}\" }}", url.display()),
    );
    Server::start_configured(first, &text, &[])
}

fn is_read(cluster: &Cluster) -> bool {
    cluster.sql("SELECT bool_or(active) FROM pg_replication_slots WHERE slot_name = 'foregate'") == "t"
}

/// A primary whose log is streamed, and its standby.
fn pair() -> (Cluster, Cluster, Server) {
    let first = Cluster::new();
    first.archive_command("true");
    // A standby without a slot, and later ourselves, need what a checkpoint would remove.
    first.sql("ALTER SYSTEM SET wal_keep_size = '1GB'");
    first.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'");
    first.sql("SELECT pg_reload_conf()");
    let server = moved(&first, &first);
    until("the slot is read", || is_read(&first));
    let second = Cluster::standby_of(&first);
    (first, second, server)
}

/// Lets `second` answer where `first` did, as an address that follows the primary.
fn take_over(first: &Cluster, second: &Cluster) {
    let (own, too) = (second.root().display(), first.root().display());
    second.stop();
    second.add_settings(&format!("unix_socket_directories = '{own}, {too}'\n"));
    second.start();
}

/// Everything that was written is in the partial file of the spool.
fn until_streamed(cluster: &Cluster) {
    let behind = "SELECT bool_or(flush_lsn < pg_current_wal_flush_lsn()) FROM pg_stat_replication \
        WHERE application_name = 'foregate wal stream'";
    until("all is streamed", || cluster.sql(behind) == "f");
}

fn until_replayed(first: &Cluster, second: &Cluster) {
    let end = first.sql("SELECT pg_current_wal_flush_lsn()");
    let there = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    until("the standby has it", || second.sql(&there) == "t");
}

fn all_is_there(server: &Server, cluster: &Cluster, last: &str) {
    until("the log of the new timeline is archived", || {
        cluster.objects(last).len() == 1
    });
    until_counted(server, cluster);
    assert_eq!(server.metric("foregate_pitr_gap_segments"), Some(0.0));
    until("it is well", || server.get("/health").contains("\"healthy\""));
}

#[test]
fn after_a_failover_the_stream_goes_on_where_it_was_and_what_only_the_spool_had_is_archived() {
    let (first, second, server) = pair();
    let names = [first.finish_segment(), first.finish_segment()];
    until("they are archived", || {
        names.iter().all(|name| first.objects(name).len() == 1)
    });
    first.sql("CREATE TABLE only_here (v int)");
    until_streamed(&first);
    until_replayed(&first, &second);
    let open = first.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    server.kill();
    first.kill();
    second.promote();
    // It has got on, and looks no further back than its last checkpoint, when we come.
    second.finish_segment();
    second.sql("CHECKPOINT");
    let last = second.finish_segment();
    second.finish_segment();
    let server = moved(&first, &second);
    all_is_there(&server, &first, &last);
    let partial = format!("{open}.partial");
    until("what only the spool had is archived", || {
        first.objects(&partial).len() == 1
    });
    assert!(first.objects(&open.replacen("00000001", "00000002", 1)).len() == 1);
    // As it comes again where the old primary was asked once more, and got further.
    server.kill();
    let mut bytes = std::fs::read(first.wal().join(&open)).expect("its log");
    *bytes.last_mut().expect("bytes") ^= 1;
    let spool = spool(&first);
    std::fs::write(spool.join(&partial), bytes).expect("written");
    let server = moved(&first, &second);
    let aside = spool.with_extension("aside").join(&partial);
    until("it is put aside", || aside.exists());
    let last = second.finish_segment();
    all_is_there(&server, &first, &last);
}

#[test]
fn spool_that_got_further_than_the_standby_is_archived_and_the_stream_begins_where_the_timelines_part() {
    let (first, second, server) = pair();
    let before = first.finish_segment();
    until_replayed(&first, &second);
    second.stop();
    let lost = [first.finish_segment(), first.finish_segment()];
    until("they are archived", || {
        lost.iter().all(|name| first.objects(name).len() == 1)
    });
    first.sql("CREATE TABLE only_here (v int)");
    until_streamed(&first);
    let open = first.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    first.kill();
    second.start();
    second.promote();
    second.finish_segment();
    second.sql("CHECKPOINT");
    let last = second.finish_segment();
    second.finish_segment();
    take_over(&first, &second);
    all_is_there(&server, &first, &last);
    let partial = format!("{open}.partial");
    until("what only the spool had is archived", || {
        first.objects(&partial).len() == 1
    });
    assert_eq!(first.objects(&before).len(), 1);
    let parted = lost[0].replacen("00000001", "00000002", 1);
    assert_eq!(first.objects(&parted).len(), 1, "{parted}");
}

#[test]
fn standby_that_has_removed_log_moves_no_stream_that_its_primary_still_holds_the_log_for() {
    let (first, second, server) = pair();
    first.finish_segment();
    until_streamed(&first);
    let streamed = first.sql("SELECT pg_current_wal_flush_lsn()");
    server.kill();
    until("nobody reads", || !is_read(&first));
    second.sql("ALTER SYSTEM SET wal_keep_size = 0");
    second.sql("SELECT pg_reload_conf()");
    let lost = [first.finish_segment(), first.finish_segment(), first.finish_segment()];
    let is_there = || lost.iter().any(|name| second.wal().join(name).exists());
    until("the standby has removed it", || {
        first.finish_segment();
        first.sql("CHECKPOINT");
        until_replayed(&first, &second);
        second.sql("CHECKPOINT");
        !is_there()
    });
    let more = format!("patience = \"2s\"\n{}", token("viewer", VIEWER));
    let server = streaming(&first, &second.url(), &more);
    let problems = || server.ask("GET", "pitr/stats", VIEWER, "").1["problems"].to_string();
    let spool = spool(&first);
    let way_out = format!("move {} aside", spool.display());
    until("the way out is told", || problems().contains(&way_out));
    let before = names(&spool);
    // Whoever tries with it may set the slot back to where nothing is left.
    let held = format!("SELECT restart_lsn <= '{streamed}' FROM pg_replication_slots WHERE slot_name = 'foregate'");
    until("the slot is set back", || {
        try_with(&spool, &second);
        second.sql(&held) == "t"
    });
    assert_eq!(names(&spool), before);
    let aside = spool.with_extension("aside");
    std::fs::rename(&spool, &aside).expect("moved aside");
    until("the stream begins anew", || {
        is_read(&second) && !names(&spool).is_empty()
    });
    server.kill();
    std::fs::remove_dir_all(&spool).expect("the place is free");
    std::fs::rename(&aside, &spool).expect("put back");
    assert_eq!(names(&spool), before);
    let server = moved(&first, &first);
    let last = first.finish_segment();
    all_is_there(&server, &first, &last);
}

/// Where what is read of its log waits.
fn spool(cluster: &Cluster) -> PathBuf {
    let spools = std::fs::read_dir(cluster.root().join("state/wal-stream")).expect("spools");
    let mut paths = spools.flatten().map(|entry| entry.path());
    paths.next().expect("a spool")
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let files = files(folder).into_iter();
    files.filter_map(|path| Some(path.file_name()?.into())).collect()
}

/// As the stream does, with what is in its spool.
fn try_with(spool: &Path, cluster: &Cluster) {
    let (spool, root) = (spool.display().to_string(), cluster.root().display().to_string());
    let args = [
        "-D", &spool, "-S", "foregate", "-h", &root, "-p", PORT, "-U", "postgres",
    ];
    let args = [&args[..], &["--synchronous", "--no-loop"]].concat();
    let tried = output(&program("pg_receivewal"), &args, Path::new("/"));
    assert!(!tried.status.success(), "it cannot go on there");
}

/// What is stored of its log.
fn log_of(cluster: &Cluster, repository: &Cluster) -> Vec<PathBuf> {
    let identifier = cluster.sql("SELECT system_identifier FROM pg_control_system()");
    let mut found = files(&repository.repository());
    found.retain(|path| {
        let path = path.display().to_string();
        path.contains(&format!("/{identifier}-")) && path.contains("/wal/") && path.ends_with(".age")
    });
    found
}

#[test]
fn another_cluster_at_the_address_gets_an_archive_of_its_own_and_adds_nothing_to_the_old_one() {
    let (first, second) = (Cluster::new(), Cluster::new());
    first.archive_command("true");
    second.archive_command("true");
    let server = moved(&first, &first);
    until("the slot is read", || is_read(&first));
    let name = first.finish_segment();
    until("it is archived", || first.objects(&name).len() == 1);
    server.kill();
    let before = log_of(&first, &first);
    // It has got further than the other, and still has what would follow there.
    second.sql("ALTER SYSTEM SET wal_keep_size = '1GB'");
    second.sql("SELECT pg_reload_conf()");
    for _ in 0..4 {
        second.finish_segment();
    }
    let server = moved(&first, &second);
    until("the slot is read there", || is_read(&second));
    second.finish_segment();
    until("its log is archived", || !log_of(&second, &first).is_empty());
    assert_eq!(log_of(&first, &first), before);
    drop(server);
}

#[test]
fn another_cluster_at_the_address_is_noticed_although_the_old_one_runs_on() {
    let (first, second) = (Cluster::new(), Cluster::new());
    first.archive_command("true");
    second.archive_command("true");
    let address = first.root().join("address");
    let leads_to = |cluster: &Cluster| {
        drop(std::fs::remove_file(&address));
        std::os::unix::fs::symlink(cluster.root(), &address).expect("an address");
    };
    leads_to(&first);
    let own = first.root().display().to_string().replace('/', "%2F");
    let url = first.url().replace(&own, &format!("{own}%2Faddress"));
    let server = streaming(&first, &url, "patience = \"2s\"");
    until("the slot is read", || is_read(&first));
    let name = first.finish_segment();
    until("it is archived", || first.objects(&name).len() == 1);
    leads_to(&second);
    until("the slot is read there", || is_read(&second));
    until("nobody reads the old one's", || !is_read(&first));
    let beats = "SELECT count(*) FROM pg_class WHERE relname = 'heartbeat'";
    until("it beats there", || second.sql(beats) != "0");
    second.finish_segment();
    until("its log is archived", || !log_of(&second, &first).is_empty());
    drop(server);
}
