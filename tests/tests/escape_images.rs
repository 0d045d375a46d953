//! Images made by an attacker: what they put where mounts go, and what their configuration asks for.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::process::Command;

use agentd_tests::attack::INSIDE;
use agentd_tests::oci::{Compression, Entry, Image, Layer};
use agentd_tests::{Feature, Home, Ran, busybox, is_root, require, run};

/// Writes busybox with `entries` on top, then what `configure` adds; gives the words for `--image`.
fn image(home: &Home, name: &str, entries: Vec<Entry>, configure: impl FnOnce(Image) -> Image) -> String {
    let dir = home.path().join("images").join(name);
    fs::create_dir_all(&dir).unwrap();
    configure(busybox().layer(Layer::Entries(entries), Compression::Plain)).write(&dir, "t").unwrap();
    format!("oci:{}:t", dir.display())
}

/// A directory of the host that an image may know of, and a picture of it.
fn target(home: &Home) -> String {
    let dir = home.path().join("target");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("canary"), "of the host").unwrap();
    dir.to_str().unwrap().to_owned()
}

fn picture(dir: &str) -> String {
    run(Command::new("find").args([dir, "-printf", "%p %y %m %U %s %n %T@\n"])).expect_success().stdout
}

/// A box that came up has fresh file systems where they belong, whatever the image has there.
#[track_caller]
fn assert_fresh(ran: &Ran, what: &str) {
    if ran.code() == 125 {
        ran.expect_one_error_line(&[]);
        return;
    }
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[..5], ["proc", "sysfs", "tmpfs", "1:3", "ok"], "{what}\n{ran}");
}

const LOOK: &str = "stat -f -c %T /proc /sys /dev 2>/dev/null; stat -c %t:%T /dev/null; test -s /proc/keys || echo ok";

/// CVE-2025-31133, CVE-2025-52565, CVE-2025-52881, CVE-2026-41579, CVE-2026-47766: links where mounts go.
#[test]
fn escape_cve_2025_31133_links_where_mounts_go_are_not_followed_out() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let host = target(&home);
    let before = picture(&host);
    let far = format!("{}{host}", "../".repeat(30).trim_end_matches('/'));
    for to in [&host, &far, "/proc/sys", "/proc/self/fd/5", "/"] {
        for at in ["proc", "dev", "sys", "tmp", "run", "scratch", "workspace", "etc", "home", "home/agent", "usr"] {
            let name = format!("{}-{}", at.replace('/', "-"), to.len());
            let base = vec![Entry::opaque("home"), Entry::symlink(at, to)];
            let words = image(&home, &name, base, |image| image);
            let work = home.workspace();
            let ran = home.sh(&["--image", &words, "--workspace", work.to_str().unwrap()], LOOK);
            assert_fresh(&ran, &format!("{at} -> {to}"));
        }
        let nodes = ["null", "console", "pts", "shm", "ptmx", "fd", "tty"];
        let nodes = nodes.iter().map(|node| Entry::symlink(&format!("dev/{node}"), to));
        let entries = [Entry::dir("dev"), Entry::dir("proc"), Entry::dir("sys")].into_iter().chain(nodes);
        let masked = ["proc/keys", "proc/sys", "proc/kcore", "proc/timer_list", "sys/firmware"];
        let entries = entries.chain(masked.iter().map(|path| Entry::symlink(path, to)));
        let words = image(&home, &format!("nodes-{}", to.len()), entries.collect(), |image| image);
        assert_fresh(&home.sh(&["--image", &words], LOOK), to);
    }
    assert_eq!(picture(&host), before, "an image changed the host");
    // Followed from outside, such a link leads there.
    std::os::unix::fs::symlink(&host, home.path().join("link")).unwrap();
    assert_eq!(fs::read_to_string(home.path().join("link/canary")).unwrap(), "of the host");
}

