//! What an operator sees: defaults, every kind of mistake with its place, nothing that panics.

mod changes;
mod hostile;
mod mistakes;
mod reports;
mod vault;

use std::path::Path;

use toml::de::DeTable;

use super::raw::{Section, Sink};
use super::*;
use crate::proxy::config::{Tls, UpstreamAddress, UpstreamProtocol, UpstreamServer};

const EXAMPLE: &str = include_str!("../../../config.toml.example");

fn parse(text: &str) -> Result<Loaded, Errors> {
    Config::parse(text.as_bytes(), Path::new("config.toml"), &Overrides::default())
}

fn good(text: &str) -> Loaded {
    parse(text).unwrap_or_else(|errors| panic!("{}", report(&errors, Style::Plain)))
}

fn errors(text: &str) -> Vec<String> {
    parse(text).expect_err(text).findings().lines().collect()
}

fn warnings(text: &str) -> Vec<String> {
    good(text).warnings.lines().collect()
}

/// A directory where the default certificates exist, and the path of its configuration.
fn directory_with_certificates() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for name in ["fullchain.pem", "privkey.pem"] {
        std::fs::write(directory.path().join(name), "not read here").expect("a file");
    }
    let file = directory.path().join("config.toml");
    (directory, file)
}

/// The example with its commented lines put in force.
fn example_with_examples() -> String {
    let uncommented = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(code) if !code.is_empty() && !code.starts_with(' ') => code,
        _ => line,
    });
    uncommented.collect::<Vec<_>>().join("\n")
}

#[test]
fn values_of_the_example_are_the_defaults() {
    let (_directory, file) = directory_with_certificates();
    let example = Config::parse(EXAMPLE.as_bytes(), &file, &Overrides::default()).expect("the example");
    let empty = Config::parse(b"", &file, &Overrides::default()).expect("an empty file");
    assert_eq!(example.config, empty.config);
    assert_eq!(example.warnings.as_slice(), []);
}

#[test]
fn every_key_stands_in_the_example() {
    let sink_text = "";
    let everything = format!(
        "{}\n[[admin.tokens]]\nname = \"ops\"\nrole = \"admin\"\nsha256 = \"{}\"",
        example_with_examples().replace("tokens = []", ""),
        "0".repeat(64)
    );
    let (document, syntax_errors) = DeTable::parse_recoverable(&everything);
    assert!(syntax_errors.is_empty(), "{syntax_errors:?}");
    let sink = Sink::new(sink_text);
    resolve::config(
        Section::root(document.get_ref(), &sink),
        Path::new(""),
        &Overrides::default(),
    );
    let known = sink.known();
    assert!(known.len() > 70, "only {} keys are known", known.len());
    for path in known {
        let key = path.rsplit('.').next().unwrap_or_default();
        let (assignment, header) = (format!("{key} = "), format!("{key}]"));
        assert!(
            EXAMPLE.contains(&assignment) || EXAMPLE.contains(&header),
            "`{path}` is not in the example"
        );
    }
}

#[test]
fn examples_in_comments_parse_too() {
    let (_directory, file) = directory_with_certificates();
    let loaded = Config::parse(example_with_examples().as_bytes(), &file, &Overrides::default()).expect("the example");
    assert_eq!(loaded.config.guard.limits.rules.len(), 1);
    assert_eq!(loaded.warnings.as_slice(), []);
}

#[test]
fn empty_file_with_an_upstream_is_a_working_gate() {
    let overrides = Overrides {
        upstream: Some("http://[::1]:3000".to_owned()),
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.toml");
    std::fs::write(&file, "").expect("a file");
    let loaded = Config::load(Some(&file), &overrides).expect("an empty file");
    assert!(matches!(loaded.config.proxy.tls, Tls::SelfSigned { .. }));
    assert_eq!(loaded.warnings.as_slice().len(), 1);
    assert_eq!(loaded.files, [file]);
    let address = UpstreamAddress::Host {
        host: "::1".to_owned(),
        port: 3000,
    };
    assert_eq!(
        loaded.config.proxy.upstream.servers,
        [UpstreamServer {
            address,
            protocol: UpstreamProtocol::Http1
        }]
    );
    let without_file = Config::load(None, &overrides).expect("no file");
    assert_eq!(without_file.config, loaded.config);
    assert_eq!(without_file.files, [] as [PathBuf; 0]);
}

#[test]
fn certificates_that_were_promised_are_not_replaced_by_a_self_signed_one() {
    for text in [
        "[tls]\nmode = \"files\"",
        "[tls]\ncertificates = [{ cert = \"a\", key = \"b\" }]",
    ] {
        assert!(matches!(good(text).config.proxy.tls, Tls::Files { .. }), "{text}");
    }
    let (directory, file) = directory_with_certificates();
    let loaded = Config::parse(b"", &file, &Overrides::default()).expect("an empty file");
    let Tls::Files { certificates, .. } = &loaded.config.proxy.tls else {
        panic!("not from files")
    };
    assert_eq!(
        certificates.iter().map(|pair| pair.cert.clone()).collect::<Vec<_>>(),
        [directory.path().join("fullchain.pem")]
    );
    assert_eq!(loaded.files.len(), 2);
}

#[test]
fn networks_that_are_never_blocked_are_the_proxies_and_loopback() {
    let networks = |text: &str| {
        good(text)
            .config
            .guard
            .never_block
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(networks(""), ["127.0.0.0/8", "::1/128"]);
    assert_eq!(
        networks("[client]\ntrusted_proxies = [\"192.0.2.7\", \"::ffff:192.0.2.8\", \"::ffff:10.0.0.0/104\"]"),
        ["192.0.2.7/32", "192.0.2.8/32", "10.0.0.0/8", "127.0.0.0/8", "::1/128"]
    );
    assert_eq!(networks("[blocklist]\nblock_loopback = true"), [] as [&str; 0]);
}

#[test]
fn limit_that_is_left_out_of_a_rule_is_that_of_everybody_and_zero_is_none() {
    let text = "[limits]\nrequests_per_minute = 0\n[[limits.rules]]\npath = \"/a\"\nrequests_per_minute = 7";
    let limits = good(text).config.guard.limits;
    assert_eq!(limits.default.per_minute, None);
    let quota = limits
        .rules
        .first()
        .map(|rule| (rule.quota.per_minute, rule.quota.per_hour));
    assert_eq!(quota, Some((std::num::NonZeroU32::new(7), limits.default.per_hour)));
}

#[test]
fn secret_comes_from_a_file_which_is_then_watched() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (file, secret) = (directory.path().join("config.toml"), directory.path().join("url"));
    std::fs::write(&secret, "postgres://db/x\n").expect("a file");
    let loaded =
        Config::parse(b"[store]\npostgres = { file = \"url\" }", &file, &Overrides::default()).expect("a secret");
    assert_eq!(
        loaded.config.store.postgres.as_ref().map(crate::secret::Secret::reveal),
        Some("postgres://db/x")
    );
    assert!(loaded.files.contains(&secret));
    assert!(effective::render(&loaded.config).contains("postgres = \"[secret]\""));
}

#[test]
fn refused_file_names_what_to_watch_until_it_is_mended() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.toml");
    let missing = Config::load(Some(&file), &Overrides::default()).expect_err("no file");
    assert_eq!(missing.files(), std::slice::from_ref(&file));
    std::fs::write(&file, "[store]\npostgres = { file = \"secret\" }").expect("a file");
    let errors = Config::load(Some(&file), &Overrides::default()).expect_err("no secret");
    assert!(
        errors.files().starts_with(&[file, directory.path().join("secret")]),
        "{:?}",
        errors.files()
    );
}
