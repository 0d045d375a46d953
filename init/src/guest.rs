//! A guest: a command that is started in a box that runs (`agentd exec`), from outside.
//!
//! ```text
//! agentd exec ── clone ──► usher ── joins the namespaces, gives rights up, fork ──► (dies at once)
//!      ▲                                                                             └─ fork ─► host, a child of PID 1
//!      └──────────────── reports, over a channel ◄───────────────────────────────────────────┘   └─ fork ─► the command
//! ```
//!
//! The process that stays in the box has PID 1 for its parent, as every other one there: a box whose PID 1 has no child is
//! empty (docs/adr/0008), and its end does not wait for an `agentd exec` that somebody has stopped.
//!
//! Invariant: until its exec nothing of the guest can be traced, read or opened by the payload: it is not dumpable, and its
//! memory belongs to the host's user namespace (ptrace(2); CVE-2019-5736 and its kind). Before it enters any namespace
//! every descriptor but 0, 1, 2 and those it needs is closed, and those are pipes made for it (CVE-2024-21626). The
//! command gets what the payload got, by the same code: session, working directory, Landlock, capabilities, seccomp.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use agentd_profiles::BuiltIn;
use agentd_sys::channel;
use agentd_sys::process::{Cloned, clone, clone_again, exit_now};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, WaitOptions, WaitStatus, set_dumpable_behavior, setsid, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::landlock::Links;
use crate::payload::{Payload, release_streams};
use crate::plan::BoxPlan;
use crate::report::{self, Report};
use crate::step::{At, Failure, Step};
use crate::{START_FAILED, lockdown, mounts};

/// A namespace to join.
#[derive(Debug)]
pub struct Joined {
    /// The namespace.
    pub descriptor: OwnedFd,
    /// Its kind.
    pub kind: LinkNameSpaceType,
    /// What it is called below /proc/PID/ns.
    pub name: &'static str,
}

/// The descriptors of a guest; every other one but those of its namespaces is closed before it enters any.
#[derive(Debug)]
pub struct Descriptors {
    /// Reports to the caller ([`report`]), and signals from it ([`signal`]).
    pub channel: OwnedFd,
    /// What the command gets as 0, 1 and 2; with a terminal these are replaced by a pty of the box.
    pub stdio: [OwnedFd; 3],
}

/// Runs as the usher, in a clone of the caller, and never returns; `namespaces` are in the order in which they are joined,
/// the user namespace first.
///
/// Must be called in the child of [`agentd_sys::process::clone`].
pub fn run(plan: &BoxPlan, namespaces: Vec<Joined>, descriptors: Descriptors) -> ! {
    let Descriptors { channel, stdio } = descriptors;
    let Err(failure) = enter(plan, namespaces, &channel, stdio);
    // If the caller is gone, there is nobody to tell.
    report::send(&channel, &Report::Failed(failure), None).unwrap_or_default();
    exit_now(START_FAILED)
}

/// Joins `namespaces` and listens at `ports` of all addresses there.
///
/// # Errors
/// The errno, with the port where it is about one.
pub fn doors(namespaces: Vec<Joined>, ports: &[u16]) -> Result<Vec<OwnedFd>, (Option<u16>, std::io::Error)> {
    let join = || -> std::io::Result<()> {
        // A process of the box that could see this one could look into it; new credentials undo it (see `enter`).
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        for Joined { descriptor, kind, .. } in namespaces {
            move_into_link_name_space(descriptor.as_fd(), Some(kind))?;
            set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        }
        Ok(())
    };
    join().map_err(|error| (None, error))?;
    ports.iter().map(|port| crate::doors::late(*port).map_err(|error| (Some(*port), error.into()))).collect()
}

/// What the caller sends over the channel: a signal for the command's process group.
///
/// # Errors
/// The errno of `sendmsg(2)`; `EPIPE` when the command is gone.
pub fn signal(channel: impl AsFd, number: i32) -> std::io::Result<()> {
    channel::send(channel.as_fd(), &number.to_le_bytes(), None)
}

