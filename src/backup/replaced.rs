//! Databases that a restore replaced: kept under a dated name, dropped once `keep_replaced` is over. Each may hold what no
//! backup does, so that a clock which jumped must not end it.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha2::{Digest as _, Sha256};

use super::prune::summary;
use super::{Error, Subject, Vault, retention};
use crate::postgres::Admin;

/// PostgreSQL cuts names at 63 bytes; the mark and the date take 27 of them.
const LIVE_BYTES_MAX: usize = 36;
const HASH_CHARS: usize = 8;
const OPENED: &str = "it was opened to connections again; close it (ALLOW_CONNECTIONS false), or drop it yourself";
const MARK: &str = "_replaced_";
const DATE: &str = "%Y%m%dt%H%M%Sz";

/// `app` becomes `app_replaced_20261123t160501z`.
fn dated_name(live: &str, at: Timestamp) -> String {
    format!("{}{MARK}{}", stem(live), at.to_zoned(TimeZone::UTC).strftime(DATE))
}

fn first_free(live: &str, mut at: Timestamp, taken: &HashSet<String>) -> String {
    loop {
        let name = dated_name(live, at);
        // They are not endless, and so is this not.
        if !taken.contains(&name) {
            return name;
        }
        at = at.saturating_add(Duration::from_secs(1)).unwrap_or_default();
    }
}

/// When the database of this name was replaced, if it is one that `live` was.
fn replaced_at(name: &str, live: &str) -> Option<Timestamp> {
    let date = name.strip_prefix(&stem(live))?.strip_prefix(MARK)?;
    let civil = jiff::civil::DateTime::strptime(DATE, date).ok()?;
    civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// A name that is too long is cut. Its hash tells it from others that begin like it: what they replaced is not ours to drop.
fn stem(live: &str) -> String {
    if live.len() <= LIVE_BYTES_MAX {
        return live.to_owned();
    }
    let hash = hex::encode(Sha256::digest(live));
    let hash = hash.get(..HASH_CHARS).unwrap_or(&hash);
    let end = live.floor_char_boundary(LIVE_BYTES_MAX - HASH_CHARS - 1);
    format!("{}_{hash}", live.get(..end).unwrap_or_default())
}

/// A database that was replaced, and whether it is kept no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    pub name: String,
    pub at: Timestamp,
    pub is_over: bool,
    /// Why it stays although its time may be over.
    pub held: Option<&'static str>,
}

/// Whether it has been kept for `keep` by both clocks.
fn is_over(at: Timestamp, clocks: [Timestamp; 2], keep: Duration) -> bool {
    let has_passed = |now: Timestamp| {
        let age = now.duration_since(at);
        !age.is_negative() && age.unsigned_abs() >= keep
    };
    clocks.into_iter().all(has_passed)
}

impl Vault {
    /// Under which name the live one is kept once it is replaced: of the first second from now on that no other has.
    pub(super) async fn free_name(&self, admin: &Admin) -> Result<String, Error> {
        let sql = "SELECT datname::text FROM pg_database";
        let rows = admin.query("looking for a free name", sql, &[]).await?;
        let taken: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
        Ok(first_free(self.target.database(), self.clock.wall(), &taken))
    }

    /// The replaced databases of the live one, oldest first; those that are over are dropped unless `dry_run`.
    ///
    /// # Errors
    /// Of the server; the first of those that could not be dropped, when all others are.
    pub async fn drop_replaced(&self, dry_run: bool) -> Result<Vec<Replaced>, Error> {
        if self.target.database().is_empty() {
            // Only files are kept here.
            return Ok(Vec::new());
        }
        let admin = Admin::beside(&self.target, "foregate clean-up").await?;
        let now = self.clock.wall();
        // The server's may be another machine's, and right.
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8";
        let servers: i64 = admin.value("asking for the time", sql, &[]).await?;
        let servers = Timestamp::from_millisecond(servers).unwrap_or_default();
        let held = self.frozen(&admin, now).await?;
        let rows = admin
            .query(
                "looking for replaced databases",
                "SELECT datname::text, datallowconn FROM pg_database WHERE NOT datistemplate",
                &[],
            )
            .await?;
        let mut found: Vec<Replaced> = Vec::new();
        for row in rows {
            let (name, is_open): (String, bool) = (row.get(0), row.get(1));
            // A restore closes what it replaces: whoever opened it again may need it.
            let held = held.or(is_open.then_some(OPENED));
            if let Some(at) = replaced_at(&name, self.target.database()) {
                let is_over = held.is_none() && is_over(at, [now, servers], self.config.keep_replaced);
                found.push(Replaced {
                    name,
                    at,
                    is_over,
                    held,
                });
            }
        }
        found.sort_by_key(|replaced| replaced.at);
        let mut failed = None;
        for replaced in found.iter().filter(|replaced| replaced.is_over && !dry_run) {
            // One that cannot be dropped must not keep the others.
            if let Err(error) = self.discard(&admin, &replaced.name).await {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(found), Err)
    }

    /// Why nothing is to be dropped now: as with backups, ages mean nothing while none of the live database stands.
    async fn frozen(&self, admin: &Admin, now: Timestamp) -> Result<Option<&'static str>, Error> {
        let subject = Subject {
            database: self.target.database().to_owned(),
            cluster: Some(admin.system_identifier().await?),
        };
        let (entries, _) = self.list_at(now).await?;
        let ours = entries.iter().filter(|entry| subject.owns(entry));
        let backups: Vec<_> = ours.map(|entry| summary(entry, now)).collect();
        Ok(retention::freeze(&backups, &self.config.retention, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_databases_that_a_restore_replaced_are_recognised() {
        let at = Timestamp::from_second(1_790_000_000).expect("in range");
        let long = "ä".repeat(40);
        for live in ["app", long.as_str()] {
            let name = dated_name(live, at);
            assert!(name.len() <= 63, "{name}");
            assert_eq!(replaced_at(&name, live), Some(at));
        }
        let name = dated_name(&long, at);
        assert_eq!(replaced_at(&name, &format!("{long}2")), None, "it only begins like it");
        for other in [
            "app",
            "app_replaced_",
            "app_replaced_yesterday",
            "shop_replaced_20261123t160501z",
            "app_replaced_20261123t160501z_2",
        ] {
            assert_eq!(replaced_at(other, "app"), None, "{other}");
        }
    }

    #[test]
    fn two_that_are_replaced_within_a_second_have_names_of_their_own() {
        let at = Timestamp::from_second(1_790_000_000).expect("in range");
        let mut taken = HashSet::new();
        for second in 0..3 {
            let name = first_free("app", at, &taken);
            let later = Duration::from_secs(second);
            assert_eq!(replaced_at(&name, "app"), at.checked_add(later).ok());
            assert!(taken.insert(name));
        }
    }

    #[test]
    fn replaced_database_stays_until_its_time_is_over_by_our_clock_and_by_the_servers() {
        let day = |day: i64| Timestamp::from_second(day * 86_400).expect("in range");
        let keep = Duration::from_hours(72);
        for (ours, servers, over) in [
            (13, 13, true),
            (12, 13, false),
            (400, 11, false),
            (11, 400, false),
            (9, 13, false),
        ] {
            assert_eq!(
                is_over(day(10), [day(ours), day(servers)], keep),
                over,
                "{ours} {servers}"
            );
        }
    }
}
