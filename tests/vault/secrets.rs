//! No secret is seen: not in arguments or environments of what runs, not in what is printed.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::json;

use crate::support::{Bed, PORT, change_manifest, run, until};

const PASSWORD: &str = "pa55-w0rd-nobody-may-see";

/// Arguments and environment of every process below `root`, which itself is told its secrets by its environment.
fn seen_below(root: u32, seen: &mut BTreeSet<String>) {
    let mut below = vec![root];
    while let Some(parent) = below.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task"))
            .into_iter()
            .flatten()
            .flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for id in children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()) {
                below.push(id);
                for file in ["cmdline", "environ"] {
                    let bytes = std::fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
                    seen.insert(String::from_utf8_lossy(&bytes).replace('\0', " "));
                }
            }
        }
    }
    let own = std::fs::read(format!("/proc/{root}/cmdline")).unwrap_or_default();
    seen.insert(String::from_utf8_lossy(&own).replace('\0', " "));
}

#[test]
fn neither_processes_nor_texts_show_a_secret() {
    let mut bed = Bed::new();
    bed.sql(
        "postgres",
        &format!("CREATE ROLE ops SUPERUSER LOGIN PASSWORD '{PASSWORD}'"),
    );
    bed.demand_passwords();
    bed.add_big_table();
    let identity = std::fs::read_to_string(bed.key()).expect("readable");
    let identity = identity
        .lines()
        .find(|line| line.starts_with("AGE-SECRET-KEY"))
        .expect("a key");
    // By a file: between fork and exec a child still shows the environment of its parent.
    let address = bed.directory().join("address");
    let socket = bed.socket().display().to_string().replace('/', "%2F");
    let url = format!("postgres://ops:{PASSWORD}@{socket}:{PORT}/app\n");
    std::fs::write(&address, url).expect("writable");
    let mut texts = String::new();
    for args in [&["create"][..], &["verify", "latest"], &["restore", "latest"]] {
        let mut running = bed
            .command(Some(&bed.key()), args)
            .env_remove("DATABASE_URL")
            .arg("--database-url-file")
            .arg(&address)
            .env("RUST_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("foregate starts");
        let mut seen = BTreeSet::new();
        until("it ends", || {
            seen_below(running.id(), &mut seen);
            running.try_wait().expect("it can be asked").is_some()
        });
        let output = running.wait_with_output().expect("it ended");
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        texts.extend([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
        assert!(
            seen.iter().any(|line| line.contains("pg_")),
            "{args:?}: the programs were seen: {seen:?}"
        );
        let connects = args[0] != "verify";
        let is_told = seen.iter().any(|line| line.contains("PGPASSFILE"));
        assert!(is_told || !connects, "{args:?}: and their environment");
        texts.extend(seen);
    }
    bed.connect_as(&format!("ops:{PASSWORD}x"));
    texts.push_str(&bed.fails(&["create"]));
    texts.push_str(&bed.fails(&["restore", "latest"]));
    bed.connect_as(&format!("ops:{PASSWORD}@nowhere:x"));
    texts.push_str(&bed.fails(&["create"]));
    let wrong = bed.directory().join("wrong");
    std::fs::write(&wrong, format!("{}X", identity)).expect("writable");
    texts.push_str(&bed.fails_with_key(Some(&wrong), &["verify", "latest"]));
    for secret in [PASSWORD, identity, &identity[20..40]] {
        let at = texts.find(secret);
        assert!(at.is_none(), "{}", &texts[at.unwrap_or(0)..]);
    }
    let left = std::fs::read_dir(std::env::temp_dir()).expect("readable").flatten();
    let passfiles = left.filter(|entry| entry.path().join("pgpass").exists());
    for entry in passfiles {
        let text = std::fs::read_to_string(entry.path().join("pgpass")).unwrap_or_default();
        assert!(!text.contains(PASSWORD), "{} is left behind", entry.path().display());
    }
}

/// Values that an app finds with `current_setting('app.jwt_secret')`, and a comment that somebody wrote.
const SETTINGS: [(&str, &str); 3] = [
    ("ALTER DATABASE app SET app.jwt_secret TO", "a-key-to-sign-with"),
    (
        "ALTER ROLE shop IN DATABASE app SET app.api_key TO",
        "a-key-for-the-bank",
    ),
    ("COMMENT ON DATABASE app IS", "the-password-of-ops"),
];
const THEIRS: &str = "SELECT string_agg(setrole::regrole || array_to_string(setconfig, ','), ' ' ORDER BY setrole) \
    || shobj_description(d.oid, 'pg_database') FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase \
    WHERE datname = 'app' GROUP BY d.oid";

fn log_all(bed: &Bed) {
    for setting in [
        "log_statement = 'all'",
        "log_min_duration_statement = 0",
        "log_error_verbosity = 'verbose'",
    ] {
        bed.sql("postgres", &format!("ALTER SYSTEM SET {setting}"));
    }
    bed.sql("postgres", "SELECT pg_reload_conf()");
    until("the reload", || bed.sql("postgres", "SHOW log_statement") == "all");
}

fn log_of(bed: &Bed) -> String {
    std::fs::read_to_string(bed.directory().join("log")).expect("a log")
}

fn show_none(what: &str, text: &str) {
    for (_, value) in SETTINGS {
        let at = text.find(value);
        assert!(at.is_none(), "{what}: {}", &text[at.unwrap_or(0)..]);
    }
}

#[test]
fn settings_and_comment_of_the_database_are_sealed_given_back_and_shown_to_nobody() {
    let bed = Bed::new();
    for (statement, value) in SETTINGS {
        bed.sql("postgres", &format!("{statement} '{value}'"));
    }
    let before = bed.sql("postgres", THEIRS);
    log_all(&bed);
    let mut told = bed.ok(&["create", "--json"]);
    told += &bed.ok(&["show", "latest", "--json"]);
    told += &bed.ok(&["list", "--json"]);
    told += &bed.ok(&["restore", "--json"]);
    show_none("what is told", &told);
    let manifest = std::fs::read_to_string(bed.object("manifest.json")).expect("readable");
    show_none("the manifest", &manifest);
    assert_eq!(bed.sql("postgres", THEIRS), before);
    show_none("the log of the server", &log_of(&bed));
    let script = format!(
        "age -d -i {} {} | zstd -d",
        bed.key().display(),
        bed.object("settings.zst.age").display()
    );
    let by_hand = run("bash", &["-c", &script]);
    assert!(SETTINGS.iter().all(|(_, value)| by_hand.contains(value)), "{by_hand}");
    let rescued = Bed::rescued(&bed);
    drop(bed);
    log_all(&rescued);
    show_none("what is told", &rescued.ok(&["restore", "--json"]));
    assert_eq!(rescued.sql("postgres", THEIRS), before);
    show_none("the log of the server", &log_of(&rescued));
}

/// As the document says, on a server that writes down all that it is told.
#[test]
fn restore_by_hand_leaves_no_secret_in_the_log_of_the_server() {
    let bed = Bed::new();
    bed.sql("postgres", "CREATE ROLE cashier LOGIN PASSWORD 'of the till'");
    for (statement, value) in SETTINGS {
        bed.sql("postgres", &format!("{statement} '{value}'"));
    }
    bed.ok(&["create"]);
    let before = bed.sql("postgres", THEIRS);
    let rescued = Bed::rescued(&bed);
    drop(bed);
    log_all(&rescued);
    let document = include_str!("../../docs/restore-by-hand.md");
    let spared = document.lines().find(|line| line.starts_with("export PGOPTIONS="));
    let script = format!(
        "set -o pipefail; export PGHOST={socket} PGPORT={PORT} PGUSER=postgres; {spared}; cd {folder} \
         && age -d -i {key} globals.zst.age | zstd -d | psql -X -d postgres \
         && age -d -i {key} dump.zst.age | zstd -d > {socket}/dump \
         && pg_restore --create --exit-on-error -j 2 -d postgres {socket}/dump",
        socket = rescued.socket().display(),
        spared = spared.expect("the document says so"),
        folder = rescued.object("dump.zst.age").parent().expect("a folder").display(),
        key = rescued.key().display(),
    );
    run("bash", &["-c", &script]);
    assert_eq!(rescued.sql("postgres", THEIRS), before);
    let log = log_of(&rescued);
    show_none("the log of the server", &log);
    assert!(!log.contains("SCRAM-SHA-256"), "{log}");
}

#[test]
fn settings_that_are_damaged_do_not_keep_a_lost_database_away() {
    let bed = Bed::new();
    let (statement, value) = SETTINGS[0];
    bed.sql("postgres", &format!("{statement} '{value}'"));
    bed.ok(&["create"]);
    let rescued = Bed::rescued(&bed);
    drop(bed);
    let part = rescued.object("settings.zst.age");
    let mut bytes = std::fs::read(&part).expect("readable");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&part, bytes).expect("writable");
    let told = rescued.ok(&["restore", "--json"]);
    assert!(told.contains("without its settings and comment"), "{told}");
    assert_eq!(rescued.sql("app", "SELECT count(*) FROM app.t"), "20000");
    let condemned = rescued.fails(&["verify", "latest"]);
    assert!(condemned.contains("settings.zst.age is damaged"), "{condemned}");
}

/// As earlier versions wrote them: the settings stand in the manifest.
#[test]
fn setting_that_the_server_refuses_is_told_by_name_and_not_by_value() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    let value = SETTINGS[0].1;
    change_manifest(&bed.object("manifest.json"), |content| {
        let settings = json!([
            {"role": null, "name": "work_mem", "value": value},
            {"role": "shop", "name": "app.note", "value": "kept"},
        ]);
        content["character"]["settings"] = settings;
    });
    show_none("what is shown", &bed.ok(&["show", "latest", "--json"]));
    let rescued = Bed::rescued(&bed);
    drop(bed);
    log_all(&rescued);
    let told = rescued.ok(&["restore", "--json"]);
    show_none("what is told", &told);
    show_none("the log of the server", &log_of(&rescued));
    assert!(told.contains("setting \\\"work_mem\\\": SQLSTATE 22023"), "{told}");
    let kept =
        "SELECT setrole::regrole || array_to_string(setconfig, ',') FROM pg_db_role_setting WHERE setdatabase <> 0";
    assert_eq!(rescued.sql("postgres", kept), "shopapp.note=kept");
}

/// The server shows the row that it refuses, to whoever asked.
#[test]
fn row_that_the_server_refuses_is_not_told() {
    let bed = Bed::new();
    let value = SETTINGS[0].1;
    bed.sql(
        "app",
        &format!(
            "CREATE TABLE app.keys (key text CONSTRAINT here CHECK (current_database() = 'app')); \
             INSERT INTO app.keys VALUES ('{value}')"
        ),
    );
    bed.ok(&["create"]);
    let told = bed.fails(&["restore"]);
    show_none("what is told", &told);
    assert!(told.contains("violates check constraint \"here\""), "{told}");
}
