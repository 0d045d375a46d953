//! `agentd exec`: a command in the box of a running job, from outside; the streams between it and this program.
//!
//! Invariant: which namespaces are joined does not depend on anything the payload can do. They are opened through a pidfd
//! of the payload, which its PID 1 sent, and are taken only when each belongs to the one user namespace that this user
//! made: what the payload may have made for itself (`--profile nested`) belongs to another.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agentd_init::guest::{self, Joined};
use agentd_init::plan::{BoxPlan, Network};
use agentd_init::reaper::RELAYED;
use agentd_init::report::{self, Report};
use agentd_init::step::Failure;
use agentd_sys::namespace::{owner, parent};
use agentd_sys::process::{Cloned, clone_into};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, getrlimit, waitid};
use rustix::thread::LinkNameSpaceType;

use super::ending::Ending;
use super::porter;
use super::streams::{Own, Streams, Wanted};
use crate::cgroup::leaf::{self, LeafError};
use crate::control::{Caller, ControlError, Request};
use crate::launch::plan::Plan;

/// The namespaces of a box, the user namespace first.
pub(super) const NAMESPACES: [(&str, LinkNameSpaceType); 7] = [
    ("user", LinkNameSpaceType::User),
    ("mnt", LinkNameSpaceType::Mount),
    ("pid", LinkNameSpaceType::ProcessID),
    ("ipc", LinkNameSpaceType::InterProcessCommunication),
    ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    ("cgroup", LinkNameSpaceType::ControlGroup),
    ("net", LinkNameSpaceType::Network),
];

/// Seconds that a process may be on its way out, on a machine that has much to do.
const MOMENT: i64 = 10;

