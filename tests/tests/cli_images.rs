//! `agentd pull`, `images`, `rmi`, `prune`, `image inspect`: what they print, what they take away, and what they leave.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::oci::{Compression, Entry, Image, Layer, Written};
use agentd_tests::{Feature, Home, Ran, Started, Terminal, busybox, require, run};
use rustix::process::Signal;
use serde_json::Value;

fn layer(name: &str, bytes: usize) -> Layer {
    Layer::Entries(vec![Entry::file(name, noise(bytes))])
}

/// Bytes that do not compress.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ count as u64;
    let next = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    next.flatten().take(count).collect()
}

/// A layout with an image a tag; `shared` is a layer of all of them.
fn write(home: &Home, tag: &str) -> (String, Written) {
    let dir = home.path().join("img");
    let written = busybox()
        .layer(layer("shared", 100_000), Compression::Gzip)
        .layer(layer(tag, 1000), Compression::Zstd)
        .write(&dir, tag)
        .unwrap();
    (format!("oci:{}:{tag}", dir.display()), written)
}

fn json(ran: Ran) -> Value {
    let ran = ran.expect_success();
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}\n{ran}"))
}

fn agentd(home: &Home, words: &[&str]) -> Ran {
    run(home.agentd().args(words))
}

fn store(home: &Home) -> PathBuf {
    home.path().join("data/agentd/store")
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_pulled_is_listed_inspected_and_removed() {
    if !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let ((one, written), (two, _)) = (write(&home, "one"), write(&home, "two"));
    let pulled = agentd(&home, &["pull", &one]).expect_success();
    assert_eq!(pulled.stdout, format!("{}\n", written.manifest));
    assert_eq!(pulled.stderr.matches("agentd: unpacking layer sha256:").count(), 3, "{pulled}");
    let again = agentd(&home, &["pull", "-q", &one, &two]).expect_silent_success();
    assert_eq!(again.stdout.lines().next(), Some(written.manifest.as_str()));
    assert_eq!(names(&store(&home).join("layers")).len(), 4, "the shared layers are there once");

    let listed = json(agentd(&home, &["images", "--format", "json"]));
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(listed[0]["reference"], one);
    assert_eq!((&listed[0]["digest"], &listed[0]["tag"]), (&written.manifest.clone().into(), &"one".into()));
    assert!(listed[0]["size"].as_u64().unwrap() > 101_000);
    let table = agentd(&home, &["images"]).expect_success().stdout;
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "TAG", "ID", "CREATED", "SIZE"]);
    assert!(table.contains(&written.manifest[7..19]) && !table.contains(&written.manifest[7..20]), "{table}");
    assert!(agentd(&home, &["images", "--no-trunc"]).stdout.contains(&written.manifest));
    assert_eq!(agentd(&home, &["images", "-q"]).stdout.lines().count(), 2);
    for filter in [one.as_str(), &written.manifest, &written.manifest[7..15]] {
        let found = json(agentd(&home, &["images", "--format", "json", filter]));
        assert_eq!(found.as_array().unwrap().len(), 1, "{filter}");
    }
    let line = "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}} {{.CreatedAt}}";
    let filled = agentd(&home, &["images", "--format", line, &one]).expect_silent_success().stdout;
    let (id, digest) = (&written.manifest[7..19], &written.manifest);
    assert!(filled.starts_with(&format!("{one} {id} {digest} ")) && filled.lines().count() == 1, "{filled}");
    let sizes = agentd(&home, &["images", "--format", "{{.Name}}\\t{{.Size}}"]).expect_silent_success().stdout;
    assert!(sizes.lines().count() == 2 && sizes.lines().all(|line| line.ends_with(" MB")), "{sizes}");
    agentd(&home, &["images", "--format", "{{.Nope}}"])
        .expect_code(125)
        .stderr
        .contains(".Digest")
        .then_some(())
        .unwrap();
    let both = json(agentd(&home, &["images", "--format", "json", one.strip_suffix(":one").unwrap()]));
    assert_eq!(both.as_array().unwrap().len(), 2);

    let details = json(agentd(&home, &["image", "inspect", &written.manifest[7..15]]));
    assert_eq!(details[0]["names"], serde_json::json!([one]));
    assert_eq!(details[0]["config"]["Cmd"], serde_json::json!(["sh"]));
    let layers = details[0]["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|layer| layer["diff_id"].as_str().unwrap()).collect::<Vec<_>>(), written.diff_ids);
    assert_eq!(layers[1]["size"], 100_000);

    let removed = agentd(&home, &["rmi", &one]).expect_silent_success();
    assert_eq!(removed.stdout, format!("Untagged: {one}\nDeleted: {}\n", written.manifest));
    assert_eq!(names(&store(&home).join("layers")).len(), 3, "the other image keeps the shared layers");
    assert_eq!(json(agentd(&home, &["images", "--format", "json"])).as_array().unwrap().len(), 1);
    agentd(&home, &["rmi", &one]).expect_code(1).expect_one_error_line(&["no image in the store is called"]);
    agentd(&home, &["rmi", &two, "nothing"]).expect_code(1).expect_one_error_line(&["`nothing`"]);
    assert_eq!(names(&store(&home).join("images")).len(), 1, "a mistyped name removes nothing");
    let other = json(agentd(&home, &["images", "--format", "json"]))[0]["digest"].clone();
    let removed = json(agentd(&home, &["rmi", "--format", "json", &two]));
    assert_eq!(removed, serde_json::json!({ "untagged": [two], "deleted": [other] }));
    for part in ["layers", "images", "tmp", "blobs/sha256"] {
        assert_eq!(names(&store(&home).join(part)), [""; 0], "{part}");
    }
}

