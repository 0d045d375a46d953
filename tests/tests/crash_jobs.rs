//! What is left when a process of a job is killed, stopped or raced, or the disk is not what it should be: never a wrong
//! state, a hang or a leak.
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use agentd_tests::kernel::{Process, mounts_at};
use agentd_tests::{Feature, Home, Started, require, run, wait_until};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, socket_with};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

fn kill(process: &Process, signal: Signal) {
    kill_process(Pid::from_raw(process.pid).unwrap(), signal).unwrap();
}

#[track_caller]
fn all_gone(processes: &[Process]) {
    assert!(wait_until(PATIENCE, || !processes.iter().any(Process::exists)), "{processes:?}");
}

const STUBBORN: &str = "trap '' TERM HUP INT; setsid sleep 1000 & echo ready; while :; do sleep 0.02; done";

/// A job that ignores what can be ignored, with a socket, and its processes.
fn job(home: &Home) -> (String, Process, Vec<Process>) {
    let id = home.detached(&["--name", "victim"], STUBBORN);
    assert!(wait_until(PATIENCE, || home.say(&["logs", &id]).stdout == "ready\n"));
    let _ran = home.say(&["exec", &id, "true"]).expect_silent_success();
    let supervisor = home.supervisor(&id);
    let inside = supervisor.descendants();
    assert!(inside.len() >= 2, "{inside:?}");
    (id, supervisor, inside)
}

#[test]
fn a_killed_supervisor_takes_its_detached_job_along() {
    let Some(home) = home() else { return };
    let (id, supervisor, inside) = job(&home);
    let mut waiting = Started::new(home.agentd().args(["wait", &id]));
    let follower = Started::new(home.agentd().args(["logs", "-f", &id]));
    let viewer = Started::new(home.agentd().args(["attach", &id]));
    let mut command = Started::new(home.agentd().args(["exec", &id, "sh", "-c", "echo up; exec sleep 1000"]));
    command.wait_for("up\n");
    home.wait_until_attached(&viewer, &id);
    assert!(!waiting.has_ended());
    let directory = home.state().join("jobs").join(&id);
    // As if it had been killed between making its socket and naming it.
    let _unnamed = UnixListener::bind(directory.join("control.sock.new")).unwrap();
    kill(&supervisor, Signal::KILL);
    all_gone(&inside);
    let waited = waiting.finish().expect_code(137);
    waited.expect_one_error_line(&["lost", &id]);
    let followed = follower.finish().expect_success();
    assert_eq!(followed.stdout, "ready\n");
    followed.expect_one_error_line(&["lost", "end of its output may be missing"]);
    let _ran = viewer.finish().expect_code(137);
    let _ran = command.finish().expect_code(137);
    assert_eq!(home.record(&id)["state"], "lost");
    let sockets = ["control.sock", "control.sock.new"].map(|name| directory.join(name));
    assert!(!sockets.iter().any(|socket| socket.symlink_metadata().is_ok()), "no socket is left");
    assert_eq!(mounts_at(home.path()), Vec::<String>::new());
    for verb in [&["kill"][..], &["exec"], &["attach"]] {
        let words = [verb, &[id.as_str()], if verb == ["exec"] { &["true"] } else { &[] }].concat();
        home.say(&words).expect_code(125).expect_one_error_line(&["does not run"]);
    }
    assert_eq!(home.say(&["stop", &id]).expect_silent_success().stdout, format!("{id}\n"));
    let _ran = home.say(&["rm", "-f", &id]).expect_silent_success();
    assert!(home.jobs().is_empty());
}

#[test]
fn a_killed_init_ends_the_job_and_the_record_says_so() {
    let Some(home) = home() else { return };
    let (id, supervisor, inside) = job(&home);
    kill(&inside[0], Signal::KILL);
    all_gone(&inside);
    assert_eq!(home.say(&["wait", &id]).expect_code(137).stdout, "137\n");
    let record = home.record(&id);
    assert!(record["reason"].as_str().unwrap().contains("from outside"), "{record}");
    all_gone(&[supervisor]);
}

#[test]
fn a_killed_viewer_takes_nothing_along() {
    let Some(home) = home() else { return };
    let id = home.detached(&["-i"], "while read line; do echo got $line; done");
    let attach = || Started::new(home.agentd().args(["attach", &id]).stdin(Stdio::piped()));
    let (mut one, mut two) = (attach(), attach());
    let mut keys = two.stdin().unwrap();
    std::io::Write::write_all(&mut keys, b"a\n").unwrap();
    two.wait_for("got a\n");
    one.signal(Signal::KILL);
    assert!(wait_until(PATIENCE, || one.has_ended()));
    std::io::Write::write_all(&mut keys, b"b\n").unwrap();
    two.wait_for("got b\n");
    assert_eq!(home.record(&id)["state"], "running");
}

