//! `--restart`: what is started again, what is not, and that it stays one job.

use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::kernel::Process;
use agentd_tests::{Feature, Home, Started, Terminal, require, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

/// `agentd run` of a script that first notes in the workspace that it began.
fn noting(home: &Home, flags: &[&str], script: &str) -> Command {
    let mut command = home.run();
    command.arg("--workspace").arg(home.workspace()).args(flags);
    command.args(["--", "sh", "-c", &format!("echo x >> runs; n=$(wc -l < runs); echo run $n; {script}")]);
    command
}

fn runs(home: &Home) -> usize {
    fs::read_to_string(home.workspace().join("runs")).unwrap_or_default().lines().count()
}

#[test]
fn a_command_that_fails_is_started_again_as_often_as_was_said() {
    let Some(home) = home() else { return };
    let ran =
        run(&mut noting(&home, &["--restart", "on-failure:3", "--name", "x"], "echo $PPID >&2; exit 7")).expect_code(7);
    assert_eq!(ran.stdout, "run 1\nrun 2\nrun 3\nrun 4\n");
    assert_eq!(home.say(&["logs", "x"]).expect_success().stdout, ran.stdout, "one log for all");
    let record = home.record("x");
    assert_eq!((record["restarts"].as_u64(), record["exit_code"].as_u64()), (Some(3), Some(7)), "{record}");
    assert_eq!(record["plan"]["restart"], "on-failure:3");
    let shown = home.say(&["ps", "-a", "--format", "{{.Name}} {{.Restarts}}"]).expect_silent_success().stdout;
    assert_eq!(shown, "x 3\n");
}

#[test]
fn a_command_that_succeeds_in_the_end_is_done() {
    let Some(home) = home() else { return };
    let ran = run(&mut noting(&home, &["--restart", "on-failure"], "test $n = 3")).expect_success();
    assert_eq!(ran.stdout, "run 1\nrun 2\nrun 3\n");
    let _ran = run(&mut noting(&home, &["-q", "--restart", "no"], "exit 1")).expect_code(1);
    assert_eq!(runs(&home), 4);
}

#[test]
fn what_cannot_start_or_conflicts_is_told_at_once() {
    let Some(home) = home() else { return };
    let ran = run(home.run().args(["--restart", "always", "--", "/no/such/program"])).expect_code(127);
    ran.expect_one_error_line(&["/no/such/program"]);
    let read = home.path().join("read");
    let key = format!("KEY@api.test=cmd:touch {}", read.display());
    for (other, named) in [
        (&["--rm"][..], "--rm"),
        (&["--writable", "--fake-root"], "--fake-root"),
        (&["--secret", &key], "a key that the broker adds"),
    ] {
        let ran = run(home.run().args(["--restart", "always"]).args(other).args(["--", "true"])).expect_code(125);
        // What stands in the way, why, and what does it instead.
        ran.expect_one_error_line(&[named, "conflicts with --restart always: ", "agentd generate systemd"]);
    }
    assert!(read.symlink_metadata().is_err(), "no key was asked for");
    let ran = run(home.run().args(["--restart", "sometimes", "--", "true"])).expect_code(125);
    assert!(ran.stderr.contains("on-failure:N"), "{ran}");
    let _ran = run(home.run().args(["--restart", "no", "--rm", "--", "true"])).expect_success();
}

#[test]
fn stop_ends_it_while_it_runs_and_while_it_waits() {
    let Some(home) = home() else { return };
    // The first run hangs; from the third on it ends at once, and the pauses grow.
    let started = run(&mut noting(&home, &["-d", "--restart", "always"], "test $n = 1 && exec sleep 1000; exit 0"));
    let id = started.expect_silent_success().stdout.trim().to_owned();
    assert!(wait_until(PATIENCE, || runs(&home) == 1));
    let _ran = home.say(&["stop", &id]).expect_silent_success();
    let record = home.record(&id);
    assert_eq!((record["exit_code"].as_i64(), record["restarts"].as_i64()), (Some(143), None), "{record}");
    assert_eq!(runs(&home), 1);

    for (verb, reason) in [("stop", "agentd stop"), ("kill", "agentd kill")] {
        fs::remove_file(home.workspace().join("runs")).unwrap_or_default();
        let started = run(&mut noting(&home, &["-d", "--restart", "always"], "exit 5")).expect_silent_success();
        let id = started.stdout.trim().to_owned();
        // By then it waits for longer than it runs.
        assert!(wait_until(PATIENCE, || runs(&home) >= 4));
        let supervisor = home.supervisor(&id);
        assert!(wait_until(PATIENCE, || supervisor.descendants().is_empty()), "nothing of the box is there in a pause");
        assert_eq!(home.say(&["ps", "-q"]).expect_silent_success().stdout, format!("{id}\n"), "it counts as running");
        assert!(home.record(&id)["restarts"].as_u64().is_some_and(|count| count >= 3));
        let _ran = home.say(&[verb, &id]).expect_silent_success();
        let ended = runs(&home);
        let record = home.record(&id);
        assert!(record["reason"].as_str().is_some_and(|why| why.contains(reason)), "{record}");
        // The record has its end first.
        assert!(wait_until(PATIENCE, || !supervisor.exists()));
        assert_eq!(runs(&home), ended);
    }
}

#[test]
fn the_timeout_is_for_all_starts_together() {
    let Some(home) = home() else { return };
    let ran = run(&mut noting(&home, &["--restart", "always", "--timeout", "4s"], "exit 1")).expect_code(124);
    assert!(ran.stderr.contains("timeout of 4s"), "{ran}");
    assert!(runs(&home) >= 2);
}

#[test]
fn a_signal_from_the_terminal_ends_it() {
    let Some(home) = home() else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut started = Started::new(&mut noting(&home, &["--restart", "always"], "exec sleep 1000"));
        started.wait_for("run");
        started.signal(signal);
        let ran = started.finish();
        assert!(ran.code() > 128, "{signal:?} {ran}");
        assert_eq!(ran.stdout.lines().count(), 1, "{ran}");
    }
}

