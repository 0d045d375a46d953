//! `agentd run -t`: the box's own terminal, and the user's put back as it was on every way out.

use agentd_tests::{Feature, Home, Started, Terminal, require, run, run_with_input, wait_until};
use rustix::process::Signal;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

/// `agentd run -it FLAGS -- sh -c SCRIPT` on `terminal`.
fn start(home: &Home, terminal: &Terminal, flags: &[&str], script: &str) -> Started {
    let mut command: Command = home.run();
    terminal.start(command.arg("-it").args(flags).args(["--", "sh", "-c", script]))
}

/// Turns the echo of the box's terminal off, so that keys do not show up as if the payload had said them.
const QUIET: &str = "stty -echo; echo ready; ";

#[test]
fn the_terminal_is_the_boxes_own() {
    let Some(home) = home() else { return };
    let mut terminal = Terminal::new();
    let script = "tty; for fd in 0 1 2; do [ -t $fd ] && echo tty $fd; done; ls -1 /dev/pts; \
                  (: < /dev/tty) && echo controlling";
    let started = start(&home, &terminal, &[], script);
    let ran = terminal.finish(started).expect_success();
    for line in ["/dev/pts/0\r\n", "tty 0\r\n", "tty 1\r\n", "tty 2\r\n", "0\r\nptmx\r\n", "controlling\r\n"] {
        assert!(ran.stdout.contains(line), "{line:?} is missing\n{ran}");
    }
}

#[test]
fn without_t_there_is_no_terminal_even_if_agentd_has_one() {
    let Some(home) = home() else { return };
    let mut terminal = Terminal::new();
    let script = "for fd in 0 1 2; do [ -t $fd ] && echo tty $fd; done; (: < /dev/tty) 2>/dev/null || echo none";
    let mut command = home.run();
    let started = terminal.start(command.args(["-i", "--", "sh", "-c", script]));
    let ran = terminal.finish(started).expect_success();
    assert_eq!(ran.stdout, "none\r\n");
}

#[test]
fn term_is_passed_on_with_a_terminal_only() {
    let Some(home) = home() else { return };
    let term = |flags: &[&str], outer: Option<&str>| {
        let mut command = home.run();
        outer.map(|outer| command.env("TERM", outer));
        run(command.args(flags).args(["--", "sh", "-c", "echo \"[$TERM]\""])).expect_success().stdout
    };
    assert_eq!(term(&["-t"], Some("screen-256color")), "[screen-256color]\r\n");
    assert_eq!(term(&["-t"], None), "[xterm]\r\n");
    assert_eq!(term(&["-t", "-e", "TERM=dumb"], Some("screen")), "[dumb]\r\n");
    assert_eq!(term(&[], Some("screen")), "[]\n");
}

#[test]
fn the_size_follows_the_users_terminal() {
    let Some(home) = home() else { return };
    let mut terminal = Terminal::new();
    terminal.resize(40, 132);
    let script = "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.02; done";
    let started = start(&home, &terminal, &[], script);
    terminal.wait_for("ready");
    assert!(terminal.shown().contains("40 132\r\n"), "{}", terminal.shown());
    terminal.resize(50, 99);
    let ran = terminal.finish(started).expect_success();
    assert!(ran.stdout.ends_with("50 99\r\n"), "{ran}");
}

// The shells loop over short sleeps: one that is told between two commands would see a long sleep through first.
#[test]
fn keys_reach_the_box_and_control_c_its_foreground_process() {
    let Some(home) = home() else { return };
    let mut terminal = Terminal::new();
    let script = format!(
        "trap 'echo interrupted; exit 7' INT; {QUIET} read line; echo got $line; while :; do sleep 0.02; done; echo never"
    );
    let started = start(&home, &terminal, &[], &script);
    terminal.wait_for("ready");
    terminal.press(b"a word\r");
    terminal.wait_for("got a word");
    terminal.press(b"\x03");
    let ran = terminal.finish(started).expect_code(7);
    assert!(ran.stdout.contains("interrupted") && !ran.stdout.contains("never"), "{ran}");
}

/// A key of the user's terminal, which the box is not on: it interrupts agentd, and agentd the payload.
#[test]
fn control_c_without_t_interrupts_the_payload() {
    let Some(home) = home() else { return };
    for flags in [&[][..], &["-i"]] {
        let mut terminal = Terminal::new();
        let mut command = home.run();
        let started = terminal.start(command.args(flags).args(["--", "sh", "-c", "echo ready; exec sleep 1000"]));
        terminal.wait_for("ready");
        terminal.press(b"\x03");
        let _ran = terminal.finish(started).expect_code(130);
        let record = &home.jobs()[0];
        assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("exited"), Some(130)), "{flags:?}");
    }
}

#[test]
fn control_d_is_the_end_of_input_inside() {
    let Some(home) = home() else { return };
    let mut terminal = Terminal::new();
    let started = start(&home, &terminal, &[], &format!("{QUIET} cat; echo over"));
    terminal.wait_for("ready");
    terminal.press(b"line\r\x04");
    let ran = terminal.finish(started).expect_success();
    assert!(ran.stdout.ends_with("line\r\nover\r\n"), "{ran}");
}

