//! What must hold after each fault: nothing claims to be good and is not, no good backup goes, live data is untouched,
//! and the next run works.

use std::path::PathBuf;

use crate::bucket::{Fault, Server};
use crate::support::{Bed, Store, change_value, run, until};

/// Ids of what is listed as good, each proven again.
fn proven(store: &Store) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_str(&store.ok(&["list", "--json"])).expect("a list in JSON");
    let entries = list.as_array().expect("an array").iter();
    let good = entries.filter(|entry| entry["good"] == true);
    let ids: Vec<String> = good
        .map(|entry| {
            let id = entry.pointer("/manifest/id").and_then(|id| id.as_str());
            id.expect("an id").to_owned()
        })
        .collect();
    ids.iter().for_each(|id| drop(store.ok(&["verify", id])));
    ids
}

/// Runs `args` once to count its requests, then again and again, killed at each of them in turn.
fn killed_at_every_request(store: &Store, server: &Server, args: &[&str], mut after: impl FnMut(usize)) {
    server.heal();
    store.ok(args);
    let requests = server.heal().len();
    assert!(requests > 3, "{args:?} asks {requests} times");
    for at in 0..requests {
        server.script.lock().expect("not poisoned").silent_from = Some(at);
        let mut running = store.start(args);
        until("the request, or the end", || {
            let seen = server.script.lock().expect("not poisoned").seen.len();
            seen > at || running.try_wait().expect("it can be asked").is_some()
        });
        drop(running.kill());
        running.wait().expect("it ends");
        server.heal();
        after(at);
        server.heal();
    }
}

#[test]
fn killed_at_every_step_of_a_backup_nothing_false_is_good_and_the_next_one_works() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups/a", server.environment());
    let mut good = 1;
    killed_at_every_request(&bed, &server, &["create"], |at| {
        let now = proven(&bed).len();
        assert!(
            now == good || now == good + 1,
            "killed at {at}: {now} are good, {good} were"
        );
        assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
        until("its backends end", || bed.backends("%") == 0);
        good = now;
    });
    bed.ok(&["create"]);
    assert_eq!(proven(&bed).len(), good + 1);
}

/// Makes the grace of what is marked long over.
fn age_tombstones(server: &Server) {
    let is_tombstone = |path: &&PathBuf| path.parent().is_some_and(|folder| folder.ends_with("tombstones"));
    for path in server.objects().iter().filter(is_tombstone) {
        let text = std::fs::read_to_string(path).expect("readable");
        let at = text.find("\"at\": \"20").expect("a time") + 7;
        let aged = format!("{}2001{}", &text[..at], &text[at + 4..]);
        std::fs::write(path, aged).expect("writable");
    }
}

#[test]
fn killed_at_every_step_of_a_deletion_the_good_one_stays_and_the_next_one_finishes() {
    let mut store = Store::new();
    let server = Server::start(&store);
    store.url = "s3://backups/a".to_owned();
    store.environment = server.environment();
    let path = store.key().display().to_string();
    let create = ["create", "--files", "app", "--path", &path, "--keep-days", "0"];
    store.ok(&create);
    let prepare = || {
        // The one before is marked, and its grace made long over.
        store.ok(&create);
        store.ok(&["prune"]);
        age_tombstones(&server);
    };
    prepare();
    killed_at_every_request(&store, &server, &["prune"], |at| {
        let good = proven(&store);
        assert!(!good.is_empty(), "killed at {at}");
        prepare();
    });
    store.ok(&["prune"]);
    store.ok(&["prune"]);
    assert_eq!(proven(&store).len(), 1);
    let left = server.objects();
    assert_eq!(
        left.iter().filter(|path| path.ends_with("files.zst.age")).count(),
        1,
        "{left:?}"
    );
}

#[test]
fn killed_at_every_request_of_a_restore_the_database_serves_after_the_next_start() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups/a", server.environment());
    bed.ok(&["create"]);
    killed_at_every_request(&bed, &server, &["restore", "latest"], |at| {
        bed.sql("app", "DELETE FROM app.t WHERE id > 5");
        bed.ok(&["restore", "latest", "--verify-only"]);
        let rows = bed.sql("app", "SELECT count(*) FROM app.t");
        assert_eq!(rows, "5", "killed at {at}");
        let leftovers = "SELECT count(*) FROM pg_database WHERE datname LIKE 'foregate%'";
        assert_eq!(bed.sql("postgres", leftovers), "0", "killed at {at}");
    });
    bed.ok(&["restore", "latest"]);
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
}

/// The process that Foregate started under this name.
fn child(parent: u32, name: &str) -> Option<u32> {
    let children = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten();
    let mut ids = children.flat_map(|task| {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_whitespace()
            .filter_map(|id| id.parse().ok())
            .collect::<Vec<u32>>()
    });
    ids.find(|id| std::fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|comm| comm.trim() == name))
}

