//! The `agentd` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    agentd_runtime::cli::main()
}
