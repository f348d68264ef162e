//! A plan as a script that an operator reads, then runs: pure text. It needs the `foregate` program and PostgreSQL's
//! own, no running Foregate server. It never deletes: the old data directory is moved aside.

use super::plan::{Goal, Plan};
use super::recover::settings::{instant, target};

/// What a script needs to know beyond the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// `file:///…` or `s3://…`.
    pub repository: String,
    /// Where the age identity lies on the machine of the recovery.
    pub identity: Option<String>,
    /// The data directory to be replaced.
    pub data: Option<String>,
}

/// Writes `recover.sh`.
#[must_use]
pub fn write(plan: &Plan, site: &Site) -> String {
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
    let identity = site.identity.clone().unwrap_or_default();
    let data = site
        .data
        .clone()
        .unwrap_or_else(|| format!("/var/lib/postgresql/{}/main", plan.cluster.major));
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
        ("@REPOSITORY@", quoted(&site.repository)),
        ("@IDENTITY@", quoted(&identity)),
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
    fn what_a_name_holds_stays_one_word_and_one_line() {
        assert_eq!(quoted("a'b; rm -rf /"), "'a'\\''b; rm -rf /'");
        assert_eq!(one_line("a\nrm -rf /"), "a?rm -rf /");
    }
}
