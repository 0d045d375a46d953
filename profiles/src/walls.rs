//! What the rules of a payload's profile may not undo: that namespaces are made only where the profile says so.
//!
//! This guards its author against mistakes, by the flags that programs use; Landlock's file rules are there wherever
//! [`crate::Namespaces`] does not allow namespaces, whatever the rules let through.

use crate::evaluate::{Call, verdict};
use crate::profile::Profile;
use crate::rule::{Arch, Verdict};

/// Rules that contradict `[namespaces]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WallError {
    /// A call makes namespaces all the same.
    #[error(
        "the rules let {syscall} make a user namespace, and [namespaces] does not allow it; set `allow = true` there, or refuse the call"
    )]
    Hole {
        /// The call.
        syscall: &'static str,
    },
    /// No call makes them.
    #[error(
        "[namespaces] allows them, and the rules refuse unshare and clone with CLONE_NEWUSER; extend `nested`, or set `allow = false`"
    )]
    Closed,
}

/// Calls that make a user namespace: name, numbers on `x86_64` and `aarch64`.
const MAKERS: [(&str, u32, u32); 3] = [("unshare", 272, 97), ("clone", 56, 220), ("clone3", 435, 435)];

/// What they are asked with: alone, with a mount namespace, with every namespace, and for `clone` with an exit signal.
const FLAGS: [u64; 4] = [0x1000_0000, 0x1002_0000, 0x7e02_0000, 0x1000_0011];

/// Whether the rules do what `[namespaces]` says.
pub(crate) fn check(profile: &Profile, arch: Arch) -> Result<(), WallError> {
    let mut open = MAKERS.into_iter().filter(|(_, x86_64, aarch64)| {
        let nr = match arch {
            Arch::X86_64 => *x86_64,
            Arch::Aarch64 => *aarch64,
        };
        FLAGS.into_iter().any(|flags| {
            let call = Call { arch: arch.audit_word(), nr, args: [flags, 0, 0, 0, 0, 0] };
            verdict(&profile.seccomp, arch, &call) == Verdict::Allow
        })
    });
    match (open.next(), profile.namespaces.allowed) {
        (Some((syscall, ..)), false) => Err(WallError::Hole { syscall }),
        (None, true) => Err(WallError::Closed),
        _ => Ok(()),
    }
}
