//! Parses the command line, reports the error chain, chooses the exit code.

use std::process::ExitCode;

/// Measured against glibc: see benches/README.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    foregate::cli::main()
}
