//! `agentd run --keep` and `agentd commit`: what a job wrote to its root becomes an image, and nothing of agentd's does.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use agentd_tests::listing::{Listing, differences};
use agentd_tests::oci::{Compression, Entry, Layer};
use agentd_tests::unpackers::{OWN, Place, installed};
use agentd_tests::{Feature, Home, Ran, Started, busybox, require, run, wait_until};
use rustix::process::Signal;
use serde_json::Value;

fn home() -> Option<Home> {
    (require(Feature::Userns) && require(Feature::Busybox)).then(Home::new)
}

/// An image with something to change, called `base` in the layout `img`.
fn base(home: &Home) -> (PathBuf, String) {
    let dir = home.path().join("img");
    let entries = vec![
        Entry::dir("etc").mode(0o750),
        Entry::dir("d"),
        Entry::file("d/f", "lower"),
        Entry::file("d/gone", "lower"),
        Entry::dir("replaced").mode(0o711),
        Entry::file("replaced/below", "lower"),
        Entry::dir("removed"),
        Entry::file("removed/below", "lower"),
        Entry::file("appended", "lower\n"),
    ];
    busybox().layer(Layer::Entries(entries), Compression::Gzip).workdir("/d").write(&dir, "base").unwrap();
    let name = format!("oci:{}:base", dir.display());
    (dir, name)
}

fn agentd(home: &Home, words: &[&str]) -> Ran {
    run(home.agentd().args(words))
}

fn json(ran: Ran) -> Value {
    let ran = ran.expect_success();
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}\n{ran}"))
}

/// Runs a script as root of `image`, kept under `name`.
#[track_caller]
fn kept(home: &Home, image: &str, name: &str, flags: &[&str], script: &str) -> Value {
    drop(agentd(home, &["pull", "-q", image]));
    let mut command = home.run();
    command.args(["--writable", "--keep", "--name", name, "--user", "root", "--image", image]).args(flags);
    drop(run(command.args(["--", "sh", "-c", script])).expect_success());
    json(agentd(home, &["inspect", name]))[0]["root"].take()
}

/// Output of a command in `image`.
#[track_caller]
fn inside(home: &Home, image: &str, script: &str) -> String {
    let mut command = home.run();
    run(command.args(["-q", "--image", image, "--", "sh", "-c", script])).expect_silent_success().stdout
}

/// In a box and on a tree of this machine alike: every path relative, every time set.
const SCRIPT: &str = r#"
set -e
echo new > etc/new; chmod 751 etc/new
rm d/gone; echo more >> appended
rm -r replaced; mkdir replaced; chmod 755 replaced; echo upper > replaced/new
rm -r removed; echo file > removed
mkdir -p deep/er; ln appended deep/er/hard; ln -s /etc/shadow link; ln -s gone dangling
long=$(printf %0150d 7); mkdir "$long"; echo x > "$long/$long"; ln -s "$long" "link-$long"
printf begin > sparse; truncate -s 50000000 sparse; printf end >> sparse
mkfifo pipe; : > empty; mkdir zero; echo s > zero/f
mkdir -p many; i=0; while [ $i -lt 300 ]; do echo $i > many/$i; i=$((i+1)); done
find appended deep link dangling replaced removed $long link-$long sparse pipe empty zero many d etc/new -exec touch -h -d @1580608922 {} +
chmod 000 empty zero/f zero pipe; chmod 1777 deep; chmod 555 deep/er
"#;

