//! Boxes that are started only to see how far they get.
//!
//! A trial is a real plan given to the real PID 1, so it needs exactly what a job needs and cannot drift from it. The
//! steps of a start have an order: a box that stopped at one has done all before it. But for the network: only the trial of
//! the network asks for one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use agentd_init::brief;
use agentd_init::plan::{
    BoxPlan, BuiltIn, Filter, Identity, Landlock, LandlockRight, Network, PathAccess, PathGrant, Process, Root,
    Seccomp, Source,
};
use agentd_init::report::{self, Report};
use agentd_init::step::{Failure, Step};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{WaitId, WaitIdOptions, getegid, geteuid, pidfd_send_signal, waitid};

use crate::launch::secrets::Values;
use crate::supervisor::shell::Shell;

/// How far a box got.
#[derive(Debug)]
pub(super) enum Reached {
    /// There was no process: the kernel refused the namespaces.
    Refused(io::Error),
    /// PID 1 stopped.
    Stopped(Failure),
    /// The payload ran and ended with this wait status.
    Ran(i32),
    /// PID 1 ended, or had to be ended, without a word.
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

/// Between two reports of a box; a start takes milliseconds, but a network file system may be slow.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Starts the box of `plan` and waits for its end.
pub(super) fn reach(plan: &BoxPlan) -> Reached {
    match null() {
        Ok(null) => reach_with(plan, null, &PATIENCE),
        Err(error) => Reached::Refused(error),
    }
}

/// What says and hears nothing, three times.
pub(super) fn null() -> io::Result<[OwnedFd; 3]> {
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok([null.try_clone()?, null.try_clone()?, null])
}

/// The same with streams of its own, and a bound on the time between two reports.
pub(super) fn reach_with(plan: &BoxPlan, stdio: [OwnedFd; 3], patience: &Timespec) -> Reached {
    match Shell::new(plan.network, plan.ids(), None, &mut Values::default()) {
        Ok(Shell { init, channel, .. }) => {
            // A box that has stopped already hears nothing; why is in the channel.
            let sent = brief::send(&channel, plan, stdio.each_ref().map(AsFd::as_fd));
            sent.and_then(|()| brief::release(&channel)).unwrap_or_default();
            drop(stdio);
            let reached = listen(&channel, patience);
            // It ends by itself unless it hangs, or the channel failed. One that has ended needs no signal.
            pidfd_send_signal(&init, rustix::process::Signal::KILL).unwrap_or_default();
            waitid(WaitId::PidFd(init.as_fd()), WaitIdOptions::EXITED).map_or(Reached::Silent, |_status| reached)
        }
        Err(error) => Reached::Refused(error),
    }
}

pub(super) fn listen(channel: &OwnedFd, patience: &Timespec) -> Reached {
    let mut reached = Reached::Silent;
    let mut ready = [PollFd::new(channel, PollFlags::IN)];
    while let Ok(1) = poll(&mut ready, Some(patience)) {
        match report::receive(channel) {
            Ok(Some((Report::Failed(failure), _))) => reached = Reached::Stopped(failure),
            Ok(Some((Report::Exited { status, .. }, _))) => reached = Reached::Ran(status),
            Ok(Some((Report::Terminal | Report::Upper | Report::Denials | Report::Door | Report::Started, _))) => {}
            Ok(None) | Err(_) => break,
        }
    }
    reached
}

/// A program that no root has: a box that is sound stops at its execution.
const NO_PROGRAM: &str = "/agentd-doctor";

/// Bytes of a trial's tmpfs; nothing is written to it but names.
const STORAGE: u64 = 16 << 20;

/// The least box, on the host's network.
pub(crate) fn least() -> BoxPlan {
    BoxPlan {
        own_cgroup: false,
        hostname: "doctor".into(),
        identity: Identity { host_uid: geteuid().as_raw(), host_gid: getegid().as_raw(), box_uid: 1000, box_gid: 1000 },
        subids: None,
        network: Network::Host,
        doors: None,
        root: Root {
            layers: Vec::new(),
            writable: false,
            keep: false,
            storage: STORAGE,
            additions: Vec::new(),
            ensure: Vec::new(),
        },
        mounts: Vec::new(),
        guards: Vec::new(),
        limits: Vec::new(),
        ulimits: Vec::new(),
        landlock: Landlock {
            abi: 1,
            rights: vec![LandlockRight::Files],
            paths: vec![PathGrant { path: "/".into(), access: PathAccess::READ_EXECUTE }],
        },
        seccomp: Seccomp {
            told: false,
            learning: false,
            profile: BuiltIn::Default.to_string(),
            digest: String::new(),
            filter: Filter::BuiltIn(BuiltIn::Default),
        },
        process: Process {
            argv: vec![NO_PROGRAM.into()],
            env: Vec::new(),
            cwd: "/".into(),
            terminal: false,
            input: false,
            stop_signal: libc::SIGTERM,
        },
    }
}

/// A box whose root is an overlay of `layer`.
pub(super) fn overlay(layer: Source) -> BoxPlan {
    let mut plan = least();
    plan.root.layers.push(layer);
    plan
}
