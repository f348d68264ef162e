//! Making the new database like the old one, and putting it in its place: both renames are one transaction.

use super::journal::Intent;
use super::{Error, Vault};
use crate::postgres::Admin;
use crate::postgres::admin::{identifier, literal};

/// Settings whose stored value is a list of quoted names (`GUC_LIST_QUOTE` in PostgreSQL's guc tables).
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

impl Vault {
    /// An empty database with the old one's owner, encoding and locale; the server's defaults where there is no old one.
    pub(super) async fn make_database(&self, admin: &Admin, intent: &Intent) -> Result<(), Error> {
        let sql = "SELECT pg_get_userbyid(datdba)::text, pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text \
            FROM pg_database WHERE datname = $1";
        let mut create = format!("CREATE DATABASE {} TEMPLATE template0", identifier(&intent.new));
        if let Some(row) = admin
            .query("reading the database's settings", sql, &[&intent.live])
            .await?
            .first()
        {
            let text = |column: usize| row.get::<_, String>(column);
            create = format!(
                "{create} OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {}",
                identifier(&text(0)),
                literal(&text(1)),
                literal(&text(2)),
                literal(&text(3))
            );
        }
        Ok(admin.batch("making the new database", &create).await?)
    }

    /// Puts the new database in the old one's place. Returns the name of the old one.
    pub(super) async fn swap(&self, admin: &Admin, intent: &Intent, replaces: bool) -> Result<Option<String>, Error> {
        drop(self.step("swap"));
        let [live, new, old] = [&intent.live, &intent.new, &intent.old].map(|name| identifier(name));
        if !replaces {
            admin
                .batch("naming the database", &format!("ALTER DATABASE {new} RENAME TO {live}"))
                .await?;
            return Ok(None);
        }
        for statement in follow(admin, intent).await? {
            admin.batch("carrying the settings over", &statement).await?;
        }
        // Only now, for everything slow is done: the rest takes a tenth of a second.
        let _held = (self.hold.0)().await;
        admin
            .batch(
                "closing the old database",
                &format!("ALTER DATABASE {live} WITH ALLOW_CONNECTIONS false"),
            )
            .await?;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1";
        let _: i64 = admin.value("ending sessions", end, &[&intent.live]).await?;
        let renames =
            format!("BEGIN; ALTER DATABASE {live} RENAME TO {old}; ALTER DATABASE {new} RENAME TO {live}; COMMIT");
        admin.batch("swapping the databases", &renames).await?;
        Ok(Some(intent.old.clone()))
    }
}

/// The statements that give the new database what belongs to the old one's OID: settings and privileges.
async fn follow(admin: &Admin, intent: &Intent) -> Result<Vec<String>, Error> {
    let new = identifier(&intent.new);
    let mut statements = Vec::new();
    let settings = "SELECT r.rolname::text, unnest(s.setconfig) FROM pg_db_role_setting s \
        LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE s.setdatabase = $1";
    for row in admin
        .query("reading the database's settings", settings, &[&intent.live_oid])
        .await?
    {
        let (role, setting): (Option<String>, String) = (row.get(0), row.get(1));
        let (name, value) = setting.split_once('=').unwrap_or((&setting, ""));
        let whose = match role {
            Some(role) => format!("ROLE {} IN DATABASE {new}", identifier(&role)),
            None => format!("DATABASE {new}"),
        };
        statements.push(format!(
            "ALTER {whose} SET {} TO {}",
            quoted_setting(name),
            setting_value(name, value)
        ));
    }
    let acl = "SELECT COALESCE(r.rolname::text, ''), a.grantee = 0, a.privilege_type::text, a.is_grantable \
        FROM pg_database d CROSS JOIN LATERAL aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee \
        WHERE d.oid = $1";
    let has_acl: bool = admin
        .value(
            "reading privileges",
            "SELECT datacl IS NOT NULL FROM pg_database WHERE oid = $1",
            &[&intent.live_oid],
        )
        .await?;
    if has_acl {
        statements.push(format!("REVOKE ALL ON DATABASE {new} FROM PUBLIC"));
    }
    for row in admin.query("reading privileges", acl, &[&intent.live_oid]).await? {
        let (role, public, privilege, grantable): (String, bool, String, bool) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let grantee = if public { "PUBLIC".to_owned() } else { identifier(&role) };
        let option = if grantable { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("GRANT {privilege} ON DATABASE {new} TO {grantee}{option}"));
    }
    Ok(statements)
}

/// Extensions' settings have a dot between two names.
fn quoted_setting(name: &str) -> String {
    name.split('.').map(identifier).collect::<Vec<_>>().join(".")
}

fn setting_value(name: &str, value: &str) -> String {
    if !LISTS.contains(&name.to_lowercase().as_str()) {
        return literal(value);
    }
    let mut names = vec![String::new()];
    let mut quoted = false;
    for c in value.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            ' ' if !quoted => {}
            _ => names.last_mut().into_iter().for_each(|name| name.push(c)),
        }
    }
    names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_stay_lists_and_texts_stay_texts() {
        assert_eq!(setting_value("search_path", "\"$user\", public"), "E'$user', E'public'");
        assert_eq!(setting_value("application_name", "a, 'b'"), "E'a, ''b'''");
    }
}
