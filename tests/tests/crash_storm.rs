//! Many jobs at once, and kill -9 at random over all their processes: nothing leaks, and every record says what happened.
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::kernel::{Process, mounts_at};
use agentd_tests::{Feature, Home, Started, cpu_time, is_guest, require, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

/// The processes whose command line holds `mark`: PID 1 of a box and its supervisor keep that of the `agentd run` they
/// were.
fn marked(mark: &str) -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let has_mark = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    pids.filter(has_mark).filter_map(Process::of).collect()
}

fn kill(process: &Process) {
    // It may have ended since it was found.
    kill_process(Pid::from_raw(process.pid).unwrap(), Signal::KILL).unwrap_or_default();
}

/// Nothing of this home's jobs is left but their records.
#[track_caller]
fn nothing_is_left(home: &Home, mark: &str) {
    assert!(wait_until(PATIENCE, || marked(mark).is_empty()), "{:?}", marked(mark));
    // A process that ends has no command line any more before it lets go of its files, the locked one among them.
    assert!(wait_until(PATIENCE, || home.say(&["ps", "-q"]).expect_success().stdout.is_empty()));
    assert_eq!(mounts_at(home.path()), Vec::<String>::new());
    let ids: Vec<String> = home.jobs().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    // systemd removes an empty scope when it gets to it.
    let cgroups = || run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", "agentd-*"])).stdout;
    let are_gone = |cgroups: &str| !ids.iter().any(|id| cgroups.contains(id));
    assert!(wait_until(PATIENCE, || are_gone(&cgroups())), "{}", cgroups());
    let paths = home.paths();
    let left = |path: &&std::path::PathBuf| {
        let text = path.display().to_string();
        text.contains("agentd/live/") || text.contains("control.sock") || text.starts_with("work/")
    };
    let left: Vec<_> = paths.iter().filter(left).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn many() -> usize {
    if is_guest() { 20 } else { 200 }
}

/// Starts so many jobs; gives their ids.
#[track_caller]
fn start_many(many: usize, command: impl Fn(usize) -> Command) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    // Twenty are under way at a time; none ends before all are there.
    for first in (0..many).step_by(20) {
        let starts: Vec<_> = (first..first + 20).map(|number| Started::new(&mut command(number))).collect();
        let started = |start: Started| start.finish().expect_silent_success().stdout.trim().to_owned();
        ids.extend(starts.into_iter().map(started));
    }
    ids
}

/// What they cost is measured by `cargo xtask bench jobs`.
#[test]
fn two_hundred_jobs_at_once_are_listed_logged_and_stopped() {
    let Some(home) = home() else { return };
    let many = many();
    let mark = home.path().file_name().unwrap().to_str().unwrap().to_owned();
    let workspace = home.workspace().display().to_string();
    let start = |number: usize| {
        let mut command = home.run();
        command.args(["-d", "--name", &format!("job-{number}"), "--workspace", &workspace]);
        command.args(["--", "sh", "-c", &format!("echo {mark} {number}; exec sleep 1000")]);
        command
    };
    let ids = start_many(many, start);
    assert_eq!(ids.len(), many);
    let listed = home.say(&["ps", "-q"]).expect_silent_success().stdout;
    assert_eq!(listed.lines().map(str::to_owned).collect::<BTreeSet<_>>(), ids);
    for number in 0..many {
        let said = format!("{mark} {number}\n");
        assert!(wait_until(PATIENCE, || home.say(&["logs", &format!("job-{number}")]).stdout == said));
    }
    // What a job does not wait with is given back a moment after its start. PID 1 can be looked into by root alone.
    let mean = || marked(&mark).iter().filter_map(Process::memory).sum::<u64>() / u64::try_from(many).unwrap();
    assert!(mean() > 0 && wait_until(PATIENCE, || mean() <= 3 << 10), "{} KiB", mean());
    let stopped = home.say(&["stop", "--all"]).expect_silent_success().stdout;
    assert_eq!(stopped.lines().map(str::to_owned).collect::<BTreeSet<_>>(), ids);
    nothing_is_left(&home, &mark);
    for job in home.jobs() {
        assert_eq!((job["state"].as_str(), job["exit_code"].as_i64()), (Some("exited"), Some(143)), "{job}");
    }
}

#[test]
fn a_start_costs_beside_two_hundred_jobs_what_it_does_alone() {
    // An emulated machine needs minutes for as many starts.
    let Some(home) = home().filter(|_| !is_guest()) else { return };
    let many = many();
    let least = || [(); 10].map(|()| cpu_time(home.run().args(["-q", "--rm", "--", "true"]), 10)).into_iter().min();
    let mut costs = Vec::new();
    // Processor time is dearer while the core's other thread has work, so one of some attempts is enough.
    let is_cheap = (0..4).any(|_| {
        let _ids = start_many(many, |_| {
            let mut command = home.run();
            command.args(["-d", "--", "sleep", "1000"]);
            command
        });
        let beside = least().unwrap();
        let _removed = home.say(&["rm", "-af"]).expect_success();
        let alone = least().unwrap();
        costs.push((beside, alone));
        beside < alone * 3 / 2
    });
    assert!(is_cheap, "10 starts beside {many} jobs, and alone: {costs:?}");
}

