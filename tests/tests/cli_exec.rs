//! `agentd exec`: a command beside the payload, in the same box.

use std::time::Duration;

use agentd_tests::kernel::{Cgroup, Process};
use agentd_tests::{Feature, Home, Started, Terminal, require, run, run_with_input, wait_until};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Option<(Home, String)> {
    require(Feature::Userns).then(|| {
        let home = Home::new();
        let id = home.detached(&["--name", "j"], "exec sleep 1000");
        (home, id)
    })
}

#[test]
fn codes_and_streams_are_the_commands() {
    let Some((home, _)) = home() else { return };
    let ran = home.say(&["exec", "j", "sh", "-c", "echo out; echo err >&2; exit 7"]).expect_code(7);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
    let _ran = home.say(&["exec", "j", "sh", "-c", "kill -SEGV $$"]).expect_code(139);
    home.say(&["exec", "j", "no-such-program"]).expect_code(127).expect_one_error_line(&["no-such-program"]);
    home.say(&["exec", "j", "/etc/passwd"]).expect_code(126).expect_one_error_line(&["/etc/passwd"]);
    home.say(&["exec", "-w", "/no/such", "j", "true"]).expect_code(125).expect_one_error_line(&["/no/such"]);
    home.say(&["exec", "no-such-job", "true"]).expect_code(125).expect_one_error_line(&["no-such-job"]);
    let echoed = run_with_input(home.agentd().args(["exec", "-i", "j", "tr", "a-z", "A-Z"]), b"hello\n");
    assert_eq!(echoed.expect_success().stdout, "HELLO\n");
    assert_eq!(home.say(&["exec", "j", "cat"]).expect_silent_success().stdout, "", "no input without -i");
    let much = home.say(&["exec", "j", "head", "-c", "3000000", "/dev/zero"]).expect_silent_success();
    assert_eq!(much.stdout_bytes.len(), 3_000_000);
}

#[test]
fn the_environment_is_the_jobs_and_what_is_said() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let _id = home.detached(&["--name", "j", "-e", "A=1", "-e", "B=2"], "exec sleep 1000");
    let script = "echo $A $B $C; pwd; echo $HOME";
    let ran =
        home.say(&["exec", "-e", "B=3", "-e", "C=4", "-w", "/tmp", "j", "sh", "-c", script]).expect_silent_success();
    assert_eq!(ran.stdout, "1 3 4\n/tmp\n/home/agent\n");
    let env = run(home.agentd().env("HOST_ONLY", "secret").args(["exec", "j", "env"])).expect_success().stdout;
    assert!(!env.contains("HOST_ONLY"), "{env}");
}

#[test]
fn files_are_the_jobs_own() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let _id = home.detached(&["--name", "j"], "echo mine > /tmp/file; echo ready; exec sleep 1000");
    assert!(wait_until(PATIENCE, || home.say(&["logs", "j"]).stdout == "ready\n"));
    let ran = home.say(&["exec", "j", "sh", "-c", "cat /tmp/file; echo yours > /tmp/file"]).expect_silent_success();
    assert_eq!(ran.stdout, "mine\n");
    assert_eq!(home.say(&["exec", "j", "cat", "/tmp/file"]).expect_success().stdout, "yours\n");
}

#[test]
fn a_terminal_is_the_boxes_own_and_the_users_comes_back() {
    let Some((home, _)) = home() else { return };
    let mut terminal = Terminal::new();
    terminal.resize(37, 111);
    let before = terminal.modes();
    let script = "tty; (: < /dev/tty) && echo controlling; stty size; stty -echo; echo ready; read line; echo got $line; \
                  while [ \"$(stty size)\" = '37 111' ]; do sleep 0.02; done; stty size; exit 6";
    let mut command = home.agentd();
    let started = terminal.start(command.args(["exec", "-it", "j", "sh", "-c", script]));
    terminal.wait_for("ready");
    assert_ne!(terminal.modes(), before);
    terminal.resize(50, 99);
    terminal.press(b"a word\r");
    let ran = terminal.finish(started).expect_code(6);
    for line in ["/dev/pts/0\r\n", "controlling\r\n", "37 111\r\n", "got a word\r\n50 99\r\n"] {
        assert!(ran.stdout.contains(line), "{line:?} is missing\n{ran}");
    }
    assert_eq!(terminal.modes(), before);
}

#[test]
fn signals_reach_the_command() {
    let Some((home, _)) = home() else { return };
    let script = "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let mut command = Started::new(home.agentd().args(["exec", "j", "sh", "-c", script]));
    command.wait_for("ready\n");
    command.signal(Signal::TERM);
    assert_eq!(command.finish().expect_code(5).stdout, "ready\ntold\n");
    assert_eq!(home.record("j")["state"], "running");
}

