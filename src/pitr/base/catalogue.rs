//! The list of base backups, read from the repository each time: it is the truth, and small.

use std::collections::BTreeMap;

use ulid::Ulid;

use super::{Base, Bases, Error};
use crate::repository::layout::{self, Cluster};
use crate::repository::manifest::{self, Lease, Manifest, Tombstone};
use crate::repository::{self, Repository};

impl Bases {
    /// The clusters of the repository that have base backups or a log.
    ///
    /// # Errors
    /// Of the store.
    pub async fn clusters(&self) -> Result<Vec<Cluster>, Error> {
        let folders = self.repository.folders().await?;
        Ok(folders.iter().filter_map(|folder| Cluster::parse(folder)).collect())
    }

    /// The base backups of `cluster`, oldest first. A manifest that cannot be read is an error: it may be the one that
    /// a plan or a clean-up depends on.
    ///
    /// # Errors
    /// Of the store, or a manifest that cannot be read.
    pub async fn list(&self, cluster: &Cluster) -> Result<Vec<Base>, Error> {
        list(&self.repository, cluster).await
    }
}

/// As [`Bases::list`].
pub(in crate::pitr) async fn list(repository: &Repository, cluster: &Cluster) -> Result<Vec<Base>, Error> {
    let mut bases = Vec::new();
    let leases = leases(repository).await?;
    let listed: BTreeMap<String, u64> = repository.list(&layout::bases(cluster)).await?.into_iter().collect();
    for key in listed.keys() {
        let Some(folder) = key.strip_suffix("/manifest.json") else {
            continue;
        };
        let Some(mut base) = read(repository, key, folder).await? else {
            continue;
        };
        let tombstone: Option<Tombstone> = repository.read_note(&layout::base_tombstone(cluster, base.id)).await?;
        base.deleted_at = tombstone.map(|tombstone| tombstone.at);
        base.incomplete = repository.incomplete(folder, &base.parts, &listed).await?;
        base.leased_until = leases.get(&base.id).copied();
        bases.push(base);
    }
    bases.sort_by_key(|base| (base.stopped_at, base.id));
    Ok(bases)
}

/// `None`: it was deleted in this instant.
async fn read(repository: &Repository, key: &str, folder: &str) -> Result<Option<Base>, Error> {
    let bad = |reason: String| repository::Error::Manifest {
        key: key.to_owned(),
        reason,
    };
    let Some(bytes) = repository.read(key, manifest::BYTES_MAX).await? else {
        return Ok(None);
    };
    let manifest = Manifest::parse(&bytes).map_err(bad)?;
    let named = folder.rsplit('/').next().and_then(|name| Ulid::from_string(name).ok());
    if named != Some(manifest.id) {
        return Err(bad("it names another backup".to_owned()).into());
    }
    let base = Bases::describe(folder, manifest);
    Ok(Some(
        base.ok_or_else(|| bad("it is not that of a base backup".to_owned()))?,
    ))
}

async fn leases(repository: &Repository) -> Result<BTreeMap<Ulid, jiff::Timestamp>, Error> {
    let mut until = BTreeMap::new();
    for (key, _) in repository.list("leases").await? {
        if let Some(lease) = repository.read_note::<Lease>(&key).await? {
            let latest = until.entry(lease.id).or_insert(lease.expires_at);
            *latest = lease.expires_at.max(*latest);
        }
    }
    Ok(until)
}
