//! Jobs in the background: `run -d` and the verbs that reach a job that runs (attach, stop, kill, wait, logs -f, rm -f).

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentd_tests::kernel::Process;
use agentd_tests::{Feature, Home, Started, Terminal, require, run, wait_until};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

/// Says `ready` and goes on until it is stopped.
const ENDLESS: &str = "echo ready; exec sleep 1000";

#[test]
fn a_detached_job_prints_its_id_and_holds_nothing_of_its_caller() {
    let Some(home) = home() else { return };
    // The harness waits for the end of both outputs: a job that held them would run into its limit. A further descriptor is
    // left open for agentd to inherit.
    let script = "exec 9>\"$2/held\"; \"$1\" run -d --name one -- sleep 1000";
    let mut shell = Command::new("bash");
    shell.args(["-c", script, "bash"]).arg(agentd_tests::agentd()).arg(home.workspace()).current_dir(home.workspace());
    shell.env_clear().envs(home.agentd().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ran = run(&mut shell).expect_silent_success();
    let id = ran.stdout.trim_end();
    assert_eq!(home.say(&["ps", "-q"]).expect_success().stdout, ran.stdout, "{id} runs");
    let supervisor = home.supervisor("one");
    let of = |what: &str| format!("/proc/{}/{what}", supervisor.pid);
    let open: Vec<_> = fs::read_dir(of("fd")).unwrap().map(|fd| fs::read_link(fd.unwrap().path()).unwrap()).collect();
    assert!(!open.iter().any(|path| path.ends_with("held")), "{open:?}");
    for standard in 0..3 {
        assert_eq!(fs::read_link(of(&format!("fd/{standard}"))).unwrap().to_str(), Some("/dev/null"));
    }
    assert_eq!(fs::read_link(of("cwd")).unwrap().to_str(), Some("/"));
    let stat = fs::read_to_string(of("stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, supervisor.pid.to_string(), "a session of its own");
    assert_eq!(home.say(&["stop", "one"]).expect_silent_success().stdout, "one\n");
}

#[test]
fn a_detached_job_outlives_the_terminal_it_was_started_on() {
    let Some(home) = home() else { return };
    let mut terminal = Terminal::new();
    let mut command = home.run();
    let started = terminal.start(command.args(["-d", "--name", "x", "--", "sh", "-c", ENDLESS]));
    let ran = terminal.finish(started).expect_success();
    assert_eq!(ran.stdout.trim_end().len(), 12, "{ran}");
    drop(terminal);
    assert!(wait_until(PATIENCE, || home.say(&["logs", "x"]).stdout == "ready\n"));
    assert_eq!(home.record("x")["state"], "running");
}

#[test]
fn a_start_that_fails_fails_as_in_the_foreground() {
    let Some(home) = home() else { return };
    let missing = home.path().join("missing").display().to_string();
    for (flags, program, code) in [
        (&[][..], "/no/such/program", 127),
        (&[][..], "/etc/passwd", 126),
        (&["--workdir", "/etc/passwd"][..], "true", 125),
        (&["--workspace", &missing][..], "true", 125),
    ] {
        let detached = run(home.run().arg("-d").args(flags).args(["--", program])).expect_code(code);
        let foreground = run(home.run().args(flags).args(["--", program])).expect_code(code);
        assert_eq!((&detached.stdout, &detached.stderr), (&foreground.stdout, &foreground.stderr));
        detached.expect_one_error_line(&[]);
    }
    let _ran = run(home.run().args(["-d", "--rm", "--name", "gone", "--", "true"])).expect_silent_success();
    assert!(wait_until(PATIENCE, || home.say(&["inspect", "gone"]).code() == 125), "--rm forgets it");
}

/// A job that removes itself is gone in the moment in which those who wait for it wake up.
#[test]
fn the_code_of_a_job_that_is_forgotten_at_its_end_is_known_to_who_waited() {
    let Some(home) = home() else { return };
    let workspace = home.workspace().display().to_string();
    for verb in ["wait", "attach"] {
        for _ in 0..20 {
            let go = home.workspace().join("go");
            let script = "until [ -e go ]; do echo tick; sleep 0.01; done; exit 7";
            let id = home.detached(&["--rm", "--workspace", &workspace], script);
            let mut waits = Started::new(home.agentd().args([verb, &id]));
            let live = home.state().join("live").join(&id);
            let has_open = || {
                let files = fs::read_dir(format!("/proc/{}/fd", waits.pid())).into_iter().flatten().flatten();
                files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|to| to == live))
            };
            match verb {
                "wait" => assert!(wait_until(PATIENCE, has_open)),
                _ => waits.wait_for("tick\n"),
            }
            fs::write(&go, "").unwrap();
            let _ran = waits.finish().expect_code(7);
            fs::remove_file(&go).unwrap();
        }
    }
    assert!(home.jobs().is_empty());
}

#[test]
fn wait_gives_the_codes_that_run_gives() {
    let Some(home) = home() else { return };
    for (flags, script, code) in [
        (&[][..], "exit 0", 0),
        (&[], "exit 7", 7),
        (&[], "kill -SEGV $$", 139),
        (&["--timeout", "200ms"], "exec sleep 1000", 124),
    ] {
        let id = home.detached(flags, script);
        let waited = home.say(&["wait", &id]).expect_code(code);
        assert_eq!(waited.stdout, format!("{code}\n"), "{waited}");
    }
    let (first, second) = (home.detached(&[], "exit 3"), home.detached(&[], "exit 4"));
    assert_eq!(home.say(&["wait", &second, &first[..8]]).expect_code(3).stdout, "4\n3\n");
    let _ran = home.say(&["wait", "no-such"]).expect_code(125);
}

#[test]
fn stop_gives_time_and_takes_it() {
    let Some(home) = home() else { return };
    let id =
        home.detached(&["--name", "good"], "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.02; done");
    assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == "ready\n"));
    assert_eq!(home.say(&["stop", "good", &id]).expect_silent_success().stdout, format!("good\n{id}\n"));
    let record = home.record("good");
    assert_eq!((record["exit_code"].as_i64(), record["state"].as_str()), (Some(5), Some("exited")));
    assert!(record["reason"].as_str().unwrap().contains("agentd stop"), "{record}");
    assert_eq!(home.say(&["logs", "good"]).stdout, "ready\nbye\n");
    let _ran = home.say(&["stop", "good"]).expect_silent_success();

    let deaf = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.02; done";
    let deaf = |name: &str| home.detached(&["--name", name, "--stop-timeout", "1h"], deaf);
    let (one, two) = (deaf("one"), deaf("two"));
    for id in [&one, &two] {
        assert!(wait_until(PATIENCE, || home.say(&["logs", id]).stdout == "ready\n"));
    }
    let begun = Instant::now();
    let _ran = home.say(&["stop", "-t", "300ms", "--all"]).expect_silent_success();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    for id in [one, two] {
        assert_eq!(home.record(&id)["exit_code"], 137);
    }
}

