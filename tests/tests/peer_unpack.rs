//! The root that a box sees is the one that other programs make of the same image: type, mode, time to the nanosecond,
//! size, content, link targets, which names are one file, and the user's extended attributes.
//!
//! Invariant: a difference that is meant stands in [`MEANT`] with its reason, and fails the test where it is gone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test ends by a panic, a skip is told on stderr"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use agentd_tests::listing::{Listing, differences};
use agentd_tests::oci::honest::{self, Case};
use agentd_tests::oci::{Compression, Entry, Image, Layer, Written};
use agentd_tests::unpackers::{self, OWN, Place};
use agentd_tests::{Feature, Home, require, run};

/// Differences that are meant: image, peer (empty: each), path, reason. A path that ends in `/` is all below it.
const MEANT: &[(&str, &str, &str, &str)] = &[
    ("devices", "", "tty0", "a box has a /dev of its own, and an ordinary user can make no device"),
    ("devices", "", "zero", "a box has a /dev of its own, and an ordinary user can make no device"),
    ("directory-again-in-its-layer", "bsdtar", "d", "bsdtar sets the first of two times"),
    (
        "parent-is-a-link-below",
        "umoci",
        "lib",
        "layers are unpacked one by one, as by podman: an upper one's directory hides a lower one's link",
    ),
    ("parent-is-a-link-below", "umoci", "lib/x", "the same"),
    ("parent-is-a-link-below", "umoci", "usr/lib/x", "the same"),
    (
        "parents-are-implied-above",
        "",
        "d",
        "a directory that the upper layer does not declare is made for it, and the overlay shows that one",
    ),
    (
        "whiteout-in-its-own-layer",
        "umoci",
        "d/e",
        "the kernel lists a whiteout's name in a directory that lies in one layer only; opening it is ENOENT",
    ),
];

/// The same, of peers that an ordinary user runs.
const MEANT_AS_A_USER: &[(&str, &str, &str, &str)] = &[
    ("modes", "bsdtar", "suid", "bsdtar gives set-user-ID to files of root only"),
    ("modes", "bsdtar", "sgid", "the same"),
    ("modes", "bsdtar", "all", "the same"),
    ("attribute-of-a-read-only-file", "umoci", "ro", "umoci sets the mode first, and then may not set the attribute"),
];

/// Images that archivers do not unpack as layers: they keep or refuse what a layer replaces, or know no skippable frame.
const NOT_FOR_TAR: [&str; 12] = [
    "file-over-directory",
    "file-over-directory-in-its-layer",
    "link-over-directory",
    "directory-over-link",
    "hard-link-of-one-layer-removed",
    "parent-is-a-link",
    "parent-is-a-link-below",
    "parent-is-a-link-to-what-comes-later",
    "parent-is-a-link-up-and-down",
    "no-last-padding",
    "devices",
    "attribute-of-a-read-only-file",
];

fn meant() -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str, &'static str)> {
    let as_a_user = (!agentd_tests::is_root()).then_some(MEANT_AS_A_USER);
    MEANT.iter().chain(as_a_user.into_iter().flatten())
}

/// Comparisons of images with what peers make of them, and what came of them.
struct Comparison {
    home: Home,
    /// A directory that a peer left with a later time has lost its own.
    start: String,
    wrong: Vec<String>,
    met: BTreeSet<usize>,
}

