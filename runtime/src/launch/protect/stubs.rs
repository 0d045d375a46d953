//! What stands on the host, while jobs run, where a protected path does not exist.
//!
//! One file of a user, `stubs` in the state directory, lists every stub before it is made: a kind and a path, ended by NUL.
//! What is done is overwritten with NULs: to shorten the file would cost a job half a millisecond (ext4).
//! The sockets of a job are one socket with many names: ext4 makes an inode in up to 0.3 ms where many were removed lately.
//! It is also the lock. Byte 0 is held by who makes or removes stubs; the byte that an inode's number chooses is shared by
//! the supervisors of all jobs that need that stub, and the kernel gives it back when they die. So the last job of several
//! removes a stub, and a later command removes what a killed one left.
//!
//! Invariant: a stub is removed only if this list names it, nobody needs it, and it still is what was made: removing a
//! stub that a box has protected would uncover the path in that box.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agentd_init::plan::Stub;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, linkat, mkdirat, mknodat, openat, openat2, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::{git, walk};

/// Longest list that is read, in bytes.
const MAX_LIST: u64 = 16 << 20;
/// What [`Stub::Here`] says.
const HERE: &str = ".\n";

/// A protected path that cannot be kept absent.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// Its stub.
    #[error("cannot keep {} absent while the job runs; make its directory writable, or give --unprotect {}", path.display(), path.file_name().unwrap_or_default().display())]
    Stub {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The list of stubs.
    #[error("cannot keep the list of stubs {}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StubError {
    move |source| StubError::Stub { path: path.to_owned(), source }
}

fn failed_list(path: &Path) -> impl FnOnce(io::Error) -> StubError {
    move |source| StubError::List { path: path.to_owned(), source }
}

/// The stubs of one running job.
#[derive(Debug)]
pub struct Stubs {
    list: File,
    placed: Vec<(Stub, PathBuf)>,
}

impl Stubs {
    /// Makes those of `wanted` that are not there yet. `list` is the user's file of stubs.
    ///
    /// # Errors
    /// [`StubError`]; none that this call made is left then.
    pub fn place(list: &Path, wanted: Vec<(Stub, PathBuf)>) -> Result<Self, StubError> {
        let open = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(list);
        let stubs = Stubs { list: open.map_err(failed_list(list))?, placed: wanted };
        match stubs.make(list) {
            Ok(()) => Ok(stubs),
            Err(error) => {
                // The error that is returned says more than this one could.
                stubs.remove().unwrap_or_default();
                Err(error)
            }
        }
    }

    fn make(&self, list: &Path) -> Result<(), StubError> {
        lock(&self.list, Range::Mutex, libc::F_WRLCK, true).map_err(failed_list(list))?;
        let mut missing = Vec::new();
        let mut lines = Vec::new();
        let mut parents = Parents::default();
        for (stub, path) in &self.placed {
            let (directory, name) = parents.of(path).map_err(failed(path))?;
            if matches!(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT)) {
                lines.push(kind(*stub));
                lines.extend(path.as_os_str().as_bytes());
                lines.push(0);
                missing.push((*stub, path));
            }
        }
        let end =
            read(&self.list).map_err(failed_list(list))?.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 2);
        self.list.write_all_at(&lines, end as u64).map_err(failed_list(list))?;
        let mut socket = None;
        for (stub, path) in missing {
            let (directory, name) = parents.of(path).map_err(failed(path))?;
            match make(directory, name, stub, &mut socket) {
                // Somebody else did, or it is wanted twice: what it is is looked at below.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(failed(path))?,
            }
        }
        let mut shared = None;
        for (stub, path) in &self.placed {
            let (directory, name) = parents.of(path).map_err(failed(path))?;
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(io::Error::from).map_err(failed(path))?;
            let is_half_made = *stub == Stub::Here && stat.st_size == 0;
            if is_half_made || !is_stub(directory, name, *stub, &stat) {
                return Err(failed(path)(Errno::EXIST.into()));
            }
            if shared.replace(stat.st_ino) != Some(stat.st_ino) {
                lock(&self.list, Range::Inode(stat.st_ino), libc::F_RDLCK, false).map_err(failed_list(list))?;
            }
        }
        lock(&self.list, Range::Mutex, libc::F_UNLCK, false).map_err(failed_list(list))
    }

    /// Removes what no other job needs.
    ///
    /// # Errors
    /// The list cannot be read or written; the next command tries again.
    pub fn remove(self) -> io::Result<()> {
        // Also a name of our socket that only a job which has ended wanted.
        let ours: BTreeSet<&Path> = self.placed.iter().filter_map(|(_, path)| path.parent()).collect();
        clean(&self.list, |path| path.parent().is_some_and(|parent| ours.contains(parent)))
    }
}

