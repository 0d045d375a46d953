//! Unpacking one layer into a directory of its own, as overlayfs wants a layer.
//!
//! Invariant: whatever the archive holds, nothing outside the directory is read, written or opened; no FIFO or device
//! of it is opened; owners are squashed to the caller's; attributes that overlayfs itself reads come from us only.

pub(crate) mod archive;
pub(crate) mod pax;
mod tree;
mod whiteout;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, chmodat, fchmod, fsetxattr, ftruncate, futimens, linkat, mknodat,
    openat, symlinkat, utimensat,
};
use rustix::io::Errno;

pub use self::archive::TarError;
use self::archive::{Archive, Entry, Kind};
pub(crate) use self::tree::OPAQUE;
pub use self::tree::TreeError;
use self::tree::{Found, Parent, Symlinks, Tree, c_name, call, find, normal, split, timestamps};
use self::whiteout::Meaning;
use crate::digest::Digest;
use crate::limits::{LimitError, Limits};
use crate::printable::printable;
use crate::stream::{LayerStream, StreamError};

/// Bytes of a file with its holes: what ext4 holds, so that an image does not depend on where the store is.
const LARGEST: u64 = 16 << 40;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive between entries.
    #[error("cannot read the archive")]
    Archive(#[source] TarError),
    /// One entry's data.
    #[error("cannot read the data of `{path}`")]
    Data {
        /// The entry, escaped.
        path: String,
        /// Why.
        source: TarError,
    },
    /// One entry.
    #[error("cannot unpack `{path}`")]
    Entry {
        /// The entry, escaped.
        path: String,
        /// Why.
        source: TreeError,
    },
}

/// What was unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the blob as read.
    pub(crate) digest: Digest,
    /// Digest of the unpacked bytes.
    pub(crate) diff_id: Digest,
    /// The layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Of files, without their holes.
    pub(crate) bytes: u64,
    pub(crate) report: Report,
}

/// What an ordinary user cannot make, and was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) skipped_devices: u64,
    pub(crate) dropped_xattrs: u64,
}

/// Unpacks `stream` into the empty directory `root`. The caller compares the digests before it believes the tree.
pub(crate) fn unpack(stream: LayerStream<'_>, root: OwnedFd, limits: &Limits) -> Result<Unpacked, UnpackError> {
    let archive = Archive::new(stream, limits);
    let tree = Tree::new(root, limits);
    let report = Report::default();
    let mut unpacker = Unpacker { archive, tree, limits, entries: 0, bytes: 0, opaque_root: false, report };
    while let Some(entry) = unpacker.archive.next().map_err(UnpackError::Archive)? {
        unpacker.entry(&entry).map_err(|error| {
            let path = printable(&entry.untrusted_path);
            match error {
                Failed::Data(source) => UnpackError::Data { path, source },
                Failed::Tree(source) => UnpackError::Entry { path, source },
            }
        })?;
    }
    let Unpacker { archive, tree, opaque_root, bytes, report, .. } = unpacker;
    let (digest, diff_id) = archive.stream.finish().map_err(|e: StreamError| UnpackError::Archive(e.into()))?;
    tree.finish().map_err(|(path, source)| UnpackError::Entry { path: printable(&path), source })?;
    Ok(Unpacked { digest, diff_id, opaque_root, bytes, report })
}

enum Failed {
    Data(TarError),
    Tree(TreeError),
}

impl From<TarError> for Failed {
    fn from(error: TarError) -> Failed {
        Failed::Data(error)
    }
}

impl From<TreeError> for Failed {
    fn from(error: TreeError) -> Failed {
        Failed::Tree(error)
    }
}

