//! A restore that cannot work is refused with the reason, before anything is made.

use std::process::Stdio;

use crate::support::{Bed, change_manifest, id_of};

fn is_untouched(bed: &Bed, args: &[&str], reason: &str) {
    let state = "SELECT string_agg(datname || datallowconn, ',' ORDER BY oid) FROM pg_database";
    let before = bed.sql("postgres", state);
    let refused = bed.fails(args);
    assert!(refused.contains(reason), "{args:?}: {refused}");
    assert_eq!(bed.sql("postgres", state), before, "{args:?}");
    assert_eq!(bed.leftovers(), Vec::<String>::new(), "{args:?}");
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000", "{args:?}");
}

#[test]
fn backup_of_a_newer_server_is_refused() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    change_manifest(&bed.object("manifest.json"), |content| {
        content.insert("serverVersion".to_owned(), 990_001.into());
    });
    is_untouched(&bed, &["restore"], "the backup is of PostgreSQL 99, the server is");
}

/// Yesterday's would take the database's place without a word.
#[test]
fn latest_is_not_an_older_backup_while_the_newest_manifest_cannot_be_read() {
    let bed = Bed::new();
    let old = id_of(&bed.ok(&["create", "--json"]));
    let new = id_of(&bed.ok(&["create", "--json"]));
    let is_new = |path: &std::path::PathBuf| path.ends_with(format!("{new}/manifest.json"));
    let manifest = bed.objects().into_iter().find(is_new).expect("it is stored");
    std::fs::write(&manifest, "{").expect("writable");
    for args in [
        &["restore"][..],
        &["restore", "--target-database", "look"],
        &["verify", "latest"],
        &["show", "latest"],
    ] {
        is_untouched(&bed, args, "1 of them cannot be read");
    }
    is_untouched(&bed, &["restore", &new], "is there and cannot be read");
    bed.ok(&["restore", &old]);
}

/// What was written since the older one is lost: it is not for the operator to find out afterwards.
#[test]
fn latest_tells_of_the_newer_backup_that_it_passes_over() {
    let bed = Bed::new();
    let old = id_of(&bed.ok(&["create", "--json"]));
    let dump = |of: &str| {
        let is_it = |path: &std::path::PathBuf| path.ends_with(format!("{of}/dump.zst.age"));
        bed.objects().into_iter().find(is_it).expect("it is stored")
    };
    let new = id_of(&bed.ok(&["create", "--json"]));
    let mut bytes = std::fs::read(dump(&new)).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(dump(&new), bytes).expect("writable");
    bed.fails(&["verify", &new]);
    for args in [&["--dry-run"][..], &["--target-database", "look"], &[]] {
        let args = [&["restore"][..], args].concat();
        let output = bed.command(Some(&bed.key()), &args).output().expect("foregate starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {told}");
        assert!(
            told.contains(&format!("note: {old}")) && told.contains(&new),
            "{args:?}: {told}"
        );
        assert!(told.contains("is damaged ("), "{args:?}: {told}");
        assert_eq!(told.matches("is not the newest").count(), 1, "{args:?}: {told}");
    }
    let told: serde_json::Value = serde_json::from_str(&bed.ok(&["restore", "--verify-only", "--json"])).expect("JSON");
    assert!(told["notes"].to_string().contains(&new), "{told}");
    let silent = bed.ok(&["restore", &old, "--dry-run", "--json"]);
    assert!(!silent.contains(&new), "who names an id knows what he wants: {silent}");
}

#[test]
fn dry_run_says_what_would_happen_and_touches_nothing() {
    let bed = Bed::new();
    let id = id_of(&bed.ok(&["create", "--json"]));
    let databases = "SELECT string_agg(datname || oid, ',' ORDER BY oid) FROM pg_database";
    let before = bed.sql("postgres", databases);
    let told = bed.ok(&["restore", "--dry-run"]);
    for text in [
        &id,
        "database app",
        "20000 rows",
        "cluster",
        "\"app\"; one that is there is kept aside",
        "nothing was touched",
    ] {
        assert!(told.contains(text), "{text}: {told}");
    }
    let told: serde_json::Value =
        serde_json::from_str(&bed.ok(&["restore", &id, "--dry-run", "--target-database", "look", "--json"]))
            .expect("JSON");
    assert_eq!((&told["database"], &told["replaces"]), (&"look".into(), &false.into()));
    is_untouched(
        &bed,
        &["restore", "--dry-run", "--target-database", "app"],
        "there is a database \"app\"",
    );
    assert_eq!((bed.sql("postgres", databases), bed.leftovers()), (before, Vec::new()));
    let told = bed.ok(&["restore", "--target-database", "look"]);
    assert!(told.contains("in the new database \"look\""), "{told}");
    let told = bed.ok(&["restore", "--verify-only"]);
    assert!(told.contains("in a scratch database"), "{told}");
}

