//! `foregate demo`: everything at once on loopback, to try in a minute. The configuration is an ordinary file that may be
//! edited while the demo runs.

mod sample;

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{Error, say};
use crate::config::Overrides;
use crate::{admin, app};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Your own app instead of the sample, e.g. http://127.0.0.1:3000
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Where the demo keeps its certificate, its store and its config.toml [default: ~/.local/state/foregate-demo]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Port of the gate, on 127.0.0.1 and ::1; 0: any that is free.
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Port of the admin listener, on 127.0.0.1; 0: any that is free.
    #[arg(long, default_value_t = 8444)]
    admin_port: u16,
}

pub(super) fn run(options: &Options) -> Result<(), Error> {
    let state_dir = state_dir(options)?;
    let token = admin::token::generate().context("no randomness is available")?;
    let upstream = match &options.upstream {
        Some(url) => url.clone(),
        None => format!(
            "http://{}",
            sample::start().context("the sample app cannot be started")?
        ),
    };
    let path = state_dir.join("config.toml");
    let text = config(options, &state_dir, &upstream, &hex::encode(token.sha256));
    write_private(&path, &text).with_context(|| format!("{} cannot be written", path.display()))?;
    let origin = app::Origin {
        path: Some(path.clone()),
        overrides: Overrides::default(),
    };
    let loaded = super::check::load(&origin)?;
    say(&welcome(options, &path, &upstream, token.secret.reveal()));
    app::run(origin, &loaded)?;
    Ok(())
}

fn state_dir(options: &Options) -> anyhow::Result<PathBuf> {
    let chosen = options.state_dir.clone().or_else(|| {
        let home = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")))
            .map(|base| base.join("foregate-demo"))
    });
    let directory = chosen.context("HOME is not set: say where with --state-dir")?;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory);
    made.with_context(|| format!("{} cannot be made", directory.display()))?;
    directory
        .canonicalize()
        .with_context(|| format!("{} cannot be read", directory.display()))
}

/// Limits low enough to be met by hand within seconds.
fn config(options: &Options, state_dir: &Path, upstream: &str, token_sha256: &str) -> String {
    let Options { port, admin_port, .. } = options;
    // A machine without IPv6 has no such address.
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    let ipv6 = if has_ipv6 {
        format!(", \"[::1]:{port}\"")
    } else {
        String::new()
    };
    let state_dir = toml::Value::from(state_dir.display().to_string());
    let upstream = toml::Value::from(upstream);
    format!(
        "# Written by `foregate demo` at each start. Edit and save: changes take effect at once.\n\
         state_dir = {state_dir}\n\n\
         [server]\nlisten = [\"127.0.0.1:{port}\"{ipv6}]\n\n\
         [tls]\nmode = \"self_signed\"\n\n\
         [upstream]\nservers = [{upstream}]\n\n\
         [limits]\nrequests_per_minute = 30\nrequests_per_hour = 1000\n\n\
         [blocklist]\nsuspicious_threshold = 3\nblock_duration = \"2m\"\n\
         block_loopback = true    # only for the demo: you are the client\n\n\
         [admin]\nlisten = \"127.0.0.1:{admin_port}\"\n\
         tokens = [{{ name = \"demo\", role = \"admin\", sha256 = \"{token_sha256}\" }}]\n\n\
         [log]\nformat = \"text\"\naccess_log = \"\"\n"
    )
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

fn welcome(options: &Options, path: &Path, upstream: &str, token: &str) -> String {
    let gate = format!("https://localhost:{}", options.port);
    // By address, so that the client to lift in step 3 is known: `localhost` may mean ::1.
    let by_address = format!("https://127.0.0.1:{}", options.port);
    let admin = format!("http://127.0.0.1:{}", options.admin_port);
    format!(
        "\n  Foregate demo\n\
         \n  gate    {gate}   in front of {upstream}\
         \n  admin   {admin}   token: {token}\
         \n  config  {}   (edit it: it is reloaded)\n\
         \n  1. Through the gate:\
         \n       curl -k {gate}/\n\
         \n  2. Ask too often: 200, then 429 (limited), after some seconds 403 (blocked), then 000 (closed at accept):\
         \n       for i in $(seq 600); do curl -sk -o /dev/null -w '%{{http_code}} ' {by_address}/; sleep 0.01; done\n\
         \n  3. See the block, and lift it (the limit itself refills at one request every two seconds):\
         \n       curl -H 'Authorization: Bearer {token}' {admin}/api/infrastructure/ddos/blocks\
         \n       curl -X POST -H 'Authorization: Bearer {token}' {admin}/api/infrastructure/ddos/unblock/127.0.0.1\
         \n     or in a browser: {admin}/\n\n",
        path.display()
    )
}
