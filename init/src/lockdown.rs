//! Giving up rights, for PID 1 and the payload alike.
//!
//! Invariant: each function either did all of its step, as the kernel says when asked again, or fails.

use rustix::process::{Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, no_new_privs, set_capabilities, set_no_new_privs};

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
const OF_SEVERAL_IDS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// What PID 1 has there: a signal that it passes on may be for a process of another id.
const OF_THEIR_INIT: CapabilitySet = CapabilitySet::KILL;

/// The capabilities of the payload: none, but for root of a box with several ids.
pub(crate) fn of_payload(ids: Ids) -> CapabilitySet {
    match ids {
        Ids::One => CapabilitySet::empty(),
        Ids::Several => OF_SEVERAL_IDS,
    }
}

/// Those of the processes that stay beside it: PID 1 and the host of a guest.
pub(crate) fn of_init(ids: Ids) -> CapabilitySet {
    match ids {
        Ids::One => CapabilitySet::empty(),
        Ids::Several => OF_THEIR_INIT,
    }
}

/// Empties the inheritable and ambient sets, and the bounding set but for what the payload keeps: no exec gives a capability
/// back (CVE-2025-27612).
pub(crate) fn drop_bounding_set(ids: Ids) -> Result<(), Failure> {
    let at = Step::DropBoundingSet;
    agentd_sys::process::drop_bounding_set(of_payload(ids).bits()).at(at, "bounding")?;
    // The ambient set is part of the inheritable one (capabilities(7)): it is empty with it.
    let sets = capabilities(None).at(at, "capget")?;
    set(CapabilitySets { inheritable: CapabilitySet::empty(), ..sets }, at)
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

/// Empties the effective, permitted and inheritable sets but for `kept`, which stays effective and permitted. What a newer
/// kernel has goes as well.
pub(crate) fn clear_capabilities(kept: CapabilitySet) -> Result<(), Failure> {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set(sets, Step::ClearCapabilities)
}

fn set(sets: CapabilitySets, at: Step) -> Result<(), Failure> {
    set_capabilities(None, sets).at(at, "capset")?;
    let left = capabilities(None).at(at, "capget")?;
    if left == sets { Ok(()) } else { Err(Failure::new(at, "capget", libc::EPERM)) }
}