#[test]
fn what_is_committed_is_what_umoci_would_repack() {
    let Some(home) = home() else { return };
    if !installed(&["umoci"]) {
        return;
    }
    let (layout, image) = base(&home);
    let place = Place::new();
    let (ran, rootfs) = place.umoci(&layout, "base");
    drop(ran.expect_success());
    drop(run(Command::new("/bin/busybox").args(["sh", "-c", SCRIPT]).current_dir(&rootfs)).expect_success());
    let target = format!("{}:theirs", layout.display());
    let bundle = rootfs.parent().unwrap();
    let mut umoci = Command::new("umoci");
    drop(run(umoci.args(["repack", "--image", &target]).arg(bundle)).expect_success());

    let root = kept(&home, &image, "x", &["--workdir", "/"], SCRIPT);
    assert_eq!(root["kept"], "layer", "{root}");
    let file = home.state().join("jobs").read_dir().unwrap().next().unwrap().unwrap().path().join("root.tar.zst");
    assert!(fs::metadata(file).unwrap().len() < 100_000, "holes are not written");
    drop(agentd(&home, &["commit", "-q", "x", "ours"]).expect_silent_success());
    let list = |image: &str| {
        let (ran, listed) = home.listed(image);
        listed.unwrap_or_else(|| panic!("{ran}"))
    };
    drop(agentd(&home, &["pull", "-q", &format!("oci:{target}")]).expect_success());
    let ((mounts, mut ours), (_, mut theirs)) = (list("ours"), list(&format!("oci:{target}")));
    let left_out = |tree: &mut Listing| tree.retain(|path, _| !mounts.contains(path) && !OWN.contains(&path.as_str()));
    left_out(&mut ours);
    left_out(&mut theirs);
    assert!(ours.len() > 300 && ours.contains_key("zero") && !ours.contains_key("d/gone"));
    let differences = differences(("agentd", "umoci"), &ours, &theirs);
    assert!(differences.is_empty(), "{:#?}", differences.iter().take(10).collect::<Vec<_>>());
}

#[test]
fn a_committed_image_is_an_image_like_any_other() {
    let Some(home) = home() else { return };
    let (_, image) = base(&home);
    kept(&home, &image, "one", &[], "echo 1 > /one; rm /d/f");
    let changes =
        ["-c", "ENV A=B", "-c", "WORKDIR sub", "-c", "ENTRYPOINT [\"echo\", \"entry\"]", "--change", "USER root"];
    let words = [&["commit", "-m", "because", "-a", "somebody", "one", "team/tool:1"][..], &changes].concat();
    let committed = agentd(&home, &words).expect_success();
    let listed = json(agentd(&home, &["images", "--format", "json", "team/tool:1"]));
    assert_eq!(listed[0]["reference"], "localhost/team/tool:1");
    assert_eq!(committed.stdout, format!("{}\n", listed[0]["digest"].as_str().unwrap()));
    let again = json(agentd(&home, &["commit", "-q", "--format", "json", "one", "team/tool:2"]));
    let listed = json(agentd(&home, &["images", "--format", "json", "team/tool:2"]));
    assert_eq!((&again["reference"], &again["digest"]), (&listed[0]["reference"], &listed[0]["digest"]));
    let details = json(agentd(&home, &["image", "inspect", "localhost/team/tool:1"]));
    let config = &details[0]["config"];
    assert_eq!((&config["Env"][1], &config["WorkingDir"]), (&"A=B".into(), &"/d/sub".into()));
    assert_eq!(details[0]["layers"].as_array().unwrap().len(), 3);
    let blobs = home.path().join("data/agentd/store/blobs/sha256");
    let whole = fs::read(blobs.join(&details[0]["config_digest"].as_str().unwrap()[7..])).unwrap();
    let whole: Value = serde_json::from_slice(&whole).unwrap();
    let history = whole["history"].as_array().unwrap().last().unwrap();
    assert_eq!((&history["comment"], &history["author"]), (&"because".into(), &"somebody".into()));
    assert_eq!(history["created_by"], "sh -c echo 1 > /one; rm /d/f");
    assert_eq!(whole["author"], "somebody");
    let ran = run(home.run().args(["-q", "--image", "team/tool:1", "--", "words"])).expect_silent_success();
    assert_eq!(ran.stdout, "entry words\n");

    // One on top of it, and the first goes: the second keeps all it needs.
    let flags = ["--writable", "--keep", "--name", "two", "--entrypoint", "/bin/sh", "--image", "team/tool:1"];
    drop(run(home.run().args(flags).args(["--", "-c", "echo 2 > /two; rm /one"])).expect_success());
    drop(agentd(&home, &["commit", "-q", "two", "team/tool:2"]).expect_silent_success());
    drop(agentd(&home, &["rm", "-a"]).expect_success());
    assert!(fs::read_dir(home.state().join("jobs")).unwrap().next().is_none(), "the kept layers went with the jobs");
    drop(agentd(&home, &["rmi", "team/tool:1"]).expect_silent_success());
    drop(agentd(&home, &["rmi", &image]).expect_success());
    drop(agentd(&home, &["prune"]).expect_success());
    let ran = run(home
        .run()
        .args(["-q", "--entrypoint", "sh", "--image", "team/tool:2", "--", "-c"])
        .arg("ls -d /one /two /d /d/f"));
    assert_eq!(ran.stdout, "/d\n/two\n", "{ran}");
}

