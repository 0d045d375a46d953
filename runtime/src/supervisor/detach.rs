//! `run -d`: the supervisor goes on in a process of its own, and who started it hears how the start went.
//!
//! Invariant: once the start is told, nothing of the caller's is held any more: no descriptor, no directory, no session.
//! Until then the supervisor speaks on the caller's streams, as one in the foreground does, and a caller that goes away
//! ends the start.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;

use agentd_sys::process::{Cloned, clone};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, chdir, setsid, waitpid};

use super::ending::AGENTD_FAILED;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Apart {
    /// The one that was called: the job runs.
    Started,
    /// The one that was called: there is no job; what `agentd run` exits with.
    Ended(u8),
    /// The one that goes on as the supervisor.
    Supervisor(Notice),
}

/// What tells the caller that the job runs.
#[derive(Debug)]
pub struct Notice(File);

/// Forks, and in the process that was called waits until the other tells; `callers` are descriptors that it is not to hold.
///
/// # Errors
/// The errno of the call that failed.
pub fn apart(callers: &[RawFd]) -> io::Result<Apart> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    match clone(0)? {
        Cloned::Child => {
            drop(reader);
            agentd_sys::descriptors::close(callers)?;
            setsid()?;
            chdir("/")?;
            Ok(Apart::Supervisor(Notice(writer.into())))
        }
        Cloned::Parent { pid, .. } => {
            drop(writer);
            if File::from(reader).read(&mut [0])? == 1 {
                return Ok(Apart::Started);
            }
            let status = waitpid(Some(pid), WaitOptions::empty())?.map(|(_, status)| status);
            let code = status.and_then(|status| {
                status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
            });
            Ok(Apart::Ended(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(AGENTD_FAILED)))
        }
    }
}

impl Notice {
    /// Lets go of the caller's streams, and tells it.
    pub(super) fn tell(mut self) -> io::Result<()> {
        let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        // A caller that has gone just now need not be told.
        self.0
            .write_all(b"S")
            .or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
    }
}
