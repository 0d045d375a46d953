//! Images that an honest tool could have written, a case each: what whiteouts, links, duplicates, long names, times and
//! odd compressions must become. Compared with what peers make of them, and seeds for fuzzing.

use std::io::{self, Write};

use super::{Compression, Entry, Layer};

/// One image.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it is about; also the name of its layout.
    pub name: &'static str,
    /// Lowest first.
    pub layers: Vec<(Layer, Compression)>,
}

fn case(name: &'static str, layers: Vec<Vec<Entry>>) -> Case {
    Case { name, layers: layers.into_iter().map(|entries| (Layer::Entries(entries), Compression::Gzip)).collect() }
}

/// All of them. Every directory is declared unless a case is about one that is not.
///
/// # Errors
/// Compressing can fail only for want of memory.
pub fn cases() -> io::Result<Vec<Case>> {
    let mut cases = whiteouts();
    cases.extend(replacements());
    cases.extend(links());
    cases.extend(attributes());
    cases.extend(headers()?);
    cases.extend(compressions()?);
    Ok(cases)
}

fn file(name: &str, contents: &str) -> Entry {
    Entry::file(name, contents)
}

fn dir(name: &str) -> Entry {
    Entry::dir(name)
}

fn base() -> Vec<Entry> {
    vec![dir("d"), file("d/1", "one"), file("d/2", "two"), dir("d/e"), file("d/e/3", "three"), file("top", "top")]
}

fn whiteouts() -> Vec<Case> {
    let gone = Entry::whiteout;
    vec![
        case("whiteout", vec![base(), vec![gone("d/1"), gone("d/e"), gone("top"), dir("d")]]),
        case("whiteout-of-nothing", vec![base(), vec![dir("d"), gone("d/none"), gone("none")]]),
        case("whiteout-before-its-name", vec![base(), vec![dir("d"), gone("d/1"), file("d/1", "new")]]),
        case("whiteout-after-its-name", vec![base(), vec![dir("d"), file("d/1", "new"), gone("d/1")]]),
        case("whiteout-before-its-directory", vec![base(), vec![gone("d"), dir("d"), file("d/9", "new")]]),
        case("whiteout-after-its-directory", vec![base(), vec![dir("d"), file("d/9", "new"), gone("d")]]),
        case("whiteout-in-its-own-layer", vec![vec![dir("d"), file("d/1", "kept"), gone("d/1"), gone("d/e")]]),
        case(
            "whiteout-and-back",
            vec![base(), vec![dir("d"), gone("d/1")], vec![dir("d"), file("d/1", "back")], vec![dir("d"), gone("d/2")]],
        ),
        case(
            "whiteout-below-a-file",
            vec![base(), vec![file("d", "1"), gone("d/1"), gone("d/e/3"), Entry::opaque("d/e")]],
        ),
        case("whiteout-below-a-link", vec![base(), vec![Entry::symlink("d", "t"), gone("d/1")]]),
        case("whiteout-below-a-whiteout", vec![base(), vec![gone("d"), gone("d/1")]]),
        case("opaque-first", vec![base(), vec![dir("d"), Entry::opaque("d"), file("d/9", "new")]]),
        case("opaque-last", vec![base(), vec![dir("d"), file("d/9", "new"), Entry::opaque("d")]]),
        case("opaque-nested", vec![base(), vec![dir("d"), dir("d/e"), Entry::opaque("d/e"), file("d/e/9", "new")]]),
        case(
            "opaque-twice",
            vec![base(), vec![dir("d"), Entry::opaque("d"), file("d/8", "8")], vec![dir("d"), file("d/9", "9")]],
        ),
        case("whiteout-of-a-link", vec![[base(), vec![Entry::symlink("l", "d")]].concat(), vec![gone("l")]]),
        case("whiteout-name-with-dots", vec![vec![file(".b", "1"), file("..b", "2")], vec![gone(".b"), gone("..b")]]),
    ]
}

