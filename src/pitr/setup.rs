//! What the server must be set to, what it is set to, and the lines that mend it. Judging is pure; reading and applying
//! are two queries.

use std::collections::BTreeMap;

use crate::postgres::admin::literal;
use crate::postgres::{Admin, Error};

/// How the log comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// PostgreSQL hands each finished segment over.
    ArchiveCommand,
    /// We read the log over the replication protocol.
    Stream,
}

/// A setting of the server, as `pg_settings` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setting {
    /// In the setting's own unit.
    pub value: String,
    /// Takes effect at a restart only.
    pub is_postmaster: bool,
    /// Changed in the files, and waits for a restart.
    pub is_pending: bool,
}

/// The settings that matter, by name.
pub type Settings = BTreeMap<String, Setting>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// It works, but not as well as it could.
    Advice,
    Wrong,
    /// It is right in the files; the server must be restarted for it.
    Restart,
}

/// One setting and what is to be thought of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub found: String,
    pub verdict: Verdict,
    pub why: &'static str,
    /// What was found out besides.
    pub note: Option<String>,
    /// The value to set; `None`: nothing has to be done, or nothing by us.
    pub set: Option<String>,
    pub needs_restart: bool,
}

impl Check {
    /// The line for `postgresql.conf`.
    #[must_use]
    pub fn line(&self) -> Option<String> {
        let value = self.set.as_ref()?;
        Some(format!("{} = '{}'", self.name, value.replace('\'', "''")))
    }

    /// As SQL.
    #[must_use]
    pub fn statement(&self) -> Option<String> {
        let value = self.set.as_ref()?;
        Some(format!("ALTER SYSTEM SET {} = {}", self.name, literal(value)))
    }
}

const NAMES: [&str; 14] = [
    "wal_level",
    "archive_mode",
    "archive_command",
    "archive_library",
    "archive_timeout",
    "max_wal_senders",
    "max_replication_slots",
    "wal_keep_size",
    "max_slot_wal_keep_size",
    "full_page_writes",
    "fsync",
    "wal_segment_size",
    "data_checksums",
    "wal_compression",
];
/// A base backup takes two, a stream one, and one is left for a person.
const SENDERS_WANTED: i64 = 4;
/// How old the newest archived commit may get on a busy server, in seconds.
const TIMEOUT_WANTED: i64 = 60;

/// Not a setting: how many standbys hold their place in the log by nothing.
const STANDBYS: &str = "standbys_without_slot";

/// What is known of the program that `archive_command` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Client {
    /// It is there, where the server looks.
    Found,
    Missing(String),
    /// Why that is not known, as a sentence.
    NotTried(String),
}

/// What the server says of `archive_command`, whatever it is, while `archive_mode` is off.
const DISABLED: &str = "(disabled)";

/// Reads what [`judge`] wants to know.
///
/// # Errors
/// Of the server.
pub async fn read(admin: &Admin) -> Result<Settings, Error> {
    let sql = "SELECT name, setting, context = 'postmaster', pending_restart FROM pg_settings WHERE name = ANY($1)";
    let names: Vec<&str> = NAMES.to_vec();
    let rows = admin.query("reading the server's settings", sql, &[&names]).await?;
    let mut settings = Settings::new();
    for row in rows {
        let column = |source| Error::Query {
            act: "reading the server's settings".to_owned(),
            source,
        };
        let setting = Setting {
            // Hidden from those who may not see it.
            value: row.try_get::<_, Option<String>>(1).map_err(column)?.unwrap_or_default(),
            is_postmaster: row.try_get::<_, Option<bool>>(2).map_err(column)?.unwrap_or_default(),
            is_pending: row.try_get::<_, Option<bool>>(3).map_err(column)?.unwrap_or_default(),
        };
        settings.insert(row.try_get(0).map_err(column)?, setting);
    }
    if let Some(command) = settings.get_mut("archive_command")
        && command.value == DISABLED
    {
        // What stands in the files is what will hold after the restart; without the right to see it, nothing is known.
        let sql = "SELECT setting FROM pg_file_settings WHERE name = 'archive_command' ORDER BY seqno DESC LIMIT 1";
        let rows = admin
            .query("reading the settings in the server's files", sql, &[])
            .await;
        let written = rows
            .ok()
            .and_then(|rows| rows.first()?.try_get::<_, Option<String>>(0).ok()?);
        command.value = written.unwrap_or_default();
    }
    let sql = "SELECT count(*) FROM pg_stat_replication r \
        WHERE state = 'streaming' AND application_name NOT LIKE 'foregate%' \
        AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid)";
    let standbys: i64 = admin.value("counting the standbys without a slot", sql, &[]).await?;
    let setting = Setting {
        value: standbys.to_string(),
        ..Setting::default()
    };
    settings.insert(STANDBYS.to_owned(), setting);
    Ok(settings)
}