#[test]
fn an_image_that_a_job_uses_stays() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, written) = write(&home, "one");
    drop(run(home.run().args(["-q", "--image", &one, "true"])).expect_silent_success());
    agentd(&home, &["rmi", &one]).expect_code(1).expect_one_error_line(&["is used by a job", "`agentd rm`"]);
    let mut running = Started::new(
        home.run()
            .args(["-q", "-i", "--image", &one, "--", "sh", "-c"])
            .args(["echo begun; read line; cat /shared | wc -c"])
            .stdin(std::process::Stdio::piped()),
    );
    running.wait_for("begun");
    drop(agentd(&home, &["rm", "-a"]).expect_success());
    let pruned = json(agentd(&home, &["prune", "--all", "--format", "json"]));
    assert_eq!((pruned["images"].as_array().unwrap().len(), &pruned["bytes"]), (0, &0.into()), "{pruned}");
    // By force the name goes; the layers stay for as long as the job is known.
    let removed = agentd(&home, &["rmi", "--force", &written.manifest]).expect_silent_success();
    assert!(removed.stdout.contains("Untagged: "));
    assert_eq!(names(&store(&home).join("layers")).len(), 3);
    std::io::Write::write_all(&mut running.stdin().unwrap(), b"go\n").unwrap();
    let ran = running.finish().expect_silent_success();
    assert_eq!(ran.stdout, "begun\n100000\n");
    assert_eq!(json(agentd(&home, &["prune", "--format", "json"]))["layers"].as_array().unwrap().len(), 0);
    drop(agentd(&home, &["rm", "-a"]).expect_success());
    let would = agentd(&home, &["prune", "--dry-run"]).expect_success();
    assert_eq!(would.stdout.matches("would remove layer sha256:").count(), 3, "{would}");
    assert_eq!(names(&store(&home).join("layers")).len(), 3);
    let did = agentd(&home, &["prune"]).expect_success();
    assert_eq!(did.stdout, would.stdout.replace("would remove", "removed").replace("would free", "freed"));
    assert_eq!(names(&store(&home).join("layers")), [""; 0]);
}

