//! Writing layers back to the disk where nobody waits for it (docs/adr/0006).
//!
//! Invariant: the process that does it holds nothing of the caller's but the descriptor it needs, so that a reader of the
//! caller's output sees its end; and it is no child of the caller, which may live as long as a job.

use std::io;
use std::os::fd::AsFd;

use agentd_rootfs::WriteBack;
use agentd_sys::descriptors::close_all_but;
use agentd_sys::process::{Cloned, clone, exit_now};
use rustix::process::{WaitId, WaitIdOptions, setsid, waitid};

use super::PlanError;

/// Finishes `write_back` in a process of its own.
///
/// # Errors
/// [`PlanError::WriteBack`]: there can be no such process.
pub(crate) fn apart(write_back: WriteBack) -> Result<(), PlanError> {
    let child = match clone(0).map_err(PlanError::WriteBack)? {
        Cloned::Child => match clone(0) {
            Ok(Cloned::Child) => exit_now(i32::from(detach(&write_back).and_then(|()| write_back.finish()).is_err())),
            // What is not done now is done with the next use of an image.
            Ok(Cloned::Parent { .. }) | Err(_) => exit_now(0),
        },
        Cloned::Parent { pidfd, .. } => pidfd,
    };
    waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED).map_err(|e| PlanError::WriteBack(e.into()))?;
    Ok(())
}

/// Out of the caller's session, with none of its descriptors.
fn detach(write_back: &WriteBack) -> io::Result<()> {
    setsid()?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    close_all_but(&mut [write_back.descriptor()])
}