/// Looks for the program that `archive_command` names, with the server's eyes where we may, else with ours.
pub async fn client(admin: &Admin, settings: &Settings) -> Client {
    let command = settings.get("archive_command").map_or("", |setting| &setting.value);
    let Some(program) = program_of(command) else {
        return Client::NotTried("it does not run `foregate wal push`".to_owned());
    };
    if !program.starts_with('/') {
        return Client::NotTried(format!(
            "PostgreSQL looks for {program:?} along its own search path, which is not known here: write the whole path"
        ));
    }
    let sql = "SELECT (pg_stat_file($1, true)).size";
    match admin
        .value::<Option<i64>>("looking for the archive's client", sql, &[&program])
        .await
    {
        Ok(Some(_)) => Client::Found,
        Ok(None) => Client::Missing(program.to_owned()),
        // It takes pg_read_server_files. On the same host our own eyes are as good, except for what they do not see.
        Err(_) if std::path::Path::new(program).is_file() => Client::Found,
        Err(_) => Client::NotTried(format!(
            "{program} is not here, and the role may not ask whether PostgreSQL has it; `foregate pitr setup` tries it"
        )),
    }
}

/// Whether `command` hands a file to us.
pub(super) fn hands_over(command: &str) -> bool {
    program_of(command).is_some() && command.contains("%p")
}

/// The program before `wal … push` in `command`, as PostgreSQL's shell would start it.
fn program_of(command: &str) -> Option<&str> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "wal")?;
    let is_push = words.iter().skip(at).any(|word| *word == "push");
    let program = words.get(at.checked_sub(1)?)?.trim_matches(['\'', '"']);
    let name = program.rsplit('/').next().unwrap_or_default();
    (is_push && name.starts_with("foregate")).then_some(program)
}

/// Judges the settings. `command` is the `archive_command` that is wanted, `client` what is known of the present one.
#[must_use]
pub fn judge(settings: &Settings, way: Way, command: &str, client: &Client) -> Vec<Check> {
    let judge = Judge { settings };
    let mut checks = vec![
        judge.one_of(
            "wal_level",
            &["replica", "logical"],
            "without it the log cannot rebuild a cluster",
        ),
        judge.one_of(
            "full_page_writes",
            &["on"],
            "a torn page could not be repaired from the log",
        ),
        judge.one_of("fsync", &["on"], "a power cut could leave a log that lies"),
    ];
    let timeout = judge.number("archive_timeout");
    checks.push(judge.check(
        "archive_timeout",
        match timeout {
            Some(1..=TIMEOUT_WANTED) => None,
            _ => Some((Verdict::Advice, Some(TIMEOUT_WANTED.to_string()))),
        },
        "a segment that does not fill is handed over after so many seconds: the most that can be lost",
    ));
    checks.push(judge.check(
        "max_wal_senders",
        match judge.number("max_wal_senders") {
            Some(senders) if senders >= SENDERS_WANTED => None,
            _ => Some((Verdict::Wrong, Some(SENDERS_WANTED.to_string()))),
        },
        "a base backup takes two",
    ));
    match way {
        Way::ArchiveCommand => judge.by_command(&mut checks, command, client),
        Way::Stream => judge.by_stream(&mut checks),
    }
    checks.retain(|check| settings.contains_key(check.name));
    checks
}