#[test]
fn prune_all_holds_back_on_a_terminal() {
    if !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, _) = write(&home, "one");
    drop(agentd(&home, &["pull", "-q", &one]).expect_success());
    let mut terminal = Terminal::new();
    let ran = terminal.start(home.agentd().args(["prune", "--all"]));
    let ran = terminal.finish(ran).expect_code(125);
    assert!(ran.stdout.contains("--force"), "{ran}");
    let ran = terminal.start(home.agentd().args(["prune", "--all", "--force"]));
    let ran = terminal.finish(ran).expect_success();
    assert!(ran.stdout.contains("removed image oci:"), "{ran}");
    assert_eq!(names(&store(&home).join("layers")), [""; 0]);
}

#[test]
fn a_name_that_leads_elsewhere_is_looked_at_when_it_is_to_be() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, _) = write(&home, "one");
    let ls = |pull: &str| run(home.run().args(["-q", "--pull", pull, "--image", &one, "ls", "/"]));
    ls("never").expect_code(125).expect_one_error_line(&["is not in the store", "`agentd pull "]);
    assert!(ls("missing").expect_success().stdout.contains("shared"));
    busybox().layer(layer("new", 10), Compression::Plain).write(&home.path().join("img"), "one").unwrap();
    assert!(ls("never").expect_success().stdout.contains("shared"));
    assert!(!ls("missing").expect_success().stdout.contains("shared"));
    fs::remove_dir_all(home.path().join("img")).unwrap();
    assert!(ls("never").expect_success().stdout.contains("new"));
    ls("always").expect_code(125).expect_one_error_line(&["img"]);
    // What the name led to before has no name now.
    drop(agentd(&home, &["rm", "-a"]).expect_success());
    let pruned = json(agentd(&home, &["prune", "--format", "json"]));
    assert_eq!((pruned["layers"].as_array().unwrap().len(), pruned["images"].as_array().unwrap().len()), (2, 0));
}

#[test]
fn an_image_is_run_by_its_id_as_it_is_in_the_store() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, first) = write(&home, "one");
    drop(agentd(&home, &["pull", "-q", &one]).expect_success());
    let id = agentd(&home, &["images", "-q"]).expect_success().stdout.trim_end().to_owned();
    assert_eq!(id, first.manifest[7..19]);
    // The name leads to another image by now, and then its source is gone.
    fs::remove_dir_all(home.path().join("img")).unwrap();
    let made = |image: &str| run(home.run().args(["-q", "--image", image, "--", "stat", "-c", "%s", "one"]));
    for image in [&id, &first.manifest[7..40], &first.manifest[7..], &first.manifest, &first.manifest[..30]] {
        assert_eq!(made(image).expect_silent_success().stdout, "1000\n", "{image}");
    }
    // Eleven digits are a name, and what the store does not have is one too: neither is fetched.
    for image in [&id[..11], "0123456789ab"] {
        let ran = run(home.run().args(["--image", image, "--pull", "never", "--", "true"])).expect_code(125);
        ran.expect_one_error_line(&[&format!("docker.io/library/{image}"), "is not in the store"]);
    }
    let unknown = "0".repeat(64);
    let ran = run(home.run().args(["--image", &format!("sha256:{unknown}"), "--", "true"])).expect_code(125);
    ran.expect_one_error_line(&["no image in the store is called", &unknown]);
    agentd(&home, &["pull", &first.manifest]).expect_code(125).expect_one_error_line(&["is an image's id"]);
}

