//! How mistakes and doubts are shown, and what never is.

use super::*;

#[test]
fn all_mistakes_are_reported_at_once_in_their_order() {
    let text = "[admin]\nlisten = 1\nlissen = 2\n[server]\nworkers = -1\nlisten = [\"x\", \"y\"]\n";
    let found: Vec<_> = parse(text).expect_err("mistakes").findings().as_slice().to_vec();
    let places: Vec<_> = found.iter().map(|finding| (finding.line, finding.column)).collect();
    let expected = [(2, 10), (3, 1), (5, 11), (6, 11), (6, 16)].map(|(line, column)| (Some(line), Some(column)));
    assert_eq!(places, expected);
}

#[test]
fn every_syntax_error_is_reported_with_its_place() {
    let found = errors("[server]\nworkers = \n[admin\nlisten = 1.2.3.4\n");
    assert!(found.len() >= 2, "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("config.toml:2:")), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("config.toml:3:")), "{found:?}");
    assert!(
        errors("a = 1\na = 2")
            .join("")
            .starts_with("config.toml:2:1: syntax: duplicate key")
    );
}

#[test]
fn columns_count_characters() {
    assert_eq!(
        errors("[headers]\n\"größe\" = { a = 1 }\n")
            .first()
            .map(|line| line.split(' ').next().map(str::to_owned)),
        Some(Some("config.toml:2:1:".to_owned()))
    );
    let found = errors("[log]\nformat = 'json' \u{a0}");
    assert!(found.iter().all(|line| line.starts_with("config.toml:2:")), "{found:?}");
    let found = errors("[admin]\ntokens = [{ name = \"ä\", role = \"boss\", sha256 = \"\" }]");
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("config.toml:2:32: `admin.tokens[0].role`")),
        "{found:?}"
    );
}

#[test]
fn report_shows_the_line_with_a_caret_and_the_help() {
    let errors = parse("[limits]\nrequest_per_minute = 5\n").expect_err("a mistake");
    let shown = report(&errors, Style::Plain);
    let expected = "\
error: unknown key `request_per_minute` in `limits`
 --> config.toml:2:1
  |
2 | request_per_minute = 5
  | ^^^^^^^^^^^^^^^^^^
  |
  = help: did you mean `requests_per_minute`?

config.toml: 1 error
";
    assert_eq!(shown, expected);
    assert!(report(&errors, Style::Coloured).contains("\u{1b}["));
}

#[test]
fn secrets_never_appear_in_a_report() {
    let table = [
        "[store]\npostgres = \"host=db password=hunter2\"",
        "[store]\npostgres = \"postgres://u:hunter2@db/x\"",
        "[store]\npostgres = \"postgres://u:hunter2@db/x",
        "[store]\npostgres = \"host=db password=hunter2",
        "[store]\npostgres = [\"hunter2\"]",
        "[store]\npostgres = { url = \"postgres://u:hunter2@db/x\" }",
        "[upstream]\nservers = [\"https://u:hunter2@app\"]",
        "[upstream]\nservers = [\"http://u:hunter2@app\"]",
        "[admin]\nmetrics_token = \"hunter2\"",
        "postgres = \"\"\"\nx\npostgres://u:hunter2@db/x\"",
    ];
    for text in table {
        let errors = parse(text).expect_err(text);
        let shown = format!("{}{errors}{errors:?}", report(&errors, Style::Plain));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn doubtful_settings_are_warned_about() {
    let table = [
        (
            "[limits]\nrequests_per_hour = 10",
            "config.toml:2:21: `limits.requests_per_hour` allows fewer requests than one minute does (10 < 100)",
        ),
        (
            "[limits]\nrequests_per_minute = 2000",
            "config.toml:2:23: `limits.requests_per_minute` is more than `requests_per_hour`",
        ),
        (
            "[[limits.rules]]\npath = \"/a\"\nrequests_per_minute = 50\nrequests_per_hour = 40",
            "config.toml:4:21: `limits.rules[0].requests_per_hour` allows fewer",
        ),
        (
            "[[limits.rules]]\npath = \"/a\"\nrequests_per_hour = 2000",
            "config.toml:1:1: `limits.rules[0]` allows more than the limit for everything else",
        ),
        (
            "[client]\ntrusted_proxies = [\"0.0.0.0/0\"]",
            "config.toml:2:19: `client.trusted_proxies` believes everybody",
        ),
        (
            "[client]\ntrusted_proxies = [\"10.0.0.1/8\"]",
            "config.toml:2:20: `client.trusted_proxies[0]` has bits set beyond its prefix (it is read as \"10.0.0.0/8\")",
        ),
        (
            "[client]\nipv6_prefix = 128",
            "config.toml:2:15: `client.ipv6_prefix` lets one subscriber be many clients",
        ),
        (
            "[server]\nmax_connections = 10\nmax_connections_per_client = 20",
            "config.toml:3:30: `server.max_connections_per_client` is more than",
        ),
        (
            "[server]\nredirect_http = [\"0.0.0.0:80\"]\n[tls]\nmode = \"off\"",
            "config.toml:2:17: `server.redirect_http` redirects to https",
        ),
        (
            "[[backup.files]]\nname = \"app\"\npaths = [\"/srv/app\"]",
            "config.toml:1:3: `backup` has no effect without `database.url`",
        ),
    ];
    let quiet = "\n";
    for (text, expected) in table {
        let text = if text.contains("mode =") {
            text.to_owned()
        } else {
            format!("{text}{quiet}[tls]\nmode = \"self_signed\"")
        };
        let found = warnings(&text);
        assert!(
            found.len() == 1 && found.iter().all(|line| line.starts_with(expected)),
            "{text}\n{found:#?}"
        );
    }
}

#[test]
fn bad_override_is_an_error_without_a_place() {
    let overrides = Overrides {
        upstream: Some("localhost:3000".to_owned()),
    };
    let errors = Config::load(None, &overrides).expect_err("no scheme");
    assert_eq!(
        errors.to_string(),
        "defaults: `--upstream` has no scheme (write \"http://localhost:3000\", \"h2c://host:port\" or \"unix:/path\")"
    );
    assert!(report(&errors, Style::Plain).starts_with("error: defaults: `--upstream` has no scheme"));
}

#[test]
fn file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let missing = directory.path().join("missing.toml");
    let text = Config::load(Some(&missing), &Overrides::default())
        .expect_err("no file")
        .to_string();
    assert!(
        text.starts_with(&format!("{}: cannot be read: No such file", missing.display())),
        "{text}"
    );
    let text = Config::load(Some(directory.path()), &Overrides::default())
        .expect_err("a directory")
        .to_string();
    assert!(text.ends_with("it is not a regular file"), "{text}");
    let large = directory.path().join("large.toml");
    std::fs::write(&large, vec![b'#'; FILE_BYTES_MAX + 1]).expect("a file");
    let text = Config::load(Some(&large), &Overrides::default())
        .expect_err("too large")
        .to_string();
    assert!(text.ends_with("is larger than 1048576 bytes"), "{text}");
}

#[test]
fn bytes_that_are_not_utf8_are_placed() {
    let errors = Config::parse(b"[log]\nformat = \"\xff\"", Path::new("c"), &Overrides::default()).expect_err("bytes");
    assert_eq!(
        errors.to_string(),
        "c:2:11: is not UTF-8 from here on (save the file as UTF-8)"
    );
}