struct Judge<'a> {
    settings: &'a Settings,
}

impl Judge<'_> {
    fn by_command(&self, checks: &mut Vec<Check>, command: &str, client: &Client) {
        checks.push(self.one_of("archive_mode", &["on", "always"], "nothing is handed over without it"));
        if !self.value("archive_library").is_empty() {
            checks.push(self.check(
                "archive_library",
                Some((Verdict::Wrong, Some(String::new()))),
                "while it is set, archive_command is not run",
            ));
        }
        let found = self.value("archive_command");
        let is_ours = hands_over(found);
        let wanted = Some(command.to_owned());
        let (wrong, note) = match client {
            _ if !is_ours => (Some((Verdict::Wrong, wanted)), None),
            Client::Found => (None, None),
            Client::Missing(program) => (
                Some((Verdict::Wrong, wanted)),
                Some(format!(
                    "the server has no file {program}, so its archiver cannot run it"
                )),
            ),
            Client::NotTried(why) => (Some((Verdict::Advice, None)), Some(format!("not tried: {why}"))),
        };
        let why = "hands each segment to Foregate, and keeps it until that says that it is durable";
        checks.push(Check {
            note,
            ..self.check("archive_command", wrong, why)
        });
        let standbys = self.number(STANDBYS).unwrap_or(0);
        let keeps = self.number("wal_keep_size").unwrap_or(0);
        let behind = standbys > 0 && keeps <= 0;
        checks.push(Check {
            note: behind.then(|| format!("{standbys} standbys stream without a slot")),
            ..self.check(
                "wal_keep_size",
                behind.then(|| (Verdict::Advice, Some("1GB".to_owned()))),
                "a standby without a slot falls off when what it needs is recycled; the archive needs nothing kept",
            )
        });
    }

    fn by_stream(&self, checks: &mut Vec<Check>) {
        let slots = self.number("max_replication_slots");
        checks.push(
            self.check(
                "max_replication_slots",
                slots
                    .is_none_or(|slots| slots < 1)
                    .then(|| (Verdict::Wrong, Some("10".to_owned()))),
                "the stream holds its place by a slot",
            ),
        );
        let is_unset = self.number("max_slot_wal_keep_size").is_none_or(|size| size < 0);
        checks.push(self.check(
            "max_slot_wal_keep_size",
            is_unset.then(|| (Verdict::Advice, Some("10GB".to_owned()))),
            "without a bound, a stream that stands still fills the server's disk; with one, it becomes a gap and an alert",
        ));
    }

    fn value(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |setting| setting.value.as_str())
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.value(name).parse().ok()
    }

    fn one_of(&self, name: &'static str, wanted: &[&str], why: &'static str) -> Check {
        let is_good = wanted.contains(&self.value(name));
        let first = wanted.first().map(|first| (*first).to_owned());
        self.check(name, (!is_good).then_some((Verdict::Wrong, first)), why)
    }

    fn check(&self, name: &'static str, wrong: Option<(Verdict, Option<String>)>, why: &'static str) -> Check {
        let setting = self.settings.get(name).cloned().unwrap_or_default();
        let (verdict, set) = match wrong {
            Some((_, _)) if setting.is_pending => (Verdict::Restart, None),
            Some((verdict, set)) => (verdict, set),
            None => (Verdict::Good, None),
        };
        Check {
            name,
            found: setting.value,
            needs_restart: setting.is_postmaster && verdict != Verdict::Good,
            verdict,
            why,
            note: None,
            set,
        }
    }
}