/// A command that could not be started in a box. What fails inside is an [`Ending`].
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The job's end came first.
    #[error("the job ended")]
    Ended,
    /// Not the box's own.
    #[error("the payload is in a {0} namespace that is not the box's own, and no command is started there")]
    Foreign(&'static str),
    /// Somebody else's job.
    #[error("the box runs as uid {0}; only that user can start a command in it")]
    NotOurs(u32),
    /// The job's cgroup.
    #[error("cannot go into the job's cgroup")]
    Cgroup(#[from] LeafError),
    /// The supervisor.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A port of the box.
    #[error("cannot listen at port {port} of the box; a program in it may do so already")]
    Port {
        /// Which.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// A call on the host.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Names what a system call on the host was for.
trait To<T> {
    fn to(self, what: &'static str) -> Result<T, GuestError>;
}

impl<T, E: Into<io::Error>> To<T> for Result<T, E> {
    fn to(self, what: &'static str) -> Result<T, GuestError> {
        self.map_err(|source| GuestError::Host { what, source: source.into() })
    }
}

/// Runs `plan`'s process in the box that `payload` is in, and passes its streams on; `caller` reaches the job's supervisor.
///
/// # Errors
/// [`GuestError`].
pub fn run(mut plan: Plan, payload: &OwnedFd, caller: &Caller, leaf: Option<&Path>) -> Result<Ending, GuestError> {
    let ids = plan.inside.identity;
    if ids.host_uid != rustix::process::geteuid().as_raw() {
        return Err(GuestError::NotOurs(ids.host_uid));
    }
    let BoxPlan { limits, ulimits, .. } = &mut plan.inside;
    for limit in limits.iter_mut().chain(ulimits) {
        let (resource, _name) = limit.resource.names();
        // This shell's may be lower than those of the one that started the job, and cannot be raised.
        if let Some(most) = getrlimit(resource).maximum {
            let bounded = |value: Option<u64>| Some(value.map_or(most, |value| value.min(most)));
            (limit.soft, limit.hard) = (bounded(limit.soft), bounded(limit.hard));
        }
    }
    let namespaces = namespaces(payload, |name| name != "net" || plan.inside.network == Network::None)?;
    let mut watched: SigSet = RELAYED.iter().copied().collect();
    watched.extend([Signal::SIGCHLD, Signal::SIGWINCH]);
    agentd_sys::signal::hear_of_children().to("hear of children")?;
    let signals = agentd_sys::signal::descriptor(&watched).to("block signals")?;
    let (channel, inside) = agentd_sys::channel::pair().to("make a channel")?;
    let process = &plan.inside.process;
    let wanted = Wanted { terminal: process.terminal, input: process.input, own: Own::Standard, kept: None };
    let (streams, stdio) = Streams::new(&wanted).to("set the streams up")?;
    let leaf = leaf.map(leaf::open).transpose()?;
    let usher = match clone_beside(payload, leaf.as_ref().map(AsFd::as_fd))? {
        Some(Cloned::Child) => {
            agentd_sys::memory::forget_environment();
            guest::run(&plan.inside, namespaces, guest::Descriptors { channel: inside, stdio })
        }
        Some(Cloned::Parent { pidfd, .. }) => Some(pidfd),
        None => {
            caller.ask(Request::Porter, Some(inside.as_fd()))?;
            let stdio = stdio.each_ref().map(AsFd::as_fd);
            porter::send(&channel, &plan.inside, stdio, leaf.as_ref().map(AsFd::as_fd), &namespaces)
                .to("tell the supervisor's process what to start")?;
            None
        }
    };
    drop((namespaces, inside, stdio));
    let mut guest = Guest { caller, signals, channel: Some(channel), streams, failure: None, status: None };
    let seen = guest.see_through();
    // It has left by now, or goes with the channel.
    guest.channel = None;
    if let Some(usher) = usher {
        waitid(WaitId::PidFd(usher.as_fd()), WaitIdOptions::EXITED).to("reap a process")?;
    }
    seen?;
    // A box that goes takes no process (ENOMEM, clone(2)) a moment before its payload dies: which step failed for that says
    // nothing to anybody.
    let is_its_end = guest.failure.as_ref().is_some_and(|failure| failure.errno == libc::ENOMEM);
    let patience = if is_its_end { MOMENT } else { 0 };
    if guest.failure.is_some() && has_ended(payload, patience)? {
        return Err(GuestError::Ended);
    }
    match (guest.failure, guest.status) {
        (None, None) => Err(GuestError::Ended),
        (failure, status) => Ok(Ending::new(failure, status, None, None, None)),
    }
}

/// Sockets that listen at `ports` inside the box that `payload` is in. This process is in its user and network namespace
/// afterwards, and is good for nothing else.
///
/// # Errors
/// [`GuestError`].
pub fn doors(payload: &OwnedFd, ports: &[u16]) -> Result<Vec<OwnedFd>, GuestError> {
    let namespaces = namespaces(payload, |name| matches!(name, "user" | "net"))?;
    guest::doors(namespaces, ports).map_err(|(port, source)| match port {
        Some(port) => GuestError::Port { port, source },
        None => GuestError::Host { what: "join the box's network", source },
    })
}

struct Guest<'c> {
    caller: &'c Caller,
    signals: SignalFd,
    channel: Option<OwnedFd>,
    streams: Streams,
    failure: Option<Failure>,
    status: Option<i32>,
}

impl Guest<'_> {
    fn see_through(&mut self) -> Result<(), GuestError> {
        while self.channel.is_some() || !self.streams.drained().to("pass the output on")? {
            let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
            fds.extend(self.channel.as_ref().map(|channel| PollFd::new(channel, PollFlags::IN)));
            self.streams.interest(&mut fds);
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).to("wait for the command"),
            }
            let heard = self.channel.is_some() && fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            drop(fds);
            if heard {
                self.hear()?;
            }
            while let Some(info) = self.signals.read_signal().to("read signals")? {
                match i32::try_from(info.ssi_signo).ok().and_then(|raw| Signal::try_from(raw).ok()) {
                    Some(Signal::SIGWINCH) => self.streams.resize(),
                    Some(Signal::SIGCHLD) | None => {}
                    // The command ends with the channel.
                    Some(Signal::SIGHUP) => {
                        self.status = Some(libc::SIGHUP);
                        return Ok(());
                    }
                    Some(signal) => match self.channel.as_ref().map(|channel| guest::signal(channel, signal as i32)) {
                        Some(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                            return Err(error).to("pass a signal on");
                        }
                        _ => {}
                    },
                }
            }
            self.streams.pass().to("pass the output on")?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<(), GuestError> {
        let Some(channel) = &self.channel else { return Ok(()) };
        match report::receive(channel).to("hear from the box")? {
            Some((Report::Terminal, Some(controller))) => self.streams.attach(controller).to("use the terminal")?,
            Some((Report::Failed(failure), _)) => (self.failure, self.channel) = (Some(failure), None),
            Some((Report::Exited { status, .. }, _)) => (self.status, self.channel) = (Some(status), None),
            Some((Report::Started, _)) => {}
            Some((Report::Denials, Some(listener))) => {
                // Without anybody who listens they are refused all the same, as calls that do not exist.
                if let Err(error) = self.caller.ask(Request::Listen, Some(listener.as_fd())) {
                    tracing::debug!(%error, "refused calls are not told");
                }
            }
            Some(_) => return Err(io::Error::from(io::ErrorKind::InvalidData)).to("hear from the box"),
            None => self.channel = None,
        }
        Ok(())
    }
}

/// Clones this process into the cgroup that the box is in; `None` where only its supervisor can.
fn clone_beside(payload: &OwnedFd, leaf: Option<BorrowedFd<'_>>) -> Result<Option<Cloned>, GuestError> {
    if leaf.is_none() {
        // The job is in its supervisor's cgroup, which may be a unit with limits of its own.
        let cgroup = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup"));
        let of_box = match cgroup(&number(payload)?) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                return Err(GuestError::Ended);
            }
            read => read.to("look at the box's cgroup")?,
        };
        let own = cgroup("self").to("look at this process's cgroup")?;
        if crate::cgroup::own(&of_box) != crate::cgroup::own(&own) {
            return Ok(None);
        }
    }
    match clone_into(0, leaf) {
        // Not from the cgroup that this process is in, or not from its cgroup namespace.
        Err(error) if leaf.is_some() && matches!(error.raw_os_error(), Some(libc::EACCES | libc::ENOENT)) => Ok(None),
        cloned => cloned.map(Some).to("start a process in the job's cgroup"),
    }
}

