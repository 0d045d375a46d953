//! The Landlock ruleset: a second wall behind the mounts, in the kernel's access checks rather than its mount table.
//!
//! Invariant: every right of the planned ABI is a hard requirement; a kernel that cannot enforce one ends the start.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;

use ::landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::plan::{Landlock, PathAccess};
use crate::step::{At, Failure, Step};

const AT: Step = Step::Landlock;

/// Restricts the calling process, and every process it starts, to `plan`.
pub(crate) fn restrict(plan: &Landlock) -> Result<(), Failure> {
    let abi = i32::try_from(plan.abi).map_or(ABI::Unsupported, ABI::from);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))
        .map_err(|error| failure("file rights", &error))?;
    if abi >= ABI::V6 {
        // Signals and abstract sockets of processes outside the box (abstract ones matter with the host's network).
        ruleset = ruleset.scope(Scope::from_all(abi)).map_err(|error| failure("scopes", &error))?;
    }
    let mut ruleset = ruleset.create().map_err(|error| failure("ruleset", &error))?;
    for grant in &plan.paths {
        let Some((path, is_directory)) = open(&grant.path)? else { continue };
        let mut rights = rights(grant.access, abi);
        if !is_directory {
            rights &= AccessFs::from_file(abi);
        }
        ruleset = ruleset.add_rule(PathBeneath::new(path, rights)).map_err(|error| failure(&grant.path, &error))?;
    }
    let status = ruleset.restrict_self().map_err(|error| failure("landlock_restrict_self", &error))?;
    if status.ruleset == RulesetStatus::FullyEnforced && status.no_new_privs {
        Ok(())
    } else {
        Err(Failure::new(AT, format!("ABI {} is not fully enforced", plan.abi), libc::EOPNOTSUPP))
    }
}

fn rights(access: PathAccess, abi: ABI) -> BitFlags<AccessFs> {
    let existing = make_bitflags!(AccessFs::{WriteFile | Truncate | IoctlDev});
    match access {
        PathAccess::ReadExecute => AccessFs::from_read(abi),
        PathAccess::WriteExisting => AccessFs::from_read(abi) | (existing & AccessFs::from_all(abi)),
        PathAccess::ReadWrite => AccessFs::from_all(abi),
    }
}

/// Opens a granted path and says whether it is a directory. A grant on what the root does not have grants nothing.
fn open(path: &str) -> Result<Option<(OwnedFd, bool)>, Failure> {
    match openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(opened) => {
            let stat = fstat(&opened).at(AT, path)?;
            Ok(Some((opened, FileType::from_raw_mode(stat.st_mode) == FileType::Directory)))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).at(AT, path),
    }
}

fn failure(object: &str, error: &(dyn Error + 'static)) -> Failure {
    let mut errno = libc::EOPNOTSUPP;
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            errno = error.raw_os_error().unwrap_or(errno);
        }
        source = error.source();
    }
    Failure::new(AT, object, errno)
}
