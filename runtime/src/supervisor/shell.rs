//! A box whose plan is not known yet: PID 1 in its namespaces, which makes the network and then waits to be briefed.
//!
//! Making namespaces takes a third of a start and depends on next to nothing, so that it goes on beside the planning
//! (docs/adr/0017).
//!
//! Invariant: a shell that is let go of is gone: its PID 1 ends with the channel, and with this process. Nothing of the user's
//! ever ran in it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use agentd_init::Beginning;
use agentd_init::plan::{Ids, Network};
use agentd_init::reaper::RELAYED;
use agentd_sys::process::{BOX_NAMESPACES, CGROUP_NAMESPACE, Cloned, clone_into};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::process::Pid;

use crate::launch::secrets::Values;

/// What is to be a box.
#[derive(Debug)]
pub struct Shell {
    network: Network,
    ids: Ids,
    /// PID 1, and a pidfd of it.
    pub(crate) pid: Pid,
    pub(crate) init: OwnedFd,
    pub(crate) channel: OwnedFd,
}

impl Shell {
    /// Clones PID 1, into `cgroup` where it is to have limits. It gets those of `secrets` that the box gets; here all stay.
    ///
    /// # Errors
    /// The errno of `clone3(2)`, or of the calls before it.
    pub fn new(network: Network, ids: Ids, cgroup: Option<BorrowedFd<'_>>, secrets: &mut Values) -> io::Result<Self> {
        let (channel, inside) = agentd_sys::channel::pair()?;
        let namespaces = if cgroup.is_some() { BOX_NAMESPACES & !CGROUP_NAMESPACE } else { BOX_NAMESPACES };
        // They wait for PID 1 from its first instruction on; here they end the planning, as ever.
        let mut awaited: SigSet = RELAYED.iter().copied().collect();
        awaited.add(Signal::SIGCHLD);
        agentd_sys::signal::hear_of_children()?;
        let before = awaited.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let cloned = match clone_into(namespaces, cgroup) {
            Ok(Cloned::Child) => {
                agentd_sys::memory::forget_environment();
                let Values { inside: secrets, keys } = std::mem::take(secrets);
                drop(keys);
                agentd_init::run(Beginning { channel: inside, network, ids, secrets })
            }
            Ok(Cloned::Parent { pid, pidfd }) => Ok((pid, pidfd)),
            Err(error) => Err(error),
        };
        before.thread_set_mask()?;
        let (pid, init) = cloned?;
        Ok(Shell { network, ids, pid, init, channel })
    }

    /// Whether it can be a box with this network and these ids; it has no limits but the kernel's.
    pub(super) fn fits(&self, network: Network, ids: Ids, has_limits: bool) -> bool {
        (self.network, self.ids) == (network, ids) && !has_limits
    }
}