#[test]
fn kill_sends_what_it_is_told() {
    let Some(home) = home() else { return };
    let traps =
        "trap 'echo usr1' USR1; trap 'echo winch' WINCH; trap 'echo int' INT; echo ready; while :; do sleep 0.02; done";
    let id = home.detached(&[], traps);
    let said = |text: &str| wait_until(PATIENCE, || home.say(&["logs", &id]).stdout.ends_with(text));
    assert!(said("ready\n"));
    for (signal, text) in [("USR1", "usr1\n"), ("sigwinch", "winch\n"), ("2", "int\n")] {
        let _ran = home.say(&["kill", "-s", signal, &id]).expect_silent_success();
        assert!(said(text), "{signal}: {}", home.say(&["logs", &id]));
    }
    let _ran = home.say(&["kill", "-s", "USR1", "--all"]).expect_silent_success();
    assert!(said("int\nusr1\n"));
    home.say(&["kill", "-s", "NOPE", &id]).expect_code(125).stderr.contains("NOPE").then_some(()).unwrap();
    assert_eq!(home.say(&["kill", &id]).expect_silent_success().stdout, format!("{id}\n"));
    let record = home.record(&id);
    assert_eq!(record["exit_code"], 137);
    assert!(record["reason"].as_str().unwrap().contains("agentd kill"), "{record}");
    home.say(&["kill", &id]).expect_code(125).expect_one_error_line(&[&id, "does not run"]);
}

