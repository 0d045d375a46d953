//! The box's network namespace: nothing in it but `lo`.

use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};

use crate::mounts;
use crate::step::{At, Failure, Step};

/// Moves the calling process into a new network namespace; gives a /sys that shows it, not mounted anywhere yet.
pub(crate) fn make() -> Result<OwnedFd, Failure> {
    let at = Step::MakeNetwork;
    unshare(CloneFlags::CLONE_NEWNET).at(at, "network namespace")?;
    agentd_sys::loopback::bring_up().at(at, "lo")?;
    mounts::fresh_sys().at(at, "sysfs")
}
