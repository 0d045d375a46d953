//! Finding what has to be protected below one directory, and how each path is to be held.
//!
//! Invariant: what decides where to look is bounded, and a bound that is met is said.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use agentd_init::plan::{Hold, Stub};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;

use super::config::{self, Configured};
use super::git;
use super::reach::{Found, Goal, Reached};
use super::rules::{NAMES, OF_GIT, OF_WORKTREE, Unprotect};
use super::stubs;
use super::walk::{self, Entry, Finding};

/// How deep configuration files may include each other.
const MAX_INCLUDES: u32 = 4;
/// Entries of protected directories that are looked at, and of those that git keeps its parts in.
const MAX_CONTENTS: u32 = 4096;
/// Lines on where looking ended early.
const MAX_UNSEEN: usize = 12;
/// Bytes of a configuration that are read for one step.
const BYTES_A_STEP: usize = 256;

/// A path below the base, name by name: parents sort before what is in them.
pub(super) type Names = Vec<String>;

/// How far a survey goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Directories that are listed.
    pub(super) directories: usize,
    /// Repositories that are protected.
    pub(super) repositories: usize,
    /// Names that are looked up: links can make a short path a long way.
    pub(super) steps: u32,
    /// When looking ends.
    pub(super) ends: Option<Instant>,
}

impl Bounds {
    /// Whether the time is up.
    pub(super) fn is_over(&self) -> bool {
        self.ends.is_some_and(|ends| Instant::now() >= ends)
    }
}

/// Adds to what is said once, as long as somebody would read it.
pub(super) fn say(unseen: &mut Vec<String>, why: String) {
    if unseen.len() < MAX_UNSEEN && !unseen.contains(&why) {
        unseen.push(why);
    } else if unseen.len() == MAX_UNSEEN && !unseen.contains(&why) {
        unseen.push("and more of that".into());
    }
}

/// The working tree of a git directory, on the host: what its configuration names is relative to that.
#[derive(Clone, Copy)]
enum Tree<'t> {
    /// Here.
    At(&'t Path),
    /// Where `core.worktree` says, or none.
    Configured,
    /// It is looked at when the walk comes to it.
    Later,
}

/// What of the user's own has a say in his repositories.
#[derive(Debug, Clone, Copy)]
pub(super) struct User<'a> {
    /// What `~` stands for.
    pub(super) home: Option<&'a Path>,
    /// The configurations that hold in every repository, his and the machine's.
    pub(super) git: &'a [PathBuf],
    /// The profile that he gave the job, and may give the next one.
    pub(super) profile: Option<&'a Path>,
    /// What runs on the host when the job ends.
    pub(super) on_exit: &'a [PathBuf],
}

/// What was found below one directory.
pub(super) struct Survey<'a> {
    pub(super) base: Rc<OwnedFd>,
    pub(super) host: PathBuf,
    pub(super) unprotect: &'a Unprotect<'a>,
    user: User<'a>,
    pub(super) bounds: Bounds,
    pub(super) directories: BTreeMap<Names, Rc<OwnedFd>>,
    pub(super) unwritable: BTreeMap<Names, bool>,
    pub(super) contents_left: u32,
    /// How each path is held.
    pub(super) holds: BTreeMap<Names, Hold>,
    /// Git directories.
    pub(super) git_directories: BTreeSet<Names>,
    /// Configurations that were read, and for which working tree.
    configured: BTreeSet<(PathBuf, PathBuf)>,
    /// Files that have a second name somewhere: writing through that changes them.
    pub(super) linked: BTreeSet<Names>,
    /// Pattern of `--unprotect` and what it opened.
    pub(super) opened: BTreeMap<String, BTreeSet<String>>,
    /// Where looking ended early, and why.
    pub(super) unseen: Vec<String>,
}

pub(super) type Result<T> = std::result::Result<T, (PathBuf, Errno)>;

