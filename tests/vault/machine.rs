//! The day that the machine burned: what is left is the repository and the key.

use std::path::Path;
use std::process::Command;

use crate::support::{Bed, PORT, id_of, run};

const OWNER: &str = "the-merchant's pass:word";
const READER: &str = "the-reader's";

/// Everything that must be as it was, as text.
const LIKENESS: [(&str, &str, &str); 9] = [
    (
        "rows in their order",
        "shop",
        "SELECT string_agg(name, ',' ORDER BY name) FROM goods",
    ),
    (
        "rows of the other table",
        "shop",
        "SELECT count(*), sum(id) FROM orders",
    ),
    (
        "the database",
        "postgres",
        "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datlocprovider, datcollate, datctype, daticulocale, \
         datconnlimit, datallowconn, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'shop'",
    ),
    (
        "its settings",
        "postgres",
        "SELECT setrole::regrole, setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase \
         WHERE datname = 'shop' ORDER BY setrole::regrole::text",
    ),
    (
        "its privileges",
        "postgres",
        "SELECT a.grantee::regrole, a.privilege_type, a.is_grantable FROM pg_database, aclexplode(datacl) a \
         WHERE datname = 'shop' ORDER BY a.grantee::regrole::text, 2",
    ),
    (
        "the roles",
        "postgres",
        "SELECT rolname, rolcanlogin, rolcreatedb, rolconnlimit, rolpassword, shobj_description(oid, 'pg_authid'), \
         (SELECT setconfig FROM pg_db_role_setting WHERE setrole = a.oid AND setdatabase = 0) \
         FROM pg_authid a WHERE rolname !~ '^pg_' ORDER BY 1",
    ),
    (
        "who belongs to whom",
        "postgres",
        "SELECT roleid::regrole, member::regrole, admin_option FROM pg_auth_members WHERE member > 16383 ORDER BY roleid::regrole::text, member::regrole::text",
    ),
    (
        "privileges inside",
        "shop",
        "SELECT relname, relowner::regrole, relrowsecurity, relacl, (SELECT spcname FROM pg_tablespace t WHERE t.oid = reltablespace) \
         FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
    ),
    (
        "policies",
        "shop",
        "SELECT tablename, policyname, roles, qual FROM pg_policies ORDER BY 1, 2",
    ),
];

fn likeness(bed: &Bed) -> Vec<(&'static str, String)> {
    LIKENESS
        .map(|(what, database, sql)| (what, bed.sql(database, sql)))
        .into()
}

/// A shop with everything that a database can have beside its rows.
fn open_shop(bed: &mut Bed, tablespace: &Path) {
    let psql = |database: &str, lines: &[&str]| lines.iter().for_each(|sql| drop(bed.sql(database, sql)));
    run("mkdir", &["-p", &tablespace.display().to_string()]);
    run("chown", &["postgres", &tablespace.display().to_string()]);
    let quoted = |text: &str| text.replace('\'', "''");
    psql(
        "postgres",
        &[
            &format!("CREATE ROLE merchant LOGIN CREATEDB PASSWORD '{}'", quoted(OWNER)),
            &format!(
                "CREATE ROLE \"the Reader\" LOGIN CONNECTION LIMIT 7 PASSWORD '{}'",
                quoted(READER)
            ),
            "CREATE ROLE team",
            "COMMENT ON ROLE team IS 'not; a login'",
            "GRANT team TO merchant WITH ADMIN OPTION",
            "GRANT pg_read_all_stats TO \"the Reader\"",
            "ALTER ROLE merchant SET search_path TO \"$user\", public",
            &format!(
                "CREATE TABLESPACE fast OWNER merchant LOCATION '{}'",
                tablespace.display()
            ),
            "CREATE DATABASE shop OWNER merchant TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' \
             LC_COLLATE 'C.utf8' LC_CTYPE 'C.utf8' CONNECTION LIMIT 33",
            "COMMENT ON DATABASE shop IS 'it''s open'",
            "ALTER DATABASE shop SET work_mem TO '9MB'",
            "ALTER DATABASE shop SET search_path TO public, \"Odd, name\"",
            "ALTER ROLE \"the Reader\" IN DATABASE shop SET statement_timeout TO '77s'",
            "REVOKE ALL ON DATABASE shop FROM PUBLIC",
            "GRANT CONNECT ON DATABASE shop TO \"the Reader\", team",
            "GRANT TEMPORARY ON DATABASE shop TO team WITH GRANT OPTION",
        ],
    );
    psql(
        "shop",
        &[
            "SET ROLE merchant; CREATE TABLE orders (id int PRIMARY KEY, who text); \
             INSERT INTO orders SELECT g, CASE g % 10 WHEN 0 THEN 'the Reader' ELSE 'merchant' END FROM generate_series(1, 5000) g; \
             ALTER TABLE orders ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY own ON orders FOR SELECT TO \"the Reader\" USING (who = current_user); \
             GRANT SELECT ON orders TO \"the Reader\"; \
             ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO team; \
             CREATE TABLE goods (name text) TABLESPACE fast; \
             INSERT INTO goods VALUES ('Zebra'), ('apfel'), ('Äpfel'), ('zebra'), ('Apfel')",
        ],
    );
    bed.use_database("shop");
}

