//! Making processes: `clone3(2)` without an exec in between, the capability bounding set, exit without unwinding.
//!
//! Invariant: a clone is only made while this process has one thread, so the child may use everything (the allocator
//! above all) as its parent would.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::process::Pid;

/// Which side of the clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    Child,
    /// The process that called, holding the child's pid (as seen here) and a pidfd for it.
    Parent {
        /// Process id of the child in the caller's pid namespace.
        pid: Pid,
        /// Close-on-exec pidfd of the child.
        pidfd: OwnedFd,
    },
}

/// Namespaces to create together with the child; bits of `CLONE_NEW*`.
pub type NamespaceFlags = u64;

/// The namespaces that PID 1 is cloned into.
pub const BOX_NAMESPACES: NamespaceFlags = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// The whole of a new namespace; a box that begins in a cgroup of its own has to make this one itself, for the kernel takes
/// the parent's cgroup as the root of what `clone3` makes.
pub const CGROUP_NAMESPACE: NamespaceFlags = libc::CLONE_NEWCGROUP as u64;

/// `CLONE_INTO_CGROUP` of linux/sched.h, which the libc crate has as an `int` that it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A thread that was joined has run its last line, but the kernel may still be taking it down.
const THREADS_END_WITHIN: Duration = Duration::from_secs(1);

fn has_one_thread() -> io::Result<bool> {
    // A directory has a link a subdirectory and two of its own: here, a thread each.
    Ok(fs::metadata("/proc/self/task")?.nlink() == 3)
}

/// Clones this process like `fork`, into new namespaces.
///
/// # Errors
/// `EBUSY` when this process has, and keeps for a second, more than one thread; else the errno of `clone3(2)`: `EPERM` or `ENOSPC` where user
/// namespaces are restricted.
pub fn clone(namespaces: NamespaceFlags) -> io::Result<Cloned> {
    clone_into(namespaces, None)
}

/// The same, and the child begins in `cgroup`, the descriptor of a cgroup v2 directory (Linux 5.7): it takes 0.03 ms where
/// moving it there takes up to 7.
///
/// # Errors
/// Those of [`clone`]; `EACCES` where this user may not move processes between the two cgroups, `EBUSY` where `cgroup` has
/// cgroups with controllers below it, `EAGAIN` where its limit on processes is reached.
pub fn clone_into(namespaces: NamespaceFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let begun = Instant::now();
    while !has_one_thread()? {
        if begun.elapsed() > THREADS_END_WITHIN {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        std::thread::yield_now();
    }
    clone_now(namespaces, cgroup)
}

/// The same in a process that is itself a clone and has started no thread since: for where its `/proc` is not to be had.
///
/// # Errors
/// The errno of `clone3(2)`.
pub fn clone_again() -> io::Result<Cloned> {
    clone_now(0, None)
}

fn clone_now(namespaces: NamespaceFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid clone_args: no flags, no stacks, no pointers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_negative| io::ErrorKind::InvalidInput)?;
    }
    // SAFETY: clone3(2) with a zero stack acts like fork; without CLONE_VM the child gets its own copy of this
    // single-threaded process (checked or promised above), so no lock can be held by a thread that does not exist there.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match super::check(ret)? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor here (CLONE_PIDFD), and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Ends this process at once: no destructors, no `atexit` handlers, which in a clone would be the parent's.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(status) }
}

/// Drops every capability but those whose bits are set in `keep` from the bounding set of this thread, those newer than this
/// program included.
///
/// # Errors
/// The errno of `prctl(2)` (`EPERM` without CAP_SETPCAP), when it is not the `EINVAL` that marks the end of the
/// kernel's list.
pub fn drop_bounding_set(keep: u64) -> io::Result<()> {
    for capability in (0..64).filter(|capability| keep & (1 << capability) == 0) {
        // SAFETY: PR_CAPBSET_DROP takes an integer and touches no memory of ours.
        let ret = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match super::check(ret.into()) {
            Ok(_) => {}
            Err(error) if capability > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_thread_that_stays_is_not_cloned() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let stays = std::thread::spawn(move || receiver.recv().is_err());
        let error = clone(0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        drop(sender);
        assert!(stays.join().unwrap());
    }
}