fn enter(
    plan: &BoxPlan,
    namespaces: Vec<Joined>,
    channel: &OwnedFd,
    stdio: [OwnedFd; 3],
) -> Result<Infallible, Failure> {
    let at = Step::TieToSupervisor;
    let hide = || set_dumpable_behavior(DumpableBehavior::NotDumpable).at(at, "PR_SET_DUMPABLE");
    hide()?;
    let [stdin, stdout, stderr] = stdio;
    rustix::stdio::dup2_stdin(&stdin).at(at, "stdin")?;
    rustix::stdio::dup2_stdout(&stdout).at(at, "stdout")?;
    rustix::stdio::dup2_stderr(&stderr).at(at, "stderr")?;
    drop((stdin, stdout, stderr));
    let mut keep: Vec<_> = namespaces.iter().map(|namespace| namespace.descriptor.as_raw_fd()).collect();
    keep.push(channel.as_raw_fd());
    agentd_sys::descriptors::close_all_but(&mut keep).at(at, "close_range")?;
    setsid().at(Step::NewSession, "setsid")?;
    for Joined { descriptor, kind, name } in namespaces {
        move_into_link_name_space(descriptor.as_fd(), Some(kind)).at(Step::JoinBox, name)?;
        // New credentials make a process as dumpable as fs.suid_dumpable says.
        hide()?;
    }
    lockdown::limits(&plan.limits)?;
    lockdown::drop_bounding_set(plan.ids())?;
    lockdown::no_new_privileges()?;
    let terminal = match plan.process.terminal {
        true => {
            // A read-only tmpfs of agentd's own and a devpts below it: nothing there is the payload's.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let pts = openat(CWD, "/dev/pts", flags, Mode::empty()).at(Step::OpenTerminal, "/dev/pts")?;
            Some(mounts::open_terminal(&pts, channel)?)
        }
        false => None,
    };
    // A process joins a pid namespace by its children, and an orphan of one of those has PID 1 for its parent.
    match clone_again().at(Step::ForkPayload, "clone3")? {
        Cloned::Child => {
            let status = match clone(0).at(Step::ForkPayload, "clone3") {
                Ok(Cloned::Child) => host(plan, channel, terminal),
                Ok(Cloned::Parent { .. }) => 0,
                Err(failure) => {
                    report::send(channel, &Report::Failed(failure), None).unwrap_or_default();
                    START_FAILED
                }
            };
            exit_now(status)
        }
        Cloned::Parent { pid, .. } => {
            waitpid(Some(pid), WaitOptions::empty()).at(Step::ForkPayload, "waitpid")?;
            exit_now(0)
        }
    }
}

/// Stays beside the command: starts it, passes signals on, reports its end, and ends it with the caller.
fn host(plan: &BoxPlan, channel: &OwnedFd, terminal: Option<OwnedFd>) -> i32 {
    let seen = see_through(plan, channel, terminal);
    let report = match seen {
        Ok(Some(status)) => Report::Exited { status: status.as_raw(), empty: false },
        Ok(None) => return START_FAILED,
        Err(failure) => Report::Failed(failure),
    };
    report::send(channel, &report, None).unwrap_or_default();
    0
}

/// `None` when the caller went first.
fn see_through(plan: &BoxPlan, channel: &OwnedFd, terminal: Option<OwnedFd>) -> Result<Option<WaitStatus>, Failure> {
    let command = Payload::fork(plan, &[], terminal, Links::Refused)?;
    release_streams()?;
    lockdown::clear_capabilities(lockdown::of_init(plan.ids()))?;
    agentd_sys::seccomp::load(agentd_profiles::seccomp(BuiltIn::Init)).at(Step::Seccomp, "the guest's host")?;
    command.started(|listener| {
        report::send(channel, &Report::Denials, Some(listener.as_fd())).at(Step::Seccomp, "agentd exec")
    })?;
    report::send(channel, &Report::Started, None).at(Step::Exec, "agentd exec")?;
    let mut caller_is_gone = false;
    loop {
        let mut fds = vec![PollFd::new(&command.pidfd, PollFlags::IN)];
        if !caller_is_gone {
            fds.push(PollFd::new(channel, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).at(Step::Exec, "poll"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.first() == Some(&true) {
            let waited = waitpid(Some(command.pid), WaitOptions::empty()).at(Step::Exec, "wait")?;
            return Ok(waited.map(|(_, status)| status).filter(|_| !caller_is_gone));
        }
        if ready.get(1) != Some(&true) {
            continue;
        }
        let number = match channel::receive(channel) {
            Ok(Some(message)) => message.bytes.try_into().map(i32::from_le_bytes).unwrap_or(0),
            // Nobody is left to see what it does.
            _ => {
                caller_is_gone = true;
                libc::SIGKILL
            }
        };
        if agentd_sys::signal::send_to_group(command.pid, number).is_err() {
            // Before its setsid there is no group yet; one that is gone is about to be waited for.
            agentd_sys::signal::send(command.pid, number).unwrap_or_default();
        }
    }
}
