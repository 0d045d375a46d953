//! Jobs on disk and after mishaps: ps, inspect, logs, rm; records that are not what they should be; supervisors and
//! shells that are killed; many jobs at once.
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agentd_tests::kernel::{Process, mounts_at};
use agentd_tests::{Feature, Home, Ran, Started, Terminal, require, run, wait_until};
use rustix::process::Signal;
use serde_json::Value;

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn sh(home: &Home, flags: &[&str], script: &str) -> Ran {
    run(home.run().args(flags).args(["--", "sh", "-c", script]))
}

fn agentd(home: &Home, words: &[&str]) -> Ran {
    run(home.agentd().args(words))
}

/// A job that says `ready` and goes on until it is stopped.
fn endless(home: &Home, flags: &[&str]) -> Started {
    let mut started = Started::new(home.run().args(flags).args(["--", "sh", "-c", "echo ready; exec sleep 1000"]));
    started.wait_for("ready\n");
    started
}

/// Runs a job and gives its id.
#[track_caller]
fn job(home: &Home, flags: &[&str], script: &str) -> String {
    sh(home, flags, script);
    home.jobs()[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn ps_lists_running_jobs_and_with_a_all() {
    let Some(home) = home() else { return };
    assert_eq!(agentd(&home, &["ps", "-q"]).expect_silent_success().stdout, "", "before the first job");
    let ended = job(&home, &["--name", "first"], "exit 3");
    let started = endless(&home, &["--name", "second"]);
    let running = agentd(&home, &["ps", "-q"]).expect_silent_success().stdout.trim().to_owned();
    assert_ne!(running, ended);
    assert_eq!(agentd(&home, &["ps", "-aq"]).expect_silent_success().stdout, format!("{running}\n{ended}\n"));
    let table = agentd(&home, &["ps"]).expect_silent_success().stdout;
    assert!(table.contains(&running) && table.contains("second") && table.contains("running"), "{table}");
    assert!(!table.contains(&ended), "{table}");
    let table = agentd(&home, &["ps", "-a"]).expect_silent_success().stdout;
    assert!(table.contains(&ended) && table.contains("first") && table.contains("exited (3)"), "{table}");
    let running_only: Value =
        serde_json::from_str(&agentd(&home, &["ps", "--format", "json"]).expect_silent_success().stdout).unwrap();
    assert_eq!(running_only.as_array().unwrap().len(), 1);
    let record = &home.jobs()[0];
    assert_eq!(record["supervisor_pid"], started.pid());
    assert_eq!((&record["state"], &record["name"]), (&"running".into(), &"second".into()));
    assert!(record["finished"].is_null() && record["exit_code"].is_null());
    agentd(&home, &["rm", "second"]).expect_code(125).expect_one_error_line(&[&running, "running"]);
    let removed = agentd(&home, &["rm", "-a"]).expect_silent_success();
    assert_eq!(removed.stdout, format!("{ended}\n"), "only what has ended");
    started.signal(Signal::TERM);
    let _ran = started.finish().expect_code(143);
    assert_eq!(home.jobs()[0]["state"], "exited");
}

#[test]
fn inspect_knows_record_and_plan() {
    let Some(home) = home() else { return };
    let workspace = home.workspace().display().to_string();
    let id = job(&home, &["--name", "n", "--workspace", &workspace], "exit 5");
    let shown = agentd(&home, &["inspect", "n", &id[..6]]).expect_silent_success();
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown[0], shown[1]);
    let record = &shown[0];
    assert_eq!((record["id"].as_str(), record["exit_code"].as_i64()), (Some(id.as_str()), Some(5)));
    assert_eq!(record["workspace"].as_str(), Some(workspace.as_str()));
    assert_eq!(record["command"], serde_json::json!(["sh", "-c", "exit 5"]));
    assert_eq!(record["plan"]["id"].as_str(), Some(id.as_str()));
    assert!(record["duration_ms"].as_u64().is_some() && record["finished"].as_str().unwrap().ends_with('Z'));
    agentd(&home, &["inspect", "no-such-job"]).expect_code(125).expect_one_error_line(&["no-such-job", "ps -a"]);
}

/// `agentd … | head -1`: the reader's going is the user's wish, not a failure to talk about.
#[test]
fn a_reader_that_goes_away_is_no_failure_worth_words() {
    let Some(home) = home() else { return };
    let id = job(&home, &[], "seq 100000");
    for verb in [&["inspect", &id][..], &["logs", &id], &["ps", "-a"], &["ps", "-a", "--format", "json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let started =
            Started::with_streams(home.agentd().args(verb).stdout(writer).stderr(std::process::Stdio::piped()));
        let ran = started.finish();
        assert_eq!(ran.stderr, "", "{verb:?}");
    }
}

#[test]
fn logs_are_what_was_written_and_stripped_only_for_a_terminal() {
    let Some(home) = home() else { return };
    let id = job(&home, &[], "printf 'a\\033[31mred\\033[0m\\033]0;title\\007b\\n'; printf 'e\\033[2Jrr\\n' >&2");
    let logs = agentd(&home, &["logs", &id]).expect_success();
    assert_eq!(logs.stdout, "a\u{1b}[31mred\u{1b}[0m\u{1b}]0;title\u{7}b\n");
    assert_eq!(logs.stderr, "e\u{1b}[2Jrr\n");
    let on_terminal = |words: &[&str]| {
        let mut terminal = Terminal::new();
        let mut command: Command = home.agentd();
        let started = terminal.start(command.args(words));
        terminal.finish(started).expect_success().stdout
    };
    assert_eq!(on_terminal(&["logs", &id]), "aredb\r\nerr\r\n");
    assert_eq!(on_terminal(&["logs", "--raw", &id]), format!("{}{}", logs.stdout, logs.stderr).replace('\n', "\r\n"));
    let silent = job(&home, &[], "true");
    let nothing = agentd(&home, &["logs", &silent]).expect_silent_success();
    assert_eq!(nothing.stdout, "");
}

#[test]
fn what_a_job_calls_itself_cannot_move_the_cursor_of_ps() {
    let Some(home) = home() else { return };
    let _ran = run(home.run().args(["--", "true", "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\u{9b}31m"])).expect_success();
    let table = agentd(&home, &["ps", "-a"]).expect_success().stdout;
    assert!(!table.chars().any(|c| c.is_control() && c != '\n'), "{table:?}");
    assert_eq!(table.lines().count(), 2, "{table}");
}

#[test]
fn rm_forgets_everything_of_a_job() {
    let Some(home) = home() else { return };
    let first = job(&home, &["--name", "the-one"], "echo out; echo err >&2");
    let second = job(&home, &[], "true");
    agentd(&home, &["rm", &first, "no-such-job"]).expect_code(125).expect_one_error_line(&["no-such-job"]);
    assert_eq!(home.jobs().len(), 2, "a mistyped name changes nothing");
    assert_eq!(agentd(&home, &["rm", "the-one"]).expect_silent_success().stdout, format!("{first}\n"));
    let left = home.paths();
    assert!(!left.iter().any(|path| path.display().to_string().contains(&first)), "{left:?}");
    assert!(!there(&home.state().join("names/the-one")));
    agentd(&home, &["rm", "the-one"]).expect_code(125).expect_one_error_line(&["the-one"]);
    assert_eq!(agentd(&home, &["rm", "--all"]).expect_silent_success().stdout, format!("{second}\n"));
    assert!(home.jobs().is_empty());
    let _ran = agentd(&home, &["rm"]).expect_code(125);
}

fn there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The files of a job, whatever they are called.
fn directory(home: &Home, id: &str) -> PathBuf {
    home.state().join("jobs").join(id)
}

/// Copies an ended job to another id.
fn copy(home: &Home, id: &str, to: &str) {
    fs::create_dir(directory(home, to)).unwrap();
    for entry in fs::read_dir(directory(home, id)).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap().replace(id, to);
        fs::write(directory(home, to).join(path.file_name().unwrap()), text).unwrap();
    }
}

/// The file of a job that holds its record.
fn record(home: &Home, id: &str) -> PathBuf {
    let mut entries = fs::read_dir(directory(home, id)).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("record")).unwrap()
}

