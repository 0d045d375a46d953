//! What an honest archive becomes on the disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[test]
fn ordinary_entries() {
    let (place, unpacked) = check(
        tar()
            .dir("./", 0o755)
            .dir("./d/", 0o1777)
            .file("./d/f", "hello")
            .raw(b'0', b"d/suid", b"", 0o4755, 1, b"x")
            .raw(b'0', b"d/ro", b"", 0o400, 1, b"r")
            .symlink("abs", "/d/f")
            .symlink("rel", "../../d")
            .raw(b'6', b"fifo", b"", 0o622, 0, b"")
            .raw(b'3', b"null", b"", 0o666, 0, b"")
            .raw(b'4', b"sda", b"", 0o666, 0, b"")
            .raw(b'7', b"contiguous", b"", 0o644, 1, b"c")
            .raw(b'\0', b"old", b"", 0o644, 1, b"o")
            .raw(b'\0', b"olddir/", b"", 0o711, 0, b"")
            .link("d/hard", "d/f"),
        &[
            ("d", "dir 1777"),
            ("d/f", "644 hello"),
            ("d/hard", "644 hello"),
            ("d/suid", "4755 x"),
            ("d/ro", "400 r"),
            ("abs", "-> /d/f"),
            ("rel", "-> ../../d"),
            ("fifo", "fifo 622"),
            ("contiguous", "644 c"),
            ("old", "644 o"),
            ("olddir", "dir 711"),
        ],
    );
    assert_eq!(unpacked.report, Report { skipped_devices: 2, dropped_xattrs: 0 });
    assert!(!unpacked.opaque_root);
    for path in ["d", "d/f", "abs", "fifo", ""] {
        assert_eq!(fs::symlink_metadata(place.root().join(path)).unwrap().mtime(), 1_000_000_000, "{path}");
    }
    let ino = |p: &str| fs::metadata(place.root().join(p)).unwrap().ino();
    assert_eq!(ino("d/f"), ino("d/hard"));
}

#[test]
fn directories_are_filled_before_they_are_closed() {
    let (place, _) = check(
        tar().dir("a", 0o555).dir("a/b", 0o500).file("a/b/f", "1").file("a/g", "2").dir("a", 0o550).file("i/m/p", "3"),
        &[
            ("a", "dir 550"),
            ("a/b", "dir 500"),
            ("a/b/f", "644 1"),
            ("a/g", "644 2"),
            ("i", "dir 755"),
            ("i/m", "dir 755"),
            ("i/m/p", "644 3"),
        ],
    );
    assert_eq!(fs::metadata(place.root().join("a")).unwrap().mtime(), 1_000_000_000);
    let (place, _) = check_modes_only(tar().dir("closed", 0o000).file("closed/f", "x").dir("", 0o555));
    let mode = |p: &str| fs::metadata(place.root().join(p)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("closed"), 0);
    assert_eq!(mode(""), 0o555);
}

fn check_modes_only(tar: Tar) -> (Place, Unpacked) {
    let place = Place::new();
    let unpacked = place.unpack(&tar.end(), Compression::None, &Limits::default()).unwrap();
    (place, unpacked)
}

#[test]
fn later_entries_replace_earlier_ones() {
    check(tar().file("f", "1").file("f", "2"), &[("f", "644 2")]);
    check(tar().dir("d", 0o755).file("d/x", "1").dir("d", 0o700), &[("d", "dir 700"), ("d/x", "644 1")]);
    check(
        tar().dir("d/e", 0o755).file("d/e/x", "1").dir("dx", 0o711).file("d", "2"),
        &[("d", "644 2"), ("dx", "dir 711")],
    );
    check(tar().file("d", "2").dir("d", 0o750).file("d/x", "1"), &[("d", "dir 750 opaque"), ("d/x", "644 1")]);
    check(tar().dir("d", 0o755).file("d/x", "1").symlink("d", "/e"), &[("d", "-> /e")]);
    check(tar().symlink("d", "/e").dir("d", 0o755).file("d/x", "1"), &[("d", "dir 755 opaque"), ("d/x", "644 1")]);
    check(tar().file("a", "1").file("b", "2").link("b", "a"), &[("a", "644 1"), ("b", "644 1")]);
    // A symlink in the way of a file is replaced, not written through.
    check(tar().symlink("f", "../outside/sentinel").file("f", "2"), &[("f", "644 2")]);
    check(tar().raw(b'6', b"f", b"", 0o644, 0, b"").file("f", "2"), &[("f", "644 2")]);
}

