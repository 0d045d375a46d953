//! Layers made by an attacker who knows a directory of the host: every way out that archives have offered elsewhere, and
//! archives that two programs read differently. Tried on agentd, on archivers that trust them, and seeds for fuzzing.

use std::io;

use tar::EntryType;

use super::{Compression, Entry, Layer};

/// One attack.
#[derive(Debug, Clone)]
pub struct Attack {
    /// What it tries.
    pub what: &'static str,
    /// Its layers, lowest first; they lie over an image with a shell.
    pub layers: Vec<(Layer, Compression)>,
    /// Words of the error where it is refused; `None` where it is unpacked and does no harm.
    pub refused: Option<&'static str>,
}

impl Attack {
    fn refused(mut self, words: &'static str) -> Self {
        self.refused = Some(words);
        self
    }

    fn stored(what: &'static str, layer: Layer, compression: Compression) -> Self {
        Self { what, layers: vec![(layer, compression)], refused: None }
    }
}

fn attack(what: &'static str, layers: Vec<Vec<Entry>>) -> Attack {
    let layers = layers.into_iter().map(|entries| (Layer::Entries(entries), Compression::Gzip)).collect();
    Attack { what, layers, refused: None }
}

fn pwned(name: &str) -> Entry {
    Entry::file(name, "pwned")
}