#[test]
fn a_beginning_of_an_id_is_enough_while_it_is_the_only_one() {
    let Some(home) = home() else { return };
    let id = job(&home, &[], "true");
    for copied in ["aaaaaaaaaaa1", "aaaaaaaaaaa2", "aaaaabbbbbbb"] {
        copy(&home, &id, copied);
    }
    let _ran = agentd(&home, &["rm", &id]).expect_success();
    let ambiguous = agentd(&home, &["inspect", "aaaaaa"]).expect_code(125);
    ambiguous.expect_one_error_line(&["aaaaaaaaaaa1", "aaaaaaaaaaa2", "more digits"]);
    assert!(!ambiguous.stderr.contains("aaaaabbbbbbb"), "{ambiguous}");
    let _ran = agentd(&home, &["rm", "aaaaa"]).expect_code(125);
    assert_eq!(home.jobs().len(), 3);
    assert_eq!(agentd(&home, &["rm", "aaaaab"]).expect_success().stdout, "aaaaabbbbbbb\n");
    // A name is never taken for the beginning of an id.
    let named = job(&home, &["--name", "aaaaaaaaaaa"], "true");
    assert_eq!(agentd(&home, &["rm", "aaaaaaaaaaa"]).expect_success().stdout, format!("{named}\n"));
    for none in ["", "zzz", "AAAA", "../..", "a/b", "aaaaaaaaaaa10"] {
        agentd(&home, &["inspect", none]).expect_code(125).expect_one_error_line(&["no job"]);
    }
}

