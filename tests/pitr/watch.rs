//! What the operator is told: an archiver that cannot run, a server that is not set up.

use crate::support::cluster::Cluster;
use crate::support::server::{Server, archive_through, socket, token};
use crate::support::{output, until};

const VIEWER: &str = "a-token-that-may-look";

/// What is wrong, in the server's words.
fn problems(server: &Server) -> String {
    let (status, stats) = server.ask("GET", "pitr/stats", VIEWER, "");
    assert_eq!(status, 200, "{stats}");
    stats.get("problems").map(ToString::to_string).unwrap_or_default()
}

#[test]
fn server_that_hands_no_log_over_is_not_well_and_the_way_out_is_named() {
    let cluster = Cluster::new();
    cluster.stop();
    cluster.add_settings("archive_mode = off\n");
    cluster.start();
    let more = format!("patience = \"2s\"\n{}", token("viewer", VIEWER));
    let server = Server::start_with(&cluster, &more, &[]);
    until("archive_mode is told", || {
        let problems = problems(&server);
        problems.contains("archive_mode is off") && problems.contains("foregate pitr setup")
    });
    assert!(server.get("/health").contains("degraded"));
    let (url, binary) = (format!("DATABASE_URL={}", cluster.url()), cluster.binary());
    let config = cluster.root().join("config.toml").display().to_string();
    let taken = output(
        "env",
        &[&url, &binary, "pitr", "base-backup", "--config", &config],
        cluster.root(),
    );
    let said = String::from_utf8_lossy(&taken.stderr);
    assert!(
        said.contains("hands its log to nobody") && said.contains("foregate pitr setup"),
        "{said}"
    );
    cluster.stop();
    cluster.add_settings("archive_mode = on\narchive_command = 'true'\n");
    cluster.start();
    cluster.finish_segment();
    until("another's command is told", || {
        let problems = problems(&server);
        problems.contains("archive_command does not run") && problems.contains("foregate pitr setup")
    });
    // A script of the operator's own leads here as well.
    let script = cluster.root().join("archive.sh");
    let text = format!(
        "#!/bin/sh\nexec {} wal push --socket {} \"$1\"\n",
        cluster.binary(),
        socket(&cluster)
    );
    std::fs::write(&script, text).expect("written");
    cluster.archive_command(&format!("/bin/sh {} %p", script.display()));
    cluster.finish_segment();
    cluster.wait_until_archived();
    until("it is well", || server.get("/health").contains("\"healthy\""));
}

#[test]
fn a_restart_of_postgresql_is_no_trouble() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let server = Server::start(&cluster);
    let beats = || server.metric("foregate_pitr_heartbeats_total");
    until("it beats", || beats() > Some(1.0));
    until("it is well", || server.get("/health").contains("\"healthy\""));
    cluster.stop();
    until("a beat is missed", || {
        server.metric("foregate_pitr_heartbeat_failures_total") > Some(1.0)
    });
    assert!(server.get("/health").contains("\"healthy\""));
    cluster.start();
    let before = beats();
    until("it beats again", || beats() > before);
    assert!(server.get("/health").contains("\"healthy\""));
}