/// From the command's start to the last process' end; in a cgroup the same is shown by vm_cgroup.
#[test]
fn what_hides_from_signals_is_gone_a_second_after_kill() {
    let Some(home) = home() else { return };
    let hidden = "trap '' TERM; setsid sh -c 'trap \"\" TERM; (sleep 1000 & sleep 1000) & sleep 1000' & sleep 1000";
    let script = format!("trap '' TERM; ({hidden}) & sleep 1000");
    let sleeps = |process: &&Process| {
        fs::read(format!("/proc/{}/cmdline", process.pid)).is_ok_and(|line| line.ends_with(b"sleep\x001000\0"))
    };
    let took = |_| {
        let id = home.detached(&[], &script);
        let mut all = Vec::new();
        let all_are_there = wait_until(PATIENCE, || {
            all = home.supervisor(&id).descendants();
            all.iter().filter(sleeps).count() == 5
        });
        assert!(all_are_there, "{all:?}");
        let begun = Instant::now();
        let _ran = home.say(&["kill", &id]).expect_silent_success();
        assert!(wait_until(PATIENCE, || !all.iter().any(Process::exists)));
        begun.elapsed()
    };
    // Other tests keep the machine busy.
    let best = (0..3).map(took).min().unwrap();
    assert!(best < Duration::from_secs(1), "{best:?}");
}

#[test]
fn logs_follow_until_the_end_and_begin_where_asked() {
    let Some(home) = home() else { return };
    let script = "seq 5; while [ ! -e go ]; do sleep 0.02; done; echo six; echo oh >&2; exit 3";
    let workspace = home.workspace().display().to_string();
    let id = home.detached(&["--workspace", &workspace], script);
    let mut all = Started::new(home.agentd().args(["logs", "-f", &id]));
    all.wait_for("5\n");
    let mut last = Started::new(home.agentd().args(["logs", "-f", "-n", "2", &id]));
    last.wait_for("5\n");
    fs::write(home.workspace().join("go"), "").unwrap();
    let all = all.finish().expect_success();
    assert_eq!((all.stdout.as_str(), all.stderr.as_str()), ("1\n2\n3\n4\n5\nsix\n", "oh\n"));
    assert_eq!(last.finish().expect_success().stdout, "4\n5\nsix\n");
    assert_eq!(home.say(&["logs", "--since", "1h", &id]).expect_success().stdout, all.stdout);
    assert_eq!(home.say(&["logs", "--since", "2100-01-01T00:00:00Z", &id]).expect_success().stdout, "");
    assert_eq!(home.say(&["logs", "--tail", "0", &id]).expect_silent_success().stdout, "");
    let _ran = home.say(&["logs", "--since", "yesterday", &id]).expect_code(125);
}

/// What was written more than two seconds apart can be told apart.
#[test]
fn logs_since_tell_old_from_new() {
    let Some(home) = home() else { return };
    let workspace = home.workspace().display().to_string();
    let script = "echo old; sleep 3; touch slept; while [ ! -e go ]; do sleep 0.02; done; echo new";
    let id = home.detached(&["--workspace", &workspace], script);
    assert!(wait_until(PATIENCE, || home.workspace().join("slept").symlink_metadata().is_ok()));
    let between = run(Command::new("date").args(["-u", "+%FT%T.%NZ"])).expect_success().stdout;
    fs::write(home.workspace().join("go"), "").unwrap();
    let _ran = home.say(&["wait", &id]).expect_success();
    assert_eq!(home.say(&["logs", "--since", between.trim_end(), &id]).expect_success().stdout, "new\n");
}

#[test]
fn several_see_what_a_job_says_and_each_can_type() {
    let Some(home) = home() else { return };
    let id = home.detached(&["-i"], "while read line; do echo got $line; [ $line = end ] && exit 9; done");
    let attach = || Started::new(home.agentd().args(["attach", &id]).stdin(Stdio::piped()));
    let (mut one, mut two) = (attach(), attach());
    let mut looker = Started::new(home.agentd().args(["attach", "--no-stdin", &id]));
    // Who is attached sees what is said from then on.
    [&one, &two, &looker].into_iter().for_each(|viewer| home.wait_until_attached(viewer, &id));
    let (mut first, mut second) = (one.stdin().unwrap(), two.stdin().unwrap());
    first.write_all(b"a\n").unwrap();
    one.wait_for("got a\n");
    second.write_all(b"b\n").unwrap();
    one.wait_for("got b\n");
    two.wait_for("got b\n");
    first.write_all(b"c\n").unwrap();
    two.wait_for("got c\n");
    looker.wait_for("got c\n");
    // One that has nothing more to type does not end the job's input.
    drop(first);
    second.write_all(b"end\n").unwrap();
    for viewer in [one, two, looker] {
        let ran = viewer.finish().expect_code(9);
        assert!(ran.stdout.ends_with("got end\n"), "{ran}");
    }
}

