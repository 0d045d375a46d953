//! Where the store lies: in the first place that has one, else in the first whose file system can carry one.
//!
//! Invariant: `layers/` is made last and only where a probe found that layers can be unpacked, so a directory that has it
//! was tried; and no directory is used that another user could write or that a link leads to.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, FsWord, Mode, OFlags, StatVfsMountFlags, XattrFlags, fsetxattr, fstat, fstatfs, fstatvfs,
    mkdirat, mknodat, openat, statat, unlinkat,
};
use rustix::io::Errno;

use super::StoreError;
use crate::lock::Lock;
use crate::printable::printable;
use crate::removal::remove_all;

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// File systems on which trying is not enough: locks that other machines do not see, lower layers of lower layers.
const UNSUITABLE: [(FsWord, &str); 4] =
    [(0x6969, "NFS"), (0x794c_7630, "an overlay"), (0xff53_4d42, "CIFS"), (0xfe53_4d42, "SMB")];

/// Directories a store may lie in, and stores of others to read from. All are absolute and free of links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The best first.
    pub own: Vec<PathBuf>,
    /// Read-only stores, asked in this order after the own one.
    pub extra: Vec<PathBuf>,
}

/// The chosen place, opened.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) root: OwnedFd,
    pub(super) layers: OwnedFd,
    /// Why it is not the first place.
    pub(super) note: Option<String>,
}

impl Places {
    /// The place that has a store, without making one; `None` where there is none yet.
    pub(super) fn find(&self) -> Result<Option<Place>, StoreError> {
        for path in &self.own {
            let Some(root) = open_private(path)? else { continue };
            match openat(&root, c"layers", DIRECTORY, Mode::empty()) {
                Ok(layers) => return Ok(Some(Place { path: path.clone(), root, layers, note: None })),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(StoreError::io("open", path)(errno)),
            }
        }
        Ok(None)
    }

    /// The place that has a store, else the first that can carry one, with a new store in it.
    pub(super) fn find_or_make(&self) -> Result<Place, StoreError> {
        if let Some(place) = self.find()? {
            return Ok(place);
        }
        let mut reasons: Vec<String> = Vec::new();
        for path in &self.own {
            match make(path) {
                Ok((root, layers)) => {
                    let note = reasons.first().map(|why| {
                        let shown = printable(path.as_os_str().as_encoded_bytes());
                        format!("the image store is made in {shown}, because {why}")
                    });
                    return Ok(Place { path: path.clone(), root, layers, note });
                }
                Err(Unmade::Refused(error)) => return Err(error),
                Err(Unmade::Unsuitable(why)) => {
                    reasons.push(format!("{} {why}", printable(path.as_os_str().as_encoded_bytes())));
                }
            }
        }
        Err(StoreError::NoPlace(reasons.join("; ")))
    }
}

/// The directory, if it is there: it must be this user's alone.
fn open_private(path: &Path) -> Result<Option<OwnedFd>, StoreError> {
    let shown = || printable(path.as_os_str().as_encoded_bytes());
    let root = match openat(CWD, path, DIRECTORY, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOTDIR) if is_link(path) => return Err(StoreError::Link(shown())),
        // A place that cannot be reached has no store that could be used.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(StoreError::io("open", path)(errno)),
    };
    let stat = fstat(&root).map_err(StoreError::io("examine", path))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(StoreError::Foreign(shown()));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(StoreError::Open(shown()));
    }
    Ok(Some(root))
}

fn is_link(path: &Path) -> bool {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

enum Unmade {
    /// Another place may do.
    Unsuitable(String),
    /// To go elsewhere would hide what is wrong here.
    Refused(StoreError),
}

fn make(path: &Path) -> Result<(OwnedFd, OwnedFd), Unmade> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| Unmade::Unsuitable(format!("cannot be made ({error})")))?;
    let tried = (|| {
        let io = |action| move |errno| Unmade::Refused(StoreError::io(action, path)(errno));
        let root = open_private(path).map_err(Unmade::Refused)?;
        let root = root.ok_or_else(|| Unmade::Unsuitable("cannot be opened".into()))?;
        let tmp =
            directory(&root, c"tmp").map_err(|errno| Unmade::Unsuitable(format!("cannot be written ({errno})")))?;
        carries(&tmp).map_err(Unmade::Unsuitable)?;
        let layers = directory(&root, c"layers").map_err(io("make"))?;
        Ok((root, layers))
    })();
    if tried.is_err() {
        // Only what is empty goes: nothing that was here before.
        for name in ["tmp", ""] {
            std::fs::remove_dir(path.join(name)).unwrap_or_default();
        }
    }
    tried
}