/// The `archive_command` that reaches us: this very program, by its whole path, since the archiver's search path is not
/// ours. `socket`: where it is not found without being told.
#[must_use]
pub fn archive_command(socket: Option<&std::path::Path>) -> String {
    format!("{} wal push{} %p", program(), socket_flag(socket))
}

/// What the server is asked to run to see whether the above would work.
#[must_use]
pub fn check_command(socket: Option<&std::path::Path>) -> String {
    format!("{} wal check{}", program(), socket_flag(socket))
}

fn program() -> String {
    let path = std::env::current_exe().ok();
    let path = path.filter(|path| path.to_str().is_some_and(is_plain_path));
    path.map_or_else(|| "foregate".to_owned(), |path| path.display().to_string())
}

fn socket_flag(socket: Option<&std::path::Path>) -> String {
    let socket = socket
        .and_then(|socket| socket.to_str())
        .filter(|socket| is_plain_path(socket));
    socket.map_or_else(String::new, |socket| format!(" --socket {socket}"))
}

/// Nothing that a shell, or PostgreSQL's own % signs, would read as more than a path.
fn is_plain_path(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@:".contains(&byte))
}

/// Sets what `checks` ask for, and lets the server read it. Returns the names that were set.
///
/// # Errors
/// Of the server: `ALTER SYSTEM` takes a superuser, or the right to each setting (15 and later).
pub async fn apply(admin: &Admin, checks: &[Check]) -> Result<Vec<&'static str>, Error> {
    let mut set = Vec::new();
    for check in checks {
        let Some(statement) = check.statement() else { continue };
        admin.batch(&format!("setting {}", check.name), &statement).await?;
        set.push(check.name);
    }
    if !set.is_empty() {
        admin
            .batch("reloading the server's settings", "SELECT pg_reload_conf()")
            .await?;
    }
    Ok(set)
}

