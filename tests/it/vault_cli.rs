//! The vault's commands on the bad night: in a shell that has not what the service has, and with several words on where the
//! database is. No database answers here: what is wrong with the connection tells which one was meant.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const FAILED: i32 = 1;
const USAGE: i32 = 64;
const ABSENT: &str = "{ env = \"FOREGATE_TEST_IS_NEVER_SET\" }";

struct Shell {
    directory: tempfile::TempDir,
}

impl Shell {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a folder");
        // What tells a repository from any other directory.
        std::fs::create_dir_all(directory.path().join("backups/files")).expect("a folder");
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A configuration with a repository, and what else the service needs and the shell has not.
    fn config(&self, more: &str) -> String {
        let file = self.path("config.toml");
        let (state, backups) = (self.path("state"), self.path("backups"));
        let text = format!(
            "state_dir = {state:?}\n[server]\nworkers = \"many\"\n[alerts]\nwebhook = {ABSENT}\n\
             [backup]\nrepository = \"file://{}\"\n{more}",
            backups.display()
        );
        std::fs::write(&file, text).expect("the file is written");
        file.display().to_string()
    }

    fn run(&self, environment: Option<&str>, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foregate"));
        command.args(arguments).stdin(Stdio::null()).env_remove("DATABASE_URL");
        if let Some(name) = environment {
            command.env("DATABASE_URL", url(name));
        }
        command.output().expect("the program starts")
    }
}

/// The exit code and what was said to a person.
fn outcome(output: &Output) -> (Option<i32>, String) {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), told)
}

/// Nobody listens there. What is told of it names database or role.
fn url(name: &str) -> String {
    format!("postgres://{name}@127.0.0.1:1/{name}")
}

fn write_url(path: &Path, name: &str) -> String {
    std::fs::write(path, url(name)).expect("the file is written");
    path.display().to_string()
}

#[test]
fn command_needs_only_its_own_sections_of_the_file_and_its_own_secrets() {
    let shell = Shell::new();
    let config = shell.config(&format!("[database]\nurl = {ABSENT}\n"));
    let listed = shell.run(None, &["backup", "list", "--json", "--config", &config]);
    let (code, told) = outcome(&listed);
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "[]");
    assert!(
        told.contains("without the database") && told.contains("database.url"),
        "{told}"
    );
    assert!(!told.contains("webhook") && !told.contains("workers"), "{told}");

    let (code, told) = outcome(&shell.run(None, &["pitr", "window", "--config", &config]));
    assert_eq!(code, Some(FAILED), "{told}");
    assert!(told.contains("holds no base backup"), "{told}");

    let socket = shell.path("absent.sock").display().to_string();
    let check = ["wal", "check", "--of", "7566000000000000000-15", "--socket", &socket];
    let (code, told) = outcome(&shell.run(None, &[&check[..], &["--config", &config]].concat()));
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn option_outweighs_the_file_and_the_file_the_environment() {
    let shell = Shell::new();
    let address = write_url(&shell.path("file.url"), "of_the_file");
    let option = write_url(&shell.path("option.url"), "of_the_option");
    let config = shell.config(&format!("[database]\nurl = {{ file = {address:?} }}\n"));
    let silent = shell.path("silent.toml").display().to_string();
    std::fs::write(&silent, "").expect("the file is written");
    let repository = format!("file://{}", shell.path("backups").display());
    for command in [&["backup", "create"][..], &["pitr", "base-backup"], &["pitr", "setup"]] {
        for (words, expected) in [
            (["--config", &config].as_slice(), "of_the_file"),
            (&["--config", &config, "--database-url-file", &option], "of_the_option"),
            (
                &["--config", &silent, "--repository", &repository],
                "of_the_environment",
            ),
            (&["--no-config", "--repository", &repository], "of_the_environment"),
        ] {
            let (code, told) = outcome(&shell.run(Some("of_the_environment"), &[command, words].concat()));
            assert_eq!(code, Some(FAILED), "{command:?} {words:?}: {told}");
            assert!(told.contains(expected), "{command:?} {words:?}: {told}");
        }
    }
}

