//! What makes a database this one beside its contents: owner, encoding, sort order, settings, privileges. Read from the
//! server that has it, written down with each backup, given to each restored one.

use tokio_postgres::Row;

use super::Error;
use crate::postgres::Admin;
use crate::postgres::admin::{identifier, literal};
use crate::repository::manifest::{Character, Privilege, Setting};
use crate::secret::Secret;

/// By way of JSON, since the columns of locales differ from version to version.
const READ: &str = "SELECT d.oid, pg_get_userbyid(d.datdba)::text, pg_encoding_to_char(d.encoding)::text, \
    COALESCE(j->>'datlocprovider', 'c'), j->>'datcollate', j->>'datctype', \
    COALESCE(j->>'datlocale', j->>'daticulocale'), j->>'daticurules', \
    (SELECT spcname::text FROM pg_tablespace t WHERE t.oid = d.dattablespace), d.datconnlimit, \
    shobj_description(d.oid, 'pg_database'), d.datacl IS NOT NULL \
    FROM pg_database d, LATERAL (SELECT to_jsonb(d) AS j) AS columns WHERE d.datname = $1";
const SETTINGS: &str = "SELECT r.rolname::text, one.setting FROM pg_db_role_setting s \
    LEFT JOIN pg_roles r ON r.oid = s.setrole, LATERAL unnest(s.setconfig) WITH ORDINALITY AS one (setting, number) \
    WHERE s.setdatabase = $1 ORDER BY 1, one.number";
const PRIVILEGES: &str = "SELECT r.rolname::text, a.privilege_type::text, a.is_grantable \
    FROM pg_database d CROSS JOIN LATERAL aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee \
    WHERE d.oid = $1 AND (a.grantee = 0 OR r.rolname IS NOT NULL) ORDER BY 1, 2";
/// Settings whose stored value is a list of quoted names (`GUC_LIST_QUOTE` in PostgreSQL's guc tables).
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];
/// Where databases lie unless somebody says otherwise.
pub(super) const USUAL_TABLESPACE: &str = "pg_default";
/// Before it there was one provider of locales, and no word for it.
const PROVIDERS_SINCE: u32 = 150_000;

