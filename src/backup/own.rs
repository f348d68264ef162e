//! What Foregate itself keeps beside the app's tables: blocks, audit trail, heartbeats. A restore is of the app's past, not of
//! theirs: who was blocked since then stays blocked, and what was done stays written down.

use std::path::Path;

use super::create::{connection_name, pg_dump};
use super::preflight::Ground;
use super::{Error, Vault};
use crate::postgres::Admin;
use crate::postgres::child::Command;
use crate::telemetry::cause::chain;

/// The schema of the store and of the heartbeats.
const SCHEMA: &str = "foregate";
/// That of the backup, until the other one is there.
const ASIDE: &str = "foregate_of_the_backup";

impl Vault {
    /// Gives `new` what `live` has of Foregate's own. Where that fails, `new` keeps what was in the backup, and a note says so:
    /// better old blocks than no database.
    pub(super) async fn carry_own(
        &self,
        ground: &Ground,
        application: &str,
        (live, new): (&str, &str),
        scratch: &Path,
        notes: &mut Vec<String>,
    ) {
        if let Err(error) = self.try_carry_own(ground, application, (live, new), scratch).await {
            let why = chain(&error);
            notes.push(format!(
                "blocks and audit trail are those of the backup, not of today: {why}"
            ));
        }
    }

    async fn try_carry_own(
        &self,
        ground: &Ground,
        application: &str,
        (live, new): (&str, &str),
        scratch: &Path,
    ) -> Result<(), Error> {
        let is_there = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
        let act = "looking for Foregate's own tables";
        let serving = Admin::connect(&self.target, live, application).await?;
        if !serving.value::<bool>(act, is_there, &[&SCHEMA]).await? {
            return Ok(());
        }
        drop(serving);
        let file = scratch.join("own");
        let dump = pg_dump(&ground.programs, live)
            .arg(format!("--schema={SCHEMA}"))
            .arg("--file")
            .arg(&file);
        let limit = self.config.step_timeout;
        dump.target(&self.target, application)?.start()?.finish(limit).await?;
        let inside = Admin::connect(&self.target, new, application).await?;
        let had_one: bool = inside.value(act, is_there, &[&SCHEMA]).await?;
        if had_one {
            let put_aside = format!("ALTER SCHEMA {SCHEMA} RENAME TO {ASIDE}");
            inside.batch("putting the backup's own aside", &put_aside).await?;
        }
        let fill = Command::new(ground.programs.path("pg_restore"))
            .arg("--exit-on-error")
            .arg("--no-password")
            .arg("--dbname")
            .arg(connection_name(new))
            .arg(&file);
        let filled = async { fill.target(&self.target, application)?.start()?.finish(limit).await };
        let filled = filled.await;
        let mut settle = Vec::new();
        if filled.is_err() {
            settle.push(format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"));
        }
        if had_one {
            settle.push(match filled {
                Ok(_) => format!("DROP SCHEMA {ASIDE} CASCADE"),
                Err(_) => format!("ALTER SCHEMA {ASIDE} RENAME TO {SCHEMA}"),
            });
        }
        inside
            .batch("settling Foregate's own tables", &settle.join("; "))
            .await?;
        filled?;
        Ok(())
    }
}
