//! What the role of the address has to be allowed, told once the server has refused something.

use super::{Error, Vault};

pub(super) const OF_A_BACKUP: &str =
    "a backup takes one that may read every table and large object (pg_read_all_data with BYPASSRLS), or a superuser";
pub(super) const OF_A_RESTORE: &str = "a restore takes a superuser, or one that may create databases and roles and is a member of every owner in the backup";

impl Vault {
    /// The server says what it refused, and neither whom nor what for.
    pub(super) fn explained(&self, error: Error, needs: &'static str) -> Error {
        match error {
            Error::Noted { notes, source } => Error::Noted {
                notes,
                source: Box::new(self.explained(*source, needs)),
            },
            Error::Postgres(source) if source.is_denied() => Error::Rights {
                role: self.target.role().to_owned(),
                needs,
                source: Box::new(source),
            },
            other => other,
        }
    }
}