#[test]
fn records_that_cannot_be_read_are_told_and_hide_no_others() {
    let Some(home) = home() else { return };
    let id = job(&home, &["--name", "good"], "true");
    type Spoil = fn(&str) -> Vec<u8>;
    let spoiled: [(&str, &str, Spoil); 5] = [
        ("aaaaaaaaaaa1", "schema 999", |text| text.replace("\"schema\":1", "\"schema\":999").into()),
        ("aaaaaaaaaaa2", "", |_| b"garbage \x1b[2J \xff\xfe".to_vec()),
        ("aaaaaaaaaaa3", "", |_| Vec::new()),
        ("aaaaaaaaaaa4", "", |_| b"{}\n[]\nnull\n".to_vec()),
        ("aaaaaaaaaaa5", "", |text| text.trim_start().as_bytes()[..40].to_vec()),
    ];
    for (other, word, spoil) in spoiled {
        copy(&home, &id, other);
        let path = record(&home, other);
        fs::write(&path, spoil(&fs::read_to_string(&path).unwrap())).unwrap();
        let listed = agentd(&home, &["ps", "-aq"]).expect_success();
        assert_eq!(listed.stdout, format!("{id}\n"), "the others are there");
        listed.expect_one_error_line(&[other, word]);
        assert!(!listed.stderr.contains('\u{1b}'), "{listed}");
        agentd(&home, &["inspect", other]).expect_code(125).expect_one_error_line(&[other]);
        let _ran = agentd(&home, &["inspect", "good"]).expect_silent_success();
        let _ran = agentd(&home, &["rm", other]).expect_success();
        assert!(!there(&directory(&home, other)));
    }
    assert_eq!(home.jobs().len(), 1);
}

#[test]
fn rm_frees_the_name_of_a_job_whose_record_cannot_be_read() {
    let Some(home) = home() else { return };
    let id = job(&home, &["--name", "mine"], "true");
    fs::write(record(&home, &id), "garbage").unwrap();
    let _ran = agentd(&home, &["rm", "mine"]).expect_success();
    assert!(!there(&home.state().join("names/mine")), "the name is still taken");
    let _ran = sh(&home, &["--name", "mine"], "true").expect_silent_success();
}

/// After a power failure the end of a record may be missing; nobody runs that job any more.
#[test]
fn a_record_without_its_end_is_not_a_running_job() {
    let Some(home) = home() else { return };
    let id = job(&home, &[], "true");
    let path = record(&home, &id);
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() - 20]).unwrap();
    let listed = agentd(&home, &["ps", "-q"]);
    assert_eq!(listed.stdout, "", "{listed}");
    let _ran = agentd(&home, &["rm", "-a"]);
    let _ran = agentd(&home, &["rm", &id]);
    assert!(!there(&directory(&home, &id)));
}

#[test]
fn what_else_lies_in_the_state_directory_is_left_alone() {
    let Some(home) = home() else { return };
    let id = job(&home, &[], "true");
    for name in ["jobs/README", "jobs/not-an-id", "live/not-an-id", "names/dangling"] {
        fs::write(home.state().join(name), "x").unwrap();
    }
    fs::create_dir(home.state().join("jobs/bbbbbbbbbbbb")).unwrap();
    assert_eq!(agentd(&home, &["ps", "-aq"]).expect_success().stdout, format!("{id}\n"));
    let _ran = agentd(&home, &["rm", "-a"]).expect_success();
    assert!(there(&home.state().join("jobs/README")) && there(&home.state().join("names/dangling")));
}

/// The box of a supervisor, as processes of the host: PID 1 and the payload at least.
#[track_caller]
fn box_of(supervisor: &Process) -> Vec<Process> {
    let found = supervisor.descendants();
    assert!(found.len() >= 2, "PID 1 and the payload: {found:?}");
    found
}

