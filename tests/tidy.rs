//! House rules that no compiler checks. Each is a pure function from text to complaints, proven on a
//! counter-example below, so that a rule that finds nothing is known to be able to find something.
#![expect(clippy::disallowed_methods, reason = "asks cargo and git about this checkout")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Non-test lines per file; `tests.rs` files and the `mod tests` at a file's foot are not counted.
const LINES_MAX: usize = 500;
/// Files that may be longer. Empty, and meant to stay so.
const LONGER: &[&str] = &[];

/// Every arrow between parts that may exist, downwards only: a new one is a line in a review.
const ARROWS: &[(&str, &str)] = &[
    // assembly
    ("main", "cli"),
    ("cli", "admin"),
    ("cli", "app"),
    ("cli", "backup"),
    ("cli", "clock"),
    ("cli", "config"),
    ("cli", "pitr"),
    ("cli", "postgres"),
    ("cli", "repository"),
    ("cli", "secret"),
    ("cli", "telemetry"),
    ("app", "admin"),
    ("app", "backup"),
    ("app", "clock"),
    ("app", "config"),
    ("app", "guard"),
    ("app", "pitr"),
    ("app", "postgres"),
    ("app", "priority"),
    ("app", "proxy"),
    ("app", "repository"),
    ("app", "secret"),
    ("app", "store"),
    ("app", "tasks"),
    ("app", "telemetry"),
    ("config", "admin"),
    ("config", "backup"),
    ("config", "postgres"),
    ("config", "repository"),
    ("config", "tasks"),
    ("config", "guard"),
    ("config", "pitr"),
    ("config", "proxy"),
    ("config", "secret"),
    ("config", "store"),
    ("config", "telemetry"),
    // edges
    ("proxy", "clock"),
    ("proxy", "guard"),
    ("proxy", "secret"),
    ("proxy", "tasks"),
    ("proxy", "telemetry"),
    ("admin", "backup"),
    ("admin", "clock"),
    ("admin", "guard"),
    ("admin", "repository"),
    ("admin", "pitr"),
    ("admin", "secret"),
    ("admin", "store"),
    ("admin", "tasks"),
    ("admin", "telemetry"),
    // domain
    ("guard", "clock"),
    ("guard", "secret"),
    ("guard", "store"),
    ("guard", "tasks"),
    ("guard", "telemetry"),
    ("backup", "clock"),
    ("backup", "secret"),
    ("backup", "telemetry"),
    ("backup", "postgres"),
    ("backup", "repository"),
    ("backup", "tasks"),
    ("pitr", "clock"),
    ("pitr", "postgres"),
    ("pitr", "repository"),
    ("pitr", "secret"),
    ("pitr", "tasks"),
    ("pitr", "telemetry"),
    // mechanisms
    ("postgres", "libpq"),
    ("postgres", "priority"),
    ("postgres", "secret"),
    ("repository", "priority"),
    ("repository", "secret"),
    ("repository", "telemetry"),
    ("store", "clock"),
    ("store", "libpq"),
    ("store", "secret"),
    ("store", "tasks"),
    ("store", "telemetry"),
    // foundation
    ("libpq", "secret"),
    ("tasks", "clock"),
    ("tasks", "telemetry"),
    ("telemetry", "clock"),
    ("telemetry", "secret"),
];

const STOREYS: &[&[&str]] = &[
    &["tasks", "telemetry", "clock", "libpq", "priority", "secret"],
    &["store", "repository", "postgres"],
    &["guard", "backup", "pitr"],
    &["proxy", "admin"],
    &["config", "app", "cli", "main"],
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under `src`, by its path from the root.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder is readable") {
            let path = entry.expect("a folder entry is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(root())
                    .expect("sources lie below the root")
                    .display()
                    .to_string();
                files.push((name, fs::read_to_string(&path).expect("a source file is UTF-8")));
            }
        }
    }
    assert!(files.len() > 5, "found no sources to check");
    files.sort();
    files
}

/// Paths of the files that git tracks; none where this is no checkout (a source archive).
fn tracked() -> Vec<PathBuf> {
    let listing = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output();
    let Ok(listing) = listing else { return Vec::new() };
    String::from_utf8_lossy(&listing.stdout)
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect()
}

/// `src/proxy/tls.rs` and `src/clock.rs` belong to the parts `proxy` and `clock`.
fn part(file: &str) -> &str {
    let inside = file.strip_prefix("src/").unwrap_or(file);
    inside.split(['/', '.']).next().unwrap_or(inside)
}

