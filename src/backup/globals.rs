//! Roles and tablespaces, which belong to the cluster and not to any database: taken from what `pg_dumpall` wrote, and made
//! only where they are missing. What exists is never changed.
//!
//! A lost server gets them whole, passwords and memberships included. A server that still has the database has lost
//! nothing: a role that is missing there was dropped on purpose, and is made without the right to log in, only because
//! something in the backup belongs to it.

use std::collections::HashSet;

use super::script::{Statement, Subject, statements};
use super::{Entry, Error, Vault};
use crate::postgres::Admin;
use crate::postgres::admin::identifier;
use crate::telemetry::cause::chain;

/// Far more than the roles of any cluster take.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// How much of a missing role is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Whole,
    /// Only its name, and only for as long as something depends on it.
    Bare,
}

/// What is missing on this server.
#[derive(Debug, Default)]
pub(super) struct Missing {
    pub(super) roles: Vec<String>,
    tablespaces: Vec<String>,
    statements: Vec<Statement>,
}

impl Vault {
    /// A part that is small, whole and proven. `None`: the backup has none of that name.
    pub(super) async fn read_part(&self, entry: &Entry, name: &'static str) -> Result<Option<Vec<u8>>, Error> {
        let Some(part) = entry.manifest.part(name) else {
            return Ok(None);
        };
        let key = format!("{}/{}", entry.folder, part.object);
        let progress = self.step(name);
        let sink = Bounded(Vec::new());
        let keys = std::sync::Arc::clone(&self.keys);
        let (sealed, sink) = self.repository.get_sealed(&key, sink, keys, progress).await?;
        part.check(&key, &sealed)?;
        Ok(Some(sink.0))
    }

    /// Compares the backup's globals with what the server has.
    pub(super) async fn missing_globals(&self, entry: &Entry, admin: &Admin) -> Result<Missing, Error> {
        let Some(script) = self.read_part(entry, "globals").await? else {
            return Ok(Missing::default());
        };
        let statements = statements(&String::from_utf8_lossy(&script));
        let act = "looking for roles and tablespaces";
        let names = async |sql| -> Result<HashSet<String>, Error> {
            let rows = admin.query(act, sql, &[]).await?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        };
        let roles = names("SELECT rolname::text FROM pg_roles").await?;
        let tablespaces = names("SELECT spcname::text FROM pg_tablespace").await?;
        let mut missing = Missing::default();
        for statement in statements {
            match &statement.subject {
                Subject::Role(name) if !roles.contains(name) => {
                    if statement.creates {
                        missing.roles.push(name.clone());
                    }
                }
                Subject::Tablespace(name) if !tablespaces.contains(name) => {
                    if statement.creates {
                        missing.tablespaces.push(name.clone());
                    }
                }
                _ => continue,
            }
            missing.statements.push(statement);
        }
        Ok(missing)
    }
}

impl Missing {
    /// Makes what is missing. Adds a note for what could not be made; returns whether every tablespace exists now.
    pub(super) async fn make(&self, admin: &Admin, extent: Extent, notes: &mut Vec<String>) -> Result<bool, Error> {
        if self.roles.is_empty() && self.tablespaces.is_empty() {
            return Ok(true);
        }
        match extent {
            Extent::Whole => {
                // Hashes of passwords stay out of the server's log.
                admin.unlogged(self.make_roles(admin, notes)).await?;
                return self.make_tablespaces(admin, notes).await;
            }
            Extent::Bare => {
                for role in &self.roles {
                    let create = format!("CREATE ROLE {} NOLOGIN", identifier(role));
                    notes.push(match admin.batch("making a role", &create).await {
                        Ok(()) => format!("role {role:?} was missing: made without login, unless nothing needs it"),
                        Err(error) => format!("role {role:?} could not be made: {}", chain(&error)),
                    });
                }
            }
        }
        Ok(self.tablespaces.is_empty())
    }

    /// In one transaction: a role that a crash left without its password would look like one that was there before.
    async fn make_roles(&self, admin: &Admin, notes: &mut Vec<String>) -> Result<(), Error> {
        admin.batch("beginning to make roles", "BEGIN").await?;
        let roles = self.statements.iter();
        for statement in roles.filter(|one| matches!(one.subject, Subject::Role(_))) {
            let Subject::Role(name) = &statement.subject else {
                continue;
            };
            admin.batch("making a role", "SAVEPOINT role").await?;
            if let Err(error) = admin.batch(&statement.verb(), &statement.text).await {
                admin.batch("making a role", "ROLLBACK TO role").await?;
                notes.push(format!("role {name:?}: {}", chain(&error.withheld())));
            }
            admin.batch("making a role", "RELEASE role").await?;
        }
        admin.batch("making the roles", "COMMIT").await?;
        notes.extend(self.roles.iter().map(|role| {
            let lacks = match self.lacks_password(role) {
                true => ", without a password: the backup holds none for it (only a superuser's does)",
                false => "",
            };
            format!("role {role:?} was missing and has been made{lacks}")
        }));
        Ok(())
    }

    /// Whether `role` may log in, and the backup tells no password with which.
    fn lacks_password(&self, role: &str) -> bool {
        let is_its = |one: &&Statement| matches!(&one.subject, Subject::Role(name) if name == role);
        let says = |words: &str| {
            self.statements
                .iter()
                .filter(is_its)
                .any(|one| one.text.contains(words))
        };
        says(" LOGIN") && !says(" PASSWORD '")
    }

    /// Their directories must exist on the server, empty.
    async fn make_tablespaces(&self, admin: &Admin, notes: &mut Vec<String>) -> Result<bool, Error> {
        let mut failed: HashSet<&str> = HashSet::new();
        for statement in &self.statements {
            let Subject::Tablespace(name) = &statement.subject else {
                continue;
            };
            if failed.contains(name.as_str()) {
                continue;
            }
            if let Err(error) = admin.batch("making a tablespace", &statement.text).await {
                notes.push(format!(
                    "tablespace {name:?}: {} failed: {}",
                    statement.verb(),
                    chain(&error)
                ));
                if statement.creates {
                    failed.insert(name);
                }
            }
        }
        if !failed.is_empty() {
            notes.push("all tables lie in the database's own tablespace, since one of theirs is missing".to_owned());
        }
        Ok(failed.is_empty())
    }
}

/// Memory that an unknown length cannot fill.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > BYTES_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_that_could_log_in_and_whose_password_nobody_kept_is_told() {
        let script = "CREATE ROLE app;\nALTER ROLE app WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM-SHA-256$4096:c2FsdA==$a:b';\n\
                      CREATE ROLE shop;\nALTER ROLE shop WITH NOSUPERUSER LOGIN;\n\
                      CREATE ROLE staff;\nALTER ROLE staff WITH NOLOGIN;\n";
        let missing = Missing {
            statements: statements(script),
            ..Missing::default()
        };
        assert_eq!(
            ["app", "shop", "staff"].map(|role| missing.lacks_password(role)),
            [false, true, false]
        );
    }
}