/// No event exists to wait for: the moments of the start are what is tried.
#[test]
fn a_run_d_killed_at_any_moment_leaves_a_job_that_runs_or_none() {
    let Some(home) = home() else { return };
    for moment in 0..20_u64 {
        let mut started = Started::new(home.run().args(["-d", "--", "sleep", "1000"]));
        std::thread::sleep(Duration::from_micros(moment * 700));
        if !started.has_ended() {
            started.signal(Signal::KILL);
        }
        let _ran = started.finish();
    }
    let settled = || home.jobs().iter().all(|record| record["state"] != "running" || record["supervisor_pid"].is_u64());
    assert!(wait_until(PATIENCE, settled));
    let _ran = home.say(&["stop", "-a", "-t", "0"]).expect_success();
    assert!(wait_until(PATIENCE, || home.say(&["ps", "-q"]).expect_silent_success().stdout.is_empty()));
    let _ran = home.say(&["rm", "-a"]).expect_success();
    assert!(home.jobs().is_empty());
    let left: Vec<_> = home.paths().into_iter().filter(|path| path.components().count() > 3).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn commands_that_race_on_one_job_agree() {
    let Some(home) = home() else { return };
    for round in 0..5 {
        let (id, _, inside) = job(&home);
        let verbs: [&[&str]; 8] = [
            &["stop", "-t", "100ms"],
            &["stop", "-t", "0"],
            &["kill"],
            &["kill", "-s", "TERM"],
            &["wait"],
            &["exec", &id, "true"],
            &["attach"],
            &["logs", "-f"],
        ];
        let commands: Vec<_> = verbs
            .iter()
            .map(|verb| {
                let mut command = home.agentd();
                command.args(*verb);
                if verb[0] != "exec" {
                    command.arg(&id);
                }
                Started::new(&mut command)
            })
            .collect();
        for (verb, command) in verbs.iter().zip(commands) {
            let ran = command.finish();
            // Who comes too late is told so.
            assert!(
                [0, 137].contains(&ran.code()) || ran.stderr.contains("does not run") || ran.stderr.contains("ended"),
                "{round} {verb:?} {ran}"
            );
        }
        all_gone(&inside);
        let record = home.record(&id);
        assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("exited"), Some(137)));
        remove_by_four(&home, &id);
        assert!(home.jobs().is_empty(), "{round}");
    }
}

/// What `prune` tells of jobs is done, and only told with `--dry-run`.
#[test]
fn prune_finishes_the_records_of_lost_jobs_and_says_whose() {
    let Some(home) = home() else { return };
    let (id, supervisor, inside) = job(&home);
    kill(&supervisor, Signal::KILL);
    all_gone(&inside);
    let live = home.state().join("live").join(&id);
    let prune = |flags: &[&str]| {
        let ran = home.say(&[&["prune", "--format", "json"], flags].concat()).expect_silent_success();
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        report["lost_jobs"].clone()
    };
    let told = home.say(&["prune", "--dry-run"]).expect_silent_success().stdout;
    assert!(told.contains(&format!("would finish the record of lost job {id}\n")), "{told}");
    let before = fs::read(&live).unwrap();
    assert_eq!(prune(&["--dry-run"]), serde_json::json!([id]));
    assert_eq!(fs::read(&live).unwrap(), before, "nothing is changed");
    assert_eq!(prune(&[]), serde_json::json!([id]));
    assert!(live.symlink_metadata().is_err());
    assert_eq!((prune(&[]), prune(&["--dry-run"])), (serde_json::json!([]), serde_json::json!([])));
    assert_eq!(home.record(&id)["state"], "lost");
}

/// Who comes too late finds no job; nobody is told anything else.
fn remove_by_four(home: &Home, id: &str) {
    let removers: Vec<_> = (0..4).map(|_| Started::new(home.agentd().args(["rm", "-f", id]))).collect();
    let removed: Vec<_> = removers.into_iter().map(Started::finish).collect();
    for ran in &removed {
        assert!((ran.code() == 0 && ran.stderr.is_empty()) || ran.stderr.contains("no job is called"), "{ran}");
    }
    assert!(removed.iter().any(|ran| ran.code() == 0));
}

