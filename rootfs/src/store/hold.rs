//! The lock between those who are about to use layers and those who remove them.
//!
//! `lock` in the store is held shared from the look at the layers until the job that uses them is on record, and
//! exclusively while layers are taken away. Invariant: nothing that takes long happens under the exclusive lock, so a start
//! never waits for the deletion of a tree.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use super::{Store, StoreError};

/// While this lives no layer leaves the store.
#[derive(Debug)]
pub struct Hold {
    _file: OwnedFd,
}

impl Store {
    /// Keeps everything in the store until the value is dropped.
    pub(super) fn hold(&self) -> Result<Hold, StoreError> {
        let file = self.lock_file()?;
        wait_for(&file, FlockOperation::LockShared).map_err(StoreError::io("lock", &self.path))?;
        Ok(Hold { _file: file })
    }

    /// The lock of those who remove; `busy` is called before a wait.
    pub(super) fn alone(&self, busy: &mut dyn FnMut()) -> Result<Hold, StoreError> {
        let file = self.lock_file()?;
        let locked = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                busy();
                wait_for(&file, FlockOperation::LockExclusive)
            }
            locked => locked,
        };
        locked.map_err(StoreError::io("lock", &self.path))?;
        Ok(Hold { _file: file })
    }

    fn lock_file(&self) -> Result<OwnedFd, StoreError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(&self.root, c"lock", flags, Mode::RUSR | Mode::WUSR).map_err(StoreError::io("lock", &self.path))
    }
}

fn wait_for(file: &OwnedFd, how: FlockOperation) -> rustix::io::Result<()> {
    loop {
        match flock(file, how) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
