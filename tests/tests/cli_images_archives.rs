//! Images in one file, as real tools write them, and what an image's configuration asks for.

#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::listing::differences;
use agentd_tests::oci::{Compression, Entry, Layer, Written, sha256};
use agentd_tests::unpackers::Podman;
use agentd_tests::{Feature, Home, Ran, Started, busybox, require, run, unpackers};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A home for boxes of busybox.
fn home() -> Option<Home> {
    (require(Feature::Userns) && require(Feature::Busybox)).then(Home::new)
}

/// A layout of two layers, the second compressed.
fn layout(home: &Home) -> (PathBuf, Written) {
    let dir = home.path().join("config/layout");
    let upper = Layer::Entries(vec![
        // Directories that are only implied have the time of their unpacking.
        Entry::dir("bin"),
        Entry::dir("etc"),
        Entry::file("etc/motd", "of the second layer\n"),
        Entry::whiteout("bin/yes"),
        Entry::hardlink("etc/motd.again", "etc/motd"),
    ]);
    let image = busybox().layer(upper, Compression::Gzip).user("user").workdir("/usr");
    let written = image.write(&dir, "v1").unwrap();
    (dir, written)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Changes the whole config of a layout's only image, keeping every digest right.
fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let write = |document: &Value| -> (String, usize) {
        let bytes = document.to_string().into_bytes();
        let digest = sha256(&bytes);
        fs::write(Written::blob(dir, &digest), &bytes).unwrap();
        (digest, bytes.len())
    };
    let put = |descriptor: &mut Value, (digest, size): (String, usize)| {
        descriptor["digest"] = digest.into();
        descriptor["size"] = size.into();
    };
    let mut index = read_json(&dir.join("index.json"));
    let first = &mut index["manifests"][0];
    let mut manifest = read_json(&Written::blob(dir, first["digest"].as_str().unwrap()));
    let mut config = read_json(&Written::blob(dir, manifest["config"]["digest"].as_str().unwrap()));
    edit(&mut config);
    put(&mut manifest["config"], write(&config));
    put(first, write(&manifest));
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

/// An image of busybox with a configuration of its own.
fn configured(home: &Home, name: &str, edit: impl FnOnce(&mut Value)) -> String {
    let dir = home.path().join("config").join(name);
    let entries = vec![Entry::dir("data"), Entry::file("data/seed", "of the image\n"), Entry::dir("srv")];
    busybox().layer(Layer::Entries(entries), Compression::Plain).write(&dir, "t").unwrap();
    edit_config(&dir, edit);
    format!("oci:{}", dir.display())
}

fn boxed(home: &Home, image: &str, flags: &[&str], script: &str) -> Ran {
    run(home.run().args(["-q", "--image", image]).args(flags).args(["--", "sh", "-c", script]))
}

#[test]
fn a_layout_in_a_tar_file_runs_like_the_layout() {
    let Some(home) = home() else { return };
    let (dir, _) = layout(&home);
    let archive = home.path().join("config/image.tar");
    let mut builder = tar::Builder::new(fs::File::create(&archive).unwrap());
    builder.append_dir_all(".", &dir).unwrap();
    builder.into_inner().unwrap();
    for reference in [format!("oci-archive:{}", archive.display()), format!("oci-archive:{}:v1", archive.display())] {
        let ran = boxed(&home, &reference, &[], "cat /etc/motd; pwd; id -un; test ! -e /bin/yes");
        assert_eq!(ran.expect_silent_success().stdout, "of the second layer\n/usr\nuser\n");
    }
    // Nothing is written beside it.
    assert_eq!(fs::read_dir(home.path().join("config")).unwrap().count(), 2);
    let ran = boxed(&home, &format!("oci-archive:{}:v2", archive.display()), &[], "true").expect_code(125);
    ran.expect_one_error_line(&["has no image tagged `v2`; it has v1"]);
}

#[test]
fn what_is_no_archive_says_so_in_one_line() {
    let Some(home) = home() else { return };
    let place = home.path().join("config");
    fs::write(place.join("text.tar"), "no archive ".repeat(100)).unwrap();
    fs::write(place.join("gzip.tar"), b"\x1f\x8b\x08\0\0\0\0\0\0\0").unwrap();
    let fifo = run(Command::new("mkfifo").arg(place.join("fifo.tar")));
    assert_eq!(fifo.code(), 0, "{fifo}");
    for (file, want) in [
        ("absent.tar", "absent.tar"),
        ("text.tar", "cannot be read as tar, at byte 0"),
        ("gzip.tar", "run `gunzip` on it first"),
        ("fifo.tar", "is a pipe"),
        (".", "is a directory"),
    ] {
        for transport in ["oci-archive", "docker-archive"] {
            let reference = format!("{transport}:{}", place.join(file).display());
            boxed(&home, &reference, &[], "true").expect_code(125).expect_one_error_line(&[want]);
        }
    }
    for reference in ["docker-archive:-", "oci-archive:/dev/stdin", "containers-storage:x", "Debian", "q.io/"] {
        let ran = boxed(&home, reference, &[], "true").expect_code(125);
        assert!(ran.stderr.contains("image reference"), "{ran}");
    }
}

/// A word that means a path to one and a stranger's image to another.
#[test]
fn a_bare_word_that_is_a_path_here_is_not_fetched() {
    let Some(home) = home() else { return };
    fs::create_dir(home.path().join("config/debian")).unwrap();
    let mut command = home.run();
    command.current_dir(home.path().join("config")).args(["--image", "debian", "--", "true"]);
    let ran = run(&mut command).expect_code(125);
    assert!(ran.stderr.contains("write docker://debian for the registry's image, or dir:debian"), "{ran}");
}

#[test]
fn peer_archives_that_real_tools_write_become_the_same_box() {
    let Some(home) = home() else { return };
    if !unpackers::installed(&["skopeo", "podman"]) {
        return;
    }
    let (dir, _) = layout(&home);
    let oci = format!("oci:{}:v1", dir.display());
    let at = |name: &str| home.path().join("config").join(name).display().to_string();
    let skopeo = |to: &str| run(Command::new("skopeo").args(["copy", "-q", &oci, to])).expect_success();
    skopeo(&format!("oci-archive:{}:x", at("skopeo.oci")));
    skopeo(&format!("docker-archive:{}:some/image:v1", at("skopeo.docker")));
    let podman = Podman::new(&home);
    let _loaded = run(podman.command().args(["load", "-q", "-i", &at("skopeo.docker")])).expect_success();
    for format in ["oci", "docker"] {
        let format_word = format!("{format}-archive");
        let mut save = podman.command();
        save.args(["save", "-q", "--format", &format_word, "-o", &at(&format!("podman.{format}")), "some/image:v1"]);
        let _saved = run(&mut save).expect_success();
    }
    let listed = |home: &Home, reference: &str| {
        let (ran, listing) = home.listed(reference);
        let (_, mut listing) = listing.unwrap_or_else(|| panic!("{reference}: {ran}"));
        listing.retain(|path, _| !unpackers::OWN.contains(&path.as_str()));
        listing
    };
    let ours = listed(&home, &oci);
    assert!(ours.len() > 200, "{}", ours.len());
    let script = "cat /etc/motd; pwd; id -un; echo $PATH";
    let said = boxed(&home, &oci, &[], script).expect_silent_success().stdout;
    for reference in [
        format!("oci-archive:{}", at("skopeo.oci")),
        format!("docker-archive:{}", at("skopeo.docker")),
        format!("docker-archive:{}:some/image:v1", at("skopeo.docker")),
        format!("oci-archive:{}", at("podman.oci")),
        format!("docker-archive:{}", at("podman.docker")),
    ] {
        // A store of its own each, or the layers would be there already.
        let fresh = Home::new();
        assert_eq!(differences(("oci", &reference), &ours, &listed(&fresh, &reference)), [""; 0]);
        assert_eq!(boxed(&fresh, &reference, &[], script).expect_silent_success().stdout, said, "{reference}");
    }
}

#[test]
fn volumes_are_writable_in_a_sealed_root_and_show_what_the_image_has_there() {
    let Some(home) = home() else { return };
    let image = configured(&home, "volumes", |config| {
        config["config"]["Volumes"] = json!({"/data": {}, "/srv/deep/new/": {}, "/data/inner": {}});
    });
    let script = "cat /data/seed && echo 1 >/data/x && echo 2 >/data/inner/y && rm /data/seed && echo 3 >/srv/deep/new/z && \
         ! echo 4 2>/dev/null >/srv/deep/no && ! echo 5 2>/dev/null >/etc/no && cat /data/x /data/inner/y /srv/deep/new/z";
    assert_eq!(boxed(&home, &image, &[], script).expect_success().stdout, "of the image\n1\n2\n3\n");
    // Thrown away, and the store's own file is as it was.
    assert_eq!(
        boxed(&home, &image, &[], "ls /data; cat /data/seed").expect_success().stdout,
        "inner\nseed\nof the image\n"
    );
    // They share the box's one bound.
    let script = "! head -c 4000000 /dev/zero 2>/dev/null >/data/big && stat -c %s /data/big";
    let written = boxed(&home, &image, &["--storage", "1m"], script).expect_success().stdout;
    assert!(written.trim().parse::<u64>().unwrap() <= 1 << 20, "{written}");
    // The user's mount stands where the image wants a volume.
    let given = format!("type=bind,src={},dst=/data", home.workspace().display());
    let ran = boxed(&home, &image, &["--mount", &given], "ls /data; echo 1 >/data/x").expect_code(1);
    assert_eq!((ran.stdout.as_str(), fs::read_dir(home.workspace()).unwrap().count()), ("", 0));
    let ran = boxed(&home, &image, &["--writable"], "echo 1 >/data/x && echo 2 >/etc/y && cat /data/seed");
    assert_eq!(ran.expect_success().stdout, "of the image\n");
}

#[test]
fn volumes_where_agentd_or_the_kernel_is_are_left_out_and_noted() {
    let Some(home) = home() else { return };
    let places = [
        "/",
        "/proc/sys",
        "/dev",
        "/sys/x",
        "/run/agentd",
        "/workspace/x",
        "/tmp/..",
        "relative",
        "",
        "/a/../../b\u{1b}",
    ];
    let image = configured(&home, "bad-volumes", |config| {
        config["config"]["Volumes"] = places.iter().map(|place| ((*place).to_owned(), json!({}))).collect();
    });
    let workspace = home.workspace().display().to_string();
    let ran = boxed(&home, &image, &["--workspace", &workspace], "! touch /x 2>/dev/null && ls /workspace");
    assert_eq!(ran.expect_silent_success().stdout, "");
    let notes = home.jobs()[0]["warnings"].to_string();
    for place in ["/proc/sys", "/dev", "/run/agentd", "/workspace/x", "relative"] {
        assert!(notes.contains(&format!("volume `{place}` is no place for one")), "{place}: {notes}");
    }
    let many = configured(&home, "many-volumes", |config| {
        config["config"]["Volumes"] = (0..70).map(|n| (format!("/data/v{n:02}"), json!({}))).collect();
    });
    let ran = boxed(&home, &many, &[], "grep -c ' /data/v' /proc/self/mountinfo; touch /data/v63/x; touch /data/v64/x");
    assert_eq!(ran.stdout, "64\n", "{ran}");
    assert!(home.jobs()[0]["warnings"].to_string().contains("those after the first 64 were left out"));
}

/// A volume through a link of the image stays inside, and never on top of what the kernel shows.
#[test]
fn escape_volumes_are_resolved_inside_the_root() {
    let Some(home) = home() else { return };
    let outside = home.path().join("cache");
    let dir = home.path().join("config/link");
    for (to, want) in [
        ("/usr", None),
        ("../../../../usr", None),
        (outside.to_str().unwrap(), Some("/data")),
        ("/proc", Some("/data leads to /proc")),
        ("../../../../proc/sys", Some("/data leads to /proc/sys")),
        ("/sys", Some("/data leads to /sys")),
    ] {
        let entries = vec![Entry::symlink("data", to)];
        busybox().layer(Layer::Entries(entries), Compression::Plain).write(&dir, "t").unwrap();
        edit_config(&dir, |config| config["config"]["Volumes"] = json!({"/data": {}}));
        let ran = boxed(&home, &format!("oci:{}", dir.display()), &[], "touch /data/made");
        match want {
            None => assert_eq!(ran.expect_success().stdout, "", "{to}"),
            Some(words) => ran.expect_code(125).expect_one_error_line(&[words]),
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{to}");
    }
}

#[test]
fn an_image_is_stopped_by_its_own_signal() {
    let Some(home) = home() else { return };
    for (signal, trapped, code) in [
        ("SIGQUIT", "QUIT", 5),
        ("usr1", "USR1", 5),
        ("28", "WINCH", 5),
        ("SIGRTMIN+3", "37", 5),
        ("SIGKILL", "TERM", 137),
        // No signal: the usual one, and a note.
        ("SIGNONSENSE", "TERM", 5),
        ("\u{1b}[2J", "TERM", 5),
    ] {
        let image = configured(&home, "stop", |config| config["config"]["StopSignal"] = signal.into());
        let script = format!("trap 'echo stopped; exit 5' {trapped}; echo ready; while :; do sleep 0.02; done");
        let mut command = home.run();
        command.args(["-q", "--image", &image, "--stop-timeout", "60s", "--", "sh", "-c", &script]);
        let mut started = Started::new(&mut command);
        started.wait_for("ready\n");
        started.signal(Signal::TERM);
        let ran = started.finish().expect_code(code);
        assert_eq!(ran.stdout.contains("stopped"), code == 5, "{signal}: {ran}");
        let notes = home.jobs()[0]["warnings"].to_string();
        assert_eq!(notes.contains("is no signal; it is stopped by SIGTERM"), trapped == "TERM" && code == 5, "{notes}");
    }
    // A timeout stops in the same way.
    let image = configured(&home, "stop", |config| config["config"]["StopSignal"] = "SIGINT".into());
    let script = "trap 'echo stopped; exit 5' INT; while :; do sleep 0.02; done";
    let ran = boxed(&home, &image, &["--timeout", "3s", "--stop-timeout", "60s"], script).expect_code(124);
    assert_eq!(ran.stdout, "stopped\n");
}

#[test]
fn an_image_for_another_machine_is_refused_before_the_start() {
    let Some(home) = home() else { return };
    for (edit, want) in [
        ((|config| config["architecture"] = "s390x".into()) as fn(&mut Value), "it is made for linux/s390x"),
        (|config| config["os"] = "windows".into(), "it is made for windows/"),
        (|config| config["variant"] = "v99".into(), "/v99"),
        (|config| config["architecture"] = "\u{1b}[2J".into(), "it is made for linux/\\u{1b}[2J"),
    ] {
        let image = configured(&home, "other", edit);
        boxed(&home, &image, &[], "true").expect_code(125).expect_one_error_line(&["the image is not made for", want]);
        // Nothing of it is unpacked.
        assert_eq!(fs::read_dir(home.path().join("data/agentd/store/layers")).map_or(0, Iterator::count), 0);
    }
}

/// As docker and podman have it: a command replaces `Cmd`, `--entrypoint` replaces both; the last of two variables of
/// one name counts; a working directory that is not there is made.
#[test]
fn a_config_says_what_is_run_where_and_as_whom() {
    let Some(home) = home() else { return };
    let image = configured(&home, "config", |config| {
        config["config"] = json!({
            "Entrypoint": ["/bin/sh", "-c", "echo $0 $*; pwd; id -u; id -g; echo $A$B$HOME"], "Cmd": ["c", "d"],
            "Env": ["PATH=/bin", "A=1", "A=2", "B=", "NOTHING"], "WorkingDir": "/new/dir", "User": "12:34",
            "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}, "OnBuild": ["RUN x"], "Healthcheck": {"Test": ["NONE"]},
        });
    });
    let said = |words: &[&str]| run(home.run().args(["-q", "--image", &image]).args(words)).expect_success().stdout;
    let rest = "/new/dir\n12\n34\n2/home/agent\n";
    assert_eq!(said(&[]), format!("c d\n{rest}"));
    assert_eq!(said(&["--", "e"]), format!("e\n{rest}"));
    assert_eq!(said(&["--entrypoint", "echo"]), "\n");
    assert_eq!(said(&["--entrypoint", "echo", "--", "x"]), "x\n");
    assert_eq!(said(&["-e", "A=3", "-u", "5", "-w", "/", "--", "e"]), "e\n/\n5\n0\n3/home/agent\n");
    for (field, value, want) in [
        ("User", json!("1:2:3"), "user"),
        ("User", json!("4294967296"), "4294967296"),
        ("User", json!("nobody-here"), "nobody-here"),
        ("Cmd", json!("a string"), "is malformed"),
        ("Env", json!({"A": "1"}), "is malformed"),
        ("Volumes", json!(["/a"]), "is malformed"),
    ] {
        let image = configured(&home, "bad", |config| config["config"][field] = value);
        boxed(&home, &image, &[], "true").expect_code(125).expect_one_error_line(&[want]);
    }
}

/// CVE-2026-53488: labels that other programs take as orders.
#[test]
fn escape_cve_2026_53488_labels_change_nothing() {
    let Some(home) = home() else { return };
    let plan = |labels: Value| -> Value {
        let image = configured(&home, "labels", |config| config["config"]["Labels"] = labels);
        let ran = run(home.run().args(["-q", "--image", &image, "--hostname", "box", "--dry-run", "--format", "json"]));
        let plan: Value = serde_json::from_str(&ran.expect_success().stdout).unwrap();
        plan["box"].clone()
    };
    let labels = json!({
        "io.containers.capabilities": "sys_admin,net_admin", "run.oci.keep_original_groups": "1", "RUN": "podman run --privileged",
        "io.podman.annotations.privileged": "TRUE", "run.oci.hooks.stdout": "/tmp/x", "io.kubernetes.cri-o.userns-mode": "host",
        "devcontainer.metadata": "[{\"privileged\":true}]", "io.agentd.net": "host",
    });
    assert_eq!(plan(labels), plan(json!({})));
}

/// CVE-2026-47262: a group file that is read to its end, however long.
#[test]
fn escape_cve_2026_47262_tables_of_users_are_read_up_to_a_bound() {
    let Some(home) = home() else { return };
    let with = |name: &str, size: usize| {
        let dir = home.path().join("config").join(format!("{}-{size}", name.replace('/', "-")));
        let line = "g:x:5:user\n";
        let entries = vec![Entry::file(name, line.repeat(size / line.len()))];
        busybox().layer(Layer::Entries(entries), Compression::Gzip).user("1000").write(&dir, "t").unwrap();
        boxed(&home, &format!("oci:{}", dir.display()), &[], "id -u")
    };
    assert_eq!(with("etc/group", 3 << 20).expect_success().stdout, "1000\n");
    for name in ["etc/group", "etc/passwd"] {
        with(name, 5 << 20).expect_code(125).expect_one_error_line(&[name]);
    }
}
