//! The store under processes that die at any moment, that do the same at once, and that take away what others want.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentd_tests::oci::{Compression, Entry, Image, Layer};
use agentd_tests::registry::{Access, Registry};
use agentd_tests::unpackers::installed;
use agentd_tests::{Feature, Home, Started, busybox, require, run, wait_until};

/// An image of several layers, each of which takes a few milliseconds.
fn image(home: &Home) -> String {
    let dir = home.path().join("img");
    let mut image = Image::new();
    for number in 0..5 {
        let mut entries = vec![Entry::dir("d").mode(0o555), Entry::dir("shut").mode(0o000)];
        entries.extend((0..15).map(|file| Entry::file(&format!("d/{number}-{file}"), vec![b'x'; 3000])));
        let compression = [Compression::Gzip, Compression::Zstd, Compression::Plain][number % 3];
        image = image.layer(Layer::Entries(entries), compression);
    }
    image.write(&dir, "t").unwrap();
    format!("oci:{}:t", dir.display())
}

fn store(home: &Home) -> PathBuf {
    home.path().join("data/agentd/store")
}

/// Everything below `dir`, with what matters of it.
fn picture(dir: &Path) -> String {
    let mut lines: Vec<String> = run(Command::new("find").arg(dir).args(["-printf", "%P %y %m %s %T@ %n %l\n"]))
        .stdout
        .lines()
        .filter(|line| line.contains("/fs/"))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines.join("\n")
}

/// An image in a registry, with a layer large enough that what came of it is kept; `None` where there is no registry.
fn pushed(home: &Home) -> Option<(Registry, String)> {
    if !installed(&["docker-registry", "skopeo"]) {
        return None;
    }
    let mut state = 1u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    let large = Layer::Entries(vec![Entry::file("large", noise.take(3 << 20).collect::<Vec<_>>())]);
    let small = |name: &str| Layer::Entries(vec![Entry::file(name, name)]);
    let image = Image::new().layer(small("below"), Compression::Gzip).layer(large, Compression::Gzip);
    let dir = home.path().join("remote");
    image.layer(small("above"), Compression::Gzip).write(&dir, "t").unwrap();
    let registry = Registry::start(home.path(), &Access::Open);
    registry.push(&format!("oci:{}:t", dir.display()), "a/b:t", &["--preserve-digests"]);
    let reference = format!("docker://{}/a/b:t", registry.host);
    Some((registry, reference))
}

/// A name in the store leads to all of an image, or is not there.
fn assert_names_lead_to_whole_images(home: &Home) {
    let ran = run(home.agentd().args(["images", "--format", "json"])).expect_success();
    let listed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(listed.as_array().unwrap().iter().all(|image| image["complete"] == true), "{ran}");
}

/// A quarter of them from a registry.
#[test]
fn race_200_killed_pulls_leave_nothing_and_the_next_is_whole() {
    let (home, whole) = (Home::new(), Home::new());
    let mut references = vec![image(&home)];
    let registry = pushed(&home);
    references.extend(registry.iter().map(|(_, reference)| reference.clone()));
    let pull = |home: &Home, reference: &str| {
        let mut command = home.agentd();
        command.args(["pull", "-q", reference]);
        command
    };
    // Spread over the time that a pull takes, so that some die early and some late. How long that is changes with what else
    // the machine does.
    let mut takes: Vec<Duration> = Vec::new();
    for reference in &references {
        let begun = Instant::now();
        drop(run(&mut pull(&whole, reference)).expect_silent_success());
        takes.push(begun.elapsed());
    }
    let right = picture(&store(&whole).join("layers"));
    assert_eq!(right.matches("/fs/d/").count(), 75);
    let mut killed = 0;
    while killed < 200 {
        let which = if killed % 4 == 3 { references.len() - 1 } else { 0 };
        let mut child = pull(&home, &references[which]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + takes[which] * (killed * 37 % 200) / 200;
        let mut ended = false;
        while Instant::now() < until && !ended {
            ended = child.try_wait().unwrap().is_some();
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_names_lead_to_whole_images(&home);
        if ended {
            takes[which] = takes[which] * 4 / 5;
            // From a store that has everything a pull does nothing: begin again.
            drop(run(home.agentd().args(["prune", "--all"])).expect_success());
        } else {
            killed += 1;
            takes[which] = takes[which] * 51 / 50;
        }
    }
    references.iter().for_each(|reference| drop(run(&mut pull(&home, reference)).expect_silent_success()));
    assert!(picture(&store(&home).join("layers")) == right, "{}", picture(&store(&home).join("layers")));
    let left = |place: &str| -> Vec<_> {
        let entries = fs::read_dir(store(&home).join(place)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(left("tmp"), [""; 0], "leftovers");
    // Notes of those who died are seen to by whoever uses an image next, unless somebody is at it already.
    let written_back = wait_until(Duration::from_secs(60), || {
        drop(run(&mut pull(&home, &references[0])).expect_silent_success());
        left("unsynced").is_empty()
    });
    assert!(written_back, "{:?}", left("unsynced"));
    let pruned = run(home.agentd().args(["prune", "--format", "json"])).expect_success();
    assert!(pruned.stdout.contains("\"bytes\": 0"), "{pruned}");
}

/// All of them are there before one begins: somebody else has the lock of a layer that long.
#[test]
fn race_pulls_of_one_image_at_once_do_the_work_once() {
    let home = Home::new();
    let reference = image(&home);
    drop(run(home.agentd().args(["pull", "-q", &reference])).expect_silent_success());
    let mut layers = fs::read_dir(store(&home).join("layers")).unwrap();
    let lock = format!("tmp/{}.lock", layers.next().unwrap().unwrap().file_name().display());
    drop(run(home.agentd().args(["prune", "--all"])).expect_success());
    let lock = fs::File::create(store(&home).join(lock)).unwrap();
    lock.lock().unwrap();
    let pulls: Vec<Started> = (0..6).map(|_| Started::new(home.agentd().args(["pull", &reference]))).collect();
    pulls.iter().for_each(|pull| pull.wait_for_error("agentd: waiting for another pull of layer "));
    drop(lock);
    let mut unpacked = 0;
    for pull in pulls {
        let ran = pull.finish().expect_success();
        unpacked += ran.stderr.matches("agentd: unpacked  layer ").count();
    }
    assert_eq!(unpacked, 5, "each layer is unpacked by one of them");
}

/// Jobs start while everything that can be removed is removed, over and over: no start ever misses a layer.
#[test]
fn race_a_start_never_misses_a_layer_that_is_removed() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let dir = home.path().join("img");
    let extra = |name: &str| Layer::Entries(vec![Entry::file(name, name)]);
    busybox().layer(extra("a"), Compression::Plain).layer(extra("b"), Compression::Gzip).write(&dir, "t").unwrap();
    let reference = format!("oci:{}:t", dir.display());
    let (starts, removals) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let until = Instant::now() + Duration::from_secs(50);
    let enough = || starts.load(Ordering::Relaxed) >= 10 && removals.load(Ordering::Relaxed) >= 10;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !enough() && Instant::now() < until {
                let ran = run(home.agentd().args(["prune", "--all", "--format", "json"])).expect_success();
                let pruned: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
                removals.fetch_add(usize::from(pruned["layers"] != serde_json::json!([])), Ordering::Relaxed);
            }
        });
        while !enough() && Instant::now() < until {
            let ran = run(home.run().args(["-q", "--rm", "--image", &reference, "cat", "/a", "/b"])).expect_success();
            assert_eq!(ran.stdout, "ab", "{ran}");
            starts.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(enough(), "{starts:?} starts, {removals:?} removals: too little was tried");
}