#[test]
fn the_remembered_parent_is_not_used_after_it_is_gone() {
    check(
        tar().dir("a/b", 0o755).file("a/b/f", "1").symlink("a", "c").file("a/b/f", "2"),
        &[("a", "-> c"), ("c", "dir 755"), ("c/b", "dir 755"), ("c/b/f", "644 2")],
    );
}

#[test]
fn hard_links() {
    check(
        tar().symlink("s", "/etc/passwd").link("h", "s").file("f", "1").link("/g", "/f").link("f", "./f"),
        &[("s", "-> /etc/passwd"), ("h", "-> /etc/passwd"), ("f", "644 1"), ("g", "644 1")],
    );
    // A hard link's size is its target's for some writers; no data follows.
    check(
        tar().file("f", "1").raw(b'1', b"g", b"f", 0o644, 700, b"").file("h", "2"),
        &[("f", "644 1"), ("g", "644 1"), ("h", "644 2")],
    );
    refused(tar().link("x", "missing"), "not in this layer");
    refused(tar().link("x", "no/such"), "not in this layer");
    refused(tar().file(".wh.w", "").link("x", "w"), "not in this layer");
    refused(tar().link("x", "x"), "not in this layer");
    refused(tar().dir("d", 0o755).link("x", "d"), "is a directory");
    refused(tar().dir("d", 0o755).file("d/f", "1").link("d", "d/f"), "linkat failed");
}

#[test]
fn whiteouts() {
    check(
        tar().file("d/.wh.gone", "").file(".wh.top", "data is ignored").link(".wh.linked", "x"),
        &[("d", "dir 755"), ("d/gone", "whiteout"), ("top", "whiteout"), ("linked", "whiteout")],
    );
    // They act on lower layers only, whatever the order.
    check(tar().file(".wh.f", "").file("f", "1"), &[("f", "644 1")]);
    check(tar().file("f", "1").file(".wh.f", ""), &[("f", "644 1")]);
    let kept = [("d", "dir 755 opaque"), ("d/x", "644 1")];
    check(tar().file(".wh.d", "").dir("d", 0o755).file("d/x", "1"), &kept);
    check(tar().dir("d", 0o755).file("d/x", "1").file(".wh.d", ""), &kept);
    check(tar().file(".wh.d", "").file("d/x", "1"), &kept);
    check(tar().dir("d", 0o755).file("d/.wh..wh..opq", "").file("d/x", "1"), &kept);
    check(tar().dir("d", 0o755).file("d/x", "1").file("d/.wh..wh..opq", ""), &kept);
    check(tar().file("d/.wh..wh..opq", "").dir("d", 0o755).file("d/x", "1"), &kept);
    check(tar().file(".wh..wh.aufs", "").dir(".wh..wh.plnk", 0o700).file(".wh..wh.plnk/1", ""), &[]);
    let (_, unpacked) = check(tar().file(".wh..wh..opq", "").file("f", "1"), &[("f", "644 1")]);
    assert!(unpacked.opaque_root);
    for bad in [".wh.", "d/.wh.", "d/.wh..", "d/.wh..."] {
        refused(tar().file(bad, ""), "names nothing");
    }
    refused(tar().file(".wh.d/x", ""), "cannot hold entries");
}

