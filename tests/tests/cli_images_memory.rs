//! A pull takes 64 MiB of memory at most, whatever the layers hold: the kernel says how much it took.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use agentd_tests::oci::{Compression, Entry, Image, Layer};
use agentd_tests::registry::{Access, Authority, Registry};
use agentd_tests::unpackers::installed;
use agentd_tests::{Home, Started, wait_until};

const MOST: u64 = 64 << 20;

/// Bytes of memory that a pull of `image` had at most.
fn peak(image: Image) -> u64 {
    let home = Home::new();
    image.write(&home.path().join("img"), "t").unwrap();
    peak_of(&home, &format!("oci:{}:t", home.path().join("img").display()))
}

/// The same of the first pull into this home. It is looked at when the image is there and only its digest is still to be
/// printed, which waits: the pipe is full.
fn peak_of(home: &Home, reference: &str) -> u64 {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b' '; 4096]).is_ok() {}
    while writer.write(b" ").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut command = home.agentd();
    command.args(["pull", "-q", reference]).stdout(writer);
    let mut pull = Started::with_streams(&mut command);
    // Its writing end of the pipe is the last one now.
    drop(command);
    let images = home.path().join("data/agentd/store/images");
    let is_named = || fs::read_dir(&images).is_ok_and(|mut names| names.next().is_some());
    let named = wait_until(Duration::from_secs(170), || is_named() || pull.has_ended());
    let status = fs::read_to_string(format!("/proc/{}/status", pull.pid())).unwrap();
    let mut printed = String::new();
    reader.read_to_string(&mut printed).unwrap();
    let ran = pull.finish().expect_success();
    assert!(named && printed.trim_start().starts_with("sha256:"), "{ran}\n{}", printed.trim_start());
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|rest| rest.split_whitespace().next());
    peak.unwrap().parse::<u64>().unwrap() * 1024
}

/// Bytes that no compression makes fewer.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
}

/// A little that does not compress in a lot that does, within the limit on the ratio.
fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut noise = noise(seed);
    let mut contents = vec![0; bytes];
    for block in contents.chunks_mut(64 << 10) {
        block.iter_mut().take(512).zip(&mut noise).for_each(|(byte, noise)| *byte = noise);
    }
    contents
}

/// The archive of one file, without its end.
fn part(name: &str, contents: Vec<u8>) -> Vec<u8> {
    let mut part = Layer::Entries(vec![Entry::file(name, contents)]).to_bytes().unwrap();
    part.truncate(part.len() - 1024);
    part
}

/// A gibibyte: a file many times, each in the place of the one before, so that little of it is on the disk.
#[test]
fn a_large_layer_takes_no_more_memory_than_a_small_one() {
    // A zstd frame fills its window of 8 MiB.
    for (compression, bytes) in [(Compression::Gzip, 2 << 20), (Compression::Zstd, 16 << 20)] {
        let file = part("file", pattern(bytes, 1));
        let small = peak(Image::new().layer(Layer::Repeated(file.clone(), (32 << 20) / bytes), compression));
        let large = peak(Image::new().layer(Layer::Repeated(file, (1 << 30) / bytes), compression));
        // How many blocks there are at a time is chance, up to 5 MiB of them.
        assert!(large <= MOST && large <= small + (8 << 20), "{compression:?}: {large} large, {small} small");
    }
}

#[test]
fn many_layers_take_no_more_than_few() {
    let layer = |number: u64| Layer::Repeated(part(&number.to_string(), pattern(64 << 10, number)), 16);
    let compression = |number: u64| if number.is_multiple_of(2) { Compression::Gzip } else { Compression::Zstd };
    let image = (0..64).fold(Image::new(), |image, number| image.layer(layer(number), compression(number)));
    let peak = peak(image);
    assert!(peak <= MOST, "{peak}");
}

/// What comes over connections, with TLS or without, and is kept on the way, is within the same bound.
#[test]
fn a_pull_from_a_registry_takes_no_more_than_any() {
    if !installed(&["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    let site = Home::new();
    let open = Registry::start(site.path(), &Access::Open);
    // More than are read at once on a machine of any size, and each larger than the mebibyte from which on what has come
    // is kept. The frames of zstd fill their window.
    let images = [("gzip", Compression::Gzip, 14, 0), ("zstd", Compression::Zstd, 6, 9 << 20)];
    for (name, compression, layers, compressible) in images {
        let layer = |number: u64| {
            let contents = noise(number).take(300 << 10).chain(pattern(compressible, number));
            Layer::Repeated(part("file", contents.collect()), 4)
        };
        let image = (0..layers).fold(Image::new(), |image, number| image.layer(layer(number), compression));
        let dir = site.path().join(name);
        image.write(&dir, "t").unwrap();
        open.push(&format!("oci:{}:t", dir.display()), &format!("a/{name}:t"), &["--preserve-digests"]);
    }
    let authority = Authority::new(site.path());
    let over_tls = Registry::start(site.path(), &Access::Tls(&authority));
    for (way, registry) in [("http", &open), ("https", &over_tls)] {
        for (name, ..) in images {
            let home = Home::new();
            let trusted = home.path().join("config/containers/certs.d").join(&registry.host);
            fs::create_dir_all(&trusted).unwrap();
            fs::copy(&authority.root, trusted.join("ca.crt")).unwrap();
            let peak = peak_of(&home, &format!("docker://{}/a/{name}:t", registry.host));
            assert!(peak <= MOST, "{name} over {way}: {peak}");
        }
    }
}

/// What is kept of directories to the end of a layer is bounded, and counted for what it is.
#[test]
fn directories_take_the_memory_that_they_are_counted_for() {
    let directories = |names: &mut dyn Iterator<Item = String>| {
        let entries = names.map(|name| Entry::dir(&name)).collect();
        // As it is: archives of as many entries are of one size, and read by as many threads.
        peak(Image::new().layer(Layer::Entries(entries), Compression::Plain))
    };
    // As many as the limit lets through: 32 MiB, of which each takes its path and 144 bytes.
    let above = format!("{}/", "d".repeat(250)).repeat(15);
    let long = directories(&mut (0..8_000).map(|number| format!("{above}{number:0>200}")));
    assert!(long <= MOST, "{long}");
    // Of short names the bookkeeping is the most.
    const SHORT: u64 = 30_000;
    let one = directories(&mut (0..SHORT).map(|_| "same".to_owned()));
    let short = directories(&mut (0..SHORT).map(|number| format!("{number:04x}")));
    let counted = SHORT * (144 + 4);
    // Twice: how many blocks there are at a time is chance, up to 5 MiB of them.
    assert!(short <= one + 2 * counted, "{short} with them, {one} with one, {counted} counted");
}