/// Names of the box's processes, as its supervisor's host sees them.
fn inside(home: &Home) -> Vec<String> {
    let comm = |process: &Process| std::fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
    home.supervisor("j").descendants().iter().map(comm).collect()
}

#[test]
fn a_command_ends_with_its_caller_and_the_job_goes_on() {
    let Some((home, _)) = home() else { return };
    let mut command = Started::new(home.agentd().args(["exec", "j", "sh", "-c", "echo ready; exec tail -f /dev/null"]));
    command.wait_for("ready\n");
    assert!(
        wait_until(PATIENCE, || inside(&home).contains(&"tail\n".to_owned())),
        "a child of PID 1: {:?}",
        inside(&home)
    );
    command.signal(Signal::KILL);
    let _ran = command.finish().expect_code(-9);
    assert!(wait_until(PATIENCE, || inside(&home).len() == 2), "{:?}", inside(&home));
    assert_eq!(home.record("j")["state"], "running");
}

#[test]
fn a_command_ends_with_the_job() {
    let Some((home, _)) = home() else { return };
    let mut command = Started::new(home.agentd().args([
        "exec",
        "j",
        "sh",
        "-c",
        "trap '' TERM; echo ready; while :; do sleep 1; done",
    ]));
    command.wait_for("ready\n");
    let _ran = home.say(&["kill", "j"]).expect_silent_success();
    let ran = command.finish().expect_code(137);
    ran.expect_one_error_line(&["ended"]);
}

fn twenty_get_their_answers(home: &Home) {
    let commands: Vec<_> = (0..20)
        .map(|i| Started::new(home.agentd().args(["exec", "j", "sh", "-c", &format!("echo {i}; exit {i}")])))
        .collect();
    for (i, command) in (0..).zip(commands) {
        assert_eq!(command.finish().expect_code(i).stdout, format!("{i}\n"));
    }
}

/// Ends the job `j`.
fn one_that_is_stopped_holds_nothing_up(home: &Home) {
    let mut command = Started::new(home.agentd().args(["exec", "j", "sh", "-c", "echo ready; exec sleep 1000"]));
    command.wait_for("ready\n");
    command.signal(Signal::STOP);
    let _ran = home.say(&["stop", "-t", "1s", "j"]).expect_silent_success();
    assert_eq!(home.record("j")["state"], "exited");
    command.signal(Signal::CONT);
    let _ran = command.finish().expect_code(137);
}

/// A job that a service started is in the service's cgroup, and what joins it is too, wherever its caller is.
#[test]
fn a_command_is_in_the_cgroup_of_a_job_without_limits() {
    if !require(Feature::Userns) || !require(Feature::Root) {
        return;
    }
    let Some(cgroup) = Cgroup::new() else { return };
    let home = Home::new();
    let mut job = home.run();
    job.args(["-q", "-d", "--name", "j", "--", "sleep", "1000"]);
    let _ran = run(&mut cgroup.around(&job)).expect_success();
    // On a host of cgroup v2 root's jobs have cgroups of their own, limits or not.
    if !cgroup.holds(&home.supervisor("j").descendants()[0]) {
        return;
    }
    let mut command = Started::new(home.agentd().args(["exec", "j", "sh", "-c", "echo ready; exec tail -f /dev/null"]));
    command.wait_for("ready\n");
    assert!(wait_until(PATIENCE, || inside(&home).contains(&"tail\n".to_owned())), "{:?}", inside(&home));
    let outside = home.supervisor("j").descendants().into_iter().filter(|process| !cgroup.holds(process));
    assert_eq!(outside.collect::<Vec<_>>(), []);
    command.signal(Signal::TERM);
    let _ran = command.finish().expect_code(143);
    assert!(wait_until(PATIENCE, || inside(&home).len() == 2), "{:?}", inside(&home));
    // What fails in there is told as it is anywhere.
    home.say(&["exec", "j", "no-such-program"]).expect_code(127).expect_one_error_line(&["no-such-program"]);
    home.say(&["exec", "-w", "/no/such", "j", "true"]).expect_code(125).expect_one_error_line(&["/no/such"]);
    // Twenty at once; and the supervisor has let go of every process that it has started.
    twenty_get_their_answers(&home);
    assert!(wait_until(PATIENCE, || inside(&home).len() == 2), "{:?}", inside(&home));
    // One that asks and is stopped holds nothing up.
    one_that_is_stopped_holds_nothing_up(&home);
}

/// A zombie in the box that only somebody outside can reap would hold up the end of its PID 1.
#[test]
fn a_stopped_exec_does_not_hold_the_jobs_end_up() {
    let Some((home, _)) = home() else { return };
    one_that_is_stopped_holds_nothing_up(&home);
}

#[test]
fn twenty_at_once_all_get_their_answers() {
    let Some((home, _)) = home() else { return };
    twenty_get_their_answers(&home);
    assert_eq!(inside(&home).len(), 2, "{:?}", inside(&home));
}