impl Comparison {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self { home: Home::new(), start: now.as_secs().to_string(), wrong: Vec::new(), met: BTreeSet::new() }
    }

    fn layout(&self, name: &str) -> PathBuf {
        let dir = self.home.path().join("images").join(name);
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        dir
    }

    /// Writes an image of `layers`; also where its blobs are, lowest first.
    fn write(&self, name: &str, layers: Vec<(Layer, Compression)>) -> (PathBuf, Vec<PathBuf>) {
        let dir = self.layout(name);
        let image = layers.into_iter().fold(Image::new(), |image, (layer, stored)| image.layer(layer, stored));
        let written = image.write(&dir, "t").unwrap();
        let blobs = written.layers.iter().map(|digest| Written::blob(&dir, digest)).collect();
        (dir, blobs)
    }

    /// The root of a box of this image, and the mounts in it.
    #[track_caller]
    fn ours(&self, image: &str, words: &str) -> (Vec<String>, Listing) {
        let (ran, listed) = self.home.listed(words);
        listed.unwrap_or_else(|| panic!("{image}: {ran}"))
    }

    fn with(&mut self, image: &str, peer: &str, (mounts, ours): &(Vec<String>, Listing), theirs: Listing) {
        let outside = |path: &String| {
            !OWN.contains(&path.as_str())
                && !mounts.iter().any(|mount| path == mount || path.starts_with(&format!("{mount}/")))
        };
        let keep = |listing: Listing| listing.into_iter().filter(|(path, _)| outside(path)).collect::<Listing>();
        let (ours, mut theirs) = (keep(ours.clone()), keep(theirs));
        for (path, item) in theirs.iter_mut().filter(|(_, item)| item.kind == "dir" && item.mtime > self.start) {
            item.mtime = ours.get(path).map(|item| item.mtime.clone()).unwrap_or_default();
        }
        for line in differences(("agentd", peer), &ours, &theirs) {
            let path = line.split(['\n', ':']).next().unwrap_or_default();
            let meant = meant().position(|(of, by, at, _)| {
                *of == image
                    && (*by == peer || by.is_empty())
                    && (*at == path || (at.ends_with('/') && path.starts_with(at)))
            });
            match meant {
                Some(at) => drop(self.met.insert(at)),
                None => self.wrong.push(format!("{image} {line}")),
            }
        }
    }

    fn with_umoci(&mut self, image: &str, dir: &Path, tag: &str, ours: &(Vec<String>, Listing)) {
        let place = Place::new();
        let (ran, rootfs) = place.umoci(dir, tag);
        match ran.code() {
            0 => self.with(image, "umoci", ours, unpackers::list(&rootfs)),
            _ => self.wrong.push(format!("{image}: umoci cannot unpack it: {ran}")),
        }
    }

    /// Both tars, one archive on top of the other; there is no whiteout in them.
    fn with_tars(&mut self, image: &str, archives: &[PathBuf], ours: &(Vec<String>, Listing)) {
        for (peer, unpack) in [("tar", Place::gnu_tar as fn(&Place, &Path) -> _), ("bsdtar", Place::bsdtar)] {
            let place = Place::new();
            match archives.iter().map(|archive| unpack(&place, archive)).find(|ran| ran.code() != 0) {
                None => self.with(image, peer, ours, place.listing()),
                Some(ran) => self.wrong.push(format!("{image}: {peer} cannot unpack it: {ran}")),
            }
        }
    }

    /// All three, for an image of one archive.
    fn with_all(&mut self, image: &str, layer: Layer, stored: Compression) {
        let (dir, blobs) = self.write(image, vec![(layer, stored)]);
        let ours = self.ours(image, &format!("oci:{}:t", dir.display()));
        // umoci knows no sparse file but PAX's.
        if !image.ends_with("gnu-sparse") {
            self.with_umoci(image, &dir, "t", &ours);
        }
        self.with_tars(image, &blobs, &ours);
    }

    #[track_caller]
    fn end(self) {
        assert!(self.wrong.is_empty(), "{} differences\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

impl Drop for Comparison {
    fn drop(&mut self) {
        // An image's 0555 directories are more than the removal of a home can do.
        run(Command::new("chmod").args(["-R", "u+rwX"]).arg(self.home.path()));
    }
}

#[test]
fn peer_crafted_images_become_the_same_tree() {
    if !require(Feature::Userns) || !unpackers::installed(&["umoci", "tar", "bsdtar"]) {
        return;
    }
    let mut comparison = Comparison::new();
    for Case { name, layers } in honest::cases().unwrap() {
        let zstd = layers.iter().any(|(_, stored)| *stored == Compression::Zstd);
        let (dir, blobs) = comparison.write(name, layers);
        let ours = comparison.ours(name, &format!("oci:{}:t", dir.display()));
        // umoci knows no zstd, GNU tar no skippable frame at the start.
        if !zstd {
            comparison.with_umoci(name, &dir, "t", &ours);
        }
        let whiteouts = name.starts_with("whiteout") || name.starts_with("opaque");
        if !whiteouts && !zstd && !NOT_FOR_TAR.contains(&name) && name != "parent-is-an-absolute-link" {
            comparison.with_tars(name, &blobs, &ours);
        }
        if zstd {
            let place = Place::new();
            assert_eq!(place.bsdtar(&blobs[0]).code(), 0);
            comparison.with(name, "bsdtar", &ours, place.listing());
        }
    }
    let gone = meant().enumerate().filter(|(at, _)| !comparison.met.contains(at)).map(|(_, meant)| meant);
    assert_eq!(gone.collect::<Vec<_>>(), Vec::<&(_, _, _, _)>::new(), "differences that are no longer there");
    comparison.end();
}

/// A tree with everything that archive formats keep in different ways.
fn varied(at: &Path) {
    let script = r#"
        umask 022; mkdir -p d/deep/er 'sp ace' ro && cd d
        printf one > a; ln a b; ln a ../c; ln -s a s; ln -s /nowhere/at/all t; mkfifo -m 640 p
        printf %s "$(printf 'x%.0s' $(seq 1 90))" > $(printf 'n%.0s' $(seq 1 180)); printf u > 'ü-é'; printf e > e; : > empty
        long=$(printf 'directory-%.0s' $(seq 1 12)); mkdir -p $long/$long; printf l > $long/$long/leaf; ln -s $long/$long/leaf far
        ln $long/$long/leaf $long/$long/hard
        truncate -s 3M sparse; printf data | dd of=sparse bs=1 seek=1000000 conv=notrunc status=none
        printf tail | dd of=sparse bs=1 seek=2500000 conv=notrunc status=none
        truncate -s 1M hole; dd if=/dev/urandom of=random bs=100k count=3 status=none
        chmod 4711 a; chmod 1777 deep; chmod 400 e
        printf x > ../ro/f; chmod 555 ../ro
        find .. -depth -exec touch -h -d '2001-02-03 04:05:06.123456789' {} +"#;
    let ran = run(Command::new("bash").args(["-ec", script]).current_dir(at));
    assert_eq!(ran.code(), 0, "{ran}");
    rustix::fs::setxattr(at.join("d/random"), "user.one", b"a value", rustix::fs::XattrFlags::empty()).unwrap();
}

/// Archives of the same tree as other programs write them, in every format they have.
#[test]
fn peer_archives_of_other_programs_become_the_same_tree() {
    if !require(Feature::Userns) || !unpackers::installed(&["umoci", "tar", "bsdtar", "bash"]) {
        return;
    }
    let mut comparison = Comparison::new();
    let tree = Place::new();
    varied(tree.path());
    let gnu = |arguments: &'static [&'static str]| ("tar", arguments);
    let bsd = |arguments: &'static [&'static str]| ("bsdtar", arguments);
    for (name, (program, arguments)) in [
        ("gnu", gnu(&["--format=gnu"])),
        ("gnu-sparse", gnu(&["--format=gnu", "--sparse"])),
        ("oldgnu-sparse", gnu(&["--format=oldgnu", "--sparse"])),
        ("posix", gnu(&["--format=posix", "--xattrs"])),
        ("posix-sparse-0.0", gnu(&["--format=posix", "--sparse", "--sparse-version=0.0"])),
        ("posix-sparse-0.1", gnu(&["--format=posix", "--sparse", "--sparse-version=0.1"])),
        ("posix-sparse-1.0", gnu(&["--format=posix", "--sparse", "--sparse-version=1.0"])),
        ("posix-hard-dereference", gnu(&["--format=posix", "--hard-dereference"])),
        ("blocks", gnu(&["--format=gnu", "--blocking-factor=200"])),
        ("bsd-pax", bsd(&["--format=pax"])),
        ("bsd-restricted", bsd(&["--format=paxr"])),
        ("bsd-gnu", bsd(&["--format=gnutar"])),
    ] {
        let archive = comparison.home.path().join(name);
        let mut make = Command::new(program);
        make.args(arguments).arg("-cf").arg(&archive).arg("-C").arg(tree.path()).arg(".");
        let ran = run(make.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8"));
        assert_eq!(ran.code(), 0, "{ran}");
        comparison.with_all(name, Layer::Raw(fs::read(&archive).unwrap()), Compression::Gzip);
    }
    comparison.end();
}

/// Runs `command` in `at`; says `skipped: …` where it cannot reach what it downloads from.
fn downloaded(at: &Path, command: &[&str]) -> bool {
    let mut program = Command::new(command[0]);
    let ran = run(program.args(&command[1..]).current_dir(at).env("HOME", at).env("npm_config_cache", at.join("npm")));
    if ran.code() != 0 {
        eprintln!("skipped: {} downloads nothing here", command[0]);
        eprintln!("{ran}");
    }
    ran.code() == 0
}

fn found(at: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.to_str().is_some_and(|path| path.ends_with(ending))).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no {ending} in {}", at.display());
    paths
}

