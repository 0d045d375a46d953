//! Following one path of a survey, name by name, and holding what it goes through.
//!
//! Invariant: the kernel follows nothing here. A link is held, and its words are looked up like those of a path; what leads
//! out of the directory that is surveyed leads nowhere.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use agentd_init::plan::{Hold, Object, Stub};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, accessat, fstat, openat, openat2, readlinkat,
    statat,
};
use rustix::io::Errno;

use super::survey::{Names, Result, Survey};
use super::{outside, stubs, walk};

/// How many links one name may lead through, as the kernel has it.
const MAX_LINKS: u32 = 40;
/// How deep a path is followed. What is done for a name grows with what is above it.
const MAX_DEPTH: usize = 64;
/// Names above that make a step cost one more.
const NAMES_A_STEP: usize = 8;
/// Directories that are kept open.
const MAX_OPEN: usize = 256;

/// What a path is to be.
#[derive(Clone, Copy)]
pub(super) enum Goal {
    /// Held as it is, or absent with a stub.
    Keep(Stub),
    /// A directory whose parts are held.
    Enter,
}

/// What is at a name.
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// What agentd puts there where there is nothing.
    Stub,
    /// Something else.
    Other(Stat),
}

/// Where a path led.
pub(super) enum Reached {
    /// Here, to something of this type.
    At(Names, FileType),
    /// To nothing, or out of the base, or to what `--unprotect` opens.
    Nowhere,
}

