//! Who and where the payload is: environment, user, working directory, host name, command, network.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use agentd_tests::{Home, run};

use crate::{busybox_home, busybox_sh, home, sh, write};

/// What `env` prints in a box, sorted.
#[track_caller]
fn environment(home: &Home, flags: &[&str]) -> BTreeSet<String> {
    // What the host has must not come along; `env` adds nothing of its own, as a shell would.
    let mut command = home.run();
    command.env("SECRET", "sesame").env("LD_LIBRARY_PATH", "/tmp").env("TERM", "outer-terminal").env("TZ", "UTC");
    let ran = run(command.args(flags).args(["--", "env"])).expect_success();
    ran.stdout.lines().map(str::to_owned).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

const POLICY: &str = "AGENTD_POLICY=/etc/agentd-policy.txt";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[test]
fn nothing_of_the_hosts_environment_is_inside() {
    let Some(home) = home() else { return };
    assert_eq!(environment(&home, &[]), set(&[PATH, POLICY, "HOME=/home/agent"]));
}

#[test]
fn variables_are_set_passed_on_and_overridden_in_order() {
    let Some(home) = home() else { return };
    let flags = ["--env", "A=1", "-e", "A=2", "-e", "EMPTY=", "-e", "EQUALS=a=b c", "-e", "SECRET", "-e", "NOT_SET"];
    let expected = set(&[PATH, POLICY, "HOME=/home/agent", "A=2", "EMPTY=", "EQUALS=a=b c", "SECRET=sesame"]);
    assert_eq!(environment(&home, &flags), expected);
    assert_eq!(
        environment(&home, &["-e", "HOME=/tmp/h", "-e", "PATH=/usr/bin"]),
        set(&["HOME=/tmp/h", "PATH=/usr/bin", POLICY])
    );
    let strange = environment(&home, &["-e", "LINES=one\ntwo", "-e", "ACCENT=é"]);
    assert!(strange.contains("LINES=one") && strange.contains("two") && strange.contains("ACCENT=é"), "{strange:?}");
}

#[test]
fn a_file_of_variables_may_have_comments_and_gives_way_to_flags() {
    let Some(home) = home() else { return };
    let file = home.path().join("config/env");
    write(&file, "# comment\n\nA=1\n  # also one\nB=x # not one\nSECRET\nQUOTED=\"as is\"\nE=\n", 0o600);
    let file = file.display().to_string();
    let expected =
        set(&[PATH, POLICY, "HOME=/home/agent", "A=flag", "B=x # not one", "SECRET=sesame", "QUOTED=\"as is\"", "E="]);
    assert_eq!(environment(&home, &["--env-file", &file, "-e", "A=flag"]), expected);
}

#[test]
fn an_images_environment_is_below_the_users_own() {
    let Some(home) = busybox_home() else { return };
    let ran = run(home.run_busybox().args(["-e", "B=2", "--", "env"])).expect_success();
    let words: BTreeSet<_> = ran.stdout.lines().map(str::to_owned).collect();
    assert_eq!(words, set(&["PATH=/bin", "HOME=/home/user", "B=2", POLICY]));
}

#[test]
fn a_user_is_a_name_of_the_image_or_numbers() {
    let Some(home) = busybox_home() else { return };
    for (user, ids, directory) in [
        ("root", "0:0", "/root"),
        ("0", "0:0", "/root"),
        ("user", "1000:1000", "/home/user"),
        ("1000", "1000:1000", "/home/user"),
        ("user:0", "1000:0", "/home/user"),
        ("user:user", "1000:1000", "/home/user"),
        ("123:456", "123:456", "/home/agent"),
        ("65534:65534", "65534:65534", "/home/agent"),
    ] {
        let script = "echo $(id -u):$(id -g) $HOME; touch $HOME/x; id -un >/dev/null && ls -ld $HOME | cut -c1";
        let ran = busybox_sh(&home, &["--user", user], script).expect_silent_success();
        assert_eq!(ran.stdout, format!("{ids} {directory}\nd\n"), "--user {user}");
    }
    for user in ["nobody-here", "4294967296", "4294967295", "1:4294967296", "1:nogroup-here", ":", "1:2:3", "-1"] {
        let ran = busybox_sh(&home, &[&format!("--user={user}")], "true").expect_code(125);
        ran.expect_one_error_line(&["user", user.split(':').next_back().unwrap_or_default()]);
    }
}

/// Whoever the payload is inside, outside it is who started it.
#[test]
fn files_of_every_inner_user_belong_to_the_invoking_user() {
    let Some(home) = home() else { return };
    let me = std::fs::metadata(home.path()).unwrap().uid();
    let workspace = home.workspace().display().to_string();
    for user in ["root", "1000", "4000:5000"] {
        let _ran = sh(&home, &["--user", user, "--workspace", &workspace], "touch made").expect_silent_success();
        let made = home.workspace().join("made");
        assert_eq!(std::fs::metadata(&made).unwrap().uid(), me, "--user {user}");
        std::fs::remove_file(made).unwrap();
    }
}

#[test]
fn the_working_directory_is_the_workspace_or_what_was_asked_for() {
    let Some(home) = home() else { return };
    let workspace = home.workspace().display().to_string();
    let at = |flags: &[&str]| sh(&home, flags, "pwd").expect_silent_success().stdout;
    assert_eq!(at(&[]), "/\n");
    assert_eq!(at(&["--workspace", &workspace]), "/workspace\n");
    assert_eq!(at(&["--workspace", &workspace, "--workdir", "/tmp"]), "/tmp\n");
    assert_eq!(at(&["--workspace", &workspace, "--workdir", "/"]), "/\n");
}

/// As with docker and podman; but never in what is the host's.
#[test]
fn a_working_directory_that_is_not_there_is_made_unless_that_is_on_the_host() {
    let Some(home) = home() else { return };
    let workspace = home.workspace().display().to_string();
    for directory in ["/made", "/scratch/made/for/me", "/tmp/made", "/home/agent/made"] {
        let ran = sh(&home, &["-w", directory], "pwd").expect_silent_success();
        assert_eq!(ran.stdout, format!("{directory}\n"));
    }
    let ran = sh(&home, &["--workspace", &workspace, "-w", "/workspace/not/there"], "pwd").expect_code(125);
    ran.expect_one_error_line(&["/workspace/not/there"]);
    assert_eq!(std::fs::read_dir(home.workspace()).unwrap().count(), 0);
    std::fs::create_dir(home.workspace().join("sub")).unwrap();
    let ran = sh(&home, &["--workspace", &workspace, "-w", "/workspace/sub"], "pwd").expect_silent_success();
    assert_eq!(ran.stdout, "/workspace/sub\n");
}

#[test]
fn the_host_name_is_the_boxes_own() {
    let Some(home) = home() else { return };
    let script = "cat /proc/sys/kernel/hostname /etc/hostname; grep -c \"127.0.0.1.*$(cat /etc/hostname)\" /etc/hosts";
    let outside = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let named = sh(&home, &["--hostname", "box-7"], script).expect_silent_success();
    assert_eq!(named.stdout, "box-7\nbox-7\n1\n");
    let unnamed = sh(&home, &[], script).expect_silent_success();
    let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(unnamed.stdout, format!("{id}\n{id}\n1\n"));
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), outside);
}