/// Reads that of `database`, with the number by which the server knows it; `None`: there is no such database.
pub(super) async fn read(admin: &Admin, database: &str) -> Result<Option<(u32, Character)>, Error> {
    let act = "reading the database's settings";
    let rows = admin.query(act, READ, &[&database]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (oid, mut character, has_privileges) = parse(row);
    let mut settings = Vec::new();
    for row in admin.query(act, SETTINGS, &[&oid]).await? {
        let (role, setting): (Option<String>, String) = (row.get(0), row.get(1));
        let (name, value) = setting.split_once('=').unwrap_or((&setting, ""));
        let (name, value) = (name.to_owned(), Secret::new(value));
        settings.push(Setting { role, name, value });
    }
    character.settings = Some(settings);
    if has_privileges {
        let rows = admin.query("reading privileges", PRIVILEGES, &[&oid]).await?;
        let privileges = rows.iter().map(|row| Privilege {
            grantee: row.get(0),
            privilege: row.get(1),
            grantable: row.get(2),
        });
        character.privileges = Some(privileges.collect());
    }
    Ok(Some((oid, character)))
}

fn parse(row: &Row) -> (u32, Character, bool) {
    let character = Character {
        owner: row.get(1),
        encoding: row.get(2),
        provider: row.get(3),
        collate: row.get(4),
        ctype: row.get(5),
        locale: row.get(6),
        icu_rules: row.get(7),
        tablespace: row
            .get::<_, Option<String>>(8)
            .unwrap_or_else(|| USUAL_TABLESPACE.to_owned()),
        connection_limit: row.get(9),
        comment: row.get(10),
        settings: None,
        privileges: None,
    };
    (row.get(0), character, row.get(11))
}

/// The statement that makes an empty database `name`; without a character, one as the server makes them.
pub(super) fn creation(name: &str, character: Option<&Character>, version: u32) -> String {
    let mut create = format!("CREATE DATABASE {} TEMPLATE template0", identifier(name));
    let Some(character) = character else { return create };
    let mut add = |word: &str, value: &str| create.push_str(&format!(" {word} {value}"));
    add("OWNER", &identifier(&character.owner));
    add("ENCODING", &literal(&character.encoding));
    let provider = match character.provider.as_str() {
        "i" => Some(("icu", "ICU_LOCALE")),
        "b" => Some(("builtin", "BUILTIN_LOCALE")),
        // Said also for the usual one: the new server's template may have another.
        _ => (version >= PROVIDERS_SINCE).then_some(("libc", "")),
    };
    if let Some((provider, word)) = provider {
        add("LOCALE_PROVIDER", provider);
        if let Some(locale) = character.locale.as_ref().filter(|_| !word.is_empty()) {
            add(word, &literal(locale));
        }
    }
    let locales = [
        ("ICU_RULES", &character.icu_rules),
        ("LC_COLLATE", &character.collate),
        ("LC_CTYPE", &character.ctype),
    ];
    for (word, value) in locales {
        if let Some(value) = value {
            add(word, &literal(value));
        }
    }
    if character.tablespace != USUAL_TABLESPACE {
        add("TABLESPACE", &identifier(&character.tablespace));
    }
    create
}

/// `character` without what this server does not have, and a note about each thing left out.
pub(super) async fn fitted(admin: &Admin, character: &Character, notes: &mut Vec<String>) -> Result<Character, Error> {
    let act = "looking for roles and tablespaces";
    let names = "SELECT rolname::text FROM pg_roles UNION ALL SELECT 'tablespace ' || spcname FROM pg_tablespace";
    let rows = admin.query(act, names, &[]).await?;
    let known: std::collections::HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut fitted = character.clone();
    if !known.contains(&character.owner) {
        notes.push(format!(
            "the database's owner {:?} does not exist here",
            character.owner
        ));
        fitted.owner = admin.value(act, "SELECT current_user::text", &[]).await?;
    }
    if !known.contains(&format!("tablespace {}", character.tablespace)) {
        let name = &character.tablespace;
        notes.push(format!(
            "there is no tablespace {name:?} here: the database lies in {USUAL_TABLESPACE}"
        ));
        USUAL_TABLESPACE.clone_into(&mut fitted.tablespace);
    }
    let mut is_here = |role: &Option<String>, what: &str| {
        let missing = role.as_ref().filter(|role| !known.contains(*role));
        if let Some(role) = missing {
            notes.push(format!("role {role:?} does not exist here: {what} was left out"));
        }
        missing.is_none()
    };
    if let Some(settings) = &mut fitted.settings {
        settings.retain(|setting| is_here(&setting.role, "a setting of its"));
    }
    if let Some(privileges) = &mut fitted.privileges {
        privileges.retain(|privilege| is_here(&privilege.grantee, "a privilege of its"));
    }
    Ok(fitted)
}

/// What gives a finished database one of its own things.
#[derive(Debug)]
pub(super) struct Gift {
    /// In words, without its value.
    pub(super) what: String,
    /// May hold a secret.
    pub(super) sql: Secret,
}

/// Everything that is not said when the database `name` is made.
pub(super) fn following(name: &str, character: &Character) -> Vec<Gift> {
    let name = identifier(name);
    let mut gifts = Vec::new();
    let mut give = |what: String, sql: String| {
        let sql = Secret::new(sql);
        gifts.push(Gift { what, sql });
    };
    for setting in character.settings.iter().flatten() {
        let (whose, of) = match &setting.role {
            Some(role) => (
                format!("ROLE {} IN DATABASE {name}", identifier(role)),
                format!(" of role {role:?}"),
            ),
            None => (format!("DATABASE {name}"), String::new()),
        };
        let value = setting_value(&setting.name, setting.value.reveal());
        give(
            format!("setting {:?}{of}", setting.name),
            format!("ALTER {whose} SET {} TO {value}", quoted_setting(&setting.name)),
        );
    }
    if let Some(privileges) = &character.privileges {
        let owner = identifier(&character.owner);
        give(
            "the privileges that it has from the start".to_owned(),
            format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC, {owner}"),
        );
        for one in privileges {
            let grantee = one.grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), identifier);
            let option = if one.grantable { " WITH GRANT OPTION" } else { "" };
            give(
                format!("privilege {} of {grantee}", one.privilege),
                format!("GRANT {} ON DATABASE {name} TO {grantee}{option}", one.privilege),
            );
        }
    }
    if let Some(comment) = &character.comment {
        let sql = format!("COMMENT ON DATABASE {name} IS {}", literal(comment));
        give("the comment".to_owned(), sql);
    }
    if character.connection_limit >= 0 {
        let limit = character.connection_limit;
        let sql = format!("ALTER DATABASE {name} CONNECTION LIMIT {limit}");
        give("the connection limit".to_owned(), sql);
    }
    gifts
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

    #[test]
    fn a_sort_order_is_said_in_the_words_of_its_provider() {
        let mut character = Character {
            owner: "shop".to_owned(),
            encoding: "UTF8".to_owned(),
            provider: "i".to_owned(),
            collate: Some("C".to_owned()),
            ctype: None,
            locale: Some("de-DE".to_owned()),
            icu_rules: None,
            tablespace: "fast".to_owned(),
            connection_limit: -1,
            comment: None,
            settings: None,
            privileges: None,
        };
        let made = creation("app", Some(&character), 150_000);
        let wanted = "CREATE DATABASE \"app\" TEMPLATE template0 OWNER \"shop\" ENCODING E'UTF8' LOCALE_PROVIDER icu \
            ICU_LOCALE E'de-DE' LC_COLLATE E'C' TABLESPACE \"fast\"";
        assert_eq!(made, wanted);
        "c".clone_into(&mut character.provider);
        assert!(creation("app", Some(&character), 150_000).contains("LOCALE_PROVIDER libc LC_COLLATE"));
        assert!(creation("app", Some(&character), 140_000).contains("E'UTF8' LC_COLLATE"));
    }
}