/// The app's way in, and what its readers may see.
fn try_doors(bed: &Bed) {
    bed.demand_passwords();
    assert_eq!(
        bed.sql_as("merchant", OWNER, "shop", "SELECT count(*) FROM orders"),
        "5000"
    );
    assert_eq!(bed.sql_as("merchant", OWNER, "shop", "SHOW work_mem"), "9MB");
    assert_eq!(
        bed.sql_as("the Reader", READER, "shop", "SELECT count(*) FROM orders"),
        "500"
    );
    assert_eq!(
        bed.sql_as("the Reader", READER, "shop", "SHOW statement_timeout"),
        "77s"
    );
}

/// The files of the app, backed up beside.
fn app_files(bed: &Bed) -> std::path::PathBuf {
    let files = bed.directory().join("srv");
    let script = format!(
        "mkdir {0} && echo PORT=1 > {0}/environment && chmod 600 {0}/environment",
        files.display()
    );
    run("bash", &["-c", &script]);
    files
}

#[test]
fn lost_machine_comes_back_with_one_command_from_the_repository_and_the_key() {
    let place = tempfile::tempdir().expect("a directory");
    run("chmod", &["755", &place.path().display().to_string()]);
    let space = place.path().join("space");
    let mut bed = Bed::new();
    open_shop(&mut bed, &space);
    bed.ok(&["create"]);
    let files = app_files(&bed);
    let set = id_of(&bed.ok(&[
        "create",
        "--files",
        "app",
        "--path",
        &files.display().to_string(),
        "--json",
    ]));
    let before = likeness(&bed);
    // A new machine has the same disks, empty.
    let mut rescued = Bed::rescued(&bed);
    drop(bed);
    run("bash", &["-c", &format!("rm -r {}/*", space.display())]);
    rescued.use_database("shop");
    rescued.ok(&["restore"]);
    for ((what, before), (_, after)) in before.iter().zip(likeness(&rescued)) {
        assert_eq!(before, &after, "{what}");
    }
    assert_eq!(rescued.leftovers(), Vec::<String>::new());
    try_doors(&rescued);
    let into = rescued.directory().join("into");
    rescued.ok(&["restore", &set, "--into", &into.display().to_string()]);
    let back = into
        .join(files.strip_prefix("/").expect("absolute"))
        .join("environment");
    assert_eq!(std::fs::read_to_string(back).expect("it is back"), "PORT=1\n");
    // Again, over what is there now, which keeps its own.
    rescued.sql("postgres", "ALTER DATABASE shop SET work_mem TO '11MB'");
    rescued.ok(&["restore"]);
    assert_eq!(rescued.sql("shop", "SHOW work_mem"), "11MB");
    for ((what, before), (_, after)) in before.iter().zip(likeness(&rescued)) {
        assert!(before == &after || *what == "its settings", "{what}: {before} {after}");
    }
}

/// The service was started there before anybody had restored anything.
#[test]
fn empty_database_of_a_new_machine_does_not_stand_in_for_the_lost_one_in_silence() {
    let bed = Bed::new();
    let older = id_of(&bed.ok(&["create", "--json"]));
    // As of a cluster before that, which an upgrade of the server has left behind.
    crate::support::change_manifest(&bed.object("manifest.json"), |content| {
        content.insert("systemIdentifier".to_owned(), "7000000000000000001".into());
    });
    bed.ok(&["create"]);
    let lost = id_of(&bed.ok(&["create", "--json"]));
    let rescued = Bed::rescued(&bed);
    drop(bed);
    let refused = rescued.fails(&["restore"]);
    assert!(refused.contains("cluster 7000000000000000001"), "{refused}");
    assert!(refused.contains(&older) && refused.contains(&lost), "{refused}");
    rescued.sql("postgres", "CREATE DATABASE app");
    rescued.ok(&["create"]);
    rescued.ok(&["create"]);
    let told: serde_json::Value = serde_json::from_str(&rescued.ok(&["restore", "--dry-run", "--json"])).expect("JSON");
    let notes = told["notes"].to_string();
    assert!(
        notes.contains(&lost) && notes.contains("20000 rows, of cluster"),
        "{told}"
    );
    let table = rescued.ok(&["list"]);
    assert!(
        table.contains("cluster") && table.contains("7000000000000000001"),
        "{table}"
    );
    rescued.ok(&["restore", &lost]);
    assert_eq!(rescued.sql("app", "SELECT count(*) FROM app.t"), "20000");
    rescued.ok(&["create"]);
    let told = rescued.ok(&["restore", "--dry-run", "--json"]);
    assert!(told.contains("\"notes\": []"), "{told}");
}

