//! What a job wrote to its root, read by descriptor from the overlay's upper directory.
//!
//! agentd makes mount points and files of its own there before the job starts; [`Upper::new`] takes note of them. A file
//! among them never gets into the layer, whatever the job does to it (docker and podman mount theirs); a directory only
//! for the sake of what the job put into it, and then it looks as it does in the image.
//!
//! Invariant: nothing is followed, and no FIFO, socket or device is opened. Nobody else writes there when it is read.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, chmodat, fgetxattr, flistxattr, fstat, openat, readlinkat,
    seek, statat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tar::EntryType;

use super::lower::{Below, Lowers, is_opaque, nanoseconds};
use super::writer::{Meta, Mtime, Writer, Written};
use crate::limits::{LimitError, Limits};
use crate::printable::printable;

/// Parts of a file between its holes: their list is held in memory by whoever unpacks it.
const MOST_SEGMENTS: u64 = 20_000;
/// Bytes of an entry's attributes: half of what unpacking takes in one record.
const MOST_ATTRIBUTES: usize = 512 << 10;
/// Names in an image that say something about other names.
const RESERVED: &[u8] = b".wh.";

/// Why what a job wrote cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// One entry: it cannot be read, or the layer cannot be written.
    #[error("cannot keep `{path}`")]
    Entry {
        /// Where in the root, escaped.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More than an image may hold.
    #[error("`{path}`")]
    Limit {
        /// Where in the root, escaped.
        path: String,
        /// Which.
        source: LimitError,
    },
    /// The layer's file.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// A signal.
    #[error("interrupted")]
    Stopped,
}

/// A layer that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptLayer {
    /// Of the file.
    pub digest: String,
    /// Bytes of the file.
    pub size: u64,
    /// Of the archive in it.
    pub diff_id: String,
    /// Entries of the archive.
    pub entries: u64,
    /// What an image cannot hold.
    #[serde(default)]
    pub left_out: LeftOut,
}

/// What an image cannot hold, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftOut {
    /// Unix sockets, and devices if there were any.
    pub sockets: u64,
    /// Names that begin with `.wh.`: in an image they delete others.
    pub reserved: u64,
    /// Extended attributes that are not the user's, or too long.
    pub attributes: u64,
}

/// The upper directory of a job's root.
#[derive(Debug)]
pub struct Upper {
    root: OwnedFd,
    /// By path: what agentd made.
    own: BTreeMap<Vec<u8>, Own>,
    lowers: Lowers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Directory { inode: u64, mode: u32, mtime: Mtime },
    Other,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// What is read was a regular file a moment ago; should it be anything else, nothing waits for it.
const REGULAR: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

impl Upper {
    /// Takes note of what is in `root` before the job starts; `layers` are those below it, lowest first.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(root: OwnedFd, layers: &[PathBuf]) -> io::Result<Upper> {
        let mut own = BTreeMap::new();
        note(root.as_fd(), &[], &mut own)?;
        Ok(Upper { root, own, lowers: Lowers::open(layers)? })
    }

    /// Writes what is new since then to `file`, as a layer. `stop` is asked now and then whether to give up.
    ///
    /// # Errors
    /// [`KeepError`]; the file is of no use then.
    pub fn keep(self, file: File, stop: &mut dyn FnMut() -> bool) -> Result<KeptLayer, KeepError> {
        let mut walk = Walk {
            upper: &self,
            limits: Limits::default(),
            writer: Writer::new(file, stop).map_err(KeepError::Write)?,
            entries: 0,
            left_out: LeftOut::default(),
            pending: Vec::new(),
            links: HashMap::new(),
        };
        walk.directory(self.root.as_fd(), &[], 0)?;
        let Walk { writer, entries, left_out, .. } = walk;
        let written = writer.finish();
        let Written { digest, size, diff_id } =
            written.map_err(
                |source| {
                    if Writer::is_stopped(&source) { KeepError::Stopped } else { KeepError::Write(source) }
                },
            )?;
        Ok(KeptLayer { digest: digest.to_string(), size, diff_id: diff_id.to_string(), entries, left_out })
    }
}

fn note(directory: BorrowedFd<'_>, path: &[u8], own: &mut BTreeMap<Vec<u8>, Own>) -> Result<(), Errno> {
    for name in names(directory)? {
        let stat = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let path = join(path, &name);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            own.insert(path, Own::Other);
            continue;
        }
        match openat(directory, &name, DIRECTORY, Mode::empty()) {
            Ok(opened) => note(opened.as_fd(), &path, own)?,
            // The image's own directory, which its owner may not list; a mount point in it is then taken for the job's.
            Err(Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
        own.insert(path, Own::Directory { inode: stat.st_ino, mode: stat.st_mode & 0o7777, mtime: mtime(&stat) });
    }
    Ok(())
}

/// Sorted, so that one tree makes one archive.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn join(path: &[u8], name: &CStr) -> Vec<u8> {
    if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() }
}

