//! Finding a file through stacked layers, as overlayfs would show it.
//!
//! Invariant: every step opens one name below a directory descriptor of that layer with `O_PATH | O_NOFOLLOW`;
//! symlinks are resolved here, inside the stack, so an absolute one starts at the image's root.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2, readlinkat};
use rustix::io::Errno;

/// Symlinks followed for one path, as in the kernel (`MAXSYMLINKS`).
const MOST_SYMLINKS: u32 = 40;

enum Found {
    Nothing,
    /// The directories that are merged, topmost first.
    Directory(Vec<OwnedFd>),
    Symlink(Vec<u8>),
    /// Anything else, opened with `O_PATH`.
    Other(OwnedFd),
}

/// The stack of an image's layers, and where in it the last file was: the next one is most often beside it.
pub(super) struct Stack {
    roots: Vec<OwnedFd>,
    /// Below the root, outermost first: a name, and the directories that are merged there, topmost first.
    path: Vec<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Stack {
    /// Of `layers`, lowest first.
    pub(super) fn open(layers: &[PathBuf]) -> Result<Stack> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let roots = layers.iter().rev().map(|layer| Ok(open(layer, flags, Mode::empty())?)).collect::<Result<_>>()?;
        Ok(Stack { roots, path: Vec::new() })
    }

    /// The content of the file `path`; empty when it is not there.
    pub(super) fn read(&mut self, path: &str, most: u64) -> Result<Vec<u8>> {
        let mut ahead: VecDeque<Vec<u8>> = path.split('/').map(|name| name.as_bytes().to_vec()).collect();
        let mut depth = 0_usize;
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    depth = depth.saturating_sub(1);
                    continue;
                }
                _ => {}
            }
            if self.path.get(depth).is_some_and(|(known, _)| *known == name) {
                depth += 1;
                continue;
            }
            self.path.truncate(depth);
            let parents = self.path.last().map_or(&self.roots, |(_, directories)| directories);
            match find(parents, &name)? {
                Found::Nothing => return Ok(Vec::new()),
                Found::Directory(directories) => {
                    self.path.push((name, directories));
                    depth += 1;
                }
                Found::Symlink(target) => {
                    links += 1;
                    if links > MOST_SYMLINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with(b"/") {
                        depth = 0;
                    }
                    for part in target.split(|b| *b == b'/').rev() {
                        ahead.push_front(part.to_vec());
                    }
                }
                Found::Other(fd) if ahead.is_empty() => return read_regular(&fd, most),
                Found::Other(_) => return Ok(Vec::new()),
            }
        }
        Err(Error::other("it is a directory"))
    }
}

/// What directories that are merged, topmost first, show as `name`.
fn find(parents: &[OwnedFd], name: &[u8]) -> Result<Found> {
    let mut directories = Vec::new();
    for parent in parents {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = match openat2(parent, name, flags, Mode::empty(), inside) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        let stat = fstat(&fd)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let hides_the_lower = is_opaque(&fd);
                directories.push(fd);
                if hides_the_lower {
                    break;
                }
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => break,
            // Below a directory of higher layers, what is not one is not shown, and hides what is lower.
            _ if !directories.is_empty() => break,
            FileType::Symlink => return Ok(Found::Symlink(readlinkat(&fd, c"", Vec::new())?.into_bytes())),
            _ => return Ok(Found::Other(fd)),
        }
    }
    Ok(if directories.is_empty() { Found::Nothing } else { Found::Directory(directories) })
}

fn is_opaque(directory: &OwnedFd) -> bool {
    // Extended attributes cannot be read through O_PATH, but through its name in /proc. A directory whose attributes
    // cannot be read is not opaque for overlayfs either.
    let mut value = [0u8; 1];
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    matches!(rustix::fs::getxattr(path, c"user.overlay.opaque", &mut value), Ok(1) if value == *b"y")
}

/// Reopens what was examined; by descriptor, so that it cannot have become a FIFO in between.
fn read_regular(found: &OwnedFd, most: u64) -> Result<Vec<u8>> {
    let stat = fstat(found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::other("it is not a regular file"));
    }
    let too_large = || Error::new(ErrorKind::FileTooLarge, format!("it is larger than {most} bytes"));
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > most {
        return Err(too_large());
    }
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = File::from(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large()) } else { Ok(bytes) }
}
