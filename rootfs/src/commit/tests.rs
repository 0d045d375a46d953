//! Upper directories as overlayfs leaves them, and any tree at all, through a layer and back.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lgetxattr, lsetxattr, mknodat, utimensat,
};
use tempfile::TempDir;

use super::*;
use crate::limits::Limits;
use crate::removal::remove_all;
use crate::stream::Compression;
use crate::stream::tests::with_stream;
use crate::unpack::unpack;

/// `upper`, and `lower` below it.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("upper")).unwrap();
        fs::create_dir(dir.path().join("lower")).unwrap();
        Place(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn upper(&self) -> Upper {
        let root = File::open(self.at("upper")).unwrap();
        Upper::new(root.into(), &[self.at("lower")]).unwrap()
    }

    fn keep(&self, upper: Upper) -> Result<(KeptLayer, Vec<u8>), KeepError> {
        let path = self.at("layer");
        let kept = upper.keep(File::create(&path).unwrap(), &mut || false)?;
        let blob = fs::read(path).unwrap();
        assert_eq!(blob.len() as u64, kept.size);
        Ok((kept, blob))
    }

    /// Names in the archive, directories with a slash.
    fn names(&self, upper: Upper) -> Vec<String> {
        let (kept, blob) = self.keep(upper).unwrap();
        let mut archive = tar::Archive::new(zstd::Decoder::new(&blob[..]).unwrap());
        let entries = archive.entries().unwrap();
        let names: Vec<String> =
            entries.map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned()).collect();
        assert_eq!(names.len() as u64, kept.entries);
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let dir = File::open(self.0.path()).unwrap();
        for name in [c"upper", c"lower", c"fs"] {
            remove_all(dir.as_fd(), name).unwrap();
        }
    }
}

fn opaque(path: &Path) {
    lsetxattr(path, "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
}

fn whiteout(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

#[test]
fn whiteouts_and_opaque_directories_get_their_names() {
    let place = Place::new();
    for directory in ["lower/old", "upper/old", "upper/new", "upper/new/in"] {
        fs::create_dir(place.at(directory)).unwrap();
    }
    let upper = place.upper();
    // Of these, the job's: agentd's own were there before.
    fs::create_dir_all(place.at("lower/deep/hidden")).unwrap();
    fs::create_dir_all(place.at("upper/deep/hidden")).unwrap();
    fs::create_dir_all(place.at("upper/deep/fresh")).unwrap();
    opaque(&place.at("upper/deep/hidden"));
    opaque(&place.at("upper/deep/fresh"));
    whiteout(&place.at("upper/deep/gone"));
    whiteout(&place.at("upper/top"));
    let names = place.names(upper);
    let want = ["deep/", "deep/.wh.gone", "deep/fresh/", "deep/hidden/", "deep/hidden/.wh..wh..opq", ".wh.top"];
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(names), sorted(want.map(str::to_owned).into()));
}

#[test]
fn what_agentd_made_is_kept_only_for_the_sake_of_what_is_in_it() {
    let place = Place::new();
    fs::create_dir_all(place.at("lower/etc/conf")).unwrap();
    fs::set_permissions(place.at("lower/etc"), PermissionsExt::from_mode(0o710)).unwrap();
    for directory in ["upper/etc/conf", "upper/proc", "upper/home/agent", "upper/mode"] {
        fs::create_dir_all(place.at(directory)).unwrap();
    }
    fs::write(place.at("upper/etc/hosts"), "ours").unwrap();
    fs::write(place.at("upper/point"), "").unwrap();
    assert_eq!(place.names(place.upper()), [""; 0], "nothing is new");
    let upper = place.upper();
    fs::write(place.at("upper/etc/hosts"), "theirs").unwrap();
    fs::remove_file(place.at("upper/point")).unwrap();
    whiteout(&place.at("upper/point"));
    assert_eq!(place.names(upper), [""; 0], "agentd's own files are never kept");
    let upper = place.upper();
    fs::write(place.at("upper/etc/conf/new"), "theirs").unwrap();
    fs::hard_link(place.at("upper/etc/hosts"), place.at("upper/etc/name")).unwrap();
    fs::set_permissions(place.at("upper/mode"), PermissionsExt::from_mode(0o500)).unwrap();
    let (_, blob) = place.keep(upper).unwrap();
    let mut archive = tar::Archive::new(zstd::Decoder::new(&blob[..]).unwrap());
    let entries: Vec<(String, u32, tar::EntryType)> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            (path, entry.header().mode().unwrap(), entry.header().entry_type())
        })
        .collect();
    let names: Vec<&str> = entries.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(names, ["etc/", "etc/conf/", "etc/conf/new", "etc/name", "mode/"]);
    assert_eq!(entries[0].1, 0o710, "the image's mode");
    assert_eq!(entries[3].2, tar::EntryType::Regular, "no link to a name that is not there");
    assert_eq!(entries[4].1, 0o500);
}