/// The process id of the payload.
fn number(payload: &OwnedFd) -> Result<String, GuestError> {
    let info = format!("/proc/self/fdinfo/{}", payload.as_raw_fd());
    let info = fs::read_to_string(info).to("look at the payload")?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim).filter(|pid| *pid != "-1");
    pid.map(str::to_owned).ok_or(GuestError::Ended)
}

/// Those of [`NAMESPACES`] that are wanted, of the box that `payload` is in.
fn namespaces(payload: &OwnedFd, wanted: impl Fn(&str) -> bool) -> Result<Vec<Joined>, GuestError> {
    let path = format!("/proc/{}/ns", number(payload)?);
    // To list it takes its owner, and a payload may have become another id of the box.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = |opened: Result<OwnedFd, Errno>| match opened {
        // It ended meanwhile.
        Err(Errno::NOENT | Errno::SRCH) => Err(GuestError::Ended),
        // A process on its way out has namespaces that nobody may open any more.
        Err(Errno::ACCESS) if has_ended(payload, MOMENT)? => Err(GuestError::Ended),
        opened => opened.to("open the box's namespaces"),
    };
    let directory = opened(openat(CWD, path, flags, Mode::empty()))?;
    let mut joined = Vec::new();
    for (name, kind) in NAMESPACES {
        if !wanted(name) {
            continue;
        }
        let descriptor = opened(openat(&directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))?;
        joined.push(Joined { descriptor, kind, name });
    }
    // Still that process: the number belonged to it all the while.
    if has_ended(payload, 0)? {
        return Err(GuestError::Ended);
    }
    check(&joined)?;
    Ok(joined)
}

/// Whether the payload ends within so many seconds.
fn has_ended(payload: &OwnedFd, seconds: i64) -> Result<bool, GuestError> {
    let mut fds = [PollFd::new(payload, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).to("look at the payload")? > 0)
}

fn check(joined: &[Joined]) -> Result<(), GuestError> {
    let mut users: Option<(u64, u64)> = None;
    for Joined { descriptor, name, .. } in joined {
        let is_the_boxes = match users {
            None => {
                let ours = fs::metadata("/proc/self/ns/user").to("look at this process's namespace")?;
                users = Some(identity(descriptor.as_fd())?);
                parent(descriptor.as_fd()).is_ok_and(|of| identity(of.as_fd()).ok() == Some((ours.dev(), ours.ino())))
            }
            Some(user) => owner(descriptor.as_fd()).is_ok_and(|of| identity(of.as_fd()).ok() == Some(user)),
        };
        if !is_the_boxes {
            return Err(GuestError::Foreign(name));
        }
    }
    Ok(())
}

/// Device and inode: which namespace it is.
fn identity(namespace: BorrowedFd<'_>) -> Result<(u64, u64), GuestError> {
    let metadata = namespace.try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
    metadata.map(|metadata| (metadata.dev(), metadata.ino())).to("look at a namespace")
}
