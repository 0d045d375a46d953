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
    /// In some layers, maybe several.
    Directory,
    Symlink(Vec<u8>),
    /// Anything else, opened with `O_PATH`.
    Other(OwnedFd),
}

/// The roots of the stack `layers` (lowest first), topmost first.
pub(super) fn open_roots(layers: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    layers.iter().rev().map(|layer| Ok(open(layer, flags, Mode::empty())?)).collect()
}

/// The content of `path` in the stack `roots` (topmost first); empty when it is not there.
pub(super) fn read_file(roots: &[OwnedFd], path: &str, most: u64) -> Result<Vec<u8>> {
    let mut ahead: VecDeque<Vec<u8>> = path.split('/').map(|name| name.as_bytes().to_vec()).collect();
    let mut real: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                real.pop();
                continue;
            }
            _ => real.push(name),
        }
        match find(roots, &real)? {
            Found::Nothing => return Ok(Vec::new()),
            Found::Directory => {}
            Found::Symlink(target) => {
                links += 1;
                if links > MOST_SYMLINKS {
                    return Err(Errno::LOOP.into());
                }
                real.pop();
                if target.starts_with(b"/") {
                    real.clear();
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

/// What the stack `roots` (topmost first) shows at `path`, whose directories are known to be directories.
fn find(roots: &[OwnedFd], path: &[Vec<u8>]) -> Result<Found> {
    let mut directory = false;
    'layers: for root in roots {
        let mut at: Option<OwnedFd> = None;
        let mut opaque = false;
        for (depth, name) in path.iter().enumerate() {
            let parent = at.as_ref().unwrap_or(root);
            let fd = match openat2(
                parent,
                &name[..],
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            ) {
                Ok(fd) => fd,
                // A directory of this layer that hides the lower ones hides what it lacks, too.
                Err(Errno::NOENT) if opaque => break 'layers,
                Err(Errno::NOENT) => continue 'layers,
                Err(e) => return Err(e.into()),
            };
            let stat = fstat(&fd)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            let last = depth + 1 == path.len();
            match kind {
                FileType::Directory => opaque |= is_opaque(&fd),
                FileType::CharacterDevice if stat.st_rdev == 0 => break 'layers,
                // Below a directory of higher layers, what is not one is not shown, and hides what is lower.
                _ if directory || !last => break 'layers,
                FileType::Symlink => return Ok(Found::Symlink(readlinkat(&fd, c"", Vec::new())?.into_bytes())),
                _ => return Ok(Found::Other(fd)),
            }
            at = Some(fd);
        }
        directory = true;
        if opaque {
            break;
        }
    }
    Ok(if directory { Found::Directory } else { Found::Nothing })
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
