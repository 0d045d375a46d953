//! What a directory tree is, entry by entry, in a form that two trees can be compared in: taken in a box by the program
//! `listing`, and of what a peer unpacked by the test itself.
//!
//! Invariant: what is told depends on the tree alone: not on who looks, for a file that its owner may not read is not
//! read for root either; not on inode numbers, owners, or the order of directory entries.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One entry of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// `file`, `dir`, `link`, `fifo`, `device` or `socket`.
    pub kind: String,
    /// Permission bits in octal, set-user-ID, set-group-ID and sticky among them; those of a symlink mean nothing.
    pub mode: String,
    /// Seconds and nanoseconds of the last change.
    pub mtime: String,
    /// Bytes of a file.
    pub size: u64,
    /// Target of a symlink; digest of a file; empty where there is none or it may not be read.
    pub content: String,
    /// The first path in order that is the same file, where there are several.
    pub same_as: String,
    /// `user.*` attributes but those that a tool keeps owners in, values escaped.
    pub attributes: BTreeMap<String, String>,
}

/// The entries of a tree by path, `.` for its root.
pub type Listing = BTreeMap<String, Item>;

/// Lists the tree at `root`, leaving out what lies at and below the paths `without` (relative to it).
///
/// # Errors
/// Whatever the file system says.
pub fn of(root: &Path, without: &[String]) -> std::io::Result<Listing> {
    let mut listing = Listing::new();
    let mut known = BTreeMap::new();
    walk(root, Path::new(""), without, &mut listing, &mut known)?;
    for paths in known.into_values().filter(|paths: &Vec<String>| paths.len() > 1) {
        let first = paths.iter().min().cloned().unwrap_or_default();
        for path in &paths {
            if let Some(item) = listing.get_mut(path) {
                item.same_as.clone_from(&first);
            }
        }
    }
    Ok(listing)
}

type Known = BTreeMap<(u64, u64), Vec<String>>;

fn walk(root: &Path, below: &Path, without: &[String], into: &mut Listing, known: &mut Known) -> std::io::Result<()> {
    let name = if below == Path::new("") { ".".to_owned() } else { escaped(below.as_os_str().as_bytes()) };
    if without.contains(&name) {
        return Ok(());
    }
    let path = root.join(below);
    let meta = match fs::symlink_metadata(&path) {
        // A name that is listed and leads nowhere: what an overlay shows of a whiteout where it hides nothing.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && below != Path::new("") => {
            into.insert(name, Item { kind: "name without a file".to_owned(), ..Item::default() });
            return Ok(());
        }
        other => other?,
    };
    let kind = meta.file_type();
    let readable = meta.mode() & 0o400 != 0;
    if !kind.is_dir() {
        known.entry((meta.dev(), meta.ino())).or_default().push(name.clone());
    }
    let item = Item {
        kind: match kind {
            kind if kind.is_dir() => "dir",
            kind if kind.is_symlink() => "link",
            kind if kind.is_fifo() => "fifo",
            kind if kind.is_file() => "file",
            kind if kind.is_socket() => "socket",
            _ => "device",
        }
        .to_owned(),
        mode: if kind.is_symlink() { String::new() } else { format!("{:04o}", meta.mode() & 0o7777) },
        mtime: format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()),
        size: if kind.is_file() { meta.size() } else { 0 },
        content: if kind.is_symlink() {
            escaped(fs::read_link(&path)?.as_os_str().as_bytes())
        } else if kind.is_file() && readable {
            crate::oci::sha256_of_file(&path)?
        } else {
            String::new()
        },
        same_as: String::new(),
        attributes: if kind.is_symlink() || !readable { BTreeMap::new() } else { attributes(&path)? },
    };
    into.insert(name, item);
    // A directory that its owner may not search is left closed for root too.
    if kind.is_dir() && meta.mode() & 0o500 == 0o500 {
        for entry in fs::read_dir(&path)? {
            walk(root, &below.join(entry?.file_name()), without, into, known)?;
        }
    }
    Ok(())
}

fn attributes(path: &Path) -> std::io::Result<BTreeMap<String, String>> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        // umoci and buildah keep an entry's owner there, and overlayfs what it knows of a layer.
        if [&b"user.rootlesscontainers"[..], b"user.containers.override_stat"].contains(&name)
            || name.starts_with(b"user.overlay.")
        {
            continue;
        }
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        found.insert(escaped(name), escaped(&value[..length]));
    }
    Ok(found)
}

/// Bytes as text that two different byte strings never share.
fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Where two listings differ, a line each; `names` says what each of them is.
#[must_use]
pub fn differences(names: (&str, &str), left: &Listing, right: &Listing) -> Vec<String> {
    let mut lines = Vec::new();
    for path in left.keys().chain(right.keys().filter(|path| !left.contains_key(*path))) {
        match (left.get(path), right.get(path)) {
            (Some(one), Some(other)) if one == other => {}
            (Some(one), Some(other)) => {
                lines.push(format!("{path}\n    {}: {one:?}\n    {}: {other:?}", names.0, names.1))
            }
            (one, _) => {
                lines.push(format!("{path}: only in {}", if one.is_some() { names.0 } else { names.1 }));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_property_makes_a_difference() {
        let place = || {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("d")).unwrap();
            fs::write(dir.path().join("d/f"), "1").unwrap();
            fs::hard_link(dir.path().join("d/f"), dir.path().join("g")).unwrap();
            for path in ["d/f", "d", "."] {
                let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
                fs::File::open(dir.path().join(path)).unwrap().set_times(times).unwrap();
            }
            dir
        };
        let (left, right) = (place(), place());
        let of = |dir: &tempfile::TempDir| of(dir.path(), &[]).unwrap();
        assert_eq!(of(&left), of(&right));
        assert_eq!(of(&left)["g"].same_as, "d/f");
        fs::remove_file(right.path().join("g")).unwrap();
        fs::write(right.path().join("g"), "1").unwrap();
        let found = differences(("one", "other"), &of(&left), &of(&right));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(!super::of(left.path(), &["d".to_owned()]).unwrap().contains_key("d/f"));
    }
}
