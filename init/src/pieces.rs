//! A tree of the host, with additions: an overlay, or, where none can be laid over it, put together of its pieces.
//!
//! The kernel clones no part of a mount for an overlay without what was mounted on it before a user namespace was made, for
//! that would uncover it (`has_locked_children` in fs/namespace.c). A container has its own resolv.conf, hosts and hostname
//! mounted on /etc, so there the overlay ends with EINVAL; as it does on an overlay that lies on another.
//!
//! Invariant: what an overlay would show is shown, names of [`Addition::Hidden`] are not there, and nothing that is shown can
//! be written on the host: files are copies, directories are overlays or read-only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agentd_sys::mount::{Attributes, set_attributes};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, readlinkat, statat, symlinkat};
use rustix::io::Errno;

use crate::mounts::{CONFINED, READ_ONLY, attach, attach_to};
use crate::plan::{Addition, Kind, Source, is_for_everybody};
use crate::root::{Stage, clone_mount, overlay};
use crate::step::{At, Failure, Step};
use crate::tree;

const AT: Step = Step::MountHostTree;

/// How the tree is to be.
pub(crate) struct Tree<'a> {
    pub(crate) source: &'a Source,
    pub(crate) writable: bool,
    pub(crate) additions: &'a [Addition],
}

impl Tree<'_> {
    /// Mounts the tree at `target` inside `root`; gives its place.
    pub(crate) fn mount(&self, stage: &Stage, root: &OwnedFd, target: &str) -> Result<String, Failure> {
        if let Some(tree) = self.overlay(stage)? {
            set_attributes(tree.as_fd(), self.attributes(), false).at(AT, target)?;
            return attach(&tree, root, target, Kind::Directory, AT);
        }
        let own = stage.own_directory(0o755).at(AT, target)?;
        let tree = clone_mount(own.as_fd(), false).at(AT, target)?;
        // Nothing can be mounted on what is not attached.
        let place = attach(&tree, root, target, Kind::Directory, AT)?;
        self.fill(stage, &tree)?;
        if !self.writable {
            set_attributes(tree.as_fd(), READ_ONLY, false).at(AT, target)?;
        }
        Ok(place)
    }

    /// The tree as one overlay, if one can be laid over it.
    fn overlay(&self, stage: &Stage) -> Result<Option<OwnedFd>, Failure> {
        match overlay(stage, std::slice::from_ref(self.source), self.additions, AT) {
            Err(failure) if failure.errno == libc::EINVAL => Ok(None),
            made => made.map(|(tree, _upper)| Some(tree)),
        }
    }

    fn attributes(&self) -> Attributes {
        if self.writable { CONFINED } else { READ_ONLY }
    }

    /// Makes in `here`, an empty directory of the stage, what the tree has.
    fn fill(&self, stage: &Stage, here: &OwnedFd) -> Result<(), Failure> {
        let is_shown = |addition: &&Addition| !matches!(addition, Addition::Hidden { .. });
        let shown: Vec<Addition> = self.additions.iter().filter(is_shown).cloned().collect();
        // Those of directories that get a mount of their own are covered by it, and come again there.
        tree::lay(here.as_fd(), &shown, AT)?;
        let host = tree::open_source(self.source, AT)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let host = openat(&host, ".", flags, Mode::empty()).at(AT, object(&self.source.path))?;
        for entry in Dir::read_from(&host).at(AT, object(&self.source.path))? {
            let entry = entry.at(AT, object(&self.source.path))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let is_replaced = self.additions.iter().any(|addition| addition.path() == name);
            if matches!(name, "." | "..") || is_replaced {
                continue;
            }
            let path = self.source.path.join(name);
            let stat = match statat(&host, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.at(AT, object(&path))?,
            };
            // A link is. What is not for everybody, and is not hidden by the plan, came since: the plan would hide it.
            let kind = FileType::from_raw_mode(stat.st_mode);
            if !is_for_everybody(kind, stat.st_mode) {
                continue;
            }
            match kind {
                FileType::Symlink => {
                    let to = readlinkat(&host, name, Vec::new()).at(AT, object(&path))?;
                    symlinkat(to, here, name).at(AT, object(&path))?;
                }
                FileType::Directory => {
                    let below = below(self.additions, name);
                    let source = Source { path, device: stat.st_dev, inode: stat.st_ino };
                    Tree { source: &source, writable: self.writable, additions: &below }.attach(stage, here, name)?;
                }
                FileType::RegularFile => copy(&host, here, name, stat.st_mode & 0o755).at(AT, object(&path))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the tree at `name` in `parent`: as one mount, if that can be.
    fn attach(&self, stage: &Stage, parent: &OwnedFd, name: &str) -> Result<(), Failure> {
        let here = tree::find_or_make(parent.as_fd(), name, Kind::Directory, AT)?;
        let whole = if self.writable || !self.additions.is_empty() {
            match self.overlay(stage)? {
                Some(tree) => tree,
                None => return self.fill(stage, &here),
            }
        } else {
            let source = tree::open_source(self.source, AT)?;
            clone_mount(source.as_fd(), true).at(AT, object(&self.source.path))?
        };
        set_attributes(whole.as_fd(), self.attributes(), true).at(AT, object(&self.source.path))?;
        attach_to(&whole, here.as_fd()).at(AT, object(&self.source.path))
    }
}

/// What of `additions` is below the directory `name`, relative to it.
fn below(additions: &[Addition], name: &str) -> Vec<Addition> {
    let inside = |addition: &Addition| {
        let path = addition.path().strip_prefix(name)?.strip_prefix('/')?;
        Some(addition.clone().at(path.to_owned()))
    };
    additions.iter().filter_map(inside).collect()
}

/// Copies a regular file: one that is mounted could not be replaced in a box that may write.
fn copy(from: &OwnedFd, to: &OwnedFd, name: &str, mode: u32) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut from = match openat(from, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        from => File::from(from?),
    };
    io::copy(&mut from, &mut File::from(tree::file(to.as_fd(), name, mode)?)).map(drop)
}

fn object(path: &Path) -> String {
    path.display().to_string()
}
