//! The payload's process, from fork to exec.
//!
//! Invariant: between the fork and a successful exec the process only gives up rights. Its channel to PID 1 is
//! close-on-exec: end-of-file without a report is the proof that the program runs.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use agentd_sys::channel::{self, Message};
use agentd_sys::process::{Cloned, clone, exit_now};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, fchdir, ioctl_tiocsctty, setsid, umask};

use crate::landlock::Links;
use crate::plan::{BoxPlan, Filter, Instruction, Kind, Process, Seccomp};
use crate::report::Report;
use crate::secrets::Secret;
use crate::step::{At, Failure, Step};
use crate::{check, landlock, lockdown, tree};

/// The payload's process, as PID 1 sees it.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) pid: Pid,
    /// Close-on-exec.
    pub(crate) pidfd: OwnedFd,
    pub(crate) channel: OwnedFd,
}

/// What the payload's process sends with the listener of its filter.
const LISTENER: &[u8] = b"L";

impl Payload {
    /// Forks the process, in a box that is ready; in the new one this never returns. The program runs on `terminal` if there
    /// is one.
    pub(crate) fn fork(
        plan: &BoxPlan,
        variables: &[Secret],
        terminal: Option<OwnedFd>,
        links: Links,
    ) -> Result<Self, Failure> {
        let at = Step::ForkPayload;
        let (ours, theirs) = channel::pair().at(at, "socketpair")?;
        match clone(0).at(at, "clone3")? {
            Cloned::Child => {
                let mut keep = vec![theirs.as_raw_fd()];
                keep.extend(terminal.as_ref().map(AsRawFd::as_raw_fd));
                let closed = agentd_sys::descriptors::close_all_but(&mut keep).at(at, "close_range");
                let run = closed.and_then(|()| become_payload(plan, variables, &theirs, terminal, links));
                let Err(failure) = run;
                // PID 1 reads end-of-file instead if this fails, and reports that the payload ended.
                channel::send(theirs.as_fd(), &Report::Failed(failure).encode(), None).unwrap_or_default();
                exit_now(super::START_FAILED)
            }
            Cloned::Parent { pid, pidfd } => Ok(Payload { pid, pidfd, channel: ours }),
        }
    }

    /// Waits until the payload's program runs; gives what failed if it does not. `tell` gets the filter's listener at once:
    /// whatever the filter denies waits until somebody listens.
    pub(crate) fn started(&self, mut tell: impl FnMut(OwnedFd) -> Result<(), Failure>) -> Result<(), Failure> {
        loop {
            match self.hear(Step::Exec)? {
                None => return Ok(()),
                Some(Message { bytes, descriptor: Some(listener) }) if bytes == LISTENER => tell(listener)?,
                Some(_) => return Err(Failure::new(Step::Exec, "the payload's process", libc::EPROTO)),
            }
        }
    }

    /// One message; a report of a failure is that failure.
    fn hear(&self, at: Step) -> Result<Option<Message>, Failure> {
        let heard = channel::receive(&self.channel).at(at, "the payload's process")?;
        match heard.as_ref().and_then(|message| Report::decode(&message.bytes)) {
            Some(Report::Failed(failure)) => Err(failure),
            _ => Ok(heard),
        }
    }
}

fn become_payload(
    plan: &BoxPlan,
    variables: &[Secret],
    channel: &OwnedFd,
    terminal: Option<OwnedFd>,
    links: Links,
) -> Result<Infallible, Failure> {
    setsid().at(Step::PayloadSession, "setsid")?;
    if let Some(terminal) = terminal {
        ioctl_tiocsctty(&terminal).at(Step::PayloadSession, "TIOCSCTTY")?;
        rustix::stdio::dup2_stdin(&terminal).at(Step::PayloadSession, "stdin")?;
        rustix::stdio::dup2_stdout(&terminal).at(Step::PayloadSession, "stdout")?;
        rustix::stdio::dup2_stderr(&terminal).at(Step::PayloadSession, "stderr")?;
    }
    if !plan.process.terminal && !plan.process.input {
        // Until here it was the host's, whose node a job of the host's root could change through the descriptor.
        let null = openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        rustix::stdio::dup2_stdin(null.at(Step::PayloadSession, "/dev/null")?).at(Step::PayloadSession, "stdin")?;
    }
    check::descriptors([channel.as_raw_fd()])?;
    umask(Mode::from_raw_mode(0o022));
    enter_workdir(&plan.process.cwd)?;
    let program = Program::new(&plan.process, variables)?;
    landlock::restrict(&plan.landlock, links)?;
    lockdown::clear_capabilities(lockdown::of_payload(plan.ids()))?;
    agentd_sys::signal::reset().at(Step::ResetSignals, "sigaction")?;
    // Not earlier: few open files or small ones would keep the box from being made.
    lockdown::limits(&plan.ulimits)?;
    load(&plan.seccomp, channel)?;
    Err(program.execute())
}

fn load(seccomp: &Seccomp, channel: &OwnedFd) -> Result<(), Failure> {
    let program = match &seccomp.filter {
        Filter::BuiltIn(profile) => Cow::Borrowed(agentd_profiles::seccomp(*profile)),
        Filter::Compiled(program) => {
            let instruction = |&Instruction(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k };
            Cow::Owned(program.iter().map(instruction).collect())
        }
    };
    if seccomp.told {
        let asks = if seccomp.learning { agentd_profiles::asking } else { agentd_profiles::notifying };
        match agentd_sys::notify::load(&asks(&program)) {
            Ok(listener) => {
                return channel::send(channel.as_fd(), LISTENER, Some(listener.as_fd())).at(Step::Seccomp, "PID 1");
            }
            // agentd itself runs under a filter that somebody listens to, and there is one listener a process: the plain
            // program refuses the same.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && !seccomp.learning => {}
            told => return told.map(drop).at(Step::Seccomp, &seccomp.profile),
        }
    }
    agentd_sys::seccomp::load(&program).at(Step::Seccomp, &seccomp.profile)
}

/// Enters the working directory. It is the image's or the workspace's: resolved in the root, through no magic link, and
/// only from a process that is in the root itself.
fn enter_workdir(path: &str) -> Result<(), Failure> {
    let at = Step::EnterWorkdir;
    let now = rustix::process::getcwd(Vec::new()).at(at, "getcwd")?;
    if now.to_bytes() != b"/" {
        return Err(Failure::new(at, format!("{}: outside the root", now.to_string_lossy()), libc::EXDEV));
    }
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).at(at, "/")?;
    let workdir = tree::in_root(root.as_fd(), path, Kind::Directory).at(at, path)?;
    fchdir(&workdir).at(at, path)
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
    fn new(process: &Process, variables: &[Secret]) -> Result<Self, Failure> {
        let at = Step::Exec;
        let strings = |list: &[String]| -> Result<Vec<CString>, Failure> {
            list.iter().map(|text| CString::new(text.as_str()).at(at, text)).collect()
        };
        let name = process.argv.first().cloned().unwrap_or_default();
        if name.is_empty() {
            return Err(Failure::new(at, "an empty name", libc::ENOENT));
        }
        let candidates = if name.contains('/') {
            vec![name.clone()]
        } else {
            process
                .search_path()
                .split(':')
                .map(|directory| if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") })
                .collect()
        };
        let mut env = strings(&process.env)?;
        for Secret { name, value } in variables {
            // Not the text itself as the object: the failure is told and recorded.
            env.push(CString::new([name.as_bytes(), b"=", value].concat()).at(at, name)?);
        }
        Ok(Program { candidates: strings(&candidates)?, argv: strings(&process.argv)?, env, name })
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
