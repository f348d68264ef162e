//! `[pitr]`.

use std::path::Path;
use std::time::Duration;

use jiff::civil::{Time, Weekday};

use super::backup::optional_schedule;
use crate::config::raw::{Node, Section};
use crate::config::values::{duration, file, filled_text, flag, list, size, text, word};
use crate::pitr::config::Check;
use crate::pitr::config::Config;
use crate::pitr::setup::Way;
use crate::tasks::calendar::Schedule;

pub(in crate::config) const WAYS: &[(&str, Way)] = &[("archive_command", Way::ArchiveCommand), ("stream", Way::Stream)];
const DAY: Duration = Duration::from_hours(24);
/// PostgreSQL cuts longer names.
const SLOT_CHARS_MAX: usize = 63;
const CHECKS_MAX: usize = 100;

pub(super) fn pitr(mut section: Section<'_>, base: &Path, state_dir: &Path) -> Config {
    let at = |hour| Time::constant(hour, 0, 0, 0);
    let enabled = section.read("enabled", false, flag).value;
    let wal = section.read("wal", Way::ArchiveCommand, word(WAYS)).value;
    let beside = |node: &Node<'_>| match node.is_empty_string() {
        true => Some(None),
        false => file(base)(node).map(Some),
    };
    let socket = section.read("socket", None, beside).value;
    let user = section.read("user", None, user).value;
    let slot = section.read("slot", "foregate".to_owned(), slot).value;
    let spool_max_bytes = section.read("spool_max", 10 << 30, size(64 << 20..=1 << 50)).value;
    let weekly = |day, hour| Some(Schedule::Weekly(day, at(hour)));
    let base_backup = section
        .read("base_backup", weekly(Weekday::Sunday, 5), optional_schedule)
        .value;
    let window = section
        .read("window", DAY * 7, duration(Duration::from_hours(1)..=DAY * 3660))
        .value;
    let heartbeat = section
        .read("heartbeat", Duration::from_secs(15), duration(Duration::ZERO..=DAY))
        .value;
    let patience = section
        .read(
            "patience",
            Duration::from_secs(300),
            duration(Duration::from_secs(1)..=DAY),
        )
        .value;
    let drill = section
        .read("drill", weekly(Weekday::Monday, 9), optional_schedule)
        .value;
    let scratch = section.read("scratch", None, beside).value;
    let checks = section.read("checks", Vec::new(), list(check));
    if checks.value.len() > CHECKS_MAX {
        checks.error(format_args!("has more than {CHECKS_MAX} checks"), None);
    }
    section.finish();
    Config {
        enabled,
        wal,
        socket: socket.unwrap_or_else(|| state_dir.join("wal.sock")),
        user,
        slot,
        spool_max_bytes,
        base_backup,
        window,
        heartbeat,
        patience,
        drill,
        scratch: scratch.unwrap_or_else(|| state_dir.join("drill")),
        checks: checks.value,
    }
}

fn check(node: &Node<'_>) -> Option<Check> {
    let mut section = node.section()?;
    let sql = section.get("sql");
    let expect = section.get("expect");
    section.finish();
    if sql.is_none() || expect.is_none() {
        node.error(
            "must have `sql` and `expect`",
            "as { sql = \"SELECT 1\", expect = \"1\" }".to_owned(),
        );
    }
    Some(Check {
        sql: filled_text(&sql?)?.to_owned(),
        expect: text(&expect?)?.to_owned(),
    })
}

/// A user by number or, if `/etc/passwd` knows it, by name; `""` for none.
fn user(node: &Node<'_>) -> Option<Option<u32>> {
    let written = text(node)?;
    if written.is_empty() {
        return Some(None);
    }
    if let Ok(number) = written.parse() {
        return Some(Some(number));
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(written)).then(|| fields.nth(1)?.parse().ok())?
    });
    if found.is_none() {
        let help = "a user that a directory service knows is written by number, as \"106\"".to_owned();
        node.error("is no user in /etc/passwd", help);
    }
    found.map(Some)
}

/// As PostgreSQL wants the names of slots.
fn slot(node: &Node<'_>) -> Option<String> {
    let written = filled_text(node)?;
    let is_plain = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_';
    if written.len() > SLOT_CHARS_MAX || !written.chars().all(is_plain) {
        node.error(
            "is not the name of a slot",
            "write up to 63 of a-z, 0-9 and _".to_owned(),
        );
        return None;
    }
    Some(written.to_owned())
}
