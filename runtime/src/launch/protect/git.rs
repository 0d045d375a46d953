//! What a repository says about where its parts are. All of it is untrusted: words of files the payload may have written.
//!
//! Invariant: nothing is opened here that the caller did not name; what a file says only becomes a path.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

/// Longest file of git's that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The text of a regular file; a byte that is no text becomes U+FFFD. What is no regular file says nothing.
///
/// # Errors
/// It is not there, cannot be read, or is longer than [`MAX_FILE`].
pub(super) fn read(directory: impl AsFd, name: &str) -> io::Result<String> {
    text(openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// The same of a host path, through links: git would read it too.
pub(super) fn read_at(path: &Path) -> io::Result<String> {
    text(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// To open a device can do something: what it is is looked at before.
fn text(found: OwnedFd) -> io::Result<String> {
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = File::from(openat(CWD, again, OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where a `.git` file says the git directory is.
pub(super) fn gitdir(untrusted: &str) -> Option<&str> {
    let path = untrusted.strip_prefix("gitdir:")?.trim_start_matches(' ').trim_end_matches(['\n', '\r']);
    (!path.is_empty() && !path.contains(['\0', '\n'])).then_some(path)
}

/// `path` seen from `directory`, without `.` and `..`; links are not looked at.
pub(super) fn lexical(directory: &Path, path: &str) -> PathBuf {
    let mut joined = PathBuf::new();
    for component in directory.join(path).components() {
        match component {
            Component::ParentDir => {
                joined.pop();
            }
            Component::CurDir => {}
            other => joined.push(other),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_git_file_names_a_directory_or_nothing() {
        assert_eq!(gitdir("gitdir: ../.git/modules/a\n"), Some("../.git/modules/a"));
        assert_eq!(gitdir("gitdir: /a b/.git\r\n"), Some("/a b/.git"));
        for bad in ["", "gitdir:", "gitdir: \n", "gitdir: a\nb", "/a", "gitdir: \0"] {
            assert_eq!(gitdir(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_path_is_joined_without_looking() {
        assert_eq!(lexical(Path::new("/w"), "../r/.git/./x"), Path::new("/r/.git/x"));
        assert_eq!(lexical(Path::new("/w"), "/a/../b"), Path::new("/b"));
        assert_eq!(lexical(Path::new("/w"), "../../../.."), Path::new("/"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in any::<String>()) {
            gitdir(&text);
            prop_assert!(lexical(Path::new("/"), &text).is_absolute());
        }
    }
}
