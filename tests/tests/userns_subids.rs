//! `agentd run --userns subids`: a box with the user's ranges of ids. Its root gives files to them and becomes one of them; it
//! gets nothing else by its capabilities, and leaves nothing of theirs on the disk.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agentd_attacks::suite::{Targets, attacks};
use agentd_tests::attack::{INSIDE, program};
use agentd_tests::{Feature, Home, is_root, require, run, wait_until};
use rustix::process::Signal;

const SUBIDS: [&str; 3] = ["--userns", "subids", "--writable"];
const PATIENCE: Duration = Duration::from_secs(60);

/// CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID (linux/capability.h).
const SIX: &str = "00000000000000eb";
const NONE: &str = "0000000000000000";

const RIGHTS: &str = "grep -e ^NoNewPrivs: -e ^Cap /proc/self/status";

fn rights(inheritable: &str, three: [&str; 3], ambient: &str) -> String {
    let [permitted, effective, bounding] = three;
    format!(
        "CapInh:\t{inheritable}\nCapPrm:\t{permitted}\nCapEff:\t{effective}\nCapBnd:\t{bounding}\nCapAmb:\t{ambient}\nNoNewPrivs:\t1\n"
    )
}

/// A home, if this user has ranges.
fn home() -> Option<Home> {
    (require(Feature::Userns) && require(Feature::Ranges)).then(Home::new)
}

#[test]
fn userns_subids_maps_the_users_ranges_and_gives_root_six_capabilities() {
    let Some(home) = home() else { return };
    let said = home.said(&SUBIDS, "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u; id -g");
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let own = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(2).unwrap().to_owned()
    };
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", &own("Uid:"), "1"], "{said}");
    assert_eq!(lines[1][0], "1", "{said}");
    let gid = own("Gid:");
    assert!(lines.contains(&vec!["0", &gid, "1"]) && said.ends_with("allow\n0\n0\n"), "{said}");

    let of_root = rights(NONE, [SIX; 3], NONE);
    assert_eq!(home.said(&SUBIDS, RIGHTS), of_root);
    assert_eq!(home.said(&SUBIDS, &format!("sh -c 'sh -c \"{RIGHTS}; true\"; true'")), of_root);
    // Whoever it becomes has none, and gets none back.
    let other = format!("setpriv --reuid 33 --regid 34 --clear-groups sh -c 'id; {RIGHTS}; setpriv --reuid 0 true'");
    let said = home.sh(&SUBIDS, &other);
    assert!(said.stdout.contains("uid=33") && said.stdout.ends_with(&rights(NONE, [NONE, NONE, SIX], NONE)), "{said}");
    assert!(said.code() != 0 && said.stderr.contains("setresuid"), "{said}");
}

#[test]
fn userns_subids_owners_are_real() {
    let Some(home) = home() else { return };
    let script = "cd /tmp; echo secret > f; chown 33:34 f; chmod 400 f; cat f; stat -c '%u %g' f
        mkdir -m 700 d; chown 42 d
        as() { setpriv --reuid $1 --regid 34 --clear-groups sh -c \"$2\" 2>&1; }
        as 33 'cat f'; as 42 'cat f'; as 42 'touch d/x && stat -c %u d/x'; as 33 'touch d/y'
        as 42 'sleep 1000 & echo $!' > pid; as 33 \"kill $(cat pid)\"; kill $(cat pid) && echo killed";
    let said = home.said(&SUBIDS, script);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["secret", "33 34", "secret"], "{said}");
    assert!(lines[3].ends_with("Permission denied") && lines[4] == "42", "{said}");
    assert!(lines[5].ends_with("Permission denied"), "{said}");
    assert!(lines[6].contains("not permitted") && lines.last() == Some(&"killed"), "{said}");
    // One id gives no file away.
    let plain = home.sh(&["--user", "root", "--writable"], "touch /tmp/f; chown 33 /tmp/f");
    assert!(plain.code() != 0 && plain.stderr.contains("Invalid argument"), "{plain}");
}