#[test]
fn extended_attributes() {
    let (place, unpacked) = check(
        tar()
            .pax(&[
                ("SCHILY.xattr.user.kept", "a\nb"),
                ("SCHILY.xattr.user.overlay.opaque", "y"),
                ("SCHILY.xattr.user.overlay.redirect", "/x"),
                ("SCHILY.xattr.trusted.overlay.opaque", "y"),
                ("SCHILY.xattr.security.capability", "x"),
                ("mtime", "1234.5"),
            ])
            .dir("d", 0o555)
            .pax(&[("SCHILY.xattr.user.kept", "v")])
            .raw(b'0', b"f", b"", 0o444, 0, b"")
            .pax(&[("SCHILY.xattr.user.lost", "v")])
            .symlink("s", "f"),
        &[("d", "dir 555"), ("f", "444 "), ("s", "-> f")],
    );
    assert_eq!(xattr(&place.root().join("d"), "user.kept").unwrap(), b"a\nb");
    assert_eq!(xattr(&place.root().join("f"), "user.kept").unwrap(), b"v");
    assert_eq!(unpacked.report.dropped_xattrs, 5);
    let meta = fs::metadata(place.root().join("d")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1234, 500_000_000));
}

#[test]
fn long_names() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(150));
    let nul = [long.as_bytes(), b"\0"].concat();
    let dir = ("d".repeat(150), "dir 755");
    for start in [tar().record(b'L', &nul), tar().record(b'L', long.as_bytes()), tar().pax(&[("path", &long)])] {
        check(start.file("short", "1"), &[(&dir.0, dir.1), (&long, "644 1")]);
    }
    let target = "t".repeat(300);
    for start in [tar().record(b'K', target.as_bytes()), tar().pax(&[("linkpath", &target)])] {
        check(start.symlink("s", "short"), &[("s", &format!("-> {target}"))]);
    }
}

#[test]
fn sparse_files() {
    let put = |field: &mut [u8], n: u64| field[..12].copy_from_slice(format!("{n:011o}\0").as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_path("old").unwrap();
    header.set_mode(0o644);
    header.set_size(1024 + 3);
    header.set_entry_type(tar::EntryType::GNUSparse);
    let gnu = header.as_gnu_mut().unwrap();
    put(&mut gnu.sparse[0].offset, 512);
    put(&mut gnu.sparse[0].numbytes, 512);
    put(&mut gnu.realsize, 10_000);
    gnu.isextended = [1];
    header.set_cksum();
    let mut more = tar::GnuExtSparseHeader::new();
    put(&mut more.sparse_mut()[0].offset, 4096);
    put(&mut more.sparse_mut()[0].numbytes, 515);
    let mut old = tar();
    old.0.extend(header.as_bytes());
    old.0.extend(more.as_bytes());
    let stored = [vec![b'a'; 512], vec![b'b'; 515]].concat();
    let mut file = vec![0u8; 10_000];
    file[512..1024].fill(b'a');
    file[4096..4611].fill(b'b');

    let map = b"2\n512\n512\n4096\n515\n";
    let new = tar()
        .pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "new"),
            ("GNU.sparse.realsize", "10000"),
        ])
        .raw(b'0', b"GNUSparseFile.0/new", b"", 0o644, 512 + 1027, map)
        .data(&stored);
    let zero = tar()
        .pax(&[
            ("GNU.sparse.size", "10000"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.offset", "512"),
            ("GNU.sparse.numbytes", "512"),
            ("GNU.sparse.offset", "4096"),
            ("GNU.sparse.numbytes", "515"),
        ])
        .raw(b'0', b"zero", b"", 0o644, 1027, &stored);
    let one = tar()
        .pax(&[
            ("GNU.sparse.name", "one"),
            ("GNU.sparse.size", "10000"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.map", "512,512,4096,515"),
        ])
        .raw(b'0', b"GNUSparseFile.0/one", b"", 0o644, 1027, &stored);
    for (name, tar) in [("old", old.data(&stored)), ("new", new), ("zero", zero), ("one", one)] {
        let place = Place::new();
        place.unpack(&tar.file("next", "1").end(), Compression::None, &Limits::default()).unwrap();
        assert_eq!(fs::read(place.root().join(name)).unwrap(), file);
        assert_eq!(fs::read(place.root().join("next")).unwrap(), b"1");
    }
    let sized = |records: &[(&str, &str)]| tar().pax(&[&[("GNU.sparse.size", "1")], records].concat());
    refused(sized(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]).file("f", "1"), "only the GNU formats");
    refused(sized(&[("GNU.sparse.map", "0,1,2")]).file("f", "1"), "its count is wrong");
    refused(sized(&[("GNU.sparse.map", "0,1"), ("GNU.sparse.numblocks", "2")]).file("f", "1"), "its count is wrong");
    refused(sized(&[("GNU.sparse.map", "0,x")]).file("f", "1"), "not a number");
    refused(sized(&[("GNU.sparse.map", "0,1"), ("GNU.sparse.map", "0,1")]).file("f", "1"), "two sparse maps");
    refused(sized(&[("GNU.sparse.numbytes", "1")]).file("f", "1"), "do not alternate");
    refused(sized(&[("GNU.sparse.map", "0,1")]).dir("d", 0o755), "what is not a file");
    refused(sized(&[]).file("f", "1"), "its count is wrong");
    refused(sized(&[("GNU.sparse.numblocks", "0")]).file("f", ""), "its count is wrong");
    let unsized_map = [("GNU.sparse.map", "0,1"), ("GNU.sparse.numblocks", "1")];
    refused(tar().pax(&unsized_map).file("f", "1"), "no real size");
    let sparse =
        [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "f"), ("GNU.sparse.realsize", "9")];
    refused(tar().pax(&sparse).file("f", "1\n0\n1\n"), "longer than the entry");
    let huge = format!("{:<512}", "99999999999999999999\n");
    refused(tar().pax(&sparse).file("f", &huge), "not one");
}