/// Removes what killed jobs left. Nothing to do is the usual case, and costs one look.
///
/// # Errors
/// The list cannot be read or written.
pub fn sweep(list: &Path) -> io::Result<()> {
    match File::options().read(true).write(true).open(list) {
        Ok(list) if read(&list)?.iter().any(|byte| *byte != 0) => clean(&list, |_| true),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn read(list: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(usize::try_from(list.metadata()?.len().min(MAX_LIST)).unwrap_or_default() + 1);
    let mut list = list;
    list.rewind()?;
    list.take(MAX_LIST).read_to_end(&mut text)?;
    Ok(text)
}

fn clean(list: &File, is_wanted: impl Fn(&Path) -> bool) -> io::Result<()> {
    lock(list, Range::Mutex, libc::F_WRLCK, true)?;
    let text = read(list)?;
    let mut kept = Vec::with_capacity(text.len());
    let mut parents = Parents::default();
    let mut needed = None;
    for line in text.split(|byte| *byte == 0) {
        let Some((letter, path)) = line.split_first() else { continue };
        let Some(stub) = KINDS.iter().find(|(_, known)| known == letter).map(|(stub, _)| *stub) else { continue };
        let path = Path::new(OsStr::from_bytes(path));
        if !is_wanted(path) || !is_gone(list, &mut parents, &mut needed, stub, path) {
            kept.extend_from_slice(line);
            kept.push(0);
        }
    }
    kept.resize(text.len(), 0);
    if kept != text {
        list.write_all_at(&kept, 0)?;
    }
    lock(list, Range::All, libc::F_UNLCK, false)
}

/// Removes one stub unless a job needs it; whether there is nothing more to do about it. `needed` is what was found out of
/// the last inode.
fn is_gone(list: &File, parents: &mut Parents, needed: &mut Option<(u64, bool)>, stub: Stub, path: &Path) -> bool {
    let Ok((directory, name)) = parents.of(path) else { return true };
    let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { return true };
    if !is_stub(directory, name, stub, &stat) {
        return true;
    }
    let is_needed = match *needed {
        Some((inode, is_needed)) if inode == stat.st_ino => is_needed,
        _ => lock(list, Range::Inode(stat.st_ino), libc::F_WRLCK, false).is_err(),
    };
    *needed = Some((stat.st_ino, is_needed));
    let flags = if stub == Stub::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    !is_needed && unlinkat(directory, name, flags).is_ok()
}

/// Makes one stub. `socket` is the one that others can be names of.
fn make(directory: &OwnedFd, name: &OsStr, stub: Stub, socket: &mut Option<OwnedFd>) -> io::Result<()> {
    let made = match stub {
        Stub::Socket => {
            if let Some(known) = socket {
                let known = format!("/proc/self/fd/{}", known.as_raw_fd());
                match linkat(CWD, known, directory, name, AtFlags::SYMLINK_FOLLOW) {
                    // Another disk, a disk without links, a policy against them, too many, or removed meanwhile.
                    Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP | Errno::NOENT) => {}
                    linked => return Ok(linked?),
                }
            }
            mknodat(directory, name, FileType::Socket, Mode::from_raw_mode(0o600), 0)?;
            let made = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let is_socket = FileType::from_raw_mode(fstat(&made)?.st_mode) == FileType::Socket;
            *socket = is_socket.then_some(made);
            Ok(())
        }
        Stub::Directory => mkdirat(directory, name, Mode::from_raw_mode(0o755)),
        Stub::Empty | Stub::Here => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            let contents = if stub == Stub::Here { HERE } else { "" };
            let file = openat(directory, name, flags, Mode::from_raw_mode(0o644));
            return file.map(File::from)?.write_all(contents.as_bytes());
        }
    };
    Ok(made?)
}

