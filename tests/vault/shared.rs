//! Several databases in one repository, and what the command line tells of what lies there.
#![expect(
    clippy::disallowed_methods,
    reason = "black-box tests start processes, and fail by panicking"
)]

use std::io::Write as _;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Bed, Store, change_manifest, run, until};

fn id(made: &str) -> String {
    let manifest: Value = serde_json::from_str(made).expect("a manifest in JSON");
    let id = manifest.get("id").and_then(Value::as_str);
    id.expect("an id").to_owned()
}

#[test]
fn backup_of_another_database_never_takes_the_place_of_the_live_one_unless_it_is_named() {
    let mut bed = Bed::new();
    bed.sql("postgres", "CREATE DATABASE shop");
    bed.sql("shop", "CREATE TABLE goods AS SELECT generate_series(1, 7) id");
    let app = id(&bed.ok(&["create", "--label", "daily", "--json"]));
    bed.use_database("shop");
    let none = bed.fails(&["restore", "latest"]);
    for text in [
        "there is no backup of database \"shop\"",
        "--from-database",
        "database \"app\"",
        &app,
    ] {
        assert!(none.contains(text), "{text}: {none}");
    }
    let shop = id(&bed.ok(&["create", "--label", "daily", "--json"]));
    bed.use_database("app");
    let shown: Value = serde_json::from_str(&bed.ok(&["show", "latest", "--json"])).expect("JSON");
    assert_eq!(shown["manifest"]["id"], app.as_str(), "the newer one is not ours");
    let refused = bed.fails(&["restore", &shop]);
    assert!(
        refused.contains("refused, nothing was touched") && refused.contains("shop"),
        "{refused}"
    );
    bed.fails(&["restore", &shop, "--from-database", "another"]);
    let other = bed.fails(&["restore", &app, "--from-database", "shop"]);
    assert!(other.contains("\"shop\" is meant"), "{other}");
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    bed.fails(&[
        "restore",
        &app,
        "--from-database",
        "shop",
        "--target-database",
        "beside",
    ]);
    bed.ok(&["restore", "--from-database", "shop", "--target-database", "beside"]);
    assert_eq!(bed.sql("beside", "SELECT count(*) FROM goods"), "7");
    bed.ok(&["restore", &shop, "--from-database", "shop", "--dry-run"]);
    bed.ok(&["create"]);
    let told = bed.ok(&["restore", "latest", "--from-database", "shop"]);
    assert!(
        told.contains(&shop) && told.contains("database \"app\" serves"),
        "{told}"
    );
    assert_eq!(bed.sql("app", "SELECT count(*) FROM goods"), "7");
}

#[test]
fn databases_in_one_repository_do_not_stand_in_for_each_other() {
    let mut bed = Bed::new();
    bed.sql("postgres", "CREATE DATABASE shop");
    let app = id(&bed.ok(&["create", "--label", "daily", "--json"]));
    bed.use_database("shop");
    for _ in 0..8 {
        bed.ok(&["create", "--label", "daily"]);
    }
    let plan: Value = serde_json::from_str(&bed.ok(&["prune", "--dry-run", "--json"])).expect("JSON");
    let marked = plan["marked"].as_array().expect("a list");
    assert_eq!(marked.len(), 1, "eight of one database, seven are kept: {plan}");
    assert_ne!(marked[0], app.as_str(), "the only one of the other stays");
}

/// Staging beside production, or what an upgrade of the server has left behind.
#[test]
fn backup_in_the_clear_is_refused_beside_sealed_ones_of_its_own_cluster_only() {
    let bed = Bed::new();
    let create_in_the_clear = || -> Output {
        let sealed = bed.command(None, &["create"]);
        let mut clear = Command::new(sealed.get_program());
        let is_ours = |word: &&std::ffi::OsStr| *word != "--recipient" && *word != bed.recipient();
        clear.args(sealed.get_args().filter(is_ours));
        clear.envs(sealed.get_envs().filter_map(|(name, value)| Some((name, value?))));
        clear.output().expect("foregate starts")
    };
    bed.ok(&["create"]);
    let refused = create_in_the_clear();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && told.contains("of this database is sealed"),
        "{told}"
    );
    change_manifest(&bed.object("manifest.json"), |content| {
        content.insert("systemIdentifier".to_owned(), "7000000000000000001".into());
    });
    let made = create_in_the_clear();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// As of a network share whose server goes away.
#[test]
fn signal_ends_a_restore_although_the_repository_does_not_answer_any_more() {
    let bed = Bed::new();
    let made = id(&bed.ok(&["create", "--json"]));
    let mark = bed.repository().join("repository.id");
    let line = std::fs::read_to_string(&mark).expect("readable");
    std::fs::remove_file(&mark).expect("removable");
    run("mkfifo", &[&mark.display().to_string()]);
    let mut answers = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&mark)
        .expect("a pipe");
    // A look takes 64 bytes: two when it is opened, one for the command's list and one for the restore's own. That for the lease
    // waits for the rest.
    write!(answers, "{0:<64}{0:<64}{0:<64}{0:<64}{0}", line.trim()).expect("room for it");
    let mut restoring = bed.start(&["restore", &made, "--verify-only"]);
    until("the restore", || rustix::io::ioctl_fionread(&answers) == Ok(0));
    run("kill", &[&restoring.id().to_string()]);
    let mut ended = None;
    until("the end", || {
        ended = restoring.try_wait().expect("it can be asked");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(1));
}