/// A directory of the store, made when it is not there.
pub(super) fn directory(root: &OwnedFd, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    match openat(root, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => {
            match mkdirat(root, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            openat(root, name, DIRECTORY, Mode::empty())
        }
        opened => opened,
    }
}

/// Whether the file system under `tmp` can carry layers; if not, why.
fn carries(tmp: &OwnedFd) -> Result<(), String> {
    suitable(tmp)?;
    let lock = Lock::acquire(tmp.as_fd(), "probe", &mut || {}).map_err(|e| format!("cannot carry locks ({e})"))?;
    let tried = probe(tmp);
    remove_all(tmp.as_fd(), c"probe").map_err(|errno| format!("does not let go of files ({errno})"))?;
    drop(lock);
    tried
}

/// Whether the file system that `fd` lies on could carry a store, as far as the kernel says without trying; if not, why.
///
/// # Errors
/// The reason, as the end of a sentence about the directory.
pub fn suitable(fd: impl AsFd) -> Result<(), String> {
    let kind = fstatfs(&fd).map_err(|errno| format!("cannot be examined ({errno})"))?.f_type;
    if let Some(name) = unsuitable(kind) {
        return Err(format!("is on {name}"));
    }
    let flags = fstatvfs(&fd).map_err(|errno| format!("cannot be examined ({errno})"))?.f_flag;
    if flags.contains(StatVfsMountFlags::NOEXEC) {
        return Err("is mounted noexec, and programs of images could not be executed".into());
    }
    Ok(())
}

/// What to call a kind of file system that is in the table.
fn unsuitable(kind: FsWord) -> Option<&'static str> {
    UNSUITABLE.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
}

/// What unpacking does: a directory with overlayfs's attribute, a whiteout, a file that may be executed.
fn probe(tmp: &OwnedFd) -> Result<(), String> {
    remove_all(tmp.as_fd(), c"probe").and_then(|()| mkdirat(tmp, c"probe", Mode::RWXU)).map_err(|e| e.to_string())?;
    let dir = openat(tmp, c"probe", DIRECTORY, Mode::empty()).map_err(|errno| format!("cannot be read ({errno})"))?;
    fsetxattr(&dir, "user.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(|errno| format!("carries no user.* attributes ({errno})"))?;
    mknodat(&dir, c"whiteout", FileType::CharacterDevice, Mode::empty(), 0)
        .map_err(|errno| format!("carries no whiteouts ({errno})"))?;
    unlinkat(&dir, c"whiteout", AtFlags::empty()).map_err(|errno| errno.to_string())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&dir, c"file", flags, Mode::RWXU).map_err(|errno| format!("carries no files ({errno})"))?;
    match fstat(&file) {
        Ok(stat) if stat.st_mode & 0o777 == 0o700 => Ok(()),
        Ok(_) => Err("does not keep the modes of files".into()),
        Err(errno) => Err(errno.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of linux/magic.h and of fs/smb/client, which statfs(2) repeats: a wrong one would let a store be made.
    #[test]
    fn file_systems_that_cannot_carry_a_store_are_known_by_their_numbers() {
        for (kind, want) in [
            (0x6969, Some("NFS")),
            (0x794c_7630, Some("an overlay")),
            (0xff53_4d42, Some("CIFS")),
            (0xfe53_4d42, Some("SMB")),
            (0xef53, None),
            (0x0102_1994, None),
            (0x9123_683e, None),
            (0x5846_5342, None),
        ] {
            assert_eq!(unsuitable(kind), want, "{kind:#x}");
        }
    }
}