#[test]
fn those_who_remove_what_runs_or_was_just_lost_agree() {
    let Some(home) = home() else { return };
    for round in 0..10 {
        let (id, supervisor, inside) = job(&home);
        if round % 2 == 0 {
            kill(&supervisor, Signal::KILL);
        }
        remove_by_four(&home, &id);
        all_gone(&inside);
        assert!(home.jobs().is_empty(), "{round}");
    }
}

/// A command that finishes the record of a lost job has its lock for a moment: the job does not run for that.
#[test]
fn a_lost_job_that_another_command_looks_at_is_waited_for_before_it_is_removed() {
    let Some(home) = home() else { return };
    let (id, supervisor, inside) = job(&home);
    kill(&supervisor, Signal::KILL);
    all_gone(&inside);
    let live = fs::File::open(home.state().join("live").join(&id)).unwrap();
    live.lock().unwrap();
    let remove = Started::new(home.agentd().args(["rm", &id]));
    let waiter = format!(" -> FLOCK  ADVISORY  READ {} ", remove.pid());
    let mut remove = remove;
    let waits = || fs::read_to_string("/proc/locks").unwrap().contains(&waiter);
    assert!(wait_until(PATIENCE, || waits() || remove.has_ended()) && waits(), "{}", remove.finish());
    drop(live);
    assert_eq!(remove.finish().expect_silent_success().stdout, format!("{id}\n"));
    assert!(home.jobs().is_empty());
}

#[test]
fn a_stale_socket_is_replaced() {
    let Some(home) = home() else { return };
    let id = home.detached(&[], "exec sleep 1000");
    let socket = home.state().join("jobs").join(&id).join("control.sock");
    // As one that a supervisor left that was killed: nobody listens, whoever else may have it open (a process that another
    // test starts, until it executes something).
    let stale = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&stale, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
    fs::write(socket.with_extension("sock.new"), "left too").unwrap();
    let _ran = home.say(&["exec", &id, "true"]).expect_silent_success();
    let _ran = home.say(&["stop", &id]).expect_silent_success();
    assert!(socket.symlink_metadata().is_err());
}

/// Makes the record of a job that runs say that its supervisor is process `pid`; what it said before.
fn claim(home: &Home, id: &str, pid: u32) -> String {
    let live = home.state().join("live").join(id);
    let line = fs::read_to_string(&live).unwrap();
    let own = home.record(id)["supervisor_pid"].as_i64().unwrap();
    let wrong = line.replace(&format!("\"supervisor_pid\":{own}"), &format!("\"supervisor_pid\":{pid}"));
    assert_ne!(line, wrong);
    fs::write(&live, format!("{line}{wrong}")).unwrap();
    line
}

/// A process that has got the number of a supervisor which is gone is nobody's job.
#[test]
fn a_number_that_was_used_again_is_not_signalled() {
    let Some(home) = home() else { return };
    let id = home.detached(&[], "exec sleep 1000");
    let mut innocent = Command::new("sleep").arg("1000").spawn().unwrap();
    let line = claim(&home, &id, innocent.id());
    for words in [&["kill", &id][..], &["exec", &id, "true"]] {
        home.say(words).expect_code(125).expect_one_error_line(&["supervisor is gone"]);
    }
    let _ran = home.say(&["rm", "-f", &id]).expect_code(125);
    assert!(innocent.try_wait().unwrap().is_none(), "the other process lives");
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    fs::write(home.state().join("live").join(&id), line).unwrap();
    let _ran = home.say(&["rm", "-f", &id]).expect_silent_success();
}

/// A supervisor that ends gives up one thing after the other, its record's lock among the last: `rm -f` waits for that.
fn expect_to_wait_for_the_lock(home: &Home, mut remove: Started, id: &str, supervisor: &Process, inside: &[Process]) {
    let waiter = format!(" -> FLOCK  ADVISORY  READ {} ", remove.pid());
    let waits = || fs::read_to_string("/proc/locks").unwrap().contains(&waiter);
    assert!(wait_until(PATIENCE, || waits() || remove.has_ended()) && waits());
    kill(supervisor, Signal::KILL);
    all_gone(inside);
    assert_eq!(remove.finish().expect_silent_success().stdout, format!("{id}\n"));
    assert!(home.jobs().is_empty());
}

#[test]
fn a_job_whose_supervisor_hangs_up_is_waited_for_before_it_is_removed() {
    let Some(home) = home() else { return };
    let (id, supervisor, inside) = job(&home);
    let socket = home.state().join("jobs").join(&id).join("control.sock");
    fs::remove_file(&socket).unwrap();
    let hung_up = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&hung_up, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
    listen(&hung_up, 1).unwrap();
    let remove = Started::new(home.agentd().args(["rm", "-f", &id]));
    drop(accept(&hung_up).unwrap());
    expect_to_wait_for_the_lock(&home, remove, &id, &supervisor, &inside);
}