#[test]
fn an_entry_point_is_the_images_or_the_users() {
    let Some(home) = busybox_home() else { return };
    use agentd_tests::busybox;
    let layout = home.path().join("config/entry");
    busybox().entrypoint(&["echo", "entry"]).cmd(&["command"]).write(&layout, "latest").unwrap();
    let image = format!("oci:{}", layout.display());
    let said = |flags: &[&str], words: &[&str]| {
        let ran = run(home.run().args(["-q", "--image", &image]).args(flags).arg("--").args(words));
        ran.expect_silent_success().stdout
    };
    assert_eq!(said(&[], &[]), "entry command\n");
    assert_eq!(said(&[], &["word"]), "entry word\n");
    assert_eq!(said(&["--entrypoint", "echo"], &["a", "b"]), "a b\n");
    assert_eq!(said(&["--entrypoint", "/bin/echo"], &[]), "\n");
    let none = run(home.run().args(["--entrypoint", "echo", "--", "on the host's own software"])).expect_success();
    assert_eq!(none.stdout, "on the host's own software\n");
}

#[test]
fn without_a_network_there_is_only_loopback() {
    let Some(home) = home() else { return };
    let names = "sed -n 's/^ *\\([^ :]*\\):.*/\\1/p' /proc/net/dev | sort";
    let inside =
        sh(&home, &["--net", "none"], &format!("{names}; cat /sys/class/net/lo/flags")).expect_silent_success();
    // IFF_UP and IFF_LOOPBACK.
    assert_eq!(inside.stdout, "lo\n0x9\n");
    assert_eq!(sh(&home, &[], names).expect_silent_success().stdout, "lo\n");
    let outside = run(std::process::Command::new("sh").args(["-c", names])).expect_success().stdout;
    assert_eq!(sh(&home, &["-q", "--net", "host"], names).expect_silent_success().stdout, outside);
}
