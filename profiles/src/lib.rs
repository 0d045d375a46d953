//! Policy as data: what a payload may ask of the kernel and which paths a profile grants, with a written reason for every rule, and the
//! compiler that turns rules into what the kernel takes.
//!
//! Invariant: nothing here does I/O. The built-in profiles are compiled when agentd is built; a start only hands finished arrays to the kernel.

mod assemble;
pub mod compile;
pub mod evaluate;
mod path;
mod rule;
/// Needed at run time once profiles can be read from files; until then by the build script and the tests only.
#[cfg(test)]
mod schema;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use assemble::AssembleError;
pub use path::{PathAccess, PathRule};
pub use rule::{Arch, Condition, Errno, SeccompRule, SeccompRules, Syscall, Test, Verdict};

/// Written by the build script from `profiles/*.toml`.
mod built_in {
    use std::borrow::Cow;

    use crate::{Arch, Condition, Errno, PathAccess, PathRule, SeccompRule, SeccompRules, Syscall, Test, Verdict};

    include!(concat!(env!("OUT_DIR"), "/built_in.rs"));
}

/// A profile that is part of agentd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuiltIn {
    /// For the payload.
    Default,
    /// For PID 1 once it has forked the payload.
    Init,
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BuiltIn::Default => "default",
            BuiltIn::Init => "init",
        })
    }
}

/// The architecture agentd was built for.
pub const NATIVE: Arch = built_in::NATIVE;

/// The compiled filter for this machine, as seccomp(2) takes it.
#[must_use]
pub fn seccomp(profile: BuiltIn) -> &'static [libc::sock_filter] {
    match profile {
        BuiltIn::Default => &built_in::DEFAULT_PROGRAM,
        BuiltIn::Init => &built_in::INIT_PROGRAM,
    }
}

/// The rules the filter was compiled from.
#[must_use]
pub fn rules(profile: BuiltIn) -> &'static SeccompRules {
    match profile {
        BuiltIn::Default => &built_in::DEFAULT_RULES,
        BuiltIn::Init => &built_in::INIT_RULES,
    }
}

/// What the profile itself grants below which path. Workspace, scratch, temporary directories, home and mounts are the job's to add.
#[must_use]
pub fn path_rules(profile: BuiltIn) -> &'static [PathRule] {
    match profile {
        BuiltIn::Default => &built_in::DEFAULT_PATHS,
        BuiltIn::Init => &built_in::INIT_PATHS,
    }
}
