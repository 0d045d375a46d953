//! Finding and making things inside a tree that someone else filled.
//!
//! Invariant: a path is only ever resolved by the kernel with `RESOLVE_IN_ROOT`, or one component at a time without
//! following links; what comes back is a descriptor, and nothing is looked up by that path again (CVE-2026-55686,
//! CVE-2025-31133).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Mode, OFlags, RawMode, ResolveFlags, fstat, mkdirat, mknodat, openat, openat2, statat,
    symlinkat,
};
use rustix::io::Errno;

use crate::plan::{Addition, Kind, Source};
use crate::step::{At, Failure, Step};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How often a lookup is begun anew that others' renames disturb.
const MOST_TRIES: u32 = 1000;

/// Device number 0:0 makes a character device a whiteout (Documentation/filesystems/overlayfs.rst).
const WHITEOUT: Dev = 0;

/// Opens `path` inside `root`, whatever links lie on the way; makes what is missing, as `kind`.
pub(crate) fn find_or_make(root: BorrowedFd<'_>, path: &str, kind: Kind, step: Step) -> Result<OwnedFd, Failure> {
    match in_root(root, path, kind) {
        Err(Errno::NOENT) => {}
        found => return found.at(step, path),
    }
    let mut parent = None;
    let mut so_far = String::new();
    let mut components = path.split('/').filter(|part| !part.is_empty()).peekable();
    while let Some(component) = components.next() {
        so_far.push('/');
        so_far.push_str(component);
        let kind = if components.peek().is_some() { Kind::Directory } else { kind };
        let found = match in_root(root, &so_far, kind) {
            Err(Errno::NOENT) => make(parent.as_ref().map_or(root, AsFd::as_fd), component, kind),
            found => found,
        };
        parent = Some(found.at(step, &so_far)?);
    }
    parent.map_or_else(|| in_root(root, "/", kind).at(step, path), Ok)
}

/// Opens `path` inside `root`, which must exist and be of `kind`.
pub(crate) fn in_root(root: BorrowedFd<'_>, path: &str, kind: Kind) -> Result<OwnedFd, Errno> {
    let flags = match kind {
        Kind::Directory => OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Kind::File => OFlags::PATH | OFlags::CLOEXEC,
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // A rename or mount anywhere on the machine came between a step up and the look where it led (openat2(2)).
            Err(Errno::AGAIN) if tries < MOST_TRIES => tries += 1,
            found => return found,
        }
    }
}

fn make(parent: BorrowedFd<'_>, name: &str, kind: Kind) -> Result<OwnedFd, Errno> {
    match kind {
        Kind::Directory => directory(parent, name, 0o755),
        Kind::File => file(parent, name, 0o644),
    }
}

/// Makes directory `name` and opens it. Only for trees that this process made itself; PID 1's umask takes nothing away.
pub(crate) fn directory(parent: impl AsFd, name: &str, mode: RawMode) -> Result<OwnedFd, Errno> {
    mkdirat(&parent, name, Mode::from_raw_mode(mode))?;
    openat(&parent, name, DIRECTORY, Mode::empty())
}

/// Makes an empty file in a directory that this process made itself.
pub(crate) fn file(parent: BorrowedFd<'_>, name: &str, mode: RawMode) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::from_raw_mode(mode))
}

/// Lays `additions` into `tree`, which holds nothing but earlier additions.
pub(crate) fn lay(tree: BorrowedFd<'_>, additions: &[Addition], step: Step) -> Result<(), Failure> {
    for addition in additions {
        let path = addition.path();
        let (parent, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (Some(find_or_make(tree, parent, Kind::Directory, step)?), name),
            None => (None, path),
        };
        let parent = parent.as_ref().map_or(tree, AsFd::as_fd);
        match addition {
            Addition::Directory { .. } | Addition::Covered { .. } => {
                match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
                    Err(Errno::EXIST) => Ok(()),
                    made => made,
                }
            }
            Addition::Link { to, .. } => symlinkat(to, parent, name),
            Addition::Hidden { .. } => mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), WHITEOUT),
            Addition::File { contents, .. } => file(parent, name, 0o644)
                .and_then(|file| rustix::io::write(&file, contents.as_bytes()))
                .and_then(|written| if written == contents.len() { Ok(()) } else { Err(Errno::NOSPC) }),
        }
        .at(step, path)?;
    }
    Ok(())
}

/// Opens a host object by its path and proves that it is the one the plan was made for.
pub(crate) fn open_source(source: &Source, step: Step) -> Result<OwnedFd, Failure> {
    open_source_from(CWD, source.path.as_os_str().as_bytes(), source, step)
}

/// The same by `path`, relative to `directory`.
pub(crate) fn open_source_from(
    directory: impl AsFd,
    path: &[u8],
    source: &Source,
    step: Step,
) -> Result<OwnedFd, Failure> {
    let name = source.path.display();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = openat2(directory, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).at(step, &name)?;
    let stat = fstat(&opened).at(step, &name)?;
    if stat.st_dev != source.device || stat.st_ino != source.inode {
        return Err(Failure::new(step, format!("{name}: replaced since it was looked up"), libc::ESTALE));
    }
    Ok(opened)
}

/// Whether `path` below `directory` is a directory; `None` when it does not exist.
pub(crate) fn is_directory(directory: impl AsFd, path: impl AsRef<Path>) -> Result<Option<bool>, Errno> {
    match statat(directory, path.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
