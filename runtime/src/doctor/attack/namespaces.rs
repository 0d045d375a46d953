//! Namespaces without a box in them: the place where what asks for a capability, or for somebody else's process, can work.
//!
//! Invariant: nothing of the host can be changed from here but what the user could change without any of this, and the
//! words that are tried here change nothing (see [`agentd_attacks`]).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use agentd_init::report::{self, Report};
use agentd_init::step::{Failure, Step};
use agentd_profiles::BuiltIn;
use agentd_sys::channel;
use agentd_sys::process::{BOX_NAMESPACES, Cloned, NamespaceFlags, clone, drop_bounding_set, exit_now};
use rustix::event::Timespec;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, WaitOptions, getegid, geteuid, pidfd_send_signal,
    set_dumpable_behavior, set_parent_process_death_signal, waitid, waitpid,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use super::super::trial::{Reached, listen};
use super::place::{Place, encode};
use super::walls::Wall;

const NEW_PID: NamespaceFlags = libc::CLONE_NEWPID as NamespaceFlags;
const NEW_NET: NamespaceFlags = libc::CLONE_NEWNET as NamespaceFlags;

/// An attempt in such a place.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) place: Place,
    pub(super) standing: &'a [Wall],
    pub(super) word: &'a str,
}

impl Attempt<'_> {
    /// Makes it, and waits for the end of who made it. The doctor's end of the channel, `ours`, comes back.
    pub(super) fn reach(&self, ours: OwnedFd, theirs: OwnedFd, patience: &Timespec) -> (OwnedFd, Reached) {
        let kept = if self.has_pids() { BOX_NAMESPACES } else { BOX_NAMESPACES & !NEW_PID };
        // Both ids are other ones inside, until they are mapped.
        let ids = [geteuid().as_raw(), getegid().as_raw()];
        let ((hear, tell), cloned) = match channel::pair().and_then(|pair| Ok((pair, clone(kept | NEW_NET)?))) {
            Ok(made) => made,
            Err(error) => return (ours, Reached::Refused(error)),
        };
        match cloned {
            Cloned::Child => {
                // A process that waits for their closing must not hold them.
                drop((hear, ours));
                let report = self.keep(ids, theirs).unwrap_or_else(|error| {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    Report::Failed(Failure { step: Step::MakePrivate, object: "bare namespaces".into(), errno })
                });
                // A doctor that is gone hears nothing, and this process is about to be killed.
                report::send(&tell, &report, None).unwrap_or_default();
                exit_now(0)
            }
            Cloned::Parent { pidfd, .. } => {
                drop((tell, theirs));
                let reached = listen(&hear, patience);
                // It ends by itself unless it hangs.
                pidfd_send_signal(&pidfd, Signal::KILL).unwrap_or_default();
                let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
                (ours, ended.map_or(Reached::Silent, |_status| reached))
            }
        }
    }

    fn has_pids(&self) -> bool {
        self.place == Place::Namespaces || self.standing.contains(&Wall::PidNamespace)
    }

    /// The first process there: puts up the walls that are its own, and sees the attempt through.
    fn keep(&self, [uid, gid]: [u32; 2], channel: OwnedFd) -> io::Result<Report> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        if self.has_pids() {
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
            mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
        }
        if self.standing.contains(&Wall::NoCapabilities) {
            drop_bounding_set(0)?;
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
        }
        let behavior = if self.standing.contains(&Wall::NotDumpable) {
            DumpableBehavior::NotDumpable
        } else {
            DumpableBehavior::Dumpable
        };
        set_dumpable_behavior(behavior)?;
        match clone(0)? {
            Cloned::Child => {
                // What it could not say is seen from there being no answer.
                self.attempt(channel).unwrap_or_default();
                exit_now(0)
            }
            Cloned::Parent { pid, .. } => {
                drop(channel);
                let status = waitpid(Some(pid), WaitOptions::empty())?.map_or(0, |(_pid, status)| status.as_raw());
                Ok(Report::Exited { status, empty: self.has_pids() })
            }
        }
    }

    fn attempt(&self, channel: OwnedFd) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::stdio::dup2_stdin(&channel)?;
        drop(channel);
        if self.standing.contains(&Wall::Seccomp) {
            set_no_new_privs(true)?;
            agentd_sys::seccomp::load(agentd_profiles::seccomp(BuiltIn::Default))?;
        }
        let result = agentd_attacks::attempt(self.word).map_err(io::Error::other)?;
        channel::send(rustix::stdio::stdin(), &encode(&result), None)
    }
}
