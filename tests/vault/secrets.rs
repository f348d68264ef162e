//! No secret is seen: not in arguments or environments of what runs, not in what is printed.

use std::collections::BTreeSet;
use std::process::Stdio;

use crate::support::{Bed, PORT, until};

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