/// Ways to reach `host`, a directory with the files `canary` and `sub/canary`.
#[must_use]
pub fn escapes(host: &str) -> Vec<Attack> {
    let far = format!("{}{host}", "../".repeat(30).trim_end_matches('/'));
    let link = || Entry::symlink("link", host);
    let hard = Entry::hardlink;
    vec![
        attack("a file through a link", vec![vec![link(), pwned("link/pwned")]]),
        attack("a file through a relative link", vec![vec![Entry::symlink("link", &far), pwned("link/pwned")]]),
        attack("a file through a link of the layer below", vec![vec![link()], vec![pwned("link/pwned")]]),
        attack("a file through two links", vec![vec![link(), Entry::symlink("l2", "link/sub"), pwned("l2/pwned")]]),
        attack(
            "a file through a link to the root",
            vec![vec![Entry::symlink("r", "/"), pwned(&format!("r{host}/pwned"))]],
        ),
        attack("a file through a link up", vec![vec![Entry::symlink("up", ".."), pwned("up/pwned")]]),
        attack("a directory through a link", vec![vec![link(), Entry::dir("link/sub/deep").mode(0o777)]]),
        attack("a mode through a link", vec![vec![link(), Entry::dir("link").mode(0o777)]]),
        attack("a mode through a link with a slash", vec![vec![link(), Entry::dir("link/").mode(0o777)]]),
        attack("a mode through a link below", vec![vec![link()], vec![Entry::dir("link/sub").mode(0o777)]]),
        attack("a time through a link", vec![vec![Entry::symlink("l", &format!("{host}/canary")).mtime(1), link()]]),
        attack("an attribute through a link", vec![vec![link().pax("SCHILY.xattr.user.pwned", b"1")]]),
        attack("a whiteout through a link", vec![vec![link()], vec![Entry::whiteout("link/canary")]]),
        attack("a whiteout through a link of its own layer", vec![vec![link(), Entry::whiteout("link/canary")]]),
        attack("an opaque directory through a link", vec![vec![link()], vec![Entry::opaque("link/sub")]]),
        attack("an opaque directory through a link of its own", vec![vec![link(), Entry::opaque("link")]]),
        attack("a whiteout of the parent", vec![vec![Entry::whiteout(".."), pwned("x/.wh..")]])
            .refused("names nothing"),
        attack("a whiteout of the directory", vec![vec![pwned("x/.wh..")]]).refused("names nothing"),
        attack("a whiteout of nothing", vec![vec![pwned(".wh.")]]).refused("names nothing"),
        attack("an entry in a whiteout", vec![vec![pwned(".wh.x/y")]]).refused("cannot hold entries"),
        attack("a link as whiteout", vec![vec![Entry::symlink(".wh.canary", host), pwned(".wh.canary/pwned")]])
            .refused("cannot hold entries"),
        attack("a whiteout with a path in its name", vec![vec![Entry::whiteout(&format!("{far}/canary"))]])
            .refused("holds `..`"),
        attack(
            "a hard link through a link",
            vec![vec![link(), hard("hard", "link/canary"), pwned("hard").mode(0o777)]],
        )
        .refused("behind a symlink"),
        attack("a hard link through a link below", vec![vec![link()], vec![hard("hard", "link/canary")]])
            .refused("not in this layer"),
        attack("a hard link to the host", vec![vec![hard("hard", &format!("{host}/canary")), pwned("hard")]])
            .refused("not in this layer"),
        attack("a hard link up", vec![vec![hard("hard", &format!("{far}/canary")), pwned("hard")]])
            .refused("holds `..`"),
        attack(
            "a hard link to a link, then a mode",
            vec![vec![link(), hard("h", "link"), Entry::dir("h").mode(0o777)]],
        ),
        attack("a hard link to a link, then a file", vec![vec![link(), hard("h", "link"), pwned("h/pwned")]]),
        attack("a hard link made below a link", vec![vec![link(), pwned("own"), hard("link/pwned", "own")]])
            .refused("parent is a symlink"),
        attack("a hard link to a directory", vec![vec![Entry::dir("d"), hard("h", "d")]]).refused("is a directory"),
        attack("a hard link to itself", vec![vec![hard("h", "h")]]).refused("not in this layer"),
        attack("a link made below a link", vec![vec![link(), Entry::symlink("link/pwned", "/etc")]]),
        attack("a FIFO made below a link", vec![vec![link(), Entry::fifo("link/pwned")]]),
        attack("links in a circle", vec![vec![Entry::symlink("a", "b"), Entry::symlink("b", "a"), pwned("a/x")]])
            .refused("more than 40 symlinks"),
        attack("a name with ..", vec![vec![pwned(&format!("{far}/pwned"))]]).refused("holds `..`"),
        attack(
            "a name with .. inside",
            vec![vec![Entry::dir("a"), pwned(&format!("a/../../../../../../..{host}/pwned"))]],
        )
        .refused("holds `..`"),
        attack("a directory with .. at its end", vec![vec![Entry::dir("a/..").mode(0o777)]]).refused("holds `..`"),
        attack("an absolute name", vec![vec![pwned(&format!("{host}/pwned"))]]),
        attack("an absolute name of two slashes", vec![vec![pwned(&format!("//{host}/pwned"))]]),
        attack("a file over a link", vec![vec![Entry::symlink("link", &format!("{host}/canary")), pwned("link")]]),
        attack(
            "a file over a link below",
            vec![vec![Entry::symlink("link", &format!("{host}/canary"))], vec![pwned("link")]],
        ),
        attack("a file below a file", vec![vec![pwned("f"), pwned("f/x")]]).refused("not a directory"),
        attack("a link as the root", vec![vec![Entry::symlink("./", host), pwned("pwned")]])
            .refused("only be a directory"),
        attack("a link without a target", vec![vec![Entry::symlink("l", "")]]).refused("symlinkat"),
        attack("a file without a name", vec![vec![pwned("")]]).refused("only be a directory"),
        attack("a FIFO, then a file", vec![vec![Entry::fifo("pipe"), pwned("pipe")]]),
        attack("a FIFO, then a file below it", vec![vec![Entry::fifo("pipe"), pwned("pipe/x")]])
            .refused("not a directory"),
        attack("a FIFO, then a hard link and a file", vec![vec![Entry::fifo("p"), hard("q", "p"), pwned("q")]]),
        attack("a FIFO as passwd", vec![vec![Entry::fifo("etc/passwd"), Entry::fifo("etc/group")]])
            .refused("not a regular file"),
        attack("a device", vec![vec![Entry::char_device("node", 1, 1), Entry::char_device("dev/null", 0, 0)]]),
        attack("a block device, then a file", vec![vec![Entry::new("node", EntryType::Block), pwned("node")]]),
        attack("a program for root", vec![vec![pwned("suid").mode(0o6777).owner(0, 0)]]),
        attack(
            "a link as passwd",
            vec![vec![
                Entry::symlink("etc/passwd", &format!("{host}/canary")),
                Entry::symlink("etc/group", "/etc/shadow"),
            ]],
        ),
        attack(
            "an overlay's own attributes",
            vec![vec![
                Entry::dir("redirected").pax("SCHILY.xattr.user.overlay.redirect", host.as_bytes()),
                Entry::file("metacopy", "x")
                    .pax("SCHILY.xattr.user.overlay.metacopy", b"")
                    .pax("SCHILY.xattr.user.overlay.redirect", host.as_bytes()),
                Entry::file("trusted", "x").pax("SCHILY.xattr.trusted.overlay.redirect", host.as_bytes()),
                Entry::dir("escaped").pax("SCHILY.xattr.user.overlay.overlay.redirect", host.as_bytes()),
            ]],
        ),
        attack(
            "a path of its own in the PAX header",
            vec![vec![Entry::file("plain", "pwned").pax("path", format!("{far}/pwned").as_bytes())]],
        )
        .refused("holds `..`"),
        attack(
            "a link path of its own in the PAX header",
            vec![vec![hard("hard", "own").pax("linkpath", format!("{host}/canary").as_bytes())]],
        )
        .refused("not in this layer"),
        attack("a NUL in a PAX path", vec![vec![pwned("x").pax("path", format!("{host}/pwned\0x").as_bytes())]])
            .refused("holds a NUL"),
        attack("a NUL in an attribute's name", vec![vec![pwned("x").pax("SCHILY.xattr.user.a\0b", b"c")]]),
        attack("control characters in a name", vec![vec![pwned("\u{1b}[2Jbell\u{7}/../x")]])
            .refused("\\u{1b}[2Jbell\\u{7}"),
    ]
}

