//! `recover.sh`: what an operator runs on the day, without a server of ours.

use crate::support::{Bed, as_postgres, bin, fails_as_postgres, until};

#[test]
fn the_script_recovers_without_a_server_of_ours_and_goes_back() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    for _ in 0..3 {
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    }
    bed.archive_all();
    let (script, data) = (
        bed.path("recover.sh").display().to_string(),
        bed.path("data").display().to_string(),
    );
    as_postgres("chmod", &["755", &bed.path("").display().to_string()]);
    bed.ok(&["plan", "--latest", "--script", &script, "--data", &data]);
    let act = |act: &str| {
        let psql = format!("psql -X -h {} -p 5433 -U postgres -d postgres", bed.path("").display());
        let foregate = bed.program();
        as_postgres(
            "env",
            &[
                &format!("PSQL={psql}"),
                &format!("FOREGATE={foregate}"),
                "bash",
                &script,
                act,
            ],
        );
    };
    act("");
    assert_eq!(
        bed.sql("app", "SELECT count(*), pg_is_in_recovery() FROM ledger"),
        "2|t"
    );
    act("promote");
    assert_eq!(
        bed.sql("app", "SELECT count(*), pg_is_in_recovery() FROM ledger"),
        "2|f"
    );
    act("back");
    until("the old server", || bed.answers());
    assert_eq!(bed.sql("app", "SELECT count(*) FROM ledger"), "3");
}

/// As Debian's packages have it: the configuration elsewhere, named on the command line only.
#[test]
fn the_script_finds_a_configuration_outside_the_data_directory_and_brings_tablespaces_back() {
    let bed = Bed::new();
    let (space, outside, data) = (bed.path("space"), bed.path("the configuration"), bed.path("my data"));
    let (space, outside, data) = (space.display(), outside.display(), data.display().to_string());
    let config = format!("{outside}/postgresql.conf");
    let move_out = format!(
        "set -e; mkdir '{outside}' {space}; cd {}; mv postgresql.conf pg_hba.conf pg_ident.conf '{outside}'; cd ..; \
         mv data '{data}'; printf \"data_directory = '%s'\\nhba_file = '%s/pg_hba.conf'\\nident_file = '%s/pg_ident.conf'\\n\" \
         '{data}' '{outside}' '{outside}' >> '{config}'",
        bed.path("data").display()
    );
    bed.stop("data");
    as_postgres("sh", &["-c", &move_out]);
    let (log, option) = (
        bed.path("log").display().to_string(),
        format!("-c 'config_file={config}'"),
    );
    as_postgres(&bin("pg_ctl"), &["-D", &data, "-l", &log, "-o", &option, "-w", "start"]);
    bed.sql("postgres", &format!("CREATE TABLESPACE space LOCATION '{space}'"));
    bed.sql(
        "app",
        "CREATE TABLE far TABLESPACE space AS SELECT generate_series(1, 5000) AS id",
    );
    bed.ok(&["base-backup"]);
    for _ in 0..3 {
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    }
    bed.archive_all();
    let script = bed.path("recover.sh").display().to_string();
    bed.ok(&["plan", "--latest", "--script", &script, "--data", &data]);
    let foregate = format!("FOREGATE={}", bed.program());
    let complaint = fails_as_postgres("env", &[&foregate, "CONFIG=/nowhere", "bash", &script]);
    assert!(complaint.contains("/nowhere cannot be read"), "{complaint}");
    assert_eq!(
        bed.sql("app", "SELECT count(*) FROM ledger"),
        "3",
        "nothing was touched"
    );
    let act = |act: &str| as_postgres("env", &[&foregate, "bash", &script, act]);
    act("");
    let asked = "SELECT count(*), (SELECT count(*) FROM far), pg_is_in_recovery(), current_setting('data_directory') FROM ledger";
    assert_eq!(bed.sql("app", asked), format!("2|5000|t|{data}"));
    let place = bed.sql(
        "app",
        "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'",
    );
    assert!(place.contains(".tablespaces/"), "never onto the live one: {place}");
    act("promote");
    assert_eq!(bed.sql("app", asked), format!("2|5000|f|{data}"));
    act("back");
    until("the old server", || bed.answers());
    assert_eq!(bed.sql("app", "SELECT count(*) FROM ledger"), "3");
    as_postgres(&bin("pg_ctl"), &["-D", &data, "-m", "immediate", "-w", "stop"]);
}
