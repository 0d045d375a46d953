//! Giving up rights, for PID 1 and the payload alike.
//!
//! Invariant: each function either did all of its step, as the kernel says when asked again, or fails.

use caps::{CapSet, Capability, CapsHashSet};
use rustix::process::{Rlimit, setrlimit};
use rustix::thread::{no_new_privs, set_no_new_privs};

use crate::plan::{Ids, Limit};
use crate::step::{At, Failure, Step};

/// Resource limits.
pub(crate) fn limits(limits: &[Limit]) -> Result<(), Failure> {
    for limit in limits {
        let (resource, name) = limit.resource.names();
        setrlimit(resource, Rlimit { current: limit.soft, maximum: limit.hard }).at(Step::SetLimits, name)?;
    }
    Ok(())
}

/// What root of a box with several ids has: to give files to them, to act as the owner of theirs, to become one of them and
/// to stop their processes (docs/adr/0021). Each holds over the ids of the box's map and nothing else.
const OF_SEVERAL_IDS: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// What PID 1 has there: a signal that it passes on may be for a process of another id.
const OF_THEIR_INIT: [Capability; 1] = [Capability::CAP_KILL];

/// The capabilities of the payload: none, but for root of a box with several ids.
pub(crate) fn of_payload(ids: Ids) -> &'static [Capability] {
    match ids {
        Ids::One => &[],
        Ids::Several => &OF_SEVERAL_IDS,
    }
}

/// Those of the processes that stay beside it: PID 1 and the host of a guest.
pub(crate) fn of_init(ids: Ids) -> &'static [Capability] {
    match ids {
        Ids::One => &[],
        Ids::Several => &OF_THEIR_INIT,
    }
}

/// Empties the inheritable and ambient sets, and the bounding set but for what the payload keeps: no exec gives a capability
/// back (CVE-2025-27612).
pub(crate) fn drop_bounding_set(ids: Ids) -> Result<(), Failure> {
    let at = Step::DropBoundingSet;
    let keep = of_payload(ids).iter().fold(0, |keep, capability| keep | (1 << capability.index()));
    // Not by the caps crate: it drops the 41 it knows, and a newer kernel's must go as well.
    agentd_sys::process::drop_bounding_set(keep).at(at, "bounding")?;
    // The ambient set is part of the inheritable one (capabilities(7)): it is empty with it.
    set(CapSet::Inheritable, &[], at, "inheritable")
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

/// Empties the effective and permitted sets but for `kept`.
pub(crate) fn clear_capabilities(kept: &[Capability]) -> Result<(), Failure> {
    let at = Step::ClearCapabilities;
    set(CapSet::Effective, kept, at, "effective")?;
    set(CapSet::Permitted, kept, at, "permitted")
}

fn set(set: CapSet, to: &[Capability], at: Step, name: &str) -> Result<(), Failure> {
    let to: CapsHashSet = to.iter().copied().collect();
    // The crate's errors are text; what can go wrong here is EPERM and nothing else (capset(2), prctl(2)).
    caps::set(None, set, &to).map_err(|_text| Failure::new(at, name, libc::EPERM))?;
    match caps::read(None, set) {
        Ok(left) if left == to => Ok(()),
        _ => Err(Failure::new(at, name, libc::EPERM)),
    }
}