fn replacements() -> Vec<Case> {
    let closed = || Entry::dir("d").mode(0o750).mtime(1_600_000_000);
    vec![
        case("directory-again", vec![base(), vec![closed()]]),
        case("directory-again-in-its-layer", vec![[base(), vec![closed()]].concat()]),
        case("file-over-directory", vec![base(), vec![file("d", "a file now")]]),
        case("file-over-directory-in-its-layer", vec![[base(), vec![file("d", "a file now")]].concat()]),
        case("directory-over-file", vec![base(), vec![dir("top"), file("top/new", "1")]]),
        case("directory-over-file-in-its-layer", vec![[base(), vec![dir("top"), file("top/new", "1")]].concat()]),
        case("link-over-directory", vec![base(), vec![Entry::symlink("d", "elsewhere")]]),
        case("directory-over-link", vec![vec![Entry::symlink("l", "d"), dir("d")], vec![dir("l"), file("l/x", "1")]]),
        case("file-over-link", vec![vec![Entry::symlink("l", "top"), file("top", "1")], vec![file("l", "2")]]),
        case("file-over-link-in-its-layer", vec![vec![file("t", "1"), Entry::symlink("l", "t"), file("l", "2")]]),
        case("link-over-link", vec![vec![Entry::symlink("l", "a")], vec![Entry::symlink("l", "b")]]),
        case("fifo-over-file", vec![base(), vec![Entry::fifo("top")]]),
        case("twice", vec![vec![file("f", "1"), file("f", "22"), dir("d"), file("d/f", "3"), file("f", "333")]]),
        case(
            "link-twice",
            vec![vec![file("a", "1"), file("b", "2"), Entry::hardlink("c", "a"), Entry::hardlink("c", "b")]],
        ),
    ]
}

fn links() -> Vec<Case> {
    let hard = Entry::hardlink;
    vec![
        case(
            "hard-links",
            vec![vec![dir("d"), file("d/a", "1"), hard("d/b", "d/a"), hard("c", "d/b"), file("z", "1")]],
        ),
        case("hard-link-to-link", vec![vec![Entry::symlink("s", "nowhere"), hard("h", "s")]]),
        case("hard-link-to-absolute", vec![vec![dir("d"), file("d/a", "1"), hard("b", "/d/a"), hard("c", "./d/a")]]),
        case("hard-link-then-replaced", vec![vec![file("a", "1"), hard("b", "a"), file("a", "2")]]),
        case("hard-link-of-one-layer-removed", vec![vec![file("a", "1"), hard("b", "a")], vec![Entry::whiteout("a")]]),
        case("hard-link-anew", vec![vec![file("a", "1"), hard("b", "a")], vec![file("a", "2"), hard("b", "a")]]),
        case(
            "symlinks",
            vec![vec![
                dir("d"),
                Entry::symlink("abs", "/d"),
                Entry::symlink("rel", "d/../d"),
                Entry::symlink("up", "../../../../etc"),
                Entry::symlink("self", "self"),
            ]],
        ),
        case(
            "parent-is-a-link",
            vec![vec![dir("usr"), dir("usr/lib"), Entry::symlink("lib", "usr/lib"), file("lib/x", "1")]],
        ),
        case(
            "parent-is-a-link-up-and-down",
            vec![vec![dir("usr"), dir("usr/lib"), dir("x"), Entry::symlink("lib", "x/../usr/lib"), file("lib/x", "1")]],
        ),
        case(
            "parent-is-a-link-to-what-comes-later",
            vec![vec![Entry::symlink("lib", "usr"), file("usr/a", "1"), file("lib/b", "2")]],
        ),
        case(
            "parent-is-an-absolute-link",
            vec![vec![dir("usr"), dir("usr/lib"), Entry::symlink("lib", "/usr/lib"), file("lib/x", "1")]],
        ),
        case(
            "parent-is-a-link-below",
            vec![
                vec![dir("usr"), dir("usr/lib"), file("usr/lib/a", "1"), Entry::symlink("lib", "usr/lib")],
                vec![file("lib/x", "1")],
            ],
        ),
        case("parents-are-implied-above", vec![vec![dir("d").mode(0o750)], vec![file("d/9", "new")]]),
        case("parents-are-implied", vec![vec![file("a/b/c", "1"), dir("x/y"), Entry::symlink("l/m/n", "t")]]),
    ]
}

