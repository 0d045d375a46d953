//! The Landlock ruleset: a second wall behind the mounts, in the kernel's access checks rather than its mount table.
//!
//! Invariant: every planned right is a hard requirement; a kernel that cannot enforce one ends the start.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;

use ::landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, RestrictSelfAttr, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::plan::{Landlock, LandlockRight, PathAccess, PathRight};
use crate::step::{At, Failure, Step};

const AT: Step = Step::Landlock;

/// The ABI that writes denials to the audit log, and has flags for that (Linux 6.15).
const LOG_FLAGS: u32 = 7;

/// Symbolic links on the way to a granted path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// The root is as the image and the plan made it.
    Followed,
    /// The payload may have made them: a path with one grants nothing.
    Refused,
}

/// Restricts the calling process, and every process it starts, to `plan`. `no_new_privs` must be set already.
///
/// # Errors
/// When the kernel cannot enforce all of it, or a granted path cannot be looked at.
pub fn restrict(plan: &Landlock, links: Links) -> Result<(), Failure> {
    let (files, scopes) = handled(&plan.rights);
    if files.is_empty() && scopes.is_empty() {
        // A profile with namespaces, on a kernel before 6.12: the plan says that nothing is enforced.
        return Ok(());
    }
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if !files.is_empty() {
        ruleset = ruleset.handle_access(files).map_err(|error| failure("file rights", &error))?;
    }
    if !scopes.is_empty() {
        ruleset = ruleset.scope(scopes).map_err(|error| failure("scopes", &error))?;
    }
    let mut ruleset = ruleset.create().map_err(|error| failure("ruleset", &error))?;
    for grant in &plan.paths {
        let Some((path, is_directory)) = open(&grant.path, links)? else { continue };
        let mut rights = rights(grant.access) & files;
        if !is_directory {
            // Every right that a file can have is among those of the newest ABI.
            rights &= AccessFs::from_file(ABI::V7);
        }
        if rights.is_empty() {
            continue;
        }
        ruleset = ruleset.add_rule(PathBeneath::new(path, rights)).map_err(|error| failure(&grant.path, &error))?;
    }
    if plan.abi >= LOG_FLAGS {
        // The machine's audit log belongs to its root: a payload could fill it by rulesets of its own (docs/denials.md).
        ruleset = ruleset.log_subdomains(false).map_err(|error| failure("log flags", &error))?;
    }
    let status = ruleset.restrict_self().map_err(|error| failure("landlock_restrict_self", &error))?;
    if status.ruleset == RulesetStatus::FullyEnforced && status.no_new_privs {
        Ok(())
    } else {
        Err(Failure::new(AT, format!("ABI {} is not fully enforced", plan.abi), libc::EOPNOTSUPP))
    }
}

/// What the kernel is to refuse where no rule grants it.
fn handled(rights: &[LandlockRight]) -> (BitFlags<AccessFs>, BitFlags<Scope>) {
    let (mut files, mut scopes) = (BitFlags::empty(), BitFlags::empty());
    for right in rights {
        match right {
            LandlockRight::Files => files |= AccessFs::from_all(ABI::V1),
            LandlockRight::Refer => files |= AccessFs::Refer,
            LandlockRight::Truncate => files |= AccessFs::Truncate,
            LandlockRight::Ioctl => files |= AccessFs::IoctlDev,
            LandlockRight::Signals => scopes |= Scope::Signal,
            LandlockRight::AbstractSockets => scopes |= Scope::AbstractUnixSocket,
        }
    }
    (files, scopes)
}

/// Making device nodes is in none of them.
fn rights(access: PathAccess) -> BitFlags<AccessFs> {
    access.rights().fold(BitFlags::empty(), |rights, right| {
        rights
            | match right {
                PathRight::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
                PathRight::Execute => AccessFs::Execute.into(),
                PathRight::Write => make_bitflags!(AccessFs::{WriteFile | Truncate}),
                PathRight::Create => {
                    make_bitflags!(AccessFs::{
                        MakeReg | MakeDir | MakeSym | MakeFifo | MakeSock | RemoveFile | RemoveDir | Refer
                    })
                }
                PathRight::Ioctl => AccessFs::IoctlDev.into(),
            }
    })
}

/// Opens a granted path and says whether it is a directory, which most are. A grant on what the root does not have grants
/// nothing.
fn open(path: &str, links: Links) -> Result<Option<(OwnedFd, bool)>, Failure> {
    let resolve = |kind| {
        let flags = OFlags::PATH | OFlags::CLOEXEC | kind;
        match links {
            Links::Followed => openat(CWD, path, flags, Mode::empty()),
            Links::Refused => openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS),
        }
    };
    let opened = match resolve(OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => resolve(OFlags::empty()).map(|file| (file, false)),
        directory => directory.map(|directory| (directory, true)),
    };
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP | Errno::NOTDIR) if links == Links::Refused => Ok(None),
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
