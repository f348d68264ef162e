//! What is done with a recovered directory later, by another process: promote it; or only unpack one.

use std::path::Path;
use std::time::Duration;

use ulid::Ulid;

use super::{Place, run};
use crate::pitr::{Error, Recovery, base};
use crate::postgres::program::Programs;
use crate::postgres::server::{self, Layout};
use crate::postgres::{Admin, Target};

const START_LIMIT: Duration = Duration::from_secs(600);

/// Promotes what an earlier recovery left paused in `place`, started again where it was stopped, and stops it. It takes nothing
/// of the repository. `role`: whom the server lets in, where that is not `postgres`.
///
/// # Errors
/// There is none, or it cannot be promoted.
pub async fn promote(place: &Place, role: &str) -> Result<(), Error> {
    let version = std::fs::read_to_string(place.data.join("PG_VERSION"))
        .map_err(crate::pitr::local("reading the data directory's version"))?;
    let major = version.trim().parse().unwrap_or(0);
    let programs = Programs::server(major)?;
    let layout = Layout {
        data: place.data.clone(),
        runtime: place.run.clone(),
        user: place.user,
    };
    if !place.data.join("postmaster.pid").exists() {
        server::start_detached(&programs, &layout).await?;
    }
    let admin = ask_in(&layout, role).await?;
    if !admin
        .value::<bool>("asking for the recovery", "SELECT pg_is_in_recovery()", &[])
        .await?
    {
        return Err(Error::Astray("this server has been promoted already".to_owned()));
    }
    run::until_paused(&admin, major, START_LIMIT).await?;
    run::resume(&admin).await?;
    drop(admin);
    Ok(server::stop_detached(&programs, &layout).await?)
}

async fn ask_in(layout: &Layout, role: &str) -> Result<Admin, Error> {
    let mut last = None;
    for role in [role, "postgres"] {
        let target: Target = layout.target(role, "postgres")?;
        match Admin::connect(&target, "postgres", "foregate promote").await {
            Ok(admin) => return Ok(admin),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| Error::Astray("no role may connect".to_owned()), Error::from))
}

impl Recovery {
    /// Unpacks one base backup and lets PostgreSQL verify it: what the script of a plan begins with.
    ///
    /// # Errors
    /// Unknown, damaged, or no room.
    pub async fn unpack_only(&self, id: Ulid, into: &Path) -> Result<(), Error> {
        let cluster = self.cluster().await?;
        let bases = self.bases.list(&cluster).await?;
        let base = bases.iter().find(|base| base.id == id);
        let base = base.ok_or_else(|| base::Error::Unknown(id.to_string()))?;
        let programs = Programs::server(cluster.major)?;
        let place = Place::beside(into, self.account(into)?);
        self.unpack(base, base.unpacked_bytes(), &place).await?;
        self.verify(&programs, &place).await?;
        self.adapt(base, &place)?;
        // The script starts the server in its own way, and puts the signal there itself.
        drop(std::fs::remove_file(place.data.join("recovery.signal")));
        drop(std::fs::remove_dir(&place.run));
        Ok(())
    }
}
