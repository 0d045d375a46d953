//! One lock file a layer, so that two processes that want the same layer do the work once.
//!
//! `tmp/KEY.lock` is held (flock) by whoever builds `tmp/KEY`; the kernel releases it when the holder dies. Invariant:
//! a `tmp/KEY` whose lock is free belongs to nobody, so whoever gets the lock may remove it.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstat, openat, statat, unlinkat};
use rustix::io::{Errno, Result};

use crate::removal::remove_all;

const SUFFIX: &str = ".lock";

/// A held lock. Dropping it removes its file.
pub(crate) struct Lock<'a> {
    tmp: BorrowedFd<'a>,
    name: CString,
    /// Holds the flock; closed after `drop` has removed the name.
    _file: OwnedFd,
}

impl<'a> Lock<'a> {
    /// Takes the lock on `key`; `busy` is called once before a wait.
    pub(crate) fn acquire(tmp: BorrowedFd<'a>, key: &str, busy: &mut dyn FnMut()) -> Result<Lock<'a>> {
        if let Some(lock) = Lock::take(tmp, key, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(lock);
        }
        busy();
        loop {
            if let Some(lock) = Lock::take(tmp, key, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// One attempt. `None`: the file was removed by its last holder between our open and our lock, or is held.
    fn take(tmp: BorrowedFd<'a>, key: &str, how: FlockOperation) -> Result<Option<Lock<'a>>> {
        let name = CString::new(format!("{key}{SUFFIX}")).map_err(|_nul| Errno::INVAL)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(tmp, &name, flags, Mode::RUSR | Mode::WUSR)?;
        loop {
            match flock(&file, how) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let ours = fstat(&file)?;
        match statat(tmp, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if named.st_ino == ours.st_ino => Ok(Some(Lock { tmp, name, _file: file })),
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // A lock file left behind is swept by the next pull.
        unlinkat(self.tmp, &self.name, AtFlags::empty()).ok();
    }
}

/// Removes what dead processes left in `tmp`.
pub(crate) fn sweep(tmp: &OwnedFd) -> Result<()> {
    for entry in Dir::read_from(tmp)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let Some(key) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
        if let Some(_lock) = Lock::take(tmp.as_fd(), key, FlockOperation::NonBlockingLockExclusive)? {
            remove_all(tmp.as_fd(), &CString::new(key).map_err(|_nul| Errno::INVAL)?)?;
        }
    }
    Ok(())
}
