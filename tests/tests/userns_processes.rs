//! The box's processes: which it sees, how they end, and that neither side reaches across.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::attack::{Attack, Control, assert_refused, natively};
use agentd_tests::{Feature, Home, Started, is_root, require, run, wait_until};

#[test]
fn userns_proc_shows_the_boxs_processes_only() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let said = home.said(&[], "sleep 9 & for p in /proc/[0-9]*; do echo \"$(cat $p/comm)\"; done | sort");
    let allowed = ["agentd", "sh", "sleep", "cat", "sort"];
    assert!(said.lines().all(|name| allowed.contains(&name)), "{said}");
    assert!(said.lines().count() <= 6, "{said}");
}

#[test]
fn userns_orphans_are_reaped() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    // Each of 200 is left by its parent at once; a zombie would be theirs to whom nobody is a parent.
    let script = "i=0; while [ $i -lt 200 ]; do (true & exec true); i=$((i+1)); done; sleep 0.2; \
                  grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    assert_eq!(home.said(&[], script).trim(), "0");
}

/// Marks a process of this test on the host: a name that nothing else has.
fn alive(mark: &str) -> bool {
    fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|entry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line);
            line.contains(mark) && !line.contains("AGENTD-WRAPPER")
        })
    })
}

const STUBBORN: &str = "trap '' HUP INT QUIT TERM USR1 USR2; (setsid sh -c 'trap \"\" HUP INT QUIT TERM; (exec sleep MARK) & \
                        (setsid sleep MARK &) ; sleep MARK' >/dev/null 2>&1 </dev/null &)";

#[test]
fn escape_daemons_die_with_the_payload() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mark = format!("4{}", std::process::id());
    let script = STUBBORN.replace("MARK", &mark);
    let ran = home.sh(&[], &format!("{script}; sleep 0.1; echo started"));
    assert_eq!(ran.expect_success().stdout, "started\n");
    assert!(wait_until(Duration::from_secs(2), || !alive(&mark)), "a daemon outlived the box");
    // Without the pid namespace it does outlive whoever started it.
    run(Command::new("sh").args(["-c", &format!("{script}; sleep 0.1")]));
    assert!(alive(&mark));
    run(Command::new("sh").args([
        "-c",
        &format!(
            "for p in /proc/[0-9]*; do grep -qa 'sleep.{mark}' $p/cmdline 2>/dev/null && kill -9 ${{p##*/}}; done; true"
        ),
    ]));
}

#[test]
fn escape_a_payload_that_ignores_every_signal_is_killed_at_its_timeout() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mark = format!("5{}", std::process::id());
    let script = format!("{}; while :; do sleep {mark}; done", STUBBORN.replace("MARK", &mark));
    let ran = home.sh(&["--timeout", "300ms", "--stop-timeout", "300ms"], &script).expect_code(124);
    assert!(ran.took < Duration::from_secs(5), "{ran}");
    assert!(wait_until(Duration::from_secs(2), || !alive(&mark)));
}

#[test]
fn escape_a_killed_supervisor_takes_its_box_along() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mark = format!("6{}", std::process::id());
    let script = format!("{}; echo started; sleep {mark}", STUBBORN.replace("MARK", &mark));
    let mut started = Started::new(home.boxed(&[]).args(["sh", "-c", &script]));
    started.wait_for("started");
    assert!(alive(&mark));
    let pid = started.pid();
    run(Command::new("kill").args(["-9", &pid.to_string()]));
    assert!(wait_until(Duration::from_secs(2), || !alive(&mark)), "processes outlived their supervisor");
}

