//! Signals to the supervisor reach the payload's whole process group; those that end a job end it.

use std::process::Command;

use agentd_tests::{Started, run};
use rustix::process::Signal;

use crate::home;

/// Parent and child, both of the payload's process group, say what they got. The shell's own trap runs once the
/// subshell is gone, so the order is fixed.
const BOTH: &str = "trap 'echo parent; exit 5' SIGNAL; \
     (trap 'echo child; exit 0' SIGNAL; echo ready; while :; do sleep 0.02; done); exit 9";

#[test]
fn signals_are_relayed_to_the_whole_process_group() {
    let Some(home) = home() else { return };
    let relayed = [
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::TERM, "TERM"),
    ];
    for (signal, name) in relayed {
        let mut started = Started::new(home.run().args(["--", "sh", "-c", &BOTH.replace("SIGNAL", name)]));
        started.wait_for("ready\n");
        started.signal(signal);
        let ran = started.finish().expect_code(5);
        assert_eq!(ran.stdout, "ready\nchild\nparent\n", "{name}");
    }
}

#[test]
fn a_signal_nobody_caught_shows_in_the_exit_code() {
    let Some(home) = home() else { return };
    for (signal, code) in [(Signal::INT, 130), (Signal::QUIT, 131), (Signal::TERM, 143), (Signal::USR1, 138)] {
        let mut started = Started::new(home.run().args(["--", "sh", "-c", "echo ready; exec sleep 1000"]));
        started.wait_for("ready\n");
        started.signal(signal);
        let _ran = started.finish().expect_code(code);
        assert_eq!(home.jobs()[0]["exit_code"], code);
    }
}

/// SIGHUP means that the user is gone: the job is stopped, by SIGTERM as always.
#[test]
fn a_hangup_stops_the_job() {
    let Some(home) = home() else { return };
    let mut started = Started::new(home.run().args(["--", "sh", "-c", &BOTH.replace("SIGNAL", "TERM")]));
    started.wait_for("ready\n");
    started.signal(Signal::HUP);
    let ran = started.finish().expect_code(5);
    assert_eq!(ran.stdout, "ready\nchild\nparent\n");
    assert!(home.jobs()[0]["reason"].as_str().is_some_and(|reason| reason.contains("stopped")), "{:?}", home.jobs());
}

#[test]
fn a_stop_that_is_ignored_ends_in_sigkill_after_the_grace_period() {
    let Some(home) = home() else { return };
    for signal in [Signal::TERM, Signal::HUP] {
        let script = "trap '' TERM; echo ready; while :; do sleep 0.02; done";
        let mut started = Started::new(home.run().args(["--stop-timeout", "100ms", "--", "sh", "-c", script]));
        started.wait_for("ready\n");
        started.signal(signal);
        let _ran = started.finish().expect_code(137);
        assert_eq!(home.jobs()[0]["exit_code"], 137);
    }
}

#[test]
fn an_interrupt_that_is_handled_goes_on() {
    let Some(home) = home() else { return };
    let script = "trap 'echo again' INT; trap 'exit 6' USR1; echo ready; while :; do sleep 0.02; done";
    let mut started = Started::new(home.run().args(["--", "sh", "-c", script]));
    started.wait_for("ready\n");
    started.signal(Signal::INT);
    started.wait_for("again\n");
    started.signal(Signal::USR1);
    let _ran = started.finish().expect_code(6);
}

/// The supervisor may be told to stop before the box is up; it must neither hang nor leave the payload running.
#[test]
fn a_stop_at_any_moment_of_the_start_ends_the_job() {
    let Some(home) = home() else { return };
    for delay in 0..20_u64 {
        let started = Started::new(home.run().args(["--", "sleep", "1000"]));
        // No event exists to wait for: the moments of the start are what is tried.
        std::thread::sleep(std::time::Duration::from_micros(delay * 700));
        started.signal(Signal::TERM);
        let ran = started.finish();
        assert!([-15, 143, 137].contains(&ran.code()), "after {delay}\n{ran}");
    }
    assert!(home.jobs().iter().all(|record| record["state"] == "exited"), "{:#?}", home.jobs());
}

/// What a program ignores, the programs it starts ignore as well; of children that are ignored nobody hears.
#[test]
fn a_job_ends_though_its_starter_ignores_sigchld() {
    let Some(home) = home() else { return };
    let agentd = home.run();
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "20", "env", "--ignore-signal=CHLD"]).arg(agentd.get_program()).args(agentd.get_args());
    for (name, value) in agentd.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    drop(run(command.args(["--", "sh", "-c", "true; exit 3"])).expect_code(3));
}
