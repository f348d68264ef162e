//! `[database]`, `[backup]` and `[[backup.files]]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;

use super::store::optional_secret;
use crate::backup::files::FileSet;
use crate::backup::retention::Policy;
use crate::backup::task::Kind;
use crate::backup::{FilePlan, Plan, Settings};
use crate::config::Wanted;
use crate::config::raw::{Node, Section};
use crate::config::values::{duration, filled_text, integer, list, text};
use crate::postgres::{self, Target};
use crate::repository::{self, Keys, Repository};
use crate::tasks::calendar::{NoSchedule, Schedule};

const DAY: Duration = Duration::from_hours(24);
const KEPT_MAX: usize = 10_000;
const PATHS_MAX: usize = 256;

/// `files` collects the files that were read, so that a change of theirs is noticed.
pub(super) fn backup(
    root: &mut Section<'_>,
    base: &Path,
    state_dir: &Path,
    wanted: Wanted,
    files: &mut Vec<PathBuf>,
) -> Settings {
    let mut database = root.section("database");
    let url = database.read("url", None, |node| match wanted.database {
        true => optional_secret(node, base, files),
        false => Some(None),
    });
    let database_config = url.value.clone().map(|url| postgres::Config { url });
    if let (Some(config), Some(node)) = (&database_config, &url.node)
        && let Err(error) = Target::parse(config)
    {
        node.error_hidden(error, "as postgres://user:password@host:5432/database".to_owned());
    }
    database.finish();

    let mut section = root.section("backup");
    let repository = repository(&mut section, base, state_dir, wanted, files);
    let plan = plan(&mut section);
    let mut keep = |key, default| section.read(key, default, integer(1..=KEPT_MAX)).value;
    let retention = Policy {
        daily: keep("keep_daily", 7),
        weekly: keep("keep_weekly", 4),
        monthly: keep("keep_monthly", 12),
        stale_after: overdue_after(&plan.kinds),
        grace: DAY,
    };
    let keep_replaced = section
        .read("keep_replaced", DAY * 3, duration(Duration::ZERO..=DAY * 365))
        .value;
    let scratch = section.read("scratch", None, scratch).value;
    section.finish();
    Settings {
        database: database_config,
        repository,
        retention,
        keep_replaced,
        scratch,
        plan,
        state_dir: state_dir.to_owned(),
    }
}

/// Twice the shortest interval: then something is wrong, and nothing may be deleted.
fn overdue_after(kinds: &[Kind]) -> Duration {
    let shortest = kinds.iter().map(|kind| kind.schedule.interval()).min();
    shortest.unwrap_or(DAY) * 2
}

fn repository(
    section: &mut Section<'_>,
    base: &Path,
    state_dir: &Path,
    wanted: Wanted,
    files: &mut Vec<PathBuf>,
) -> repository::Config {
    let url = section.read("repository", Settings::default_repository(state_dir), |node| {
        let url = filled_text(node)?.to_owned();
        if let Err(reason) = Repository::check(&url) {
            node.error(
                reason,
                "as \"file:///srv/backups\" or \"s3://bucket/prefix\"".to_owned(),
            );
            return None;
        }
        Some(url)
    });
    let recipients = section.read("recipients", Vec::new(), list(recipient)).value;
    let identity = section.read("identity", None, |node| match wanted.identity {
        true => optional_secret(node, base, files),
        false => Some(None),
    });
    if let (Some(_), Some(node)) = (&identity.value, &identity.node)
        && Keys::new(&[], identity.value.as_ref()).is_err()
    {
        node.error_hidden(
            "holds no age secret key",
            "`age-keygen -o backup.key` makes one".to_owned(),
        );
    }
    repository::Config {
        url: url.value,
        recipients,
        identity: identity.value,
    }
}

fn recipient(node: &Node<'_>) -> Option<String> {
    let key = filled_text(node)?.to_owned();
    if Keys::new(std::slice::from_ref(&key), None).is_err() {
        node.error(
            "is not an age public key",
            "it begins with \"age1\"; `age-keygen -y backup.key` prints it".to_owned(),
        );
        return None;
    }
    Some(key)
}

