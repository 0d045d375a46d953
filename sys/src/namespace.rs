//! Whose a namespace is (ioctl_ns(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `_IO(0xb7, 1)` of <linux/nsfs.h>, since Linux 4.9.
const NS_GET_USERNS: u8 = 1;
/// The same for the parent, since Linux 4.9.
const NS_GET_PARENT: u8 = 2;

/// The user namespace that owns `namespace`.
///
/// # Errors
/// `EPERM` when that lies outside the caller's own; else the errno of the ioctl.
pub fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    ask(namespace, NS_GET_USERNS)
}

/// The parent of a user or pid namespace.
///
/// # Errors
/// `EPERM` when that lies outside the caller's own; else the errno of the ioctl.
pub fn parent(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    ask(namespace, NS_GET_PARENT)
}

fn ask(namespace: BorrowedFd<'_>, request: u8) -> io::Result<OwnedFd> {
    let request = nix::request_code_none!(0xb7, request);
    // SAFETY: both requests take no argument and give a new descriptor.
    let fd = super::check(unsafe { libc::ioctl(namespace.as_raw_fd(), request as libc::Ioctl) }.into())?;
    let fd = i32::try_from(fd).map_err(|_too_large| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel made this descriptor just now, close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_mount_namespace_belongs_to_the_user_namespace_around_it() {
        let user = File::open("/proc/self/ns/user").unwrap().metadata().unwrap();
        let mount = File::open("/proc/self/ns/mnt").unwrap();
        let found = File::from(owner(mount.as_fd()).unwrap()).metadata().unwrap();
        assert_eq!((found.dev(), found.ino()), (user.dev(), user.ino()));
        let error = parent(File::open("/proc/self/ns/user").unwrap().as_fd());
        assert!(error.is_err(), "the parent of the outermost is nobody's to see");
    }
}