#[test]
fn a_job_killed_everywhere_at_once_is_lost_and_gone() {
    let Some(home) = home() else { return };
    let mark = home.path().file_name().unwrap().to_str().unwrap().to_owned();
    let workspace = home.workspace().display().to_string();
    for round in 0..5 {
        let id = home.detached(&["--workspace", &workspace], &format!("echo {mark}; sleep 1000 & exec sleep 1000"));
        assert!(wait_until(PATIENCE, || !home.say(&["logs", &id]).stdout.is_empty()));
        let supervisor = home.supervisor(&id);
        let others = [&["logs", "-f"][..], &["attach"], &["wait"]].map(|verb| {
            let mut command = home.agentd();
            Started::new(command.args(verb).arg(&id))
        });
        // PID 1, the payload and what it starts beside itself.
        let mut processes = Vec::new();
        let all = wait_until(PATIENCE, || {
            processes = supervisor.descendants();
            processes.len() >= 3
        });
        assert!(all, "{processes:?}");
        processes.extend(others.iter().filter_map(|other| Process::of(other.pid())));
        processes.push(supervisor);
        // In another order each time: from inside to outside, from outside to inside, and in between.
        let turn = round % processes.len();
        processes.rotate_left(turn);
        processes.iter().for_each(kill);
        drop(others);
        nothing_is_left(&home, &mark);
        let record = home.record(&id);
        // Whether the supervisor still saw its box end is a matter of who was first.
        let state = (record["state"].as_str().unwrap(), record["exit_code"].as_i64());
        assert!([("lost", None), ("exited", Some(137))].contains(&state), "{record}");
        let logs = home.say(&["logs", &id]).expect_success();
        assert_eq!(logs.stdout, format!("{mark}\n"), "no log is lost");
        assert_eq!(logs.stderr.contains("the end of its output may be missing"), state.1.is_none(), "{logs}");
    }
}

/// xorshift: enough to choose by, and the same again for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// As root and as a user: 1,000 kills; and some in the guest, where each job has a cgroup. `AGENTD_TEST_KILLS` makes it longer, `AGENTD_TEST_SEED` does it again.
#[test]
fn random_kills_leak_nothing_and_leave_no_wrong_record() {
    let Some(home) = home() else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let kills = number("AGENTD_TEST_KILLS").unwrap_or(if is_guest() { 30 } else { 500 });
    let seed = number("AGENTD_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()) | 1 << 32);
    eprintln!("AGENTD_TEST_KILLS={kills} AGENTD_TEST_SEED={seed}");
    let mut random = Random(seed);
    let mark = home.path().file_name().unwrap().to_str().unwrap().to_owned();
    let workspace = home.workspace().display().to_string();
    // By id: whether its supervisor was killed.
    let mut touched: BTreeMap<String, bool> = BTreeMap::new();
    let mut commands: Vec<Started> = Vec::new();
    let mut killed = 0;
    while killed < kills {
        while home.say(&["ps", "-q"]).expect_success().stdout.lines().count() < 6 {
            let script = format!("echo {mark}; (while :; do sleep 0.05; done) & exec sleep 1000");
            // Where it can be had it has to be.
            let limits = &["--pids", "100", "--best-effort-limits"][..if is_guest() { 2 } else { 3 }];
            let mut command = home.run();
            command.args(["-d", "--workspace", &workspace]).args(limits).args(["--", "sh", "-c", &script]);
            let ran = run(&mut command).expect_success();
            touched.insert(ran.stdout.trim().to_owned(), false);
        }
        let running: Vec<String> = home.say(&["ps", "-q"]).expect_success().stdout.lines().map(str::to_owned).collect();
        let Some(id) = running.get(random.below(running.len().max(1))).cloned() else { continue };
        let verb: &[&str] = [&["attach"][..], &["logs", "-f"], &["wait"], &["exec"]][random.below(4)];
        let mut command = home.agentd();
        command.args(verb).arg(&id);
        if verb == ["exec"] {
            command.args(["sh", "-c", &format!(": {mark}; exec sleep 1000")]);
        }
        commands.push(Started::new(&mut command));
        // What it may already have become in this moment is part of the test.
        let record = home.record(&id);
        let supervisor = record["supervisor_pid"].as_i64().and_then(|pid| Process::of(i32::try_from(pid).ok()?));
        let Some(supervisor) = supervisor.filter(|_| record["state"] == "running") else { continue };
        let mut processes = supervisor.descendants();
        processes.push(supervisor.clone());
        processes.extend(commands.last().and_then(|command| Process::of(command.pid())));
        let victim = &processes[random.below(processes.len())];
        if let Some(touched) = touched.get_mut(&id) {
            *touched |= *victim == supervisor;
        }
        kill(victim);
        killed += 1;
        if commands.len() > 8 {
            drop(commands.remove(0));
        }
    }
    drop(commands);
    let _ran = home.say(&["stop", "--all", "-t", "0"]).expect_success();
    nothing_is_left(&home, &mark);
    let records = home.jobs();
    let known: BTreeSet<&str> = records.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(known, touched.keys().map(String::as_str).collect(), "every job that was started is known, once");
    for record in &records {
        let supervisor_killed = touched[record["id"].as_str().unwrap()];
        let state = (record["state"].as_str().unwrap(), record["exit_code"].as_i64());
        let expected: &[(&str, Option<i64>)] = if supervisor_killed {
            // It may have seen the end of its box before the signal came.
            &[("lost", None), ("exited", Some(137))]
        } else {
            // Killed, or stopped at the end: SIGTERM, and SIGKILL at once.
            &[("exited", Some(137)), ("exited", Some(143))]
        };
        assert!(expected.contains(&state), "{supervisor_killed} {record}");
        assert!(record["finished"].is_string(), "{record}");
    }
    let _ran = home.say(&["rm", "--all"]).expect_success();
    assert!(home.jobs().is_empty());
}