fn mtime(stat: &Stat) -> Mtime {
    (stat.st_mtime, nanoseconds(stat.st_mtime_nsec))
}

/// One that is written only if something below it is.
struct Pending {
    path: Vec<u8>,
    mode: u32,
    mtime: Mtime,
    xattrs: Vec<(String, Vec<u8>)>,
}

struct Walk<'u> {
    upper: &'u Upper,
    limits: Limits,
    writer: Writer<'u>,
    entries: u64,
    left_out: LeftOut,
    /// Directories on the way down, outermost first.
    pending: Vec<Pending>,
    /// By inode: the first name of a file with several.
    links: HashMap<u64, Vec<u8>>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: BorrowedFd<'_>, path: &[u8], depth: u64) -> Result<(), KeepError> {
        let names = names(directory).map_err(at(path))?;
        for name in names {
            let child = join(path, &name);
            let bounded = LimitError::check("directories of a path", depth, self.limits.depth)
                .and_then(|()| LimitError::check("bytes of a path", child.len() as u64 + 1, self.limits.path_bytes));
            bounded.map_err(|source| KeepError::Limit { path: printable(&child), source })?;
            self.child(directory, &name, &child, depth)?;
        }
        Ok(())
    }

    fn child(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8], depth: u64) -> Result<(), KeepError> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let own = self.upper.own.get(path).copied();
        if own == Some(Own::Other) {
            return Ok(());
        }
        // Before the names: a whiteout of a lower layer's own odd name is none of ours, and cannot be written either.
        if name.to_bytes().starts_with(RESERVED) {
            self.left_out.reserved += 1;
            return Ok(());
        }
        match kind {
            FileType::Directory => return self.subdirectory(parent, name, path, &stat, own, depth),
            // The overlay lets nobody in the box make one: these are its own.
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                let (above, name) = path.split_at(path.len() - name.to_bytes().len());
                return self.marker([above, RESERVED, name].concat());
            }
            FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
                self.left_out.sockets += 1;
                return Ok(());
            }
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
        }
        self.flush()?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                return self.write(path, EntryType::Link, &stat, Some(&first), &[]);
            }
            self.links.insert(stat.st_ino, path.to_vec());
        }
        match kind {
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new()).map_err(at(path))?;
                self.write(path, EntryType::Symlink, &stat, Some(target.to_bytes()), &[])
            }
            FileType::Fifo => self.write(path, EntryType::Fifo, &stat, None, &[]),
            _ => self.file(parent, name, path, &stat),
        }
    }

    fn subdirectory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        stat: &Stat,
        own: Option<Own>,
        depth: u64,
    ) -> Result<(), KeepError> {
        let opened = open(parent, name, DIRECTORY, stat).map_err(at(path))?;
        let xattrs = self.xattrs(opened.as_fd()).map_err(at(path))?;
        let before = self.pending.len();
        let (mut mode, mut changed) = (stat.st_mode & 0o7777, mtime(stat));
        let is_own = matches!(own, Some(Own::Directory { inode, .. }) if inode == stat.st_ino);
        let mut is_touched = !is_own;
        if let Some(Own::Directory { mode: was, mtime: at_first, .. }) = own.filter(|_| is_own) {
            is_touched = mode != was;
            if let Below::Directory(Some((below, at_last))) = self.upper.lowers.find(path).map_err(at(path))? {
                mode = if is_touched { mode } else { below };
                changed = if changed == at_first { at_last } else { changed };
            }
        }
        self.pending.push(Pending { path: path.to_vec(), mode, mtime: changed, xattrs });
        if is_touched {
            self.flush()?;
        }
        // The kernel marks every directory that is new; it matters where there is something to hide.
        let hides = !is_own && is_opaque(&opened).map_err(at(path))?;
        if hides && self.upper.lowers.find(path).map_err(at(path))? != Below::Nothing {
            self.marker([path, b"/", RESERVED, b".wh..opq"].concat())?;
        }
        self.directory(opened.as_fd(), path, depth + 1)?;
        self.pending.truncate(before);
        Ok(())
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> Result<(), KeepError> {
        let opened = open(parent, name, REGULAR, stat).map_err(at(path))?;
        let xattrs = self.xattrs(opened.as_fd()).map_err(at(path))?;
        let size = fstat(&opened).map_err(at(path)).map(|stat| u64::try_from(stat.st_size).unwrap_or_default())?;
        let segments = segments(&opened, size).map_err(at(path))?;
        LimitError::check("parts of a file between its holes", segments.len() as u64, MOST_SEGMENTS)
            .map_err(|source| KeepError::Limit { path: printable(path), source })?;
        self.count(path)?;
        let mode = stat.st_mode & 0o7777;
        let meta = Meta { path, kind: EntryType::Regular, mode, mtime: mtime(stat), link: None, xattrs: &xattrs };
        self.writer.file(&meta, &File::from(opened), size, &segments).map_err(failed(path))
    }

    /// A name that says something about others.
    fn marker(&mut self, path: Vec<u8>) -> Result<(), KeepError> {
        self.flush()?;
        self.count(&path)?;
        let meta = Meta { path: &path, kind: EntryType::Regular, mode: 0, mtime: (0, 0), link: None, xattrs: &[] };
        self.writer.entry(&meta).map_err(failed(&path))
    }

    /// The directories above what comes next.
    fn flush(&mut self) -> Result<(), KeepError> {
        for Pending { path, mode, mtime, xattrs } in std::mem::take(&mut self.pending) {
            self.count(&path)?;
            let meta = Meta { path: &path, kind: EntryType::Directory, mode, mtime, link: None, xattrs: &xattrs };
            self.writer.entry(&meta).map_err(failed(&path))?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        path: &[u8],
        kind: EntryType,
        stat: &Stat,
        link: Option<&[u8]>,
        xattrs: &[(String, Vec<u8>)],
    ) -> Result<(), KeepError> {
        self.count(path)?;
        let meta = Meta { path, kind, mode: stat.st_mode & 0o7777, mtime: mtime(stat), link, xattrs };
        self.writer.entry(&meta).map_err(failed(path))
    }

    fn count(&mut self, path: &[u8]) -> Result<(), KeepError> {
        self.entries += 1;
        LimitError::check("entries of a layer", self.entries, self.limits.entries)
            .map_err(|source| KeepError::Limit { path: printable(path), source })
    }

    /// The user's own attributes, but those of overlayfs.
    fn xattrs(&mut self, fd: BorrowedFd<'_>) -> Result<Vec<(String, Vec<u8>)>, Errno> {
        let mut list = vec![0u8; 64 << 10];
        let length = match flistxattr(fd, &mut list) {
            Err(Errno::NOTSUP) => 0,
            length => length?,
        };
        let (mut xattrs, mut bytes) = (Vec::new(), 0);
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if name.starts_with(b"user.overlay.") {
                continue;
            }
            let text = std::str::from_utf8(name).ok().filter(|name| name.starts_with("user.") && !name.contains('='));
            let Some(text) = text else {
                self.left_out.attributes += 1;
                continue;
            };
            let mut value = vec![0u8; 64 << 10];
            let length = fgetxattr(fd, text, &mut value)?;
            value.truncate(length);
            bytes += text.len() + length;
            if bytes > MOST_ATTRIBUTES {
                self.left_out.attributes += 1;
                continue;
            }
            xattrs.push((text.to_owned(), value));
        }
        Ok(xattrs)
    }
}

