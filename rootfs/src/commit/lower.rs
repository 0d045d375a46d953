//! The layers below what a job wrote: whether they have a directory, and what it looks like.
//!
//! Invariant: layers are an image's, so nothing of them is followed; what cannot be looked at counts as being there, which
//! never shows what the job had hidden.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, fgetxattr, fstat, openat};
use rustix::io::Errno;

use super::writer::Mtime;
use crate::unpack::OPAQUE;

/// Mode and mtime.
pub(super) type Attributes = (u32, Mtime);

/// What the layers together have at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Below {
    /// No directory.
    Nothing,
    /// A directory; its attributes, where they can be seen.
    Directory(Option<Attributes>),
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub(super) struct Lowers {
    /// Topmost first.
    layers: Vec<OwnedFd>,
}

/// What one layer says of a path.
enum Said {
    Directory(Option<Attributes>),
    /// It has none, and hides what lies below.
    Nothing,
    /// Not this layer's matter.
    Pass,
}

impl Lowers {
    /// `layers`: their directories, lowest first.
    pub(super) fn open(layers: &[PathBuf]) -> Result<Lowers, Errno> {
        let opened = layers.iter().rev().map(|path| openat(CWD, path, OFlags::PATH | DIRECTORY, Mode::empty()));
        Ok(Lowers { layers: opened.collect::<Result<_, _>>()? })
    }

    /// What they have at `path` (names with slashes between).
    pub(super) fn find(&self, path: &[u8]) -> Result<Below, Errno> {
        for layer in &self.layers {
            match ask(layer, path)? {
                Said::Directory(attributes) => return Ok(Below::Directory(attributes)),
                Said::Nothing => return Ok(Below::Nothing),
                Said::Pass => {}
            }
        }
        Ok(Below::Nothing)
    }
}

fn ask(layer: &OwnedFd, path: &[u8]) -> Result<Said, Errno> {
    let mut at: Option<OwnedFd> = None;
    let mut hides = false;
    for name in path.split(|byte| *byte == b'/') {
        let parent = at.as_ref().map_or(layer.as_fd(), AsFd::as_fd);
        match openat(parent, name, DIRECTORY, Mode::empty()) {
            Ok(opened) => {
                hides |= is_opaque(&opened)?;
                at = Some(opened);
            }
            Err(Errno::NOENT) if hides => return Ok(Said::Nothing),
            Err(Errno::NOENT) => return Ok(Said::Pass),
            // A whiteout is a device.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Said::Nothing),
            Err(Errno::ACCESS) => return Ok(Said::Directory(None)),
            Err(errno) => return Err(errno),
        }
    }
    let Some(found) = at else { return Ok(Said::Pass) };
    let stat = fstat(&found)?;
    Ok(Said::Directory(Some((stat.st_mode & 0o7777, (stat.st_mtime, nanoseconds(stat.st_mtime_nsec))))))
}

/// Whether a directory of a layer, or of what a job wrote, hides what lies below it.
pub(super) fn is_opaque(directory: impl AsFd) -> Result<bool, Errno> {
    let mut value = [0u8; 8];
    match fgetxattr(directory, OPAQUE, &mut value) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The kernel's are below a thousand million.
pub(super) fn nanoseconds<N: TryInto<u32>>(nanoseconds: N) -> u32 {
    nanoseconds.try_into().unwrap_or_default()
}
