//! Crafted archives, honest and hostile, and what is on the disk afterwards.

mod entries;
mod hostile;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use tempfile::TempDir;

use super::pax::tests::pax;
use super::*;
use crate::stream::Compression;
use crate::stream::tests::{gzip, sha256, with_stream};
use crate::told::message;

/// An archive written header by header, so that nothing keeps a test from writing nonsense.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, flag: u8, path: &[u8], link: &[u8], mode: u32, size: u64, data: &[u8]) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.as_old_mut().linkflag = [flag];
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.data(data)
    }

    fn data(mut self, data: &[u8]) -> Tar {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, data: &str) -> Tar {
        self.raw(b'0', path.as_bytes(), b"", 0o644, data.len() as u64, data.as_bytes())
    }

    fn dir(self, path: &str, mode: u32) -> Tar {
        self.raw(b'5', path.as_bytes(), b"", mode, 0, b"")
    }

    fn symlink(self, path: &str, target: &str) -> Tar {
        self.raw(b'2', path.as_bytes(), target.as_bytes(), 0o777, 0, b"")
    }

    fn link(self, path: &str, target: &str) -> Tar {
        self.raw(b'1', path.as_bytes(), target.as_bytes(), 0o644, 0, b"")
    }

    fn record(self, flag: u8, data: &[u8]) -> Tar {
        self.raw(flag, b"record", b"", 0o644, data.len() as u64, data)
    }

    fn pax(self, records: &[(&str, &str)]) -> Tar {
        self.record(b'x', &pax(records))
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// `fs` to unpack into, and beside it what must stay as it is.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("fs")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/sentinel"), "untouched").unwrap();
        Place { dir }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("fs")
    }

    fn unpack(&self, tar: &[u8], compression: Compression, limits: &Limits) -> Result<Unpacked, String> {
        let root = fs::File::open(self.root()).unwrap().into();
        let result = with_stream(tar, compression, limits, |stream| unpack(stream, root, limits));
        self.assert_outside_untouched();
        result.map_err(|error| message(&error))
    }

    fn assert_outside_untouched(&self) {
        let mut names: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["fs", "outside"]);
        assert_eq!(fs::read_dir(self.dir.path().join("outside")).unwrap().count(), 1);
        let sentinel = self.dir.path().join("outside/sentinel");
        assert_eq!(fs::read_to_string(&sentinel).unwrap(), "untouched");
        assert_eq!(fs::metadata(&sentinel).unwrap().nlink(), 1);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let fd = fs::File::open(self.dir.path()).unwrap();
        remove_tree(&fd);
    }
}

fn remove_tree(dir: &fs::File) {
    crate::removal::remove_all(dir.as_fd(), c"fs").unwrap();
}

/// Everything below `root`, one line each; modes with `modes`.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(path: &Path, name: &str, into: &mut BTreeMap<String, String>) {
        let meta = fs::symlink_metadata(path).unwrap();
        let mode = meta.mode() & 0o7777;
        let kind = meta.file_type();
        let text = if kind.is_dir() {
            format!("dir {mode:o}{}", if opaque(path) { " opaque" } else { "" })
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(path).unwrap().display())
        } else if kind.is_fifo() {
            format!("fifo {mode:o}")
        } else if kind.is_char_device() {
            assert_eq!(meta.rdev(), 0);
            "whiteout".into()
        } else {
            let data = fs::read(path).map_or("?".into(), |d| String::from_utf8_lossy(&d).into_owned());
            format!("{mode:o} {data}")
        };
        into.insert(name.to_owned(), text);
        if kind.is_dir() {
            // As an ordinary user, an image's 0000 directory cannot be looked into.
            for entry in fs::read_dir(path).into_iter().flatten() {
                let entry = entry.unwrap();
                let below = entry.file_name().to_string_lossy().into_owned();
                let below = if name.is_empty() { below } else { format!("{name}/{below}") };
                walk(&entry.path(), &below, into);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(root, "", &mut all);
    all.remove("");
    all
}

fn opaque(path: &Path) -> bool {
    xattr(path, "user.overlay.opaque").as_deref() == Some(b"y")
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 64];
    let n = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    Some(value[..n].to_vec())
}

#[track_caller]
fn check(tar: Tar, want: &[(&str, &str)]) -> (Place, Unpacked) {
    let place = Place::new();
    let unpacked = place.unpack(&tar.end(), Compression::None, &Limits::default()).unwrap();
    let want: BTreeMap<String, String> = want.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(tree(&place.root()), want);
    (place, unpacked)
}

#[track_caller]
fn refused(tar: Tar, want: &str) -> Place {
    let place = Place::new();
    let error = place.unpack(&tar.end(), Compression::None, &Limits::default()).unwrap_err();
    assert!(error.contains(want), "{error}");
    assert!(!error.chars().any(char::is_control), "{error:?}");
    place
}

fn tar() -> Tar {
    Tar::default()
}