#[test]
fn restore_without_the_address_of_a_database_says_what_to_set() {
    let mut bed = Bed::new();
    let id = id_of(&bed.ok(&["create", "--json"]));
    bed.use_database("postgres");
    bed.ok(&["create"]);
    bed.use_address(String::new());
    for args in [
        &["restore"][..],
        &["restore", &id],
        &["restore", "--dry-run"],
        &["restore", "--verify-only"],
    ] {
        let output = bed.command(Some(&bed.key()), args).output().expect("foregate starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{args:?}: {told}");
        for text in ["[database] url", "DATABASE_URL", "--database-url-file"] {
            assert!(told.contains(text), "{args:?}: {told}");
        }
    }
}

/// Debian removes the old programs with the old server.
#[test]
fn dump_that_no_installed_program_reads_is_refused_before_it_is_fetched() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    change_manifest(&bed.object("manifest.json"), |content| {
        content.insert("clientVersion".to_owned(), "99".into());
    });
    // Of the right length, but nothing: whoever fetches it says so.
    let dump = bed.object("dump.zst.age");
    let length = std::fs::metadata(&dump).expect("it is there").len();
    let nothing = std::fs::File::create(&dump).expect("writable");
    nothing.set_len(length).expect("writable");
    is_untouched(&bed, &["restore"], "no pg_restore of version 99 or newer was found");
}

#[test]
fn prepared_transaction_that_would_block_the_swap_is_named_first() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    bed.sql(
        "app",
        "BEGIN; DELETE FROM app.t WHERE id = 1; PREPARE TRANSACTION 'held'",
    );
    is_untouched(&bed, &["restore"], "1 prepared transactions would block the swap");
    bed.sql("app", "ROLLBACK PREPARED 'held'");
    bed.ok(&["restore"]);
}

/// It follows the old one, and for it the server keeps its log until the disk is full.
#[test]
fn slot_of_the_database_that_is_replaced_is_told() {
    let bed = Bed::new();
    bed.stop_server("fast");
    bed.start_server_with("-c wal_level=logical");
    bed.ok(&["create"]);
    bed.sql("app", "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')");
    let aside = bed.ok(&["restore", "--target-database", "look", "--json"]);
    assert!(!aside.contains("replication slot"), "{aside}");
    let told = bed.ok(&["restore", "--json"]);
    assert!(
        told.contains("replication slot \\\"feed\\\" belongs to the replaced database"),
        "{told}"
    );
}

#[test]
fn scratch_directory_without_room_is_named_and_another_one_can_be() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    let manifest = bed.object("manifest.json");
    let whole = std::fs::read(&manifest).expect("readable");
    crate::support::change_part(&manifest, "dump", |part| {
        part.insert("plainBytes".to_owned(), (1_u64 << 60).into());
    });
    let elsewhere = bed.directory().join("elsewhere").display().to_string();
    let scratch = ["restore", "--scratch", &elsewhere];
    is_untouched(&bed, &scratch, &format!("the scratch directory {elsewhere} "));
    std::fs::create_dir(&elsewhere).expect("it was not made by a slip of the pen");
    is_untouched(&bed, &scratch, &format!("the scratch directory {elsewhere} has"));
    std::fs::write(&manifest, whole).expect("writable");
    bed.ok(&scratch);
}

#[test]
fn latest_tells_of_newer_data_whose_manifest_is_not_there() {
    let bed = Bed::new();
    let older = id_of(&bed.ok(&["create", "--json"]));
    let lost = id_of(&bed.ok(&["create", "--json"]));
    let manifest = bed.object(&format!("{lost}/manifest.json"));
    std::fs::remove_file(manifest).expect("removable");
    let told = bed.ok(&["restore", "--dry-run", "--json"]);
    assert!(told.contains(&older) && told.contains(&format!("{lost} of ")), "{told}");
    is_untouched(&bed, &["restore", &lost], "holds data and no manifest");
}

