//! Stores of others, read and never written: images that a team or a cluster shares.
//!
//! Invariant: nobody but root and this user can put a layer, a document or a name into one that is used: each directory
//! that is looked into is checked by descriptor.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, fstat, openat, statat};
use rustix::io::Errno;

use super::StoreError;
use super::place::DIRECTORY;
use crate::printable::printable;

/// One of them.
#[derive(Debug)]
pub(super) struct Extra {
    pub(super) path: PathBuf,
    pub(super) root: OwnedFd,
}

impl Extra {
    pub(super) fn open(path: &Path) -> Result<Extra, StoreError> {
        let refuse = |reason: String| StoreError::Extra { path: shown(path), reason };
        let root = match super::names::open(path) {
            Err(Errno::NOENT) => return Err(refuse("does not exist".into())),
            Err(errno) => return Err(refuse(format!("cannot be opened: {errno}"))),
            Ok(root) => root,
        };
        guarded(&fstat(&root).map_err(|errno| refuse(errno.to_string()))?)
            .map_err(|why| refuse(format!("cannot be trusted: {why}")))?;
        above(path).map_err(|why| refuse(format!("cannot be trusted: {why}")))?;
        for name in ["layers", "images", "blobs"] {
            match openat(&root, name, DIRECTORY, Mode::empty()).and_then(fstat) {
                Ok(stat) => guarded(&stat).map_err(|why| refuse(format!("cannot be trusted: `{name}`: {why}")))?,
                Err(Errno::NOENT) if name == "layers" => return Err(refuse("is no store: it has no `layers`".into())),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(refuse(format!("cannot be used: `{name}`: {errno}"))),
            }
        }
        Ok(Extra { path: path.to_owned(), root })
    }

    /// Whether a layer of it, which is there, may be used.
    pub(super) fn check_layer(&self, key: &str) -> Result<(), StoreError> {
        for name in [format!("layers/{key}"), format!("layers/{key}/fs")] {
            let refuse = |why: String| StoreError::Extra {
                path: shown(&self.path),
                reason: format!("cannot be trusted: `{name}`: {why}"),
            };
            let stat =
                statat(&self.root, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| refuse(errno.to_string()))?;
            guarded(&stat).map_err(refuse)?;
        }
        Ok(())
    }
}

/// Nobody else may put another directory in its place: layers are opened by their paths again.
fn above(path: &Path) -> Result<(), String> {
    for above in path.ancestors().skip(1) {
        let stat = rustix::fs::stat(above).map_err(|errno| format!("{}: {errno}", above.display()))?;
        let is_sticky = stat.st_mode & 0o1000 != 0 && stat.st_uid == 0;
        if !is_sticky {
            guarded(&stat).map_err(|why| format!("{}: {why}", shown(above)))?;
        }
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}

/// Only root and this user may write there.
fn guarded(stat: &rustix::fs::Stat) -> Result<(), String> {
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != me {
        return Err(format!("it belongs to uid {}, which is neither root nor you", stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(format!("others may write there (mode {:o})", stat.st_mode & 0o7777));
    }
    Ok(())
}