/// A kernel bug that lets a job write what it may only read (dirty pipe, and its like since) reaches the page cache of the
/// files that the box shows. Those are the store's alone: not the user's archive, nor anything else under another name.
#[test]
fn a_layers_files_are_nobody_elses_under_another_name() {
    if !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let dir = home.path().join("img");
    let stored = busybox().layer(layer("file", 100_000), Compression::Plain).write(&dir, "t").unwrap();
    drop(agentd(&home, &["pull", "-q", &format!("oci:{}:t", dir.display())]).expect_success());
    let of_store = |path: &Path| fs::metadata(path).unwrap().dev() == fs::metadata(store(&home)).unwrap().dev();
    let (mut files, mut directories) = (Vec::new(), vec![store(&home).join("layers")]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => directories.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    assert!(files.len() >= 4, "{files:?}");
    for file in &files {
        assert!(of_store(file) && fs::metadata(file).unwrap().nlink() == 1, "{}", file.display());
    }
    // An uncompressed layer has the bytes of its files in it; the store shares none of them. Written in place, not replaced.
    let unpacked = files.iter().find(|path| path.ends_with("fs/file")).unwrap();
    let before = fs::read(unpacked).unwrap();
    let archive = Written::blob(&dir, &stored.layers[1]);
    assert!(fs::read(&archive).unwrap().windows(before.len()).any(|bytes| bytes == before));
    let length = fs::metadata(&archive).unwrap().len();
    let mut open = fs::File::options().write(true).open(&archive).unwrap();
    open.write_all(&vec![b'!'; usize::try_from(length).unwrap()]).unwrap();
    open.sync_all().unwrap();
    assert_eq!(fs::read(unpacked).unwrap(), before);
}

#[test]
fn a_terminal_shows_a_bar_a_layer() {
    if !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, written) = write(&home, "one");
    let mut terminal = Terminal::new();
    let ran = terminal.start(home.agentd().args(["pull", &one]).env("TERM", "xterm"));
    let ran = terminal.finish(ran).expect_success();
    for digest in &written.layers {
        assert!(ran.stdout.contains(&format!("{} [", &digest[7..19])), "{ran}");
    }
    assert!(ran.stdout.contains(" KiB / "), "{ran}");
    assert!(ran.stdout.trim_end().ends_with(&written.manifest), "{ran}");
    // A bar fills a line of the terminal, and no more: one that wrapped could not be redrawn.
    let at = ran.stdout.find(&format!("{} [", &written.layers[0][7..19])).unwrap();
    let bar = &ran.stdout[at..at + 80];
    assert!(bar.ends_with("B/s         ") && bar.is_ascii() && !bar.contains('\u{1b}'), "{bar:?}");
}

/// A server that says nothing is the worst that can hold a pull up; a FIFO in the place of a large blob would be refused,
/// so the pull waits for the lock of another one that is stopped.
#[test]
fn an_interrupt_ends_a_pull_that_waits() {
    if !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, written) = write(&home, "one");
    drop(agentd(&home, &["pull", "-q", &one]).expect_success());
    drop(agentd(&home, &["rmi", &one]).expect_success());
    let key = format!("{}-squash1", written.diff_ids[1].replace(':', "-"));
    let lock = fs::File::create(store(&home).join(format!("tmp/{key}.lock"))).unwrap();
    lock.lock().unwrap();
    for (signal, verb) in [(Signal::INT, "pull"), (Signal::TERM, "run")] {
        let mut command = home.agentd();
        let words: &[&str] = if verb == "pull" { &["pull", &one] } else { &["run", "--image", &one, "true"] };
        let said = home.path().join("said");
        let waiting = Started::with_streams(command.args(words).stderr(fs::File::create(&said).unwrap()));
        let is_waiting = || fs::read_to_string(&said).unwrap().contains("waiting for another pull of layer sha256:");
        assert!(agentd_tests::wait_until(std::time::Duration::from_secs(60), is_waiting));
        waiting.signal(signal);
        let ran = waiting.finish();
        // The other pull's lock is held for longer than anybody waits.
        assert_eq!(ran.code(), 130, "{ran}");
    }
    drop(lock);
    drop(agentd(&home, &["pull", "-q", &one]).expect_success());
    assert_eq!(names(&store(&home).join("tmp")), [""; 0]);
}