#[test]
fn who_is_attached_stays_attached_and_secrets_are_there_each_time() {
    let Some(home) = home() else { return };
    let script = "cat /run/secrets/KEY; while [ ! -e go$n ]; do sleep 0.02; done; echo went $n; exit 1";
    let mut command = noting(&home, &["-d", "--restart", "on-failure:2", "--secret", "KEY"], script);
    let id = run(command.env("KEY", "hunter2hunter2")).expect_silent_success().stdout.trim().to_owned();
    assert!(wait_until(PATIENCE, || runs(&home) == 1));
    let mut viewer = Started::new(home.agentd().args(["attach", &id]));
    let go = |number: u32| fs::write(home.workspace().join(format!("go{number}")), "");
    home.wait_until_attached(&viewer, &id);
    go(1).unwrap_or_else(|e| panic!("{e}"));
    viewer.wait_for("run 2\n");
    go(2).unwrap_or_else(|e| panic!("{e}"));
    viewer.wait_for("run 3\n");
    go(3).unwrap_or_else(|e| panic!("{e}"));
    let viewed = viewer.finish().expect_code(1);
    assert!(viewed.stdout.ends_with("hunter2hunter2went 3\n"), "{viewed}");
    let logs = home.say(&["logs", &id]).expect_success().stdout;
    assert!(!logs.contains("hunter2") && logs.contains("went 1\nrun 2\n") && logs.ends_with("went 3\n"), "{logs}");
}

#[test]
fn a_terminal_and_a_network_come_anew_each_time() {
    let Some(home) = home() else { return };
    let command = noting(&home, &["-t", "--restart", "on-failure:2"], "test -t 1 && echo a terminal; exit 3");
    let mut terminal = Terminal::new();
    let started = terminal.start(&command);
    let shown = terminal.finish(started).expect_code(3).stdout;
    assert_eq!(shown.matches("a terminal").count(), 3, "{shown}");
    let script = "getent hosts refused.test; exit 4";
    let flags = ["-q", "--name", "net", "--restart", "on-failure:2", "--allow", "allowed.test"];
    let _ran = run(&mut noting(&home, &flags, script)).expect_code(4);
    let record = home.record("net");
    assert!(record["network"]["refused"].as_u64().is_some_and(|refused| refused >= 3), "{record}");
}

#[test]
fn what_was_denied_while_it_ran_stays_denied() {
    let Some(home) = home() else { return };
    let script = "getent hosts one.test >/dev/null && echo resolved || echo unknown; while [ ! -e go$n ]; do sleep 0.02; done; exit 1";
    let flags = ["-d", "--restart", "on-failure:1", "--allow", "one.test", "--add-host", "one.test:10.0.0.1"];
    let id = run(&mut noting(&home, &flags, script)).expect_silent_success().stdout.trim().to_owned();
    let said = |text: &str| wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == text);
    assert!(said("run 1\nresolved\n"), "{}", home.say(&["logs", &id]));
    let _ran = home.say(&["deny", &id, "one.test"]).expect_success();
    fs::write(home.workspace().join("go1"), "").unwrap_or_else(|e| panic!("{e}"));
    assert!(said("run 1\nresolved\nrun 2\nunknown\n"), "{}", home.say(&["logs", &id]));
    let _ran = home.say(&["stop", &id]).expect_silent_success();
    assert_eq!(home.record(&id)["network"]["changes"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_supervisor_killed_in_a_pause_leaves_a_lost_job_that_knows_its_starts() {
    let Some(home) = home() else { return };
    let started = run(&mut noting(&home, &["-d", "--restart", "always"], "exit 5")).expect_silent_success();
    let id = started.stdout.trim().to_owned();
    assert!(wait_until(PATIENCE, || runs(&home) >= 4));
    let supervisor: Process = home.supervisor(&id);
    kill_process(Pid::from_raw(supervisor.pid).unwrap_or(Pid::INIT), Signal::KILL).unwrap_or_else(|e| panic!("{e}"));
    assert!(wait_until(PATIENCE, || home.record(&id)["state"] == "lost"));
    assert!(home.record(&id)["restarts"].as_u64().is_some_and(|count| count >= 3), "{}", home.record(&id));
    assert!(supervisor.descendants().is_empty());
}
