//! Parses the command line, reports the error chain, chooses the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    foregate::cli::main()
}
