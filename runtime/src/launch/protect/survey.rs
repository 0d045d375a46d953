//! Finding what has to be protected below one directory, and how each path is to be held.
//!
//! Invariant: what decides where to look is bounded, and a bound that is met is said.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use agentd_init::plan::{Hold, Stub};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;

use super::git::{self, Configured};
use super::reach::{Goal, Reached};
use super::rules::{NAMES, OF_GIT, OF_WORKTREE, Unprotect};
use super::stubs;
use super::walk::{self, Entry, Finding};

/// How deep configuration files may include each other.
const MAX_INCLUDES: u32 = 4;
/// Entries of protected directories that are looked at, and of those that git keeps its parts in.
const MAX_CONTENTS: u32 = 4096;

/// A path below the base, name by name: parents sort before what is in them.
pub(super) type Names = Vec<String>;

/// How far a survey goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Directories that are listed.
    pub(super) directories: usize,
    /// Repositories that are protected.
    pub(super) repositories: usize,
}

/// What was found below one directory.
pub(super) struct Survey<'a> {
    pub(super) base: Rc<OwnedFd>,
    pub(super) host: PathBuf,
    pub(super) unprotect: &'a Unprotect<'a>,
    pub(super) directories: BTreeMap<Names, Rc<OwnedFd>>,
    pub(super) unwritable: BTreeMap<Names, bool>,
    pub(super) contents_left: u32,
    /// How each path is held.
    pub(super) holds: BTreeMap<Names, Hold>,
    /// Git directories.
    pub(super) git_directories: BTreeSet<Names>,
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
    pub(super) fn new(host: &Path, unprotect: &'a Unprotect<'a>) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = openat2(CWD, host, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        Ok(Survey {
            base: Rc::new(base.map_err(|errno| (host.to_owned(), errno))?),
            host: host.to_owned(),
            unprotect,
            directories: BTreeMap::new(),
            unwritable: BTreeMap::new(),
            contents_left: MAX_CONTENTS,
            holds: BTreeMap::new(),
            git_directories: BTreeSet::new(),
            linked: BTreeSet::new(),
            opened: BTreeMap::new(),
            unseen: Vec::new(),
        })
    }

    /// Looks at a workspace: the names at its top, whether they exist or not, and what the walk finds.
    pub(super) fn workspace(&mut self, bounds: Bounds) -> Result<()> {
        self.names(&[])?;
        // Git looks for a repository upwards: one made here would come before the user's own, which lies above.
        let git: [String; 1] = [".git".into()];
        let is_there = match (self.stat(&[], ".git")?, self.open(&git)?) {
            (None, _) => false,
            (Some(stat), Some(_)) => !stubs::is_stub(&self.base, ".git", Stub::Directory, &stat),
            (Some(_), None) => true,
        };
        let is_git = |above: &Path| statat(CWD, above.join(".git"), AtFlags::empty()).is_ok();
        if !is_there && self.host.ancestors().skip(1).any(is_git) {
            self.reach(&[], ".git", Goal::Keep(Stub::Directory))?;
        }
        self.below(bounds)
    }

    /// Looks at what the walk finds.
    pub(super) fn below(&mut self, bounds: Bounds) -> Result<()> {
        let walked = walk::walk(self.base.as_fd(), bounds.directories);
        self.unseen.extend(walked.unseen);
        let mut repositories = 0;
        for Finding { directory, entry } in walked.findings {
            repositories += u32::from(!matches!(entry, Entry::Name(_)));
            if repositories as usize > bounds.repositories {
                self.unseen.push(format!("there are more than {} repositories", bounds.repositories));
                return Ok(());
            }
            match entry {
                Entry::Name(name) => drop(self.reach(&directory, name, Goal::Keep(Stub::Socket))?),
                // The stub of one.
                Entry::Repository if directory.is_empty() && self.is_absent(".git") => {}
                Entry::Repository => {
                    self.names(&directory)?;
                    self.repository(&directory)?;
                }
                Entry::Bare => self.git_directory(&directory, ".", None)?,
            }
        }
        Ok(())
    }

    fn is_absent(&self, name: &str) -> bool {
        matches!(self.holds.get(&[name.to_owned()][..]), Some(Hold::Absent { .. }))
    }

    /// The base itself is a git directory.
    pub(super) fn as_git_directory(&mut self) -> Result<()> {
        self.git_directory(&[], ".", None)
    }

    fn names(&mut self, at: &[String]) -> Result<()> {
        NAMES.iter().try_for_each(|(name, _)| self.reach(at, name, Goal::Keep(Stub::Socket)).map(drop))
    }

    fn repository(&mut self, top: &[String]) -> Result<()> {
        match self.reach(top, ".git", Goal::Enter)? {
            Reached::At(found, FileType::Directory) => self.git_directory(&found, ".", Some(top)),
            // Of a worktree or submodule: its git directory may lie in here too.
            Reached::At(found, FileType::RegularFile) => {
                let Some((name, parent)) = found.split_last() else { return Ok(()) };
                let Some(directory) = self.open(parent)? else { return Ok(()) };
                let text = git::read(&directory, name).unwrap_or_default();
                match git::gitdir(&text) {
                    Some(to) => self.git_directory(parent, to, Some(top)),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The git directory at `path`, of the working tree at `top`.
    fn git_directory(&mut self, from: &[String], path: &str, top: Option<&[String]>) -> Result<()> {
        let Reached::At(at, FileType::Directory) = self.reach(from, path, Goal::Enter)? else { return Ok(()) };
        if !self.git_directories.insert(at.clone()) {
            return Ok(());
        }
        let is_worktrees = self.stat(&at, "commondir")?.is_some() && self.stat(&at, "gitdir")?.is_some();
        let parts = if is_worktrees { OF_WORKTREE } else { OF_GIT };
        for (name, stub) in parts {
            self.reach(&at, name, Goal::Keep(*stub))?;
        }
        if is_worktrees && let Some(common) = self.open(&at)?.and_then(|directory| git::read(&directory, "commondir")) {
            self.git_directory(&at, common.trim_end_matches('\n'), None)?;
        }
        for name in ["config", "config.worktree"] {
            self.configuration(&at, name, &at, top, 0)?;
        }
        for name in self.list(&at, "worktrees")? {
            self.git_directory(&at, &format!("worktrees/{name}"), None)?;
        }
        self.submodules(&at, "modules", 0)
    }

    /// A submodule's name may hold slashes: what has no HEAD is a directory on the way.
    fn submodules(&mut self, at: &[String], path: &str, depth: u32) -> Result<()> {
        for name in self.list(at, path)? {
            let path = format!("{path}/{name}");
            let place: Names = at.iter().cloned().chain(path.split('/').map(str::to_owned)).collect();
            if self.stat(&place, "HEAD")?.is_some() {
                self.git_directory(at, &path, None)?;
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
            self.unseen.push(format!("{} holds more than is looked at", place.join("/")));
        }
        Ok(names.into_iter().map(|(name, _)| name).collect())
    }

    /// The files and directories that a configuration file names and git takes programs from.
    fn configuration(
        &mut self,
        from: &[String],
        path: &str,
        git: &[String],
        top: Option<&[String]>,
        depth: u32,
    ) -> Result<()> {
        let Reached::At(at, FileType::RegularFile) = self.reach(from, path, Goal::Keep(Stub::Empty))? else {
            return Ok(());
        };
        let Some((name, parent)) = at.split_last() else { return Ok(()) };
        let Some(text) = self.open(parent)?.and_then(|directory| git::read(&directory, name)) else { return Ok(()) };
        for configured in git::configured(&text) {
            match configured {
                Configured::Hooks(path) => drop(self.reach(top.unwrap_or(git), &path, Goal::Keep(Stub::Socket))?),
                Configured::Include(path) if depth < MAX_INCLUDES => {
                    self.configuration(parent, &path, git, top, depth + 1)?;
                }
                Configured::Include(_) => self.unseen.push(format!("{} includes too many files", at.join("/"))),
                Configured::Worktree(_) => {}
            }
        }
        Ok(())
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
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { directories: 100, repositories: 10 };

    fn survey(host: &Path, patterns: &[String], and: impl FnOnce(&Survey<'_>)) {
        let unprotect = Unprotect::new(patterns);
        let mut survey = Survey::new(host, &unprotect).unwrap();
        survey.workspace(BOUNDS).unwrap();
        // What PID 1 relies on: each path's parents come before it, and are directories that stay.
        let mut seen: BTreeSet<Names> = BTreeSet::new();
        for (at, hold) in survey.outermost() {
            assert!(!at.is_empty() && at.iter().all(|name| !matches!(name.as_str(), "" | "." | "..")), "{at:?}");
            assert!(at.len() == 1 || seen.contains(&at[..at.len() - 1]), "{at:?} before its parent");
            if matches!(hold, Hold::Pinned { .. }) {
                assert!(fs::symlink_metadata(host.join(at.join("/"))).unwrap().is_dir());
                seen.insert(at.clone());
            }
        }
        and(&survey);
    }

    fn held(survey: &Survey<'_>) -> Vec<String> {
        let existing = survey.outermost().into_iter().filter(|(_, hold)| matches!(hold, Hold::ReadOnly { .. }));
        existing.map(|(at, _)| at.join("/")).collect()
    }

    #[test]
    fn links_are_held_and_what_they_lead_to_inside() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/real"), "").unwrap();
        symlink("a/hop", top.join(".envrc")).unwrap();
        symlink(top.join("a/b/../b/real"), top.join("a/hop")).unwrap();
        symlink("/etc", top.join(".vscode")).unwrap();
        symlink("../../../../etc/passwd", top.join(".mcp.json")).unwrap();
        symlink(".idea", top.join(".idea")).unwrap();
        symlink("a/none/x", top.join(".husky")).unwrap();
        survey(top, &[], |survey| {
            assert_eq!(held(survey), [".envrc", ".husky", ".idea", ".mcp.json", ".vscode", "a/b/real", "a/hop"]);
            let none: Names = ["a", "none"].map(str::to_owned).into();
            assert_eq!(survey.holds.get(&none), Some(&Hold::Absent { stub: Stub::Socket }));
        });
        survey(top, &["*".into()], |survey| assert!(survey.outermost().is_empty()));
    }

    #[test]
    fn what_is_too_much_to_look_at_is_said() {
        let directory = tempfile::tempdir().unwrap();
        for name in 0..BOUNDS.directories {
            fs::create_dir(directory.path().join(name.to_string())).unwrap();
        }
        survey(directory.path(), &[], |survey| {
            assert!(survey.unseen[0].contains("100 directories"), "{:?}", survey.unseen)
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_tree_is_surveyed(
            entries in proptest::collection::vec(
                ("((\\.git|\\.envrc|modules|worktrees|config|hooks|commondir|gitdir|HEAD|a|b)/){0,4}(\\.git|\\.envrc|config|commondir|gitdir|HEAD|a)",
                 0..3_u8,
                 "(gitdir: )?(/|\\.\\./|\\./){0,3}(a|b|\\.git|\\.envrc)?(/a|/b|/\\.\\.|/modules){0,2}\n?"),
                0..24),
            pattern in "[.*a/git]{0,5}",
        ) {
            let directory = tempfile::tempdir().unwrap();
            for (path, kind, text) in entries {
                let path = directory.path().join(path);
                // What stands in another's way is left out.
                if fs::create_dir_all(path.parent().unwrap()).is_ok() {
                    match kind {
                        0 => fs::create_dir(&path).ok(),
                        1 => fs::write(&path, &text).ok(),
                        _ => symlink(text.trim_end(), &path).ok(),
                    };
                }
            }
            survey(directory.path(), &[], |_| {});
            survey(directory.path(), &[pattern], |_| {});
        }
    }
}
