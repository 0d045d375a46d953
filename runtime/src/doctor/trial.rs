//! Boxes that are started only to see how far they get.
//!
//! A trial is a real plan given to the real PID 1, so it needs exactly what a job needs and cannot drift from it. The
//! steps of a start have an order: a box that stopped at one has done all before it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use agentd_init::Descriptors;
use agentd_init::plan::{BoxPlan, Identity, Landlock, Mount, Network, PathAccess, PathGrant, Process, Root, Source};
use agentd_init::reaper::RELAYED;
use agentd_init::report::{self, Report};
use agentd_init::step::{Failure, Step};
use agentd_sys::process::{BOX_NAMESPACES, Cloned, NET_NAMESPACE, clone, exit_now};
use nix::sys::signal::SigSet;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{WaitId, WaitIdOptions, getegid, geteuid, waitid};

/// How far a box got.
#[derive(Debug)]
pub(super) enum Reached {
    /// There was no process: the kernel refused the namespaces.
    Refused(io::Error),
    /// PID 1 stopped.
    Stopped(Failure),
    /// The payload ran and ended with this wait status.
    Ran(i32),
    /// PID 1 ended without a word.
    Silent,
}

impl Reached {
    /// Whether the box did `step` and everything before it.
    pub(super) fn past(&self, step: Step) -> bool {
        match self {
            Reached::Stopped(failure) => failure.step > step,
            Reached::Ran(_) => true,
            Reached::Refused(_) | Reached::Silent => false,
        }
    }
}

/// Starts the box of `plan` and waits for its end.
pub(super) fn reach(plan: &BoxPlan) -> Reached {
    match start(plan) {
        Ok((channel, init)) => {
            let reached = listen(&channel);
            // PID 1 ends by itself once it has reported; only its zombie is to be had here.
            waitid(WaitId::PidFd(init.as_fd()), WaitIdOptions::EXITED).map_or(Reached::Silent, |_status| reached)
        }
        Err(error) => Reached::Refused(error),
    }
}

fn start(plan: &BoxPlan) -> io::Result<(OwnedFd, OwnedFd)> {
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let stdio = [null.try_clone()?, null.try_clone()?, null];
    let (channel, inside) = agentd_sys::channel::pair()?;
    match clone(BOX_NAMESPACES | NET_NAMESPACE, None)? {
        Cloned::Child => {
            let relayed: SigSet = RELAYED.iter().copied().collect();
            if relayed.thread_block().is_err() {
                exit_now(1);
            }
            agentd_init::run(plan, Descriptors { channel: inside, stdio })
        }
        Cloned::Parent { pidfd, .. } => Ok((channel, pidfd)),
    }
}

fn listen(channel: &OwnedFd) -> Reached {
    let mut reached = Reached::Silent;
    while let Ok(Some((report, _))) = report::receive(channel) {
        match report {
            Report::Failed(failure) => reached = Reached::Stopped(failure),
            Report::Exited(status) => reached = Reached::Ran(status),
            Report::Terminal | Report::Started => {}
        }
    }
    reached
}

/// A program that no root has: a box that is sound stops at its execution.
const NO_PROGRAM: &str = "/agentd-doctor";

/// Bytes of a trial's tmpfs; nothing is written to it but names.
const STORAGE: u64 = 16 << 20;

/// The least box, with a root of `layers` and with `mounts`.
pub(super) fn plan(layers: Vec<Source>, mounts: Vec<Mount>, landlock_abi: u32) -> BoxPlan {
    BoxPlan {
        hostname: "doctor".into(),
        identity: Identity {
            host_uid: geteuid().as_raw(),
            host_gid: getegid().as_raw(),
            box_uid: 1000,
            box_gid: 1000,
        },
        network: Network::None,
        root: Root { layers, writable: false, storage: STORAGE, additions: Vec::new(), ensure: Vec::new() },
        mounts,
        limits: Vec::new(),
        landlock: Landlock {
            abi: landlock_abi,
            paths: vec![PathGrant { path: "/".into(), access: PathAccess::ReadExecute }],
        },
        seccomp: "default".into(),
        process: Process { argv: vec![NO_PROGRAM.into()], env: Vec::new(), cwd: "/".into(), terminal: false },
    }
}
