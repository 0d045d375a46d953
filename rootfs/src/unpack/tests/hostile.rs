//! Archives that lie, break off, ask for too much or want out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;

use super::*;

#[test]
fn symlinked_parents_stay_inside() {
    check(
        tar().dir("usr/lib", 0o755).symlink("lib", "usr/lib").file("lib/x", "1"),
        &[("usr", "dir 755"), ("usr/lib", "dir 755"), ("usr/lib/x", "644 1"), ("lib", "-> usr/lib")],
    );
    check(
        tar()
            .symlink("l", "/../../outside")
            .file("l/sentinel", "2")
            .symlink("m", "../../../../outside")
            .file("m/n", "3"),
        &[
            ("l", "-> /../../outside"),
            ("m", "-> ../../../../outside"),
            ("outside", "dir 755"),
            ("outside/n", "644 3"),
            ("outside/sentinel", "644 2"),
        ],
    );
    refused(tar().symlink("a", "b").symlink("b", "a").file("a/x", "1"), "more than 40 symlinks");
    refused(tar().symlink("a", "a/a/a").file("a/x", "1"), "more than 40 symlinks");
    // What replaces a directory hides all that lower layers have in it.
    for replaced in [".wh.x", ".wh..wh..opq", "sub/.wh.x"] {
        let below = format!("l/{replaced}");
        check(tar().dir("d", 0o755).symlink("l", "d").file(&below, ""), &[("d", "dir 755"), ("l", "-> d")]);
        check(tar().file("l", "1").file(&below, ""), &[("l", "644 1")]);
        check(tar().file(".wh.l", "").file(&below, ""), &[("l", "whiteout")]);
    }
    refused(tar().file("f", "1").symlink("l", "/").link("l/x", "f"), "its parent is a symlink");
    refused(tar().symlink("l", "../outside").link("x", "l/sentinel"), "behind a symlink");
    refused(tar().file("f", "1").file("f/x", "1"), "its parent is not a directory");
    refused(tar().raw(b'6', b"f", b"", 0o644, 0, b"").file("f/x", "1"), "its parent is not a directory");
}

#[test]
fn names_that_lead_out_are_refused() {
    check(tar().file("/abs", "1").file("//a//./b", "2"), &[("abs", "644 1"), ("a", "dir 755"), ("a/b", "644 2")]);
    for path in ["..", "../x", "a/../../outside/x", "/../outside/sentinel", "a/.."] {
        refused(tar().file(path, "1"), "holds `..`");
        refused(tar().dir(path, 0o755), "holds `..`");
        refused(tar().file("f", "1").link("x", path), "holds `..`");
    }
    refused(tar().file("", "1"), "the root can only be a directory");
    refused(tar().symlink("./", "/"), "the root can only be a directory");
    refused(tar().symlink("x", ""), "symlinkat failed");
    let place = refused(tar().file("bell\u{7}\u{1b}[2J/../x", "1"), "bell\\u{7}\\u{1b}[2J/../x");
    assert_eq!(tree(&place.root()).len(), 0);
    refused(tar().file(&"n".repeat(99), "1").pax(&[("path", &"n".repeat(256))]).file("x", ""), "File name too long");
}