struct Unpacker<'a> {
    archive: Archive<'a>,
    tree: Tree<'a>,
    limits: &'a Limits,
    /// Entries counted so far.
    entries: u64,
    /// Bytes of files without their holes, which cost nothing: a layer with a sparse /var/log/lastlog is honest.
    bytes: u64,
    opaque_root: bool,
    report: Report,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), Failed> {
        let entries = self.archive.headers() + self.tree.implied();
        LimitError::check("entries", entries, self.limits.entries).map_err(TreeError::from)?;
        let taken = self.archive.stream.taken();
        taken.entries(entries - self.entries, self.limits).map_err(TreeError::from)?;
        self.entries = entries;
        self.report.dropped_xattrs += entry.dropped_xattrs;
        let path = normal(&entry.untrusted_path, self.limits)?;
        let (directory, name) = split(&path);
        match whiteout::meaning(&path)? {
            Meaning::Entry => {}
            Meaning::Ignored => return Ok(()),
            Meaning::Opaque => {
                self.opaque_root |= whiteout::opaque(&mut self.tree, directory)?;
                return Ok(());
            }
            Meaning::Whiteout(hidden) => {
                return Ok(whiteout::hide(&mut self.tree, directory, &hidden, self.limits)?);
            }
        }
        if entry.kind == Kind::Device {
            self.report.skipped_devices += 1;
            return Ok(());
        }
        if path.is_empty() {
            if entry.kind != Kind::Directory {
                return Err(TreeError::Path("the root can only be a directory").into());
            }
            let root = self.tree.root(entry.mode, entry.mtime);
            return Ok(set_xattrs(root, entry)?);
        }
        let symlinks = if entry.kind == Kind::HardLink { Symlinks::Refuse } else { Symlinks::Resolve };
        let parent = self.tree.parent(directory, symlinks)?;
        let name = c_name(name)?;
        match entry.kind {
            Kind::File => self.file(entry, &parent, &name)?,
            Kind::Directory => {
                let attributes = Some((entry.mode, entry.mtime));
                let fd = self.tree.directory(parent.fd.as_fd(), &parent.path, &name, attributes)?;
                set_xattrs(fd.as_fd(), entry)?;
            }
            Kind::Symlink => self.symlink(entry, &parent, &name)?,
            Kind::Fifo => {
                self.report.dropped_xattrs += entry.xattrs.len() as u64;
                self.create(&parent, &name, "mknodat", || {
                    mknodat(&parent.fd, &name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                })?;
                // Without opening it: chmodat follows symlinks, but this was made a moment ago in a directory of ours.
                let mode = Mode::from_raw_mode(entry.mode);
                chmodat(&parent.fd, &name, mode, AtFlags::empty()).map_err(call("fchmodat"))?;
                self.set_mtime(entry, &parent, &name)?;
            }
            Kind::HardLink => self.hard_link(entry, &parent, &path, &name)?,
            Kind::Device => {}
        }
        Ok(())
    }

    /// Runs `make`, and once more after removing what is in its way.
    fn create<T>(
        &mut self,
        parent: &Rc<Parent>,
        name: &std::ffi::CStr,
        what: &'static str,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, TreeError> {
        match make() {
            Err(Errno::EXIST) => {
                self.tree.remove(parent.fd.as_fd(), &parent.path, name)?;
                make().map_err(call(what))
            }
            other => other.map_err(call(what)),
        }
    }

    fn file(&mut self, entry: &Entry, parent: &Rc<Parent>, name: &std::ffi::CStr) -> Result<(), Failed> {
        let with_holes = entry.sparse.as_ref().map_or(0, |sparse| sparse.real_size);
        LimitError::check("bytes of a sparse file", with_holes, LARGEST).map_err(TreeError::from)?;
        self.bytes = self.bytes.saturating_add(entry.size);
        LimitError::check("layer-bytes", self.bytes, self.limits.layer_bytes).map_err(TreeError::from)?;
        let fd = self.create(parent, name, "openat", || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&parent.fd, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        match &entry.sparse {
            None => self.write(&fd, None)?,
            Some(sparse) => {
                ftruncate(&fd, sparse.real_size).map_err(call("ftruncate"))?;
                for segment in &sparse.segments {
                    self.write(&fd, Some(*segment))?;
                }
            }
        }
        // In this order: attributes need write permission, writing clears setuid, everything changes the mtime.
        set_xattrs(fd.as_fd(), entry)?;
        fchmod(&fd, Mode::from_raw_mode(entry.mode)).map_err(call("fchmod"))?;
        futimens(&fd, &timestamps(entry.mtime)).map_err(call("futimens"))?;
        Ok(())
    }

    /// Writes the entry's data: all of it at the file's position, or a segment at its offset.
    fn write(&mut self, fd: &OwnedFd, segment: Option<(u64, u64)>) -> Result<(), Failed> {
        let (mut offset, mut left) = segment.unwrap_or((0, u64::MAX));
        while left > 0 {
            let chunk = self.archive.data()?;
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            let chunk = &chunk[..most];
            if chunk.is_empty() {
                break;
            }
            let wrote = match segment {
                None => rustix::io::write(fd, chunk),
                Some(_) => rustix::io::pwrite(fd, chunk, offset),
            };
            let n = match wrote {
                Err(Errno::INTR) => continue,
                other => other.map_err(call("write"))?,
            };
            self.archive.consume(n);
            offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, parent: &Rc<Parent>, name: &std::ffi::CStr) -> Result<(), TreeError> {
        LimitError::check("path-bytes", entry.untrusted_link.len() as u64 + 1, self.limits.path_bytes)?;
        // Extended attributes of the user's cannot be set on symlinks (xattr(7)).
        self.report.dropped_xattrs += entry.xattrs.len() as u64;
        let target = c_name(&entry.untrusted_link)?;
        self.create(parent, name, "symlinkat", || symlinkat(&target, &parent.fd, name))?;
        self.set_mtime(entry, parent, name)
    }

    fn set_mtime(&self, entry: &Entry, parent: &Parent, name: &std::ffi::CStr) -> Result<(), TreeError> {
        utimensat(&parent.fd, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(call("utimensat"))
    }

    fn hard_link(
        &mut self,
        entry: &Entry,
        parent: &Rc<Parent>,
        path: &[u8],
        name: &std::ffi::CStr,
    ) -> Result<(), TreeError> {
        const MISSING: TreeError = TreeError::Path("the target of the hard link is not in this layer");
        let target = normal(&entry.untrusted_link, self.limits)?;
        let (target_directory, target_name) = split(&target);
        let target_name = c_name(target_name)?;
        let from = match self.tree.open(target_directory) {
            Err(Errno::NOENT) => return Err(MISSING),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(TreeError::Path("the target of the hard link is behind a symlink or a file"));
            }
            other => other.map_err(call("openat2"))?,
        };
        match find(from.as_fd(), &target_name)? {
            Found::File | Found::Symlink | Found::Fifo => {}
            Found::Nothing | Found::Whiteout => return Err(MISSING),
            Found::Directory => return Err(TreeError::Path("the target of the hard link is a directory")),
        }
        if target == path {
            return Ok(());
        }
        // Flags empty: a symlink as target is linked itself, not followed.
        self.create(parent, name, "linkat", || linkat(&from, &target_name, &parent.fd, name, AtFlags::empty()))
    }
}

fn set_xattrs(fd: std::os::fd::BorrowedFd<'_>, entry: &Entry) -> Result<(), TreeError> {
    for (name, value) in &entry.xattrs {
        let name = c_name(name)?;
        fsetxattr(fd, &name, value, XattrFlags::empty()).map_err(call("fsetxattr"))?;
    }
    Ok(())
}