#[test]
fn what_an_image_cannot_hold_is_counted() {
    let place = Place::new();
    let upper = place.upper();
    drop(UnixListener::bind(place.at("upper/socket")).unwrap());
    fs::create_dir(place.at("upper/.wh.dir")).unwrap();
    fs::write(place.at("upper/.wh.dir/below"), "").unwrap();
    fs::write(place.at("upper/.wh..wh..opq"), "").unwrap();
    fs::write(place.at("upper/file"), "").unwrap();
    lsetxattr(place.at("upper/file"), "user.a=b", b"x", XattrFlags::empty()).unwrap();
    lsetxattr(place.at("upper/file"), "user.overlay.redirect", b"/etc", XattrFlags::empty()).unwrap();
    let (kept, _) = place.keep(upper).unwrap();
    assert_eq!((kept.entries, kept.left_out), (1, LeftOut { sockets: 1, reserved: 2, attributes: 1 }));
}

#[test]
fn a_file_whose_name_is_cut_at_a_slash_stays_a_file() {
    let place = Place::new();
    let upper = place.upper();
    let directory = "d".repeat(99);
    fs::create_dir(place.at("upper").join(&directory)).unwrap();
    let holes = File::create(place.at("upper").join(&directory).join("holes")).unwrap();
    holes.write_all_at(b"x", 1 << 20).unwrap();
    let (_, blob) = place.keep(upper).unwrap();
    fs::create_dir(place.at("fs")).unwrap();
    let (root, limits) = (File::open(place.at("fs")).unwrap().into(), Limits::default());
    with_stream(&blob, Compression::Zstd, &limits, |stream| unpack(stream, root, &limits)).unwrap();
    assert_eq!(fs::metadata(place.at("fs").join(directory).join("holes")).unwrap().len(), (1 << 20) + 1);
}

#[test]
fn bounds_are_those_of_images() {
    let place = Place::new();
    let upper = place.upper();
    let deep = "d/".repeat(300);
    fs::create_dir_all(place.at("upper").join(deep)).unwrap();
    let error = place.keep(upper).unwrap_err();
    assert!(matches!(&error, KeepError::Limit { source, .. } if source.name == "directories of a path"), "{error}");
    let place = Place::new();
    let upper = place.upper();
    let holes = File::create(place.at("upper/holes")).unwrap();
    for segment in 0..20_002 {
        holes.write_all_at(b"x", segment << 14).unwrap();
    }
    let error = place.keep(upper).unwrap_err();
    assert!(matches!(&error, KeepError::Limit { source, .. } if source.limit == 20_000), "{error}");
}

#[test]
fn it_ends_when_it_is_asked_to() {
    let place = Place::new();
    let upper = place.upper();
    fs::write(place.at("upper/large"), vec![7; 5 << 20]).unwrap();
    let mut asked = 0;
    let mut stop = || {
        asked += 1;
        asked > 2
    };
    let kept = upper.keep(File::create(place.at("layer")).unwrap(), &mut stop);
    assert!(matches!(kept, Err(KeepError::Stopped)), "{kept:?}");
    assert_eq!(asked, 3, "every mebibyte");
}

/// What one of a tree's entries is.
#[derive(Clone, Debug, PartialEq)]
enum Thing {
    File { parts: Vec<(u32, Vec<u8>)>, attribute: Option<Vec<u8>> },
    Directory,
    Link(Vec<u8>),
    Fifo,
}