#[test]
fn an_image_that_lost_its_name_can_still_be_committed_on() {
    let Some(home) = home() else { return };
    let (_, image) = base(&home);
    kept(&home, &image, "x", &[], "echo 1 > /one");
    drop(agentd(&home, &["rmi", "--force", &image]).expect_success());
    drop(agentd(&home, &["prune"]).expect_success());
    drop(agentd(&home, &["commit", "-q", "x", "y"]).expect_silent_success());
    assert_eq!(inside(&home, "y", "cat /one"), "1\n");
}

#[test]
fn nothing_of_agentds_own_is_kept() {
    let Some(home) = home() else { return };
    let (_, image) = base(&home);
    let workspace = home.workspace();
    let mount = format!("type=bind,src={},dst=/opt/mount/point", workspace.display());
    let flags = ["--workspace", workspace.to_str().unwrap(), "--mount", &mount, "--workdir", "/made/here"];
    let root = kept(&home, &image, "nothing", &flags, "echo x > /tmp/x; echo x > /workspace/x; echo x > /run/x");
    assert_eq!((&root["kept"], &root["entries"]), (&"layer".into(), &0.into()), "{root}");
    // As an ordinary user, who is not in the image's passwd and has a home directory of agentd's.
    let mut command = home.run();
    command.args(["-q", "--writable", "--keep", "--name", "user", "--user", "77", "--image", &image, "--", "sh", "-c"]);
    let script =
        "echo 'new:x:5:5::/:/bin/sh' >> /etc/passwd; echo 1.2.3.4 x >> /etc/hosts; rm /etc/resolv.conf; touch /.wh.d";
    drop(run(command.arg(script)).expect_success());
    drop(agentd(&home, &["commit", "-q", "user", "user"]).expect_silent_success());
    let details = json(agentd(&home, &["image", "inspect", "user"]));
    let diff_id = details[0]["layers"][2]["diff_id"].as_str().unwrap().replace(':', "-");
    let layers = home.path().join("data/agentd/store/layers");
    let layer = layers.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let fs_of = layer.into_iter().find(|path| path.to_str().unwrap().contains(&diff_id)).unwrap().join("fs");
    let listing = agentd_tests::unpackers::list(&fs_of);
    assert_eq!(listing.keys().collect::<Vec<_>>(), [".", "etc", "etc/passwd"]);
    assert_eq!(listing["etc"].mode, "0750", "the image's, not that of agentd's own directory");
    let passwd = fs::read_to_string(fs_of.join("etc/passwd")).unwrap();
    assert!(passwd.ends_with("\nnew:x:5:5::/:/bin/sh\n") && !passwd.contains("agent"), "{passwd}");
    let record = json(agentd(&home, &["inspect", "user"]))[0].take();
    assert_eq!(record["root"]["left_out"]["reserved"], 1, "{record}");
    // Without --keep the plan is what it always was.
    drop(run(home.run().args(["-q", "--writable", "--name", "plain", "--image", &image, "true"])).expect_success());
    let plain = json(agentd(&home, &["inspect", "plain"]));
    assert_eq!((&plain[0]["plan"]["box"]["root"]["keep"], &plain[0]["root"]), (&Value::Null, &Value::Null));
}