/// The parts that a file names through `crate::`, comments left aside.
fn imports(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    let here = if text.contains("foregate::") {
        ["crate::", "foregate::"].as_slice()
    } else {
        &["crate::"]
    };
    for marker in here {
        for (at, _) in code.match_indices(marker) {
            let before = code.as_bytes().get(at.wrapping_sub(1)).copied().unwrap_or(b' ');
            if before.is_ascii_alphanumeric() || before == b'_' {
                continue;
            }
            let rest = &code[at + marker.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group_members(group)),
                None => found.push(word(rest)),
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found.sort();
    found.dedup();
    found
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect()
}

/// First names of `{a::b, c::{d, e}}`, given without its opening brace.
fn group_members(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut members) = (0_usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                members.push(word(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    members
}

/// Arrows of a file that the table does not allow; names that are no part are items of the crate's root.
fn forbidden_arrows(file: &str, text: &str) -> Vec<String> {
    let from = part(file);
    let is_part = |name: &str| STOREYS.iter().any(|storey| storey.contains(&name));
    imports(text)
        .into_iter()
        .filter(|to| to != from && is_part(to) && !ARROWS.contains(&(from, to.as_str())))
        .map(|to| format!("{file}: {from} may not import {to}"))
        .collect()
}

fn storey(part: &str) -> Option<usize> {
    STOREYS.iter().position(|storey| storey.contains(&part))
}

fn counted_lines(file: &str, text: &str) -> usize {
    if file.ends_with("/tests.rs") || file.contains("/tests/") {
        return 0;
    }
    let tests_begin = text.lines().collect::<Vec<_>>().windows(2).position(
        |pair| matches!(pair, [first, second] if first.trim() == "#[cfg(test)]" && second.starts_with("mod tests {")),
    );
    tests_begin.unwrap_or_else(|| text.lines().count())
}

fn too_long(file: &str, text: &str) -> Option<String> {
    let lines = counted_lines(file, text);
    (lines > LINES_MAX && !LONGER.contains(&file)).then(|| format!("{file}: {lines} lines, at most {LINES_MAX}"))
}

fn headless(file: &str, text: &str) -> Option<String> {
    (!text.starts_with("//!")).then(|| format!("{file}: does not open with //! and what it owns"))
}

/// Leftovers that promise work instead of naming an issue.
fn leftovers(file: &str, text: &str) -> Vec<String> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)))
        .map(|(number, line)| format!("{file}:{}: {}", number + 1, line.trim()))
        .collect()
}

/// Targets that a document tells the reader to `make` and that the Makefile does not have.
fn unknown_targets(document: &str, makefile: &str) -> Vec<String> {
    let mut unknown = Vec::new();
    for quoted in document.split(['`', '\n']) {
        let Some(target) = quoted.trim().trim_start_matches("$ ").strip_prefix("make ") else {
            continue;
        };
        let target: String = target
            .chars()
            .take_while(|c| c.is_ascii_lowercase() || *c == '-')
            .collect();
        let is_known = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
        // A line of prose may begin with "make": only the form of a command counts.
        let is_command =
            document.contains(&format!("`make {target}")) || document.contains(&format!("\nmake {target}"));
        if is_command && !target.is_empty() && !is_known {
            unknown.push(target);
        }
    }
    unknown
}

/// The keys of the table of alarms, as `backup-verify-<id>`.
fn documented_alarms(document: &str) -> BTreeSet<&str> {
    let chapter = document.split("\n## Alarms").nth(1).unwrap_or("");
    let chapter = chapter.split("\n## ").next().unwrap_or("");
    let cells = chapter
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    // What stands between the marks is no key, but ", ".
    let keys = cells.flat_map(|cell| cell.split('`').step_by(2));
    keys.filter(|key| !key.is_empty()).collect()
}

/// The keys of alarms that a file of code raises under a name of its own, up to what is filled in: `backup-verify-`.
fn raised_alarms(file: &str, code: &str) -> BTreeSet<String> {
    let dense: String = code.split_whitespace().collect();
    let after = |mark: &str, family: &str| -> Vec<String> {
        let ends = ['"', '{'];
        let names = dense.split(mark).skip(1).filter_map(|rest| rest.split(ends).next());
        let names = names.filter(|name| !name.is_empty());
        names.map(|name| format!("{family}{name}")).collect()
    };
    let mut keys = BTreeSet::new();
    keys.extend(after("board.set(\"", "health-"));
    keys.extend(after("health.set(\"", "health-"));
    if file.starts_with("src/backup/service/") {
        keys.extend(after("trouble(\"", "backup-"));
        keys.extend(after("trouble(&format!(\"", "backup-"));
        keys.extend(after("(\"backup-", "backup-"));
    }
    // The generic ones of the service, and those of which only the board tells.
    keys.retain(|key| key != "backup-" && key != "health-certificates" && key != "health-config");
    keys
}

