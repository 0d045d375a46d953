//! PID 1 once the payload runs: reaps whatever ends in the box, relays signals, and ends with the payload.
//!
//! Invariant: PID 1 does nothing the payload could make it do but forward a signal to the payload's own processes.

use std::os::fd::{AsFd, OwnedFd};

use agentd_profiles::BuiltIn;
use agentd_sys::memory::BEFORE_FORGETTING;
use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::payload::{Payload, release_streams};
use crate::plan::BoxPlan;
use crate::report::{self, Report};
use crate::step::{At, Failure, Step};
use crate::{START_FAILED, lockdown};

/// Signals that travel from the supervisor to the payload. The supervisor blocks them, and SIGCHLD, before the clone:
/// a blocked signal waits even for PID 1, whose default action for all of them would be to ignore it.
pub const RELAYED: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Sees the payload through; gives the exit status of the box (128 + n when the payload died of signal n).
pub(crate) fn run(plan: &BoxPlan, payload: Payload, channel: &OwnedFd) -> i32 {
    match see_through(plan, payload, channel) {
        Ok(status) => {
            let exited = Report::Exited { status: status.as_raw(), empty: is_empty() };
            // A supervisor that is gone needs no report: the kernel is about to end this process.
            report::send(channel, &exited, None).unwrap_or_default();
            status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(START_FAILED)
        }
        Err(failure) => {
            report::send(channel, &Report::Failed(failure), None).unwrap_or_default();
            START_FAILED
        }
    }
}

fn see_through(plan: &BoxPlan, payload: Payload, channel: &OwnedFd) -> Result<WaitStatus, Failure> {
    // The payload starts meanwhile; it cannot reach this process, which is not dumpable and outside its domain.
    release_streams()?;
    lockdown::clear_capabilities(lockdown::of_init(plan.ids()))?;
    agentd_sys::seccomp::load(agentd_profiles::seccomp(BuiltIn::Init)).at(Step::Seccomp, "PID 1")?;
    payload.started(|listener| {
        let sent = report::send(channel, &Report::Denials, Some(listener.as_fd()));
        sent.at(Step::Seccomp, "the supervisor")
    })?;
    report::send(channel, &Report::Started, Some(payload.pidfd.as_fd())).at(Step::Exec, "the supervisor")?;

    let mut signals: SigSet = RELAYED.iter().copied().collect();
    signals.add(Signal::SIGCHLD);
    let mut patience = Some(BEFORE_FORGETTING);
    loop {
        let Some(signal) = agentd_sys::signal::wait(&signals, patience).at(Step::Exec, "sigtimedwait")? else {
            // From here on this is a page or two of code. A kernel that keeps the rest costs memory only.
            agentd_sys::memory::forget_code().unwrap_or_default();
            patience = None;
            continue;
        };
        match signal {
            Signal::SIGCHLD => {
                if let Some(status) = reap(payload.pid)? {
                    return Ok(status);
                }
            }
            // Of the supervisor's signals this one is the wish that the payload ends.
            Signal::SIGTERM => relay(payload.pid, plan.process.stop_signal),
            signal => relay(payload.pid, signal as i32),
        }
    }
}

/// Reaps every child that has ended; gives the payload's status when it is among them.
fn reap(payload: Pid) -> Result<Option<WaitStatus>, Failure> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == payload => return Ok(Some(status)),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(error).at(Step::Exec, "wait"),
        }
    }
}

/// Whether no other process of the box is left. Every one of them descends from PID 1, and an orphan becomes its child:
/// without a child, living or dead, it is alone.
fn is_empty() -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return false,
            Err(error) => return error == Errno::CHILD,
        }
    }
}

/// To the payload's process group, as a terminal would: a shell and what it waits for both hear a Ctrl-C.
fn relay(payload: Pid, signal: i32) {
    if agentd_sys::signal::send_to_group(payload, signal).is_err() {
        // Before its setsid there is no group yet. A payload that is gone has a SIGCHLD on its way.
        agentd_sys::signal::send(payload, signal).unwrap_or_default();
    }
}