/// An archive in an archive: where a program mistakes a size, it takes these for entries of the outer one.
fn inner(host: &str) -> io::Result<Vec<u8>> {
    let mut inner = Layer::Entries(vec![Entry::symlink("link", host), pwned("smuggled")]).to_bytes()?;
    inner.truncate(inner.len() - 1024);
    Ok(inner)
}

/// Archives on which programs have disagreed: where the next entry starts, what it is called.
///
/// # Errors
/// Writing to memory can fail only for want of it.
pub fn desyncs(host: &str) -> io::Result<Vec<Attack>> {
    let inner = inner(host)?;
    let size = inner.len().to_string();
    let size = size.as_bytes();
    let outer = |name: &str| Entry::file(name, &inner);
    let long = format!("{}/{}", "n".repeat(200), "n".repeat(200));
    let last = || Entry::file("last", "1");
    let record = |kind: u8, data: &[u8]| Entry::file("record", data).kind(kind);
    Ok(vec![
        attack("a PAX size over a zero one", vec![vec![outer("o").claims(0).pax("size", size), last()]]),
        attack("a PAX size over a smaller one", vec![vec![outer("o").claims(512).pax("size", size), last()]]),
        attack("a PAX size over a larger one", vec![vec![outer("o").claims(1 << 20).pax("size", size), last()]]),
        attack("a PAX size of zero", vec![vec![outer("o").pax("size", b"0"), last()]]),
        attack("two PAX sizes", vec![vec![outer("o").pax("size", b"0").pax("size", size), last()]]),
        attack("a PAX size, then none", vec![vec![outer("o").pax("size", b"0").pax("size", b""), last()]])
            .refused("size is not a number"),
        attack("a PAX size with a sign", vec![vec![outer("o").pax("size", b"+512"), last()]])
            .refused("size is not a number"),
        attack("a PAX size below zero", vec![vec![outer("o").pax("size", b"-512"), last()]])
            .refused("size is not a number"),
        attack("a PAX size with a space", vec![vec![outer("o").pax("size", b" 512"), last()]])
            .refused("size is not a number"),
        attack("a PAX size beyond 2^64", vec![vec![outer("o").pax("size", b"18446744073709551616"), last()]])
            .refused("size is not a number"),
        attack("a PAX size before a long name", vec![vec![record(b'x', &pax("size", "1024")), outer(&long), last()]])
            .refused("wrong checksum"),
        attack(
            "a long name between a PAX size and its file",
            vec![vec![record(b'x', &pax("size", std::str::from_utf8(size).unwrap_or("0"))), outer(&long), last()]],
        ),
        attack(
            "a PAX record for a PAX record",
            vec![vec![record(b'x', &pax("size", "1024")), outer("o").pax("comment", b"x"), last()]],
        )
        .refused("two PAX records"),
        // As git-archive writes one: its own name makes no directory.
        attack(
            "a global PAX comment",
            vec![vec![Entry::file("pax_global/header", pax("comment", "x")).kind(b'g'), outer("o"), last()]],
        ),
        attack("a global PAX size", vec![vec![record(b'g', &pax("size", "0")), outer("o"), last()]])
            .refused("global PAX record"),
        attack("a global PAX path", vec![vec![record(b'g', &pax("path", "p")), outer("o"), last()]])
            .refused("global PAX record"),
        attack(
            "a PAX value with a record in it",
            vec![vec![outer("o").pax("SCHILY.xattr.user.a", b"x\n9 size=0\n"), last()]],
        ),
        attack("a PAX key with an equals sign", vec![vec![outer("o").pax("comment=x\n9 size", b"0"), last()]]),
        attack("a PAX length that is too long", vec![vec![record(b'x', b"99 size=0\n"), outer("o"), last()]])
            .refused("length is beyond its end"),
        attack("a PAX length that is too short", vec![vec![record(b'x', b"8 size=0\n"), outer("o"), last()]])
            .refused("no newline"),
        attack("a directory with data", vec![vec![Entry::dir("d").claims(512), Entry::symlink("d/l", host), last()]])
            .refused("says it holds data"),
        attack(
            "a symlink with data",
            vec![vec![Entry::symlink("s", "t").claims(512), Entry::symlink("l", host), last()]],
        )
        .refused("says it holds data"),
        attack(
            "a hard link with data",
            vec![vec![pwned("a"), Entry::hardlink("h", "a").claims(1024), Entry::symlink("l", host), last()]],
        ),
        attack(
            "a hard link with data of its PAX record",
            vec![vec![pwned("a"), Entry::hardlink("h", "a").pax("size", b"512"), last()]],
        )
        .refused("says it holds data"),
        attack("a FIFO with data", vec![vec![Entry::fifo("f").claims(512), Entry::symlink("l", host), last()]])
            .refused("says it holds data"),
        attack("a file that is a directory by its name", vec![vec![outer("d/"), last()]]).refused("says it holds data"),
        attack("two long names", vec![vec![record(b'L', b"one\0"), record(b'L', b"two\0"), outer("o"), last()]])
            .refused("two long names"),
        attack(
            "a long name and a PAX path",
            vec![vec![record(b'L', b"long\0"), outer("o").pax("path", b"pax"), last()]],
        )
        .refused("two names"),
        attack(
            "a long link target and a PAX one",
            vec![vec![record(b'K', b"long\0"), Entry::symlink("s", "t").pax("linkpath", b"pax"), last()]],
        )
        .refused("two link targets"),
        attack("an empty PAX path", vec![vec![outer("o").pax("path", b""), last()]]).refused("a path is empty"),
        attack("a long name with a NUL inside", vec![vec![record(b'L', b"one\0two\0"), outer("o"), last()]]),
        attack("a long name for nothing", vec![vec![last(), record(b'L', b"one\0")]]).refused("ends after a record"),
        attack("a type nobody knows", vec![vec![outer("o").kind(b'Z'), last()]]).refused("entry type `Z`"),
        attack("a volume label", vec![vec![Entry::new("label", EntryType::new(b'V')), last()]])
            .refused("entry type `V`"),
        attack("a file of several volumes", vec![vec![outer("o").kind(b'M'), last()]]).refused("entry type `M`"),
        attack("a dump of a directory", vec![vec![outer("o").kind(b'D'), last()]]).refused("entry type `D`"),
        attack("Solaris' extended header", vec![vec![record(b'X', &pax("path", "x")), outer("o"), last()]])
            .refused("entry type `X`"),
        attack("a contiguous file", vec![vec![outer("o").kind(b'7'), last()]]),
        attack(
            "a size in base 256",
            vec![vec![outer("o").claims(0).pax("comment", b"").base256_size(inner.len() as u64), last()]],
        ),
        attack("a size below zero in base 256", vec![vec![outer("o").base256_size(u64::MAX), last()]]).refused("size"),
        attack("an entry after a block of zeros", vec![vec![outer("o"), Entry::zeros(), last(), pwned("after")]]),
        attack(
            "GNU.sparse.name without a map",
            vec![vec![outer("o").pax("GNU.sparse.name", format!("{host}/pwned").as_bytes()), last()]],
        )
        .refused("sparse"),
        attack(
            "a sparse map of the old PAX kind",
            vec![vec![outer("o").pax("GNU.sparse.size", b"4096").pax("GNU.sparse.numblocks", b"1"), last()]],
        )
        .refused("sparse map"),
        attack(
            "a sparse file of four exbibytes",
            vec![vec![
                Entry::file("o", format!("{:\0<512}", "0\n"))
                    .pax("GNU.sparse.major", b"1")
                    .pax("GNU.sparse.minor", b"0")
                    .pax("GNU.sparse.name", b"o")
                    .pax("GNU.sparse.realsize", b"4611686018427387904"),
                last(),
            ]],
        )
        .refused("goes over the limit on"),
    ])
}