#[track_caller]
fn all_gone(processes: &[Process]) {
    assert!(wait_until(PATIENCE, || processes.iter().all(|process| !process.exists())), "still there: {processes:?}");
}

#[test]
fn a_killed_supervisor_leaves_no_process_no_mount_and_a_lost_job() {
    let Some(home) = home() else { return };
    let workspace = home.workspace().display().to_string();
    // The payload ignores what can be ignored and has children that left its session.
    let script =
        "trap '' TERM HUP INT; setsid sleep 1000 & (setsid setsid sleep 1000 &) ; echo ready; wait; sleep 1000";
    let words = ["--name", "victim", "--workspace", &workspace, "--", "sh", "-c", script];
    let mut started = Started::new(home.run().args(words));
    started.wait_for("ready\n");
    let processes = box_of(&Process::of(started.pid()).unwrap());
    assert_eq!(home.jobs()[0]["state"], "running");
    started.signal(Signal::KILL);
    let _ran = started.finish().expect_code(-9);
    all_gone(&processes);
    assert_eq!(mounts_at(home.path()), Vec::<String>::new());
    assert_eq!(agentd(&home, &["ps", "-q"]).expect_silent_success().stdout, "");
    let record = &home.jobs()[0];
    assert_eq!(record["state"], "lost");
    assert!(record["reason"].as_str().unwrap().contains("supervisor") && record["finished"].is_string(), "{record}");
    assert!(agentd(&home, &["ps", "-a"]).expect_silent_success().stdout.contains("lost"));
    assert_eq!(agentd(&home, &["logs", "victim"]).expect_success().stdout, "ready\n");
    let _ran = agentd(&home, &["rm", "victim"]).expect_silent_success();
    let left: Vec<_> = home.paths().into_iter().filter(|path| path.components().count() > 3).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_supervisor_killed_at_any_moment_of_the_start_leaves_nothing_that_rm_cannot_remove() {
    let Some(home) = home() else { return };
    let mut processes = Vec::new();
    for moment in 0..20_u64 {
        let started = Started::new(home.run().args(["--", "sleep", "1000"]));
        let supervisor = Process::of(started.pid()).unwrap();
        // No event exists to wait for: the moments of the start are what is tried.
        std::thread::sleep(Duration::from_micros(moment * 500));
        processes.extend(supervisor.descendants());
        started.signal(Signal::KILL);
        let _ran = started.finish();
    }
    all_gone(&processes);
    assert!(home.jobs().iter().all(|record| record["state"] == "lost"), "{:#?}", home.jobs());
    let _ran = agentd(&home, &["rm", "-a"]).expect_silent_success();
    let left: Vec<_> = home.paths().into_iter().filter(|path| path.components().count() > 3).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A shell that runs `agentd run … -- sh -c SCRIPT` in the background and waits; `before` comes first.
fn in_a_shell(home: &Home, before: &str, script: &str) -> Started {
    let mut shell = Command::new("sh");
    let line = format!("{before} \"$0\" run --workspace \"$1\" -- sh -c \"$2\" & wait");
    shell.args(["-c", &line]).arg(agentd_tests::agentd()).arg(home.workspace()).arg(script);
    shell.env_clear().envs(home.agentd().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut started = Started::new(&mut shell);
    started.wait_for("ready\n");
    started
}

#[test]
fn a_killed_shell_ends_the_job_it_started() {
    let Some(home) = home() else { return };
    let shell = in_a_shell(&home, "", "echo ready; exec sleep 1000");
    let processes = Process::of(shell.pid()).unwrap().descendants();
    assert!(processes.len() >= 3, "agentd, PID 1, the payload: {processes:?}");
    shell.signal(Signal::KILL);
    all_gone(&processes);
    let _ran = shell.finish().expect_code(-9);
    let record = &home.jobs()[0];
    assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("exited"), Some(143)));
    assert!(record["reason"].as_str().unwrap().contains("gone"), "{record}");
}

#[test]
fn under_nohup_the_job_goes_on() {
    let Some(home) = home() else { return };
    // Two rounds by way of files: when the first answer has come, the supervisor has seen its parent's end.
    let script = "echo ready; for i in 1 2; do while [ ! -e ask$i ]; do sleep 0.01; done; echo answer $i; done; exit 6";
    let mut shell = in_a_shell(&home, "trap '' HUP;", script);
    shell.signal(Signal::KILL);
    assert!(wait_until(PATIENCE, || shell.has_ended()));
    for round in [1, 2] {
        fs::write(home.workspace().join(format!("ask{round}")), "").unwrap();
        shell.wait_for(&format!("answer {round}\n"));
    }
    assert!(wait_until(PATIENCE, || home.jobs()[0]["state"] == "exited"));
    let record = &home.jobs()[0];
    assert_eq!((record["exit_code"].as_i64(), &record["reason"]), (Some(6), &Value::Null));
}

#[test]
fn two_jobs_at_once_do_not_see_each_other() {
    let Some(home) = home() else { return };
    let first = endless(&home, &["--name", "one", "--hostname", "same"]);
    let second = endless(&home, &["--name", "two", "--hostname", "same"]);
    assert_eq!(agentd(&home, &["ps", "-q"]).expect_silent_success().stdout.lines().count(), 2);
    // The others are `sleep`; a box has its own processes only.
    let looking = sh(&home, &[], "cat /proc/[0-9]*/comm").expect_silent_success();
    assert!(looking.stdout.contains("sh\n") && !looking.stdout.contains("sleep"), "{looking}");
    first.signal(Signal::TERM);
    let _ran = first.finish().expect_code(143);
    assert_eq!(home.jobs().iter().filter(|record| record["state"] == "running").count(), 1);
    second.signal(Signal::TERM);
    let _ran = second.finish().expect_code(143);
}

#[test]
fn twenty_jobs_in_parallel_share_a_cold_store_and_all_succeed() {
    let Some(home) = home() else { return };
    if !require(Feature::Busybox) {
        return;
    }
    let _made = home.busybox_image();
    let jobs: Vec<_> = (0..20)
        .map(|i| Started::new(home.run_busybox().args(["--", "sh", "-c", &format!("echo job {i}; exit {i}")])))
        .collect();
    for (i, started) in (0..).zip(jobs) {
        let ran = started.finish().expect_code(i);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), (format!("job {i}\n").as_str(), ""));
    }
    let codes: BTreeSet<_> = home.jobs().iter().map(|record| record["exit_code"].as_i64().unwrap()).collect();
    assert_eq!(codes, (0..20).collect());
    let layers = fs::read_dir(home.path().join("data/agentd/store/layers")).unwrap().count();
    assert_eq!(layers, 1, "unpacked once");
    assert_eq!(fs::read_dir(home.path().join("data/agentd/store/tmp")).unwrap().count(), 0, "no temporary files");
}