/// Whether the code holds the name, or the beginning, of this key: some are put together far from where they are raised.
fn is_named(key: &str, code: &str) -> bool {
    let stem = key.split('<').next().unwrap_or(key);
    let name = ["health-", "backup-"]
        .iter()
        .find_map(|family| stem.strip_prefix(family));
    let whole = [Some(stem), name].into_iter().flatten();
    let mut wanted = whole.flat_map(|stem| ["\"", "{"].map(|end| format!("\"{stem}{end}")));
    wanted.any(|literal| code.contains(&literal))
}

/// Homes and work folders of one machine, which mean nothing on another.
fn machine_paths(file: &str, text: &str) -> Vec<String> {
    let marks = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/Us", "ers/"),
    ];
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| marks.iter().any(|mark| names_path(line, mark)))
        .map(|(number, line)| format!("{file}:{}: {}", number + 1, line.trim()))
        .collect()
}

/// Whether the path begins here, rather than continuing another one (a URL such as `/api/work/`).
fn names_path(line: &str, mark: &str) -> bool {
    line.match_indices(mark).any(|(at, _)| {
        let before = line[..at].chars().next_back().unwrap_or(' ');
        !(before.is_ascii_alphanumeric() || "._-}>~*".contains(before))
    })
}

/// What depends on a package in what is really built for this machine. `Cargo.lock` also lists optional packages that no
/// feature asks for, so it is not the lock file that is read.
fn dependants(package: &str) -> String {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--edges",
            "normal,build,dev",
            "--invert",
            package,
        ])
        .current_dir(root())
        .output()
        .expect("cargo tree runs");
    assert!(
        tree.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&tree.stderr)
    );
    String::from_utf8_lossy(&tree.stdout).into_owned()
}