#[test]
fn what_cannot_be_committed_is_refused_with_words() {
    let Some(home) = home() else { return };
    let (_, image) = base(&home);
    let keep = ["run", "--writable", "--keep"];
    let with = |words: &[&str]| agentd(&home, &[&keep[..], words].concat()).expect_code(125);
    with(&["true"]).expect_one_error_line(&["--keep is for images of layers", "host"]);
    assert!(with(&["--rm", "--image", &image, "true"]).stderr.contains("cannot be used with"));
    assert!(agentd(&home, &["run", "--keep", "true"]).expect_code(125).stderr.contains("--writable"));

    drop(
        run(home.run().args(["-q", "--writable", "--name", "thrown", "--image", &image, "touch", "/x"]))
            .expect_success(),
    );
    let refused = |job: &str, words: &[&str]| {
        agentd(&home, &["commit", job, "name"]).expect_code(125).expect_one_error_line(words);
    };
    refused("thrown", &["kept nothing of its root", "--writable --keep"]);
    refused("nobody", &["no job is called `nobody`"]);
    drop(
        run(home.run().args(&keep[1..]).args(["-q", "--name", "never", "--image", &image, "no-such"])).expect_code(127),
    );
    refused("never", &["its command never ran"]);
    let flags = ["-q", "-i", "--name", "runs", "--image", &image, "--", "sh", "-c", "echo begun; read line"];
    let stdin = std::process::Stdio::piped();
    let mut running = Started::new(home.run().args(&keep[1..]).args(flags).stdin(stdin));
    running.wait_for("begun");
    refused("runs", &["is running", "when it has ended"]);
    drop(running.stdin());
    drop(running.finish());
    drop(agentd(&home, &["commit", "-q", "runs", "name"]).expect_silent_success());
    for bad in ["Name", "x@sha256:1", "oci:x", ""] {
        assert!(agentd(&home, &["commit", "runs", bad]).expect_code(125).stderr.contains("NAME"), "{bad}");
    }
    let bad = agentd(&home, &["commit", "-c", "RUN x", "runs", "name"]).expect_code(125);
    assert!(bad.stderr.contains("the instruction is not known"), "{bad}");
}

#[test]
fn a_tree_that_no_image_can_hold_is_not_kept_and_that_is_said() {
    let Some(home) = home() else { return };
    let (_, image) = base(&home);
    let script = "cd /; i=0; while [ $i -lt 300 ]; do mkdir deep && cd deep; i=$((i+1)); done";
    let root = kept(&home, &image, "deep", &[], script);
    assert_eq!(root["kept"], "nothing", "{root}");
    assert!(root["reason"].as_str().unwrap().contains("limit on directories of a path (256)"), "{root}");
    let refused = agentd(&home, &["commit", "deep", "x"]).expect_code(125);
    refused.expect_one_error_line(&["nothing of what job", "limit on directories of a path"]);
}

/// Bytes that do not compress, in a file of the root.
const NOISE: &str = "dd if=/dev/urandom of=/noise bs=1M count=";

#[test]
fn a_signal_while_it_is_kept_ends_that_and_not_the_jobs_record() {
    let Some(home) = home() else { return };
    let (_, image) = base(&home);
    drop(agentd(&home, &["pull", "-q", &image]).expect_success());
    let mut command = home.run();
    command.args(["--writable", "--keep", "--name", "x", "--image", &image, "--user", "root", "--", "sh", "-c"]);
    let started = Started::new(command.arg(format!("{NOISE}150 2>/dev/null; exit 3")));
    let jobs = home.state().join("jobs");
    let is_writing = || {
        let mut jobs = jobs.read_dir().into_iter().flatten().flatten();
        jobs.any(|job| job.path().join("root.tar.zst.partial").metadata().is_ok())
    };
    assert!(wait_until(Duration::from_secs(50), is_writing));
    started.signal(Signal::TERM);
    let ran = started.finish().expect_code(3);
    ran.expect_one_error_line(&["nothing of what it wrote to its root is kept: interrupted"]);
    let record = json(agentd(&home, &["inspect", "x"]))[0].take();
    assert_eq!((&record["state"], &record["exit_code"]), (&"exited".into(), &3.into()), "{record}");
    assert!(!is_writing(), "half a layer is not left");
}

#[test]
fn a_full_disk_is_told_and_the_job_has_its_end() {
    let Some(home) = home() else { return };
    let (_, image) = base(&home);
    drop(agentd(&home, &["pull", "-q", &image]).expect_success());
    let agentd = home.agentd();
    let script = format!(
        "mount -t tmpfs -o size=1m none \"$XDG_STATE_HOME\" && \
         {{ \"$0\" run --writable --keep --name x --user root --image {image} -- sh -c '{NOISE}4 2>/dev/null; exit 3'; \
         echo code $?; \"$0\" inspect x; }}"
    );
    let program = agentd.get_program().to_owned();
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", &script]).arg(program);
    command.env_clear().envs(agentd.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ran = run(&mut command).expect_success();
    ran.expect_one_error_line(&["nothing of what it wrote to its root is kept", "No space left on device"]);
    let inspected: Value = serde_json::from_str(ran.stdout.split_once('\n').unwrap().1).unwrap();
    assert!(ran.stdout.starts_with("code 3\n"), "{ran}");
    assert_eq!(inspected[0]["root"]["kept"], "nothing");
}