/// Packages of Debian, as dpkg-deb wrote them, a layer each.
#[test]
fn peer_debian_packages_become_the_same_tree() {
    if !require(Feature::Userns) || !unpackers::installed(&["umoci", "tar", "bsdtar", "apt-get", "dpkg-deb"]) {
        return;
    }
    let mut comparison = Comparison::new();
    let place = Place::new();
    if !downloaded(place.path(), &["apt-get", "download", "-q", "perl-base", "tzdata", "libc6", "base-files"]) {
        return;
    }
    let archives = found(place.path(), ".deb").into_iter().map(|package| {
        let ran = run(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package));
        assert_eq!(ran.code(), 0, "{}", ran.stderr);
        (Layer::Raw(ran.stdout_bytes), Compression::Gzip)
    });
    let (dir, blobs) = comparison.write("debian", archives.collect());
    let ours = comparison.ours("debian", &format!("oci:{}:t", dir.display()));
    assert!(ours.1.len() > 1000, "{}", ours.1.len());
    comparison.with_umoci("debian", &dir, "t", &ours);
    comparison.with_tars("debian", &blobs, &ours);
    comparison.end();
}

/// A package of npm's registry, as node-tar wrote it: the file itself is the layer.
#[test]
fn peer_an_npm_package_becomes_the_same_tree() {
    if !require(Feature::Userns) || !unpackers::installed(&["umoci", "tar", "bsdtar", "npm"]) {
        return;
    }
    let mut comparison = Comparison::new();
    let place = Place::new();
    if !downloaded(place.path(), &["npm", "pack", "--silent", "lodash@4.17.21"]) {
        return;
    }
    let blob = fs::read(&found(place.path(), ".tgz")[0]).unwrap();
    let mut archive = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&blob[..]), &mut archive).unwrap();
    comparison.with_all("npm", Layer::Stored { blob, archive }, Compression::Gzip);
    comparison.end();
}