#[test]
fn pax_sizes_leave_no_room_for_two_readings() {
    // The size of a PAX record overrides a zero and a non-zero one of the header.
    check(
        tar().pax(&[("size", "5")]).raw(b'0', b"f", b"", 0o644, 0, b"12345").file("g", "2"),
        &[("f", "644 12345"), ("g", "644 2")],
    );
    check(
        tar().pax(&[("size", "1")]).raw(b'0', b"f", b"", 0o644, 1024, b"1").file("g", "2"),
        &[("f", "644 1"), ("g", "644 2")],
    );
    // It follows a binary attribute with a newline, which a reader that cuts at newlines would lose.
    check(
        tar().pax(&[("SCHILY.xattr.user.x", "\n9 size=9\n"), ("size", "1")]).raw(b'0', b"f", b"", 0o644, 0, b"1"),
        &[("f", "644 1")],
    );
    // It is for the next file, not for the long name between.
    check(
        tar().pax(&[("size", "3")]).record(b'L', b"name").raw(b'0', b"f", b"", 0o644, 0, b"123").file("g", "2"),
        &[("name", "644 123"), ("g", "644 2")],
    );
    check(tar().record(b'g', &pax(&[("comment", "x")])).file("f", "1"), &[("f", "644 1")]);
    refused(tar().record(b'g', &pax(&[("size", "3")])).file("f", "1"), "global PAX record");
    refused(tar().record(b'g', &pax(&[("path", "x")])).file("f", "1"), "global PAX record");
    refused(tar().pax(&[("size", "-1")]).file("f", "1"), "a size is not a number");
    refused(tar().pax(&[("size", "18446744073709551615")]).file("f", "1"), "limit on unpacked bytes");
    refused(tar().pax(&[("size", "600")]).dir("d", 0o755), "a directory that says it holds data");
    refused(tar().file("f", "1").pax(&[("size", "1")]).link("l", "f"), "a hard link that says it holds data");
    refused(
        tar().file("f", "1").pax(&[]).file("g", "").raw(b'1', b"l", b"f", 0o644, 1, b""),
        "a hard link that says it holds data",
    );
    refused(tar().raw(b'2', b"s", b"t", 0o777, 600, b""), "a symlink that says it holds data");
    refused(tar().raw(b'6', b"s", b"", 0o777, 600, b""), "a FIFO or device that says it holds data");
    refused(tar().pax(&[]).pax(&[]).file("f", "1"), "two PAX records");
    refused(tar().record(b'L', b"a").record(b'L', b"b").file("f", "1"), "two long names");
    refused(tar().record(b'K', b"a").record(b'K', b"b").file("f", "1"), "two long link targets");
    refused(tar().record(b'L', b"a"), "the archive ends after a record");
}

#[test]
fn damaged_archives() {
    refused(tar().raw(b'Z', b"f", b"", 0o644, 0, b""), "entry type `Z`");
    refused(tar().raw(b'V', b"label", b"", 0o644, 0, b""), "entry type `V`");
    let place = Place::new();
    let limits = Limits::default();
    let whole = tar().file("f", &"x".repeat(2000)).end();
    for (cut, want) in [(300, "inside a header"), (700, "inside an entry's data")] {
        let error = place.unpack(&whole[..cut], Compression::None, &limits).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    // No trailer, no last padding or a part of it, an empty archive, and bytes after the end are all read to their end.
    let (unpadded, partly) = (&whole[..512 + 2000], &whole[..512 + 2010]);
    for tar in [
        &whole[..whole.len() - 1024],
        unpadded,
        partly,
        b"",
        &[&whole[..], b"trailing bytes that are no archive"].concat(),
    ] {
        let unpacked = place.unpack(tar, Compression::None, &limits).unwrap();
        assert_eq!(unpacked.diff_id, sha256(tar));
    }
    let mut wrong = whole.clone();
    wrong[0] ^= 1;
    assert!(place.unpack(&wrong, Compression::None, &limits).unwrap_err().contains("wrong checksum"));
}

#[test]
fn every_limit_holds() {
    let files = |n: usize| (0..n).fold(tar(), |tar, i| tar.file(&format!("f{i}"), "1"));
    let default = Limits::default();
    for (tar, limits, want) in [
        (files(11), Limits { entries: 10, ..default }, "limit on entries of a layer (10)"),
        (tar().file("a/b/c/d/e", ""), Limits { entries: 3, ..default }, "limit on entries of a layer (3)"),
        (tar().file("a/b/c", ""), Limits { depth: 2, ..default }, "limit on components of a path (2)"),
        (tar().file("abcdef", ""), Limits { path_bytes: 6, ..default }, "limit on bytes of a path (6)"),
        (tar().symlink("a", "abcdef"), Limits { path_bytes: 6, ..default }, "limit on bytes of a path (6)"),
        (tar().record(b'L', &[b'x'; 100]).file("f", ""), Limits { record_bytes: 99, ..default }, "sparse map (99)"),
        (tar().record(b'x', &[b'x'; 100]).file("f", ""), Limits { record_bytes: 99, ..default }, "sparse map (99)"),
        (tar().dir("abc", 0o755).dir("abd", 0o755), Limits { directory_bytes: 293, ..default }, "directories (293)"),
        (
            tar().file("f", &"x".repeat(9000)),
            Limits { layer_bytes: 8000, ..default },
            "unpacked bytes of a layer (8000)",
        ),
    ] {
        let error = Place::new().unpack(&tar.end(), Compression::None, &limits).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    // Holes cost nothing, but not every file system holds such a file.
    let bomb = tar().pax(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "f"),
        ("GNU.sparse.realsize", "9223372036854775807"),
    ]);
    refused(bomb.file("f", &format!("{:\0<512}", "0\n")), "limit on bytes of a sparse file");
    // The real path counts, not the one through a short symlink.
    let limits = Limits { depth: 4, ..default };
    let deeper = tar().dir("a/b/c", 0o755).symlink("l", "a/b/c").file("l/d/e/f", "");
    let error = Place::new().unpack(&deeper.end(), Compression::None, &limits).unwrap_err();
    assert!(error.contains("limit on components of a path (4)"), "{error}");
}