/// `docs/restore-by-hand.md`, with the real programs.
#[test]
fn lost_machine_comes_back_by_hand_as_the_document_says() {
    let place = tempfile::tempdir().expect("a directory");
    run("chmod", &["755", &place.path().display().to_string()]);
    let space = place.path().join("space");
    let mut bed = Bed::new();
    open_shop(&mut bed, &space);
    bed.ok(&["create"]);
    let before = likeness(&bed);
    let rescued = Bed::rescued(&bed);
    drop(bed);
    run("bash", &["-c", &format!("rm -r {}/*", space.display())]);
    let script = format!(
        "set -o pipefail; cd {folder} \
         && age -d -i {key} globals.zst.age | zstd -d | psql -X -d postgres \
         && age -d -i {key} dump.zst.age | zstd -d > {dump} \
         && pg_restore --create --exit-on-error -j 2 -d postgres {dump} \
         && psql -X -d shop -c ANALYZE",
        folder = rescued.object("dump.zst.age").parent().expect("a folder").display(),
        key = rescued.key().display(),
        dump = rescued.directory().join("dump").display(),
    );
    let socket = rescued.socket().display().to_string();
    let environment = format!("export PGHOST={socket} PGPORT={PORT} PGUSER=postgres; {script}");
    run("bash", &["-c", &environment]);
    for ((what, before), (_, after)) in before.iter().zip(likeness(&rescued)) {
        assert_eq!(before, &after, "{what}");
    }
    try_doors(&rescued);
}

#[test]
fn what_a_new_machine_lacks_is_told_and_does_not_stop_the_restore() {
    let place = tempfile::tempdir().expect("a directory");
    run("chmod", &["755", &place.path().display().to_string()]);
    let mut bed = Bed::new();
    open_shop(&mut bed, &place.path().join("space"));
    bed.ok(&["create"]);
    let mut rescued = Bed::rescued(&bed);
    drop((bed, place));
    // Somebody has this name already, and keeps what is theirs.
    rescued.sql("postgres", "CREATE ROLE \"the Reader\" NOLOGIN CONNECTION LIMIT 3");
    rescued.use_database("shop");
    let told: serde_json::Value = serde_json::from_str(&rescued.ok(&["restore", "--json"])).expect("JSON");
    let notes = told["notes"].to_string();
    assert!(notes.contains("tablespace \\\"fast\\\""), "{notes}");
    assert_eq!(rescued.sql("shop", "SELECT count(*) FROM goods"), "5");
    let kept = "SELECT rolcanlogin, rolconnlimit FROM pg_roles WHERE rolname = 'the Reader'";
    assert_eq!(rescued.sql("postgres", kept), "f|3");
}

/// Whoever was dropped on purpose does not come back with a password because yesterday's backup knows it.
#[test]
fn dropped_role_returns_only_while_something_needs_it_and_without_login() {
    let bed = Bed::new();
    bed.sql("postgres", "CREATE ROLE fired LOGIN PASSWORD 'x'");
    bed.sql("postgres", "CREATE ROLE idle LOGIN PASSWORD 'x'");
    bed.sql("app", "GRANT SELECT ON app.t TO fired");
    bed.ok(&["create"]);
    bed.sql("app", "DROP OWNED BY fired");
    bed.sql("postgres", "DROP ROLE fired");
    bed.sql("postgres", "DROP ROLE idle");
    let roles = "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname IN ('fired', 'idle')";
    bed.ok(&["restore", "latest", "--verify-only"]);
    assert_eq!(bed.sql("postgres", roles), "");
    let told = bed.ok(&["restore", "latest", "--json"]);
    assert!(told.contains("made without login"), "{told}");
    assert_eq!(bed.sql("postgres", roles), "fired|f");
    assert_eq!(
        bed.sql("app", "SELECT has_table_privilege('fired', 'app.t', 'SELECT')"),
        "t"
    );
}

/// The disk that was saved is mounted so that nothing happens to it.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "what is started sees the repository mounted read-only"
)]
fn repository_that_may_only_be_read_gives_everything_back() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    let key = bed.key().display().to_string();
    let set = id_of(&bed.ok(&["create", "--files", "app", "--path", &key, "--json"]));
    bed.sql("app", "DELETE FROM app.t");
    let mount = "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" && exec \"$@\"";
    let run = |args: &[&str]| {
        let inner = bed.command(Some(&bed.key()), args);
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", mount])
            .arg(bed.repository())
            .arg(inner.get_program())
            .args(inner.get_args())
            .envs(bed.environment.iter().map(|(name, value)| (name, value)));
        let output = command.output().expect("unshare starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), told)
    };
    let into = bed.directory().join("into").display().to_string();
    for args in [
        &["restore"][..],
        &["restore", &set, "--into", &into],
        &["verify", "latest", "--restore"],
    ] {
        let (succeeded, told) = run(args);
        assert!(succeeded, "{args:?}: {told}");
        assert!(told.contains("may only be read"), "{args:?}: {told}");
    }
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    let (succeeded, told) = run(&["create"]);
    assert!(!succeeded && told.contains("Read-only file system"), "{told}");
}

/// As earlier versions wrote them: without the database's own properties.
#[test]
fn backup_of_an_earlier_version_is_restored() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    crate::support::change_manifest(&bed.object("manifest.json"), |content| {
        content.remove("character").expect("it is recorded");
    });
    bed.sql("postgres", "ALTER DATABASE app RENAME TO gone");
    bed.ok(&["restore"]);
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
}
