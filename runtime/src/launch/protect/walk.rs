//! A bounded look through a directory tree for repositories and protected names, the shallow ones first.
//!
//! Invariant: no link is followed, no device or FIFO opened, and what was not looked at is said.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, accessat, openat, openat2, statat};
use rustix::io::Errno;

use super::rules::NAMES;
use super::survey::{Bounds, Names, say};

/// How deep the walk goes.
const MAX_DEPTH: usize = 32;
/// Bytes of names that one system call gives.
const BUFFER: usize = 32 << 10;

/// Something that was found.
pub(super) struct Finding {
    /// The directory it is in.
    pub(super) directory: Names,
    /// What it is.
    pub(super) entry: Entry,
}

/// What was found in a directory.
pub(super) enum Entry {
    /// A protected name.
    Name(&'static str),
    /// A `.git`.
    Repository,
    /// The directory looks like a git directory itself, and git takes it for one (safe.bareRepository).
    Bare,
}

/// A finished walk.
pub(super) struct Walked {
    pub(super) findings: Vec<Finding>,
    /// Where it ended early.
    pub(super) unseen: Vec<String>,
}

/// Looks through `base` as far as `bounds` let it.
pub(super) fn walk(base: BorrowedFd<'_>, bounds: Bounds) -> Walked {
    let mut walked = Walked { findings: Vec::new(), unseen: Vec::new() };
    let mut queue: VecDeque<Names> = VecDeque::from([Vec::new()]);
    let mut buffer = Vec::with_capacity(BUFFER);
    let (mut listed, mut unlisted, mut first) = (0, 0_u32, None);
    while let Some(at) = queue.pop_front() {
        if listed == bounds.directories || at.len() > MAX_DEPTH || bounds.is_over() {
            walked.unseen.push(format!("looking ended after {listed} directories, {} deep", at.len()));
            break;
        }
        listed += 1;
        let path = if at.is_empty() { ".".to_owned() } else { at.join("/") };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let directory = match openat2(base, &path, flags, Mode::empty(), resolve) {
            Ok(directory) => directory,
            // Changed meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => {
                if is_reachable(base, &path) {
                    unlisted += 1;
                    first.get_or_insert((path, errno));
                }
                continue;
            }
        };
        look(&directory, at, bounds, &mut buffer, &mut queue, &mut walked);
    }
    if let Some((path, errno)) = first {
        let more = if unlisted > 1 { format!(" and {} more", unlisted - 1) } else { String::new() };
        walked.unseen.push(format!("{path}{more} cannot be listed ({errno})"));
    }
    walked
}

/// Whether this user, or the payload, which is this user, can do anything in a directory that is not listed: to its owner
/// its mode is no obstacle.
fn is_reachable(base: BorrowedFd<'_>, path: &str) -> bool {
    let is_foreign = statat(base, path, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| stat.st_uid != rustix::process::geteuid().as_raw());
    !is_foreign || accessat(base, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

fn look(
    directory: &OwnedFd,
    at: Names,
    bounds: Bounds,
    buffer: &mut Vec<u8>,
    queue: &mut VecDeque<Names>,
    walked: &mut Walked,
) {
    let mut signs = 0;
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else {
            walked.unseen.push(format!("{} cannot be listed to its end", at.join("/")));
            break;
        };
        if bounds.is_over() {
            say(&mut walked.unseen, "looking took too long".into());
            break;
        }
        let bytes = entry.file_name().to_bytes();
        if matches!(bytes, b"." | b"..") {
            continue;
        }
        let is_directory = || kind(directory, entry.file_name(), entry.file_type()) == FileType::Directory;
        let Ok(name) = entry.file_name().to_str() else {
            if is_directory() {
                let above = if at.is_empty() { "it".to_owned() } else { at.join("/") };
                say(&mut walked.unseen, format!("{above} holds a directory whose name is no text"));
            }
            continue;
        };
        signs += u32::from(matches!(name, "HEAD" | "objects" | "refs"));
        if name == ".git" {
            found.push(Entry::Repository);
        } else if let Some((name, _)) = NAMES.iter().find(|(known, _)| *known == name) {
            found.push(Entry::Name(name));
        } else if is_directory() {
            queue.push_back(at.iter().cloned().chain([name.to_owned()]).collect());
        }
    }
    if signs == 3 {
        found.push(Entry::Bare);
        // Thousands of directories, none of which git takes for a repository of its own.
        queue.retain(|queued| !(queued.starts_with(&at) && queued.get(at.len()).is_some_and(|name| name == "objects")));
    }
    walked.findings.extend(found.into_iter().map(|entry| Finding { directory: at.clone(), entry }));
}

/// Names and types of what a directory holds, as long as `left` lasts; and whether that is all.
pub(super) fn names(directory: BorrowedFd<'_>, left: &mut u32) -> (Vec<(String, FileType)>, bool) {
    let mut names = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = match openat(directory, ".", flags, Mode::empty()) {
        Ok(listing) => listing,
        Err(errno) => return (names, matches!(errno, Errno::NOENT | Errno::NOTDIR)),
    };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&listing, &mut buffer);
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else { return (names, false) };
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let (Some(less), Ok(name)) = (left.checked_sub(1), entry.file_name().to_str()) else { return (names, false) };
        *left = less;
        names.push((name.to_owned(), kind(&listing, entry.file_name(), entry.file_type())));
    }
    (names, true)
}

/// The type of an entry; some file systems do not say it with the name.
fn kind(directory: impl AsFd, name: &std::ffi::CStr, said: FileType) -> FileType {
    if said != FileType::Unknown {
        return said;
    }
    let stat: Result<_, Errno> = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}
