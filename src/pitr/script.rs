//! A plan as a script that an operator reads, then runs: pure text. It needs the `foregate` program and PostgreSQL's
//! own, no running Foregate server. It never deletes: the old data directory is moved aside.

use super::Recovery;
use super::plan::{Goal, Plan};
use super::recover::settings::{instant, target};
use crate::repository;
use crate::secret::Secret;

impl Recovery {
    /// `recover.sh` for `plan`, with the repository and the identity that are ours; `data`: the data directory to be replaced.
    #[must_use]
    pub fn script(&self, plan: &Plan, data: Option<String>) -> String {
        write(plan, &self.config.repository, data)
    }
}

fn write(plan: &Plan, site: &repository::Config, data: Option<String>) -> String {
    let settings: String = target(plan)
        .iter()
        .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
        .collect();
    let described = match &plan.goal {
        Goal::Time(at) => format!("the instant {}", instant(*at)),
        Goal::Lsn(lsn) => format!("position {lsn}"),
        Goal::Name(name) => format!("the restore point {}", one_line(name)),
        Goal::Transaction(xid) => format!("transaction {xid}"),
        Goal::Latest => "the latest instant".to_owned(),
    };
    let data = data.unwrap_or_else(|| format!("/var/lib/postgresql/{}/main", plan.cluster.major));
    let cluster = plan.cluster.prefix();
    let [connections, workers, senders, prepared, locks] = plan.demands.limits.0.map(|limit| limit.to_string());
    let values = [
        ("@PLAN@", plan.id.to_string()),
        ("@MADE@", instant(plan.made_at)),
        ("@TARGET@", described),
        ("@CLUSTER@", cluster),
        ("@BASE@", plan.base.id.to_string()),
        ("@BASE_END@", instant(plan.base.stopped_at)),
        ("@TIMELINE@", plan.timeline.to_string()),
        ("@SEGMENTS@", plan.segments.len().to_string()),
        ("@DISK@", plan.disk_bytes.to_string()),
        ("@MAJOR@", plan.cluster.major.to_string()),
        ("@REPOSITORY@", quoted(&site.url)),
        ("@IDENTITY@", quoted(&identity_file(site.identity.as_ref()))),
        ("@DATA@", quoted(&data)),
        ("@CONNECTIONS@", connections),
        ("@WORKERS@", workers),
        ("@SENDERS@", senders),
        ("@PREPARED@", prepared),
        ("@LOCKS@", locks),
        ("@SETTINGS@", settings.trim_end().to_owned()),
    ];
    values
        .iter()
        .fold(TEMPLATE.to_owned(), |text, (mark, value)| text.replace(mark, value))
}

/// Where the identity lies, wherever the script is run from; never the identity itself, which may come from elsewhere.
fn identity_file(identity: Option<&Secret>) -> String {
    let file = identity.and_then(Secret::file);
    let file = file.and_then(|file| std::path::absolute(file).ok());
    file.map_or_else(String::new, |file| file.display().to_string())
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// In a comment, whatever the name holds.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

const TEMPLATE: &str = include_str!("recover.sh");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_named_by_its_file_and_never_written_down() {
        let key = "AGE-SECRET-KEY-1";
        assert_eq!(
            identity_file(Some(&Secret::of_file(key, "/etc/key".as_ref()))),
            "/etc/key"
        );
        assert_eq!(identity_file(Some(&Secret::new(key))), "");
        assert_eq!(identity_file(None), "");
    }

    #[test]
    fn what_a_name_holds_stays_one_word_and_one_line() {
        assert_eq!(quoted("a'b; rm -rf /"), "'a'\\''b; rm -rf /'");
        assert_eq!(one_line("a\nrm -rf /"), "a?rm -rf /");
    }
}