/// Whether what is at `name` is what [`make`] makes, or has begun to make.
pub(super) fn is_stub(directory: &OwnedFd, name: impl AsRef<OsStr>, stub: Stub, stat: &Stat) -> bool {
    let name = name.as_ref();
    let kind = FileType::from_raw_mode(stat.st_mode);
    match stub {
        Stub::Socket => kind == FileType::Socket,
        Stub::Empty => kind == FileType::RegularFile && stat.st_size == 0,
        Stub::Here => {
            let text = || name.to_str().and_then(|name| git::read(directory, name).ok());
            let is_one = || stat.st_size == 0 || stat.st_size == 2 && text().as_deref() == Some(HERE);
            kind == FileType::RegularFile && is_one()
        }
        Stub::Directory => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let is_empty = |found: OwnedFd| {
                let (names, complete) = walk::names(found.as_fd(), &mut 1);
                complete && names.is_empty()
            };
            kind == FileType::Directory && openat(directory, name, flags, Mode::empty()).is_ok_and(is_empty)
        }
    }
}

/// The letters that the list has for kinds.
const KINDS: [(Stub, u8); 4] = [(Stub::Socket, b's'), (Stub::Directory, b'd'), (Stub::Empty, b'e'), (Stub::Here, b'h')];

fn kind(stub: Stub) -> u8 {
    KINDS.iter().find(|(known, _)| *known == stub).map_or(b's', |(_, letter)| *letter)
}

/// The directory that the last path was in: many paths lie in few.
#[derive(Debug, Default)]
struct Parents {
    last: Option<(PathBuf, OwnedFd)>,
}

impl Parents {
    /// The directory of `path`, reached through no link, and its name there.
    fn of<'s, 'p>(&'s mut self, path: &'p Path) -> io::Result<(&'s OwnedFd, &'p OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = match self.last.take() {
            Some((last, directory)) if last == parent => directory,
            _ => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                openat2(CWD, parent, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?
            }
        };
        Ok((&self.last.insert((parent.to_owned(), directory)).1, name))
    }
}

/// A byte of the list's file that is locked.
#[derive(Clone, Copy)]
enum Range {
    /// Who holds it makes or removes.
    Mutex,
    /// Who shares it needs the stub with this inode number.
    Inode(u64),
    /// Both, of every inode.
    All,
}

/// An open-file-description lock (fcntl_locking(2)): it goes with the descriptor, and a process that dies has none.
fn lock(list: &File, range: Range, kind: i32, wait: bool) -> io::Result<()> {
    let start = match range {
        Range::Mutex | Range::All => 0,
        // Two inodes of different disks may share a byte: then a stub stays longer than it must.
        Range::Inode(inode) => i64::try_from(inode & (u64::MAX >> 2)).unwrap_or_default() + 1,
    };
    let short = |value: i32| libc::c_short::try_from(value).map_err(io::Error::other);
    let length = i64::from(!matches!(range, Range::All));
    let lock =
        libc::flock { l_type: short(kind)?, l_whence: short(libc::SEEK_SET)?, l_start: start, l_len: length, l_pid: 0 };
    loop {
        let command = if wait { FcntlArg::F_OFD_SETLKW(&lock) } else { FcntlArg::F_OFD_SETLK(&lock) };
        match fcntl(list.as_fd(), command) {
            Err(nix::errno::Errno::EINTR) => {}
            done => return done.map(drop).map_err(io::Error::from),
        }
    }
}
