//! Whiteouts: names by which a layer deletes what lower layers hold (OCI image-spec, "Whiteouts").
//!
//! Written as overlayfs wants them: a character device 0:0 (mknod of it needs no privilege since Linux 5.8), or an
//! attribute on the directory. Invariant: a whiteout acts on lower layers only, so what its own layer holds stays.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, mknodat};
use rustix::io::Errno;

use super::tree::{Found, Symlinks, Tree, TreeError, c_name, call, find, normal, set_opaque, split};
use crate::limits::Limits;

const PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// What an entry's path means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An ordinary entry.
    Entry,
    /// Everything lower in this directory is deleted.
    Opaque,
    /// The lower entry of this name is deleted.
    Whiteout(Vec<u8>),
    /// A name that aufs reserves for itself.
    Ignored,
}

/// What a normal path means.
pub(super) fn meaning(path: &[u8]) -> Result<Meaning, TreeError> {
    let (directory, name) = split(path);
    for parent in directory.split(|b| *b == b'/') {
        if parent.starts_with(RESERVED) {
            return Ok(Meaning::Ignored);
        }
        if parent.starts_with(PREFIX) {
            return Err(TreeError::Path("a whiteout cannot hold entries"));
        }
    }
    if name == OPAQUE_NAME {
        return Ok(Meaning::Opaque);
    }
    if name.starts_with(RESERVED) {
        return Ok(Meaning::Ignored);
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Meaning::Entry),
        // `.wh..` and `.wh...` would delete the directory itself or its parent.
        Some(b"" | b"." | b"..") => Err(TreeError::Path("the whiteout names nothing")),
        Some(name) => Ok(Meaning::Whiteout(name.to_vec())),
    }
}

/// Hides the lower layers' content of `directory`. `true`: it is the root, where overlayfs does not look for the
/// attribute, so the caller has to leave the lower layers out.
pub(super) fn opaque(tree: &mut Tree<'_>, directory: &[u8]) -> Result<bool, TreeError> {
    if directory.is_empty() {
        return Ok(true);
    }
    if is_hidden(tree, directory)? {
        return Ok(false);
    }
    let parent = tree.parent(directory, Symlinks::Refuse)?;
    set_opaque(parent.fd.as_fd())?;
    Ok(false)
}

/// Hides the lower layers' `name` in `directory`.
pub(super) fn hide(tree: &mut Tree<'_>, directory: &[u8], name: &[u8], limits: &Limits) -> Result<(), TreeError> {
    // The name without its prefix is shorter, but a component all the same.
    normal(name, limits)?;
    if is_hidden(tree, directory)? {
        return Ok(());
    }
    let parent = tree.parent(directory, Symlinks::Refuse)?;
    let parent: BorrowedFd<'_> = parent.fd.as_fd();
    let name = c_name(name)?;
    match find(parent, &name)? {
        Found::Nothing => mknodat(parent, &name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(call("making a whiteout (mknodat)")),
        // This layer's own directory stays, but must not show the lower one's content.
        Found::Directory => {
            let fd = rustix::fs::openat(
                parent,
                &name,
                rustix::fs::OFlags::RDONLY
                    | rustix::fs::OFlags::DIRECTORY
                    | rustix::fs::OFlags::NOFOLLOW
                    | rustix::fs::OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(call("openat"))?;
            set_opaque(fd.as_fd())
        }
        Found::Whiteout | Found::Symlink | Found::File | Found::Fifo => Ok(()),
    }
}

/// Whether this layer has something else in place of the directory, or of one above it: that hides the lower layers' one
/// with all it holds, and there is nothing left to do. umoci whites out the children of what a file or link replaced.
fn is_hidden(tree: &Tree<'_>, directory: &[u8]) -> Result<bool, TreeError> {
    match tree.open(directory) {
        Err(Errno::LOOP | Errno::NOTDIR) => Ok(true),
        Ok(_) | Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(call("openat2")(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (path, want) in [
            (&b"a/b"[..], Meaning::Entry),
            (b"a/.wha", Meaning::Entry),
            (b"a/.wh.b", Meaning::Whiteout(b"b".to_vec())),
            (b".wh.b", Meaning::Whiteout(b"b".to_vec())),
            (b".wh..b", Meaning::Whiteout(b".b".to_vec())),
            (b".wh....", Meaning::Whiteout(b"...".to_vec())),
            (b"a/.wh..wh..opq", Meaning::Opaque),
            (b".wh..wh.aufs", Meaning::Ignored),
            (b".wh..wh.plnk/1.2", Meaning::Ignored),
        ] {
            assert_eq!(meaning(path).unwrap(), want);
        }
        for bad in [&b".wh."[..], b"a/.wh.", b"a/.wh..", b"a/.wh...", b".wh.a/b"] {
            assert!(meaning(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
