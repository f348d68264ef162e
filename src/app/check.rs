//! What stands in the way of a start, and what it survives and an operator should mend all the same.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use anyhow::Context as _;

use super::alarms;
use crate::backup::Settings;
use crate::backup::files::FileSet;
use crate::clock::Clock;
use crate::config::{Config, Loaded};
use crate::repository::Repository;
use crate::telemetry::access_log;
use crate::telemetry::certificates::Expiry;

/// How long is waited for a directory.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What `foregate check` tells beyond the configuration itself: what only its files can tell.
#[derive(Debug)]
pub struct Checked {
    /// What stands in the way of a start: certificates, keys, the log.
    pub faults: Vec<String>,
    /// What a start survives and an operator should mend all the same.
    pub doubts: Vec<String>,
}

/// Looks at them all; makes nothing.
#[must_use]
pub fn check(loaded: &Loaded) -> Checked {
    let Config { proxy, admin, log, .. } = &loaded.config;
    let (of_gate, mut expiries) = crate::proxy::check(proxy);
    let of_admin = crate::admin::check(admin).map(|expiry| expiries.extend(expiry));
    let faults = of_gate
        .into_iter()
        .map(anyhow::Error::from)
        .chain(of_admin.err().map(anyhow::Error::from))
        .chain(access_log::fault(&log.access_log).map(anyhow::Error::from));
    let faults = faults.map(|error| told(&error)).collect();
    let mut doubts = expired(&expiries);
    doubts.extend(no_backups(&loaded.config));
    doubts.extend(no_place(&loaded.config.backup));
    let vault = Some(&loaded.config.backup).filter(|backup| backup.database.is_some());
    doubts.extend(vault.and_then(Settings::in_the_clear).map(str::to_owned));
    Checked { faults, doubts }
}

/// An alarm tells of them, too.
fn expired(certificates: &[Expiry]) -> Vec<String> {
    let now = Clock::system().wall();
    let over = certificates.iter().filter(|expiry| expiry.is_over(now));
    over.map(|expiry| alarms::expired(&expiry.path.display().to_string(), expiry.at))
        .collect()
}

/// A directory for backups that takes none: the gate serves without it.
fn no_backups(config: &Config) -> Option<String> {
    let url = config.backup.vault()?.repository.url;
    let about = format!("no backup can be written to {url}");
    let tried = within(LOOK_TIMEOUT, move || Repository::try_directory(&url)).context(about);
    tried.err().as_ref().map(told)
}

/// What the next backup of a file set, or the next restore, would be refused for.
fn no_place(backup: &Settings) -> Vec<String> {
    let sets: Vec<FileSet> = backup.plan.files.iter().map(|plan| plan.set.clone()).collect();
    let vault = backup.vault();
    let looked = within(LOOK_TIMEOUT, move || {
        let scratch = vault.and_then(|vault| vault.scratch_fault());
        Ok(sets.iter().filter_map(FileSet::fault).chain(scratch).collect())
    });
    looked.unwrap_or_else(|error| vec![format!("the paths of [backup] cannot be looked at: {error}")])
}

/// A share that does not answer must not hold up the start, which asks this first.
fn within<T: Send + 'static>(limit: Duration, look: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, answer) = std::sync::mpsc::sync_channel(1);
    // Left behind if it never ends; the process does not wait for it.
    drop(std::thread::Builder::new().spawn(move || drop(sender.send(look())))?);
    let late = |_| Error::from(ErrorKind::TimedOut);
    answer.recv_timeout(limit).map_err(late)?
}

/// With its causes, and with the place of the remedy where a unit's sandbox is the likeliest of them.
fn told(error: &anyhow::Error) -> String {
    let is_read_only = error.chain().any(|cause| {
        let cause = cause.downcast_ref::<Error>();
        cause.is_some_and(|cause| cause.kind() == ErrorKind::ReadOnlyFilesystem)
    });
    let remedy = if is_read_only {
        "; in a systemd unit see ReadWritePaths="
    } else {
        ""
    };
    format!("{error:#}{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_that_never_ends_is_given_up() {
        let (never, waiting) = std::sync::mpsc::channel::<()>();
        let looked = within(Duration::from_millis(1), move || Ok(waiting.recv().is_ok()));
        assert_eq!(looked.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(never);
    }

    #[test]
    fn sandbox_is_named_where_it_is_the_likeliest_cause() {
        let about = |kind: ErrorKind| told(&anyhow::Error::from(Error::from(kind)).context("no log"));
        assert!(about(ErrorKind::ReadOnlyFilesystem).contains("ReadWritePaths="));
        assert!(!about(ErrorKind::PermissionDenied).contains("ReadWritePaths="));
    }
}