#[test]
fn keys_detach_from_a_terminal_and_the_size_follows() {
    let Some(home) = home() else { return };
    let script = "stty -echo; trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done";
    let id = home.detached(&["-it"], script);
    assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == "ready\r\n"));
    let mut terminal = Terminal::new();
    terminal.resize(41, 133);
    let before = terminal.modes();
    let mut command = home.agentd();
    let started = terminal.start(command.args(["attach", &id]));
    terminal.wait_for("41 133");
    assert_ne!(terminal.modes(), before, "raw while attached");
    terminal.resize(42, 99);
    terminal.wait_for("42 99");
    terminal.press(b"\x10\x11");
    let ran = terminal.finish(started).expect_success();
    assert!(ran.stdout.contains("detached"), "{ran}");
    assert_eq!(terminal.modes(), before);
    assert_eq!(home.record(&id)["state"], "running");
    // Other keys, and Ctrl-C goes to the job.
    let mut command = home.agentd();
    let started = terminal.start(command.args(["attach", "--detach-keys", "ctrl-a,d", &id]));
    terminal.wait_for("42 99");
    terminal.press(b"\x03");
    let _ran = terminal.finish(started).expect_code(130);
    assert_eq!(home.record(&id)["exit_code"], 130);
}

#[test]
fn signals_to_a_viewer_reach_the_job_unless_they_are_kept_from_it() {
    let Some(home) = home() else { return };
    let id = home.detached(&[], "trap 'echo usr1' USR1; while :; do echo tick; sleep 0.02; done");
    let viewer = |words: &[&str]| {
        let mut viewer = Started::new(home.agentd().args([&["attach"], words, &[&id]].concat()));
        viewer.wait_for("tick\n");
        viewer
    };
    let kept = viewer(&["--no-stdin", "--sig-proxy=false"]);
    kept.signal(Signal::TERM);
    let _ran = kept.finish().expect_code(-15);
    assert_eq!(home.record(&id)["state"], "running");
    let mut passed = viewer(&["--no-stdin"]);
    passed.signal(Signal::USR1);
    passed.wait_for("usr1\n");
    passed.signal(Signal::TERM);
    let _ran = passed.finish().expect_code(143);
    assert_eq!(home.record(&id)["exit_code"], 143);
}

#[test]
fn a_job_in_the_foreground_can_be_reached_too() {
    let Some(home) = home() else { return };
    let script = "trap 'echo again; exit 4' USR1; echo ready; while :; do sleep 0.02; done";
    let mut job = Started::new(home.run().args(["--name", "fore", "--", "sh", "-c", script]));
    job.wait_for("ready\n");
    let socket = home.state().join("jobs").join(home.jobs()[0]["id"].as_str().unwrap()).join("control.sock");
    assert!(socket.symlink_metadata().is_err(), "made only when somebody asks");
    let viewer = Started::new(home.agentd().args(["attach", "fore"]));
    assert!(wait_until(PATIENCE, || socket.symlink_metadata().is_ok()));
    assert_eq!(home.say(&["exec", "fore", "echo", "inside"]).expect_silent_success().stdout, "inside\n");
    home.wait_until_attached(&viewer, "fore");
    let _ran = home.say(&["kill", "-s", "USR1", "fore"]).expect_silent_success();
    assert_eq!(job.finish().expect_code(4).stdout, "ready\nagain\n");
    let _ran = viewer.finish().expect_code(4);
    assert!(socket.symlink_metadata().is_err(), "gone with the job");
}

#[test]
fn rm_with_force_ends_a_job_first() {
    let Some(home) = home() else { return };
    let id = home.detached(&["--name", "x"], "trap '' TERM; while :; do sleep 0.02; done");
    let processes = home.supervisor(&id).descendants();
    home.say(&["rm", &id]).expect_code(125).expect_one_error_line(&["agentd stop", "rm -f"]);
    assert_eq!(home.say(&["rm", "-f", "x"]).expect_silent_success().stdout, format!("{id}\n"));
    assert!(wait_until(PATIENCE, || !processes.iter().any(Process::exists)));
    assert!(home.jobs().is_empty());
    assert!(home.state().join("names/x").symlink_metadata().is_err());
}