/// Six capabilities open nothing else: every attack of the suite ends as it does for root of one id, but that which asks for
/// a capability of these.
#[test]
fn escape_subids_capabilities_open_nothing_but_owners() {
    let Some(home) = home() else { return };
    let private = home.path().join("private");
    fs::write(&private, "x").unwrap();
    let targets = Targets { private: Some(private), process: Some(std::process::id()), ..Targets::default() };
    let suite = attacks(&targets);
    // A process that is left behind is no matter of capabilities, and modes with set-user-ID bits are a test of their own.
    let concerns = |word: &&str| *word != "outlive" && !word.contains("setuid");
    let mut words: Vec<&str> = suite.iter().map(|attack| &*attack.word).filter(concerns).collect();
    words.extend(["chmod=/usr/bin", "write=/etc/shadow"]);
    words.sort_unstable();
    words.dedup();
    let with = home.attack(&SUBIDS, &words);
    let without = home.attack(&["--user", "root", "--writable"], &words);
    assert_eq!(with, without);
    let worked: Vec<&str> = suite
        .iter()
        .filter(|attack| with.get(&*attack.word).is_some_and(|said| said == "ok"))
        .map(|a| a.name)
        .collect();
    // The root is writable, and thrown away.
    assert!(
        worked.iter().all(|name| ["write-root", "write-etc", "write-usr", "reopen", "reopen-path"].contains(name)),
        "{worked:?}"
    );
}

/// Numbers of the box's other ids below `directory`, as the host sees them.
fn foreign(directory: &Path) -> Vec<String> {
    let own = fs::metadata(directory.parent().unwrap()).unwrap();
    let find = ["!", "-uid", &own.uid().to_string(), "-o", "!", "-gid", &own.gid().to_string()];
    let found = run(Command::new("find").arg(directory).args(find));
    found.stdout.lines().map(str::to_owned).collect()
}

/// Gives files of the workspace away in every way there is, the workspace itself at last, and waits.
const GIVE_AWAY: &str =
    "cd /workspace; chmod 711 .; umask 077; mkdir -p d/e; touch f d/f d/e/f; ln -s /etc/passwd l; mkfifo p
    chown 5:7 f; chown -h 9 l; chown 9:9 p; chown -R 70:70 d; chgrp 8 g; mkdir open; chmod 777 open
    setpriv --reuid 44 --regid 44 --clear-groups sh -c 'mkdir -m 700 open/of44; touch open/of44/x'
    chown 6 /workspace; echo given";

#[test]
fn escape_subids_leave_no_file_of_another_id_behind() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    fs::write(work.join("g"), "mine").unwrap();
    let workspace = work.display().to_string();
    let flags = [&SUBIDS[..], &["--workspace", &workspace]].concat();
    // A volume of somebody else's container, which belongs to such an id on purpose.
    let volume = home.path().join("work/volume");
    fs::create_dir(&volume).unwrap();
    drop(
        run(Command::new("unshare").args(["--map-auto", "--map-root-user", "chown", "99:99"]).arg(&volume))
            .expect_success(),
    );
    let owner = fs::metadata(&volume).unwrap().uid();

    let id = home.detached(&flags, &format!("{GIVE_AWAY}; exec sleep 1000"));
    assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == "given\n"), "{}", home.say(&["logs", &id]));
    // While it runs they are somebody's whom the user could not be.
    let own = fs::metadata(home.path()).unwrap().uid();
    for name in ["", "f", "d", "l", "p", "open/of44"] {
        assert_ne!(fs::symlink_metadata(work.join(name)).unwrap().uid(), own, "{name}");
    }
    let _stopped = home.say(&["stop", "-t", "0", &id]).expect_success();
    assert_eq!(foreign(&work), [volume.display().to_string()]);
    assert_eq!(fs::metadata(&volume).unwrap().uid(), owner);
    drop(run(Command::new("unshare").args(["--map-auto", "--map-root-user", "rmdir"]).arg(&volume)).expect_success());
    assert!(fs::metadata(work.join("open/of44/x")).is_ok() && fs::read_to_string(work.join("g")).unwrap() == "mine");
    let record = home.record(&id);
    let warnings = record["warnings"].to_string();
    assert!(warnings.contains("files that the command gave to other ids are yours again"), "{record}");
    assert_eq!(record["left"].as_array().map_or(0, Vec::len), 0, "{record}");
}

/// The same when the supervisor is killed: who gives them back is a process of its own.
#[test]
fn escape_subids_leave_nothing_behind_when_the_supervisor_is_killed() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    fs::write(work.join("g"), "mine").unwrap();
    let workspace = work.display().to_string();
    let flags = [&SUBIDS[..], &["--workspace", &workspace]].concat();
    let id = home.detached(&flags, &format!("{GIVE_AWAY}; exec sleep 1000"));
    assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == "given\n"));
    let own = fs::metadata(home.path()).unwrap().uid();
    assert_ne!(fs::metadata(work.join("f")).unwrap().uid(), own);
    let supervisor = home.supervisor(&id);
    let pid = rustix::process::Pid::from_raw(supervisor.pid).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    assert!(wait_until(PATIENCE, || !supervisor.exists()));
    assert!(wait_until(PATIENCE, || foreign(&work).is_empty()), "{:?}", foreign(&work));
}

