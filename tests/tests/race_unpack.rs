//! Somebody changes things while a layer is unpacked: directories of the tree being filled become links out of the
//! store, and blobs of the layout become other ones after they were looked at.
//!
//! Who can do that has the user's own id, so nothing is gained by it that he did not have; but what agentd believes it
//! verified must be what it verified, and what it writes must land in the store.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use agentd_tests::oci::{Compression, Entry, Image, Layer, Written};
use agentd_tests::{Feature, Home, busybox, require, run};

/// Rounds of unpacking under attack.
const ROUNDS: u32 = 25;
const DIRECTORIES: usize = 40;
const FILES: usize = 20;

/// Two layers over `base`: what the upper one whites out, and the one that is raced for.
fn image(base: Image) -> Image {
    let below = (0..DIRECTORIES).map(|directory| Entry::file(&format!("t/d{directory}/gone"), "below"));
    let below = Layer::Entries(below.collect());
    let mut entries = Vec::new();
    for directory in 0..DIRECTORIES {
        entries.push(Entry::dir(&format!("t/d{directory}")).mode(0o755));
        entries.push(Entry::dir(&format!("t/d{directory}/sub")));
        for file in 0..FILES {
            entries.push(Entry::file(&format!("t/d{directory}/sub/f{file}"), format!("{directory} {file}")));
            entries.push(Entry::hardlink(&format!("t/d{directory}/h{file}"), &format!("t/d{directory}/sub/f{file}")));
        }
        entries.push(Entry::whiteout(&format!("t/d{directory}/gone")));
    }
    // Once more at the end: modes and times are set last, by path.
    entries.extend((0..DIRECTORIES).map(|directory| Entry::dir(&format!("t/d{directory}")).mode(0o777)));
    base.layer(below, Compression::Gzip).layer(Layer::Entries(entries), Compression::Gzip)
}

/// What an honest run of the image prints.
const SCRIPT: &str = "find /t | wc -l; cat /t/d*/sub/f* | md5sum";

/// A directory of the host, and a picture of it and of where it lies.
fn target(home: &Home) -> PathBuf {
    let dir = home.path().join("work/target");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("f0"), "of the host").unwrap();
    fs::write(dir.join("sub/f0"), "of the host").unwrap();
    dir
}

fn picture(dir: &Path) -> String {
    let ran = run(Command::new("find").arg(dir).args(["-printf", "%p %y %m %U %s %n %T@ %C@\n"]));
    assert_eq!(ran.code(), 0, "{ran}");
    ran.stdout
}

/// Puts links to `host` in place of directories of every tree that is being unpacked in `tmp`, and takes them back,
/// until `stop`; counts how often that worked.
fn exchange(tmp: &Path, host: &Path, stop: &AtomicBool, exchanged: &AtomicU64) {
    let place = tmp.with_file_name("link-out");
    let link = CString::new(place.as_os_str().as_bytes()).unwrap();
    while !stop.load(Ordering::Relaxed) {
        // A directory lies there when its tree went away meanwhile.
        if !place.is_symlink() {
            fs::remove_dir_all(&place).ok();
            std::os::unix::fs::symlink(host, &place).unwrap();
        }
        for tree in fs::read_dir(tmp).into_iter().flatten().flatten() {
            for directory in 0..DIRECTORIES {
                for below in ["", "/sub"] {
                    let path = tree.path().join(format!("fs/t/d{directory}{below}"));
                    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { continue };
                    let swap = || {
                        let flags = rustix::fs::RenameFlags::EXCHANGE;
                        rustix::fs::renameat_with(rustix::fs::CWD, &link, rustix::fs::CWD, &path, flags).is_ok()
                    };
                    if swap() {
                        exchanged.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                        swap();
                    }
                }
            }
        }
    }
}

#[test]
fn race_directories_that_become_links_lead_nowhere() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let layouts = Home::new();
    let dir = layouts.path().join("img");
    image(busybox()).write(&dir, "t").unwrap();
    let words = format!("oci:{}:t", dir.display());
    let honest = layouts.said(&["--image", &words], SCRIPT);
    assert!(honest.starts_with(&format!("{}\n", 1 + DIRECTORIES * (2 + 2 * FILES))), "{honest}");

    let home = Home::new();
    let host = target(&home);
    let before = picture(&host);
    let store = home.path().join("data/agentd/store");
    // The store as agentd makes it, with everything but the layer under attack.
    home.said(&["--image", &format!("oci:{}", home.busybox_image().display())], "true");
    let (stop, exchanged) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut unpacked, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&store.join("tmp"), &host, &stop, &exchanged));
        for _ in 0..ROUNDS {
            let ran = home.sh(&["--image", &words], "true");
            match ran.code() {
                0 => unpacked += 1,
                125 => refused += 1,
                _ => panic!("{ran}"),
            }
            assert!(ran.took < Duration::from_secs(30), "{ran}");
            assert_eq!(picture(&host), before, "something landed outside the store\n{ran}");
            forget(&store);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let exchanged = exchanged.into_inner();
    println!("{exchanged} exchanges; {unpacked} times unpacked, {refused} times refused");
    assert!(exchanged > 100, "only {exchanged} exchanges: that was no attack");
    assert_eq!(picture(&host), before, "something landed outside the store");
    // Nothing is left that keeps the image from being unpacked in peace.
    forget(&store);
    assert_eq!(home.said(&["--image", &words], SCRIPT), honest);
}

