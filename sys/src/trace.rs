//! Stops of traced threads, with signals as the kernel numbers them: also real-time ones, which `nix` has no name for. A
//! thread that stopped for one of them, and whose tracer took that for an error, would stand for ever.

use std::io;

use nix::unistd::Pid;

/// What has become of a traced thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It stopped as its tracer asked, or with its whole process.
    Stopped,
    /// It stopped on its way to a signal, which it gets by [`release`].
    Signal(i32),
    /// It has ended, and is reaped.
    Ended,
}

/// Waits until a thread that this process traces has stopped or ended.
///
/// # Errors
/// `ECHILD` when it traces none of that number.
pub fn wait(thread: Pid) -> io::Result<Seen> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid(2) writes one status, and `status` is live.
        match super::check(unsafe { libc::waitpid(thread.as_raw(), &raw mut status, libc::__WALL) }.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            waited => break waited.map(drop)?,
        }
    }
    Ok(if !libc::WIFSTOPPED(status) {
        Seen::Ended
    } else if status >> 16 == 0 {
        // The event of a stop stands above the 16 bits of the status (ptrace(2)).
        Seen::Signal(libc::WSTOPSIG(status))
    } else {
        Seen::Stopped
    })
}

/// Lets a thread that stands go on, with a signal unless that is 0, and traces it no more.
///
/// # Errors
/// `ESRCH` when it does not stand, or was killed meanwhile.
pub fn release(thread: Pid, signal: i32) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_DETACH takes numbers, and touches no memory of this process.
    super::check(unsafe { libc::ptrace(libc::PTRACE_DETACH, thread.as_raw(), none, libc::c_long::from(signal)) })
        .map(drop)
}
