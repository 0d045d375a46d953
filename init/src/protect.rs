//! The protected paths of writable binds: what would run code outside later if the payload could change it.
//!
//! What exists is mounted over itself read-only. A mount point can be neither renamed nor removed by whoever sees the
//! mount (EBUSY), so every directory on the way is mounted over itself too, writable. What does not exist has a stub, made
//! on the host by the supervisor, which a link to nowhere covers: the payload finds nothing there and can make nothing.
//!
//! Invariant: every name is looked up in a directory that is held already, through no link, and what is found is what the
//! plan was made for; else the start ends.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};

use crate::mounts::{self, READ_ONLY};
use crate::plan::{Guard, Hold, Kind, Stub};
use crate::root::clone_mount;
use crate::step::{At, Failure, Step};
use crate::tree;
use agentd_sys::mount::set_attributes;

const AT: Step = Step::Protect;

/// The link in /dev that covers stubs, and where it leads: there is nothing, and in /dev nothing can be made.
pub(crate) const ABSENT: (&str, &str) = ("absent", "/dev/protected-by-agentd");

/// A directory below which guards are placed.
struct Held<'g> {
    base: &'g str,
    path: &'g str,
    directory: OwnedFd,
}

/// Mounts every guard; they come parents first.
pub(crate) fn hold(guards: &[Guard]) -> Result<(), Failure> {
    if guards.is_empty() {
        return Ok(());
    }
    let link = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).at(AT, "/")?;
    let absent = openat(&root, format!("dev/{}", ABSENT.0), link, Mode::empty()).at(AT, "/dev")?;
    // Copies of a mount are as read-only as it is.
    let mut cover: Option<OwnedFd> = None;
    let mut held: Vec<Held<'_>> = Vec::new();
    for guard in guards {
        let name = fmt::from_fn(|f| write!(f, "{}/{}", guard.base, guard.path));
        let (parent, last) = guard.path.rsplit_once('/').unwrap_or(("", &guard.path));
        while held.last().is_some_and(|above| above.base != guard.base || !is_at_or_below(parent, above.path)) {
            held.pop();
        }
        if held.is_empty() {
            let directory = tree::in_root(root.as_fd(), &guard.base, Kind::Directory).at(AT, &name)?;
            held.push(Held { base: &guard.base, path: "", directory });
        }
        let above = held.last().filter(|above| above.path == parent);
        let above = above.ok_or_else(|| Failure::new(AT, name.to_string(), libc::EINVAL))?;
        let found = openat(&above.directory, last, link, Mode::empty()).at(AT, &name)?;
        let stat = fstat(&found).at(AT, &name)?;
        if !is_planned(&stat, &guard.hold) {
            return Err(Failure::new(AT, format!("{name}: replaced since it was looked up"), libc::ESTALE));
        }
        let is_covered = matches!(guard.hold, Hold::Absent { stub: Stub::Socket });
        let mount = match (&cover, is_covered) {
            (Some(cover), true) => clone_mount(cover.as_fd(), false),
            (None, true) => clone_mount(absent.as_fd(), false),
            // With what the host has mounted below it.
            (_, false) => clone_mount(found.as_fd(), true),
        };
        let mount = mount.at(AT, &name)?;
        let is_pinned = matches!(guard.hold, Hold::Pinned { .. });
        let is_copy = is_covered && cover.is_some();
        if !(is_pinned || is_copy) {
            set_attributes(mount.as_fd(), READ_ONLY, true).at(AT, &name)?;
        }
        mounts::attach_to(&mount, found.as_fd()).at(AT, &name)?;
        if is_pinned {
            held.push(Held { base: &guard.base, path: &guard.path, directory: mount });
        } else if is_covered && !is_copy {
            cover = Some(mount);
        }
    }
    Ok(())
}

fn is_at_or_below(path: &str, above: &str) -> bool {
    above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_planned(found: &Stat, hold: &Hold) -> bool {
    match hold {
        Hold::Pinned { object } | Hold::ReadOnly { object } => {
            found.st_dev == object.device && found.st_ino == object.inode
        }
        Hold::Absent { stub } => {
            let kind = match stub {
                Stub::Socket => FileType::Socket,
                Stub::Directory => FileType::Directory,
                Stub::Empty | Stub::Here => FileType::RegularFile,
            };
            FileType::from_raw_mode(found.st_mode) == kind
        }
    }
}