#[test]
fn a_job_whose_supervisor_has_no_files_any_more_is_waited_for_before_it_is_removed() {
    let Some(home) = home() else { return };
    let (id, supervisor, inside) = job(&home);
    let mut zombie = Command::new("true").spawn().unwrap();
    let files = format!("/proc/{}/fd", zombie.id());
    assert!(wait_until(PATIENCE, || fs::read_dir(&files).map_or(true, |mut open| open.next().is_none())));
    let _line = claim(&home, &id, zombie.id());
    let remove = Started::new(home.agentd().args(["rm", "-f", &id]));
    expect_to_wait_for_the_lock(&home, remove, &id, &supervisor, &inside);
    zombie.wait().unwrap();
}

#[test]
fn a_supervisor_that_does_not_answer_can_be_removed() {
    let Some(home) = home() else { return };
    let id = home.detached(&[], "exec sleep 1000");
    let supervisor = home.supervisor(&id);
    let inside = supervisor.descendants();
    kill(&supervisor, Signal::STOP);
    home.say(&["stop", &id]).expect_code(125).expect_one_error_line(&["does not answer", "rm -f"]);
    let _ran = home.say(&["rm", "-f", &id]).expect_silent_success();
    all_gone(&inside);
    assert!(home.jobs().is_empty());
}

/// One job that cannot be reached keeps no other from what it is told, and makes nobody wait.
#[test]
fn a_stuck_supervisor_holds_up_no_other_job() {
    let Some(home) = home() else { return };
    let start = |_| home.detached(&[], "exec sleep 1000");
    let stuck: Vec<String> = (0..4).map(start).collect();
    let supervisors: Vec<Process> = stuck.iter().map(|id| home.supervisor(id)).collect();
    supervisors.iter().for_each(|supervisor| kill(supervisor, Signal::STOP));
    let sound = home.detached(&[], "exec sleep 1000");
    let mut words = vec!["stop", "-t", "0"];
    words.extend(stuck.iter().chain([&sound]).map(String::as_str));
    let stop = Started::new(home.agentd().args(&words));
    // The others are given ten seconds each for an answer, together: one after the other would be forty.
    assert!(wait_until(Duration::from_secs(30), || home.record(&sound)["state"] == "exited"));
    let stopped = stop.finish().expect_code(125);
    assert_eq!(stopped.stdout, format!("{sound}\n"));
    let told: Vec<&str> = stopped.stderr.lines().collect();
    assert_eq!(told.len(), stuck.len(), "{stopped}");
    for (line, id) in told.iter().zip(&stuck) {
        assert!(line.starts_with("agentd: ") && line.contains(id) && line.contains("does not answer"), "{stopped}");
    }
    supervisors.iter().for_each(|supervisor| kill(supervisor, Signal::CONT));
    let _ran = home.say(&["stop", "-t", "0", "--all"]).expect_silent_success();
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let Some(home) = home() else { return };
    if !require(Feature::OrdinaryUser) {
        return;
    }
    let id = home.detached(&[], "exec sleep 1000");
    for part in ["jobs", "live"] {
        let directory = home.state().join(part);
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o500)).unwrap();
        let refused = run(home.run().args(["-d", "--", "true"])).expect_code(125);
        refused.expect_one_error_line(&[part]);
        assert_eq!(home.say(&["ps", "-q"]).expect_success().stdout, format!("{id}\n"));
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let _ran = home.say(&["stop", &id]).expect_silent_success();
}

/// A full disk costs output on disk, and that is told; not the job, and not its record.
#[test]
fn a_full_disk_costs_output_and_not_the_job() {
    let Some(home) = home() else { return };
    if !require(Feature::Root) {
        return;
    }
    let state = home.path().join("state");
    let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k,mode=700", "none"]).arg(&state));
    let _ran = mounted.expect_success();
    let id = home.detached(&[], "head -c 2000000 /dev/zero; echo over; exit 3");
    let _ran = home.say(&["wait", &id]).expect_code(3);
    let record = home.record(&id);
    let logs = home.say(&["logs", &id]).expect_success();
    let dropped = record["output_dropped"].as_u64().unwrap();
    assert_eq!(logs.stdout_bytes.len() as u64 + dropped, 2_000_005, "{record}");
    assert!(dropped > 1_000_000, "{record}");
    let _ran = home.say(&["rm", &id]).expect_success();
    let _ran = run(Command::new("umount").arg(&state)).expect_success();
}
