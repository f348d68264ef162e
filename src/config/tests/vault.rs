//! The vault's commands read their sections alone.

use super::*;

const ABSENT: &str = "{ env = \"FOREGATE_TEST_IS_NEVER_SET\" }";
const NOTHING: Wanted = Wanted {
    database: false,
    identity: false,
    pitr: false,
};

fn load(text: &str, wanted: Wanted) -> Result<Vault, Errors> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Config::load_vault(Some(&file), wanted)
}

#[test]
fn command_is_not_refused_for_what_is_wrong_in_other_sections() {
    let text = format!(
        "[server]\nworkers = \"many\"\n[alerts]\nwebhook = {ABSENT}\n[store]\npostgres = {ABSENT}\n\
         [backup]\nrepository = \"file:///srv/backups\"\n[pitr]\nwindow = \"30d\"\n"
    );
    let vault = load(&text, Wanted::ALL).unwrap();
    assert_eq!(vault.backup.repository.url, "file:///srv/backups");
    assert_eq!(vault.pitr.unwrap().window, std::time::Duration::from_hours(30 * 24));
}

#[test]
fn secret_that_a_command_does_not_want_is_not_looked_up() {
    let text = format!("[database]\nurl = {ABSENT}\n[backup]\nidentity = {ABSENT}\n[pitr]\nwindow = \"never\"\n");
    let vault = load(&text, NOTHING).unwrap();
    assert_eq!(vault.backup.database, None);
    assert_eq!(vault.pitr, None);
    for (wanted, key) in [
        (
            Wanted {
                database: true,
                ..NOTHING
            },
            "database.url",
        ),
        (
            Wanted {
                identity: true,
                ..NOTHING
            },
            "backup.identity",
        ),
        (Wanted { pitr: true, ..NOTHING }, "pitr.window"),
    ] {
        let told = load(&text, wanted).unwrap_err().to_string();
        assert!(told.contains(key), "{told}");
        assert_eq!(told.matches("config.toml").count(), 1, "{told}");
    }
}

#[test]
fn section_that_no_configuration_has_is_a_mistake_for_a_command_as_well() {
    load(&example_with_examples(), NOTHING).unwrap();
    load("[bakcup]\nrepository = \"file:///srv\"\n", NOTHING).unwrap_err();
    load("[backup]\nrepositry = \"file:///srv\"\n", NOTHING).unwrap_err();
}

#[test]
fn command_knows_every_section_that_the_configuration_has_and_no_other() {
    let table = DeTable::parse("").unwrap();
    let known_to = |resolve: &dyn Fn(Section<'_>)| {
        let sink = Sink::new("");
        resolve(Section::root(table.get_ref(), &sink));
        let mut known = sink.known();
        known.retain(|path| !path.contains('.'));
        known.sort();
        known.dedup();
        known
    };
    let base = Path::new("");
    let by_all = known_to(&|root| drop(resolve::config(root, base, &Overrides::default())));
    assert!(by_all.contains(&"log".to_owned()), "{by_all:?}");
    assert_eq!(known_to(&|root| drop(resolve::vault(root, base, NOTHING))), by_all);
}
