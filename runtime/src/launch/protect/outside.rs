//! The git directory of a workspace that is a linked worktree or a submodule: it lies elsewhere.
//!
//! Invariant: the workspace alone cannot name a directory that is then given to the box (CVE-2026-55607): the git directory
//! has to be this user's, look like one, and name this very workspace as its working tree.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlink, statat};
use rustix::io::Errno;

use super::config::{self, Configured};
use super::git;
use crate::launch::plan::WORKSPACE;

/// Where the git directory of a workspace is.
#[derive(Debug)]
pub(crate) enum Outside {
    /// In the workspace, or there is none.
    No,
    /// Elsewhere.
    Found(GitDirectory),
    /// Elsewhere, as it says; and why that is not believed.
    Refused(String),
}

/// A git directory outside of its workspace.
#[derive(Debug)]
pub(crate) struct GitDirectory {
    /// On the host, without links.
    pub(crate) host: PathBuf,
    /// Where git looks for it inside.
    pub(crate) target: String,
    /// Where a submodule's git directory expects the working tree inside.
    pub(crate) working_tree: Option<String>,
}

/// Finds it.
pub(crate) fn find(workspace: &Path) -> Outside {
    let Ok(top) = directory(workspace) else { return Outside::No };
    let Ok(dot_git) = statat(&top, ".git", AtFlags::SYMLINK_NOFOLLOW) else { return Outside::No };
    if FileType::from_raw_mode(dot_git.st_mode) != FileType::RegularFile {
        return Outside::No;
    }
    let text = git::read(&top, ".git").unwrap_or_default();
    let Some(path) = git::gitdir(&text) else { return Outside::No };
    let host = git::lexical(workspace, path);
    if host.starts_with(workspace) {
        return Outside::No;
    }
    let inside = git::lexical(Path::new(WORKSPACE), path);
    verify(workspace, &top, &dot_git, &host, &inside)
        .map_or_else(|why| Outside::Refused(format!("its .git leads to {}, {why}", host.display())), Outside::Found)
}

fn verify(workspace: &Path, top: &OwnedFd, dot_git: &Stat, host: &Path, inside: &Path) -> Result<GitDirectory, String> {
    let own = opened(host)?;
    let real = place(&own)?;
    let (Ok(common), Ok(back)) = (git::read(&own, "commondir"), git::read(&own, "gitdir")) else {
        return submodule(top, &own, real, inside);
    };
    // A linked worktree (gitrepository-layout(5)): COMMON/worktrees/NAME, whose `gitdir` names the workspace's .git.
    let common = git::lexical(&real, common.trim_end_matches('\n'));
    let name = real.file_name().and_then(|name| name.to_str()).ok_or("whose name is no text")?.to_owned();
    if real != common.join("worktrees").join(&name) || inside.file_name() != real.file_name() {
        return Err(format!("whose common directory {} is not the one it lies in", common.display()));
    }
    let back = git::lexical(&real, back.trim_end_matches('\n'));
    if !statat(CWD, &back, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|back| is_same(&back, dot_git)) {
        return Err(format!("which belongs to the worktree {}", back.display()));
    }
    looks_like_git(&opened(&common)?)?;
    if workspace.starts_with(&common) {
        return Err("which the workspace lies in".into());
    }
    let target = inside.ancestors().nth(2).filter(|target| inside == target.join("worktrees").join(&name));
    let target = target.and_then(Path::to_str).ok_or("which has no such place inside")?.to_owned();
    Ok(GitDirectory { host: common, target, working_tree: None })
}

/// A submodule's: SUPER/.git/modules/NAME, whose core.worktree names the workspace.
fn submodule(top: &OwnedFd, own: &OwnedFd, real: PathBuf, inside: &Path) -> Result<GitDirectory, String> {
    looks_like_git(own)?;
    let configured = config::configured(&git::read(own, "config").unwrap_or_default());
    let tree = configured.into_iter().find_map(|configured| match configured {
        Configured::Worktree(path) => Some(path),
        _ => None,
    });
    let tree = tree.ok_or("which has no core.worktree")?;
    let workspace = fstat(top).map_err(|errno| errno.to_string())?;
    if !statat(CWD, git::lexical(&real, &tree), AtFlags::empty()).is_ok_and(|tree| is_same(&tree, &workspace)) {
        return Err("which belongs to another working tree".into());
    }
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or("whose path is no text");
    let working_tree = git::lexical(inside, &tree);
    let working_tree = (working_tree != Path::new(WORKSPACE)).then(|| text(&working_tree)).transpose()?;
    Ok(GitDirectory { host: real, target: text(inside)?, working_tree })
}

fn opened(path: &Path) -> Result<OwnedFd, String> {
    let found = directory(path).map_err(|errno| format!("which cannot be opened: {errno}"))?;
    let stat = fstat(&found).map_err(|errno| errno.to_string())?;
    if stat.st_uid == rustix::process::geteuid().as_raw() {
        Ok(found)
    } else {
        Err("which belongs to another user".into())
    }
}

fn looks_like_git(found: &OwnedFd) -> Result<(), String> {
    let is_there = |name: &&str| statat(found, *name, AtFlags::empty()).is_ok();
    if ["HEAD", "objects", "refs"].iter().all(is_there) { Ok(()) } else { Err("which is no git directory".into()) }
}

fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The path of what is open, without links.
pub(super) fn place(found: &OwnedFd) -> Result<PathBuf, String> {
    use std::os::fd::AsRawFd;
    let path = readlink(format!("/proc/self/fd/{}", found.as_raw_fd()), Vec::new());
    path.map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path.as_bytes()))).map_err(|errno| errno.to_string())
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