/// The same exchange beside an archiver that goes by paths: before long it writes to the host.
#[test]
fn race_control_an_archiver_that_goes_by_paths_writes_to_the_host() {
    let home = Home::new();
    let host = target(&home);
    let before = picture(&host);
    let dir = home.path().join("img");
    let written = image(Image::new()).write(&dir, "t").unwrap();
    let archive = Written::blob(&dir, &written.layers[1]);
    let tmp = home.path().join("data/tmp");
    fs::create_dir_all(tmp.join("one/fs")).unwrap();
    let (stop, exchanged) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut harmed = false;
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&tmp, &host, &stop, &exchanged));
        for _ in 0..20 * ROUNDS {
            run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(tmp.join("one/fs")));
            harmed |= picture(&host) != before;
            if harmed {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(harmed, "{} exchanges did no harm", exchanged.into_inner());
}

/// Makes the next run unpack again: all layers go but busybox' own.
fn forget(store: &Path) {
    for layer in fs::read_dir(store.join("layers")).unwrap().map(|entry| entry.unwrap().path()) {
        if layer.join("fs/bin/busybox").symlink_metadata().is_err() {
            // Links out of the tree are removed, not followed.
            let ran = run(Command::new("rm").arg("-rf").arg(&layer));
            assert_eq!(ran.code(), 0, "{ran}");
        }
    }
}

/// The image under attack and one of the attacker's: every blob of the one is as long as that of the other.
fn image_of(who: &str) -> Image {
    let big = Entry::file("big", who.repeat(2_000_000));
    busybox().layer(Layer::Entries(vec![Entry::file("who", who), big]), Compression::Plain)
}

/// What the attacker puts in place of `path`, one after the other, the honest bytes in between.
fn replace(path: &Path, honest: &[u8], evil: &[u8], stop: &AtomicBool, replaced: &AtomicU64) {
    let new = path.with_extension("new");
    let put = |make: &dyn Fn(&Path) -> std::io::Result<()>| {
        make(&new).unwrap();
        fs::rename(&new, path).unwrap();
        replaced.fetch_add(1, Ordering::Relaxed);
    };
    let long = [honest, &[0; 4096][..]].concat();
    let fifo = |path: &Path| {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        Ok(rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)?)
    };
    while !stop.load(Ordering::Relaxed) {
        put(&|path| fs::write(path, honest));
        std::thread::sleep(Duration::from_micros(500));
        put(&|path| fs::write(path, evil));
        put(&|path| fs::write(path, honest));
        // In place: the reader may have the file open already.
        fs::write(path, evil).unwrap();
        fs::write(path, honest).unwrap();
        put(&|path| fs::write(path, &long));
        put(&|path| std::os::unix::fs::symlink("/dev/zero", path));
        put(&fifo);
        put(&|path| fs::write(path, &honest[..honest.len() / 2]));
    }
    put(&|path| fs::write(path, honest));
}

/// CVE-2025-47290's kind: between the look at a blob and its use lies nothing that is not looked at again.
#[test]
fn race_blobs_that_change_while_they_are_read_are_never_believed() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (dir, evil) = (home.path().join("work/img"), home.path().join("work/evil"));
    let written = image_of("honest").write(&dir, "t").unwrap();
    let written_evil = image_of("hostil").write(&evil, "t").unwrap();
    let words = format!("oci:{}@{}", dir.display(), written.manifest);
    let blobs = [
        (Written::blob(&dir, &written.layers[1]), Written::blob(&evil, &written_evil.layers[1])),
        (Written::blob(&dir, &written.manifest), Written::blob(&evil, &written_evil.manifest)),
        (Written::blob(&dir, &written.config), Written::blob(&evil, &written_evil.config)),
        (dir.join("index.json"), evil.join("index.json")),
    ];
    let store = home.path().join("data/agentd/store");
    let (mut believed, mut refused) = (0, 0);
    for (path, evil) in &blobs {
        let (honest, evil) = (fs::read(path).unwrap(), fs::read(evil).unwrap());
        assert!(honest.len() == evil.len() && honest != evil);
        let (stop, replaced) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| replace(path, &honest, &evil, &stop, &replaced));
            for _ in 0..ROUNDS {
                let ran = home.sh(&["--image", &words], "cat /who; echo; grep -c hostil /big");
                match ran.code() {
                    0 | 1 => {
                        assert_eq!(ran.stdout, "honest\n0\n", "{ran}");
                        believed += 1;
                    }
                    125 => refused += 1,
                    _ => panic!("{ran}"),
                }
                assert!(ran.took < Duration::from_secs(30), "{ran}");
                if store.join("layers").symlink_metadata().is_ok() {
                    forget(&store);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(replaced.into_inner() > 50);
    }
    println!("{believed} times unpacked, {refused} times refused");
    assert!(believed > 0 && refused > 0, "{believed} times unpacked, {refused} times refused");
    // The attacker's image is a sound one: where it is asked for, it runs.
    assert_eq!(home.said(&["--image", &format!("oci:{}", evil.display())], "cat /who"), "hostil");
}