/// PID 1 is a copy of the supervisor: its memory, its arguments and its environment are the host's.
#[test]
fn escape_pid_1_cannot_be_looked_into() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let attacks = [
        Attack::new("ptrace=1", "EPERM", Control::InNamespaces),
        Attack::new("read-memory=1", "EPERM|EACCES|ENOENT", Control::InNamespaces),
        Attack::new("write-memory=1", "EPERM|EACCES|ENOENT", Control::InNamespaces),
        // EFAULT: past the check of who asks, there is nothing at that address.
        Attack::new("read-vm=1", "EPERM", Control::InNamespaces).outside("EFAULT"),
        Attack::new("steal-descriptor=1", "EPERM", Control::InNamespaces),
        Attack::new("signal=1", "EPERM", Control::InNamespaces),
        Attack::new("list=/proc/1/fd", "EPERM|EACCES|ENOENT", Control::InNamespaces),
        Attack::new("list=/proc/1/root/", "EPERM|EACCES|ENOENT", Control::InNamespaces),
        Attack::new("list=/proc/1/cwd/", "EPERM|EACCES|ENOENT", Control::InNamespaces),
        Attack::new("list=/proc/1/map_files", "EPERM|EACCES|ENOENT", Control::InNamespaces),
        Attack::new("read=/proc/1/exe", "EPERM|EACCES|ENOENT", Control::InNamespaces),
        Attack::new("write=/proc/1/oom_score_adj", "EPERM|EACCES|ENOENT", Control::InNamespaces),
        // The same on a process of the box's own is a debugger's daily work.
        Attack::new("ptrace=child", "ok", Control::Natively),
        Attack::new("read-memory=child", "ok", Control::Natively),
        // A job of the host's root has a read-only /proc, and with it /proc/PID/mem.
        Attack::new("write-memory=child", if is_root() { "EROFS" } else { "ok" }, Control::Natively),
        Attack::new("read-vm=child", "ok", Control::Natively),
        Attack::new("steal-descriptor=child", "ok", Control::Natively),
    ];
    assert_refused(&home, &[], &attacks);
}

/// How agentd was called says where the host keeps what, and `--env NAME=VALUE` is part of it.
#[test]
fn escape_the_supervisors_command_line_is_not_readable_inside() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let secret = home.path().join("secret-project");
    fs::create_dir(&secret).unwrap();
    let said = home.said(&["--workspace", secret.to_str().unwrap()], "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'");
    assert!(!said.contains("secret-project"), "{said}");
}

/// CVE-2019-5736: the program behind PID 1 is the host's agentd; nobody inside may write or replace it.
#[test]
fn escape_cve_2019_5736_the_binary_cannot_be_written_from_inside() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let attacks = [
        Attack::new(
            "write=/proc/1/exe",
            "EPERM|EACCES|ENOENT",
            Control::Nowhere("the program of a running process is busy"),
        ),
        Attack::new("reopen=/proc/1/exe", "EPERM|EACCES|ENOENT", Control::Nowhere("the same")),
        Attack::new("write=/proc/self/exe", "EACCES|ETXTBSY", Control::Nowhere("the same")),
        Attack::new("chmod=/attack", "EROFS|EPERM", Control::Nowhere("by another path: below")),
    ];
    assert_refused(&home, &[], &attacks);
    let copy = home.path().join("copy");
    fs::copy(agentd_tests::agentd(), &copy).unwrap();
    let words = ["write", "reopen", "chmod"].map(|verb| format!("{verb}={}", copy.display()));
    let outcomes = natively(&words.each_ref().map(String::as_str));
    assert!(outcomes.values().all(|outcome| outcome == "ok"), "{outcomes:?}");
}

#[test]
fn escape_signals_and_traces_do_not_cross_the_wall() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    // A process of the same user on the host, whose number there the payload may well know.
    let mut host = Started::new(Command::new("sh").args(["-c", "echo ready; exec sleep 60"]));
    host.wait_for("ready");
    let words = ["signal", "ptrace", "read-memory", "steal-descriptor"].map(|verb| format!("{verb}={}", host.pid()));
    let words = words.each_ref().map(String::as_str);
    assert!(natively(&words).values().all(|outcome| outcome == "ok"), "{:?}", natively(&words));
    let inside = home.attack(&["--net", "host"], &words);
    assert!(inside.values().all(|outcome| outcome != "ok"), "{inside:?}");
    run(home.boxed(&[]).args(["sh", "-c", "kill -9 -1; true"]));
    assert!(!host.has_ended());
}

#[test]
fn escape_a_fork_bomb_meets_a_bound() {
    if !require(Feature::Userns) || !require(Feature::OrdinaryUser) {
        return;
    }
    let home = Home::new();
    assert_eq!(home.attack(&[], &["forks=6000"])["forks=6000"], "EAGAIN");
    assert_eq!(natively(&["forks=1000"])["forks=1000"], "ok");
}
