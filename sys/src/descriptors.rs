//! Closing what must not be inherited.

use std::io;
use std::os::fd::RawFd;

/// Closes every descriptor above 2 but those in `keep`, whoever opened them (CVE-2024-21626: a leaked directory
/// descriptor is a way out of the box). Owners of a closed descriptor must not be used afterwards.
///
/// # Errors
/// The errno of `close_range(2)` (Linux 5.9).
pub fn close_all_but(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut first: u32 = 3;
    for fd in keep.iter().copied().filter_map(|fd| u32::try_from(fd).ok()).filter(|fd| *fd > 2) {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

/// The descriptors above 2 that are open now.
///
/// # Errors
/// Those of reading /proc/self/fd.
pub fn open_now() -> io::Result<Vec<RawFd>> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()).filter(|fd| *fd > 2));
    }
    // The one that lists them is closed by now.
    open.retain(|fd| is_open(*fd));
    Ok(open)
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer, and that a number is no descriptor is an error, EBADF.
    super::check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into()).is_ok()
}

/// Closes `fds`; that one is closed already is no error. Owners of them must not be used afterwards.
///
/// # Errors
/// The errno of `close_range(2)`.
pub fn close(fds: &[RawFd]) -> io::Result<()> {
    fds.iter().filter_map(|fd| u32::try_from(*fd).ok()).try_for_each(|fd| close_range(fd, fd))
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range(2) touches no memory; that the descriptors have no user left is this module's contract.
    super::check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}
