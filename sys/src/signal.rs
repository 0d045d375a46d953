//! Signal dispositions and masks across a start: the payload begins with the kernel's defaults.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use rustix::process::Pid;

/// Puts every signal back to its default action and unblocks all of them. Ignored signals survive `execve(2)`, and
/// Rust's start-up ignores SIGPIPE: a payload that inherited that would not end with its reader.
///
/// # Errors
/// The errno of `sigprocmask(2)`.
pub fn reset() -> io::Result<()> {
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: SIG_DFL installs no handler, so there is no code that could run at a bad moment.
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Sends signal `number` to a process: also a real-time one, by the kernel's numbers, where each libc keeps others back.
///
/// # Errors
/// The errno of `kill(2)`.
pub fn send(to: Pid, number: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes two numbers and touches no memory.
    super::check(unsafe { libc::kill(to.as_raw_nonzero().get(), number) }.into()).map(drop)
}

/// The same to the process group that `leader` leads.
///
/// # Errors
/// The errno of `kill(2)`.
pub fn send_to_group(leader: Pid, number: i32) -> io::Result<()> {
    // SAFETY: as in `send`.
    super::check(unsafe { libc::kill(-leader.as_raw_nonzero().get(), number) }.into()).map(drop)
}

/// The same by a pidfd: to no other process that has the number now.
///
/// # Errors
/// The errno of `pidfd_send_signal(2)`.
pub fn send_by_pidfd(to: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: with a null siginfo the kernel fills in its own; it reads no memory.
    super::check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, to.as_raw_fd(), number, none, 0) }).map(drop)
}

/// Whether the caller was started with SIGHUP ignored, as `nohup(1)` does.
///
/// # Errors
/// The errno of `sigaction(2)`.
pub fn hangup_is_ignored() -> io::Result<bool> {
    // SAFETY: all-zero is a valid sigaction to be overwritten.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with a null new action sigaction(2) only writes the current one to `old`.
    super::check(unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut old) }.into())?;
    Ok(old.sa_sigaction == libc::SIG_IGN)
}

/// Takes one of `signals`, which the caller has blocked; none after `timeout`.
///
/// # Errors
/// The errno of `sigtimedwait(2)`.
pub fn wait(signals: &SigSet, timeout: Option<Duration>) -> io::Result<Option<Signal>> {
    let timeout = timeout.map(TimeSpec::from);
    let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| std::ptr::from_ref(timeout.as_ref()));
    loop {
        // SAFETY: both pointers are of live values or null; a null second argument asks for no details.
        let taken = unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), timeout) };
        match super::check(taken.into()).map_err(|error| error.raw_os_error()) {
            Err(Some(libc::EAGAIN)) => return Ok(None),
            Err(Some(libc::EINTR)) => {}
            Err(errno) => return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EINVAL))),
            Ok(_) => return Ok(Some(Signal::try_from(taken)?)),
        }
    }
}

/// Has the end of children heard of, here and in what is cloned from now on: whoever starts a program with SIGCHLD ignored has
/// its children vanish unheard.
///
/// # Errors
/// The errno of `sigaction(2)`.
pub fn hear_of_children() -> io::Result<()> {
    // SAFETY: as in `reset`.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigDfl) }?;
    Ok(())
}

/// Blocks `signals` and gives a close-on-exec, non-blocking descriptor that yields them instead.
///
/// # Errors
/// The errno of `sigprocmask(2)` or `signalfd(2)`.
pub fn descriptor(signals: &SigSet) -> io::Result<SignalFd> {
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(signals), None)?;
    Ok(SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}
