//! The directory a layer is unpacked into.
//!
//! Invariant: everything is done relative to a descriptor of a real directory below the root, opened with
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` (openat2, Linux 5.6), by a single name that is never followed. Directories
//! stay 0700 until [`Tree::finish`], so that an archive's 0555 or 0000 directory can be filled.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, fchmod, fsetxattr,
    futimens, mkdirat, openat2, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use super::archive::Mtime;
use crate::limits::{LimitError, Limits};
use crate::removal::remove_all;

/// Symlinks followed for one path, as in the kernel (`MAXSYMLINKS`).
const MOST_SYMLINKS: u32 = 40;

/// The attribute that hides the lower layers' content of a directory from an overlay mounted with `userxattr`.
pub(crate) const OPAQUE: &CStr = c"user.overlay.opaque";

/// Why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call.
    #[error("{call} failed")]
    Call {
        /// Which.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
    /// A limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A path that cannot be used.
    #[error("{0}")]
    Path(&'static str),
}

/// Names the failed call.
pub(super) fn call(call: &'static str) -> impl Fn(Errno) -> TreeError {
    move |errno| TreeError::Call { call, source: errno.into() }
}

/// Whether a symlink of the layer in place of a parent directory is resolved inside the root, or refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Symlinks {
    Resolve,
    Refuse,
}

/// What is at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Directory,
    /// A character device: only whiteouts are written as such.
    Whiteout,
    Symlink,
    File,
    Fifo,
}

/// A directory's attributes, set last.
#[derive(Clone, Copy)]
struct Final {
    mode: u32,
    mtime: Option<Mtime>,
}

/// A directory being filled: where it really is, and its descriptor.
pub(super) struct Parent {
    /// Names joined by `/`, no symlink among them; empty for the root.
    pub(super) path: Vec<u8>,
    pub(super) fd: OwnedFd,
}

pub(super) struct Tree<'l> {
    root: OwnedFd,
    limits: &'l Limits,
    /// By real path: in order, a directory's content directly follows it.
    directories: BTreeMap<Vec<u8>, Final>,
    /// Of memory that they take.
    directory_bytes: u64,
    /// Directories made because an entry needed them.
    implied: u64,
    /// The parent last used, by the path it was asked for: consecutive entries share theirs.
    last: Option<(Vec<u8>, Rc<Parent>)>,
}

impl<'l> Tree<'l> {
    pub(super) fn new(root: OwnedFd, limits: &'l Limits) -> Tree<'l> {
        let directories = BTreeMap::from([(Vec::new(), Final { mode: 0o755, mtime: None })]);
        Tree { root, limits, directories, directory_bytes: 0, implied: 0, last: None }
    }

    /// Directories made because an entry needed them.
    pub(super) fn implied(&self) -> u64 {
        self.implied
    }

    /// The directory `path` (normal form), made where it is missing.
    pub(super) fn parent(&mut self, path: &[u8], symlinks: Symlinks) -> Result<Rc<Parent>, TreeError> {
        if let Some((last, parent)) = &self.last
            && last == path
            && (symlinks == Symlinks::Resolve || parent.path == path)
        {
            return Ok(Rc::clone(parent));
        }
        let parent = match self.open(path) {
            Ok(fd) => Parent { path: path.to_vec(), fd },
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                let real = self.make(path, symlinks)?;
                let fd = self.open(&real).map_err(call("openat2"))?;
                Parent { path: real, fd }
            }
            Err(e) => return Err(call("openat2")(e)),
        };
        let parent = Rc::new(parent);
        self.last = Some((path.to_vec(), Rc::clone(&parent)));
        Ok(parent)
    }

    /// The directory `path` if it is there, with no symlink on the way.
    pub(super) fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        openat2(
            &self.root,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// Walks `path` name by name, making what is missing and resolving the layer's own symlinks inside the root.
    ///
    /// Nobody else writes here (0700 and a lock), so this need not be race-free; and what it returns is opened again
    /// without following anything, so a mistake here could not lead outside.
    fn make(&mut self, path: &[u8], symlinks: Symlinks) -> Result<Vec<u8>, TreeError> {
        let mut ahead: VecDeque<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let mut real: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    real.truncate(real.iter().rposition(|b| *b == b'/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let fd = self.open(&real).map_err(call("openat2"))?;
            let below = join(&real, &name);
            let c_name = c_name(&name)?;
            match find(fd.as_fd(), &c_name)? {
                Found::Directory => real = below,
                Found::Nothing | Found::Whiteout => {
                    self.directory(fd.as_fd(), &real, &c_name, None)?;
                    self.implied += 1;
                    LimitError::check("entries", self.implied, self.limits.entries)?;
                    real = below;
                }
                Found::Symlink if symlinks == Symlinks::Resolve => {
                    links += 1;
                    if links > MOST_SYMLINKS {
                        return Err(TreeError::Path("its parent goes through more than 40 symlinks"));
                    }
                    let target = readlinkat(&fd, &c_name, Vec::new()).map_err(call("readlinkat"))?.into_bytes();
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    for part in target.split(|b| *b == b'/').rev() {
                        ahead.push_front(part.to_vec());
                    }
                }
                Found::Symlink => return Err(TreeError::Path("its parent is a symlink")),
                Found::File | Found::Fifo => return Err(TreeError::Path("its parent is not a directory")),
            }
        }
        Ok(real)
    }

    /// Makes or re-declares the directory `name`, and returns its descriptor.
    ///
    /// `attributes`: mode and mtime; `None` for a directory that is only implied.
    pub(super) fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        parent_path: &[u8],
        name: &CStr,
        attributes: Option<(u32, Mtime)>,
    ) -> Result<OwnedFd, TreeError> {
        let path = join(parent_path, name.to_bytes());
        // Symlinks can make the real path longer than the one in the archive.
        check_path(&path, self.limits)?;
        let mut replaced = false;
        match mkdirat(parent, name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                if find(parent, name)? != Found::Directory {
                    self.remove(parent, parent_path, name)?;
                    mkdirat(parent, name, Mode::RWXU).map_err(call("mkdirat"))?;
                    replaced = true;
                }
            }
            other => other.map_err(call("mkdirat"))?,
        }
        let fd = openat2(
            parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
        .map_err(call("openat2"))?;
        if replaced {
            // What stood here hid or deleted the lower layers' directory; the new one must not bring it back.
            set_opaque(fd.as_fd())?;
        }
        let attributes = attributes.map(|(mode, mtime)| Final { mode, mtime: Some(mtime) });
        if let Some(known) = self.directories.get_mut(&path) {
            *known = attributes.unwrap_or(*known);
        } else {
            self.directory_bytes += held(&path);
            LimitError::check("directory-bytes", self.directory_bytes, self.limits.directory_bytes)?;
            self.directories.insert(path, attributes.unwrap_or(Final { mode: 0o755, mtime: None }));
        }
        Ok(fd)
    }

    /// Sets the root's own attributes.
    pub(super) fn root(&mut self, mode: u32, mtime: Mtime) -> BorrowedFd<'_> {
        self.directories.insert(Vec::new(), Final { mode, mtime: Some(mtime) });
        self.root.as_fd()
    }

    /// Removes whatever is at `name`.
    pub(super) fn remove(&mut self, parent: BorrowedFd<'_>, parent_path: &[u8], name: &CStr) -> Result<(), TreeError> {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                remove_all(parent, name).map_err(call("unlinkat"))?;
                let path = join(parent_path, name.to_bytes());
                let mut below = path.clone();
                below.push(b'/');
                let mut gone = vec![path];
                gone.extend(
                    self.directories
                        .range(below.clone()..)
                        .map(|(p, _)| p)
                        .take_while(|p| p.starts_with(&below))
                        .cloned(),
                );
                for path in gone {
                    if self.directories.remove(&path).is_some() {
                        self.directory_bytes -= held(&path);
                    }
                }
            }
            Err(e) => return Err(call("unlinkat")(e)),
        }
        // The remembered parent may have been reached through what is gone.
        self.last = None;
        Ok(())
    }

    /// Gives every directory its mode and mtime, deepest first.
    pub(super) fn finish(self) -> Result<(), (Vec<u8>, TreeError)> {
        for (path, last) in self.directories.iter().rev() {
            let set = || -> Result<(), TreeError> {
                let fd = self.open(path).map_err(call("openat2"))?;
                fchmod(&fd, Mode::from_raw_mode(last.mode)).map_err(call("fchmod"))?;
                if let Some(mtime) = last.mtime {
                    futimens(&fd, &timestamps(mtime)).map_err(call("futimens"))?;
                }
                Ok(())
            };
            set().map_err(|error| (path.clone(), error))?;
        }
        Ok(())
    }
}

/// `path` in normal form: names joined by `/`, without leading `/`, empty names and `.`.
///
/// `..` is refused rather than resolved: no image tool writes it, and programs disagree on what it means.
pub(super) fn normal(path: &[u8], limits: &Limits) -> Result<Vec<u8>, TreeError> {
    if path.contains(&0) {
        return Err(TreeError::Path("the path holds a NUL"));
    }
    let mut normal = Vec::with_capacity(path.len());
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(TreeError::Path("the path holds `..`")),
            name => normal = join(&normal, name),
        }
    }
    check_path(&normal, limits)?;
    Ok(normal)
}

/// Bytes of memory that holding the directory `path` takes.
fn held(path: &[u8]) -> u64 {
    path.len() as u64 + Limits::DIRECTORY
}

fn check_path(path: &[u8], limits: &Limits) -> Result<(), LimitError> {
    LimitError::check("path-bytes", path.len() as u64 + 1, limits.path_bytes)?;
    let depth = path.split(|b| *b == b'/').count();
    LimitError::check("depth", depth as u64, limits.depth)
}

/// Splits a normal path into its directory and its last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

pub(super) fn c_name(name: &[u8]) -> Result<CString, TreeError> {
    CString::new(name).map_err(|_nul| TreeError::Path("the path holds a NUL"))
}

/// What is at `name`, itself.
pub(super) fn find(parent: BorrowedFd<'_>, name: &CStr) -> Result<Found, TreeError> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        other => other.map_err(call("fstatat"))?,
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Directory,
        FileType::CharacterDevice => Found::Whiteout,
        FileType::Symlink => Found::Symlink,
        FileType::Fifo => Found::Fifo,
        _ => Found::File,
    })
}

pub(super) fn set_opaque(directory: BorrowedFd<'_>) -> Result<(), TreeError> {
    fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty()).map_err(call("setting user.overlay.opaque"))
}

/// The mtime alone.
pub(super) fn timestamps(mtime: Mtime) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_normal_or_are_refused() {
        let limits = Limits::default();
        for (path, want) in [
            (&b"a/b"[..], &b"a/b"[..]),
            (b"./a//b/.", b"a/b"),
            (b"/a", b"a"),
            (b"", b""),
            (b"./", b""),
            (b"a/b/", b"a/b"),
            (b"..a/b..", b"..a/b.."),
        ] {
            assert_eq!(normal(path, &limits).unwrap(), want);
        }
        for bad in [&b".."[..], b"a/../b", b"/..", b"a/..", b"a\0b"] {
            assert!(normal(bad, &limits).is_err());
        }
        assert!(normal(&b"a/".repeat(256), &limits).is_ok());
        let deep = normal(&b"a/".repeat(257), &limits).unwrap_err().to_string();
        assert_eq!(deep, "goes over the limit on components of a path (256); --image-limit depth=VALUE sets it");
        let long = normal(&[b'a'; 4096], &limits).unwrap_err().to_string();
        assert_eq!(long, "goes over the limit on bytes of a path (4096)");
    }
}
