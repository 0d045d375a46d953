//! The payload's process, from fork to exec.
//!
//! Invariant: between the fork and a successful exec the process only gives up rights; it reports a failure through a
//! close-on-exec pipe, whose end-of-file without a report is the proof that the program runs.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use agentd_profiles::BuiltIn;
use agentd_sys::process::{Cloned, clone, exit_now};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, chdir, ioctl_tiocsctty, setsid};

use crate::plan::{BoxPlan, Process};
use crate::report::Report;
use crate::step::{At, Failure, Step};
use crate::{landlock, lockdown};

/// The started payload, as PID 1 sees it.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) pid: Pid,
    /// Ends when the payload's program runs or its start has failed.
    pub(crate) start: OwnedFd,
}

/// Forks the payload. In the new process this never returns.
pub(crate) fn start(plan: &BoxPlan, terminal: Option<OwnedFd>) -> Result<Payload, Failure> {
    let at = Step::ForkPayload;
    let (reading, writing) = io::pipe().at(at, "pipe")?;
    match clone(0, None).at(at, "clone3")? {
        Cloned::Child => {
            drop(reading);
            let failure = become_payload(plan, terminal).err();
            if let Some(failure) = failure {
                // PID 1 reads end-of-file instead if this fails, and reports that the payload ended.
                File::from(OwnedFd::from(writing)).write_all(&Report::Failed(failure).encode()).unwrap_or_default();
            }
            exit_now(super::START_FAILED)
        }
        Cloned::Parent { pid, .. } => {
            drop(writing);
            Ok(Payload { pid, start: reading.into() })
        }
    }
}

/// Waits until the payload's program runs; gives what failed if it does not.
pub(crate) fn started(start: OwnedFd) -> Result<(), Failure> {
    let mut report = Vec::new();
    File::from(start).read_to_end(&mut report).at(Step::Exec, "pipe")?;
    if report.is_empty() {
        return Ok(());
    }
    match Report::decode(&report) {
        Some(Report::Failed(failure)) => Err(failure),
        _ => Err(Failure::new(Step::Exec, "pipe", libc::EPROTO)),
    }
}

fn become_payload(plan: &BoxPlan, terminal: Option<OwnedFd>) -> Result<std::convert::Infallible, Failure> {
    setsid().at(Step::PayloadSession, "setsid")?;
    if let Some(terminal) = terminal {
        ioctl_tiocsctty(&terminal).at(Step::PayloadSession, "TIOCSCTTY")?;
        rustix::stdio::dup2_stdin(&terminal).at(Step::PayloadSession, "stdin")?;
        rustix::stdio::dup2_stdout(&terminal).at(Step::PayloadSession, "stdout")?;
        rustix::stdio::dup2_stderr(&terminal).at(Step::PayloadSession, "stderr")?;
    }
    // The working directory was resolved in the new root: there is no other (CVE-2024-21626).
    chdir(plan.process.cwd.as_str()).at(Step::EnterWorkdir, &plan.process.cwd)?;
    let program = Program::new(&plan.process)?;
    landlock::restrict(&plan.landlock)?;
    lockdown::clear_capabilities()?;
    agentd_sys::signal::reset().at(Step::ResetSignals, "sigaction")?;
    agentd_sys::seccomp::load(agentd_profiles::seccomp(BuiltIn::Default)).at(Step::Seccomp, &plan.seccomp)?;
    Err(program.execute())
}

/// PID 1 keeps no end of the payload's streams: a reader or writer outside must see them close with the payload.
pub(crate) fn release_streams() -> Result<(), Failure> {
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).at(Step::Exec, "/dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd()).at(Step::Exec, "stdin")?;
    rustix::stdio::dup2_stdout(null.as_fd()).at(Step::Exec, "stdout")?;
    rustix::stdio::dup2_stderr(null.as_fd()).at(Step::Exec, "stderr")
}

/// What to execute, ready before the seccomp program is loaded.
struct Program {
    name: String,
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn new(process: &Process) -> Result<Self, Failure> {
        let at = Step::Exec;
        let strings = |list: &[String]| -> Result<Vec<CString>, Failure> {
            list.iter().map(|text| CString::new(text.as_str()).at(at, text)).collect()
        };
        let name = process.argv.first().cloned().unwrap_or_default();
        let candidates = if name.contains('/') {
            vec![name.clone()]
        } else {
            let path = process.env.iter().find_map(|variable| variable.strip_prefix("PATH="));
            path.unwrap_or_default()
                .split(':')
                .map(|directory| if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") })
                .collect()
        };
        Ok(Program {
            candidates: strings(&candidates)?,
            argv: strings(&process.argv)?,
            env: strings(&process.env)?,
            name,
        })
    }

    /// Like `execvp(3)`: the first candidate that runs; one that may not be executed outweighs those that do not exist.
    fn execute(&self) -> Failure {
        let mut errno = libc::ENOENT;
        for candidate in &self.candidates {
            let Err(error) = nix::unistd::execve(candidate, &self.argv, &self.env);
            match error as i32 {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => errno = libc::EACCES,
                other => return Failure::new(Step::Exec, &self.name, other),
            }
        }
        Failure::new(Step::Exec, &self.name, errno)
    }
}
