//! What a repository says about where its parts are. All of it is untrusted: words of files the payload may have written.
//!
//! Invariant: nothing is opened here that the caller did not name; what a file says only becomes a path.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};

/// Longest file of git's that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// The text of a small regular file; what is longer, or no text, says nothing.
pub(super) fn read(directory: &OwnedFd, name: &str) -> Option<String> {
    // A FIFO does not make this wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = std::fs::File::from(openat(directory, name, flags, Mode::empty()).ok()?);
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = read().ok().filter(|bytes| bytes.len() as u64 <= MAX_FILE)?;
    String::from_utf8(bytes).ok()
}

/// Where a `.git` file says the git directory is.
pub(super) fn gitdir(untrusted: &str) -> Option<&str> {
    let path = untrusted.strip_prefix("gitdir:")?.trim_start_matches(' ').trim_end_matches(['\n', '\r']);
    (!path.is_empty() && !path.contains(['\0', '\n'])).then_some(path)
}

/// A path of a configuration, and what it is relative to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Configured {
    /// `core.hooksPath`: relative to the top of the working tree.
    Hooks(String),
    /// `include.path`: relative to the file's own directory.
    Include(String),
    /// `core.worktree`: relative to the git directory.
    Worktree(String),
}

/// The paths in a configuration file (git-config(1)) that decide what git runs.
pub(super) fn configured(untrusted: &str) -> Vec<Configured> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in untrusted.lines() {
        let mut line = line.trim();
        if let Some((name, rest)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            section = name.split([' ', '\t', '"', '.']).next().unwrap_or_default().to_ascii_lowercase();
            line = rest.trim();
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = plain(value.trim());
        if value.is_empty() || value.contains('\0') {
            continue;
        }
        match (section.as_str(), key.trim().to_ascii_lowercase().as_str()) {
            ("core", "hookspath") => found.push(Configured::Hooks(value)),
            ("core", "worktree") => found.push(Configured::Worktree(value)),
            ("include" | "includeif", "path") => found.push(Configured::Include(value)),
            _ => {}
        }
    }
    found
}

/// A value without its quotes and comment.
fn plain(value: &str) -> String {
    let (mut plain, mut quoted, mut escaped) = (String::new(), false, false);
    for c in value.chars() {
        match c {
            _ if escaped => {
                plain.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '#' | ';' if !quoted => break,
            _ => plain.push(c),
        }
    }
    plain.trim().to_owned()
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
    fn paths_in_a_configuration_are_found_however_they_are_written() {
        let text = "[core]\n\tbare = false\n\tHooksPath = .githooks ; comment\n[Core] worktree=\"../a b\"\n\
                    [include]\npath = ../.gitconfig\n[includeIf \"gitdir:/x/\"]\n\tpath = x\\\\y\n[alias]\n\tpath = no\n";
        assert_eq!(
            configured(text),
            [
                Configured::Hooks(".githooks".into()),
                Configured::Worktree("../a b".into()),
                Configured::Include("../.gitconfig".into()),
                Configured::Include("x\\y".into()),
            ]
        );
    }

    #[test]
    fn a_path_is_joined_without_looking() {
        assert_eq!(lexical(Path::new("/w"), "../r/.git/./x"), Path::new("/r/.git/x"));
        assert_eq!(lexical(Path::new("/w"), "/a/../b"), Path::new("/b"));
        assert_eq!(lexical(Path::new("/w"), "../../../.."), Path::new("/"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in any::<String>(), line in "\\[(core|include)\\] ?(path|hooksPath) ?= ?.{0,20}") {
            gitdir(&text);
            configured(&text);
            configured(&line);
            prop_assert!(lexical(Path::new("/"), &text).is_absolute());
        }
    }
}
