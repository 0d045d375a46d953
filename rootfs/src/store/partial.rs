//! Downloads that were broken off, kept so that the next pull goes on where they ended.
//!
//! `tmp/blob-ALGORITHM-HEX.partial` is locked (flock) by whoever appends to it. Invariant: two pulls never append to one
//! file, and its bytes are believed no more than the network's: they are hashed with the rest.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, openat, statat, unlinkat};
use rustix::io::{Errno, Result};

use super::{Store, StoreError};
use crate::digest::Digest;

const SUFFIX: &str = ".partial";

/// A download that nobody went on with for so long is not waited for any more.
pub(super) const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

fn name(digest: &Digest) -> String {
    format!("blob-{}-{}{SUFFIX}", digest.algorithm(), digest.hex())
}

/// What is left of an earlier download of the blob, perhaps nothing, to read and to append to. `None` while another pull
/// has it: then the blob is downloaded without.
pub(crate) fn open(tmp: &OwnedFd, digest: &Digest) -> Result<Option<File>> {
    let name = name(digest);
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(tmp, &name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(if is_ours(tmp, &name, &file)? { Some(file.into()) } else { None })
}

/// Forgets a download: it is complete and used, or it is damaged.
pub(crate) fn remove(tmp: &OwnedFd, digest: &Digest) {
    // What cannot be removed now is swept later.
    unlinkat(tmp, name(digest), AtFlags::empty()).ok();
}

/// Whether the lock can be had, and `name` still names the file.
fn is_ours(tmp: &OwnedFd, name: &str, file: &OwnedFd) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    match statat(tmp, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok(named.st_ino == fstat(file)?.st_ino),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

impl Store {
    /// Broken-off downloads that nobody goes on with now and that were last written before `kept`: name and bytes.
    pub(super) fn old_partials(&self, kept: Duration) -> std::result::Result<Vec<(String, u64)>, StoreError> {
        let before =
            SystemTime::now().checked_sub(kept).and_then(|then| then.duration_since(SystemTime::UNIX_EPOCH).ok());
        let before = before.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        let mut old = Vec::new();
        for name in self.list(&self.root, "tmp")? {
            if !name.ends_with(SUFFIX) {
                continue;
            }
            let Ok(file) = openat(&self.tmp, &name, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            else {
                continue;
            };
            let stat = fstat(&file).map_err(StoreError::io("examine", &self.path))?;
            if stat.st_mtime <= before
                && is_ours(&self.tmp, &name, &file).map_err(StoreError::io("lock", &self.path))?
            {
                old.push((name, u64::try_from(stat.st_size).unwrap_or(0)));
            }
        }
        Ok(old)
    }

    /// Removes them.
    pub(super) fn remove_partials(&self, names: &[(String, u64)]) -> std::result::Result<(), StoreError> {
        for (name, _) in names {
            match unlinkat(&self.tmp, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(StoreError::io("remove from", &self.path)(errno)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::stream::tests::sha256;

    #[test]
    fn a_partial_has_one_writer_and_keeps_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let tmp: OwnedFd = File::open(dir.path()).unwrap().into();
        let digest = sha256(b"x");
        let mut first = open(&tmp, &digest).unwrap().unwrap();
        first.write_all(b"half").unwrap();
        assert!(open(&tmp, &digest).unwrap().is_none());
        drop(first);
        let mut again = open(&tmp, &digest).unwrap().unwrap();
        let mut text = String::new();
        again.rewind().unwrap();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "half");
        remove(&tmp, &digest);
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}
