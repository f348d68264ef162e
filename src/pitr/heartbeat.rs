//! A small transaction now and then. Recovery stops only at commits, so that without one an idle database could not be
//! recovered to any instant after its last; and the row says, in the recovered database, which instant it is.
//!
//! The table is `foregate.heartbeat`, a row per beat, a day of them. It takes the right to create a schema once, or a
//! schema made beforehand with `INSERT`, `SELECT` and `DELETE` on the table; nothing else.

use jiff::Timestamp;
use tokio_postgres::error::SqlState;

use super::archiver;
use super::beat::Beat;
use super::name::{File, Timeline};
use crate::postgres::{Admin, Error};
use crate::repository::layout::Cluster;

const PREPARE: &str = "\
CREATE SCHEMA IF NOT EXISTS foregate;
CREATE TABLE IF NOT EXISTS foregate.heartbeat (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS heartbeat_at ON foregate.heartbeat (at);
COMMENT ON TABLE foregate.heartbeat IS 'Commits for point-in-time recovery to stop at. Foregate keeps a day of them.'";
/// One statement, so that beat and cleaning are one commit. A few rows at a time: a long pause leaves no long delete.
const BEAT: &str = "\
WITH old AS (
    DELETE FROM foregate.heartbeat WHERE id IN (
        SELECT id FROM foregate.heartbeat WHERE at < now() - interval '1 day' ORDER BY at LIMIT 100)
)
INSERT INTO foregate.heartbeat (at) VALUES (clock_timestamp())
RETURNING (extract(epoch FROM at) * 1000000)::bigint";
/// Asked after the commit: a position behind it, and the timeline on which it stands.
const POSITION: &str = "\
SELECT pg_current_wal_insert_lsn()::text, pg_walfile_name(pg_current_wal_insert_lsn())";

/// A connection on which to beat.
#[derive(Debug)]
pub struct Heart {
    admin: Admin,
    /// Whose log it beats into.
    pub cluster: Cluster,
}

impl Heart {
    /// # Errors
    /// Of the server.
    pub async fn new(admin: Admin) -> Result<Self, Error> {
        let sql = "SET statement_timeout = '30s'; SET synchronous_commit = on";
        admin.batch("preparing the heartbeat", sql).await?;
        let cluster = archiver::whose(&admin).await?;
        Ok(Self { admin, cluster })
    }

    /// One beat. `None`: the server is a standby, which commits nothing.
    ///
    /// # Errors
    /// Of the server.
    pub async fn beat(&self) -> Result<Option<Beat>, Error> {
        let act = "writing a heartbeat";
        if self.admin.value::<bool>(act, "SELECT pg_is_in_recovery()", &[]).await? {
            return Ok(None);
        }
        let beaten = match self.admin.value(act, BEAT, &[]).await {
            // Only then: `IF NOT EXISTS` wants its right, takes its locks and tells the log even where all is there.
            Err(error) if lacks_table(&error) => {
                self.admin.batch("making the heartbeat's table", PREPARE).await?;
                self.admin.value(act, BEAT, &[]).await
            }
            beaten => beaten,
        };
        let microseconds: i64 = beaten?;
        let rows = self.admin.query(act, POSITION, &[]).await?;
        let column = |source| Error::Query {
            act: act.to_owned(),
            source,
        };
        let Some(row) = rows.first() else { return Ok(None) };
        let (lsn, file): (String, String) = (row.try_get(0).map_err(column)?, row.try_get(1).map_err(column)?);
        let beat = || {
            Some(Beat {
                at: Timestamp::from_microsecond(microseconds).ok()?,
                lsn: lsn.parse().ok()?,
                timeline: file.parse::<File>().ok().map(|file| file.timeline())?,
            })
        };
        Ok(beat().filter(|beat| beat.timeline > Timeline(0)))
    }
}

fn lacks_table(error: &Error) -> bool {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    matches!(error, Error::Query { source, .. } if source.code().is_some_and(|code| missing.contains(code)))
}
