//! Giving up rights, for PID 1 and the payload alike.
//!
//! Invariant: each function either did all of its step, as the kernel says when asked again, or fails.

use caps::CapSet;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{no_new_privs, set_no_new_privs};

use crate::plan::{BoxPlan, LimitedResource};
use crate::step::{At, Failure, Step};

/// Resource limits.
pub(crate) fn limits(plan: &BoxPlan) -> Result<(), Failure> {
    for limit in &plan.limits {
        let (resource, name) = match limit.resource {
            LimitedResource::Core => (Resource::Core, "core"),
            LimitedResource::OpenFiles => (Resource::Nofile, "open files"),
            LimitedResource::Processes => (Resource::Nproc, "processes"),
        };
        setrlimit(resource, Rlimit { current: limit.soft, maximum: limit.hard }).at(Step::SetLimits, name)?;
    }
    Ok(())
}

/// Empties the bounding, inheritable and ambient sets: no exec gives a capability back (CVE-2025-27612).
pub(crate) fn drop_bounding_set() -> Result<(), Failure> {
    let at = Step::DropBoundingSet;
    // Not by the caps crate: it drops the 41 it knows, and a newer kernel's must go as well.
    agentd_sys::process::drop_bounding_set().at(at, "bounding")?;
    // The ambient set is part of the inheritable one (capabilities(7)): it is empty with it.
    clear(CapSet::Inheritable, at, "inheritable")
}

/// Sets `no_new_privs` and reads it back.
pub(crate) fn no_new_privileges() -> Result<(), Failure> {
    let at = Step::NoNewPrivileges;
    set_no_new_privs(true).at(at, "PR_SET_NO_NEW_PRIVS")?;
    if no_new_privs().at(at, "PR_GET_NO_NEW_PRIVS")? {
        Ok(())
    } else {
        Err(Failure::new(at, "PR_GET_NO_NEW_PRIVS", libc::EPERM))
    }
}

/// Empties the effective and permitted sets: the last capabilities of this process are gone.
pub(crate) fn clear_capabilities() -> Result<(), Failure> {
    let at = Step::ClearCapabilities;
    clear(CapSet::Effective, at, "effective")?;
    clear(CapSet::Permitted, at, "permitted")
}

fn clear(set: CapSet, at: Step, name: &str) -> Result<(), Failure> {
    // The crate's errors are text; what can go wrong here is EPERM and nothing else (capset(2), prctl(2)).
    caps::clear(None, set).map_err(|_text| Failure::new(at, name, libc::EPERM))?;
    match caps::read(None, set) {
        Ok(left) if left.is_empty() => Ok(()),
        _ => Err(Failure::new(at, name, libc::EPERM)),
    }
}