/// A verb about several jobs does for each what it can, says what it cannot, a line each, and exits with 125.
#[test]
fn what_cannot_be_done_for_one_job_is_done_for_the_others() {
    let Some(home) = home() else { return };
    let (ended, other) = (home.detached(&[], "exit 3"), home.detached(&[], "exit 4"));
    let _ran = home.say(&["wait", &ended, &other]).expect_code(4);
    let runs = home.detached(&[], "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done");
    assert!(wait_until(PATIENCE, || home.say(&["logs", &runs]).stdout == "ready\n"));
    let told = |words: &[&str], stdout: &str, errors: &[(&String, &str)]| {
        let ran = home.say(words).expect_code(125);
        assert_eq!(ran.stdout, stdout, "{words:?} {ran}");
        let lines: Vec<&str> = ran.stderr.lines().collect();
        assert_eq!(lines.len(), errors.len(), "{words:?} {ran}");
        for (line, (id, word)) in lines.iter().zip(errors) {
            assert!(line.starts_with("agentd: ") && line.contains(*id) && line.contains(word), "{words:?} {ran}");
        }
    };
    let dead = [(&ended, "does not run"), (&other, "does not run")];
    told(&["kill", "-s", "USR1", &ended, &runs, &other], &format!("{runs}\n"), &dead);
    assert!(wait_until(PATIENCE, || home.say(&["logs", &runs]).stdout.ends_with("usr1\n")));
    for verb in ["pause", "unpause"] {
        told(&[verb, &ended, &other], "", &dead);
    }
    told(&["rm", &ended, &runs, &other], &format!("{ended}\n{other}\n"), &[(&runs, "is running")]);
    let spoiled = home.detached(&[], "exit 5");
    let _ran = home.say(&["wait", &spoiled]).expect_code(5);
    fs::write(home.state().join("jobs").join(&spoiled).join("record.jsonl"), "nonsense").unwrap();
    let shown = home.say(&["inspect", &spoiled, &runs]).expect_code(125);
    shown.expect_one_error_line(&[&spoiled]);
    assert!(shown.stdout.contains(&format!("\"id\": \"{runs}\"")) && shown.stdout.ends_with("]\n"), "{shown}");
    told(&["wait", &spoiled, &spoiled], "", &[(&spoiled, "cannot be read"), (&spoiled, "cannot be read")]);
    told(&["kill", &spoiled, &runs], &format!("{runs}\n"), &[(&spoiled, "cannot be read")]);
    // Removing all is going on past what cannot be read, and saying so.
    told(&["rm", "--all"], &format!("{runs}\n"), &[(&spoiled, "cannot be read")]);
    let _ran = home.say(&["rm", &spoiled]).expect_success();
}

/// A viewer that does not read must not hold the job up, and loses its place, not the log. It is told, and sees what comes
/// later.
#[test]
fn a_viewer_that_does_not_read_does_not_hold_the_job_up() {
    let Some(home) = home() else { return };
    let workspace = home.workspace().display().to_string();
    let script = "await() { while [ ! -e $1 ]; do sleep 0.02; done; }
        await go; head -c 8000000 /dev/zero; echo over; await on; echo later; await end; exit 5";
    let id = home.detached(&["--workspace", &workspace], script);
    let mut attached = Started::new(home.agentd().args(["attach", &id]));
    home.wait_until_attached(&attached, &id);
    attached.signal(Signal::STOP);
    fs::write(home.workspace().join("go"), "").unwrap();
    let logged = || home.say(&["logs", &id]).expect_success().stdout_bytes.len();
    assert!(wait_until(PATIENCE, || logged() == 8_000_005), "{}", logged());
    attached.signal(Signal::CONT);
    // It has its old pipe read to the end, and another one since.
    attached.wait_for_error("fell behind");
    home.wait_until_attached(&attached, &id);
    fs::write(home.workspace().join("on"), "").unwrap();
    attached.wait_for("later\n");
    fs::write(home.workspace().join("end"), "").unwrap();
    let seen = attached.finish().expect_code(5);
    seen.expect_one_error_line(&["fell behind", &format!("agentd logs {id}")]);
    assert!(seen.stdout_bytes.len() < 8_000_000 && !seen.stdout.contains("over"), "{}", seen.stdout_bytes.len());
}

/// What waits gives back what it does not need: supervisor and PID 1 of an idle job have 3 MiB between them. PID 1 can be
/// looked into by root alone.
#[test]
fn an_idle_job_takes_less_than_three_mebibytes() {
    let Some(home) = home() else { return };
    let id = home.detached(&[], ENDLESS);
    let supervisor = home.supervisor(&id);
    let init = || supervisor.descendants().first().and_then(Process::memory);
    assert_eq!(init().is_some(), agentd_tests::is_root());
    let memory = || supervisor.memory().unwrap_or_else(|| panic!("{supervisor:?}")) + init().unwrap_or_default();
    assert!(memory() > 0 && wait_until(PATIENCE, || memory() <= 3 << 10), "{} KiB", memory());
}