fn thing() -> impl Strategy<Value = Thing> {
    let parts = prop::collection::vec((0..200_000u32, prop::collection::vec(any::<u8>(), 0..300)), 0..4);
    prop_oneof![
        4 => (parts, prop::option::of(prop::collection::vec(any::<u8>(), 0..50)))
            .prop_map(|(parts, attribute)| Thing::File { parts, attribute }),
        3 => Just(Thing::Directory),
        1 => name().prop_map(Thing::Link),
        1 => Just(Thing::Fifo),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("not in a name", |byte| ![0, b'/'].contains(byte));
    let short = prop::collection::vec(byte, 1..6);
    // Around the length that a header has room for.
    prop_oneof![5 => short, 1 => (95usize..=255).prop_map(|length| vec![b'n'; length])]
        .prop_filter("not a name", |name| ![&b"."[..], b".."].contains(&&name[..]) && !name.starts_with(b".wh."))
}

type Seen = BTreeMap<Vec<u8>, (u32, i64, i64, u64, Vec<u8>, Option<Vec<u8>>)>;

/// Everything that a layer carries, read as its owner could.
fn see(root: &Path, below: &Path, seen: &mut Seen) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let below = below.join(entry.unwrap().file_name());
        let path = root.join(&below);
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = match meta.file_type() {
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
            kind if kind.is_file() => fs::read(&path).unwrap(),
            _ => Vec::new(),
        };
        let mut value = [0; 64];
        let attribute = lgetxattr(&path, "user.test", &mut value).ok().map(|length| value[..length].to_vec());
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let mode = if meta.is_symlink() { 0o120_000 } else { meta.mode() };
        let all = (mode, meta.mtime(), meta.mtime_nsec(), links, content, attribute);
        seen.insert(below.as_os_str().as_bytes().to_vec(), all);
        if meta.is_dir() {
            see(root, &below, seen);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_tree_survives_a_layer(
        things in prop::collection::vec((name(), thing(), any::<prop::sample::Index>(), 0..8u32, -9_000_000_000..9_000_000_000i64, 0..1_000_000_000i64), 0..20),
        links in prop::collection::vec((name(), any::<prop::sample::Index>()), 0..3),
    ) {
        let place = Place::new();
        let upper = place.upper();
        let (mut directories, mut files) = (vec![place.at("upper")], Vec::new());
        let mut made = Vec::new();
        for (name, thing, parent, mode, seconds, nanoseconds) in things {
            let path = directories[parent.index(directories.len())].join(OsStr::from_bytes(&name));
            if fs::symlink_metadata(&path).is_ok() {
                continue;
            }
            match &thing {
                Thing::File { parts, attribute } => {
                    let file = File::create(&path).unwrap();
                    for (offset, bytes) in parts {
                        file.write_all_at(bytes, u64::from(*offset)).unwrap();
                    }
                    if let Some(value) = attribute {
                        lsetxattr(&path, "user.test", value, XattrFlags::empty()).unwrap();
                    }
                    files.push(path.clone());
                }
                Thing::Directory => {
                    fs::create_dir(&path).unwrap();
                    directories.push(path.clone());
                }
                Thing::Link(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
                Thing::Fifo => mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
            }
            made.push((path, thing, mode, seconds, nanoseconds));
        }
        for (name, of) in links {
            if !files.is_empty() {
                // A name that is taken stays what it is.
                fs::hard_link(&files[of.index(files.len())], place.at("upper").join(OsStr::from_bytes(&name))).ok();
            }
        }
        for (path, thing, mode, seconds, nanoseconds) in made.iter().rev() {
            if !matches!(thing, Thing::Link(_)) {
                fs::set_permissions(path, PermissionsExt::from_mode(0o700 | mode)).unwrap();
            }
            let time = Timespec { tv_sec: *seconds, tv_nsec: *nanoseconds };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        let mut wanted = Seen::new();
        see(&place.at("upper"), Path::new(""), &mut wanted);

        let (kept, blob) = place.keep(upper).unwrap();
        fs::create_dir(place.at("fs")).unwrap();
        let limits = Limits::default();
        let root = File::open(place.at("fs")).unwrap().into();
        let unpacked = with_stream(&blob, Compression::Zstd, &limits, |stream| unpack(stream, root, &limits)).unwrap();
        prop_assert_eq!(unpacked.digest.to_string(), kept.digest);
        prop_assert_eq!(unpacked.diff_id.to_string(), kept.diff_id);
        prop_assert_eq!(unpacked.report.dropped_xattrs, 0);
        let mut got = Seen::new();
        see(&place.at("fs"), Path::new(""), &mut got);
        prop_assert_eq!(&got, &wanted);

        // The tar crate reads the same names.
        let mut plain = Vec::new();
        zstd::Decoder::new(&blob[..]).unwrap().read_to_end(&mut plain).unwrap();
        prop_assert_eq!(tar::Archive::new(&plain[..]).entries().unwrap().count() as u64, kept.entries);
    }
}