/// A job that is started again has its ids again, and files keep their owners until the end of all.
#[test]
fn userns_subids_last_over_a_restart() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    let workspace = work.display().to_string();
    let flags = ["--workspace", &workspace, "--restart", "on-failure:1"];
    let script = "cd /workspace; cp /bin/true /tmp/t; chown 9 /tmp/t; chmod 4755 /tmp/t; stat -c %a /tmp/t
        if [ -e f ]; then stat -c %u f; else touch f; chown 70 f; exit 1; fi";
    let ran = run(home.run().args(["-q"]).args(SUBIDS).args(flags).args(["--", "sh", "-c", script])).expect_success();
    assert_eq!(ran.stdout, "755\n755\n70\n", "{ran}");
    assert_eq!(foreign(&work), Vec::<String>::new());
}

/// Modes with set-user-ID bits are made without, whoever asks for them.
#[test]
fn escape_subids_leave_no_set_user_id_program_behind() {
    let Some(home) = home() else { return };
    let work = home.workspace();
    let workspace = work.display().to_string();
    let flags = [&SUBIDS[..], &["--workspace", &workspace]].concat();
    let script = "cd /workspace; cp /bin/true a; chmod 4755 a; cp /bin/true b; chown 33 b; chmod 6755 b; mkdir -m 777 d; cp /bin/true d/c
        chown 33:33 d/c; setpriv --reuid 33 --regid 33 --clear-groups chmod 4755 d/c; install -m 4755 /bin/true e; stat -c %a a b d/c e";
    assert_eq!(home.said(&flags, script), "755\n755\n755\n755\n");
    for name in ["a", "b", "d/c", "e"] {
        assert_eq!(fs::metadata(work.join(name)).unwrap().mode() & 0o7777, 0o755, "{name}");
    }
    // The file system honours the bits where nobody clears them.
    drop(run(Command::new("chmod").arg("4755").arg(work.join("a"))).expect_success());
    assert_eq!(fs::metadata(work.join("a")).unwrap().mode() & 0o7777, 0o4755);
    let job = home.jobs()[0].clone();
    assert_eq!(job["denials"].as_u64().unwrap_or_default(), 0, "{job}");
}

/// A command beside the payload is what the payload is, and a signal reaches who is somebody else by now.
#[test]
fn userns_subids_exec_and_signals() {
    let Some(home) = home() else { return };
    let mount = format!("type=bind,src={},dst={INSIDE}", program().display());
    let script = "exec setpriv --reuid 33 --regid 33 --clear-groups sh -c 'trap \"echo bye; exit 3\" TERM; echo up; while :; do sleep 1; done'";
    let id = home.detached(&[&SUBIDS[..], &["--mount", &mount]].concat(), script);
    assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == "up\n"));
    assert_eq!(home.say(&["exec", &id, "sh", "-c", RIGHTS]).expect_success().stdout, rights(NONE, [SIX; 3], NONE));
    let map = home.say(&["exec", &id, "cat", "/proc/self/uid_map"]).expect_success().stdout;
    assert!(map.lines().count() >= 2, "{map}");
    let _stopped = home.say(&["stop", "-t", "60", &id]).expect_success();
    assert_eq!(home.say(&["logs", &id]).stdout, "up\nbye\n");
    assert_eq!(home.record(&id)["exit_code"].as_i64(), Some(3), "{}", home.record(&id));
}

/// Words that contradict each other, and hosts that have no ranges, before anything is started.
#[test]
fn cli_subids_refuses_what_does_not_go_with_it() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    for (flags, says) in [
        (&["--userns", "subids"][..], "--writable"),
        (&["--userns", "subids", "--writable", "--fake-root"], "--fake-root"),
        (&["--userns", "subids", "--writable", "--keep"], "--keep"),
        (&["--userns", "auto", "--writable"], "subids"),
        (&["--userns", "subids", "--writable", "--user", "nobody"], "--userns subids makes the command root"),
    ] {
        let ran = run(home.run().args(flags).args(["--", "true"]));
        assert!(ran.code() != 0 && ran.stderr.contains(says), "{flags:?}\n{ran}");
    }
    if is_root() {
        let ran = run(home.run().args(SUBIDS).args(["--", "true"]));
        assert!(ran.code() == 125 && ran.stderr.contains("run agentd as an ordinary user"), "{ran}");
    } else if require(Feature::Ranges) {
        let ran = run(home.run().args(SUBIDS).args(["--profile", "nested", "--", "true"]));
        assert!(ran.code() == 125 && ran.stderr.contains("profile nested goes with no --userns subids"), "{ran}");
        let dry = run(home.run().args(SUBIDS).args(["--dry-run", "--", "true"])).expect_success();
        assert!(dry.stdout.contains("0:0 inside (root of several ids)"), "{dry}");
    }
}