/// `ps` finishes the records of supervisors that are gone; it must not take one that is just starting for such.
#[test]
fn looking_at_jobs_does_not_disturb_those_that_start() {
    let Some(home) = home() else { return };
    for _ in 0..10 {
        let jobs: Vec<_> = (0..4).map(|_| Started::new(home.run().args(["--", "true"]))).collect();
        let lookers: Vec<_> = (0..4).map(|_| Started::new(home.agentd().args(["ps", "-a"]))).collect();
        for started in jobs.into_iter().chain(lookers) {
            let _ran = started.finish().expect_silent_success();
        }
    }
    let jobs = home.jobs();
    assert!(jobs.len() == 40 && jobs.iter().all(|record| record["state"] == "exited"), "{jobs:#?}");
}

#[test]
fn one_name_asked_for_by_twenty_belongs_to_one() {
    let Some(home) = home() else { return };
    let jobs: Vec<_> = (0..20).map(|_| Started::new(home.run().args(["--name", "mine", "--", "true"]))).collect();
    let codes: Vec<_> = jobs.into_iter().map(|started| started.finish().code()).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 125).count(), 19, "{codes:?}");
    assert_eq!(home.jobs().len(), 1);
    let directories = fs::read_dir(home.state().join("jobs")).unwrap().count();
    assert_eq!(directories, 1, "what lost the name left nothing");
}

/// Where there is no cgroup, nothing is half paused.
#[test]
fn a_job_without_a_cgroup_cannot_be_paused_and_goes_on() {
    let Some(home) = home() else { return };
    let id = home.detached(&[], "exec sleep 1000");
    for verb in ["pause", "unpause"] {
        agentd(&home, &[verb, &id]).expect_code(125).expect_one_error_line(&["no cgroup", "--pids", "agentd doctor"]);
    }
    let _ran = agentd(&home, &["exec", &id, "true"]).expect_silent_success();
    let _ran = agentd(&home, &["stop", &id]).expect_silent_success();
}
