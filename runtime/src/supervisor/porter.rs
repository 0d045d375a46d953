//! The way into a job's cgroup for a command of `agentd exec` whose caller is in another and may not start a process there.
//!
//! The kernel lets only those do so who may write to the lowest cgroup that is above both, the one they are in and the one
//! they start a process in (cgroup-v2.rst, "Delegation Containment"). Out of a login session nobody but root gets into what
//! systemd has given to a unit. The job's supervisor is beside the job's cgroup, so it starts the porter:
//!
//! ```text
//! agentd exec ── a channel ──► supervisor ── fork, exec ──► porter ── clone into the cgroup ──► usher (agentd_init::guest)
//!      └───────── plan, streams, cgroup, namespaces, over that channel ──►┘
//! ```
//!
//! Invariant: the porter is this program anew and not a clone of the supervisor: it holds none of the job's secrets and
//! nothing open but the channel. What it is told comes from the job's user, never from a box.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use agentd_init::brief;
use agentd_init::guest::{self, Descriptors, Joined};
use agentd_init::plan::BoxPlan;
use agentd_init::report::{self, Report};
use agentd_init::step::{Failure, Step};
use agentd_sys::channel::{self, Message};
use agentd_sys::process::{Cloned, clone_into};
use rustix::process::{Signal, WaitId, WaitIdOptions, set_parent_process_death_signal, waitid};

use super::FAILED;
use super::guest::NAMESPACES;

/// What the program is called when it is to be the porter.
pub const NAME: &str = "agentd-porter";

/// Porters at once; one is there for as long as it takes to enter a box.
const MOST: usize = 32;

/// Those that the supervisor has started.
#[derive(Debug, Default)]
pub(super) struct Porters(Vec<Child>);

impl Porters {
    /// Starts one, with a caller's channel.
    pub(super) fn start(&mut self, channel: Option<OwnedFd>) -> Result<(), String> {
        let channel = channel.ok_or("no channel came along")?;
        if self.0.len() >= MOST {
            return Err("too many commands are about to enter the box; try again".into());
        }
        let mut porter = Command::new("/proc/self/exe");
        porter.arg0(NAME).env_clear().current_dir("/");
        porter.stdin(channel).stdout(Stdio::null()).stderr(Stdio::null());
        let porter = porter.spawn().map_err(|error| format!("cannot start a process beside it: {error}"))?;
        self.0.push(porter);
        Ok(())
    }

    /// Lets go of those that have ended.
    pub(super) fn reap(&mut self) {
        // What cannot be waited for is not there.
        self.0.retain_mut(|porter| matches!(porter.try_wait(), Ok(None)));
    }
}

/// Tells the porter at the other end of `channel` what the caller would have done itself. Without a `leaf` the command begins
/// in the supervisor's cgroup.
///
/// # Errors
/// The errno of `memfd_create(2)`, `write(2)` or `sendmsg(2)`.
pub(super) fn send(
    channel: &OwnedFd,
    plan: &BoxPlan,
    stdio: [BorrowedFd<'_>; 3],
    leaf: Option<BorrowedFd<'_>>,
    namespaces: &[Joined],
) -> io::Result<()> {
    let told = || {
        brief::send(channel, plan, stdio)?;
        channel::send(channel.as_fd(), b"L", leaf)?;
        for Joined { descriptor, name, .. } in namespaces {
            channel::send(channel.as_fd(), name.as_bytes(), Some(descriptor.as_fd()))?;
        }
        brief::release(channel)
    };
    match told() {
        // It has failed and is gone; why is in the channel.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        told => told,
    }
}

/// What [`send`] tells.
struct Told {
    plan: BoxPlan,
    stdio: [OwnedFd; 3],
    leaf: Option<OwnedFd>,
    namespaces: Vec<Joined>,
}

fn hear(channel: &OwnedFd) -> io::Result<Told> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let next = || channel::receive(channel)?.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe));
    let (plan, stdio) = brief::receive(channel)?;
    let leaf = next()?.descriptor;
    let mut namespaces = Vec::new();
    while let Message { bytes, descriptor: Some(descriptor) } = next()? {
        let known = NAMESPACES.iter().find(|(name, _)| name.as_bytes() == bytes);
        let (name, kind) = *known.filter(|_| namespaces.len() < NAMESPACES.len()).ok_or_else(invalid)?;
        namespaces.push(Joined { descriptor, kind, name });
    }
    Ok(Told { plan, stdio, leaf, namespaces })
}