fn attributes() -> Vec<Case> {
    vec![
        case(
            "modes",
            vec![vec![
                file("suid", "1").mode(0o4755),
                file("sgid", "1").mode(0o2755),
                file("none", "1").mode(0),
                file("ro", "1").mode(0o400),
                file("all", "1").mode(0o7777),
                dir("sticky").mode(0o1777),
                dir("sgdir").mode(0o2775),
                dir("ro-dir").mode(0o555),
                file("ro-dir/f", "1"),
                file("owned", "1").owner(12345, 54321),
                file("owned-far", "1").owner(2_000_000, 2_000_000),
                file("owned-in-base-256", "1").owner(4_294_967_290, 4_294_967_290),
            ]],
        ),
        case(
            "times",
            vec![vec![
                file("zero", "1").mtime(0),
                file("far", "1").mtime(4_102_444_800),
                file("very-far", "1").mtime(0o77_777_777_777),
                file("fraction", "1").pax("mtime", b"1600000000.123456789"),
                file("before", "1").pax("mtime", b"-86400"),
                Entry::symlink("link", "t").mtime(1_500_000_000),
                Entry::symlink("link-fraction", "t").pax("mtime", b"1600000000.5"),
                dir("dir").mtime(1_400_000_000),
                file("dir/f", "1"),
                dir("dir/sub").pax("mtime", b"1600000000.25"),
                file("dir/sub/f", "1"),
            ]],
        ),
        case(
            "extended-attributes",
            vec![vec![
                file("f", "1").pax("SCHILY.xattr.user.a", b"plain").pax("SCHILY.xattr.user.b", b"a\0b\n=c"),
                dir("d").pax("SCHILY.xattr.user.dir", b"v"),
                file("d/none", "1"),
            ]],
        ),
        case(
            "attribute-of-a-read-only-file",
            vec![vec![file("ro", "1").mode(0o444).pax("SCHILY.xattr.user.ro", b"v")]],
        ),
        case("fifo", vec![vec![Entry::fifo("pipe").mode(0o622), file("next", "1")]]),
        case(
            "devices",
            vec![vec![Entry::char_device("tty0", 4, 0), Entry::char_device("zero", 0, 0), file("next", "1")]],
        ),
        case(
            "names",
            vec![vec![
                file("space and\ttab", "1"),
                file("new\nline", "1"),
                file("back\\slash", "1"),
                file("é-ü-漢", "1"),
                file("-dash", "1"),
                file("..two", "1"),
                file("two..", "1"),
                file("...", "1"),
                dir("./dotted/"),
                file("./dotted//slashes", "1"),
                file("/absolute", "1"),
                file(".whatever", "1"),
            ]],
        ),
    ]
}

fn headers() -> io::Result<Vec<Case>> {
    let deep = "d/".repeat(110);
    let deep: Vec<Entry> = (1..=110).map(|n| dir(&deep[..2 * n - 1])).collect();
    let long = format!("{}/{}", "l".repeat(200), "m".repeat(200));
    let target = "t/".repeat(600);
    let mut untrailed = Layer::Entries(vec![file("a", "1"), file("b", &"x".repeat(1000))]).to_bytes()?;
    untrailed.truncate(untrailed.len() - 1024);
    // What `umoci insert` writes.
    let mut unpadded = untrailed.clone();
    unpadded.truncate(untrailed.len() - 24);
    let mut padded = Layer::Entries(vec![file("a", "1")]).to_bytes()?;
    padded.resize(20 * 512 * 3, 0);
    Ok(vec![
        case("long-names", vec![vec![dir(&"l".repeat(200)), file(&long, "1"), Entry::symlink("s", &target)]]),
        case("deep", vec![[deep, vec![file(&format!("{}leaf", "d/".repeat(110)), "1")]].concat()]),
        case(
            "pax-names",
            vec![vec![
                file("short", "1").pax("path", "päx".repeat(60).as_bytes()),
                Entry::symlink("s", "short").pax("linkpath", "täx".repeat(60).as_bytes()),
                file("x", "1"),
                Entry::hardlink("h", "nothing").pax("linkpath", b"x"),
                file("noted", "1").pax("comment", b"no\nmatter").pax("VENDOR.thing", b"x"),
            ]],
        ),
        case(
            "pax-sizes",
            vec![vec![
                file("same", "12345").pax("size", b"5"),
                file("over-zero", "12345").claims(0).pax("size", b"5"),
                file("over-other", "12345").claims(700).pax("size", b"5"),
                file("last", "1"),
            ]],
        ),
        case(
            "hard-link-with-a-size",
            vec![vec![file("a", "12345"), Entry::hardlink("b", "a").claims(5), file("c", "1")]],
        ),
        Case { name: "no-trailer", layers: vec![(Layer::Raw(untrailed), Compression::Gzip)] },
        Case { name: "no-last-padding", layers: vec![(Layer::Raw(unpadded), Compression::Gzip)] },
        Case { name: "long-trailer", layers: vec![(Layer::Raw(padded), Compression::Gzip)] },
    ])
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(bytes)?;
    writer.finish()
}