fn hostile() -> Vec<u8> {
    tar()
        .dir("d", 0o555)
        .symlink("d/l", "../../outside")
        .file("d/l/x", "1")
        .pax(&[("path", "d/p"), ("size", "3"), ("SCHILY.xattr.user.a", "b")])
        .raw(b'0', b"f", b"", 0o644, 0, b"123")
        .record(b'L', b"d/long")
        .link("h", "d/p")
        .file("d/.wh.gone", "")
        .file(".wh.d", "")
        .file("d/.wh..wh..opq", "")
        .raw(b'6', b"fifo", b"", 0o600, 0, b"")
        .file("/../outside/sentinel", "2")
        .end()
}

/// One change to the archive.
#[derive(Clone, Debug)]
enum Change {
    Byte(usize, u8),
    Text(usize, &'static [u8]),
    Swap(usize, usize),
    Cut(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0usize..20_000;
    let text = prop::sample::select(vec![
        &b"../outside/sentinel\0"[..],
        b"..\0",
        b"/\0",
        b"d/l\0",
        b"d/l/sentinel\0",
        b".wh.\0",
        b".wh...\0",
        b"d\0",
        b"99999999999\0",
        b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ]);
    let field = prop::sample::select(vec![0usize, 0, 100, 124, 136, 156, 157, 157, 345, 386, 482]);
    let in_header = (0usize..30, field).prop_map(|(block, field)| block * 512 + field);
    prop_oneof![
        (at.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (in_header.clone(), text).prop_map(|(at, text)| Change::Text(at, text)),
        (0usize..30, prop::sample::select(&b"0123456LKxgS\0"[..]))
            .prop_map(|(b, flag)| Change::Byte(b * 512 + 156, flag)),
        (0usize..30, 0usize..30).prop_map(|(a, b)| Change::Swap(a, b)),
        at.prop_map(Change::Cut),
    ]
}

/// Gives every block that may be a header a right checksum, else most changes would end there.
fn fix_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn no_archive_gets_out(changes in prop::collection::vec(change(), 1..6), fix in prop::bool::weighted(0.9)) {
        let mut tar = hostile();
        for change in changes {
            let blocks = tar.len() / 512;
            match change {
                Change::Byte(at, byte) => if let Some(b) = tar.get_mut(at) { *b = byte },
                Change::Text(at, text) => {
                    if let Some(place) = tar.get_mut(at..at + text.len()) { place.copy_from_slice(text) }
                }
                Change::Swap(a, b) => if a < blocks && b < blocks && a != b {
                    let (low, high) = (a.min(b) * 512, a.max(b) * 512);
                    let (left, right) = tar.split_at_mut(high);
                    left[low..low + 512].swap_with_slice(&mut right[..512]);
                },
                Change::Cut(at) => tar.truncate(at.max(512)),
            }
        }
        if fix {
            fix_checksums(&mut tar);
        }
        let place = Place::new();
        let limits = Limits { layer_bytes: 64 << 20, ..Limits::default() };
        if let Ok(unpacked) = place.unpack(&tar, Compression::None, &limits) {
            prop_assert_eq!(unpacked.diff_id, sha256(&tar));
        }
        // Every name is one the tree could hold.
        for path in tree(&place.root()).keys() {
            prop_assert!(!OsStr::new(path).as_bytes().split(|b| *b == b'/').any(|name| name == b".." || name == b"."));
        }
    }
}
