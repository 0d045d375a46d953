//! Host files inside, writes to the root, and that nothing of it stays.

use std::fs;
use std::path::Path;

use agentd_tests::oci::{Compression, Entry, Layer};
use agentd_tests::{Home, busybox, install, run};

use crate::{busybox_home, busybox_sh, home, sh, write};

fn there(path: &str) -> bool {
    Path::new(path).symlink_metadata().is_ok()
}

fn bind(source: &Path, target: &str, more: &str) -> String {
    format!("--mount=type=bind,src={},dst={target}{more}", source.display())
}

#[test]
fn a_mount_is_read_only_unless_it_says_rw() {
    let Some(home) = home() else { return };
    let (dir, file) = (home.path().join("config/dir"), home.path().join("config/file"));
    fs::create_dir(&dir).unwrap();
    write(&dir.join("inner"), "one\n", 0o600);
    write(&file, "two\n", 0o600);
    let script = "cat /in/dir/inner /in/file; (echo x >> /in/file) 2>/dev/null && echo file; \
                  (echo x > /in/dir/new) 2>/dev/null && echo dir; true";
    let ran = sh(&home, &[&bind(&dir, "/in/dir", ""), &bind(&file, "/in/file", ",ro")], script).expect_silent_success();
    assert_eq!(ran.stdout, "one\ntwo\n");
    assert_eq!((fs::read_to_string(&file).unwrap().as_str(), fs::read_dir(&dir).unwrap().count()), ("two\n", 1));
    let ran =
        sh(&home, &[&bind(&dir, "/in/dir", ",rw"), &bind(&file, "/in/file", ",rw")], script).expect_silent_success();
    assert_eq!(ran.stdout, "one\ntwo\nfile\ndir\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "two\nx\n");
    assert_eq!(fs::read_to_string(dir.join("new")).unwrap(), "x\n");
}

#[test]
fn a_read_only_workspace_stays_as_it_is() {
    let Some(home) = home() else { return };
    write(&home.workspace().join("kept"), "kept\n", 0o600);
    let workspace = format!("{}:ro", home.workspace().display());
    let script = "cat kept; ! touch new 2>/dev/null && ! rm -f kept 2>/dev/null && ! chmod 777 kept 2>/dev/null";
    let ran = sh(&home, &["--workspace", &workspace], script).expect_silent_success();
    assert_eq!(ran.stdout, "kept\n");
    assert_eq!(fs::read_dir(home.workspace()).unwrap().count(), 1);
}

/// `/var/run -> /run` and friends: a target is resolved inside the root, where the image's links lead.
#[test]
fn a_target_under_a_link_of_the_image_lands_where_the_link_leads_inside() {
    let Some(home) = busybox_home() else { return };
    let layout = home.path().join("config/links");
    let links = Layer::Entries(vec![
        Entry::dir("var"),
        Entry::symlink("var/run", "/run"),
        Entry::symlink("up", "../../../../etc"),
        Entry::symlink("loop", "/loop"),
    ]);
    busybox().layer(links, Compression::Plain).write(&layout, "latest").unwrap();
    let file = home.path().join("config/file");
    write(&file, "given\n", 0o600);
    let image = format!("--image=oci:{}", layout.display());
    let with = |target: &str, script: &str| {
        run(home.run().args(["-q", &image, &bind(&file, target, ""), "--", "sh", "-c", script]))
    };
    assert_eq!(with("/var/run/given", "cat /run/given").expect_silent_success().stdout, "given\n");
    assert_eq!(with("/up/given", "cat /etc/given").expect_silent_success().stdout, "given\n");
    with("/loop/given", "true").expect_code(125).expect_one_error_line(&["/loop"]);
    assert!(!there("/run/given") && !there("/etc/given"));
}

#[test]
fn targets_that_are_agentds_own_are_refused() {
    let Some(home) = home() else { return };
    let dir = home.workspace();
    for target in ["/", "/proc", "/proc/self", "/dev", "/dev/null", "/sys/kernel", "/run/agentd", "/run/agentd/x"] {
        let ran = sh(&home, &[&bind(&dir, target, "")], "true").expect_code(125);
        assert!(ran.stderr.contains(target), "{ran}");
    }
    for target in ["relative", "/up/../and/away"] {
        let ran = sh(&home, &[&bind(&dir, target, "")], "true").expect_code(125);
        assert!(ran.stderr.contains("absolute"), "{ran}");
    }
    assert!(home.jobs().is_empty());
}

/// The same by a link of the image: it must not be able to cover /proc, /dev or /sys with a directory of the host's.
#[test]
fn a_link_of_the_image_does_not_lead_a_mount_over_agentds_own() {
    let Some(home) = busybox_home() else { return };
    let layout = home.path().join("config/links");
    let links = Layer::Entries(vec![
        Entry::symlink("to-proc", "/proc"),
        Entry::symlink("to-dev", "dev"),
        Entry::symlink("to-sys", "/sys"),
        Entry::symlink("to-root", "/"),
    ]);
    busybox().layer(links, Compression::Plain).write(&layout, "latest").unwrap();
    let image = format!("--image=oci:{}", layout.display());
    for target in ["/to-proc", "/to-dev", "/to-sys", "/to-root", "/to-proc/sys", "/to-dev/shm", "/to-dev/new"] {
        let mount = bind(&home.workspace(), target, ",rw");
        let ran = run(home.run().args(["-q", &image, &mount, "--", "/bin/true"])).expect_code(125);
        ran.expect_one_error_line(&[target]);
    }
    assert_eq!(fs::read_dir(home.workspace()).unwrap().count(), 0);
}

/// Every path below `root` with its type, size, mode and time.
fn state(root: &Path) -> Vec<String> {
    let list = "find \"$0\" -printf '%P %y %s %m %T@ %l\\n' | sort";
    let ran = run(std::process::Command::new("sh").args(["-c", list]).arg(root)).expect_success();
    ran.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn what_is_written_to_a_writable_root_lands_nowhere() {
    let Some(home) = busybox_home() else { return };
    let _ran = busybox_sh(&home, &[], "true").expect_success();
    // Not all of the store: which layers are on disk is noted there when they are, by a process that nobody waits for.
    let (store, image) = (home.path().join("data/agentd/store/layers"), home.busybox_image().to_owned());
    let before = (state(&store), state(&image));
    assert!(before.0.len() > 10, "{before:?}");
    let script = "echo x > /new; echo x >> /etc/passwd; rm /bin/ls; mkdir /usr/d; chmod 700 /etc; mv /tmp/. /t 2>/dev/null; \
                  ln -s x /etc/link; cat /new /usr/../new; tail -n 1 /etc/passwd; [ ! -e /bin/ls ]";
    let first = busybox_sh(&home, &["--writable"], script).expect_silent_success();
    assert_eq!(first.stdout, "x\nx\nx\n");
    assert_eq!((state(&store), state(&image)), before);
    let second = busybox_sh(&home, &["--writable"], "ls -d /new /usr/d /etc/link 2>/dev/null; grep -c ^x /etc/passwd");
    assert_eq!(second.stdout, "0\n");
}

#[test]
fn without_writable_the_root_is_read_only_and_the_scratch_places_are_not() {
    let Some(home) = busybox_home() else { return };
    let script = "for d in / /bin /etc /usr /var /home /proc /sys /dev; do [ -d $d ] && echo x 2>/dev/null > $d/x && echo $d; done; \
                  for d in /tmp /run /scratch /dev/shm $HOME; do echo x > $d/x || echo not $d; done; true";
    let ran = busybox_sh(&home, &[], script).expect_code(0);
    assert_eq!(ran.stdout, "", "{ran}");
    let again = busybox_sh(&home, &[], "ls /tmp /run /scratch /dev/shm $HOME | grep x; true").expect_silent_success();
    assert_eq!(again.stdout, "");
    let host = sh(&home, &["--writable"], "echo x > /usr/x").expect_code(2);
    assert!(host.stderr.contains("Read-only") && !there("/usr/x"), "{host}");
}

#[test]
fn a_directory_is_an_image_and_is_not_written() {
    let Some(home) = busybox_home() else { return };
    let root = home.path().join("config/root");
    fs::create_dir_all(root.join("bin")).unwrap();
    install(&root.join("bin/busybox"), &fs::read("/bin/busybox").unwrap());
    let before = state(&root);
    let image = format!("--image=dir:{}", root.display());
    let script = "echo x > /new; /bin/busybox cat /new";
    let words = ["--writable", "--", "/bin/busybox", "sh", "-c", script];
    let ran = run(home.run().arg(&image).args(words)).expect_silent_success();
    assert_eq!(ran.stdout, "x\n");
    assert_eq!(state(&root), before);
}

#[test]
fn storage_is_bounded_for_all_scratch_places_together() {
    let Some(home) = home() else { return };
    let bound: u64 = 8 << 20;
    let fill = "for d in /tmp /scratch /dev/shm /run $HOME; do head -c 5000000 /dev/zero > $d/fill; done 2>/tmp/e; \
                cat /tmp/fill /scratch/fill /dev/shm/fill /run/fill $HOME/fill | wc -c";
    let ran = sh(&home, &["--storage", "8m"], fill).expect_success();
    let written: u64 = ran.stdout.trim().parse().unwrap();
    assert!((bound * 9 / 10..=bound).contains(&written), "{written} bytes\n{ran}");
    let says = sh(&home, &["--storage", "8m"], "head -c 9000000 /dev/zero > /tmp/fill").expect_code(1);
    assert!(says.stderr.contains("No space left"), "{says}");
}

#[test]
fn names_are_unique_until_the_job_is_removed() {
    let Some(home) = home() else { return };
    let named = |home: &Home| sh(home, &["--name", "fix-1"], "true");
    let _ran = named(&home).expect_silent_success();
    named(&home).expect_code(125).expect_one_error_line(&["fix-1"]);
    assert_eq!(home.jobs().len(), 1);
    assert_eq!(home.jobs()[0]["name"], "fix-1");
    let _ran = run(home.agentd().args(["rm", "fix-1"])).expect_success();
    let _ran = named(&home).expect_silent_success();
}

#[test]
fn rm_forgets_the_job_whatever_became_of_it() {
    let Some(home) = home() else { return };
    for (script, code) in [("true", 0), ("echo out; exit 3", 3), ("kill -9 $$", 137)] {
        let _ran = sh(&home, &["--rm", "--name", "gone"], script).expect_code(code);
    }
    let _ran = run(home.run().args(["--rm", "--name", "gone", "--", "/no/such/program"])).expect_code(127);
    assert!(home.jobs().is_empty());
    let left: Vec<_> = home.paths().into_iter().filter(|path| path.components().count() > 3).collect();
    assert!(left.is_empty(), "{left:?}");
}
