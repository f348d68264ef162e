//! The names of objects. Pure: no clock, no I/O.

use ulid::Ulid;

/// One PostgreSQL cluster: backups of different clusters, or of one before and after `pg_upgrade`, never mix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cluster {
    pub system_identifier: String,
    pub major: u32,
}

impl Cluster {
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("{}-{}", self.system_identifier, self.major)
    }
}

/// The folder of one dump.
#[must_use]
pub fn dump(cluster: &Cluster, id: Ulid) -> String {
    format!("{}/dumps/{id}", cluster.prefix())
}

/// The folder in which a cluster's archived log stands.
#[must_use]
pub fn wal(cluster: &Cluster) -> String {
    format!("{}/wal", cluster.prefix())
}

/// The folder in which it stands when which position of a cluster's log was written.
#[must_use]
pub fn beats(cluster: &Cluster) -> String {
    format!("{}/beats", cluster.prefix())
}

/// The folder of one file-set backup.
#[must_use]
pub fn files(id: Ulid) -> String {
    format!("files/{id}")
}

/// The object whose existence makes a backup exist.
#[must_use]
pub fn manifest(folder: &str) -> String {
    format!("{folder}/manifest.json")
}

/// A record that a later verification reached a level, or failed.
#[must_use]
pub fn verification(folder: &str, record: Ulid) -> String {
    format!("{folder}/verify-{record}.json")
}

/// The note that a backup is to be deleted.
#[must_use]
pub fn tombstone(id: Ulid) -> String {
    format!("tombstones/{id}.json")
}

/// The note that a backup is in use.
#[must_use]
pub fn lease(id: Ulid, holder: Ulid) -> String {
    format!("leases/{id}-{holder}.json")
}

/// The folder and id of a manifest's key, if it is one of ours.
#[must_use]
pub fn folder_of_manifest(key: &str) -> Option<(&str, Ulid)> {
    let folder = key.strip_suffix("/manifest.json")?;
    Some((folder, id_of_folder(folder)?))
}

/// The id of a backup's folder, if it is one of ours.
#[must_use]
pub fn id_of_folder(folder: &str) -> Option<Ulid> {
    let (parent, id) = folder.rsplit_once('/')?;
    let known = parent == "files" || parent.ends_with("/dumps");
    Ulid::from_string(id).ok().filter(|_| known)
}

/// The ending of a sealed object, so that it says how to open it.
#[must_use]
pub fn part(folder: &str, stem: &str, encrypted: bool) -> String {
    let ending = if encrypted { ".zst.age" } else { ".zst" };
    format!("{folder}/{stem}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_manifests_are_recognised() {
        let id = Ulid::from_parts(1, 2);
        let cluster = Cluster {
            system_identifier: "77".to_owned(),
            major: 15,
        };
        let key = manifest(&dump(&cluster, id));
        assert_eq!(folder_of_manifest(&key).map(|found| found.1), Some(id));
        assert_eq!(folder_of_manifest("other/manifest.json"), None);
        assert_eq!(folder_of_manifest(&format!("elsewhere/{id}/manifest.json")), None);
    }
}