/// The porter; gives its exit code. The channel is its standard input.
#[must_use]
pub fn run() -> u8 {
    let Err(failure) = carry() else { return 0 };
    // If the caller is gone, there is nobody to tell.
    report::send(rustix::stdio::stdin(), &Report::Failed(failure), None).unwrap_or_default();
    FAILED
}

fn carry() -> Result<(), Failure> {
    let at = |step, object: &'static str| {
        move |error: io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            Failure { step, object: object.to_owned(), errno }
        }
    };
    let begin = || {
        // A caller that is stopped must not keep it here when the job and its supervisor are gone.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // 0 will be the command's.
        let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        Ok((hear(&channel)?, channel))
    };
    let (Told { plan, stdio, leaf, namespaces }, channel) = begin().map_err(at(Step::HearPlan, "agentd exec"))?;
    match clone_into(0, leaf.as_ref().map(AsFd::as_fd)).map_err(at(Step::JoinBox, "the job's cgroup"))? {
        Cloned::Child => guest::run(&plan, namespaces, Descriptors { channel, stdio }),
        Cloned::Parent { pidfd, .. } => {
            // What it has to say it says itself.
            waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).map(drop).unwrap_or_default();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::doctor::trial;
    use proptest::prelude::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn namespaces() -> Vec<Joined> {
        let joined = |(name, kind)| Joined { descriptor: null(), kind, name };
        NAMESPACES.into_iter().map(joined).collect()
    }

    #[test]
    fn what_is_told_is_heard() {
        let (ours, theirs) = channel::pair().unwrap();
        let (plan, null) = (trial::least(), null());
        send(&ours, &plan, [null.as_fd(); 3], Some(null.as_fd()), &namespaces()).unwrap();
        let told = hear(&theirs).unwrap();
        assert!(told.plan == plan && told.leaf.is_some());
        let names: Vec<&str> = told.namespaces.iter().map(|joined| joined.name).collect();
        assert_eq!(names, ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"]);
    }

    #[test]
    fn a_porter_that_is_gone_has_told_why_itself() {
        let (ours, theirs) = channel::pair().unwrap();
        drop(theirs);
        let null = null();
        send(&ours, &trial::least(), [null.as_fd(); 3], None, &namespaces()).unwrap();
    }

    proptest! {
        #[test]
        fn whatever_follows_a_plan_is_taken_or_refused(
            messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..9), any::<bool>()), 0..12),
            named in 0_usize..12,
        ) {
            let (ours, theirs) = channel::pair().unwrap();
            let null = null();
            brief::send(&ours, &trial::least(), [null.as_fd(); 3]).unwrap();
            channel::send(ours.as_fd(), b"L", Some(null.as_fd())).unwrap();
            for _ in 0..named {
                channel::send(ours.as_fd(), b"net", Some(null.as_fd())).unwrap();
            }
            for (bytes, has_descriptor) in &messages {
                channel::send(ours.as_fd(), bytes, has_descriptor.then_some(null.as_fd())).unwrap();
            }
            drop(ours);
            let heard = hear(&theirs);
            let is_ended = messages.first().is_some_and(|(_, has_descriptor)| !has_descriptor);
            if named > NAMESPACES.len() || messages.is_empty() {
                prop_assert!(heard.is_err());
            } else if is_ended {
                prop_assert_eq!(heard.unwrap().namespaces.len(), named);
            }
        }
    }
}
