//! The `agentd` program.

use std::process::ExitCode;

/// musl's own allocator asks the kernel for every other page of a start.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    agentd_runtime::cli::main()
}
