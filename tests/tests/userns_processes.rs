//! The box's processes: which it sees, how they end, and that neither side reaches across.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::attack::{Attack, Control, assert_refused, natively};
use agentd_tests::kernel::Process;
use agentd_tests::{Feature, Home, Started, is_root, require, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

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
    // A zombie that stays keeps the payload, and with it this test, from its end.
    let script = "i=0; while [ $i -lt 200 ]; do (true & exec true); i=$((i+1)); done; \
                  while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do sleep 0.02; done; echo reaped";
    assert_eq!(home.said(&[], script), "reaped\n");
}

/// Processes of this test on the host, by what nothing else has on its command line.
fn marked(mark: &str) -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let has_mark = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark)
    };
    pids.filter(has_mark).filter_map(Process::of).collect()
}

/// Those of them that only sleep.
fn sleepers(mark: &str) -> usize {
    let comm = |process: &Process| fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
    marked(mark).iter().filter(|process| comm(process) == "sleep\n").count()
}

/// Seconds to sleep, as nothing else on this machine does.
fn mark(number: u32) -> String {
    format!("{number}{0}.{0}", std::process::id())
}

/// Leaves three sleepers in sessions and process groups of their own.
const STUBBORN: &str = "trap '' HUP INT QUIT TERM USR1 USR2; (setsid sh -c 'trap \"\" HUP INT QUIT TERM; (exec sleep MARK) & \
                        (setsid sleep MARK &) ; sleep MARK' >/dev/null 2>&1 </dev/null &)";

#[test]
fn escape_daemons_die_with_the_payload() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mark = mark(4);
    let script = STUBBORN.replace("MARK", &mark);
    let all_sleep = "while [ $(cat /proc/[0-9]*/comm 2>/dev/null | grep -c sleep) -lt 3 ]; do :; done";
    assert_eq!(home.said(&[], &format!("{script}; {all_sleep}; echo started")), "started\n");
    assert!(wait_until(PATIENCE, || marked(&mark).is_empty()), "a daemon outlived the box");
    // Without the pid namespace it does outlive whoever started it.
    let _ran = run(Command::new("sh").args(["-c", &script])).expect_success();
    assert!(wait_until(PATIENCE, || sleepers(&mark) == 3), "{:?}", marked(&mark));
    for process in marked(&mark) {
        // The shell goes when it sees the end of what it waits for.
        kill_process(Pid::from_raw(process.pid).unwrap(), Signal::KILL).unwrap_or_default();
    }
    assert!(wait_until(PATIENCE, || marked(&mark).is_empty()));
}

#[test]
fn escape_a_payload_that_ignores_every_signal_is_killed_at_its_timeout() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mark = mark(5);
    let script = format!("{}; while :; do sleep {mark}; done", STUBBORN.replace("MARK", &mark));
    let _ran = home.sh(&["--timeout", "300ms", "--stop-timeout", "300ms"], &script).expect_code(124);
    assert!(wait_until(PATIENCE, || marked(&mark).is_empty()));
}

#[test]
fn escape_a_killed_supervisor_takes_its_box_along() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mark = mark(6);
    let script = format!("{}; sleep {mark}", STUBBORN.replace("MARK", &mark));
    let started = Started::new(home.boxed(&[]).args(["sh", "-c", &script]));
    assert!(wait_until(PATIENCE, || sleepers(&mark) == 4), "{:?}", marked(&mark));
    started.signal(Signal::KILL);
    assert!(wait_until(PATIENCE, || marked(&mark).is_empty()), "processes outlived their supervisor");
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