/// Archives that ask for too much, break off, or are none.
///
/// # Errors
/// Writing to memory can fail only for want of it.
pub fn bombs() -> io::Result<Vec<Attack>> {
    let whole = Layer::Entries(vec![Entry::file("a", "x".repeat(2000)), Entry::file("b", "1")]).to_bytes()?;
    let cut = |at: usize| Layer::Raw(whole[..at].to_vec());
    let mut wrong = whole.clone();
    wrong[100] ^= 1;
    let garbage: Vec<u8> =
        (0..20_000u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0)).collect();
    // 200 MiB of zeros: 30 KiB of zstd.
    let zeros = Layer::Entries(vec![Entry::file("zeros", vec![0; 200 << 20])]);
    let raw = |what, bytes: &[u8]| Attack::stored(what, Layer::Raw(bytes.to_vec()), Compression::Gzip);
    let stored = |what, blob: &[u8], compression| {
        Attack::stored(what, Layer::Stored { blob: blob.to_vec(), archive: whole.clone() }, compression)
    };
    let gzip = {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut writer, &whole)?;
        writer.finish()?
    };
    let zst = zstd::encode_all(&whole[..], 1)?;
    // A frame that wants a window of 2^31 bytes.
    let window = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8][..], &[1, 0, 0]].concat();
    Ok(vec![
        Attack::stored("zeros beyond all ratio", zeros, Compression::Zstd)
            .refused("limit on unpacked bytes per compressed"),
        attack("a path of too many names", vec![vec![pwned(&format!("{}x", "d/".repeat(256)))]])
            .refused("limit on components of a path"),
        attack("a path that is too long", vec![vec![pwned(&format!("{}x", "directory/".repeat(410)))]])
            .refused("limit on"),
        attack("a name that is too long", vec![vec![pwned(&"n".repeat(256))]]).refused("name too long"),
        attack("a link target that is too long", vec![vec![Entry::symlink("l", &"t".repeat(4096))]])
            .refused("limit on bytes of a path"),
        attack("a PAX record that is too large", vec![vec![pwned("x").pax("comment", &vec![b'x'; 2 << 20])]])
            .refused("limit on bytes of a PAX record"),
        attack("a long name that is too large", vec![vec![pwned(&"n/".repeat(1 << 20))]])
            .refused("limit on bytes of a PAX record"),
        attack(
            "an attribute that is too large",
            vec![vec![pwned("x").pax("SCHILY.xattr.user.a", &vec![b'x'; 100_000])]],
        )
        .refused("fsetxattr"),
        attack("many entries of one name", vec![vec![Entry::file("same", ""); 20_000]]),
        Attack::stored("an archive cut in a header", cut(300), Compression::Gzip).refused("breaks off"),
        Attack::stored("an archive cut in a file", cut(700), Compression::Gzip).refused("breaks off"),
        raw("a header with a wrong checksum", &wrong).refused("wrong checksum"),
        raw("garbage", &garbage).refused("wrong checksum"),
        stored("gzip cut short", &gzip[..gzip.len() - 9], Compression::Gzip).refused("cannot be read as gzip"),
        stored("gzip with garbage behind", &[&gzip[..], b"garbage"].concat(), Compression::Gzip)
            .refused("cannot be read as gzip"),
        stored("zstd cut short", &zst[..zst.len() - 3], Compression::Zstd).refused("cannot be read as zstd"),
        stored("zstd called gzip", &zst, Compression::Gzip).refused("cannot be read as gzip"),
        stored("gzip called zstd", &gzip, Compression::Zstd).refused("cannot be read as zstd"),
        stored("gzip called an archive", &gzip, Compression::Plain).refused("cannot read the archive"),
        stored("zstd with a window of two gibibytes", &window, Compression::Zstd)
            .refused("takes a window of more than 128 MiB"),
        stored("another archive than the config says", &zstd::encode_all(&b""[..], 1)?, Compression::Zstd)
            .refused("is not what the image's config says"),
    ])
}

/// One PAX record with the right length.
fn pax(key: &str, value: &str) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}