impl Survey<'_> {
    /// Holds `path`, seen from the directory `from`, and every directory and link on the way to it.
    pub(super) fn reach(&mut self, from: &[String], path: impl AsRef<Path>, goal: Goal) -> Result<Reached> {
        let Some((is_absolute, names)) = self.steps(path.as_ref()) else { return Ok(Reached::Nowhere) };
        let from = if is_absolute { &[] } else { from };
        let mut todo: VecDeque<String> = from.iter().cloned().chain(names).collect();
        let mut at: Names = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if at.len() == MAX_DEPTH {
                self.say(format!("a path leads more than {MAX_DEPTH} directories down"));
                return Ok(Reached::Nowhere);
            }
            if !self.spend(1 + at.len() / NAMES_A_STEP) {
                return Ok(Reached::Nowhere);
            }
            if name == ".." {
                if at.pop().is_none() {
                    // It may come back.
                    let path = self.host.parent().map(|above| above.join(todo.drain(..).collect::<PathBuf>()));
                    let Some(names) = path.and_then(|path| self.below_base(&path)) else { return Ok(Reached::Nowhere) };
                    todo.extend(names);
                }
                continue;
            }
            let is_last = todo.is_empty();
            let in_git =
                (0..=at.len()).any(|end| at.get(..end).is_some_and(|above| self.git_directories.contains(above)));
            // What a stub would be here.
            let goal = match goal {
                Goal::Keep(_) if !is_last && in_git => Goal::Keep(Stub::Directory),
                Goal::Keep(_) if !is_last => Goal::Keep(Stub::Socket),
                goal => goal,
            };
            let stub = match goal {
                Goal::Keep(stub) => Some(stub),
                // Git takes an empty directory for none.
                Goal::Enter => is_last.then_some(Stub::Directory),
            };
            let stat = match (self.find(&at, &name, stub)?, stub) {
                (Found::Other(stat), _) => stat,
                (Found::Nothing, _) => {
                    if let Goal::Keep(stub) = goal {
                        self.absent(&at, name, stub)?;
                    }
                    return Ok(Reached::Nowhere);
                }
                (Found::Stub, stub) => {
                    at.push(name);
                    if let Some(stub) = stub.filter(|_| !self.is_opened(&at)) {
                        self.holds.insert(at, Hold::Absent { stub });
                    }
                    return Ok(Reached::Nowhere);
                }
            };
            at.push(name);
            if self.is_opened(&at) {
                return Ok(Reached::Nowhere);
            }
            let (kind, object) = (FileType::from_raw_mode(stat.st_mode), object(&stat));
            match (kind, goal) {
                (FileType::Symlink, _) => {
                    self.holds.insert(at.clone(), Hold::ReadOnly { object });
                    links += 1;
                    let Some((is_absolute, names)) = self.follow(&mut at)?.filter(|_| links <= MAX_LINKS) else {
                        return Ok(Reached::Nowhere);
                    };
                    if is_absolute {
                        at.clear();
                    }
                    names.into_iter().rev().for_each(|name| todo.push_front(name));
                }
                (FileType::Directory, Goal::Enter) => self.pin(&at, object),
                (FileType::Directory, Goal::Keep(_)) if !is_last => self.pin(&at, object),
                _ => {
                    self.keep(&at, &stat, object)?;
                    return Ok(if is_last { Reached::At(at, kind) } else { Reached::Nowhere });
                }
            }
        }
        Ok(Reached::At(at, FileType::Directory))
    }

    /// The names of a path, and whether they begin at the base; none for a path that leads elsewhere.
    fn steps(&mut self, path: &Path) -> Option<(bool, Names)> {
        let is_absolute = path.is_absolute();
        let names = if is_absolute { self.below_base(path)? } else { names(path)? };
        Some((is_absolute, names))
    }

    /// The names below the base of a host path, whichever of the host's links it takes to get there.
    pub(super) fn below_base(&mut self, path: &Path) -> Option<Names> {
        if let Ok(below) = path.strip_prefix(&self.host)
            && !below.components().any(|name| name == Component::ParentDir)
        {
            return names(below);
        }
        if !self.spend(1) {
            return None;
        }
        // Most often there is no link on the way, and the kernel says so at once.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let is_what_it_says = !path.components().any(|name| name == Component::ParentDir)
            && !matches!(openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS), Err(Errno::LOOP));
        if is_what_it_says {
            return None;
        }
        let mut at = PathBuf::from("/");
        let mut components = path.components();
        while let Some(component) = components.next() {
            if !self.spend(1) {
                return None;
            }
            match component {
                Component::Normal(name) => {
                    // What is not there leads nowhere, and nobody inside can make it.
                    let next = openat(CWD, at.join(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
                    at = outside::place(&next).ok()?;
                }
                Component::ParentDir => drop(at.pop()),
                _ => {}
            }
            if let Ok(below) = at.strip_prefix(&self.host) {
                return names(&below.join(components.as_path()));
            }
        }
        None
    }

    /// What the link at `at` says; `at` becomes the directory that it is in.
    fn follow(&mut self, at: &mut Names) -> Result<Option<(bool, Names)>> {
        let Some(name) = at.pop() else { return Ok(None) };
        let Some(directory) = self.open(at)? else { return Ok(None) };
        let text = readlinkat(&directory, &name, Vec::new()).map_err(|errno| self.error(at, errno))?;
        match text.into_string() {
            Ok(text) => Ok(self.steps(Path::new(&text))),
            Err(_) => {
                self.say(format!("the link {name} says what is no text"));
                Ok(None)
            }
        }
    }

    pub(super) fn is_opened(&mut self, at: &[String]) -> bool {
        let Some(pattern) = self.unprotect.opens(at) else { return false };
        self.opened.entry(pattern.to_owned()).or_default().insert(at.join("/"));
        true
    }

    fn pin(&mut self, at: &[String], object: Object) {
        self.holds.entry(at.to_vec()).or_insert(Hold::Pinned { object });
    }

    fn keep(&mut self, at: &[String], stat: &Stat, object: Object) -> Result<()> {
        let before = self.holds.insert(at.to_vec(), Hold::ReadOnly { object });
        if matches!(before, Some(Hold::ReadOnly { .. })) {
            return Ok(());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if stat.st_nlink > 1 => drop(self.linked.insert(at.to_vec())),
            FileType::Directory => self.contents(at)?,
            _ => {}
        }
        Ok(())
    }

    /// What is in a directory that is held as a whole: files with second names, and links to what is not in it.
    fn contents(&mut self, at: &[String]) -> Result<()> {
        let Some(directory) = self.open(at)? else { return Ok(()) };
        let (names, complete) = walk::names(directory.as_fd(), &mut self.contents_left);
        if !complete {
            self.say(format!("not all of {} could be looked at", at.join("/")));
        }
        // What git never runs.
        for (name, kind) in names.into_iter().filter(|(name, _)| !name.ends_with(".sample")) {
            let place = || at.iter().cloned().chain([name.clone()]).collect::<Names>();
            match kind {
                FileType::Symlink => drop(self.reach(at, &name, Goal::Keep(Stub::Socket))?),
                FileType::Directory => self.contents(&place())?,
                _ => match self.stat(at, &name)? {
                    Some(stat) if stat.st_nlink > 1 => drop(self.linked.insert(place())),
                    _ => {}
                },
            }
        }
        Ok(())
    }

    fn absent(&mut self, parent: &[String], name: String, stub: Stub) -> Result<()> {
        let at: Names = parent.iter().cloned().chain([name]).collect();
        if !self.is_opened(&at) && !self.is_unwritable(parent)? {
            self.holds.insert(at, Hold::Absent { stub });
        }
        Ok(())
    }

    /// Whether the payload can make nothing in a directory either: it is this user, and nobody can on a read-only disk.
    fn is_unwritable(&mut self, at: &[String]) -> Result<bool> {
        if let Some(known) = self.unwritable.get(at) {
            return Ok(*known);
        }
        let Some(directory) = self.open(at)? else { return Ok(true) };
        let unwritable = match accessat(&directory, ".", Access::WRITE_OK, AtFlags::EACCESS) {
            Err(Errno::ROFS) => true,
            // Its owner could change its mode.
            Err(Errno::ACCESS) => {
                let stat = fstat(&directory).map_err(|errno| self.error(at, errno))?;
                stat.st_uid != rustix::process::geteuid().as_raw()
            }
            _ => false,
        };
        self.unwritable.insert(at.to_vec(), unwritable);
        Ok(unwritable)
    }

    /// What is at a name, where `stub` is what agentd puts there: another job may make or remove that at any moment.
    pub(super) fn find(&mut self, at: &[String], name: &str, stub: Option<Stub>) -> Result<Found> {
        loop {
            let Some(stat) = self.stat(at, name)? else { return Ok(Found::Nothing) };
            let (Some(stub), Some(directory)) = (stub, self.open(at)?) else { return Ok(Found::Other(stat)) };
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let object = openat(&directory, name, flags, Mode::empty());
            if stubs::is_stub(&directory, name, stub, &stat) {
                return Ok(Found::Stub);
            }
            // One that was removed before its contents were seen seems to be none.
            let is_there = object.and_then(fstat).is_ok_and(|now| now.st_ino == stat.st_ino && now.st_nlink > 0);
            if is_there || matches!(stub, Stub::Socket | Stub::Empty) || !self.spend(1) {
                return Ok(Found::Other(stat));
            }
        }
    }

    pub(super) fn stat(&mut self, at: &[String], name: &str) -> Result<Option<Stat>> {
        let Some(directory) = self.open(at)? else { return Ok(None) };
        match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(Errno::ACCESS) => self.barred(&directory, at).map(|()| None),
            Err(errno) => Err(self.error(at, errno)),
        }
    }

    pub(super) fn open(&mut self, at: &[String]) -> Result<Option<Rc<OwnedFd>>> {
        let Some((name, parent)) = at.split_last() else { return Ok(Some(Rc::clone(&self.base))) };
        if let Some(directory) = self.directories.get(at) {
            return Ok(Some(Rc::clone(directory)));
        }
        let Some(parent) = self.open(parent)? else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&parent, name, flags, Mode::empty()) {
            Ok(directory) => {
                let directory = Rc::new(directory);
                if self.directories.len() >= MAX_OPEN {
                    self.directories.clear();
                }
                self.directories.insert(at.to_vec(), Rc::clone(&directory));
                Ok(Some(directory))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(Errno::ACCESS) => self.barred(&parent, at.get(..at.len() - 1).unwrap_or_default()).map(|()| None),
            Err(errno) => Err(self.error(at, errno)),
        }
    }

    /// In another user's directory that this user may not enter the payload can change nothing; it can open one of its own.
    fn barred(&mut self, directory: &OwnedFd, at: &[String]) -> Result<()> {
        let stat = fstat(directory).map_err(|errno| self.error(at, errno))?;
        if stat.st_uid == rustix::process::geteuid().as_raw() {
            self.say(format!("{} cannot be entered", if at.is_empty() { "it".into() } else { at.join("/") }));
        }
        Ok(())
    }

    fn error(&self, at: &[String], errno: Errno) -> (PathBuf, Errno) {
        (self.host.join(at.join("/")), errno)
    }
}

fn names(path: &Path) -> Option<Names> {
    let names = path.to_str()?.split('/').filter(|name| !matches!(*name, "" | "."));
    Some(names.map(str::to_owned).collect())
}

fn object(stat: &Stat) -> Object {
    let changed = stat
        .st_ctime
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::try_from(stat.st_ctime_nsec).unwrap_or_default());
    Object { device: stat.st_dev, inode: stat.st_ino, changed }
}