#[test]
fn address_that_the_file_names_and_the_shell_lacks_is_not_replaced_by_another() {
    let shell = Shell::new();
    let config = shell.config(&format!("[database]\nurl = {ABSENT}\n"));
    for command in [
        &["backup", "create"][..],
        &["backup", "restore"],
        &["pitr", "base-backup"],
        &["pitr", "setup"],
    ] {
        let (code, told) = outcome(&shell.run(Some("other"), &[command, &["--config", &config]].concat()));
        assert_eq!(code, Some(USAGE), "{command:?}: {told}");
        assert!(
            told.contains("database.url") && told.contains("1 error"),
            "{command:?}: {told}"
        );
    }
    let pruned = shell.run(Some("other"), &["backup", "prune", "--config", &config]);
    let (code, told) = outcome(&pruned);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("without the database"), "{told}");
}

#[test]
fn wrong_configuration_or_option_exits_64() {
    let shell = Shell::new();
    let wrong = shell.config("daily = \"noon\"\n");
    let right = write_url(&shell.path("url"), "app");
    let absent = shell.path("absent").display().to_string();
    let at = format!("file://{}", shell.path("backups").display());
    for arguments in [
        &["backup", "list", "--config", &wrong][..],
        &["pitr", "window", "--config", &wrong],
        &["pitr", "setup", "--config", &wrong, "--database-url-file", &right],
        &["backup", "list", "--config", &absent],
        &[
            "backup",
            "verify",
            "latest",
            "--no-config",
            "--repository",
            &at,
            "--identity",
            &absent,
        ],
        &["backup", "list", "--no-config", "--repository", "ftp://nowhere"],
        &["backup", "create", "--no-config", "--repository", &at],
        &["pitr", "base-backup", "--no-config", "--repository", &at],
        &["pitr", "setup", "--no-config"],
        &["pitr", "window", "--no-config", "--repository", &at, "--of", "nobody"],
        &[
            "pitr",
            "window",
            "--no-config",
            "--repository",
            &at,
            "--time-zone",
            "Nowhere/Land",
        ],
        &["backup", "list", "--no-config", "--config", &right],
    ] {
        let (code, told) = outcome(&shell.run(None, arguments));
        assert_eq!(code, Some(USAGE), "{arguments:?}: {told}");
        assert!(!told.is_empty(), "{arguments:?}");
    }
}

/// An empty list of a repository that is made for the purpose looks like one that was lost.
#[test]
fn only_a_backup_makes_a_repository() {
    let shell = Shell::new();
    let nowhere = shell.path("nowhere");
    let at = format!("file://{}", nowhere.display());
    let state = shell.path("state").display().to_string();
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for command in [
        &["list"][..],
        &["show", id],
        &["verify", id],
        &["delete", id],
        &["restore"],
        &["prune"],
    ] {
        let words = ["--no-config", "--repository", &at, "--state-dir", &state];
        let output = shell.run(None, &[&["backup"], command, &words].concat());
        let (code, told) = outcome(&output);
        assert_eq!(code, Some(USAGE), "{command:?}: {told}");
        assert!(told.contains(&at) && output.stdout.is_empty(), "{command:?}: {told}");
        assert!(!nowhere.exists(), "{command:?}");
    }
    // Whatever else is in a directory, it is no repository for that.
    let home = shell.path("home");
    std::fs::create_dir(&home).expect("a folder");
    std::fs::write(home.join("letter"), "x").expect("a file");
    let there = format!("file://{}", home.display());
    let words = [
        "backup",
        "list",
        "--no-config",
        "--repository",
        &there,
        "--state-dir",
        &state,
    ];
    let (code, told) = outcome(&shell.run(None, &words));
    assert!(code == Some(USAGE) && told.contains(&there), "{told}");
    assert_eq!(std::fs::read_dir(&home).expect("readable").count(), 1);
    let path = shell.path("backups").display().to_string();
    let set = [
        "backup",
        "create",
        "--files",
        "app",
        "--path",
        &path,
        "--no-config",
        "--repository",
        &at,
    ];
    let (code, told) = outcome(&shell.run(None, &[&set[..], &["--state-dir", &state]].concat()));
    assert_eq!((code, nowhere.exists()), (Some(0), true), "{told}");
}