/// What GNU tar makes of the same archive, where both accept it.
#[test]
fn gnu_tar_makes_the_same_tree() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(150));
    let archive = tar()
        .dir("./", 0o755)
        .dir("./usr/", 0o755)
        .dir("./usr/lib/", 0o711)
        .file("./usr/lib/a", "one")
        .link("./usr/lib/b", "./usr/lib/a")
        .symlink("./lib", "usr/lib")
        .raw(b'0', b"./usr/suid", b"", 0o4755, 3, b"abc")
        .raw(b'6', b"./pipe", b"", 0o640, 0, b"")
        // Parents are declared: GNU tar makes implied ones with the umask of whoever runs the test.
        .record(b'L', format!("{}/", "d".repeat(150)).as_bytes())
        .dir("short/", 0o755)
        .record(b'L', long.as_bytes())
        .file("short", "long name")
        .dir("pax/", 0o755)
        .pax(&[("path", "pax/name"), ("size", "4"), ("mtime", "1600000000.25")])
        .raw(b'0', b"other", b"", 0o600, 0, b"data")
        .file("./usr/lib/a", "two")
        .file("pax/last", &"z".repeat(1500))
        .dir("left/", 0o750)
        .file("left/x", "1")
        .end();
    let ours = Place::new();
    ours.unpack(&gzip(&archive), Compression::Gzip, &Limits::default()).unwrap();
    let theirs = Place::new();
    let file = theirs.dir.path().join("fs.tar");
    fs::write(&file, &archive).unwrap();
    let mut command = std::process::Command::new("tar");
    command.arg("-C").arg(theirs.root()).args(["--same-permissions", "--no-same-owner", "-xf"]).arg(&file);
    // Bare minimum of trust in the environment: TAR_OPTIONS would change what is compared.
    let status = command.env_remove("TAR_OPTIONS").status();
    fs::remove_file(&file).unwrap();
    assert!(status.unwrap().success());
    assert_eq!(tree(&ours.root()), tree(&theirs.root()));
    let times = |place: &Place, path: &str| {
        let meta = fs::symlink_metadata(place.root().join(path)).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    // Not "usr": GNU tar sets a directory's time when it leaves it, and is not troubled by what comes later.
    for path in ["left", "usr/lib/a", "usr/lib/b", "lib", "pipe", "pax/name"] {
        assert_eq!(times(&ours, path), times(&theirs, path), "{path}");
    }
}