#[test]
fn pg_dump_killed_after_some_bytes_leaves_no_backup() {
    let bed = Bed::new();
    let running = bed.copying_big_table();
    let dump = child(running.0.id(), "pg_dump").expect("it was found");
    run("kill", &["-KILL", &dump.to_string()]);
    assert!(!running.succeeds());
    assert_eq!((bed.good(), bed.objects()), (0, Vec::new()));
    until("the server notices", || bed.succeeds(&["create"]));
    assert_eq!(proven(&bed).len(), 1);
}

#[test]
fn a_server_stopped_in_the_middle_leaves_no_backup() {
    let bed = Bed::new();
    let running = bed.copying_big_table();
    bed.stop_server("immediate");
    assert!(!running.succeeds());
    assert_eq!((bed.good(), bed.objects()), (0, Vec::new()));
    bed.start_server();
    bed.ok(&["create"]);
    assert_eq!(proven(&bed).len(), 1);
}

/// Runs `create` with a repository on a disk of 4 MiB: a tmpfs of its own where name spaces are allowed, else a limit of a
/// file's size. Returns what it told, what is listed then, and the files that are left.
fn create_on_a_small_disk(store: &Store, create: &[&str]) -> String {
    let repository = store.repository();
    // Ours already: in the name space we may not make it in a directory of somebody else.
    let state = store.directory().join("state").display().to_string();
    run("mkdir", &[&repository.display().to_string(), &state]);
    let quote = |command: &std::process::Command| {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let exports: String = store
        .environment
        .iter()
        .map(|(name, value)| format!("export {name}='{value}'; "))
        .collect();
    let key = store.key();
    let create = quote(&store.command(Some(&key), create));
    let list = quote(&store.command(Some(&key), &["list", "--json"]));
    let inside = format!(
        "{exports}if {create} 2>&1; then exit 9; fi; {list}; find . -type f ! -name .lock ! -name repository.id"
    );
    let script = format!(
        "cd {0}; if unshare -rm true 2>/dev/null; then \
         exec unshare -rm bash -c \"mount -t tmpfs -o size=4m tmpfs {0}; cd {0}; $1\"; \
         else trap '' XFSZ; ulimit -f 4000; eval \"$1\"; fi",
        repository.display()
    );
    let told = run("bash", &["-c", &script, "bash", &inside]);
    // That disk went with its name space, and what comes next is another repository.
    drop(std::fs::remove_dir_all(store.directory().join("state/repositories")));
    told
}

fn assert_nothing_is_left(told: &str) {
    assert!(
        told.contains("No space left") || told.contains("File too large"),
        "{told}"
    );
    assert!(
        told.trim_end().ends_with("[]"),
        "nothing is listed and nothing is left: {told}"
    );
}

#[test]
fn a_full_disk_leaves_no_backup_and_nothing_half_written() {
    let store = Store::new();
    let files = store.directory().join("app");
    let made = format!("mkdir {0}; head -c 9000000 /dev/urandom > {0}/blob", files.display());
    run("bash", &["-c", &made]);
    let path = files.display().to_string();
    let create = ["create", "--files", "app", "--path", &path];
    assert_nothing_is_left(&create_on_a_small_disk(&store, &create));
    store.ok(&create);
    assert_eq!(proven(&store).len(), 1);
}

#[test]
fn a_disk_that_fills_during_a_dump_leaves_no_backup_and_nothing_half_written() {
    let bed = Bed::new();
    let blob = bed.directory().join("blob").display().to_string();
    run(
        "bash",
        &[
            "-c",
            &format!("head -c 9000000 /dev/urandom > {blob}; chmod a+r {blob}"),
        ],
    );
    bed.sql(
        "app",
        &format!("CREATE TABLE app.blobs AS SELECT pg_read_binary_file('{blob}')"),
    );
    assert_nothing_is_left(&create_on_a_small_disk(&bed, &["create"]));
    until("its backends end", || bed.backends("%") == 0);
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    until("the server notices", || bed.succeeds(&["create"]));
    assert_eq!(proven(&bed).len(), 1);
}

#[test]
fn a_bucket_that_fails_during_a_restore_leaves_the_live_database_and_the_backup_as_they_were() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups/a", server.impatient_environment());
    bed.ok(&["create"]);
    bed.sql("app", "DELETE FROM app.t WHERE id > 5");
    for (method, part, fault) in [
        ("GET", "list-type=2", Fault::Status(500)),
        ("GET", "manifest.json", Fault::SlowDown),
        ("PUT", "leases/", Fault::Status(500)),
        ("GET", "dump.zst.age", Fault::Status(500)),
        ("GET", "dump.zst.age", Fault::Hang),
    ] {
        server.fail(method, part, fault, usize::MAX);
        bed.fails(&["restore", "latest"]);
        server.heal();
        let rows = bed.sql("app", "SELECT count(*) FROM app.t");
        assert_eq!(rows, "5", "{fault:?} at {part}");
        let others = "SELECT count(*) FROM pg_database WHERE datname LIKE 'foregate%' OR datname LIKE 'app_%'";
        assert_eq!(bed.sql("postgres", others), "0", "{fault:?} at {part}");
    }
    assert_eq!(proven(&bed).len(), 1, "a store that fails is no damage");
    server.fail("GET", "dump.zst.age", Fault::Cut, 2);
    bed.ok(&["restore", "latest"]);
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
}

