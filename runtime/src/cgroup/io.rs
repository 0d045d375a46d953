//! Limits on reading and writing block devices (`io.max`, cgroup-v2.rst).
//!
//! Invariant: a device is a whole disk by its number; the kernel takes no other, and what has none (tmpfs, a network) is refused.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One limit on one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// `MAJOR:MINOR`.
    pub disk: String,
    /// What is bounded.
    pub what: IoKind,
    /// How many of it a second.
    pub most: u64,
}

/// What of a disk's work is bounded; the names are those of `io.max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoKind {
    /// Bytes read.
    Rbps,
    /// Bytes written.
    Wbps,
    /// Reads.
    Riops,
    /// Writes.
    Wiops,
}

impl IoKind {
    /// The flag that asks for it: docker's and podman's.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            Self::Rbps => "--device-read-bps",
            Self::Wbps => "--device-write-bps",
            Self::Riops => "--device-read-iops",
            Self::Wiops => "--device-write-iops",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Rbps => "rbps",
            Self::Wbps => "wbps",
            Self::Riops => "riops",
            Self::Wiops => "wiops",
        }
    }
}

impl IoLimit {
    /// A line of `io.max`.
    pub(super) fn line(&self) -> String {
        format!("{} {}={}", self.disk, self.what.key(), self.most)
    }
}

/// A disk that cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is not there, or hidden.
    #[error("cannot look at {}", path.display())]
    Look {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file system without one disk.
    #[error("{} lies on no disk of its own (tmpfs, overlay, btrfs, a network): name the block device", .0.display())]
    NoDisk(PathBuf),
}

/// The disk that `path` is, is a part of, or lies on.
///
/// # Errors
/// [`DiskError`].
pub fn disk_of(path: &Path) -> Result<String, DiskError> {
    let look = |source| DiskError::Look { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(look)?;
    let device = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let known = PathBuf::from(format!("/sys/dev/block/{number}"));
    if fs::metadata(&known).is_err() {
        return Err(DiskError::NoDisk(path.to_owned()));
    }
    if fs::metadata(known.join("partition")).is_err() {
        return Ok(number);
    }
    // A partition's directory lies in its disk's.
    Ok(fs::read_to_string(known.join("../dev")).map_err(look)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_line_of_the_kernels() {
        let limit = IoLimit { disk: "254:0".into(), what: IoKind::Wbps, most: 1 << 20 };
        assert_eq!(limit.line(), "254:0 wbps=1048576");
    }

    #[test]
    fn what_lies_on_no_disk_is_refused() {
        assert!(matches!(disk_of(Path::new("/proc")), Err(DiskError::NoDisk(_))));
        assert!(matches!(disk_of(Path::new("/nonexistent")), Err(DiskError::Look { .. })));
    }
}
