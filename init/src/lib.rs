//! What runs inside the box: PID 1, from the first instruction after `clone3` to the payload's exit status.
//!
//! PID 1 is a clone of the supervisor, not a new program: nothing is exec'ed in between, so nothing of the host's file
//! system is needed to start it and its binary cannot be swapped from inside (CVE-2019-5736).
//!
//! Invariant: the plan ([`brief`]) is the only input. Nothing here reads the environment, the command line or a configuration file;
//! the order of what happens is the order of [`step::Step`], and the first step that fails ends the start.

pub mod brief;
mod check;
mod doors;
pub mod guest;
pub mod landlock;
mod lockdown;
mod mounts;
mod network;
mod payload;
mod pieces;
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

use landlock::Links;
use payload::Payload;
use plan::{BoxPlan, Ids, Network};
use report::Report;
pub use secrets::{Secret, Secrets};
use step::{At, Failure, Step};

/// What PID 1 begins with, before it has its plan.
#[derive(Debug)]
pub struct Beginning {
    /// Its plan comes here ([`brief`]), and its reports go here ([`report`]). Every other descriptor above 2 is closed before
    /// anything else happens.
    pub channel: OwnedFd,
    /// The network that its plan will have.
    pub network: Network,
    /// The ids that its plan will have.
    pub ids: Ids,
    /// The values of what its plan will name.
    pub secrets: Secrets,
}

/// Exit status of PID 1 when the payload never ran; the supervisor has the reason from the channel.
const START_FAILED: i32 = 125;

/// Runs as PID 1 in the new namespaces; never returns.
///
/// Must be called in the child of [`agentd_sys::process::clone`], with the signals of [`reaper::RELAYED`] blocked.
pub fn run(beginning: Beginning) -> ! {
    let Beginning { channel, network, ids, secrets } = beginning;
    let status = match start(network, ids, secrets, &channel) {
        Ok((payload, plan)) => reaper::run(&plan, payload, &channel),
        Err(failure) => {
            // The supervisor is told through the only way there is; if it is gone, there is nobody to tell.
            report::send(&channel, &Report::Failed(failure), None).unwrap_or_default();
            START_FAILED
        }
    };
    exit_now(status)
}

fn start(network: Network, ids: Ids, mut secrets: Secrets, channel: &OwnedFd) -> Result<(Payload, BoxPlan), Failure> {
    die_with_supervisor(channel)?;
    agentd_sys::descriptors::close_all_but(&mut [channel.as_raw_fd()]).at(Step::TieToSupervisor, "close_range")?;
    // Modes of what PID 1 makes are exactly those it asks for.
    umask(Mode::empty());
    // `pivot_root` takes a process along only from the old root itself: a working directory anywhere else on the host
    // would stay open in both processes, and /proc/self/cwd would lead there (CVE-2024-21626).
    chdir("/").at(Step::TieToSupervisor, "/")?;
    setsid().at(Step::NewSession, "setsid")?;
    // Neither takes away what the set-up needs, and from here on no exec in the box can gain anything.
    lockdown::drop_bounding_set(ids)?;
    lockdown::no_new_privileges()?;
    root::make_private()?;
    // While the supervisor makes the plan.
    let sys = match network {
        Network::None => Some(network::make()?),
        Network::Host => None,
    };

    let (plan, streams) = brief::receive(channel).at(Step::HearPlan, "the supervisor")?;
    if (plan.network, plan.ids()) != (network, ids) {
        return Err(Failure::new(Step::HearPlan, "another network, or other ids", libc::EPROTO));
    }
    let [stdin, stdout, stderr] = streams;
    rustix::stdio::dup2_stdin(&stdin).at(Step::HearPlan, "stdin")?;
    rustix::stdio::dup2_stdout(&stdout).at(Step::HearPlan, "stdout")?;
    rustix::stdio::dup2_stderr(&stderr).at(Step::HearPlan, "stderr")?;
    drop((stdin, stdout, stderr));
    write_id_maps(&plan, channel)?;
    if plan.own_cgroup {
        // Not by the clone: the root would be the supervisor's cgroup, and /proc/self/cgroup would lead to it.
        unshare(CloneFlags::CLONE_NEWCGROUP).at(Step::CgroupNamespace, "unshare")?;
    }
    rustix::system::sethostname(plan.hostname.as_bytes()).at(Step::SetHostname, &plan.hostname)?;
    lockdown::limits(&plan.limits)?;

    let sys = match sys {
        Some(sys) => sys,
        None => mounts::host_sys()?,
    };
    let stage = root::stage(&plan)?;
    let (root, upper) = root::assemble(&plan, &stage)?;
    let mounts::Built { terminal, mut targets } = mounts::build(&plan, &stage, &root, channel, &secrets)?;
    // Overwritten here; the payload's process never has them.
    secrets.files.clear();
    if let Some(doors) = &plan.doors {
        doors::open(doors, channel)?;
    }
    targets.push(mounts::sys(&plan, &stage, &root, sys)?);
    if plan.own_cgroup {
        targets.push(mounts::cgroup(&root)?);
    }
    if plan.root.keep {
        // What is in there so far is agentd's own; the supervisor takes note of it before it releases the box.
        root::hand_over(&upper, channel)?;
    }
    drop(upper);
    root::enter(root, stage, &plan)?;
    // The stubs are among what has to be on disk: they are protected when they are there.
    brief::wait_for_release(channel).at(Step::WaitForRecord, "the record")?;
    protect::hold(&plan.guards)?;
    check::mounts(&targets)?;
    check::descriptors([channel.as_raw_fd()].into_iter().chain(terminal.as_ref().map(AsRawFd::as_raw_fd)))?;
    let payload = Payload::fork(&plan, &secrets.variables, terminal, Links::Followed)?;
    Ok((payload, plan))
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
    if plan.ids() == Ids::Several {
        brief::wait_for_release(channel).at(Step::WriteIdMaps, "the host's newuidmap")?;
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
