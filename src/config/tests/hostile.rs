//! Files made to hurt: no panic, no long wait, no long answer.

use proptest::prelude::*;

use super::*;

#[test]
fn hostile_files_are_refused_quickly_and_briefly() {
    let many_keys: String = (0..100_000).map(|index| format!("k{index}=1\n")).collect();
    let many_tables = "[[limits.rules]]\n".repeat(60_000);
    let many_hosts = format!("[upstream]\nservers=[{}]", "\"http://a:1\",".repeat(80_000));
    let many_addresses = format!("[server]\nlisten=[{}]", "\"1.1.1.1:1\",".repeat(80_000));
    let deep = "a=".to_owned() + &"[".repeat(500_000);
    let long_key = "x".repeat(FILE_BYTES_MAX - 2) + "=1";
    let many_addresses_in_a_line = format!("x = \"{}\"", "://".repeat(300_000));
    let garbage = "=\n".repeat(FILE_BYTES_MAX / 2);
    for text in [
        many_keys,
        many_tables,
        many_hosts,
        many_addresses,
        deep,
        long_key,
        many_addresses_in_a_line,
        garbage,
    ] {
        let errors = parse(&text).expect_err("hostile");
        assert!(errors.findings().as_slice().len() <= 51);
        assert!(report(&errors, Style::Plain).len() < 100_000);
        assert!(errors.to_string().len() < 100_000);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _rendered = Config::parse(&bytes, Path::new("c"), &Overrides::default()).map_err(|errors| report(&errors, Style::Plain));
    }

    /// The example with one piece replaced: near enough to a real file to get beyond the parser.
    #[test]
    fn damaged_example_never_panics(at in 0..EXAMPLE.len(), length in 0_usize..40, text in "[\\PC\\n\"'=\\[\\]{}#.]{0,12}") {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, text.into_bytes());
        let _rendered = Config::parse(&bytes, Path::new("c"), &Overrides::default()).map_err(|errors| report(&errors, Style::Plain));
    }

    #[test]
    fn arbitrary_strings_as_any_text_value_never_panic(value in "\\PC{0,40}") {
        let quoted = toml::Value::from(value).to_string();
        for key in ["server.listen", "upstream.servers", "client.trusted_proxies", "limits.exempt", "blocklist.probe_paths"] {
            let _rendered = parse(&format!("{key} = [{quoted}]")).map_err(|errors| report(&errors, Style::Plain));
        }
        for key in ["tls.mode", "server.drain_timeout", "limits.max_request_size", "headers.permissions_policy", "store.postgres", "log.access_log"] {
            let _rendered = parse(&format!("{key} = {quoted}")).map_err(|errors| report(&errors, Style::Plain));
        }
    }
}
