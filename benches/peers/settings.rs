//! What the environment says about a run.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::row::Row;

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) foregate: PathBuf,
    /// How long one trial puts load on its subject.
    pub(super) duration: Duration,
    pub(super) rounds: usize,
    /// Idle connections whose memory is measured.
    pub(super) connections: usize,
    /// Distinct clients whose memory is measured.
    pub(super) clients: u32,
    /// Size of an ordinary answer.
    pub(super) body_bytes: usize,
    /// The page whose table is to be replaced by the one of this run.
    pub(super) page: Option<PathBuf>,
    rows: Option<Vec<String>>,
}

impl Settings {
    pub(super) fn from_environment() -> anyhow::Result<Self> {
        let settings = Self {
            foregate: read("FOREGATE_BIN")?.unwrap_or_else(|| PathBuf::from("target/release/foregate")),
            duration: Duration::from_secs_f64(read("PEERS_SECONDS")?.unwrap_or(2.0)),
            rounds: read("PEERS_ROUNDS")?.unwrap_or(7),
            connections: read("PEERS_CONNECTIONS")?.unwrap_or(5_000),
            clients: read("PEERS_CLIENTS")?.unwrap_or(200_000),
            body_bytes: read("PEERS_BODY")?.unwrap_or(512),
            page: read("PEERS_PAGE")?,
            rows: read::<String>("PEERS_ROWS")?.map(|rows| rows.split(',').map(str::to_owned).collect()),
        };
        ensure!(settings.rounds > 0, "PEERS_ROUNDS must be at least 1");
        ensure!(
            settings.foregate.is_file(),
            "there is no gate at {}: build it with `cargo build --release`, or name one in FOREGATE_BIN",
            settings.foregate.display()
        );
        for name in settings.rows.iter().flatten() {
            if !Row::ALL.iter().any(|row| row.key() == name) {
                let known: Vec<_> = Row::ALL.iter().map(|row| row.key()).collect();
                bail!("PEERS_ROWS names {name:?}; there are {}", known.join(", "));
            }
        }
        Ok(settings)
    }

    pub(super) fn wants(&self, row: Row) -> bool {
        self.rows
            .as_ref()
            .is_none_or(|rows| rows.iter().any(|name| name == row.key()))
    }
}

fn read<T>(name: &str) -> anyhow::Result<Option<T>>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(name) {
        Ok(value) => Ok(Some(value.parse().with_context(|| format!("{name}={value:?}"))?)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).context(name.to_owned()),
    }
}
