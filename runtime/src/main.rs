//! The `agentd` program.

use std::process::ExitCode;

/// musl's own allocator asks the kernel for every other page of a start.
#[cfg(target_env = "musl")]
#[global_allocator]
static HEAP: agentd_sys::heap::Heap = agentd_sys::heap::Heap::new();

fn main() -> ExitCode {
    agentd_runtime::cli::main()
}
