//! `mount_setattr(2)` (Linux 5.12); the rest of the new mount API is in `rustix::mount`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attributes to set on a mount; none is ever cleared, so this can only tighten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `MOUNT_ATTR_RDONLY`.
    pub read_only: bool,
    /// `MOUNT_ATTR_NOSUID`.
    pub no_suid: bool,
    /// `MOUNT_ATTR_NODEV`.
    pub no_dev: bool,
    /// `MOUNT_ATTR_NOEXEC`.
    pub no_exec: bool,
}

/// Sets `attributes` on the mount that `mount` is the root of, on everything below it too when `recursive`.
///
/// # Errors
/// The errno of `mount_setattr(2)`: `EINVAL` when `mount` is not the root of a mount.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> io::Result<()> {
    let mut set = 0;
    for (wanted, bit) in [
        (attributes.read_only, libc::MOUNT_ATTR_RDONLY),
        (attributes.no_suid, libc::MOUNT_ATTR_NOSUID),
        (attributes.no_dev, libc::MOUNT_ATTR_NODEV),
        (attributes.no_exec, libc::MOUNT_ATTR_NOEXEC),
    ] {
        if wanted {
            set |= bit;
        }
    }
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: mount_setattr(2) reads a NUL-terminated path and `size` bytes of a mount_attr, both live here.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