/// While the job runs the user's terminal is raw; `what` ends it; afterwards it must be as before.
#[track_caller]
fn modes_come_back(flags: &[&str], script: &str, code: i32, what: impl FnOnce(&mut Terminal, &Started)) {
    let Some(home) = home() else { return };
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    let started = start(&home, &terminal, flags, script);
    terminal.wait_for("ready");
    assert_ne!(terminal.modes(), before, "raw while the job runs");
    what(&mut terminal, &started);
    let _ran = terminal.finish(started).expect_code(code);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn the_users_modes_come_back_after_a_normal_end() {
    modes_come_back(&[], "echo ready; read l; exit 3", 3, |terminal, _| terminal.press(b"\r"));
}

#[test]
fn the_users_modes_come_back_after_sigterm() {
    modes_come_back(&[], "echo ready; exec sleep 1000", 143, |_, started| started.signal(Signal::TERM));
}

#[test]
fn the_users_modes_come_back_after_sighup() {
    modes_come_back(&[], "echo ready; exec sleep 1000", 143, |_, started| started.signal(Signal::HUP));
}

#[test]
fn the_users_modes_come_back_after_a_timeout() {
    modes_come_back(&["--timeout", "3s"], "echo ready; exec sleep 1000", 124, |_, _| {});
}

#[test]
fn the_users_modes_come_back_after_a_payload_that_must_be_killed() {
    let flags = ["--timeout", "3s", "--stop-timeout", "50ms"];
    modes_come_back(&flags, "trap '' TERM; echo ready; while :; do sleep 0.02; done", 124, |_, _| {});
}

#[test]
fn the_users_modes_come_back_when_the_box_is_killed_from_outside() {
    modes_come_back(&[], "echo ready; exec sleep 1000", 137, |_, started| {
        let supervisor = agentd_tests::kernel::Process::of(started.pid()).unwrap();
        let init = supervisor.descendants()[0].pid;
        rustix::process::kill_process(rustix::process::Pid::from_raw(init).unwrap(), Signal::KILL).unwrap();
    });
}

#[test]
fn the_users_modes_come_back_after_a_start_that_fails() {
    let Some(home) = home() else { return };
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    let mount = format!("src={},dst=/etc/passwd/x", home.workspace().display());
    for (flags, program, code) in [(&[][..], "/no/such/program", 127), (&["--mount", &mount][..], "true", 125)] {
        let mut command = home.run();
        let started = terminal.start(command.arg("-it").args(flags).args(["--", program]));
        let ran = terminal.finish(started).expect_code(code);
        assert_eq!(terminal.modes(), before);
        assert!(ran.stdout.starts_with("agentd: cannot ") && ran.stdout.ends_with("\r\n"), "{ran}");
        assert_eq!(ran.stdout.lines().count(), 1, "{ran}");
    }
}

#[test]
fn a_terminal_that_goes_away_ends_the_job() {
    let Some(home) = home() else { return };
    for flag in ["-it", "-t", "-i"] {
        let mut terminal = Terminal::new();
        let mut command = home.run();
        let mut started = terminal.start(command.args([flag, "--", "sh", "-c", "echo ready; exec sleep 1000"]));
        terminal.wait_for("ready");
        let supervisor = agentd_tests::kernel::Process::of(started.pid()).unwrap();
        let boxed = supervisor.descendants();
        assert!(boxed.len() >= 2, "PID 1 and the payload: {boxed:?}");
        drop(terminal);
        assert!(wait_until(PATIENCE, || started.has_ended()), "{flag}: agentd still runs");
        // PID 1 may still be on its way out (docs/adr/0008).
        let is_gone = || boxed.iter().all(|process| !process.exists());
        assert!(wait_until(PATIENCE, is_gone), "{flag}: the box still runs");
        let record = &home.jobs()[0];
        assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("exited"), Some(143)), "{flag}");
    }
}

/// A script may give a terminal to a payload that wants one although its own input is a pipe. At the end of that pipe
/// the payload must see an end, or agentd must have said at once that it cannot.
#[test]
fn the_end_of_a_pipe_as_input_of_a_terminal_does_not_hang() {
    let Some(home) = home() else { return };
    let ran = run_with_input(home.run().args(["-it", "--timeout", "30s", "--", "cat"]), b"hello\n");
    assert!(ran.code() != 124, "cat waits for an end of input that never comes\n{ran}");
}

#[test]
fn large_output_through_a_terminal_is_complete() {
    let Some(home) = home() else { return };
    let ran = run(home.run().args(["-t", "--", "seq", "100000"])).expect_success();
    let expected: String = (1..=100_000).map(|i| format!("{i}\r\n")).collect();
    assert!(ran.stdout == expected, "{} of {} bytes", ran.stdout.len(), expected.len());
}

/// Keys that the payload does not read fill the box's terminal; agentd must not sleep on it.
#[test]
fn a_payload_that_reads_nothing_does_not_outlast_its_timeout() {
    let Some(home) = home() else { return };
    let flags = ["-it", "--timeout", "1s", "--stop-timeout", "1s", "--", "sh", "-c", "stty raw -echo; exec sleep 1000"];
    let ran = run_with_input(home.run().args(flags), &vec![b'x'; 1 << 20]);
    assert_eq!(ran.code(), 124, "{ran}");
}

/// A terminal that nobody looks at any more takes no output; the timeout holds all the same.
#[test]
fn a_terminal_that_takes_no_output_does_not_hold_the_job_up() {
    let Some(home) = home() else { return };
    for flags in [&[][..], &["-t"], &["-it"]] {
        let terminal = Terminal::new();
        let mut command = home.run();
        command.args(flags).args(["--timeout", "1s", "--stop-timeout", "1s", "--", "yes"]);
        let mut started = terminal.start(&command);
        assert!(wait_until(PATIENCE, || started.has_ended()), "{flags:?}");
        assert_eq!(started.finish().code(), 124, "{flags:?}");
    }
}