#[test]
fn a_bucket_that_fails_during_a_deletion_keeps_the_good_one_and_the_next_one_finishes() {
    let mut store = Store::new();
    let server = Server::start(&store);
    store.url = "s3://backups/a".to_owned();
    store.environment = server.environment();
    let path = store.key().display().to_string();
    let create = ["create", "--files", "app", "--path", &path, "--keep-days", "0"];
    store.ok(&create);
    for (method, part, fault) in [
        ("GET", "list-type=2", Fault::Status(500)),
        ("GET", "manifest.json", Fault::Status(500)),
        ("POST", "delete", Fault::Status(500)),
        ("POST", "delete", Fault::AnswerLost),
    ] {
        store.ok(&create);
        store.ok(&["prune"]);
        age_tombstones(&server);
        server.fail(method, part, fault, usize::MAX);
        store.fails(&["prune"]);
        server.heal();
        assert!(!proven(&store).is_empty(), "{fault:?} at {part}");
        store.ok(&["prune"]);
        assert_eq!(proven(&store).len(), 1, "{fault:?} at {part}");
    }
    let left = server.objects();
    let data = left.iter().filter(|path| path.ends_with("files.zst.age")).count();
    assert_eq!(data, 1, "{left:?}");
}

/// A backup from the future, or a deletion from it: the clock jumped, and ages mean nothing.
#[test]
fn after_a_jump_of_the_clock_nothing_is_deleted() {
    let store = Store::new();
    let path = store.key().display().to_string();
    for _ in 0..3 {
        store.ok(&["create", "--files", "app", "--path", &path, "--keep-days", "0"]);
    }
    store.ok(&["prune"]);
    let is_tombstone = |path: &&PathBuf| path.parent().is_some_and(|folder| folder.ends_with("tombstones"));
    let marked: Vec<PathBuf> = store.objects().iter().filter(is_tombstone).cloned().collect();
    assert_eq!(marked.len(), 2);
    for path in marked {
        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::write(&path, text.replace("\"at\": \"20", "\"at\": \"21")).expect("writable");
    }
    let before = store.objects();
    store.ok(&["prune"]);
    assert_eq!(store.objects(), before);
}

/// Nor is a database that a restore replaced, which may hold what no backup does.
#[test]
fn replaced_database_stays_while_no_good_backup_stands_by_the_clock() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    bed.ok(&["restore", "latest"]);
    let replaced = "SELECT datname FROM pg_database WHERE datname LIKE 'app_replaced_%'";
    let name = bed.sql("postgres", replaced);
    let old = "app_replaced_20200101t000000z";
    bed.sql("postgres", &format!("ALTER DATABASE {name} RENAME TO {old}"));
    let manifest = bed.object("manifest.json");
    let right = std::fs::read(&manifest).expect("readable");
    for year in ["2100", "2001"] {
        change_value(&manifest, |value| {
            value["startedAt"] = format!("{year}-01-01T00:00:00Z").into()
        });
        let told = bed.ok(&["prune"]);
        assert_eq!(bed.sql("postgres", replaced), old, "{told}");
    }
    std::fs::rename(&manifest, bed.directory().join("aside")).expect("renamed");
    bed.ok(&["prune"]);
    assert_eq!(bed.sql("postgres", replaced), old);
    std::fs::write(&manifest, right).expect("writable");
    bed.ok(&["prune"]);
    assert_eq!(bed.sql("postgres", replaced), "");
}