/// The files of a layer that can be fetched one by one, as bytes of the archive each, without its end.
fn apart() -> io::Result<Vec<Vec<u8>>> {
    let entries = [dir("d"), file("d/a", &"abc".repeat(40_000)), file("d/b", "2"), Entry::symlink("l", "d/a")];
    let parts = entries.map(|entry| {
        let mut part = Layer::Entries(vec![entry]).to_bytes()?;
        part.truncate(part.len() - 1024);
        Ok(part)
    });
    parts.into_iter().collect()
}

/// As stargz-snapshotter writes it: a gzip member a file, then the table of contents as a file of the archive, and an empty
/// member of 51 bytes whose extra field says where that begins.
fn estargz() -> io::Result<Layer> {
    let (mut blob, mut archive) = (Vec::new(), Vec::new());
    for part in apart()? {
        blob.extend(gzip(&part)?);
        archive.extend(part);
    }
    let contents = r#"{"version":1,"entries":[{"name":"d/a","type":"reg","size":120000,"offset":1}]}"#;
    let contents = Layer::Entries(vec![file("stargz.index.json", contents)]).to_bytes()?;
    let payload = format!("{:016x}STARGZ", blob.len());
    blob.extend(gzip(&contents)?);
    archive.extend(contents);
    // FEXTRA, 26 bytes of it: the subfield SG of 22.
    let head = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
    let (nothing, ended) = ([1, 0, 0, 0xff, 0xff], [0; 8]);
    let footer = [&head[..], payload.as_bytes(), &nothing, &ended].concat();
    debug_assert_eq!(footer.len(), 51);
    blob.extend(footer);
    Ok(Layer::Stored { blob, archive })
}

/// As containers/storage writes it: a zstd frame a file, then frames that decoders skip: the table of contents, and 64 bytes
/// that say where it lies.
fn zstd_chunked() -> io::Result<Layer> {
    let (mut blob, mut archive) = (Vec::new(), Vec::new());
    for part in [apart()?, vec![vec![0; 1024]]].concat() {
        blob.extend(zstd::encode_all(&part[..], 3)?);
        archive.extend(part);
    }
    let mut skipped = |frame: &[u8]| {
        blob.extend([0x50, 0x2a, 0x4d, 0x18]);
        blob.extend(u32::try_from(frame.len()).unwrap_or(0).to_le_bytes());
        blob.extend(frame);
        (blob.len() - frame.len()) as u64
    };
    let contents = br#"{"version":1,"entries":[{"type":"reg","name":"d/a","size":120000}]}"#;
    let stored = zstd::encode_all(&contents[..], 3)?;
    let offset = skipped(&stored);
    let numbers = [offset, stored.len() as u64, contents.len() as u64, 1, 0, 0, 0];
    skipped(&[&numbers.map(u64::to_le_bytes).concat()[..], b"GNUlInUx"].concat());
    Ok(Layer::Stored { blob, archive })
}

fn compressions() -> io::Result<Vec<Case>> {
    let archive = Layer::Entries(vec![file("a", &"abc".repeat(40_000)), file("b", "2")]).to_bytes()?;
    let (head, tail) = archive.split_at(777);
    let skippable: &[u8] = &[0x5a, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let members = [gzip(head)?, gzip(b"")?, gzip(tail)?].concat();
    let frames = [skippable, &zstd::encode_all(head, 3)?, skippable, &zstd::encode_all(tail, 19)?, skippable].concat();
    let stored = |blob: Vec<u8>| Layer::Stored { blob, archive: archive.clone() };
    Ok(vec![
        Case { name: "gzip-members", layers: vec![(stored(members), Compression::Gzip)] },
        Case { name: "zstd-frames", layers: vec![(stored(frames), Compression::Zstd)] },
        Case { name: "estargz", layers: vec![(estargz()?, Compression::Gzip)] },
        Case { name: "zstd-chunked", layers: vec![(zstd_chunked()?, Compression::Zstd)] },
        Case { name: "plain", layers: vec![(Layer::Raw(archive.clone()), Compression::Plain)] },
        case("an-empty-layer", vec![vec![file("a", "1")], vec![], vec![file("b", "2")]]),
        case("a-layer-twice", vec![base(), vec![file("top", "2")], base()]),
    ])
}
