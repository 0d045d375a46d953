//! Where a path is in its file system, whatever name leads there: a directory that is mounted a second time is the same one.
//!
//! Invariant: a place that cannot be told is an error.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::doctor::host::parse_mounts;

/// A path as its file system has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    device: (u32, u32),
    path: PathBuf,
}

impl Place {
    /// Of an existing `path`, absolute and without links.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)?;
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mounts = parse_mounts(&table);
        let mount = mounts.iter().find(|mount| mount.id == found.stx_mnt_id).ok_or(io::ErrorKind::NotFound)?;
        let below = path.strip_prefix(&mount.point).map_err(io::Error::other)?;
        Ok(Place { device: (found.stx_dev_major, found.stx_dev_minor), path: Path::new(&mount.root).join(below) })
    }

    /// Whether it is `other`, or lies below it.
    pub(super) fn is_in(&self, other: &Self) -> bool {
        self.device == other.device && self.path.starts_with(&other.path)
    }
}