#[test]
fn role_that_may_make_no_database_is_refused_first() {
    let mut bed = Bed::new();
    bed.ok(&["create"]);
    bed.sql("postgres", "CREATE ROLE limited LOGIN");
    bed.connect_as("limited");
    is_untouched(&bed, &["restore"], "role \"limited\" may make no database");
    bed.sql("postgres", "ALTER ROLE limited CREATEDB");
    let told = bed.ok(&["restore", "--dry-run", "--json"]);
    assert!(told.contains("is no superuser"), "{told}");
}

#[test]
fn database_that_does_not_fit_on_the_servers_disk_is_refused() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    change_manifest(&bed.object("manifest.json"), |content| {
        content.insert("databaseBytes".to_owned(), (1_u64 << 60).into());
    });
    is_untouched(&bed, &["restore"], "make room first");
}

#[test]
fn unknown_id_and_a_file_set_are_no_database() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    is_untouched(&bed, &["restore", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], "there is no backup");
    is_untouched(&bed, &["restore", "../../etc/passwd"], "there is no backup");
    let key = bed.key().display().to_string();
    let set: serde_json::Value =
        serde_json::from_str(&bed.ok(&["create", "--files", "app", "--path", &key, "--json"])).expect("JSON");
    let id = set["id"].as_str().expect("an id");
    is_untouched(&bed, &["restore", id], "this is not a backup of a database");
}

/// Debian's server as it is installed: TLS is on, with a certificate that nobody vouches for.
#[test]
fn certificates_are_verified_as_far_as_the_address_asks_and_no_further() {
    let mut bed = Bed::new();
    let (certificate, key) = (bed.directory().join("server.crt"), bed.directory().join("server.key"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(&certificate, made.cert.pem()).expect("writable");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("writable");
    crate::support::run("chown", &["postgres", &key.display().to_string()]);
    crate::support::run("chmod", &["600", &key.display().to_string()]);
    let rules = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
    std::fs::write(std::path::Path::new(&bed.data()).join("pg_hba.conf"), rules).expect("writable");
    bed.stop_server("fast");
    // Below those that the kernel gives to anybody.
    let port = 20_000 + std::process::id() % 10_000;
    bed.start_server_with(&format!(
        "-c port={port} -c listen_addresses=127.0.0.1 -c ssl=on -c ssl_cert_file={} -c ssl_key_file={}",
        certificate.display(),
        key.display()
    ));
    let other = bed.directory().join("other.crt");
    let another = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(&other, another.cert.pem()).expect("writable");
    let mut told = |host: &str, parameters: &str| {
        bed.use_address(format!("postgres://postgres@{host}:{port}/app{parameters}"));
        let output = bed
            .command(Some(&bed.key()), &["create"])
            .stdout(Stdio::null())
            .output();
        let output = output.expect("foregate starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(text)
    };
    let (own, other) = (certificate.display(), other.display());
    for (host, parameters) in [
        ("127.0.0.1", String::new()),
        ("127.0.0.1", "?sslmode=require".to_owned()),
        ("127.0.0.1", format!("?sslmode=verify-ca&sslrootcert={own}")),
        ("localhost", format!("?sslmode=verify-full&sslrootcert={own}")),
    ] {
        told(host, &parameters).unwrap_or_else(|error| panic!("{host} {parameters}: {error}"));
    }
    for (host, parameters, reason) in [
        ("127.0.0.1", "?sslmode=disable".to_owned(), "pg_hba.conf"),
        (
            "localhost",
            format!("?sslmode=verify-full&sslrootcert={other}"),
            "certificate",
        ),
        (
            "127.0.0.1",
            format!("?sslmode=verify-ca&sslrootcert={other}"),
            "certificate",
        ),
        (
            "127.0.0.1",
            format!("?sslmode=verify-full&sslrootcert={own}"),
            "certificate",
        ),
        ("localhost", "?sslmode=verify-full".to_owned(), "certificate"),
        (
            "localhost",
            "?sslmode=verify-ca&sslrootcert=/nowhere".to_owned(),
            "sslrootcert /nowhere",
        ),
    ] {
        let refused = told(host, &parameters).expect_err("it cannot be trusted");
        assert!(refused.contains(reason), "{host} {parameters}: {refused}");
    }
}
