//! cgroup v2: would limits be enforced for this user here, and what would make it so?
//!
//! A run without limits needs none of it.

use super::Finding;
use crate::cgroup::{self, Limits, Place};

/// The limits that most jobs ask for.
const USUAL: Limits = Limits {
    memory: Some(1),
    memory_high: None,
    swap: None,
    milli_cpus: Some(1),
    cpu_weight: None,
    cpus: None,
    pids: Some(1),
    io: Vec::new(),
};

/// What this user may do with cgroups: the answer that a run with limits would get.
pub(super) fn examine() -> Finding {
    let subject = "cgroups";
    let flags = USUAL.flags();
    match cgroup::find(&USUAL) {
        Ok(Place::Below { directory }) => {
            Finding::ok(subject, format!("{flags} are enforced, in a cgroup below {}", directory.display()))
        }
        Ok(Place::Own { directory }) => {
            Finding::ok(subject, format!("{flags} are enforced: {} is delegated to this user", directory.display()))
        }
        Ok(Place::Scope { .. }) => {
            Finding::ok(subject, format!("{flags} are enforced, in a scope of the user's systemd"))
        }
        Err(cgroup::Unenforceable { why, remedy }) => {
            Finding::limited(subject, format!("no limit can be enforced: {why}"), remedy)
        }
    }
}