#[test]
fn a_damaged_manifest_is_no_backup_and_stops_pruning() {
    let store = Store::new();
    let path = store.key().display().to_string();
    for _ in 0..2 {
        store.ok(&["create", "--files", "app", "--path", &path, "--keep-days", "0"]);
    }
    let manifest = store.object("manifest.json");
    let whole = std::fs::read(&manifest).expect("readable");
    let digit = String::from_utf8_lossy(&whole).find("\"entries\": 1").expect("a count") + 11;
    let mut flipped = whole.clone();
    flipped[digit] ^= 2;
    for damaged in [flipped, whole[..whole.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(&manifest, damaged).expect("writable");
        assert_eq!(store.good(), 1, "the other one");
        store.fails(&["prune"]);
        assert_eq!(store.good(), 1);
    }
    std::fs::write(&manifest, whole).expect("writable");
    assert_eq!(proven(&store).len(), 2);
}

#[test]
fn two_servers_on_one_bucket_never_back_up_at_once() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups/a", server.environment());
    // The first one stands still at its upload, with the database's lock in its hand.
    server.fail("POST", "uploads", Fault::Hang, usize::MAX);
    let mut first = bed.start(&["create"]);
    until("its upload begins", || {
        let script = server.script.lock().expect("not poisoned");
        script.seen.iter().any(|seen| seen.contains("uploads"))
    });
    bed.use_state("another machine's");
    let second = bed.fails(&["create"]);
    assert!(second.contains("is running"), "{second}");
    first.kill().expect("it is killed");
    first.wait().expect("it ends");
    server.heal();
    until("the server notices", || bed.succeeds(&["create"]));
    assert_eq!(proven(&bed).len(), 1);
}

/// Whoever opened it again may be at work in it.
#[test]
fn replaced_database_that_was_opened_again_is_not_dropped() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    bed.ok(&["restore", "latest"]);
    let replaced = "SELECT datname FROM pg_database WHERE datname LIKE 'app_replaced_%'";
    let (name, old) = (bed.sql("postgres", replaced), "app_replaced_20200101t000000z");
    bed.sql("postgres", &format!("ALTER DATABASE {name} RENAME TO {old}"));
    bed.sql("postgres", &format!("ALTER DATABASE {old} WITH ALLOW_CONNECTIONS true"));
    let told = bed.ok(&["prune"]);
    assert_eq!(bed.sql("postgres", replaced), old);
    assert!(told.contains("opened to connections again"), "{told}");
    bed.sql(
        "postgres",
        &format!("ALTER DATABASE {old} WITH ALLOW_CONNECTIONS false"),
    );
    bed.ok(&["prune"]);
    assert_eq!(bed.sql("postgres", replaced), "");
}

/// The session that holds the snapshot has nothing to do while pg_dump works.
#[test]
fn time_outs_for_idle_sessions_of_the_app_end_no_backup() {
    let bed = Bed::new();
    // Not less: from the greeting to our first statement they are in force, and a busy machine takes its time there.
    bed.sql(
        "postgres",
        "ALTER DATABASE app SET idle_in_transaction_session_timeout TO '2s'",
    );
    bed.sql("postgres", "ALTER DATABASE app SET idle_session_timeout TO '2s'");
    let running = bed.copying_big_table();
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'foregate%' \
        AND state = 'idle in transaction' AND now() - state_change > '3s'";
    until("the session is idle for long", || bed.sql("postgres", idle) == "1");
    assert!(running.succeeds());
    assert_eq!(proven(&bed).len(), 1);
}

#[test]
fn what_the_server_refuses_is_told_with_its_address_the_role_and_what_it_needs() {
    let mut bed = Bed::new();
    bed.sql("postgres", "CREATE ROLE weak LOGIN PASSWORD 'right'");
    bed.demand_passwords();
    let socket = bed.socket().join(".s.PGSQL.5432").display().to_string();
    bed.connect_as("weak:wrong");
    let told = bed.fails(&["create"]);
    let place = format!("database \"app\" at {socket} as \"weak\" (the password");
    assert!(told.contains(&place) && !told.contains("wrong"), "{told}");
    bed.connect_as("weak:right");
    let told = bed.fails(&["create"]);
    assert!(told.contains("role \"weak\" lacks the rights for it"), "{told}");
    assert!(
        told.contains("pg_read_all_data") && told.contains("permission denied"),
        "{told}"
    );
    bed.connect_as("postgres");
    bed.ok(&["create"]);
    bed.connect_as("weak:right");
    let told = bed.fails(&["restore", "latest", "--target-database", "mine"]);
    assert!(
        told.contains("role \"weak\" may make no database: a restore takes"),
        "{told}"
    );
    let told = bed.fails(&["restore", "latest", "--target-database", &"n".repeat(64)]);
    assert!(told.contains("it has 64 bytes, and 1 to 63 are possible"), "{told}");
    let lock = bed.directory().join("state/backup/.lock");
    std::fs::remove_file(&lock).expect("removable");
    std::fs::create_dir(&lock).expect("a directory");
    let told = bed.fails(&["create"]);
    assert!(told.contains(&format!("opening the lock {}", lock.display())), "{told}");
}