#[test]
fn what_only_waits_for_a_restart_has_an_exit_code_of_its_own_and_the_table_fits() {
    let cluster = Cluster::new();
    cluster.stop();
    cluster.add_settings("archive_mode = off\n");
    cluster.start();
    let _server = Server::start(&cluster);
    let (url, binary) = (format!("DATABASE_URL={}", cluster.url()), cluster.binary());
    let config = cluster.root().join("config.toml").display().to_string();
    let setup = |more: &[&str]| {
        let mut args = vec![url.as_str(), &binary, "pitr", "setup", "--config", &config];
        args.extend(more);
        let output = output("env", &args, cluster.root());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rows = text.lines().filter(|line| line.starts_with(['|', '+']));
        assert!(rows.clone().count() > 5, "{text}");
        assert!(rows.map(|row| row.chars().count()).all(|width| width <= 100), "{text}");
        (output.status.code(), text)
    };
    let (code, text) = setup(&[]);
    assert_eq!(code, Some(1), "{text}");
    let (code, text) = setup(&["--apply"]);
    assert_eq!(code, Some(75), "{text}");
    assert!(text.contains("needs a restart of the server: archive_mode"), "{text}");
    cluster.stop();
    cluster.start();
    let (code, text) = setup(&[]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn an_archiver_that_cannot_find_the_binary_alerts_although_no_failure_is_counted() {
    let cluster = Cluster::new();
    cluster.archive_command("/nowhere/foregate wal push %p");
    let server = Server::start_with(&cluster, "patience = \"2s\"", &[]);
    cluster.finish_segment();
    until("the gauge rises", || {
        server.metric("foregate_pitr_ready_age_seconds") > Some(2.0)
    });
    until("the board shows it", || server.get("/health").contains("degraded"));
    assert_eq!(cluster.sql("SELECT failed_count FROM pg_stat_archiver"), "0");
    assert!(server.metric("foregate_pitr_ready_files") >= Some(1.0));
}

#[test]
fn recovery_begins_by_itself_once_its_repository_and_the_place_of_its_socket_are_free() {
    let cluster = Cluster::new();
    // As where a disk is not mounted yet, or belongs to somebody else.
    let (repository, place) = (cluster.repository(), cluster.root().join("wal.sock"));
    std::fs::write(&repository, "no directory").expect("a file is in the way");
    std::fs::create_dir(&place).expect("a directory is in the way");
    let server = Server::start(&cluster);
    let logged = |text: &str| {
        let log = std::fs::read_to_string(cluster.root().join("stderr")).unwrap_or_default();
        log.contains(text)
    };
    until("it is told", || logged("point-in-time recovery cannot begin yet"));
    assert!(server.get("/health").contains("degraded"));
    std::fs::remove_file(&repository).expect("the repository's place is free");
    until("the socket's trouble is told", || logged("the archive's socket"));
    assert!(server.get("/health").contains("degraded"));
    std::fs::remove_dir(&place).expect("the socket's place is free");
    until("the socket", || place.exists());
    archive_through(&cluster);
    let name = cluster.finish_segment();
    cluster.wait_until_archived();
    assert_eq!(cluster.objects(&name).len(), 1);
}

#[test]
fn setup_prints_what_is_missing_applies_it_and_lets_postgresql_try_the_client() {
    let cluster = Cluster::new();
    let server = Server::start(&cluster);
    let config = cluster.root().join("config.toml").display().to_string();
    let url = format!("DATABASE_URL={}", cluster.url());
    let binary = cluster.binary();
    let setup = |more: &[&str]| {
        let mut args = vec![url.as_str(), &binary, "pitr", "setup", "--config", &config];
        args.extend(more);
        let output = output("env", &args, cluster.root());
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let line = format!("archive_command = '{binary} wal push --socket {} %p'", socket(&cluster));
    let (is_good, text) = setup(&[]);
    assert!(!is_good && text.contains(&line), "{text}");
    assert!(text.contains("archive_timeout = '60'"), "{text}");
    let (is_good, text) = setup(&["--apply"]);
    assert!(is_good, "{text}");
    assert!(text.contains("and reaches Foregate"), "{text}");
    let name = cluster.finish_segment();
    cluster.wait_until_archived();
    assert_eq!(cluster.objects(&name).len(), 1);
    server.stop();
    let (is_good, text) = setup(&[]);
    assert!(!is_good && text.contains("Foregate's server does not run"), "{text}");
    assert!(text.contains(&socket(&cluster)), "{text}");
}

#[test]
fn the_heartbeat_commits_and_is_told() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let server = Server::start_with(&cluster, "patience = \"2s\"", &[]);
    until("it beats", || {
        server.metric("foregate_pitr_heartbeats_total") > Some(1.0)
    });
    let rows: u64 = cluster
        .sql("SELECT count(*) FROM foregate.heartbeat")
        .parse()
        .expect("a count");
    assert!(rows > 1);
    cluster.stop();
    until("it is missed", || {
        server.metric("foregate_pitr_heartbeat_failures_total") > Some(0.0)
    });
    until("the board shows it", || server.get("/health").contains("degraded"));
    cluster.start();
    until("it is well again", || server.get("/health").contains("\"healthy\""));
}
