//! Foregate, nginx and HAProxy side by side: `make bench-peers`, explained in `benches/README.md`.
//!
//! Each subject does the same job on a core of its own: TLS with the same certificate, two limits per client, the same
//! headers added, connections to the upstream kept. This program is both the load and the upstream, on the other core.
//! What counts is what a request costs the *subject*, from the kernel's accounting of its processes: that figure does
//! not depend on how fast this program is, as a figure in requests per second would.
//!
//! Every trial starts its subject anew, so no trial inherits the heap of another, and subjects alternate, so whatever
//! else the machine does falls on all of them alike. A trial in which a single answer is not the expected one is void.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its table")]
#![expect(
    clippy::disallowed_methods,
    reason = "measures real time, and starts the programs that it compares"
)]

mod accounting;
mod blocked;
mod certificate;
mod client;
mod configuration;
mod load;
mod machine;
mod row;
mod settings;
mod subject;
mod syscalls;
mod table;
mod trial;
mod upstream;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use self::row::Row;
use self::settings::Settings;
use self::subject::Subject;
use self::table::Results;
use self::trial::Bench;

/// Around the table in `benches/README.md`.
const TABLE_BEGIN: &str = "<!-- peers: begin -->";
const TABLE_END: &str = "<!-- peers: end -->";

fn main() -> anyhow::Result<ExitCode> {
    let settings = Settings::from_environment()?;
    machine::raise_file_limit()?;
    machine::move_to_load_core()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let scope = tokio::task::LocalSet::new();
    let results = runtime.block_on(scope.run_until(run(&settings)))?;
    let text = format!("{}\n{results}", machine::description(&settings)?);
    print!("{text}");
    if let Some(page) = &settings.page {
        record(page, &text)?;
    }
    Ok(if results.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn run(settings: &Settings) -> anyhow::Result<Results> {
    let bench = Bench::prepare(settings)?;
    let mut results = Results::default();
    for row in Row::ALL.into_iter().filter(|row| settings.wants(*row)) {
        for round in 0..settings.rounds {
            // Nobody is always the one who runs after the same neighbour.
            let mut order = Subject::ALL;
            order.rotate_left(round % Subject::ALL.len());
            for subject in order {
                let outcome = bench.trial(row, subject).await;
                eprintln!(
                    "{} {}/{} {subject}: {}",
                    row.key(),
                    round + 1,
                    settings.rounds,
                    told(&outcome)
                );
                results.add(row, round, subject, outcome);
            }
        }
    }
    bench.finish().context("the upstream did not stop")?;
    Ok(results)
}

/// Puts the table where the last one stands.
fn record(page: &Path, table: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let (before, rest) = text
        .split_once(TABLE_BEGIN)
        .context("the page has no place for the table")?;
    let (_, after) = rest.split_once(TABLE_END).context("the page's table has no end")?;
    fs::write(page, format!("{before}{TABLE_BEGIN}\n{table}{TABLE_END}{after}"))?;
    Ok(())
}

fn told(outcome: &anyhow::Result<trial::Sample>) -> String {
    match outcome {
        Ok(sample) => sample.to_string(),
        Err(error) => format!("void: {error:#}"),
    }
}