fn at(path: &[u8]) -> impl Fn(Errno) -> KeepError + use<> {
    let path = printable(path);
    move |errno| KeepError::Entry { path: path.clone(), source: errno.into() }
}

fn failed(path: &[u8]) -> impl Fn(io::Error) -> KeepError + use<> {
    let path = printable(path);
    move |source| match Writer::is_stopped(&source) {
        true => KeepError::Stopped,
        false => KeepError::Entry { path: path.clone(), source },
    }
}

/// Opens what was just looked at, though the job left its owner no right to it: it is about to be thrown away.
fn open(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags, stat: &Stat) -> Result<OwnedFd, Errno> {
    match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {}
        opened if stat.st_mode & 0o100 != 0 || !flags.contains(OFlags::DIRECTORY) => return opened,
        opened => drop(opened?),
    }
    // This follows links, and what is there is none: nobody else is left who could make it one.
    chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
    openat(parent, name, flags, Mode::empty())
}

/// Offsets and lengths of what is between a file's holes.
fn segments(file: &OwnedFd, size: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut segments = Vec::new();
    let mut from = 0;
    // One too many is enough to be refused.
    while from < size && segments.len() as u64 <= MOST_SEGMENTS {
        let start = match seek(file, SeekFrom::Data(from)) {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        segments.push((start, end.saturating_sub(start)));
        from = end;
    }
    Ok(segments)
}