#[test]
fn whoever_makes_backups_in_the_clear_is_told_so() {
    const CLEAR: &str = "backups are stored in the clear";
    let shell = Shell::new();
    let state = shell.path("state").display().to_string();
    let path = shell.config("");
    let set = [
        "backup",
        "create",
        "--files",
        "app",
        "--path",
        &path,
        "--config",
        &path,
        "--state-dir",
        &state,
    ];
    let (code, told) = outcome(&shell.run(None, &set));
    assert_eq!((code, told.matches(CLEAR).count()), (Some(0), 1), "{told}");
    let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let (code, told) = outcome(&shell.run(None, &[&set[..], &["--recipient", recipient]].concat()));
    assert_eq!((code, told.contains(CLEAR)), (Some(0), false), "{told}");
    let checked = |more: &str| {
        let text = format!("[upstream]\nservers = [\"http://127.0.0.1:1\"]\n[tls]\nmode = \"off\"\n{more}");
        std::fs::write(shell.path("checked.toml"), text).expect("the file is written");
        let config = shell.path("checked.toml").display().to_string();
        outcome(&shell.run(Some("app"), &["check", "--config", &config]))
    };
    let vault = format!(
        "[backup]\nrepository = \"file://{}\"\n",
        shell.path("backups").display()
    );
    let database = "[database]\nurl = { env = \"DATABASE_URL\" }\n";
    for (more, count) in [
        (format!("{database}{vault}"), 1),
        (format!("{database}{vault}recipients = [{recipient:?}]\n"), 0),
        (vault, 0),
    ] {
        let (code, told) = checked(&more);
        assert_eq!((code, told.matches(CLEAR).count()), (Some(0), count), "{more}: {told}");
    }
}

/// A slip in a crontab, or a configuration that lost its keys.
#[test]
fn backup_in_the_clear_beside_sealed_ones_is_refused_unless_it_is_meant() {
    let shell = Shell::new();
    let (state, path) = (shell.path("state").display().to_string(), shell.config(""));
    let create = |set: &str, more: &[&str]| {
        let words = ["backup", "create", "--files", set, "--path", &path];
        let place = ["--config", &path, "--state-dir", &state];
        outcome(&shell.run(None, &[&words[..], &place, more].concat()))
    };
    let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    assert_eq!(create("app", &["--recipient", recipient]).0, Some(0));
    let (code, told) = create("app", &[]);
    let names_it = told.contains("a file set of that name") && told.contains("--in-the-clear");
    assert!(code == Some(FAILED) && names_it, "{told}");
    for (set, more) in [("other", &[][..]), ("app", &["--in-the-clear"])] {
        let (code, told) = create(set, more);
        assert_eq!(code, Some(0), "{set}: {told}");
    }
    let listed = shell.run(None, &["backup", "list", "--config", &path]);
    let table = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(table.matches(", in the clear").count(), 2, "{table}");
}

#[test]
fn check_tells_of_file_sets_that_cannot_be_backed_up_as_the_backup_would() {
    let shell = Shell::new();
    let (gone, link, there) = (shell.path("gone"), shell.path("link"), shell.path("backups"));
    std::os::unix::fs::symlink(&there, &link).expect("a link");
    let set = |name: &str, path: &Path| format!("[[backup.files]]\nname = {name:?}\npaths = [{path:?}]\n");
    let sets = [("a", &gone), ("b", &link), ("c", &there)].map(|(name, path)| set(name, path));
    let text = format!(
        "[upstream]\nservers = [\"http://127.0.0.1:1\"]\n[tls]\nmode = \"off\"\n[backup]\nrepository = \"file://{}\"\n{}",
        there.display(),
        sets.concat()
    );
    let config = shell.path("checked.toml").display().to_string();
    std::fs::write(&config, text).expect("the file is written");
    let (code, told) = outcome(&shell.run(None, &["check", "--config", &config]));
    assert_eq!(code, Some(0), "what a start survives: {told}");
    for (name, words) in [
        ("a", "No such file"),
        ("b", "is a symbolic link; name what it leads to"),
    ] {
        let backup = ["backup", "create", "--files", name, "--config", &config];
        let state = shell.path("state").display().to_string();
        let (code, refused) = outcome(&shell.run(None, &[&backup[..], &["--state-dir", &state]].concat()));
        assert_eq!(code, Some(FAILED), "{refused}");
        let set = format!("file set {name:?}: ");
        for text in [&told, &refused] {
            assert!(text.contains(&set) && text.contains(words), "{text}");
        }
    }
    assert!(!told.contains("file set \"c\""), "{told}");
    let text = std::fs::read_to_string(&config).expect("readable");
    let scratch = format!("[database]\nurl = {{ env = \"DATABASE_URL\" }}\n[backup]\nscratch = {gone:?}");
    std::fs::write(&config, text.replace("[backup]", &scratch)).expect("the file is written");
    let (code, told) = outcome(&shell.run(Some("app"), &["check", "--config", &config]));
    assert!(code == Some(0) && told.contains("the scratch directory"), "{told}");
}