/// Lets the server itself run `program`, in its data directory and as its user: whether the archiver will find and may
/// run it, and whether it reaches us, is known to nobody else. Takes `pg_execute_server_program`.
///
/// # Errors
/// What the server says of it.
pub async fn try_program(admin: &Admin, program: &str) -> Result<(), Error> {
    let sql = format!("COPY (SELECT 1 WHERE false) TO PROGRAM {}", literal(program));
    admin.batch("letting the server run the archive's client", &sql).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let good = [
            ("wal_level", "replica"),
            ("full_page_writes", "on"),
            ("fsync", "on"),
            ("archive_timeout", "60"),
            ("max_wal_senders", "10"),
            ("archive_mode", "on"),
            ("archive_command", "/usr/bin/foregate wal push %p"),
            ("max_replication_slots", "10"),
            ("max_slot_wal_keep_size", "10240"),
            ("wal_keep_size", "0"),
        ];
        let all = good.iter().chain(pairs).map(|(name, value)| {
            let setting = Setting {
                value: (*value).to_owned(),
                is_postmaster: matches!(*name, "wal_level" | "archive_mode" | "max_wal_senders"),
                is_pending: false,
            };
            ((*name).to_owned(), setting)
        });
        all.collect()
    }

    fn wrong(settings: &Settings, way: Way) -> Vec<String> {
        let checks = judge(settings, way, "/usr/bin/foregate wal push %p", &Client::Found);
        let bad = checks.iter().filter(|check| check.verdict != Verdict::Good);
        bad.map(|check| check.line().unwrap_or_else(|| check.name.to_owned()))
            .collect()
    }

    #[test]
    fn a_server_that_is_set_up_needs_nothing() {
        assert_eq!(wrong(&settings(&[]), Way::ArchiveCommand), [""; 0]);
        assert_eq!(wrong(&settings(&[]), Way::Stream), [""; 0]);
    }

    #[test]
    fn a_server_as_installed_gets_the_exact_lines() {
        let fresh = settings(&[
            ("archive_mode", "off"),
            ("archive_command", "(disabled)"),
            ("archive_timeout", "0"),
            ("max_slot_wal_keep_size", "-1"),
        ]);
        assert_eq!(
            wrong(&fresh, Way::ArchiveCommand),
            [
                "archive_timeout = '60'",
                "archive_mode = 'on'",
                "archive_command = '/usr/bin/foregate wal push %p'"
            ]
        );
        assert_eq!(
            wrong(&fresh, Way::Stream),
            ["archive_timeout = '60'", "max_slot_wal_keep_size = '10GB'"]
        );
    }

    #[test]
    fn what_is_set_but_waits_for_a_restart_is_told_apart() {
        let mut waiting = settings(&[("archive_mode", "off")]);
        waiting.entry("archive_mode".to_owned()).or_default().is_pending = true;
        let checks = judge(&waiting, Way::ArchiveCommand, "x", &Client::Found);
        let mode = checks
            .iter()
            .find(|check| check.name == "archive_mode")
            .expect("it is checked");
        assert_eq!(
            (mode.verdict, mode.needs_restart, mode.line()),
            (Verdict::Restart, true, None)
        );
    }

    #[test]
    fn a_command_is_good_only_where_its_program_is_known_to_be_there() {
        let judged = |client: &Client| {
            let checks = judge(&settings(&[]), Way::ArchiveCommand, "wanted %p", client);
            let check = checks.into_iter().find(|check| check.name == "archive_command");
            let check = check.expect("it is checked");
            (check.verdict, check.set, check.note.unwrap_or_default())
        };
        assert_eq!(judged(&Client::Found).0, Verdict::Good);
        let (verdict, set, note) = judged(&Client::Missing("/usr/bin/foregate".to_owned()));
        assert_eq!((verdict, set.as_deref()), (Verdict::Wrong, Some("wanted %p")));
        assert!(note.contains("no file /usr/bin/foregate"), "{note}");
        let (verdict, set, note) = judged(&Client::NotTried("who knows".to_owned()));
        assert_eq!((verdict, set), (Verdict::Advice, None));
        assert_eq!(note, "not tried: who knows");
    }

    #[test]
    fn the_program_is_read_out_of_the_command() {
        for (command, program) in [
            ("/usr/bin/foregate wal push %p", Some("/usr/bin/foregate")),
            ("'/opt/foregate' wal --socket x push \"%p\"", Some("/opt/foregate")),
            ("nice foregate wal push %p", Some("foregate")),
            ("test ! -f wal push %p", None),
            ("wal push %p", None),
            ("foregate wal get %f %p", None),
        ] {
            assert_eq!(program_of(command), program, "{command}");
        }
    }

    #[test]
    fn wal_keep_size_is_proposed_where_a_standby_has_no_slot() {
        let lines = |pairs: &[(&str, &str)]| wrong(&settings(pairs), Way::ArchiveCommand);
        assert_eq!(lines(&[(STANDBYS, "2")]), ["wal_keep_size = '1GB'"]);
        assert_eq!(lines(&[(STANDBYS, "2"), ("wal_keep_size", "1024")]), [""; 0]);
    }

    #[test]
    fn a_command_that_only_looks_like_ours_is_not() {
        for command in ["", "true", "foregate wal push", "cp %p /foregate/%f"] {
            let settings = settings(&[("archive_command", command)]);
            assert_eq!(wrong(&settings, Way::ArchiveCommand).len(), 1, "{command}");
        }
    }

    #[test]
    fn values_are_quoted_for_file_and_statement() {
        let mut check = judge(
            &settings(&[("archive_command", "")]),
            Way::ArchiveCommand,
            "it's \\ %p",
            &Client::Found,
        )
        .into_iter()
        .find(|check| check.name == "archive_command")
        .expect("it is checked");
        assert_eq!(check.line().as_deref(), Some("archive_command = 'it''s \\ %p'"));
        assert_eq!(
            check.statement().as_deref(),
            Some("ALTER SYSTEM SET archive_command = E'it''s \\\\ %p'")
        );
        check.set = None;
        assert_eq!((check.line(), check.statement()), (None, None));
    }
}
