//! What runs inside the box: PID 1, from the first instruction after `clone3` to the payload's exit status.
//!
//! PID 1 is a clone of the supervisor, not a new program: nothing is exec'ed in between, so nothing of the host's file
//! system is needed to start it and its binary cannot be swapped from inside (CVE-2019-5736).
//!
//! Invariant: the plan is the only input. Nothing here reads the environment, the command line or a configuration file;
//! the order of what happens is the order of [`step::Step`], and the first step that fails ends the start.

mod check;
mod doors;
pub mod guest;
pub mod landlock;
mod lockdown;
mod mounts;
mod payload;
pub mod plan;
mod protect;
pub mod reaper;
pub mod report;
mod root;
mod secrets;
pub mod step;
mod tree;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use agentd_sys::process::exit_now;
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Signal, chdir, set_dumpable_behavior, set_parent_process_death_signal, setsid, umask,
};

use payload::Payload;
use plan::{BoxPlan, Network};
use report::Report;
pub use secrets::{Secret, Secrets};
use step::{At, Failure, Step};

/// The descriptors that PID 1 gets from the supervisor; every other one is closed before anything else happens.
#[derive(Debug)]
pub struct Descriptors {
    /// Reports to the supervisor ([`report`]).
    pub channel: OwnedFd,
    /// What the payload gets as 0, 1 and 2; with a terminal these are replaced by the box's own pty.
    pub stdio: [OwnedFd; 3],
}

/// Exit status of PID 1 when the payload never ran; the supervisor has the reason from the channel.
const START_FAILED: i32 = 125;

/// Runs as PID 1 in the new namespaces; never returns.
///
/// Must be called in the child of [`agentd_sys::process::clone`], with the signals of [`reaper::RELAYED`] blocked.
pub fn run(plan: &BoxPlan, secrets: Secrets, descriptors: Descriptors) -> ! {
    let Descriptors { channel, stdio } = descriptors;
    let status = match start(plan, secrets, &channel, stdio) {
        Ok(payload) => reaper::run(plan, payload, &channel),
        Err(failure) => {
            // The supervisor is told through the only way there is; if it is gone, there is nobody to tell.
            report::send(&channel, &Report::Failed(failure), None).unwrap_or_default();
            START_FAILED
        }
    };
    exit_now(status)
}

fn start(plan: &BoxPlan, mut secrets: Secrets, channel: &OwnedFd, stdio: [OwnedFd; 3]) -> Result<Payload, Failure> {
    die_with_supervisor(channel)?;
    let [stdin, stdout, stderr] = stdio;
    rustix::stdio::dup2_stdin(&stdin).at(Step::TieToSupervisor, "stdin")?;
    rustix::stdio::dup2_stdout(&stdout).at(Step::TieToSupervisor, "stdout")?;
    rustix::stdio::dup2_stderr(&stderr).at(Step::TieToSupervisor, "stderr")?;
    drop((stdin, stdout, stderr));
    agentd_sys::descriptors::close_all_but(&mut [channel.as_raw_fd()]).at(Step::TieToSupervisor, "close_range")?;

    // Modes of what PID 1 makes are exactly those it asks for.
    umask(Mode::empty());
    write_id_maps(plan, channel)?;
    if plan.own_cgroup {
        // Not by the clone: the root would be the supervisor's cgroup, and /proc/self/cgroup would lead to it.
        unshare(CloneFlags::CLONE_NEWCGROUP).at(Step::CgroupNamespace, "unshare")?;
    }
    // `pivot_root` takes a process along only from the old root itself: a working directory anywhere else on the host
    // would stay open in both processes, and /proc/self/cwd would lead there (CVE-2024-21626).
    chdir("/").at(Step::TieToSupervisor, "/")?;
    rustix::system::sethostname(plan.hostname.as_bytes()).at(Step::SetHostname, &plan.hostname)?;
    setsid().at(Step::NewSession, "setsid")?;
    // None of these takes away what the set-up needs, and from here on no exec in the box can gain anything.
    lockdown::limits(plan)?;
    lockdown::drop_bounding_set(plan)?;
    lockdown::no_new_privileges()?;

    // The payload's process makes the network namespace, which takes as long as all the mounts do.
    let payload = Payload::fork(plan, &mut secrets)?;
    root::make_private()?;
    let host_sys = match plan.network {
        Network::None => None,
        Network::Host => Some(mounts::host_sys()?),
    };
    let stage = root::stage(plan)?;
    let (root, upper) = root::assemble(plan, &stage)?;
    let mounts::Built { terminal, mut targets } = mounts::build(plan, &stage, &root, channel, &secrets.files)?;
    // Overwritten here; the payload's process has those it needs.
    drop(secrets);
    let sys = match host_sys {
        Some(sys) => sys,
        None => payload.join_network()?,
    };
    if let Some(doors) = &plan.doors {
        doors::open(doors, channel)?;
    }
    targets.push(mounts::sys(plan, &stage, &root, sys)?);
    if plan.own_cgroup {
        targets.push(mounts::cgroup(&root)?);
    }
    if plan.root.keep {
        // What is in there so far is agentd's own; the supervisor takes note of it before it releases the box.
        root::hand_over(&upper, channel)?;
    }
    drop(upper);
    root::enter(root, stage, plan)?;
    // The stubs are among what has to be on disk: they are protected when they are there.
    report::wait_for_release(channel).at(Step::WaitForRecord, "the record")?;
    protect::hold(&plan.guards)?;
    check::mounts(&targets)?;
    let open = [channel.as_raw_fd(), payload.channel.as_raw_fd(), payload.pidfd.as_raw_fd()];
    check::descriptors(open.into_iter().chain(terminal.as_ref().map(AsRawFd::as_raw_fd)))?;
    payload.release(terminal)?;
    Ok(payload)
}

/// A supervisor that dies takes the box with it: PID 1 is killed, and with it every process of its pid namespace.
fn die_with_supervisor(channel: &OwnedFd) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).at(Step::TieToSupervisor, "PR_SET_PDEATHSIG")?;
    // It may have died before the line above. `getppid` is 0 in a new pid namespace and cannot tell; its end of the
    // channel can.
    let mut channel = [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::empty())];
    poll(&mut channel, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).at(Step::TieToSupervisor, "poll")?;
    if channel.iter().any(|fd| fd.revents().contains(PollFlags::HUP)) {
        exit_now(START_FAILED);
    }
    Ok(())
}

/// Maps the one id of the box. Unprivileged, a process may write its own maps for its own ids (user_namespaces(7)); those of
/// several ids are written from outside, by the host's helpers, and this waits for them.
fn write_id_maps(plan: &BoxPlan, channel: &OwnedFd) -> Result<(), Failure> {
    let ids = &plan.identity;
    if plan.subids.is_some() {
        report::wait_for_release(channel).at(Step::WriteIdMaps, "the host's newuidmap")?;
    } else {
        for (path, contents) in [
            ("/proc/self/setgroups", "deny".to_owned()),
            ("/proc/self/uid_map", format!("{} {} 1", ids.box_uid, ids.host_uid)),
            ("/proc/self/gid_map", format!("{} {} 1", ids.box_gid, ids.host_gid)),
        ] {
            std::fs::write(path, contents).at(Step::WriteIdMaps, path)?;
        }
    }
    // Only now: the files that are written above belong to the host's root while the process is not dumpable. From here on no
    // process of the box can trace PID 1, read its memory (the supervisor's at the clone) or open its descriptors.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Step::WriteIdMaps, "PR_SET_DUMPABLE")
}
