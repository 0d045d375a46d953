//! A box whose plan is not known yet: PID 1 in its namespaces, which makes the network and then waits to be briefed.
//!
//! Making namespaces takes a third of a start and depends on next to nothing, so that it goes on beside the planning
//! (docs/adr/0017).
//!
//! Invariant: a shell that is let go of is gone: its PID 1 ends with the channel, and with this process. Nothing of the user's
//! ever ran in it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use agentd_init::plan::Network;
use agentd_init::reaper::RELAYED;
use agentd_init::{Beginning, Secrets};
use agentd_sys::process::{BOX_NAMESPACES, CGROUP_NAMESPACE, Cloned, clone_into};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// What is to be a box.
#[derive(Debug)]
pub struct Shell {
    network: Network,
    /// A pidfd of PID 1.
    pub(crate) init: OwnedFd,
    pub(crate) channel: OwnedFd,
}

impl Shell {
    /// Clones PID 1, into `cgroup` where it is to have limits. It gets `secrets`; here they stay too.
    ///
    /// # Errors
    /// The errno of `clone3(2)`, or of the calls before it.
    pub fn new(network: Network, cgroup: Option<BorrowedFd<'_>>, secrets: &mut Secrets) -> io::Result<Self> {
        let (channel, inside) = agentd_sys::channel::pair()?;
        let namespaces = if cgroup.is_some() { BOX_NAMESPACES & !CGROUP_NAMESPACE } else { BOX_NAMESPACES };
        // They wait for PID 1 from its first instruction on; here they end the planning, as ever.
        let mut awaited: SigSet = RELAYED.iter().copied().collect();
        awaited.add(Signal::SIGCHLD);
        let before = awaited.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let cloned = match clone_into(namespaces, cgroup) {
            Ok(Cloned::Child) => {
                agentd_init::run(Beginning { channel: inside, network, secrets: std::mem::take(secrets) })
            }
            Ok(Cloned::Parent { pidfd, .. }) => Ok(pidfd),
            Err(error) => Err(error),
        };
        before.thread_set_mask()?;
        Ok(Shell { network, init: cloned?, channel })
    }

    /// Whether it can be a box with this network; it has no limits but the kernel's.
    pub(super) fn fits(&self, network: Network, has_limits: bool) -> bool {
        self.network == network && !has_limits
    }
}