/// The metrics' names in a text: words that begin with `foregate_` and one of these parts.
fn metrics<'t>(text: &'t str, parts: &[&str]) -> BTreeSet<&'t str> {
    let is_of_name = |character: char| character.is_ascii_lowercase() || character == '_';
    let words = text.split(|character| !is_of_name(character));
    let named = words.filter(|word| {
        let rest = word.strip_prefix("foregate_").unwrap_or_default();
        parts
            .iter()
            .any(|part| rest.starts_with(part) && rest.len() > part.len())
    });
    named.collect()
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn parts_import_only_what_the_table_allows() {
    assert_none(
        &sources()
            .iter()
            .flat_map(|(file, text)| forbidden_arrows(file, text))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn every_allowed_arrow_runs_downwards() {
    for (from, to) in ARROWS {
        let (above, below) = (storey(from).expect("a known part"), storey(to).expect("a known part"));
        let inside = above == below && (above == 0 || above + 1 == STOREYS.len());
        assert!(above > below || inside, "{from} -> {to} does not run downwards");
    }
    for forbidden in [
        ("proxy", "admin"),
        ("admin", "proxy"),
        ("proxy", "store"),
        ("backup", "store"),
        ("pitr", "store"),
    ] {
        assert!(!ARROWS.contains(&forbidden), "{forbidden:?} breaks an invariant");
    }
}

#[test]
fn files_stay_short_and_say_what_they_own() {
    let files = sources();
    let long = files.iter().filter_map(|(file, text)| too_long(file, text));
    let headless = files.iter().filter_map(|(file, text)| headless(file, text));
    assert_none(&long.chain(headless).collect::<Vec<_>>());
}

#[test]
fn no_leftovers() {
    assert_none(
        &sources()
            .iter()
            .flat_map(|(file, text)| leftovers(file, text))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn ring_is_not_built() {
    assert_eq!(dependants("ring"), "", "aws-lc-rs is the one TLS provider");
}

#[test]
fn commands_in_the_readme_exist() {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("a document is readable");
    assert_none(&unknown_targets(&read("README.md"), &read("Makefile")));
}

#[test]
fn metrics_of_alarms_and_vault_are_those_of_the_document() {
    let parts = ["alerts_", "backup_"];
    let document = fs::read_to_string(root().join("docs/operations.md")).expect("a document is readable");
    let files = sources();
    let code = files.iter().filter(|(file, _)| !file.ends_with("tests.rs"));
    let registered: BTreeSet<&str> = code.flat_map(|(_, text)| metrics(text, &parts)).collect();
    assert!(registered.len() > 10, "{registered:?}");
    assert_eq!(metrics(&document, &parts), registered);
}

#[test]
fn every_alarm_stands_in_the_table_for_operators_and_none_that_does_not_exist() {
    let document = fs::read_to_string(root().join("docs/operations.md")).expect("the document is there");
    let documented = documented_alarms(&document);
    assert!(documented.len() > 20, "{documented:?}");
    let code = sources().into_iter().map(|(file, text)| {
        let lines: Vec<&str> = text.lines().take(counted_lines(&file, &text)).collect();
        (file, lines.join("\n"))
    });
    let code: Vec<(String, String)> = code.collect();
    let stems: BTreeSet<&str> = documented.iter().filter_map(|key| key.split('<').next()).collect();
    let raised: BTreeSet<String> = code.iter().flat_map(|(file, text)| raised_alarms(file, text)).collect();
    assert!(raised.len() > 10, "{raised:?}");
    let missing: Vec<&String> = raised.iter().filter(|key| !stems.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "not in the table: {missing:?}");
    let all: String = code.into_iter().map(|(_, text)| text).collect();
    let unknown: Vec<&&str> = documented.iter().filter(|key| !is_named(key, &all)).collect();
    assert!(unknown.is_empty(), "raised by nobody: {unknown:?}");
}

#[test]
fn tracked_files_name_no_path_of_one_machine() {
    let texts = tracked().into_iter().filter_map(|path| {
        let text = fs::read_to_string(root().join(&path)).ok()?;
        Some((path.display().to_string(), text))
    });
    assert_none(
        &texts
            .flat_map(|(file, text)| machine_paths(&file, &text))
            .collect::<Vec<_>>(),
    );
}

// Counter-examples: each rule above finds what it is for.

#[test]
fn the_arrow_rule_sees_each_way_to_import() {
    for text in [
        "use crate::store::Block;",
        "use crate::{clock::Clock, store::{Block, Source}};",
        "use crate::{\n    guard,\n    store,\n};",
        "fn f() -> crate::store::Block { x }",
        "pub(in crate::store) fn f() {}",
    ] {
        assert_eq!(
            forbidden_arrows("src/proxy/tls.rs", text),
            ["src/proxy/tls.rs: proxy may not import store"],
            "{text}"
        );
    }
    for text in [
        "// use crate::store;",
        "use crate::proxy::tls;",
        "use crate::guard::Guard;",
        "use other_crate::store;",
    ] {
        assert_eq!(forbidden_arrows("src/proxy/tls.rs", text), [""; 0], "{text}");
    }
    assert_eq!(
        forbidden_arrows("src/main.rs", "foregate::store::open()"),
        ["src/main.rs: main may not import store"]
    );
}

#[test]
fn the_length_rule_counts_code_and_not_its_tests() {
    let long = "//! x\n".repeat(LINES_MAX + 1);
    assert!(too_long("src/a.rs", &long).is_some());
    assert!(too_long("src/a.rs", &"//! x\n".repeat(LINES_MAX)).is_none());
    assert!(too_long("src/a/tests.rs", &long).is_none());
    assert!(too_long("src/a.rs", &format!("//! x\n#[cfg(test)]\nmod tests {{\n{long}")).is_none());
}

#[test]
fn the_other_rules_find_what_they_are_for() {
    assert!(headless("src/a.rs", "use std::fs;\n//! late").is_some());
    assert_eq!(
        leftovers("src/a.rs", concat!("fn f() {}\n// TO", "DO: later\n")).len(),
        1
    );
    assert!(dependants("rustls").contains("foregate"));
    let found = metrics(
        "`foregate_backup_good{kind}`, x_foregate_backup_bad and foregate_store_up",
        &["backup_"],
    );
    assert_eq!(found, BTreeSet::from(["foregate_backup_good"]));
    let table = "x\n## Alarms\n| key |\n| `backup-a-<id>`, `health-b` | `c` |\n## Then\n| `d` |\n";
    assert_eq!(documented_alarms(table), BTreeSet::from(["backup-a-<id>", "health-b"]));
    let code =
        "self.trouble(\n&format!(\"a-{id}\"), x); self.board.set(\"b\", x); raise(\"backup-c\"); log(\"backup: d\")";
    let raised = raised_alarms("src/backup/service/x.rs", code);
    assert_eq!(
        raised.into_iter().collect::<Vec<_>>(),
        ["backup-a-", "backup-c", "health-b"]
    );
    assert!(is_named("backup-a-<id>", code) && is_named("health-b", code) && !is_named("backup-d", code));
    let makefile = "run: ## go\n\tcargo run\n";
    assert_eq!(unknown_targets("`make run` then `make fly`", makefile), ["fly"]);
    assert_eq!(unknown_targets("```\nmake swim X=1\n```", makefile), ["swim"]);
    assert_eq!(machine_paths("a.md", concat!("see /ho", "me/ann/x")).len(), 1);
    assert_eq!(machine_paths("a.md", concat!("GET /api/wo", "rk/1")).len(), 0);
    assert_eq!(counted_lines("src/a.rs", "//! x\nfn f() {}\n"), 2);
    assert_eq!(part("src/clock.rs"), "clock");
}