#[test]
fn a_finished_layer_survives_an_interrupt() {
    if !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let dir = home.path().join("img");
    let image = Image::new().layer(layer("small", 10), Compression::Plain);
    let large = Layer::Entries((0..100).map(|number| Entry::file(&format!("{number}"), vec![b'x'; 1 << 20])).collect());
    let written = image.layer(large, Compression::Plain).write(&dir, "t").unwrap();
    let reference = format!("oci:{}:t", dir.display());
    let said = home.path().join("said");
    let pulling =
        Started::with_streams(home.agentd().args(["pull", &reference]).stderr(fs::File::create(&said).unwrap()));
    let small = &written.layers[0][..19];
    let is_done = || fs::read_to_string(&said).unwrap().contains(&format!("unpacked  layer {small}"));
    assert!(agentd_tests::wait_until(std::time::Duration::from_secs(60), is_done));
    pulling.signal(Signal::INT);
    let ran = pulling.finish();
    assert_eq!(ran.code(), 130, "{ran}");
    let said = fs::read_to_string(&said).unwrap();
    assert!(said.ends_with("the next pull goes on from there\n"), "{said}");
    assert_eq!(names(&store(&home).join("layers")), [format!("{}-squash1", written.diff_ids[0].replace(':', "-"))]);
    assert_eq!(names(&store(&home).join("tmp")), [""; 0]);
}