impl<'a> Survey<'a> {
    /// A survey of the directory at `host`, a path without links.
    pub(super) fn new(host: &Path, unprotect: &'a Unprotect<'a>, user: User<'a>, bounds: Bounds) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = openat2(CWD, host, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        Ok(Survey {
            base: Rc::new(base.map_err(|errno| (host.to_owned(), errno))?),
            host: host.to_owned(),
            unprotect,
            user,
            bounds,
            directories: BTreeMap::new(),
            unwritable: BTreeMap::new(),
            contents_left: MAX_CONTENTS,
            holds: BTreeMap::new(),
            git_directories: BTreeSet::new(),
            configured: BTreeSet::new(),
            linked: BTreeSet::new(),
            opened: BTreeMap::new(),
            unseen: Vec::new(),
        })
    }

    /// Looks at a workspace: the names at its top, whether they exist or not, and what the walk finds.
    pub(super) fn workspace(&mut self) -> Result<()> {
        self.names(&[])?;
        // Git looks for a repository upwards: one made here would come before the user's own, which lies above.
        let is_there = matches!(self.find(&[], ".git", Some(Stub::Directory))?, Found::Other(_));
        let is_git = |above: &Path| statat(CWD, above.join(".git"), AtFlags::empty()).is_ok();
        if !is_there && self.host.ancestors().skip(1).any(is_git) {
            self.reach(&[], ".git", Goal::Keep(Stub::Directory))?;
        }
        // The configuration of a repository above may name hooks in here.
        for top in self.host.clone().ancestors().skip(1) {
            let dot_git = top.join(".git");
            if let Some(to) = git::read_at(&dot_git).ok().as_deref().and_then(git::gitdir) {
                self.elsewhere(&git::lexical(top, to), top)?;
            } else if is_git(top) {
                self.elsewhere(&dot_git, top)?;
            }
        }
        self.below()
    }

    /// Looks at what the walk finds.
    pub(super) fn below(&mut self) -> Result<()> {
        for file in self.user.profile.into_iter().chain(self.user.on_exit.iter().map(PathBuf::as_path)) {
            self.reach(&[], file, Goal::Keep(Stub::Empty))?;
        }
        // What is relative in these has a meaning in a repository only; what is not may lie in here, with one or without.
        self.of_user(Path::new("/"))?;
        let walked = walk::walk(self.base.as_fd(), self.bounds);
        self.unseen.extend(walked.unseen);
        let mut repositories = 0;
        for Finding { directory, entry } in walked.findings {
            repositories += u32::from(!matches!(entry, Entry::Name(_)));
            if repositories as usize > self.bounds.repositories {
                self.say(format!("there are more than {} repositories", self.bounds.repositories));
                return Ok(());
            }
            match entry {
                Entry::Name(name) => drop(self.reach(&directory, name, Goal::Keep(Stub::Socket))?),
                Entry::Repository => {
                    let found = self.find(&directory, ".git", Some(Stub::Directory))?;
                    // Not where another job's stub of one is.
                    if matches!(found, Found::Other(_)) {
                        self.names(&directory)?;
                    }
                    self.repository(&directory)?;
                }
                Entry::Bare => self.git_directory(&directory, ".", Tree::Configured)?,
            }
        }
        Ok(())
    }

    /// The base itself is a git directory.
    pub(super) fn as_git_directory(&mut self) -> Result<()> {
        let host = self.host.clone();
        let tree = match host.parent() {
            Some(top) if host.file_name().is_some_and(|name| name == ".git") => Tree::At(top),
            _ => Tree::Configured,
        };
        self.git_directory(&[], ".", tree)
    }

    /// A line on what was not looked at.
    pub(super) fn say(&mut self, why: String) {
        say(&mut self.unseen, why);
    }

    /// Counts what looking costs; whether it may go on.
    pub(super) fn spend(&mut self, steps: usize) -> bool {
        let left = u32::try_from(steps).ok().and_then(|steps| self.bounds.steps.checked_sub(steps));
        self.bounds.steps = left.filter(|_| !self.bounds.is_over()).unwrap_or_default();
        if self.bounds.steps == 0 {
            self.say("its links and configurations lead further than is followed".into());
        }
        self.bounds.steps > 0
    }

    fn names(&mut self, at: &[String]) -> Result<()> {
        NAMES.iter().try_for_each(|(name, _)| self.reach(at, name, Goal::Keep(Stub::Socket)).map(drop))
    }

    fn repository(&mut self, top: &[String]) -> Result<()> {
        let place = self.place(top);
        match self.reach(top, ".git", Goal::Enter)? {
            Reached::At(found, FileType::Directory) => self.git_directory(&found, ".", Tree::At(&place)),
            // Of a worktree or submodule: its git directory may lie in here too.
            Reached::At(found, FileType::RegularFile) => {
                let Some((name, parent)) = found.split_last() else { return Ok(()) };
                let Some(directory) = self.open(parent)? else { return Ok(()) };
                let text = git::read(&directory, name).unwrap_or_default();
                match git::gitdir(&text) {
                    Some(to) => self.git_directory(parent, to, Tree::At(&place)),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The host path of what is at `at`.
    fn place(&self, at: &[String]) -> PathBuf {
        self.host.join(at.join("/"))
    }

    /// The git directory at `path`.
    fn git_directory(&mut self, from: &[String], path: &str, tree: Tree<'_>) -> Result<()> {
        let Reached::At(at, FileType::Directory) = self.reach(from, path, Goal::Enter)? else {
            let place = git::lexical(&self.place(from), path);
            return match tree {
                Tree::At(top) if !place.starts_with(&self.host) => self.elsewhere(&place, top),
                _ => Ok(()),
            };
        };
        let is_worktrees = self.stat(&at, "commondir")?.is_some() && self.stat(&at, "gitdir")?.is_some();
        let place = self.place(&at);
        let mut shared = place.clone();
        let is_new = self.git_directories.insert(at.clone());
        if is_new {
            let parts = if is_worktrees { OF_WORKTREE } else { OF_GIT };
            for (name, stub) in parts {
                self.reach(&at, name, Goal::Keep(*stub))?;
            }
        }
        if is_worktrees && let Some(directory) = self.open(&at)? {
            let common = git::read(&directory, "commondir").unwrap_or_default();
            let common = common.trim_end_matches('\n');
            shared = git::lexical(&place, common);
            if is_new {
                self.git_directory(&at, common, Tree::Later)?;
            }
        }
        match tree {
            Tree::At(top) => self.configurations(&shared, &place, top)?,
            Tree::Configured if !is_worktrees => {
                let directory = self.open(&at)?;
                let text = directory.and_then(|directory| git::read(&directory, "config").ok()).unwrap_or_default();
                let tree = config::configured(&text).into_iter().find_map(|configured| match configured {
                    Configured::Worktree(path) => Some(git::lexical(&place, &path)),
                    _ => None,
                });
                self.configurations(&shared, &place, tree.as_deref().unwrap_or(&place))?;
            }
            Tree::Configured | Tree::Later => {}
        }
        if is_new {
            for name in self.list(&at, "worktrees")? {
                self.git_directory(&at, &format!("worktrees/{name}"), Tree::Later)?;
            }
            self.submodules(&at, "modules", 0)?;
        }
        Ok(())
    }

    /// A submodule's name may hold slashes: what has no HEAD is a directory on the way.
    fn submodules(&mut self, at: &[String], path: &str, depth: u32) -> Result<()> {
        for name in self.list(at, path)? {
            let path = format!("{path}/{name}");
            let place: Names = at.iter().cloned().chain(path.split('/').map(str::to_owned)).collect();
            if self.stat(&place, "HEAD")?.is_some() {
                self.git_directory(at, &path, Tree::Configured)?;
            } else if depth < MAX_INCLUDES {
                self.submodules(at, &path, depth + 1)?;
            }
        }
        Ok(())
    }

    /// The names in a directory, when it is one.
    fn list(&mut self, at: &[String], path: &str) -> Result<Vec<String>> {
        let place: Names = at.iter().cloned().chain(path.split('/').map(str::to_owned)).collect();
        let Some(directory) = self.open(&place)? else { return Ok(Vec::new()) };
        let (names, complete) = walk::names(directory.as_fd(), &mut self.contents_left);
        if !complete {
            self.say(format!("not all of {} could be looked at", place.join("/")));
        }
        Ok(names.into_iter().map(|(name, _)| name).collect())
    }

    /// A git directory that is not in here, of a working tree that may be, or may be above.
    fn elsewhere(&mut self, git: &Path, top: &Path) -> Result<()> {
        let common = git::read_at(&git.join("commondir"));
        let shared = common.map_or_else(|_| git.to_owned(), |common| git::lexical(git, common.trim_end_matches('\n')));
        self.configurations(&shared, git, top)
    }

    fn configurations(&mut self, shared: &Path, own: &Path, top: &Path) -> Result<()> {
        for file in [shared.join("config"), own.join("config.worktree")] {
            self.once(&file, top)?;
        }
        self.of_user(top)
    }

    /// The user's own configurations, for a working tree.
    fn of_user(&mut self, top: &Path) -> Result<()> {
        self.user.git.iter().try_for_each(|file| self.once(file, top))
    }

    fn once(&mut self, file: &Path, top: &Path) -> Result<()> {
        let is_new = self.configured.insert((file.to_owned(), top.to_owned()));
        if is_new { self.configuration(file, top, 0) } else { Ok(()) }
    }

    /// The files and directories that a configuration file names and git takes programs from; `file` is a host path.
    fn configuration(&mut self, file: &Path, top: &Path, depth: u32) -> Result<()> {
        let text = match self.configuration_text(file)? {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
            Err(error) => {
                self.say(format!("{} cannot be read: {error}", file.display()));
                return Ok(());
            }
        };
        if !self.spend(text.len() / BYTES_A_STEP) {
            return Ok(());
        }
        for configured in config::configured(&text) {
            match configured {
                Configured::Hooks(path) => {
                    if let Some(path) = self.named(file, &path, top) {
                        self.reach(&[], path, Goal::Keep(Stub::Socket))?;
                    }
                }
                Configured::Include(path) if depth < MAX_INCLUDES => {
                    if let Some(path) = self.named(file, &path, file.parent().unwrap_or(top)) {
                        self.configuration(&path, top, depth + 1)?;
                    }
                }
                Configured::Include(_) => self.say(format!("{} includes too many files", file.display())),
                Configured::Worktree(_) => {}
            }
        }
        Ok(())
    }

    /// What a configuration says; in here it is held as well.
    fn configuration_text(&mut self, file: &Path) -> Result<io::Result<String>> {
        if !self.spend(1) {
            return Ok(Ok(String::new()));
        }
        let Some(names) = self.below_base(file) else { return Ok(git::read_at(file)) };
        let path = self.place(&names);
        let Reached::At(at, FileType::RegularFile) = self.reach(&[], path, Goal::Keep(Stub::Empty))? else {
            return Ok(Ok(String::new()));
        };
        let Some((name, parent)) = at.split_last() else { return Ok(Ok(String::new())) };
        Ok(self.open(parent)?.map_or_else(|| Ok(String::new()), |directory| git::read(&directory, name)))
    }

    /// The host path that a value of a configuration is for git (`interpolate_path`).
    fn named(&mut self, file: &Path, value: &str, from: &Path) -> Option<PathBuf> {
        let below_home = value.strip_prefix("~/").or_else(|| (value == "~").then_some(""));
        let path = match (below_home, self.user.home) {
            (Some(below), Some(home)) => Some(home.join(below)),
            (Some(_), None) => None,
            (None, _) if value.starts_with(['~']) || value.starts_with("%(prefix)/") => None,
            // A byte that was no text.
            (None, _) if value.contains('\u{fffd}') => None,
            (None, _) => Some(from.join(value)),
        };
        if path.is_none() {
            self.say(format!("{} names {value:?}, which is not followed", file.display()));
        }
        path
    }

    /// Whether what is at `at` is what agentd puts there.
    pub(super) fn is_stub(&mut self, at: &[String], stub: Stub) -> bool {
        let Some((name, parent)) = at.split_last() else { return false };
        let (Ok(Some(directory)), Ok(Some(stat))) = (self.open(parent), self.stat(parent, name)) else { return false };
        stubs::is_stub(&directory, name, stub, &stat)
    }

    /// The holds, parents first, without those in what is held as a whole.
    pub(super) fn outermost(&self) -> Vec<(&Names, Hold)> {
        let mut kept: Vec<(&Names, Hold)> = Vec::new();
        for (at, hold) in &self.holds {
            let is_covered = (1..at.len()).any(|end| {
                let above = at.get(..end).and_then(|above| self.holds.get(above));
                above.is_some_and(|above| !matches!(above, Hold::Pinned { .. }))
            });
            if !is_covered {
                kept.push((at, *hold));
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests;