/// A wheel of PyPI, unpacked and packed by Python itself, in each format that its tarfile has.
#[test]
fn peer_a_wheel_packed_by_python_becomes_the_same_tree() {
    if !require(Feature::Userns) || !unpackers::installed(&["umoci", "tar", "bsdtar", "python3"]) {
        return;
    }
    let mut comparison = Comparison::new();
    let place = Place::new();
    if !downloaded(
        place.path(),
        &["python3", "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "lxml"],
    ) {
        return;
    }
    let wheel = found(place.path(), ".whl").remove(0);
    for format in ["PAX", "GNU", "USTAR"] {
        let archive = place.path().join(format);
        let script = "import sys, tarfile, zipfile\n\
                      zipfile.ZipFile(sys.argv[1]).extractall('tree')\n\
                      form = getattr(tarfile, sys.argv[2].split('/')[-1] + '_FORMAT')\n\
                      with tarfile.open(sys.argv[2], 'w', format=form) as archive: archive.add('tree', 'opt')";
        let mut python = Command::new("python3");
        let ran = run(python.args(["-c", script]).arg(&wheel).arg(&archive).current_dir(place.path()));
        assert_eq!(ran.code(), 0, "{ran}");
        comparison.with_all(format, Layer::Raw(fs::read(&archive).unwrap()), Compression::Gzip);
    }
    comparison.end();
}

/// Layers with deletions, opaque directories, links and renames, made by umoci's repack.
#[test]
fn peer_an_image_of_umoci_becomes_the_same_tree() {
    if !require(Feature::Userns) || !unpackers::installed(&["umoci", "bash"]) {
        return;
    }
    let mut comparison = Comparison::new();
    let place = Place::new();
    let script = r#"
        umoci init --layout img; umoci new --image img:t
        umoci unpack --rootless --image img:t one; cd one/rootfs
        mkdir -p a/b c e; echo 1 > a/1; echo 2 > a/b/2; echo 3 > c/3; ln c/3 c/4; ln -s ../a c/l; echo 5 > e/5; cd ../..
        umoci repack --image img:t one; umoci unpack --rootless --image img:t two; cd two/rootfs
        rm a/1; rm -r a/b; mkdir a/b; echo new > a/b/new; mv c d; ln d/3 d/5; chmod 700 e; cd ../..
        umoci repack --image img:t two; umoci unpack --rootless --image img:t three; cd three/rootfs
        rm -r d; echo file > d; mkdir c; rm -r e; ln -s a e; echo 6 > a/1; cd ../..
        umoci repack --image img:t three
        mkdir more; echo 7 > more/7; umoci insert --rootless --image img:t more /more"#;
    let ran = run(Command::new("bash").args(["-ec", script]).current_dir(place.path()));
    assert_eq!(ran.code(), 0, "{ran}");
    let dir = place.path().join("img");
    let ours = comparison.ours("umoci", &format!("oci:{}:t", dir.display()));
    assert!(ours.1.contains_key("a/b/new") && ours.1.contains_key("more/7") && !ours.1.contains_key("a/b/2"));
    comparison.with_umoci("umoci", &dir, "t", &ours);
    comparison.end();
}

const CONTAINERFILE: &str = r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin; mkdir -p /a/b /c; echo 1 > /a/1; echo 2 > /a/b/2; echo 3 > /c/3; ln /c/3 /c/4; ln -s ../a /c/l"]
RUN rm /a/1; rm -r /a/b; mkdir /a/b; echo new > /a/b/new; mv /c /d; ln /d/3 /d/5; chmod 4755 /d/3
RUN rm -r /d; echo file > /d; mkdir /c; touch -d '2001-01-01 00:00' /c; rm /bin/wget; ln -s /a /w
"#;

/// Layers with deletions, opaque directories, links and renames, made by buildah, and what skopeo makes of them.
#[test]
fn peer_an_image_of_buildah_becomes_the_same_tree() {
    let tools = ["umoci", "bash", "buildah", "skopeo"];
    if !require(Feature::Userns) || !require(Feature::Busybox) || !unpackers::installed(&tools) {
        return;
    }
    let mut comparison = Comparison::new();
    let place = Place::new();
    fs::write(place.path().join("Containerfile"), CONTAINERFILE).unwrap();
    // Root's buildah leaves its mounts to a namespace of their own; an ordinary user's makes one itself.
    let script = r#"
        cp /bin/busybox . && export HOME=$PWD && buildah() { command buildah --root $PWD/root --runroot $PWD/run "$@"; } &&
        buildah --storage-driver overlay bud --layers --isolation chroot -t oci:img:t . &&
        skopeo copy -q --dest-compress --dest-compress-format gzip oci:img:t oci:gzip:t &&
        skopeo copy -q --dest-compress --dest-compress-format zstd oci:img:t oci:zstd:t &&
        skopeo copy -q oci:img:t docker-archive:docker.tar:name:t
        done=$?; [ $(id -u) = 0 ] || command buildah unshare rm -rf root run; exit $done"#;
    let mut build = Command::new("bash");
    if agentd_tests::is_root() {
        build = Command::new("unshare");
        build.args(["--mount", "bash"]);
    }
    let ran = run(build.args(["-c", script]).current_dir(place.path()));
    if ran.code() != 0 {
        eprintln!("skipped: buildah builds nothing here");
        eprintln!("{ran}");
        return;
    }
    for kind in ["gzip", "zstd"] {
        let ours = comparison.ours(kind, &format!("oci:{}:t", place.path().join(kind).display()));
        assert!(ours.1.contains_key("a/b/new") && !ours.1.contains_key("a/b/2"));
        comparison.with_umoci(kind, &place.path().join("gzip"), "t", &ours);
    }
    let archive = format!("docker-archive:{}", place.path().join("docker.tar").display());
    let ours = comparison.ours("docker", &archive);
    comparison.with_umoci("docker", &place.path().join("gzip"), "t", &ours);
    comparison.end();
}

/// A few entries whose sizes, names and records contradict each other, with headers hidden in their data. Names are
/// unique, so that archives differ in how they are read and in nothing else.
fn contradictory(random: &mut impl FnMut(u32) -> u32) -> Vec<Entry> {
    let mut entries = Vec::new();
    for number in 0..2 + random(4) {
        let name = format!("e{number}");
        let hidden =
            Layer::Entries(vec![Entry::file(&format!("hidden{number}"), "x"), Entry::dir(&format!("deep{number}"))]);
        let hidden = hidden.to_bytes().unwrap();
        let data = match random(4) {
            0 => Vec::new(),
            1 => b"short".to_vec(),
            2 => hidden[..512 * usize::try_from(1 + random(3)).unwrap()].to_vec(),
            _ => hidden,
        };
        let size = |choice: u32| match choice {
            0 => 0,
            1 => 512,
            2 => 1024,
            _ => u64::try_from(data.len()).unwrap(),
        };
        let mut entry = match random(8) {
            0 => Entry::dir(&name),
            1 => Entry::symlink(&name, "t"),
            2 if number > 0 => Entry::hardlink(&name, "e0"),
            3 => Entry::file(&format!("{name}/"), &data),
            4 => Entry::file(&name, &data).kind(*b"\x007SA".get(usize::try_from(random(4)).unwrap()).unwrap()),
            _ => Entry::file(&name, &data),
        };
        if random(3) == 0 {
            entry = entry.claims(size(random(6)));
        }
        if random(4) == 0 {
            entry = entry.base256_size(size(random(6)));
        }
        for _ in 0..random(3) {
            let written = size(random(6)).to_string();
            let (key, value) = match random(9) {
                0..=3 => ("size", written.as_str()),
                4 => ("path", "from-pax"),
                5 => ("linkpath", "from-pax"),
                6 => ("GNU.sparse.size", written.as_str()),
                7 => ("comment", "x\n10 size=1\n"),
                _ => ("mtime", "5"),
            };
            // Two entries of one name would be a matter of the disk.
            let value = if key == "path" { format!("{value}{number}") } else { value.to_owned() };
            entry = entry.pax(key, value.as_bytes());
        }
        if random(5) == 0 {
            let kind = *b"LKgxV".get(usize::try_from(random(5)).unwrap()).unwrap();
            let text = if kind == b'g' || kind == b'x' { "9 size=0\n".to_owned() } else { format!("record{number}\0") };
            entries.push(Entry::file("record", text).kind(kind));
        }
        entries.push(entry);
        if random(20) == 0 {
            entries.push(Entry::zeros());
        }
    }
    entries
}

/// CVE-2025-62518 and its kind: of many archives that contradict themselves, each is refused, or read as by both tars.
#[test]
fn peer_archives_that_contradict_themselves_are_read_alike_or_refused() {
    const ARCHIVES: u32 = 300;
    if !require(Feature::Userns) || !unpackers::installed(&["tar", "bsdtar"]) {
        return;
    }
    let mut comparison = Comparison::new();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u32| {
        // xorshift64: the same archives each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from(state >> 33).unwrap() % below
    };
    let read = |listing: Listing| -> Vec<(String, String, u64, String)> {
        let entries = listing.into_iter().filter(|(path, _)| !OWN.contains(&path.as_str()));
        entries.map(|(path, item)| (path, item.kind, item.size, item.content)).collect()
    };
    let mut accepted = 0;
    for number in 0..ARCHIVES {
        let entries = contradictory(&mut random);
        let layer = (Layer::Entries(entries.clone()), Compression::Plain);
        let (dir, blobs) = comparison.write(&number.to_string(), vec![layer]);
        let (ran, listed) = comparison.home.listed(&format!("oci:{}:t", dir.display()));
        let Some((_, ours)) = listed else {
            assert_eq!(ran.code(), 125, "{entries:?}\n{ran}");
            continue;
        };
        accepted += 1;
        let ours = read(ours);
        for (peer, unpack) in [("tar", Place::gnu_tar as fn(&Place, &Path) -> _), ("bsdtar", Place::bsdtar)] {
            let place = Place::new();
            let ran = unpack(&place, &blobs[0]);
            let theirs = read(place.listing());
            if ran.code() != 0 || theirs != ours {
                comparison.wrong.push(format!("{number}: {peer}\n{ours:?}\n{theirs:?}\n{}\n{entries:?}", ran.stderr));
            }
        }
    }
    assert!(accepted > ARCHIVES / 8, "only {accepted} of {ARCHIVES} were accepted");
    comparison.end();
}
