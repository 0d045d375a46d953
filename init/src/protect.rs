//! The protected paths of writable binds: what would run code outside later if the payload could change it.
//!
//! What exists is mounted over itself read-only. A mount point can be neither renamed nor removed by whoever sees the
//! mount (EBUSY), so every directory on the way is mounted over itself too, writable. What does not exist has a stub, made
//! on the host by the supervisor, which a link covers: the payload finds nothing behind it and can make nothing. Names of
//! settings lead to an empty directory, for programs that walk a tree stop at links to nowhere (docs/adr/0007).
//!
//! Invariant: every name is looked up in a directory that is held already, through no link, and what is found is what the
//! plan was made for; else the start ends.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, symlinkat};

use crate::mounts::{self, READ_ONLY};
use crate::plan::{Guard, Hold, Kind, SERVERS, SETTINGS, Stub};
use crate::root::clone_mount;
use crate::step::{At, Failure, Step};
use crate::tree;
use agentd_sys::mount::set_attributes;

const AT: Step = Step::Protect;

/// A name itself, whatever it is.
const LINK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What stubs show up as, in /dev, where nothing can be made: names of projects' settings as an empty directory.
const EMPTY: &str = "protected-by-agentd";
/// A list of servers is no directory to agents, who complain of one. This is the list without servers.
const NO_SERVERS: &str = "protected-by-agentd.json";
/// What links lead to, programs say, as nothing: git takes a directory for a hook that it may run.
const NOTHING: &str = "protected-by-agentd/nothing";

/// The links that cover stubs.
const ABSENT_SETTING: &str = "absent";
const ABSENT_SERVERS: &str = "absent.json";
const ABSENT: &str = "absent.link";

/// Makes them in `dev`, which is not read-only yet.
pub(crate) fn make_covers(dev: &OwnedFd) -> Result<(), Failure> {
    tree::directory(dev, EMPTY, 0o555).at(AT, EMPTY)?;
    let list = tree::file(dev.as_fd(), NO_SERVERS, 0o444).at(AT, NO_SERVERS)?;
    rustix::io::write(list, br#"{"mcpServers":{}}"#).at(AT, NO_SERVERS)?;
    for (link, to) in [(ABSENT_SETTING, EMPTY), (ABSENT_SERVERS, NO_SERVERS), (ABSENT, NOTHING)] {
        symlinkat(format!("/dev/{to}"), dev, link).at(AT, link)?;
    }
    Ok(())
}

/// The link that covers a name.
fn cover_of(name: &str) -> &'static str {
    match name {
        SERVERS => ABSENT_SERVERS,
        name if SETTINGS.contains(&name) => ABSENT_SETTING,
        _ => ABSENT,
    }
}

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
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).at(AT, "/")?;
    // Copies of a mount are as read-only as it is.
    let mut covers: Vec<(&str, OwnedFd)> = Vec::new();
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
        let found = openat(&above.directory, last, LINK, Mode::empty()).at(AT, &name)?;
        let stat = fstat(&found).at(AT, &name)?;
        if !is_planned(&stat, &guard.hold) {
            return Err(Failure::new(AT, format!("{name}: replaced since it was looked up"), libc::ESTALE));
        }
        if matches!(guard.hold, Hold::Absent { stub: Stub::Socket }) {
            let link = cover_of(last);
            if let Some((_, cover)) = covers.iter().find(|(of, _)| *of == link) {
                let copy = clone_mount(cover.as_fd(), false).at(AT, &name)?;
                mounts::attach_to(&copy, found.as_fd()).at(AT, &name)?;
            } else {
                let cover = read_only(&root, link)?;
                mounts::attach_to(&cover, found.as_fd()).at(AT, &name)?;
                // Copied once it has a place: before Linux 6.15 a mount that is nowhere has no copies.
                covers.push((link, cover));
            }
            continue;
        }
        // With what the host has mounted below it.
        let mount = clone_mount(found.as_fd(), true).at(AT, &name)?;
        let is_pinned = matches!(guard.hold, Hold::Pinned { .. });
        if !is_pinned {
            set_attributes(mount.as_fd(), READ_ONLY, true).at(AT, &name)?;
        }
        mounts::attach_to(&mount, found.as_fd()).at(AT, &name)?;
        if is_pinned {
            held.push(Held { base: &guard.base, path: &guard.path, directory: mount });
        }
    }
    Ok(())
}

/// A mount of one of the links in /dev.
fn read_only(root: &OwnedFd, link: &str) -> Result<OwnedFd, Failure> {
    let found = openat(root, format!("dev/{link}"), LINK, Mode::empty()).at(AT, link)?;
    let mount = clone_mount(found.as_fd(), false).at(AT, link)?;
    set_attributes(mount.as_fd(), READ_ONLY, false).at(AT, link)?;
    Ok(mount)
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