fn plan(section: &mut Section<'_>) -> Plan {
    let mut kinds = Vec::new();
    for (label, default) in [("daily", "03:00"), ("weekly", "Sun 02:00"), ("monthly", "1 01:00")] {
        let schedule = section.read(label, default.parse().ok(), |node| {
            let schedule = optional_schedule(node)?;
            if schedule.is_some_and(|schedule| kind_of(&schedule) != label) {
                node.error(format_args!("is not {label}"), format!("as \"{default}\""));
                return None;
            }
            Some(schedule)
        });
        kinds.extend(schedule.value.map(|schedule| Kind {
            label: label.to_owned(),
            schedule,
        }));
    }
    let mut optional = |key, default: &str| section.read(key, default.parse().ok(), optional_schedule).value;
    let cleanup = optional("cleanup", "02:00");
    let verify = optional("verify", "Wed 04:00");
    let zone = section.read("time_zone", TimeZone::UTC, time_zone).value;
    let files = section.read("files", Vec::new(), list(file_plan));
    for (index, file) in files.value.iter().enumerate() {
        if files
            .value
            .iter()
            .take(index)
            .any(|other| other.set.name == file.set.name)
        {
            files.error(format_args!("holds {:?} twice", file.set.name), None);
        }
    }
    Plan {
        zone,
        kinds,
        cleanup,
        verify,
        files: files.value,
    }
}

fn kind_of(schedule: &Schedule) -> &'static str {
    match schedule {
        Schedule::Daily(_) => "daily",
        Schedule::Weekly(..) => "weekly",
        Schedule::Monthly(..) => "monthly",
    }
}

pub(super) fn optional_schedule(node: &Node<'_>) -> Option<Option<Schedule>> {
    match text(node)? {
        "" => Some(None),
        written => match written.parse() {
            Ok(schedule) => Some(Some(schedule)),
            Err(NoSchedule) => {
                node.error(NoSchedule, None);
                None
            }
        },
    }
}

fn time_zone(node: &Node<'_>) -> Option<TimeZone> {
    let name = filled_text(node)?;
    if let Ok(zone) = TimeZone::get(name) {
        return Some(zone);
    }
    node.error(
        "is not a time zone of the IANA database",
        "as \"UTC\" or \"Europe/Berlin\"".to_owned(),
    );
    None
}

fn file_plan(node: &Node<'_>) -> Option<FilePlan> {
    let mut section = node.section()?;
    let name = section.read("name", None, |node| set_name(node).map(Some));
    let paths = section.read("paths", Vec::new(), list(absolute_path));
    let default: Option<Schedule> = "Sun 04:00".parse().ok();
    let schedule = section.read("schedule", default, |node| optional_schedule(node)?.map(Some));
    let keep_days = section.read("keep_days", 30, integer(1..=36_500)).value;
    section.finish();
    if name.value.is_none() && !name.is_written() {
        node.error("needs a `name`", None);
    }
    if paths.value.is_empty() || paths.value.len() > PATHS_MAX {
        node.error(
            format_args!("must name between 1 and {PATHS_MAX} `paths`"),
            "as paths = [\"/srv/app\"]".to_owned(),
        );
    }
    Some(FilePlan {
        set: FileSet {
            name: name.value?,
            paths: paths.value,
            keep_days,
        },
        schedule: schedule.value?,
    })
}

fn set_name(node: &Node<'_>) -> Option<String> {
    let name = filled_text(node)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.len() > 64 || !name.chars().all(is_plain) {
        node.error("must be at most 64 letters, digits, \"-\" or \"_\"", None);
        return None;
    }
    Some(name.to_owned())
}

/// "": wherever the environment says.
fn scratch(node: &Node<'_>) -> Option<Option<PathBuf>> {
    match text(node)? {
        "" => Some(None),
        _ => absolute_path(node).map(Some),
    }
}

fn absolute_path(node: &Node<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(filled_text(node)?);
    let is_plain = path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir);
    if !is_plain {
        node.error("must be an absolute path without \"..\"", None);
        return None;
    }
    Some(path)
}
