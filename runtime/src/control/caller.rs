//! The side that asks.
//!
//! Invariant: no process is signalled by a bare number. The supervisor is found by a pidfd, and is the one only if it holds
//! the job's file open, looked up after that pidfd was there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use agentd_sys::channel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, inotify, open, statvfs};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Answer, Request, SOCKET, decode, encode};
use crate::job::id::JobId;
use crate::job::record::State;
use crate::job::store::{JobStoreError, Jobs};

/// How long a supervisor may take for an answer: it never waits for anything itself, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// A job that cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The record.
    #[error(transparent)]
    Store(#[from] JobStoreError),
    /// It has ended.
    #[error("job {0} does not run: {1}")]
    NotRunning(JobId, String),
    /// Its supervisor is about to be gone; until then the record is locked.
    #[error("job {0} does not run: it has just ended")]
    Ending(JobId),
    /// Nobody answers.
    #[error("the supervisor of job {id} (pid {pid}) does not answer; `agentd rm -f {id}` ends it and forgets the job")]
    Silent {
        /// The job.
        id: JobId,
        /// The process.
        pid: u32,
    },
    /// It cannot make its socket.
    #[error(
        "job {id} cannot be talked to: its supervisor can make no socket in its directory ({source}); make room there, or `agentd stop {id}`"
    )]
    NoSocket {
        /// The job.
        id: JobId,
        /// Why not.
        source: io::Error,
    },
    /// It says no.
    #[error("job {id}: {reason}")]
    Refused {
        /// The job.
        id: JobId,
        /// Its words.
        reason: String,
    },
    /// The operating system.
    #[error("cannot {what} of job {id}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The job.
        id: JobId,
        /// Why not.
        source: io::Error,
    },
}

/// A connection to a job's supervisor.
#[derive(Debug)]
pub struct Caller {
    id: JobId,
    pid: u32,
    socket: OwnedFd,
}

impl Caller {
    /// Reaches the supervisor of a job.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn reach(jobs: &Jobs, id: &JobId) -> Result<Self, ControlError> {
        let (pid, supervisor) = supervisor(jobs, id)?;
        let to = |what| move |source: io::Error| ControlError::Io { what, id: id.clone(), source };
        let silent = || ControlError::Silent { id: id.clone(), pid };
        let directory = jobs.directory_of(id);
        let begun = Instant::now();
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(|e| to("wait for the socket")(e.into()))?;
        match inotify::add_watch(&watch, &directory, inotify::WatchFlags::MOVED_TO) {
            // Another command has forgotten the job meanwhile.
            Err(Errno::NOENT) => return Err(ControlError::Ending(id.clone())),
            watched => watched.map_err(|e| to("wait for the socket")(e.into()))?,
        };
        let mut has_asked = false;
        loop {
            match reach(&directory) {
                Ok(socket) => return Ok(Caller { id: id.clone(), pid, socket }),
                // Not made yet; or of a supervisor that is gone, if this one has none.
                Err(Errno::NOENT | Errno::CONNREFUSED) => {}
                Err(Errno::AGAIN) => return Err(silent()),
                Err(error) => return Err(to("reach the supervisor")(error.into())),
            }
            if !has_asked {
                if let Some(source) = refusal(&directory) {
                    return Err(ControlError::NoSocket { id: id.clone(), source });
                }
                match pidfd_send_signal(&supervisor, Signal::URG) {
                    Err(Errno::SRCH) => return Err(ControlError::Ending(id.clone())),
                    called => called.map_err(|e| to("call the supervisor")(e.into()))?,
                }
                has_asked = true;
                continue;
            }
            let fds = &mut [PollFd::new(&watch, PollFlags::IN), PollFd::new(&supervisor, PollFlags::IN)];
            let ready = wait(fds, begun).map_err(to("wait for the socket"))?;
            let [made, gone] = fds;
            if !ready {
                return Err(silent());
            }
            if !gone.revents().is_empty() {
                return Err(ControlError::Ending(id.clone()));
            }
            if !made.revents().is_empty() {
                // What is said does not matter: the next round looks. More than fits would wake it again.
                rustix::io::read(&watch, &mut [0; 4096]).map_err(|e| to("wait for the socket")(e.into()))?;
            }
        }
    }

    /// Asks, and waits for the answer; the descriptor that came with it.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn ask(
        &self,
        request: Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(Answer, Option<OwnedFd>), ControlError> {
        let to = |source: io::Error| ControlError::Io { what: "talk to the supervisor", id: self.id.clone(), source };
        let line = encode(&request).map_err(|error| to(error.into()))?;
        let ending = || ControlError::Ending(self.id.clone());
        match channel::send(self.socket.as_fd(), &line, descriptor) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => return Err(ending()),
            sent => sent.map_err(to)?,
        }
        let answered = wait(&mut [PollFd::new(&self.socket, PollFlags::IN)], Instant::now()).map_err(to)?;
        if !answered {
            return Err(ControlError::Silent { id: self.id.clone(), pid: self.pid });
        }
        let Some(message) = channel::receive(&self.socket).map_err(to)? else {
            return Err(ending());
        };
        match decode(&message.bytes).map_err(|error| to(error.into()))? {
            Answer::Refused { reason } => Err(ControlError::Refused { id: self.id.clone(), reason }),
            answer => Ok((answer, message.descriptor)),
        }
    }

    /// Asks for something that is answered by [`Answer::Done`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn tell(&self, request: Request) -> Result<(), ControlError> {
        self.ask(request, None).map(drop)
    }
}

