//! A seccomp program whose refusals another process answers (seccomp_unotify(2), Linux 5.0).
//!
//! Invariant: an answer is an error, but for [`let_through`], which is for learning alone: it has the kernel go on with the
//! call, whose memory the caller can have changed since; its number and its registers it cannot.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

mod calls {
    nix::ioctl_readwrite!(receive, b'!', 0, libc::seccomp_notif);
    nix::ioctl_readwrite!(send, b'!', 1, libc::seccomp_notif_resp);
    nix::ioctl_write_ptr!(id_valid, b'!', 2, u64);
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE` (linux/seccomp.h), which libc has in another type.
const CONTINUE: u32 = 1;

/// A refused call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    id: u64,
    /// The calling thread, as the receiver's pid namespace numbers it.
    pub pid: u32,
    /// The `AUDIT_ARCH_*` word.
    pub arch: u32,
    /// The number, unsigned.
    pub nr: u32,
    /// The argument registers.
    pub args: [u64; 6],
}

/// Puts the calling thread, and every process it starts, under `program`; gives the listener, close-on-exec.
///
/// # Errors
/// `EBUSY` when a program above this one has a listener already; else as [`crate::seccomp::load`].
pub fn load(program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    let len = u16::try_from(program.len()).map_err(|_too_long| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fprog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: SECCOMP_SET_MODE_FILTER reads `len` instructions from `filter`, which `program` holds; it writes none.
    let listener = super::check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const fprog,
        )
    })?;
    let listener = i32::try_from(listener).map_err(|_too_large| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel made this descriptor just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// A waiting call; `None` when its caller is gone, or a signal came first.
///
/// # Errors
/// The errno of the ioctl. It blocks while no call waits: poll first.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Notification>> {
    // SAFETY: all-zero is a valid seccomp_notif, and what the kernel wants to find there.
    let mut untrusted: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: SECCOMP_IOCTL_NOTIF_RECV writes one seccomp_notif, whose size is part of the request's number.
    match unsafe { calls::receive(listener.as_raw_fd(), &raw mut untrusted) } {
        Ok(_) => {}
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let libc::seccomp_data { nr, arch, args, .. } = untrusted.data;
    Ok(Some(Notification { id: untrusted.id, pid: untrusted.pid, arch, nr: nr.cast_unsigned(), args }))
}

/// Whether the call still waits: as long as it does, its thread's number is nobody else's.
#[must_use]
pub fn is_waiting(listener: BorrowedFd<'_>, call: &Notification) -> bool {
    // SAFETY: SECCOMP_IOCTL_NOTIF_ID_VALID reads one u64, whose size is part of the request's number.
    unsafe { calls::id_valid(listener.as_raw_fd(), &raw const call.id) }.is_ok()
}

/// Has the kernel carry a call out as if no filter had asked (`SECCOMP_USER_NOTIF_FLAG_CONTINUE`, Linux 5.5).
///
/// # Errors
/// The errno of the ioctl; that the caller is gone is none.
pub fn let_through(listener: BorrowedFd<'_>, call: &Notification) -> io::Result<()> {
    answer(listener, libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: CONTINUE })
}

/// Answers a call with an error.
///
/// # Errors
/// The errno of the ioctl; that the caller is gone is none.
pub fn refuse(listener: BorrowedFd<'_>, call: &Notification, errno: i32) -> io::Result<()> {
    answer(listener, libc::seccomp_notif_resp { id: call.id, val: 0, error: -errno, flags: 0 })
}

fn answer(listener: BorrowedFd<'_>, mut answer: libc::seccomp_notif_resp) -> io::Result<()> {
    // SAFETY: SECCOMP_IOCTL_NOTIF_SEND reads one seccomp_notif_resp, whose size is part of the request's number.
    match unsafe { calls::send(listener.as_raw_fd(), &raw mut answer) } {
        Ok(_) | Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