/// A home directory is a writable mount, and the image says where it is: as its variable, in its passwd, or by a link.
#[test]
fn escape_a_home_directory_of_the_images_choice_uncovers_nothing() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let passwd = |home: &str| Entry::file("etc/passwd", format!("evil:x:1000:1000::{home}:/bin/sh\n"));
    let mut images = Vec::new();
    for place in [
        "/proc",
        "/proc/sys",
        "/proc/sys/kernel",
        "/proc/1",
        "/proc/self/task",
        "/sys",
        "/dev",
        "/dev/pts",
        "/link",
        "/",
    ] {
        let name = place.replace('/', "_");
        let link = || Entry::symlink("link", "/proc");
        images.push((
            format!("HOME={place}"),
            image(&home, &format!("env{name}"), vec![link()], |image| image.env(&format!("HOME={place}"))),
        ));
        images.push((
            format!("passwd {place}"),
            image(&home, &format!("passwd{name}"), vec![link(), passwd(place)], |image| image.user("evil")),
        ));
    }
    let linked = vec![Entry::dir("home"), Entry::symlink("home/agent", "/proc")];
    images.push(("a link".into(), image(&home, "linked", linked, |image| image)));
    let mut wrong = Vec::new();
    for (what, words) in &images {
        let script = format!(
            "cat /proc/self/mountinfo; {INSIDE} write=/proc/sys/kernel/core_pattern write=/proc/sysrq-trigger; wc -c < /proc/keys"
        );
        let ran = home.sh(&["--image", words], &script);
        if ran.code() == 125 {
            continue;
        }
        let points: Vec<&str> = ran.stdout.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        // A job of the host's root has a /proc that is read-only as a whole.
        let switches: &[&str] = if is_root() { &[] } else { &["/proc/sys"] };
        for place in ["/proc", "/sys", "/dev", "/dev/pts"].iter().chain(switches) {
            if points.iter().filter(|point| *point == place).count() != 1 {
                wrong.push(format!("{what}: not one mount at {place}"));
            }
        }
        if ran.stdout.contains("\tok") || !ran.stdout.ends_with("\n0\n") {
            wrong.push(format!(
                "{what}: uncovered\n{}",
                ran.stdout.lines().rev().take(3).collect::<Vec<_>>().join("\n")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// CVE-2026-55686 and CVE-2024-23651: targets of mounts through links of the image.
#[test]
fn escape_cve_2026_55686_mount_targets_are_resolved_inside() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let host = target(&home);
    let given = home.path().join("given");
    fs::create_dir(&given).unwrap();
    fs::write(given.join("gift"), "x").unwrap();
    let before = picture(&host);
    for to in [
        host.clone(),
        format!("../../../../../../../..{host}"),
        "/proc/self/root".to_owned(),
        "/proc/1/root".to_owned(),
    ] {
        let entries = vec![Entry::symlink("data", &to), Entry::dir("a"), Entry::symlink("a/b", "../data")];
        let words = image(&home, &format!("target-{}", to.len()), entries, |image| image);
        for place in ["/data", "/data/sub", "/data/new/er", "/a/b/sub", "/a/b/canary"] {
            let mount = format!("type=bind,src={},dst={place},rw", given.display());
            let ran = home.sh(&["--image", &words, "--mount", &mount], &format!("ls {place}"));
            if ran.code() == 125 {
                ran.expect_one_error_line(&[]);
            } else {
                assert_eq!(ran.stdout, "gift\n", "{to} {place}\n{ran}");
            }
        }
    }
    assert_eq!(picture(&host), before);
    // Places that are agentd's own stay so, also by another name.
    let words = image(&home, "own", vec![Entry::symlink("data", "/proc")], |image| image);
    for place in ["/data", "/data/sys", "/data/../proc", "/proc", "/dev/null", "/sys/firmware"] {
        let mount = format!("type=bind,src={},dst={place},rw", given.display());
        let ran =
            home.sh(&["--image", &words, "--mount", &mount], "ls /proc/self/mountinfo; test -s /proc/keys; echo $?");
        assert!(ran.code() == 125 || ran.code() == 2 || ran.stdout.ends_with("mountinfo\n1\n"), "{place}\n{ran}");
    }
}

/// CVE-2026-55686, CVE-2024-21626, CVE-2025-59532: the image says where work begins, never what may be written.
#[test]
fn escape_cve_2025_59532_the_images_working_directory_lies_inside_and_gives_no_right() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let host = target(&home);
    let before = picture(&host);
    let dirs = [
        "/link",
        "/link/sub",
        "/link/new",
        "/../../../../..",
        "..",
        "../../..",
        "/proc/self/fd/5",
        "/proc/self/fd/7/../..",
        "/proc/1/root",
        "relative",
        "/etc",
        "/usr",
    ];
    for (number, dir) in dirs.into_iter().enumerate() {
        let entries = vec![Entry::symlink("link", &format!("../../../../../../..{host}"))];
        let words = image(&home, &format!("workdir-{number}"), entries, |image| image.workdir(dir));
        let ran = home.sh(&["--image", &words], &format!("cat ./canary ../canary ..{host}/canary ../../../../../..{host}/canary; echo x > ./new-file; ls /bin/busybox"));
        assert!(!ran.stdout.contains("of the host"), "{dir}\n{ran}");
        if ran.code() == 125 {
            ran.expect_one_error_line(&[]);
        } else {
            assert_eq!(ran.stdout, "/bin/busybox\n", "{dir}\n{ran}");
            assert!(ran.stderr.contains("new-file"), "{dir} became writable\n{ran}");
        }
    }
    assert_eq!(picture(&host), before);
}

/// CVE-2024-40635: ids beyond 31 bits wrap round to root in places.
#[test]
fn escape_cve_2024_40635_users_that_are_no_ids_are_refused() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let users = [
        "4294967296",
        "4294967295",
        "2147483648",
        "99999999999999999999",
        "-1",
        "0:4294967296",
        "1:-1",
        "1:",
        ":1",
        "nobody-knows",
        "1000\u{1b}[2J",
    ];
    for (number, user) in users.into_iter().enumerate() {
        let words = image(&home, &format!("user-{number}"), vec![], |image| image.user(user));
        let ran = home.sh(&["--image", &words], "id -u").expect_code(125);
        ran.expect_one_error_line(&["user"]);
        assert!(!ran.stderr.contains('\u{1b}'));
    }
    for (user, uid) in [("2147483647", "2147483647"), ("0", "0"), ("user", "1000"), ("7:8", "7")] {
        let words = image(&home, &format!("good-{uid}"), vec![], |image| image.user(user));
        assert_eq!(home.said(&["--image", &words], "cat /proc/self/status | grep Uid | cut -f2").trim(), uid);
    }
}

/// CVE-2026-57231: a variable without a value asks some tools for the host's.
#[test]
fn escape_cve_2026_57231_the_images_environment_takes_nothing_of_the_hosts() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    for (number, word) in ["AGENTD_TEST_TOKEN", "AGENTD_TEST_*", "*", "AGENTD_TEST_TOKEN\0=x", "=AGENTD_TEST_TOKEN", ""]
        .into_iter()
        .enumerate()
    {
        let words =
            image(&home, &format!("env-{number}"), vec![], |image| image.env(word).env("GIVEN=$AGENTD_TEST_TOKEN"));
        let mut command = home.boxed(&["--image", &words]);
        let ran = run(command.env("AGENTD_TEST_TOKEN", "s3cret").args(["sh", "-c", "env; cat /proc/self/environ"]));
        assert!(!ran.stdout.contains("s3cret") && !ran.stderr.contains("s3cret"), "{ran}");
        assert!(ran.code() == 125 || ran.stdout.contains("GIVEN="), "{ran}");
        let notes = || home.jobs()[0]["warnings"].to_string();
        assert!(ran.code() == 125 || notes().contains("are no NAME=VALUE and were left out"), "{word:?}: {}", notes());
    }
    // Asked for by name, by the user, it is passed on.
    let mut command = home.boxed(&["-e", "AGENTD_TEST_TOKEN"]);
    let ran = run(command.env("AGENTD_TEST_TOKEN", "s3cret").args(["sh", "-c", "echo $AGENTD_TEST_TOKEN"]));
    assert_eq!(ran.expect_success().stdout, "s3cret\n");
}