#[test]
fn a_store_of_root_is_read_by_others() {
    if !require(Feature::Root) || !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let (home, other) = (Home::new(), Home::new());
    let (one, _) = write(&home, "one");
    drop(agentd(&home, &["pull", "-q", &one]).expect_success());
    fs::rename(store(&home), home.path().join("shared")).unwrap();
    let shared = home.path().join("shared");
    let (uid, gid) = (1001, 1001);
    drop(run(Command::new("chown").args(["-R", &format!("{uid}:{gid}")]).arg(other.path())).expect_success());
    for (path, mode) in [("", 0o755), ("layers", 0o755), ("images", 0o755), ("blobs", 0o755), ("blobs/sha256", 0o755)] {
        fs::set_permissions(shared.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (dir, mode) in [("layers", 0o755), ("images", 0o644), ("blobs/sha256", 0o644)] {
        for name in names(&shared.join(dir)) {
            fs::set_permissions(shared.join(dir).join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let user = |words: &[&str], extra: &Path| {
        let agentd = other.agentd();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1001", "--regid", "1001", "--clear-groups"]).arg(agentd.get_program()).args(words);
        command.env_clear().envs(agentd.get_envs().filter_map(|(name, value)| Some((name, value?))));
        run(command.env("AGENTD_EXTRA_STORES", extra))
    };
    // The layers belong to root, who is nobody in the box: a home directory cannot be made in the image's /home.
    let ls = ["run", "-q", "--pull", "never", "--user", "1234", "--image", &one, "ls", "/"];
    let ran = user(&ls, &shared).expect_success();
    assert!(ran.stdout.contains("shared"), "{ran}");
    assert_eq!(names(&store(&other).join("layers")), [""; 0], "nothing is copied");
    let listed = user(&["images", "--format", "json"], &shared);
    assert_eq!(json(listed)[0]["read_only"], true);
    user(&["rmi", &one], &shared).expect_code(1).expect_one_error_line(&["is in a store of others"]);
    let doctor = user(&["doctor"], &shared);
    assert!(doctor.stdout.contains(&format!("also reads {}", shared.display())), "{doctor}");
    user(&ls, &home.path().join("no"))
        .expect_code(125)
        .expect_one_error_line(&["AGENTD_EXTRA_STORES", "does not exist"]);
    fs::set_permissions(shared.join("layers"), fs::Permissions::from_mode(0o777)).unwrap();
    user(&ls, &shared).expect_code(125).expect_one_error_line(&["cannot be trusted", "others may write there"]);
    fs::set_permissions(shared.join("layers"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&shared, Some(65534), None).unwrap();
    user(&ls, &shared).expect_code(125).expect_one_error_line(&["neither root nor you"]);
}

#[test]
fn agentd_store_is_the_place_and_a_file_system_that_cannot_carry_one_is_not() {
    if !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, _) = write(&home, "one");
    let place = home.path().join("elsewhere");
    let at = |place: &Path| run(home.agentd().args(["pull", "-q", &one]).env("AGENTD_STORE", place));
    drop(at(&place).expect_silent_success());
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(names(&place.join("layers")).len(), 3);
    assert!(fs::metadata(store(&home)).is_err());
    at(Path::new("relative")).expect_code(125).expect_one_error_line(&["AGENTD_STORE", "absolute path"]);
    let proc = at(Path::new("/proc/self/store")).expect_code(125);
    proc.expect_one_error_line(&["there is no place", "/proc", "set AGENTD_STORE to a directory on a local disk"]);
    let doctor = run(home.agentd().args(["doctor", "--format", "json"]).env("AGENTD_STORE", &place));
    assert!(doctor.stdout.contains(place.to_str().unwrap()), "{doctor}");
}

/// In a mount namespace, so that nothing of the machine changes.
#[test]
fn a_store_is_not_made_where_it_cannot_work() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, _) = write(&home, "one");
    let place = home.path().join("mounted");
    fs::create_dir(&place).unwrap();
    let (below, place) = (home.path().join("work"), place.to_str().unwrap());
    let noexec = format!("mount -t tmpfs -o noexec none {place}");
    // One that can be written: what cannot be is no place either, but for another reason.
    let overlay = format!(
        "cd {} && mount -t tmpfs none . && cd . && mkdir l u w && \
         mount -t overlay -o lowerdir=l,upperdir=u,workdir=w,userxattr none {place}",
        below.display()
    );
    for (mount, why) in [(noexec, "is mounted noexec"), (overlay, "is on an overlay")] {
        let agentd = home.agentd();
        let mut command = Command::new("unshare");
        let script = format!("{mount} && \"$0\" pull -q {one}; code=$?; ls -A {place}; exit $code");
        command.args(["-Urm", "sh", "-c", &script]).arg(agentd.get_program()).env_clear();
        command
            .envs(agentd.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("AGENTD_STORE", format!("{place}/s"));
        let ran = run(&mut command).expect_code(125);
        ran.expect_one_error_line(&["there is no place for the image store", why, "set AGENTD_STORE"]);
        assert_eq!(ran.stdout, "", "what was tried there is gone");
    }
}

#[test]
fn places_in_var_tmp_are_taken_only_where_nobody_waits_in_ambush() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let (one, _) = write(&home, "one");
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let in_tmp = |data: &Path, prepare: &str, after: &str| {
        let agentd = home.agentd();
        let mut command = Command::new("unshare");
        // /var/tmp is a fresh one of this namespace; there the user is 0.
        let script =
            format!("mount -t tmpfs none /var/tmp && {prepare} \"$0\" pull {one}; code=$?; {after} exit $code");
        command.args(["-Urm", "sh", "-c", &script]).arg(agentd.get_program()).env_clear();
        command.envs(agentd.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("XDG_DATA_HOME", data);
        run(&mut command)
    };
    let made =
        in_tmp(&file, "", "stat -c 'mode %a' /var/tmp/agentd-0; ls /var/tmp/agentd-0/layers | wc -l;").expect_success();
    assert!(made.stderr.contains("agentd: the image store is made in /var/tmp/agentd-0, because "), "{made}");
    assert!(made.stdout.ends_with("mode 700\n3\n"), "{made}");
    let noexec = home.path().join("noexec");
    fs::create_dir(&noexec).unwrap();
    let mount = format!("mount -t tmpfs -o noexec none {} &&", noexec.display());
    let made = in_tmp(&noexec, &mount, "ls /var/tmp/agentd-0/layers | wc -l;").expect_success();
    let why = format!("because {}/agentd/store is mounted noexec", noexec.display());
    assert!(made.stderr.contains(&format!("the image store is made in /var/tmp/agentd-0, {why}")), "{made}");
    assert!(made.stdout.ends_with("\n3\n"), "{made}");
    let link = in_tmp(&file, "mkdir -m 700 /var/tmp/x && ln -s x /var/tmp/agentd-0 &&", "ls /var/tmp/x | wc -l;")
        .expect_code(125);
    assert!(link.stderr.contains("is a symbolic link") && link.stdout == "0\n", "{link}");
    let open = in_tmp(&file, "mkdir -m 777 /var/tmp/agentd-0 &&", "ls /var/tmp/agentd-0 | wc -l;").expect_code(125);
    assert!(open.stderr.contains("is open to other users") && open.stdout == "0\n", "{open}");
}