#[test]
fn show_is_a_page_for_people_and_json_for_programs_and_the_list_names_what_cannot_be_read() {
    let store = Store::new();
    let path = store.key().display().to_string();
    let made = id(&store.ok(&["create", "--files", "app", "--path", &path, "--json"]));
    store.ok(&["verify", &made]);
    let page = store.ok(&["show", &made]);
    for text in [
        &made,
        "files app",
        "good, proven to L2",
        "files.zst.age",
        "verified",
        store.recipient(),
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    let shown: Value = serde_json::from_str(&store.ok(&["show", &made, "--json"])).expect("JSON");
    assert_eq!((&shown["state"], &shown["level"]), (&"good".into(), &"L2".into()));
    let object = store.object("files.zst.age");
    // It is left out, with a note.
    let odd = store.directory().join("odd");
    let _socket = std::os::unix::net::UnixListener::bind(&odd).expect("a socket");
    let odd = odd.display().to_string();
    let with_note = id(&store.ok(&["create", "--files", "odd", "--path", &odd, "--path", &path, "--json"]));
    let page = store.ok(&["show", &with_note]);
    assert!(page.contains("note       ") && page.contains("odd"), "{page}");
    std::fs::remove_dir_all(store.repository().join("files").join(with_note)).expect("removable");
    let whole = std::fs::read(&object).expect("readable");
    std::fs::write(&object, &whole[..whole.len() - 1]).expect("writable");
    let list: Value = serde_json::from_str(&store.ok(&["list", "--json"])).expect("JSON");
    assert_eq!(
        (&list[0]["state"], &list[0]["good"]),
        (&"incomplete".into(), &false.into()),
        "{list}"
    );
    let page = store.ok(&["show", &made]);
    assert!(
        page.contains("state      incomplete") && page.contains("problem"),
        "{page}"
    );
    std::fs::write(store.object("manifest.json"), "{").expect("writable");
    let told = store.fails(&["show", &made]);
    assert!(told.contains("is there and cannot be read"), "{told}");
    let list: Value = serde_json::from_str(&store.ok(&["list", "--json"])).expect("JSON");
    assert_eq!(list[0]["state"], "unreadable", "{list}");
    assert!(
        list[0]["problem"]
            .as_str()
            .is_some_and(|text| text.contains("manifest.json")),
        "{list}"
    );
}

/// A server that holds public keys only, as is recommended.
#[test]
fn without_an_identity_a_verification_compares_the_stored_bytes_and_says_so() {
    let store = Store::new();
    let path = store.key().display().to_string();
    let made = id(&store.ok(&["create", "--files", "app", "--path", &path, "--json"]));
    let output = store
        .command(None, &["verify", &made])
        .output()
        .expect("foregate starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains("not opened"), "{told}");
    assert_eq!(store.good(), 1);
    let object = store.object("files.zst.age");
    let mut bytes = std::fs::read(&object).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&object, bytes).expect("writable");
    let damage = "not those that were written";
    let told = store.fails_with_key(None, &["verify", &made]);
    assert!(told.contains(damage), "{told}");
    assert_eq!(store.good(), 0);
    let page = store.ok(&["show", &made]);
    assert!(page.contains("state      damaged\n") && page.contains(damage), "{page}");
    let listed = store.command(None, &["list"]).output().expect("foregate starts");
    let table = String::from_utf8_lossy(&listed.stdout).into_owned();
    let told = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(table.contains("damaged") && told.contains(damage), "{table}{told}");
}

#[test]
fn backup_is_deleted_by_hand_but_never_the_last_good_one() {
    let store = Store::new();
    let path = store.key().display().to_string();
    let create = || id(&store.ok(&["create", "--files", "app", "--path", &path, "--json"]));
    let old = create();
    let refused = store.fails(&["delete", &old]);
    assert!(refused.contains("the last good backup"), "{refused}");
    create();
    let told = store.ok(&["delete", &old]);
    assert!(told.contains(&old) && told.contains("after 24 hours"), "{told}");
    assert!(store.ok(&["show", &old]).contains("deleted by hand"));
    store.ok(&["delete", &old, "--json"]);
    assert_eq!(store.good(), 1);
    store.ok(&["undelete", &old]);
    assert_eq!(store.good(), 2);
    let refused = store.fails(&["undelete", &old]);
    assert!(refused.contains("is not marked for deletion"), "{refused}");
    let refused = store.fails(&["delete", "latest"]);
    assert!(refused.contains("name it by its id"), "{refused}");
}
