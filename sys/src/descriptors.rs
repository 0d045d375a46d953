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

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range(2) touches no memory; that the descriptors have no user left is this module's contract.
    super::check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}