/// Ends a job whose supervisor does not answer: SIGKILL for that process, with which the kernel ends the box.
///
/// # Errors
/// [`ControlError::NotRunning`]; [`ControlError::Ending`].
pub fn end(jobs: &Jobs, id: &JobId) -> Result<(), ControlError> {
    send(jobs, id, Signal::KILL)
}

fn send(jobs: &Jobs, id: &JobId, signal: Signal) -> Result<(), ControlError> {
    let (_, supervisor) = supervisor(jobs, id)?;
    match pidfd_send_signal(&supervisor, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(ControlError::Io { what: "end the supervisor", id: id.clone(), source: error.into() }),
    }
}

/// Stops a job whose supervisor can make no socket: SIGTERM for that process, which then ends the box as it was started to.
///
/// # Errors
/// [`ControlError::NotRunning`]; [`ControlError::Ending`].
pub fn terminate(jobs: &Jobs, id: &JobId) -> Result<(), ControlError> {
    send(jobs, id, Signal::TERM)
}

/// Whether a job whose record is locked has no supervisor any more, or one that is about to be gone: then the lock is free in
/// a moment. Where its number is another process's that cannot be said, and it is not.
#[must_use]
pub fn is_gone(jobs: &Jobs, id: &JobId) -> bool {
    let Ok(record) = jobs.read(id) else { return false };
    let pid = i32::try_from(record.supervisor_pid).ok().and_then(Pid::from_raw);
    record.state != State::Running
        || pid.is_none_or(|pid| pidfd_open(pid, PidfdFlags::empty()).is_err())
        || matches!(supervisor(jobs, id), Err(ControlError::Ending(_)))
}

/// A pidfd of a job's supervisor.
///
/// # Errors
/// [`ControlError::NotRunning`]; [`ControlError::Ending`].
fn supervisor(jobs: &Jobs, id: &JobId) -> Result<(u32, OwnedFd), ControlError> {
    let record = jobs.read(id)?;
    if record.state != State::Running {
        return Err(ControlError::NotRunning(id.clone(), record.state.summary()));
    }
    let number = record.supervisor_pid;
    let not_there = || ControlError::NotRunning(id.clone(), "its supervisor is gone".into());
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or_else(not_there)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_gone| not_there())?;
    // A number is used again; what only the supervisor has open is not.
    let live = jobs.live(id);
    let holds = |entry: io::Result<fs::DirEntry>| fs::read_link(entry?.path()).map(|target| target == live);
    let files = format!("/proc/{number}/fd");
    if fs::read_dir(&files).is_ok_and(|mut open| open.any(|entry| holds(entry).unwrap_or(false))) {
        return Ok((number, pidfd));
    }
    // Looked at again, for it may have begun to end meanwhile. A process that ends has no memory any more, and with that nobody but root may look at it; then no table of files; and
    // only then are the files closed.
    let is_ending = match fs::read_dir(&files) {
        Ok(mut open) => open.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    };
    if is_ending { Err(ControlError::Ending(id.clone())) } else { Err(not_there()) }
}

/// The socket by its directory: the whole path may be longer than an address can be (unix(7)).
fn reach(directory: &Path) -> Result<OwnedFd, Errno> {
    let directory = open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Where too many wait to be heard, connect(2) waits no longer than this either (unix(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    connect(&socket, &address(&directory, SOCKET)?)?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket)
}

/// Why no socket can be made in a directory, as far as its file system says: that the supervisor does not make one is to be
/// known without waiting for it. One that counts no inodes says that it has none at all.
fn refusal(directory: &Path) -> Option<io::Error> {
    let space = statvfs(directory).ok()?;
    let is_full = space.f_files > 0 && space.f_favail == 0;
    let errno = if space.f_flag.contains(StatVfsMountFlags::RDONLY) { Some(Errno::ROFS) } else { None };
    errno.or(is_full.then_some(Errno::NOSPC)).map(io::Error::from)
}

/// The address of a socket in `directory`.
pub(crate) fn address(directory: &OwnedFd, name: &str) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Whether anything came within [`PATIENCE`] after `begun`.
fn wait(fds: &mut [PollFd<'_>], begun: Instant) -> io::Result<bool> {
    loop {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(fds, Some(&timeout)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}
