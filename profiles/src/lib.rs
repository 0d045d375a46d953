//! Policy as data: what a payload may ask of the kernel and which paths a profile grants, with a written reason for every rule, and the
//! compiler that turns rules into what the kernel takes.
//!
//! Invariant: nothing here does I/O. The built-in profiles are compiled when agentd is built; a start with one of them only hands finished
//! arrays to the kernel.

mod assemble;
pub mod compile;
mod digest;
pub mod evaluate;
mod fake_root;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod learn;
mod notify;
mod path;
mod profile;
mod rule;
mod schema;
mod tighten;
mod walls;
mod write;

// The modules of tests that the fuzz targets share name the crate from outside.
#[cfg(feature = "fuzzing")]
extern crate self as agentd_profiles;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use assemble::AssembleError;
pub use digest::digest;
pub use fake_root::{FAKE_ROOT, fake_root, fake_root_seccomp};
pub use learn::Lessons;
pub use notify::{asking, notifying};
pub use path::{LandlockRight, MayMiss, PathAccess, PathRight, PathRule, Place};
pub use profile::{MissingRight, Namespaces, Profile};
pub use rule::{Arch, Condition, Errno, SeccompRule, SeccompRules, Syscall, Test, Verdict};
pub use schema::{MAX_BYTES, Problem, SchemaError};
pub use tighten::tighten;
pub use walls::WallError;

/// Written by the build script from `profiles/*.toml`.
mod built_in {
    use std::borrow::Cow;

    use crate::{
        Arch, Condition, Errno, LandlockRight, MayMiss, Namespaces, PathAccess, PathRule, Place, Profile, SeccompRule,
        SeccompRules, Syscall, Test, Verdict,
    };

    include!(concat!(env!("OUT_DIR"), "/built_in.rs"));
}

/// A profile that is part of agentd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuiltIn {
    /// For payloads: agents with their tools.
    Default,
    /// For payloads that need less.
    Strict,
    /// For payloads that make sandboxes of their own.
    Nested,
    /// For PID 1 once it has forked the payload.
    Init,
    /// For the network broker.
    Broker,
}

impl BuiltIn {
    /// Those that a payload can have.
    pub const FOR_PAYLOADS: [Self; 3] = [Self::Default, Self::Strict, Self::Nested];

    /// The profile for payloads of that name.
    #[must_use]
    pub fn for_payloads(name: &str) -> Option<Self> {
        Self::FOR_PAYLOADS.into_iter().find(|built_in| profile(*built_in).name == name)
    }
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&profile(*self).name)
    }
}

/// The architecture agentd was built for.
pub const NATIVE: Arch = built_in::NATIVE;

/// The compiled filter for this machine, as seccomp(2) takes it.
#[must_use]
pub fn seccomp(profile: BuiltIn) -> &'static [libc::sock_filter] {
    match profile {
        BuiltIn::Default => &built_in::DEFAULT_PROGRAM,
        BuiltIn::Strict => &built_in::STRICT_PROGRAM,
        BuiltIn::Nested => &built_in::NESTED_PROGRAM,
        BuiltIn::Init => &built_in::INIT_PROGRAM,
        BuiltIn::Broker => &built_in::BROKER_PROGRAM,
    }
}

/// [`digest`] of a built-in profile with its filter, made when agentd was built: hashing is slow in a process that has just
/// begun (docs/benchmarks.md).
#[must_use]
pub fn built_in_digest(profile: BuiltIn) -> &'static str {
    match profile {
        BuiltIn::Default => built_in::DEFAULT_DIGEST,
        BuiltIn::Strict => built_in::STRICT_DIGEST,
        BuiltIn::Nested => built_in::NESTED_DIGEST,
        BuiltIn::Init => built_in::INIT_DIGEST,
        BuiltIn::Broker => built_in::BROKER_DIGEST,
    }
}

/// The profile that the filter was compiled from.
#[must_use]
pub fn profile(profile: BuiltIn) -> &'static Profile {
    match profile {
        BuiltIn::Default => &built_in::DEFAULT,
        BuiltIn::Strict => &built_in::STRICT,
        BuiltIn::Nested => &built_in::NESTED,
        BuiltIn::Init => &built_in::INIT,
        BuiltIn::Broker => &built_in::BROKER,
    }
}

/// The profile that `text` describes, completed with the built-in one it may extend.
///
/// # Errors
/// When the text is not a profile: with the line.
pub fn parse(text: &str) -> Result<Profile, SchemaError> {
    schema::parse(text, &BuiltIn::FOR_PAYLOADS.map(profile))
}

/// The system call of that name, on the architectures that have it.
#[must_use]
pub fn syscall(name: &str) -> Option<Syscall> {
    schema::syscall(name)
}

/// Text that is no profile, or a profile that has no filter.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No profile.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// No filter.
    #[error(transparent)]
    Compile(#[from] compile::CompileError),
    /// A filter that has a hole where the profile says there is a wall.
    #[error(transparent)]
    Wall(#[from] WallError),
}

/// A payload's profile from untrusted text and its filter for `arch`: everything that can be wrong with a file is found here.
///
/// # Errors
/// The first thing that is wrong.
pub fn load(text: &str, arch: Arch) -> Result<(Profile, Vec<libc::sock_filter>), ProfileError> {
    let profile = parse(text)?;
    let program = compile::compile(&profile.seccomp, arch)?;
    walls::check(&profile, arch)?;
    Ok((profile, program))
}
